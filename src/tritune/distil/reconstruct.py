"""Block-wise reconstruction: one part of the student after another learns to give what the teacher's part gives.

Each block's parameters are trained by Adam to match the teacher's output of that block in the mean squared error, from
what the finished quantized blocks before it give. The straight-through gradient crosses one block only, and no label is
read. The idea is that of BRECQ (Li et al., ICLR 2021, arXiv 2102.05426) and MREM (Bai et al., NeurIPS 2022, arXiv
2109.15082); EfficientQAT (ACL 2025) trains all parameters of a block. Before the blocks the embeddings learn the same
way, and after them whatever lies between the last block and the answer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..compute.held import forget_weights, weights_held
from ..compute.processes import average, own_rows, process_count
from ..errors import Interrupted, TrituneError
from ..modeling.blocks import Batch, BlockCall, Blocks
from ..modeling.layers import QuantEmbedding
from ..modeling.modes import evaluation_mode
from .losses import token_mse
from .losses.means import total
from .states import States

# (student's output, teacher's output, batch) to a scalar.
AnswerLoss = Callable[[Any, Any, Batch], torch.Tensor]
# Batches that the error before and after a stage is measured on.
MEASURED = 8


@dataclass(frozen=True)
class Stage:
    """What one stage of a reconstruction did. It never ends worse than it began: then the weights stay as they were.

    Attributes:
        number: from 0.
        name: "embeddings", "block 0" and so on ("blocks 0-2" where layers share their weights), or "head".
        before, after: mean loss over the same few batches, before and after the stage.
    """

    number: int
    name: str
    before: float
    after: float


class Reconstruction:
    """Trains a student, stage by stage.

    Args:
        student: as `tritune.prepare` returns it; trained in place, without dropout.
        teacher: instrumented, of the same width as the student.
        batches: model inputs without labels, on the models' device; every stage uses the same ones. They are not kept:
            a sequence may make them each time it is asked. Several processes, which must be given the same ones, share
            their rows.
        answer_loss: what the last stage minimises, given both models' outputs and the batch.
        steps: updates of every stage.
        learning_rate: at the beginning; it falls linearly to 0.
        layer_map: the teacher's layer for each of the student's, in ascending order, see `layer_map.mapped_layers`;
            None for models of the same depth.
        seed: of the order of the batches.
        cache_bytes: memory for hidden states; beyond it they are kept in float16, then on disk.
        stopped: asked before every update whether to give up the stage.

    Raises:
        TrituneError: there are no batches, or the models do not fit each other.
        UnsupportedModelError: a model's layers are not blocks that follow each other.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        batches: Sequence[Batch],
        answer_loss: AnswerLoss,
        *,
        steps: int = 300,
        learning_rate: float = 1e-3,
        layer_map: Sequence[int] | None = None,
        seed: int = 0,
        cache_bytes: int = 2**31,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self.batches, self.places = batches, []
        # What a mean over a process's rows weighs in the mean over all rows, times the number of processes.
        self.shares: list[float] = []
        self.masks: list[torch.Tensor | None] = []
        for place, batch in enumerate(batches):
            if (count := _rows(batch)) >= process_count():  # else some process would get no row
                own = own_rows(batch)
                self.places.append(place)
                self.shares.append(_rows(own) * process_count() / count)
                self.masks.append(own.get("attention_mask"))
        if not self.places:
            raise TrituneError("reconstruct: there are no batches to learn from")
        self.student, self.teacher, self.answer_loss, self.stopped = student, teacher, answer_loss, stopped
        self.steps, self.learning_rate, self.seed, self.cache_bytes = steps, learning_rate, seed, cache_bytes
        self.own, self.theirs = Blocks(student), Blocks(teacher)
        layers = len(self.own.names)
        self.taught_by = list(range(layers)) if layer_map is None else list(layer_map)
        if len(self.taught_by) != layers or max(self.taught_by) >= len(self.theirs.names):
            raise TrituneError(
                f"reconstruct: the student has {layers} layers and the teacher {len(self.theirs.names)}; give a "
                "layer_map that names one of the teacher's layers for each of the student's"
            )
        if self.taught_by != sorted(set(self.taught_by)):
            raise TrituneError("reconstruct: the layers of layer_map must ascend")

    @property
    def most_stages(self) -> int:
        """How many stages there are, if there are parameters to train before and behind the blocks."""
        return 2 + len(grouped(self.own.names))

    def stages(self, finished: int = 0, advanced: Callable[[], object] = lambda: None) -> Iterator[Stage]:
        """Train stage after stage; each is yielded when it is done.

        Args:
            finished: stages with a lower number are left out: the student has been through them. What follows is, to
                the bit, what follows in a call that begins with the first.
            advanced: called after every update.

        Raises:
            Interrupted: `stopped` said yes.
            TrituneError: a loss is not finite.
        """
        with evaluation_mode(self.student), evaluation_mode(self.teacher):
            yield from self._all(finished, advanced)

    def _all(self, finished: int, advanced: Callable[[], object]) -> Iterator[Stage]:
        groups, train = grouped(self.own.names), partial(self._train, advanced=advanced)
        # The student's states, and the teacher's behind every layer of a group.
        share = self.cache_bytes // (1 + max(map(len, groups)))
        own, theirs = (States(share, len(self.places)) for _ in range(2))
        their_calls = self._begin(self.theirs, theirs)
        # A row of a quantized table is met too rarely for Adam: what its few texts say spoils it for all others.
        tables = {id(one.weight) for one in self.student.modules() if isinstance(one, QuantEmbedding)}
        stem = [one for one in self._parameters_of(lambda: self.own.stem(self._batch(0))[0]) if id(one) not in tables]
        if stem and finished < 1:
            yield train(0, "embeddings", stem, lambda place: self._stem_loss(place, theirs[place]))
        own_calls = self._begin(self.own, own)
        number, reached = 0, 0
        for number, layers in enumerate(groups, start=1):
            targets: list[States] = []
            for layer in layers:
                self._advance(self.theirs, theirs, their_calls, range(reached, self.taught_by[layer] + 1))
                reached = self.taught_by[layer] + 1
                targets.append(theirs if layer == layers[-1] else theirs.copy())
            if finished <= number:
                modules = nn.ModuleList(self.student.get_submodule(self.own.names[layer]) for layer in layers)
                loss_at = partial(self._block_loss, own, own_calls, layers, targets)
                yield train(number, _stage_name(layers), list(modules.parameters()), loss_at)
            self._advance(self.own, own, own_calls, layers)
        self._advance(self.theirs, theirs, their_calls, range(reached, len(self.theirs.names)))
        behind = self._parameters_of(lambda: self._answer_loss(0, own, theirs))
        done = tables | set(map(id, stem))  # tied embeddings, among others
        head = [one for one in behind if id(one) not in done]
        if head and finished <= number + 1:
            yield train(number + 1, "head", head, lambda place: self._answer_loss(place, own, theirs))

    @torch.no_grad()
    def _begin(self, blocks: Blocks, states: States) -> list[list[BlockCall]]:
        """Fill in the states before the first block; what every block is called with, by batch."""
        calls = []
        for place in range(len(self.places)):
            states[place], of_batch = blocks.stem(self._batch(place))
            calls.append(of_batch)
        return calls

    def _batch(self, place: int) -> Batch:
        """The rows of a batch that are this process's."""
        return own_rows(self.batches[self.places[place]])

    def _stem_loss(self, place: int, target: torch.Tensor) -> torch.Tensor:
        return self._error(place, self.own.stem(self._batch(place))[0], target)

    def _block_loss(
        self,
        own: States,
        calls: list[list[BlockCall]],
        layers: Sequence[int],
        targets: Sequence[States],
        place: int,
    ) -> torch.Tensor:
        """Of layers that share weights the sum; each gets what the one before it gave, without its gradient."""
        state, losses = own[place], []
        for layer, target in zip(layers, targets, strict=True):
            state = self.own.block(layer, state.detach(), calls[place][layer])
            losses.append(self._error(place, state, target[place]))
        return total(losses)

    def _error(self, place: int, state: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return token_mse(state, target, self.masks[place], "valid")

    def _answer_loss(self, place: int, own: States, theirs: States) -> torch.Tensor:
        batch = self._batch(place)
        with torch.no_grad():
            expected = self.theirs.answer(batch, theirs[place])
        return self.answer_loss(self.own.answer(batch, own[place]), expected, batch)

    @weights_held()
    def _advance(self, blocks: Blocks, states: States, calls: list[list[BlockCall]], layers: Iterable[int]) -> None:
        """Replace every state by the one behind these layers."""
        with torch.no_grad():
            for layer in layers:
                for place in range(len(self.places)):
                    states[place] = blocks.block(layer, states[place], calls[place][layer])

    @torch.enable_grad()
    def _parameters_of(self, compute: Callable[[], torch.Tensor]) -> list[nn.Parameter]:
        """The student's parameters that a result depends on."""
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        if not (result := compute()).requires_grad:
            return []
        gradients = torch.autograd.grad(result.sum(), trained, allow_unused=True)
        return [one for one, gradient in zip(trained, gradients, strict=True) if gradient is not None]

    @weights_held()
    def _train(
        self,
        number: int,
        name: str,
        parameters: list[nn.Parameter],
        loss_at: Callable[[int], torch.Tensor],
        advanced: Callable[[], object],
    ) -> Stage:
        before = self._measured(loss_at)
        if before == 0:  # of a part that is not quantized
            return Stage(number, name, 0.0, 0.0)
        start = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / self.steps)
        for place in self._order(number):
            with torch.enable_grad():
                loss = self.shares[place] * loss_at(place)
            loss.backward()
            if self._averaged(loss, parameters):
                raise Interrupted(f"stopped in the reconstruction of {name}; --resume continues before it")
            if not loss.isfinite():
                raise TrituneError(f"reconstruct: the loss of {name} is not finite; take a lower learning_rate")
            optimizer.step()
            rate.step()
            forget_weights()
            self.student.zero_grad()
            advanced()
        after = self._measured(loss_at)
        if not after <= before:  # nor is it a number, perhaps
            with torch.no_grad():
                for parameter, value in zip(parameters, start, strict=True):
                    parameter.copy_(value)
            forget_weights()
            after = before
        return Stage(number, name, before, after)

    @torch.no_grad()
    def _averaged(self, loss: torch.Tensor, parameters: Sequence[nn.Parameter]) -> bool:
        """Average loss and gradients over the processes; whether one of them was stopped."""
        stopped = loss.new_tensor(float(self.stopped()))
        average([stopped, loss, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
        return bool(stopped)

    def _order(self, number: int) -> Iterator[int]:
        """The batches of a stage's updates: all of them in random order, then again."""
        generator = torch.Generator().manual_seed(1009 * self.seed + number)
        order: list[int] = []
        for _ in range(self.steps):
            order = order or torch.randperm(len(self.places), generator=generator).tolist()
            yield order.pop()

    @torch.no_grad()
    def _measured(self, loss_at: Callable[[int], torch.Tensor]) -> float:
        places = range(min(MEASURED, len(self.places)))
        error = torch.stack([self.shares[place] * loss_at(place) for place in places]).double().mean()
        average([error])
        return error.item()


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def grouped(names: Sequence[str]) -> list[list[int]]:
    """The layers in groups that are trained together, because they share a block or lie between two that do.

    >>> grouped(["a", "b", "c"]), grouped(["a", "a", "b"]), grouped(["a", "b", "a", "c"])
    ([[0], [1], [2]], [[0, 1], [2]], [[0, 1, 2], [3]])
    """
    groups: list[list[int]] = []
    for layer, name in enumerate(names):
        known = [place for place, group in enumerate(groups) if any(names[other] == name for other in group)]
        groups[known[0] if known else len(groups) :] = [list(range(groups[known[0]][0] if known else layer, layer + 1))]
    return groups


def _stage_name(layers: Sequence[int]) -> str:
    return f"block {layers[0]}" if len(layers) == 1 else f"blocks {layers[0]}-{layers[-1]}"
