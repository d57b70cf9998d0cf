"""Windows of long contexts, answers read out of them, SQuAD's files, and the whole way from files to an answer."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    BertConfig,
    BertForQuestionAnswering,
    DistilBertConfig,
    RobertaConfig,
    ViTConfig,
)

import small_answers
from small_answers import question, squad
from tritune.checkpoints.prepare import prepare
from tritune.engine.spans import LONGEST_ANSWER
from tritune.errors import TrituneError
from tritune.inference.evaluate import dev_logits, dev_scores
from tritune.modeling.instrument import instrument, instrument_of
from tritune.tasks.data import load_task_data
from tritune.tasks.heads import QUESTION_ANSWERING, head_of
from tritune.tasks.heads.answer_windows import cut
from tritune.tasks.heads.head import stacked
from tritune.tasks.heads.squad_file import read_squad
from tritune.tasks.registry import TASKS, own_task

TOKENIZERS = {"bert": small_answers.bert_tokenizer, "roberta": small_answers.roberta_tokenizer}
every_tokenizer = pytest.mark.parametrize("tokenizer", [make() for make in TOKENIZERS.values()], ids=TOKENIZERS)
LONG = "Ada lives in Como, Ben works in Delft. " * 3 + "Dora (the 2nd) lives in Übersee—«Faro»."


def rows_of(*asked):
    """Rows of (question, context, answers)."""
    return Dataset.from_dict(
        {
            "id": [str(number) for number in range(len(asked))],
            "question": [one[0] for one in asked],
            "context": [one[1] for one in asked],
            "answers": [list(one[2]) for one in asked],
            "starts": [[one[1].rindex(answer) for answer in one[2]] for one in asked],
        }
    )


def pointing(windows, at):
    """Logits whose start and end are sure of the tokens that `at` gives for each window."""
    logits = np.zeros((len(windows), max(map(len, windows["input_ids"])), 2), np.float32)
    for number, places in enumerate(at):
        for side, place in enumerate(places):
            logits[number, place, side] = 5
    return logits


@every_tokenizer
@pytest.mark.parametrize("answer", ["Dora", "the 2nd", "Übersee", "«Faro»", "Faro»."])
def test_labels_lead_back_to_the_answer(tokenizer, answer):
    rows = rows_of(("where?", LONG, [answer]))
    windows, spans = cut(rows, tokenizer, 32, "Test")
    labels = list(windows["labels"])
    assert len(windows) > 2 and all(len(ids) <= 32 for ids in windows["input_ids"])
    assert [0, 0] in labels and labels != [[0, 0]] * len(labels)
    if LONG.endswith(answer):
        assert labels[-1] != [0, 0]
    logits = pointing(windows, labels)
    # A window without the answer points at its first token, which is no span, so the answer wins.
    (span,) = spans(logits)
    assert LONG[span.start : span.end] == answer


@every_tokenizer
def test_windows_cover_the_context_and_overlap(tokenizer):
    windows, spans = cut(rows_of(("where?", LONG, ["Faro"])), tokenizer, 32, "Test")
    places = spans.keywords["windows"]
    seen = [(one["starts_at"][0], one["ends_at"][-1]) for one in places]
    assert seen[0][0] == 0 and seen[-1][1] == len(LONG)
    assert all(left[1] > right[0] for left, right in itertools.pairwise(seen))
    for window, ids in zip(places, windows["input_ids"], strict=True):
        assert window["tokens"] == len(ids)
        count = len(window["starts_at"])
        assert tokenizer.decode(ids[window["first"] : window["first"] + count]).strip() != ""


@every_tokenizer
def test_an_answer_that_no_window_holds_whole_is_nowhere(tokenizer):
    answer = LONG[5:110]
    windows, _ = cut(rows_of(("where?", LONG, [answer])), tokenizer, 32, "Test")
    assert list(windows["labels"]) == [[0, 0]] * len(windows)


def test_a_short_context_is_one_window_and_no_answer_is_the_first_token():
    tokenizer = small_answers.bert_tokenizer()
    windows, _ = cut(rows_of(("who?", "Ada.", ["Ada"]), ("who?", "Ben.", [])), tokenizer, 24, "Test")
    first = windows["input_ids"][0].index(tokenizer.convert_tokens_to_ids("Ada"))
    assert list(windows["labels"]) == [[first, first], [0, 0]]


def test_spaces_around_an_answer_are_no_part_of_it():
    tokenizer = small_answers.bert_tokenizer()
    rows = rows_of(("who?", "is Ada there", [" Ada "]))
    windows, spans = cut(rows, tokenizer, 24, "Test")
    (span,) = spans(pointing(windows, windows["labels"]))
    assert "is Ada there"[span.start : span.end] == "Ada"


def test_a_question_of_any_length_leaves_room():
    tokenizer = small_answers.bert_tokenizer()
    windows, _ = cut(rows_of(("where " * 500, LONG, ["Faro"])), tokenizer, 24, "Test")
    assert max(map(len, windows["input_ids"])) <= 24
    with pytest.raises(TrituneError, match="max_length 23: a question and its context need"):
        cut(rows_of(("who?", "Ada.", [])), tokenizer, 23, "Test")


def test_a_context_of_nothing_to_read_is_named():
    with pytest.raises(TrituneError, match="question '0': its context has no tokens"):
        cut(rows_of(("who?", "\x07", [])), small_answers.bert_tokenizer(), 24, "Test")


def best_by_force(logits, windows):
    """Question to (start, end, score) over all valid spans of all windows, first come first served."""
    best = {}
    for window, scores in zip(windows, logits.astype(float), strict=True):
        count = len(window["starts_at"])
        for start in range(count):
            for end in range(start, min(count, start + LONGEST_ANSWER)):
                score = scores[window["first"] + start, 0] + scores[window["first"] + end, 1]
                found = (window["starts_at"][start], window["ends_at"][end], score)
                if window["question"] not in best or score > best[window["question"]][2]:
                    best[window["question"]] = found
    return best


@every_tokenizer
def test_spans_are_the_best_of_all_by_force(tokenizer):
    rows = rows_of(("where?", LONG, ["Faro"]), ("who is it?", "Ada.", ["Ada"]), ("where?", LONG[::-1], []))
    windows, spans = cut(rows, tokenizer, 40, "Test")
    logits = np.random.default_rng(0).normal(size=(len(windows), 45, 2)).astype(np.float32)
    for row, ids in enumerate(windows["input_ids"]):
        logits[row, len(ids) :] = 99  # padding must not be looked at
    places = spans.keywords["windows"]
    expected = best_by_force(logits, places)
    for number, span in enumerate(spans(logits)):
        assert (span.start, span.end) == expected[number][:2]
        assert span.score == pytest.approx(expected[number][2])
        of = [row for row, place in enumerate(places) if place["question"] == number]
        real = [logits[row, : places[row]["tokens"]].astype(float) for row in of]
        assert span.none_score == pytest.approx(min(scores[0].sum() for scores in real))
        shares = [math.exp(span.score) / math.prod(math.fsum(np.exp(side)) for side in one.T) for one in real]
        assert min(abs(span.probability - share) for share in shares) < 1e-9


def test_logits_that_are_no_numbers_are_not_scored():
    windows, spans = cut(rows_of(("who?", "Ada.", ["Ada"])), small_answers.bert_tokenizer(), 24, "Test")
    logits = pointing(windows, windows["labels"])
    logits[0, 1] = np.nan
    with pytest.raises(TrituneError, match="1 of 1 windows have NaN"):
        spans(logits)
    with pytest.raises(TrituneError, match="cannot read answers from logits"):
        spans(logits[:, :, :1])


def test_stacked_pads_tokens_and_leaves_classes_alone():
    narrow, wide = torch.ones(1, 2, 3), torch.ones(2, 4, 3)
    both = stacked([narrow, wide])
    assert (
        both.shape == (3, 4, 3) and (both[0, 2:] == -100).all() and (both[0, :2] == 1).all() and (both[1:] == 1).all()
    )
    assert stacked([torch.ones(1, 2), torch.zeros(2, 2)]).shape == (3, 2)


GOOD = question("q1", "who?", "Ada lives.", "Ada")
BAD = {  # what a file holds, and what the message says
    "shifted": (
        squad([("Ada lives.", [GOOD | {"answers": [{"text": "Ada", "answer_start": 1}]}])]),
        "'q1'.*'Ada' is not",
    ),
    "negative": (squad([("Ada", [GOOD | {"answers": [{"text": "a", "answer_start": -1}]}])]), "'q1'.*character -1"),
    "beyond": (squad([("Ada", [GOOD | {"answers": [{"text": "Ada", "answer_start": 9}]}])]), "'q1'.*'' is"),
    "twice": (squad([("Ada lives.", [GOOD, GOOD])]), "'q1'.*twice"),
    "no context": (squad([("  ", [GOOD])]), "'q1'.*context must be text"),
    "no question": (squad([("Ada lives.", [GOOD | {"question": ""}])]), "'q1'.*question must"),
    "no id": (squad([("Ada lives.", [GOOD | {"id": 7}])]), "question 7: its id"),
    "no answer": (squad([("Ada lives.", [GOOD | {"answers": []}])]), "'q1': has no answer.*squad_v2"),
    "impossible": (squad([("Ada lives.", [GOOD | {"is_impossible": True}])]), "'q1': has no answer.*squad_v2"),
    "no start": (squad([("Ada lives.", [GOOD | {"answers": [{"text": "Ada"}]}])]), "'q1': an answer needs"),
    "answers as text": (squad([("Ada lives.", [GOOD | {"answers": "Ada"}])]), "'q1': its answers must be a list"),
    "other json": ({"rows": []}, "the list `data` is missing"),
    "a list": ([], "the list `data` is missing"),
    "no paragraphs": ({"data": [{}]}, "the list `paragraphs` is missing"),
    "question as text": ({"data": [{"paragraphs": [{"context": "Ada", "qas": ["who?"]}]}]}, "is not a question"),
    "nothing": (squad([]), "holds no questions"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_one_line_that_names_file_and_question(tmp_path, content, message):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TrituneError, match=message) as error:
        read_squad(path, unanswerable=False)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("raw", [b"id,question\n", b"", b"\xff\xfe{", b'{"data": ['])
def test_what_is_no_json(tmp_path, raw):
    (tmp_path / "train.json").write_bytes(raw)
    with pytest.raises(TrituneError, match=r"not JSON|line 1: not UTF-8"):
        read_squad(tmp_path / "train.json", unanswerable=False)


def test_own_files_tell_whether_questions_may_be_unanswerable(tmp_path):
    for unanswerable in (False, True):
        folder = small_answers.write_squad(tmp_path / str(unanswerable), unanswerable=unanswerable)
        files = {"train": folder / "train.json", "validation": folder / "dev.json"}
        task = own_task("question-answering", files)
        assert task.head.unanswerable is unanswerable and task.metric == "f1"
        rows = load_task_data(task)
        assert len(rows["train"]) == 24 and ([] in list(rows["train"]["answers"])) is unanswerable
    with pytest.raises(TrituneError, match="no columns to choose from"):
        own_task("question-answering", files, columns=("a", "b"))


def test_the_hub_reader_gives_what_the_file_gives(tmp_path):
    folder = small_answers.write_squad(tmp_path)
    rows = read_squad(folder / "dev.json", unanswerable=False)
    hub = rows.remove_columns(["answers", "starts"]).add_column(
        "answers",
        [{"text": text, "answer_start": start} for text, start in zip(rows["answers"], rows["starts"], strict=True)],
    )
    assert QUESTION_ANSWERING.from_hub(hub, TASKS["squad"], "hub").to_list() == rows.to_list()
    with pytest.raises(TrituneError, match="hub has the columns"):
        QUESTION_ANSWERING.from_hub(rows.remove_columns("answers"), TASKS["squad"], "hub")


def test_a_missing_file_and_a_slow_tokenizer_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(TrituneError, match="not a folder"):
        load_task_data(TASKS["squad"], tmp_path / "none")
    with pytest.raises(TrituneError, match=r"train\.json is missing"):
        load_task_data(TASKS["squad"], tmp_path)
    loader = "tritune.tasks.heads.head.load_tokenizer"
    monkeypatch.setattr(loader, lambda *_: SimpleNamespace(is_fast=False))
    with pytest.raises(TrituneError, match="slow tokenizer"):
        QUESTION_ANSWERING.load_processor("model", None, 24)


def tiny(tokenizer, **more):
    return BertForQuestionAnswering(
        BertConfig(
            vocab_size=len(tokenizer),
            **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
            **{"max_position_embeddings": 96, **more},
        )
    )


def test_answers_do_not_depend_on_how_batches_are_padded(tmp_path):
    tokenizer, task = small_answers.bert_tokenizer(), TASKS["squad"]
    rows = load_task_data(task, small_answers.write_squad(tmp_path), ["validation"])
    model, scores = tiny(tokenizer).double(), []
    left = small_answers.write_left_padding(tmp_path / "left", tokenizer)
    tokenizer = task.head.load_processor(left, model, 40)
    for padding, batch in (("longest", 2), ("longest", 5), ("max_length", 3)):
        data = task.head.encode(rows, task, tokenizer, 40, padding)
        logits = dev_logits(model, data, task, batch)
        scores.append((dev_scores(logits, data, task), data.measures["validation"].places(logits["validation"])))
        same = task.head.closeness(logits["validation"], logits["validation"], task, data)
        assert same == {"agreement": 1.0, "kl_to_teacher": pytest.approx(0, abs=1e-12)}
    assert scores[0] == scores[1] == scores[2]


def test_closeness_against_loops(tmp_path):
    tokenizer, task = small_answers.bert_tokenizer(), TASKS["squad_v2"]
    rows = load_task_data(task, small_answers.write_squad(tmp_path, unanswerable=True), ["validation"])
    data = task.head.encode(rows, task, tokenizer, 40, "longest")
    shape = (len(data.dev), 44, 2)
    student, teacher = (np.random.default_rng(seed).normal(size=shape).astype(np.float32) for seed in (0, 1))
    teacher = student + teacher / 4
    total = 0.0
    for row, ids in enumerate(data.dev["input_ids"]):
        for side in (0, 1):
            logs = []
            for of in (teacher, student):
                real = of[row, : len(ids), side].astype(float)
                logs.append(real - math.log(math.fsum(np.exp(real))))
            total += math.fsum(math.exp(p) * (p - q) for p, q in zip(*logs, strict=True))
    close = task.head.closeness(student, teacher, task, data)
    assert close["kl_to_teacher"] == pytest.approx(total / len(data.dev) / 2, rel=1e-6)
    places = [data.measures["validation"].places(of) for of in (student, teacher)]
    assert close["agreement"] == sum(a == b for a, b in zip(*places, strict=True)) / 9


@pytest.mark.parametrize("kind", [AutoModelForQuestionAnswering, AutoModelForTokenClassification])
@pytest.mark.parametrize("family", [BertConfig, RobertaConfig, DistilBertConfig])
def test_the_classifier_is_found_and_stays_float(kind, family):
    names = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16}
    if family is not DistilBertConfig:
        names = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = instrument(kind.from_config(family(vocab_size=40, **names)))
    anatomy = instrument_of(model).anatomy
    assert anatomy.classifier == ("qa_outputs" if kind is AutoModelForQuestionAnswering else "classifier",)
    assert anatomy.pooler == () and len(anatomy.sites) == 2
    prepare(model)
    assert type(model.get_submodule(anatomy.classifier[0])) is torch.nn.Linear


def test_the_kind_is_read_from_the_class():
    assert head_of(BertConfig(architectures=["BertForQuestionAnswering"])) is QUESTION_ANSWERING
    assert head_of(BertConfig(architectures=None)).name == "text-classification"
    assert head_of(ViTConfig(architectures=None)).name == "image-classification"


@pytest.mark.data
@pytest.mark.parametrize("max_length", [384, 128])
def test_real_questions_find_their_answers_again(data_folder, max_length):
    folder = data_folder / "squad"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    rows = load_task_data(TASKS["squad"], folder, ["validation"])["validation"].select(range(60))
    # A word is many tokens here, so windows are many and some answers longer than any span.
    windows, spans = cut(rows, small_answers.bert_tokenizer(), max_length, "SQuAD")
    found, here = spans(pointing(windows, windows["labels"])), {}
    for place, label in zip(spans.keywords["windows"], windows["labels"], strict=True):
        if label != [0, 0]:
            here[place["question"]] = label[1] - label[0] < LONGEST_ANSWER
    assert len(here) > 50
    for number in (number for number, is_short in here.items() if is_short):
        assert rows["context"][number][found[number].start : found[number].end] == rows["answers"][number][0]
