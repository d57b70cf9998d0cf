"""Codes to bytes and back, against the drawn layout read bit by bit; what is stored restores what was computed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tritune import TrituneError
from tritune.packing import STORED_BITS, check_packed, pack, packed_columns, unpack
from tritune.quant import Granularity, LeastSquaresTernary, Ternary, Uniform

TENSOR, ROW = Granularity.TENSOR, Granularity.ROW
QUANTIZERS = {
    f"{kind.__name__}-{granularity}": kind(granularity=granularity)
    for kind in (Ternary, LeastSquaresTernary)
    for granularity in (TENSOR, ROW)
} | {f"{bits}-{granularity}": Uniform(bits, granularity) for bits in range(3, 9) for granularity in (TENSOR, ROW)}
every_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)


def packed_by_hand(row: list[int], bits: int) -> list[int]:
    """The layout of the module's docstring, one code after the other."""
    width, offset = {2: (2, 1), 3: (4, 8), 4: (4, 8), 5: (8, 128), 6: (8, 128), 7: (8, 128), 8: (8, 128)}[bits]
    row = row + [0] * (-len(row) % (8 // width))
    fields = [code + offset for code in row]
    per_byte = 8 // width
    return [
        sum(field << (width * place) for place, field in enumerate(fields[start : start + per_byte]))
        for start in range(0, len(fields), per_byte)
    ]


@st.composite
def rows_of_codes(draw):
    bits = draw(st.integers(2, 8))
    columns = draw(st.integers(1, 11))
    code = st.integers(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
    return bits, draw(st.lists(st.lists(code, min_size=columns, max_size=columns), min_size=1, max_size=3))


@given(rows_of_codes())
def test_bytes_are_those_of_the_drawing(drawn):
    bits, rows = drawn
    codes = torch.tensor(rows, dtype=torch.int8)
    packed = pack(codes, bits)
    assert packed.dtype is torch.uint8 and packed.tolist() == [packed_by_hand(row, bits) for row in rows]
    assert packed.shape[-1] == packed_columns(codes.shape[-1], bits)
    restored = unpack(packed, bits, codes.shape[-1])
    assert restored.dtype is torch.int8 and torch.equal(restored, codes)
    check_packed(packed, bits, codes.shape[-1], "w")


def test_rows_are_gathered_before_they_are_unpacked():
    codes = torch.randint(-1, 2, (50, 13), dtype=torch.int8)
    ids = torch.tensor([[3, 3, 49], [0, 1, 2]])
    assert torch.equal(unpack(pack(codes, 2)[ids], 2, 13), codes[ids])


@pytest.mark.parametrize("bits", STORED_BITS)
def test_every_field_is_a_code_or_refused(bits):
    """All 256 bytes: those that `pack` can write come back, all others are refused."""
    for byte in range(256):
        packed = torch.tensor([[byte]], dtype=torch.uint8)
        codes = unpack(packed, bits, 8 // STORED_BITS[bits])
        if codes.to(torch.int16).abs().amax() <= 2 ** (bits - 1) - 1:
            check_packed(packed, bits, codes.shape[-1], "w")
            assert torch.equal(pack(codes, bits), packed)
        else:
            with pytest.raises(TrituneError, match="w: holds codes outside"):
                check_packed(packed, bits, codes.shape[-1], "w")
            with pytest.raises(TrituneError, match=f"codes of {bits} bits"):
                pack(codes, bits)


def test_what_pack_did_not_write_is_refused():
    packed = pack(torch.ones(2, 5, dtype=torch.int8), 2)
    with pytest.raises(TrituneError, match="must be 3 bytes long"):
        check_packed(packed, 2, 9, "w")
    with pytest.raises(TrituneError, match="must be 2 bytes long"):
        check_packed(packed.to(torch.int16), 2, 5, "w")
    packed[1, 1] ^= 0b0100
    with pytest.raises(TrituneError, match="padding"):
        check_packed(packed, 2, 5, "w")
    packed[1, 1] = 0b01010111
    with pytest.raises(TrituneError, match="codes outside -1 to 1"):
        check_packed(packed, 2, 5, "w")


def weights() -> dict[str, torch.Tensor]:
    """Ordinary weights, and the nasty ones: a row of zeros, ties, beyond the clip, the smallest and one column."""
    normal = torch.randn(7, 33)
    normal[2] = 0
    return {
        "normal": normal,
        "clipped": 4 * normal,
        "small": 1e-20 * normal,
        "ties": torch.full((3, 8), 0.5),
        "zeros": torch.zeros(3, 8),
        "column": torch.randn(5, 1),
        "bfloat16": normal.to(torch.bfloat16),
    }


@every_quantizer
@pytest.mark.parametrize("seed", range(3))
def test_what_is_stored_restores_what_training_computed(quantizer, seed):
    torch.manual_seed(seed)
    for name, weight in weights().items():
        codes, scale = quantizer.store(weight)
        assert codes.dtype is torch.int8 and scale.shape == (
            (1, 1) if quantizer.granularity is TENSOR else (len(weight), 1)
        )
        assert torch.equal(codes, quantizer.quantize(weight)[0])
        packed = pack(codes, quantizer.bits)
        codes = unpack(packed, quantizer.bits, weight.shape[1])
        assert torch.equal(quantizer.restore(codes, scale).to(weight.dtype), quantizer.fake(weight)[0]), name
        for own, expected in zip(
            quantizer.restore_integers(codes, scale, torch.float32),
            quantizer.integers(weight, torch.float32),
            strict=False,
        ):
            assert torch.equal(own, expected), name
        torch.testing.assert_close(
            (codes * scale).float(), quantizer.fake(weight.float())[0], rtol=1e-6, atol=0, msg=f"{name}: not a scale"
        )
