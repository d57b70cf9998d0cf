"""Whether and how a student of another shape can learn from a teacher: layer by layer, width by width.

Models of the same shape always can. Others are run once on a small batch, and the shapes of whatever the losses compare
or the intervention plugs in are compared. Rejected: reading heads and widths from configs, which every family names
differently.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..distil.layer_map import mapped_layers
from ..distil.losses import LOSSES, Pair, trace_fields
from ..errors import TrituneError
from ..modeling.instrument import blocks_of, instrument, instrument_of, make_sample_inputs
from ..modeling.modes import evaluation_mode
from ..modeling.shrink import layers_kept
from ..modeling.sites import ATTENTION_SITES, Site
from ..modeling.trace import ModelTrace

_HIDDEN = "hidden_states"
# Names of the axes of a trace field after the batch axis.
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
        layer_map: the teacher layer of each student layer; None for models of the same depth.
        hidden_widths: widths of student and teacher if the compared hidden states differ in width, else None.
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
        layer_map: see `layer_map.mapped_layers`. For a student made by `tritune.shrink` from a model as deep as the
            teacher, None means the layers that were kept.

    Raises:
        TrituneError: depths differ and the layer map is unknown, or a tensor of the student has another shape than the
            teacher's; the message says which losses and sites to leave out.
        UnsupportedModelError: the schedule is `block`, and the student's layers are no blocks that follow each other.
    """
    depths = [len(instrument_of(instrument(model)).anatomy.sites) for model in (student, teacher)]
    fields = trace_fields(coefficients)
    if layer_map is None and depths[0] != depths[1]:
        if not fields and schedule is None:
            return Pairing()
        layer_map = layers_kept(student.config, depths[1])
    if schedule == Site.BLOCK:
        blocks_of(student)
    mapped = mapped_layers(layer_map, *depths)
    if mapped is None and _alike(student, teacher):
        return Pairing()
    # A schedule that is not a single site uses all of those in the attention.
    sites = [] if schedule is None else [site for site in Site if site == schedule] or list(ATTENTION_SITES)
    wanted = fields | {site.field for site in sites}
    traces = [_trace(model, wanted) for model in (student, teacher)] if wanted else [ModelTrace(), ModelTrace()]
    own, theirs = traces[0], traces[1].mapped(mapped if wanted else None)
    widths = _hidden_widths(own, theirs) if _HIDDEN in fields else None
    projects = widths is not None and Site.BLOCK not in sites  # what is plugged in is not
    compared = wanted - {_HIDDEN} if projects else wanted
    _check(_misfits(own, theirs, compared), coefficients, schedule, sites)
    return Pairing(mapped, widths)


def check_hidden_states(model: PreTrainedModel, coefficients: dict[str, float], layers: tuple[int, ...] | None) -> None:
    """Raise TrituneError if losses compare hidden states of single `layers` and the instrumented `model` lacks some."""
    if layers is None or _HIDDEN not in trace_fields(coefficients):
        return
    output = ModelOutput(trace=_trace(model, frozenset({_HIDDEN})))
    Pair(output, output, layers=layers).hidden_states()


def _alike(student: PreTrainedModel, teacher: PreTrainedModel) -> bool:
    """Whether both have the same attention weights and heads, as a teacher and its copy do."""

    def shape(model: PreTrainedModel) -> list[Any]:
        """Everything that determines the sizes of a trace."""
        sites = instrument_of(model).anatomy.sites
        weights = [model.get_parameter(f"{n}.weight").shape for s in sites for n in (s.query, s.value, s.projection)]
        return [*weights, getattr(model.config, "num_attention_heads", None)]

    return shape(student) == shape(teacher)


def _trace(model: PreTrainedModel, fields: frozenset[str]) -> ModelTrace:
    with evaluation_mode(model), torch.no_grad():
        return model(**make_sample_inputs(model), output_trace=fields).trace


def _hidden_widths(own: ModelTrace, theirs: ModelTrace) -> tuple[int, int] | None:
    """The two widths, if the hidden states differ in nothing else."""
    shapes = [[state.shape for state in trace.tensors(_HIDDEN)] for trace in (own, theirs)]
    widths = [{shape[-1] for shape in side} for side in shapes]
    same_tokens = [shape[:-1] for shape in shapes[0]] == [shape[:-1] for shape in shapes[1]]
    if not same_tokens or widths[0] == widths[1] or any(len(side) > 1 for side in widths):
        return None
    return widths[0].pop(), widths[1].pop()


def _misfits(own: ModelTrace, theirs: ModelTrace, fields: Iterable[str]) -> dict[str, str]:
    """The sizes in which the student differs from the teacher, for each field, in the first layer that does."""
    found = {}
    for field in fields:
        sides = own.tensors(field), theirs.tensors(field)
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
    outside = {site.value: misfits[site.field] for site in sites if site.field in misfits}
    advice = []
    if losses:
        advice.append(f"{_listed(losses)}: set {', '.join(f'{name}_coefficient' for name in losses)} to 0")
    if outside:
        fitting = [site.value for site in sites if site.value not in outside] if len(sites) > 1 else []
        instead = f"{' or '.join(fitting)}, or null" if fitting else "null"
        advice.append(f"schedule {schedule} plugs in {_listed(outside)}: set it to {instead}")
    if advice:
        raise TrituneError(f"the student's tensors do not fit the teacher's; {'; '.join(advice)}")


def _listed(reasons: dict[str, str]) -> str:
    return ", ".join(f"{name} ({reason})" for name, reason in reasons.items())
