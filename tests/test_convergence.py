"""The convergence benchmark: its order, budgets, lines, choice under a limit of time, and data."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest

from tritune.recipes import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
LINES = ROOT / "benchmarks" / "results" / "convergence.csv"


@pytest.fixture(scope="module", autouse=True)
def _benchmarks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield


def fake(cell, **other) -> dict:
    """The line of a cell that took 100 seconds, 20 of them whatever the budget."""
    line = {"model": cell.model, "task": cell.task, "arm": cell.arm, "rows": cell.rows, "steps": cell.steps}
    scores = {"score": 70.0, "teacher_score": 80.0, "agreement": 90.0, "kl": 0.05}
    return line | {"seed": cell.seed, "seconds": 80.0, "wall_seconds": 100.0, "device": "", **scores, **other}


def test_first_seeds_of_one_unit_then_the_other_seeds_then_the_other_budgets():
    from convergence_cells import ARMS, SEEDS, ordered_cells

    cells = ordered_cells()
    keys = [(cell.units, cell.seed) for cell in cells]
    assert list(dict.fromkeys(keys)) == [(units, seed) for units in (1, 0.5, 3, 12) for seed in SEEDS]
    assert keys == sorted(keys, key=list(dict.fromkeys(keys)).index), "a budget and seed is one stretch"
    first = [cell for cell in cells if (cell.units, cell.seed) == (1, SEEDS[0])]
    assert {cell.arm for cell in first} == set(ARMS)
    assert [cell.arm for cell in first] == sorted((cell.arm for cell in first), key=list(ARMS).index)
    assert {cell.arm.split()[0] for cell in cells if cell.units == 12} == {"ternarybert"}
    assert len(set(cells)) == len(cells) == len({cell.folder for cell in cells})


def test_selection():
    from convergence_cells import Cell, ordered_cells

    (cell,) = ordered_cells(["e5-small"], ["MRPC"], ["ti-g 3e-4"], [0.25], [7])
    assert cell == Cell("e5-small", "MRPC", "ti-g 3e-4", 0.25, 7)
    assert {cell.arm for cell in ordered_cells(tasks=["sentences"])} == {
        "tritune",
        "tritune, ternary",
        "features 2e-4",
        "features-ti-g 2e-4",
    }


@pytest.mark.parametrize("units", [0.05, 0.5, 1, 3, 12])
def test_rows_of_a_budget_do_not_depend_on_the_arm(units):
    from convergence_cells import ARMS, Arm

    arms = [*ARMS.values(), Arm("tritune", reconstructed=0.5)]
    assert {arm.rows(units) for arm in arms if arm.reconstructed in (0, 1)} == {round(3200 * units)}
    for arm in arms:
        assert arm.rows(units) == pytest.approx(3200 * units, abs=32), "steps are whole"
    assert (ARMS["ti-g 1e-4"].end_to_end_steps(1), ARMS["ti-g 1e-4"].reconstruct_steps(1)) == (200, 0)
    assert (ARMS["tritune"].end_to_end_steps(1), ARMS["tritune"].reconstruct_steps(1)) == (0, 200)


def test_recipe_keys_say_the_budget():
    from convergence_cells import ARMS, Cell, ordered_cells

    assert Cell("MiniLM", "sentences", "tritune", 0.5, 7).overrides() == (
        *("padding=longest", "bf16=auto", "max_length=64", "seed=7", "max_steps=0"),
        *("reconstruct_steps=100", "reconstruct_batch_size=16"),
    )
    for cell in ordered_cells(seeds=[7]):
        arm = ARMS[cell.arm]
        recipe = load_recipe(arm.recipe, cell.overrides(), Recipe)
        if arm.reconstructed:
            assert recipe.reconstruct_steps * recipe.reconstruct_batch_size == cell.rows and recipe.max_steps == 0
        else:
            assert recipe.max_steps * recipe.per_device_train_batch_size == cell.rows
            rate = cell.arm.rpartition(" ")[2]
            assert recipe.learning_rate == float(rate) and recipe.seed == 7
            assert recipe.weight_granularity == ("row" if "+" in cell.arm or "features" in cell.arm else "tensor")


def test_cells_that_fit_are_estimated_from_those_most_like_them():
    from convergence import next_cell
    from convergence_cells import Cell, estimated_seconds

    small, large = (Cell("MiniLM", "CoLA", "ti-g 1e-4", units, 42) for units in (1, 3))
    other = Cell("MiniLM", "CoLA", "ternarybert 1e-4", 1, 42)
    assert estimated_seconds(large, []) == 0
    assert estimated_seconds(large, [fake(small)]) == 3 * 80 + 20
    assert estimated_seconds(small, [fake(large)]) == pytest.approx(80 / 3 + 20)
    slow = fake(other, seconds=1000.0, wall_seconds=1020.0)
    assert estimated_seconds(large, [slow, fake(small)]) == 260, "of the same arm"
    assert estimated_seconds(large, [slow]) == 3020, "of another arm"
    assert estimated_seconds(large, [fake(small, seconds=""), slow]) == 3020, "one that went on says nothing"

    expected = {large: 260.0, small: 100.0}.__getitem__
    assert next_cell([large, small], expected, 260) == large
    assert next_cell([large, small], expected, 259) == small, "the next that fits"
    assert next_cell([large, small], expected, 99) is None
    assert next_cell([large], lambda cell: 0.0, 0) is None
    assert next_cell([], expected, float("inf")) is None


METRICS = {
    "metric": "accuracy",
    "last": {"accuracy": 0.70126},
    "best": {"accuracy": 0.9},
    "teacher": {"accuracy": 0.8},
    "seconds": 12.5,
    "size_bytes": 6_700_000,
}


def test_lines_of_every_kind_of_task():
    from convergence_cells import Cell
    from convergence_report import COLUMNS, line_of

    cell = Cell("MiniLM", "SST-2", "ti-g 1e-4", 0.5, 52)
    line = line_of(cell, METRICS, {"agreement": 0.9, "kl_to_teacher": 0.0512345678})
    expected = ["MiniLM", "SST-2", "ti-g 1e-4", 1600, 100, 52, 70.13, 80.0, 90.0, 0.051235, 12.5, 6_700_000]
    assert line == dict(zip(COLUMNS, expected, strict=True)), "the last student's score"
    scores = line_of(cell, METRICS, {"pearson": 0.4, "spearman": 0.95, "mse_to_teacher": 0.25})
    assert (scores["agreement"], scores["kl"]) == (95.0, 0.25)
    embeddings = line_of(cell, METRICS, {"spearman": 0.9, "cosine_to_teacher": 0.75})
    assert (embeddings["agreement"], embeddings["kl"]) == ("", 0.25)
    went_on = METRICS | {"resumed": [0, 100]}
    assert line_of(cell, went_on, {"agreement": 1.0, "kl_to_teacher": 0.0})["seconds"] == ""


def test_table_has_means_and_deviations_over_seeds():
    from convergence_cells import Cell
    from convergence_report import in_order, page_part, table

    lines = [fake(Cell("MiniLM", "CoLA", "ti-g 1e-4", 1, seed), score=seed) for seed in (42, 52)]
    lines += [fake(Cell("MiniLM", "STS-B", "ti-g 1e-4", 0.5, 42)), fake(Cell("MiniLM", "CoLA", "tritune", 1, 42))]
    assert table(in_order(lines), "score", 1).splitlines() == [
        "| arm | units | CoLA | STS-B |",
        "|---|---|---|---|",
        "| teacher | | 80.0 | 80.0 |",
        "| tritune | 1 | 70.0 (1) |  |",
        "| ti-g 1e-4 | 0.5 |  | 70.0 (1) |",
        "| ti-g 1e-4 | 1 | 47.0 ± 7.1 (2) |  |",
    ]
    assert "| arm | units | CoLA (KL) | STS-B (MSE) |" in table(lines, "kl", 4)
    assert page_part("e5-small", lines) == "No results yet.\n"


def test_figures_show_what_there_is(tmp_path):
    from convergence_cells import Cell
    from convergence_report import draw, write_figures

    lines = [fake(Cell("MiniLM", "CoLA", "ti-g 1e-4", units, seed), kl=units) for units in (1, 3) for seed in (42, 52)]
    scores, distances = draw("MiniLM", lines).axes
    (curve,) = distances.containers
    assert curve.lines[0].get_xydata().tolist() == [[3200, 1], [9600, 3]]
    assert scores.get_xscale() == distances.get_yscale() == "log"
    write_figures(tmp_path, lines)
    assert [path.name for path in tmp_path.iterdir()] == ["convergence-MiniLM.png"]


def write_glue(folder: Path, rows: int = 30) -> Path:
    """Original files of CoLA, MRPC and STS-B, with other headers only where they are read."""
    headers = {
        "CoLA": None,
        "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    }
    for name, header in headers.items():
        (folder / name).mkdir(parents=True)
        for split, count in (("train", rows), ("dev", 5)):
            width = 4 if header is None else header.count("\t") + 1
            lines = ["\t".join(f"{split} {name} {row} {column}" for column in range(width)) for row in range(count)]
            (folder / name / f"{split}.tsv").write_text("\n".join([header, *lines] if header else lines) + "\n")
    return folder


def test_unseen_rows_are_taken_out_of_the_training_file(tmp_path):
    from convergence_data import prepare_data

    source, target = write_glue(tmp_path / "glue"), tmp_path / "data"
    prepare_data(source, target, unseen_rows=10)

    def lines(*parts: str) -> list[str]:
        return target.joinpath(*parts).read_text().splitlines()

    for name, header in (("CoLA", 0), ("STS-B", 1)):
        original = (source / name / "train.tsv").read_text().splitlines()
        train, unseen = lines(name, "train.tsv"), lines(f"{name} unseen", "dev.tsv")
        assert train[:header] == unseen[:header] == original[:header]
        assert len(unseen[header:]) == 10 and set(train) | set(unseen) == set(original)
        assert len(train) + len(unseen) == len(original) + header, "no row in both"
        assert unseen != original[: 10 + header], "not simply the first"
    for name in ("CoLA", "MRPC", "STS-B"):
        assert (target / name / "dev.tsv").read_bytes() == (source / name / "dev.tsv").read_bytes()
    assert lines("MRPC", "train.tsv") == (source / "MRPC" / "train.tsv").read_text().splitlines()
    pairs = [line.split("\t")[3:] for line in lines("MRPC unseen", "dev.tsv")[1:]]
    assert pairs == [line.split("\t")[7:9] for line in lines("STS-B unseen", "dev.tsv")[1:]]
    assert not (target / "SST-2").exists() and not [*target.glob("*.partial")]

    kept = {path: path.stat().st_mtime_ns for path in target.glob("*/*.tsv")}
    prepare_data(source, target, unseen_rows=10)
    assert kept == {path: path.stat().st_mtime_ns for path in target.glob("*/*.tsv")}, "not made twice"


def test_what_was_left_half_written_is_made_again(tmp_path):
    from convergence_data import prepare_data

    source, target = write_glue(tmp_path / "glue"), tmp_path / "data"
    (target / "CoLA.partial").mkdir(parents=True)
    (target / "CoLA.partial" / "train.tsv").write_text("half a li")
    prepare_data(source, target, unseen_rows=10)
    assert len((target / "CoLA" / "train.tsv").read_text().splitlines()) == 20


def test_scores_by_a_teacher_have_its_order(tmp_path):
    from convergence_data import label_by_predictions

    rows = [{"sentence1": "a", "sentence2": f"b{score}", "prediction": score} for score in (5.25, -0.1, 2.0, 2.0)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    label_by_predictions(tmp_path / "answers.jsonl", tmp_path / "by teacher" / "dev.tsv")
    with (tmp_path / "by teacher" / "dev.tsv").open() as file:
        found = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["sentence2"], float(row["score"])) for row in found] == [
        *(("b5.25", 5.0), ("b-0.1", 1.25)),
        *(("b2.0", 3.125), ("b2.0", 3.125)),
    ]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A bench whose commands are recorded and leave what the real ones do; one with `fails` in it fails."""
    import convergence

    def program(words: list[str]) -> list[str]:
        told.append(words)
        if words[0] == "evaluate":
            return [sys.executable, "-c", 'print(\'{"agreement": 0.9, "kl_to_teacher": 0.05}\')']
        if "learning_rate=3e-4" in words:
            return [sys.executable, "-c", "raise SystemExit(2)"]
        folder = Path(words[words.index("--output") + 1])
        (folder / "best").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "metrics.json").write_text(json.dumps(METRICS))
        return [sys.executable, "-c", ""]

    told: list[list[str]] = []
    monkeypatch.setattr(convergence, "program", program)
    made = convergence.Bench(tmp_path, {"MiniLM": "minilm"})
    return made, told


def test_a_cell_is_made_once_and_its_students_weights_go(bench):
    from convergence import run
    from convergence_cells import ordered_cells

    bench, told = bench
    cells = ordered_cells(["MiniLM"], ["CoLA"], ["ti-g 1e-4", "ternarybert 1e-4"], [1], [42])
    written = []
    failed = run(bench, cells, float("inf"), lambda: written.append(len(bench.stored())))
    assert failed == [] and written == [1, 2], "after every cell"
    assert [words[0] for words in told] == ["finetune", "train", "evaluate", "train", "evaluate"]
    folder = bench.run_folder(cells[0])
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "unseen.json", "cell.json"}
    assert (bench.teacher(cells[0]) / "model.safetensors").exists()
    assert bench.stored()[0]["score"] == 70.13
    assert run(bench, cells, float("inf"), written.clear) == [] and len(told) == 5 and written


def test_what_is_finished_of_a_cell_is_not_run_again(bench):
    from convergence_cells import ordered_cells

    bench, told = bench
    (cell,) = ordered_cells(["MiniLM"], ["CoLA"], ["ti-g 1e-4"], [1], [42])
    for folder in (bench.teacher(cell), bench.run_folder(cell)):
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(METRICS))
    bench.make(cell)
    assert [words[0] for words in told] == ["evaluate"] and bench.is_stored(cell)


def test_a_cell_that_fails_does_not_stop_the_others(bench, capfd):
    from convergence import run
    from convergence_cells import ordered_cells

    bench, _ = bench
    cells = ordered_cells(["MiniLM"], ["CoLA"], ["ti-g 3e-4", "ternarybert 1e-4"], [1], [42])
    cells.sort(key=lambda cell: cell.arm, reverse=True)
    failed = run(bench, cells, float("inf"), lambda: None)
    assert [cell.arm for cell in failed] == ["ti-g 3e-4"] and len(bench.stored()) == 1
    assert f"failed with exit code 2: {failed[0].folder}" in capfd.readouterr().err


def test_commands_in_order_without_running_any(tmp_path):
    words = ["--output", tmp_path, "--minilm", "M", "--task", "STS-B", "--arm", "ti-g 1e-4", "--units", "1"]
    script = [sys.executable, ROOT / "benchmarks" / "convergence.py", *words, "--dry-run"]
    done = subprocess.run(script, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == "e5-small is left out: --e5 FOLDER says where it is\n"
    commands = re.findall(r"^tritune (\w+) ", done.stdout, re.MULTILINE)
    assert commands == ["finetune", "predict", *["train", "evaluate"] * 3] and not [*tmp_path.iterdir()]


@pytest.mark.skipif(not LINES.exists(), reason="no cell has been run yet")
def test_page_has_the_measured_numbers():
    from convergence_report import COLUMNS

    with LINES.open() as file:
        lines = list(csv.DictReader(file))
    assert {*lines[0]} == {*COLUMNS}
    page = (ROOT / "docs" / "convergence.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"-?\d+\.\d+ (?:± \d+\.\d+ )?\(\d\)", page))
    points: dict[tuple, list[float]] = {}
    for line in lines:
        points.setdefault((line["model"], line["task"], line["arm"], line["rows"]), []).append(float(line["score"]))
    for values in points.values():
        deviation = f"± {stdev(values):.1f} " if len(values) > 1 else ""
        assert f"{fmean(values):.1f} {deviation}({len(values)})" in shown


def test_what_the_results_say_is_not_run_again(tmp_path):
    from convergence import Bench
    from convergence_cells import Cell
    from convergence_report import COLUMNS

    there, here = Cell("MiniLM", "CoLA", "ti-g 1e-4", 1, 42), Cell("MiniLM", "CoLA", "tritune", 0.5, 42)
    values = {"model": "MiniLM", "task": "CoLA", "score": 1.0, "seconds": 2.0}
    lines = [
        dict.fromkeys(COLUMNS, "") | values | {"arm": cell.arm, "rows": cell.rows, "seed": 42} for cell in (there, here)
    ]
    results = tmp_path / "convergence.csv"
    results.write_text(
        "\n".join(",".join(map(str, row)) for row in (COLUMNS, *(line.values() for line in lines))) + "\n",
        encoding="utf-8",
    )
    bench = Bench(tmp_path, {"MiniLM": "base"}, results=results)
    folder = bench.run_folder(here)
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps(lines[1] | {"score": 3.0, "device": "", "wall_seconds": 2.0}))
    assert [(line["arm"], float(line["score"])) for line in bench.stored()] == [("tritune", 3.0), ("ti-g 1e-4", 1.0)]
    assert bench.is_stored(there) and bench.is_stored(here)
    assert not bench.is_stored(Cell("MiniLM", "CoLA", "ti-g 1e-4", 1, 52))
    assert bench.expected_seconds(there, bench.stored()) > 0, (
        "only what was made on this device tells how long it takes"
    )
