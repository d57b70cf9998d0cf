"""`Pair`: what the losses compare."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from ...engine.answers import MULTI_LABEL
from ...errors import TrituneError
from ...modeling.trace import LayerTrace


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
        class_weights: (classes,), of the rows of each class in the ground truth loss; None weighs all alike.
        embeddings: the student's and the teacher's pooled embeddings, each (batch, width), of a sentence encoder.
    """

    student: Any  # as a ModelOutput, which declares none of its fields
    teacher: Any
    token_mask: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    average: str = "padded"
    regression: bool = False
    temperature: float = 1.0
    layers: tuple[int, ...] | None = None
    causal: bool = False
    multi_label: bool = False
    class_weights: torch.Tensor | None = None
    embeddings: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def of_batch(
        cls, student: Any, teacher: Any, batch: Mapping[str, torch.Tensor], config: PreTrainedConfig, **more: Any
    ) -> "Pair":
        """The pair of two outputs for a batch, which may have labels, of models with this kind of head."""
        return cls(
            student,
            teacher,
            token_mask=batch.get("attention_mask"),
            labels=batch.get("labels"),
            regression=config.num_labels == 1,
            multi_label=config.problem_type == MULTI_LABEL,
            **more,
        )

    def traces(self) -> Iterator[tuple[LayerTrace, LayerTrace]]:
        """Student's and teacher's trace of every chosen layer."""
        pairs = list(zip(self.student.trace.layers, self.teacher.trace.layers, strict=True))
        return iter(pairs) if self.layers is None else (pairs[layer] for layer in self.layers)

    def traced(self, field: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Student's and teacher's tensor of one field of `LayerTrace`, of every chosen layer."""
        return ((getattr(student, field), getattr(teacher, field)) for student, teacher in self.traces())

    def hidden_states(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Student's and teacher's output of every chosen layer, each (batch, tokens, width).

        Of `count` layers there are `count` + 1: the embeddings, which only the choice of all layers includes, and at
        l + 1 the output of layer l.

        Raises:
            TrituneError: layers are chosen in a model that does not report the output of each.
        """
        both = (output.trace.hidden_states or () for output in (self.student, self.teacher))
        states = list(zip(*both, strict=True))
        if self.layers is None:
            return iter(states)
        count = len(self.student.trace.layers)
        if len(states) != count + 1:
            raise TrituneError(
                f"distil_layers: this model reports {len(states)} hidden states for {count} layers, so they cannot be "
                "told apart; take all, or hidden_states_coefficient 0"
            )
        return (states[layer + 1] for layer in self.layers)


def positions(output: object) -> tuple[torch.Tensor, ...]:
    """Start and end logits, each (batch, tokens), of a model that points at an answer; none of any other."""
    return tuple(getattr(output, name) for name in ("start_logits", "end_logits") if hasattr(output, name))
