"""Images with a class each."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import ClassLabel, Features, Image
from PIL import Image as Pillow
from transformers import PreTrainedConfig

from ...checkpoints.files import replace_file
from ...errors import TrituneError
from ...tasks.data.splitting import Example
from ...tasks.heads.images import IMAGE, LABEL, what_is_wrong
from ...tasks.table import listed
from ..reading import Reading, Remark
from ..request import Request
from ..table import Table, check_columns, classes_line, conflicts, counted, teacher_labels


@dataclass(frozen=True)
class Images(Table):
    """Images of a folder, of Parquet or of the hub; as `datasets` keeps them, by their bytes or their path."""

    task_kind = "image-classification"
    rows_are = "images"
    input_is = "a copy"
    ending = ".parquet"

    @classmethod
    def fits(cls, reading: Reading) -> bool:
        """A column of images."""
        return _image_column(reading) is not None

    @classmethod
    def of(cls, reading: Reading, request: Request) -> "Images":
        """The images that can be decoded and have a class."""
        wanted = request.text_columns or (_image_column(reading) or IMAGE,)
        column, label = wanted[0], request.label_column or LABEL
        if len(wanted) > 1:
            raise TrituneError(f"--text-columns: one column holds the images, got {listed(wanted)}")
        check_columns(reading, [column, label])
        remarks, examples = list(reading.remarks), []
        for row in reading.rows:
            name = row.cells.get(label)
            try:
                content = _content(row.cells[column])
            except OSError as error:
                remarks.append(Remark(row.line, False, f"cannot be read ({error.strerror})"))
                continue
            if name is None or not str(name).strip():
                remarks.append(Remark(row.line, False, f"no label in {label!r}"))
            elif wrong := what_is_wrong(partial(_decoded, content)):
                remarks.append(Remark(row.line, False, wrong))
            else:
                cells = row.cells | {IMAGE: row.cells[column]}
                examples.append(Example(row.line, (hashlib.sha256(content).hexdigest(),), str(name), cells))
        labels = counted(example.label for example in examples)
        if len(labels) < 2:
            first = f"; {remarks[0].place}: {remarks[0].reason}" if remarks else ""
            raise TrituneError(f"{reading.file}: images of {len(labels)} class; at least two are needed{first}")
        remarks += conflicts(examples, "image")
        return cls(reading, examples, remarks, list(reading.notes), labels)

    def described(self) -> list[str]:
        """The classes."""
        return [f"images: {classes_line(self.labels or {})}"]

    def teacher(self, config: PreTrainedConfig) -> tuple[str, ...] | None:
        """See `teacher_labels`."""
        return teacher_labels(config, tuple(self.labels or ()), "ImageClassification")

    @property
    def columns(self) -> dict[str, Any]:
        """Those of the parts are the usual ones."""
        return {}

    @property
    def has_classes(self) -> bool:
        """One an image."""
        return True

    def legible(self, example: Example) -> tuple[str, ...]:
        """Nothing: a checksum tells images apart, its place names it."""
        return ()

    def write(self, folder: Path, side: str, rows: Sequence[Example]) -> None:
        """As Parquet, with the bytes of every image."""
        features = Features({IMAGE: Image(), LABEL: ClassLabel(names=list(self.labels or ()))})
        ids = {name: number for number, name in enumerate(self.labels or ())}
        columns = {
            IMAGE: [{"bytes": _content(row.cells[IMAGE]), "path": None} for row in rows],
            LABEL: [ids[row.label] for row in rows],
        }
        with replace_file(self.file(folder, side)) as partial:
            pyarrow.parquet.write_table(pyarrow.Table.from_pydict(columns, schema=features.arrow_schema), partial)


def _image_column(reading: Reading) -> str | None:
    """The first column whose cells are images as `datasets` keeps them."""
    for column in reading.columns:
        if any(
            isinstance(cell := row.cells.get(column), dict) and {*cell} == {"bytes", "path"} for row in reading.rows
        ):
            return column
    return None


def _content(cell: Any) -> bytes:
    """The bytes of an image; none of what is no image."""
    if not isinstance(cell, dict):
        return b""
    return cell.get("bytes") or Path(cell.get("path") or "").read_bytes()


def _decoded(content: bytes) -> Pillow.Image:
    try:
        image = Pillow.open(io.BytesIO(content))
    except Pillow.UnidentifiedImageError:  # whose own message names the buffer
        raise ValueError("the file is of no known format" if content else "the file is empty") from None
    image.load()
    return image
