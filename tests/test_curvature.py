"""Hessians against dense ones and finite differences, quadratures against sums over eigenvalues, and bad input."""

import copy
import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

import golden
from families import FAMILIES, VOCABULARY
from tritune import TrituneError, prepare
from tritune.analysis.curvature import curvature
from tritune.analysis.curvature_plots import plot_curvature
from tritune.analysis.hessian import Hessian, both_ends, hutchinson, top_eigenvalues
from tritune.analysis.kept import Kept
from tritune.analysis.lanczos import lanczos, spectral_density
from tritune.analysis.objective import objective
from tritune.analysis.result import write_result
from tritune.compute import held, products
from tritune.modeling.instrument import instrument
from tritune.quant import quantizer
from tritune.quant.ste import straight_through
from workspace import make_workspace

curvature_module = sys.modules["tritune.analysis.curvature"]  # of that name there is a function too

LABELS = torch.tensor([0, 1, 2])
DISTILLATION = ("logits", "hidden_states", "attention_scores", "attention_map", "block_output", "context", "projection")


def tiny_bert(seed: int = 0, labels: int = 3) -> BertForSequenceClassification:
    """A few hundred parameters in float64: small enough to write its Hessian down."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=6,
        max_position_embeddings=8,
        type_vocab_size=1,
        pad_token_id=0,
        num_labels=labels,
        initializer_range=0.5,
    )
    return instrument(BertForSequenceClassification._from_config(config, attn_implementation="eager")).double().eval()


def batch_of(name: str = "bert", dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    tensors = FAMILIES[name].batch() | {"labels": LABELS}
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}


def dense(evaluate, model, names=None) -> np.ndarray:
    """The Hessian of `evaluate(model)`, entry by entry, by two plain backward passes."""
    parameters = [p for name, p in model.named_parameters() if names is None or name in names]
    gradients = torch.autograd.grad(evaluate(model), parameters, create_graph=True, allow_unused=True)
    rows = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for index in range(parameter.numel()):
            if gradient is None or not gradient.requires_grad:
                rows.append(torch.zeros(sum(p.numel() for p in parameters), dtype=parameter.dtype))
                continue
            row = torch.autograd.grad(gradient.flatten()[index], parameters, retain_graph=True, allow_unused=True)
            filled = [torch.zeros_like(p) if r is None else r for r, p in zip(row, parameters, strict=True)]
            rows.append(torch.cat([part.flatten() for part in filled]))
    return torch.stack(rows).numpy()


@pytest.fixture(scope="module")
def dense_case():
    model, batch = tiny_bert(), batch_of()
    return model, batch, dense(objective("ground_truth", batch), model)


def test_against_the_dense_hessian(dense_case):
    model, batch, matrix = dense_case
    assert 300 < len(matrix) < 2000 and np.allclose(matrix, matrix.T, atol=1e-12)
    exact = np.linalg.eigvalsh(matrix)
    by_magnitude = exact[np.argsort(-np.abs(exact))]
    result = curvature({"m": model}, [batch], top=6, trace_samples=150, density_steps=60, tolerance=1e-7).models["m"]
    assert np.abs(result.eigenvalues[0] - by_magnitude[:6]).max() < 1e-6
    assert abs(result.largest[0] - exact[-1]) < 1e-6 and abs(result.smallest[0] - exact[0]) < 1e-6
    assert abs(result.trace - np.trace(matrix)) < 3 * result.trace_standard_error
    # The variance of v'Hv over random signs is 2 * (|H|^2 - |diag H|^2).
    spread = np.sqrt(2 * ((matrix**2).sum() - (np.diag(matrix) ** 2).sum()) / 150)
    assert result.trace_standard_error == pytest.approx(spread, rel=0.25)
    assert result.parameters == len(matrix) and not result.surrogate
    assert result.losses[0] == pytest.approx(F.cross_entropy(model(**without_labels(batch)).logits, LABELS).item())


def without_labels(batch):
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def test_the_spectral_density(dense_case):
    _, _, matrix = dense_case
    operator, size = aslinearoperator(matrix), len(matrix)
    generator = np.random.default_rng(0)
    starts = [generator.integers(0, 2, size) * 2.0 - 1 for _ in range(5)]
    runs = [lanczos(operator, start, 40) for start in starts]
    density = spectral_density(runs)
    assert np.trapezoid(density.density, density.values) == pytest.approx(1, abs=1e-6)
    for power in range(6):
        wanted = np.mean([start @ np.linalg.matrix_power(matrix, power) @ start / size for start in starts])
        assert density.weights @ density.nodes**power == pytest.approx(wanted, rel=1e-9)
    mean = np.trapezoid(density.density * density.values, density.values)
    assert mean == pytest.approx(density.weights @ density.nodes, abs=1e-6 * np.ptp(density.nodes))
    second = np.trapezoid(density.density * density.values**2, density.values)
    assert second == pytest.approx(density.weights @ density.nodes**2 + density.bandwidth**2, rel=1e-6)
    # As many steps as there are eigenvalues find each of them.
    small = np.random.default_rng(2).standard_normal((30, 30))
    small = small + small.T
    nodes, _ = lanczos(aslinearoperator(small), np.random.default_rng(1).standard_normal(30), 30)
    assert np.abs(nodes - np.linalg.eigvalsh(small)).max() < 1e-8


@pytest.mark.parametrize(
    "diagonal", [np.zeros(50), np.ones(50), np.r_[np.ones(25), -np.ones(25)], np.r_[5.0, np.zeros(49)]]
)
def test_degenerate_spectra(diagonal):
    operator, start = aslinearoperator(np.diag(diagonal)), np.ones(50)
    nodes, weights = lanczos(operator, start, 20)
    assert len(nodes) == len(np.unique(diagonal)) and np.allclose(np.sort(nodes), np.unique(diagonal), atol=1e-12)
    assert weights.sum() == pytest.approx(1)
    density = spectral_density([(nodes, weights)])
    assert np.trapezoid(density.density, density.values) == pytest.approx(1, abs=1e-6)
    top = top_eigenvalues(operator, 3)
    assert np.allclose(np.abs(top), np.sort(np.abs(diagonal))[::-1][:3], atol=1e-9)
    assert both_ends(operator, top) == pytest.approx((diagonal.min(), diagonal.max()), abs=1e-7)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_far_end_is_found_among_eigenvalues_of_one_sign(sign):
    diagonal = sign * np.r_[np.linspace(1, 9, 80), -1e-3]
    operator = aslinearoperator(np.diag(diagonal))
    top = top_eigenvalues(operator, 4)
    assert (sign * top > 0).all()
    assert both_ends(operator, top) == pytest.approx((diagonal.min(), diagonal.max()), abs=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_every_family_has_a_symmetric_hessian(name, kind):
    teacher = instrument(FAMILIES[name].build()).double()
    student = prepare(FAMILIES[name].build()).double()
    model, batch = (teacher, student)[kind == "student"].eval(), batch_of(name)
    generator = np.random.default_rng(0)
    for loss in ("ground_truth", "attention_map", "hidden_states"):
        before = model.state_dict().copy()
        hessian = Hessian(objective(loss, batch, teacher)(model), model.parameters())
        v, w = generator.standard_normal((2, hessian.shape[0]))
        first, second = hessian @ v, hessian @ w
        assert np.abs(first).max() > 0
        exact = 1e-4 if name == "modernbert" else 1e-8  # rotary embeddings are added in float32
        sizes = np.linalg.norm(first) * np.linalg.norm(w)
        assert w @ first == pytest.approx(v @ second, rel=exact, abs=exact / 100 * sizes)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    result = curvature({"m": model}, [batch], top=2, trace_samples=2).models["m"]
    assert result.surrogate == (kind == "student") and np.isfinite(result.eigenvalues).all()


class Replayed:
    """`straight_through` as a function of the latent value alone: the offset that quantization adds is recorded once,
    at the point at hand, and replayed wherever the latent values are moved to."""

    def __init__(self):
        self.offsets, self.recording, self.calls = [], True, 0

    def __call__(self, latent, quantized, clip, peak=None, scale=None):
        assert scale is None
        inside = latent.clamp(-clip, clip)
        if self.recording:
            self.offsets.append((quantized - inside).detach())
        self.calls += 1
        return inside + self.offsets[self.calls - 1]


@pytest.mark.parametrize("loss", ["ground_truth", "logits", "hidden_states", "attention_scores", "attention_map"])
def test_a_students_hessian_is_that_of_the_surrogate(loss, monkeypatch):
    """Against second differences of the surrogate's values: no autograd in the oracle."""
    teacher, model = tiny_bert(), prepare(tiny_bert(1)).eval()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = 4.0  # outside the clip: no gradient passes
    evaluate = objective(loss, batch_of(), teacher)
    parameters = list(model.parameters())
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(3)) for p in parameters]
    direction[0][model.config.pad_token_id] = 0  # nn.Embedding passes no gradient to its padding row
    v = torch.cat([part.flatten() for part in direction]).numpy()
    curved, value = v @ (Hessian(evaluate(model), parameters) @ v), evaluate(model).item()
    surrogate = Replayed()
    for module in (products, quantizer):
        assert module.straight_through is straight_through
        monkeypatch.setattr(module, "straight_through", surrogate)

    def at(step: float) -> float:
        surrogate.calls = 0
        with torch.no_grad():
            for parameter, part in zip(parameters, direction, strict=True):
                parameter.add_(part, alpha=step)
            result = evaluate(model).item()
            for parameter, part in zip(parameters, direction, strict=True):
                parameter.sub_(part, alpha=step)
        surrogate.recording = False
        return result

    assert at(0.0) == pytest.approx(value, rel=1e-12)
    step = 1e-4
    assert curved == pytest.approx((at(step) - 2 * at(0.0) + at(-step)) / step**2, rel=1e-4)


def test_held_weights_change_nothing_and_are_never_stale():
    model, batch = prepare(tiny_bert()).eval(), batch_of()
    evaluate = objective("ground_truth", batch)
    v = np.random.default_rng(0).standard_normal(sum(p.numel() for p in model.parameters()))

    def product():
        return Hessian(evaluate(model), model.parameters()) @ v

    free = product()
    with held.weights_held():
        kept = product()
        assert np.array_equal(kept, free) and np.array_equal(product(), free)
        with torch.no_grad():
            model.bert.encoder.layer[0].output.dense.weight.mul_(-1.5)
        moved = product()
    assert np.array_equal(moved, product()) and not np.allclose(moved, free)


def test_golden_hessian(golden_folder):
    values, model = golden.read("hessian"), golden.tiny_bert("teacher.").double()
    batch = golden.batch() | {"labels": golden.read("tiny_bert")["labels"]}
    wanted = values["top_eigenvalues"].numpy()
    result = curvature({"teacher": model}, [batch], top=len(wanted), trace_samples=60, tolerance=1e-7).models["teacher"]
    assert result.eigenvalues[0] == pytest.approx(wanted, rel=1e-3)
    error = np.hypot(result.trace_standard_error, values["hutchinson_trace_std_error"].item())
    assert abs(result.trace - values["hutchinson_trace_mean"].item()) < 3 * error


def test_a_subset_is_a_block_of_the_whole(dense_case):
    model, batch, matrix = dense_case
    names = [name for name, _ in model.named_parameters()]
    chosen = [name for name in names if "query" in name or name.startswith("classifier")]
    sizes = np.repeat(names, [parameter.numel() for parameter in model.parameters()])
    rows = np.isin(sizes, chosen)
    exact = np.linalg.eigvalsh(matrix[np.ix_(rows, rows)])
    before = [parameter.requires_grad for parameter in model.parameters()]
    result = curvature({"m": model}, [batch], parameters=["*.query.*", "classifier.*"], top=int(rows.sum())).models["m"]
    assert result.parameters == rows.sum() and result.trace is None and result.density is None
    assert np.abs(np.sort(result.eigenvalues[0]) - exact).max() < 1e-9
    assert [parameter.requires_grad for parameter in model.parameters()] == before


@pytest.mark.parametrize("loss", DISTILLATION)
def test_distillation_losses(loss):
    """The Hessian of the loss named and of no other, with a frozen teacher and a frozen student."""
    teacher, model, batch = tiny_bert(), tiny_bert(1).requires_grad_(False), batch_of()
    names = ["bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.0.attention.self.value.weight"]
    result = curvature(
        {"m": model}, [batch], loss=loss, teacher=teacher, parameters=names, top=5, tolerance=1e-7
    ).models["m"]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(True)
    exact = np.linalg.eigvalsh(dense(objective(loss, batch, teacher), model, names))
    ordered = exact[np.argsort(-np.abs(exact))][:5]
    assert np.abs(np.abs(result.eigenvalues[0]) - np.abs(ordered)).max() < 1e-9 * max(1, abs(ordered[0]))


def test_regression_is_the_mean_squared_error():
    model, batch = tiny_bert(labels=1), batch_of() | {"labels": torch.tensor([0.5, 2.0, -1.0])}
    expected = F.mse_loss(model(**without_labels(batch)).logits[:, 0], batch["labels"].double())
    assert objective("ground_truth", batch)(model).item() == pytest.approx(expected.item(), rel=1e-12)
    # With respect to the classifier's bias alone the loss is (b + ...)^2: its second derivative is 2.
    result = curvature({"m": model}, [batch], parameters=["classifier.bias"], top=1, trace_samples=2).models["m"]
    assert result.eigenvalues[0, 0] == pytest.approx(2, abs=1e-12) and result.trace == pytest.approx(2)


def test_batches_are_measured_one_by_one_and_seeds_repeat():
    model, batch = tiny_bert(), batch_of()
    other = batch | {"labels": LABELS.flip(0)}
    both = curvature({"m": model}, [batch, other], top=3, trace_samples=5, tolerance=1e-7, seed=7).models["m"]
    again = curvature({"m": model}, [batch, other], top=3, trace_samples=5, tolerance=1e-7, seed=7).models["m"]
    alone = curvature({"m": model}, [other], top=3, tolerance=1e-7).models["m"]
    assert np.array_equal(both.eigenvalues, again.eigenvalues) and np.array_equal(both.traces, again.traces)
    assert both.eigenvalues[1] == pytest.approx(alone.eigenvalues[0], rel=1e-6)
    assert both.trace == pytest.approx(both.traces.mean()) and both.traces.shape == (2, 5)
    within = both.traces.var(axis=1, ddof=1) / 5
    assert both.trace_standard_error == pytest.approx(np.sqrt(within.sum()) / 2)
    assert not np.array_equal(
        both.traces, curvature({"m": model}, [batch, other], trace_samples=5, seed=8).models["m"].traces
    )


def test_rows_not_in_use_change_nothing(dense_case):
    """The words that are not in the batch are left out of the products, and of nothing that comes out."""
    model, batch, matrix = dense_case
    parameters = dict(model.named_parameters())
    whole = Hessian(objective("ground_truth", batch)(model), parameters.values())
    smaller = whole.without_unused_rows()
    words = parameters["bert.embeddings.word_embeddings.weight"]
    absent = sorted(set(range(VOCABULARY)) - set(batch["input_ids"].unique().tolist()) | {model.config.pad_token_id})
    assert len(absent) > 2 and smaller.shape[0] <= len(matrix) - len(absent) * words.shape[1]
    assert smaller.used.sum() == smaller.shape[0] and np.array_equal(~smaller.used, ~smaller.used & ~matrix.any(1))
    block = matrix[np.ix_(smaller.used, smaller.used)]
    assert np.allclose(smaller @ np.eye(len(block)), block, atol=1e-12)
    assert np.trace(block) == pytest.approx(np.trace(matrix), rel=1e-12)
    padded = np.sort(np.r_[np.linalg.eigvalsh(block), np.zeros(len(matrix) - len(block))])
    assert np.abs(padded - np.linalg.eigvalsh(matrix)).max() < 1e-9
    signs = np.random.default_rng(1).standard_normal(len(matrix))
    assert np.allclose((whole @ signs)[smaller.used], smaller @ signs[smaller.used], atol=1e-12)
    assert hutchinson(smaller, 3, 5, smaller.used) == pytest.approx(hutchinson(whole, 3, 5), rel=1e-9)


def test_rows_are_in_use_where_only_the_gradient_is_zero():
    """A distillation loss at the teacher itself: no gradient at all, and a Hessian."""
    model = tiny_bert()
    hessian = Hessian(objective("hidden_states", batch_of(), copy.deepcopy(model))(model), model.parameters())
    words = hessian.without_unused_rows().used[: model.bert.embeddings.word_embeddings.weight.numel()]
    assert words.reshape(VOCABULARY, -1)[batch_of()["input_ids"][0, 0]].all()


def test_the_whole_spectrum_counts_rows_not_in_use(dense_case):
    model, batch, matrix = dense_case
    density = curvature({"m": model}, [batch], top=2, density_steps=40, seed=3).models["m"].density
    signs = np.random.default_rng((3, 0, 3)).integers(0, 2, len(matrix)) * 2.0 - 1
    for power in range(6):
        wanted = signs @ np.linalg.matrix_power(matrix, power) @ signs / len(matrix)
        assert density.weights @ density.nodes**power == pytest.approx(wanted, rel=1e-9)


def test_ends_where_all_that_is_in_use_is_positive():
    table = torch.ones(60, 2, dtype=torch.float64, requires_grad=True)
    hessian = Hessian((table[:3] ** 2).sum(), [table]).without_unused_rows()
    values, ends = curvature_module._eigenvalues(hessian, 8, (0, 0), 1e-2)
    assert np.allclose(values, [2] * 6 + [0] * 2) and ends == pytest.approx((0, 2))
    none = Hessian((3 * table).sum(), [table]).without_unused_rows()
    assert curvature_module._eigenvalues(none, 2, (0, 0), 1e-2)[1] == (0, 0) and none.shape == (0, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_loose_tolerance_saves_products_and_few_digits(dtype):
    """Vectors in the operator's precision, against all eigenvalues; the products are counted."""
    generator = np.random.default_rng(0)
    basis, _ = np.linalg.qr(generator.standard_normal((400, 400)))
    exact = np.r_[20, -17, 14, 11, -9, generator.uniform(-6, 6, 395)]
    matrix, calls = ((basis * exact) @ basis.T).astype(dtype), []

    def product(vector):
        calls.append(vector.dtype)
        return matrix @ vector.ravel()

    operator = LinearOperator(matrix.shape, matvec=product, dtype=dtype)
    loose = top_eigenvalues(operator, 5, tolerance=1e-2)
    count = len(calls)
    assert set(calls[1:]) == {np.dtype(dtype)} and loose.dtype == np.float64
    # A residual of 1 % and gaps of at least 2: the error is at most (0.01 * 20)^2 / 2.
    assert np.abs(loose - exact[:5]).max() < 0.02
    calls.clear()
    tight = top_eigenvalues(operator, 5, tolerance=1e-7)
    assert count < len(calls) and set(calls) == {np.dtype(np.float64)}
    assert np.abs(tight - exact[:5]).max() < (1e-4 if dtype == np.float32 else 1e-9)


def test_a_stopped_analysis_goes_on(tmp_path, monkeypatch):
    """Stopped at any batch, it gives bit for bit what it gives in one go, and measures nothing twice."""
    models, batches = {"a": tiny_bert(), "b": prepare(tiny_bert(1)).eval()}, [batch_of()] * 3
    options = {"top": 2, "trace_samples": 2, "density_steps": 5}
    wanted = curvature(models, batches, **options)
    calls, original = [], curvature_module.top_eigenvalues

    def stopping(*arguments):
        calls.append(1)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(curvature_module, "top_eigenvalues", stopping)
    path = tmp_path / "sub" / "parts.jsonl"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            curvature(models, batches, **options, parts=Kept(path))
        with path.open("a") as file:
            file.write('\n{"part": "half a li')  # as a full disk leaves it
    lines = []
    found = curvature(models, batches, **options, parts=Kept(path), say=lines.append)
    assert len(calls) == 6 + 2 and "2 of 3 batches were measured before" in lines[0]
    again = curvature(models, batches, **options, parts=Kept(path))
    assert len(calls) == 8
    for result in (found, again):
        for name, model in wanted.models.items():
            assert json.dumps(asdict(result.models[name]), default=np.ndarray.tolist) == json.dumps(
                asdict(model), default=np.ndarray.tolist
            )
    monkeypatch.undo()
    other = curvature(models, batches[:1], **options | {"top": 3}, parts=Kept(path))
    assert other.models["a"].eigenvalues.shape == (1, 3), "other settings find none of these parts"


def test_minutes_bound_the_batches(monkeypatch):
    model, batch = tiny_bert(), batch_of()
    lines = []
    result = curvature({"m": model, "n": model}, [batch] * 4, top=2, minutes=1e-9, say=lines.append)
    assert result.rows == [3] and result.models["n"].eigenvalues.shape == (1, 2)
    assert "curvature of 2 model(s) on 4 batch(es)" in lines[0] and "1 of 4 batches fit into 1e-09 minutes" in lines[1]
    lines.clear()
    plenty = curvature({"m": model}, [batch] * 2, top=2, minutes=60, say=lines.append)
    assert plenty.rows == [3, 3] and len(lines) == 1


def test_the_loss_may_be_constant_or_linear():
    w = torch.ones(40, dtype=torch.float64, requires_grad=True)
    unused = torch.ones(3, dtype=torch.float64, requires_grad=True)
    linear = Hessian((2 * w).sum(), [w, unused])
    assert not (linear @ np.ones(43)).any() and not top_eigenvalues(linear, 2).any()
    assert not (Hessian(torch.tensor(1.0), [w]) @ np.ones(40)).any()
    assert not hutchinson(linear, 3).any()


def test_bad_input():
    model, batch = tiny_bert(), batch_of()

    def line(batches=(batch,), subject=model, **options) -> str:
        with pytest.raises(TrituneError) as caught:
            curvature({"m": subject}, list(batches), **{"top": 2} | options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "*.quarry.*" in line(parameters=["*.query.*", "*.quarry.*"])
    assert "unknown loss 'regret'" in line(loss="regret") and "ground_truth" in line(loss="regret")
    assert "compares with a teacher" in line(loss="logits")
    assert "unknown average" in line(loss="logits", teacher=model, average="trimmed")
    assert "ask for 1 to 3" in line(parameters=["classifier.bias"], top=4) and "1 to" in line(top=0)
    assert "2 or more" in line(trace_samples=1) and "1 or more" in line(density_steps=-1)
    assert "no batch" in line(batches=())
    assert all("less than 1" in line(tolerance=value) for value in (0, 1, -1e-3, float("nan")))
    assert "needs labels" in line(batches=[without_labels(batch)])
    broken = copy.deepcopy(model)
    broken.classifier.weight.data[0, 0] = float("nan")
    assert "m, batch 1: the loss is nan" in line(subject=broken)
    with pytest.raises(TrituneError, match="1 to 3"):
        top_eigenvalues(aslinearoperator(np.eye(3)), 4)


def test_a_model_that_was_not_instrumented_is(tmp_path):
    """Scaled dot product attention cannot be differentiated twice."""
    model = FAMILIES["bert"].build()
    model.set_attn_implementation("sdpa")
    result = curvature({"m": model.train()}, [batch_of(dtype=torch.float32)], top=2, density_steps=10)
    assert model.training and result.models["m"].eigenvalues.shape == (1, 2)
    write_result("curvature", result, {"curvature": plot_curvature(result)}, tmp_path)
    written = json.loads((tmp_path / "curvature.json").read_text())
    assert written["analysis"] == "curvature" and len(written["models"]["m"]["density"]["values"]) == 1001


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def test_on_the_command_line(cli, workspace, tmp_path):
    shared = ("--task", "demo", "--data", workspace / "data")
    teacher, output = workspace / "teacher", tmp_path / "out"
    start = ("analyze", "curvature", "--model", teacher, *shared)
    code, out, err = cli(
        *(*start, "--parameters", "*.layer.0.*.query.*", "--top", 3, "--batches", 2, "--batch-size", 4),
        *("--trace-samples", 2, "--density", "--output", output),
    )
    assert code == 0, err
    assert "largest" in out and "±" in out
    assert {path.name for path in output.iterdir()} == {"curvature.json", "curvature.png", "curvature.svg"}
    written = json.loads((output / "curvature.json").read_text())
    (model,) = written["models"].values()
    assert written["rows"] == [4, 4] and np.shape(model["eigenvalues"]) == (2, 3) and not model["surrogate"]
    for extra, part in (
        (("--loss", "logits"), "compares with a teacher"),
        (("--parameters", "nothing"), "no parameter is called 'nothing'"),
        (("--parameters", "classifier.bias", "--top", 9), "ask for 1 to"),
    ):
        code, _, err = cli(*start, *extra, "--batches", 1, "--batch-size", 2, "--output", tmp_path / "none")
        assert code == 2 and part in err and err.count("\n") == 1 and not (tmp_path / "none").exists()
