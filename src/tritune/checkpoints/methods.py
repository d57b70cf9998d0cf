"""What a QAT or packed model does in another way than its class: saving, resizing, and no training of a packed one.

The classes are transformers', so these are attributes of the model and hooks on it. `plugin.mark` gives them.
"""

import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import TrituneError
from ..modeling.own_method import give_method
from ..quant import Calibrated, Granularity
from .files import usual_modes
from .pack_modules import packed_modules


def give_methods(model: PreTrainedModel) -> None:
    """Let `model` save and resize itself as the functions of these names do."""
    for function in (save_pretrained, resize_token_embeddings):
        give_method(model, function)


def save_pretrained(model: PreTrainedModel, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
    """As the model's class does it, and the files have the modes of `open()`."""
    with usual_modes(save_directory):
        type(model).save_pretrained(model, save_directory, *args, **kwargs)


def resize_token_embeddings(
    model: PreTrainedModel, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, **options: Any
) -> nn.Module:
    """As the model's class does it, where no row has codes or a scale of its own.

    Raises:
        TrituneError: rows would come or go of a packed weight, or of one whose quantizer learns a scale a row.
    """
    embeddings = [
        module
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if isinstance(module, nn.Embedding | nn.Linear)
    ]
    for module in embeddings:
        rows = module.weight.shape[0]
        wanted = rows if new_num_tokens is None else new_num_tokens
        if wanted == rows and not (pad_to_multiple_of and rows % pad_to_multiple_of):
            continue
        if module in packed_modules(model).values():
            raise TrituneError(
                f"this {type(model).__name__} is packed: resize the QAT model before `convert`, or the float model "
                "before `prepare`"
            )
        quantizer = getattr(module, "weight_quantizer", None)
        if isinstance(quantizer, Calibrated) and quantizer.granularity is Granularity.ROW:
            raise TrituneError(
                f"this {type(model).__name__} learns a scale for each row of its embedding: resize the float model "
                "before `prepare`"
            )
    head = model.get_output_embeddings()
    resized = type(model).resize_token_embeddings(model, new_num_tokens, pad_to_multiple_of, **options)
    plain = model.get_output_embeddings()
    if isinstance(head, nn.Linear) and plain is not head:  # transformers puts a plain Linear in the place of a twin
        head.weight, head.bias, head.out_features = plain.weight, plain.bias, plain.out_features
        model.set_output_embeddings(head)
    return resized


def refuse_training(model: PreTrainedModel, args: tuple) -> None:
    """Forward pre-hook of a packed model: in training mode nothing of it may take a gradient.

    Raises:
        TrituneError: it is in training mode, which ends with this.
    """
    if model.training and torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters()):
        model.eval()
        raise TrituneError(
            f"this {type(model).__name__} is packed and cannot be trained; train the QAT model, then convert it again"
        )
