"""Images on the command line: fine-tune, distil, convert, evaluate, predict, export, with a tiny ViT."""

import csv
import io
import json
import math
import shutil

import pytest
import torch
from PIL import Image as Pillow
from transformers import AutoImageProcessor, BertConfig, BertForSequenceClassification

import tritune
from pictures import make_cifar_workspace, make_folder, make_vit, picture
from tritune.errors import TrituneError
from tritune.inference.predict import predict_rows
from tritune.recipes import FinetuneRecipe, load_recipe
from tritune.tasks.data import load_task_data
from tritune.tasks.registry import get_task
from tritune.training.finetune import finetune
from tritune.training.job import open_job
from tritune.training.resume import StopOnSignal
from tritune.training.run import plan, run

LENGTHS = ("max_steps=6", "eval_steps=3", "save_steps=2", "per_device_train_batch_size=8", "logging_steps=1")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A teacher, a run of ti-g and its packed folder, all through the library that the command line calls."""
    folder = make_cifar_workspace(tmp_path_factory.mktemp("vision"))
    finetune(job_of(folder, "base", "teacher", load_recipe("finetune", LENGTHS, FinetuneRecipe)))
    train(folder, "run")
    return folder


def job_of(workspace, source, output, recipe, resume=False):
    return open_job(
        workspace / source, get_task("cifar10"), workspace / "data", recipe, workspace / output, resume=resume
    )


def train(workspace, name, *overrides, resume=False, recipe="ti-g"):
    job = job_of(workspace, "teacher", name, load_recipe(recipe, [*LENGTHS, *overrides]), resume)
    return run(job, plan(job), resume=resume)


def settings(*values):
    return [word for value in values for word in ("--set", value)]


def task_arguments(workspace):
    return "--task", "cifar10", "--data", workspace / "data"


def test_the_whole_way(workspace, tmp_path, cli):
    teacher, student, small = tmp_path / "teacher", tmp_path / "run", tmp_path / "small"
    task = task_arguments(workspace)
    code, _, err = cli("finetune", workspace / "base", *task, "--output", teacher, *settings(*LENGTHS))
    assert code == 0, err
    code, out, err = cli(
        "train", teacher, *task, "--recipe", "ternarybert-block", "--output", student, "--json",
        *settings(*LENGTHS, "patch_embedding=true"),
    )  # fmt: skip
    assert code == 0, err
    metrics = json.loads(out)
    code, _, err = cli("convert", student, "--output", small)
    assert code == 0, err
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml"} == {
        path.name for path in small.iterdir()
    }
    for folder in (student, small):
        code, out, err = cli("evaluate", folder, *task, "--teacher", teacher, "--json")
        assert code == 0, err
        scores = json.loads(out)
        assert {key: scores[key] for key in metrics["last"] if key != "step"} == {
            key: value for key, value in metrics["last"].items() if key != "step"
        }
    text = (student / "README.md").read_text()
    assert "AutoModelForImageClassification" in text and "AutoImageProcessor" in text
    assert "type: uoft-cs/cifar10" in text
    assert "image_augmentation: standard" in (student / "recipe.yaml").read_text()


def test_block_by_block_with_and_without_labels(workspace, tmp_path, cli):
    """The default recipe; pictures of a folder need no labels."""
    keys = settings("reconstruct_steps=4", "reconstruct_batch_size=8", "bf16=false", "patch_embedding=true")
    pictures = make_folder(tmp_path / "pictures", 4)
    count = sum(path.is_file() for path in pictures.rglob("*"))
    for name, more in (("run", ()), ("unlabelled", ("--unlabelled", pictures))):
        code, out, err = cli(
            "train",
            workspace / "teacher",
            *task_arguments(workspace),
            *keys,
            *more,
            "--output",
            tmp_path / name,
            "--json",
        )
        assert code == 0, err
        metrics = json.loads(out)
        stages = metrics["reconstruction"]["stages"]
        assert stages[0]["name"] == "embeddings" and stages[-1]["name"] == "head" and len(stages) > 2
        assert all(stage["after"] <= stage["before"] for stage in stages)
    assert metrics["rows"]["train"]["read"]["count"] == count


def expected_answers(folder, pictures):
    """Labels by hand: the processor of transformers, the model, an argmax; in batches of 64, as the recipe says."""
    model = tritune.load(folder)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.no_grad():
        logits = model(**processor(pictures, return_tensors="pt")).logits
    return [model.config.id2label[index] for index in logits.argmax(-1).tolist()], logits.double().softmax(-1)


@pytest.mark.parametrize("change", [{"image_mean": [0.5, 0.5, 0.4]}, {"do_rescale": False}])
def test_a_student_that_reads_other_pixels_is_refused(workspace, tmp_path, cli, change):
    other = shutil.copytree(workspace / "base", tmp_path / "other")
    shutil.copy(workspace / "teacher" / "config.json", other)
    shutil.copy(workspace / "teacher" / "model.safetensors", other)
    settings_file = other / "preprocessor_config.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | change))
    task = ("train", workspace / "teacher", *task_arguments(workspace), "--output", tmp_path / "run")
    code, _, err = cli(*task, "--student", other, *settings(*LENGTHS))
    assert code == 2 and "other: the student's image processor gives other sizes or values" in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_predict_images(workspace, tmp_path, cli):
    folder = make_folder(tmp_path / "photos", 2)
    (folder / "deep" / "er").mkdir(parents=True)
    picture((0, 0, 0), 9, (20, 10)).convert("L").save(folder / "deep" / "er" / "gray.jpg")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    labels, shares = expected_answers(workspace / "run", [Pillow.open(path).convert("RGB") for path in files])
    output = tmp_path / "answers.csv"
    code, _, err = cli("predict", workspace / "run", "--input", folder, "--output", output, "--probabilities")
    assert code == 0, err
    rows = list(csv.DictReader(output.open()))
    assert [row["file"] for row in rows] == [str(path.relative_to(folder)) for path in files]
    assert [row["prediction"] for row in rows] == labels
    for row, share in zip(rows, shares, strict=True):
        assert math.isclose(float(row["probability_cat"]), share[3], abs_tol=1e-5)

    code, out, err = cli("predict", workspace / "run", "--input", workspace / "data" / "test.parquet")
    assert code == 0, err
    rows = list(csv.DictReader(io.StringIO(out)))
    pictures = load_task_data(get_task("cifar10"), workspace / "data", ["test"])["test"]["image"][:]
    assert [row["row"] for row in rows] == [str(row) for row in range(1, 21)]
    assert [row["prediction"] for row in rows] == expected_answers(workspace / "run", pictures)[0]
    code, out, err = cli("predict", workspace / "run", "--input", files[0])
    assert code == 0 and out.splitlines()[1].startswith(f"{files[0]},"), err
    with pytest.raises(TrituneError, match="image-classification: models of this kind do not answer rows of a table"):
        predict_rows(workspace / "run", [{"text": "a cat"}])


@pytest.mark.parametrize("recipe", ["finetune", "ti-g"])
def test_a_stopped_training_goes_on_as_if_never_stopped(workspace, monkeypatch, recipe):
    """Stopped in the middle of an epoch and resumed: the same bytes, though every image is augmented."""

    def start(name, resume=False):
        if recipe == "ti-g":
            return train(workspace, name, resume=resume)
        own = load_recipe("finetune", LENGTHS, FinetuneRecipe)
        return finetune(job_of(workspace, "base", name, own, resume), resume)

    whole, name = {"finetune": "teacher", "ti-g": "run"}[recipe], f"stopped-{recipe}"
    with monkeypatch.context() as patch:
        ends = StopOnSignal.on_step_end

        def stop_at_four(self, args, state, control, **kwargs):
            self.asked = self.asked or state.global_step == 4
            return ends(self, args, state, control, **kwargs)

        patch.setattr(StopOnSignal, "on_step_end", stop_at_four)
        with pytest.raises(TrituneError, match="--resume continues from there"):
            start(name)
    start(name, resume=True)
    weights = [(workspace / folder / "model.safetensors").read_bytes() for folder in (whole, name)]
    assert weights[0] == weights[1]
    losses = [
        [json.loads(line).get("loss") for line in (workspace / folder / "history.jsonl").open()]
        for folder in (whole, name)
    ]
    assert losses[0] == losses[1] and len(losses[0]) >= 6


def test_augmentation_changes_what_is_learned_and_can_be_left_out(workspace):
    plain = train(workspace, "plain", "image_augmentation=none")
    augmented = json.loads((workspace / "run" / "metrics.json").read_text())
    assert plain["teacher"] == augmented["teacher"] and plain["untrained"] == augmented["untrained"]
    weights = [(workspace / folder / "model.safetensors").read_bytes() for folder in ("plain", "run")]
    assert weights[0] != weights[1]
    more = ("max_steps=12", "image_augmentation=none")
    cached = train(workspace, "cached", *more, "cache_teacher=true", recipe="ternarybert")
    assert cached["teacher_cache_bytes"] > 0
    assert cached["last"] == train(workspace, "uncached", *more, recipe="ternarybert")["last"]


@pytest.mark.parametrize(
    "values, message",
    [
        (("cache_teacher=true", "max_steps=40"), "cache_teacher: augmented images differ at every visit"),
        (("max_length=16",), "max_length would change nothing for CIFAR-10: images are not cut"),
        (("train_sampling_strategy=group_by_length",), "train_sampling_strategy: CIFAR-10 has no lengths"),
        (("image_augmentation=much",), "image_augmentation must be one of None, standard, none"),
    ],
)
def test_settings_that_mean_nothing_are_refused(workspace, tmp_path, cli, values, message):
    arguments = ("train", workspace / "teacher", *task_arguments(workspace), "--recipe", "ternarybert")
    code, _, err = cli(*arguments, "--output", tmp_path / "run", *settings("max_steps=6", *values))
    assert code == 2 and message in err and not (tmp_path / "run").exists()


def test_the_augmentation_of_images_means_nothing_to_texts():
    with pytest.raises(TrituneError, match="image_augmentation would change nothing for SST-2: there are no images"):
        load_recipe("ti-g", ["image_augmentation=none"]).resolve(get_task("sst2"), 10)
    assert load_recipe("ti-g").resolve(get_task("sst2"), 10).image_augmentation is None
    assert load_recipe("ti-g").resolve(get_task("cifar10"), 10).image_augmentation == "standard"


def test_faults_are_one_line(workspace, tmp_path, cli):
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(vocab_size=9, **shape)).save_pretrained(tmp_path / "bert")
    data = shutil.copytree(workspace / "data", tmp_path / "data")
    (data / "train.parquet").write_bytes(b"nothing")
    mismatched = make_vit(tmp_path / "mismatched", size=12)
    task, output = task_arguments(workspace), ("--output", tmp_path / "teacher")
    run, photos = workspace / "run", make_folder(tmp_path / "photos", 1)
    (photos / "red" / "0.png").write_bytes(b"nothing")
    for arguments, message in (
        (("finetune", tmp_path / "bert", *task, *output), "'bert' is not a type of model that AutoModelForImage"),
        (("bench", run), "for image-classification; bench measures models for text-classification"),
        (("finetune", workspace / "base", "--task", "cifar10", "--data", data, *output), "train.parquet: not a"),
        (("finetune", mismatched, *task, *output), "mismatched: the image processor gives 3 x 12 x 12"),
        (("evaluate", workspace / "base", *task), "the model has 2 labels, CIFAR-10 has 10"),
        (("evaluate", run, *task, "--set", "max_length=8"), "max_length would change nothing: images have no tokens"),
        (("predict", run, "--input", photos), "red/0.png: not an image that can be decoded"),
        (
            ("analyze", "norms", "--teacher", workspace / "teacher", "--student", run, *task),
            "norms are shown by groups of tokens, which images do not have",
        ),
        (("predict", run), "takes images: give --input a folder, an image or a .parquet file"),
        (("predict", run, "--input", tmp_path / "absent"), "absent: there is no such file or folder"),
    ):  # fmt: skip
        code, _, err = cli(*arguments)
        assert code == 2 and message in err.splitlines()[-1], (arguments, err)
        assert not (tmp_path / "teacher").exists()


@pytest.mark.slow
def test_exported_and_verified(workspace, tmp_path, cli):
    pytest.importorskip("onnxscript", reason="needs tritune[onnx]")
    pytest.importorskip("onnxruntime", reason="needs tritune[onnx]")
    verify = ("--verify", workspace / "data", "--task", "cifar10", "--json")
    for format in ("onnx", "dense"):
        code, out, err = cli("export", workspace / "run", "--output", tmp_path / format, "--format", format, *verify)
        assert code == 0, err
        assert json.loads(out)["verify"]["compared"] == 20
        assert (tmp_path / format / "preprocessor_config.json").is_file()
