"""Folders for other programs: which files lie where, and what they say. Their programs are asked in test_clients.py."""

import json
from pathlib import Path

import pytest

from exportable import EXPORTABLE
from sentence_encoder import make_encoder
from tritune import TrituneError
from tritune.deploy.export import folder as folders
from tritune.deploy.export.layouts import LAYOUTS
from tritune.tasks.heads import FEATURE_EXTRACTION, head_of_class
from tritune.tasks.heads.pooling import Pooling
from tritune.tasks.heads.sentence_files import described, read_sentence_files

USUAL = {"config.json", "tokenizer.json", "tokenizer_config.json"}
SENTENCES = {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"}
MORE = {"special_tokens_map.json", "quantize_config.json"}


@pytest.fixture
def exports(monkeypatch):
    """Opset and target of every graph that `export_folder` was to write; the graph itself is not made."""
    written = []

    def export_onnx(model, path, opset, names, head, target):
        written.append((opset, target))
        Path(path).write_bytes(b"graph")

    monkeypatch.setattr(folders, "export_onnx", export_onnx)
    return written


def export(name: str, source: Path, target: Path, layout: str, opset: int | None = None, **more) -> set[str]:
    """The files of a folder that was exported from `source`."""
    chosen = LAYOUTS[layout].settled(opset=opset)
    model = EXPORTABLE[name].kind.from_pretrained(source)
    head = head_of_class(type(model).__name__).for_model(source)
    target.mkdir()
    folders.export_folder(model, head.load_processor(source, model, None), target, head, chosen, **more)
    return {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "layout, file, opset, target, more",
    [
        ("plain", "model.onnx", 25, "native", set()),
        ("transformers.js", "onnx/model_quantized.onnx", 21, "web", MORE),
        ("sentence-transformers", "onnx/model.onnx", 18, "native", MORE),
        ("fastembed", "model.onnx", 18, "native", MORE),
    ],
)
def test_every_file_lies_where_the_program_looks(exports, tmp_path, layout, file, opset, target, more):
    source = EXPORTABLE["sentences"].write_model(tmp_path / "model")
    files = export("sentences", source, tmp_path / "new", layout)
    assert files - {"config_sentence_transformers.json", "2_Normalize/config.json"} == {file} | USUAL | SENTENCES | more
    assert exports == [(opset, target)]
    config, tokenizer = read(tmp_path / "new" / "config.json"), read(tmp_path / "new" / "tokenizer_config.json")
    assert "tritune" not in json.dumps(config) and "quantization_config" not in config
    assert config.get("transformers.js_config") == ({"dtype": "q8"} if layout == "transformers.js" else None)
    if layout != "plain":
        # The encoder's files say 32 tokens, its positions are 128; transformers 4 does not know the new class.
        assert tokenizer["model_max_length"] == tokenizer["max_length"] == 32
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
        found = read(tmp_path / "new" / "quantize_config.json")
        assert [found[key] for key in ("file", "opset", "target")] == [file, opset, target]
        assert found["quantization"]["weight_bits"] == 2


def test_a_float_model_has_the_name_of_one(exports, tmp_path):
    source = EXPORTABLE["tags"].write_model(tmp_path / "model", quantized=False)
    files = export("tags", source, tmp_path / "new", "transformers.js", max_length=48, opset=19)
    assert files == {"onnx/model.onnx"} | USUAL | MORE - {"quantize_config.json"} and exports == [(19, "web")]
    assert read(tmp_path / "new" / "config.json")["transformers.js_config"] == {"dtype": "fp32"}
    assert read(tmp_path / "new" / "tokenizer_config.json")["model_max_length"] == 48


def test_an_encoder_without_files_gets_those_of_its_pooling(exports, tmp_path):
    source = make_encoder(tmp_path / "model", pooling=None)
    assert export("sentences", source, tmp_path / "new", "sentence-transformers") >= SENTENCES
    found = read_sentence_files(tmp_path / "new")
    assert found.pooling == Pooling() and (found.width, found.max_length) == (16, 32)


@pytest.mark.parametrize("pooling", [Pooling(("cls",), True), Pooling(("lasttoken",)), Pooling(("max", "mean"), True)])
def test_described_poolings_are_read_back(tmp_path, pooling):
    described(pooling, 16, 64).write(tmp_path)
    found = read_sentence_files(tmp_path)
    assert (found.pooling, found.width, found.max_length) == (pooling, 16, 64)


def test_layouts_refuse_what_their_programs_do_not_run(exports, cli, tmp_path):
    LAYOUTS["transformers.js"].check("token-classification")
    LAYOUTS["fastembed"].check(FEATURE_EXTRACTION.name)
    with pytest.raises(TrituneError, match=r"--layout fastembed: .* with --layout plain or transformers\.js$"):
        LAYOUTS["fastembed"].check("token-classification")
    source = EXPORTABLE["tags"].write_model(tmp_path / "model")
    for more, message in (
        (("--output", tmp_path / "new", "--layout", "sentence-transformers"), "for token-classification with"),
        (("--output", tmp_path / "new.onnx", "--layout", "fastembed"), "is that of an ONNX folder"),
        (("--output", tmp_path / "new", "--layout", "fastembed", "--format", "dense"), "is that of an ONNX folder"),
        (("--output", tmp_path / "new", "--layout", "transformers.js", "--opset", 17), "18 to 25"),
    ):
        code, _, err = cli("export", source, *more)
        assert code == 2 and message in err and err.count("\n") == 1, err
    assert not list(tmp_path.glob("new*")) and not exports


def test_the_card_says_how_the_folder_was_made(cli, tmp_path):
    pytest.importorskip("onnxscript", reason="needs tritune[onnx]")
    pytest.importorskip("onnxruntime", reason="needs tritune[onnx]")
    source, target = EXPORTABLE["sentences"].write_model(tmp_path / "model"), tmp_path / "new"
    verification = EXPORTABLE["sentences"].verification(tmp_path / "data")
    code, out, err = cli("export", source, "--output", target, "--layout", "fastembed", *verification, "--json")
    assert code == 0, err
    report, card = json.loads(out), (target / "README.md").read_text(encoding="utf-8")
    assert report["size_bytes"] == (target / "model.onnx").stat().st_size
    for line in (
        "library_name: fastembed",
        f"| made from | `{source}` |",
        "| weights | 2 bits, one scale per row |",
        "| activations | 8 bits, one scale per token |",
        "| file | `model.onnx`, ONNX opset 18 |",
        f"| size | {report['size_bytes'] / 1e6:.2f} MB |",
        f"tritune export {source} --output {target} --layout fastembed --verify",
        f"cosine of the embeddings {report['verify']['smallest_cosine']:.6f} or more",
        'dim=16, model_file="model.onnx"',
    ):
        assert line in card


def test_a_layout_keeps_its_own_opset_for_its_own_target_only():
    assert (LAYOUTS["fastembed"].settled().opset, LAYOUTS["fastembed"].settled("web").opset) == (18, 21)
    assert (LAYOUTS["transformers.js"].settled("native").opset, LAYOUTS["plain"].settled("web", 19).opset) == (21, 19)
