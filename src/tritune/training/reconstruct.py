"""`tritune.reconstruct`: a student fitted to its teacher part by part, from unlabelled rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..distil.losses import LOSSES, Pair
from ..distil.reconstruct import AnswerLoss, Reconstruction, Stage
from ..errors import TrituneError, UnsupportedModelError
from ..modeling.blocks import Batch
from ..modeling.instrument import blocks_of, instrument, is_instrumented
from ..progress import Stage as Shown
from ..progress import stage
from ..tasks.heads import TEXT_CLASSIFICATION, Head
from .pairing import pairing


def reconstruct(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    data: Sequence[str] | Sequence[tuple[str, str]] | Sequence[Batch],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    steps: int = 300,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    max_length: int = 128,
    layer_map: str | Sequence[int] | None = None,
    head: Head = TEXT_CLASSIFICATION,
    seed: int = 0,
    cache_bytes: int = 2**31,
    told: Callable[[Stage], None] = lambda stage: None,
) -> list[Stage]:
    """Fit a student to its teacher block by block, see `distil.reconstruct`; no label is read.

        student = tritune.prepare(model, Quantization(weight_granularity="row", activation_granularity="token",
                                                      weight_clip=None, activation_clip=None))
        for stage in tritune.reconstruct(student, teacher, texts, tokenizer):
            print(stage)

    Args:
        student: from `tritune.prepare`; trained in place, without dropout.
        teacher: a float model of the same width; it is instrumented.
        data: texts, or pairs of texts; or batches of model inputs, which need no tokenizer.
        tokenizer: of the texts.
        steps: updates of every stage: the embeddings, each block, and what comes after the blocks.
        batch_size: texts per batch. At most `steps` batches are used, drawn at random.
        learning_rate: of Adam at the beginning of every stage; it falls linearly to 0.
        max_length: tokens per text.
        layer_map: the teacher's layer for each of the student's: `uniform`, `last` or a list; None for the same depth.
        head: the kind of task; for models without logits, its `read` gives the embeddings that are compared.
        seed: of the choice and the order of the batches.
        cache_bytes: memory for hidden states; beyond it they are kept in float16, then on disk.
        told: called after every stage.

    Returns:
        The stages, with the error of each before and after.

    Raises:
        TrituneError: the student is not prepared, there is no data or no tokenizer, or the models do not match.
        UnsupportedModelError: a model's layers are not blocks that follow each other (Swin).
    """
    if not is_instrumented(student):
        raise TrituneError("reconstruct: the student must come from tritune.prepare")
    instrument(teacher)
    batches = _batches(data, tokenizer, steps, batch_size, max_length, seed)
    batches = [{name: tensor.to(student.device) for name, tensor in batch.items()} for batch in batches]
    work = Reconstruction(
        student,
        teacher,
        batches,
        answer_loss(teacher, head),
        steps=steps,
        learning_rate=learning_rate,
        layer_map=check_models(student, teacher, layer_map),
        seed=seed,
        cache_bytes=cache_bytes,
    )
    stages = []
    with stage("reconstruction", work.most_stages * steps) as shown:
        for part in work.stages(advanced=shown.advance):
            tell(shown, part, steps)
            stages.append(part)
            told(part)
    return stages


def tell(shown: Shown, part: Stage, steps: int) -> None:
    """Tell that a stage of a reconstruction is done, with all of its steps, made or not."""
    shown.advance((part.number + 1) * steps - shown.done, part=part.name, error=part.after)


def check_models(
    student: PreTrainedModel, teacher: PreTrainedModel, layer_map: str | Sequence[int] | None
) -> tuple[int, ...] | None:
    """Check that a student can be reconstructed after a teacher, both instrumented; returns the layer map in force.

    Raises:
        TrituneError: hidden states differ in width, or depths differ and the layer map is unknown.
        UnsupportedModelError: a model's layers are not blocks that follow each other.
    """
    pair = pairing(student, teacher, {"hidden_states": 1.0}, None, layer_map)
    if pair.hidden_widths is not None:
        own, theirs = pair.hidden_widths
        raise TrituneError(
            f"reconstruct: the student's hidden states are {own} wide, the teacher's {theirs}; they must agree"
        )
    for model in (student, teacher):
        try:
            blocks_of(model)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{error}; take a recipe with reconstruct_steps 0, such as ti-g") from None
    return pair.layer_map


def _batches(
    data: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase | None,
    steps: int,
    batch_size: int,
    max_length: int,
    seed: int,
) -> list[Batch]:
    if not data:
        raise TrituneError("reconstruct: there is no data")
    if isinstance(data[0], Mapping):
        return [{name: tensor for name, tensor in batch.items() if name != "labels"} for batch in data]
    if tokenizer is None:
        raise TrituneError("reconstruct: texts need a tokenizer")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()[: steps * batch_size]
    batches: list[Batch] = []
    for start in range(0, len(order), batch_size):
        rows = [data[place] for place in order[start : start + batch_size]]
        texts = [rows] if isinstance(rows[0], str) else [list(column) for column in zip(*rows, strict=True)]
        encoded = tokenizer(*texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        batches.append(dict(encoded))
    return batches


def answer_loss(teacher: PreTrainedModel, head: Head) -> AnswerLoss:
    """What the last stage minimizes: the distillation loss of the logits, or of a sentence encoder's embeddings."""

    def loss(own: Any, theirs: Any, batch: Batch) -> torch.Tensor:
        pair = Pair.of_batch(
            own,
            theirs,
            batch,
            teacher.config,
            average="valid",
            embeddings=None if head.has_logits else (head.read(own, dict(batch)), head.read(theirs, dict(batch))),
        )
        return LOSSES["logits" if head.has_logits else "embedding"].compute(pair)

    return loss
