"""What scores predictions: one function per metric of the task table, from logits and labels to named numbers."""

from collections.abc import Callable

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ..errors import TrituneError

Measure = Callable[[np.ndarray, np.ndarray], dict[str, float]]


def _checked(predictions: np.ndarray, labels: np.ndarray, multi_label: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Predictions `(batch, num_labels)` and labels as arrays, or TrituneError if they cannot be scored.

    Labels are `(batch,)`, with `multi_label` `(batch, num_labels)`.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.ndim == 1:
        predictions = predictions[:, None]
    rows = predictions.shape[:1]
    if predictions.ndim != 2 or labels.shape != (predictions.shape if multi_label else rows) or rows == (0,):
        raise TrituneError(f"cannot score predictions of shape {predictions.shape} against labels {labels.shape}")
    # argmax of a NaN row is a class like any other, so a diverged model would get a plausible score.
    for what, values in (("logits", predictions), ("labels", labels)):
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if bad.any():
            raise TrituneError(f"{bad.sum()} of {len(bad)} rows have NaN or infinite {what}: there is no score")
    return predictions, labels


def _classes(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true class ids, both `(batch,)`, or TrituneError if a row has no class."""
    predictions, labels = _checked(predictions, labels)
    unlabelled = ((labels < 0) | (labels >= predictions.shape[1])).sum()
    if unlabelled:
        raise TrituneError(f"{unlabelled} of {len(labels)} labels are not class ids below {predictions.shape[1]}")
    return predictions.argmax(axis=1), labels.astype(np.int64)


def _defined(correlation: Callable, first: np.ndarray, second: np.ndarray) -> float:
    """The correlation of two `(batch,)` arrays, 0.0 where it is undefined."""
    # A student that collapsed to one answer is a legitimate result of training: its correlation counts as none.
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    value = float(correlation(first, second))
    return value if np.isfinite(value) else 0.0


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share of rows whose largest logit is the label's.

    `predictions` are logits `(batch, num_labels)`, `labels` class ids `(batch,)`.

    Raises TrituneError for shapes that do not match, non-finite logits, or labels that are no class ids.

    >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    {'accuracy': 0.5}
    """
    predicted, labels = _classes(predictions, labels)
    return {"accuracy": float(accuracy_score(labels, predicted))}


def class_scores(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, and the plain mean of every class's F1 (`macro_f1`) over the classes that are true or predicted.

    Shapes and errors are those of `accuracy`.
    """
    predicted, classes = _classes(predictions, labels)
    macro = float(f1_score(classes, predicted, average="macro", zero_division=0.0))
    return accuracy(predictions, labels) | {"macro_f1": macro}


def multi_label_scores(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of sets of labels: a label is given where its sigmoid is above 0.5, which is a logit above 0.

    `predictions` are logits and `labels` zeros and ones, both `(batch, num_labels)`. `micro_f1` is the F1 of all
    decisions together; `macro_f1` the plain mean of every label's F1, 0 for a label that is neither true nor given
    anywhere; `subset_accuracy` the share of rows with every decision right.

    Raises TrituneError for shapes that do not match, non-finite logits, or labels other than 0 and 1.

    >>> multi_label_scores(np.array([[2.0, -1.0], [1.0, 3.0]]), np.array([[1, 0], [0, 1]]))["subset_accuracy"]
    0.5
    """
    predictions, labels = _checked(predictions, labels, multi_label=True)
    if not np.isin(labels, (0, 1)).all():
        raise TrituneError("a row's labels must be one 0 or 1 for each label")
    given, true = predictions > 0, labels.astype(bool)
    micro, macro = (float(f1_score(true, given, average=kind, zero_division=0.0)) for kind in ("micro", "macro"))
    return {"micro_f1": micro, "macro_f1": macro, "subset_accuracy": float((given == true).all(axis=1).mean())}


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Matthews correlation, CoLA's metric in GLUE (Wang et al., 2019); 0.0 where either side is constant.

    Shapes and errors are those of `accuracy`.
    """
    predicted, labels = _classes(predictions, labels)
    return {"matthews_correlation": _defined(matthews_corrcoef, labels, predicted)}


def mean_accuracy_f1(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, F1 of class 1, and their mean: MRPC and QQP in GLUE (Wang et al., 2019). F1 is 0.0 where undefined.

    Shapes and errors are those of `accuracy`; logits must be `(batch, 2)`.
    """
    predicted, labels = _classes(predictions, labels)
    if np.shape(predictions)[-1] != 2:
        raise TrituneError(f"F1 needs two classes, the logits have {np.shape(predictions)[-1]}")
    right = float(accuracy_score(labels, predicted))
    f1 = float(f1_score(labels, predicted, zero_division=0.0))
    return {"accuracy": right, "f1": f1, "mean_accuracy_f1": (right + f1) / 2}


def spearman(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Spearman's rank correlation, by which sentence encoders are compared (Reimers & Gurevych, 2019, section 4).

    0.0 where it is undefined; shapes and errors are those of `mean_pearson_spearman`.
    """
    return {"spearman": mean_pearson_spearman(predictions, labels)["spearman"]}


def mean_pearson_spearman(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Pearson and Spearman correlation and their mean: STS-B in GLUE (Wang et al., 2019); 0.0 where undefined.

    `predictions` are scores `(batch, 1)` or `(batch,)`, `labels` scores `(batch,)`.

    Raises TrituneError for shapes that do not match, more than one score per row, or non-finite values.
    """
    predictions, labels = _checked(predictions, labels)
    if predictions.shape[1] != 1:
        raise TrituneError(f"a regression score is one number per row, the predictions have {predictions.shape[1]}")
    scores, labels = predictions[:, 0].astype(np.float64), labels.astype(np.float64)
    pearson = _defined(lambda a, b: pearsonr(a, b).statistic, scores, labels)
    spearman = _defined(lambda a, b: spearmanr(a, b).statistic, scores, labels)
    return {"pearson": pearson, "spearman": spearman, "mean_pearson_spearman": (pearson + spearman) / 2}
