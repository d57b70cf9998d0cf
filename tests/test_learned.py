"""Quantizers that learn or remember, inside layers, products and trainings."""

import copy

import pytest
import torch
from torch.nn import functional as F

import tritune
from families import FAMILIES
from test_trainer import InOrder, arguments, rows, trainer
from tritune import Quantization
from tritune.compute import products
from tritune.modeling.instrument import instrument_of
from tritune.modeling.layers import QuantEmbedding, QuantLinear
from tritune.modeling.swap import quantizer_tensors
from tritune.quant import (
    Calibrated,
    Granularity,
    Learned,
    LearnedStep,
    MinMax,
    MovingMinMax,
    StretchedElastic,
    Ternary,
    Uniform,
)

BERT = FAMILIES["bert"]
COMBINATIONS = {
    "lsq": Quantization(weight_bits=4, weight_quantizer="lsq", activation_quantizer="lsq"),
    "elastic-pact": Quantization(
        weight_bits=1, weight_quantizer="elastic_binary", weight_granularity="row", activation_quantizer="pact"
    ),
    "seq-moving": Quantization(weight_bits=2, weight_quantizer="seq", activation_quantizer="moving_min_max"),
}
every_combination = pytest.mark.parametrize("quantization", COMBINATIONS.values(), ids=COMBINATIONS)


def started(kind: type[Learned], values: torch.Tensor, bits: int, granularity=Granularity.TENSOR) -> Learned:
    quantizer = kind(bits, granularity, (len(values), 1) if granularity is Granularity.ROW else ())
    quantizer.reset()
    quantizer.calibrate(values)
    return quantizer


def test_a_twin_keeps_its_quantizers_to_itself():
    linear = torch.nn.Linear(8, 4)
    twin = QuantLinear.from_float(
        linear, started(LearnedStep, linear.weight, 4), started(LearnedStep, torch.ones(1), 8)
    )
    assert set(dict(linear.named_parameters())) == {"weight", "bias"}
    assert set(twin.state_dict()) == {"weight", "bias", "weight_quantizer.scale", "input_quantizer.scale"}
    assert twin.weight is linear.weight


@pytest.mark.parametrize("granularity", [Granularity.TENSOR, Granularity.ROW])
def test_an_embedding_with_a_learned_scale_is_rows_of_the_quantized_table(granularity):
    embedding = torch.nn.Embedding(6, 4, dtype=torch.float64)
    quantizer = started(LearnedStep, embedding.weight.detach(), 3, granularity).double()
    twin, ids = QuantEmbedding.from_float(embedding, quantizer), torch.tensor([[0, 3, 3], [5, 0, 1]])
    grad = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.equal(twin(ids), quantizer(embedding.weight)[ids])
    twin(ids).backward(grad)
    found = [embedding.weight.grad, quantizer.scale.grad]
    embedding.weight.grad = quantizer.scale.grad = None
    quantizer(embedding.weight)[ids].backward(grad)
    for own, expected in zip(found, (embedding.weight.grad, quantizer.scale.grad), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)


OTHERS = {"ternary": Ternary(), "uniform": Uniform(8, Granularity.TOKEN), "asymmetric": MinMax(8), "float": None}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_learned_operands(other, dtype):
    """Against the dense product of dequantized values, and its gradients, in both precisions."""
    values, weight, bias, grad = (
        torch.randn(3, 5, 64),
        0.1 * torch.randn(48, 64),
        torch.randn(48),
        torch.randn(3, 5, 48),
    )
    of_input, of_weight = started(LearnedStep, values, 8), started(StretchedElastic, weight, 2, Granularity.ROW)
    tolerance = 1e-5 if dtype is torch.float32 else 2**-6

    def results(product, *quantizers) -> tuple[torch.Tensor, ...]:
        """The output, and the gradients of both operands and of what both quantizers learn."""
        leaves = [tensor.clone().requires_grad_() for tensor in (values, weight)]
        output = product(*leaves, bias, *quantizers)
        learned = [parameter for quantizer in (of_input, of_weight) for parameter in quantizer.parameters()]
        grads = torch.autograd.grad(output.float(), [*leaves, *learned], grad, allow_unused=True)
        return output.float(), *grads

    def dense(values, weight, bias, of_values, of_weight):
        return F.linear(of_values(values) if of_values else values, of_weight(weight) if of_weight else weight, bias)

    def computed(*operands):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            return products.linear(*operands)

    # A scale per token is none of a weight.
    pairs = [(of_input, of_weight), (other, of_weight), *([] if isinstance(other, Uniform) else [(of_input, other)])]
    for quantizers in pairs:
        own, theirs = results(computed, *quantizers), results(dense, *quantizers)
        # What a learned number gets is a sum of terms of either sign, at most half an operand's gradient each.
        terms = 0.5 * theirs[1].abs().sum() * of_input.gradient_scale, 0.5 * theirs[2].abs().sum(1).max()
        sizes = [*(tensor.abs().max() for tensor in theirs[:3]), *terms]
        for mine, exact, size in zip(own, theirs, sizes, strict=True):
            assert (mine is None) == (exact is None)
            if mine is not None:
                torch.testing.assert_close(mine, exact, rtol=tolerance, atol=tolerance * size.item())


def test_in_bfloat16_codes_of_a_learned_step_are_exact():
    values, weight = torch.randn(3, 64), 0.1 * torch.randn(48, 64)
    steps = started(LearnedStep, values, 8), started(LearnedStep, weight, 4, Granularity.ROW)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = products.linear(values, weight, None, *steps)
    exact = [
        (codes.double() * scale.double())
        for codes, scale in (q.quantize(x) for q, x in zip(steps, (values, weight), strict=True))
    ]
    expected = exact[0] @ exact[1].T
    assert ((output.double() - expected).abs() <= 2**-7 * expected.abs() + 1e-9).all()  # two roundings of the result


@every_combination
def test_everything_that_learns_starts_in_prepare(quantization):
    model = tritune.prepare(BERT.build(), quantization)
    tensors = quantizer_tensors(model)
    operands = [name for name in tensors if ".self.attention_probs_quantizer." in name]
    assert operands, "the products inside attention learn too"
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    for name, module in model.named_modules():
        if isinstance(module, Learned):
            assert (getattr(module, module.learns) > 0).all(), name
        if isinstance(module, MovingMinMax):
            assert module.high > module.low, name
    again = quantizer_tensors(tritune.prepare(BERT.build(), quantization))
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items()), "the sample is always the same"


def test_activations_start_from_the_sample():
    """The first Linear sees the embeddings' output: its range is theirs."""
    batch, model = BERT.batch(), tritune.prepare(BERT.build(), Quantization(activation_quantizer="pact"), BERT.batch())
    seen = {}
    query = model.bert.encoder.layer[0].attention.self.query
    query.register_forward_pre_hook(lambda module, args: seen.setdefault("input", args[0]))
    with torch.no_grad():
        model.eval()(**batch)
    assert query.input_quantizer.clip == seen["input"].abs().max()


def test_a_model_keeps_its_mode_and_its_hooks_on_ranges():
    model = BERT.build().eval()
    tritune.prepare(model, COMBINATIONS["seq-moving"])
    assert not any(module.training for module in model.modules())
    copied = copy.deepcopy(model)
    ranges = [module for module in copied.modules() if isinstance(module, MovingMinMax)]
    assert len(ranges) > 3 and all(a is b for a, b in zip(instrument_of(copied).ranges, ranges, strict=True))
    state = instrument_of(copied).states[0]
    assert state.query is copied.bert.encoder.layer[0].attention.self.query_quantizer


@pytest.mark.parametrize("optimizer", ["bert_adam", "adamw"])
@every_combination
def test_scales_learn_in_a_group_of_their_own(tmp_path, quantization, optimizer):
    student = tritune.prepare(BERT.build(), quantization)
    before = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
    run = trainer(
        tmp_path,
        student,
        optimizer=optimizer,
        learned_scale_learning_rate=5e-3,
        arguments_values={"weight_decay": 0.2, "max_steps": 3},
        coefficients={"logits": 1.0, "attention_scores": 1.0},
    )
    run.train()
    learned = {id(p) for module in student.modules() if isinstance(module, Learned) for p in module.parameters()}
    *others, own = run.optimizer.param_groups
    assert {id(p) for p in own["params"]} == learned and own["weight_decay"] == 0.0
    assert own.get("initial_lr", own["lr"]) == 5e-3
    assert not learned & {id(p) for group in others for p in group["params"]}
    moved = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    numbers = [name for name in quantizer_tensors(student) if "newest" not in name]
    still = [name for name in numbers if name not in moved]
    assert len(still) <= 0.1 * len(numbers), still


@every_combination
def test_a_resumed_training_is_the_undisturbed_one(tmp_path, quantization):
    def run(folder, **values):
        student = tritune.prepare(BERT.build(), quantization)
        return InOrder(
            model=student,
            teacher=BERT.build(seed=1),
            args=arguments(folder, save_strategy="steps", save_steps=2, max_steps=4, **values),
            train_dataset=rows(),
        )

    whole, resumed = run(tmp_path / "whole"), run(tmp_path / "resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_gradient_checkpointing_leaves_a_moving_range_as_it_is(tmp_path):
    def trained(checkpointing: bool) -> dict[str, torch.Tensor]:
        run = trainer(
            tmp_path,
            tritune.prepare(BERT.build(), COMBINATIONS["seq-moving"]),
            arguments_values={
                "max_steps": 3,
                "gradient_checkpointing": checkpointing,
                "gradient_checkpointing_kwargs": {"use_reentrant": False},
            },
        )
        run.train()
        return run.model.state_dict()

    plain, checkpointed = trained(False), trained(True)
    for name in quantizer_tensors(tritune.prepare(BERT.build(), COMBINATIONS["seq-moving"])):
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-5, atol=1e-7, msg=name)


def test_nothing_changes_where_nothing_learns(tmp_path):
    run = trainer(tmp_path, arguments_values={"max_steps": 1})
    run.train()
    assert len(run.optimizer.param_groups) == 2
    assert not any(isinstance(module, Calibrated) for module in run.model.modules())
