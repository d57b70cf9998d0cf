"""Figures of a `Curvature`."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .curvature import Curvature

_BINS = 60
# Densities below this share of a single eigenvalue's are not drawn: the Gaussian tails carry no information.
_FLOOR = 1e-2


def plot_curvature(result: Curvature) -> Figure:
    """The top eigenvalues of all batches as one density per model; beside it each model's whole spectrum if measured.

    The axis of the eigenvalues is linear around zero and logarithmic further out, so that both tails can be seen; the
    bins are even on it.
    """
    whole = any(model.density is not None for model in result.models.values())
    figure = Figure(figsize=(11 if whole else 7, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if whole else 1, squeeze=False)[0]
    _draw_tails(panels[0], result)
    if whole:
        _draw_spectra(panels[1], result)
    what = f"of the parameters {', '.join(result.patterns)}" if result.patterns else "of all parameters"
    figure.suptitle(f"Hessian of the loss {result.loss} {what}", fontsize="medium")
    if any(model.surrogate for model in result.models.values()):
        figure.supxlabel("* quantized: the Hessian of the straight-through surrogate", fontsize="small")
    return figure


def _draw_tails(axes: Any, result: Curvature) -> None:
    values = {name: model.eigenvalues.ravel() for name, model in result.models.items()}
    linear = min(float(np.median(np.abs(eigenvalues))) for eigenvalues in values.values()) / 2 or 1.0
    bent = np.arcsinh(np.concatenate(list(values.values())) / linear)
    edges = np.histogram_bin_edges(bent, _BINS)
    for index, name in enumerate(values):
        label = name + "*" * result.models[name].surrogate
        density, _ = np.histogram(np.arcsinh(values[name] / linear), edges, density=True)
        axes.stairs(density, np.sinh(edges) * linear, fill=True, color=f"C{index}", alpha=0.25)
        axes.stairs(density, np.sinh(edges) * linear, color=f"C{index}", label=label)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_xscale("asinh", linear_width=linear)
    axes.set_xticks(_ticks(edges, linear), minor=False)
    axes.set_xticks([], minor=True)
    batches, top = next(iter(result.models.values())).eigenvalues.shape
    axes.set(xlabel="eigenvalue", ylabel="density (along this axis)")
    axes.set_title(f"{top} largest by magnitude, of each of {batches} batches", fontsize="medium")
    axes.legend(fontsize="small")


def _ticks(edges: np.ndarray, linear: float) -> list[float]:
    """Zero, and the powers of ten that are clear of it."""
    furthest = float(np.sinh(np.abs(edges).max()) * linear)
    decades = 10.0 ** np.arange(np.ceil(np.log10(2 * linear)), np.floor(np.log10(max(furthest, 2 * linear))) + 1)
    low, high = np.sinh(edges[[0, -1]]) * linear
    return [tick for tick in (*-decades[::-1], 0.0, *decades) if min(low, 0) <= tick <= max(high, 0)]


def _draw_spectra(axes: Any, result: Curvature) -> None:
    for index, model in enumerate(result.models.values()):
        if (spectrum := model.density) is not None:
            single = 1 / (model.parameters * spectrum.bandwidth * np.sqrt(2 * np.pi))
            density = np.where(spectrum.density > _FLOOR * single, spectrum.density, np.nan)
            axes.plot(spectrum.values, density, color=f"C{index}", linewidth=1)
    axes.set(xlabel="eigenvalue", ylabel="density", yscale="log")
    axes.set_title("whole spectrum (Lanczos quadrature)", fontsize="medium")
