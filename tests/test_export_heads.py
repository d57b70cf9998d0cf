"""Every kind of task is exported: the file gives what the model gives, pooled in the graph where it is an encoder."""

import json
from functools import cache

import numpy as np
import pytest
import torch

import tritune
from exportable import EXPORTABLE, texts, tokenizer_of
from sentence_encoder import make_encoder
from tritune import TrituneError
from tritune.deploy.export.onnx import export_onnx, to_onnx
from tritune.engine import pooling
from tritune.tasks.heads.features import FeatureExtraction
from tritune.tasks.heads.pooling import Pooling
from tritune.tasks.heads.sentence_files import SentenceFiles
from tritune.tasks.heads.token_classification import TOKEN_CLASSIFICATION

pytest.importorskip("onnxscript", reason="needs onnx, onnxscript and onnxruntime: pip install 'tritune[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs tritune[onnx]")

NAMES = {
    "sentences": ["last_hidden_state", "sentence_embedding"],
    "questions": ["start_logits", "end_logits"],
}
FAST = ("sentences", "tags", "questions")
CASES = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in EXPORTABLE]
# A code next to a rounding boundary may fall on its other side and moves its row.
CLOSE, FLIPPED = 1e-5, 0.3


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function from a kind to its model's folder, the exported folder and the report, each made once by the CLI."""
    from typer.testing import CliRunner

    from tritune.cli.main import app

    @cache
    def make(name: str, *more: str):
        folder = tmp_path_factory.mktemp("heads")
        one = EXPORTABLE[name]
        model = one.write_model(folder / "model", quantized="float" not in more)
        arguments = ["export", model, "--output", folder / "onnx", *one.verification(folder / "data"), "--json"]
        done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        return model, folder / "onnx", json.loads(done.stdout)

    return make


def model_of(name, folder) -> torch.nn.Module:
    return EXPORTABLE[name].kind.from_pretrained(folder).eval()


def batches(folder) -> list[dict[str, torch.Tensor]]:
    """One text, several with padding, an empty one, and a row whose mask hides all of it."""
    tokenizer = tokenizer_of(folder)
    sets = [["Ada"], [""], texts(5), ["in " * 90, "é ü"]]
    made = [dict(tokenizer(rows, padding=True, truncation=True, return_tensors="pt")) for rows in sets]
    hidden = {key: value.clone() for key, value in made[2].items()}
    hidden["attention_mask"][1] = 0
    return [*made, hidden]


def outputs_of(path, batch) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: batch[value.name].numpy() for value in session.get_inputs()})


@pytest.mark.parametrize("name", CASES)
def test_the_file_gives_what_the_model_gives(exported, name):
    folder, onnx, _ = exported(name)
    session = onnxruntime.InferenceSession(onnx / "model.onnx", providers=["CPUExecutionProvider"])
    wanted_names = NAMES.get(name, ["logits"])
    assert [value.name for value in session.get_outputs()] == wanted_names
    model, differences = model_of(name, folder), []
    for batch in batches(folder):
        with torch.no_grad():
            wanted = model(**batch)
        for output, found in zip(wanted_names, outputs_of(onnx / "model.onnx", batch), strict=True):
            assert np.isfinite(found).all()
            if output != "sentence_embedding":  # which has a test of its own
                differences.append(np.abs(wanted[output].numpy() - found).max(-1).ravel())
    differences = np.concatenate(differences)
    assert np.median(differences) < CLOSE and differences.max() < FLIPPED


@pytest.mark.parametrize("name", CASES)
def test_verify_compares_what_the_kind_answers(exported, name):
    _, _, report = exported(name)
    found = report["verify"]
    units = {"sentences": "sentences", "tags": "words", "questions": "questions"}
    assert found["unit"] == units.get(name, "rows")
    assert np.isfinite(found["model"]) and abs(found["model"] - found["exported"]) < 0.2
    if name == "sentences":
        assert found["compared"] == 16 and 0.999 < found["smallest_cosine"] <= found["mean_cosine"] < 1 + 1e-6
        return
    assert found["compared"] == {"tags": found["compared"], "questions": 9, "pairs": 8}.get(name, 12)
    assert found["differing"] == round((1 - found["agreement"]) * found["compared"]) <= 0.1 * found["compared"]
    # Two graphs of the same numbers never agree to the bit.
    assert 0 < found["median_logit_difference"] < CLOSE and found["largest_logit_difference"] < FLIPPED


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTABLE)
def test_a_float_model_is_exported_as_well(exported, name):
    _, _, report = exported(name, "float")
    found = report["verify"]
    if name == "sentences":
        assert found["smallest_cosine"] > 1 - 1e-6
    else:
        assert found["agreement"] == 1 and found["largest_logit_difference"] < 1e-4


@pytest.mark.parametrize("name", ["sentences", pytest.param("tags", marks=pytest.mark.slow)])
def test_a_dense_checkpoint_of_every_kind_is_verified(cli, tmp_path, name):
    model, target = EXPORTABLE[name].write_model(tmp_path / "model"), tmp_path / "dense"
    verification = EXPORTABLE[name].verification(tmp_path / "data")
    code, out, err = cli("export", model, "--format", "dense", "--output", target, *verification, "--json")
    assert code == 0, err
    found = json.loads(out)["verify"]
    # Its activations are float: close, not equal.
    if name == "sentences":
        assert 0.9 < found["smallest_cosine"] < 1 and (target / "modules.json").is_file()
    else:
        assert found["agreement"] > 0.8 and found["median_logit_difference"] > 1e-5


MODES = [("mean",), ("cls",), ("lasttoken", "weightedmean"), ("max", "mean_sqrt_len_tokens")]


@pytest.mark.parametrize("modes, normalize", [(MODES[0], True), (sum(MODES[1:], ()), False)])
def test_embeddings_are_pooled_in_the_graph(tmp_path, modes, normalize):
    """Against the engine's pooling in numpy, of one sentence without padding."""
    folder = EXPORTABLE["sentences"].write_model(tmp_path / "model")
    head = FeatureExtraction(SentenceFiles(Pooling(modes, normalize)))
    export_onnx(
        model_of("sentences", folder), tmp_path / "model.onnx", 18, tokenizer_of(folder).model_input_names, head
    )
    for batch in batches(folder):
        states, embeddings = outputs_of(tmp_path / "model.onnx", batch)
        for row, mask in enumerate(batch["attention_mask"].numpy().astype(bool)):
            wanted = pooling.pooled(states[row][mask], modes, normalize) if mask.any() else np.zeros(16 * len(modes))
            np.testing.assert_allclose(embeddings[row], wanted, rtol=1e-5, atol=1e-6)


def test_a_sentence_encoder_is_pooled_as_its_files_say(tmp_path):
    """Of a model in Python nobody names the pooling; it is that of the folder that the model came from."""
    cls = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    folder = make_encoder(tmp_path / "cls", pooling=cls, normalize=False)
    model = tritune.prepare(EXPORTABLE["sentences"].kind.from_pretrained(folder))
    export_onnx(model, tmp_path / "model.onnx", input_names=tokenizer_of(folder).model_input_names)
    states, embeddings = outputs_of(tmp_path / "model.onnx", batches(folder)[2])
    np.testing.assert_array_equal(embeddings, states[:, 0])
    (folder / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(TrituneError, match=r"1_Pooling/config.json: not a JSON object"):
        to_onnx(model)


def test_what_is_compared_of_words_is_what_was_asked():
    """Tokens that begin no word, and padding beyond a shorter batch, count for nothing."""
    from datasets import Dataset

    rows = Dataset.from_dict({"labels": [[-100, 2, -100, 0, -100], [-100, 1, -100]]})
    logits = np.random.default_rng(0).normal(size=(2, 5, 3))
    found = TOKEN_CLASSIFICATION.without_padding(logits, rows)
    np.testing.assert_array_equal(found, logits[[0, 0, 1], [1, 3, 1]])


def test_refusals_say_what_to_do(cli, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    from small_answers import write_base

    folder = write_base(tmp_path / "mlm")
    model = BertForMaskedLM(BertConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    code, _, err = cli("export", folder, "--output", tmp_path / "onnx")
    assert code == 2 and "if it is a sentence encoder" in err and err.count("\n") == 1
    tags = EXPORTABLE["tags"].write_model(tmp_path / "tags")
    verification = EXPORTABLE["sentences"].verification(tmp_path / "data")
    code, _, err = cli("export", tags, "--output", tmp_path / "onnx", *verification)
    assert code == 2 and "is feature-extraction" in err and "for token-classification" in err and err.count("\n") == 1
    assert not (tmp_path / "onnx").exists()
