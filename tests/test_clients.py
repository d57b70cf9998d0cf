"""Exported folders in the programs that they are for: transformers.js and onnxruntime-web in Node and in a browser,
sentence-transformers and fastembed. Every one of them gives the answers of the model in torch.

`make test-clients` installs them; where one is missing, its tests are skipped.
"""

import json
import queue
import shutil
import subprocess
import threading
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from exportable import EXPORTABLE, texts, tokenizer_of
from sentence_encoder import sentences
from tritune.deploy.export.folder import export_folder
from tritune.deploy.export.layouts import LAYOUTS
from tritune.tasks.heads import head_of_class

CLIENTS = Path(__file__).parent / "clients"
PYTHON = CLIENTS / ".venv" / "bin" / "python"
NODE = shutil.which("node")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytest.importorskip("onnxscript", reason="needs tritune[onnx]")
pytestmark = [pytest.mark.clients, pytest.mark.slow]

# A code next to a rounding boundary may fall on its other side; a wrong model is off by ten times as much.
CLOSE = 0.05
TEXTS = ["", *texts(4), *sentences(4), "é ü \N{GRINNING FACE} Ada the cat"]
# Cut by the tokenizer; transformers.js 4.3.2 cuts away the last special token, too, and is not asked this.
LONG = " ".join(sentences(30) + texts(30))
PAIRS = [["Ada lives", "Ben works"], ["é", ""], ["in Como and in Delft", "who"]]
QUESTIONS = [["where lives Ada?", "Ben lives in Como, Ada lives in Delft."], ["who?", "Cleo and Emil"]]
JAVASCRIPT = ("sentences", "tags", "questions", "classes", "many_labels", "pairs")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of every model by its name."""
    folder = tmp_path_factory.mktemp("source")
    return {name: EXPORTABLE[name].write_model(folder / name) for name in JAVASCRIPT}


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    """A function from a layout and names to a folder of these exports, and of what they are asked; each made once."""

    @cache
    def make(layout: str, *names: str) -> Path:
        folder = tmp_path_factory.mktemp("exported")
        for name in names:
            model = model_of(source, name)
            head = head_of_class(type(model).__name__).for_model(source[name])
            (folder / "models" / name).mkdir(parents=True)
            processor = head.load_processor(source[name], model, None)
            export_folder(model, processor, folder / "models" / name, head, LAYOUTS[layout], max_length=96)
        batch = {name: value.tolist() for name, value in batch_of(source, "tags", TEXTS).items()}
        onnxruntime = {"file": f"tags/{LAYOUTS[layout].file}", "batch": batch}
        asked = {
            "texts": TEXTS if layout == "transformers.js" else [*TEXTS, LONG],
            "pairs": PAIRS,
            "questions": QUESTIONS,
            "onnxruntime": onnxruntime,
        }
        (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        return folder

    return make


def model_of(source, name: str) -> torch.nn.Module:
    return EXPORTABLE[name].kind.from_pretrained(source[name]).eval()


def batch_of(source, name: str, *asked: list[str]) -> dict[str, torch.Tensor]:
    length = 32 if name == "sentences" else 96
    options = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
    return dict(tokenizer_of(source[name])(*asked, **options))


def output_of(source, name: str, *asked: list[str]):
    with torch.no_grad():
        return model_of(source, name)(**batch_of(source, name, *asked))


def embeddings(source, asked: list[str]) -> np.ndarray:
    """One after the other: the mean over the tokens, of length 1."""
    rows = []
    for text in asked:
        state = output_of(source, "sentences", [text]).last_hidden_state[0].double().mean(0)
        rows.append((state / state.norm()).numpy())
    return np.array(rows)


def check_embeddings(source, found) -> None:
    wanted = embeddings(source, [*TEXTS, LONG][: len(found)])
    assert len(found) >= len(TEXTS)
    difference = np.abs(np.array(found) - wanted)
    assert np.median(difference) < 1e-5 and difference.max() < CLOSE
    # Of another text, or not normalized, they would be far away.
    assert np.abs(wanted[0] - wanted[1]).max() > 2 * CLOSE


def check_labels(found: list[dict], shares: np.ndarray, labels: dict[int, str], key: str) -> None:
    """Labels with their shares; the first is the most likely one, or within rounding of it."""
    for one in found:
        share = shares[{name: id for id, name in labels.items()}[one[key]]]
        assert abs(one["score"] - share) < CLOSE
    first = next(id for id, name in labels.items() if name == found[0][key])
    assert shares[first] > shares.max() - CLOSE


def check_javascript(source, found: dict) -> None:
    """All that answers.mjs returned."""
    assert "error" not in found, found["error"]
    check_embeddings(source, found["embeddings"])
    check_embeddings(source, found["pooled"])
    for name in ("classes", "many_labels"):
        logits = output_of(source, name, TEXTS).logits
        shares = (logits.softmax(-1) if name == "classes" else logits.sigmoid()).numpy()
        for row, of in zip(found[name], shares, strict=True):
            check_labels(row, of, model_of(source, name).config.id2label, "label")
    pairs = output_of(source, "pairs", *map(list, zip(*PAIRS, strict=True))).logits.numpy()
    np.testing.assert_allclose(found["pairs"], pairs, atol=10 * CLOSE, rtol=0)
    logits = output_of(source, "tags", TEXTS).logits
    assert found["onnxruntime"]["dims"] == [*logits.shape]
    difference = np.abs(np.array(found["onnxruntime"]["values"]) - logits.numpy().ravel())
    assert np.median(difference) < 1e-5 and difference.max() < 10 * CLOSE
    check_tags(source, found["tags"], logits)
    check_answers(source, found["questions"])


def check_tags(source, found, logits) -> None:
    batch, tokenizer = batch_of(source, "tags", TEXTS), tokenizer_of(source["tags"])
    for row, tagged in enumerate(found):
        ids = batch["input_ids"][row].tolist()
        real = [place for place, id in enumerate(ids) if tokenizer.decode([id], skip_special_tokens=True)]
        assert [one["index"] for one in tagged] == real
        for one in tagged:
            shares = logits[row, one["index"]].softmax(-1).numpy()
            check_labels([one], shares, model_of(source, "tags").config.id2label, "entity")


def check_answers(source, found) -> None:
    """Against all spans of the context's tokens."""
    tokenizer = tokenizer_of(source["questions"])
    for (question, context), answer in zip(QUESTIONS, found, strict=True):
        output, ids = output_of(source, "questions", [question], [context]), tokenizer(question, context)["input_ids"]
        inside = list(range(ids.index(tokenizer.sep_token_id) + 1, len(ids) - 1))
        # The first token stands for no answer and takes a share.
        starts, ends = (of[0, [0, *inside]].softmax(-1)[1:] for of in (output.start_logits, output.end_logits))
        spans = [
            (float(starts[a] * ends[b]), inside[a], inside[b])
            for a in range(len(inside))
            for b in range(a, len(inside))
        ]
        score, start, end = max(spans)
        assert abs(answer["score"] - score) < CLOSE
        text = tokenizer.decode(ids[start : end + 1], skip_special_tokens=True)
        assert answer["answer"].replace(" ", "") == text.replace(" ", "")


@pytest.mark.skipif(
    NODE is None or not (CLIENTS / "node_modules").is_dir(), reason="no npm packages: make test-clients"
)
class TestJavaScript:
    def test_in_node(self, source, exported):
        folder = exported("transformers.js", *JAVASCRIPT)
        command = [NODE, CLIENTS / "node.mjs", folder / "asked.json", folder / "models"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        check_javascript(source, json.loads(done.stdout))

    @pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine (Debian: apt install chromium)")
    def test_in_a_browser(self, source, exported):
        folder = exported("transformers.js", *JAVASCRIPT)
        for name in ("page.html", "answers.mjs", "node_modules"):
            (folder / name).symlink_to((CLIENTS / name).resolve())
        check_javascript(source, browse(folder))


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; what is posted goes into `posted`."""

    def __init__(self, *arguments, posted: queue.Queue, **options):
        self.posted = posted
        super().__init__(*arguments, **options)

    def do_POST(self):
        self.posted.put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def browse(folder: Path) -> dict:
    """What page.html posts, opened from a server of the folder."""
    posted: queue.Queue = queue.Queue()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, posted=posted, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = f"http://127.0.0.1:{server.server_port}/page.html"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
        browser = subprocess.Popen([BROWSER, *flags, page], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return json.loads(posted.get(timeout=300))
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()


def ask_in_python(client: str, folder: Path) -> dict:
    command = [PYTHON, CLIENTS / "in_python.py", client, folder / "asked.json", folder / "models"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not PYTHON.exists(), reason="no tests/clients/.venv: make test-clients")
class TestPython:
    def test_sentence_transformers(self, source, exported):
        found = ask_in_python("sentence-transformers", exported("sentence-transformers", "sentences", "pairs"))
        check_embeddings(source, found["embeddings"])
        pairs = output_of(source, "pairs", *map(list, zip(*PAIRS, strict=True))).logits.numpy()
        np.testing.assert_allclose(found["pairs"], pairs, atol=10 * CLOSE, rtol=0)

    def test_fastembed(self, source, exported):
        check_embeddings(source, ask_in_python("fastembed", exported("fastembed", "sentences"))["embeddings"])
