"""Landscapes against closed forms, at the places that are known, and with the weights coming back."""

import json
import sys

import numpy as np
import pytest
import torch

from families import FAMILIES
from test_curvature import batch_of, tiny_bert, without_labels
from tritune import TrituneError, prepare
from tritune.analysis.kept import Kept
from tritune.analysis.landscape import landscape, loss_grid, plane, random_direction
from tritune.analysis.landscape_plots import plot_contours, plot_surfaces
from tritune.analysis.objective import objective
from tritune.compute import held
from workspace import make_workspace


def bits(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(model, before) -> bool:
    return all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def plain_loss(model, batch, **options) -> float:
    with torch.no_grad():
        return objective("ground_truth", batch, **options)(model).item()


def test_a_quadratic_loss_is_its_closed_form():
    """|Xw - t|^2 along w + x a + y b is r'r + 2x r'Xa + 2y r'Xb + x^2 |Xa|^2 + y^2 |Xb|^2 + 2xy (Xa)'Xb."""
    data, target = torch.randn(9, 4).double(), torch.randn(9).double()
    model = torch.nn.Linear(4, 1).double()
    parameters = {"weight": model.weight}
    directions = tuple({"weight": torch.randn(1, 4).double()} for _ in range(2))
    model.bias.data.zero_()
    x, y = np.linspace(-1, 2, 5), np.array([-0.5, 0, 0.1, 4.0])
    before = bits(model)
    grid = loss_grid(parameters, directions, x, y, lambda: (model(data)[:, 0] - target).square().sum().item())
    residual = (data @ model.weight[0] - target).detach().numpy()
    a, b = (data.numpy() @ direction["weight"][0].numpy() for direction in directions)
    for line, column in np.ndindex(grid.shape):
        p, q = x[column], y[line]
        wanted = residual @ residual + 2 * p * residual @ a + 2 * q * residual @ b
        wanted += p * p * a @ a + q * q * b @ b + 2 * p * q * a @ b
        assert grid[line, column] == pytest.approx(wanted, rel=1e-12)
    assert grid.shape == (4, 5) and same_bits(model, before)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name):
    """The centre is the plain loss; the corner that of a model moved by hand; the weights come back."""
    teacher, student = FAMILIES[name].build(), prepare(FAMILIES[name].build())
    batch = batch_of(name, torch.float32)
    before = bits(teacher), bits(student)
    with held.weights_held():
        result = landscape({"teacher": teacher, "student": student.train()}, [batch], points=3, extent=0.5)
    assert student.training and not teacher.training
    assert same_bits(teacher, before[0]) and same_bits(student, before[1])
    for key, model in (("teacher", teacher), ("student", student.eval())):
        assert result.losses[key][1, 1] == result.centre[key] == plain_loss(model, batch)
        first, second = (random_direction(dict(model.named_parameters()), (0, axis)) for axis in (0, 1))
        with torch.no_grad():
            for title, parameter in model.named_parameters():
                parameter.add_(first[title] * 0.5 - second[title] * 0.5)
        assert result.losses[key][0, 2] == pytest.approx(plain_loss(model, batch), rel=1e-4)
        assert np.isfinite(result.losses[key]).all() and np.ptp(result.losses[key]) > 0


def test_directions_are_filter_normalised():
    model = tiny_bert()
    parameters = dict(model.named_parameters())
    direction, other = (random_direction(parameters, (0, axis)) for axis in (0, 1))
    for name, parameter in parameters.items():
        if parameter.ndim == 1:
            assert not direction[name].any()
            continue
        assert torch.allclose(direction[name].norm(dim=1), parameter.norm(dim=1), rtol=1e-12)
        assert not torch.allclose(direction[name], other[name])
    padding = direction["bert.embeddings.word_embeddings.weight"][0]
    assert not padding.any(), "a row of zeros does not move"
    convolution = random_direction({"w": torch.randn(5, 3, 2, 2)}, (0, 0))["w"]
    assert convolution.shape == (5, 3, 2, 2)


def test_directions_are_shared_by_name_and_shape():
    """A teacher and its student, or a part of the parameters alone, are moved by the same random numbers."""
    parameters = dict(tiny_bert().named_parameters())
    whole = random_direction(parameters, (3, 0))
    some = random_direction({name: parameters[name] for name in list(parameters)[5:7]}, (3, 0))
    assert all(torch.equal(whole[name], direction) for name, direction in some.items())
    twice = random_direction({name: 2 * parameter for name, parameter in parameters.items()}, (3, 0))
    assert all(torch.allclose(2 * whole[name], direction) for name, direction in twice.items())


def test_only_chosen_parameters_move():
    model, batch = tiny_bert(), batch_of()
    alone = landscape({"m": model}, [batch], points=3, parameters=["classifier.bias"])
    assert np.ptp(alone.losses["m"]) == 0, "biases have no direction"
    moved = landscape({"m": model}, [batch], points=3, parameters=["classifier.weight"])
    direction = random_direction(dict(model.named_parameters()), (0, 0))["classifier.weight"]
    with torch.no_grad():
        model.classifier.weight.add_(direction)
    assert moved.losses["m"][1, 2] == pytest.approx(plain_loss(model, batch), rel=1e-12)


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_checkpoints_are_hit(kind):
    """The three that span the plane stand on grid points, and a fourth has its own loss and its distance."""
    models = [tiny_bert(seed) for seed in range(4)]
    if kind == "student":
        models = [prepare(model).eval() for model in models]
    model, batch = models[0], batch_of()
    before = bits(model)
    checkpoints = {f"c{i}": dict(models[i].named_parameters()) for i in (1, 2, 3)}
    result = landscape({"m": model}, [batch], points=5, checkpoints=checkpoints)
    assert same_bits(model, before) and result.directions == "checkpoints"
    assert [mark.name for mark in result.checkpoints] == ["m", "c1", "c2", "c3"]
    for mark, other in zip(result.checkpoints, models, strict=True):
        assert mark.loss == plain_loss(other, batch)
    for mark in result.checkpoints[:3]:
        (column,), (line,) = np.nonzero(result.x == mark.x)[0], np.nonzero(result.y == mark.y)[0]
        assert result.losses["m"][line, column] == pytest.approx(mark.loss, rel=1e-9) and mark.distance == 0
    own, first, _, last = result.checkpoints
    assert (own.x, own.y) == (0, 0) and first.x == pytest.approx(1) and first.y == pytest.approx(0, abs=1e-9)
    assert last.distance > 0.1
    assert min(result.x) < min(mark.x for mark in result.checkpoints)
    assert max(result.y) > max(mark.y for mark in result.checkpoints)


def test_distances_in_the_plane_are_distances_between_weights():
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (6,), "b": (2, 2)}
    states = {
        f"s{i}": {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()} for i in range(5)
    }
    flat = {name: torch.cat([part.flatten() for part in state.values()]) for name, state in states.items()}
    directions, places = plane(states)
    unit = (flat["s1"] - flat["s0"]).norm()
    for name, (x, y, beside) in places.items():
        distance = float((flat[name] - flat["s0"]).norm() / unit)
        assert (x * x + y * y + beside * beside) ** 0.5 == pytest.approx(distance, rel=1e-5)
        nearest = {key: states["s0"][key] + x * directions[0][key] + y * directions[1][key] for key in ("w", "b")}
        rest = torch.cat([(states[name][key] - nearest[key]).flatten() for key in ("w", "b")])
        assert float(rest.norm() / unit) == pytest.approx(beside, abs=1e-5)


def test_weights_come_back_after_an_error(monkeypatch):
    model, calls = tiny_bert(), []
    before = bits(model)
    module = sys.modules["tritune.analysis.landscape"]  # of that name there is a function too
    original = module.objective

    def failing(*arguments):
        evaluate = original(*arguments)

        def once_too_often(model):
            calls.append(not same_bits(model, before))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return evaluate(model)

        return once_too_often

    monkeypatch.setattr(module, "objective", failing)
    with pytest.raises(KeyboardInterrupt):
        landscape({"m": model.train()}, [batch_of()], points=3)
    assert calls[-1] and same_bits(model, before) and model.training


def test_the_loss_is_the_mean_over_rows_however_they_are_batched():
    model, batch = tiny_bert(), batch_of()
    parts = [{name: tensor[rows] for name, tensor in batch.items()} for rows in (slice(0, 2), slice(2, 3))]
    whole, split = (landscape({"m": model}, list(batches), points=3) for batches in ([batch], parts))
    assert whole.rows == split.rows == 3
    assert split.losses["m"] == pytest.approx(whole.losses["m"], rel=1e-9)


def test_a_stopped_grid_goes_on(tmp_path, monkeypatch):
    """Stopped in any line, it gives bit for bit what it gives in one go, and no line is computed twice."""
    models, options = {"m": tiny_bert(), "s": prepare(tiny_bert(1)).eval()}, {"points": 5, "seed": 2}
    wanted, path = landscape(models, [batch_of()], **options), tmp_path / "sub" / "parts.jsonl"
    module = sys.modules["tritune.analysis.landscape"]
    original, calls = module._mean_loss, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 2 + 2 + 7 * 5 + 3:  # two models, two trials, seven lines and a part of one
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, "_mean_loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        landscape(models, [batch_of()], **options, parts=Kept(path))
    calls.clear()
    found = landscape(models, [batch_of()], **options, parts=Kept(path))
    assert len(calls) == 2 + 3 * 5
    assert all(np.array_equal(found.losses[name], wanted.losses[name]) for name in models)
    monkeypatch.undo()
    moved = landscape(models, [batch_of()], **options | {"seed": 3}, parts=Kept(path))
    assert not np.array_equal(moved.losses["m"], wanted.losses["m"])


def test_minutes_bound_the_points(tmp_path):
    model, lines = tiny_bert(), []
    few = landscape({"m": model}, [batch_of()], points=41, minutes=1e-9, say=lines.append, parts=Kept(tmp_path / "p"))
    assert few.losses["m"].shape == (3, 3) and "3 points along each axis fit into the time, instead of 41" in lines[0]
    assert "landscape of 1 model(s) on 3 x 3 points of" in lines[1]
    again = landscape({"m": model}, [batch_of()], points=41, minutes=1e-9, say=lines.append, parts=Kept(tmp_path / "p"))
    assert np.array_equal(few.losses["m"], again.losses["m"]) and len(lines) == 2, "nothing is left to plan"
    assert landscape({"m": model}, [batch_of()], points=5, minutes=60).x.shape == (5,)


def test_a_distillation_loss_is_zero_at_the_teacher_itself():
    model, teacher = tiny_bert(), tiny_bert()
    result = landscape({"m": model}, [batch_of()], loss="hidden_states", teacher=teacher, points=3)
    assert result.centre["m"] == 0 and (np.delete(result.losses["m"].ravel(), 4) > 0).all()


def test_figures_show_every_model_on_one_scale():
    teacher, student = tiny_bert(), prepare(tiny_bert()).eval()
    result = landscape({"teacher": teacher, "student": student}, [batch_of()], points=3)
    result.losses["student"][0, 0] = np.inf
    for figure in (plot_contours(result), plot_surfaces(result)):
        assert len(figure.axes) == 3
        figure.canvas.draw()
    assert [axes.get_title().split(":")[0] for axes in figure.axes[:2]] == ["teacher", "student"]
    assert len({axes.get_zlim() for axes in figure.axes[:2]}) == 1


def test_bad_input():
    model, batch = tiny_bert(), batch_of()
    own = dict(model.named_parameters())
    other = dict(tiny_bert(1).named_parameters())

    def line(batches=(batch,), subject=model, **options) -> str:
        before = bits(subject)
        with pytest.raises(TrituneError) as caught:
            landscape({"m": subject}, list(batches), **{"points": 3} | options)
        assert "\n" not in str(caught.value)
        assert all(torch.equal(before[k].nan_to_num(), v.nan_to_num()) for k, v in subject.state_dict().items())
        return str(caught.value)

    assert "odd number" in line(points=4) and "odd number" in line(points=1)
    assert "must be more than 0" in line(extent=0.0) and "must be more than 0" in line(extent=float("nan"))
    assert "unknown loss" in line(loss="x") and "compares with a teacher" in line(loss="logits")
    assert "'nothing'" in line(parameters=["nothing"])
    assert "needs a model and a batch" in line(batches=())
    assert "needs labels" in line(batches=[without_labels(batch)])
    assert "two or more" in line(checkpoints={"a": other})
    assert "one line" in line(checkpoints={"a": other, "b": other})
    assert "one line" in line(checkpoints={"a": own, "b": other})
    assert "one line" in line(checkpoints={"a": other, "b": own})
    assert "the model itself" in line(checkpoints={"a": other, "m": other})
    short = {name: parameter for name, parameter in other.items() if name != "classifier.weight"}
    assert "a: has no classifier.weight of shape (3, 4)" in line(checkpoints={"a": short, "b": other})
    broken = tiny_bert()
    broken.classifier.weight.data[0, 0] = float("nan")
    assert "the loss is nan" in line(subject=broken)
    with pytest.raises(TrituneError, match="one model"):
        landscape({"m": model, "n": tiny_bert()}, [batch], checkpoints={"a": other, "b": own})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def test_on_the_command_line(cli, workspace, tmp_path):
    teacher, base = workspace / "teacher", tmp_path / "moved"
    start = ("analyze", "landscape", "--model", teacher, "--task", "demo", "--data", workspace / "data", "--rows", 8)
    code, out, err = cli(*start, "--points", 3, "--range", 0.5, "--output", tmp_path / "out")
    assert code == 0, err
    assert "lowest" in out
    endings = ("json", "png", "svg")
    wanted = {f"landscape.{e}" for e in endings} | {f"landscape_surface.{e}" for e in endings[1:]}
    assert {path.name for path in (tmp_path / "out").iterdir()} == wanted
    written = json.loads((tmp_path / "out" / "landscape.json").read_text())
    (losses,), (centre,) = written["losses"].values(), written["centre"].values()
    assert losses[1][1] == centre and written["x"] == [-0.5, 0, 0.5]
    for extra, part in (
        (("--checkpoint", teacher), "two or more"),
        (("--model", base, "--checkpoint", teacher), "goes through one --model"),
        (("--points", 4), "odd number"),
    ):
        code, _, err = cli(*start, *extra, "--output", tmp_path / "none")
        assert code == 2 and part in err and err.count("\n") == 1 and not (tmp_path / "none").exists()
