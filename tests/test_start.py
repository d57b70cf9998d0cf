"""What the command line answers before any work begins needs none of the libraries that take seconds to import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tritune.distil.choices import LOSS_NAMES
from tritune.distil.losses import LOSSES
from tritune.tasks.heads import HEADS
from tritune.tasks.names import KINDS, TITLES
from tritune.tasks.registry import TASKS

ROOT = Path(__file__).parents[1]
HEAVY = {
    *("torch", "transformers", "accelerate", "datasets", "numpy", "scipy", "sklearn"),
    *("matplotlib", "pyarrow", "pandas", "optuna", "sqlalchemy", "onnx", "jinja2"),
}
# Command line to what it says.
HELP = {
    "": "Usage: tritune",
    "--help": "Usage: tritune",
    "--version": "0.1.0",
    "train --help": "Usage: tritune train",
    "analyze --help": "Usage: tritune analyze",
    "analyze landscape --help": "Usage: tritune analyze landscape",
    "recipes": "ti-g",
    "recipes ti-g-deploy": "weight_bits: 2",
    "recipes finetune --json": '"learning_rate"',
    "recipes --keys": "weight_quantizer",
    "doctor": "instruction sets",
    "doctor --json": '"instruction_sets"',
}
ERRORS = {
    "--nope": "No such option: --nope",
    "trian": "No such command 'trian'",
    "train": "Missing argument 'TEACHER'",
    "train t --task sst2": "Missing option '--output'",
    "train t --task sst2 --output o --recpie x": "No such option: --recpie",
    "train t --task sst2 --output o --phase three": "'three' is not one of",
    "train t --task sst2 --output o --recipe nope": "there is no recipe 'nope'",
    "train t --task sst2 --output o --set nope=1": "unknown key 'nope'",
    "train t --task sst2 --output o --set weight_bits=9": "weight_bits must be a whole number",
    "train t --task sst2 --output o --dev-file x.csv": "--task sst2: a task of the table",
    "train t --task nope --output o": "there is no task 'nope'",
    "finetune t --task nope --output o": "there is no task 'nope'",
    "finetune t --task sst2 --output o --set schedule=map": "unknown key 'schedule'",
    "finetune t --task text-classification --output o --dev-file x.csv": "--train-file is missing",
    "evaluate m --task text-classification --label-column x": "is a kind of task: give a task file",
    "finetune t --task text-classification --output o --train-file x.csv --dev-file y.csv --problem z": "problem: 'z'",
    "compress m --data nope.csv --output o": "nope.csv: there is no such file",
    "compress m --data README.md --output o --minutes 0": "minutes: must not be negative or 0",
    "compress m --data README.md --output o --task chat": "task: 'chat' is not one of text-classification",
    "compress m --data README.md --output o --eval nope.csv": "nope.csv: there is no such file",
    "compress m --data README.md --output o --export doc": "'doc' is not one of",
    "sweep t --space nope --task sst2 --output o": "there is no space 'nope'",
    "sweep t --space mixing --task nope --output o": "there is no task 'nope'",
    "evaluate m --task nope": "there is no task 'nope'",
    "evaluate m --task sst2 --set nope=1": "nope would change nothing here",
    "predict m --set nope=1": "nope would change nothing here",
    "predict m --output x.doc": "written as .csv, .tsv or .jsonl",
    "export m --output o --format doc": "'doc' is not one of",
    "export m --output o --opset 3": "--opset must be from 18 to 25",
    "export m --output o --task sst2": "--task sst2: --verify must name the folder",
    "export m --output o --task nope --verify d": "there is no task 'nope'",
    "bench m --against nope": "unknown peer 'nope'",
    "bench m --lengths x": "--lengths: must be whole numbers",
    "convert nowhere --best --output o": "--best: there is no nowhere/best",
    "shrink t --layers 1 --output pyproject.toml": "this is a file",
    "augment --task nope --data d --mlm m": "there is no task 'nope'",
    "augment --task sst2 --data d --mlm m --probability 2": "--probability must be from 0 to 1",
    "report": "Missing argument 'RUN ...'",
    "demo --seed x": "Invalid value for '--seed'",
    "analyze nope": "No such command 'nope'",
    "analyze attention --teacher t --student s --task nope": "there is no task 'nope'",
    "analyze heads --teacher t --student s --task sst2 --heads x": "--heads x: write LAYER.HEAD",
    "analyze layers --teacher t --student s --task sst2 --set nope=1": "nope would change nothing here",
    "analyze norms --teacher t --student s --task sst2 --group x": "--group x: known are",
    "analyze ranges --teacher t --student s --task sst2 --tensor x": "'x' is not one of",
    "analyze curvature --model m --task sst2 --loss x": "unknown loss 'x'",
    "analyze landscape --model m --task sst2 --loss logits": "the loss logits compares with a teacher",
    "analyze sensitivity --model m --task sst2 --recipe x": "there is no recipe 'x'",
}
# One process for all, since each takes a second to begin; so a library that one line imports fails the next ones too.
LOOP = """
import contextlib, io, json, sys
from tritune.cli.main import main
results = []
for line in json.load(sys.stdin):
    sys.argv = ["tritune", *line.split()]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main()
        except SystemExit as error:
            code = error.code
    results.append([code, said.getvalue(), sorted({name.partition(".")[0] for name in sys.modules})])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str, set[str]]]:
    """Command line to exit code, text, and all libraries that were imported by then."""
    lines = [*HELP, *ERRORS]
    environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    settings = {"env": environment, "cwd": ROOT, "input": json.dumps(lines)}
    done = subprocess.run([sys.executable, "-c", LOOP], capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    return {
        line: (code, text, set(new)) for line, (code, text, new) in zip(lines, json.loads(done.stdout), strict=True)
    }


@pytest.mark.parametrize("line", [*HELP, *ERRORS])
def test_nothing_heavy_is_imported(line, answers):
    code, text, imported = answers[line]
    assert imported & HEAVY == set()
    assert code == (2 if line in ERRORS or not line else 0)
    assert (HELP | ERRORS)[line] in text


@pytest.mark.parametrize("words", ["tritune tr", "tritune train --rec", "tritune analyze "])
def test_completion_imports_nothing_heavy(words):
    code = (
        "import os, sys\nfrom tritune.cli.main import main\nsys.argv = ['tritune']\n"
        "try: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    count = str(len(words.split(" ")) - 1)
    asked = {"_TRITUNE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked})
    assert {"tritune tr": "train", "tritune train --rec": "--recipe", "tritune analyze ": "norms"}[words] in done.stdout
    assert HEAVY & set(done.stderr.split()) == set()


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "tritune", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "0.1.0")


def test_names_that_are_known_without_the_libraries_are_those_of_the_tables():
    assert {name: task.title for name, task in TASKS.items()} == TITLES
    assert [*TASKS] == [*TITLES] and tuple(HEADS) == KINDS and tuple(LOSSES) == LOSS_NAMES
