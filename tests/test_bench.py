"""The comparison of runtimes: fair turns, ratios of the same run, memory of a process of its own."""

import csv

import numpy as np
import pytest
import torch

import tritune
from families import FAMILIES
from test_convert import DEPLOY
from tritune import TrituneError
from tritune.analysis.plots import runtime_bars
from tritune.checkpoints.plugin import is_packed
from tritune.deploy.bench import measure, runtimes
from tritune.deploy.bench.contenders import ENGINE, OURS, REFERENCE, Contender, check_peers
from tritune.deploy.bench.contenders import _in_the_engine as in_the_engine
from tritune.engine import binding

NEEDS_ONNX = "needs onnx, onnxscript and onnxruntime: pip install 'tritune[onnx]'"


@pytest.fixture
def tiny(tmp_path):
    """An ONNX file that sums embeddings of token ids."""
    onnx = pytest.importorskip("onnx", reason=NEEDS_ONNX)
    pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    from onnx import TensorProto, helper, numpy_helper

    table = numpy_helper.from_array(np.random.default_rng(0).standard_normal((50, 3), np.float32), "table")
    axis = numpy_helper.from_array(np.array([1]), "axis")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["logits"], keepdims=0),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    sums = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "tiny", [ids], [sums], [table, axis])
    path = tmp_path / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return Contender(OURS, "onnxruntime", path, (path,))


def test_contenders_take_turns_and_ratios_are_to_the_reference(monkeypatch, tmp_path):
    clock, order = [0.0], []

    def runtime(path, threads):
        name, seconds = path.split(":")

        def run(batch):
            order.append(name)
            # The first run is slow, as first runs are, and must not count.
            clock[0] += float(seconds) * batch["input_ids"].size * (100 if order.count(name) == 1 else 1)

        return run

    monkeypatch.setattr(runtimes, "RUNTIMES", {"fake": runtime})
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    contenders = [Contender(name, "fake", f"{name}:{s}", ()) for name, s in ((OURS, 0.25), (REFERENCE, 0.5), ("x", 1))]
    rows = measure.timings(contenders, [(2, 8)], vocabulary=50, repeats=3, threads=1)
    assert order == [OURS, REFERENCE, "x"] * 4
    assert [(row["name"], row["latency_ms"], row["per_second"], row["ratio"]) for row in rows] == [
        (OURS, 4000, 0.5, 0.5),
        (REFERENCE, 8000, 0.25, 1),
        ("x", 16000, 0.125, 2),
    ]


def test_a_batch_is_what_was_asked_for():
    batch = runtimes.make_batch(3, 5, vocabulary=9)
    assert {array.shape for array in batch.values()} == {(3, 5)} and batch["attention_mask"].all()
    assert batch["input_ids"].min() >= 1 and batch["input_ids"].max() < 9


def test_memory_is_that_of_a_process_without_torch(tiny):
    ballast = np.ones(100_000_000, np.uint8)
    peak = measure.peak_memory_bytes(tiny, 1, 2, 4, 50)
    assert ballast.all() and 5e6 < peak < runtimes.peak_memory_bytes()


def test_the_engine_is_a_contender_where_it_runs_the_model(tmp_path):
    if not binding.available():
        pytest.skip(binding.why_not())
    model = tritune.prepare(FAMILIES["distilbert"].build(), DEPLOY).eval()
    (contender,) = in_the_engine(model, tmp_path / "one")
    assert contender.name == ENGINE and contender.size_bytes == (tmp_path / "one" / "model.safetensors").stat().st_size
    batch = runtimes.make_batch(2, 5, vocabulary=30)
    run = runtimes.RUNTIMES[contender.runtime](str(contender.path), 1)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(batch["input_ids"])).logits
    assert run(batch).shape == expected.shape and np.abs(run(batch) - expected.numpy()).max() < 0.05
    assert 5e6 < measure.peak_memory_bytes(contender, 1, 2, 4, 30) < 2e8  # torch alone takes more
    assert not is_packed(model) and in_the_engine(tritune.convert(model), tmp_path / "two")
    for other in (FAMILIES["distilbert"].build(), tritune.prepare(FAMILIES["bert"].build())):
        assert in_the_engine(other, tmp_path / "three") == []


def test_a_contender_that_does_not_run_is_named(tiny, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    broken = Contender("broken one", "onnxruntime", tmp_path / "broken.onnx", ())
    with pytest.raises(TrituneError, match="broken one does not run"):
        measure.peak_memory_bytes(broken, 1, 2, 4, 50)


def test_shares_of_operators_add_up(tiny):
    shares = measure.time_by_operator(tiny.path, 1, 8, 16, 50)
    assert shares.keys() == {"Gather", "ReduceSum"} and sum(shares.values()) == pytest.approx(1)


def test_peers_are_checked_before_anything_is_made(monkeypatch):
    with pytest.raises(TrituneError, match="unknown peer 'tensorflow'; known are onnxruntime, openvino, torch"):
        check_peers(["tensorflow"])
    monkeypatch.setattr("tritune.deploy.bench.contenders.find_spec", lambda name: None)
    with pytest.raises(TrituneError, match=r"tritune\[bench\]"):
        check_peers(["openvino"])


def test_the_chart_has_a_bar_for_every_time():
    rows = [
        {"name": name, "batch": batch, "length": 8, "latency_ms": 3.0, "ratio": ratio}
        for name, ratio in ((OURS, 0.5), (REFERENCE, 1.0))
        for batch in (1, 2, 4)
    ]
    (axes,) = runtime_bars(rows).axes
    heights = [bar.get_height() for container in axes.containers if hasattr(container, "patches") for bar in container]
    assert heights == [0.5] * 3 + [1.0] * 3


def test_wrong_command_lines_of_bench(cli, tmp_path):
    pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    for arguments, message in (
        (["--against", "tensorflow"], "unknown peer"),
        (["--batches", "1,two"], "--batches"),
        (["--lengths", ""], "--lengths"),
        ([], "no such folder"),
    ):
        code, _, errors = cli("bench", tmp_path / "absent", *arguments)
        assert code == 2 and message in errors and len(errors.splitlines()) == 1


@pytest.mark.slow
def test_bench_of_a_tiny_model(cli, tmp_path):
    pytest.importorskip("onnxscript", reason=NEEDS_ONNX)
    pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    model = tritune.prepare(FAMILIES["distilbert"].build())
    model.save_pretrained(tmp_path / "run")
    peers = "onnxruntime,torch" + ",openvino" * ("openvino" in available())
    code, out, errors = cli(
        "bench",
        tmp_path / "run",
        "--against",
        peers,
        "--batches",
        "1,2",
        "--lengths",
        "4,8",
        "--repeats",
        "3",
        "--output",
        tmp_path / "bench",
    )
    assert code == 0, errors
    assert sorted(path.name for path in (tmp_path / "bench").iterdir()) == ["bench.csv", "bench.png", "bench.svg"]
    rows = list(csv.DictReader((tmp_path / "bench" / "bench.csv").open()))
    names = list(dict.fromkeys(row["name"] for row in rows))
    assert names[:3] == [OURS, REFERENCE, "onnxruntime int8"] and len(rows) == 4 * len(names)
    assert all(float(row["ratio"]) == 1 for row in rows if row["name"] == REFERENCE)
    sizes = {row["name"]: int(row["size_bytes"]) for row in rows}
    assert sizes[OURS] > 0 and "Where tritune's time goes" in out
    # Every time stands beside its peer's.
    assert {(row["batch"], row["length"]) for row in rows if row["name"] == OURS} == {
        (row["batch"], row["length"]) for row in rows if row["name"] == REFERENCE
    }


def available() -> list[str]:
    from importlib.util import find_spec

    return [name for name in ("openvino",) if find_spec(name)]
