"""One function per runtime: from a model on disk to a function of a batch.

Run as a script, this file loads one contender, runs one batch and prints its peak memory in bytes. It imports
nothing that imports torch, so that this is not in the memory of a runtime that does not need it.

    python runtimes.py onnxruntime model.onnx THREADS BATCH LENGTH VOCABULARY
"""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]
Run = Callable[[Batch], np.ndarray]


def onnxruntime_session(path: str, threads: int, profile: str | None = None) -> Any:
    """A session of ONNX Runtime; `profile` is the prefix of the file that its `end_profiling()` writes.

    Its idle threads do not spin, because in a comparison they would take the cores of the next contender.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def of_session(session: Any) -> Run:
    """A session as a function of a batch (names to arrays), which gives logits, (batch, labels)."""
    names = [value.name for value in session.get_inputs()]
    return lambda batch: session.run(None, {name: batch[name] for name in names})[0]


def onnxruntime(path: str, threads: int) -> Run:
    """An ONNX file in ONNX Runtime."""
    return of_session(onnxruntime_session(path, threads))


def openvino(path: str, threads: int) -> Run:
    """An ONNX or OpenVINO file in OpenVINO, with float32 where the model has float32."""
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(path, "CPU", settings)
    names = [value.get_any_name() for value in compiled.inputs]
    return lambda batch: compiled({name: batch[name] for name in names})[0]


def torch(path: str, threads: int) -> Run:
    """A float checkpoint in transformers, with scaled_dot_product_attention."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    model = AutoModelForSequenceClassification.from_pretrained(path, attn_implementation="sdpa", dtype=torch.float32)
    model.eval()
    takes = inspect.signature(model.forward).parameters

    def run(batch: Batch) -> np.ndarray:
        """Batch to logits."""
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in batch.items() if name in takes}
            return model(**tensors).logits.numpy()

    return run


def engine(path: str, threads: int) -> Run:
    """A packed folder in tritune's native engine, without torch."""
    from tritune.engine.integrity import read_packed
    from tritune.engine.model import Model

    packed = read_packed(Path(path))
    model = Model(packed.config_bytes, packed.weights)

    def run(batch: Batch) -> np.ndarray:
        """Batch to logits; `make_batch` has no padding."""
        ids = batch["input_ids"]
        offsets = np.arange(len(ids) + 1) * ids.shape[1]
        answers = model.run(ids.ravel(), offsets, batch["token_type_ids"].ravel(), threads=threads).answers
        assert answers is not None  # they are asked for unless one says otherwise
        return answers

    return run


RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino, "torch": torch, "engine": engine}


def make_batch(batch: int, length: int, vocabulary: int) -> Batch:
    """Random token ids, (batch, length), without padding: run times do not depend on their meaning."""
    shape = (batch, length)
    ids = np.random.default_rng(0).integers(1, vocabulary, shape)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def peak_memory_bytes() -> int:
    """The peak resident memory of this process.

    From /proc if available: getrusage includes the parent's memory at the time of the fork.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    # The file's own folder comes first on the path and must not hide a package.
    sys.path = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != Path(__file__).parent.resolve()]
    runtime, path, *numbers = sys.argv[1:]
    threads, batch, length, vocabulary = map(int, numbers)
    RUNTIMES[runtime](path, threads)(make_batch(batch, length, vocabulary))
    print(peak_memory_bytes())
