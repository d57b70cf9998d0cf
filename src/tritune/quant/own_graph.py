"""Quantizers that build their own autograd graph.

The fast path of `Quantizer` knows one gradient: the identity inside the clip. A quantizer whose gradient is another
one, or goes to more than the latent values, writes its forward pass in differentiable operations instead.
"""

from abc import abstractmethod

import torch

from .quantizer import Peak, Quantizer
from .ste import pass_through


class OwnGraph(Quantizer):
    """A quantizer whose call returns values with their gradient."""

    @abstractmethod
    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """`fake_quantize`: float of any shape to float."""

    def operand(self, values: torch.Tensor, dtype: torch.dtype | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What enters a product, and the scale that its result still needs.

        Args:
            values: any shape.
            dtype: that codes are wanted in; None asks for dequantized values.
        """
        quantized = self(values)
        return quantized if dtype is None else quantized.to(dtype), None


class CodesWithGradient(OwnGraph):
    """A quantizer that gives codes and scale, both with their gradient; values are their product.

    With r the rounding, seen as the identity by the gradient, values are scale * r(codes before rounding): whatever the
    codes before rounding and the scale depend on gets its gradient.
    """

    @abstractmethod
    def _graph(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes, shaped like `values`, and the broadcastable scale, in float32 or wider."""

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """`fake_quantize`: float of any shape to float."""
        codes, scale = self._graph(values)
        return (codes * scale).to(values.dtype)

    def operand(self, values: torch.Tensor, dtype: torch.dtype | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Values, or codes in `dtype` with their scale."""
        return (self(values), None) if dtype is None else self.coded(values, dtype)

    def coded(self, values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes in `dtype`, shaped like `values`, with all of the gradient, and their scale, without one."""
        codes, scale = self._graph(values)
        # The scale's gradient, too, goes through the codes: beside them it would be the difference of two large sums.
        in_units = (codes * scale) / scale.detach()
        return pass_through(in_units, codes).to(dtype), scale.detach()

    @torch.no_grad()
    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Peak]:
        return *self._graph(values), None
