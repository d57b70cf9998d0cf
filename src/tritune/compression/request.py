"""What is asked for; can be checked without importing torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import TrituneError, check_among
from ..recipes.recipe import BALANCES, LONG_TEXTS
from ..tasks.task_file import content_sha256

EXPORTS = ("onnx", "dense")
# Of these a later call may ask for others: they do not change what is made of which rows.
_FREE = ("minutes", "max_bad_rows")


@dataclass(frozen=True)
class Request:
    """What is asked for; a compression can be continued by the same request only.

    Attributes:
        model: folder or hub name: a pretrained model, or a classifier with the file's labels.
        data: the file.
        text_columns, label_column, group, time: columns by name, see `understood` and `split`.
        minutes: that everything may take.
        max_bad_rows: that may be set aside; None for 1 % and at least one.
        balance: of classes in the fine-tuning, a recipe's `balance`.
        long_texts: what is kept of texts that are too long, a recipe's `long_texts`.
        seed: of the parts, the training and the intervals.
    """

    model: str
    data: Path
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    group: str | None = None
    time: str | None = None
    minutes: float | None = None
    max_bad_rows: int | None = None
    seed: int = 42
    balance: str = "none"
    long_texts: str = "truncate"

    def __post_init__(self):
        if not self.data.is_file():
            raise TrituneError(f"{self.data}: there is no such file")
        check_among(self, "balance", BALANCES)
        check_among(self, "long_texts", LONG_TEXTS)
        for name in ("minutes", "max_bad_rows", "seed"):
            value = getattr(self, name)
            if value is not None and (value < 0 or (name == "minutes" and value == 0)):
                raise TrituneError(f"{name}: must not be negative{' or 0' * (name == 'minutes')}; got {value}")

    def record(self) -> dict[str, Any]:
        """What a later run must ask for to go on."""
        columns = None if self.text_columns is None else list(self.text_columns)
        values = asdict(self) | {"data": content_sha256(self.data), "text_columns": columns}
        return {key: value for key, value in values.items() if key not in _FREE}


def check(max_loss: float | None, export: str | None) -> None:
    """Check what only `finished` uses; TrituneError says what is wrong with it."""
    if max_loss is not None and not max_loss >= 0:
        raise TrituneError(f"max_loss: must not be negative; got {max_loss}")
    if export is not None and export not in EXPORTS:
        raise TrituneError(f"export: {export!r} is not one of {', '.join(EXPORTS)}")
