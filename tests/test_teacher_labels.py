"""Teachers of words and of images as people have them: generic names, ids in files, and models without a classifier."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ViTConfig,
    ViTModel,
)

import pictures
import small_answers
from tritune import TrituneError
from tritune.cli.show import show_task
from tritune.tasks.data import load_task_data
from tritune.tasks.models import load_model
from tritune.tasks.registry import get_task, own_task

WORDS, IMAGES = "token-classification", "image-classification"
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TAGS = ("O", "B-PER", "B-LOC")
COLOURS = ("red", "green", "blue")


def tag_file(path, tags: list[list]):
    """Sentences with these tags, in the format of the file's ending."""
    if path.suffix == ".jsonl":
        rows = [{"tokens": [f"w{i}" for i in range(len(row))], "tags": row} for row in tags]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n".join("".join(f"w{i} {tag}\n" for i, tag in enumerate(row)) for row in tags))
    return path


def image_file(path, labels: list):
    """Pictures with these labels: the columns image and label of a parquet file."""
    kind = (
        Value("string") if isinstance(labels[0], str) else Value("float64" if isinstance(labels[0], float) else "int64")
    )
    colours = list(pictures.COLOURS.values())
    images = [pictures.picture(colours[number % 3], number) for number in range(len(labels))]
    features = Features({"image": Image(), "label": kind})
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(path)
    return path


# What a file has, which names the model knows, and the names that are meant.
TAGGED = {
    "numbers": (".jsonl", [[0, 1], [2]], TAGS, [["O", "B-PER"], ["B-LOC"]]),
    "floats": (".jsonl", [[0.0, 1.0], [2.0]], TAGS, [["O", "B-PER"], ["B-LOC"]]),
    "digits": (".jsonl", [["0", "1"], ["2"]], TAGS, [["O", "B-PER"], ["B-LOC"]]),
    "lines": (".txt", [["0", "1"], ["2.0"]], TAGS, [["O", "B-PER"], ["B-LOC"]]),
    "generic": (".jsonl", [[0, 1], [1]], ("LABEL_0", "LABEL_1"), [["LABEL_0", "LABEL_1"], ["LABEL_1"]]),
    "not_all": (".jsonl", [[2], [2]], TAGS, [["B-LOC"], ["B-LOC"]]),
    "names": (".jsonl", [["O", "B-PER"], ["B-LOC"]], TAGS, [["O", "B-PER"], ["B-LOC"]]),
    "names_that_are_numbers": (".jsonl", [[1, 2], [2]], ("2", "1"), [["1", "2"], ["2"]]),
}


@pytest.mark.parametrize("name", TAGGED)
def test_tags_by_id_and_by_name(tmp_path, capsys, name):
    ending, tags, names, meant = TAGGED[name]
    files = {
        split: tag_file(tmp_path / f"{split}{ending}", rows)
        for split, rows in (("train", tags), ("validation", tags[::-1] * 2))
    }
    task = own_task(WORDS, files, labels=names)
    assert task.labels == names and task.by_id is (not name.startswith("names"))
    data = load_task_data(task)
    assert data["train"]["tags"][:] == meant and data["validation"]["tags"][:] == meant[::-1] * 2
    show_task(task)
    assert ("given by their ids from 0" in " ".join(capsys.readouterr().err.split())) is task.by_id


def test_tags_that_are_numbers_are_names_where_none_are_known(tmp_path):
    task = own_task(
        WORDS,
        {"train": tag_file(tmp_path / "t.jsonl", [[10, 9], [2]]), "validation": tag_file(tmp_path / "d.jsonl", [[2]])},
    )
    assert task.labels == ("2", "9", "10") and task.metric == "accuracy" and not task.by_id
    assert load_task_data(task)["train"]["tags"][:] == [["10", "9"], ["2"]]


PICTURED = {
    "numbers": ([2, 0, 1], COLOURS, [2, 0, 1]),
    "floats": ([2.0, 0.0, 1.0], COLOURS, [2, 0, 1]),
    "digits": (["2", "0", "1"], COLOURS, [2, 0, 1]),
    "generic": ([2, 0, 1], ("LABEL_0", "LABEL_1", "LABEL_2"), [2, 0, 1]),
    "one_class": ([1, 1], COLOURS, [1, 1]),
    "names": (["blue", "red"], COLOURS, [2, 0]),
    "names_that_are_numbers": ([1, 2], ("2", "1"), [1, 0]),
}


@pytest.mark.parametrize("name", PICTURED)
def test_images_by_id_and_by_name(tmp_path, name):
    labels, names, meant = PICTURED[name]
    files = {
        "train": image_file(tmp_path / "t.parquet", labels),
        "validation": image_file(tmp_path / "d.parquet", labels[::-1] * 2),
    }
    task = own_task(IMAGES, files, labels=names)
    assert task.labels == names and task.by_id is (not name.startswith("names"))
    data = load_task_data(task)
    assert data["train"]["label"][:] == meant and data["validation"]["label"][:] == meant[::-1] * 2
    assert data["train"].features["label"].names == list(names)


def test_floats_that_are_no_ids(tmp_path):
    whole = own_task(IMAGES, {"train": image_file(tmp_path / "w.parquet", [1.0, 0.0])})
    assert whole.labels == ("0", "1")
    for bad in ([0.0, 0.5], [0.0, float("nan")]):
        with pytest.raises(TrituneError, match="row 2: labels must be all whole numbers or all text"):
            own_task(IMAGES, {"train": image_file(tmp_path / "b.parquet", bad)})


@pytest.mark.parametrize("kind", [WORDS, IMAGES])
def test_what_is_no_label_is_named_with_what_to_do(tmp_path, kind):
    def line(first: list, names: tuple) -> str:
        """What is said of a file whose second row is none of these names."""
        if kind == WORDS:
            path = tag_file(tmp_path / "d.jsonl", [[first[0]], [first[1]]])
        else:
            path = image_file(tmp_path / "d.parquet", first)
        with pytest.raises(TrituneError) as caught:
            load_task_data(own_task(kind, {"validation": path}, labels=names), splits=["validation"])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for names in (("LABEL_0", "LABEL_1"), ("label_0", "label_1")):
        assert "name those in id order with --labels" in line(["cat", "dog"], names)
    assert "row 2: the" in line(["cat", "dog"], ("cat", "bird")) and "rename it or drop the row" in line(
        ["cat", "dog"], ("cat", "bird")
    )
    assert "row 2: the" in line([0, 2], ("cat", "bird")) and "row 2: the" in line([0, -1], ("cat", "bird"))


def teacher_of(kind: str, folder):
    """A classifier that calls its labels LABEL_0, LABEL_1 and LABEL_2."""
    if kind == IMAGES:
        return pictures.make_vit(folder, num_labels=3)
    small_answers.write_base(folder)
    AutoModelForTokenClassification.from_pretrained(folder, num_labels=3).save_pretrained(folder)
    return folder


def dev_file(kind: str, path, labels):
    if kind == WORDS:
        return tag_file(path.with_suffix(".jsonl"), [list(labels)] * 2)
    return image_file(path.with_suffix(".parquet"), list(labels))


@pytest.mark.parametrize("kind", [WORDS, IMAGES])
def test_names_on_the_command_line(cli, tmp_path, kind):
    """A model without names is scored by words and by ids alike, once `--labels` says which is which."""
    torch.manual_seed(0)
    teacher, known = teacher_of(kind, tmp_path / "teacher"), TAGS if kind == WORDS else COLOURS
    words, ids = dev_file(kind, tmp_path / "words", known), dev_file(kind, tmp_path / "ids", (0, 1, 2))
    arguments = ("evaluate", teacher, "--task", kind, "--json", "--dev-file")
    code, _, err = cli(*arguments, words)
    assert code == 2 and "name those in id order with --labels" in err and err.count("\n") <= 2
    found = []
    for file, names in ((words, known), (ids, known), (ids, ())):
        code, out, err = cli(*arguments, file, *(("--labels", ",".join(names)) if names else ()))
        assert code == 0 and ("given by their ids" in err) is (file == ids), err
        found.append(json.loads(out)["accuracy"])
    assert np.ptp(found) == 0
    code, _, err = cli(*arguments, ids, "--labels", "a,b")
    assert code == 2 and "has 2" in err, err


@pytest.mark.parametrize("command", ["evaluate", "train"])
@pytest.mark.parametrize("kind", [WORDS, IMAGES])
def test_models_without_a_classifier_are_named_as_such(cli, tmp_path, kind, command):
    teacher, known = teacher_of(kind, tmp_path / "teacher"), TAGS if kind == WORDS else COLOURS
    words = dev_file(kind, tmp_path / "words", known)
    if kind == WORDS:
        config = BertConfig.from_pretrained(teacher)
        bare = {"BertModel": BertModel(config), "BertForMaskedLM": BertForMaskedLM(config)}
    else:
        bare = {"ViTModel": ViTModel(ViTConfig.from_pretrained(teacher))}
    for name, model in bare.items():
        folder = tmp_path / name
        model.save_pretrained(folder)
        if kind == WORDS:
            AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
        more = ("--train-file", words, "--output", tmp_path / "out") if command == "train" else ("--dev-file", words)
        code, _, err = cli(command, folder, "--task", kind, *more)
        said = " ".join(err.split())
        assert code == 2 and f"a {name}, which has no head for {kind}; fine-tune it first: tritune finetune" in said, (
            err
        )
        assert not (tmp_path / "out").exists()


def test_labels_of_a_task_file_are_named_for_an_analysis_and_an_export(cli, tmp_path):
    """A task file by hand, whose labels the model calls LABEL_0, LABEL_1 and LABEL_2."""
    teacher = teacher_of(WORDS, tmp_path / "teacher")
    dev_file(WORDS, tmp_path / "dev", TAGS)
    (tmp_path / "task.yaml").write_text(f"kind: {WORDS}\ndev_file: dev.jsonl\n")
    own = ("--task", tmp_path / "task.yaml")
    models = ("--teacher", teacher, "--student", teacher, "--output", tmp_path / "layers")
    code, _, err = cli("analyze", "layers", *own, *models)
    assert code == 2 and "name those in id order with --labels" in err, err
    code, _, err = cli("analyze", "layers", *own, *models, "--labels", ",".join(TAGS))
    assert code == 0 and (tmp_path / "layers" / "layers.json").is_file(), err
    arguments = ("export", teacher, "--format", "dense", "--output", tmp_path / "dense")
    code, _, err = cli(*arguments, "--labels", "a,b")
    assert code == 2 and "give --task" in err and not (tmp_path / "dense").exists()
    code, _, err = cli(*arguments, *own, "--labels", "O,B-PER")
    assert code == 2 and "the model has 3 labels" in err, err


@pytest.mark.parametrize("task", ["cola", "conll2003", "squad", "cifar10"])
def test_a_task_of_the_table_names_them_too(tmp_path, task):
    """Before labels are counted that such a model does not have."""
    model = ViTModel(ViTConfig(**SMALL)) if task == "cifar10" else BertForMaskedLM(BertConfig(vocab_size=9, **SMALL))
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(TrituneError, match=rf"a {type(model).__name__}, which has no head for .* --task {task} "):
        load_model(tmp_path / "bare", get_task(task))
