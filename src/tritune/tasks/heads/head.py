"""A task, and what every kind of task says: the model's class, its new head, its files, its batches and its scores."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ...checkpoints.load import load_tokenizer
from ...distil.losses import IGNORED, kl_divergence
from ...errors import TrituneError
from .encoded import HELD_OUT, Answering, Batch, EncodedData, Predictable

# Of the dev rows that are taken from a training file: no recipe's seed, so that teacher and student have the same.
HELD_OUT_SEED = 42
Read = Callable[[ModelOutput, Batch], torch.Tensor]
Measure = Callable[..., dict[str, float]]


@dataclass(frozen=True)
class Task:
    """One row of the task table, or a task of a user's own files.

    Attributes:
        name: as the hub spells it; of a user's own task, its kind.
        title: as the papers spell it, for messages.
        text_columns: the columns of the inputs.
        labels: the class names in id order; None for regression.
        metric: the one of `measure` that selects checkpoints; higher is better.
        measure: predictions and labels to every metric of the task: logits `(batch, num_labels)` and labels `(batch,)`,
            or `(batch, num_labels)` with `multi_label`; other kinds of tasks have predictions of their own.
        head: the kind of task.
        max_length: tokens of an input; None where inputs have no length to truncate.
        batch_size: rows of a batch.
        eval_steps: updates between evaluations.
        dev_splits: the first one selects.
        files: the file of every split of a user's own data; None for a task of the table.
        label_column: that holds the label of a user's own data.
        multi_label: whether a row may have any number of labels.
        by_id: whether the user's own data give labels whose names are known by their ids.
        long_texts: what is kept of texts beyond the length, see `long_texts.token_ids`; a run's is that of its recipe.
        repository: the data set's name on the hub where it is none of GLUE's.
    """

    name: str
    title: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metric: str
    measure: Callable[..., dict[str, float]]
    head: "Head"
    max_length: int | None = 128
    batch_size: int = 32
    eval_steps: int = 100
    dev_splits: tuple[str, ...] = ("validation",)
    files: Mapping[str, Path] | None = None
    label_column: str = "label"
    multi_label: bool = False
    by_id: bool = False
    long_texts: str = "truncate"
    repository: str | None = None

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """The splits with labels that predictions can be scored against."""
        return (*self.dev_splits, HELD_OUT)

    @property
    def is_regression(self) -> bool:
        """Whether the label is a score instead of a class."""
        return self.labels is None

    @property
    def problem(self) -> str:
        """`single_label`, `multi_label` or `regression`."""
        return "regression" if self.labels is None else "multi_label" if self.multi_label else "single_label"

    @property
    def num_labels(self) -> int:
        """Width of the logits: the number of classes, or 1 for regression."""
        return 1 if self.labels is None else len(self.labels)

    @property
    def holds_out(self) -> bool:
        """Whether the user's own files are a training file alone, some of whose rows are the dev rows."""
        return self.files is not None and "train" in self.files and not any(map(self.files.get, self.dev_splits))

    def file(self, split: str) -> Path:
        """The file of a split of a user's own data; TrituneError if there is none."""
        if self.files is None or split not in self.files:
            option = "--train-file" if split == "train" else "--dev-file"
            raise TrituneError(f"{self.title}: the {split} file is missing; give it with {option}")
        return self.files[split]

    def for_model(self, source: str | Path) -> "Task":
        """The task with its head as the model at `source` wants it, see `Head.for_model`."""
        return replace(self, head=self.head.for_model(source))


def read_logits(output: ModelOutput, batch: Batch) -> torch.Tensor:
    """The logits, (batch, classes), of a classifier's output."""
    return output["logits"]


def stacked(answers: list[torch.Tensor]) -> np.ndarray:
    """The answers of all batches, each (batch, ...), one below the other in float32.

    Answers token by token, (batch, tokens, ...), are as wide as the longest batch; what is beyond a row's own batch
    holds `IGNORED`, as Trainer pads its predictions.
    """
    arrays = [answer.float().cpu().numpy() for answer in answers]
    if arrays[0].ndim > 2:
        tokens = max(array.shape[1] for array in arrays)
        more = [((0, 0), (0, tokens - array.shape[1]), *[(0, 0)] * (array.ndim - 2)) for array in arrays]
        arrays = [np.pad(*one, constant_values=IGNORED) for one in zip(arrays, more, strict=True)]
    return np.concatenate(arrays)


class Head(ABC):
    """A kind of task.

    Attributes:
        name: the hub's name of the kind, as a task file spells it.
        auto_model: the transformers class that loads such a model.
        auto_processor: the one that loads its tokenizer or image processor.
        file_options: further arguments that `describe` takes: `problem`, `labels`, `metric`.
        keeps_answers: whether the answers of all batches have one shape, so that a teacher's can be cached.
        reads_hub: whether one of a user's own files may be the name of a data set on the hub.
        has_columns: whether files of this kind have columns to choose from.
        has_logits: whether such a model ends in a head whose logits are compared; without, `read` says what is.
        has_classes: whether a row as a whole may have one of some classes.
        has_long_texts: whether something else than the end of a text may be cut, see `Task.long_texts`.
        output_names: of an exported graph, see `outputs`; those that other programs look for.
        windows: whether long inputs become several rows of the model's, so that nothing of them is lost.
        asked: the usual columns of an input, where it has some.
        unit: what is answered one by one, for messages.
        hub_library, pipeline_tag: of its model card; an empty tag is the name.
        unused_keys: of a recipe, that mean nothing to this kind, with the reason.
        default_keys: of a recipe, that mean something to this kind alone, with the value that null stands for.
    """

    name: ClassVar[str]
    auto_model: ClassVar[type]
    auto_processor: ClassVar[type] = AutoTokenizer
    file_options: ClassVar[tuple[str, ...]] = ()
    keeps_answers: ClassVar[bool] = True
    reads_hub: ClassVar[bool] = False
    has_columns: ClassVar[bool] = True
    has_logits: ClassVar[bool] = True
    has_classes: ClassVar[bool] = False
    has_long_texts: ClassVar[bool] = False
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    windows: ClassVar[bool] = False
    asked: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    unit: ClassVar[str] = "rows"
    hub_library: ClassVar[str] = "transformers"
    pipeline_tag: ClassVar[str] = ""
    unused_keys: ClassVar[Mapping[str, str]] = {"image_augmentation": "there are no images"}
    default_keys: ClassVar[Mapping[str, Any]] = {}

    def for_model(self, source: str | Path) -> "Head":
        """The same kind as the model at `source` wants it, where further files beside the model say more.

        Raises:
            TrituneError: such a file cannot be used.
        """
        return self

    def check_architecture(self, config: PreTrainedConfig, source: str | Path, task: str = "") -> None:
        """Raise TrituneError, naming `source`, if a model of this config has another head, or none.

        Its labels would not be those of any task. `task` is the name of the one that it is wanted for, by default that
        of this kind.
        """
        wanted = self.auto_model.__name__.removeprefix("AutoModel")
        names = config.architectures or []
        if names and not any(wanted in name for name in names):
            raise TrituneError(
                f"{source}: a {names[0]}, which has no head for {self.name}; fine-tune it first: tritune finetune "
                f"{source} --task {task or self.name} --output teacher, with the options of your files"
            )

    @abstractmethod
    def options(self, task: Task) -> dict[str, Any]:
        """What `from_pretrained` takes to make a new head for `task`."""

    @abstractmethod
    def check(self, config: PreTrainedConfig, task: Task, source: str | Path) -> None:
        """Raise TrituneError, naming `source`, if a model of this config was made for other labels than the task's."""

    def load_processor(self, source: str | Path, model: PreTrainedModel, max_length: int | None) -> Any:
        """The tokenizer or image processor beside a model.

        Raises:
            TrituneError: there is none, it does not belong to the model, or `max_length` is beyond its positions.
        """
        return load_tokenizer(source, model, max_length or 0)

    def check_processors(self, student: Any, teacher: Any, source: str | Path) -> None:
        """Raise TrituneError, naming the student's `source`, if two processors read the same inputs differently."""
        if student.get_vocab() != teacher.get_vocab():
            raise TrituneError(
                f"{source}: the student's tokenizer has other tokens than the teacher's; they must be the same"
            )

    @abstractmethod
    def encode(
        self, splits: DatasetDict, task: Task, processor: Any, max_length: int | None, padding: str
    ) -> EncodedData:
        """Rows as the readers give them to rows as the model takes them, with `labels`.

        Raises:
            TrituneError: a row cannot be used.
        """

    def known(self, config: PreTrainedConfig) -> dict[str, Any]:
        """What the config of a fine-tuned model says for `describe`, by the names of `file_options`."""
        return {}

    @abstractmethod
    def describe(
        self, files: Mapping[str, Path], columns: Sequence[str] | None, label_column: str | None
    ) -> dict[str, Any]:
        """The fields of a `Task` for a user's own files: columns, labels, metric, lengths.

        Args:
            files: "train" and "validation" to their files; either may be missing.
            columns: that hold the inputs; None looks for the usual ones.
            label_column: that holds the label; None looks for "label".

        Raises:
            TrituneError: a file cannot be used.
        """

    @abstractmethod
    def read_files(self, task: Task, splits: Sequence[str]) -> DatasetDict:
        """These splits of `task.files`.

        Raises:
            TrituneError: a file or a row cannot be used; the message names it.
        """

    def read_undivided(self, task: Task) -> Dataset:
        """The training file of a task that has no other, as dev rows are read, and in that order.

        Raises:
            TrituneError: a file or a row cannot be used; the message names it.
        """
        return self.read_files(task, ["train"])["train"]

    def kinship(self, rows: Dataset, task: Task) -> tuple[list[tuple[str, ...]], list[str | float]]:
        """What decides which rows are held out together: of every row its inputs as texts, and its class or score.

        Args:
            rows: as `read_undivided` gives them.
            task: of these rows.
        """
        texts = list(zip(*(rows[column] for column in task.text_columns), strict=True))
        return texts, [label if task.is_regression else str(label) for label in rows["label"]]

    def companions(self, folder: str | Path) -> Mapping[str, bytes]:
        """What a model's folder holds beside model and processor and must be uploaded with them: path to bytes."""
        return {}

    def read(self, output: ModelOutput, batch: Batch) -> torch.Tensor:
        """What is scored and compared of a model's output: logits, (batch, classes), unless a kind says otherwise."""
        return read_logits(output, batch)

    def outputs(self, output: ModelOutput, batch: Batch) -> tuple[torch.Tensor, ...]:
        """What an exported graph returns of a model's output, in the order of `output_names`."""
        return tuple(output[name] for name in self.output_names)

    def model_inputs(self, batch: Batch) -> Batch:
        """A batch with its `labels` under the names by which the model takes them for a loss of its own."""
        return batch

    def folder_files(self, task: Task, folder: Path) -> dict[str, Path] | None:
        """The file of every split in a folder of the original data; None where the GLUE reader finds them."""
        return None

    def from_hub(self, rows: Dataset, task: Task, source: str) -> Dataset:
        """A split of the hub's data set `task.repository` as `read_files` gives it.

        Raises:
            TrituneError: the data set has other columns or labels; the message names `source`.
        """
        raise TrituneError(f"{source}: {self.name} is not read from the hub; give files")

    def inputs(self, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None, name: str) -> Any:
        """What the rows of a table ask, as `predictable` takes it.

        Args:
            rows: at least one, without labels.
            columns: that hold the inputs; None looks for the usual ones.
            name: what messages call the table.

        Raises:
            TrituneError: a column or a row cannot be used, or this kind takes no tables.
        """
        raise TrituneError(f"{self.name}: models of this kind do not answer rows of a table")

    def predictable(self, inputs: Any, answering: Answering, name: str) -> Predictable:
        """What `inputs` returned as the model takes it, and what its outputs say; messages call the table `name`.

        Raises:
            TrituneError: an input cannot be used, or this kind answers none.
        """
        raise TrituneError(f"{self.name}: `tritune predict` does not take models of this kind")

    def closeness(self, student: np.ndarray, teacher: np.ndarray, task: Task, data: EncodedData) -> dict[str, float]:
        """How close a student's logits, (rows, labels), are to its teacher's from a separate pass.

        Both are what `read` took of the outputs for the dev split that selects.

        Returns:
            `agreement`, the share of rows with the same answer, and `kl_to_teacher`, KL(teacher || student) per row;
            for regression `mse_to_teacher`.
        """
        if task.is_regression:
            return {"mse_to_teacher": float(np.mean((student - teacher) ** 2))}
        divergence = kl_divergence(torch.from_numpy(student).double(), torch.from_numpy(teacher).double())
        return {
            "agreement": float(np.mean(student.argmax(-1) == teacher.argmax(-1))),
            "kl_to_teacher": float(divergence),
        }

    def scored(
        self, read: np.ndarray, teacher: np.ndarray, task: Task, data: EncodedData
    ) -> tuple[np.ndarray, np.ndarray, Measure]:
        """What is scored for the dev split that selects: answers, references, and what measures them.

        Of both there is one for each row of the data (question, sentence, pair of texts), in its order, so that
        `measure(answers[rows], references[rows])` are the metrics of any rows.

        Args:
            read: what `read` took of a model's outputs for the split.
            teacher: the same of its teacher, which is the reference where the data has none.
            task, data: the split's.
        """
        return read, np.asarray(data.dev["labels"]), task.measure

    def without_padding(self, read: np.ndarray, rows: Dataset) -> np.ndarray:
        """What `read` took of a model's outputs for encoded rows, (answers, ...), without what stands at padding."""
        return read

    def same_answers(self, one: np.ndarray, other: np.ndarray, task: Task, data: EncodedData, split: str) -> np.ndarray:
        """Whether two models give the same answer, bool, one for every `unit` of a split.

        Args:
            one, other: what `read` took of their outputs for the rows of the split.
            task, data: the split's.
            split: a dev split of `data`.
        """
        rows = data.splits[split]
        one, other = self.without_padding(one, rows), self.without_padding(other, rows)
        return one.argmax(-1) == other.argmax(-1)

    def usage(self, name: str) -> str:
        """Python code that loads a student of this name, for its card."""
        model, processor = self.auto_model.__name__, self.auto_processor.__name__
        quoted = json.dumps(name, ensure_ascii=False)
        return (
            "import tritune  # without it, loading fails\n"
            f"from transformers import {model}, {processor}\n\n"
            f"model = {model}.from_pretrained({quoted})\n"
            f"{'tokenizer' if self.auto_processor is AutoTokenizer else 'processor'} = "
            f"{processor}.from_pretrained({quoted})"
        )
