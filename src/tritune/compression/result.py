"""A finished compression: its table, its picture, and the model that ships."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..errors import TrituneError, readable
from ..inference.predict import answering_head, predict_images, predict_rows
from .ladder import Tried, plot_sizes

MODEL = "model"
# What is timed, where that is no text.
_INPUTS = {
    "image-classification": "image",
    "question-answering": "window of a context",
    "token-classification": "sentence",
}


@dataclass(frozen=True)
class Compressed:
    """A finished compression.

    Attributes:
        folder: of everything that was made; the model that ships is in its `model/`.
        metrics: the content of `metrics.json`.
        figure: size against score of every student that was tried.
    """

    folder: Path
    metrics: dict[str, Any]
    figure: Figure = field(repr=False)

    def table(self) -> list[list[str]]:
        """The result as rows of a table, the header first."""
        return table_of(self.metrics)

    def plot(self) -> Figure:
        """Size against dev score of every student that was tried."""
        return self.figure

    def predict(self, inputs: Sequence[Any] | str | Path) -> list[Any]:
        """The shipped model's answers.

        Args:
            inputs: texts or pairs of texts; lists of words; pairs of question and context; or, for an image classifier,
                a folder, an image or a parquet file.

        Returns:
            One answer each: a label, several, a score, the tags of words, a vector (all as lists), or, of a question,
            a dictionary with the `answer` and its `score`.
        """
        model = self.folder / MODEL
        if isinstance(inputs, str | Path):
            return [row["prediction"] for row in predict_images(model, inputs)]
        if not inputs:
            return []
        names = answering_head(model).asked
        cells = [(one,) if len(names) == 1 or isinstance(one, str) else one for one in inputs]
        rows = [dict(zip(names, row, strict=False)) for row in cells]
        answers = [{key: value for key, value in row.items() if key not in names} for row in predict_rows(model, rows)]
        return [answer if len(answer) > 1 else next(iter(answer.values())) for answer in answers]

    def save(self, folder: str | Path) -> None:
        """Copy the shipped model to a new folder; TrituneError if there is one."""
        if Path(folder).exists():
            raise TrituneError(f"{folder}: exists already; give a new folder")
        shutil.copytree(self.folder / MODEL, folder)


def table_of(metrics: dict[str, Any]) -> list[list[str]]:
    """The result as rows of a table, the header first: scores are percentages with their 95 % intervals."""
    models = metrics["teacher"], metrics["student"]
    rows = [["on the test part", "teacher", "student"]]
    for name in metrics["teacher"]["scores"]:
        cells = [_percent(one["scores"][name], one["intervals"][name]) for one in models]
        rows.append([name.replace("_", " "), *cells])
    points, (low, high) = metrics["loss"]["points"], metrics["loss"]["interval"]
    rows.append(["points lost", "", f"{points:.1f} ({low:.1f} to {high:.1f})"])
    if "agreement" in metrics["closeness"]:
        rows.append(["same answer as the teacher", "", f"{100 * metrics['closeness']['agreement']:.1f}"])
    if "lines" in metrics:
        rows.append(["cosine to teacher, own texts", "", f"{100 * metrics['lines']['cosine_to_teacher']:.1f}"])
    rows.append(["size", *(readable(one["size_bytes"]) for one in models)])
    rows.append([f"ms per {input_of(metrics)}", *(f"{one['latency_ms']:.1f}" for one in models)])
    return rows


def input_of(metrics: dict[str, Any]) -> str:
    """What is timed: what a model takes at once."""
    return _INPUTS.get(metrics["task"], "text")


def figure_of(metrics: dict[str, Any], folder: Path) -> Figure:
    """Size against dev score of every student that was tried, from the record in `metrics.json`.

    Args:
        metrics: its content.
        folder: of the compression.
    """
    ships = [entry["ships"] for entry in metrics["tried"]].index(True)
    kept = [{key: value for key, value in entry.items() if key != "ships"} for entry in metrics["tried"]]
    tried = [Tried(**entry | {"folder": folder / entry["folder"]}) for entry in kept]
    aim = tried[0].score + tried[0].loss / 100
    return plot_sizes(tried, tried[ships], aim, metrics["metric"], metrics["max_loss"])


def _percent(score: float, interval: Sequence[float]) -> str:
    return f"{100 * score:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
