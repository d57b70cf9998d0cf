"""One label for an image."""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset, DatasetDict
from PIL import Image as Pillow
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
)

from ...checkpoints.hub import located
from ...errors import TrituneError, first_line
from ..metrics import accuracy
from .answering import Answering, Predictable
from .classifier import Classifier, measures_of, named_answers
from .head import EncodedData, Task
from .image_augmentation import augmented
from .images import IMAGE, LABEL, checksums, eight_bits, label_names, labelled, read_labelled, spelt_labels, with_label
from .labels import are_ids_of

# Named as the model's input, because Trainer keeps no other columns.
PIXELS = "pixel_values"
# Shows what a processor gives: its shape, and from black to white its values.
_PROBE = Pillow.linear_gradient("L").resize((80, 60)).convert("RGB")


class ImageClassification(Classifier):
    """Classes of images, from `AutoModelForImageClassification`."""

    name = "image-classification"
    auto_model = AutoModelForImageClassification
    auto_processor = AutoImageProcessor
    reads_hub = True
    has_classes = True
    unused_keys: ClassVar[Mapping[str, str]] = {"max_length": "images are not cut to a number of tokens"}
    default_keys: ClassVar[Mapping[str, Any]] = {"image_augmentation": "standard"}

    def load_processor(self, source: str | Path, model: PreTrainedModel, max_length: int | None) -> Any:
        """The image processor beside a model, by Pillow; `max_length` has no meaning for images."""
        found = located(source)
        try:
            processor = AutoImageProcessor.from_pretrained(found, backend="pil", trust_remote_code=False)
            _, *size = _pixels(processor, [_PROBE]).shape
        except Exception as error:
            raise TrituneError(
                f"{source}: no image processor that can be loaded ({first_line(error)}); put the model's own beside it"
            ) from None
        _check_fits(size, model.config, source)
        return processor

    def check_processors(self, student: Any, teacher: Any, source: str | Path) -> None:
        """Raise TrituneError if the student's image processor gives another size, or other values."""
        own, theirs = (_pixels(processor, [_PROBE]) for processor in (student, teacher))
        if own.shape != theirs.shape or not torch.equal(own, theirs):
            raise TrituneError(
                f"{source}: the student's image processor gives other sizes or values than the teacher's; they must be "
                "the same"
            )

    def encode(
        self, splits: DatasetDict, task: Task, processor: Any, max_length: int | None, padding: str
    ) -> EncodedData:
        """Images stay encoded: each is decoded and processed when a batch needs it, training images augmented."""
        encoded = DatasetDict(splits).rename_columns({IMAGE: PIXELS, LABEL: "labels"})
        height, width = _pixels(processor, [_PROBE]).shape[-2:]
        augment = partial(_augment, processor=processor, width=width, height=height)
        batches = partial(collate, processor=processor)
        return EncodedData(encoded, batches, measures_of(encoded, task), task.dev_splits[0], augment)

    def describe(
        self,
        files: Mapping[str, Path],
        columns: Sequence[str] | None,
        label_column: str | None,
        labels: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """The labels that a model knows, else those of the training images, or of the dev images alone."""
        if columns is not None and len(columns) != 1:
            raise TrituneError(f"{self.name} takes one column of images, got {len(columns)}")
        split, source = next((split, files[split]) for split in ("train", "validation") if split in files)
        # A dev file alone may come from a task file whose training images have columns.
        is_named = columns is not None or label_column not in (None, LABEL)
        if is_named and "train" in files and all(file.is_dir() for file in files.values()):
            raise TrituneError(f"{source}: folders have no columns; the classes are the names of the subfolders")
        rows = read_labelled(source, split, columns[0] if columns else None, label_column)
        return {
            "text_columns": tuple(columns or ()),
            "labels": tuple(labels or label_names(rows, str(source))),
            "by_id": bool(labels) and are_ids_of(spelt_labels(rows), labels or ()),
            "metric": accuracy.__name__,
            "measure": accuracy,
            "max_length": None,
            "batch_size": 64,
            "label_column": label_column or LABEL,
        }

    def read_files(self, task: Task, splits: Sequence[str]) -> DatasetDict:
        """Images of a folder, a parquet file or the hub, every one of them decodable."""
        read, column = DatasetDict(), next(iter(task.text_columns), None)
        for split in splits:
            rows = read_labelled(task.file(split), split, column, task.label_column)
            read[split] = labelled(rows, task.labels or (), str(task.file(split)), task.by_id)
        return read

    def kinship(self, rows: Dataset, task: Task) -> tuple[list[tuple[str, ...]], list[str | float]]:
        """The bytes of an image, as a checksum."""
        return [(checksum,) for checksum in checksums(rows)], list(map(str, rows[LABEL]))

    def folder_files(self, task: Task, folder: Path) -> dict[str, Path]:
        """A parquet file per split: `train.parquet`, `test.parquet`."""
        return {split: folder / f"{split}.parquet" for split in ("train", *task.dev_splits)}

    def from_hub(self, rows: Dataset, task: Task, source: str) -> Dataset:
        """Images and labels, every image decodable."""
        return labelled(with_label(rows, None, task.label_column, source), task.labels or (), source)

    def predictable(self, inputs: Dataset, answering: Answering, name: str) -> Predictable:
        """Rows of the column `image`; adds `prediction`, see `classifier.named_answers`."""
        batches = partial(collate, processor=answering.processor)
        return named_answers(inputs.rename_column(IMAGE, PIXELS), batches, answering.model, name)


def collate(rows: Sequence[dict[str, Any]], processor: Any) -> BatchFeature:
    """Rows to `pixel_values`, (batch, channels, height, width), and what else they hold as numbers, (batch,).

    Images go through the processor; tensors, as the augmentation gives them, have been there.
    """
    images = [row[PIXELS] for row in rows]
    pixels = torch.stack(images) if isinstance(images[0], torch.Tensor) else _pixels(processor, images)
    others = {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name != PIXELS}
    return BatchFeature({PIXELS: pixels, **others})


def _augment(row: dict[str, Any], generator: random.Random, *, processor: Any, width: int, height: int) -> dict:
    """A training row with a random view of its image, processed but for changes of size."""
    image = augmented(eight_bits(row[PIXELS]), width, height, processor.resample, generator)
    (pixels,) = _pixels(processor, [image], do_resize=False, do_center_crop=False)
    return {**row, PIXELS: pixels}


def _pixels(processor: Any, images: list[Pillow.Image], **options: Any) -> torch.Tensor:
    """Images of any mode, in colour or gray as the processor's mean says, to (batch, channels, height, width)."""
    mode = "L" if len(getattr(processor, "image_mean", None) or "RGB") == 1 else "RGB"
    return processor([eight_bits(image).convert(mode) for image in images], return_tensors="pt", **options)[PIXELS]


def _check_fits(found: list[int], config: PreTrainedConfig, source: str | Path) -> None:
    """Raise TrituneError if the processor makes images, (channels, height, width), that the model does not take."""
    size = getattr(config, "image_size", None)
    sides = (size, size) if isinstance(size, int) else size
    wanted = [getattr(config, "num_channels", found[0]), *(sides or found[1:])]
    if found != wanted:
        shapes = [" x ".join(map(str, shape)) for shape in (found, wanted)]
        raise TrituneError(
            f"{source}: the image processor gives {shapes[0]} (channels, height, width) and the model takes "
            f"{shapes[1]}; they do not belong together"
        )


IMAGE_CLASSIFICATION = ImageClassification()
