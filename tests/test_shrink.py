"""A shrunk model is the one made by hand, is written whole or not at all, and trains and packs as any student does."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BeitConfig,
    BeitForImageClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    SwinConfig,
    SwinForImageClassification,
)

import tritune
from families import FAMILIES, HEADS, LABELS, WIDTH, image_batch, text_batch
from tritune import TrituneError, UnsupportedModelError
from tritune.modeling.instrument import is_instrumented
from tritune.modeling.shrink import layers_kept, shrink
from workspace import make_workspace, train_arguments

# Family to the list of its layers and the key that counts them.
HANDMADE = {
    "bert": ("bert.encoder.layer", "num_hidden_layers"),
    "distilbert": ("distilbert.transformer.layer", "n_layers"),
    "vit": ("vit.layers", "num_hidden_layers"),
    "zorp": ("stack", "grumbles"),
    "zorp_pre_norm": ("stack", "grumbles"),
}


def by_hand(model, path, key, layers):
    """A model built with fewer layers, every tensor copied by a name that is written out."""
    config = type(model.config)(**{k: v for k, v in model.config.to_dict().items() if k != "tritune_shrunk"})
    setattr(config, key, len(layers))
    small = type(model)._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in small.state_dict().items():
            for new, old in enumerate(layers):
                if name.startswith(f"{path}.{new}."):
                    name = f"{path}.{old}." + name[len(f"{path}.{new}.") :]
                    break
            parameter.copy_(model.state_dict()[name])
    return small.eval()


@torch.no_grad()
@pytest.mark.parametrize("layers", [[1], [0], [1, 0], [0, 1]], ids=str)
@pytest.mark.parametrize("name", HANDMADE)
def test_the_model_made_by_hand(name, layers, tmp_path):
    family, (path, key) = FAMILIES[name], HANDMADE[name]
    model = family.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    small = shrink(model, layers)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(5)), "no number was drawn"
    small.set_attn_implementation("eager")
    expected = by_hand(model, path, key, layers)
    assert torch.equal(small(**family.batch()).logits, expected(**family.batch()).logits)
    assert getattr(small.config, key) == len(layers) and not small.training
    assert small.state_dict().keys() == expected.state_dict().keys()
    # The model that it came from is as it was, and plain.
    assert model.config._attn_implementation == "eager" and getattr(model.config, key) == len(family.sites)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    small.save_pretrained(tmp_path)
    loaded = family.loader.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(loaded(**family.batch()).logits, expected(**family.batch()).logits)
    assert layers_kept(loaded.config, len(family.sites)) == tuple(layers)
    assert layers_kept(loaded.config, 12) is None


def test_layers_of_layers():
    """The note is of the model at hand, whatever that was made of."""
    model = FAMILIES["bert"].build()
    twice = shrink(shrink(model, [0, 2]), [1])
    assert layers_kept(twice.config, 2) == (1,) and layers_kept(twice.config, 3) is None
    last, first = (m.bert.encoder.layer[-1].output.dense.weight for m in (model, twice))
    assert torch.equal(last, first)


def test_labels_and_dtype_stay():
    model = FAMILIES["bert"].build().to(torch.bfloat16)
    model.config.id2label = {0: "no", 1: "perhaps", 2: "yes"}
    small = shrink(model, [2])
    assert small.config.id2label == model.config.id2label and small.dtype is torch.bfloat16


def test_a_model_that_is_instrumented_already_gives_a_plain_one():
    model = FAMILIES["bert"].build()
    expected = shrink(model, [0, 2])
    small = shrink(tritune.instrument(model), [0, 2])
    assert not is_instrumented(small)
    torch.testing.assert_close(small(**text_batch()).logits, expected(**text_batch()).logits)


def test_any_head_and_ties():
    config = RobertaConfig(
        vocab_size=40,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=24,
        max_position_embeddings=34,
    )
    model = RobertaForMaskedLM(config).eval()
    small = shrink(model, [0, 2])
    assert small.lm_head.decoder.weight is small.roberta.embeddings.word_embeddings.weight
    expected = by_hand(model, "roberta.encoder.layer", "num_hidden_layers", [0, 2])
    torch.testing.assert_close(small(**text_batch()).logits, expected(**text_batch()).logits)


def test_what_a_backbone_config_derives_is_derived_anew(tmp_path):
    config = BeitConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_labels=LABELS,
    )
    small = shrink(BeitForImageClassification(config).eval(), [0, 2])
    small.save_pretrained(tmp_path)
    loaded = BeitForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.stage_names == ["stem", "stage1", "stage2"]
    assert torch.equal(loaded(**image_batch()).logits, small(**image_batch()).logits)


def test_settings_given_layer_by_layer_are_cut():
    model = FAMILIES["bert"].build()
    model.config.layer_colours = ["red", "green", "blue"]
    assert shrink(model, [2, 0]).config.layer_colours == ["blue", "red"]


def swin(depths):
    config = SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=depths, num_heads=[2, 2], window_size=2, num_labels=LABELS
    )
    return SwinForImageClassification(config).eval()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (FAMILIES["albert"].build, "its layers share one set of weights"),
        (lambda: swin([2, 2]), "its 4 attention blocks do not lie in one list of layers"),
        (lambda: swin([1, 1]), "no key of its config sets the number of its layers"),
    ],
    ids=["albert", "swin", "swin_of_single_blocks"],
)
def test_families_without_layers_to_leave_out(build, message):
    with pytest.raises(UnsupportedModelError, match=message):
        shrink(build(), [0])


def test_a_layer_that_cannot_stand_elsewhere():
    """A family whose first layer is built in another way, as ModernBERT's is."""
    zorp = FAMILIES["zorp"]

    class Particular(zorp.model):
        def __init__(self, config):
            super().__init__(config)
            self.stack[0].hush = torch.nn.LayerNorm(WIDTH, bias=False)

    model = Particular._from_config(zorp.config(), attn_implementation="eager").eval()
    assert len(shrink(model, [0]).stack) == 1
    with pytest.raises(TrituneError, match=r"layer 1 cannot become layer 0: .*\(stack.0.hush.bias\)"):
        shrink(model, [1])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one must be kept; this model's layers are 0 to 2"),
        ([3], "there is no layer 3; this model's layers are 0 to 2"),
        ([0, -1], "there is no layer -1; this model's layers are 0 to 2"),
        ([0, True], "there is no layer True"),
        ([0, "x"], "there is no layer 'x'; this model's layers are 0 to 2"),
        ([2, 1, 2], "2 is given twice"),
    ],
    ids=str,
)
def test_bad_layers(layers, message):
    with pytest.raises(TrituneError, match=message):
        shrink(FAMILIES["bert"].build(), layers)


def test_a_quantized_model_is_refused():
    with pytest.raises(TrituneError, match="is quantized; shrink the float model"):
        shrink(tritune.prepare(FAMILIES["bert"].build()), [0])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def skip(workspace):
    """A student of the workspace's teacher, written by the command."""
    with pytest.MonkeyPatch.context() as patch:
        from workspace import Cli

        class Quiet:
            def readouterr(self):
                return "", ""

        code, *_ = Cli(Quiet(), patch)("shrink", workspace / "teacher", "--layers", "1", "--output", workspace / "skip")
    assert code == 0
    return workspace / "skip"


def test_the_command(workspace, skip, cli):
    teacher = AutoModelForSequenceClassification.from_pretrained(workspace / "teacher")
    small = AutoModelForSequenceClassification.from_pretrained(skip)
    weights = load_file(skip / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in shrink(teacher, [1]).state_dict().items())
    assert small.config.id2label == teacher.config.id2label
    texts = ["the cats sleep", "a dog"]
    ids = [AutoTokenizer.from_pretrained(folder)(texts)["input_ids"] for folder in (skip, workspace / "teacher")]
    assert ids[0] == ids[1]
    made = json.loads((skip / "shrunk.json").read_text())
    assert (made["layers"], made["of"]) == ([1], teacher.config.num_hidden_layers)
    assert made["parameters"] == small.num_parameters() and made["source"]["path"] == str(workspace / "teacher")


def test_the_folder_is_written_whole_or_not_at_all(workspace, skip, cli, monkeypatch):
    command = ("shrink", workspace / "teacher", "--layers", "0", "--output")
    before = {path.name: path.read_bytes() for path in skip.iterdir()}
    code, _, err = cli(*command, skip)
    assert code == 2 and "holds a run or other files already" in err
    with monkeypatch.context() as patch:
        patch.setattr("tritune.training.run_folder.write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli(*command, skip, "--overwrite")
    assert {path.name: path.read_bytes() for path in skip.iterdir()} == before
    assert not list(workspace.glob(".skip*"))
    copy = shutil.copytree(skip, workspace / "copy")
    code, out, _ = cli(*command, copy, "--overwrite", "--json")
    assert code == 0 and json.loads(out)["layers"] == [0]
    assert json.loads((copy / "config.json").read_text())["tritune_shrunk"]["layers"] == [0]
    (workspace / "mine").mkdir()
    (workspace / "mine" / "notes.txt").write_text("mine")
    code, _, err = cli(*command, workspace / "mine", "--overwrite")
    assert code == 2 and "holds files but no run" in err


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("9", "there is no layer 9; this model's layers are 0 to"),
        ("0,x", "there is no layer 'x'; this model's layers are 0 to"),
        ("0,,1", "there is no layer ''; this model's layers are 0 to"),
        ("", "at least one must be kept; this model's layers are 0 to"),
        ("-1", "there is no layer '-1'; this model's layers are 0 to"),
        ("0,0", "0 is given twice"),
        ("1" * 5000, "there is no layer"),
    ],
)
def test_bad_layers_on_the_command_line(workspace, cli, layers, message):
    code, out, err = cli("shrink", workspace / "teacher", "--layers", layers, "--output", workspace / "bad")
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err and len(err) < 300
    assert not (workspace / "bad").exists()


def test_other_sources_on_the_command_line(workspace, skip, cli):
    tritune.prepare(AutoModelForSequenceClassification.from_pretrained(skip)).save_pretrained(workspace / "qat")
    for source, message in (("qat", "already quantized; give a float model"), ("nowhere", "there is no such folder")):
        code, _, err = cli("shrink", workspace / source, "--layers", "0", "--output", workspace / "bad")
        assert code == 2 and message in err and not (workspace / "bad").exists()


SETTINGS = ("--set", "max_steps=8", "--set", "eval_steps=4", "--set", "logging_steps=1", "--set", "save_steps=2")


def test_a_shrunk_student_is_trained_converted_and_analysed(workspace, skip, cli):
    run = workspace / "run"
    code, _, err = cli(*train_arguments(workspace, run, "--student", skip, *SETTINGS))
    assert code == 0, err
    assert "layer_map:\n- 1\n" in (run / "recipe.yaml").read_text() and "layers learn from the teacher's 1" in err
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["float_student"]["path"] == str(skip) and metrics["assisted"]["step"] == 2
    assert json.loads((run / "config.json").read_text())["num_hidden_layers"] == 1
    assert cli("convert", run, "--output", workspace / "small")[0] == 0
    packed, qat = (tritune.load(workspace / name).eval() for name in ("small", "run"))
    batch = text_batch()
    with torch.no_grad():
        assert torch.equal(packed(**batch).logits, qat(**batch).logits)
    arguments = ("--data", workspace / "data", "--task", "demo")
    assert cli("evaluate", workspace / "small", *arguments)[0] == 0
    analysis = ("--student", run, *arguments, "--rows", "4")
    assert cli("analyze", "norms", "--teacher", skip, *analysis)[0] == 0
    code, _, err = cli("analyze", "norms", "--teacher", workspace / "teacher", *analysis)
    assert code == 2 and "layers" in err


@pytest.mark.slow
def test_two_steps_one_at_a_time(workspace, skip, cli):
    """They need the float student each, and give what the run of both gives."""
    both, one, two = (workspace / name for name in ("both", "one", "two"))
    given = ("--student", skip, *SETTINGS)
    assert cli(*train_arguments(workspace, both, *given))[0] == 0
    assert cli(*train_arguments(workspace, one, *given, "--phase", "one"))[0] == 0
    code, _, err = cli(*train_arguments(workspace, two, *SETTINGS, "--phase", "two", "--from", one))
    assert code == 2 and "give the float model that it was made of as --student" in err and not two.exists()
    assert cli(*train_arguments(workspace, two, *given, "--phase", "two", "--from", one))[0] == 0
    weights = [load_file(folder / "model.safetensors") for folder in (both, two)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.slow
def test_a_resumed_run_has_the_same_student(workspace, skip, cli):
    run = train_arguments(workspace, workspace / "again", "--student", skip, *SETTINGS)
    assert cli(*run)[0] == 0 and cli(*run, "--resume")[0] == 0
    other = workspace / "other"
    assert cli("shrink", workspace / "teacher", "--layers", "0", "--output", other)[0] == 0
    layer_map = ("--set", "layer_map=[1]")
    code, _, err = cli(
        *train_arguments(workspace, workspace / "again", "--student", other, *SETTINGS, *layer_map), "--resume"
    )
    assert code == 2 and "the run there has another --student" in err


def test_students_that_do_not_fit_are_refused_before_anything_is_written(workspace, skip, cli, tmp_path):
    qat = tmp_path / "qat"
    tritune.prepare(AutoModelForSequenceClassification.from_pretrained(skip)).save_pretrained(qat)
    words = shutil.copytree(skip, tmp_path / "words")
    tokenizer = json.loads((words / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (words / "tokenizer.json").write_text(json.dumps(tokenizer))
    for student, more, message in (
        (qat, (), "--student takes a float model, --from a QAT student"),
        (words, (), "the student's tokenizer has other tokens than the teacher's"),
        (skip, ("--set", "layer_map=[7]"), "layer_map: there is no layer 7; the teacher's layers are 0 to"),
        (skip, ("--set", "layer_map=[0, 1]"), "must name a teacher layer for each of the student's 1; got"),
        (skip, ("--set", "layer_map=middle"), "layer_map must be uniform, last"),
    ):
        code, _, err = cli(*train_arguments(workspace, workspace / "bad", "--student", student, *SETTINGS, *more))
        assert code == 2 and message in err, err
        assert not (workspace / "bad").exists()
