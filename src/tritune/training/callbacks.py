"""Callbacks of a training: the best student is saved, history is written, progress is told."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerState

from ..checkpoints.files import replace_folder
from ..progress import Stage
from ..recipes import RECIPE_FILE, FinetuneRecipe, to_yaml
from .run_folder import write_json, write_text

_SELECTION = "selection.json"
_NOT_SHOWN = ("_loss", "_runtime", "_per_second")


class EvaluateAtEnd(TrainerCallback):
    """Ends every phase with an evaluation and a line of history, regardless of the intervals."""

    def on_step_end(self, args, state, control, **kwargs):
        """Request both after the last step."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_log = True
        return control


class BestModel(TrainerCallback):
    """Saves the model with the highest value of one metric in a folder of its own.

    `selection.json` beside the model holds metric, value and step, for a resumed training.

    Args:
        folder: where it is saved; replaced as a whole each time.
        metric: name of the metric, without `eval_`.
        processor: tokenizer or image processor, saved beside the model.
        recipe: saved beside the model, which is evaluated with its settings.
        first_step: number of steps in earlier phases.

    Attributes:
        value, step: of the saved model; None before the first.
    """

    def __init__(self, folder: Path, metric: str, processor: Any, recipe: FinetuneRecipe, first_step: int = 0):
        self.folder, self.metric, self.processor, self.recipe = folder, metric, processor, recipe
        self.first_step = first_step
        self.value: float | None = None
        self.step: int | None = None
        if (folder / _SELECTION).is_file():
            kept = json.loads((folder / _SELECTION).read_text(encoding="utf-8"))
            self.value, self.step = kept["value"], kept["step"]

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        """Save the model if it is better than the best so far."""
        if state.is_world_process_zero:
            self.consider(model, metrics[f"eval_{self.metric}"], self.first_step + state.global_step)

    def consider(self, model: PreTrainedModel, value: float, step: int) -> None:
        """Save a model with this value of the metric, made at `step`, if it is better than the best so far."""
        if self.value is None or value > self.value:
            self.value, self.step = value, step
            with replace_folder(self.folder) as folder:
                model.save_pretrained(folder)
                self.processor.save_pretrained(folder)
                write_text(folder / RECIPE_FILE, to_yaml(self.recipe))
                write_json(folder / _SELECTION, {"metric": self.metric, "value": value, "step": self.step})


class History(TrainerCallback):
    """Appends every log to a JSON Lines file, with phase, step (counted from the beginning of the run) and site.

    `site` returns the current site of intervention as text, or None; without it lines have no site.
    """

    def __init__(self, path: Path, phase: str, first_step: int = 0, site: Callable[[], str | None] | None = None):
        self.path, self.phase, self.first_step, self.site = path, phase, first_step, site

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop lines that this phase wrote after the checkpoint from which it is resumed."""
        if state.is_world_process_zero and self.path.is_file():
            lines = [line for line in self.path.read_text(encoding="utf-8").splitlines() if self._stays(line, state)]
            write_text(self.path, "".join(f"{line}\n" for line in lines))

    def _stays(self, line: str, state: TrainerState) -> bool:
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a killed run may be half of one
            return False
        return row["phase"] != self.phase or row["step"] <= self.first_step + state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append a line."""
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        site = {"site": self.site()} if "loss" in logs and self.site is not None else {}
        line = {"phase": self.phase, "step": self.first_step + state.global_step, **site, **logs}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Watch(TrainerCallback):
    """Calls `tell` with step, counted from the beginning of the run, and score after every evaluation of the student.

    An exception raised by it ends the training. `metric` is named without `eval_`.
    """

    def __init__(self, tell: Callable[[int, float], None], metric: str, first_step: int = 0):
        self.tell, self.metric, self.first_step = tell, metric, first_step

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Report the score."""
        self.tell(self.first_step + state.global_step, metrics[f"eval_{self.metric}"])


class PhaseProgress(TrainerCallback):
    """Tells of a training's steps, with loss, site and scores."""

    def __init__(self, shown: Stage, site: Callable[[], str | None] = lambda: None):
        self.shown, self.site = shown, site

    def on_step_end(self, args, state, control, **kwargs):
        """Another step is done."""
        self.shown.advance(state.global_step - self.shown.done)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Tell the newest numbers."""
        numbers = {
            name.removeprefix("eval_"): value
            for name, value in (logs or {}).items()
            if name == "loss" or (name.startswith("eval_") and not name.endswith(_NOT_SHOWN))
        }
        self.shown.note(**numbers, **({"site": site} if (site := self.site()) else {}))


class StepTimer(TrainerCallback):
    """Measures the seconds spent in training steps, without evaluations and checkpoints."""

    def __init__(self):
        self.seconds, self.steps = 0.0, 0

    def on_step_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """Stop the clock."""
        self.seconds += time.perf_counter() - self.started
        self.steps += 1

    def per_step(self) -> float | None:
        """Mean seconds per step, None before the first."""
        return round(self.seconds / self.steps, 4) if self.steps else None
