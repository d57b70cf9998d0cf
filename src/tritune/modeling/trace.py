"""What one forward pass leaves behind, by name, and what one may put in its place."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch

from ..errors import TrituneError
from .sites import Site


@dataclass
class LayerTrace:
    """The tensors of one attention block; those that nobody asked for stay None.

    Attributes:
        attention_scores: (batch, heads, query, key), QK^T/sqrt(d) + mask.
        attention_probs: (batch, heads, query, key), their softmax, before dropout and quantization.
        context: (batch, heads, query, head width), probs @ V.
        attention_projection: (batch, query, width), W_O context, before dropout, residual and norm.
        attention_block_output: (batch, query, width), after the residual and, in post-norm models, after the norm.
        masked: bool, broadcastable to (batch, heads, query, key), True where the mask hides a key; None without mask.
    """

    attention_scores: torch.Tensor | None = None
    attention_probs: torch.Tensor | None = None
    context: torch.Tensor | None = None
    attention_projection: torch.Tensor | None = None
    attention_block_output: torch.Tensor | None = None
    masked: torch.Tensor | None = None


@dataclass
class ModelTrace:
    """The traces of all layers, first to last, and the hidden states.

    Attributes:
        layers: one `LayerTrace` per call of an attention module.
        hidden_states: embeddings output and every layer's output, each (batch, tokens, width).
    """

    layers: list[LayerTrace] = field(default_factory=list)
    hidden_states: Sequence[torch.Tensor] | None = None

    def tensors(self, name: str) -> Sequence[torch.Tensor]:
        """One field of every layer, None where it was not recorded; or the hidden states, none if they were not."""
        return self.hidden_states or () if name == "hidden_states" else [getattr(layer, name) for layer in self.layers]

    def mapped(self, layer_map: Sequence[int] | None) -> "ModelTrace":
        """A teacher's trace as a student of another depth sees it: its layer i is layer `layer_map[i]` of this one.

        Hidden state 0, the embeddings', stays; hidden state i + 1 is the output of layer `layer_map[i]`.

        Args:
            layer_map: as `layer_map.mapped_layers` gives it; None changes nothing.

        Raises:
            TrituneError: the model does not report one hidden state per layer.
        """
        if layer_map is None:
            return self
        states = self.hidden_states
        if states is not None and len(states) != len(self.layers) + 1:
            raise TrituneError(
                f"layer_map: the teacher reports {len(states)} hidden states for {len(self.layers)} layers, so they "
                "cannot be told apart; take hidden_states_coefficient 0"
            )
        return ModelTrace(
            [self.layers[layer] for layer in layer_map],
            None if states is None else (states[0], *(states[layer + 1] for layer in layer_map)),
        )


# DDP finds the parameters that a loss uses by walking the model's output; it must see the tensors in here.
for _kind in (LayerTrace, ModelTrace):
    torch.utils._pytree.register_dataclass(_kind)

TRACE_FIELDS = (*(own.name for own in fields(LayerTrace) if own.name != "masked"), "hidden_states")


@dataclass(frozen=True)
class Intervention:
    """The value handed to a student's forward pass: the teacher's tensors of one site take the student's place.

    Attributes:
        site: which tensor of every layer is replaced.
        teacher: the teacher's trace of the same batch; it must hold `site.field` in every layer.
        weight: the teacher's share. Under `Site.BLOCK` a block takes weight * teacher's + (1 - weight) * own, without
            a gradient; with 0 the student's own state, cut from what came before. Elsewhere it is 1.

    Raises:
        TrituneError: the weight is not within 0 and 1, or is another than 1 at a site that does not mix.
    """

    site: Site
    teacher: ModelTrace
    weight: float = 1.0

    def __post_init__(self):
        if not isinstance(self.weight, int | float) or not 0 <= self.weight <= 1:
            raise TrituneError(f"weight of an intervention must be between 0 and 1; got {self.weight!r}")
        if self.weight != 1 and self.site != Site.BLOCK:
            raise TrituneError(
                f"weight of an intervention must be 1 at {self.site}: only Site.BLOCK mixes; got {self.weight!r}"
            )

    def tensor(self, layer: int) -> torch.Tensor:
        """The teacher's tensor of `layer`, shaped as `LayerTrace` says for `site.field`; under BLOCK its input."""
        return self.teacher.tensors(self.site.field)[layer]
