"""What the file turned out to be: everything that is known before a model is loaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.load import load_config
from ..errors import TrituneError, number_of
from ..tasks.data.splitting import TRAIN, Label, Parts, split
from ..tasks.registry import Task
from ..tasks.table import listed
from .forms import read_data
from .kinds import kind_of
from .reading import check_few
from .request import Request
from .table import Table


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
        return self.table.task(folder, self.labels, test)

    def write(self, folder: Path) -> None:
        """Write the parts."""
        folder.mkdir(parents=True, exist_ok=True)
        for side, rows in self.parts.rows.items():
            self.table.write(folder, side, rows)

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows in each part."""
        return {side: len(rows) for side, rows in self.parts.rows.items()}


def opened_request(request: Request, say: Callable[[str], None]) -> Opened:
    """Read and divide the file, and say what it was taken for; nothing is written.

    Raises:
        TrituneError: the file cannot be used.
    """
    reading = read_data(request.data, request.task)
    kind = kind_of(reading, request.task)
    if request.eval is not None and not kind.takes_pairs:
        raise TrituneError(f"eval: pairs are for sentence encoders; the data is for {kind.task_kind}")
    table = kind.of(reading, request)
    check_few(table.remarks, len(table.examples), request.max_bad_rows, str(request.data))
    parts = split(table.examples, request.seed, request.group, request.time)
    config = load_config(request.model)
    if getattr(config, "quantization_config", None) is not None:
        raise TrituneError(f"{request.model}: quantized already; give a float model, such as its teacher")
    own = table.teacher(config)
    for line in _described(table, parts):
        say(line)
    if own is None:
        say(f"{request.model} is fine-tuned first: it is no {table.teacher_is}")
    else:
        say(f"{request.model} is a {table.teacher_is}: it is distilled as it is")
    if request.long_texts != "truncate" and not table.is_single_text:
        raise TrituneError(f"--long {request.long_texts}: is for classes and scores of single texts; leave it out")
    say_balance(request, table, own is None, say)
    labels = own or (None if table.labels is None else tuple(table.labels))
    return Opened(request, table, parts, labels, own is None)


def say_balance(request: Request, table: Table, trains: bool, say: Callable[[str], None]) -> None:
    """Say how much rare classes count, where they are rare or that is asked for.

    Raises:
        TrituneError: it is asked for, and there are no classes or nothing is fine-tuned on them.
    """
    if request.balance == "none":
        if trains and table.metric == "macro_f1":
            say("--balance weights or sampling would let rare classes count as much as frequent ones")
    elif not table.has_classes:
        raise TrituneError("--balance: there is no class for every row that could be balanced; leave it out")
    elif not trains:
        raise TrituneError(
            f"--balance: {request.model} is a teacher already, and its student learns from its answers, not from the "
            "labels; leave it out"
        )
    else:
        say(f"rare classes count as much as frequent ones in the fine-tuning ({request.balance})")


def _described(table: Table, parts: Parts) -> list[str]:
    reading = table.reading
    form = ", ".join(filter(None, (reading.encoding, reading.delimiter)))
    count = f"{number_of(len(table.examples), table.rows_are)}{f' ({form})' * bool(form)}"
    lines = [f"{reading.file}: {count}, taken for {table.task_kind}; --task says another kind"]
    lines += [*table.described(), *table.notes]
    for kept, what in ((False, "cannot be used"), (True, f"have {table.input_is} that has another label elsewhere")):
        if found := [remark for remark in table.remarks if remark.kept is kept]:
            count = number_of(len(found), table.rows_are)
            lines.append(f"{count} {what}, such as {found[0].place}: {found[0].reason}")
    counts = [f"{len(rows)} {side}" for side, rows in parts.rows.items()]
    late = f"; {len(parts.left_out)} left out, whose text or group is in an earlier part" if parts.left_out else ""
    lines.append(f"parts: {', '.join(counts)}{late}")
    labels = {side: {name for row in rows for name in _labels(row.label)} for side, rows in parts.rows.items()}
    if table.labels and (missing := sorted(set().union(*labels.values()) - labels[TRAIN])):
        lines.append(f"the train part has no row with the label {listed(missing)}, so that it cannot be learned")
    return lines


def _labels(label: Label) -> Sequence[Label]:
    return label if isinstance(label, tuple) else (label,)
