"""Kinds of tasks: what a model is asked, how rows become batches, and how its answers are scored. One file per kind."""

from .head import EncodedData, Head
from .image_classification import IMAGE_CLASSIFICATION
from .text_classification import TEXT_CLASSIFICATION

__all__ = ["HEADS", "IMAGE_CLASSIFICATION", "TEXT_CLASSIFICATION", "EncodedData", "Head"]

HEADS: dict[str, Head] = {head.name: head for head in (TEXT_CLASSIFICATION, IMAGE_CLASSIFICATION)}
