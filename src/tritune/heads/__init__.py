"""Kinds of tasks: what a model is asked, how rows become batches, and how its answers are scored. One file per kind."""

from .features import FEATURE_EXTRACTION
from .head import EncodedData, Head
from .text_classification import TEXT_CLASSIFICATION

__all__ = ["FEATURE_EXTRACTION", "HEADS", "TEXT_CLASSIFICATION", "EncodedData", "Head"]

HEADS: dict[str, Head] = {head.name: head for head in (TEXT_CLASSIFICATION, FEATURE_EXTRACTION)}
