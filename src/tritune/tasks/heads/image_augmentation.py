"""The standard augmentation of training images, with Pillow.

Small images (up to 64 pixels, such as CIFAR's) are padded by 4 pixels on each side, cropped back at a random place and
flipped at random (He et al., Deep Residual Learning, 2016, section 4.2; the padding here is the image's reflection).
Larger ones give a random part of 8 to 100 % of their area with sides in the ratio of 3:4 to 4:3 (Szegedy et al., Going
Deeper with Convolutions, 2015, section 6), flipped at random.
"""

import math
import random

import numpy as np
from PIL import Image, ImageOps

_LARGEST_SMALL, _PADDING = 64, 4
_AREAS, _RATIOS, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10


def augmented(image: Image.Image, width: int, height: int, resample: int, generator: random.Random) -> Image.Image:
    """A random view of an image, `width` x `height` pixels; `resample` is Pillow's filter for a change of size."""
    if max(width, height) <= _LARGEST_SMALL:
        view = shifted(image.resize((width, height), resample), generator)
    else:
        view = image.resize((width, height), resample, box=random_box(*image.size, generator))
    return ImageOps.mirror(view) if generator.random() < 0.5 else view


def shifted(image: Image.Image, generator: random.Random) -> Image.Image:
    """The image moved by up to 4 pixels each way; what comes in from outside is its reflection."""
    pixels = np.asarray(image)
    padded = np.pad(pixels, [(_PADDING, _PADDING)] * 2 + [(0, 0)] * (pixels.ndim - 2), mode="reflect")
    top, left = generator.randint(0, 2 * _PADDING), generator.randint(0, 2 * _PADDING)
    return Image.fromarray(padded[top : top + image.height, left : left + image.width])


def random_box(width: int, height: int, generator: random.Random) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of an image; the whole image where no draw fits into it."""
    for _ in range(_TRIES):
        area = width * height * generator.uniform(*_AREAS)
        ratio = math.exp(generator.uniform(*map(math.log, _RATIOS)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = generator.randint(0, width - across), generator.randint(0, height - down)
            return left, top, left + across, top + down
    return 0, 0, width, height
