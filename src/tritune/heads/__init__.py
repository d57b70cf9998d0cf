"""Kinds of tasks: what a model is asked, how rows become batches, and how its answers are scored. One file per kind."""

from transformers import PreTrainedConfig

from .features import FEATURE_EXTRACTION
from .head import EncodedData, Head, Predictable
from .image_classification import IMAGE_CLASSIFICATION
from .question_answering import QUESTION_ANSWERING
from .text_classification import TEXT_CLASSIFICATION
from .token_classification import TOKEN_CLASSIFICATION

__all__ = [
    "FEATURE_EXTRACTION",
    "HEADS",
    "IMAGE_CLASSIFICATION",
    "QUESTION_ANSWERING",
    "TEXT_CLASSIFICATION",
    "TOKEN_CLASSIFICATION",
    "EncodedData",
    "Head",
    "Predictable",
    "head_of",
]

HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        TEXT_CLASSIFICATION,
        QUESTION_ANSWERING,
        TOKEN_CLASSIFICATION,
        FEATURE_EXTRACTION,
        IMAGE_CLASSIFICATION,
    )
}


def head_of(config: PreTrainedConfig) -> Head:
    """The kind of task that a model's class was made for; text classification where its config does not tell."""
    for head in HEADS.values():
        ending = head.auto_model.__name__.removeprefix("AutoModel")
        if ending and any(name.endswith(ending) for name in config.architectures or ()):
            return head
    return TEXT_CLASSIFICATION
