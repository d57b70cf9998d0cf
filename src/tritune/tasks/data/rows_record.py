"""What tells the rows of one run from those of another: how many a split has, and a hash of what they hold.

`datasets` has fingerprints of its own, which follow from paths, cache files and the functions applied. Hashed here are
the values alone, so the same rows have the same hash on every machine, in one table or in slices of many.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image

# Part of the hash: columns are hashed by stretches of so many rows. Few, because they may be images.
_ROWS_AT_ONCE = 100
# `datasets` caches what it loads from the hub in a folder named after the commit.
_COMMIT = re.compile(r"[0-9a-f]{40}")


def rows_record(read: Mapping[str, Dataset], encoded: Mapping[str, Dataset]) -> dict[str, dict[str, Any]]:
    """What a run's record keeps of its rows.

    Args:
        read: every split as `load_task_data` gives it.
        encoded: the same splits as a model takes them, see `heads.EncodedData`.

    Returns:
        Split to `read` and `encoded`, each the `count` of its rows and their `sha256`; and to the `revision`, a commit
        of the hub's data set, where the rows lie as they were loaded from there.
    """
    record: dict[str, dict[str, Any]] = {}
    for split, rows in read.items():
        # Images are decoded when a batch needs them: until then they are as they were read.
        numbers = [name for name, kind in encoded[split].features.items() if not isinstance(kind, Image)]
        stages = {"read": rows, "encoded": encoded[split].select_columns(numbers)}
        record[split] = {stage: {"count": len(of), "sha256": rows_sha256(of)} for stage, of in stages.items()}
        if revision := _revision(rows):
            record[split]["revision"] = revision
    return record


def other_rows(earlier: Mapping[str, Any], now: Mapping[str, Any], stage: str) -> str:
    """Which split has other rows now, as part of a message; empty where all are the same.

    `earlier` and `now` are of `rows_record`, `stage` is `read` or `encoded`.

    >>> earlier, now = ({"train": {"read": {"count": n, "sha256": f"hash of {n}"}}} for n in (160, 99))
    >>> other_rows(earlier, now, "read")
    'train: 160 rows then, 99 now'
    """
    for split, record in now.items():
        then, today = earlier.get(split, {}).get(stage, {}), record[stage]
        if then.get("sha256") != today["sha256"]:
            others = "others " if then.get("count") == today["count"] else ""
            return f"{split}: {then.get('count', 'no')} rows then, {today['count']} {others}now"
    return ""


def selecting_rows(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """`count` and `sha256` of the dev rows, as read, that selected a run's best model; None if `metrics` lacks them."""
    try:
        read = next(record["read"] for split, record in metrics["rows"].items() if split != "train")
        return {"count": int(read["count"]), "sha256": str(read["sha256"])}
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError):
        return None


def rows_sha256(rows: Dataset) -> str:
    """A hash of the names and the values of all columns, row by row; of an image those of its file's bytes.

    The width of a number does not count, nor how a text or a list is stored, nor where a file lies.
    """
    names, digest = sorted(rows.column_names), hashlib.sha256()
    digest.update(repr(names).encode())
    for table in rows.with_format("arrow").iter(_ROWS_AT_ONCE):
        for name in names:
            column, kind = table[name].combine_chunks(), rows.features[name]
            _add(digest, kind.embed_storage(column).field("bytes") if isinstance(kind, Image) else column)
    return digest.hexdigest()


def _add(digest: Any, array: pa.Array) -> None:
    """The values of an array: which of them are null, then lists as their lengths and what they hold, and so on."""
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    kind = array.type
    digest.update(f"{len(array)} {array.null_count} ".encode())
    if array.null_count:
        digest.update(array.is_valid().to_numpy(zero_copy_only=False).tobytes())
    if pa.types.is_struct(kind):
        for name, child in sorted(zip(kind.names, array.flatten(), strict=True), key=lambda pair: pair[0]):
            digest.update(name.encode())
            _add(digest, child)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        _add(digest, pc.list_value_length(array))
        _add(digest, array.flatten())
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind):
        wide, order = (pa.float64(), "<f8") if pa.types.is_floating(kind) else (pa.int64(), "<i8")
        numbers = array.cast(wide, safe=False).fill_null(0).to_numpy(zero_copy_only=False)
        digest.update(numbers.astype(order, copy=False).tobytes())
    else:
        values = [value if isinstance(value, bytes) else str(value).encode() for value in array.to_pylist()]
        digest.update(np.array([len(value) for value in values], "<i8").tobytes() + b"".join(values))


def _revision(rows: Dataset) -> str | None:
    """The commit of the hub's data set that rows were loaded from, if they know it."""
    folders = {Path(file["filename"]).parent.name for file in rows.cache_files}
    return next((name for name in folders if len(folders) == 1 and _COMMIT.fullmatch(name)), None)
