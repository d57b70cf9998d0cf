"""What the file turned out to be: everything that is known before a model is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..checkpoints.load import load_config
from ..engine.answers import label_names
from ..errors import TrituneError
from ..tasks.heads import TEXT_CLASSIFICATION
from ..tasks.registry import Task, own_task
from ..tasks.table import write_table
from .columns import Table, understood
from .reading import check_few, read_messy
from .request import Request
from .splitting import DEV, TEST, TRAIN, Parts, split


@dataclass(frozen=True)
class Opened:
    """A file that was read and divided, and what the model needs: a teacher, or labels in the model's own order."""

    request: Request
    table: Table
    parts: Parts
    labels: tuple[str, ...] | None
    trains: bool

    def task(self, folder: Path, test: bool = False) -> Task:
        """The task of the parts that were written into a folder; of the test part alone for scores."""
        files = {"train": folder / f"{TRAIN}.csv", "validation": folder / f"{DEV}.csv"}
        if test:
            files = {"validation": folder / f"{TEST}.csv"}
        return own_task(
            TEXT_CLASSIFICATION.name,
            files,
            self.table.text_columns,
            self.table.label_column,
            problem=self.table.problem,
            labels=self.labels,
            metric=self.table.metric,
        )

    def write(self, folder: Path) -> None:
        """Write the parts as CSV files."""
        folder.mkdir(parents=True, exist_ok=True)
        for side, rows in self.parts.rows.items():
            cells: list[dict[str, Any]] = [
                dict(zip(self.table.text_columns, row.texts, strict=True)) | {self.table.label_column: row.label}
                for row in rows
            ]
            write_table(folder / f"{side}.csv", cells)

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows in each part."""
        return {side: len(rows) for side, rows in self.parts.rows.items()}


def opened_request(request: Request, say: Callable[[str], None]) -> Opened:
    """Read and divide the file, and say what it was taken for; nothing is written.

    Raises:
        TrituneError: the file cannot be used.
    """
    reading = read_messy(request.data)
    table = understood(reading, request.text_columns, request.label_column)
    check_few(table.remarks, len(table.examples), request.max_bad_rows, str(request.data))
    parts = split(table.examples, request.seed, request.group, request.time)
    labels = None if table.labels is None else tuple(table.labels)
    own = teacher_labels(load_config(request.model), labels)
    for line in _described(table, parts):
        say(line)
    trains = own is None
    say(
        f"{request.model} is fine-tuned first: it is no classifier with these labels"
        if trains
        else f"{request.model} is a teacher with these labels: it is distilled as it is"
    )
    if request.long_texts != "truncate" and len(table.text_columns) > 1:
        raise TrituneError(f"--long {request.long_texts}: is for single texts, and these are pairs; leave it out")
    say_balance(request, table, trains, say)
    return Opened(request, table, parts, labels if trains or labels is None else own, trains)


def say_balance(request: Request, table: Table, trains: bool, say: Callable[[str], None]) -> None:
    """Say how much rare classes count, where they are rare or that is asked for.

    Raises:
        TrituneError: it is asked for, and there are no classes or nothing is fine-tuned on them.
    """
    if request.balance == "none":
        if trains and table.metric:
            say("--balance weights or sampling would let rare classes count as much as frequent ones")
    elif table.labels is None:
        raise TrituneError(f"--balance: {table.label_column!r} holds scores, no classes to balance; leave it out")
    elif not trains:
        raise TrituneError(
            f"--balance: {request.model} is a teacher already, and its student learns from its answers, not from the "
            "labels; leave it out"
        )
    else:
        say(f"rare classes count as much as frequent ones in the fine-tuning ({request.balance})")


def teacher_labels(config: PreTrainedConfig, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The labels of a classifier in its own order if they are those of a file; else None. Of scores it is ().

    A model without names of labels knows whole numbers below their count.
    """
    if not any("SequenceClassification" in name for name in config.architectures or ()):
        return None
    if labels is None:
        return () if config.num_labels == 1 else None
    if config.problem_type in ("multi_label_classification", "regression"):
        return None
    names = label_names(config.id2label)
    generic = names == tuple(f"LABEL_{index}" for index in range(len(names)))
    if generic and labels == tuple(map(str, range(len(names)))):
        return names
    return names if sorted(names) == sorted(labels) else None


def _described(table: Table, parts: Parts) -> list[str]:
    reading = table.reading
    form = ", ".join(filter(None, (reading.encoding, reading.delimiter)))
    lines = [f"{reading.file}: {len(table.examples)} rows{f' ({form})' * bool(form)}"]
    texts = sorted(sum(map(len, example.texts)) for example in table.examples)
    lengths = f"{texts[len(texts) // 2]} characters in the middle, {texts[-1]} at most"
    lines.append(f"text: {', '.join(table.text_columns)}; {lengths}")
    if table.labels is None:
        scores = [float(example.label) for example in table.examples]
        lines.append(f"label: {table.label_column}, a score from {min(scores):g} to {max(scores):g}")
    else:
        counts = [f"{name} {count}" for name, count in list(table.labels.items())[:20]]
        more = f", and {len(table.labels) - 20} more" if len(table.labels) > 20 else ""
        lines.append(f"label: {table.label_column}, {len(table.labels)} classes: {', '.join(counts)}{more}")
    if table.metric:
        lines.append(f"classes are skewed: {table.metric} selects, accuracy is shown beside it")
    lines += table.notes
    for kept, what in ((False, "rows cannot be used"), (True, "rows have a text that has another label elsewhere")):
        if found := [remark for remark in table.remarks if remark.kept is kept]:
            lines.append(f"{len(found)} {what}, such as line {found[0].line}: {found[0].reason}")
    counts = [f"{len(rows)} {side}" for side, rows in parts.rows.items()]
    late = f"; {len(parts.left_out)} left out, whose text or group is in an earlier part" if parts.left_out else ""
    return [*lines, f"parts: {', '.join(counts)}{late}"]
