"""The first phase of a run: the student's parts are reconstructed one after another, before the whole is trained.

After every stage the student's weights and the stages so far are kept; a resumed run goes on with the next stage, and
ends with the same bits.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel

from ..checkpoints.files import replace_folder
from ..compute.devices import this_process
from ..distil.layer_map import mapped_layers
from ..distil.reconstruct import Reconstruction, Stage
from ..errors import Interrupted
from ..modeling.blocks import Batch
from ..modeling.instrument import instrument, instrument_of
from ..recipes import Recipe
from .job import Job
from .reconstruct import answer_loss
from .resume import StopOnSignal, checkpoints, load_weights, writable
from .run_folder import write_json

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
    folder = checkpoints(job.output, NAME)
    known: dict[str, Any] = {"stages": [], "seconds": 0.0, "finished": False}
    if (folder / _STAGES).is_file():
        known = json.loads((folder / _STAGES).read_text(encoding="utf-8"))
        load_weights(student, folder / _WEIGHTS)
    stages, stop, device = [Stage(**stage) for stage in known["stages"]], StopOnSignal(), this_process().device

    def keep(finished: bool) -> None:
        """Write the student as it is, and what was done to it."""
        known.update(stages=list(map(asdict, stages)), seconds=round(before + time.perf_counter() - began, 1))
        known["finished"] = finished
        if this_process().is_main_process:
            with writable(folder, lambda: stages[-1].name if stages else "no stage"), replace_folder(folder) as new:
                student.save_pretrained(new)
                write_json(new / _STAGES, known)

    before, began = known["seconds"], time.perf_counter()
    if not known["finished"]:
        work = _work(job, student, lambda: stop.asked)
        cast = torch.autocast(device.type, torch.bfloat16) if job.recipe.bf16 else nullcontext()
        with stop.listening(), cast:
            for stage in work.stages(stages[-1].number + 1 if stages else 0):
                stages.append(stage)
                keep(finished=False)
                told(stage)
        if stop.asked:
            done = f"after {stages[-1].name}" if stages else "before its first stage ended"
            raise Interrupted(f"stopped in the {NAME} {done}; --resume continues from there")
        keep(finished=True)
    return {name: known[name] for name in ("stages", "seconds")}


def _work(job: Job[Recipe], student: PreTrainedModel, stopped: Callable[[], bool]) -> Reconstruction:
    recipe, teacher = job.recipe, instrument(job.model)
    layers = [len(instrument_of(model).anatomy.sites) for model in (student, teacher)]
    return Reconstruction(
        student,
        teacher,
        _batches(job, student.device),
        answer_loss(job.model, job.task.head),
        steps=recipe.reconstruct_steps,
        learning_rate=recipe.reconstruct_learning_rate,
        layer_map=mapped_layers(recipe.layer_map, *layers),
        seed=recipe.seed,
        stopped=stopped,
    )


def _batches(job: Job[Recipe], device: torch.device) -> Sequence[Batch]:
    """Random training rows, as many as there are updates for, without their labels."""
    rows, size = job.data.splits["train"], job.recipe.reconstruct_batch_size
    wanted = job.recipe.reconstruct_steps * size
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(job.recipe.seed)).tolist()[:wanted]
    batches = []
    for start in range(0, len(order), size):
        batch = job.data.collate([rows[place] for place in order[start : start + size]])
        batches.append({name: tensor.to(device) for name, tensor in batch.items() if name != "labels"})
    return batches
