"""The engine in WebAssembly gives the answers of the native one, in Node and in a browser."""

import functools
import http.server
import json
import random
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tritune.engine
from engine_folders import BOUND, Reference, save_reader, sentences, tokenizer_of
from engine_folders import FAMILIES as ALL
from engine_models import DEPLOY
from sentence_encoder import modules, write_json
from small_answers import WORDS
from tritune.deploy.web import site
from tritune.errors import TrituneError

NODE = shutil.which("node")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COMPILED = all((site.HERE / name).is_file() for name in (*site.MODULES, site.TOKENIZERS))
RUNNER = Path(__file__).parent / "web" / "answers.mjs"

web = pytest.mark.web
needs_node = pytest.mark.skipif(not COMPILED or NODE is None, reason="needs node and what `make web` makes")
needs_browser = pytest.mark.skipif(
    not COMPILED or BROWSER is None, reason="needs chromium or chrome and what `make web` makes"
)


def ask(folder: Path, call: str, *arguments, isa: str | None = None) -> dict:
    """What the wrapper says: `value` and `isa`, or `error` and its `kind`."""
    request = {"site": str(folder), "isa": isa, "call": call, "arguments": arguments}
    done = subprocess.run([NODE, RUNNER], input=json.dumps(request), capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def make_site(packed: Path, output: Path) -> Path:
    output.mkdir()
    site.write_site(packed, output, "A <b>title</b>")
    return output


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Tiny packed models of several families, by family and head."""
    folder = tmp_path_factory.mktemp("packed")

    @functools.cache
    def of(family: str, head: str, **config) -> Path:
        return save_reader(family, head, folder / f"{family} {head} {len(config)}", **config)

    return of


@pytest.fixture(scope="module")
def sites(packed, tmp_path_factory):
    """Their sites."""
    folder = tmp_path_factory.mktemp("sites")

    @functools.cache
    def of(family: str, head: str, **config) -> Path:
        return make_site(packed(family, head, **config), folder / f"{family} {head} {len(config)}")

    return of


@pytest.fixture
def fake_parts(tmp_path, monkeypatch):
    """An installation with the parts for browsers, which are not run here."""
    here = tmp_path / "parts"
    here.mkdir()
    for name in (site.WRAPPER, "page.html.jinja"):
        shutil.copyfile(site.HERE / name, here / name)
    for name in (site.TOKENIZERS, site.LICENCE, *site.MODULES):
        (here / name).write_bytes(name.encode())
    monkeypatch.setattr(site, "HERE", here)
    return here


@pytest.mark.native
def test_a_site_holds_the_model_its_settings_and_a_page_of_one_file(packed, fake_parts, tmp_path):
    source = packed("BERT", "ForSequenceClassification")
    made = make_site(source, tmp_path / "site")
    settings = json.loads((made / "model" / "web.json").read_text())
    assert settings == {
        "kind": "text-classification",
        "labels": list(tritune.engine.load(source).labels),
        "max_length": 72,
        "truncation_side": "right",
        "has_types": True,
        "multi_label": False,
        "pooling": ["mean"],
        "normalize": False,
    }
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (made / "model" / name).read_bytes() == (source / name).read_bytes()
    page = (made / "index.html").read_text()
    assert "<title>A &lt;b&gt;title&lt;/b&gt;</title>" in page
    assert not re.search(r"""(?:src|href)=|https?:""", page), "the page is one file"
    assert sorted(file.name for file in (made / "tritune").iterdir()) == sorted(
        ["tokenizers.LICENSE", "tokenizers.mjs", "tritune-relaxed.wasm", "tritune.mjs", "tritune.wasm"]
    )


@pytest.mark.native
def test_what_cannot_be_a_site_is_said_in_one_line(packed, fake_parts, tmp_path):
    tags = packed("BERT", "ForTokenClassification")
    with pytest.raises(TrituneError, match=r"is for token-classification; pages run .*--layout transformers.js"):
        make_site(tags, tmp_path / "tags")
    (fake_parts / site.MODULES[0]).unlink()
    with pytest.raises(TrituneError, match=r"has no tritune-relaxed\.wasm, which pages need; run `make web`"):
        make_site(packed("BERT", "ForSequenceClassification"), tmp_path / "none")


@pytest.mark.native
def test_the_command_packs_a_run_or_takes_a_packed_model(cli, packed, fake_parts, tmp_path):
    source, output = packed("BERT", "ForSequenceClassification"), tmp_path / "site"
    code, out, _ = cli("web", source, "--output", output, "--title", "Tickets", "--json")
    said = json.loads(out)
    assert code == 0 and said["model"] == str(source) and said["page_bytes"] == (output / "index.html").stat().st_size
    assert "<title>Tickets</title>" in (output / "index.html").read_text()
    code, _, error = cli("web", source, "--output", output)
    assert code == 2 and "holds a run or other files already" in error
    run = tmp_path / "run"
    tokenizer, row = tokenizer_of("BERT"), ALL["BERT"]
    teacher = replace(row, values=row.values | {"vocab_size": len(tokenizer)}).build()
    tritune.prepare(teacher, DEPLOY).save_pretrained(run)
    tokenizer.save_pretrained(run)
    code, _, error = cli("web", run, "--output", tmp_path / "packed-here")
    assert code == 0, error
    assert (tmp_path / "packed-here" / "model" / "model.safetensors").is_file()
    (fake_parts / site.MODULES[1]).unlink()
    code, _, error = cli("web", source, "--output", tmp_path / "none")
    assert code == 2 and "run `make web`" in error and not (tmp_path / "none").exists()


@web
@needs_node
def test_sums_of_every_instruction_set_are_exact(sites):
    folder = sites("BERT", "ForSequenceClassification")
    isas = ask(folder, "isas")["value"]
    assert isas[-1] == "scalar" and "simd" in isas
    chance = np.random.default_rng(0)
    shapes = [(1, 1, 1), (1, 16, 64), (2, 17, 65), (3, 5, 15), (4, 33, 16), (5, 8, 100), (9, 40, 384), (2, 16, 8192)]
    requests, expected = [], []
    for isa in isas:
        for (tokens, rows, columns), is_largest in ((shape, largest) for shape in shapes for largest in (False, True)):
            codes = chance.integers(-127, 128, (tokens, columns))
            fields = chance.integers(0, 4, (rows, columns))
            if is_largest:
                codes[:], fields[:] = np.where(np.arange(tokens) % 2, 127, -127)[:, None], 3
            wide = np.zeros((rows, -(-columns // 4) * 4), np.int64)
            wide[:, :columns] = fields
            bytes_ = (wide.reshape(rows, -1, 4) << np.arange(0, 8, 2)).sum(-1)
            shape = {"tokens": tokens, "rows": rows, "columns": columns, "isa": isa}
            requests.append(shape | {"codes": codes.ravel().tolist(), "packed": bytes_.ravel().tolist()})
            expected.append((codes @ (fields - 1).T).ravel().tolist())
    assert ask(folder, "sums", requests).get("value") == expected


@web
@needs_node
@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "XLM-R", "DistilBERT"])
def test_classes_and_probabilities_are_those_of_the_engine(sites, packed, family):
    source = packed(family, "ForSequenceClassification")
    texts = Reference(source).clear([*sentences(20), " ".join(WORDS * 12)])
    found = ask(sites(family, "ForSequenceClassification"), "classify", texts)["value"]
    expected = tritune.engine.load(source).predict(texts)
    assert [one["prediction"] for one in found] == [one["prediction"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=BOUND)


@web
@needs_node
def test_every_instruction_set_gives_the_same_embeddings_to_the_bit(sites):
    folder = sites("BERT", "Model")
    texts = [*sentences(6), " ".join(WORDS * 12)]
    scalar = ask(folder, "encode", texts, isa="scalar")["value"]
    for isa in ask(folder, "isas")["value"]:
        assert ask(folder, "encode", texts, isa=isa) == {"value": scalar, "isa": isa}


@web
@needs_node
@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_embeddings_are_pooled_and_scaled_as_the_engine_does(packed, tmp_path, mode):
    source = shutil.copytree(packed("BERT", "Model"), tmp_path / "encoder")
    write_json(source / "modules.json", modules("Transformer", "Pooling", "Normalize"))
    width = json.loads((source / "config.json").read_text())["hidden_size"]
    write_json(source / "1_Pooling" / "config.json", {"embedding_dimension": width, "pooling_mode": mode})
    texts = Reference(source).clear(sentences(12))
    found = ask(make_site(source, tmp_path / "site"), "encode", texts)["value"]
    np.testing.assert_allclose(found, tritune.engine.load(source).encode(texts), atol=BOUND)


@web
@needs_node
@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "XLM-R"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [5, 9, 16])
def test_texts_and_pairs_are_cut_as_the_tokenizer_cuts_them(packed, tmp_path, family, side, max_length):
    source = shutil.copytree(packed(family, "ForSequenceClassification"), tmp_path / "model")
    options = json.loads((source / "tokenizer_config.json").read_text()) | {"truncation_side": side}
    write_json(source / "tokenizer_config.json", options)
    (source / "recipe.yaml").write_text(f"max_length: {max_length}\n")
    folder = make_site(source, tmp_path / "site")
    chance = random.Random(1)
    texts = [*sentences(25, seed=2, most=9), "", " ", "Hütte Ünïcode 漢字 🙂", "x"]
    pairs = [chance.choice(texts) for _ in texts]
    tokenization = tritune.engine.load(source)._tokenization
    for given in ((texts,), (texts, pairs)):
        encodings = tokenization.sequences(*given, *([None] if len(given) == 1 else []), parallel=False)
        expected = [{"ids": of.ids, "types": of.type_ids if tokenization.has_types else None} for of in encodings]
        assert ask(folder, "tokens", *given)["value"] == expected


@web
@needs_node
def test_scores_and_many_labels(packed, tmp_path):
    texts = sentences(8)
    for config in ({"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}):
        source = packed("BERT", "ForSequenceClassification", **config)
        clear = Reference(source).clear(texts)
        found = ask(make_site(source, tmp_path / str(config["num_labels"])), "classify", clear)["value"]
        for one, other in zip(found, tritune.engine.load(source).predict(clear), strict=True):
            assert one.keys() == other.keys()
            assert one["prediction"] == (
                other["prediction"] if config["num_labels"] > 1 else pytest.approx(other["prediction"], abs=BOUND)
            )


@web
@needs_node
def test_bad_input_is_one_line(sites, tmp_path):
    folder = sites("BERT", "ForSequenceClassification")
    for arguments, said in (
        (["text"], "texts must be an array"),
        ([["a", 3]], "texts[1] is not text"),
        ([["a"], ["b", "c"]], "pairs, where there are any, as many"),
    ):
        answer = ask(folder, "classify", *arguments)
        assert said in answer["error"] and answer["kind"] == "TrituneError"
    assert "instruction set avx2 does not run here" in ask(folder, "isas", isa="avx2")["error"]
    assert "use encode" in ask(sites("BERT", "Model"), "classify", ["a"])["error"]
    after = ask(folder, "after_failures", ["a dog"], 20000)
    assert (
        after["value"]["failed"] == 20000 and after["value"]["answers"] == ask(folder, "classify", ["a dog"])["value"]
    )
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    weights = bytearray((damaged / "model" / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (damaged / "model" / "model.safetensors").write_bytes(weights)
    assert "is damaged; download it again" in ask(damaged, "isas")["error"]
    (damaged / "model" / "model.safetensors").write_bytes(weights[:-40])
    assert ask(damaged, "isas")["kind"] == "TrituneError"


@web
@needs_browser
def test_the_page_answers_in_a_browser(sites, packed):
    source = packed("BERT", "ForSequenceClassification")
    (expected,) = tritune.engine.load(source).predict(["they drank"])
    page = dumped(sites("BERT", "ForSequenceClassification"), "?text=they%20drank")
    rows = re.findall(r'<li class="(best|)"[^>]*><span>(.*?)</span><span>(.*?)</span>', page)
    shares = sorted(expected["probabilities"].items(), key=lambda item: -item[1])
    assert rows == [
        ("best" if name == expected["prediction"] else "", name, f"{100 * share:.1f} %") for name, share in shares
    ]


@web
@needs_browser
def test_the_page_searches_in_a_browser(sites):
    page = dumped(sites("BERT", "Model"), "?text=Is%20there%20a%20discount%20for%20students?")
    (best,) = re.findall(r'<li class="best"[^>]*><span>(.*?)</span><span>(.*?)</span>', page)
    assert best == ("Is there a discount for students?", "1.000")
    assert re.search('title="kernels: (pairs|quads|simd)"', page)


def dumped(folder: Path, query: str) -> str:
    """The page as it stands after its script has run."""
    handler = functools.partial(Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{query}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
        done = subprocess.run([BROWSER, *options, address], capture_output=True, text=True, timeout=120)
        server.shutdown()
    return done.stdout


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
