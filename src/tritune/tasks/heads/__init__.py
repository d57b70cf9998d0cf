"""Kinds of tasks: what a model is asked, how rows become batches, and how its answers are scored. One file per kind."""

import re

from transformers import PreTrainedConfig

from .answering import Predictable
from .features import FEATURE_EXTRACTION
from .head import EncodedData, Head, Task
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
    "Task",
    "head_of",
    "head_of_class",
]

_KINDS = (TEXT_CLASSIFICATION, QUESTION_ANSWERING, TOKEN_CLASSIFICATION, FEATURE_EXTRACTION, IMAGE_CLASSIFICATION)
HEADS: dict[str, Head] = {head.name: head for head in _KINDS}
# Without an ending, a class takes what has no head.
_ENDINGS = {ending: head for head in _KINDS if (ending := head.auto_model.__name__.removeprefix("AutoModel"))}


def head_of(config: PreTrainedConfig) -> Head:
    """The kind of task that a model was made for.

    Its class says so; where the config names none of a kind's, the first kind that knows such a config, texts before
    anything else.
    """
    for ending, head in _ENDINGS.items():
        if any(name.endswith(ending) for name in config.architectures or ()):
            return head
    knows = (head for head in _ENDINGS.values() if type(config) in getattr(head.auto_model, "_model_mapping", ()))
    return next(knows, TEXT_CLASSIFICATION)


def head_of_class(name: str) -> Head | None:
    """The kind of task that models of a class of transformers answer as they are; None for any other head.

    Unlike `head_of`, which names the head that a model may be given, this takes a class without one as an encoder.

    >>> head_of_class("BertModel").name, head_of_class("RoFormerForTokenClassification").name
    ('feature-extraction', 'token-classification')
    """
    if re.search("For[A-Z]", name) is None:
        return FEATURE_EXTRACTION
    return next((head for ending, head in _ENDINGS.items() if name.endswith(ending)), None)
