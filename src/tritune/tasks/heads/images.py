"""Labelled images from a folder, a parquet file or the hub, decoded by Pillow through `datasets.Image`.

Images stay encoded in memory or on disk and are decoded when a batch needs them; that all of them can be decoded is
found out before anything is trained. A folder is read here and not by `datasets`' imagefolder, which takes classes
named "train" or "test" for splits and drops the labels where there is a single one.
"""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as Pillow

from ...checkpoints.hub import load_dataset
from ...errors import TrituneError, first_line, shown
from ...progress import tracked
from ..table import listed
from .labels import advice_on, id_of

IMAGE, LABEL = "image", "label"
# The columns that are looked for where none is of the type `Image`.
_KNOWN_COLUMNS = ("image", "img")
# Modes of Pillow whose pixels have no range that could be scaled to that of colours.
_NO_RANGE = {"I": "integers of 32 bits", "F": "floats", "LAB": "Lab colours"}
# What the dev split of a hub data set may be called, best first.
_DEV_SPLITS = ("validation", "valid", "val", "dev", "test")


def image_files(folder: Path) -> list[Path]:
    """The files below `folder` whose ending Pillow knows, sorted and not hidden; TrituneError if there is none."""
    known = Pillow.registered_extensions()
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    files = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    images = [path for path in files if path.suffix.lower() in known]
    if not images:
        raise TrituneError(f"{folder}: holds no images")
    if others := len(files) - len(images):
        warnings.warn(f"{folder}: {others} files that are no images were left out", stacklevel=2)
    return images


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted, but for hidden ones and the one that macOS adds to archives."""
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(name for name in names if not name.startswith(".") and name != "__MACOSX")


def read_labelled(source: str | Path, split: str, column: str | None, label_column: str | None) -> Dataset:
    """Images with labels as they are, not verified: the columns `image` (`datasets.Image`) and `label`.

    Args:
        source: a folder with one folder per class, a parquet file, or the name of a data set on the hub.
        split: "train" or another; only the hub has several.
        column, label_column: of the table; None looks for the images, and for "label".

    Raises:
        TrituneError: the source or a column cannot be used.
    """
    path = Path(source)
    if path.is_dir():
        return _read_folder(path)
    rows = read_parquet(path) if path.is_file() else _read_hub(source, split)
    return with_label(rows, column, label_column, str(source))


def checksums(rows: Dataset) -> list[str]:
    """Of every image in the column `image`, that of its file's bytes."""
    files = rows.cast_column(IMAGE, Image(decode=False))[IMAGE]
    contents = (file["bytes"] or Path(file["path"]).read_bytes() for file in files)
    return [hashlib.sha256(content).hexdigest() for content in contents]


def with_label(rows: Dataset, column: str | None, label_column: str | None, where: str) -> Dataset:
    """Two columns of a table, named `image` and `label`, see `read_labelled`."""
    column, label_column = image_column(rows, column, where), label_column or LABEL
    if label_column not in rows.column_names:
        raise TrituneError(f"{where}: no column {label_column!r}; there are {', '.join(rows.column_names)}")
    rows = rows.select_columns([column, label_column])
    return rows.rename_columns({old: new for old, new in ((column, IMAGE), (label_column, LABEL)) if old != new})


def _read_folder(folder: Path) -> Dataset:
    classes = class_folders(folder)
    if not classes:
        raise TrituneError(f"{folder}: must contain one folder per class, but contains none")
    rows = [{IMAGE: str(path), LABEL: name} for name in classes for path in image_files(folder / name)]
    return Dataset.from_list(rows, features=Features({IMAGE: Image(), LABEL: ClassLabel(names=classes)}))


def read_parquet(path: Path) -> Dataset:
    """The rows of a parquet file, in memory, with the types that `datasets` may have written into it.

    Raises TrituneError if it is not such a file, or holds no rows.
    """
    if path.suffix != ".parquet":
        raise TrituneError(f"{path}: images are taken from a folder or a .parquet file")
    try:
        rows = Dataset(pyarrow.parquet.read_table(path))
    except Exception as error:  # of a damaged file, pyarrow and datasets say so in types of their own
        raise TrituneError(f"{path}: not a parquet file that can be read ({first_line(error)})") from None
    if not len(rows):
        raise TrituneError(f"{path}: holds no rows")
    return rows


def _read_hub(source: str | Path, split: str) -> Dataset:
    name = Path(source).as_posix()
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).suffix == ".parquet":
        raise TrituneError(f"{source}: there is no such file or folder")
    try:
        loaded: DatasetDict = load_dataset(name)
    except Exception as error:  # the network, the cache and the hub's client each fail with types of their own
        raise TrituneError(
            f"{source}: no such file or folder, and no data set of the hub that can be loaded ({first_line(error)})"
        ) from None
    names = _DEV_SPLITS if split == "validation" else (split,)
    found = next((one for one in names if one in loaded), None)
    if found is None:
        raise TrituneError(f"{source}: has no split {split!r}; there are {', '.join(loaded)}")
    return loaded[found]


def image_column(rows: Dataset, wanted: str | None, where: str) -> str:
    """The column of the images: the one wanted, the only one of the type `Image`, or a usual one; else TrituneError."""
    typed = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    usual = [name for name in _KNOWN_COLUMNS if name in rows.column_names]
    found = wanted or next(iter(typed if len(typed) == 1 else usual), None)
    if found is None or found not in rows.column_names:
        missing = f"no column {found!r}" if found else "say which column holds the images"
        raise TrituneError(f"{where}: {missing}; there are {', '.join(rows.column_names)}")
    return found


def label_names(rows: Dataset, where: str) -> tuple[str, ...]:
    """The names of the labels: those of a ClassLabel in its order, else all values that occur, sorted.

    Raises TrituneError if the labels are neither whole numbers nor text, or there is only one.
    """
    feature = rows.features[LABEL]
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
    else:
        values = rows[LABEL]
        for number, value in enumerate(values, 1):
            known = type(value) in (int, str) or (type(value) is float and value % 1 == 0)
            if not known or isinstance(value, str) is not isinstance(values[0], str):
                raise TrituneError(
                    f"{where}, row {number}: labels must be all whole numbers or all text; got {shown(value)}"
                )
        names = tuple(_spelt(value) for value in sorted(set(values)))
    if len(names) < 2:
        raise TrituneError(f"{where}: has {len(names)} label; a classifier needs at least two")
    return names


def spelt_labels(rows: Dataset) -> set[str]:
    """The labels of `read_labelled` as text: the names of a ClassLabel, else the values that occur."""
    feature = rows.features[LABEL]
    if isinstance(feature, ClassLabel):
        return set(feature.names)
    return {_spelt(value) for value in rows[LABEL] if value is not None}


def _spelt(label: Any) -> str:
    """A label as text; pandas makes floats of ids where one is missing."""
    return str(int(label)) if isinstance(label, float) and label % 1 == 0 else str(label)


def labelled(rows: Dataset, names: Sequence[str], where: str, by_id: bool = False) -> Dataset:
    """Rows of `read_labelled` with every image decodable, and every label a `ClassLabel` of `names` in id order.

    With `by_id` whole numbers are ids of those labels.

    Raises TrituneError, naming file or row, if an image cannot be decoded or a label is not among `names`.
    """
    feature = rows.features[LABEL]
    given = rows[LABEL]
    if isinstance(feature, ClassLabel):
        given = [feature.names[value] if value is not None and value >= 0 else None for value in given]
    ids = {name: None if name is None else id_of(_spelt(name), names, by_id) for name in set(given)}
    for number, name in enumerate(given, 1):
        if ids[name] is None:
            what = "no label" if name is None else f"the label {shown(name)}, which is not in the training data"
            raise TrituneError(f"{where}, row {number}: {what}; known are {listed(names)}; {advice_on(names)}")
    numbers = [ids[name] for name in given]
    rows = rows.remove_columns(LABEL).add_column(LABEL, numbers, feature=ClassLabel(names=list(names)))
    return verified(rows, where)


def verified(rows: Dataset, where: str) -> Dataset:
    """Rows whose column `image`, of encoded bytes or paths, has the type `Image`, once every image was decoded.

    Raises TrituneError, naming file or row, if the column holds something else, or an image cannot be decoded or has
    pixels without a known range.
    """
    if not isinstance(rows.features[IMAGE], Image):
        try:
            rows = rows.cast_column(IMAGE, Image())
        except Exception as error:  # pyarrow and datasets each fail with types of their own
            raise TrituneError(f"{where}: its image column holds no images ({first_line(error)})") from None
    for number in tracked(range(len(rows)), f"verify the images of {where}", len(rows), "images"):
        if wrong := what_is_wrong(partial(_image_at, rows, number)):
            raise TrituneError(f"{_place(rows, number, where)}: {wrong}")
    return rows


def _image_at(rows: Dataset, number: int) -> Pillow.Image | None:
    return rows[number][IMAGE]


def what_is_wrong(load: Callable[[], Pillow.Image | None]) -> str:
    """Why an image that `load` decodes cannot be used; "" if it can."""
    try:
        image = load()
    except Exception as error:  # Pillow's own types, and whatever a damaged file makes of its numbers
        return f"not an image that can be decoded ({first_line(error)}); replace it"
    if image is None:
        return "there is no image; fill it in or drop the row"
    if image.mode in _NO_RANGE:
        return f"its pixels are {_NO_RANGE[image.mode]}, whose black and white are not known; save it with 8 or 16 bits"
    return ""


def _place(rows: Dataset, number: int, where: str) -> str:
    """What a message calls the image of a row."""
    path = (rows.cast_column(IMAGE, Image(decode=False))[number][IMAGE] or {}).get("path")
    return path if path and Path(path).is_file() else f"{where}, row {number + 1}"


def eight_bits(image: Pillow.Image) -> Pillow.Image:
    """An image whose pixels have 8 bits: of 16, the range from 0 to 65535 is scaled to that from 0 to 255.

    Pillow's own `convert` cuts off at 255, which makes almost all of a 16-bit image white.
    """
    if not image.mode.startswith("I;16"):
        return image
    return Pillow.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))


def unlabelled(source: str | Path) -> tuple[Dataset, list[dict[str, Any]]]:
    """Images to answer for, verified, and what to call each: `file` (below the folder), or `row`, counted from 1.

    `source` is a folder with images at any depth, one image file, or a parquet file. Raises TrituneError if there are
    none or one cannot be decoded.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".parquet":
        rows = read_parquet(path)
        column = image_column(rows, None, str(path))
        rows = rows.select_columns([column]).rename_columns({column: IMAGE} if column != IMAGE else {})
        return verified(rows, str(path)), [{"row": row + 1} for row in range(len(rows))]
    if not path.exists():
        raise TrituneError(f"{path}: there is no such file or folder")
    files = image_files(path) if path.is_dir() else [path]
    images = Dataset.from_dict({IMAGE: [str(file) for file in files]}, features=Features({IMAGE: Image()}))
    return verified(images, str(path)), [
        {"file": str(file.relative_to(path)) if path.is_dir() else str(file)} for file in files
    ]
