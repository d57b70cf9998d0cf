"""Training that may be killed at any moment and resumes from its newest complete checkpoint.

Trainer writes a checkpoint in place, its `trainer_state.json` last, and resumes from the highest number even if half of
it is missing; here a folder counts only if all of its files are readable. Ctrl-C and SIGTERM end the training after the
current step, with a checkpoint.
"""

import errno
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, ProgressCallback, Trainer, TrainerCallback
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations import TensorBoardCallback

from ..errors import CannotWriteError, Interrupted, TrituneError, first_line
from ..progress import stage
from ..tasks.heads.augmented import AugmentedRows, EpochOf
from .callbacks import EvaluateAtEnd, PhaseProgress
from .run_folder import CHECKPOINTS

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_WEIGHTS, _STATE = "model.safetensors", "trainer_state.json"
_FILES = (_WEIGHTS, "optimizer.pt", "scheduler.pt", _STATE)


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    found = (path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return next(filter(_is_whole, sorted(found, key=_step, reverse=True)), None)


def checkpoints(output: Path, phase: str) -> Path:
    """The folder of a phase's checkpoints in a run's folder."""
    return output / CHECKPOINTS / phase.replace(" ", "_")


def last_step(output: Path, first_steps: dict[str, int]) -> int:
    """The step of a run's newest complete checkpoint, counted from the beginning of the run.

    `first_steps` is the number of steps before each phase, by its name, in order; there may be no phase.
    """
    for phase, before in reversed(first_steps.items()):
        if checkpoint := newest_checkpoint(checkpoints(output, phase)):
            return before + _step(checkpoint)
    return next(iter(first_steps.values()), 0)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(path: Path) -> bool:
    if not all((path / name).is_file() for name in _FILES):
        return False
    try:
        with safe_open(path / _WEIGHTS, framework="pt"):
            return json.loads((path / _STATE).read_text(encoding="utf-8"))["global_step"] == _step(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return False


@torch.no_grad()
def load_weights(model: PreTrainedModel, path: Path) -> None:
    """Load the weights of a checkpoint into a model.

    `save_pretrained` writes some families (ViT) under older names than those of their parameters, and some parameters
    (DINOv2's SwiGLU) merged into one.

    Raises:
        TrituneError: a weight is missing in the file.
    """
    found, own = load_file(path), {name: tensor.detach() for name, tensor in model.state_dict().items()}
    written = revert_weight_conversion(model, own)
    for name in written.keys() & found.keys():
        written[name].copy_(found[name])
    # Shared parameters are written once.
    came = {written[name].data_ptr() for name in written.keys() & found.keys()}
    left = {name: tensor for name, tensor in own.items() if tensor.data_ptr() not in came}
    if not left:
        return
    # Merged with others: numbers in place of the weights show where each value has gone.
    ends = list(accumulate(tensor.numel() for tensor in left.values()))
    numbers = torch.arange(ends[-1]).tensor_split(ends[:-1])
    places = {name: n.view(tensor.shape) for (name, tensor), n in zip(left.items(), numbers, strict=True)}
    values = torch.empty(ends[-1])
    for name, place in revert_weight_conversion(model, places).items():
        if name not in found:
            raise TrituneError(f"{path}: has no {name}; remove its folder, then --resume")
        values[place] = found[name].to(values.dtype)
    for name, place in places.items():
        left[name].copy_(values[place])


class ResumableTrainer(Trainer):
    """transformers' Trainer, which by itself resumes even if weights are missing under their names."""

    model: PreTrainedModel

    @property
    def folder(self) -> Path:
        """The folder of the checkpoints; `TrainingArguments` chooses one if none is given."""
        return Path(str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.model, Path(resume_from_checkpoint) / _WEIGHTS)


def train(
    trainer: ResumableTrainer,
    name: str,
    callbacks: list[TrainerCallback],
    site: Callable[[], str | None] = lambda: None,
) -> None:
    """Run a trainer to its last step, from its newest checkpoint if there is one.

    Args:
        trainer: not run yet; its checkpoints are in its own folder, `<run>/checkpoints/<phase>`.
        name: name of the phase, for its progress and messages.
        callbacks: in addition to progress and the evaluation at the end.
        site: returns the current site of intervention as text, or None; shown with the progress.

    Raises:
        Interrupted: a signal was received; a checkpoint of the current step was written.
        CannotWriteError: a checkpoint could not be written; earlier ones are complete.
    """
    folder = trainer.folder
    checkpoint = newest_checkpoint(folder)
    if checkpoint is not None and _step(checkpoint) == trainer.args.max_steps:
        load_weights(trainer.model, checkpoint / _WEIGHTS)
        return
    for callback in trainer.callback_handler.callbacks:
        # The checkpoints are removed in the end, and curves beside them would be lost.
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder.parent.parent / "runs" / folder.name)
    stop = StopOnSignal()
    trainer.remove_callback(ProgressCallback)
    epochs = [EpochOf(trainer.train_dataset)] if isinstance(trainer.train_dataset, AugmentedRows) else []
    for callback in (EvaluateAtEnd(), *epochs, *callbacks, stop):
        trainer.add_callback(callback)
    with (
        stop.listening(),
        writable(folder, lambda: f"step {trainer.state.global_step}"),
        stage(name, trainer.args.max_steps, before=_step(checkpoint) if checkpoint else 0) as shown,
    ):
        trainer.add_callback(PhaseProgress(shown, site))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # accelerate leaves an autocast around the forward of a model trained in half precision; from here on everything is
    # evaluated and saved in float32. Its own way to remove it removes transformers' decorators, too.
    for wrapped in ("forward", "_original_forward"):
        vars(trainer.model).pop(wrapped, None)
    if stop.asked:
        raise Interrupted(f"stopped in {name} after step {trainer.state.global_step}; --resume continues from there")


@contextmanager
def writable(folder: Path, reached: Callable[[], str]) -> Iterator[None]:
    """Turn failures to write checkpoints into one line that says what is left; `reached` names what they follow."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch's writer reports a full disk as a RuntimeError from its container file.
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        if isinstance(error, OSError) and error.errno not in _CANNOT_WRITE:
            raise
        cause = getattr(error, "strerror", None) or first_line(error)
        raise CannotWriteError(
            f"{folder}: cannot be written to after {reached()} ({cause}); "
            "earlier checkpoints are complete: free some space, then --resume"
        ) from error


class StopOnSignal(TrainerCallback):
    """Ends the training with a checkpoint after the current step at the first SIGINT or SIGTERM; a second one kills."""

    def __init__(self):
        self.asked = False

    def on_step_end(self, args, state, control, **kwargs):
        """Save and stop if a signal was received."""
        if self.asked:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        return control

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals within the context (only the main thread may)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in caught}

        def ask(number: int, frame: object) -> None:
            self.asked = True
            signal.signal(number, before[signal.Signals(number)])

        for number in caught:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
