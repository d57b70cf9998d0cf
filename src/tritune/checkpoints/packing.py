"""Codes to bytes and back: the layout of packed weights.

Every code becomes a field of 1, 2, 3, 4 or 8 bits. The fields of a row lie one after the other, from the lowest bit of
its first byte on, and the row ends with a whole group of bytes, so that rows can be gathered before they are unpacked:

    width 1     bit  7 | 6 | 5 | 4 | 3 | 2 | 1 | 0        a group is 1 byte, 8 codes
                code 7 | 6 | 5 | 4 | 3 | 2 | 1 | 0

    width 2     bit  7 6 | 5 4 | 3 2 | 1 0                a group is 1 byte, 4 codes
                code  3  |  2  |  1  |  0

    width 3     bit  23 22 21 | ... | 5 4 3 | 2 1 0       a group is 3 bytes, 8 codes; bits 0 to 7 are those of its
                code    7     | ... |   1   |   0         first byte, 8 to 15 of its second, 16 to 23 of its third

    width 4     bit  7 6 5 4 | 3 2 1 0                    a group is 1 byte, 2 codes
                code    1    |    0

    width 8     one code a byte

What a field means follows from the codes that the quantizer has, which are evenly spaced:

    code = first + step * field

    codes                                       step    first
    -1, 0, 1 (ternary)                          1       -1: fields 0b00, 0b01, 0b10; 0b11 is refused
    others with 0 among them                    1       -2^(width - 1)
    odd ones: -1, 1 or -3, -1, 1, 3 and so on   2       the smallest

A row of n codes is filled up with the code 0, or with `first` where 0 is no code. Codes of 5 to 7 bits take 8.
"""

import math
from typing import NamedTuple

import torch

from ..errors import TrituneError

# Bits of a code to bits of its field. Another width needs its row here and nothing else, up to 8.
STORED_BITS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}


class Group(NamedTuple):
    """The fewest whole bytes that whole fields fill."""

    bytes: int
    codes: int


def group_of(bits: int) -> Group:
    """The group of codes of so many bits.

    >>> group_of(3)
    Group(bytes=3, codes=8)
    """
    bits_of_group = math.lcm(STORED_BITS[bits], 8)
    return Group(bits_of_group // 8, bits_of_group // STORED_BITS[bits])


def packed_columns(columns: int, bits: int) -> int:
    """Bytes of a packed row of so many codes.

    >>> packed_columns(5, bits=2)
    2
    """
    group = group_of(bits)
    return -(-columns // group.codes) * group.bytes


def symmetric_codes(bits: int) -> range:
    """The codes of `quant.Ternary` and `quant.Uniform`: as many on either side of 0.

    >>> symmetric_codes(3)
    range(-3, 4)
    """
    return range(1 - 2 ** (bits - 1), 2 ** (bits - 1))


def first_code(bits: int, every: range) -> int:
    """What the field 0 stands for.

    Args:
        bits: width of a code.
        every: the codes of the quantizer.

    >>> first_code(2, range(-1, 2)), first_code(4, range(-7, 8)), first_code(2, range(-3, 4, 2))
    (-1, -8, -3)
    """
    return every.start if every.step == 2 or len(every) == 3 else -(2 ** (STORED_BITS[bits] - 1))


def pack(codes: torch.Tensor, bits: int, every: range | None = None) -> torch.Tensor:
    """Codes to bytes.

    Args:
        codes: int8, (..., columns), each one of `every`.
        bits: width of a code, 1 to 8.
        every: the codes of the quantizer; None for `symmetric_codes`.

    Returns:
        uint8, (..., `packed_columns`).

    Raises:
        TrituneError: a code is not one of them.

    >>> pack(torch.tensor([[1, 0, -1, 0, 1]], dtype=torch.int8), bits=2)
    tensor([[70, 86]], dtype=torch.uint8)
    """
    every = symmetric_codes(bits) if every is None else every
    if not codes.is_meta and not _are(codes, every):
        raise TrituneError(f"codes of {bits} bits must be among {_named(every)}")
    width, group, columns = STORED_BITS[bits], group_of(bits), codes.shape[-1]
    padded = torch.nn.functional.pad(codes, (0, -columns % group.codes), value=_padding(bits, every))
    fields = (padded.short() - first_code(bits, every)) // every.step
    fields = fields.unflatten(-1, (-1, group.codes)).int() << _steps(group.codes, width, codes.device)
    words = fields.sum(-1, dtype=torch.int32)
    return (words[..., None] >> _steps(group.bytes, 8, codes.device)).bitwise_and_(255).flatten(-2).to(torch.uint8)


def unpack(packed: torch.Tensor, bits: int, columns: int, every: range | None = None) -> torch.Tensor:
    """Bytes to codes: the inverse of `pack`.

    Args:
        packed: uint8, (..., `packed_columns`).
        bits: width of a code, 1 to 8.
        columns: codes of a row.
        every: the codes of the quantizer; None for `symmetric_codes`.

    Returns:
        int8, (..., columns).

    >>> unpack(torch.tensor([[70, 86]], dtype=torch.uint8), bits=2, columns=5)
    tensor([[ 1,  0, -1,  0,  1]], dtype=torch.int8)
    """
    every = symmetric_codes(bits) if every is None else every
    width, group = STORED_BITS[bits], group_of(bits)
    if group.bytes > 1:
        packed = packed.unflatten(-1, (-1, group.bytes)).int() << _steps(group.bytes, 8, packed.device)
        packed = packed.sum(-1, dtype=torch.int32)
    if width < 8:
        fields = packed[..., None] >> _steps(group.codes, width, packed.device).to(packed.dtype)
        packed = (fields & (2**width - 1)).flatten(-2).to(torch.uint8)
    if every.step > 1:
        packed = packed * every.step
    return (packed - (-first_code(bits, every))).view(torch.int8)[..., :columns]  # modulo 256


def check_packed(packed: torch.Tensor, bits: int, columns: int, name: str, every: range | None = None) -> None:
    """Check that `packed` is something that `pack` could have written.

    Args:
        packed: uint8, (rows, bytes of a row).
        bits, columns, every: as `unpack` takes them.
        name: of the weight, for the message.

    Raises:
        TrituneError: its row length is wrong, it holds a code that does not exist (0b11 for ternary), or the padding is
            not what `pack` writes.
    """
    every = symmetric_codes(bits) if every is None else every
    length, group = packed_columns(columns, bits), group_of(bits)
    if packed.dtype is not torch.uint8 or packed.shape[-1] != length:
        raise TrituneError(f"{name}: packed rows of {columns} codes of {bits} bits must be {length} bytes long")
    codes = unpack(packed, bits, length // group.bytes * group.codes, every)
    if not _are(codes, every):
        raise TrituneError(f"{name}: holds codes outside {_named(every)}; the file is damaged")
    padding = _padding(bits, every)
    if (codes[..., columns:] != padding).any():
        raise TrituneError(f"{name}: the padding of its packed rows is not {padding}; the file is damaged")


def _padding(bits: int, every: range) -> int:
    return 0 if 0 in every else first_code(bits, every)


def _are(codes: torch.Tensor, every: range) -> bool:
    """Whether all `codes` are among `every`, whose step is 1 or 2."""
    if not codes.numel():
        return True
    low, high = (bound.item() for bound in torch.aminmax(codes))
    return every[0] <= low and high <= every[-1] and (every.step == 1 or bool((codes & 1 == every.start & 1).all()))


def _named(every: range) -> str:
    return f"{'the odd ones from ' if every.step > 1 else ''}{every[0]} to {every[-1]}"


def _steps(count: int, width: int, device: torch.device) -> torch.Tensor:
    """Where `count` fields of so many bits start."""
    return torch.arange(0, count * width, width, dtype=torch.int32, device=device)
