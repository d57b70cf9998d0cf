"""The first phase of a run: the student's parts are reconstructed one after another, before the whole is trained.

The student's weights are kept after every stage. A resumed run goes on with the next stage and ends with the same bits.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..checkpoints.files import replace_folder
from ..compute.devices import this_process
from ..distil.reconstruct import Reconstruction, Stage
from ..modeling.blocks import Batch
from ..modeling.instrument import instrument
from ..progress import stage
from ..recipes import Recipe
from ..recipes.recipe import GROUP_BY_LENGTH
from .job import Job
from .reconstruct import answer_loss, tell
from .resume import StopOnSignal, checkpoints, load_weights, writable
from .run_folder import read_json, remove, write_json

NAME = "reconstruction"
_WEIGHTS, _STAGES = "model.safetensors", "stages.json"


def reconstruct_student(
    job: Job[Recipe], student: PreTrainedModel, told: Callable[[Stage], None] = lambda stage: None
) -> dict[str, Any]:
    """Reconstruct a student as its recipe says, from where an interrupted run of the same job left off.

    Args:
        job: with its checkpoints in `job.output`.
        student: changed in place.
        told: called after every stage.

    Returns:
        `stages`, each with number, name, and error before and after, and the `seconds` that they took.

    Raises:
        Interrupted: a signal was received; the stages before the current one are kept.
        CannotWriteError: the weights of a stage could not be written.
        TrituneError: the model cannot be taken apart.
    """
    known = restore_student(job, student)
    stages, before, began = [Stage(**one) for one in known["stages"]], known["seconds"], time.perf_counter()
    stop, folder = StopOnSignal(), checkpoints(job.output, NAME)
    cast = bfloat16(student.device) if job.recipe.bf16 else nullcontext()
    finished, steps = stages[-1].number + 1 if stages else 0, job.recipe.reconstruct_steps
    work = _work(job, student, lambda: stop.asked)
    with (
        stop.listening(),
        cast,
        writable(folder, lambda: stages[-1].name if stages else "no part"),
        stage(NAME, work.most_stages * steps, before=finished * steps) as shown,
    ):
        for part in work.stages(finished, shown.advance):
            tell(shown, part, steps)
            stages.append(part)
            known = {"stages": list(map(asdict, stages)), "seconds": round(before + time.perf_counter() - began, 1)}
            if this_process().is_main_process:
                with replace_folder(folder / f"stage-{part.number}") as new:
                    student.save_pretrained(new)
                    write_json(new / _STAGES, known)
                for older in _kept(folder)[:-1]:
                    remove(older)
            told(part)
    return known


def bfloat16(device: torch.device) -> torch.autocast:
    """Products in bfloat16, as long as a reconstruction takes: no weight's first copy may outlive an update."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def restore_student(job: Job[Recipe], student: PreTrainedModel) -> dict[str, Any]:
    """Load a student's newest weights of an interrupted reconstruction, if there are any, and return what led there."""
    kept = _kept(checkpoints(job.output, NAME))
    if not kept:
        return {"stages": [], "seconds": 0.0}
    load_weights(student, kept[-1] / _WEIGHTS)
    return read_json(kept[-1] / _STAGES)


def _kept(folder: Path) -> list[Path]:
    """The checkpoints in a folder, each of them whole, in order of their stages."""
    return sorted(folder.glob("stage-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _work(job: Job[Recipe], student: PreTrainedModel, stopped: Callable[[], bool]) -> Reconstruction:
    recipe, teacher = job.recipe, instrument(job.model)
    assert not isinstance(recipe.layer_map, str)  # the recipe is in force
    return Reconstruction(
        student,
        teacher,
        _Batches(job, student.device),
        answer_loss(job.model, job.task.head),
        steps=recipe.reconstruct_steps,
        learning_rate=recipe.reconstruct_learning_rate,
        layer_map=recipe.layer_map,
        seed=recipe.seed,
        stopped=stopped,
    )


class _Batches(Sequence[Batch]):
    """Random training rows, as many as there are updates for, without their labels; made when they are asked for."""

    def __init__(self, job: Job[Recipe], device: torch.device):
        self.rows, self.collate, self.device = job.data.splits["train"], job.data.collate, device
        size, generator = job.recipe.reconstruct_batch_size, torch.Generator().manual_seed(job.recipe.seed)
        order = torch.randperm(len(self.rows), generator=generator)[: job.recipe.reconstruct_steps * size].tolist()
        if grouped := job.recipe.train_sampling_strategy == GROUP_BY_LENGTH:
            lengths = [len(ids) for ids in self.rows.select(order)["input_ids"]]
            order = [order[place] for place in sorted(range(len(order)), key=lengths.__getitem__)]
        self.batches = [order[start : start + size] for start in range(0, len(order), size)]
        if grouped:  # the first few are what an error is measured on
            places = torch.randperm(len(self.batches), generator=generator).tolist()
            self.batches = [self.batches[place] for place in places]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: Any) -> Any:
        batch = self.collate([self.rows[row] for row in self.batches[place]])
        return {name: tensor.to(self.device) for name, tensor in batch.items() if name != "labels"}
