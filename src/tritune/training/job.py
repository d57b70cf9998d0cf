"""What a run works on, opened and checked whole before anything is computed or written."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.integrations import get_available_reporting_integrations

from ..data import load_task_data
from ..data.encode import EncodedData, encode_splits
from ..devices import this_process
from ..distill import check_temperature, distilled_layers
from ..errors import TrituneError
from ..instrument import instrument, instrument_of
from ..load import is_quantized, load_model, load_tokenizer
from ..recipes import FinetuneRecipe, Recipe
from ..tasks import Task
from .arguments import check_precision
from .run_folder import check_free


@dataclass(frozen=True)
class Job:
    """A model, a task with its data, a recipe in force and a folder.

    Attributes:
        model: the teacher to distil, or the model to fine-tune.
        tokenizer: its tokenizer.
        task, data: what it is trained and measured on.
        recipe: in force, see `FinetuneRecipe.resolve`.
        output: the run's folder.
        source: where the model came from, for the record.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    data: EncodedData
    recipe: FinetuneRecipe
    output: Path
    source: str


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
) -> Job:
    """Read and check everything a run needs; nothing is written.

    Args:
        source: the model's folder or hub name.
        task: of the table.
        data_folder: the task's original files; None reads the hub.
        recipe: not resolved yet. A `Recipe` takes a fine-tuned teacher, a plain `FinetuneRecipe` gives a new head.
        output: the folder that the run will write.
        overwrite: whether a run that lies there may be replaced.
        resume: whether a run that lies there is to go on.
        other_inputs: further folders that are read.

    Raises:
        TrituneError: anything that is missing, does not fit, or is in the way; one line that says what to do.
    """
    inputs = (source, *other_inputs, *([data_folder] if data_folder else []))
    check_free(output, overwrite, resume, inputs=inputs)
    # A new classifier is drawn while the model is loaded.
    set_seed(recipe.seed)
    splits = load_task_data(task, data_folder)
    distils = isinstance(recipe, Recipe)
    recipe = recipe.resolve(task, len(splits["train"]), this_process().num_processes)
    _check_reporting(recipe.report_to)
    check_precision(recipe.fp16, this_process().device)
    model = load_model(source, task, new_head=not distils)
    tokenizer = load_tokenizer(source, model, recipe.max_length)
    if is_quantized(model):
        raise TrituneError(f"{source}: quantized already; give a float model")
    if distils:
        layers = len(instrument_of(instrument(model)).anatomy.sites)
        distilled_layers(recipe.distil_layers, layers)
        check_temperature(recipe.temperature, task.is_regression)
        recipe = recipe.with_split(task, layers)
    data = encode_splits(splits, task, tokenizer, recipe.max_length, recipe.padding)
    return Job(model, tokenizer, task, data, recipe, output, str(source))


def _check_reporting(tracker: str) -> None:
    known = ("none", "all", *get_available_reporting_integrations())
    if tracker not in known:
        raise TrituneError(f"report_to: {tracker!r} is not installed or not known; available are {', '.join(known)}")
