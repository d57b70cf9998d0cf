"""Whether a student of another shape can learn from a teacher, and how: layer by layer, width by width.

Models of the same shape always can. Of others both are run once on a small batch, and whatever the losses would compare
or the intervention plug in is held side by side. Rejected: reading heads and widths from configs, where every family
has names of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..distil.layer_map import mapped_layers
from ..distil.losses import LOSSES, Pair, trace_fields
from ..errors import TrituneError
from ..modeling.instrument import instrument, instrument_of, make_sample_inputs
from ..modeling.modes import evaluation_mode
from ..modeling.shrink import layers_kept
from ..modeling.trace import ModelTrace, Site

_HIDDEN = "hidden_states"
# What the sizes of a trace field after the batch are called.
_SIZES = {
    "attention_scores": ("heads", "queries", "keys"),
    "attention_probs": ("heads", "queries", "keys"),
    "context": ("heads", "tokens", "head width"),
}
_SIZES_OF_TOKENS = ("tokens", "width")


@dataclass(frozen=True)
class Pairing:
    """How a student learns from a teacher.

    Attributes:
        layer_map: the teacher's layer for each of the student's, None for models of the same depth.
        hidden_widths: of student and teacher, where the hidden states that are compared differ in width; else None.
    """

    layer_map: tuple[int, ...] | None = None
    hidden_widths: tuple[int, int] | None = None


def pairing(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    coefficients: dict[str, float],
    schedule: str | None,
    layer_map: str | Sequence[int] | None,
) -> Pairing:
    """How `student` learns from `teacher`.

    Args:
        student, teacher: float or QAT; instrumented if they are not yet.
        coefficients: of the losses of `distil.losses.LOSSES`.
        schedule: of the intervention, or None.
        layer_map: see `layer_map.mapped_layers`. None takes, for a student that `tritune.shrink` made from a model as
            deep as the teacher, the layers that it kept.

    Raises:
        TrituneError: depths differ and nothing says which layer learns from which, or a tensor of the student has
            another shape than the teacher's; the message says which losses and sites to leave out.
    """
    depths = [len(instrument_of(instrument(model)).anatomy.sites) for model in (student, teacher)]
    fields = trace_fields(coefficients)
    if layer_map is None and depths[0] != depths[1]:
        if not fields and schedule is None:
            return Pairing()
        layer_map = layers_kept(student.config, depths[1])
    mapped = mapped_layers(layer_map, *depths)
    if mapped is None and _alike(student, teacher):
        return Pairing()
    # Where a schedule is not one site, it comes to all of them.
    sites = [] if schedule is None else [site for site in Site if site == schedule] or list(Site)
    wanted = fields | {site.field for site in sites}
    traces = [_trace(model, wanted) for model in (student, teacher)] if wanted else [ModelTrace(), ModelTrace()]
    own, theirs = traces[0], traces[1].mapped(mapped if wanted else None)
    widths = _hidden_widths(own, theirs) if _HIDDEN in fields else None
    _check(_misfits(own, theirs, wanted, widths), coefficients, schedule, sites)
    return Pairing(mapped, widths)


def check_hidden_states(model: PreTrainedModel, coefficients: dict[str, float], layers: Sequence[int] | None) -> None:
    """Raise TrituneError if hidden states of some `layers` are to be compared and the model reports none per layer.

    Args:
        model: instrumented.
        coefficients: of the losses of `distil.losses.LOSSES`.
        layers: as `distil.layer_map.distilled_layers` gives them; None for all.
    """
    if layers is None or _HIDDEN not in trace_fields(coefficients):
        return
    output = ModelOutput(trace=_trace(model, frozenset({_HIDDEN})))
    Pair(output, output, layers=tuple(layers)).hidden_states()


def _alike(student: PreTrainedModel, teacher: PreTrainedModel) -> bool:
    """Whether both have the same attention weights and heads, as a teacher and its copy do."""

    def shape(model: PreTrainedModel) -> list:
        """Of everything that a trace's sizes follow from."""
        sites = instrument_of(model).anatomy.sites
        weights = [model.get_submodule(n).weight.shape for s in sites for n in (s.query, s.value, s.projection)]
        return [*weights, getattr(model.config, "num_attention_heads", None)]

    return shape(student) == shape(teacher)


def _trace(model: PreTrainedModel, fields: frozenset[str]) -> ModelTrace:
    with evaluation_mode(model), torch.no_grad():
        return model(**make_sample_inputs(model), output_trace=fields).trace


def _hidden_widths(own: ModelTrace, theirs: ModelTrace) -> tuple[int, int] | None:
    """The two widths, if that is all in which the hidden states differ."""
    shapes = [[state.shape for state in trace.hidden_states] for trace in (own, theirs)]
    widths = [{shape[-1] for shape in side} for side in shapes]
    same_tokens = [shape[:-1] for shape in shapes[0]] == [shape[:-1] for shape in shapes[1]]
    if not same_tokens or widths[0] == widths[1] or any(len(side) > 1 for side in widths):
        return None
    return widths[0].pop(), widths[1].pop()


def _misfits(
    own: ModelTrace, theirs: ModelTrace, fields: frozenset[str], widths: tuple[int, int] | None
) -> dict[str, str]:
    """Field to the sizes in which the student differs from the teacher, of the first layer that does."""
    found = {}
    for field in fields:
        if field == _HIDDEN:
            sides = [trace.hidden_states for trace in (own, theirs)]
            if widths is not None:
                continue
        else:
            sides = [[getattr(layer, field) for layer in trace.layers] for trace in (own, theirs)]
        if len(sides[0]) != len(sides[1]):
            found[field] = f"{len(sides[0])} of them against {len(sides[1])}"
            continue
        sizes = _SIZES.get(field, _SIZES_OF_TOKENS)
        for one, other in zip(*sides, strict=True):
            if one.shape != other.shape:
                pairs = zip(sizes, one.shape[1:], other.shape[1:], strict=True)
                found[field] = ", ".join(f"{name} {a} against {b}" for name, a, b in pairs if a != b)
                break
    return found


def _check(misfits: dict[str, str], coefficients: dict[str, float], schedule: str | None, sites: list[Site]) -> None:
    losses = {name: misfits[field] for name in coefficients for field in LOSSES[name].fields if field in misfits}
    losses = {name: reason for name, reason in losses.items() if coefficients[name]}
    outside = {site: misfits[site.field] for site in sites if site.field in misfits}
    advice = []
    if losses:
        advice.append(f"{_listed(losses)}: set {', '.join(f'{name}_coefficient' for name in losses)} to 0")
    if outside:
        fitting = [site.value for site in Site if site not in outside] if len(sites) > 1 else []
        instead = f"{' or '.join(fitting)}, or null" if fitting else "null"
        advice.append(f"schedule {schedule} plugs in {_listed(outside)}: take {instead}")
    if advice:
        raise TrituneError(f"the student's tensors do not fit the teacher's; {'; '.join(advice)}")


def _listed(reasons: dict[str, str]) -> str:
    return ", ".join(starmap("{} ({})".format, reasons.items()))
