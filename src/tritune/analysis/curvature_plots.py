"""Pictures of what `curvature` returns."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .curvature import Curvature, ModelCurvature

_BINS = 60
# Densities below this share of the highest are not drawn: there the Gaussian tails say nothing.
_FLOOR = 1e-6


def plot_curvature(result: Curvature) -> Figure:
    """The top eigenvalues of all batches as one density a model, and each model's whole spectrum where it was measured.

    Bins are even on a scale that is linear around zero and logarithmic further out, so both tails can be seen.
    """
    spectra = {name: model.density for name, model in result.models.items() if model.density is not None}
    figure = Figure(figsize=(10 if spectra else 7, 4.2), layout="constrained")
    tails, *whole = np.atleast_1d(figure.subplots(1, 2 if spectra else 1))
    _draw_tails(tails, result)
    if whole:
        _draw_spectra(whole[0], spectra, list(result.models))
    figure.suptitle(_title(result), fontsize="medium")
    if any(model.surrogate for model in result.models.values()):
        figure.supxlabel("Of quantized models (*) the Hessian is that of the straight-through surrogate.", fontsize="small")
    return figure


def _draw_tails(axes: Any, result: Curvature) -> None:
    values = {name: model.eigenvalues.ravel() for name, model in result.models.items()}
    everything = np.concatenate(list(values.values()))
    linear = float(np.abs(everything).min()) or float(np.abs(everything).max()) / 100 or 1.0
    edges = _undo(np.linspace(*_bend(np.array([everything.min(), everything.max()]), linear), _BINS + 1), linear)
    edges[0], edges[-1] = everything.min(), everything.max()
    if edges[0] == edges[-1]:
        edges = np.array([edges[0] - linear, edges[0] + linear])
    for index, (name, eigenvalues) in enumerate(values.items()):
        label = name + "*" * result.models[name].surrogate
        share = np.full(eigenvalues.size, 1 / eigenvalues.size)
        axes.hist(eigenvalues, edges, weights=share, histtype="stepfilled", color=f"C{index}", alpha=0.25)
        axes.hist(eigenvalues, edges, weights=share, histtype="step", color=f"C{index}", label=label)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=linear)
    batches, top = next(iter(result.models.values())).eigenvalues.shape
    axes.set(xlabel="Hessian eigenvalue", ylabel="share of eigenvalues")
    axes.set_title(f"top {top} by magnitude, {batches} batch{'es' * (batches > 1)}", fontsize="medium")
    axes.legend(fontsize="small")
