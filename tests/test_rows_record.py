"""What a run keeps of its rows: the same rows have the same hash however they lie, and others have another."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    Features,
    Image,
    LargeList,
    Value,
    concatenate_datasets,
    load_from_disk,
)
from datasets import List as ListFeature
from PIL import Image as Pillow

from tritune.tasks.data.rows_record import other_rows, rows_record, rows_sha256, selecting_rows

COUNT = 250
FEATURES = Features(
    {
        "text": Value("string"),
        "ids": ListFeature(Value("int32")),
        "words": ListFeature(Value("string")),
        "spans": ListFeature(ListFeature(Value("int64"))),
        "score": Value("float32"),
        "flag": Value("bool"),
        "label": ClassLabel(names=["a", "b"]),
        "missing": Value("int64"),
    }
)


def values() -> dict[str, list]:
    """Columns of every kind: texts with and without letters, empty lists, nulls."""
    numbers = range(COUNT)
    return {
        "text": ["" if n % 7 == 0 else f"row {n} größer" for n in numbers],
        "ids": [list(range(n % 5)) for n in numbers],
        "words": [[f"w{i}" for i in range(n % 4)] for n in numbers],
        "spans": [[[n, n + 1]] * (n % 3) for n in numbers],
        "score": [n / 8 for n in numbers],
        "flag": [n % 3 == 0 for n in numbers],
        "label": [n % 2 for n in numbers],
        "missing": [None if n % 2 else n for n in numbers],
    }


def rows() -> Dataset:
    return Dataset.from_dict(values(), features=FEATURES)


def _mapped(found: Dataset) -> Dataset:
    """Rows in their order by way of a table of indices."""
    order = np.random.default_rng(0).permutation(COUNT)
    return found.select(order).select(np.argsort(order))


def _sliced(found: Dataset) -> Dataset:
    """Rows out of the middle of more of them."""
    return concatenate_datasets([found.select(range(37)), found, found]).select(range(37, 37 + COUNT))


def _wide(found: Dataset) -> Dataset:
    kinds = {"text": Value("large_string"), "ids": LargeList(Value("int64")), "score": Value("float64")}
    return found.cast(Features(found.features | kinds | {"label": Value("int8")}))


STORED = {
    "again": lambda found, folder: rows(),
    "in chunks": lambda found, folder: concatenate_datasets(
        [found.select(range(i, i + 50)) for i in range(0, COUNT, 50)]
    ),
    "row by row": lambda found, folder: concatenate_datasets([found.select([i]) for i in range(COUNT)]),
    "by indices": lambda found, folder: _mapped(found),
    "by indices of slices": lambda found, folder: _mapped(_sliced(found)),
    "a slice": lambda found, folder: _sliced(found),
    "wider numbers and offsets": lambda found, folder: _wide(found),
    "columns in another order": lambda found, folder: found.select_columns(sorted(found.column_names, reverse=True)),
    "with a format": lambda found, folder: found.with_format("torch"),
    "mapped anew": lambda found, folder: found.map(lambda batch: batch, batched=True, batch_size=7),
    "on disk": lambda found, folder: found.save_to_disk(folder, num_shards=3) or load_from_disk(folder),
    "in parquet": lambda found, folder: found.to_parquet(folder / "x") and Dataset.from_parquet(str(folder / "x")),
}


@pytest.mark.parametrize("how", STORED)
def test_rows_have_one_hash_however_they_are_stored(tmp_path, how):
    stored = STORED[how](rows(), tmp_path)
    assert len(stored) == COUNT
    assert rows_sha256(stored) == rows_sha256(rows())


def changed(column: str, row: int, value: object) -> Dataset:
    columns = values()
    columns[column][row] = value
    return Dataset.from_dict(columns, features=FEATURES)


CHANGES = {
    "a letter": lambda: changed("text", 249, "row 249 grösser"),
    "a token": lambda: changed("ids", 103, [0, 1, 3]),
    "a label": lambda: changed("label", 0, 1),
    "a score": lambda: changed("score", 17, 17 / 8 + 1e-6),
    "a flag": lambda: changed("flag", 1, True),
    "a null": lambda: changed("missing", 0, None),
    "no null": lambda: changed("missing", 1, 0),
    "an empty list": lambda: changed("words", 0, None),
    "a nested list": lambda: changed("spans", 2, [[2], [3, 2, 3]]),
    "a row less": lambda: rows().select(range(COUNT - 1)),
    "a row twice": lambda: rows().select([*range(COUNT), 0]),
    "two rows swapped": lambda: rows().select([1, 0, *range(2, COUNT)]),
    "a stretch moved": lambda: rows().select([*range(100, 200), *range(100), *range(200, COUNT)]),
    "a column less": lambda: rows().remove_columns("flag"),
    "a column's name": lambda: rows().rename_column("text", "sentence"),
    "two names swapped": lambda: rows().rename_columns({"label": "missing", "missing": "label"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_other_rows_have_another_hash(what):
    assert rows_sha256(CHANGES[what]()) != rows_sha256(rows())


@pytest.mark.parametrize(
    "pair",
    [
        ({"x": ["ab", "c"]}, {"x": ["a", "bc"]}),
        ({"x": [["ab"], ["c"]]}, {"x": [["a"], ["bc"]]}),
        ({"x": [[1, 2], [3]]}, {"x": [[1], [2, 3]]}),
        ({"x": [[[1], []], [[2]]]}, {"x": [[[1]], [[], [2]]]}),
        ({"x": [None, "a"]}, {"x": ["None", "a"]}),
        ({"x": [[], [1]]}, {"x": [None, [1]]}),
        ({"x": [{"a": 1, "b": 2}]}, {"x": [{"a": 2, "b": 1}]}),
        ({"x": [{"a": 1, "b": None}]}, {"x": [{"a": 1, "b": 0}]}),
        ({"x": [b"\xff\x00"]}, {"x": [b"\x00\xff"]}),
        ({"x": [datetime.date(2020, 1, 2)]}, {"x": [datetime.date(2020, 2, 1)]}),
        ({"x": ["1"]}, {"x": [1]}),
    ],
    ids=str,
)
def test_what_is_alike_but_not_the_same_is_told_apart(pair):
    one, other = map(Dataset.from_dict, pair)
    assert rows_sha256(one) != rows_sha256(other)
    assert rows_sha256(one) == rows_sha256(Dataset.from_dict(pair[0]))


def test_the_order_of_a_structure_s_fields_does_not_count():
    tables = [
        pa.table({"x": pa.array([{"a": 1, "b": "q"}], pa.struct([(name, kinds[name]) for name in names]))})
        for kinds in [{"a": pa.int64(), "b": pa.string()}]
        for names in ("ab", "ba")
    ]
    one, other = (Dataset(table) for table in tables)
    assert rows_sha256(one) == rows_sha256(other)


def test_arrays_of_fixed_shape():
    features = Features({"x": Array2D((2, 2), "float32")})
    one, same, other = (Dataset.from_dict({"x": [[[0, 1], [2, last]]]}, features=features) for last in (3.0, 3.0, 4.0))
    assert rows_sha256(one) == rows_sha256(same) != rows_sha256(other)


def test_the_hash_of_today_is_that_of_tomorrow():
    """Written down, because runs of every version and machine are compared by it."""
    assert rows_sha256(rows()) == "04a40c406af28a4b0c70d2aa9abceb46309e05b71c2f8a1ceaaf7e6121c5eccc"
    assert rows_sha256(rows().select([])) == "7f76281b9cd36b14ef176e683af150b16c0743440d400f8dc6938ac7b2445ae5"


def images(folder, colours=("red", "green", "blue")) -> Dataset:
    folder.mkdir()
    paths = [str(folder / f"{place}.png") for place in range(len(colours))]
    for path, colour in zip(paths, colours, strict=True):
        Pillow.new("RGB", (4, 4), colour).save(path)
    return Dataset.from_dict(
        {"image": paths, "label": [*range(len(colours))]},
        features=Features({"image": Image(), "label": ClassLabel(names=list(colours))}),
    )


def test_an_image_is_its_file_s_bytes_wherever_it_lies(tmp_path):
    here, there = images(tmp_path / "here"), images(tmp_path / "there")
    files = [{"bytes": path.read_bytes(), "path": None} for path in sorted((tmp_path / "there").iterdir())]
    embedded = Dataset.from_dict({"image": files, "label": there["label"]}, features=there.features)
    other = images(tmp_path / "other", ("red", "green", "black"))
    assert rows_sha256(here) == rows_sha256(there) == rows_sha256(embedded) != rows_sha256(other)


def test_the_record_of_two_splits(tmp_path):
    read = {"train": rows(), "validation": rows().select(range(9))}
    encoded = {split: part.select_columns(["ids", "label"]) for split, part in read.items()}
    record = rows_record(read, encoded)
    assert list(record) == ["train", "validation"]
    for split, part in read.items():
        assert record[split] == {
            "read": {"count": len(part), "sha256": rows_sha256(part)},
            "encoded": {"count": len(part), "sha256": rows_sha256(encoded[split])},
        }
    assert selecting_rows({"rows": record}) == record["validation"]["read"]


def test_the_revision_of_a_hub_s_rows_is_kept_and_does_not_count(tmp_path):
    commit = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
    rows().save_to_disk(tmp_path / commit)
    loaded = load_from_disk(tmp_path / commit)
    record, own = (rows_record({"train": found}, {"train": found}) for found in (loaded, rows()))
    assert record["train"].pop("revision") == commit
    assert record == own


def test_encoded_images_are_not_read_twice(tmp_path):
    found = images(tmp_path / "images")
    pixels = found.rename_columns({"image": "pixel_values", "label": "labels"})
    record = rows_record({"train": found}, {"train": pixels})
    assert record["train"]["encoded"]["sha256"] == rows_sha256(pixels.select_columns(["labels"]))


def test_the_split_that_differs_is_named():
    def record(train, dev):
        return {
            split: {"read": {"count": count, "sha256": f"{count} {text}"}}
            for split, (count, text) in {"train": train, "validation": dev}.items()
        }

    earlier = record((160, "a"), (60, "a"))
    assert other_rows(earlier, record((160, "a"), (60, "a")), "read") == ""
    assert other_rows(earlier, record((99, "a"), (10, "a")), "read") == "train: 160 rows then, 99 now"
    assert other_rows(earlier, record((160, "a"), (60, "b")), "read") == "validation: 60 rows then, 60 others now"
    assert other_rows({}, record((160, "a"), (60, "a")), "read") == "train: no rows then, 160 now"


@pytest.mark.parametrize(
    "metrics", [None, [], 3, {}, {"rows": 3}, {"rows": {"test": 3}}, {"rows": {"test": {"read": {"count": "many"}}}}]
)
def test_what_other_tools_leave_beside_a_model_says_nothing(metrics):
    assert selecting_rows(metrics) is None
