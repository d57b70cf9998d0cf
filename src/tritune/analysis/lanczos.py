"""The spectral density of a symmetric operator by stochastic Lanczos quadrature.

For a random unit vector v, v'f(H)v is on average the mean of f over the eigenvalues; k Lanczos steps from v give the
Gauss quadrature of it with k nodes, exact for polynomials of degree 2k - 1 (Golub and Welsch 1969; Ubaru, Chen and Saad
2017; for networks Ghorbani et al. 2019, arXiv 1901.10159).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator

# Of the whole range, the width of the Gaussian that a node is drawn as; points of the grid; how far it reaches beyond.
_BANDWIDTH, _POINTS, _REACH = 0.004, 1001, 6.0


@dataclass(frozen=True)
class SpectralDensity:
    """The share of eigenvalues around a value.

    Attributes:
        values: (points,), eigenvalues at which the density is given.
        density: (points,), its integral over `values` is 1.
        bandwidth: standard deviation of each node's Gaussian.
        nodes, weights: (nodes,), the quadrature behind it: sum(weights * f(nodes)) is the mean of f over eigenvalues.
    """

    values: np.ndarray
    density: np.ndarray
    bandwidth: float
    nodes: np.ndarray
    weights: np.ndarray


def lanczos(operator: LinearOperator, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the quadrature of v'f(H)v, v being `start` scaled to length 1.

    Every new vector is made orthogonal to all before it, twice, so no eigenvalue appears twice by rounding. Vectors are
    in the operator's precision.

    Args:
        operator: symmetric, (size, size).
        start: (size,), not zero.
        steps: vectors to build, all of which are kept; fewer where they span all that `operator` makes of `start`.

    Returns:
        nodes and weights, both (steps,) or shorter; the weights sum to 1.

    >>> from scipy.sparse.linalg import aslinearoperator
    >>> nodes, weights = lanczos(aslinearoperator(np.diag([1.0, 4.0])), np.ones(2), steps=2)
    >>> nodes.round(9), weights.round(9)
    (array([1., 4.]), array([0.5, 0.5]))
    """
    size = operator.shape[0]
    steps = min(steps, size)
    basis = np.empty((steps, size), dtype=operator.dtype)
    diagonal: list[np.floating] = []
    coupling: list[np.floating] = []
    vector = (start / np.linalg.norm(start)).astype(basis.dtype)
    for step in range(steps):
        basis[step] = vector
        product = operator @ vector
        diagonal.append(vector @ product)
        known = basis[: step + 1]
        for _ in range(2):
            product = product - known.T @ (known @ product)
        length = np.linalg.norm(product)
        magnitude = max(map(abs, [*diagonal, *coupling]))
        if step == steps - 1 or length <= magnitude * size * np.finfo(np.float64).eps:
            break
        coupling.append(length)
        vector = product / length
    nodes, vectors = eigh_tridiagonal(np.array(diagonal), np.array(coupling))
    return nodes, vectors[0] ** 2


def spectral_density(quadratures: Iterable[tuple[np.ndarray, np.ndarray]]) -> SpectralDensity:
    """The mean density of many runs of `lanczos`, from different start vectors or for different batches.

    Args:
        quadratures: nodes and weights of each run.
    """
    runs = list(quadratures)
    nodes = np.concatenate([nodes for nodes, _ in runs])
    weights = np.concatenate([weights for _, weights in runs]) / len(runs)
    low, high = nodes.min(), nodes.max()
    width = _BANDWIDTH * ((high - low) or abs(high) or 1.0)
    values = np.linspace(low - _REACH * width, high + _REACH * width, _POINTS)
    kernel = np.exp(-0.5 * ((values[:, None] - nodes) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return SpectralDensity(values, kernel @ weights, float(width), nodes, weights)
