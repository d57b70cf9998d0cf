"""What the training benchmarks compare: one training step each of plain fine-tuning, float distillation, QAT, and a
cost model of the published QAT step.
"""

import copy
import csv
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
)
from transformers.masking_utils import eager_mask

import tritune
from tritune.compute.devices import multiplies_bf16
from tritune.compute.held import weights_held
from tritune.compute.kernels import fused_kernels
from tritune.distil.losses import Pair, distillation_losses, trace_fields
from tritune.modeling.attention import STATE_ATTRIBUTE
from tritune.modeling.forward_pass import pass_of
from tritune.training.optimizer import BertAdam

SHAPES = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {},
    "bert-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
# The recipe ternarybert-block, which every ti-* recipe shares.
COEFFICIENTS = {"logits": 1.0, "hidden_states": 1.0, "attention_scores": 1.0, "block_output": 1.0}
FIELDS = trace_fields(COEFFICIENTS)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}

Step = Callable[[], None]


def precisions(device: torch.device) -> list[str]:
    """Those that a device multiplies well; says in a line what is left out."""
    if multiplies_bf16(device):
        return [*PRECISIONS]
    print(f"bf16 is left out: this {device.type} has no instructions that multiply it, so every step would take longer")
    return [name for name in PRECISIONS if name != "bf16"]


def build(shape: str, device: torch.device) -> PreTrainedModel:
    """A random classifier of a shape, float."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SHAPES[shape], attn_implementation="eager")).to(device)


def make_batch(batch: int, tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Random ids of full length: no padding."""
    return {
        "input_ids": torch.randint(1000, 20000, (batch, tokens), device=device),
        "attention_mask": torch.ones(batch, tokens, dtype=torch.long, device=device),
    }


def distillation_step(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype | None,
    fused: bool = False,
) -> Step:
    """One update of `student` towards `teacher`, under autocast to `dtype` if it is given; `fused`: with kernels."""

    def step() -> None:
        """Forward of both, losses, backward, update; weights held in between, as `DistillationTrainer` does."""
        held = nullcontext if student.is_activation_checkpointing else weights_held
        with held(), fused_kernels() if fused else nullcontext():
            with torch.autocast(student.device.type, dtype, enabled=dtype is not None):
                with torch.no_grad():
                    teachers = teacher(**batch, output_trace=FIELDS)
                output = student(**batch, output_trace=FIELDS)
            losses = distillation_losses(Pair(output, teachers, batch["attention_mask"]), COEFFICIENTS)
            sum(losses.values()).backward()
            optimizer.step()
        optimizer.zero_grad()

    return step


def finetuning_step(
    model: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype | None,
) -> Step:
    """One update of `model` on random labels, without a teacher."""
    labels = torch.zeros(len(batch["input_ids"]), dtype=torch.long, device=model.device)

    def step() -> None:
        """Forward, loss, backward, update."""
        with torch.autocast(model.device.type, dtype, enabled=dtype is not None):
            loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def arms(
    shape: str, batch_size: int, tokens: int, precision: str, device: torch.device, published: bool = False
) -> dict[str, Step]:
    """Every arm by name; all of one precision, teacher and batch.

    `float`, `qat` and `finetune` share our optimizer; `qat plain`, in bfloat16 on a CPU, is `qat` without kernels. With
    `published`, what the published step was once measured against takes their place: float distillation under torch's
    AdamW, and the cost model beside our step, also in bfloat16 where the device multiplies it.
    """
    base, batch, dtype = build(shape, device), make_batch(batch_size, tokens, device), PRECISIONS[precision]
    sdpa = copy.deepcopy(base).train()
    sdpa.set_attn_implementation("sdpa")
    teacher = tritune.instrument(base).eval().requires_grad_(False)

    def student(prepare: Callable[[PreTrainedModel], PreTrainedModel]) -> PreTrainedModel:
        return prepare(copy.deepcopy(base).requires_grad_(True)).train()

    def ours(model: nn.Module) -> BertAdam:
        return BertAdam(model.parameters(), 2e-5, total_steps=1000)

    def qat(dtype: torch.dtype | None, fused: bool) -> Step:
        model = student(tritune.prepare)
        return distillation_step(model, teacher, batch, ours(model), dtype, fused)

    plain, on_cpu = student(tritune.instrument), device.type == "cpu"
    if published:
        adamw, theirs = torch.optim.AdamW(plain.parameters(), 2e-5), student(published_cost)
        return {
            "float": distillation_step(plain, teacher, batch, adamw, dtype),
            "qat": qat(dtype, fused=False),
            **({"qat bf16": qat(torch.bfloat16, fused=on_cpu)} if multiplies_bf16(device) else {}),
            "published": distillation_step(theirs, teacher, batch, PublishedAdam(theirs), dtype),
        }
    has_kernels = on_cpu and dtype is torch.bfloat16
    steps = {
        "float": distillation_step(plain, teacher, batch, ours(plain), dtype),
        "qat": qat(dtype, has_kernels),
        "finetune": finetuning_step(sdpa, batch, ours(sdpa), dtype),
    }
    return steps | ({"qat plain": qat(dtype, fused=False)} if has_kernels else {})


# The cost model: what the published step computes, operation for operation as TernaryBERT's equations read, with a
# full-size tensor for every mask, threshold and scale. It is there for its time, not for its numbers.


class _MaskedClip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latent: torch.Tensor, quantized: torch.Tensor, clip: float) -> torch.Tensor:
        """`quantized`, with the float latent values kept for backward."""
        ctx.save_for_backward(latent)
        ctx.clip = clip
        return quantized

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """`grad` with zeros written where the latent value was clipped, one side at a time."""
        (latent,) = ctx.saved_tensors
        grad = grad.clone()
        grad[latent >= ctx.clip] = 0
        grad[latent <= -ctx.clip] = 0
        return grad, None, None


def _clipped(values: torch.Tensor, clip: float = 2.5) -> torch.Tensor:
    values = torch.where(values < clip, values, torch.full_like(values, clip))
    return torch.where(values > -clip, values, torch.full_like(values, -clip))


def _published_weight(weight: torch.Tensor, per_row: bool = False) -> torch.Tensor:
    with torch.no_grad():
        dims = (-1,) if per_row else (0, 1)
        clipped = _clipped(weight)
        threshold = (
            0.7 * clipped.norm(1, dims, keepdim=True) / (weight[0].numel() if per_row else weight.numel())
        ).expand_as(weight)
        above, below = (clipped > threshold).float(), (clipped < -threshold).float()
        kept = (clipped.abs() > threshold).float()
        scale = ((kept * clipped).abs().sum(dims, keepdim=True) / kept.sum(dims, keepdim=True)).expand_as(weight)
        quantized = scale * above - scale * below
    return _MaskedClip.apply(weight, quantized, 2.5)


def _published_activation(values: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        clipped = _clipped(values)
        scale = 127 / clipped.abs().max().expand_as(values)
        quantized = torch.round(clipped * scale).div(scale + 1e-6)
    return _MaskedClip.apply(values, quantized, 2.5)


def published_cost(model: PreTrainedModel) -> PreTrainedModel:
    """A student that costs what the published one does: the whole embedding table is quantized in every step."""
    student = tritune.prepare(model)
    for module in student.modules():
        if getattr(module, "weight_quantizer", None) is None:
            continue
        if isinstance(module, nn.Embedding):
            module.forward = lambda ids, m=module: F.embedding(
                ids, _published_weight(m.weight, per_row=True), m.padding_idx
            )
        else:
            module.forward = lambda values, m=module: F.linear(
                _published_activation(values), _published_weight(m.weight), m.bias
            )
    student.set_attn_implementation("published")
    return student


def _published_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention_forward` with the published quantizers."""
    state = getattr(module, STATE_ATTRIBUTE)
    forward_pass = pass_of(state.owner)
    forward_pass.enter(state, state.layers)
    scores = torch.matmul(_published_activation(query), _published_activation(key).mT) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probs = scores.softmax(-1)
    forward_pass.keep(attention_scores=scores, attention_probs=probs)
    dropped = F.dropout(probs, dropout, module.training)
    context = torch.matmul(_published_activation(dropped), _published_activation(value))
    return context.transpose(1, 2).contiguous(), probs


AttentionInterface.register("published", _published_attention)
AttentionMaskInterface.register("published", eager_mask)


class PublishedAdam(torch.optim.Optimizer):
    """Adam without bias correction, one operation after the other, one parameter after the other."""

    def __init__(self, model: nn.Module):
        super().__init__(model.parameters(), {"lr": 2e-5})

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter."""
        for parameter in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            state = self.state[parameter]
            if not state:
                state["first"], state["second"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            torch.nn.utils.clip_grad_norm_(parameter, 1.0)
            state["first"].mul_(0.9).add_(parameter.grad, alpha=0.1)
            state["second"].mul_(0.999).addcmul_(parameter.grad, parameter.grad, value=0.001)
            update = state["first"] / (state["second"].sqrt() + 1e-6)
            update += 0.01 * parameter
            parameter.add_(-(2e-5 * update))


def write_csv(path: Path, rows: list[dict], append: bool = False) -> None:
    """Rows with the same keys, which become the header."""
    begun = append and path.exists()
    with path.open("a" if append else "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if not begun:
            writer.writeheader()
        writer.writerows(rows)
