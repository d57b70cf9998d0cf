"""Pictures of what `curvature` returns."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .curvature import Curvature
from .lanczos import SpectralDensity

_BINS = 60
# Densities below this share of the highest are not drawn: there the Gaussian tails say nothing.
_FLOOR = 1e-6


def plot_curvature(result: Curvature) -> Figure:
    """The top eigenvalues of all batches as one density a model, beside it each model's whole spectrum if measured.

    The axis of the eigenvalues is linear around zero and logarithmic further out, so that both tails can be seen; the
    bins are even on it.
    """
    spectra = {name: model.density for name, model in result.models.items() if model.density is not None}
    figure = Figure(figsize=(11 if spectra else 7, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if spectra else 1, squeeze=False)[0]
    _draw_tails(panels[0], result)
    if spectra:
        _draw_spectra(panels[1], spectra, list(result.models))
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
    batches, top = next(iter(result.models.values())).eigenvalues.shape
    axes.set(xlabel="eigenvalue", ylabel="density (along this axis)")
    axes.set_title(f"{top} largest by magnitude, of each of {batches} batches", fontsize="medium")
    axes.legend(fontsize="small")


def _draw_spectra(axes: Any, spectra: Mapping[str, SpectralDensity], names: list[str]) -> None:
    for name, spectrum in spectra.items():
        shown = spectrum.density > _FLOOR * spectrum.density.max()
        density = np.where(shown, spectrum.density, np.nan)
        axes.plot(spectrum.values, density, color=f"C{names.index(name)}", linewidth=1)
    axes.set(xlabel="eigenvalue", ylabel="density", yscale="log")
    axes.set_title("whole spectrum (Lanczos quadrature)", fontsize="medium")
