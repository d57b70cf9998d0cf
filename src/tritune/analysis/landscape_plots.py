"""Figures of a `Landscape`: contours and surfaces, all models on one colour scale."""

from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .landscape import Landscape

_COLOURS, _LEVELS = "viridis", 25


def plot_contours(result: Landscape) -> Figure:
    """Contours of each model's losses; a cross marks the model, dots the checkpoints."""
    figure, limits = _figure(result, height=4.4), _limits(result)
    panels = figure.subplots(1, len(result.losses), squeeze=False, sharey=True)[0]
    norm, levels = Normalize(*limits), np.linspace(*limits, _LEVELS)
    for axes, (name, losses) in zip(panels, result.losses.items(), strict=True):
        shown = np.ma.masked_invalid(losses)
        axes.contourf(result.x, result.y, shown, levels, norm=norm, cmap=_COLOURS, extend="both")
        axes.contour(result.x, result.y, shown, levels, colors="white", linewidths=0.3)
        if not result.checkpoints:
            axes.plot(0, 0, "+", color="red", markersize=10)
        for index, mark in enumerate(result.checkpoints):
            axes.plot(mark.x, mark.y, "o", color="red", markersize=5)
            axes.annotate(
                f"{mark.name}: {mark.loss:.3g}",
                (mark.x, mark.y),
                xytext=(0, -14 if index % 2 else 6),
                textcoords="offset points",
                ha="center",
                color="white",
                fontsize="small",
            )
        axes.set(title=_title(result, name), xlabel=_axis(result, 0), aspect="equal")
        axes.locator_params(nbins=5)
    panels[0].set_ylabel(_axis(result, 1))
    _finish(figure, result, norm, panels)
    return figure


def plot_surfaces(result: Landscape) -> Figure:
    """Each model's losses as a surface in three dimensions."""
    figure, limits = _figure(result, height=4.6), _limits(result)
    norm = Normalize(*limits)
    panels = figure.subplots(1, len(result.losses), squeeze=False, subplot_kw={"projection": "3d"})[0]
    x, y = np.meshgrid(result.x, result.y)
    for axes, (name, losses) in zip(panels, result.losses.items(), strict=True):
        shown = np.ma.masked_invalid(losses)
        axes.plot_surface(x, y, shown, cmap=_COLOURS, norm=norm, rcount=100, ccount=100, linewidth=0)
        axes.set(title=_title(result, name), zlim=limits)
        axes.tick_params(labelsize="x-small")
        axes.locator_params(nbins=5)
    _finish(figure, result, norm, panels)
    return figure


def _title(result: Landscape, name: str) -> str:
    """A model's name, as long as its panel is wide, and its loss."""
    return f"{fill(name, 40)}: {result.centre[name]:.3g}"


def _figure(result: Landscape, height: float) -> Figure:
    return Figure(figsize=(1.5 + 4 * len(result.losses), height), layout="constrained")


def _limits(result: Landscape) -> tuple[float, float]:
    """The lowest and the highest finite loss of all models; never equal."""
    finite = np.concatenate([losses[np.isfinite(losses)] for losses in result.losses.values()])
    low, high = float(finite.min()), float(finite.max())
    return low, high if high > low else low + max(abs(low), 1.0) * 1e-6


def _axis(result: Landscape, axis: int) -> str:
    if result.checkpoints:
        return f"towards {result.checkpoints[1].name}" if axis == 0 else "at right angles"
    return f"random direction {axis + 1}"


def _finish(figure: Figure, result: Landscape, norm: Normalize, panels: Any) -> None:
    bar = figure.colorbar(ScalarMappable(norm, _COLOURS), ax=list(panels), shrink=0.8)
    bar.set_label(f"loss {result.loss}")
    what = f", parameters {', '.join(result.patterns)}" if result.patterns else ""
    through = "through checkpoints" if result.checkpoints else "along filter-normalised random directions"
    figure.suptitle(f"Loss {through}, {result.rows} rows{what}", fontsize="medium")
