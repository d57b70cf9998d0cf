"""Draws every figure of the documentation with tritune's own functions: `python docs/figures.py`.

What can be computed is computed: codes and thresholds come from the quantizers, sites from the schedules, rates from
the optimizer, and which parameters get a gradient from one backward pass of a small model per site.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from transformers import BertConfig, BertForSequenceClassification, set_seed

import tritune
from tritune.distil.losses import Pair, distillation_losses, trace_fields
from tritune.distil.schedule import SCHEDULES
from tritune.modeling.sites import ATTENTION_SITES, Site
from tritune.modeling.trace import Intervention
from tritune.quant import LeastSquaresTernary, Ternary, ternarize
from tritune.recipes import load_recipe
from tritune.training.optimizer import BertAdam

FOLDER = Path(__file__).parent / "figures"
STEP_ONE = 60
BLUE, ORANGE, GREY, PALE = "#1f4e79", "#e07b00", "#c9c9c9", "#e8eff7"
# Of the published ones.
SITE_COLOURS = {Site.PROJECTION: "#7fb0dc", Site.CONTEXT: "#f2b866", Site.MAP: "#8fc79a"}
LEARNERS = ("query", "key", "value", "dense")


def overview() -> Figure:
    """The front page: a float matrix, its codes, and the two steps of training."""
    set_seed(3)
    weight = torch.randn(10, 22) * 0.04
    codes, scale = ternarize(weight)
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.3))
    left, right, below = (figure.add_subplot(cell) for cell in (grid[0, 0], grid[0, 1], grid[1, :]))
    left.imshow(weight, cmap="RdBu", vmin=-0.1, vmax=0.1)
    left.set_title("teacher: 32-bit floats", fontsize=14)
    colours = ListedColormap(["#b2182b", "#f7f7f7", "#2166ac"])
    right.imshow(codes, cmap=colours, vmin=-1, vmax=1)
    right.set_title(f"student: −1, 0, +1; scale {scale.item():.3f}", fontsize=14)
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
    _two_steps(below)
    return figure


def _two_steps(axes: Axes) -> None:
    axes.set(xlim=(-0.1, 14), ylim=(0, 6.2))
    axes.axis("off")
    for x, title, arrows in (
        (0, "step one", ("teacher's attention tensors", "losses")),
        (7.3, "step two", (None, "losses")),
    ):
        axes.text(x + 3.3, 5.7, title, ha="center", va="center", fontsize=14, weight="bold")
        _box(axes, x, 3.7, 6.6, 1.2, "teacher, float, frozen", PALE, size=13)
        _box(axes, x, 0.2, 6.6, 1.2, "student, ternary + 8-bit", "#fdf1e0", size=13)
        for place, (text, colour) in enumerate(zip(arrows, (ORANGE, BLUE), strict=True)):
            if text is not None:
                where = x + (0.7 if place == 0 else 4.8)
                _arrow(axes, (where, 3.7), (where, 1.4), colour)
                axes.text(where + 0.25, 2.55, text.replace("attention ", "attention\n"), va="center", fontsize=13)


def sites() -> Figure:
    """One attention block under each site: what the teacher replaces and what then gets no gradient."""
    figure = Figure(figsize=(7.2, 7.4), layout="constrained")
    for axes, site in zip(figure.subplots(1, 3), ATTENTION_SITES, strict=True):
        _block(axes, site, _without_gradient(site))
    figure.text(
        0.5,
        -0.005,
        "orange: the teacher's tensor    red bar: no gradient passes down    grey, dashed: gets no gradient at all",
        ha="center",
        va="top",
        fontsize=9.5,
    )
    return figure


def _block(axes: Axes, site: Site, without: set[str]) -> None:
    """Input at the bottom, block output at the top."""
    axes.set(xlim=(-0.1, 6.1), ylim=(-0.3, 13.2))
    axes.axis("off")
    axes.set_title(f"Site.{site.name}", fontsize=12, weight="bold")
    _box(axes, 0.1, 0, 5.8, 0.8, "block input", "white")
    for x, letter, name in ((0.1, "Q", "query"), (2.15, "K", "key"), (4.2, "V", "value")):
        _learner(axes, x, 2.2, 1.7, f"$W_{letter}$", name in without)
        _arrow(axes, (x + 0.85, 0.8), (x + 0.85, 2.2))
        if name != "value" or site is not Site.MAP:
            axes.plot([x + 0.4, x + 1.3], [1.65, 1.65], color="#c00000", linewidth=3, solid_capstyle="butt")
    _box(axes, 0.1, 4.2, 3.75, 0.9, "scores", PALE)
    _arrow(axes, (0.95, 3.1), (0.95, 4.2))
    _arrow(axes, (3.0, 3.1), (3.0, 4.2))
    _tensor(axes, 0.1, 5.9, 3.75, "map", site is Site.MAP)
    _arrow(axes, (1.97, 5.1), (1.97, 5.9))
    _tensor(axes, 0.9, 7.7, 4.2, "context", site is Site.CONTEXT)
    _arrow(axes, (1.97, 6.8), (1.97, 7.7))
    _arrow(axes, (5.05, 3.1), (4.6, 7.7))
    _learner(axes, 2.15, 9.3, 1.7, "$W_O$", "dense" in without)
    _arrow(axes, (3, 8.6), (3, 9.3))
    _tensor(axes, 0.9, 10.8, 4.2, "projection", site is Site.PROJECTION)
    _arrow(axes, (3, 10.2), (3, 10.8))
    _box(axes, 0.4, 12.3, 5.2, 0.8, "+ input, LayerNorm", "white")
    _arrow(axes, (3, 11.7), (3, 12.3))


def _tensor(axes: Axes, x: float, y: float, width: float, text: str, replaced: bool) -> None:
    _box(axes, x, y, width, 0.9, f"teacher's {text}" if replaced else text, ORANGE if replaced else PALE)


def _learner(axes: Axes, x: float, y: float, width: float, text: str, idle: bool) -> None:
    _box(axes, x, y, width, 0.9, text, GREY if idle else "#fdf1e0", "--" if idle else "-")


def _without_gradient(site: Site) -> set[str]:
    """Names of the attention Linears whose weight has no gradient after one backward pass under `site`."""
    set_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    teacher = tritune.instrument(BertForSequenceClassification(config)).eval()
    student = tritune.prepare(copy.deepcopy(teacher).train())
    coefficients = load_recipe("ti-g").coefficients()
    fields = trace_fields(coefficients)
    batch = {"input_ids": torch.randint(1, 50, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    with torch.no_grad():
        expected = teacher(**batch, output_trace=fields | {site.field})
    output = student(**batch, output_trace=fields, intervention=Intervention(site, expected.trace))
    sum(distillation_losses(Pair(output, expected, batch["attention_mask"]), coefficients).values()).backward()
    attention = student.bert.encoder.layer[0].attention
    modules = (attention.self.query, attention.self.key, attention.self.value, attention.output.dense)
    return {name for name, module in zip(LEARNERS, modules, strict=True) if module.weight.grad is None}


def schedules() -> Figure:
    """The site in force at every step of step one."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    names = ("gradual", "inverted", "stochastic")
    for row, name in enumerate(names):
        for step in range(STEP_ONE):
            site = SCHEDULES[name](step, STEP_ONE, 42)
            axes.barh(row, 1, left=step, height=0.7, color=SITE_COLOURS[site], edgecolor="white", linewidth=0.4)
    for site, colour in SITE_COLOURS.items():
        axes.barh(0, 0, color=colour, label=f"Site.{site.name}")
    recipes = {"gradual": "ti-g", "inverted": "ti-inverted", "stochastic": "ti-stochastic"}
    axes.set(
        yticks=range(len(names)),
        yticklabels=[f"{name}\n({recipes[name]})" for name in names],
        xlabel=f"step of step one ({STEP_ONE} steps)",
        xlim=(0, STEP_ONE),
    )
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def ternary() -> Figure:
    """A weight's histogram with TWN's thresholds and levels, and the exact optimum beside them."""
    set_seed(0)
    weight = torch.randn(768, 768) * 0.04
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.hist(weight.flatten().numpy(), bins=120, color=PALE, edgecolor=BLUE, linewidth=0.3)
    for quantizer, name, colour, style in (
        (Ternary(), "TWN", BLUE, "--"),
        (LeastSquaresTernary(), "least squares", ORANGE, ":"),
    ):
        codes, scale = quantizer.quantize(weight)
        threshold = weight.abs()[codes != 0].min().item()
        error = (weight - quantizer.dequantize(codes, scale)).square().mean() / weight.square().mean()
        label = f"{name}: threshold {threshold:.4f}, scale {scale.item():.4f}, error {100 * error:.2f} %"
        for sign in (-1, 1):
            axes.axvline(sign * threshold, color=colour, linestyle=style, label=label if sign > 0 else None)
        levels = [-scale.item(), 0, scale.item()]
        axes.plot(levels, [0] * 3, "o", color=colour, clip_on=False, zorder=5, markersize=9 if name == "TWN" else 5)
    axes.set(xlabel="weight (dots: the three levels)", yticks=[], ylabel="how many", xlim=(-0.15, 0.15))
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper center", frameon=False, fontsize=10)
    return figure


def rate() -> Figure:
    """Each parameter's own learning rate in step one of ti-g, from the optimizer's counts of its updates."""
    # The latest site at which a parameter still has no gradient, in the order in which ti-g takes them.
    idle = {"everything else": set(), "$W_O$": {Site.PROJECTION}, "$W_V$": {Site.PROJECTION, Site.CONTEXT}}
    parameters = {name: torch.nn.Parameter(torch.zeros(1)) for name in idle}
    optimizer = BertAdam(parameters.values(), lr=1.0, total_steps=STEP_ONE, weight_decay=0.0, max_grad_norm=0)
    rates: dict[str, list[float]] = {name: [] for name in idle}
    for step in range(STEP_ONE):
        site = SCHEDULES["gradual"](step, STEP_ONE, 42)
        for name, parameter in parameters.items():
            parameter.grad = None if site in idle[name] else torch.ones(1)
        moved = _moves(optimizer, parameters)
        for name in idle:
            rates[name].append(moved[name])
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for (name, values), colour in zip(rates.items(), (BLUE, ORANGE, "#3a7d44"), strict=True):
        axes.step(range(STEP_ONE), values, where="post", label=name, color=colour, linewidth=1.8)
    axes.set(xlabel="step of step one", ylabel="rate / peak rate", xlim=(0, STEP_ONE), ylim=(0, 1.05))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _moves(optimizer: BertAdam, parameters: dict[str, torch.nn.Parameter]) -> dict[str, float]:
    """The rate of each parameter's update: how far it moved, over the Adam direction that its moments give."""
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer.step()
    moves = {}
    for name, parameter in parameters.items():
        moves[name] = 0.0
        if parameter.grad is not None:
            state = optimizer.state[parameter]
            direction = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + optimizer.param_groups[0]["eps"])
            moves[name] = ((before[name] - parameter.detach()) / direction).item()
    return moves


def _box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str,
    colour: str,
    style: str = "-",
    size: float = 10.5,
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.15", facecolor=colour, edgecolor="#333333",
            linestyle=style,
        )
    )  # fmt: skip
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = "#555555") -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0})


FIGURES: dict[str, Callable[[], Figure]] = {
    function.__name__: function for function in (overview, sites, schedules, ternary, rate)
}


def main() -> None:
    """Write every figure as SVG, the same bytes each time."""
    FOLDER.mkdir(exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "tritune", "font.size": 11}):
        for name, draw in FIGURES.items():
            draw().savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    main()
