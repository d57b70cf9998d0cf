"""What the user sees: tables on stdout, or one JSON object instead."""

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVarTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..compute.devices import this_process
from ..errors import on_one_line, readable
from ..progress import say
from ..recipes import Recipe, to_yaml
from ..recipes import label as label_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..distil.reconstruct import Stage
    from ..tasks.registry import Task
    from ..training.job import Phase
    from ..training.sweep import SweepJob
    from ..training.sweep_results import Results

Rest = TypeVarTuple("Rest")

_SIZE_NOTE = "* computed from the bit widths"


def show_result(
    result: dict[str, Any], show: Callable[[dict[str, Any], *Rest], None], *rest: *Rest, as_json: bool
) -> None:
    """Print a result as one JSON object, or else by `show(result, *rest)`."""
    if as_json:
        _print_json(result)
    else:
        show(result, *rest)


def show_plan(recipe: Recipe, phases: list["Phase"]) -> None:
    """The phases of the training, on stderr before it begins."""
    parts = [f"{phase.name} {phase.steps} steps" + f" ({phase.schedule})" * bool(phase.schedule) for phase in phases]
    if recipe.reconstruct_steps:
        parts.insert(0, f"reconstruction {recipe.reconstruct_steps} steps a block")
    if recipe.layer_map is not None:
        parts.append(f"layers learn from the teacher's {', '.join(map(str, recipe.layer_map))}")
    _say(f"{recipe.name}, seed {recipe.seed}, {recipe.precision}: {', '.join(parts)}", error=True)


def show_resumed(step: int, steps: int) -> None:
    """Where an interrupted run resumes, on stderr."""
    _say(f"resumed: goes on after step {step} of {steps}", error=True)


def show_stage(stage: "Stage") -> None:
    """What a stage of the reconstruction did, on stderr."""
    if this_process().is_main_process:
        _say(f"{stage.name}: error {stage.before:.4g} before, {stage.after:.4g} after", error=True)


def show_task(task: "Task") -> None:
    """What was read of the user's own files, on stderr before they are used."""
    from ..tasks.heads.head import HELD_OUT_SEED

    if task.labels is None:
        labels = "a score" if task.is_regression else "no labels"
    else:
        names = ", ".join(map(on_one_line, task.labels[:20])) + ", …" * (len(task.labels) > 20)
        labels = f"{'any of ' * task.multi_label}{len(task.labels)} labels ({names})"
        labels += ", given by their ids from 0," * task.by_id
    asked = ""
    if task.head.has_columns:
        asked = f"{', '.join(task.text_columns) or 'inputs'} to {labels} in {task.label_column}; "
    held_out = f" on a tenth of the training rows (seed {HELD_OUT_SEED})" if task.holds_out else ""
    _say(f"{task.title}: {asked}selected by {task.metric}{held_out}", error=True)


def show_dry_run(recipe: Recipe, phases: list["Phase"], student: "PreTrainedModel") -> None:
    """What a training would do: the resolved recipe, the phases, the bits of every module, the size."""
    from ..checkpoints.size import size_bytes
    from ..modeling.module_bits import bits_of_modules

    print(to_yaml(recipe))
    table = _table("module", "times", "parameters", "weights", "inputs")
    for row in bits_of_modules(student):
        bits = [f"{value} bit" if value else "float" for value in (row.weight_bits, row.activation_bits)]
        table.add_row(row.name, str(row.count), f"{row.parameters:,}", *bits)
    Console().print(table)
    if recipe.reconstruct_steps:
        _say(f"reconstruction: {recipe.reconstruct_steps} steps of {recipe.reconstruct_batch_size} rows a block")
    for phase in phases:
        _say(
            f"{phase.name}: {phase.steps} steps"
            + f", teacher's tensors inside ({phase.schedule})" * bool(phase.schedule)
        )
    _say(f"size: {readable(size_bytes(student))}{_SIZE_NOTE.replace('*', ',')}")


def show_run(metrics: dict[str, Any], folder: Path) -> None:
    """A distillation's `metrics.json` as a table."""
    name, further = metrics["metric"], [key for key, value in metrics["teacher"].items() if isinstance(value, dict)]
    known = ("agreement", "cosine_to_teacher", "mse_to_teacher")
    closeness = next(key for key in known if key in metrics["last"])
    title = f"{metrics['task']}, {metrics['recipe']}, seed {metrics['seed']}"
    table = _table("model", name, *further, closeness, "step", "size*", title=title)
    labels = {
        "teacher": "teacher",
        "float_student": "float student",
        "untrained": "quantized, untrained",
        "start": "start",
        "reconstructed": "reconstructed",
        "best": "best",
        "last": "last",
    }
    for key, label in labels.items():
        if row := metrics.get(key):
            close = _percent(row.get(closeness)) if closeness == "agreement" else f"{row.get(closeness, 0):.4f}"
            scores = [_percent(row[name]), *(_percent(row[split][name]) for split in further)]
            where = "" if key in ("teacher", "float_student", "start", "reconstructed") else str(row.get("step", 0))
            bytes_ = row.get("size_bytes", metrics["size_bytes"])
            table.add_row(label, *scores, "" if key == "teacher" else close, where, readable(bytes_))
    if assisted := metrics.get("assisted"):
        label = f"assisted: teacher's {assisted['site']} inside"
        blanks = [""] * (len(further) + 1)
        table.add_row(label, _percent(assisted[f"assisted_{name}"]), *blanks, str(assisted["step"]), "")
    Console().print(table)
    parts = []
    if done := metrics.get("reconstruction"):
        parts.append(f"{len(done['stages'])} parts reconstructed in {done['seconds']:.0f} s")
    if metrics["seconds_per_step"]:
        parts.append(f"{sum(metrics['steps'].values())} steps, {metrics['seconds_per_step']:.2f} s each")
    _say(f"{_SIZE_NOTE}. {'; '.join(parts)}; {metrics['seconds']:.0f} s with evaluations. Written to {folder}")


def show_augmented(record: dict[str, Any]) -> None:
    """What `augment` wrote."""
    _say(f"{record['output']}: {record['rows']} rows and {record['variants']} variants")


def show_shrunk(made: dict[str, Any]) -> None:
    """What `shrink` wrote."""
    sizes = f"{readable(made['source']['size_bytes'])} became {readable(made['size_bytes'])}"
    kept = [f"layers {', '.join(map(str, made['layers']))} of {made['of']}"] if "layers" in made else []
    if vocabulary := made.get("vocabulary"):
        kept.append(f"{vocabulary['tokens']:,} of {vocabulary['of']:,} tokens")
        if held_out := vocabulary.get("held_out"):
            _show_held_out(held_out)
    _say(f"{', '.join(kept)}: {sizes}, {made['parameters']:,} parameters. Written to {made['output']}")


def _show_held_out(counted: dict[str, int]) -> None:
    """What became of the tokens of other texts."""
    tokens = max(counted["tokens"], 1)
    unknown, split, before = (counted[name] / tokens for name in ("unknown", "split", "unknown_before"))
    _say(
        f"held-out texts: of {counted['tokens']:,} tokens {unknown:.2%} became unknown ({before:.2%} were) and "
        f"{split:.2%} are split; {counted['tokens_after'] / tokens - 1:+.2%} tokens in all"
    )


def show_finetuned(metrics: dict[str, Any], folder: Path) -> None:
    """A fine-tuning's `metrics.json` in two lines."""
    name, best, last = metrics["metric"], metrics["best"], metrics["last"]
    scores = f"{_percent(best[name])} (best on dev, step {best['step']}; last {_percent(last[name])})"
    cost = f"{metrics['seconds']:.0f} s, {readable(metrics['size_bytes'])}"
    _say(f"{metrics['task']}: {name} {scores}, {cost}. Written to {folder}")


def show_scores(scores: dict[str, Any]) -> None:
    """What `evaluate` measured."""
    table = Table(title=escape(f"{scores['model']} on {scores['task']}"), show_header=False)
    flat: dict[str, Any] = {}
    for name, value in scores.items():
        flat |= {f"{name} {key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    for name, value in flat.items():
        if name not in ("model", "task", "rows_sha256"):
            shown = (
                readable(value) if name == "size_bytes" else f"{value:.4f}" if isinstance(value, float) else str(value)
            )
            table.add_row(name, shown)
    Console().print(table)


def show_other_rows(scores: dict[str, Any], selecting: dict[str, Any] | None) -> None:
    """Say on stderr if a model is scored on other dev rows than those that selected it."""
    if selecting is not None and selecting["sha256"] != scores["rows_sha256"]:
        rows = f"these {scores['rows']} dev rows are not the {selecting['count']} that selected its best model"
        _say(f"{scores['model']}: {rows}", error=True)


def show_notes(notes: Iterable[str]) -> None:
    """Lines on stderr."""
    for note in notes:
        _say(note, error=True)


def show_packed(sizes: dict[str, Any]) -> None:
    """A packed folder, part by part; MB are 10^6 bytes."""
    table = _table(
        "part", "parameters", "float MB", "packed MB", "ratio", title=f"{sizes['model']} in {sizes['output']}"
    )
    for row in sizes["parts"]:
        table.add_row(row["part"], f"{row['parameters']:,}", *_megabytes(row["float_bytes"], row["size_bytes"]))
    table.add_row("headers, config, recipe", "", "", f"{sizes['other_bytes'] / 1e6:.3f}", "")
    table.add_section()
    table.add_row("all but the tokenizer", "", *_megabytes(sizes["float_bytes"], sizes["size_bytes"]))
    table.add_row("tokenizer", "", "", f"{sizes['tokenizer_bytes'] / 1e6:.3f}", "")
    Console().print(table)


def _megabytes(float_bytes: int, size_bytes: int) -> tuple[str, str, str]:
    return f"{float_bytes / 1e6:.3f}", f"{size_bytes / 1e6:.3f}", f"{float_bytes / size_bytes:.1f}"


def show_site(site: dict[str, Any]) -> None:
    """What `web` wrote and how to look at it."""
    _say(f"{site['output']}: a page of {readable(site['page_bytes'])} and a model of {readable(site['model_bytes'])}")
    _say(f"python -m http.server --directory {site['output']}  # then open http://localhost:8000")


def show_export(report: dict[str, Any]) -> None:
    """What `export` wrote, and with --verify how both models compare."""
    _say(f"{report['output']}: {report['format']}, {readable(report['size_bytes'])}")
    if found := report.get("verify"):
        table = _table("", "model", "exported", title=f"{found['task']}, {found['compared']} {found['unit']} of dev")
        table.add_row(found["metric"], _percent(found["model"]), _percent(found["exported"]))
        Console().print(table)
        if "smallest_cosine" in found:
            _say(
                f"cosine of both models' embeddings {found['smallest_cosine']:.6f} or more, {found['mean_cosine']:.6f} "
                "on average"
            )
            return
        _say(
            f"agreement {100 * found['agreement']:.2f} % ({found['differing']} {found['unit']} differ), logits differ "
            f"by {found['largest_logit_difference']:.2g} at most, by {found['median_logit_difference']:.2g} in the "
            "median"
        )


def show_bench(results: dict[str, Any]) -> None:
    """Contenders with size and memory; latencies by shape, each with its ratio; where our time goes."""
    shapes = list(dict.fromkeys((row["batch"], row["length"]) for row in results["timings"]))
    times = {(row["name"], row["batch"], row["length"]): row for row in results["timings"]}
    heads = [f"{batch} x {length}" for batch, length in shapes]
    title = f"{results['model']}: ms (ratio to onnxruntime float) by batch x length"
    table = _table("", "file", "peak memory", *heads, title=title)
    table.columns[0].no_wrap = True
    for row in results["contenders"]:
        cells = [times[row["name"], *shape] for shape in shapes]
        shown = [f"{cell['latency_ms']:.2f} ({cell['ratio']:.2f})" for cell in cells]
        table.add_row(row["name"], readable(row["size_bytes"]), readable(row["peak_memory_bytes"]), *shown)
    Console().print(table)
    shares = [f"{name} {100 * share:.0f} %" for name, share in list(results["time_by_operator"].items())[:8]]
    _say(f"Medians of {results['repeats']} interleaved runs, {results['threads']} thread(s) each.")
    _say(f"Where tritune's time goes at the largest shape: {', '.join(shares)}")


def show_demo(results: dict[str, Any]) -> None:
    """The demo's models side by side."""
    teacher, students = results["teacher"], results["students"]
    title = "Is the sentence acceptable? Dev accuracy, classes balanced"
    table = _table("model", "best", "last", "steps", "seconds", "size*", title=title)
    first = next(iter(students.values()))
    untrained = {"best": first["untrained"], "last": first["untrained"], "steps": {}, "seconds": 0}
    untrained |= {"size_bytes": first["size_bytes"]}
    for name, run in {"teacher": teacher, "quantized, untrained": untrained, **students}.items():
        best, last = (_percent(run[key]["accuracy"]) for key in ("best", "last"))
        blocks = f"{run['reconstruction']['steps']} a block" if "reconstruction" in run else ""
        table.add_row(
            name,
            best,
            last,
            blocks or str(sum(run["steps"].values())),
            f"{run['seconds']:.0f}",
            readable(run["size_bytes"]),
        )
    Console().print(table)
    for pair in itertools.pairwise((name, run["last"]["accuracy"]) for name, run in students.items()):
        _say(_verdict(dict(pair), results["dev_rows"]))
    _say(f"{_SIZE_NOTE}. Curves: {results['curves']}")


def _verdict(accuracies: dict[str, float], rows: int) -> str:
    """Whether the second of two students is ahead, and by more than chance would give."""
    (first, without), (second, with_it) = accuracies.items()
    # Two standard deviations of the difference of two accuracies measured on as many rows.
    noise = 2 * (sum(share * (1 - share) for share in (without, with_it)) / rows) ** 0.5
    scores = f"{_percent(with_it)} to {_percent(without)} after the last step"
    if abs(with_it - without) <= noise:
        return f"{second} against {first}: {scores}; on {rows} rows this is no significant difference."
    return f"{second} {'wins' if with_it > without else 'does not win'} against {first}: {scores}."


def show_doctor(found: dict[str, Any]) -> None:
    """The machine, the engine, versions and settings, and what would be faster."""
    processor, engine = found["processor"], found["engine"]
    table = Table(show_header=False)
    for column in range(2):
        table.add_column(overflow="fold", no_wrap=column == 0)
    products = {True: "yes", False: "no", None: "unknown"}[processor["multiplies_bfloat16"]]
    rows = {
        "system": found["system"],
        "processor": f"{processor['name']} ({processor['architecture']})",
        "cores": str(processor["cores"]),
        "instruction sets": ", ".join(processor["instruction_sets"]) or "none that the engine knows",
        "multiplies bfloat16": products,
        "GPU": ", ".join(found["gpus"]) or "none",
        "engine": f"{engine['isa']} (of {', '.join(engine['isas'])})" if engine["isa"] else engine["problem"],
        **{name: version or "not installed" for name, version in found["versions"].items()},
        **found["environment"],
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console = Console()
    console.print(table)
    for line in found["advice"] or ["Nothing stands in the way of speed."]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_recipes(shipped: dict[str, Any]) -> None:
    """The recipes that ship, each with its base and what differs from it."""
    table = _table("recipe", "what it is", "base, and what differs", words=3)
    for name, values in shipped.items():
        differs = [f"{key}: {value}" for key, value in values.items() if key not in ("base", "name", "description")]
        base = "\n".join([values["base"], *differs]) if "base" in values else f"all {len(values)} keys"
        table.add_row(name, values["description"], base)
    Console().print(table)


def show_keys(defaults: dict[str, Any]) -> None:
    """Every key of a recipe with its default, as YAML writes it."""
    table = _table("key", "default")
    for name, default in defaults.items():
        table.add_row(name, json.dumps(default).strip('"'))
    Console().print(table)


def show_sweep_plan(job: "SweepJob", as_json: bool) -> None:
    """The runs that a sweep would make, and how many steps they are in all."""
    runs = [
        {"sweep": sweep.name, "values": values, "seed": seed}
        for sweep in job.sweeps
        for values in (sweep.grid() if sweep.sampler == "grid" else [None] * sweep.count())
        for seed in sweep.seeds
    ]
    steps = {sweep.name: job.steps(sweep) for sweep in job.sweeps}
    if as_json:
        _print_json({"runs": runs, "steps": steps})
        return
    table = _table("sweep", "point", "seeds", words=3)
    for sweep in job.sweeps:
        seeds = ", ".join(map(str, sweep.seeds))
        if sweep.sampler == "grid":
            for values in sweep.grid():
                table.add_row(sweep.name, escape(label_of(values)), seeds)
        else:
            table.add_row(sweep.name, f"{sweep.trials} points by {sweep.sampler} of {', '.join(sweep.space)}", seeds)
    Console().print(table)
    _say(f"{len(runs)} runs, {sum(steps.values()):,} steps in all")


def show_sweep(results: "Results", folder: Path, as_json: bool) -> None:
    """Mean and deviation of every point of a sweep, the best one marked."""
    best = results.best
    if as_json:
        points = [
            {"sweep": point.sweep.name, "values": dict(point.values), "mean": point.mean, "deviation": point.deviation}
            | {"scores": list(point.scores), "state": point.state, "reason": point.reason, "best": point is best}
            for point in results.points
        ]
        _print_json({"metric": results.metric, "points": points, "runs_left": results.open()})
        return
    title = f"{results.title}, {results.metric.replace('_', ' ')}"
    table = _table("sweep", "point", "mean", "deviation", "seeds", "", title=title, words=2)
    table.columns[-1].justify = "left"
    for point in results.points:
        note = "best" if point is best else "" if point.state == "complete" else point.reason or point.state
        scores = (_percent(point.mean), _percent(point.deviation), str(len(point.scores)))
        table.add_row(point.sweep.name, escape(label_of(point.values)), *scores, escape(note))
    Console().print(table)
    left = f"; {results.open()} runs are not done (elsewhere, or --resume goes on)" if results.open() else ""
    _say(f"{len(results.runs)} of {results.total} runs. Written to {folder}{left}")


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]], note: str) -> None:
    """A table, and a line below it."""
    table = _table(*header)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)
    _say(note)


def _table(*columns: str, title: str = "", words: int = 1) -> Table:
    """A table whose first columns are words and whose others are numbers."""
    table = Table(title=escape(title) or None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < words else "right", overflow="fold")
    return table


def _say(text: str, error: bool = False) -> None:
    """Print one line, in the main process only."""
    if this_process().is_main_process:
        if error:
            say(text)
        else:
            Console(soft_wrap=True).print(text, markup=False, highlight=False)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, indent=2))
