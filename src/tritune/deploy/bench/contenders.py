"""The contenders of a comparison, all made from one model: a file each, and the runtime that reads it."""

import copy
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import TrituneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PEERS = ("onnxruntime", "openvino", "torch")
REFERENCE = "onnxruntime float"
OURS, ENGINE = "tritune", "tritune engine"
# The opset that the float file is written in: every runtime reads it.
_PLAIN_OPSET = 18


@dataclass(frozen=True)
class Contender:
    """One model file and its runtime.

    Attributes:
        name: as the table shows it.
        runtime: a key of `runtimes.RUNTIMES`.
        path: what the runtime loads.
        weights: the files whose size counts.
    """

    name: str
    runtime: str
    path: Path
    weights: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of the model alone, without tokenizer and config."""
        return sum(path.stat().st_size for path in self.weights)


def make_contenders(model: "PreTrainedModel", peers: Sequence[str], folder: Path) -> list[Contender]:
    """Write the model in every form that a contender reads.

    Peers get `export.dense` of the model, so that they compute with the same weights. They are quantized to 8 bits by
    their own one-line calls: `onnxruntime.quantization.quantize_dynamic`, and `nncf.quantize` where nncf is installed.

    Args:
        model: a QAT or packed model; or a float one, whose export is then the first contender.
        peers: of `PEERS`.
        folder: for the files; removed by the caller.

    Raises:
        TrituneError: a peer is unknown or not installed.
    """
    check_peers(peers)  # before torch is imported
    from ..export.dense import dense
    from ..export.onnx import export_onnx, quiet

    ours, plain = folder / "tritune.onnx", folder / "float.onnx"
    export_onnx(model, ours)
    floating = dense(model)
    export_onnx(floating, plain, _PLAIN_OPSET)
    contenders = [
        Contender(OURS, "onnxruntime", ours, (ours,)),
        Contender(REFERENCE, "onnxruntime", plain, (plain,)),
        *_in_the_engine(model, folder / "packed"),
    ]
    if "onnxruntime" in peers:
        from onnxruntime.quantization import quantize_dynamic

        int8 = folder / "int8.onnx"
        with quiet():
            quantize_dynamic(plain, int8)
        contenders.append(Contender("onnxruntime int8", "onnxruntime", int8, (int8,)))
    if "openvino" in peers:
        contenders.append(Contender("openvino float", "openvino", plain, (plain,)))
        if find_spec("nncf") is not None:
            contenders.append(_openvino_int8(plain, folder, model.config.vocab_size))
    if "torch" in peers:
        checkpoint = folder / "dense"
        floating.save_pretrained(checkpoint)
        contenders.append(Contender("torch float", "torch", checkpoint, (checkpoint / "model.safetensors",)))
    return contenders


def _in_the_engine(model: "PreTrainedModel", folder: Path) -> list[Contender]:
    """The packed model in the native engine; none where that does not run it, or is not there."""
    from ...checkpoints.convert import convert
    from ...checkpoints.plugin import is_packed
    from .runtimes import engine

    try:
        packed = model if is_packed(model) else convert(copy.deepcopy(model))
        packed.save_pretrained(folder)
        engine(str(folder), 1)
    except TrituneError:
        return []
    return [Contender(ENGINE, "engine", folder, (folder / "model.safetensors",))]


def check_peers(peers: Sequence[str]) -> None:
    """Raise TrituneError for a peer that is unknown or not installed."""
    for peer in peers:
        if peer not in PEERS:
            raise TrituneError(f"--against: unknown peer {peer!r}; known are {', '.join(PEERS)}")
    for package in ("onnxruntime", *peers):
        if find_spec(package) is None:
            raise TrituneError(f"the comparison needs {package}; pip install 'tritune[bench]'")


def _openvino_int8(plain: Path, folder: Path, vocabulary: int) -> Contender:
    import nncf
    import openvino as ov

    from .runtimes import make_batch

    source: Any = ov.Core().read_model(plain)
    names = [value.get_any_name() for value in source.inputs]
    batch = make_batch(8, 32, vocabulary)
    calibration = nncf.Dataset([{name: batch[name] for name in names}])
    path = folder / "openvino.xml"
    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(StringIO()):  # its progress bars
        quantized = nncf.quantize(source, calibration, model_type=nncf.ModelType.TRANSFORMER)
    ov.save_model(quantized, path)
    return Contender("openvino int8", "openvino", path, (path, path.with_suffix(".bin")))
