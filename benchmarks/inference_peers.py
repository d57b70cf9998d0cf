"""What `inference.py` compares: one random classifier of each shape, as a file of each runtime, and how that is run.

Files are made once in a folder and kept: exporting BERT-base and quantizing it for two runtimes takes minutes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
VOCABULARY = 30522
PEERS = ("onnxruntime float", "onnxruntime int8", "openvino int8", "torch float", "torch int8")
_NEEDS = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("onnxruntime", "onnx", "openvino", "nncf"), "torch": ()}

Call = Callable[[], Any]


@dataclass(frozen=True)
class Texts:
    """A batch: random token ids of sequences of the given lengths."""

    lengths: tuple[int, ...]

    @property
    def tokens(self) -> str:
        """How long they are, as the table says it."""
        low, high = min(self.lengths), max(self.lengths)
        return str(low) if low == high else f"{low}..{high}"

    def padded(self) -> dict[str, np.ndarray]:
        """As peers take them: int64, (batch, longest)."""
        shape = len(self.lengths), max(self.lengths)
        mask = (np.arange(shape[1]) < np.array(self.lengths)[:, None]).astype(np.int64)
        ids = np.random.default_rng(0).integers(1, VOCABULARY, shape) * mask
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def unpadded(self) -> tuple[np.ndarray, np.ndarray]:
        """As the engine takes them: ids, (tokens), and offsets, (batch + 1)."""
        inputs = self.padded()
        return inputs["input_ids"][inputs["attention_mask"] == 1], np.concatenate(([0], np.cumsum(self.lengths)))

    def operations(self, shape: dict[str, int]) -> float:
        """Multiplications and additions of all products of an encoder: Linears, Q K^T and the probabilities times V."""
        width, layers = shape["hidden_size"], shape["num_hidden_layers"]
        linears = sum(self.lengths) * (4 * width**2 + 2 * width * shape["intermediate_size"])
        return 2.0 * layers * (linears + sum(2 * length**2 * width for length in self.lengths))


def installed(peers: Sequence[str]) -> list[str]:
    """Those of some peers whose packages are here."""
    return [peer for peer in peers if all(map(find_spec, _NEEDS[peer.split()[0]]))]


def make_files(shape: str, folder: Path, peers: Sequence[str]) -> None:
    """Write what is missing: `packed/`, `float/` (torch), `float.onnx`, `int8.onnx` and `openvino.xml`."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    import tritune
    from tritune import Quantization
    from tritune.deploy.bench.contenders import _openvino_int8
    from tritune.deploy.export.onnx import export_onnx, quiet
    from tritune.recipes import load_recipe

    folder.mkdir(parents=True, exist_ok=True)
    files = {"onnxruntime float": "float.onnx", "onnxruntime int8": "int8.onnx", "openvino int8": "openvino.xml"}
    wanted = {"packed/config.json", "float/config.json", *(files[peer] for peer in peers if peer in files)}
    missing = {name for name in wanted if not (folder / name).exists()}
    if not missing:
        return
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **SHAPES[shape])).eval()
    plain = folder / "float.onnx"
    if missing & set(files.values()) and not plain.exists():
        export_onnx(model, plain, 18)
    if "int8.onnx" in missing:
        from onnxruntime.quantization import quantize_dynamic

        with quiet():
            quantize_dynamic(plain, folder / "int8.onnx")
    if "openvino.xml" in missing:
        _openvino_int8(plain, folder, VOCABULARY)
    model.save_pretrained(folder / "float")
    if "packed/config.json" in missing:
        recipe = load_recipe("tritune")
        quantization = Quantization(**{field.name: getattr(recipe, field.name) for field in fields(Quantization)})
        tritune.convert(tritune.prepare(model, quantization)).save_pretrained(folder / "packed")


def ours(folder: Path, isa: str, threads: int) -> Callable[[Texts], Call]:
    """The engine, by itself: neither torch nor transformers has a part in it."""
    from tritune.engine.integrity import read_packed
    from tritune.engine.model import Model

    packed = read_packed(folder / "packed")
    model = Model(packed.config_bytes, packed.weights, isa)
    return lambda texts: partial(model.run, *texts.unpadded(), threads=threads)


def peer(name: str, folder: Path, threads: int) -> Callable[[Texts], Call]:
    """One of `PEERS`."""
    from tritune.deploy.bench import runtimes

    runtime, precision = name.split()
    if name == "torch int8":
        run = _torch_int8(str(folder / "float"), threads)
    elif runtime == "torch":
        run = runtimes.torch(str(folder / "float"), threads)
    elif runtime == "openvino":
        run = runtimes.openvino(str(folder / "openvino.xml"), threads)
    else:
        run = runtimes.onnxruntime(str(folder / f"{precision}.onnx"), threads)
    return lambda texts: partial(run, texts.padded())


def _torch_int8(path: str, threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """All Linears quantized by `quantize_dynamic`."""
    import torch
    from torch.ao.quantization import quantize_dynamic
    from transformers import BertForSequenceClassification

    torch.set_num_threads(threads)
    model = BertForSequenceClassification.from_pretrained(path, attn_implementation="sdpa", dtype=torch.float32).eval()
    model = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        """Batch to logits."""
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.numpy()

    return run
