"""One packed weight of 2 bits in the native library: arrays in, arrays out."""

import ctypes

import numpy as np

from ..errors import TrituneError
from .binding import isa_wanted, library

_MESSAGE_BYTES = 1000


class Linear:
    """Products with one weight, code = first + step * field; any number of threads may call it at once.

    Args:
        packed: the weight as a checkpoint holds it, uint8, (rows, ceil(columns / 4)); it is copied.
        columns: codes of a row.
        step, first: what the fields mean, see `checkpoints.packing`.
        scales: float32, (rows).
        bias: float32, (rows), or None.
        isa: the instruction set to use; None takes the one that the environment variable `TRITUNE_ISA` names, or else
            the best one.

    Raises:
        TrituneError: the library is not there, or the instruction set does not run here.
    """

    def __init__(
        self,
        packed: np.ndarray,
        columns: int,
        step: int,
        first: int,
        scales: np.ndarray,
        bias: np.ndarray | None,
        isa: str | None = None,
    ):
        self.rows, self.columns = len(packed), columns
        if packed.shape[1] != -(-columns // 4) or any(len(of) != self.rows for of in (scales, bias) if of is not None):
            raise TrituneError(f"a packed weight of {self.rows} rows and {columns} columns, and parts of other lengths")
        self._library = library()
        wanted, message = isa or isa_wanted(), ctypes.create_string_buffer(_MESSAGE_BYTES)
        # Named, so that they live until the call has returned.
        fields, *floats = (
            np.ascontiguousarray(packed, np.uint8),
            *(None if of is None else np.ascontiguousarray(of, np.float32) for of in (scales, bias)),
        )
        self._pointer = self._library.tritune_linear_new(
            fields.ctypes.data,
            self.rows,
            columns,
            step,
            first,
            *(None if of is None else of.ctypes.data for of in floats),
            wanted.encode() if wanted else None,
            message,
            _MESSAGE_BYTES,
        )
        if not self._pointer:
            raise TrituneError(message.value.decode(errors="replace"))

    def __del__(self):
        if getattr(self, "_pointer", None):
            self._library.tritune_linear_free(self._pointer)

    def run(self, values: np.ndarray, clip: float, largest: int, threads: int) -> np.ndarray:
        """Values @ weight.T + bias, the values in codes with a scale per row.

        Args:
            values: float32, (tokens, columns).
            clip: values are clipped to plus or minus this; infinite for no clip.
            largest: code of the largest value: 127 for 8 bits.
            threads: how many share the work.

        Returns:
            float32, (tokens, rows).

        Raises:
            TrituneError: the values have another shape or dtype, or memory is short.
        """
        if values.ndim != 2 or values.shape[1] != self.columns or values.dtype != np.float32:
            raise TrituneError(f"values must be float32 (tokens, {self.columns}), got {values.dtype} {values.shape}")
        values, found = np.ascontiguousarray(values), np.empty((len(values), self.rows), np.float32)
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        if self._library.tritune_linear_run(
            self._pointer,
            values.ctypes.data,
            len(values),
            clip,
            largest,
            threads,
            found.ctypes.data,
            message,
            _MESSAGE_BYTES,
        ):
            raise TrituneError(message.value.decode(errors="replace"))
        return found
