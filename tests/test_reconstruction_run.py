"""Reconstruction as a phase of a run: alone and before others, killed and resumed, without labels, over processes."""

import json
import signal
from dataclasses import asdict
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

import tritune
from families import FAMILIES, text_batch
from processes import two_ranks
from stopped import run_tritune
from tritune import Quantization, TrituneError
from tritune.distil.reconstruct import Reconstruction
from tritune.modeling.instrument import instrument
from tritune.recipes import Recipe, load_recipe
from tritune.training.reconstruction import _Batches, bfloat16
from workspace import make_workspace, train_arguments

SHORT = ("--set", "reconstruct_steps=4", "--set", "reconstruct_batch_size=8", "--set", "bf16=false")
THEN = ("--set", "max_steps=6", "--set", "save_steps=2", "--set", "eval_steps=3", "--set", "learning_rate=1e-3")
PARTS = ["embeddings", "block 0", "block 1", "block 2", "head"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def arguments(workspace, name, *more):
    return train_arguments(workspace, workspace / name, *SHORT, *more, recipe="tritune")


def metrics_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def alone(workspace):
    """The folder of a run that reconstructs and does nothing else, and what it said."""
    done = run_tritune(*arguments(workspace, "alone"), folder=workspace / "alone")
    assert done.returncode == 0, done.stderr[-2000:]
    return workspace / "alone", done.stderr


def test_a_student_may_be_reconstructed_only(alone, workspace):
    folder, said = alone
    metrics = metrics_of(folder)
    stages = metrics["reconstruction"]["stages"]
    assert [stage["name"] for stage in stages] == PARTS
    assert all(stage["after"] <= stage["before"] for stage in stages) and stages[1]["after"] < stages[1]["before"]
    assert metrics["steps"] == {} and metrics["seconds"] >= metrics["reconstruction"]["seconds"] > 0
    scores = metrics["reconstructed"]
    assert metrics["best"] == metrics["last"] == scores | {"step": 0}
    assert (folder / "best" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not (folder / "checkpoints").exists()
    for stage in stages:
        assert f"{stage['name']}: error {stage['before']:.4g} before, {stage['after']:.4g} after" in said


def test_it_gives_what_the_class_gives(alone, workspace):
    """The run's batches and loss are those of `Reconstruction` by hand, on the rows of the training file."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, recipe = alone[0], load_recipe(alone[0] / "recipe.yaml")
    rows = (workspace / "data" / "train.tsv").read_text("utf-8").splitlines()[1:]
    texts = [row.split("\t")[0] for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(workspace / "teacher")
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(recipe.seed)).tolist()[:32]
    given = []
    for start in range(0, 32, 8):
        chosen = [texts[place] for place in order[start : start + 8]]
        encoded = tokenizer(chosen, padding=True, truncation=True, max_length=recipe.max_length, return_tensors="pt")
        given.append(dict(encoded))
    student, teacher = (AutoModelForSequenceClassification.from_pretrained(workspace / "teacher") for _ in range(2))
    student = tritune.prepare(student, recipe.section(Quantization))

    def cross_entropy(own, theirs, batch):
        return -(theirs.logits.softmax(-1) * own.logits.log_softmax(-1)).sum(-1).mean()

    work = Reconstruction(student, instrument(teacher), given, cross_entropy, steps=4, seed=recipe.seed)
    stages = list(work.stages())
    _close(list(map(asdict, stages)), metrics_of(folder)["reconstruction"]["stages"], 1e-3)
    for name, value in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def _close(stages: list[dict], expected: list[dict], tolerance: float) -> None:
    assert [stage["name"] for stage in stages] == [stage["name"] for stage in expected]
    for key in ("before", "after"):
        assert [stage[key] for stage in stages] == pytest.approx([stage[key] for stage in expected], rel=tolerance)


def test_bfloat16_trains_the_weights_that_it_computes_with():
    """An autocast that lives as long as the reconstruction goes on using its first copy of the float classifier."""
    student, teacher = tritune.prepare(FAMILIES["bert"].build()), instrument(FAMILIES["bert"].build())
    given = [text_batch(tokens) for tokens in (4, 5, 6)]

    def mse(own, theirs, batch):
        return (own.logits.float() - theirs.logits.float()).square().mean()

    with bfloat16(student.device):
        stages = list(Reconstruction(student, teacher, given, mse, steps=40, learning_rate=3e-3).stages())
    with torch.no_grad():
        errors = torch.stack([mse(student(**batch), teacher(**batch), batch) for batch in given])
    assert errors.mean().item() == pytest.approx(stages[-1].after, rel=0.2)


def test_what_follows_starts_from_the_reconstructed_student(workspace, cli):
    code, _, said = cli(*arguments(workspace, "both", *THEN, "--set", "schedule=gradual", "--set", "step_one_steps=2"))
    assert code == 0, said
    metrics = metrics_of(workspace / "both")
    assert metrics["steps"] == {"step one": 2, "step two": 4}
    assert "reconstruction 4 steps a block, step one 2 steps (gradual), step two 4 steps" in said
    assert [stage["name"] for stage in metrics["reconstruction"]["stages"]] == PARTS
    assert metrics["best"]["step"] in (0, 5, 6) and metrics["last"]["step"] == 6
    code, _, said = cli(*arguments(workspace, "two", *THEN, "--set", "schedule=map", "--phase", "two"))
    assert code == 0 and "reconstruction" not in metrics_of(workspace / "two"), "step two alone has its own start"


def test_training_that_makes_it_worse_is_not_the_best(workspace, cli):
    """The reconstructed student counts as the checkpoint of step 0."""
    code, _, said = cli(*arguments(workspace, "ruined", *THEN[:-1], "learning_rate=0.1"))
    assert code == 0, said
    metrics = metrics_of(workspace / "ruined")
    accuracies = {key: metrics[key]["accuracy"] for key in ("reconstructed", "best", "last")}
    assert accuracies["best"] == max(accuracies.values())
    if accuracies["last"] <= accuracies["reconstructed"]:
        assert metrics["best"]["step"] == 0


STOPS = {
    "in block 0": ("os.rename checkpoints/reconstruction/.stage-1.*", signal.SIGKILL),
    "asked to stop": ("os.rename checkpoints/reconstruction/.stage-0.*", signal.SIGTERM),
    "in the last part": ("open checkpoints/reconstruction/.stage-4.*/config.json", signal.SIGKILL),
    "in training": ("torch.save checkpoints/training/checkpoint-4/*", signal.SIGKILL),
}


@pytest.mark.parametrize("when", STOPS)
def test_a_stopped_run_goes_on_to_the_same_bits(workspace, whole, when):
    at, how = STOPS[when]
    folder = workspace / f"stopped {when}"
    stopped = run_tritune(*arguments(workspace, folder.name, *THEN), folder=folder, at=at, how=how)
    assert stopped.returncode == (130 if how == signal.SIGTERM else -how), stopped.stderr[-2000:]
    if how == signal.SIGTERM:
        assert "error: stopped in the reconstruction of block 0; --resume continues before it" in stopped.stderr
    again = run_tritune(*arguments(workspace, folder.name, *THEN, "--resume"), folder=folder)
    assert again.returncode == 0, again.stderr[-2000:]
    for name in ("model.safetensors", "best/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    mine, theirs = metrics_of(folder), metrics_of(whole)
    for key in ("reconstructed", "best", "last"):
        assert mine[key] == theirs[key]
    assert mine["reconstruction"]["stages"] == theirs["reconstruction"]["stages"]


@pytest.fixture(scope="module")
def whole(workspace):
    done = run_tritune(*arguments(workspace, "whole", *THEN), folder=workspace / "whole")
    assert done.returncode == 0, done.stderr[-2000:]
    return workspace / "whole"


def test_labels_are_not_needed(workspace, alone, cli):
    """The rows of the training file without their labels give the same student."""
    rows = (workspace / "data" / "train.tsv").read_text("utf-8").splitlines()[1:]
    (workspace / "texts.txt").write_text("\n".join(row.split("\t")[0] for row in rows) + "\n", encoding="utf-8")
    code, _, said = cli(*arguments(workspace, "unlabelled", "--unlabelled", workspace / "texts.txt"))
    assert code == 0, said
    mine, theirs = (load_file(run / "model.safetensors") for run in (workspace / "unlabelled", alone[0]))
    assert all(torch.allclose(mine[name], value, rtol=1e-3, atol=1e-4) for name, value in theirs.items())
    assert metrics_of(workspace / "unlabelled")["rows"]["train"]["read"]["count"] == len(rows)
    code, _, said = cli(*arguments(workspace, "more", "--unlabelled", workspace / "texts.txt", *THEN))
    assert code == 0, said


def test_own_files_need_no_training_file(workspace, cli):
    rows = (workspace / "data" / "dev.tsv").read_text("utf-8").splitlines()[1:]
    named = [
        f"{text}\t{('unacceptable', 'acceptable')[int(label)]}" for text, label in (row.split("\t") for row in rows)
    ]
    (workspace / "own.tsv").write_text("\n".join(["sentence\tlabel", *named]) + "\n", encoding="utf-8")
    files = ("--task", "text-classification", "--dev-file", workspace / "own.tsv")
    code, _, said = cli(
        *("train", workspace / "teacher", *files, "--recipe", "tritune", *SHORT),
        *("--unlabelled", workspace / "data" / "train.tsv", "--output", workspace / "own"),
    )
    assert code == 0, said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--unlabelled", "absent.txt"), "absent.txt"),
        (("--unlabelled", "{data}", *THEN, "--set", "ground_truth_coefficient=1"), "set ground_truth_coefficient=0"),
        (("--set", "learning_rate=1e-4"), "learning_rate would change nothing: max_steps is 0"),
        (("--set", "schedule=gradual"), "schedule: gradual needs a step one, and max_steps is 0"),
        (("--set", "max_steps=-2"), "max_steps must be at least 0, or -1 for epochs"),
        (("--set", "reconstruct_steps=0"), "max_steps must be at least 1"),
        (("--set", "reconstruct_steps=-1"), "reconstruct_steps must not be negative"),
        (("--set", "reconstruct_batch_size=0"), "reconstruct_batch_size must be at least 1"),
        (("--set", "reconstruct_learning_rate=0"), "reconstruct_learning_rate must be positive"),
        (("--phase", "one"), "has no schedule"),
    ],
)
def test_what_does_not_fit_is_one_line(workspace, cli, more, message):
    given = [str(part).format(data=workspace / "data" / "train.tsv") for part in more]
    code, _, said = cli(*train_arguments(workspace, workspace / "bad", *given, recipe="tritune"))
    assert code == 2 and message in said and said.count("error:") == 1
    assert not (workspace / "bad").exists()


@pytest.mark.parametrize("key", ["reconstruct_batch_size=8", "reconstruct_learning_rate=1e-4"])
def test_keys_of_a_reconstruction_that_there_is_not(key):
    with pytest.raises(TrituneError, match="would change nothing: reconstruct_steps is 0"):
        load_recipe("ti-g", [key])


def test_a_recipe_reads_back(tmp_path):
    from tritune.recipes import to_yaml

    recipe = load_recipe("tritune", ["reconstruct_steps=7", "reconstruct_learning_rate=1e-2"])
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    assert isinstance(recipe, Recipe) and load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def test_rows_of_like_length_may_share_a_batch():
    lengths = [5, 1, 4, 2, 2, 9, 3, 8, 7, 6, 1]
    rows = Dataset.from_dict({"input_ids": [[row] * length for row, length in enumerate(lengths)]})

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        return {"row": torch.tensor([row["input_ids"][0] for row in batch])}

    def batches_of(strategy: str, steps: int) -> list[list[int]]:
        keys = [f"train_sampling_strategy={strategy}", f"reconstruct_steps={steps}", "reconstruct_batch_size=2"]
        data = SimpleNamespace(splits={"train": rows}, collate=collate)
        batches = _Batches(SimpleNamespace(recipe=load_recipe("tritune", keys), data=data), torch.device("cpu"))
        return [batches[place]["row"].tolist() for place in range(len(batches))]

    # Fewer rows than nine updates ask for; then four of them, the same ones however they are put together.
    grouped = batches_of("group_by_length", 9)
    assert sorted(chain(*grouped)) == sorted(chain(*batches_of("random", 9))) == list(range(11))
    assert sorted(chain(*batches_of("group_by_length", 2))) == sorted(chain(*batches_of("random", 2)))
    together = [sorted(lengths[row] for row in batch) for batch in grouped]
    assert sorted(together) == [[1, 1], [2, 2], [3, 4], [5, 6], [7, 8], [9]] != together
    assert grouped == batches_of("group_by_length", 9)


def test_an_order_of_rows_that_changes_nothing_is_refused():
    with pytest.raises(TrituneError, match="train_sampling_strategy would change nothing: a reconstruction takes rows"):
        load_recipe("tritune", ["train_sampling_strategy=sequential"])


# Two processes share the rows of every batch.

# Nothing is rounded: a code that a last bit flips would change all that follows.
FLOAT = Quantization(weight_bits=None, activation_bits=None)


def _of_two(folder: str) -> None:
    from tritune.compute.devices import this_process

    process = this_process()
    one = {name: tensor[:1] for name, tensor in text_batch(5).items()}  # not enough for two: left out
    student, stages = _reconstructed(one)
    torch.save((student.state_dict(), stages), f"{folder}/{process.process_index}.pt")


def _reconstructed(*more):
    student = tritune.prepare(FAMILIES["bert"].build(), FLOAT)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.9)
    teacher = instrument(FAMILIES["bert"].build())
    given = [text_batch(tokens) for tokens in (4, 6, 7)]
    given += [{name: tensor[:2] for name, tensor in text_batch(5).items()}, *more]

    def mse(own, theirs, batch):
        return (own.logits - theirs.logits).square().mean()

    work = Reconstruction(student.double(), teacher.double(), given, mse, steps=6, learning_rate=3e-3)
    return student, [asdict(stage) for stage in work.stages()]


def test_two_processes_give_what_one_gives(tmp_path):
    two_ranks(_of_two, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    student, stages = _reconstructed()
    assert ranks[0][1] == ranks[1][1]
    _close(stages, ranks[0][1], 1e-9)
    for name, value in student.state_dict().items():
        assert torch.equal(ranks[0][0][name], ranks[1][0][name])
        torch.testing.assert_close(value, ranks[0][0][name], rtol=1e-9, atol=1e-12)
