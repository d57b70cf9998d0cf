"""Tagged sentences from files, labels on the first piece of every word, and tags out of logits."""

import json
import math

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertConfig, BertForTokenClassification

import small_answers
from tritune.cli.options import OwnFiles, open_task
from tritune.engine.answers import tags_of
from tritune.errors import TrituneError
from tritune.inference.evaluate import dev_logits, dev_scores
from tritune.tasks.data import load_task_data
from tritune.tasks.heads import TOKEN_CLASSIFICATION
from tritune.tasks.heads.tag_files import read_tagged
from tritune.tasks.registry import TASKS, own_task

CONLL = TASKS["conll2003"]


def written(folder, text, name="train.txt"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_become_sentences_in_iob2(tmp_path):
    path = written(
        tmp_path,
        "-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nEkeus NNP I-NP I-PER\n\n\n# NN I-NP O\nBonn NNP I-NP I-LOC\r\n",
    )
    assert read_tagged(path, labels=CONLL.labels).to_list() == [
        {"tokens": ["U.N.", "Ekeus"], "tags": ["B-ORG", "B-PER"]},
        {"tokens": ["#", "Bonn"], "tags": ["O", "B-LOC"]},
    ]


def test_tabs_keep_spaces_inside_words(tmp_path):
    rows = read_tagged(written(tmp_path, "New York\tB-LOC\n\nBonn\tB-LOC"))
    assert list(rows["tokens"]) == [["New York"], ["Bonn"]]


def test_all_formats_give_the_same_rows(tmp_path):
    rows = [{"tokens": ["Ada", "naps"], "tags": ["B-PER", "O"]}, {"tokens": ["…"], "tags": ["O"]}]
    lines = written(tmp_path, "\n\n".join("\n".join(map("\t".join, zip(*r.values(), strict=True))) for r in rows))
    json_lines = written(tmp_path, "\n".join(map(json.dumps, rows)) + "\n", "train.jsonl")
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    for path in (lines, json_lines, tmp_path / "train.parquet"):
        assert read_tagged(path).to_list() == rows


BAD = {  # name, content, message
    "one column": ("a.txt", "Ada B-PER\nnaps\n", r"a\.txt, line 2: 1 columns, expected 2"),
    "no tags": ("a.txt", "Ada\n", r"a\.txt, line 1: 1 columns"),
    "more columns": ("a.txt", "Ada B-PER\nhas a nap O\n", "line 2: 4 columns, expected 2"),
    "unseen": ("a.txt", "Ada B-PER\n\nBonn B-CITY\n", "line 3: the tag 'B-CITY' is not one of O, B-PER"),
    "no blank line": ("a.txt", "Ada B-PER\n" * 300, "no blank line in the first 201"),
    "nothing": ("a.txt", "\n\n-DOCSTART- -X- O O\n", "holds no sentences"),
    "lengths": ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', r"a\.jsonl, row 1: 2 words and 1 tags"),
    "no lists": ("a.jsonl", '{"tokens": "a b", "tags": ["O"]}', "row 1: its words must be a list"),
    "fractions": ("a.jsonl", '\n{"tokens": ["a"], "tags": [0.5]}', "row 1: its tags must be a list of texts"),
    "truth": ("a.jsonl", '\n{"tokens": ["a"], "tags": [true]}', "row 1: its tags must be a list of texts"),
    "numbers": ("a.jsonl", '\n{"tokens": ["a"], "tags": [0]}', "row 1: the tag '0' is not one of O, "),
    "an empty word": ("a.jsonl", '{"tokens": [""], "tags": ["O"]}', "row 1: its words"),
    "no column": ("a.jsonl", '{"words": ["a"], "tags": ["O"]}', "needs the lists tokens and tags, found 'words'"),
    "no object": ("a.jsonl", "[1]", "row 1: not a JSON object"),
    "no json": ("a.jsonl", "Ada B-PER", "line 1: not a JSON object"),
    "no parquet": ("a.parquet", "Ada", "not Parquet"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_one_line_that_says_where(tmp_path, name, content, message):
    path = written(tmp_path, content, name)
    with pytest.raises(TrituneError, match=message) as error:
        read_tagged(path, labels=CONLL.labels)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_own_files_say_which_tags_there_are(tmp_path):
    train = written(tmp_path, "Ada I-PER\nnaps O\n\nBonn S-LOC\n")
    task = own_task("token-classification", {"train": train})
    assert task.labels == ("O", "S-LOC", "B-PER", "I-PER") and task.metric == "entity_f1"
    words = written(tmp_path, "Ada NOUN\nnaps VERB\n", "pos.txt")
    task = own_task("token-classification", {"validation": words})
    assert task.labels == ("NOUN", "VERB") and task.metric == "accuracy"
    with pytest.raises(TrituneError, match="every tag is O"):
        own_task("token-classification", {"train": written(tmp_path, "Ada O\nnaps O\n", "o.txt")})
    with pytest.raises(TrituneError, match="one column holds the words"):
        own_task("token-classification", {"train": train}, columns=("a", "b"))
    for columns, label in ((("words",), None), (None, "pos")):
        with pytest.raises(TrituneError, match="lines of word and tag have no columns to name"):
            own_task("token-classification", {"train": train}, columns, label)
    with pytest.raises(TrituneError, match=r"none\.txt: there is no such file"):
        own_task("token-classification", {"train": tmp_path / "none.txt"})
    with pytest.raises(TrituneError, match="the train file is missing"):
        load_task_data(own_task("token-classification", {"validation": train}))


def test_own_columns(tmp_path):
    path = written(tmp_path, '{"words": ["Ada"], "ner": ["B-PER"]}', "a.jsonl")
    task = own_task("token-classification", {"train": path}, columns=("words",), label_column="ner")
    assert load_task_data(task, splits=["train"])["train"].to_list() == [{"tokens": ["Ada"], "tags": ["B-PER"]}]


def test_lines_are_scored_by_a_task_file_whose_training_file_has_columns(tmp_path):
    written(tmp_path, '{"words": ["Ada"], "ner": ["B-PER"]}', "train.jsonl")
    written(tmp_path, "Ada B-PER\n", "dev.txt")
    text = (
        "kind: token-classification\ntrain_file: train.jsonl\ndev_file: dev.txt\ncolumns: [words]\nlabel_column: ner\n"
    )
    own = OwnFiles(None, None, None, None, None)
    for trains in (True, False):
        task = open_task(str(written(tmp_path, text, "task.yaml")), own, trains=trains)
        assert load_task_data(task, splits=["validation"])["validation"]["tags"][:] == [["B-PER"]]


def test_the_hub_reader_names_the_tags():
    names = ClassLabel(names=list(CONLL.labels))
    features = Features({"tokens": List(Value("string")), "ner_tags": List(names)})
    rows = Dataset.from_dict({"tokens": [["Ada", "naps"]], "ner_tags": [[1, 0]]}, features=features)
    assert TOKEN_CLASSIFICATION.from_hub(rows, CONLL, "hub").to_list() == [
        {"tokens": ["Ada", "naps"], "tags": ["B-PER", "O"]}
    ]
    with pytest.raises(TrituneError, match="hub gives CoNLL-2003 as"):
        TOKEN_CLASSIFICATION.from_hub(rows.remove_columns("ner_tags"), CONLL, "hub")


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_first_piece_of_a_word_carries_its_tag(family, tmp_path):
    tokenizer = (
        small_answers.bert_tokenizer() if family == "bert" else small_answers.roberta_tokenizer(add_prefix_space=True)
    )
    tokens, tags = ["Emil", "\x07", "lives", "in", "Turin", "far" * 20], ["B-PER", "O", "O", "O", "B-LOC", "I-LOC"]
    rows = Dataset.from_dict({"tokens": [tokens], "tags": [tags]})
    data = TOKEN_CLASSIFICATION.encode({"validation": rows}, CONLL, tokenizer, 40, "longest")
    row = data.dev[0]
    seen = [(place, label) for place, label in enumerate(row["labels"]) if label != -100]
    assert len(row["labels"]) == len(row["input_ids"]) <= 40
    # In BERT's tokenizer a control character is nothing; what begins beyond the end is not seen.
    pieces = [tokenizer.decode([row["input_ids"][place]]).strip() for place, _ in seen]
    kept = [word for word in tokens if family == "roberta" or word != "\x07"][: len(seen)]
    assert len(seen) >= 5 - (family == "bert") and all(
        family == "roberta" or word.startswith(piece) for word, piece in zip(kept, pieces, strict=True)
    )
    expected = [CONLL.labels.index(tags[tokens.index(word)]) for word in kept]
    assert [label for _, label in seen] == expected
    # Perfect logits give the tags back, words without a piece as O.
    logits = np.zeros((1, 44, 9), np.float32)
    for place, label in seen:
        logits[0, place, label] = 5
    places = data.measures["validation"].first_tokens
    assert tags_of(logits, places, CONLL.labels) == [
        [tag if place >= 0 else "O" for tag, place in zip(tags, places[0], strict=True)]
    ]


def test_words_beyond_the_length_are_counted_as_outside():
    rows = Dataset.from_dict({"tokens": [["Ada"] * 30], "tags": [["B-PER"] * 30]})
    data = TOKEN_CLASSIFICATION.encode({"validation": rows}, CONLL, small_answers.bert_tokenizer(), 12, "longest")
    logits = np.zeros((1, 12, 9), np.float32)
    logits[..., 1] = 1
    scores = data.measures["validation"](logits)
    assert scores == pytest.approx({"entity_f1": 20 / 40, "precision": 1, "recall": 1 / 3, "accuracy": 1 / 3})


def test_tags_that_cannot_be_read():
    logits = np.zeros((1, 3, 2), np.float32)
    with pytest.raises(TrituneError, match="cannot read 3 tags"):
        tags_of(logits, [[1]], ["O", "B-X", "I-X"])
    logits[0, 1] = np.nan
    with pytest.raises(TrituneError, match="1 of 1 sentences have NaN"):
        tags_of(logits, [[1]], ["O", "B-X"])
    assert tags_of(logits, [[2, -1]], ["O", "B-X"]) == [["O", "O"]]


def test_a_byte_level_tokenizer_is_told_of_the_space_before_words(tmp_path):
    tokenizer = small_answers.roberta_tokenizer()
    model = BertForTokenClassification(BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_attention_heads=1))
    tokenizer.save_pretrained(tmp_path / "plain")
    for _ in range(2):  # as it came, and as it was saved beside a run
        loaded = TOKEN_CLASSIFICATION.load_processor(tmp_path / "plain", model, 32)
        words = loaded(["a", "b"], is_split_into_words=True)["input_ids"]
        assert words == loaded("a b")["input_ids"] and loaded.convert_ids_to_tokens(words)[1] == "Ġ"
        loaded.save_pretrained(tmp_path / "plain")


def test_scores_do_not_depend_on_how_batches_are_padded(tmp_path):
    tokenizer = small_answers.bert_tokenizer()
    rows = load_task_data(CONLL, small_answers.write_tagged(tmp_path), ["validation"])
    config = BertConfig(
        vocab_size=len(tokenizer),
        **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        num_labels=9,
    )
    model, found = BertForTokenClassification(config).double(), []
    left = small_answers.write_left_padding(tmp_path / "left", tokenizer)
    tokenizer = CONLL.head.load_processor(left, model, 40)
    for padding, batch in (("longest", 2), ("longest", 5), ("max_length", 3)):
        data = CONLL.head.encode(rows, CONLL, tokenizer, 40, padding)
        logits = dev_logits(model, data, CONLL, batch)
        found.append(dev_scores(logits, data, CONLL))
        close = CONLL.head.closeness(logits["validation"], logits["validation"], CONLL, data)
        assert close == {"agreement": 1.0, "kl_to_teacher": pytest.approx(0, abs=1e-12)}
    assert found[0] == found[1] == found[2]


def test_closeness_against_loops(tmp_path):
    rows = load_task_data(CONLL, small_answers.write_tagged(tmp_path), ["validation"])
    data = CONLL.head.encode(rows, CONLL, small_answers.bert_tokenizer(), 40, "longest")
    shape = (len(data.dev), 44, 9)
    student, teacher = (np.random.default_rng(seed).normal(size=shape).astype(np.float32) for seed in (0, 1))
    divergences, same = [], []
    for row, labels in enumerate(data.dev["labels"]):
        for place in (place for place, label in enumerate(labels) if label != -100):
            pair = [of[row, place].astype(float) for of in (teacher, student)]
            logs = [one - math.log(math.fsum(np.exp(one))) for one in pair]
            divergences.append(math.fsum(math.exp(p) * (p - q) for p, q in zip(*logs, strict=True)))
            same.append(pair[0].argmax() == pair[1].argmax())
    expected = {"agreement": np.mean(same), "kl_to_teacher": np.mean(divergences)}
    assert CONLL.head.closeness(student, teacher, CONLL, data) == pytest.approx(expected, rel=1e-6)
