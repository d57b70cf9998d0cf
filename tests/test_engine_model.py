"""The engine without torch says what the packed model says in torch, and its results depend on the text alone."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import tritune.engine
from engine_folders import BOUND, FAMILIES, HEADS, Reference, save_reader, sentences
from engine_models import DEPLOY, save_packed
from sentence_encoder import MEAN, modules, write_json
from small_answers import NAMES
from tritune import Quantization, TrituneError
from tritune.engine import binding, cores, encoder
from tritune.engine.encoder import load
from tritune.engine.integrity import config_checksum
from tritune.engine.model import Model
from tritune.engine.pooling import MODES
from tritune.engine.tokenization import Tokenization
from tritune.inference.evaluate import usual_task
from tritune.inference.predict import predict_rows
from tritune.tasks.heads import HEADS as KINDS
from tritune.tasks.heads.pooling import POOLINGS, Pooling

pytestmark = pytest.mark.native
ISAS = binding.isas() if binding.available() else ["scalar"]
SEQUENCE, TAGS, SPANS, BARE = HEADS
NASTY = [
    "",
    " ",
    "Ada in Como?",
    "\U0001f600 Zürich\r\n\t漢 \x07",
    "[SEP] </s> [PAD] <unk> [CLS]",
    "x" * 300,
    "e\u0301",
]
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function from a family and a head to a packed folder, each made once."""
    made: dict[tuple[str, str], Path] = {}

    def folder(family: str, head: str = SEQUENCE) -> Path:
        if (family, head) not in made:
            made[family, head] = save_reader(family, head, tmp_path_factory.mktemp("packed") / "model")
        return made[family, head]

    return folder


@pytest.fixture(scope="module")
def bert(folders) -> Path:
    return folders("BERT")


@pytest.fixture
def copy(bert, tmp_path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "copy"))


def rewrite(path: Path, change: dict) -> None:
    """Change some keys of a JSON file, None to leave one out; the checksum of a packed config is made anew."""
    values = json.loads(path.read_text()) | change
    values = {key: value for key, value in values.items() if value is not None}
    if path.name == CONFIG:
        values["quantization_config"]["config_checksum"] = config_checksum(values)
    write_json(path, values)


# What torch says.


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_packed_model(family, folders):
    reference, own = Reference(folders(family)), load(folders(family))
    texts = reference.clear(sentences(40))
    expected = np.stack([reference.run(text)[0].numpy() for text in texts])
    found = own.logits(texts)
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.abs(found - expected).max() < BOUND
    assert [one["prediction"] for one in own.predict(texts)] == [own.labels[best] for best in expected.argmax(-1)]


def test_the_bound_shows_a_scale_that_is_off(bert):
    reference, own = Reference(bert), load(bert)
    texts = reference.clear(sentences(40))
    with torch.no_grad():
        reference.model.get_submodule("bert.encoder.layer.1.output.dense").weight_scale[0].mul_(1.001)
    off = np.stack([reference.run(text)[0].numpy() for text in texts])
    assert np.abs(own.logits(texts) - off).max() > BOUND


@pytest.mark.parametrize("head", [TAGS, SPANS, BARE])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_at_tokens_is_that_of_the_packed_model(family, head, folders):
    reference, own = Reference(folders(family, head)), load(folders(family, head))
    for text in reference.clear(sentences(30))[:6]:
        ids = np.array(reference.tokenizer(text)["input_ids"])
        output = own.run(ids, [0, len(ids)], hidden=True)
        found = output.hidden if head == BARE else output.answers
        assert np.abs(found - reference.run(text)[0].numpy()).max() < BOUND, text


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_have_the_token_types_that_transformers_gives_them(family, folders):
    reference, own = Reference(folders(family)), load(folders(family))
    pairs = reference.clear([*zip(sentences(80, most=2), sentences(80, seed=1, most=2), strict=True)])
    expected = np.stack([reference.run(*pair)[0].numpy() for pair in pairs])
    assert np.abs(own.logits(*map(list, zip(*pairs, strict=True))) - expected).max() < BOUND


@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "XLM-R"])
def test_padding_tokens_that_a_text_spells_stand_where_torch_puts_them(family, folders):
    reference, own = Reference(folders(family)), load(folders(family))
    pad = reference.tokenizer.pad_token
    texts = reference.clear([pad, f"{pad}x", f"x{pad}", *(f"{a}{pad}{b}" for a in "abcd?" for b in "xyz!")])
    expected = np.stack([reference.run(text)[0].numpy() for text in texts])
    assert np.abs(own.logits(texts) - expected).max() < BOUND
    long = own.logits([f"x {pad} " * 40])  # of several blocks of rows
    assert np.array_equal(load(folders(family), threads=5).logits([f"x {pad} " * 40]), long)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers(family, side, folders, tmp_path):
    folder = Path(shutil.copytree(folders(family), tmp_path / "model"))
    rewrite(folder / "tokenizer_config.json", {"truncation_side": side})
    theirs = AutoTokenizer.from_pretrained(folder)
    own = Tokenization(folder, json.loads((folder / CONFIG).read_text()), 10_000)
    own.limit(20)
    for pairs in (None, NASTY[::-1], ["x" * 90] * len(NASTY)):
        expected = theirs(*([NASTY] if pairs is None else [NASTY, pairs]), truncation=True, max_length=20)
        for parallel in (False, True):
            batch = own.batch(own.sequences(NASTY, pairs, parallel))
            assert np.array_equal(batch.ids, np.concatenate(expected["input_ids"]))
            assert batch.offsets.tolist() == [0, *np.cumsum([len(ids) for ids in expected["input_ids"]])]
            types = expected.get("token_type_ids")
            assert (types is None) == (batch.types is None)
            assert types is None or np.array_equal(batch.types, np.concatenate(types))


def same(rows: list[dict], found: list[dict]) -> None:
    """Columns of `predict_rows` with what the engine says; numbers are rounded there."""
    for row, one in zip(rows, found, strict=True):
        flat = {f"probability_{label}": share for label, share in one.pop("probabilities", {}).items()}
        for name, value in (one | flat).items():
            assert row[name] == (pytest.approx(value, abs=2e-5) if isinstance(value, float) else value), name


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_a_text_is_answered_as_tritune_predict_answers(problem, tmp_path):
    named = {} if problem == "regression" else {"id2label": {0: "bad", 1: "so so", 2: "good"}}
    values = {"problem_type": problem, **named, **({"num_labels": 1} if problem == "regression" else {})}
    folder = save_reader("BERT", SEQUENCE, tmp_path, **values)
    texts = Reference(folder).clear(sentences(40))
    own = load(folder)
    assert own.labels == ((), ("bad", "so so", "good"))[bool(named)]
    rows = predict_rows(folder, [{"text": text} for text in texts], probabilities=bool(named))
    same(rows, own.predict(texts))


@pytest.mark.parametrize("family", ["BERT", "RoBERTa"])
def test_words_are_tagged_as_tritune_predict_tags_them(family, folders):
    folder = folders(family, TAGS)
    reference = Reference(folder)
    if family == "RoBERTa":  # whose head asks for the space before words
        reference.tokenizer = AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    texts = reference.clear([text.split() for text in sentences(80, most=2)], is_split_into_words=True)
    texts.append(["Ada", "\x07", "", "x" * 90, "beyond"])
    found = load(folder).predict(texts)
    rows = predict_rows(folder, [{"tokens": text} for text in texts], overrides=["max_length=70"])
    same(rows[:-1], found[:-1])
    assert len(found[-1]["tags"]) == 5 and found[-1]["tags"][-1] == rows[-1]["tags"][-1] == "O"
    assert load(folder).predict([" ".join(texts[0])]) == [found[0]]


@pytest.mark.parametrize("family", ["BERT", "RoBERTa"])
def test_questions_are_answered_as_tritune_predict_answers_them(family, folders):
    folder = folders(family, SPANS)
    contexts = sentences(60, most=40)
    asked = list(zip([f"where lives {name}" for name in NAMES] * 12, contexts, strict=True))
    own = load(folder, max_length=32)
    overrides = ["max_length=32"]
    rows = predict_rows(folder, [{"question": q, "context": c} for q, c in asked], overrides=overrides)
    found = own.predict(*map(list, zip(*asked, strict=True)))
    # Windows are many, and of most of them some value is near a tie.
    agreeing = [row["answer"] == one["answer"] for row, one in zip(rows, found, strict=True)]
    close = [abs(row["score"] - one["score"]) < 2e-5 for row, one in zip(rows, found, strict=True)]
    assert sum(agreeing) > 0.9 * len(rows) and sum(close) > len(rows) / 4
    assert max(abs(row["score"] - one["score"]) for row, one in zip(rows, found, strict=True)) < 0.02
    short = Reference(folder).clear([("who", context[:5]) for context in dict.fromkeys(contexts)])
    rows = predict_rows(folder, [{"question": q, "context": c} for q, c in short], overrides=overrides)
    same(rows, own.predict(*map(list, zip(*short, strict=True))))


# What does not matter.


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("family", ["BERT", "ELECTRA", "DistilBERT"])
def test_results_do_not_depend_on_batch_threads_and_memory(family, isa, folders, monkeypatch):
    texts = [*NASTY, *sentences(40, most=40)]
    one, three = (load(folders(family), threads=threads, isa=isa) for threads in (1, 3))
    assert one.isa == isa
    alone = np.concatenate([one.logits([text]) for text in texts])
    embedded = np.concatenate([one.encode([text]) for text in texts])
    for size in (None, 5):
        if size:
            monkeypatch.setattr(encoder, "_TEXTS_AT_ONCE", size)
            monkeypatch.setattr(encoder, "_TOKENS_A_THREAD", 50)
        for model in (one, three):
            assert np.array_equal(model.logits(texts), alone)
            assert np.array_equal(model.logits(texts[::-1]), alone[::-1])
            assert np.array_equal(model.encode(texts), embedded)


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets_agree(isa, bert):
    texts = Reference(bert).clear(sentences(40))
    assert np.abs(load(bert, isa=isa).logits(texts) - load(bert, isa="scalar").logits(texts)).max() < BOUND


def test_spans_and_tags_do_not_depend_on_the_batch(folders):
    texts = sentences(12, most=30)
    tagger, reader = load(folders("BERT", TAGS)), load(folders("BERT", SPANS), max_length=32)
    assert tagger.predict(texts) == [tagger.predict([text])[0] for text in texts]
    questions = ["who lives in Como"] * len(texts)
    alone = [reader.predict([question], [text])[0] for question, text in zip(questions, texts, strict=True)]
    assert reader.predict(questions, texts) == alone


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_share_one_model(threads, bert):
    model = load(bert, threads=threads)
    texts = [*NASTY, *sentences(60, most=20)]
    logits, embeddings = model.logits(texts), model.encode(texts)

    def work(number: int) -> bool:
        part = slice(number, None, 3)
        return all(
            np.array_equal(model.logits(texts[part]), logits[part])
            and np.array_equal(model.encode(texts[part]), embeddings[part])
            for _ in range(4)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_a_model_may_be_closed_while_it_works(bert):
    model = load(bert, threads=1)
    expected = model.logits(sentences(5))

    def work(_: int) -> bool:
        try:
            while True:
                assert np.array_equal(model.logits(sentences(5)), expected)
        except TrituneError as error:
            return "closed" in str(error)

    with ThreadPoolExecutor(3) as pool:
        results = pool.map(work, range(3))
        model.close()
        assert all(results)
    model.close()


def test_a_model_ends_with_its_block(bert):
    with load(bert, threads=2, isa=ISAS[0]) as model:
        assert repr(model) == f"<text-classification from {bert}, {ISAS[0]}, 2 threads, up to 72 tokens>"
    with pytest.raises(TrituneError, match="the model is closed"):
        model.logits(["x"])


def test_nothing_in_nothing_out(folders):
    for head, empty in ((SEQUENCE, (0, 3)), (BARE, (0, 16))):
        model = load(folders("BERT", head))
        assert (model.logits([]) if head == SEQUENCE else model.encode([])).shape == empty
    assert load(folders("BERT")).predict([]) == load(folders("BERT", TAGS)).predict([]) == []
    assert load(folders("BERT", SPANS)).predict([], []) == []


# Embeddings.


def test_poolings_are_those_of_torch(folders):
    assert {*MODES} == {*POOLINGS}
    folder = folders("BERT", BARE)
    model, texts = load(folder), sentences(6)
    modes = tuple(MODES)
    pooling = {"pooling_mode": list(modes), "embedding_dimension": 16}
    write_json(folder / "modules.json", modules("Transformer", "Pooling"))
    write_json(folder / "1_Pooling" / CONFIG, pooling)
    try:
        found = load(folder).encode(texts)
        with pytest.raises(TrituneError, match="gives embeddings, not labels; use encode"):
            model.predict(texts)
    finally:
        (folder / "modules.json").unlink()
        shutil.rmtree(folder / "1_Pooling")
    for row, text in zip(found, texts, strict=True):
        ids = model._tokenization.sequences([text], None, False)[0].ids
        states = torch.from_numpy(model.run(ids, [0, len(ids)], hidden=True).hidden)
        assert row == pytest.approx(Pooling(modes)(states[None])[0].numpy(), abs=1e-6)
    assert model.encode(texts) == pytest.approx(found[:, 32:48], abs=0)
    scaled = model.encode(texts, normalize=True)
    assert np.linalg.norm(scaled, axis=1) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(found[:, 32:48], axis=1)[:, None] * scaled == pytest.approx(found[:, 32:48], abs=1e-5)


def test_a_sentence_encoder_is_that_of_sentence_transformers(folders, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = Path(shutil.copytree(folders("BERT", BARE), tmp_path / "model"))
    write_json(folder / "modules.json", modules("Transformer", "Pooling", "Normalize"))
    write_json(folder / "1_Pooling" / CONFIG, MEAN)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False})
    own, theirs = load(folder), SentenceTransformer(str(folder), device="cpu")
    assert own.max_length == 12 and own.kind == "feature-extraction"
    texts = Reference(folder).clear(sentences(60, most=20), max_length=12)
    expected = theirs.encode(texts, batch_size=1)
    assert np.abs(own.encode(texts) - expected).max() < BOUND
    assert np.linalg.norm(own.encode(texts, normalize=False), axis=1).min() > 1.1


# Lengths.


def test_lengths_are_those_of_tritune_predict(copy, folders):
    assert {kind: usual_task(KINDS[kind]).max_length for kind in encoder._USUAL_LENGTHS} == encoder._USUAL_LENGTHS
    assert load(copy).max_length == 72  # the model's positions
    for text, length in (("max_length: 24\n", 24), ("max_length: null\n", 72), ("a: 1\nmax_length: 30  # x\nb:\n", 30)):
        (copy / "recipe.yaml").write_text(text)
        assert load(copy).max_length == length
    assert load(copy, max_length=9).max_length == 9
    with pytest.raises(TrituneError, match=f"max_length 73 is more than the 72 positions of {copy}"):
        load(copy, max_length=73)
    with pytest.raises(TrituneError, match="max_length 2 leaves no room for text beside 2 special tokens"):
        load(copy, max_length=2)
    for name in ("threads", "max_length"):
        for bad in (0, -1, "2", 1.5):
            with pytest.raises(TrituneError, match=f"{name} must be a whole number from 1 on; got"):
                load(copy, **{name: bad})
    with pytest.raises(TrituneError, match="max_length 3 leaves no room for two texts"):
        load(copy, max_length=3).logits(["x"], ["y"])
    with pytest.raises(TrituneError, match="max_length 20: a question and its context need at least 24"):
        load(folders("BERT", SPANS), max_length=20)
    assert load(folders("RoBERTa")).max_length == 70  # two positions stand before the first token


def test_the_longest_text_and_the_shortest(bert):
    reference, own = Reference(bert), load(bert)
    long, one = ["x " * 500, "Ada " * 70], own.run([2], [0, 1]).answers
    for text in long:
        (expected, is_clear) = reference.run(text, max_length=72)
        assert not is_clear or np.abs(own.logits([text])[0] - expected.numpy()).max() < BOUND
    assert own.logits(long).shape == (2, 3) and one.shape == (1, 3)


# What is refused.


def test_what_is_no_text_is_named(folders):
    own = load(folders("BERT"))
    for texts, message in (
        ("a text", "texts must be a list of texts, got one text; put it into a list"),
        (["x", 5], r"texts\[1\]: must be text, found 5"),
        (["x", None], r"texts\[1\]: must be text, found None"),
        (["x", "a\ud800"], r"texts\[1\]: is no valid Unicode at character 1"),
    ):
        for call in (own.logits, own.predict, own.encode):
            with pytest.raises(TrituneError, match=message):
                call(texts)
    with pytest.raises(TrituneError, match="2 texts and 1 pairs"):
        own.logits(["x", "y"], ["z"])
    tagger, reader = load(folders("BERT", TAGS)), load(folders("BERT", SPANS))
    for texts, message in (
        ("a text", "must be a list of texts"),
        ([""], r"texts\[0\]: must hold words, found ''"),
        ([["x"], [5]], r"texts\[1\]: must be text, found 5"),
    ):
        with pytest.raises(TrituneError, match=message):
            tagger.predict(texts)
    with pytest.raises(TrituneError, match="reads one text at a time"):
        tagger.predict(["x"], ["y"])
    with pytest.raises(TrituneError, match="needs pairs: the context of every question"):
        reader.predict(["who?"])
    with pytest.raises(TrituneError, match="'\\\\x07': this context has no tokens"):
        reader.predict(["who?"], ["\x07"])
    for model, use in ((tagger, "predict"), (reader, "predict"), (load(folders("BERT", BARE)), "encode")):
        with pytest.raises(TrituneError, match=f"has no logits of texts; use {use}"):
            model.logits(["x"])


BAD_ARRAYS = {
    "id too large": (([999_999], [0, 1]), "sequence 0: an id is outside the vocabulary"),
    "id of 2^32": (([2**32 + 5], [0, 1]), "ids must be from"),
    "negative id": (([3, -1], [0, 2]), "sequence 0: an id is outside the vocabulary"),
    "fraction": (([1.5], [0, 1]), "ids must be a row of whole numbers, got float64"),
    "two dimensions": (([[1, 2]], [0, 2]), "ids must be a row of whole numbers"),
    "empty sequence": (([3, 4], [0, 1, 1, 2]), "no sequence is empty"),
    "no sequence": (([], [0]), "no sequence is empty"),
    "nothing": (([], []), "no sequence is empty"),
    "beyond the tokens": (([3, 4], [0, 3]), "offsets must rise from 0 to the 2 tokens"),
    "falling": (([3, 4, 5], [0, 2, 1, 3]), "no sequence is empty"),
    "not from 0": (([3, 4], [1, 2]), "offsets must rise from 0"),
    "type too large": (([3, 4], [0, 2], [0, 7]), "a token type does not exist"),
    "types missing": (([3, 4], [0, 2], [0]), "types must be 2 of whole numbers"),
    "too long": (([3] * 73, [0, 73]), "has more than 72 tokens"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused(name, bert):
    arguments, message = BAD_ARRAYS[name]
    with pytest.raises(TrituneError, match=message) as caught:
        load(bert).run(*arguments)
    assert "\n" not in str(caught.value)


def test_positions_are_checked(bert):
    own = load(bert)
    assert np.array_equal(own.run([3, 4], [0, 2], positions=[0, 1]).answers, own.run([3, 4], [0, 2]).answers)
    assert not np.array_equal(own.run([3, 4], [0, 2], positions=[5, 9]).answers, own.run([3, 4], [0, 2]).answers)
    for bad in (-1, 72):
        with pytest.raises(TrituneError, match="a position is beyond the model's"):
            own.run([3, 4], [0, 2], positions=[0, bad])


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_flipped_byte_is_refused(name, copy):
    path = copy / name
    original, logits = path.read_bytes(), load(copy).logits(["what is it", "x"])
    chosen = np.random.default_rng(0).choice(len(original), 60, replace=False)
    for place in (0, 9, len(original) - 1, *map(int, chosen)):
        changed = bytearray(original)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = load(copy).logits(["what is it", "x"])
        except TrituneError as error:
            assert name in str(error) and "\n" not in str(error)
        else:  # a blank may become another blank, and names in the config other names
            assert np.array_equal(found, logits)
            blank = original[place : place + 1].isspace() and changed[place : place + 1].isspace()
            assert blank or name == CONFIG


def without(name):
    """Remove a file."""
    return lambda folder: (folder / name).unlink()


def text_in(name, text):
    """Write a file."""
    return lambda folder: (folder / name).write_text(text)


REFUSED = {
    "no folder": (lambda folder: shutil.rmtree(folder), "not a folder; give the folder of a packed model"),
    "no config": (without(CONFIG), "the folder has no config.json"),
    "no weights": (without(WEIGHTS), "has no model.safetensors"),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer.json, which the engine needs"),
    "shards": (text_in(f"{WEIGHTS}.index.json", "{}"), "its weights are in several files"),
    "float": (lambda folder: rewrite_plain(folder), "not the config of a packed checkpoint.*tritune convert"),
    "broken tokenizer": (text_in("tokenizer.json", "{}"), "tokenizer.json: cannot be read"),
    "broken tokenizer config": (text_in("tokenizer_config.json", "["), "tokenizer_config.json: cannot be read"),
    "list as tokenizer config": (text_in("tokenizer_config.json", "[]"), "tokenizer_config.json: not a JSON object"),
    "side": (text_in("tokenizer_config.json", '{"truncation_side": "up"}'), "truncation_side must be left or right"),
    "labels": (
        lambda folder: rewrite(folder / CONFIG, {"id2label": {"0": "a", "1": "a", "2": "b"}}),
        "id2label in its config.json must give each label from 0 to 2 a name of its own",
    ),
    "broken modules": (text_in("modules.json", "["), "modules.json: not a JSON list"),
}


def rewrite_plain(folder: Path) -> None:
    """A config without anything of tritune's."""
    values = json.loads((folder / CONFIG).read_text())
    del values["quantization_config"]
    write_json(folder / CONFIG, values)


@pytest.mark.parametrize("name", REFUSED)
def test_folders_that_cannot_be_used_are_refused_in_one_line(name, copy):
    damage, message = REFUSED[name]
    damage(copy)
    with pytest.raises(TrituneError, match=message) as caught:
        load(copy)
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


def test_what_the_engine_does_not_run_is_said(copy, tmp_path, monkeypatch):
    folder = save_reader("BERT", SEQUENCE, tmp_path / "tensor", quantization=Quantization())
    with pytest.raises(TrituneError, match=r"train with activation_granularity=token, or use tritune\.load"):
        load(folder)
    rewrite(copy / CONFIG, {"model_type": "albert"})
    with pytest.raises(TrituneError, match=r"copy: .*model_type.*does not run such a model"):
        load(copy)
    with pytest.raises(TrituneError, match="instruction set abacus does not run here; there are"):
        load(folder_of(copy), isa="abacus")
    monkeypatch.setenv("TRITUNE_ISA", "abacus")
    with pytest.raises(TrituneError, match="TRITUNE_ISA=abacus"):
        load(folder_of(copy))
    monkeypatch.setenv("TRITUNE_ISA", "scalar")
    assert load(folder_of(copy)).isa == "scalar"


def folder_of(copy: Path) -> Path:
    """The copy with its own model type again."""
    rewrite(copy / CONFIG, {"model_type": "bert"})
    return copy


def test_image_models_take_arrays_only(tmp_path):
    folder = save_packed("ViT", 0, DEPLOY, tmp_path)
    with pytest.raises(TrituneError, match=f"{tmp_path}: reads images and no texts; use tritune.load"):
        load(folder)
    with Model((folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()) as model:
        pixels = torch.randn(5, model.channels, model.image_size, model.image_size)
        output = model.run_images(pixels.numpy(), hidden=True, threads=2)
        assert output.hidden.shape == (5 * model.max_tokens, model.hidden_size)
        for number in range(5):
            alone = model.run_images(pixels[number : number + 1].numpy())
            assert np.array_equal(alone.answers[0], output.answers[number])
        for bad in (np.zeros((0, *pixels.shape[1:])), pixels[0].numpy(), pixels[..., 1:].numpy()):
            with pytest.raises(TrituneError, match="the model reads images of shape"):
                model.run_images(bad)
        with pytest.raises(TrituneError, match="the model takes images, not tokens"):
            model.run([1], [0, 1])
    with pytest.raises(TrituneError, match="the model is closed"):
        model.run_images(pixels.numpy())


def test_text_models_take_no_images(bert):
    model = load(bert).model
    with pytest.raises(TrituneError, match="the model reads images of shape"):
        model.run_images(np.zeros((1, 3, 8, 8)))


def test_a_tokenizer_of_another_model_is_refused(copy, folders):
    shutil.copyfile(folders("RoBERTa") / "tokenizer.json", copy / "tokenizer.json")
    with pytest.raises(TrituneError, match="they do not belong together"):
        load(copy)


# Around it.


def test_cores_are_counted_once_and_no_more_than_the_share_of_time(tmp_path, monkeypatch):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(cores, "_CPUS", tmp_path)
    monkeypatch.setattr(cores, "_QUOTA", quota)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 6}, raising=False)
    assert cores.cores() == 5
    for number, core in ((0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3"), (6, "6-7")):
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(core + "\n")
    assert cores.cores() == 3
    for text, count in (("max 100000\n", 3), ("200000 100000\n", 2), ("50000 100000\n", 1), ("nonsense", 3)):
        quota.write_text(text)
        assert cores.cores() == count


START = """
import sys
import tritune.engine
early = {"numpy", "tokenizers"} & set(sys.modules)
print(tritune.engine.load(sys.argv[1]).predict(["Ada lives in Como"])[0]["prediction"], early)
print(sorted({name.partition(".")[0] for name in sys.modules} & {*sys.argv[2].split(",")}))
"""


def test_the_first_answer_comes_without_torch(bert):
    heavy = "torch,transformers,safetensors,yaml,scipy,datasets,huggingface_hub"
    done = subprocess.run([sys.executable, "-c", START, str(bert), heavy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"LABEL_[012] set\(\)", first) and second == "[]"


def test_the_package_says_what_it_has():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        tritune.engine.nothing  # noqa: B018


def test_labels_are_renamed_by_editing_the_config(bert, copy):
    """As in any other folder: by hand, without a checksum made anew."""
    texts = ["what is it", "x"]
    before = load(bert).predict(texts)
    values = json.loads((copy / CONFIG).read_text())
    names = ["bad", "fair", "good"]
    write_json(copy / CONFIG, values | {"id2label": dict(enumerate(names)), "by": "somebody else's tool"})
    after, old = load(copy).predict(texts), load(bert).labels
    assert [one["prediction"] for one in after] == [names[old.index(one["prediction"])] for one in before]
    assert [list(one["probabilities"].values()) for one in after] == [
        list(one["probabilities"].values()) for one in before
    ]
