"""`long_texts: window`: a text that is too long is read in windows, and what is said of it is the mean over them."""

import csv
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import List as ListFeature
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tritune
from small_tokenizers import KINDS, TEXTS, WORDS
from tritune.compression import planning, scoring
from tritune.errors import TrituneError
from tritune.recipes import FinetuneRecipe, Recipe, load_recipe
from tritune.tasks.heads.text_windows import averaged, cut
from tritune.tasks.registry import get_task, own_task
from tritune.training.job import open_job
from workspace import make_workspace, rows_of, trained_on_texts, write_texts

LENGTH = 9
KEYS = ("--set", f"max_length={LENGTH}", "--set", "long_texts=window")


def windows_of(tokenizer, text: str, length: int) -> list[list[int]]:
    """By the tokens of the text alone, between the special tokens of an empty one; a window at a time."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    empty = tokenizer("")["input_ids"]
    before, after = empty[: len(empty) // 2], empty[len(empty) // 2 :]
    room = length - len(empty)
    windows, start = [], 0
    while True:
        windows.append([*before, *ids[start : start + room], *after])
        if start + room >= len(ids):
            return windows
        start += room - room // 2


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_every_text(kind):
    tokenizer = KINDS[kind]()
    special = f"the {tokenizer.sep_token} town {tokenizer.cls_token} near {tokenizer.pad_token} the old sea quietly"
    texts = [*TEXTS, special, "<entity> 东方 " * 9, " ".join(WORDS), "the " * 3_000]
    fewest = len(tokenizer("")["input_ids"])
    exact = len(tokenizer(TEXTS[0])["input_ids"])
    rows = Dataset.from_dict({"text": texts, "label": list(range(len(texts)))})
    for length in (fewest + 1, fewest + 2, exact - 1, exact, exact + 1, 64):
        wanted = [windows_of(tokenizer, text, length) for text in texts]
        windows, of_text = cut(rows, ["text"], tokenizer, length, "texts")
        assert windows["input_ids"] == [window for of in wanted for window in of]
        assert of_text.tolist() == windows["labels"] == [text for text, of in enumerate(wanted) for _ in of]
        assert max(map(len, windows["input_ids"])) == length
        plain = dict(tokenizer(texts, truncation=True, max_length=length))
        assert {*windows.column_names} == {*plain, "labels"}
        for name, values in plain.items():
            assert [len(row) for row in windows[name]] == [len(row) for row in windows["input_ids"]]
            whole = dict(tokenizer(texts))[name]
            alone = [(windows[name][place], text) for place, text in enumerate(of_text) if len(wanted[text]) == 1]
            assert all(row == values[text] == whole[text] for row, text in alone), name
    assert len(windows_of(tokenizer, TEXTS[0], exact)) == 1 and len(windows_of(tokenizer, TEXTS[0], exact - 1)) == 2


def test_every_window_has_the_values_of_its_text_and_their_types():
    tokenizer = KINDS["wordpiece"]()
    kinds = {"label": ClassLabel(names=["a", "b"]), "score": Value("float32"), "many": ListFeature(Value("float32"), 2)}
    rows = Dataset.from_dict(
        {"text": ["the", "the " * 30, ""], "label": [0, 1, 0], "score": [0.1, 0.2, 0.3], "many": [[0, 1]] * 3},
        features=Features({"text": Value("string")} | kinds),
    )
    windows, of_text = cut(rows, ["text"], tokenizer, LENGTH, "texts")
    assert windows["labels"] == [rows["label"][text] for text in of_text]
    assert windows["score"] == [rows["score"][text] for text in of_text]
    assert {name: windows.features[{"label": "labels"}.get(name, name)] for name in kinds} == kinds
    one, of_text = cut(rows, ["text"], tokenizer, None, "texts")
    assert one["input_ids"] == tokenizer(list(rows["text"]))["input_ids"] and of_text.tolist() == [0, 1, 2]


def test_pairs_and_a_length_without_room_are_refused():
    tokenizer = KINDS["wordpiece"]()
    rows = Dataset.from_dict({"a": ["the"], "b": ["town"]})
    with pytest.raises(TrituneError, match=r"rows\.csv: long_texts window is for single texts, these are pairs"):
        cut(rows, ["a", "b"], tokenizer, LENGTH, "rows.csv")
    with pytest.raises(TrituneError, match="max_length 2 leaves no room"):
        cut(rows, ["a"], tokenizer, 2, "rows.csv")


def test_the_mean_over_windows():
    random = np.random.default_rng(0)
    counts = random.integers(1, 5, size=40)
    of_text = np.repeat(np.arange(40), counts)
    read = random.normal(size=(len(of_text), 3)).astype(np.float32)
    read[of_text == 7] = np.nan
    found = averaged(read, of_text)
    assert found.dtype == read.dtype
    for text in range(40):
        of = read[of_text == text].astype(np.float64)
        np.testing.assert_allclose(found[text], sum(of) / len(of), rtol=1e-6)
        if counts[text] == 1:
            assert found[text].tobytes() == read[of_text == text][0].tobytes()


PROBLEMS = {
    "single_label": (lambda i: "abc"[i % 3], {"labels": ("a", "b", "c")}),
    "multi_label": (lambda i: ("a|b", "c", "")[i % 3], {"labels": ("a", "b", "c"), "problem": "multi_label"}),
    "regression": (lambda i: str(i / 7), {"problem": "regression"}),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_scores_closeness_and_answers_are_of_texts(problem, tmp_path):
    label, options = PROBLEMS[problem]
    draw = random.Random(2)
    rows = [[" ".join(draw.choices(WORDS, k=draw.randint(1, 25))), label(i)] for i in range(30)]
    files = {split: tmp_path / f"{split}.csv" for split in ("train", "validation")}
    for path, ordered in zip(files.values(), (rows[::-1], rows), strict=True):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *ordered])
    task = own_task("text-classification", files, ("text",), "label", **options)
    splits = task.head.read_files(task, ["train", "validation"])
    splits = DatasetDict(splits | {"held_out": splits["train"].select(range(11))})
    tokenizer = KINDS["wordpiece"]()
    whole = task.head.encode(splits, task, tokenizer, LENGTH, "longest")
    task = replace(task, long_texts="window")
    data = task.head.encode(splits, task, tokenizer, LENGTH, "longest")
    assert len(data.dev) > len(whole.dev) == 30 and data.measures.keys() == whole.measures.keys()
    assert data.splits["train"]["labels"] == [whole.splits["train"]["labels"][text] for text in data.texts["train"]]
    for split in ("validation", "held_out"):
        of_text, width = data.texts[split], task.num_labels
        one, other = (
            np.random.default_rng(seed).normal(size=(len(of_text), width)).astype(np.float32) for seed in (0, 1)
        )
        means = [
            np.stack([read[of_text == text].mean(0) for text in range(of_text[-1] + 1)]).astype(np.float32)
            for read in (one, other)
        ]
        assert data.measures[split](one) == pytest.approx(whole.measures[split](means[0]))
        same = task.head.same_answers(one, other, task, data, split)
        assert same.tolist() == task.head.same_answers(*means, task, whole, split).tolist()
        if split == "validation":
            closeness = task.head.closeness(one, other, task, data)
            assert closeness == pytest.approx(task.head.closeness(*means, task, whole))
            answers, labels, measure = task.head.scored(one, other, task, data)
            np.testing.assert_allclose(answers, means[0], rtol=1e-5, atol=1e-6)
            assert labels.tolist() == whole.dev["labels"]
            assert measure(answers, labels) == pytest.approx(whole.measure(means[0]))


def test_the_latency_is_that_of_all_windows_of_a_text(monkeypatch):
    tokenizer, texts = KINDS["wordpiece"](), ["the town", "the " * 30, "", "the old sea " * 5]
    rows = DatasetDict(validation=Dataset.from_dict({"sentence": texts, "label": [0, 1, 0, 1]}))
    data = get_task("sst2").head.encode(
        rows, replace(get_task("sst2"), long_texts="window"), tokenizer, LENGTH, "longest"
    )
    read: list[list[list[int]]] = []
    monkeypatch.setattr(scoring, "predict", lambda model, rows, *more: read.append(list(rows["input_ids"])))
    scoring.latencies({"teacher": scoring.Scored(None, np.zeros(0), data, None)})
    wanted = [windows_of(tokenizer, text, LENGTH) for text in texts]
    assert read == [wanted[turn % 4] for turn in range(len(read))] and len(read) > 8


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Rows whose word in the middle says the label, most of them too long; one is exactly as long as a window."""
    folder = make_workspace(tmp_path_factory.mktemp("workspace"))

    def text(draw: random.Random, row: int) -> str:
        sides = [" ".join(draw.choices(["dog", "cat", "king"], k=draw.randint(1, 14))) for _ in range(2)]
        return f"{sides[0]} {'boy' if row % 2 else 'girls'} {sides[1]}" if row else "dog cat king boy dog cat king"

    write_texts(folder, text)
    return folder


@pytest.fixture(scope="module")
def trained(workspace):
    return trained_on_texts(workspace, KEYS)


def first_window(tokenizer, text: str, length: int) -> list[list[int]]:
    return windows_of(tokenizer, text, length)[:1]


def plain_logits(folder: Path, texts: list[str], cut=windows_of) -> np.ndarray:
    """The means over windows, by transformers, a window at a time, of ids that were cut here."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        answers = [
            [model(input_ids=torch.tensor([ids])).logits[0] for ids in cut(tokenizer, text, LENGTH)] for text in texts
        ]
    counts = [len(of) for of in answers]
    assert min(counts) == 1 and (max(counts) > 2 or cut is first_window)
    return torch.stack([torch.stack(of).mean(0) for of in answers]).numpy()


def shares(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).softmax(-1).numpy()


def test_every_command_averages_over_the_windows_of_a_text(workspace, trained, cli):
    dev = rows_of(workspace / "dev.csv")
    texts = [row["text"] for row in dev]
    asked = workspace / "asked.csv"
    with asked.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "note"], *([text, "x"] for text in [*texts, ""])])
    for folder in trained:
        assert "long_texts: window" in (folder / "recipe.yaml").read_text()
        wanted = plain_logits(folder, [*texts, ""])
        line = ("predict", folder, "--input", asked, "--text-columns", "text", "--probabilities")
        code, out, err = cli(*line)
        assert code == 0, err
        answered = list(csv.DictReader(out.splitlines()))
        assert [row["text"] for row in answered] == [*texts, ""]
        found = np.array([[float(row[f"probability_{name}"]) for name in ("no", "yes")] for row in answered])
        apart = np.abs(found - shares(wanted)).max()
        truncated = np.abs(found - shares(plain_logits(folder, [*texts, ""], first_window))).max()
        # The padding of a batch changes the order of sums, which may take a quantizer to the other side of a tie.
        assert apart < (1e-4 if folder == trained[0] else 0.05 * truncated)
        names = [("no", "yes")[place] for place in found.argmax(-1)]
        assert [row["prediction"] for row in answered] == names
        code, out, err = cli("evaluate", folder, "--task", trained[0] / "task.yaml", "--json")
        assert code == 0, err
        right = sum(name == row["label"] for name, row in zip(names, dev, strict=False))
        assert json.loads(out)["accuracy"] == pytest.approx(right / len(dev)) and json.loads(out)["rows"] == len(dev)


def test_closeness_to_a_teacher_is_of_texts(workspace, trained, cli):
    texts = [row["text"] for row in rows_of(workspace / "dev.csv")]
    theirs, own = (torch.from_numpy(plain_logits(folder, texts)).double().log_softmax(-1) for folder in trained[:2])
    line = ("evaluate", trained[1], "--task", trained[0] / "task.yaml", "--teacher", trained[0], "--json")
    code, out, err = cli(*line)
    assert code == 0, err
    found, last = json.loads(out), json.loads((trained[1] / "metrics.json").read_text())["last"]
    assert found["agreement"] == float((own.argmax(-1) == theirs.argmax(-1)).double().mean())
    divergence = float((theirs.exp() * (theirs - own)).sum(-1).mean())
    assert found["kl_to_teacher"] == pytest.approx(divergence, rel=0.1, abs=1e-5)
    assert {key: found[key] for key in ("accuracy", "agreement")} == {
        key: last[key] for key in ("accuracy", "agreement")
    }


def test_windows_are_rows_of_the_training_and_texts_are_recorded(workspace, trained):
    task = own_task("text-classification", {"train": workspace / "train.csv", "validation": workspace / "dev.csv"})
    keys = [f"max_length={LENGTH}", "long_texts=window"]
    job = open_job(
        workspace / "base", task, None, load_recipe("finetune", keys, FinetuneRecipe), workspace / "unwritten"
    )
    tokenizer = AutoTokenizer.from_pretrained(workspace / "base")
    rows = rows_of(workspace / "train.csv")
    windows = [(ids, row["label"]) for row in rows for ids in windows_of(tokenizer, row["text"], LENGTH)]
    train = job.data.splits["train"]
    assert train["input_ids"] == [ids for ids, _ in windows]
    assert [job.task.labels[label] for label in train["labels"]] == [label for _, label in windows]
    recorded = json.loads((trained[0] / "metrics.json").read_text())["rows"]
    assert recorded["train"]["read"]["count"] == 60 and recorded["validation"]["read"]["count"] == 24
    assert recorded["train"]["encoded"]["count"] == len(windows) > 60
    shorter = load_recipe("finetune", [f"max_length={LENGTH}"], FinetuneRecipe)
    others = open_job(workspace / "base", task, None, shorter, workspace / "unwritten")
    assert others.rows["train"]["read"] == job.rows["train"]["read"]
    assert job.recipe.max_steps > others.recipe.max_steps


def test_texts_of_one_window_are_as_truncated(workspace, trained, cli):
    line = ("evaluate", trained[1], "--task", trained[0] / "task.yaml", "--teacher", trained[0], "--json")
    found = []
    for long_texts in ("window", "truncate"):
        code, out, err = cli(*line, "--set", "max_length=32", "--set", f"long_texts={long_texts}")
        assert code == 0, err
        found.append(json.loads(out))
    assert found[0] == found[1]


def test_rows_without_labels_are_windows_alike(workspace, trained, cli):
    (workspace / "more.txt").write_text("\n".join(row["text"] for row in rows_of(workspace / "train.csv")))
    line = ("train", trained[0], "--task", trained[0] / "task.yaml", "--unlabelled", workspace / "more.txt")
    code, _, err = cli(*line, *KEYS, "--set", "reconstruct_steps=4", "--output", workspace / "unlabelled")
    assert code == 0, err
    weights = [(folder / "model.safetensors").read_bytes() for folder in (trained[1], workspace / "unlabelled")]
    assert weights[0] == weights[1]


def test_a_training_with_the_teachers_cache_and_a_held_out_part(workspace, trained, cli):
    keys = ("max_steps=8", "eval_steps=4", "select_on=held_out", "cache_teacher=true", "per_device_train_batch_size=32")
    sets = [part for key in keys for part in ("--set", key)]
    line = ("train", trained[0], "--task", trained[0] / "task.yaml", "--recipe", "kd-map", *KEYS, *sets)
    code, _, err = cli(*line, "--output", workspace / "distilled")
    assert code == 0, err
    metrics = json.loads((workspace / "distilled" / "metrics.json").read_text())
    code, out, err = cli("evaluate", workspace / "distilled", "--task", trained[0] / "task.yaml", "--json")
    assert code == 0 and json.loads(out)["accuracy"] == metrics["best"]["accuracy"], err
    assert metrics["rows"]["held_out"]["read"]["count"] == 6 < metrics["rows"]["held_out"]["encoded"]["count"]


def test_analyses_count_texts(workspace, trained, cli):
    from tritune.analysis.subjects import open_subjects

    files = {"train": workspace / "train.csv", "validation": workspace / "dev.csv"}
    task, rows = own_task("text-classification", files), rows_of(workspace / "dev.csv")
    subjects = open_subjects(task, None, None, [str(trained[1])], rows=3)
    windows = [windows_of(subjects.tokenizer, row["text"], LENGTH) for row in rows]
    assert subjects.rows["input_ids"] == [ids for of in windows[:3] for ids in of]
    batch, _ = subjects.sentence(5)
    assert batch["input_ids"][0].tolist()[: len(windows[5][0])] == windows[5][0]
    with pytest.raises(TrituneError, match="has rows 0 to 23"):
        subjects.sentence(24)
    line = ("analyze", "sensitivity", "--model", trained[1], "--task", trained[0] / "task.yaml", "--rows", "7")
    code, _, err = cli(*line, "--output", workspace / "analyzed")
    assert code == 0, err
    found = json.loads((workspace / "analyzed" / "sensitivity.json").read_text())
    logits = plain_logits(trained[1], [row["text"] for row in rows[:7]])
    right = [("no", "yes")[answer] == row["label"] for answer, row in zip(logits.argmax(-1), rows, strict=False)]
    assert found["quantized_score"] == pytest.approx(sum(right) / 7)


@pytest.mark.native
def test_the_engine_does_not_cut_the_end_without_a_word(trained):
    with pytest.raises(TrituneError, match="reads long texts in windows"):
        tritune.engine.load(trained[2])
    assert tritune.engine.load(trained[2], max_length=LENGTH).max_length == LENGTH


def test_an_export_says_so_and_is_compared_by_texts(trained, tmp_path, cli):
    line = ("export", trained[1], "--output", tmp_path / "dense", "--format", "dense", "--json")
    code, out, err = cli(*line, "--task", trained[0] / "task.yaml")
    assert code == 0 and "reads them in windows and averages the logits; a program" in out + err
    code, _, err = cli("predict", trained[0], "--input", _pairs(tmp_path))
    assert code == 2 and "window is for single texts, these are pairs" in err


def test_compress_answers_texts(workspace, tmp_path, monkeypatch, cli):
    monkeypatch.setattr(planning, "_FEWEST_STEPS", 4)
    monkeypatch.setattr(planning, "_CUT", 0.9)
    monkeypatch.setattr(scoring, "RESAMPLES", 50)
    draw, small = random.Random(3), tmp_path / "small"
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for i in range(90):
            words = draw.choices(["dog", "cat", "king", "boy", "girls", "sees", "the"], k=draw.randint(5, 30))
            rows.writerow([" ".join(words), "yes" if i % 2 else "no"])
    line = ("compress", workspace / "base", "--data", tmp_path / "rows.csv", "--output", small, "--long", "window")
    code, _, err = cli(*line, "--minutes", "0.001")
    assert code == 0 and "% of the texts are read in windows" in err, err
    metrics, plan = (json.loads((small / name).read_text()) for name in ("metrics.json", "plan.json"))
    length, test = plan["plan"]["max_length"], rows_of(small / "data" / "test.csv")
    assert "longer and read in windows" in (small / "report.html").read_text()
    answers = rows_of(small / "answers.csv")
    assert [(row["text"], row["label"]) for row in answers] == [(row["text"], row["label"]) for row in test]
    for name, folder in (("teacher", small / "teacher"), ("student", small / "model")):
        assert f"max_length: {length}\nlong_texts: window" in (folder / "recipe.yaml").read_text()
        code, out, err = cli("predict", folder, "--input", small / "data" / "test.csv", "--text-columns", "text")
        assert code == 0, err
        predicted = [row["prediction"] for row in csv.DictReader(out.splitlines())]
        assert [row[name] for row in answers] == predicted
        right = [row["label"] == one for row, one in zip(test, predicted, strict=True)]
        assert metrics[name]["scores"]["accuracy"] == pytest.approx(sum(right) / len(right))
    same = [row["teacher"] == row["student"] for row in answers]
    assert metrics["closeness"]["agreement"] == pytest.approx(sum(same) / len(same))
    assert metrics["rows"]["test"] == len(test)
    tokenizer = AutoTokenizer.from_pretrained(small / "model")
    counts = [len(windows_of(tokenizer, row["text"], length)) for row in rows_of(small / "data" / "train.csv")]
    assert max(counts) > 2


def _pairs(folder: Path) -> Path:
    (folder / "pairs.csv").write_text("text,text_pair\na,b\n")
    return folder / "pairs.csv"


@pytest.mark.parametrize("task", ["mrpc", "features", "squad", "conll2003", "cifar10"])
def test_other_tasks_are_refused(task):
    with pytest.raises(TrituneError, match=r"^long_texts: window is for the classes and scores of single texts"):
        load_recipe("finetune", ["long_texts=window"], FinetuneRecipe).resolve(get_task(task), 10)
    for single in ("cola", "sst2"):
        load_recipe("tritune", ["long_texts=window"], Recipe).resolve(get_task(single), 10)
