"""What an analysis works on: a teacher, students of the same shape, and rows of a task's dev set."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints.load import is_quantized
from ..checkpoints.prepare import prepare
from ..compute.devices import this_process
from ..errors import TrituneError
from ..inference.evaluate import longest_first, recipe_in_force, shares_scales
from ..modeling.instrument import instrument, instrument_of
from ..progress import tracked
from ..tasks.data import load_task_data
from ..tasks.heads import EncodedData
from ..tasks.heads.long_texts import token_ids
from ..tasks.models import load_model
from ..tasks.registry import Task

UNTRAINED = "quantized, untrained"

Batch = dict[str, torch.Tensor]


def row_count(batch: Batch) -> int:
    """How many rows a batch has."""
    return len(next(iter(batch.values())))


@dataclass(frozen=True)
class Subjects:
    """Models to compare, instrumented and in evaluation mode, and the rows to compare them on.

    Attributes:
        task: what the models were fine-tuned on.
        models: name to model; the teacher first, under the name "teacher", where there is one.
        tokenizer: of all of them.
        data: the task's dev splits as token ids.
        rows: the dev rows to look at, in order; all windows of a text that is read in windows.
        batch_size: rows per batch.
        max_length: tokens that a text is cut to; None for images.
    """

    task: Task
    models: dict[str, PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    data: EncodedData
    rows: Dataset
    batch_size: int
    max_length: int | None

    @property
    def teacher(self) -> PreTrainedModel:
        """The first model."""
        return self.models["teacher"]

    @property
    def students(self) -> dict[str, PreTrainedModel]:
        """Name to model, without the teacher."""
        return {name: model for name, model in self.models.items() if name != "teacher"}

    def batches(self, description: str, *, labels: bool = False) -> Iterator[Batch]:
        """The rows as batches of tensors on the models' device; tells how far it is once it takes long.

        Without labels, rows of similar length share a batch, unless a model has scales that a batch shares. With them,
        for losses, which may depend on the padding, the rows stay in their order.

        Args:
            description: what is being done.
            labels: whether `labels`, (batch,), are in it.
        """
        stay = labels or any(map(shares_scales, self.models.values()))
        order = range(len(self.rows)) if stay else longest_first(self.rows)
        loader = DataLoader(self.rows, self.batch_size, sampler=order, collate_fn=self.data.collate)
        for batch in tracked(loader, description, len(loader), "batches"):
            yield self._moved({name: tensor for name, tensor in batch.items() if labels or name != "labels"})

    def sentence(self, row: int, text: str | None = None) -> tuple[Batch, list[str]]:
        """A batch of one sentence (or pair), and its tokens.

        Args:
            row: of the dev set, counted from 0; of a text that is read in windows it is the first of them.
            text: used instead of a row; a tab separates a pair.

        Raises:
            TrituneError: there is no such row, or the text is empty or of the wrong number of parts.
        """
        if "input_ids" not in self.data.dev.column_names:
            raise TrituneError(f"{self.task.title}: single rows are shown for texts only, whose tokens have names")
        if text is not None:
            parts = text.split("\t")
            if len(parts) != len(self.task.text_columns) or not all(part.strip() for part in parts):
                raise TrituneError(
                    f"--text: {self.task.title} takes {len(self.task.text_columns)} text(s), separated by a tab"
                )
            texts = [[part] for part in parts]
            ids = token_ids(self.tokenizer, texts, self.max_length, self.task.long_texts, "--text")
            encoded = {name: values[0] for name, values in ids.items()}
        elif (places := np.flatnonzero(self.data.dev_inputs == row)).size:
            found = self.data.dev[int(places[0])]
            encoded = {name: value for name, value in found.items() if name != "labels"}
        else:
            raise TrituneError(f"--row {row}: the dev set has rows 0 to {self.data.dev_inputs[-1]}")
        tokens = self.tokenizer.convert_ids_to_tokens(encoded["input_ids"])
        return self._moved(self.data.collate([dict(encoded)])), list(tokens)

    def _moved(self, batch: Mapping[str, torch.Tensor]) -> Batch:
        device = next(iter(self.models.values())).device
        return {name: tensor.to(device) for name, tensor in batch.items()}


def open_subjects(
    task: Task,
    data_folder: Path | None,
    teacher: str | None,
    students: Sequence[str],
    rows: int | None = None,
    overrides: Sequence[str] = (),
    *,
    untrained: bool = False,
) -> Subjects:
    """Load models and rows, and check that they belong together.

    Sequence length, padding and batch size are those of the first student's recipe, because per-tensor activation
    scales depend on them.

    Args:
        task: of the table.
        data_folder: the task's original files; None reads the hub.
        teacher: its folder or hub name; None where models are looked at one by one.
        students: folders or hub names.
        rows: number of dev rows, from the beginning; None for all.
        overrides: `key=value` for max_length, padding or per_device_eval_batch_size.
        untrained: whether to add, as a student, the teacher quantized like the first student and not trained.

    Raises:
        TrituneError: a model or the data cannot be used, or the models differ in layers or heads.
    """
    sources = {"teacher": teacher} if teacher else {}
    sources |= dict(zip(short_names(students), students, strict=True))
    task = task.for_model(next(iter(sources.values())))
    models = {name: load_model(source, task) for name, source in sources.items()}
    first = short_names(students)[0] if students else "teacher"
    recipe = recipe_in_force(sources[first], models[first], overrides, task)
    processor = task.head.load_processor(sources[first], models[first], recipe.max_length)
    if untrained and is_quantized(models[first]):
        quantization = models[first].config.quantization_config.quantization
        models[UNTRAINED] = prepare(copy.deepcopy(models["teacher"]), quantization)
    device = this_process().device
    models = {name: instrument(model).to(device).eval() for name, model in models.items()}
    _check_shapes(models, {**sources, UNTRAINED: UNTRAINED})
    splits = load_task_data(task, data_folder, task.dev_splits)
    task = replace(task, long_texts=recipe.long_texts)
    data = task.head.encode(splits, task, processor, recipe.max_length, recipe.padding)
    tokenizer = getattr(processor, "tokenizer", processor)
    looked_at = range(len(data.dev)) if rows is None else np.flatnonzero(data.dev_inputs < rows)
    if not len(looked_at):
        raise TrituneError("--rows must be at least 1, and the dev set must have a row")
    batch_size = recipe.per_device_eval_batch_size or task.batch_size
    return Subjects(task, models, tokenizer, data, data.dev.select(looked_at), batch_size, recipe.max_length)


def short_names(sources: Sequence[str]) -> list[str]:
    """A short name per source: the folder's, with its parent's if it is ambiguous or "teacher"."""
    parts = [Path(source).resolve().parts if Path(source).exists() else (source,) for source in sources]
    choices = [[names[-1] for names in parts], ["/".join(names[-2:]) for names in parts], list(sources)]
    free = [{name for name in names if names.count(name) == 1 and name != "teacher"} for names in choices[:2]]
    return [
        next((name for name, free_names in zip(row, free, strict=False) if name in free_names), row[-1])
        for row in zip(*choices, strict=True)
    ]


def _check_shapes(models: dict[str, PreTrainedModel], sources: dict[str, str]) -> None:
    """Refuse models whose layers or heads do not correspond."""
    shapes = {name: (len(instrument_of(m).anatomy.sites), _heads(m)) for name, m in models.items()}
    reference = next(iter(shapes))
    for name, (layers, heads) in shapes.items():
        if (layers, heads) != shapes[reference]:
            raise TrituneError(
                f"{sources[name]}: has {layers} layers of {heads} heads, {sources[reference]} has "
                f"{shapes[reference][0]} of {shapes[reference][1]}; only models of one shape can be compared"
            )


def _heads(model: PreTrainedModel) -> int:
    return getattr(model.config, "num_attention_heads", 0) or getattr(model.config, "n_heads", 0)
