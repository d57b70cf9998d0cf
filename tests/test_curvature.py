"""Curvature and landscape against dense float64 Hessians, finite differences and closed forms."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator
from torch import nn
from torch.func import functional_call

import golden
import tritune
from families import FAMILIES, LABELS
from tritune import analysis
from tritune.analysis.curvature_plots import plot_curvature
from tritune.analysis.hessian import Hessian, both_ends, hutchinson, top_eigenvalues
from tritune.analysis.lanczos import lanczos, spectral_density
from tritune.analysis.landscape import loss_grid, plane, random_direction
from tritune.analysis.landscape_plots import plot_contours, plot_surfaces
from tritune.analysis.objective import objective
from tritune.distill import LOSSES
from tritune.errors import TrituneError
from tritune.layers import QuantLinear
from tritune.quant import Ternary, Uniform

QUERIES = ("*query*", "*q_lin*", "*q_proj*", "*quux*")


def double(family: str, *, quantized: bool) -> nn.Module:
    model = FAMILIES[family].build().double()
    return (tritune.prepare(model) if quantized else tritune.instrument(model)).eval()


def labelled(family: str) -> dict[str, torch.Tensor]:
    batch = FAMILIES[family].batch()
    batch = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
    return batch | {"labels": torch.arange(3) % LABELS}


def queries(model: nn.Module) -> list[nn.Parameter]:
    """Few enough parameters for a dense matrix."""
    found = [p for name, p in model.named_parameters() if any(word.strip("*") in name for word in QUERIES)]
    return found[:2]


def matrix(operator) -> np.ndarray:
    return operator @ np.eye(operator.shape[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hessian_is_the_dense_one(family):
    """Against autograd's own second derivatives of the model as a function of its parameters."""
    model, batch = double(family, quantized=False), labelled(family)
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = queries(model)
    sizes, shapes = [p.numel() for p in chosen], [p.shape for p in chosen]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        moved = {names[id(p)]: part for p, part in zip(chosen, parts, strict=True)}
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return nn.functional.cross_entropy(functional_call(model, moved, kwargs=inputs).logits, batch["labels"])

    flat = torch.cat([p.detach().flatten() for p in chosen])
    dense = torch.autograd.functional.hessian(loss, flat).numpy()
    operator = Hessian(objective("ground_truth", batch)(model), chosen)
    np.testing.assert_allclose(matrix(operator), dense, rtol=1e-9, atol=1e-12)
    expected = np.linalg.eigvalsh(dense)
    expected = expected[np.argsort(-np.abs(expected))]
    np.testing.assert_allclose(top_eigenvalues(operator, 5), expected[:5], rtol=1e-6)
    np.testing.assert_allclose(both_ends(operator, expected[:1]), (expected.min(), expected.max()), rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hessian_of_a_student_is_symmetric(family):
    student, batch = double(family, quantized=True), labelled(family)
    operator = Hessian(objective("ground_truth", batch)(student), student.parameters())
    u, v = np.random.default_rng(0).standard_normal((2, operator.shape[0]))
    product = operator @ v
    assert np.abs(product).max() > 0
    assert u @ product == pytest.approx(v @ (operator @ u), rel=1e-9)


def test_the_hessian_of_a_student_is_that_of_its_surrogate():
    """The smooth function clip(w) + (quantize(w0) - clip(w0)) at every quantizer, by finite differences."""
    torch.manual_seed(0)
    values = torch.randn(5, 6, dtype=torch.float64)
    first, second = (
        QuantLinear.from_float(nn.Linear(*shape, bias=False).double(), Ternary(), Uniform())
        for shape in ((6, 4), (4, 3))
    )
    with torch.no_grad():
        first.weight[0, 0] = 3.0  # clipped: its second derivative is zero
    weights = [first.weight, second.weight]

    def loss(hidden_of, output_of) -> torch.Tensor:
        return output_of(torch.tanh(3 * hidden_of(values))).square().sum()

    operator = Hessian(loss(first, second), weights)

    clip = lambda x: x.clamp(-2.5, 2.5)  # noqa: E731
    hidden = torch.tanh(3 * first(values)).detach()
    offsets = [
        quantizer(x.detach()) - clip(x.detach())
        for quantizer, x in (
            (Uniform(), values), (Ternary(), first.weight), (Uniform(), hidden), (Ternary(), second.weight)
        )
    ]  # fmt: skip

    def gradient(flat: torch.Tensor) -> torch.Tensor:
        one, two = (part.view_as(w).requires_grad_() for part, w in zip(flat.split([24, 12]), weights, strict=True))
        surrogate = loss(
            lambda x: (clip(x) + offsets[0]) @ (clip(one) + offsets[1]).T,
            lambda x: (clip(x) + offsets[2]) @ (clip(two) + offsets[3]).T,
        )
        return torch.cat([g.flatten() for g in torch.autograd.grad(surrogate, (one, two))])

    flat, step = torch.cat([w.detach().flatten() for w in weights]), 1e-5
    columns = [(gradient(flat + step * e) - gradient(flat - step * e)) / (2 * step) for e in torch.eye(36).double()]
    np.testing.assert_allclose(matrix(operator), torch.stack(columns).numpy(), rtol=1e-5, atol=1e-6)
    assert not matrix(operator)[0].any(), "what is clipped has no curvature"


@pytest.mark.golden
def test_curvature_of_the_published_analysis(golden_folder):
    teacher, expected = golden.tiny_bert("teacher.").double(), golden.read("hessian")
    batch = golden.batch() | {"labels": golden.read("tiny_bert")["labels"]}
    result = analysis.curvature({"teacher": teacher}, [batch], top=3, trace_samples=40).models["teacher"]
    np.testing.assert_allclose(result.eigenvalues[0], expected["top_eigenvalues"].cpu(), rtol=1e-3)
    error = math.hypot(result.trace_standard_error, expected["hutchinson_trace_std_error"].item())
    assert abs(result.trace - expected["hutchinson_trace_mean"].item()) < 3 * error


def symmetric(size: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((size, size))
    return (values + values.T) / 2


@pytest.mark.parametrize("size", [1, 2, 33, 60])
def test_eigenvalues_of_any_number(size):
    dense = symmetric(size)
    expected = np.linalg.eigvalsh(dense)
    for count in {1, min(3, size), size}:
        order = expected[np.argsort(-np.abs(expected))][:count]
        np.testing.assert_allclose(top_eigenvalues(aslinearoperator(dense), count), order, rtol=1e-8)
    zeros = aslinearoperator(np.zeros((size, size)))
    assert not top_eigenvalues(zeros, 1).any()
    for count in (0, size + 1):
        with pytest.raises(TrituneError, match="the number must be 1 to"):
            top_eigenvalues(zeros, count)


def test_both_ends_of_a_one_sided_spectrum():
    dense = symmetric(60) + 50 * np.eye(60)
    expected = np.linalg.eigvalsh(dense)
    found = both_ends(aslinearoperator(dense), expected[-1:])
    np.testing.assert_allclose(found, (expected[0], expected[-1]), rtol=1e-6)


def test_the_trace_is_within_its_standard_error():
    dense = symmetric(50)
    samples = hutchinson(aslinearoperator(dense), 400)
    error = samples.std(ddof=1) / 20
    assert abs(samples.mean() - np.trace(dense)) < 3 * error
    # Of random signs the variance is 2 * the sum of squares off the diagonal.
    expected = math.sqrt(2 * (np.square(dense).sum() - np.square(np.diag(dense)).sum()))
    assert samples.std(ddof=1) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("steps", [1, 5, 40, 80])
def test_lanczos_has_the_moments_of_the_start_vector(steps):
    """Exact up to degree 2k - 1, also beyond the size of the matrix."""
    dense, start = symmetric(40), np.random.default_rng(1).standard_normal(40)
    nodes, weights = lanczos(aslinearoperator(dense), start, steps)
    unit = start / np.linalg.norm(start)
    power = unit
    for degree in range(min(2 * steps - 1, 9) + 1):
        assert (weights * nodes**degree).sum() == pytest.approx(unit @ power, rel=1e-8, abs=1e-8)
        power = dense @ power
    density = spectral_density([(nodes, weights)])
    assert np.trapezoid(density.density, density.values) == pytest.approx(1, abs=1e-4)


def test_curvature_leaves_the_models_as_they_are():
    model = FAMILIES["bert"].build().train()
    model.classifier.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    result = analysis.curvature(
        {"model": model}, [labelled("bert")] * 2, parameters=["*query.weight"], top=2, trace_samples=3, density_steps=4
    )
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert model.training and not model.classifier.weight.requires_grad and model.classifier.bias.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    found = result.models["model"]
    assert (found.eigenvalues.shape, found.traces.shape, found.parameters) == ((2, 2), (2, 3), 3 * 256)
    assert not found.surrogate and result.rows == [3, 3]
    np.testing.assert_array_equal(found.losses[0], found.losses[1])
    assert plot_curvature(result).axes


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("average", ["padded", "valid"])
def test_every_loss_has_a_symmetric_hessian(loss, average):
    teacher, student, batch = double("bert", quantized=False), double("bert", quantized=True), labelled("bert")
    operator = Hessian(objective(loss, batch, teacher, average)(student), student.parameters())
    u, v = np.random.default_rng(0).standard_normal((2, operator.shape[0]))
    assert u @ (operator @ v) == pytest.approx(v @ (operator @ u), rel=1e-9)


BAD = {
    "pattern": ({"parameters": ["*.nothing"]}, r"no parameter is called '\*\.nothing'"),
    "loss": ({"loss": "hinge"}, "unknown loss 'hinge'; known are logits"),
    "average": ({"average": "mean"}, "unknown average 'mean'"),
    "no teacher": ({"loss": "logits"}, "the loss logits compares with a teacher"),
    "too many": ({"parameters": ["classifier.bias"], "top": 9}, "model: 9 eigenvalues of 3 parameters"),
    "one sample": ({"trace_samples": 1}, "take 2 or more"),
    "no labels": ({"labels": False}, "the loss ground_truth needs labels"),
    "no batches": ({"batches": []}, "there is no batch"),
    "NaN": ({"broken": True}, "model, batch 1: the loss is nan: there is no curvature"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_of_curvature(case):
    options, message = copy.deepcopy(BAD[case][0]), BAD[case][1]
    model, batch = FAMILIES["bert"].build(), labelled("bert")
    if options.pop("broken", False):
        model.classifier.bias.data[0] = torch.nan
    if not options.pop("labels", True):
        del batch["labels"]
    with pytest.raises(TrituneError, match=message):
        analysis.curvature({"model": model}, options.pop("batches", [batch]), **{"top": 1, **options})


# --- landscape ----------------------------------------------------------------------------------------------------


def test_the_grid_of_a_quadratic_is_its_closed_form():
    dense = torch.from_numpy(symmetric(6))
    weight = torch.randn(6, dtype=torch.float64)
    parameters, directions = {"w": weight}, tuple({"w": torch.randn(6, dtype=torch.float64)} for _ in range(2))
    x, y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 3)
    before = weight.clone()
    grid = loss_grid(parameters, directions, x, y, lambda: float(weight @ dense @ weight))
    for line, column in np.ndindex(grid.shape):
        at = before + x[column] * directions[0]["w"] + y[line] * directions[1]["w"]
        assert grid[line, column] == pytest.approx(float(at @ dense @ at), rel=1e-12)
    assert torch.equal(weight, before)


def test_weights_come_back_after_an_error():
    weight = torch.randn(6)
    before, calls = weight.clone(), []

    def evaluate() -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        loss_grid({"w": weight}, ({"w": weight.clone()},) * 2, np.ones(2), np.ones(2), evaluate)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_random_directions_are_filter_normalised(family):
    parameters = dict(FAMILIES[family].build().named_parameters())
    parameters["zero row"] = torch.zeros(2, 3)
    one, two = random_direction(parameters, (0, 0)), random_direction(parameters, (0, 1))
    for name, weight in parameters.items():
        if weight.ndim < 2:
            assert not one[name].any()
        else:
            rows = [direction[name].flatten(1).norm(dim=1) for direction in (one, two)]
            torch.testing.assert_close(rows[0], weight.detach().flatten(1).norm(dim=1))
            torch.testing.assert_close(rows[0], rows[1])
            assert name == "zero row" or not torch.equal(one[name], two[name])
    fewer = {name: parameters[name] for name in list(parameters)[::2]}
    assert all(torch.equal(random_direction(fewer, (0, 0))[name], one[name]) for name in fewer)


def test_landscape_around_teacher_and_student():
    teacher, student = FAMILIES["bert"].build(), tritune.prepare(FAMILIES["bert"].build())
    batches = [labelled("bert"), {name: tensor[:1] for name, tensor in labelled("bert").items()}]
    before = copy.deepcopy(student.state_dict())
    result = analysis.landscape({"teacher": teacher, "student": student}, batches, points=3)
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in before.items())
    for name, model in (("teacher", teacher), ("student", student)):
        with torch.no_grad():
            losses = [model.eval()(**batch).loss.item() for batch in batches]
        assert result.losses[name][1, 1] == result.centre[name] == pytest.approx((3 * losses[0] + losses[1]) / 4)
        assert len(np.unique(result.losses[name])) > 1
    assert plot_contours(result).axes and plot_surfaces(result).axes


def test_landscape_through_checkpoints():
    build = FAMILIES["bert"].build
    models = {name: build(seed) for seed, name in enumerate(("model", "a", "b", "c"))}
    states = {name: dict(model.named_parameters()) for name, model in models.items() if name != "model"}
    result = analysis.landscape({"model": models["model"]}, [labelled("bert")], points=3, checkpoints=states)
    assert [mark.name for mark in result.checkpoints] == ["model", "a", "b", "c"]
    for mark in result.checkpoints:
        with torch.no_grad():
            assert mark.loss == pytest.approx(models[mark.name].eval()(**labelled("bert")).loss.item(), rel=1e-5)
    for mark in result.checkpoints[:3]:
        at = result.losses["model"][list(result.y).index(mark.y), list(result.x).index(mark.x)]
        assert at == pytest.approx(mark.loss, rel=1e-4)
        assert mark.distance == 0
    assert result.checkpoints[3].distance > 0
    assert (result.checkpoints[1].x, result.checkpoints[1].y) == (pytest.approx(1), pytest.approx(0, abs=1e-9))


def test_a_plane_keeps_distances():
    states = {name: {"w": torch.randn(7, dtype=torch.float64)} for name in "abcd"}
    _, places = plane(states)
    unit = (states["b"]["w"] - states["a"]["w"]).norm()
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        apart = math.dist(places[one][:2], places[other][:2])
        assert apart == pytest.approx(float((states[one]["w"] - states[other]["w"]).norm() / unit))
    states["c"] = {"w": 2 * states["b"]["w"] - states["a"]["w"]}
    with pytest.raises(TrituneError, match="a, b and c lie on one line"):
        plane(states)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 4}, "4 points: take an odd number"),
        ({"extent": 0.0}, "a range of 0"),
        ({"parameters": ["nope"]}, "no parameter is called 'nope'"),
        ({"checkpoints": {"a": {}}}, "a: one checkpoint and the model span no plane"),
        ({"checkpoints": {"a": {}, "b": {}}}, "a: has no .* of shape"),
    ],
)
def test_bad_input_of_landscape(options, message):
    with pytest.raises(TrituneError, match=message):
        analysis.landscape({"model": FAMILIES["bert"].build()}, [labelled("bert")], **{"points": 3, **options})
