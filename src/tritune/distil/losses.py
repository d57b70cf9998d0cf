"""The distillation losses: one function per loss, and the table that names them.

TernaryBERT (EMNLP 2020) distils logits, hidden states and attention scores; Teacher Intervention (EACL 2023) adds the
attention block's output; *Understanding and Improving KD* (EMNLP 2022) the attention map. Within a layer a loss is a
mean, over layers a sum. `average` says what the mean runs over: `padded`, every entry as in the published code, whose
balance of losses then depends on the padding; or `valid`, unpadded tokens only, first within a sequence and then over
the batch, so that neither padding nor the way a batch is split over devices changes anything. Whatever precision the
models computed in, losses are taken in float32 or wider.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput

from ..errors import TrituneError, shown
from ..modeling.trace import LayerTrace
from ..quant.granularity import wide_dtype
from .choices import ALL_LAYERS, check_distil_layers
from .next_token import IGNORED, next_token_cross_entropy, token_scaled_soft_cross_entropy

MULTI_LABEL = "multi_label_classification"  # as transformers' configs name it

# Keeps log-probabilities finite where a probability underflows; the value of the published code.
SMALLEST_PROBABILITY = 1e-8


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """-sum p_T log p_S, mean over the batch (TernaryBERT, eq. 9).

    Args:
        student, teacher: logits, (batch, classes).
        temperature: t divides both models' logits; the result is then multiplied by t^2, so that gradients keep their
            size whatever t is (Hinton et al., Distilling the Knowledge in a Neural Network, section 2).
    """
    student, teacher = (logits / temperature for logits in _wide(student, teacher))
    return temperature**2 * -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1).mean()


def binary_soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """-(p_T log p_S + (1 - p_T) log(1 - p_S)) with p = sigmoid(logit), mean over batch and labels.

    What `soft_cross_entropy` is for classes that exclude each other, for labels each of which is a yes or no of its
    own; a mean over the labels, as is the binary cross-entropy of the ground truth.

    Args:
        student, teacher: logits, (batch, labels).
        temperature: as in `soft_cross_entropy`.
    """
    student, teacher = (logits / temperature for logits in _wide(student, teacher))
    return temperature**2 * F.binary_cross_entropy_with_logits(student, teacher.sigmoid())


def binary_kl_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of labels each of which is a yes or no of its own, summed over them, mean over the batch.

    Args:
        student, teacher: logits, (batch, labels).
    """
    student, teacher = _wide(student, teacher)
    return sum(
        F.kl_div(F.logsigmoid(sign * student), F.logsigmoid(sign * teacher), reduction="batchmean", log_target=True)
        for sign in (1, -1)
    )


def token_soft_cross_entropy(
    student: torch.Tensor,
    teacher: torch.Tensor,
    token_mask: torch.Tensor | None,
    average: str,
    temperature: float = 1.0,
) -> torch.Tensor:
    """`soft_cross_entropy` of every token's class (token classification).

    Args:
        student, teacher: logits, (batch, tokens, classes).
        token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
        average: `padded` or `valid`.
        temperature: see `soft_cross_entropy`.
    """
    student, teacher = (logits / temperature for logits in _wide(student, teacher))
    per_token = temperature**2 * -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1)
    everywhere = average == "padded" or token_mask is None
    return _mean(per_token, torch.ones_like(per_token) if everywhere else token_mask, average)


def position_soft_cross_entropy(
    student: torch.Tensor, teacher: torch.Tensor, token_mask: torch.Tensor | None, temperature: float = 1.0
) -> torch.Tensor:
    """`soft_cross_entropy` over the positions of a sequence (where an answer starts, or ends).

    Padding is no position that an answer could have, so it is left out whatever the average.

    Args:
        student, teacher: logits, (batch, tokens).
        token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
        temperature: see `soft_cross_entropy`.
    """
    if token_mask is None:
        return soft_cross_entropy(student, teacher, temperature)
    hidden = token_mask == 0
    student, teacher = (_hide(logits / temperature, hidden) for logits in _wide(student, teacher))
    terms = (teacher.softmax(-1) * student.log_softmax(-1)).masked_fill(hidden, 0)
    return temperature**2 * -terms.sum(-1).mean()


def kl_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student), mean over the batch: `soft_cross_entropy` minus the teacher's entropy.

    Args:
        student, teacher: logits, (batch, classes).
    """
    student, teacher = _wide(student, teacher)
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)


def token_mse(
    student: torch.Tensor, teacher: torch.Tensor, token_mask: torch.Tensor | None, average: str
) -> torch.Tensor:
    """Mean squared difference of token vectors (hidden states, block outputs, projections, contexts).

    Args:
        student, teacher: (batch, tokens, width) or (batch, heads, tokens, width).
        token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
        average: `padded` or `valid`.
    """
    student, teacher = _wide(student, teacher)
    if average == "padded" or token_mask is None:
        return F.mse_loss(student, teacher)
    per_token = (student - teacher).square().mean(-1)
    weight = _token_weight(token_mask, per_token.dtype)
    if per_token.ndim == 3:
        weight = weight[:, None]
    return (per_token * weight).sum(-1).mean()


def attention_score_mse(
    student: torch.Tensor,
    teacher: torch.Tensor,
    masked: torch.Tensor | None,
    token_mask: torch.Tensor | None,
    average: str,
) -> torch.Tensor:
    """Mean squared difference of attention scores with masked entries zeroed (TernaryBERT, eq. 8).

    Args:
        student, teacher: (batch, heads, query, key).
        masked: bool, broadcastable to them, True where the mask hides a key; None without mask.
        token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
        average: `padded` or `valid`.
    """
    student, teacher = _wide(student, teacher)
    difference = student - teacher
    if masked is not None:
        difference = difference.masked_fill(masked, 0)
    if average == "padded" or token_mask is None:
        return difference.square().mean()
    weight = _token_weight(token_mask, difference.dtype)
    return (difference.square() * weight[:, None, :, None] * weight[:, None, None, :]).sum((-2, -1)).mean()


def attention_map_kl(student: torch.Tensor, teacher: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
    """KL(teacher || student) of attention rows (Understanding KD for QAT, EMNLP 2022, eq. 7).

    Summed over the real rows and keys and divided by the true length, then the mean over batch and heads; padding never
    counts, so there is no `average` to choose.

    Args:
        student, teacher: attention probabilities, (batch, heads, query, key).
        token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
    """
    student, teacher = (probs.clamp(min=SMALLEST_PROBABILITY) for probs in _wide(student, teacher))
    divergence = teacher * (teacher.log() - student.log())
    if token_mask is None:
        return divergence.sum(-1).mean()
    rows = (divergence * token_mask[:, None, None, :]).sum(-1)
    return (rows * _token_weight(token_mask, rows.dtype)[:, None]).sum(-1).mean()


def embedding_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """|s - t|^2 / |t|^2, mean over the batch; for embeddings of length 1 that is 2 (1 - cosine).

    The squared distance of *Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation* (Reimers
    & Gurevych, EMNLP 2020, eq. 1), measured in the teacher's own length so that neither width nor scale sets its weight
    among the other losses.

    Args:
        student, teacher: pooled embeddings, (batch, width).
    """
    student, teacher = _wide(student, teacher)
    lengths = teacher.square().sum(-1).clamp(min=SMALLEST_PROBABILITY)
    return ((student - teacher).square().sum(-1) / lengths).mean()


def distilled_layers(choice: str | Sequence[int], count: int) -> tuple[int, ...] | None:
    """The layers, counted from 0, that a `distil_layers` chooses of `count`; None for `all`.

    `last` and `every-n` (the n-th layer, the 2n-th and so on) are PKD-last and PKD-skip of *Patient Knowledge
    Distillation* (EMNLP 2019).

    >>> distilled_layers("last", 6), distilled_layers("every-2", 6), distilled_layers([4, 0], 6)
    ((5,), (1, 3, 5), (0, 4))

    Raises:
        TrituneError: the choice is none of those, or names a layer that the model does not have.
    """
    check_distil_layers(choice)
    if choice == ALL_LAYERS:
        return None
    if isinstance(choice, str):
        step = count if choice == "last" else int(choice.removeprefix("every-"))
        chosen = tuple(range(step - 1, count, step))
    else:
        chosen = tuple(sorted(choice))
    if not chosen or chosen[-1] >= count:
        named = choice if isinstance(choice, str) else list(choice)
        raise TrituneError(f"distil_layers: {shown(named)}, but the model has only {count} layers (counted from 0)")
    return chosen


def check_temperature(temperature: float, regression: bool) -> None:
    """Raise TrituneError for a temperature that is not a positive number, or that a regression would not notice."""
    if not 0 < temperature < math.inf:
        raise TrituneError(f"temperature must be a positive number; got {temperature}")
    if regression and temperature != 1:
        raise TrituneError("temperature would change nothing: regression compares scores, not probabilities")


def _wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(wide_dtype(tensor)) for tensor in tensors]


def _token_weight(token_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(batch, tokens): 1/length at real tokens, 0 at padding; an empty sequence weighs nothing."""
    mask = token_mask.to(dtype)
    return mask / mask.sum(-1, keepdim=True).clamp(min=1)


def _hide(logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Logits that say no; finite, because a sequence may be hidden whole."""
    return logits.masked_fill(hidden, torch.finfo(logits.dtype).min)


def _mean(values: torch.Tensor, counted: torch.Tensor, average: str) -> torch.Tensor:
    """Mean of (batch, places) where `counted` is 1: of all together, or `valid`, first within a row."""
    if average == "padded":
        return (values * counted).sum() / counted.sum().clamp(min=1)
    return (values * _token_weight(counted, values.dtype)).sum(-1).mean()


@dataclass(frozen=True)
class Pair:
    """A student's and a teacher's outputs for one batch, and what the losses need to compare them.

    Attributes:
        student, teacher: model outputs with `logits`, (batch, classes) or (batch, tokens, classes), or with
            `start_logits` and `end_logits`, each (batch, tokens); and, where a loss needs it, `trace`.
        token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
        labels: class ids or scores, (batch,), or zeros and ones, (batch, labels); of tokens (batch, tokens); of an
            answer its first and its last token, (batch, 2). Negative class ids do not count. Only ground truth and
            language models need them.
        average: `padded` or `valid`.
        regression: whether the logits are scores rather than classes.
        temperature: of the logits loss; regression has none.
        layers: that the losses taken per layer read, see `distilled_layers`; None for all, and the embeddings too.
        causal: whether the logits, (batch, tokens, vocabulary), are about the next token, and the labels token ids.
        multi_label: whether each logit is a yes or no of its own.
        embeddings: the student's and the teacher's pooled embeddings, each (batch, width), of a sentence encoder.
    """

    student: ModelOutput
    teacher: ModelOutput
    token_mask: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    average: str = "padded"
    regression: bool = False
    temperature: float = 1.0
    layers: tuple[int, ...] | None = None
    causal: bool = False
    multi_label: bool = False
    embeddings: tuple[torch.Tensor, torch.Tensor] | None = None

    def traces(self) -> Iterator[tuple[LayerTrace, LayerTrace]]:
        """Student's and teacher's trace of every chosen layer."""
        pairs = list(zip(self.student.trace.layers, self.teacher.trace.layers, strict=True))
        return iter(pairs) if self.layers is None else (pairs[layer] for layer in self.layers)

    def hidden_states(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Student's and teacher's output of every chosen layer, each (batch, tokens, width).

        Of `count` layers there are `count` + 1: the embeddings, which only the choice of all layers includes, and at
        l + 1 the output of layer l.

        Raises:
            TrituneError: layers are chosen in a model that does not report the output of each.
        """
        states = list(zip(self.student.trace.hidden_states, self.teacher.trace.hidden_states, strict=True))
        if self.layers is None:
            return iter(states)
        count = len(self.student.trace.layers)
        if len(states) != count + 1:
            raise TrituneError(
                f"distil_layers: this model reports {len(states)} hidden states for {count} layers, so they cannot be "
                "told apart; take all, or hidden_states_coefficient 0"
            )
        return (states[layer + 1] for layer in self.layers)


@dataclass(frozen=True)
class Loss:
    """A row of the table: what a loss reads from the traces, and how it is computed."""

    compute: Callable[[Pair], torch.Tensor]
    fields: tuple[str, ...] = ()


def _positions(output: ModelOutput) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Start and end logits, each (batch, tokens), of a model that points at an answer; None for any other."""
    start = getattr(output, "start_logits", None)
    return None if start is None else (start, output.end_logits)


def _logits(pair: Pair) -> torch.Tensor:
    """Soft cross-entropy; of an answer's start and end their mean, as in the task's own loss."""
    if positions := _positions(pair.student):
        both = zip(positions, _positions(pair.teacher), strict=True)
        return sum(position_soft_cross_entropy(*one, pair.token_mask, pair.temperature) for one in both) / 2
    student, teacher = pair.student.logits, pair.teacher.logits
    if pair.regression:
        return F.mse_loss(*_wide(student, teacher))
    if pair.multi_label:
        return binary_soft_cross_entropy(student, teacher, pair.temperature)
    if student.ndim == 3:
        return token_soft_cross_entropy(student, teacher, pair.token_mask, pair.average, pair.temperature)
    return soft_cross_entropy(student, teacher, pair.temperature)


def _token_scaled_logits(pair: Pair) -> torch.Tensor:
    if not pair.causal or pair.labels is None:
        raise TrituneError("token_scaled_logits: only for a causal language model whose batches have labels")
    return token_scaled_soft_cross_entropy(pair.student.logits, pair.teacher.logits, pair.labels, pair.token_mask)


def _ground_truth(pair: Pair) -> torch.Tensor:
    """Cross-entropy on the labels; of an answer's start and end their mean."""
    if pair.causal:
        return next_token_cross_entropy(pair.student.logits, pair.labels, pair.token_mask)
    if positions := _positions(pair.student):
        start, end = _wide(*positions)
        if pair.token_mask is not None:
            start, end = (_hide(logits, pair.token_mask == 0) for logits in (start, end))
        # A position beyond the window is one that the model cannot point at.
        labels = pair.labels.masked_fill(pair.labels >= start.shape[-1], IGNORED)
        return _labelled(torch.stack([start, end], dim=1), labels, pair.average)
    (logits,) = _wide(pair.student.logits)
    if pair.regression:
        return F.mse_loss(logits.squeeze(-1), pair.labels.to(logits.dtype))
    if pair.multi_label:
        return F.binary_cross_entropy_with_logits(logits, pair.labels.to(logits.dtype))
    if logits.ndim == 3:
        return _labelled(logits, pair.labels, pair.average)
    return F.cross_entropy(logits, pair.labels)


def _labelled(logits: torch.Tensor, labels: torch.Tensor, average: str) -> torch.Tensor:
    """Mean cross-entropy of (batch, places, classes) over the places whose label, (batch, places), counts."""
    labels = labels.masked_fill(labels < 0, IGNORED)
    values = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return _mean(values, labels != IGNORED, average)


def _embedding(pair: Pair) -> torch.Tensor:
    if pair.embeddings is None:
        raise TrituneError("embedding: only a sentence encoder has one, and here none is read")
    return embedding_distance(*pair.embeddings)


def _hidden_states(pair: Pair) -> torch.Tensor:
    return sum(token_mse(student, teacher, pair.token_mask, pair.average) for student, teacher in pair.hidden_states())


def _attention_scores(pair: Pair) -> torch.Tensor:
    return sum(
        attention_score_mse(
            student.attention_scores, teacher.attention_scores, student.masked, pair.token_mask, pair.average
        )
        for student, teacher in pair.traces()
    )


def _attention_maps(pair: Pair) -> torch.Tensor:
    return sum(
        attention_map_kl(student.attention_probs, teacher.attention_probs, pair.token_mask)
        for student, teacher in pair.traces()
    )


def _per_layer(field: str) -> Loss:
    def compute(pair: Pair) -> torch.Tensor:
        """Mean squared difference of one trace field, summed over the layers."""
        return sum(
            token_mse(getattr(student, field), getattr(teacher, field), pair.token_mask, pair.average)
            for student, teacher in pair.traces()
        )

    return Loss(compute, (field,))


LOSSES: dict[str, Loss] = {
    "logits": Loss(_logits),
    "token_scaled_logits": Loss(_token_scaled_logits),
    "hidden_states": Loss(_hidden_states, ("hidden_states",)),
    "attention_scores": Loss(_attention_scores, ("attention_scores",)),
    "attention_map": Loss(_attention_maps, ("attention_probs",)),
    "block_output": _per_layer("attention_block_output"),
    "context": _per_layer("context"),
    "projection": _per_layer("attention_projection"),
    "ground_truth": Loss(_ground_truth),
    "embedding": Loss(_embedding),
}


def distillation_losses(pair: Pair, coefficients: dict[str, float]) -> dict[str, torch.Tensor]:
    """Every loss of `LOSSES` whose coefficient is not zero, unweighted, by name; each a scalar."""
    return {name: LOSSES[name].compute(pair) for name, weight in coefficients.items() if weight}


def trace_fields(coefficients: dict[str, float]) -> frozenset[str]:
    """The trace fields that these losses read."""
    return frozenset(field for name, weight in coefficients.items() if weight for field in LOSSES[name].fields)
