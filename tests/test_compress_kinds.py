"""Every kind of data on the whole way: from its files to a small model, with tiny models."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pictures
import sentence_encoder
import small_answers
import tritune
from tritune.compression import planning, scoring
from tritune.compression.kinds import KINDS
from tritune.inference.evaluate import evaluate_source
from tritune.inference.predict import predict_rows
from tritune.tasks.registry import get_task
from tritune.tasks.table import read_table


def encoder(folder: Path) -> tuple[Path, Path]:
    """An encoder and lines."""
    lines = [f"{text} {number % 7}" for number, text in enumerate(sentence_encoder.sentences(60))]
    (folder / "lines.txt").write_text("\n".join([*lines, "", lines[0]]), encoding="utf-8")
    return sentence_encoder.make_encoder(folder / "base"), folder / "lines.txt"


def tagger(folder: Path) -> tuple[Path, Path]:
    """A base model and lines of words and tags, one of which has no tag."""
    data = small_answers.write_tagged(folder / "data") / "train.txt"
    data.write_text(data.read_text() + "\nAda\nlives VB I-VP O\n")
    return small_answers.write_base(folder / "base"), data


def answerer(folder: Path) -> tuple[Path, Path]:
    """A base model and SQuAD's JSON, with one answer that is not where it should be."""
    data = small_answers.write_squad(folder / "data", rows=40, unanswerable=True) / "train.json"
    content = json.loads(data.read_text())
    content["data"][0]["paragraphs"][4]["qas"][0]["answers"][0]["answer_start"] += 1
    data.write_text(json.dumps(content))
    return small_answers.write_base(folder / "base"), data


def classifier_of_images(folder: Path) -> tuple[Path, Path]:
    """A ViT and a folder of images, one of them damaged and one there twice."""
    data = pictures.make_folder(folder / "photos", 12)
    shutil.copy(data / "red" / "3.png", data / "red" / "twin.png")
    (data / "blue" / "broken.png").write_bytes(b"no image")
    return pictures.make_vit(folder / "base"), data


def many_labels(folder: Path) -> tuple[Path, Path]:
    """A base model and a table of texts with any number of labels."""
    people = enumerate(small_answers.NAMES * 10)
    of = [(f"where lives {name} {i}", ("odd",) * (i % 2) + (name,) * (i % 3 > 0)) for i, name in people]
    rows = [{"text": text, "labels": "|".join(labels)} for text, labels in of]
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "labels"])
        writer.writeheader()
        writer.writerows(rows)
    return small_answers.write_base(folder / "base"), folder / "rows.csv"


# What makes a model and its data; the task's metric; what is asked of the result, and the type of its answer.
WAYS = {
    "feature-extraction": (encoder, "cosine_to_teacher", ["a man eats", "the dog"], list),
    "token-classification": (tagger, "entity_f1", [["Ada", "lives", "in", "Como"]], list),
    "question-answering": (answerer, "f1", [("where lives Ada?", "Ada lives in Como.")], dict),
    "image-classification": (classifier_of_images, "accuracy", None, str),
    "text-classification": (many_labels, "micro_f1", ["where lives Ada"], list),
}


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(planning, "_FEWEST_STEPS", 4)
    monkeypatch.setattr(scoring, "RESAMPLES", 50)


@pytest.fixture(scope="module", params=WAYS)
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    base, data = WAYS[request.param][0](folder)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_FEWEST_STEPS", 4)
        patch.setattr(scoring, "RESAMPLES", 50)
        result = tritune.compress(base, data, folder / "small", minutes=0.001, max_loss=100, say=said.append)
    return request.param, result, said, data


def test_the_whole_way(made):
    kind, result, said, data = made
    _, metric, asked, answer = WAYS[kind]
    assert f"taken for {kind}" in said[0], said
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert (metrics["task"], metrics["metric"]) == (kind, metric) and metrics["verified_rows"] > 0
    for model in ("teacher", "student"):
        low, high = metrics[model]["intervals"][metric]
        assert low <= metrics[model]["scores"][metric] + 1e-9 and metrics[model]["scores"][metric] <= high + 1e-9
    assert metrics["tried"][0]["loss"] <= 100 and (result.folder / "teacher").exists() == (kind != "feature-extraction")
    answers = result.predict(asked or data / "red")
    assert len(answers) == len(asked or [0] * 13) and all(isinstance(one, answer) for one in answers)
    assert {len(row) for row in result.table()} == {3}
    if kind == "image-classification":
        (row, *_) = csv.DictReader((result.folder / "answers.csv").open())
        assert "text" not in row and (data / row["line"]).is_file()
        assert result.table()[-1][0] == "ms per image"
        page = (result.folder / "report.html").read_text()
        assert ('<th scope="col">file</th>' in page) == (metrics["student"]["scores"]["accuracy"] < 1)


# Tokens that an input may have: of questions all that there is room for; of texts, ten at most here, the next eighth.
LENGTHS = {"question-answering": 96, "image-classification": None, "text-classification": 16}


def test_lengths_follow_from_the_data(made):
    kind, result, _, _ = made
    plan = result.metrics["plan"]
    assert plan["max_length"] == LENGTHS.get(kind, plan["max_length"]) and plan["cut"] < 0.02


# What each file's odd rows are called, and how many rows are used.
ODD = {
    "feature-extraction": ([], 61),
    "token-classification": (["247"], 40),
    "question-answering": (["'train-4'"], 39),
    "image-classification": (["blue/broken.png"], 37),
    "text-classification": ([], 50),
}


def test_odd_rows_are_set_aside_and_named(made):
    kind, result, _, _ = made
    places, used = ODD[kind]
    rows = [row["line"] for row in csv.DictReader((result.folder / "rows.csv").open()) if row["line"]]
    assert len(rows) == len(places) and all(part in row for part, row in zip(places, rows, strict=True))
    assert sum(result.metrics["rows"].values()) == used and result.metrics["set_aside"] == len(places)


def parts(result, kind: str) -> dict[str, list]:
    """What tells the rows of each part apart."""
    task_data = {side: result.folder / "data" / f"{side}{KINDS[kind].ending}" for side in ("train", "dev", "test")}
    if kind == "image-classification":
        return {side: [row["image"]["bytes"] for row in read_table(path)] for side, path in task_data.items()}
    if kind == "question-answering":
        contents = {side: json.loads(path.read_text())["data"][0]["paragraphs"] for side, path in task_data.items()}
        return {side: [one["context"] for one in each] for side, each in contents.items()}
    key = "tokens" if kind == "token-classification" else "text"
    return {side: [str(row[key]) for row in read_table(path)] for side, path in task_data.items()}


def test_what_is_equal_is_in_one_part(made):
    kind, result, _, _ = made
    sides = parts(result, kind)
    assert {side: len(rows) for side, rows in sides.items()} == result.metrics["rows"]
    one, two, three = map(set, sides.values())
    assert not (one & two or one & three or two & three)


def test_the_score_is_what_a_slow_loop_gives(made, monkeypatch):
    """Of the packed model on the test part, by `evaluate` of the same file; of lines, by the vectors themselves."""
    kind, result, _, _ = made
    own, (_, metric, _, _) = result.metrics["student"]["scores"], WAYS[kind]
    if kind == "feature-extraction":
        lines = [row["text"] for row in read_table(result.folder / "data" / "test.jsonl")]
        mine, theirs = (
            np.array([row["embedding"] for row in predict_rows(model, [{"text": line} for line in lines])])
            for model in (result.folder / "model", result.metrics["model"])
        )
        cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(mine, theirs, strict=True)]
        assert own[metric] == pytest.approx(np.mean(cosines), abs=1e-6)
        assert result.metrics["teacher"]["scores"][metric] == pytest.approx(1, abs=1e-9)
        return
    test = result.folder / "data" / f"test{KINDS[kind].ending}"
    task = get_task(str(result.folder / "students" / "2-bits" / "task.yaml"))
    scores = evaluate_source(result.folder / "model", replace(task, files={"validation": test}))
    assert {name: scores[name] for name in own} == pytest.approx(own)


@pytest.mark.slow
def test_an_encoder_is_scored_on_pairs(tmp_path):
    """The score is `evaluate`'s on half of the pairs; the closeness on its own lines is there, too; no bound is met."""
    base, data = encoder(tmp_path)
    texts = sentence_encoder.sentences(80, seed=5)
    pairs = [(a, b, i % 6) for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))]
    with (tmp_path / "pairs.tsv").open("w") as file:
        csv.writer(file, delimiter="\t").writerows([("text1", "text2", "score"), *pairs])
    small = tritune.compress(
        base, data, tmp_path / "o", minutes=0.001, max_loss=0, eval=tmp_path / "pairs.tsv", say=str
    )
    own = small.metrics["student"]
    assert small.metrics["metric"] == "spearman" and small.metrics["pairs"] == {"dev": 20, "test": 20}
    task = replace(
        get_task(str(tmp_path / "o" / "students" / "2-bits" / "task.yaml")),
        files={"validation": tmp_path / "o" / "data" / "pairs-test.jsonl"},
    )
    assert evaluate_source(tmp_path / "o" / "model", task)["spearman"] == pytest.approx(own["scores"]["spearman"])
    low, high = own["intervals"]["spearman"]
    assert low <= own["scores"]["spearman"] <= high and 0 < small.metrics["lines"]["cosine_to_teacher"] < 1
    assert [row[0] for row in small.table()][3] == "cosine to teacher, own texts"


@pytest.mark.slow
def test_it_goes_on_is_exported_and_its_teacher_is_one(made, tmp_path):
    kind, result, _, data = made
    shutil.copytree(result.folder, tmp_path / "small")
    again: list[str] = []
    tritune.compress(result.metrics["model"], data, tmp_path / "small", max_loss=100, say=again.append)
    assert "finished already" in again[-1]
    shutil.rmtree(tmp_path / "small" / "students")
    (tmp_path / "small" / "metrics.json").unlink()
    more = tritune.compress(result.metrics["model"], data, tmp_path / "small", export="onnx", say=str)
    assert more.metrics["student"]["scores"] == result.metrics["student"]["scores"]
    assert (tmp_path / "small" / "export" / "model.onnx").stat().st_size == more.metrics["export"]["size_bytes"]
    if kind != "feature-extraction":
        shutil.copytree(tmp_path / "small" / "teacher", tmp_path / "teacher")
        taken = tritune.compress(tmp_path / "teacher", data, tmp_path / "other", minutes=0.001, say=again.append)
        assert any("distilled as it is" in line for line in again) and taken.metrics["plan"]["teacher_steps"] == 0
