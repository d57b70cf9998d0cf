"""What a run works on, opened and checked whole before anything is computed or written."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic

import torch
from datasets import DatasetDict
from transformers import PreTrainedModel, set_seed
from transformers.integrations import get_available_reporting_integrations

from ..checkpoints.load import is_quantized
from ..compute.devices import this_process
from ..distil.choices import check_temperature
from ..distil.layer_map import distilled_layers
from ..errors import TrituneError
from ..modeling.instrument import instrument, instrument_of
from ..recipes import RECIPE_FILE, FinetuneRecipe, Kind, Recipe, to_yaml
from ..tasks.data import load_task_data
from ..tasks.data.rows_record import other_rows, rows_record
from ..tasks.data.unlabelled import read_unlabelled
from ..tasks.heads import EncodedData
from ..tasks.heads.encoded import HELD_OUT
from ..tasks.heads.features import COSINE
from ..tasks.models import fit_length, load_model
from ..tasks.registry import Task
from ..tasks.task_file import TASK_FILE, task_record, task_to_yaml
from .pairing import check_hidden_states, pairing
from .precision import check_precision, settle
from .reconstruct import check_models
from .run_folder import CHECKPOINTS, METRICS, check_free, write_json, write_text
from .versions import library_versions

# A tenth of the training rows, as long as these are fewer than ten thousand.
_MOST_HELD_OUT = 1000


@dataclass(frozen=True)
class Job(Generic[Kind]):
    """A model, a task with its data, a recipe in force and an output folder.

    Attributes:
        model: the teacher to distil, or the model to fine-tune.
        processor: its tokenizer or image processor.
        task, data: what it is trained and evaluated on.
        recipe: in force, see `FinetuneRecipe.resolve`.
        output: the run's folder.
        source: folder or hub name of the model, for the record.
        measured: scores of the teacher and of untrained students on the dev splits, shared by runs on the same models
            and data.
        student: a float model that the student is initialized from; None for a copy of the teacher.
        student_source: its folder or hub name, for the record.
        rows: fingerprint of the rows of `data`, see `rows_record`.
    """

    model: PreTrainedModel
    processor: Any
    task: Task
    data: EncodedData
    recipe: Kind
    output: Path
    source: str
    measured: dict[Hashable, dict[str, Any]] = field(default_factory=dict)
    student: PreTrainedModel | None = None
    student_source: str = ""
    rows: Mapping[str, Any] = field(default_factory=dict)

    def check_rows(self, earlier: Mapping[str, Any], stage: str = "read") -> None:
        """Check that a run to resume, with the metrics `earlier`, was trained on the rows of this job.

        Args:
            earlier: without a record of its rows it passes.
            stage: of the rows, `read` or `encoded`.

        Raises:
            TrituneError: it was trained on other rows.
        """
        if earlier.get("task") != self.task.name or "rows" not in earlier:
            return
        if found := other_rows(earlier["rows"], self.rows, stage):
            cause = "was made of other rows" if stage == "read" else "read the same rows with another tokenizer"
            raise TrituneError(f"{self.output}: --resume: the run there {cause} ({found})")

    def facts(self, steps: Mapping[str, int]) -> dict[str, Any]:
        """What `metrics.json` says of a run before it has measured anything; `steps` of every phase, by its name."""
        return {
            "task": self.task.name,
            "metric": self.task.metric,
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
            "precision": self.recipe.precision,
            "steps": dict(steps),
            "versions": library_versions(),
            **task_record(self.task),
        }

    @property
    def record(self) -> Path:
        """The file that keeps what is known of an unfinished run."""
        return self.output / CHECKPOINTS / METRICS

    def begin(self, known: dict[str, Any]) -> None:
        """Write recipe and task of a run, and what is `known` of it."""
        # The recipe first: a folder that holds one is a run that can be resumed.
        write_text(self.output / RECIPE_FILE, to_yaml(self.recipe))
        if self.task.files is not None:
            write_text(self.output / TASK_FILE, task_to_yaml(self.task))
        self.record.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.record, known)

    @property
    def float_student(self) -> PreTrainedModel:
        """The float model that becomes the student."""
        return self.model if self.student is None else self.student


@dataclass(frozen=True)
class Phase:
    """One training with one optimizer and one schedule.

    Attributes:
        name: "step one", "step two", or "training" if there is only one.
        steps: number of updates.
        schedule: of the intervention, or None.
        first_step: number of updates in earlier phases.
    """

    name: str
    steps: int
    schedule: str | None
    first_step: int = 0


def open_job(
    source: str | Path,
    task: Task,
    data_folder: Path | None,
    recipe: Kind,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    other_inputs: tuple[str | Path, ...] = (),
    student_source: str | Path | None = None,
    unlabelled: Path | None = None,
) -> Job[Kind]:
    """Read and check everything a run needs; nothing is written.

    Args:
        source: the model's folder or hub name.
        task: of the table, or of one's own files.
        data_folder: folder of a table task's original files; None reads the hub.
        recipe: not resolved yet. A `Recipe` needs a fine-tuned teacher, a plain `FinetuneRecipe` adds a new head.
        output: the folder that the run will write.
        overwrite: replace a run that lies there.
        resume: continue a run that lies there.
        other_inputs: further folders that are read.
        student_source: folder or hub name of a float model that the student is initialized from, possibly of another
            depth or width than the teacher; None starts from a copy of the teacher.
        unlabelled: a file whose rows are trained on instead of the task's; labels in it are not looked at.

    Raises:
        TrituneError: something is missing, incompatible, or in the way; one line that says what to do.
    """
    given = (source, student_source, data_folder, unlabelled, *other_inputs, *(task.files or {}).values())
    check_free(output, overwrite, resume, inputs=[path for path in given if path])
    recipe = settle(recipe, output if resume else None)
    # A new classifier is initialized while the model is loaded.
    set_seed(recipe.seed)
    distils = isinstance(recipe, Recipe)
    if not (distils or task.head.has_logits):
        raise TrituneError(f"{task.title}: there are no labels to fine-tune on; distil the model as it is")
    if unlabelled is not None:
        _check_unlabelled(recipe, unlabelled)
    splits = load_task_data(task, data_folder, task.dev_splits if unlabelled else None, recipe.augmented)
    if recipe.select_on == HELD_OUT:
        splits = _with_held_out(splits, task, recipe.seed)
    task = task.for_model(source)
    model = load_model(source, task, new_head=not distils)
    task = fit_length(task, model)
    asked, recipe = recipe, _resolved(recipe, task, len(splits.get("train", ())) or 1)
    processor = task.head.load_processor(source, model, recipe.max_length)
    if is_quantized(model):
        raise TrituneError(f"{source}: quantized already; give a float model")
    student = None if student_source is None else _open_student(student_source, task, processor, recipe.max_length)
    recipe = _fitted(recipe, task, model, student)
    task = replace(task, long_texts=recipe.long_texts)
    data = task.head.encode(splits, task, processor, recipe.max_length, recipe.padding)
    if unlabelled is not None:
        read, rows = read_unlabelled(unlabelled, task, model, processor, recipe.max_length, recipe.padding)
        splits, data = DatasetDict(train=read, **splits), replace(data, splits=DatasetDict(train=rows, **data.splits))
        recipe = _fitted(_resolved(asked, task, len(rows)), task, model, student)
    elif len(data.splits["train"]) != len(splits["train"]):  # a row may become several, or none
        recipe = _fitted(_resolved(asked, task, len(data.splits["train"])), task, model, student)
    record = rows_record(splits, data.splits)
    begun_as = str(student_source or "")
    return Job(model, processor, task, data, recipe, output, str(source), {}, student, begun_as, record)


def _with_held_out(splits: DatasetDict, task: Task, seed: int) -> DatasetDict:
    """The splits, with some of the training rows in one of their own."""
    if not task.head.has_logits:
        raise TrituneError(f"select_on: {task.title} has no labels to select on but those of its dev set; take dev")
    if "train" not in splits:
        raise TrituneError("select_on: rows of --unlabelled have no labels to select on; take dev")
    rows = splits["train"]
    count = min(_MOST_HELD_OUT, len(rows) // 10)
    if count == 0:
        raise TrituneError(f"select_on: of {len(rows)} training rows none can be held out; take dev")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    kept = {"train": rows.select(sorted(order[count:]))}
    return DatasetDict(splits | kept | {HELD_OUT: rows.select(sorted(order[:count]))})


def _check_unlabelled(recipe: FinetuneRecipe, path: Path) -> None:
    if not isinstance(recipe, Recipe) or recipe.ground_truth_coefficient:
        raise TrituneError(f"--unlabelled {path}: the ground_truth loss needs labels; set ground_truth_coefficient=0")
    if recipe.balance != "none":
        raise TrituneError(f"--unlabelled {path}: classes are balanced by their labels; set balance=none")
    if recipe.augmented:
        raise TrituneError(f"--unlabelled {path}: augmented rows are those of the task; set augmented=false")


def _open_student(source: str | Path, task: Task, processor: Any, max_length: int | None) -> PreTrainedModel:
    """A float student, which must read its inputs as the teacher does."""
    model = load_model(source, task)
    if is_quantized(model):
        raise TrituneError(f"{source}: quantized already; --student takes a float model, --from a QAT student")
    task.head.check_processors(task.head.load_processor(source, model, max_length), processor, source)
    return model


def with_recipe(job: Job[Recipe], recipe: Recipe, data_folder: Path | None, output: Path) -> Job[Recipe]:
    """A job with the same teacher and task and another recipe; data is encoded again only if the recipe requires it.

    Args:
        job: its model may have been a teacher already.
        recipe: not resolved yet.
        data_folder: the one that `job` was opened with.
        output: the folder that the run will write.

    Raises:
        TrituneError: the recipe does not fit the model or the task.
    """
    fitted = fit(job, recipe)
    if any(getattr(fitted, key) != getattr(job.recipe, key) for key in ("max_length", "long_texts", "padding")):
        job = replace(job, task=replace(job.task, long_texts=fitted.long_texts))
        splits = load_task_data(job.task, data_folder, augmented=fitted.augmented)
        if fitted.select_on == HELD_OUT:
            splits = _with_held_out(splits, job.task, job.recipe.seed)
        data = job.task.head.encode(splits, job.task, job.processor, fitted.max_length, fitted.padding)
        job = replace(job, data=data, rows=rows_record(splits, data.splits), measured={})
        # Long texts are split into windows, each of them a row: an epoch of shorter ones takes more steps.
        fitted = fit(job, recipe)
    # A trainer freezes its teacher, and the student starts as a copy of it.
    job.model.requires_grad_(True)
    return replace(job, recipe=fitted, output=output)


def fit(job: Job[Recipe], recipe: Recipe) -> Recipe:
    """Resolve and check another recipe for a job's model and task; the job is not changed.

    Raises:
        TrituneError: the recipe does not fit the model or the task.
    """
    if recipe.augmented != job.recipe.augmented:  # the steps would be computed from the wrong number of rows
        raise TrituneError("augmented: all runs of a sweep read the same training rows; set it with --set")
    if recipe.select_on != job.recipe.select_on:  # its rows are held out of the training when the job is opened
        raise TrituneError("select_on: all runs of a sweep are trained on the same rows; set it with --set")
    recipe = _resolved(settle(recipe), job.task, len(job.data.splits["train"]))
    recipe = _fitted(recipe, job.task, job.model, job.student)
    if recipe.max_length != job.recipe.max_length:
        job.task.head.load_processor(job.source, job.model, recipe.max_length)
    return recipe


def _resolved(recipe: Kind, task: Task, train_rows: int) -> Kind:
    """The recipe in force, after the checks that do not depend on the model."""
    process = this_process()
    recipe = recipe.resolve(task, train_rows, process.num_processes)
    known = ("none", "all", *get_available_reporting_integrations())
    if recipe.report_to not in known:
        raise TrituneError(
            f"report_to: {recipe.report_to!r} is not installed or not known; available are {', '.join(known)}"
        )
    check_precision(bool(recipe.bf16), recipe.fp16, process.device)
    return recipe


def _fitted(recipe: Kind, task: Task, teacher: PreTrainedModel, student: PreTrainedModel | None) -> Kind:
    """A resolved recipe with budget and layer map filled in, after the checks that depend on the models."""
    if not isinstance(recipe, Recipe):
        return recipe
    for name in ("embedding",) if task.head.has_logits else ("logits", "ground_truth"):
        if recipe.max_steps and recipe.coefficients()[name]:
            advice = "" if task.head.has_logits else "; use recipe features, or features-ti-g"
            raise TrituneError(f"{name}_coefficient: {task.title} has no such loss, so it must be 0{advice}")
    if recipe.max_steps and task.metric == COSINE:
        raise TrituneError(
            f"{task.title}: lines without scores do not select among checkpoints; give pairs of texts with scores as "
            "--dev-file, or take a recipe without max_steps, such as tritune"
        )
    student = teacher if student is None else student
    layers = len(instrument_of(instrument(student)).anatomy.sites)
    check_temperature(recipe.temperature, task.is_regression)
    if recipe.reconstruct_steps:
        recipe = replace(recipe, layer_map=check_models(student, teacher, recipe.layer_map))
    if recipe.max_steps == 0:
        return recipe
    check_hidden_states(student, recipe.coefficients(), distilled_layers(recipe.distil_layers, layers))
    pair = pairing(student, teacher, recipe.coefficients(), recipe.schedule, recipe.layer_map)
    return replace(recipe, layer_map=pair.layer_map).with_split(task, layers)
