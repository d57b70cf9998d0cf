"""What is no packed checkpoint, or a damaged one, the engine's loader refuses in one line; nothing makes it crash."""

import json

import pytest
import torch
from safetensors.torch import load_file

from engine_models import CORPUS, DEPLOY, FAMILIES, PER_TOKEN, TERNARY, as_one_file, edited, save_packed
from tritune import Quantization
from tritune.checkpoints.packing import STORED_BITS

WORDS = "bert.embeddings.word_embeddings.weight"
OUT = "bert.encoder.layer.1.attention.output.dense"
Q = "quantization_config."


def _bytes(rows: int, columns: int, value: int = 0) -> torch.Tensor:
    return torch.full((rows, columns), value, dtype=torch.uint8)


DAMAGED = {
    "no quantization": ({"quantization_config": None}, {}, "quantization_config is missing"),
    "another method": ({Q + "quant_method": "other"}, {}, "quant_method is not tritune"),
    "a QAT checkpoint": ({Q + "stage": "qat"}, {}, "stage is not packed"),
    "a newer format": ({Q + "format_version": 2}, {}, "format_version is no whole number from 1 to 1"),
    "no layers": ({"num_hidden_layers": 0}, {}, "num_hidden_layers is no whole number from 1 to 1000"),
    "too many layers": ({"num_hidden_layers": 1001}, {}, "num_hidden_layers is no whole number"),
    "a layer too many": ({"num_hidden_layers": 3}, {}, "bert.encoder.layer.2.attention.self.query.weight is missing"),
    "a layer too few": ({"num_hidden_layers": 1}, {}, "for which its config.json has no place"),
    "a wider model": ({"hidden_size": 32}, {}, f"{WORDS} has the shape (40, 4) where its config.json asks for (40, 8)"),
    "an absurd width": ({"hidden_size": 2**62}, {}, "hidden_size is no whole number from 1 to 65536"),
    "a fraction": ({"hidden_size": 16.0}, {}, "hidden_size is no whole number"),
    "a text": ({"vocab_size": "40"}, {}, "vocab_size is no whole number"),
    "odd heads": ({"num_attention_heads": 3}, {}, "num_attention_heads is no divisor of hidden_size"),
    "more words": ({"vocab_size": 41}, {}, f"{WORDS} has the shape (40, 4)"),
    "more positions": ({"max_position_embeddings": 64}, {}, "position_embeddings.weight has the shape (32, 16)"),
    "more types": ({"type_vocab_size": 3}, {}, "token_type_embeddings.weight has the shape (2, 16)"),
    "a wider middle": ({"intermediate_size": 28}, {}, "intermediate.dense.weight has the shape (24, 4)"),
    "more labels": ({"id2label": {str(i): str(i) for i in range(4)}}, {}, "classifier.weight has the shape (3, 16)"),
    "no labels": ({"id2label": {}}, {}, "id2label is no mapping with labels"),
    "no epsilon": ({"layer_norm_eps": 0}, {}, "layer_norm_eps is no positive number of 32 bits"),
    "a negative clip": ({Q + "activation_clip": -1.0}, {}, "activation_clip is no positive number"),
    "other bits": ({Q + "weight_bits": 4}, {}, "weight_bits is no width of its quantizer"),
    "9 bits": ({Q + "activation_bits": 9}, {}, "activation_bits is no whole number from 2 to 8"),
    "a granularity": ({Q + "weight_granularity": "head"}, {}, "weight_granularity is neither row nor tensor"),
    "scales per tensor": ({Q + "weight_granularity": "tensor"}, {}, "weight_scale has the shape (16, 1)"),
    "ternary": ({Q + "weight_quantizer": "twn"}, {}, "holds codes or padding that do not exist"),
    "a missing bias": ({}, {f"{OUT}.bias": None}, f"{OUT}.bias is missing"),
    "a tensor too many": ({}, {"extra\n": torch.zeros(1)}, "holds 'extra?', for which its config.json has no place"),
    "long rows": ({}, {f"{OUT}.weight": _bytes(16, 5)}, f"{OUT}.weight has the shape (16, 5)"),
    "rows and columns": ({}, {f"{OUT}.weight": _bytes(4, 16)}, f"{OUT}.weight has the shape (4, 16)"),
    "a flat weight": ({}, {f"{OUT}.weight": _bytes(1, 64)[0]}, f"{OUT}.weight has the shape (64)"),
    "a NaN": ({}, {f"{OUT}.bias": torch.tensor([*[0.0] * 15, torch.nan])}, f"{OUT}.bias holds NaN or infinite values"),
    "infinity": ({}, {"classifier.bias": torch.tensor([0, -torch.inf, 0])}, "classifier.bias holds NaN or infinite"),
    "beyond 32 bits": (
        {},
        {"classifier.bias": torch.tensor([0, 1e300, 0]).double()},
        "classifier.bias holds NaN or inf",
    ),
    "a negative scale": (
        {},
        {f"{OUT}.weight_scale": -torch.ones(16, 1)},
        "holds a scale that is negative or too large",
    ),
    "a NaN scale": ({}, {f"{OUT}.weight_scale": torch.full((16, 1), torch.nan)}, "weight_scale holds NaN or infinite"),
    "a scale of 64 bits": ({}, {f"{OUT}.weight_scale": torch.ones(16, 1).double()}, "has the dtype of no scale"),
    "whole numbers": ({}, {"classifier.bias": torch.tensor([1, 2, 3])}, "has a dtype that no packed checkpoint holds"),
}


@pytest.mark.parametrize(("config", "tensors", "line"), DAMAGED.values(), ids=DAMAGED)
def test_what_does_not_fit_is_said_in_one_line(config, tensors, line, load_driver, packed_bert, tmp_path):
    said = load_driver.refusal(edited(packed_bert, tmp_path / "other", config, tensors))
    assert said.startswith("refused: ") and line in said and said.endswith("; download or convert it again")


@pytest.mark.parametrize("name", [WORDS, f"{OUT}.weight"], ids=["words", "Linear"])
@pytest.mark.parametrize(
    ("own", "fields"),
    [
        # 18 columns end within a byte but for those of 8 bits; each field is (row, byte, bits, value) that cannot be.
        (TERNARY, [(0, 0, 2, 3), (7, -1, 2, 3), (3, -1, 4, 0), (-1, -1, 6, 3)]),
        (Quantization(**PER_TOKEN, weight_quantizer="lsq"), [(3, -1, 4, 0), (-1, -1, 6, 3)]),
        (DEPLOY, [(3, -1, 4, 1), (-1, -1, 6, 3)]),
        (Quantization(**PER_TOKEN, weight_bits=4), [(0, 0, 0, 0), (5, 3, 4, 0)]),
        (Quantization(**PER_TOKEN, weight_bits=8), [(0, 0, 0, 0), (-1, -1, 0, 0)]),
        (Quantization(**PER_TOKEN, weight_bits=5), [(0, 0, 0, 112), (-1, -1, 0, 144)]),
    ],
    ids=["ternary", "learned", "four levels", "4 bits", "8 bits", "5 bits"],
)
def test_codes_and_padding_must_exist(own, fields, name, load_driver, tmp_path):
    folder = save_packed("BERT", 0, own, tmp_path / "packed", hidden_size=18)
    packed = load_file(folder / "model.safetensors")[name]
    for number, (row, byte, shift, value) in enumerate(fields):
        changed = packed.clone()
        mask = (1 << STORED_BITS[own.weight_bits]) - 1
        changed[row, byte] = changed[row, byte].item() & ~(mask << shift) & 255 | value << shift
        assert not torch.equal(changed, packed)
        said = load_driver.refusal(edited(folder, tmp_path / str(number), tensors={name: changed}))
        assert f"{name} holds codes or padding that do not exist" in said


# -- damage


def rows_of_json() -> dict[str, tuple[str, str]]:
    """Texts that are no JSON, and why."""
    deep = "[" * 65 + "]" * 65
    return {
        "nothing": ("", "unexpected character"),
        "an end": ("{", "a member without a name"),
        "a comma": ('{"a": 1,}', "a member without a name"),
        "no colon": ('{"a" 1}', "a member without a value"),
        "no value": ('{"a": }', "unexpected character"),
        "two values": ("{} {}", "something follows the end"),
        "a twin": ('{"a": 1, "b": {}, "a": 2}', "names a member twice"),
        "a twin in disguise": (r'{"a": 1, "\u0061": 2}', "names a member twice"),
        "too deep": (deep, "nested too deeply"),
        "NaN": ('{"a": NaN}', "unexpected character"),
        "infinity": ('{"a": -Infinity}', "unexpected character"),
        "half a word": ('{"a": tru}', "an unknown word"),
        "a zero before": ('{"a": 01}', "unexpected character"),
        "a plus": ('{"a": +1}', "unexpected character"),
        "a point": ('{"a": 1.}', "a number without digits"),
        "an exponent": ('{"a": 1e}', "a number without digits"),
        "a large number": ('{"a": 9223372036854775808}', "too large a number"),
        "a larger number": ('{"a": 1e309}', "too large a number"),
        "a control character": ('{"a": "\n"}', "with a control character"),
        "an open text": ('{"a": "b', "a text without its end"),
        "an escape": (r'{"a": "\x"}', "an unknown escape"),
        "half an escape": (r'{"a": "\u12"}', "an unknown escape"),
        "an escape of signs": (r'{"a": "\u+123"}', "an unknown escape"),
        "half a pair": (r'{"a": "\ud800"}', "half a surrogate pair"),
        "a pair of halves": (r'{"a": "\ud800\u0041"}', "half a surrogate pair"),
        "the second half": (r'{"a": "\udc00"}', "half a surrogate pair"),
        "a mark": ("\ufeff{}", "unexpected character"),
    }


@pytest.mark.parametrize(("text", "why"), rows_of_json().values(), ids=rows_of_json())
def test_only_json_is_read(text, why, load_driver, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="utf-8", newline="")
    (tmp_path / "model.safetensors").touch()
    said = load_driver.refusal(tmp_path)
    assert said.startswith("refused: config.json: not the JSON of a packed checkpoint (byte ") and why in said


@pytest.mark.parametrize(
    "text",
    [b"\xff", b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x82\x82\xac", b"\xe2\x82"],
)
def test_only_utf8_is_read(text, load_driver, tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"a": "' + text + b'"}')
    (tmp_path / "model.safetensors").touch()
    assert "not UTF-8" in load_driver.refusal(tmp_path)


def test_every_text_of_json_is_read(load_driver, packed_bert, tmp_path):
    """What json.dumps writes of any value is skipped where nobody asks for it."""
    odd = {"a": [1, -0.5, 1e-400, 1e308, None, True, False, [], {}, '"\\/\b\f\n\r\t\x7fé漢🦆'], "": {"": [[{}]]}}
    folder = edited(packed_bert, tmp_path / "odd", {"odd": odd})
    expected = load_driver.dump(packed_bert)
    assert load_driver.dump(folder) == expected
    text = json.dumps(json.loads((folder / "config.json").read_text()), ensure_ascii=False, indent="\t")
    (folder / "config.json").write_text(text.replace("\n", "\r\n"), encoding="utf-8")
    assert load_driver.dump(folder) == expected


def with_header(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _entry(dtype: str = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


FILES = {
    "empty": (b"", "truncated"),
    "7 bytes": (bytes(7), "truncated"),
    "a header longer than the file": (with_header({}, length=3), "truncated"),
    "a header of 2^64 - 1 bytes": (with_header({}, length=2**64 - 1), "truncated"),
    "a header too large": (with_header(b" " * (16 * 2**20 + 1)), "a header of 16777217 bytes is too large"),
    "no header": (with_header(b""), "unexpected character"),
    "a list": (with_header(b"[]"), "its header is no object"),
    "a twin": (with_header(b'{"a": {}, "a": {}}'), "names a member twice"),
    "no entry": (with_header({"a": 1}), "the entry of 'a' has a dtype that no packed checkpoint holds"),
    "a dtype": (with_header({"a": _entry("I64")}, bytes(4)), "has a dtype that no packed checkpoint holds"),
    "no shape": (with_header({"a": _entry(shape=None)}, bytes(4)), "the entry of 'a' has no shape"),
    "a negative extent": (with_header({"a": _entry(shape=[-1, -4])}, bytes(4)), "has no shape"),
    "a fraction": (with_header({"a": _entry(shape=[4.0])}, bytes(4)), "has no shape"),
    "nine dimensions": (with_header({"a": _entry(shape=[1] * 9)}, bytes(4)), "has no shape"),
    "one offset": (with_header({"a": _entry(offsets=[0])}, bytes(4)), "the entry of 'a' lies outside of the file"),
    "an offset too large": (with_header({"a": _entry(offsets=[0, 5], shape=[5])}, bytes(4)), "outside of the file"),
    "offsets the wrong way": (with_header({"a": _entry(offsets=[4, 0])}, bytes(4)), "outside of the file"),
    "a huge offset": (with_header({"a": _entry(offsets=[2**63 - 4, 2**63 - 1])}, bytes(4)), "outside of the file"),
    "a longer shape": (with_header({"a": _entry(shape=[5])}, bytes(4)), "is shorter than its shape"),
    "a shorter shape": (with_header({"a": _entry(shape=[3])}, bytes(4)), "is not as long as its shape"),
    "wider values": (with_header({"a": _entry("F32")}, bytes(4)), "is not as long as its shape"),
    "a product beyond 64 bits": (with_header({"a": _entry(shape=[2**32, 2**32])}, bytes(4)), "shorter than its shape"),
    "an empty shape": (with_header({"a": _entry(shape=[2**62, 8, 0])}, bytes(4)), "is not as long as its shape"),
    "an empty tensor": (with_header({"a": _entry(shape=[2**62, 8, 0], offsets=[4, 4])}, bytes(4)), "is missing"),
    "an overlap": (with_header({"a": _entry(), "b": _entry(offsets=[3, 7])}, bytes(7)), "lies over another one"),
    "the same bytes twice": (with_header({"a": _entry(), "b": _entry()}, bytes(4)), "lies over another one"),
}


@pytest.mark.parametrize(("content", "why"), FILES.values(), ids=FILES)
def test_only_sound_files_are_read(content, why, load_driver, packed_bert, tmp_path):
    folder = edited(packed_bert, tmp_path / "other")
    (folder / "model.safetensors").write_bytes(content)
    said = load_driver.refusal(folder)
    assert said.startswith("refused: model.safetensors: ") and why in said


def test_tensors_may_lie_anywhere_in_the_file(load_driver, packed_bert, tmp_path):
    """Unaligned, with gaps and in another order: what is read is the same."""
    content = (packed_bert / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    moved = bytearray(b"\xff")
    for name in sorted(header.keys() - {"__metadata__"}):
        start, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = [len(moved), len(moved) + end - start]
        moved += data[start:end] + b"\xff" * (1 + 2 * (end % 2))
    folder = edited(packed_bert, tmp_path / "moved")
    (folder / "model.safetensors").write_bytes(with_header(header, bytes(moved)))
    found, expected = load_driver.dump(folder), load_driver.dump(packed_bert)
    assert found["words"].pop("offset") != expected["words"].pop("offset")
    assert found == expected


def test_a_damaged_model_is_refused_or_loaded(load_driver, packed_bert, tmp_path):
    """Bits flipped at every byte of config and header and at some of the data, and files cut short: nothing crashes."""
    (tmp_path / "bert").write_bytes(as_one_file(packed_bert))
    loaded, _, tried, _ = load_driver.say("damage", 97, tmp_path / "bert").split()
    assert int(tried) > 10_000 and 0 < int(loaded) < int(tried) / 2


def test_the_corpus_of_the_fuzzer_is_refused_or_loaded(load_driver):
    files = sorted(CORPUS.iterdir())
    loaded, _, tried, _ = load_driver.say("replay", *files).split()
    assert int(tried) == len(files) and int(loaded) >= len(FAMILIES)
    assert sum(file.stat().st_size for file in files) <= 300_000
