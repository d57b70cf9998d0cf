"""Small pictures that Pillow draws, and a small ViT to tell them apart: what tests and examples of vision share."""

from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from tritune.tasks.registry import TASKS

SIZE = 8
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (30, 60, 210)}


def picture(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> Pillow.Image:
    """A noisy picture of one colour, `size` being width and height."""
    noise = np.random.default_rng(seed).integers(-30, 30, (size[1], size[0], 3))
    return Pillow.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def make_folder(folder: Path, per_class: int, names=tuple(COLOURS), size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    """An image folder: one folder per class."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for seed in range(per_class):
            colour = list(COLOURS.values())[number % 3]
            picture(colour, 100 * number + seed, size).save(folder / name / f"{seed}.png")
    return folder


def make_parquet(path: Path, rows: int, labels=TASKS["cifar10"].labels, column: str = "img") -> Path:
    """A parquet file as `datasets` writes it: encoded images, and labels with their names."""
    images = [picture(list(COLOURS.values())[row % 3], row) for row in range(rows)]
    columns = {column: images, "label": [row % len(labels) for row in range(rows)]}
    features = Features({column: Image(), "label": ClassLabel(names=list(labels))})
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


def make_vit(folder: Path, size: int = SIZE, **more) -> Path:
    """A random ViT of two layers with its image processor."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=SIZE, patch_size=4, **shape, **more)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


def make_cifar_workspace(folder: Path) -> Path:
    """`base/` and `data/` in the layout of CIFAR-10, only smaller."""
    make_vit(folder / "base")
    make_parquet(folder / "data" / "train.parquet", 40)
    make_parquet(folder / "data" / "test.parquet", 20)
    return folder
