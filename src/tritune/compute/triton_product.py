"""The product of 8-bit codes and packed 2-bit weights on a GPU, straight from the bytes of a packed checkpoint.

Importing this file imports triton, which comes with torch's builds for GPUs and is no dependency of tritune's.

Weights stay packed in the GPU's memory and on the way from there: a program reads the bytes of its tile once and makes
codes of them in registers. Sums are int32, exact in whatever order they are taken.
"""

import torch
import triton
from triton import language as tl

# Columns of a step of the sum, and rows of the weight that a program multiplies. Not tuned: no GPU has run them yet.
_COLUMNS, _WEIGHT_ROWS = 128, 64
# Rows of the input: no matrix instruction takes fewer than the first, and with more than the second registers spill.
_FEWEST_ROWS, _MOST_ROWS = 16, 64


def packed_product(
    codes: torch.Tensor,
    scale: torch.Tensor,
    packed: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    first: int,
    step: int,
) -> torch.Tensor:
    """Sums of codes * scale * weight_scale + bias, rounded once after each of these; all tensors on one device.

    Args:
        codes: of the input, int8, (rows, columns).
        scale: of the input, float32: one element for each row, or one for all.
        packed: 2-bit fields as `checkpoints.packing` lays them out, uint8, (out features, a quarter of the columns,
            rounded up); a field stands for the code first + step * field.
        weight_scale: float32: one element for each out feature, or one for all.
        bias: float32, (out features), or None.
        first, step: what a field means.

    Returns:
        float32, (rows, out features).
    """
    (rows, columns), features = codes.shape, len(packed)
    product = torch.empty(rows, features, device=codes.device)
    if not product.numel():
        return product
    tile_rows = min(max(triton.next_power_of_2(rows), _FEWEST_ROWS), _MOST_ROWS)
    grid = (triton.cdiv(rows, tile_rows), triton.cdiv(features, _WEIGHT_ROWS))
    with torch.cuda.device_of(codes):  # triton launches on the device in force, wherever tensors lie
        _multiply[grid](
            codes.contiguous(),
            scale.contiguous(),
            packed.contiguous(),
            weight_scale.contiguous(),
            bias if bias is None else bias.contiguous(),
            product,
            *(rows, features, columns, packed.shape[1]),
            *(int(scale.numel() > 1), int(weight_scale.numel() > 1)),
            first=first,
            step=step,
            tile_rows=tile_rows,
            tile_features=_WEIGHT_ROWS,
            tile_bytes=_COLUMNS // 4,
            enable_fp_fusion=False,  # a fused multiply and add would round once where torch rounds twice
        )
    return product


@triton.jit
def _multiply(
    codes,
    scale,
    packed,
    weight_scale,
    bias,
    product,
    rows,
    features,
    columns,
    row_bytes,
    scale_stride,
    weight_scale_stride,
    first: tl.constexpr,
    step: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_features: tl.constexpr,
    tile_bytes: tl.constexpr,
):
    """One tile of the product."""
    # 64 bits: rows * columns may be more than 32 hold.
    row = (tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)).to(tl.int64)
    feature = (tl.program_id(1) * tile_features + tl.arange(0, tile_features)).to(tl.int64)
    byte = tl.arange(0, tile_bytes)
    column = tl.arange(0, 4 * tile_bytes)
    is_row, is_feature = row < rows, feature < features
    sums = tl.zeros((tile_rows, tile_features), tl.int32)
    for start in range(0, row_bytes, tile_bytes):
        at = packed + feature[:, None] * row_bytes + (start + byte)[None, :]
        fields = tl.load(at, is_feature[:, None] & (start + byte < row_bytes)[None, :], other=0)
        even = tl.interleave(fields & 3, (fields >> 4) & 3)  # fields 0 and 2 of every byte
        odd = tl.interleave((fields >> 2) & 3, fields >> 6)  # 1 and 3
        weights = tl.interleave(even, odd).to(tl.int8) * step + first
        at = codes + row[:, None] * columns + (4 * start + column)[None, :]
        # Beyond the last column there are zeros, whatever the weight's padding stands for.
        values = tl.load(at, is_row[:, None] & (4 * start + column < columns)[None, :], other=0)
        sums = tl.dot(values, tl.trans(weights), sums, out_dtype=tl.int32)
    result = sums.to(tl.float32) * tl.load(scale + row * scale_stride, is_row, other=0)[:, None]
    result *= tl.load(weight_scale + feature * weight_scale_stride, is_feature, other=0)[None, :]
    if bias is not None:
        result += tl.load(bias + feature, is_feature, other=0)[None, :]
    tl.store(product + row[:, None] * features + feature[None, :], result, is_row[:, None] & is_feature[None, :])
