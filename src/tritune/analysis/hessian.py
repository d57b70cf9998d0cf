"""The Hessian of a loss as a linear operator, and its properties by matrix-vector products alone.

A product with a vector is a second backward pass through the graph of the gradient (Pearlmutter 1994): H v is the
gradient of g'v, with g the gradient of the loss. The graph is built once and used for every product. Rejected: finite
differences (a step size to choose, and two gradients a product) and curvlinops (it did not agree with finite
differences on these models).
"""

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from ..errors import TrituneError

Seed = int | Sequence[int]

# Below this size the matrix itself is small, and Lanczos has no room to iterate in.
_DENSE = 32
_RESTARTS = 1000
# Below this tolerance the rounding of float32 vectors would show.
_SINGLE = 1e-4


class Hessian(LinearOperator):
    """d^2 loss / d parameters^2, (size, size), in the precision of the parameters.

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
        used: (entries,) bool, which entries of the parameters the operator acts on; all of them at first, see
            `without_unused_rows`. `size` is their number.

    Raises:
        TrituneError: loss or gradient are NaN or infinite.

    >>> w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    >>> Hessian(w[0] ** 2 * w[1], [w]) @ np.array([1.0, 0.0])
    array([4., 2.])
    """

    def __init__(self, loss: torch.Tensor, parameters: Iterable[torch.Tensor]):
        self.parameters, self.loss, self.products = list(parameters), loss.item(), 0
        if not np.isfinite(self.loss):
            raise TrituneError(f"the loss is {self.loss}: there is no curvature; check the model's weights")
        sizes = [parameter.numel() for parameter in self.parameters]
        gradients: Sequence[torch.Tensor | None] = [None] * len(self.parameters)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        if not all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None):
            raise TrituneError("the gradient of the loss is not finite: there is no curvature")
        # Where the gradient is constant, as that of a linear function, its derivative is zero.
        self._gradients = {i: g for i, g in enumerate(gradients) if g is not None and g.requires_grad}
        # Of each parameter the rows that count, by index; None for all of them.
        self._rows: list[torch.Tensor | None] = [None] * len(sizes)
        self._sizes, self.used = sizes, np.ones(sum(sizes), dtype=bool)
        kinds = {parameter.dtype for parameter in self.parameters}
        super().__init__(np.dtype(np.float32 if kinds <= {torch.float32} else np.float64), (sum(sizes),) * 2)

    def without_unused_rows(self, seed: Seed = 0) -> "Hessian":
        """The same operator on the rows of the parameters that are not zero in it; it shares the graph.

        Most of a small model's parameters are word embeddings of words that are not in the batch. Their rows and
        columns of the Hessian are zero, so all other eigenvalues, and the trace, are those of the block that remains.
        Such rows are recognized by the product with one random vector, which is zero there; a gradient of zero would
        not do, as that of a distillation loss is zero at the teacher itself.

        Args:
            seed: of that vector.
        """
        vector = np.random.default_rng(seed).standard_normal(self.shape[0], dtype=np.float32)
        parts = torch.from_numpy(self @ vector).split(self._sizes)
        smaller = copy.copy(self)
        masks = [
            (part.view(len(parameter), -1) != 0).any(1).cpu() if parameter.ndim > 1 else None
            for part, parameter in zip(parts, self.parameters, strict=True)
        ]
        smaller._rows = [
            None if mask is None or mask.all() else mask.nonzero().flatten().to(parameter.device)
            for mask, parameter in zip(masks, self.parameters, strict=True)
        ]
        smaller._sizes = [
            parameter.numel() if rows is None else len(rows) * parameter[0].numel()
            for rows, parameter in zip(smaller._rows, self.parameters, strict=True)
        ]
        smaller.used = np.concatenate(
            [
                np.ones(parameter.numel(), dtype=bool) if mask is None else mask.numpy().repeat(parameter[0].numel())
                for mask, parameter in zip(masks, self.parameters, strict=True)
            ]
        )
        smaller.shape = (sum(smaller._sizes),) * 2
        return smaller

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        self.products += 1
        parts = torch.from_numpy(np.ascontiguousarray(vector).ravel()).split(self._sizes)
        seconds: Sequence[torch.Tensor | None] = [None] * len(parts)
        if self._gradients:
            directions = [self._widened(parts[i], i) for i in self._gradients]
            seconds = torch.autograd.grad(
                list(self._gradients.values()), self.parameters, directions, retain_graph=True, allow_unused=True
            )
        product = np.zeros(self.shape[0], dtype=self.dtype)
        target = torch.from_numpy(product).split(self._sizes)
        for second, rows, part in zip(seconds, self._rows, target, strict=True):
            if second is not None:
                part.copy_((second if rows is None else second[rows]).detach().flatten())
        if not np.isfinite(product).all():
            raise TrituneError("the second derivative of the loss is not finite: there is no curvature")
        return product

    def _widened(self, part: torch.Tensor, index: int) -> torch.Tensor:
        """The direction of a parameter: the rows in use as `part` says, zero elsewhere."""
        like, rows = self._gradients[index], self._rows[index]
        if rows is None:
            return part.view_as(like).to(like)
        whole = torch.zeros_like(like)
        whole[rows] = part.view(len(rows), *like.shape[1:]).to(like)
        return whole

    def _adjoint(self) -> "Hessian":
        return self


def top_eigenvalues(operator: LinearOperator, count: int, seed: Seed = 0, tolerance: float = 1e-7) -> np.ndarray:
    """The `count` eigenvalues of largest magnitude, of either sign, by implicitly restarted Lanczos (ARPACK).

    Memory: 2 * count + 1 vectors (at least 20) in the operator's precision, or float64 below a tolerance of 1e-4.

    Args:
        operator: symmetric, (size, size).
        count: 1 to size.
        seed: of the start vector.
        tolerance: an eigenvalue counts as found when its residual |Hv - λv| is below this share of |λ|. The error of
            an eigenvalue that stands apart from the others is about the square of that.

    Returns:
        (count,), largest magnitude first.

    Raises:
        TrituneError: `count` is out of range, or the eigenvalues do not converge.

    >>> from scipy.sparse.linalg import aslinearoperator
    >>> top_eigenvalues(aslinearoperator(np.diag([1.0, -3.0, 2.0])), 2)
    array([-3.,  2.])
    """
    size = operator.shape[0]
    check_count(count, size)
    start = np.random.default_rng(seed).standard_normal(size)
    precise = _with_precision(operator, operator.dtype if tolerance >= _SINGLE else np.float64)
    if count >= size - 1 or size <= _DENSE:
        matrix = operator @ np.eye(size)
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    elif not (first := operator @ start).any():
        values = np.zeros(count)
    else:
        try:
            # The product that is there already is as good a start as any, and one step ahead.
            values = eigsh(
                precise,
                count,
                which="LM",
                v0=(first / np.linalg.norm(first)).astype(precise.dtype),
                tol=tolerance,
                maxiter=_RESTARTS,
                return_eigenvectors=False,
            ).astype(np.float64)
        except ArpackError as error:
            reason = " ".join(str(error).split())
            raise TrituneError(
                f"the eigenvalues do not converge ({reason}); ask for fewer, or compute in float64"
            ) from None
    return values[np.argsort(-np.abs(values), kind="stable")][:count]


def check_count(count: int, size: int) -> None:
    """Raise TrituneError unless a matrix of that size has so many eigenvalues, at least one."""
    if not 1 <= count <= size:
        raise TrituneError(f"{count} eigenvalues of {size} parameters; ask for 1 to {size}")


def _with_precision(operator: LinearOperator, dtype: np.dtype | type) -> LinearOperator:
    """The operator with vectors of that precision."""
    if operator.dtype == dtype:
        return operator
    return LinearOperator(operator.shape, matvec=lambda vector: (operator @ vector).astype(dtype), dtype=dtype)


def both_ends(
    operator: LinearOperator, top: np.ndarray, seed: Seed = 0, tolerance: float = 1e-7
) -> tuple[float, float]:
    """The smallest and the largest eigenvalue.

    One of them is the first of `top`, the other is in it too if the signs differ. If they do not, the other is found as
    the largest in magnitude of the operator shifted by the known one: so its error is relative to the whole range, and
    a cluster of eigenvalues around zero does no harm.

    Args:
        operator: symmetric, (size, size).
        top: what `top_eigenvalues` returned for it.
        seed, tolerance: as there.
    """
    known, size = float(top[0]), operator.shape[0]
    if len(top) == size or (top.min() < 0 < top.max()):
        return float(top.min()), float(top.max())
    shifted = LinearOperator(
        (size, size), matvec=lambda v: operator @ v.ravel() - v.ravel() * v.dtype.type(known), dtype=operator.dtype
    )
    other = known + float(top_eigenvalues(shifted, 1, seed, tolerance)[0])
    return min(known, other), max(known, other)


def rademacher(size: int, generator: np.random.Generator) -> np.ndarray:
    """(size,) of -1 and +1, each with probability one half."""
    return generator.integers(0, 2, size) * 2.0 - 1.0


def hutchinson(operator: LinearOperator, count: int, seed: Seed = 0, used: np.ndarray | None = None) -> np.ndarray:
    """`count` independent, unbiased estimates v'Hv of the trace, v of random signs (Hutchinson 1990).

    Args:
        operator: symmetric, (size, size).
        count: of estimates.
        seed: of the signs.
        used: bool, which entries of a longer vector the operator acts on, see `Hessian.used`. The signs are drawn for
            all of them, so that they do not depend on which are in use; None for an operator that acts on all.

    Returns:
        (count,)

    >>> from scipy.sparse.linalg import aslinearoperator
    >>> hutchinson(aslinearoperator(np.diag([1.0, -3.0, 5.0])), 2)
    array([3., 3.])
    """
    generator = np.random.default_rng(seed)
    used = np.ones(operator.shape[0], dtype=bool) if used is None else used
    probes = (rademacher(len(used), generator)[used] for _ in range(count))
    return np.array([probe @ (operator @ probe).astype(np.float64) for probe in probes])
