"""The Hessian of a loss as a linear operator, and its properties by matrix-vector products alone.

A product with a vector is a second backward pass through the graph of the gradient (Pearlmutter 1994): H v is the
gradient of g'v, with g the gradient of the loss. The graph is built once and used for every product. Rejected: finite
differences (a step size to choose, and two gradients a product) and curvlinops (it did not agree with finite
differences on these models).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from ..errors import TrituneError

Seed = int | Sequence[int]

# Below this size the matrix itself is small, and Lanczos has no room to iterate in.
_DENSE = 32
_RESTARTS = 1000
# Of the residual, relative to the eigenvalue.
_TOLERANCE = 1e-7


class Hessian(LinearOperator):
    """d^2 loss / d parameters^2, (size, size) float64, computed in the precision of the parameters.

    For a quantized student autograd differentiates the straight-through surrogate: the smooth function in which each
    quantizer is replaced by clip(w) + (quantize(w0) - clip(w0)), w0 the point at hand. It has the student's value and
    gradient there, and its Hessian, which is what this operator holds, is symmetric. `nn.Embedding` passes no gradient
    to its padding row, so that row counts for nothing here either.

    Args:
        loss: a scalar with a graph that can be differentiated twice (scaled dot product attention cannot be; the
            attention of an instrumented model can).
        parameters: leaves of that graph; what the loss does not depend on contributes zero rows and columns.

    Attributes:
        loss: its value.
        products: number of matrix-vector products so far.

    Raises:
        TrituneError: loss or gradient are NaN or infinite.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> Hessian(w[0] ** 2 * w[1], [w]) @ np.array([1.0, 0.0])
    array([4., 2.])
    """

    def __init__(self, loss: torch.Tensor, parameters: Iterable[torch.Tensor]):
        self.parameters, self.loss, self.products = list(parameters), loss.item(), 0
        if not np.isfinite(self.loss):
            raise TrituneError(f"the loss is {self.loss}: there is no curvature; check the model's weights")
        self._sizes = [parameter.numel() for parameter in self.parameters]
        gradients: Sequence[torch.Tensor | None] = [None] * len(self.parameters)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        if not all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None):
            raise TrituneError("the gradient of the loss is not finite: there is no curvature")
        # Where the gradient is constant, as that of a linear function, its derivative is zero.
        self._gradients = {i: g for i, g in enumerate(gradients) if g is not None and g.requires_grad}
        super().__init__(np.dtype(np.float64), (sum(self._sizes),) * 2)

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        self.products += 1
        parts = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float64).ravel()).split(self._sizes)
        seconds: Sequence[torch.Tensor | None] = [None] * len(parts)
        if self._gradients:
            directions = [parts[i].view_as(g).to(g) for i, g in self._gradients.items()]
            seconds = torch.autograd.grad(
                list(self._gradients.values()), self.parameters, directions, retain_graph=True, allow_unused=True
            )
        product = np.concatenate(
            [
                np.zeros(size) if second is None else second.detach().double().cpu().numpy().ravel()
                for second, size in zip(seconds, self._sizes, strict=True)
            ]
        )
        if not np.isfinite(product).all():
            raise TrituneError("the second derivative of the loss is not finite: there is no curvature")
        return product

    def _adjoint(self) -> "Hessian":
        return self


def top_eigenvalues(operator: LinearOperator, count: int, seed: Seed = 0) -> np.ndarray:
    """The `count` eigenvalues of largest magnitude, of either sign, by implicitly restarted Lanczos (ARPACK).

    Memory: 2 * count + 1 vectors (at least 20) of float64.

    Args:
        operator: symmetric, (size, size).
        count: 1 to size.
        seed: of the start vector.

    Returns:
        (count,), largest magnitude first.

    Raises:
        TrituneError: `count` is out of range, or the eigenvalues do not converge.

    >>> from scipy.sparse.linalg import aslinearoperator
    >>> top_eigenvalues(aslinearoperator(np.diag([1.0, -3.0, 2.0])), 2)
    array([-3.,  2.])
    """
    size = operator.shape[0]
    if not 1 <= count <= size:
        raise TrituneError(f"{count} eigenvalues of {size} parameters; ask for 1 to {size}")
    start = np.random.default_rng(seed).standard_normal(size)
    if count >= size - 1 or size <= _DENSE:
        matrix = operator @ np.eye(size)
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    elif not (operator @ start).any():
        values = np.zeros(count)
    else:
        try:
            values = eigsh(
                operator, count, which="LM", v0=start, tol=_TOLERANCE, maxiter=_RESTARTS, return_eigenvectors=False
            )
        except ArpackError as error:
            reason = " ".join(str(error).split())
            raise TrituneError(
                f"the eigenvalues do not converge ({reason}); ask for fewer, or compute in float64"
            ) from None
    return values[np.argsort(-np.abs(values), kind="stable")][:count]


def both_ends(operator: LinearOperator, top: np.ndarray, seed: Seed = 0) -> tuple[float, float]:
    """The smallest and the largest eigenvalue.

    One of them is the first of `top`, the other is in it too if the signs differ. If they do not, the other is found as
    the largest in magnitude of the operator shifted by the known one: so its error is relative to the whole range, and
    a cluster of eigenvalues around zero does no harm.

    Args:
        operator: symmetric, (size, size).
        top: what `top_eigenvalues` returned for it.
        seed: as there.
    """
    known, size = float(top[0]), operator.shape[0]
    if len(top) == size or (top.min() < 0 < top.max()):
        return float(top.min()), float(top.max())
    shifted = LinearOperator((size, size), matvec=lambda v: operator @ v.ravel() - known * v.ravel(), dtype=np.float64)
    other = known + float(top_eigenvalues(shifted, 1, seed)[0])
    return min(known, other), max(known, other)


def rademacher(size: int, generator: np.random.Generator) -> np.ndarray:
    """(size,) of -1 and +1, each with probability one half."""
    return generator.integers(0, 2, size) * 2.0 - 1.0


def hutchinson(operator: LinearOperator, count: int, seed: Seed = 0) -> np.ndarray:
    """`count` independent, unbiased estimates v'Hv of the trace, v of random signs (Hutchinson 1990).

    Returns:
        (count,)

    >>> from scipy.sparse.linalg import aslinearoperator
    >>> hutchinson(aslinearoperator(np.diag([1.0, -3.0, 5.0])), 2)
    array([3., 3.])
    """
    generator = np.random.default_rng(seed)
    probes = (rademacher(operator.shape[0], generator) for _ in range(count))
    return np.array([probe @ (operator @ probe) for probe in probes])
