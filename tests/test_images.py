"""Labelled images from folders, parquet files and the hub; what is no image or no label; views of training images."""

import random
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, DatasetDict
from PIL import Image as Pillow
from transformers import AutoImageProcessor, AutoModelForImageClassification

import tritune.tasks.data.hub
from pictures import COLOURS, SIZE, make_folder, make_parquet, make_vit, picture
from tritune.cli.options import OwnFiles, open_task
from tritune.errors import TrituneError
from tritune.tasks.data import load_task_data
from tritune.tasks.heads import IMAGE_CLASSIFICATION, images
from tritune.tasks.heads.augmented import AugmentedRows
from tritune.tasks.heads.image_augmentation import augmented, random_box, shifted
from tritune.tasks.heads.image_classification import PIXELS, _augment, collate
from tritune.tasks.registry import get_task, own_task


def pixels_of(rows):
    return [np.asarray(image) for image in rows["image"]]


@pytest.fixture
def processor(tmp_path):
    return AutoImageProcessor.from_pretrained(make_vit(tmp_path / "vit"), backend="pil")


# Reading


@pytest.mark.parametrize(("columns", "label"), [(["photo"], None), (None, "kind")])
def test_columns_of_folders_are_refused(tmp_path, columns, label):
    files = {"train": make_folder(tmp_path / "photos", 1)}
    with pytest.raises(TrituneError, match="photos: folders have no columns"):
        own_task("image-classification", files, columns, label)
    assert own_task("image-classification", files, None, "label").labels == ("blue", "green", "red")


def test_folders_are_scored_by_a_task_file_whose_training_file_has_columns(tmp_path):
    names, dev = ["blue", "green", "red"], make_folder(tmp_path / "dev", 1)
    make_parquet(tmp_path / "train.parquet", 3, names, "photo")
    text = f"kind: image-classification\ntrain_file: train.parquet\ndev_file: {dev}\ncolumns: [photo]\n"
    (tmp_path / "task.yaml").write_text(text)
    for trains in (True, False):
        task = open_task(str(tmp_path / "task.yaml"), OwnFiles(None, None, None, None, None), trains=trains)
        assert load_task_data(task, splits=["validation"])["validation"]["label"][:] == [0, 1, 2]


def test_folder_parquet_and_hub_give_the_same_rows(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "photos", 2)
    task = own_task("image-classification", {"train": folder})
    assert task.labels == ("blue", "green", "red") and task.max_length is None and task.num_labels == 3
    read = load_task_data(task, splits="train")["train"]
    assert read.column_names == ["image", "label"] and read.features["label"] == ClassLabel(names=list(task.labels))
    assert [task.labels[label] for label in read["label"]] == ["blue", "blue", "green", "green", "red", "red"]
    expected = [np.asarray(Pillow.open(folder / name / f"{i}.png")) for name in task.labels for i in range(2)]
    assert all(np.array_equal(*pair) for pair in zip(pixels_of(read), expected, strict=True))

    typed = tmp_path / "typed.parquet"
    read.rename_columns({"image": "photo"}).to_parquet(typed)
    texts = [task.labels[label] for label in read["label"]]
    encoded = [value["bytes"] for value in read.cast_column("image", datasets.Image(decode=False))["image"]]
    encoded = [
        value or (folder / name / f"{i % 2}.png").read_bytes()
        for i, (value, name) in enumerate(zip(encoded, texts, strict=True))
    ]
    plain = tmp_path / "plain.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": encoded, "kind": texts}), plain)
    monkeypatch.setattr(images, "load_dataset", lambda name: DatasetDict(train=read, test=read))
    for source, columns, label in (
        (typed, None, None),
        (plain, None, "kind"),
        (plain, ["image"], "kind"),
        (Path("who/photos"), None, None),
    ):
        files = {"train": source} | ({} if source.exists() else {"validation": source})
        other = own_task("image-classification", files, columns, label)
        assert other.labels == task.labels
        for split in load_task_data(other, splits=[*files]).values():
            assert split["label"][:] == read["label"][:]
            assert all(np.array_equal(*pair) for pair in zip(pixels_of(split), expected, strict=True))


def test_labels_are_matched_by_name(tmp_path):
    train, dev = make_folder(tmp_path / "train", 1), tmp_path / "dev.parquet"
    names = ["red", "blue"]
    make_parquet(dev, 4, names, "image")
    task = own_task("image-classification", {"train": train, "validation": dev})
    assert [task.labels[label] for label in load_task_data(task)["validation"]["label"]] == ["red", "blue"] * 2


@pytest.mark.parametrize("values, names", [([7, 3, 10], ("3", "7", "10")), (["b", "a", "c"], ("a", "b", "c"))])
def test_labels_without_names(tmp_path, values, names):
    encoded = make_parquet(tmp_path / "three.parquet", 3, ("x", "y", "z"), "image")
    table = pyarrow.parquet.read_table(encoded).drop(["label"]).append_column("label", pyarrow.array(values))
    path = tmp_path / "plain.parquet"
    pyarrow.parquet.write_table(table.replace_schema_metadata(None), path)
    task = own_task("image-classification", {"train": path})
    assert task.labels == names
    assert [task.labels[label] for label in load_task_data(task, splits="train")["train"]["label"]] == list(
        map(str, values)
    )


def test_cifar10_from_a_folder_or_the_hub(tmp_path, monkeypatch):
    task = get_task("CIFAR-10")
    make_parquet(tmp_path / "train.parquet", 12)
    make_parquet(tmp_path / "test.parquet", 10)
    folder = load_task_data(task, tmp_path)
    assert {split: len(rows) for split, rows in folder.items()} == {"train": 12, "test": 10}
    assert folder["test"]["label"][:] == list(range(10))
    asked = []
    hub = DatasetDict({split: rows.rename_column("image", "img") for split, rows in folder.items()})
    monkeypatch.setattr(tritune.tasks.data.hub, "load_dataset", lambda name: asked.append(name) or hub)
    assert load_task_data(task, splits=["test"])["test"]["label"][:] == list(range(10))
    assert asked == ["uoft-cs/cifar10"]
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(TrituneError, match=r"test\.parquet: there is no such file"):
        load_task_data(task, tmp_path)
    make_parquet(tmp_path / "test.parquet", 10, ("cat", "kitten"))
    with pytest.raises(TrituneError, match=r"parquet, row 2: the label 'kitten', which is not in the training data"):
        load_task_data(task, tmp_path)


# What cannot be used


def spoiled(tmp_path, name):
    """A source with one fault, and what the message must name."""
    folder = make_folder(tmp_path / "photos", 2)
    file = folder / "green" / "1.png"
    if name == "truncated":
        file.write_bytes(file.read_bytes()[:60])
        return folder, r"photos/green/1\.png: not an image that can be decoded \(.*\); replace it"
    if name == "text":
        file.write_text("not a picture")
        return folder, r"photos/green/1\.png: not an image that can be decoded"
    if name == "empty":
        (tmp_path / "none").mkdir()
        return tmp_path / "none", "none: must contain one folder per class, but contains none"
    if name == "flat":
        return folder / "green", "green: must contain one folder per class, but contains none"
    if name == "empty class":
        (folder / "yellow").mkdir()
        return folder, "photos/yellow: holds no images"
    if name == "one class":
        return make_folder(tmp_path / "one", 1, ("red",)), "one: has 1 label; a classifier needs at least two"
    if name == "absent":
        return tmp_path / "absent", "absent: there is no such file or folder"
    if name == "csv":
        (tmp_path / "photos.csv").write_text("image,label\n")
        return tmp_path / "photos.csv", r"photos\.csv: images are taken from a folder or a \.parquet file"
    path = make_parquet(tmp_path / "photos.parquet", 4, ("a", "b"), "image")
    table = pyarrow.parquet.read_table(path)
    if name == "damaged file":
        path.write_bytes(path.read_bytes()[:-9])
        return path, r"photos\.parquet: not a parquet file that can be read"
    if name == "no rows":
        table, message = table.slice(0, 0), r"photos\.parquet: holds no rows"
    if name == "no label column":
        table, message = table.drop(["label"]), r"no column 'label'; there are image"
    if name == "damaged row":
        values = table["image"].to_pylist()
        values[2]["bytes"] = b"\xff\xd8nonsense"
        table = table.set_column(
            0, table.schema.field("image"), pyarrow.array(values, table.schema.field("image").type)
        )
        message = r"photos\.parquet, row 3: not an image that can be decoded"
    if name == "no image":
        values = [*table["image"].to_pylist()[:3], None]
        table = table.set_column(
            0, table.schema.field("image"), pyarrow.array(values, table.schema.field("image").type)
        )
        message = r"photos\.parquet, row 4: there is no image"
    if name == "no label":
        table = table.set_column(1, table.schema.field("label"), pyarrow.array([0, 1, -1, 0], pyarrow.int64()))
        message = r"photos\.parquet, row 3: no label; known are 'a', 'b'"
    if name == "not images":
        table, message = pyarrow.table({"image": [1.5, 2.5], "label": ["a", "b"]}), "its image column holds no images"
    if name == "which column":
        table, message = pyarrow.table({"x": [b""], "y": [b""], "label": [1]}), "say which column holds the images"
    if name == "mixed labels":
        table = pyarrow.table({"image": [b"", b""], "label": [1.5, 2.5]})
        message = r"row 1: labels must be all whole numbers or all text; got 1\.5"
    pyarrow.parquet.write_table(table, path)
    return path, message


FAULTS = (
    "truncated", "text", "empty", "flat", "empty class", "one class", "absent", "csv", "damaged file", "no rows",
    "no label column", "damaged row", "no image", "no label", "not images", "which column", "mixed labels",
)  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(tmp_path, name):
    source, message = spoiled(tmp_path, name)
    with pytest.raises(TrituneError, match=message) as error:
        load_task_data(own_task("image-classification", {"train": source}), splits="train")
    assert "\n" not in str(error.value)


def test_a_label_that_training_does_not_know(tmp_path):
    train, dev = make_folder(tmp_path / "train", 1, ("cat", "dog")), make_folder(tmp_path / "dev", 1, ("cat", "pig"))
    task = own_task("image-classification", {"train": train, "validation": dev})
    with pytest.raises(
        TrituneError, match=r"dev, row 2: the label 'pig', which is not in the training data; known are 'cat"
    ):
        load_task_data(task)


def test_other_files_of_a_folder_are_left_out(tmp_path):
    folder = make_folder(tmp_path / "photos", 1)
    (folder / "red" / "notes.txt").write_text("x")
    (folder / "red" / ".hidden.png").write_text("x")
    (folder / ".git").mkdir()
    (folder / "__MACOSX").mkdir()
    with pytest.warns(UserWarning, match="red: 1 files that are no images were left out"):
        assert len(images.read_labelled(folder, "train", None, None)) == 3


# Batches


def test_images_of_any_kind_become_pixels(tmp_path, processor):
    folder = tmp_path / "photos"
    for name, mode in (("a", "RGB"), ("b", "L"), ("c", "RGBA"), ("d", "P"), ("e", "1")):
        (folder / name).mkdir(parents=True)
        picture(COLOURS["red"], 1, (5, 9)).convert(mode).save(folder / name / "x.png")
    shutil.copytree(folder, tmp_path / "dev")
    task = own_task("image-classification", {"train": folder, "validation": tmp_path / "dev"})
    data = IMAGE_CLASSIFICATION.encode(load_task_data(task), task, processor, None, "longest")
    rows = data.splits["train"]
    batch = data.collate([rows[i] for i in range(5)])
    assert batch["pixel_values"].shape == (5, 3, SIZE, SIZE) and batch["labels"].tolist() == [0, 1, 2, 3, 4]
    resized = picture(COLOURS["red"], 1, (5, 9)).resize((SIZE, SIZE), processor.resample)
    expected = (torch.from_numpy(np.array(resized)).permute(2, 0, 1).double() / 255 - 0.5) / 0.5
    torch.testing.assert_close(batch["pixel_values"][0].double(), expected, rtol=0, atol=1e-6)
    gray = batch["pixel_values"][1]
    assert torch.equal(gray[0], gray[1]) and torch.equal(gray[0], gray[2])
    assert data.measures["validation"](np.eye(5)) == {"accuracy": 1.0}


def test_the_processor_must_fit_the_model(tmp_path):
    folder = make_vit(tmp_path / "vit", size=SIZE + 4)
    model = AutoModelForImageClassification.from_pretrained(folder)
    with pytest.raises(TrituneError, match=r"vit: the image processor gives 3 x 12 x 12 .* model takes 3 x 8 x 8"):
        IMAGE_CLASSIFICATION.load_processor(folder, model, None)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(TrituneError, match="vit: no image processor that can be loaded"):
        IMAGE_CLASSIFICATION.load_processor(folder, model, None)


# Modes of more than 8 bits


def ramp(levels=65536):
    """From black to white, (64, 64)."""
    return np.linspace(0, levels - 1, 64 * 64).astype(np.uint16).reshape(64, 64)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, processor, ending):
    """By the range of the mode, so that it is the picture that its upper bytes are, wherever it is used."""
    (tmp_path / "scans").mkdir()
    Pillow.fromarray(ramp()).save(tmp_path / "scans" / f"a.{ending}")
    Pillow.fromarray((ramp() // 257).astype(np.uint8)).save(tmp_path / "scans" / "b.png")
    rows, _ = images.unlabelled(tmp_path / "scans")
    sixteen, eight = rows["image"]
    assert sixteen.mode.startswith("I;16") and eight.mode == "L"
    for image in (sixteen, eight):
        assert np.asarray(images.eight_bits(image)).mean() == pytest.approx(127.5, abs=0.6)
    assert images.eight_bits(eight) is eight
    values = np.asarray(images.eight_bits(sixteen)).astype(int)
    exact = ramp().astype(np.float64) / 257
    assert np.abs(values - exact).max() <= 0.5 + 1e-9 and values.min() == 0 and values.max() == 255
    batch = collate([{PIXELS: sixteen}, {PIXELS: eight}], processor)[PIXELS]
    assert (batch[0] - batch[1]).abs().max() <= 1.01 / 255 / min(processor.image_std)
    views = [
        _augment({PIXELS: image}, random.Random(3), processor=processor, width=8, height=8) for image in rows["image"]
    ]
    assert (views[0][PIXELS] - views[1][PIXELS]).abs().max() <= 1.01 / 255 / min(processor.image_std)


@pytest.mark.parametrize(
    ("name", "image", "reason"),
    [
        ("int.tif", Pillow.fromarray(ramp().astype(np.int32)), "integers of 32 bits"),
        ("float.tif", Pillow.fromarray(ramp().astype(np.float32)), "floats"),
        ("nan.tif", Pillow.fromarray(np.full((4, 4), np.nan, np.float32)), "floats"),
        ("lab.tif", Pillow.new("LAB", (4, 4)), "Lab colours"),
    ],
)
def test_pixels_without_a_range_are_refused(tmp_path, name, image, reason):
    folder = make_folder(tmp_path / "photos", 1)
    image.save(folder / "red" / name)
    message = rf"red/{name}: its pixels are {reason}.*; save it with 8 or 16 bits"
    with pytest.raises(TrituneError, match=message):
        load_task_data(own_task("image-classification", {"train": folder}), splits="train")
    with pytest.raises(TrituneError, match=message):
        images.unlabelled(folder)
    encoded = [{"bytes": (folder / file).read_bytes()} for file in ("green/0.png", f"red/{name}")]
    pyarrow.parquet.write_table(pyarrow.table({"image": encoded, "label": [0, 1]}), tmp_path / "rows.parquet")
    with pytest.raises(TrituneError, match=rf"rows.parquet, row 2: its pixels are {reason}"):
        images.unlabelled(tmp_path / "rows.parquet")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_eight_bits_are_left_to_pillow(tmp_path, mode):
    image = picture(COLOURS["red"], 0).convert("L" if mode == "LA" else "RGB").convert(mode)
    image.save(tmp_path / "a.tif")
    rows, _ = images.unlabelled(tmp_path / "a.tif")
    (found,) = rows["image"]
    assert np.array_equal(np.asarray(images.eight_bits(found).convert("RGB")), np.asarray(image.convert("RGB")))


# Augmentation


def by_reflection(pixels, top, left, height, width):
    """The crop whose corner lies at (top - 4, left - 4), indices beyond the edge being reflected."""
    result = np.empty((height, width, 3), np.uint8)
    for row, column in np.ndindex(height, width):
        y, x = abs(row + top - 4), abs(column + left - 4)
        y, x = (height - 1) - abs((height - 1) - y), (width - 1) - abs((width - 1) - x)
        result[row, column] = pixels[y, x]
    return result


def test_small_images_are_shifted_and_flipped():
    image = picture(COLOURS["green"], 3, (9, 7))
    seen = set()
    for seed in range(300):
        view = np.asarray(shifted(image, random.Random(seed)))
        drawn = random.Random(seed)
        top, left = drawn.randint(0, 8), drawn.randint(0, 8)
        seen.add((top, left))
        if seed < 30:
            assert np.array_equal(view, by_reflection(np.asarray(image), top, left, 7, 9))
    assert len(seen) > 70
    still = [augmented(image, 9, 7, 2, _Still(flip)) for flip in (0.9, 0.1)]
    assert np.array_equal(still[0], image) and np.array_equal(still[1], np.asarray(image)[:, ::-1])
    assert shifted(image.convert("L"), random.Random(0)).size == (9, 7)


class _Still(random.Random):
    """Draws no shift, and a flip below a half."""

    def __init__(self, flip):
        super().__init__(0)
        self.flip = flip

    def randint(self, low, high):
        return 4

    def random(self):
        return self.flip


@pytest.mark.parametrize("width, height", [(300, 200), (1, 500), (640, 480)])
def test_large_images_give_parts_of_themselves(width, height):
    boxes = [random_box(width, height, random.Random(seed)) for seed in range(300)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        across, down = right - left, bottom - top
        if (across, down) != (width, height):
            assert 0.07 < across * down / (width * height) <= 1
            assert 0.72 < across / down < 1.4
    if width > 1:
        assert len(set(boxes)) > 250
    view = augmented(Pillow.new("RGB", (width, height)), 96, 80, 2, random.Random(0))
    assert view.size == (96, 80)


def test_a_view_is_a_function_of_seed_epoch_and_row(tmp_path, processor):
    folder = make_folder(tmp_path / "photos", 3)
    task = own_task("image-classification", {"train": folder})
    data = IMAGE_CLASSIFICATION.encode(load_task_data(task, splits="train"), task, processor, None, "longest")
    rows = data.training_rows("standard", seed=1)
    assert isinstance(rows, AugmentedRows) and len(rows) == 9
    assert data.training_rows("none", 1) is data.training_rows(None, 1) is data.splits["train"]

    def views(seed, epoch, order=range(9)):
        rows = data.training_rows("standard", seed)
        rows.epoch = epoch
        return {row: rows[row]["pixel_values"] for row in order}

    first = views(1, 0)
    again = views(1, 0, reversed(range(9)))
    assert all(torch.equal(first[row], again[row]) for row in first)
    for other in (views(1, 1), views(2, 0)):
        assert sum(torch.equal(first[row], other[row]) for row in first) < 4
    batch = data.collate([rows[0], rows[5]])
    assert torch.equal(batch["pixel_values"], torch.stack([first[0], first[5]]))
    assert rows[5]["labels"] == data.splits["train"][5]["labels"]


def test_real_cifar10(data_folder, tmp_path):
    if not (data_folder / "cifar10").is_dir():
        pytest.skip("no CIFAR-10")
    rows = load_task_data(get_task("cifar10"), data_folder / "cifar10", ["test"])["test"]
    assert len(rows) == 2000 and rows[0]["image"].size == (32, 32)


def test_describe_refuses_two_columns(tmp_path):
    folder = make_folder(tmp_path / "photos", 1)
    with pytest.raises(TrituneError, match="image-classification takes one column of images, got 2"):
        own_task("image-classification", {"train": folder}, ["a", "b"])
    with pytest.raises(TrituneError, match="no rows are left for the dev part: too few that differ"):
        load_task_data(own_task("image-classification", {"train": folder}))
