"""Codes to bytes and back, against the drawn layout read bit by bit; what is stored restores what was computed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from test_quantizer_laws import started
from tritune import TrituneError
from tritune.checkpoints.packing import (
    STORED_BITS,
    check_packed,
    group_of,
    pack,
    packed_columns,
    symmetric_codes,
    unpack,
)
from tritune.quant import QUANTIZERS, Granularity, make_quantizer

TENSOR, ROW = Granularity.TENSOR, Granularity.ROW
# Every packable quantizer of weights: name, bits and granularity.
CASES = {
    f"{name}-{bits}-{granularity}": (name, bits, granularity)
    for name, kind in QUANTIZERS.items()
    for bits in kind.weight_bits
    if make_quantizer(name, bits=bits).packable
    for granularity in (TENSOR, ROW)
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# Bits and the codes of that width that some quantizer has.
CODES = {(bits, make_quantizer(name, bits=bits).codes) for name, bits, _ in CASES.values()}
# The smallest code and where it is counted from, by hand.
FIRST = {
    (1, range(-1, 2, 2)): -1,
    (2, range(-1, 2)): -1,
    (2, range(-2, 2)): -2,
    (2, range(-3, 4, 2)): -3,
    (3, range(-3, 4)): -4,
    (3, range(-4, 4)): -4,
    (3, range(-7, 8, 2)): -7,
    (4, range(-7, 8)): -8,
    (4, range(-8, 8)): -8,
    (4, range(-15, 16, 2)): -15,
    **{(bits, symmetric_codes(bits)): -128 for bits in range(5, 9)},
    **{(bits, range(-(2 ** (bits - 1)), 2 ** (bits - 1))): -128 for bits in range(5, 9)},
}
every_codes = pytest.mark.parametrize("kind", sorted(FIRST, key=str), ids=str)


def packed_by_hand(row: list[int], bits: int, every: range) -> list[int]:
    """The layout of the module's docstring: one bit after the other, the lowest first, in whole groups."""
    width = {1: 1, 2: 2, 3: 3, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}[bits]
    group = {1: 8, 2: 4, 3: 8, 4: 2, 8: 1}[width]
    first = FIRST[bits, every]
    row = row + [0 if 0 in every else first] * (-len(row) % group)
    stream = [(code - first) // every.step >> place & 1 for code in row for place in range(width)]
    return [sum(bit << place for place, bit in enumerate(stream[i : i + 8])) for i in range(0, len(stream), 8)]


@st.composite
def rows_of_codes(draw):
    bits, every = draw(st.sampled_from(sorted(FIRST, key=str)))
    columns = draw(st.integers(1, 19))
    return (
        bits,
        every,
        draw(st.lists(st.lists(st.sampled_from(every), min_size=columns, max_size=columns), min_size=1, max_size=3)),
    )


def test_every_kind_of_codes_is_in_the_table():
    assert set(FIRST) == CODES


@given(rows_of_codes())
def test_bytes_are_those_of_the_drawing(drawn):
    bits, every, rows = drawn
    codes = torch.tensor(rows, dtype=torch.int8)
    packed = pack(codes, bits, every)
    assert packed.dtype is torch.uint8 and packed.tolist() == [packed_by_hand(row, bits, every) for row in rows]
    assert packed.shape[-1] == packed_columns(codes.shape[-1], bits)
    restored = unpack(packed, bits, codes.shape[-1], every)
    assert restored.dtype is torch.int8 and torch.equal(restored, codes)
    check_packed(packed, bits, codes.shape[-1], "w", every)


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        (2, [1, 0, -1, 0, 1], [0b01_00_01_10, 0b01_01_01_10]),
        (4, [-7, 7, 1], [0b1111_0001, 0b1000_1001]),
        (5, [-15, 15], [113, 143]),
        (8, [-127, 0, 127], [1, 128, 255]),
    ],
)
def test_bytes_of_ternary_and_uniform_codes_are_for_ever(bits, codes, expected):
    codes = torch.tensor(codes, dtype=torch.int8)
    assert pack(codes, bits).tolist() == expected
    assert torch.equal(unpack(pack(codes, bits), bits, len(codes)), codes)


def test_rows_are_gathered_before_they_are_unpacked():
    ids = torch.tensor([[3, 3, 49], [0, 1, 2]])
    for bits, every in FIRST:
        codes = torch.tensor(every, dtype=torch.int8)[torch.randint(0, len(every), (50, 13))]
        assert torch.equal(unpack(pack(codes, bits, every)[ids], bits, 13, every), codes[ids])


@every_codes
def test_every_field_is_a_code_or_refused(kind):
    """All 256 bytes: those that `pack` can write come back, all others are refused."""
    bits, every = kind
    width, group = STORED_BITS[bits], group_of(bits)
    columns = group.codes
    for byte in range(256):
        packed = torch.full((1, group.bytes), byte, dtype=torch.uint8)
        stream = "".join(f"{byte:08b}" for _ in range(group.bytes))
        fields = [int(stream[i : i + width], 2) for i in range(0, len(stream), width)]
        codes = unpack(packed, bits, columns, every)
        if all(FIRST[kind] + every.step * field in every for field in fields):
            check_packed(packed, bits, columns, "w", every)
            assert codes[0].tolist() == [FIRST[kind] + every.step * field for field in reversed(fields)]
            assert torch.equal(pack(codes, bits, every), packed)
        else:
            with pytest.raises(TrituneError, match="w: holds codes outside"):
                check_packed(packed, bits, columns, "w", every)
            with pytest.raises(TrituneError, match=f"codes of {bits} bits"):
                pack(codes, bits, every)


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
    odd = pack(torch.tensor([[3, -3, 1]], dtype=torch.int8), 2, range(-3, 4, 2))
    assert odd.tolist() == [[0b00_10_00_11]]
    with pytest.raises(TrituneError, match="is not -3"):
        check_packed(odd ^ 0b01_000000, 2, 3, "w", range(-3, 4, 2))
    with pytest.raises(TrituneError, match="the odd ones from -3 to 3"):
        pack(torch.tensor([[2]], dtype=torch.int8), 2, range(-3, 4, 2))


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


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_what_is_stored_restores_what_training_computed(case, seed):
    torch.manual_seed(seed)
    for name, weight in weights().items():
        quantizer = started(case, weight)
        codes, scale = quantizer.store(weight)
        assert codes.dtype is torch.int8 and scale.shape in (
            (1, 1) if quantizer.granularity is TENSOR else (len(weight), 1),
        )
        assert torch.equal(codes, quantizer.quantize(weight)[0])
        frozen = quantizer.frozen()
        assert (frozen.bits, frozen.codes) == (quantizer.bits, quantizer.codes) and not list(
            getattr(frozen, "parameters", list)()
        )
        codes = unpack(pack(codes, quantizer.bits, quantizer.codes), frozen.bits, weight.shape[1], frozen.codes)
        assert torch.equal(frozen.restore(codes, scale).to(weight.dtype), quantizer.fake(weight)[0]), name
        for own, expected in zip(
            frozen.restore_integers(codes, scale, torch.float32),
            quantizer.integers(weight, torch.float32),
            strict=False,
        ):
            assert torch.equal(own, expected), name
        torch.testing.assert_close(
            (codes * scale).float(), quantizer.fake(weight.float())[0], rtol=1e-6, atol=0, msg=f"{name}: not a scale"
        )
