"""`Product`: a packed Linear in the native library, bit for bit `compute.products.linear`.

Both multiply codes exactly and the sums by the scales in the same order. That holds in float32 where the input has a
scale per token. With a scale per tensor the published arithmetic multiplies floats, whose sums depend on their order:
no product of codes gives their last bit, so there torch multiplies, as in training.
"""

from typing import TypeGuard

import numpy as np
import torch

from ..engine.linear import Linear
from ..quant import Granularity, Quantizer, Uniform
from .attached import Attached, Tensors, is_plain, is_plain_call
from .packed import PackedLinear
from .packing import STORED_BITS, first_code


class Product(Attached):
    """What `PackedLinear.native` calls.

    Args:
        module: of 2 bits, on the CPU, in float32.

    Raises:
        TrituneError: there is no native library, or no instruction set of the name in `TRITUNE_ISA`.
    """

    def __init__(self, module: PackedLinear):
        quantizer = module.weight_quantizer
        # Of no codes at all it gives their scale.
        none = torch.empty(module.out_features, 0, dtype=torch.int8)
        scale = quantizer.restore_integers(none, module.weight_scale, torch.float32)[1].float()
        bias = module.bias
        self._tensors = Tensors([module])
        self._linear = Linear(
            module.packed.numpy(),
            module.in_features,
            quantizer.codes.step,
            first_code(quantizer.bits, quantizer.codes),
            np.broadcast_to(scale.flatten().numpy(), (module.out_features,)),
            None if bias is None else bias.detach().numpy(),
        )

    def __call__(self, module: PackedLinear, values: torch.Tensor) -> torch.Tensor | None:
        """(..., in_features) to (..., out_features), or None where torch must compute it.

        Args:
            module: that this lies on.
            values: its input.
        """
        quantizer = module.input_quantizer
        if not (is_plain(values) and values.dtype is torch.float32 and values.ndim > 1 and _serves(quantizer)):
            return None
        if (
            not values.numel()
            or values.shape[-1] != self._linear.columns
            or not is_plain_call()
            or not self._tensors.are_unchanged()
        ):
            return None
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (values, *self._tensors.all)):
            return None
        rows = values.detach().reshape(-1, self._linear.columns).numpy()
        found = self._linear.run(rows, quantizer.clip, quantizer.largest_code, torch.get_num_threads())
        return torch.from_numpy(found).view(*values.shape[:-1], -1)


def can_be_native(module: PackedLinear) -> bool:
    """Whether a packed Linear has such a product."""
    return STORED_BITS[module.weight_quantizer.bits] == 2 and _serves(module.input_quantizer)


def _serves(quantizer: Quantizer | None) -> TypeGuard[Uniform]:
    # The exact type: a subclass has another way to find codes.
    return type(quantizer) is Uniform and quantizer.granularity is Granularity.TOKEN
