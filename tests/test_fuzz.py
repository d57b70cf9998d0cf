"""Bad input that nobody thought of: whatever lies in a file, a reader reads it or refuses it in one line."""

import json
import pickle
import random
import re
import shutil
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import tritune
from test_data import LAYOUTS
from tritune import TrituneError
from tritune.checkpoints.load import load_tokenizer
from tritune.recipes import FinetuneRecipe, Recipe, load_recipe, to_yaml
from tritune.tasks.data.glue import read_glue_file
from tritune.tasks.models import load_model
from tritune.tasks.registry import get_task
from tritune.tasks.table import FORMATS, read_table, write_table

# The same examples every time: a test that fails is to fail for everyone.
FUZZ = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a", "mat")
MAX_LENGTH = 8


def attempt(read, *arguments):
    """What `read` returns, or the one line with which it refuses; any other exception is the test's."""
    try:
        return read(*arguments), None
    except TrituneError as error:
        message = str(error)
        assert message and len(message.splitlines()) == 1 and message.isprintable(), ascii(message)
        return None, message


def mutated(data: bytes, seed: int, times: int) -> bytes:
    """`data` with bits flipped, pieces cut out, doubled or replaced."""
    draw = random.Random(seed)
    data = bytearray(data)
    for _ in range(times):
        place = draw.randrange(len(data) + 1)
        length = draw.randrange(1, 9)
        kind = draw.randrange(4)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + length]
        else:
            data[place:place] = draw.choice([b"\n", b"\t", b"\r", b'"', b"\0", b"\xff", b",", b"\xef\xbb\xbf", b"\\u"])
    return bytes(data)


mutations = st.tuples(st.integers(0, 2**32), st.integers(1, 6))


# Recipes

KEYS = sorted({field.name for field in fields(Recipe)})
scalars = st.one_of(
    st.sampled_from(
        [
            *("null", "true", "1", "-1", "2e-5", ".nan", ".inf", "1e999", "[0, 1]", "[]", "{}", "twn", "gradual", "'"),
            *("0x" + "f" * 5000, "9" * 400, "9" * 5000, "2001-99-99", "!!int x", "!!float ''", "!!bool x", '"', "1:60"),
            *("!!timestamp x", "!!binary x", "!!python/object:os.system x", "&a [*a]", "*b", "<<", "? ", "|", "- "),
            *("[[[[", '"\\0"', "0b_", '"\\ud800"', '"\\ud800.yaml"', '"a\\nb.yaml"', '"\\0.yaml"', "../x", "ti-g"),
            "x" * 5000 + ".yaml",
        ]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=12),
)
keys = st.one_of(st.sampled_from([*KEYS, "base", "<<", "1", "null", "? [a]", "0x" + "f" * 5000]), st.text(max_size=6))
lines = st.lists(st.tuples(keys, st.sampled_from([": ", ":", " ", ":\n  "]), scalars).map("".join), max_size=6)
overrides = st.lists(st.one_of(st.tuples(keys, scalars).map("=".join), st.text(max_size=12)), max_size=3)


def check_recipe(path: Path | str, overridden: list[str], kind: type) -> None:
    recipe, message = attempt(load_recipe, path, overridden, kind)
    if message is None:
        assert type(recipe) is kind
        path = Path(path).with_name("again.yaml") if isinstance(path, Path) else None
        if path:
            path.write_text(to_yaml(recipe), encoding="utf-8")
            assert load_recipe(path, kind=kind) == recipe
    elif isinstance(path, Path):
        assert (
            str(path) in message or "--set" in message or any(key in message for key in KEYS) or "every loss" in message
        )


@FUZZ
@given(lines.map("\n".join), overrides)
@example("a: " + "[" * 5000, [])
@example("layers: &a [1, &b [*a, *a], [*b, *b]]", [])
@example("a: &a [1,1]\nb: &b [*a,*a]\n" + "".join(f"c{i}: &c{i} [*b,*b]\n" for i in range(9)), [])
def test_any_recipe_file(tmp_path, text, overridden):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    check_recipe(path, overridden, Recipe)
    check_recipe(path, overridden, FinetuneRecipe)


@FUZZ
@given(overrides)
@example(["learning_rate=" + "9" * 400])
@example(["max_steps=0x" + "f" * 5000])
@example(["name=2001-99-99"])
@example(["a\nb=["])
@example(["\udcff=\udcff"])
def test_any_override(overridden):
    check_recipe("ti-g", overridden, Recipe)


@FUZZ
@given(mutations)
def test_any_change_of_a_recipe_that_was_right(tmp_path, mutation):
    path = tmp_path / "mine.yaml"
    path.write_bytes(mutated(to_yaml(load_recipe("ti-g")).encode(), *mutation))
    check_recipe(path, [], Recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nname: a\nseed: 2\n", "mine.yaml, line 3: 'seed' is given twice"),
        ("learning_rate: " + "9" * 400, "mine.yaml: learning_rate must be a number; got 9"),
        ("max_steps: 0x" + "f" * 5000, "mine.yaml: max_steps must be a whole number; got a number of thousands of"),
        ("layers: [9223372036854775808]", "mine.yaml: layers must be a list of whole numbers or null; got (922"),
        ("name: 2001-99-99", "mine.yaml: not YAML"),
        ("name: " + "[" * 5000, "mine.yaml: not YAML"),
        ('name: "\\ud800"', r"mine.yaml: name must be text; got '\ud800'"),
        ('base: "a\\0.yaml"', r"mine.yaml: base must be the name or path of one recipe; got 'a\x00.yaml'"),
        ("base: " + "x" * 5000 + ".yaml", "cannot be read (File name too long)"),
        (b"name: caf\xe9", "mine.yaml: cannot be read (not UTF-8)"),
    ],
)
def test_recipes_that_once_got_through(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in (attempt(load_recipe, path)[1] or "")


# Task files


def check_glue(name: str, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    task = get_task(name)
    with warnings.catch_warnings(record=True):
        rows, message = attempt(read_glue_file, task, path)
    if message is None:
        assert rows.num_rows and rows.column_names == [*task.text_columns, "label"]
    else:
        assert str(path) in message


@pytest.mark.parametrize("name", LAYOUTS)
@FUZZ
@given(st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(b"\t\n\r ab01\xff\xc3\xa9\"'")).map(bytes)))
def test_any_bytes_as_a_task_file(tmp_path, name, data):
    check_glue(name, tmp_path / "dev.tsv", data)
    check_glue(name, tmp_path / "dev.tsv", LAYOUTS[name][0][0].encode() + b"\n" + data)


@pytest.mark.parametrize("name", LAYOUTS)
@FUZZ
@given(mutations)
def test_any_change_of_a_task_file_that_was_right(tmp_path, name, mutation):
    check_glue(name, tmp_path / "dev.tsv", mutated("\n".join(LAYOUTS[name][0]).encode(), *mutation))


def test_a_column_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_text("sentence\tlabel\tsentence\na\t1\tb\n")
    assert attempt(read_glue_file, get_task("sst2"), path)[1] == (
        f"{path}, line 1: the header has 'sentence' more than once; rename the columns"
    )


# Tables

VALID = {
    "csv": 'text,label\n"a, ""b""\nc",1\nd,2\n',
    "tsv": 'text\tlabel\n"a\t1\nd\t2\n',
    "jsonl": '{"text": "a\\u00e9", "n": [1, 2]}\n{"text": "b", "n": null}\n',
    "text": "a\tb\nc\td\n",
}


def check_table(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    rows, message = attempt(read_table, path)
    if message is None:
        assert rows and all(isinstance(row, dict) for row in rows)
        for ending in ("csv", "jsonl", "tsv"):
            written = path.with_name(f"again.{ending}")
            if attempt(write_table, written, rows)[1] is None and ending == "jsonl":
                assert repr(read_table(written)) == repr(rows)
    else:
        assert message.startswith(str(path))


@pytest.mark.parametrize("ending", FORMATS)
@FUZZ
@given(st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(b'\t\n\r ,;"{}[]:\\ua01\xff\xc3\xa9')).map(bytes)))
def test_any_bytes_as_a_table(tmp_path, ending, data):
    check_table(tmp_path / f"rows{ending}", data)


@pytest.mark.parametrize("ending", FORMATS)
@FUZZ
@given(mutations)
def test_any_change_of_a_table_that_was_right(tmp_path, ending, mutation):
    check_table(tmp_path / f"rows{ending}", mutated(VALID[FORMATS[ending]].encode(), *mutation))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
tables = st.lists(texts.filter(lambda name: name.strip("\ufeff")), min_size=1, max_size=3, unique=True).flatmap(
    lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, texts)), min_size=1, max_size=4)
)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
@FUZZ
@given(tables)
@example([{"a": "one\rtwo"}, {"a": '"'}])
def test_what_is_written_is_read_again(tmp_path, ending, rows):
    assume("prediction" not in rows[0] and not next(iter(rows[0])).startswith("\ufeff"))
    rows = [row | {"prediction": "yes"} for row in rows]
    path = tmp_path / f"rows.{ending}"
    _, message = attempt(write_table, path, rows)
    if message is None:
        assert read_table(path) == rows
    else:
        assert ending == "tsv" and re.search(r"row \d holds a tab or a line end", message)


# Models


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A float and a QAT model of two layers with a tokenizer, of a few kilobytes."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    labels = get_task("demo").labels
    shape = {"vocab_size": len(WORDS), "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 2}
    config = BertConfig(
        **shape,
        num_hidden_layers=2,
        max_position_embeddings=MAX_LENGTH,
        type_vocab_size=1,
        id2label=dict(enumerate(labels)),
    )
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
    model = BertForSequenceClassification(config)
    for kind, made in (("float", model), ("qat", tritune.prepare(model))):
        made.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return folder


@pytest.fixture
def unpickled(monkeypatch):
    """The calls of anything that unpickles: a list that must stay empty."""
    calls = []

    def spy(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: calls.append(name) or real(*args, **kwargs))

    spy(torch, "load")
    spy(pickle, "load")
    spy(pickle, "loads")
    yield calls
    assert not calls


@pytest.fixture(params=["float", "qat"])
def model_folder(request, tiny, tmp_path):
    return shutil.copytree(tiny / request.param, tmp_path / "model")


def load(folder: Path) -> tuple[torch.nn.Module, PreTrainedTokenizerFast]:
    model = load_model(folder, get_task("demo"))
    return model, load_tokenizer(folder, model, MAX_LENGTH)


def attempt_model(folder: Path) -> str | None:
    """The refusal, or None for a model that also answers."""
    loaded, message = attempt(load, folder)
    if message is not None:
        assert str(folder) in message
        return message
    model, tokenizer = loaded
    with torch.no_grad():
        tokens = tokenizer("the cat sat on a zebra", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        assert model.eval()(**tokens).logits.shape == (1, 2)
    return None


def rewrite(path: Path, change) -> None:
    """The JSON file with `change`, which edits it in place or returns another value."""
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


def test_the_tiny_model_is_right(model_folder, unpickled):
    assert attempt_model(model_folder) is None


def test_weights_that_break_off(model_folder, unpickled):
    path = model_folder / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    ends = [*range(24), *range(header - 12, header + 12), *range(header, len(whole), 997), len(whole) - 1]
    for end in ends:
        path.write_bytes(whole[:end])
        assert "not a model that can be loaded" in (attempt_model(model_folder) or ""), end


def test_weights_with_changed_bytes(model_folder, unpickled):
    path = model_folder / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    for places in (
        [draw.randrange(header) for _ in range(25)],
        [draw.randrange(header, len(whole)) for _ in range(10)],
    ):
        for place in places:
            data = bytearray(whole)
            data[place] ^= 1 << draw.randrange(8)
            path.write_bytes(data)
            attempt_model(model_folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_with_changed_bytes(model_folder, unpickled, name):
    path = model_folder / name
    whole = path.read_bytes()
    for seed in range(12):
        path.write_bytes(mutated(whole, seed, 1))
        attempt_model(model_folder)
    for end in range(0, len(whole) - 1, len(whole) // 10):
        path.write_bytes(whole[:end])
        assert attempt_model(model_folder)
    path.write_bytes(whole.replace(b'"', b"\xff", 1))
    assert attempt_model(model_folder)


def test_config_with_other_values(model_folder, unpickled):
    path = model_folder / "config.json"
    whole = path.read_text()
    for key in json.loads(whole):
        for value in (None, -1, "zebra", {"a": 1}, [1]):
            path.write_text(whole)
            rewrite(path, lambda config, key=key, value=value: config.update({key: value}))
            attempt_model(model_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1}, "has weights of bert.encoder.layer.1, which its config.json leaves out"),
        ({"num_hidden_layers": 3}, "have no weights; the weights are not this model's"),
        ({"hidden_size": 8}, "the shapes of its weights do not match its config.json"),
        ({"id2label": {"5": "a", "6": "b"}}, "id2label in its config.json must give each label from 0 to 1 a name"),
        ({"id2label": {"0": ["a"], "1": "b"}}, "id2label in its config.json must give each label from 0 to 1 a name"),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label in its config.json must give each label from 0 to 1 a name"),
        ({"quantization_config": {"quant_method": "zebra"}}, "quantization_config in its config.json has an unknown"),
        ({"quantization_config": {"quant_method": "tritune", "stage": "x"}}, "unknown stage 'x'"),
        ({"quantization_config": {"quant_method": "tritune", "weight_bits": 9}}, "weight_bits must be a whole number"),
        ({"model_type": "zebra", "auto_map": {"AutoConfig": "evil.Config"}}, "its config cannot be read"),
    ],
)
def test_configs_that_once_got_through(model_folder, unpickled, capsys, changes, message):
    rewrite(model_folder / "config.json", lambda config: config.update(changes))
    assert message in (attempt_model(model_folder) or "")
    assert "[y/N]" not in capsys.readouterr().out


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.mkdir, (self.mark,)


def only_bin(folder: Path) -> str:
    (folder / "evil.bin").rename(folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return "no model.safetensors; save weights in other formats as safetensors first"


def index_of_bin(folder: Path) -> str:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "evil.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "its weights are declared to be in 'evil.bin'; save them as safetensors"


def named_in_the_config(folder: Path) -> str:
    (folder / "evil.bin").rename(folder / "adapter_model.bin")
    rewrite(folder / "config.json", lambda config: config.update(transformers_weights="adapter_model.bin"))
    return "its weights are declared to be in 'adapter_model.bin'; save them as safetensors"


def pickle_under_the_right_name(folder: Path) -> str:
    (folder / "evil.bin").rename(folder / "model.safetensors")
    return "not a model that can be loaded"


def broken_index(folder: Path) -> str:
    index_of_bin(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [')
    return "not a model that can be loaded"


@pytest.mark.parametrize(
    "hide", [only_bin, index_of_bin, named_in_the_config, pickle_under_the_right_name, broken_index]
)
def test_nothing_is_unpickled(model_folder, tmp_path, unpickled, hide):
    (model_folder / "evil.bin").write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    message = hide(model_folder)
    assert message in (attempt_model(model_folder) or "")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.1.output.LayerNorm.bias"]
)
def test_weights_that_are_not_numbers(model_folder, unpickled, name, value):
    weights = load_file(model_folder / "model.safetensors")
    weights[name].view(-1)[-1] = value
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    assert f"{model_folder}: the weight {name} holds NaN or infinite values" in (attempt_model(model_folder) or "")


def without(*words):
    def cut(content):
        vocabulary = content["model"]["vocab"]
        content["model"]["vocab"] = {word: vocabulary[word] for word in vocabulary if word not in words}
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in words]

    return cut


def added(identity):
    def add(content):
        content["added_tokens"].append(content["added_tokens"][0] | {"id": identity, "content": "[NEW]"})

    return add


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["model"]["vocab"].update(mat=5000),
            "ids up to 5000, and the model's embedding only 10",
        ),
        (added(len(WORDS)), "the tokenizer has 11 tokens, ids up to 10, and the model's embedding only 10 rows"),
        (without(*WORDS[4:]), "the tokenizer has 4 tokens and the model's embedding 10 rows; tokens are missing"),
        (without("[UNK]"), "Missing [UNK] token from the vocabulary); save the model's tokenizer into its folder"),
        (without(*WORDS), "no tokenizer"),
        (lambda content: content["model"].pop("vocab"), "no tokenizer can be loaded"),
        (lambda content: [1], "no tokenizer can be loaded"),
        (lambda content: "the", "no tokenizer can be loaded"),
    ],
)
def test_tokenizers_that_do_not_belong(model_folder, unpickled, change, message):
    rewrite(model_folder / "tokenizer.json", change)
    assert message in (attempt_model(model_folder) or "")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_files_that_are_not_utf8(model_folder, unpickled, name):
    path = model_folder / name
    path.write_bytes(path.read_bytes().replace(b"a", b"\xe9", 1))
    assert str(model_folder) in (attempt_model(model_folder) or "")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_files(model_folder, unpickled, name):
    (model_folder / name).unlink()
    assert attempt_model(model_folder)
    (model_folder / name).mkdir()
    assert attempt_model(model_folder)
