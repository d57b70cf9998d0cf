"""Models for a task, checked against it before anything is computed or written."""

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from ..checkpoints.load import is_quantized, load_config, load_pretrained, positions
from ..checkpoints.plugin import is_packed
from ..errors import TrituneError
from ..modeling.instrument import instrument_of
from ..modeling.quantization import Quantization
from ..modeling.swap import quantizer_tensors
from .registry import Task


def load_model(source: str | Path, task: Task, *, new_head: bool = False) -> PreTrainedModel:
    """A model for `task`, on the CPU in float32.

    Args:
        source: a local folder or a hub name.
        task: that it is for.
        new_head: whether a missing head is initialized and the labels set to the task's, as for fine-tuning; otherwise
            the model must have been fine-tuned on this task's labels.

    Raises:
        TrituneError: the source is not a model, its weights are incomplete or not finite, or its labels are not the
            task's; the message says which.
    """
    if new_head:
        return load_pretrained(task.head.auto_model, source, **task.head.options(task))
    config = load_config(source)
    if not (Path(source) / "modules.json").is_file():  # of a sentence encoder there is more to say, when it is loaded
        task.head.check_architecture(config, source, task.name)
    task.head.check(config, task, source)
    model = load_pretrained(task.head.auto_model, source)
    model.config.update({name: value for name, value in task.head.options(task).items() if name == "problem_type"})
    return model


def fit_length(task: Task, model: PreTrainedModel) -> Task:
    """The task, its `max_length` limited to the model's positions; those of the table are published values and stay."""
    room = positions(model)
    if room is None or task.files is None or task.max_length is None:
        return task
    return replace(task, max_length=min(task.max_length, room))


def load_student(
    source: str | Path, task: Task, origin: PreTrainedModel, quantization: Quantization
) -> PreTrainedModel:
    """A QAT model for `task` to go on training, made of the float model `origin`: the teacher, or a student of its own.

    Raises:
        TrituneError: as `load_model`; or it is a float model, quantized in another way, or of another shape than the
            float model.
    """
    model = load_model(source, task)
    if is_packed(model):
        raise TrituneError(f"{source}: packed, and so without latent weights to train; give the run it was made from")
    if not is_quantized(model):
        raise TrituneError(f"{source}: a float model; --from takes a student that `tritune train` wrote")
    if model.config.quantization_config.quantization != quantization:
        raise TrituneError(f"{source}: quantized in another way than the recipe says; give the recipe it was made with")
    own = quantizer_tensors(model)
    shapes = [{n: tensor.shape for n, tensor in m.state_dict().items() if n not in own} for m in (model, origin)]
    if shapes[0] != shapes[1] or len(instrument_of(model).anatomy.sites) != len(instrument_of(origin).anatomy.sites):
        raise TrituneError(
            f"{source}: of another shape than the teacher or the model of --student; give the float model that it was "
            "made from with --student"
        )
    return model
