"""The task table and its metrics, against formulas written out by hand."""

import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritune.errors import TrituneError
from tritune.tasks.heads import TEXT_CLASSIFICATION
from tritune.tasks.metrics import class_scores, multi_label_scores
from tritune.tasks.registry import TASKS, get_task

ROWS = {  # name: title, metric, max length, batch, evaluate every, number of labels
    "cola": ("CoLA", "matthews_correlation", 64, 16, 50, 2),
    "sst2": ("SST-2", "accuracy", 64, 32, 100, 2),
    "mrpc": ("MRPC", "mean_accuracy_f1", 128, 32, 50, 2),
    "stsb": ("STS-B", "mean_pearson_spearman", 128, 32, 100, 1),
    "qqp": ("QQP", "mean_accuracy_f1", 128, 32, 1000, 2),
    "mnli": ("MNLI", "accuracy", 128, 32, 8000, 3),
    "qnli": ("QNLI", "accuracy", 128, 32, 1000, 2),
    "rte": ("RTE", "accuracy", 128, 32, 20, 2),
    "wnli": ("WNLI", "accuracy", 128, 32, 20, 2),
    "features": ("Features", "spearman", 128, 32, 100, 1),
    "demo": ("Demo", "accuracy", 32, 32, 50, 2),
    "squad": ("SQuAD 1.1", "f1", 384, 16, 500, 2),
    "squad_v2": ("SQuAD 2.0", "f1", 384, 16, 500, 2),
    "conll2003": ("CoNLL-2003", "entity_f1", 128, 32, 200, 9),
    "cifar10": ("CIFAR-10", "accuracy", None, 64, 100, 10),
}
CLASSIFY = {name: task for name, task in TASKS.items() if task.head is TEXT_CLASSIFICATION}
every_classification = pytest.mark.parametrize("task", CLASSIFY.values(), ids=CLASSIFY)


def logits_of(classes, num_labels=2):
    return np.eye(num_labels, dtype=np.float32)[np.asarray(classes)]


def confusion(labels, predicted):
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    pairs = ((1, 1), (0, 0), (0, 1), (1, 0))  # true positive, true negative, false positive, false negative
    return [float(((labels == true) & (predicted == said)).sum()) for true, said in pairs]


def ranks(values):
    """Rank of every value, ties at the mean of the ranks they share."""
    return np.array([(np.less(values, v).sum() + 1 + np.less_equal(values, v).sum()) / 2 for v in values])


def pearson(a, b):
    a, b = np.asarray(a, float) - np.mean(a), np.asarray(b, float) - np.mean(b)
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def f1_of(true, given):
    hits = sum(t and g for t, g in zip(true, given, strict=True))
    return 2 * hits / (sum(true) + sum(given)) if hits else 0.0


def test_class_scores():
    labels, predicted = [0, 1, 2, 2, 1, 0], [0, 1, 1, 2, 1, 1]  # class 3 is neither true nor predicted
    scores = class_scores(logits_of(predicted, 4), np.array(labels))
    each = [f1_of([label == c for label in labels], [p == c for p in predicted]) for c in range(3)]
    assert scores == pytest.approx({"accuracy": 4 / 6, "macro_f1": sum(each) / 3})


def test_multi_label_scores():
    logits = np.array([[2.0, -1.0, 0.0], [1.0, 3.0, -2.0], [-1.0, -1.0, -1.0], [4.0, -1.0, -1.0]])
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]])
    given = [[value > 0 for value in row] for row in logits.tolist()]
    each = [f1_of(labels[:, c].tolist(), [row[c] for row in given]) for c in range(3)]
    flat = f1_of(labels.ravel().tolist(), [value for row in given for value in row])
    scores = multi_label_scores(logits, labels.astype(np.float32))
    assert scores == pytest.approx({"micro_f1": flat, "macro_f1": sum(each) / 3, "subset_accuracy": 0.5})


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[1.0, np.nan]], [[1, 0]], "1 of 1 rows have NaN"),
        ([[1.0, 2.0]], [[1, 2]], "0 or 1"),
        ([[1.0, 2.0]], [1], "shape"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "shape"),
    ],
)
def test_what_has_no_multi_label_score(logits, labels, message):
    with pytest.raises(TrituneError, match=message):
        multi_label_scores(np.array(logits), np.array(labels))


def test_table_is_complete():
    assert list(TASKS) == list(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_table_row(name):
    task = get_task(name)
    row = (task.title, task.metric, task.max_length, task.batch_size, task.eval_steps, task.num_labels)
    assert row == ROWS[name]
    assert task.name == name
    assert task.is_regression == (task.labels is None) == (name in ("stsb", "features"))
    columns = {"cola": 1, "sst2": 1, "demo": 1, "conll2003": 1, "cifar10": 0}
    assert len(task.text_columns) == columns.get(name, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.max_length = 1


def test_label_order_is_the_hub_data_sets():
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert TASKS["qnli"].labels == TASKS["rte"].labels == ("entailment", "not_entailment")
    assert TASKS["wnli"].labels == ("not_entailment", "entailment")
    assert TASKS["cola"].labels == TASKS["demo"].labels == ("unacceptable", "acceptable")


def test_dev_splits():
    assert TASKS["mnli"].dev_splits == ("validation_matched", "validation_mismatched")
    assert all(task.dev_splits == ("validation",) for name, task in TASKS.items() if name not in ("mnli", "cifar10"))
    assert TASKS["cifar10"].dev_splits == ("test",)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_get_task_takes_both_spellings_in_any_case(task):
    for spelling in (task.name, task.title, task.name.upper(), task.title.lower(), f" {task.title} "):
        assert get_task(spelling) is task
    assert get_task("sts_b") is TASKS["stsb"]


def test_unknown_task_lists_the_known_and_suggests():
    with pytest.raises(TrituneError, match=r"no task 'MNLY': did you mean 'mnli'\? known tasks are cola, .*cifar10"):
        get_task("MNLY")
    with pytest.raises(TrituneError) as error:
        get_task("translation")
    assert "did you mean" not in str(error.value)
    assert "\n" not in str(error.value)


@every_classification
def test_perfect_predictions_score_one(task):
    labels = np.array([0.0, 2.5, 5.0, 1.0]) if task.is_regression else np.array([0, 1, 1, 0])
    predictions = labels[:, None] if task.is_regression else logits_of(labels, task.num_labels)
    scores = task.measure(predictions, labels)
    assert task.metric in scores
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0))
    assert all(type(value) is float for value in scores.values())


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40))
def test_classification_metrics_follow_their_formulas(pairs):
    labels, predicted = map(np.array, zip(*pairs, strict=True))
    tp, tn, fp, fn = confusion(labels, predicted)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    matthews = (tp * tn - fp * fn) / np.sqrt(product) if product else 0.0
    right = (tp + tn) / len(pairs)
    f1 = 2 * tp / (2 * tp + fp + fn) if tp else 0.0
    logits = logits_of(predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TASKS["cola"].measure(logits, labels) == pytest.approx({"matthews_correlation": matthews})
        assert TASKS["rte"].measure(logits, labels) == pytest.approx({"accuracy": right})
        expected = {"accuracy": right, "f1": f1, "mean_accuracy_f1": (right + f1) / 2}
        assert TASKS["qqp"].measure(logits, labels) == pytest.approx(expected)


def test_three_classes():
    scores = TASKS["mnli"].measure(logits_of([0, 1, 2, 2], 3), np.array([0, 1, 2, 0]))
    assert scores == {"accuracy": 0.75}


def test_correlations_follow_their_formulas_with_ties():
    labels = np.array([5.0, 3.8, 3.8, 0.0, 1.2, 3.8, 2.6])
    scores = np.array([4.1, 4.0, 2.0, 2.0, 2.0, 3.0, 3.5], dtype=np.float32)
    p, s = pearson(scores, labels), pearson(ranks(scores), ranks(labels))
    expected = {"pearson": p, "spearman": s, "mean_pearson_spearman": (p + s) / 2}
    assert TASKS["stsb"].measure(scores[:, None], labels) == pytest.approx(expected, abs=1e-12)
    assert TASKS["stsb"].measure(scores, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["cola", "mrpc", "stsb"])
@pytest.mark.parametrize("rows", [1, 6])
def test_constant_predictions_are_finite(name, rows):
    task, labels = TASKS[name], np.arange(rows) % 2
    predictions = np.full((rows, 1), 0.1, np.float32) if task.is_regression else logits_of(np.zeros(rows, int))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = task.measure(predictions, labels)
    assert np.isfinite(list(scores.values())).all()
    undefined = set(scores) - {"accuracy", "mean_accuracy_f1"}
    assert {name: scores[name] for name in undefined} == dict.fromkeys(undefined, 0.0)


@every_classification
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_logits_are_not_scored(task, bad):
    predictions = np.zeros((5, task.num_labels))
    predictions[[1, 4], 0] = bad
    with pytest.raises(TrituneError, match="2 of 5 rows have NaN or infinite logits"):
        task.measure(predictions, np.array([0, 1, 0, 1, 0]))


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(TrituneError, match=r"shape \(3, 2\) against labels \(2,\)"):
        TASKS["cola"].measure(np.zeros((3, 2)), np.zeros(2, int))
    with pytest.raises(TrituneError, match=r"shape \(0, 2\)"):
        TASKS["cola"].measure(np.zeros((0, 2)), np.zeros(0, int))
    with pytest.raises(TrituneError, match="2 of 3 labels are not class ids below 2"):
        TASKS["sst2"].measure(np.zeros((3, 2)), np.array([-1, 0, 2]))
    with pytest.raises(TrituneError, match="1 of 2 rows have NaN or infinite labels"):
        TASKS["stsb"].measure(np.zeros((2, 1)), np.array([1.0, np.nan]))
    with pytest.raises(TrituneError, match="one number per row, the predictions have 2"):
        TASKS["stsb"].measure(np.zeros((2, 2)), np.array([1.0, 2.0]))
    with pytest.raises(TrituneError, match="F1 needs two classes, the logits have 3"):
        TASKS["mrpc"].measure(np.zeros((2, 3)), np.array([1, 0]))
