"""How fast a model is in WebAssembly, on one thread, in Node and in headless Chromium.

    python benchmarks/web.py packed/ --node-modules node_modules --output benchmarks/results/web.csv

tritune's engine with the packed model, and in onnxruntime-web the student's file for the web, those of opsets 18 and
25, the float model with the same weights and ONNX Runtime's int8 (`quantize_dynamic`) take turns in one process.
Loading is measured in a new process for each of them. `--also` adds files, such as one that another version exported.
"""

import argparse
import csv
import json
import queue
import shutil
import subprocess
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from engine_products import processor

_SCRIPT = Path(__file__).with_suffix(".mjs")
_PAGE = """<!doctype html><script type="module">
import * as ort from "/ort/ort.wasm.min.mjs";
import { load, run } from "/web.mjs";
const read = async (name) => new Uint8Array(await (await fetch(`/${name}`)).arrayBuffer());
const address = (name) => new URL(`/${name}`, location.href).href;
let answer;
try { answer = await { load, run }[WHAT](ort, { read, address }, OPTIONS); } catch (error) { answer = String(error); }
await fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
</script>"""


def main() -> None:
    """Export, measure in both runtimes, write one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a packed text classifier")
    parser.add_argument("--node-modules", type=Path, required=True, help="folder that contains onnxruntime-web")
    parser.add_argument("--output", type=Path, required=True, help="the CSV file to write")
    parser.add_argument("--lengths", default="16,128", help="tokens of a row")
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser; skipped if there is none")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=FILE", help="one more ONNX file")
    arguments = parser.parse_args()
    lengths = [int(length) for length in arguments.lengths.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = _export(arguments.model, Path(folder), arguments.also)
        runtimes = {"node": partial(_in_node, arguments.node_modules.resolve())}
        if arguments.chromium:
            runtimes["chromium"] = partial(_in_browser, arguments.chromium, arguments.node_modules)
        for name, measure in runtimes.items():
            loads = {file: measure(Path(folder), "load", {"file": file})[0]["load_ms"] for file in files}
            found = measure(Path(folder), "run", {"files": files, "lengths": lengths, "turns": arguments.turns})
            for row in found:
                beside = {other["file"]: other["median_ms"] for other in found if other["length"] == row["length"]}
                size = _bytes(Path(folder), row["file"])
                rows.append(
                    {"processor": processor(), "runtime": name}
                    | row
                    | {
                        "median_ms": round(row["median_ms"], 2),
                        "to_float": round(row["median_ms"] / beside["float"], 3),
                        "to_int8": round(row["median_ms"] / beside["int8"], 3),
                        "load_ms": round(loads[row["file"]]),
                        "megabytes": round(size / 1e6, 2),
                    }
                )
                print(rows[-1], flush=True)
    with arguments.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _export(model: str, folder: Path, also: list[str]) -> list[str]:
    """The files to compare, by name without suffix."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import tritune  # noqa: F401
    from tritune.deploy.export.dense import dense
    from tritune.deploy.export.onnx import export_onnx, quiet
    from tritune.deploy.web.site import write_site

    student = AutoModelForSequenceClassification.from_pretrained(model).eval()
    names = AutoTokenizer.from_pretrained(model).model_input_names
    export_onnx(student, folder / "web.onnx", None, names, target="web")
    export_onnx(student, folder / "opset18.onnx", 18, names)
    export_onnx(student, folder / "opset25.onnx", 25, names)
    (folder / "site").mkdir()
    write_site(Path(model), folder / "site", "benchmark")
    export_onnx(dense(student), folder / "float.onnx", 18, names)
    with quiet():
        quantize_dynamic(folder / "float.onnx", folder / "int8.onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])], "nothing", [value], [onnx.ValueInfoProto(name="y")]
    )
    graph.output[0].type.CopyFrom(value.type)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9),
        folder / "nothing.onnx",
    )
    files = ["engine", "web", "opset18", "opset25", "float", "int8"]
    for name, _, path in (one.partition("=") for one in also):
        shutil.copy(path, folder / f"{name}.onnx")
        files.append(name)
    return files


def _bytes(folder: Path, file: str) -> int:
    """Of a file; of the engine its model without the tokenizer."""
    return (folder / ("site/model/model.safetensors" if file == "engine" else f"{file}.onnx")).stat().st_size


def _in_node(modules: Path, folder: Path, what: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    command = ["node", _SCRIPT, modules, folder, what, json.dumps(options)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _in_browser(browser: str, modules: Path, folder: Path, what: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    answers: queue.Queue[Any] = queue.Queue()
    page = _PAGE.replace("WHAT", json.dumps(what)).replace("OPTIONS", json.dumps(options))
    (folder / "index.html").write_text(page)
    shutil.copy(_SCRIPT, folder / "web.mjs")
    if not (folder / "ort").exists():
        shutil.copytree(modules / "onnxruntime-web" / "dist", folder / "ort", ignore=shutil.ignore_patterns("*.map"))

    class Handler(SimpleHTTPRequestHandler):
        extensions_map = SimpleHTTPRequestHandler.extensions_map | {
            ".mjs": "text/javascript",
            ".wasm": "application/wasm",
        }

        def do_POST(self) -> None:
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        job = subprocess.Popen(
            [*command, f"http://127.0.0.1:{server.server_port}/index.html"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            answer = answers.get(timeout=600)
        finally:
            job.terminate()
            job.wait()
            server.shutdown()
    if isinstance(answer, str):
        raise SystemExit(f"the page failed: {answer}")
    return answer


if __name__ == "__main__":
    main()
