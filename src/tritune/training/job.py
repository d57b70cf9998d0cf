"""What a run works on, opened and checked whole before anything is computed or written."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, set_seed
from transformers.integrations import get_available_reporting_integrations

from ..checkpoints.load import is_quantized
from ..compute.devices import this_process
from ..distil.choices import check_temperature
from ..distil.layer_map import distilled_layers
from ..errors import TrituneError
from ..modeling.instrument import instrument, instrument_of
from ..recipes import FinetuneRecipe, Recipe
from ..tasks.data import load_task_data
from ..tasks.data.rows_record import other_rows, rows_record
from ..tasks.heads import EncodedData
from ..tasks.models import fit_length, load_model
from ..tasks.registry import Task
from .pairing import check_hidden_states, pairing
from .precision import check_precision, settle
from .run_folder import check_free


@dataclass(frozen=True)
class Job:
    """A model, a task with its data, a recipe in force and a folder.

    Attributes:
        model: the teacher to distil, or the model to fine-tune.
        processor: its tokenizer or image processor.
        task, data: what it is trained and measured on.
        recipe: in force, see `FinetuneRecipe.resolve`.
        output: the run's folder.
        source: where the model came from, for the record.
        measured: of the teacher and of untrained students on the dev splits; runs on the same models and data share it.
        student: a float model that the student begins as; None for a copy of the teacher.
        student_source: where it came from, for the record.
        rows: what tells the rows of `data` from others, see `rows_record`.
    """

    model: PreTrainedModel
    processor: Any
    task: Task
    data: EncodedData
    recipe: FinetuneRecipe
    output: Path
    source: str
    measured: dict[Hashable, dict[str, Any]] = field(default_factory=dict)
    student: PreTrainedModel | None = None
    student_source: str = ""
    rows: Mapping[str, Any] = field(default_factory=dict)

    def check_rows(self, earlier: Mapping[str, Any], stage: str = "read") -> None:
        """Check that a run which is to go on was made of the rows of this job.

        Args:
            earlier: what is known of that run; one that kept no record of its rows passes.
            stage: of the rows: `read`, or `encoded`.

        Raises:
            TrituneError: it was made of others.
        """
        if earlier.get("task") != self.task.name or "rows" not in earlier:
            return
        if found := other_rows(earlier["rows"], self.rows, stage):
            cause = "was made of other rows" if stage == "read" else "read the same rows with another tokenizer"
            raise TrituneError(f"{self.output}: --resume: the run there {cause} ({found})")

    @property
    def float_student(self) -> PreTrainedModel:
        """What the student is before it is quantized."""
        return self.model if self.student is None else self.student


@dataclass(frozen=True)
class Phase:
    """One training with one optimizer and one schedule.

    Attributes:
        name: "step one", "step two", or "training" where there is only one.
        steps: updates it makes.
        schedule: of the intervention, or None.
        first_step: updates that earlier phases made.
    """

    name: str
    steps: int
    schedule: str | None
    first_step: int = 0


def open_job(
    source: str | Path,
    task: Task,
    data_folder: Path | None,
    recipe: FinetuneRecipe,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    other_inputs: tuple[str | Path, ...] = (),
    student_source: str | Path | None = None,
) -> Job:
    """Read and check everything a run needs; nothing is written.

    Args:
        source: the model's folder or hub name.
        task: of the table, or of one's own files.
        data_folder: a table task's original files; None reads the hub.
        recipe: not resolved yet. A `Recipe` takes a fine-tuned teacher, a plain `FinetuneRecipe` gives a new head.
        output: the folder that the run will write.
        overwrite: whether a run that lies there may be replaced.
        resume: whether a run that lies there is to go on.
        other_inputs: further folders that are read.
        student_source: folder or hub name of a float model that the student begins as, of another depth or width than
            the teacher perhaps; None begins with a copy of the teacher.

    Raises:
        TrituneError: anything that is missing, does not fit, or is in the way; one line that says what to do.
    """
    inputs = (source, *filter(None, (*other_inputs, student_source, data_folder)), *(task.files or {}).values())
    check_free(output, overwrite, resume, inputs=inputs)
    recipe = settle(recipe, output if resume else None)
    # A new classifier is drawn while the model is loaded.
    set_seed(recipe.seed)
    distils = isinstance(recipe, Recipe)
    if not (distils or task.head.has_logits):
        raise TrituneError(f"{task.title}: there are no labels to fine-tune on; distil a model as it comes")
    splits = load_task_data(task, data_folder, augmented=recipe.augmented)
    task = task.for_model(source)
    model = load_model(source, task, new_head=not distils)
    task = fit_length(task, model)
    asked, recipe = recipe, _resolved(recipe, task, len(splits["train"]))
    processor = task.head.load_processor(source, model, recipe.max_length)
    if is_quantized(model):
        raise TrituneError(f"{source}: quantized already; give a float model")
    student = None if student_source is None else _open_student(student_source, task, processor, recipe.max_length)
    if distils:
        recipe = _fitted(recipe, task, model, student)
    data = task.head.encode(splits, task, processor, recipe.max_length, recipe.padding)
    if len(data.splits["train"]) != len(splits["train"]):  # a row may become several, or none: these are passed over
        recipe = _resolved(asked, task, len(data.splits["train"]))
        recipe = _fitted(recipe, task, model, student) if distils else recipe
    started = {"student": student, "student_source": str(student_source or "")}
    rows = rows_record(splits, data.splits)
    return Job(model, processor, task, data, recipe, output, str(source), rows=rows, **started)


def _open_student(source: str | Path, task: Task, processor: Any, max_length: int | None) -> PreTrainedModel:
    """A float student, which will read what the teacher reads."""
    model = load_model(source, task)
    if is_quantized(model):
        raise TrituneError(f"{source}: quantized already; --student takes a float model, --from a QAT student")
    task.head.check_processors(task.head.load_processor(source, model, max_length), processor, source)
    return model


def with_recipe(job: Job, recipe: Recipe, data_folder: Path | None, output: Path) -> Job:
    """The same teacher and task under another recipe; the data is read again only if the recipe cuts it otherwise.

    Args:
        job: a distillation's; its model may have been a teacher already.
        recipe: not resolved yet.
        data_folder: that `job` was opened with.
        output: the folder that the run will write.

    Raises:
        TrituneError: the recipe does not fit the model or the task.
    """
    fitted = fit(job, recipe)
    if (fitted.max_length, fitted.padding) != (job.recipe.max_length, job.recipe.padding):
        splits = load_task_data(job.task, data_folder, augmented=fitted.augmented)
        data = job.task.head.encode(splits, job.task, job.processor, fitted.max_length, fitted.padding)
        job = replace(job, data=data, rows=rows_record(splits, data.splits), measured={})
        # A long text is cut into windows, each of them a row: an epoch of shorter ones takes more steps.
        fitted = fit(job, recipe)
    # A trainer freezes its teacher; the student begins as a copy of it.
    job.model.requires_grad_(True)
    return replace(job, recipe=fitted, output=output)


def fit(job: Job, recipe: Recipe) -> Recipe:
    """Another recipe for a job's model and task, resolved and checked; nothing of the job changes.

    Raises:
        TrituneError: the recipe does not fit the model or the task.
    """
    if recipe.augmented != job.recipe.augmented:  # the budget would be reckoned from the wrong number of rows
        raise TrituneError("augmented: all runs of a sweep read the same training rows; set it with --set")
    recipe = _resolved(settle(recipe), job.task, len(job.data.splits["train"]))
    recipe = _fitted(recipe, job.task, job.model, job.student)
    if recipe.max_length != job.recipe.max_length:
        job.task.head.load_processor(job.source, job.model, recipe.max_length)
    return recipe


def _resolved(recipe: FinetuneRecipe, task: Task, train_rows: int) -> FinetuneRecipe:
    """The recipe in force, and a check of what does not depend on the model."""
    process = this_process()
    recipe = recipe.resolve(task, train_rows, process.num_processes)
    _check_reporting(recipe.report_to)
    check_precision(recipe.bf16, recipe.fp16, process.device)
    return recipe


def _fitted(recipe: Recipe, task: Task, teacher: PreTrainedModel, student: PreTrainedModel | None) -> Recipe:
    """A resolved recipe with its budget and its layer map spelt out, and a check of what depends on the models."""
    for name in ("embedding",) if task.head.has_logits else ("logits", "ground_truth"):
        if recipe.coefficients()[name]:
            advice = "" if task.head.has_logits else "; take recipe features, or features-ti-g"
            raise TrituneError(f"{name}_coefficient: {task.title} has no such loss, so it must be 0{advice}")
    student = teacher if student is None else student
    layers = len(instrument_of(instrument(student)).anatomy.sites)
    check_hidden_states(student, recipe.coefficients(), distilled_layers(recipe.distil_layers, layers))
    check_temperature(recipe.temperature, task.is_regression)
    pair = pairing(student, teacher, recipe.coefficients(), recipe.schedule, recipe.layer_map)
    return replace(recipe, layer_map=pair.layer_map).with_split(task, layers)


def _check_reporting(tracker: str) -> None:
    known = ("none", "all", *get_available_reporting_integrations())
    if tracker not in known:
        raise TrituneError(f"report_to: {tracker!r} is not installed or not known; available are {', '.join(known)}")
