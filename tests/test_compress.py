"""From one file to a small model: the whole way with a tiny model, stopped and begun again, planned and refused."""

import csv
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score
from transformers import BertConfig

import tritune
from stopped import run_tritune
from tritune.cli import demo
from tritune.compression import compress as stages
from tritune.compression import planning, scoring
from tritune.compression.ladder import Tried, chosen
from tritune.compression.planning import Costs, Plan
from tritune.compression.table import teacher_labels
from tritune.errors import Interrupted, TrituneError
from tritune.tasks.metrics import accuracy

WORDS = ("the dog", "a cat", "the king", "one boy", "these girls", "the pilots", "sleeps", "sees", "here", "often")


def write(path: Path, count: int = 80, label=lambda i: "good" if i % 3 else "bad", delimiter: str = ";") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["", "note", "label"])
        for i in range(count):
            writer.writerow([i, f"{WORDS[i % 10]} {WORDS[i // 10 % 10]} {i}", label(i)])
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compress")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TRAIN_ROWS", 100)
        patch.setattr(demo, "DEV_ROWS", 20)
        demo._write_inputs(folder, seed=0)
    return folder / "base"


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(planning, "_FEWEST_STEPS", 4)
    monkeypatch.setattr(scoring, "RESAMPLES", 50)


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    data = write(folder / "tickets.csv")
    with data.open("a") as file:
        file.write(";;\n")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_FEWEST_STEPS", 4)
        patch.setattr(scoring, "RESAMPLES", 50)
        result = tritune.compress(base, data, folder / "small", minutes=0.001, say=said.append)
    return result, said, data


def test_everything_is_made_and_said(made):
    result, said, _ = made
    folder = result.folder
    names = {path.name for path in folder.iterdir()}
    assert {"model", "teacher", "students", "data", "plan.json", "metrics.json", "report.html", "sizes.png"} <= names
    text = "\n".join(said)
    for part in ("80 rows (utf-8, semicolon)", "bad 27, good 53", "parts: ", "longer than --minutes", "line 82: blank"):
        assert part in text
    rows = {side: list(csv.DictReader((folder / "data" / f"{side}.csv").open())) for side in ("train", "dev", "test")}
    assert sum(map(len, rows.values())) == 80 and list(rows["dev"][0]) == ["note", "label"]
    assert list(csv.DictReader((folder / "rows.csv").open())) == [{"line": "82", "kept": "false", "reason": "blank"}]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(result.metrics, default=str))
    assert metrics["rows"] == {side: len(each) for side, each in rows.items()} and metrics["verified_rows"] == 16


def test_the_table_holds_the_scores_of_the_test_part(made):
    result, _, _ = made
    rows = list(csv.DictReader((result.folder / "data" / "test.csv").open()))
    answers = result.predict([row["note"] for row in rows])
    own = result.metrics["student"]
    assert own["scores"]["accuracy"] == accuracy_score([row["label"] for row in rows], answers)
    low, high = own["intervals"]["accuracy"]
    assert low <= own["scores"]["accuracy"] <= high
    assert own["size_bytes"] < result.metrics["teacher"]["size_bytes"] and own["latency_ms"] > 0
    header, *cells = result.table()
    assert header == ["on the test part", "teacher", "student"] and {len(row) for row in cells} == {3}
    assert result.predict([]) == []


def test_the_report_can_be_made_again(made, tmp_path, cli):
    """Of the folder alone; classes and mistakes are those of the shipped model's own answers."""
    result, _, _ = made
    code, out, err = cli("report", result.folder, "--output", tmp_path / "again.html")
    assert code == 0 and "1 run," in out, err
    first, again = (
        re.sub(r"made [-0-9]* [0-9:]* UTC", "", path.read_text())
        for path in (result.folder / "report.html", tmp_path / "again.html")
    )
    assert first == again
    rows = list(csv.DictReader((result.folder / "answers.csv").open()))
    assert [row["student"] for row in rows] == result.predict([row["text"] for row in rows])
    lines = {str(i + 2): f"{WORDS[i % 10]} {WORDS[i // 10 % 10]} {i}" for i in range(80)}
    assert all(lines[row["line"]] == row["text"] for row in rows)
    right = {one["label"]: one["student"]["recall"] * one["rows"] for one in result.metrics["classes"]}
    assert sum(right.values()) == pytest.approx(len(rows) * result.metrics["student"]["scores"]["accuracy"])


def test_the_model_can_be_copied(made, tmp_path):
    result, _, _ = made
    result.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "config.json").is_file() and result.plot() is result.figure
    with pytest.raises(TrituneError, match="exists already"):
        result.save(tmp_path / "copy")


def test_the_same_call_goes_on_and_another_is_refused(made, base, tmp_path):
    result, _, data = made
    again: list[str] = []
    same = tritune.compress(base, data, result.folder, minutes=0.001, say=again.append)
    assert "finished already" in again[-1] and same.metrics == json.loads(json.dumps(result.metrics, default=str))
    with pytest.raises(TrituneError, match="another seed; give --overwrite"):
        tritune.compress(base, data, result.folder, seed=1, say=again.append)
    # Not even to replace it: the model and the file that are asked for lie in there.
    before = sorted(path.relative_to(result.folder) for path in result.folder.rglob("*"))
    for source, rows in ((result.folder / "teacher", data), (base, result.folder / "data" / "train.csv")):
        with pytest.raises(TrituneError, match="is also an input, or holds"):
            tritune.compress(source, rows, result.folder, overwrite=True, say=again.append)
    assert before == sorted(path.relative_to(result.folder) for path in result.folder.rglob("*"))
    with pytest.raises(TrituneError, match="another data;"):
        tritune.compress(base, write(tmp_path / "other.csv", 70), result.folder, say=again.append)


def test_a_stopped_compression_goes_on(made, base, tmp_path, monkeypatch):
    """Stopped after the teacher, killed after the plan: what is made at last is what is made at once."""
    result, _, data = made
    shutil.copytree(result.folder, tmp_path / "small")
    for name in ("students", "model", "data"):
        shutil.rmtree(tmp_path / "small" / name)
    (tmp_path / "small" / "metrics.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(stages.Ladder, "climb", lambda *_: (_ for _ in ()).throw(Interrupted("stopped in x; --resume")))
        with pytest.raises(Interrupted, match=r"^stopped in x; the same command goes on"):
            tritune.compress(base, data, tmp_path / "small", say=str)
    monkeypatch.setattr(stages, "finetune", None)  # the teacher is there
    same = tritune.compress(base, data, tmp_path / "small", say=str)
    assert same.metrics["student"]["scores"] == result.metrics["student"]["scores"]
    assert same.metrics["plan"] == json.loads(json.dumps(result.metrics["plan"]))


# What a kill comes just before.
KILLS = {
    "parts": "open data/.dev.csv.partial",
    "teacher": "open teacher/.metrics.json.partial",
    "student": "open students/2-bits/.metrics.json.partial",
    "table": "open .metrics.json.partial",
}


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_compression_goes_on(base, tmp_path, kill):
    data, out = write(tmp_path / "rows.csv"), tmp_path / "out"
    line = ("compress", base, "--data", data, "--output", out, "--minutes", "0.001")
    killed = run_tritune(*line, folder=out, at=KILLS[kill], how=signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL and not (out / "metrics.json").is_file()
    done = run_tritune(*line, folder=out)
    assert done.returncode == 0 and "goes on with the plan" in done.stderr, done.stderr[-2000:]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["plan"]["teacher_steps"] == 20 and (out / "model" / "config.json").is_file()


def test_a_teacher_is_taken_as_it_is(made, tmp_path, cli):
    """Its labels are in another order than the file's would be; the ladder is climbed, the smallest within ships."""
    result, _, data = made
    out = tmp_path / "out"
    code, text, err = cli(
        *("compress", result.folder / "teacher", "--data", data, "--output", out, "--minutes", "0.001"),
        *("--max-loss", "100", "--json"),
    )
    assert code == 0, err
    metrics = json.loads(text)
    assert "distilled as it is" in err and not (out / "teacher").exists()
    assert metrics["plan"]["teacher_steps"] == 0 and [one["ships"] for one in metrics["tried"]] == [True]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "name"), [("onnx", "model.onnx"), ("dense", "model.safetensors")])
def test_a_finished_compression_is_exported(made, base, tmp_path, form, name):
    result, _, data = made
    shutil.copytree(result.folder, tmp_path / "small")
    exported = tritune.compress(base, data, tmp_path / "small", export=form, say=str)
    size = (tmp_path / "small" / "export" / name).stat().st_size
    assert exported.metrics["export"] == {"format": form, "size_bytes": size}


def lossy(patch: pytest.MonkeyPatch) -> None:
    """Every student loses nine points."""
    patch.setattr("tritune.compression.ladder.Tried", lambda *values: Tried(*values[:3], 9.0, values[4]))


@pytest.mark.slow
def test_the_ladder_is_climbed_to_its_end(made, tmp_path, monkeypatch):
    result, _, data = made
    said: list[str] = []
    climb = stages.Ladder.climb
    monkeypatch.setattr(stages.Ladder, "climb", lambda self, bound, ends: climb(self, bound, None))
    lossy(monkeypatch)
    asked = {"minutes": 0.001, "max_loss": 0.5, "say": said.append}
    top = tritune.compress(result.folder / "teacher", data, tmp_path / "out", **asked)
    assert [one["name"] for one in top.metrics["tried"]] == [
        *("2 bits", "2 bits, 12 steps", "a quarter in 4 bits", "a quarter in 8 bits"),
        *("a half in 4 bits", "a half in 8 bits"),
    ]
    sizes = [one["size_bytes"] for one in top.metrics["tried"]]
    assert sizes[0] == sizes[1] < sizes[2] < sizes[3] < sizes[5] and sizes[2] < sizes[4] < sizes[5]
    assert any("no student is within 0.5 points" in line for line in said)
    monkeypatch.undo()
    again = tritune.compress(result.folder / "teacher", data, tmp_path / "out", max_loss=100, say=str)
    assert [one["name"] for one in again.metrics["tried"]] == ["2 bits"]


def test_the_ladder_ends_with_its_minutes(made, tmp_path, monkeypatch):
    result, _, data = made
    said: list[str] = []
    lossy(monkeypatch)
    asked = {"minutes": 0.001, "max_loss": 0.5, "say": said.append}
    top = tritune.compress(result.folder / "teacher", data, tmp_path / "out", **asked)
    assert [one["name"] for one in top.metrics["tried"]] == ["2 bits"]
    assert any(line.startswith("stopped before '2 bits, 12 steps'") for line in said)


def test_scores_are_planned_and_nothing_is_written(base, tmp_path, cli):
    data = write(tmp_path / "scores.csv", label=lambda i: i / 8)
    before = {path.name for path in tmp_path.iterdir()}
    code, out, err = cli("compress", base, "--data", data, "--output", tmp_path / "out", "--dry-run", "--json")
    assert code == 0, err
    assert "a score from 0 to 9.875" in err and "plan: fine-tune" in err and "measured" in err
    assert json.loads(out)["teacher_steps"] == 100
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_pair_of_texts_is_compressed(base, tmp_path):
    rows = [(f"{WORDS[i % 10]} {i}", WORDS[i // 10 % 10], ("no", "yes")[i % 2]) for i in range(60)]
    data = tmp_path / "pairs.csv"
    with data.open("w", newline="", encoding="utf-16") as file:
        csv.writer(file, delimiter="\t").writerows([("premise", "hypothesis", "label"), *rows])
    small = tritune.compress(base, data, tmp_path / "out", minutes=0.001, say=str)
    assert small.metrics["columns"] == {"texts": ["premise", "hypothesis"], "label": "label"}
    assert set(small.predict([row[:2] for row in rows])) <= {"no", "yes"}
    assert small.metrics["file"] == {"rows": 60, "encoding": "utf-16", "delimiter": "tab"}


def test_a_teacher_is_known_by_its_labels():
    def labels(names, file, architecture="BertForSequenceClassification", **more):
        config = BertConfig(architectures=[architecture], id2label=dict(enumerate(names)), **more)
        return teacher_labels(config, file)

    assert labels(["b", "a"], ("a", "b")) == ("b", "a")
    assert labels(["a", "b"], ("a", "c")) is None and labels(["a", "b"], None) is None
    assert labels(["LABEL_0", "LABEL_1"], ("0", "1")) == ("LABEL_0", "LABEL_1")
    assert labels(["LABEL_0", "LABEL_1"], ("1", "2")) is None and labels(["a"], None) == ()
    assert labels(["a", "b"], ("a", "b"), "BertForMaskedLM") is None
    assert labels(["a", "b"], ("a", "b"), problem_type="multi_label_classification") is None


def test_rare_classes_count_as_much(made, base, tmp_path, cli):
    data = write(tmp_path / "skewed.csv", label=lambda i: "good" if i % 8 else "bad")
    line = ("compress", base, "--data", data, "--output", tmp_path / "out", "--minutes", "0.001")
    code, _, err = cli(*line, "--dry-run")
    assert code == 0 and "--balance weights or sampling would let rare classes count" in err, err
    long = ("--long", "head-tail")
    code, _, err = cli(*line, "--balance", "weights", *long)
    assert code == 0 and "count as much as frequent ones in the fine-tuning (weights)" in err, err
    assert "balance: weights" in (tmp_path / "out" / "teacher" / "recipe.yaml").read_text()
    for folder in ("teacher", "students/2-bits", "model"):
        assert "long_texts: head-tail" in (tmp_path / "out" / folder / "recipe.yaml").read_text()
    assert "at their end" not in (tmp_path / "out" / "report.html").read_text()
    code, _, err = cli(*line, *long)
    assert code == 2 and "holds a compression with another balance" in err
    code, _, err = cli(
        "compress",
        made[0].folder / "teacher",
        "--data",
        made[2],
        "--output",
        tmp_path / "other",
        "--balance",
        "weights",
    )
    assert code == 2 and "is a teacher already" in err
    scores = write(tmp_path / "scores.csv", label=lambda i: i / 8)
    code, _, err = cli("compress", base, "--data", scores, "--output", tmp_path / "other", "--balance", "sampling")
    assert code == 2 and "no class for every row that could be balanced" in err
    pairs = ("--text-columns", "note,other", "--data", tmp_path / "pairs.csv", "--output", tmp_path / "other")
    (tmp_path / "pairs.csv").write_text("note,other,label\n" + "".join(f"a {i},b,{i % 2}\n" for i in range(40)))
    code, _, err = cli("compress", base, *pairs, *long)
    assert (
        code == 2
        and "--long head-tail: is for classes and scores of single texts" in err
        and not (tmp_path / "other").exists()
    )


REFUSED = {
    "no_file": (("--data", "none.csv"), "none.csv: there is no such file"),
    "no_column": (("--label-column", "nope"), "no column 'nope'"),
    "a_negative_loss": (("--max-loss", "-1"), "max_loss: must not be negative"),
    "no_minutes": (("--minutes", "0"), "minutes: must not be negative or 0"),
    "odd_minutes": (("--minutes", "nan"), "minutes: must not be negative or 0; got nan"),
    "a_large_seed": (("--seed", str(2**32)), "seed: must be from 0 to 4294967295"),
    "few_bad_rows": (("--data", "bad.csv", "--max-bad-rows", "0"), "more than --max-bad-rows (0): line 82: 2 fields"),
    "no_group": (("--group", "shop"), "--group: no column 'shop'"),
    "no_model": ((), "nowhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line_and_nothing_is_written(base, tmp_path, cli, monkeypatch, name):
    more, message = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.csv")
    with write(tmp_path / "bad.csv").open("a") as file:
        file.write("1;2\n")
    model = tmp_path / "nowhere" if name == "no_model" else base
    code, out, err = cli("compress", model, "--data", "rows.csv", "--output", "out", *more)
    assert code == 2 and out == "" and message in err
    assert err.strip().splitlines()[-1].startswith("error: ") and not (tmp_path / "out").exists()


def test_a_label_that_only_the_newest_rows_have_is_said(base, tmp_path, cli):
    """One row is one row, too."""
    data = write(tmp_path / "rows.csv", label=lambda i: "new" if i >= 60 else "old")
    text = data.read_text().replace("note", "day;note").replace("\n0;", "\n;")
    lines = [line.split(";", 1) for line in text.splitlines()]
    data.write_text(
        "\n".join([text.splitlines()[0], *(f";{i};{rest}" for i, (_, rest) in enumerate(lines[1:])), ";;;"])
    )
    code, _, err = cli("compress", base, "--data", data, "--output", tmp_path / "out", "--time", "day", "--dry-run")
    assert code == 0 and "the train part has no row with the label 'new', so that it cannot be learned" in err, err
    assert "\n1 row cannot be used, such as line 82: blank" in err


def test_a_small_model_is_not_made_smaller(made, tmp_path, cli):
    result, _, data = made
    for model in (result.folder / "model", result.folder / "students" / "2-bits"):
        code, _, err = cli("compress", model, "--data", data, "--output", tmp_path / "out", "--max-bad-rows", "1")
        assert code == 2 and f"{model}: quantized already; give a float model" in err


def test_a_folder_with_other_files_is_refused(base, tmp_path, cli):
    data = write(tmp_path / "rows.csv")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    for more in ((), ("--overwrite",)):
        code, _, err = cli("compress", base, "--data", data, "--output", tmp_path / "out", *more)
        assert code == 2 and "holds" in err and [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    code, _, err = cli("compress", base, "--data", data, "--output", tmp_path)
    assert code == 2 and "also an input" in err and data.is_file()


def test_a_plan_fits_its_minutes():
    costs = Costs(0.1, 0.2, 0.001, 0.002)
    full = Plan(64, 0.0, 16, 500, 300, costs, {"train": 1500, "dev": 200, "test": 400})
    fitted = planning._within(full, 60)
    assert fitted.seconds <= 60 and 4 < fitted.student_steps < 300 and 4 < fitted.teacher_steps < 500
    assert planning._within(full, 1e4) == full
    # The student's steps take half of the time at most where both are cut, and all that they need where that is less.
    fitted = planning._within(full, 60)
    assert abs(fitted.stages["teacher"] - fitted.stages["student"]) < 3 and 90 < fitted.student_steps < 300
    long = Plan(64, 0.0, 16, 5000, 100, costs, full.rows)
    fitted = planning._within(long, 120)
    assert 115 < fitted.seconds <= 120 and fitted.student_steps == 100 and fitted.teacher_steps < 1000
    short = planning._within(Plan(64, 0.0, 16, 100, 3000, costs, full.rows), 120)
    assert 115 < short.seconds <= 120 and short.teacher_steps == 100 and short.student_steps < 3000
    assert Plan.of(json.loads(json.dumps(full.as_dict()))) == full
    taught = planning._within(Plan(64, 0.0, 16, 0, 300, costs, full.rows), 1)
    assert (taught.teacher_steps, taught.student_steps) == (0, 4)


def test_the_smallest_within_the_bound_ships():
    one, two, three = (Tried(str(size), Path(), 0.9, loss, size) for loss, size in ((3.0, 1), (0.9, 3), (1.0, 2)))
    assert chosen([one, two, three], 1.0) is three
    assert chosen([one, two, three], 0.5) is two
    assert chosen([one], None) is one


def test_intervals_are_those_of_a_slow_bootstrap():
    random = np.random.default_rng(3)
    logits, labels = random.normal(size=(40, 3)), random.integers(3, size=40)
    drawn = scoring.resampled({"a": logits, "b": logits}, labels, accuracy, seed=5)
    again = np.random.default_rng(5)
    slow = [np.mean([logits[i].argmax() == labels[i] for i in again.integers(40, size=40)]) for _ in range(50)]
    assert np.allclose(drawn["a"]["accuracy"], slow) and np.array_equal(drawn["a"]["accuracy"], drawn["b"]["accuracy"])
