"""Codes to bytes and back: the layout of packed weights.

A row of codes is padded with the code 0 to a whole number of bytes, so that rows can be gathered before they are
unpacked. Every code plus its offset is a field of 2, 4 or 8 bits; the first code of a byte lies in its lowest bits:

    width 2 (offset 1)      bit  7 6 | 5 4 | 3 2 | 1 0        fields 00 = -1, 01 = 0, 10 = +1; 11 is refused
                            code  3  |  2  |  1  |  0

    width 4 (offset 8)      bit  7 6 5 4 | 3 2 1 0            field = code + 8
                            code    1    |    0

    width 8 (offset 128)    one code a byte                   field = code + 128

    a row of n codes takes ceil(n * width / 8) bytes: packed is (rows, ceil(n * width / 8))

Codes of 3 bits are stored in 4, those of 5 to 7 in 8: fields never cross a byte, and unpacking is a shift and a mask.
"""

import torch

from .errors import TrituneError

# Bits of a code to bits of its field. Another width needs its row here and nothing else, as long as it divides 8.
STORED_BITS = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}


def stored_bits(bits: int) -> int:
    """Width of the field that holds a code of so many bits.

    >>> stored_bits(3)
    4
    """
    return STORED_BITS[bits]


def packed_columns(columns: int, bits: int) -> int:
    """Bytes of a packed row of so many codes.

    >>> packed_columns(5, bits=2)
    2
    """
    return -(-columns * stored_bits(bits) // 8)


def offset(bits: int) -> int:
    """What makes the smallest code not negative; the ternary codes need no more than 1."""
    return 1 if bits == 2 else 2 ** (stored_bits(bits) - 1)


def _shifts(bits: int, device: torch.device) -> torch.Tensor:
    return torch.arange(0, 8, stored_bits(bits), dtype=torch.uint8, device=device)


def _largest(codes: torch.Tensor) -> int:
    """The largest magnitude; int8 does not hold that of -128."""
    return max(codes.amax().item(), -codes.amin().item()) if codes.numel() else 0


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes to bytes.

    Args:
        codes: int8, (..., columns), each of magnitude at most 2^(bits-1) - 1.
        bits: width of a code, 2 to 8.

    Returns:
        uint8, (..., ceil(columns * stored bits / 8)).

    Raises:
        TrituneError: a code does not fit.

    >>> pack(torch.tensor([[1, 0, -1, 0, 1]], dtype=torch.int8), bits=2)
    tensor([[70, 86]], dtype=torch.uint8)
    """
    if not codes.is_meta and _largest(codes) > 2 ** (bits - 1) - 1:
        raise TrituneError(f"codes of {bits} bits have a magnitude of at most {2 ** (bits - 1) - 1}")
    width, columns = stored_bits(bits), codes.shape[-1]
    padding = packed_columns(columns, bits) * (8 // width) - columns
    fields = torch.nn.functional.pad(codes, (0, padding)).view(torch.uint8) + offset(bits)  # modulo 256
    fields = fields.unflatten(-1, (-1, 8 // width)) << _shifts(bits, codes.device)
    return fields.sum(-1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Bytes to codes: the inverse of `pack`.

    Args:
        packed: uint8, (..., ceil(columns * stored bits / 8)).
        bits: width of a code, 2 to 8.
        columns: codes of a row.

    Returns:
        int8, (..., columns).

    >>> unpack(torch.tensor([[70, 86]], dtype=torch.uint8), bits=2, columns=5)
    tensor([[ 1,  0, -1,  0,  1]], dtype=torch.int8)
    """
    width = stored_bits(bits)
    fields = packed if width == 8 else (packed[..., None] >> _shifts(bits, packed.device)) & (2**width - 1)
    codes = (fields - offset(bits)).view(torch.int8)  # modulo 256
    return (codes if width == 8 else codes.flatten(-2))[..., :columns]


def check_packed(packed: torch.Tensor, bits: int, columns: int, name: str) -> None:
    """Check that `packed` is something that `pack` could have written.

    Args:
        packed: uint8, (rows, bytes of a row).
        bits, columns: as `unpack` takes them.
        name: of the weight, for the message.

    Raises:
        TrituneError: its row length is wrong, it holds a code that does not exist (0b11 for ternary), or the padding is
            not 0.
    """
    length = packed_columns(columns, bits)
    if packed.dtype is not torch.uint8 or packed.shape[-1] != length:
        raise TrituneError(f"{name}: packed rows of {columns} codes of {bits} bits must be {length} bytes long")
    codes = unpack(packed, bits, length * 8 // stored_bits(bits))
    largest = 2 ** (bits - 1) - 1
    if _largest(codes) > largest:
        raise TrituneError(f"{name}: holds codes outside -{largest} to {largest}; the file is damaged")
    if codes[..., columns:].any():
        raise TrituneError(f"{name}: the padding of its packed rows is not 0; the file is damaged")
