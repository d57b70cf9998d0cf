"""`Encoder`: which calls of a whole model the native engine answers, and its answers as the class's own outputs.

The engine takes sequences without padding. So tokens that the attention mask hides are left out, and every other one
comes with the position that the model would give it. A call is taken only where that means the same: token ids, mask
and token types, or pixels, on the CPU, in evaluation mode and without a gradient, and nothing asked for from inside the
encoder.

Hidden tokens have no answers: their last hidden state and their logits are 0, and as the start or end of an answer they
have the least logit there is, so that nobody finds one there.
"""

import inspect
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..engine.model import Model, Output
from ..errors import TrituneError
from ..modeling.attention import IMPLEMENTATION
from ..modeling.forward_pass import pass_of
from ..modeling.instrument import instrument_of
from .attached import Attached, Parts, is_plain, is_plain_call

_IDS, _MASK, _TYPES, _PIXELS = "input_ids", "attention_mask", "token_type_ids", "pixel_values"
_INSIDE = ("output_hidden_states", "output_attentions")
_WHOLE_NUMBERS = (torch.int64, torch.int32)


class _Tokens(NamedTuple):
    """A batch as the engine takes it: `Model.run`'s arguments; and where its tokens stood, bool, (batch, tokens)."""

    ids: np.ndarray
    offsets: np.ndarray
    types: np.ndarray | None
    positions: np.ndarray
    seen: np.ndarray


class Encoder(Attached):
    """A model of transformers, as the engine has it.

    Any number of threads may call it at once.

    Args:
        model: on the CPU, in float32, unchanged since it was loaded.
        engine: of the folder that it was loaded from.

    Raises:
        TrituneError: the engine's model gives other answers than the class, or another library wraps a part of it.
    """

    def __init__(self, model: PreTrainedModel, engine: Model):
        kind, self._engine = type(model), engine
        self._output = _output_of(model, engine)
        self._names = list(inspect.signature(kind.forward).parameters)[1:]
        self._main = {_PIXELS if engine.channels else _IDS}
        self._inputs = {_PIXELS} if engine.channels else {_IDS, _MASK, _TYPES} & {*self._names}
        self._is_bare = model.base_model is model
        self._is_span = "start_logits" in inspect.signature(self._output).parameters
        if not self._is_bare and [kind.__name__] != model.config.architectures:
            raise TrituneError(f"{kind.__name__}: the folder holds a {', '.join(model.config.architectures or ())}")
        # What looks at the first token alone would look at nothing where the mask hides it.
        self._pooler: nn.Module | None = getattr(model, "pooler", None) if self._is_bare else None
        self._needs_first = self._pooler is not None if self._is_bare else not engine.per_token
        self._padding = _padding_of(model)
        if wrapped := [part for part in model.modules() if part is not model and "forward" in vars(part)]:
            raise TrituneError(f"{kind.__name__}: its {type(wrapped[0]).__name__} is wrapped by another library")
        self._parts = Parts(model)

    def __call__(self, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The output of a call, of the model's own class or a tuple; None where torch must compute it.

        Args:
            model: that this lies on.
            args, kwargs: of its `forward`.
        """
        given = dict(zip(self._names, args, strict=False)) | kwargs
        return_dict = given.pop("return_dict", None)
        given = {name: value for name, value in given.items() if value is not None and value is not False}
        if len(args) > len(self._names) or not self._main <= given.keys() or given.keys() - self._inputs:
            return None
        if not all(is_plain(tensor) for tensor in given.values()):
            return None
        if model.training or not self._is_for_answers(model) or not self._parts.are_unchanged():
            return None
        try:
            output = self._of_pixels(**given) if _PIXELS in given else self._of_tokens(**given)
        except TrituneError:  # a token, a type or a position that does not exist: torch says so in its own words
            return None
        return_dict = model.config.return_dict if return_dict is None else return_dict
        return output if return_dict or output is None else output.to_tuple()

    def _is_for_answers(self, model: PreTrainedModel) -> bool:
        """Whether a call is for nothing but the answers of the model."""
        config, forward_pass = model.config, pass_of(instrument_of(model))
        return (
            is_plain_call()
            and config._attn_implementation == IMPLEMENTATION
            and not any(getattr(config, name, False) for name in _INSIDE)
            and forward_pass.trace is None
            and forward_pass.intervention is None
            and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._parts.tensors.all))
        )

    def _of_tokens(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> ModelOutput | None:
        tokens = self._tokens(input_ids, attention_mask, token_type_ids)
        if tokens is None:
            return None
        return self._named(self._engine.run(*tokens[:4], **self._options()), tokens.seen)

    def _of_pixels(self, pixel_values: torch.Tensor) -> ModelOutput | None:
        pixels = pixel_values
        if pixels.ndim != 4 or pixels.dtype is not torch.float32 or (torch.is_grad_enabled() and pixels.requires_grad):
            return None
        found = self._engine.run_images(pixels.detach().numpy(), **self._options())
        return self._named(found, np.ones((len(pixels), self._engine.max_tokens), bool))

    def _options(self) -> dict[str, Any]:
        return {"hidden": self._is_bare, "answers": not self._is_bare, "threads": torch.get_num_threads()}

    def _tokens(self, ids: torch.Tensor, mask: torch.Tensor | None, types: torch.Tensor | None) -> _Tokens | None:
        """A batch without what its mask hides; None where the engine would not see it as the model does."""
        shape = ids.shape
        if ids.ndim != 2 or not ids.numel() or shape[1] > self._engine.max_tokens:
            return None
        if any(of is not None and of.shape != shape for of in (mask, types)):
            return None
        if any(of is not None and of.dtype not in _WHOLE_NUMBERS for of in (ids, types)):
            return None
        all_ids = ids.numpy()
        seen = np.ones(shape, bool) if mask is None else (mask == 1).numpy()
        if mask is not None and not (seen | (mask == 0).numpy()).all():
            return None
        lengths = seen.sum(1)
        if not lengths.all() or (self._needs_first and not seen[:, 0].all()):
            return None
        if self._padding is None:
            positions = np.nonzero(seen)[1]
        else:  # such models count tokens that are no padding, wherever the mask is
            is_text = all_ids != self._padding
            if not is_text[seen].all():
                return None
            positions = is_text.cumsum(1)[seen] - 1
        offsets = np.concatenate(([0], lengths.cumsum()))
        return _Tokens(all_ids[seen], offsets, None if types is None else types.numpy()[seen], positions, seen)

    def _named(self, found: Output, seen: np.ndarray) -> ModelOutput:
        """What the engine found, under the names of the model's output."""
        if self._is_bare:
            assert found.hidden is not None  # it was asked for
            states = _placed(found.hidden, seen, 0)
            pooled = {} if self._pooler is None else {"pooler_output": self._pooler(states)}
            return self._output(last_hidden_state=states, **pooled)
        assert found.answers is not None
        if not self._engine.per_token:
            return self._output(logits=torch.from_numpy(found.answers))
        if self._is_span:
            start, end = _placed(found.answers, seen, torch.finfo(torch.float32).min).unbind(-1)
            return self._output(start_logits=start.contiguous(), end_logits=end.contiguous())
        return self._output(logits=_placed(found.answers, seen, 0))


def _placed(rows: np.ndarray, seen: np.ndarray, elsewhere: float) -> torch.Tensor:
    """Rows of tokens, (tokens, width), at their places: (batch, tokens, width)."""
    placed = np.full((*seen.shape, rows.shape[1]), elsewhere, np.float32)
    placed[seen] = rows
    return torch.from_numpy(placed)


def _output_of(model: PreTrainedModel, engine: Model) -> type[ModelOutput]:
    """The class of what a model gives, which is not always the one that it declares."""
    pixels = torch.zeros(1, engine.channels, engine.image_size, engine.image_size)
    with torch.no_grad():
        inputs = pixels if engine.channels else torch.zeros(1, 1, dtype=torch.long)
        return type(type(model).forward(model, inputs, return_dict=True))


def _padding_of(model: PreTrainedModel) -> int | None:
    """The id of padding in models that give it no position, as RoBERTa's kin; None where positions are places."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings"):
            return module.padding_idx
    return None
