"""A packed encoder in the native library: arrays in, arrays out."""

import ctypes
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from ..errors import TrituneError
from .binding import Shape, isa_wanted, library

_MESSAGE_BYTES = 1000


class Buffer(Protocol):
    """Anything that gives its bytes: `bytes`, a `memoryview`, a map of a file, an array."""

    def __buffer__(self, flags: int, /) -> memoryview: ...


class Output(NamedTuple):
    """What a model gives for a batch; None for what was not asked for.

    Attributes:
        hidden: the last hidden state, float32 (tokens, hidden size).
        answers: float32 (sequences, outputs), or (tokens, outputs) of a model with an answer at every token.
    """

    hidden: np.ndarray | None
    answers: np.ndarray | None


class _Handle:
    """The model of the library, which is freed with the last reference: no call that is under way loses it."""

    def __init__(self, config: bytes, weights: Buffer, isa: str | None):
        self.native = library()
        # The word embeddings are read from there as long as there is a model.
        self.weights = np.frombuffer(weights, np.uint8)  # type: ignore[call-overload]
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        self.pointer = self.native.tritune_load(
            config,
            len(config),
            self.weights.ctypes.data,
            self.weights.size,
            isa.encode() if isa else None,
            message,
            _MESSAGE_BYTES,
        )
        if not self.pointer:
            raise TrituneError(message.value.decode(errors="replace"))

    def __del__(self):
        if getattr(self, "pointer", None):
            self.native.tritune_free(self.pointer)


class Model:
    """A packed encoder, from the bytes of its files.

    Any number of threads may call it at once.

    Args:
        config: the content of `config.json`.
        weights: the content of `model.safetensors`, which must not change as long as the model is there.
        isa: the instruction set to use, one of `binding.isas()`; None takes the one that the environment variable
            `TRITUNE_ISA` names, or else the best one.

    Attributes:
        isa: the instruction set in use.
        hidden_size: columns of the last hidden state.
        outputs: columns of the answers: labels, 2 for question answering, the hidden size for an encoder alone.
        per_token: whether there is an answer at every token, and not one for a sequence.
        max_tokens: of a sequence.
        vocabulary: ids are below it; 0 for image models.
        channels, image_size: of an image, and the pixels of a side; 0 for text models.

    Raises:
        TrituneError: the library is not there, the instruction set does not run here, or the bytes are no packed model
            that the engine runs; the message says what to do.
    """

    def __init__(self, config: bytes, weights: Buffer, isa: str | None = None):
        self._handle: _Handle | None = _Handle(config, weights, isa or isa_wanted())
        native, pointer = self._handle.native, self._handle.pointer
        self.isa: str = native.tritune_isa(pointer).decode()
        shape: Shape = native.tritune_describe(pointer)
        self.hidden_size: int = shape.hidden_size
        self.outputs: int = shape.outputs
        self.per_token = bool(shape.per_token)
        self.max_tokens: int = shape.max_tokens
        self.vocabulary: int = shape.vocabulary
        self.channels: int = shape.channels
        self.image_size: int = shape.image_size

    def run(
        self,
        ids: Any,
        offsets: Any,
        types: Any = None,
        positions: Any = None,
        *,
        hidden: bool = False,
        answers: bool = True,
        threads: int = 1,
    ) -> Output:
        """One batch of sequences without padding, one after the other.

        A sequence's results do not depend on the batch or on the number of threads, to the bit.

        Args:
            ids: whole numbers, (tokens).
            offsets: whole numbers, (sequences + 1): sequence i is the tokens from offsets[i] to offsets[i + 1].
            types: token types, (tokens); None for 0.
            positions: (tokens); None for 0, 1, 2, ... in every sequence, without RoBERTa's padding tokens.
            hidden: whether to return the last hidden state.
            answers: whether to return the answers.
            threads: how many share the work.

        Raises:
            TrituneError: the arrays do not fit each other, an id, type or position does not exist, a sequence is empty
                or too long, or the model is closed.
        """
        handle = self._open()
        ids, offsets = _whole(ids, "ids", np.int32), _whole(offsets, "offsets", np.int64)
        if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 1).any():
            raise TrituneError(f"offsets must rise from 0 to the {len(ids)} tokens: no sequence is empty")
        given = {"types": types, "positions": positions}
        arrays = {name: None if of is None else _whole(of, name, np.int32, len(ids)) for name, of in given.items()}
        rows = len(ids) if self.per_token else len(offsets) - 1
        output = Output(
            np.empty((len(ids), self.hidden_size), np.float32) if hidden else None,
            np.empty((rows, self.outputs), np.float32) if answers else None,
        )
        inputs = (ids, arrays["types"], arrays["positions"], offsets)
        _run(handle.native.tritune_run, handle, inputs, len(offsets) - 1, threads, output)
        return output

    def run_images(self, pixels: np.ndarray, *, hidden: bool = False, answers: bool = True, threads: int = 1) -> Output:
        """One batch of images; an image's results do not depend on the batch or on the number of threads, to the bit.

        Args:
            pixels: as the model's image processor makes them, (images, channels, image_size, image_size).
            hidden: whether to return the last hidden state, (images * tokens, hidden size).
            answers: whether to return the answers.
            threads: how many share the work.

        Raises:
            TrituneError: the model reads no such images, or is closed.
        """
        handle = self._open()
        pixels = np.ascontiguousarray(pixels, np.float32)
        shape = (self.channels, self.image_size, self.image_size)
        if not self.channels or not len(pixels) or pixels.shape[1:] != shape:
            raise TrituneError(f"the model reads images of shape {shape}, got an array of shape {pixels.shape}")
        output = Output(
            np.empty((len(pixels) * self.max_tokens, self.hidden_size), np.float32) if hidden else None,
            np.empty((len(pixels), self.outputs), np.float32) if answers else None,
        )
        _run(handle.native.tritune_run_images, handle, (pixels,), len(pixels), threads, output)
        return output

    def _open(self) -> _Handle:
        """Holds the model as long as a call needs it."""
        if (handle := self._handle) is None:
            raise TrituneError("the model is closed; load it again")
        return handle

    def close(self) -> None:
        """Free the memory, as soon as calls that are under way have ended; nothing but `close` may be called then."""
        self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _run(
    function: Any, handle: _Handle, inputs: tuple[np.ndarray | None, ...], rows: int, threads: int, output: Output
) -> None:
    """Have the library fill `output`."""
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    addresses, results = map(_address, inputs), map(_address, output)
    if function(handle.pointer, *addresses, rows, threads, *results, message, _MESSAGE_BYTES):
        raise TrituneError(message.value.decode(errors="replace"))


def _whole(values: Any, name: str, dtype: type, length: int | None = None) -> np.ndarray:
    """Whole numbers of one dimension as the library takes them."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu") or length not in (None, len(array)):
        size = "a row" if length is None else length
        raise TrituneError(f"{name} must be {size} of whole numbers, got {array.dtype} of shape {array.shape}")
    if array.dtype != dtype and array.size:
        bounds = np.iinfo(dtype)
        low, high = int(array.min()), int(array.max())
        if low < bounds.min or high > bounds.max:
            raise TrituneError(f"{name} must be from {bounds.min} to {bounds.max}, found {low} to {high}")
    return np.ascontiguousarray(array, dtype)


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data
