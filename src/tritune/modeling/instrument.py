"""Give a model the two keyword arguments that distillation needs: `output_trace` and `intervention`.

    teacher_output = teacher(**batch, output_trace=["attention_probs"])
    output = student(**batch, output_trace=True, intervention=Intervention(Site.MAP, teacher_output.trace))
    output.trace.layers[0].attention_scores

`output_trace` takes True for everything, names of trace fields, or a mapping from names to the layers wanted (None for
all of them); hidden states always come whole.

Hooks stand only where a tensor has no other handle: the inputs of the Q, K and V Linears (stop-gradient), the output of
the attention projection, the block's input, the attention block's output, and the model's own call. What a call records
and replaces is its own `ForwardPass`; nothing is set on the model. Under gradient checkpointing the backward pass
computes layers again, within a copy of the pass that they were computed in.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import cache, partial
from threading import Lock
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..errors import TrituneError, UnsupportedModelError, first_line
from ..quant import MovingMinMax
from .anatomy import Anatomy, find_anatomy, unsupported, word_embedding_of
from .attention import IMPLEMENTATION, STATE_ATTRIBUTE, WITHOUT_MASKS, AttentionState
from .forward_pass import ForwardPass, checkpointed, pass_of
from .modes import evaluation_mode
from .own_method import give_method
from .sites import ATTENTION_SITES, Site
from .trace import TRACE_FIELDS, Intervention, ModelTrace

INSTRUMENT_ATTRIBUTE = "tritune_instrument"
# Two trainings may be given one teacher at the same moment.
_ATTACHING = Lock()


@dataclass(eq=False)
class Instrument:
    """The hooks of one model, and what they know of it; no forward pass changes it.

    Attributes:
        anatomy: where the hooks are.
        states: one `AttentionState` per attention module.
        ranges: quantizers whose range moves on with every training pass.
    """

    anatomy: Anatomy
    states: list[AttentionState] = field(default_factory=list)
    ranges: list[MovingMinMax] = field(default_factory=list)

    def begin(self, model: PreTrainedModel, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Forward pre-hook of the model: take our two arguments out and begin a pass."""
        fields, intervention = kwargs.pop("output_trace", None), kwargs.pop("intervention", None)
        this = ForwardPass(self, intervention=intervention)
        # While a graph is traced an error would leave a pass in force: `end` is called after one only elsewhere.
        if fields or intervention is not None or not torch.compiler.is_compiling():
            this.begin()
        this.record = fields = _requested_fields(fields)
        this.trace = ModelTrace() if fields else None
        if intervention is not None:
            self._check(model, intervention)
        if model.training:
            for quantizer in self.ranges:
                quantizer.advance()
        if fields:
            kwargs["return_dict"] = True
        if "hidden_states" in fields:
            kwargs["output_hidden_states"] = True
        if self.anatomy.is_causal and getattr(model.config, "use_cache", False) and (fields or model.training):
            kwargs.setdefault("use_cache", False)  # the keys and values of a whole sequence, for nothing
        return args, kwargs

    def end(self, model: PreTrainedModel, args: tuple, kwargs: dict, output: ModelOutput | None) -> ModelOutput | None:
        """Forward hook of the model, called after an error too: end the pass and put the trace into the output."""
        forward_pass = pass_of(self)
        record, trace, first_state = forward_pass.record, forward_pass.trace, forward_pass.first_state
        forward_pass.end()
        if output is None or trace is None:
            return output
        if "hidden_states" in record:
            trace.hidden_states = output["hidden_states"]
            if first_state is not None:  # some models report what the first block took instead
                trace.hidden_states = (first_state, *trace.hidden_states[1:])
        return _with_trace(type(output))(**output, trace=trace)

    def stop_gradient(self, sites: frozenset[Site], module: nn.Module, args: tuple) -> tuple | None:
        """Forward pre-hook of a Q, K or V Linear: detach its input, (batch, tokens, width), under `sites`."""
        intervention = pass_of(self).intervention
        return (args[0].detach(), *args[1:]) if intervention is not None and intervention.site in sites else None

    def stop_query_and_key(
        self, rows: tuple[int, ...], module: nn.Module, args: tuple, output: torch.Tensor
    ) -> torch.Tensor | None:
        """Forward hook of a fused Linear: under `Site.MAP` its input is detached for the rows of Q and K only.

        The Linear is computed twice then: a product of some of its rows alone could differ in the last bit.
        """
        intervention = pass_of(self).intervention
        if intervention is None or intervention.site is not Site.MAP or not torch.is_grad_enabled():
            return None
        query_and_key = rows[0] + rows[1]
        cut = module.forward(args[0].detach())
        return torch.cat([cut[..., :query_and_key], output[..., query_and_key:]], -1)

    def block_input(self, layers: tuple[int, ...], module: nn.Module, args: tuple) -> tuple | None:
        """Forward pre-hook of a block: under `Site.BLOCK` mix the teacher's state into its first argument, and cut it.

        The hidden states that are recorded stay the student's own, with their gradients.
        """
        forward_pass = pass_of(self)
        if forward_pass.intervention is None or forward_pass.intervention.site is not Site.BLOCK:
            return None
        forward_pass.layer = forward_pass.next_layer(module, layers)
        if forward_pass.first_state is None:
            forward_pass.first_state = args[0]
        return (forward_pass.replace(Site.BLOCK, args[0]).detach(), *args[1:])

    def projection(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        """Forward hook of W_O: record its output, (batch, tokens, width), and replace it under `Site.PROJECTION`."""
        pass_of(self).keep(attention_projection=output)
        return pass_of(self).replace(Site.PROJECTION, output)

    def norm_output(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        """Forward hook of a post-norm block's norm: its output is the block's."""
        pass_of(self).keep(attention_block_output=output)

    def norm_input(self, module: nn.Module, args: tuple) -> None:
        """Forward pre-hook of the norm after a pre-norm block: its input is the block's output."""
        pass_of(self).keep(attention_block_output=args[0])

    def _check(self, model: PreTrainedModel, intervention: Intervention) -> None:
        if not isinstance(intervention, Intervention):
            raise TrituneError(f"intervention must be an Intervention(site, teacher's trace); got {intervention!r}")
        layers = len(self.anatomy.sites)
        if len(intervention.teacher.layers) != layers:
            raise TrituneError(
                f"the teacher's trace has {len(intervention.teacher.layers)} layers, the student {layers}"
            )
        tensors = intervention.teacher.tensors(intervention.site.field)
        if not tensors or any(tensor is None for tensor in tensors):
            raise TrituneError(f"the teacher's trace lacks {intervention.site.field}, which {intervention.site} needs")
        if intervention.site is Site.BLOCK:
            blocks_of(model)
            if len(tensors) != layers + 1:
                raise TrituneError(
                    f"the teacher reports {len(tensors)} hidden states for {layers} layers, so {intervention.site} "
                    "cannot tell which of them its blocks take"
                )


def _requested_fields(wanted: bool | Iterable[str] | None) -> dict[str, Collection[int] | None]:
    """Field to the layers that it is wanted of, None for all."""
    if not wanted:
        return {}
    if isinstance(wanted, Mapping):
        fields = dict(wanted)
    else:
        fields = dict.fromkeys(TRACE_FIELDS if wanted is True else (wanted,) if isinstance(wanted, str) else wanted)
    if unknown := set(fields) - set(TRACE_FIELDS):
        raise TrituneError(f"unknown trace fields {sorted(unknown)}; known fields are {list(TRACE_FIELDS)}")
    return fields


@cache
def _with_trace(kind: type[ModelOutput]) -> type[ModelOutput]:
    """`kind` with a field for the trace: DDP takes outputs apart and puts them together by their fields."""
    return make_dataclass(f"Traced{kind.__name__}", [("trace", ModelTrace, None)], bases=(kind,))


def is_instrumented(model: nn.Module) -> bool:
    """Whether `model` takes `output_trace` and `intervention`."""
    return hasattr(model, INSTRUMENT_ATTRIBUTE)


def instrument_of(model: nn.Module) -> Instrument:
    """The instrument of an instrumented model: its anatomy and attention states."""
    return getattr(model, INSTRUMENT_ATTRIBUTE)


def blocks_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The name of the block that computes each layer of an instrumented model; layers that share weights name the same.

    Raises:
        UnsupportedModelError: the layers are no blocks that follow each other.
    """
    if not (names := instrument_of(model).anatomy.blocks):
        raise unsupported(model, "its layers are not blocks each of which takes what the one before it gives")
    return names


def instrument(model: PreTrainedModel, sample_inputs: dict[str, torch.Tensor] | None = None) -> PreTrainedModel:
    """Make `model` take `output_trace` and `intervention`; its numbers do not change. Idempotent.

    Args:
        model: any transformers model whose attention goes through `AttentionInterface`. Changed in place.
        sample_inputs: a small batch to find the attention sites with; made up from the config when None.

    Returns:
        The model.

    Raises:
        UnsupportedModelError: the family is not supported; the message names it and the reason.
    """
    with _ATTACHING:
        if not is_instrumented(model):
            _attach(model, _analyse(model, sample_inputs))
    return model


def instrument_skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """`instrument` for a model on the meta device, whose weights are still to come: shapes alone show its anatomy.

    Raises:
        UnsupportedModelError: the family is not supported, or cannot be run without weights.
    """
    with torch.device("cpu"):
        inputs = make_sample_inputs(model)
    inputs.pop("attention_mask", None)  # a mask is looked at: it must have values
    model.set_attn_implementation(WITHOUT_MASKS)
    try:
        anatomy = find_anatomy(model, inputs)
    except (NotImplementedError, RuntimeError) as error:
        raise unsupported(model, f"it cannot be run without weights ({first_line(error)})") from None
    finally:
        model.set_attn_implementation(IMPLEMENTATION)
    _attach(model, anatomy)
    return model


def _analyse(model: PreTrainedModel, sample_inputs: dict[str, torch.Tensor] | None = None) -> Anatomy:
    """Switch a float `model` to our attention function and return its anatomy.

    The outputs before and after the switch are compared, so that a family whose attention is more than
    softmax(QK^T/sqrt(d) + mask)V is refused rather than silently changed.
    """
    previous = model.config._attn_implementation
    if getattr(model.config, "is_encoder_decoder", False):
        raise unsupported(model, "it is an encoder with a decoder, and only one of them alone is served")
    if not model._can_set_attn_implementation():
        raise unsupported(model, "its attention does not go through transformers' AttentionInterface")
    inputs = sample_inputs if sample_inputs is not None else make_sample_inputs(model)
    model.set_attn_implementation("eager")
    expected = _outputs(model, inputs)
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        anatomy = find_anatomy(model, inputs)
        if not torch.allclose(_outputs(model, inputs), expected, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise unsupported(model, "its attention is not softmax(QK^T/sqrt(d) + mask)V")
    except UnsupportedModelError:
        model.set_attn_implementation(previous or "eager")
        raise
    return anatomy


def _attach(model: PreTrainedModel, anatomy: Anatomy) -> None:
    instrument = Instrument(anatomy)
    modules = dict(model.named_modules())
    calls: dict[str, list[int]] = {}
    for layer, site in enumerate(anatomy.sites):
        calls.setdefault(site.attention, []).append(layer)
    for layers in calls.values():
        site = anatomy.sites[layers[0]]
        state = AttentionState(instrument, tuple(layers))
        instrument.states.append(state)
        setattr(modules[site.attention], STATE_ATTRIBUTE, state)
        without_map = partial(instrument.stop_gradient, frozenset({Site.CONTEXT, Site.PROJECTION}))
        if site.fused_rows:
            modules[site.query].register_forward_hook(partial(instrument.stop_query_and_key, site.fused_rows))
        else:
            for name in (site.query, site.key):
                modules[name].register_forward_pre_hook(partial(instrument.stop_gradient, frozenset(ATTENTION_SITES)))
        modules[site.value].register_forward_pre_hook(without_map)
        modules[site.projection].register_forward_hook(instrument.projection)
        if site.post_norm:
            modules[site.norm].register_forward_hook(instrument.norm_output)
        else:
            modules[site.norm].register_forward_pre_hook(instrument.norm_input)
    for name in dict.fromkeys(anatomy.blocks):
        own = tuple(layer for layer, block in enumerate(anatomy.blocks) if block == name)
        modules[name].register_forward_pre_hook(partial(instrument.block_input, own))
    model.register_forward_pre_hook(instrument.begin, with_kwargs=True)
    model.register_forward_hook(instrument.end, with_kwargs=True, always_call=True)
    setattr(model, INSTRUMENT_ATTRIBUTE, instrument)
    _hand_on_under_checkpointing(model)


def _hand_on_under_checkpointing(model: PreTrainedModel) -> None:
    """Have whatever checkpoints a part of `model`, now or later, hand on the pass in which the part is computed."""
    give_method(model, _set_gradient_checkpointing)
    for module in model.modules():
        if (checkpoint := vars(module).get("_gradient_checkpointing_func")) is not None:
            vars(module)["_gradient_checkpointing_func"] = partial(checkpointed, checkpoint)


def _set_gradient_checkpointing(
    model: PreTrainedModel, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **options: Any
) -> None:
    handed_on = partial(checkpointed, gradient_checkpointing_func)
    type(model)._set_gradient_checkpointing(model, enable, handed_on, **options)


def make_sample_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A batch of two for any text or image model: token ids, the second row padded, or (2, channels, height, width).

    Raises:
        UnsupportedModelError: the model takes neither.
    """
    device, config = model.device, model.config
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        config = getattr(config, "vision_config", config)
        size = config.image_size if isinstance(config.image_size, Iterable) else (config.image_size, config.image_size)
        shape = (2, getattr(config, "num_channels", 3), *size)
        return {"pixel_values": torch.randn(shape, generator=generator).to(device, model.dtype)}
    if (embedding := word_embedding_of(model)) is None:
        raise unsupported(
            model, "no sample_inputs are given, and none can be made up without a table of token embeddings"
        )
    positions = getattr(config, "max_position_embeddings", None) or 0
    length = min(8, positions) if positions > 0 else 8  # XLNet says -1
    ids = torch.randint(0, embedding.num_embeddings, (2, length), generator=generator)
    if (padding := getattr(config, "pad_token_id", None)) is not None:
        ids[ids == padding] = (padding + 1) % embedding.num_embeddings
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _outputs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with evaluation_mode(model), torch.no_grad():
        return model(**inputs, return_dict=False)[0]
