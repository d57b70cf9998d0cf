"""What is asked for; can be checked without importing torch."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import TrituneError, check_among
from ..recipes.recipe import BALANCES, LONG_TEXTS
from ..tasks.names import KINDS
from ..tasks.task_file import content_sha256

EXPORTS = ("onnx", "dense")
# Of these a later call may ask for others: they do not change what is made of which rows.
_FREE = ("minutes", "max_bad_rows")


@dataclass(frozen=True)
class Request:
    """What is asked for; a compression can be continued by the same request only.

    Attributes:
        model: folder or hub name: a pretrained model, or a classifier with the file's labels.
        data: the file or folder, or the name of a data set on the hub.
        text_columns, label_column, group, time: columns by name, see `understood` and `split`.
        minutes: that everything may take.
        max_bad_rows: that may be set aside; None for 1 % and at least one.
        balance: of classes in the fine-tuning, a recipe's `balance`.
        long_texts: what is kept of texts that are too long, a recipe's `long_texts`.
        seed: of the parts, the training and the intervals.
        task: the kind of task, one of `names.KINDS`; None goes by the data.
        eval: pairs of texts with scores, for a sentence encoder.
    """

    model: str
    data: str | Path
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    group: str | None = None
    time: str | None = None
    minutes: float | None = None
    max_bad_rows: int | None = None
    seed: int = 42
    balance: str = "none"
    long_texts: str = "truncate"
    task: str | None = None
    eval: Path | None = None

    def __post_init__(self):
        if not (Path(self.data).exists() or on_hub(self.data)):
            raise TrituneError(f"{self.data}: there is no such file or folder")
        if self.eval is not None and not self.eval.is_file():
            raise TrituneError(f"{self.eval}: there is no such file")
        if self.task is not None and self.task not in KINDS:
            raise TrituneError(f"task: {self.task!r} is not one of {', '.join(KINDS)}")
        check_among(self, "balance", BALANCES)
        check_among(self, "long_texts", LONG_TEXTS)
        if self.minutes is not None and not self.minutes > 0:
            raise TrituneError(f"minutes: must not be negative or 0; got {self.minutes:g}")
        if self.max_bad_rows is not None and self.max_bad_rows < 0:
            raise TrituneError(f"max_bad_rows: must not be negative; got {self.max_bad_rows}")
        if not 0 <= self.seed < 2**32:
            raise TrituneError(f"seed: must be from 0 to {2**32 - 1}; got {self.seed}")

    def record(self) -> dict[str, Any]:
        """What a later run must ask for to go on."""
        columns = None if self.text_columns is None else list(self.text_columns)
        data = str(self.data) if on_hub(self.data) else content_sha256(Path(self.data).absolute())
        pairs = None if self.eval is None else content_sha256(self.eval.absolute())
        values = asdict(self) | {"data": data, "text_columns": columns, "eval": pairs}
        return {key: value for key, value in values.items() if key not in _FREE}


def on_hub(data: str | Path) -> bool:
    """Whether data can only be a data set of the hub: `owner/name`, where there is no such path.

    >>> on_hub("owner/name"), on_hub("rows/tickets.csv"), on_hub("../name"), on_hub("rows.csv")
    (True, False, False, False)
    """
    owner, _, name = str(data).partition("/")
    looks = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(data)) is not None and not Path(name).suffix
    return looks and not Path(owner).exists()


def check(max_loss: float | None, export: str | None) -> None:
    """Check what only `finished` uses; TrituneError says what is wrong with it."""
    if max_loss is not None and not max_loss >= 0:
        raise TrituneError(f"max_loss: must not be negative; got {max_loss}")
    if export is not None and export not in EXPORTS:
        raise TrituneError(f"export: {export!r} is not one of {', '.join(EXPORTS)}")
