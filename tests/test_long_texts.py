"""`long_texts: head-tail`: of a text that is too long both ends are kept, wherever it is read."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tritune
from small_tokenizers import KINDS, TEXTS, WORDS
from tritune.errors import TrituneError
from tritune.recipes import FinetuneRecipe, load_recipe
from tritune.tasks.heads.long_texts import both_ends, token_ids
from tritune.tasks.registry import get_task
from workspace import make_workspace, rows_of, trained_on_texts, write_texts

LENGTH = 9


def both_ends_of(tokenizer, text: str, length: int) -> list[int]:
    """By the tokens of the text alone, between the special tokens of an empty one."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    empty = tokenizer("")["input_ids"]
    before = len(empty) // 2
    room = length - len(empty)
    if len(ids) > room:
        tail = room // 2
        ids = ids[: room - tail] + (ids[-tail:] if tail else [])
    return [*empty[:before], *ids, *empty[before:]]


@pytest.mark.parametrize("kind", KINDS)
def test_both_ends_of_every_text_are_kept(kind):
    tokenizer = KINDS[kind]()
    special = f"the {tokenizer.sep_token} town {tokenizer.cls_token} near {tokenizer.pad_token} the old sea quietly"
    texts = [*TEXTS, special, "<entity> 东方 " * 9, " ".join(WORDS), "the " * 10_000]
    fewest = len(tokenizer("")["input_ids"])
    for length in (fewest + 1, fewest + 2, LENGTH, 64):
        encoded = token_ids(tokenizer, [texts], length, "head-tail", "texts")
        assert encoded["input_ids"] == [both_ends_of(tokenizer, text, length) for text in texts]
        for name, rows in encoded.items():
            assert [len(row) for row in rows] == [len(row) for row in encoded["input_ids"]], name
        assert max(map(len, encoded["input_ids"])) == length if length < 64 else True
        plain = dict(tokenizer(texts, truncation=True, max_length=length))
        assert encoded.keys() == plain.keys()
        assert token_ids(tokenizer, [texts], length, "truncate", "texts") == plain
        short = [place for place, ids in enumerate(plain["input_ids"]) if len(ids) < length]
        assert all(encoded[name][place] == plain[name][place] for name in plain for place in short)


def test_a_length_of_none_cuts_nothing_and_pairs_are_refused():
    tokenizer = KINDS["wordpiece"]()
    assert token_ids(tokenizer, [["the " * 50]], None, "head-tail", "x") == dict(tokenizer(["the " * 50]))
    with pytest.raises(TrituneError, match=r"rows\.csv: long_texts head-tail is for single texts"):
        token_ids(tokenizer, [["a"], ["b"]], 9, "head-tail", "rows.csv")


def test_what_is_kept_is_in_order():
    draw = random.Random(0)
    for _ in range(200):
        special = [draw.choice([0, 0, 0, 1]) for _ in range(draw.randint(1, 30))]
        length = draw.randint(sum(special), 30)
        kept = both_ends(special, length)
        assert kept == sorted(set(kept)) and len(kept) == min(length, len(special))
        assert {place for place, added in enumerate(special) if added} <= {*kept}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Rows whose first and last word say the label, with a long middle that does not."""
    folder = make_workspace(tmp_path_factory.mktemp("workspace"))

    def text(draw: random.Random, row: int) -> str:
        middle = " ".join(draw.choices(["dog", "cat", "king", "sees", "sleeps"], k=draw.randint(1, 20)))
        return f"the {middle} {'boy' if row % 2 else 'girls'}"

    write_texts(folder, text)
    return folder


@pytest.fixture(scope="module")
def trained(workspace):
    return trained_on_texts(workspace, ("--set", f"max_length={LENGTH}", "--set", "long_texts=head-tail"))


def plain_answers(folder: Path, texts: list[str], cut=both_ends_of) -> list[list[float]]:
    """Probabilities by transformers, a text at a time, of ids that were cut here."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        answers = [model(input_ids=torch.tensor([cut(tokenizer, text, LENGTH)])).logits[0] for text in texts]
    return [answer.softmax(-1).tolist() for answer in answers]


def beginning_of(tokenizer, text: str, length: int) -> list[int]:
    return tokenizer(text, truncation=True, max_length=length)["input_ids"]


def test_every_command_reads_both_ends(workspace, trained, cli):
    dev = rows_of(workspace / "dev.csv")
    texts = [row["text"] for row in dev]
    for folder in trained:
        assert "long_texts: head-tail" in (folder / "recipe.yaml").read_text()
        wanted = plain_answers(folder, texts)
        line = ("predict", folder, "--input", workspace / "dev.csv", "--text-columns", "text", "--probabilities")
        code, out, err = cli(*line)
        assert code == 0, err
        found = [
            [float(row[f"probability_{name}"]) for name in ("no", "yes")] for row in csv.DictReader(out.splitlines())
        ]
        # The padding of a batch changes the order of sums, which may take a quantizer to the other side of a tie.
        apart = np.abs(np.array(found) - wanted).max()
        cut_elsewhere = np.abs(np.array(found) - plain_answers(folder, texts, beginning_of)).max()
        assert apart < (1e-4 if folder == trained[0] else 0.05 * cut_elsewhere)
        line = ("evaluate", folder, "--task", trained[0] / "task.yaml", "--json")
        code, out, err = cli(*line)
        assert code == 0, err
        answers = [("no", "yes")[of.index(max(of))] for of in wanted]
        right = sum(answer == row["label"] for answer, row in zip(answers, dev, strict=True))
        assert json.loads(out)["accuracy"] == pytest.approx(right / len(dev))
        code, other, err = cli(*line, "--set", "long_texts=truncate")
        assert code == 0 and json.loads(other)["rows"] == len(dev), err


def test_rows_without_labels_are_cut_alike(workspace, trained, cli):
    (workspace / "more.txt").write_text("\n".join(row["text"] for row in rows_of(workspace / "train.csv")))
    line = ("train", trained[0], "--task", trained[0] / "task.yaml", "--unlabelled", workspace / "more.txt")
    keys = ("--set", f"max_length={LENGTH}", "--set", "long_texts=head-tail", "--set", "reconstruct_steps=4")
    code, _, err = cli(*line, *keys, "--output", workspace / "unlabelled")
    assert code == 0, err
    weights = [(folder / "model.safetensors").read_bytes() for folder in (trained[1], workspace / "unlabelled")]
    assert weights[0] == weights[1]


@pytest.mark.native
def test_the_engine_does_not_cut_the_end_without_a_word(trained):
    with pytest.raises(TrituneError, match="keeps both ends of long texts"):
        tritune.engine.load(trained[2])
    assert tritune.engine.load(trained[2], max_length=LENGTH).max_length == LENGTH


def test_an_export_says_that_its_programs_cut(trained, tmp_path, cli):
    code, _, err = cli("export", trained[1], "--output", tmp_path / "dense", "--format", "dense")
    assert code == 0 and "keeps both ends of them; a program that loads the export has to cut so" in err


@pytest.mark.parametrize("task", ["mrpc", "features", "squad", "conll2003", "cifar10"])
def test_other_tasks_are_refused(task):
    with pytest.raises(TrituneError, match=r"^long_texts: head-tail is for the classes and scores of single texts"):
        load_recipe("finetune", ["long_texts=head-tail"], FinetuneRecipe).resolve(get_task(task), 10)
    for single in ("cola", "sst2"):
        load_recipe("finetune", ["long_texts=head-tail"], FinetuneRecipe).resolve(get_task(single), 10)
    with pytest.raises(TrituneError, match="long_texts must be one of truncate, head-tail, window"):
        load_recipe("ti-g", ["long_texts=middle"])


def test_pairs_are_refused_by_predict(trained, tmp_path, cli):
    (tmp_path / "pairs.csv").write_text("text,text_pair\na,b\n")
    code, _, err = cli("predict", trained[0], "--input", tmp_path / "pairs.csv")
    assert code == 2 and "head-tail is for single texts, these are pairs" in err
