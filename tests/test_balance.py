"""`balance`: rare classes weigh more, or come more often; against scikit-learn, slow loops and counts."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.utils.class_weight import compute_class_weight
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from tritune.distil.losses import LOSSES, Pair
from tritune.errors import TrituneError
from tritune.recipes import FinetuneRecipe, load_recipe
from tritune.tasks.registry import get_task
from tritune.training.balance import BalancedSampler, class_weights
from tritune.training.head_trainer import HeadTrainer
from workspace import make_workspace, train_arguments

SKEWED = [0] * 40 + [1] * 7 + [3] * 1


def test_weights_are_those_of_scikit_learn():
    own = class_weights(SKEWED, 4)
    wanted = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=np.array(SKEWED))
    assert own == [wanted[0], wanted[1], 1.0, wanted[2]]
    assert np.mean([own[label] for label in SKEWED]) == pytest.approx(1)
    assert class_weights([2, 2], 3) == [1.0, 1.0, 1.0]


def slow_loss(logits: torch.Tensor, labels: list[int], weights: list[float]) -> float:
    rows = logits.double().tolist()
    losses = [np.log(np.sum(np.exp(row))) - row[label] for row, label in zip(rows, labels, strict=True)]
    return float(np.mean([weights[label] * loss for label, loss in zip(labels, losses, strict=True)]))


def test_the_loss_is_that_of_a_slow_loop():
    logits, labels = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), [0, 1, 3, 0, 0, 1, 3, 3, 0]
    weights = [0.25, 2.0, 1.0, 9.0]
    config = BertConfig(num_labels=4)
    output = type("Output", (), {"logits": logits})
    for dtype in (torch.float32, torch.float64):
        weighted = torch.tensor(weights, dtype=dtype)
        pair = Pair.of_batch(output, output, {"labels": torch.tensor(labels)}, config, class_weights=weighted)
        loss = LOSSES["ground_truth"].compute(pair)
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(
            slow_loss(logits, labels, weights), rel=1e-6
        )


def small_model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        **{"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 4},
        **{"intermediate_size": 8, "max_position_embeddings": 8},
    )
    return BertForSequenceClassification(config)


def trainer_of(folder, save_steps: int = 500, **more) -> HeadTrainer:
    data = Dataset.from_dict({"input_ids": [[i % 20, 1] for i in range(48)], "labels": SKEWED})
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=6,
        max_steps=16,
        save_steps=save_steps,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    return HeadTrainer(small_model(), args, train_dataset=data, **more)


def test_a_training_step_weighs_its_rows_and_an_evaluation_does_not(tmp_path):
    weights = class_weights(SKEWED, 4)
    trainer = trainer_of(tmp_path, class_weights=weights)
    batch = {"input_ids": torch.tensor([[1, 2], [3, 4], [5, 6]]), "labels": torch.tensor([0, 1, 3])}
    model = trainer.model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss, output = trainer.compute_loss(model, dict(batch), return_outputs=True)
    assert loss.item() == pytest.approx(slow_loss(output.logits, [0, 1, 3], weights), rel=1e-5)
    assert trainer.compute_loss(model, dict(batch)).item() == loss.item()
    plain = trainer.compute_loss(model.eval(), dict(batch))
    assert plain.item() == pytest.approx(slow_loss(output.logits, [0, 1, 3], [1] * 4), rel=1e-5)


def test_every_class_comes_as_often_as_any_other():
    sampler = BalancedSampler(SKEWED, seed=3)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 48
    assert Counter(SKEWED[row] for row in drawn) == {0: 16, 1: 16, 3: 16}
    seen = Counter(drawn)
    assert max(seen[row] for row in range(40)) == 1, "no row of a class comes again before all have come"
    assert sorted(seen[row] for row in range(40, 47)) == [2, 2, 2, 2, 2, 3, 3] and seen[47] == 16
    assert list(BalancedSampler(SKEWED, seed=3)) == drawn != list(BalancedSampler(SKEWED, seed=4))
    sampler.epoch = 1
    assert list(sampler) != drawn
    for labels in ([0], [5, 5], [0, 1], [0, 0, 1], list(range(7)) * 3 + [2]):
        counts = Counter(labels[row] for row in BalancedSampler(labels, 0))
        assert sum(counts.values()) == len(labels) and max(counts.values()) - min(counts.values()) <= 1


def test_which_class_is_short_of_one_is_chance():
    labels = [0, 0, 1, 1, 1]
    short = Counter(sum(labels[row] for row in BalancedSampler(labels, seed)) for seed in range(60))
    assert short.keys() == {2, 3} and min(short.values()) > 10


def test_a_trainer_draws_from_it_and_every_epoch_anew(tmp_path):
    trainer = trainer_of(tmp_path, sampler=BalancedSampler(SKEWED, seed=3))
    seen = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: seen.extend(row["labels"] for row in rows) or collate(rows)
    trainer.train()
    first, second = ([SKEWED[row] for row in sampled(epoch)] for epoch in range(2))
    assert seen[:96] == [*first, *second]


def sampled(epoch: int) -> list[int]:
    sampler = BalancedSampler(SKEWED, seed=3)
    sampler.epoch = epoch
    return list(islice(sampler, 48))


def test_a_stopped_training_draws_what_an_undisturbed_one_draws(tmp_path):
    """In the middle of the second epoch, which has eight steps."""
    whole = trainer_of(tmp_path / "whole", sampler=BalancedSampler(SKEWED, seed=3), save_steps=10)
    whole.train()
    stopped = trainer_of(tmp_path / "stopped", sampler=BalancedSampler(SKEWED, seed=3))
    stopped.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, stopped.model.state_dict()[name]), name
    other = trainer_of(tmp_path / "other", sampler=BalancedSampler(SKEWED, seed=4))
    other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))
    assert not torch.equal(whole.model.classifier.weight, other.model.classifier.weight)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def test_fine_tuning_and_distilling_with_weights(workspace, cli):
    common = ("--task", "demo", "--data", workspace / "data", "--set", "max_steps=2", "--set", "balance=weights")
    code, _, err = cli("finetune", workspace / "base", *common, "--output", workspace / "tuned")
    assert code == 0, err
    assert "balance: weights" in (workspace / "tuned" / "recipe.yaml").read_text()
    more = ("--recipe", "ternarybert", "--set", "ground_truth_coefficient=1", "--output", workspace / "student")
    code, _, err = cli("train", workspace / "teacher", *common, *more)
    assert code == 0, err


RECIPES = {
    "unknown": ("ti-g", ["balance=more"], "balance must be one of none, weights, sampling"),
    "no_labels_in_the_loss": ("ti-g", ["balance=weights"], "ground_truth_coefficient is 0; take sampling"),
    "blocks_only": ("tritune", ["balance=sampling"], "balance .* max_steps is 0"),
    "two_orders": ("ti-g", ["balance=sampling", "train_sampling_strategy=sequential"], "draws the rows itself"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_what_changes_nothing_is_refused(name):
    recipe, keys, message = RECIPES[name]
    with pytest.raises(TrituneError, match=message):
        load_recipe(recipe, keys)


@pytest.mark.parametrize(
    ("task", "message"),
    [("stsb", "has scores"), ("squad", "no class for"), ("features", "no class for"), ("conll2003", "no class for")],
)
def test_tasks_without_classes_are_refused(task, message):
    with pytest.raises(TrituneError, match=f"^balance: .* {message}"):
        load_recipe("finetune", ["balance=sampling"], FinetuneRecipe).resolve(get_task(task), 10)
    load_recipe("finetune", ["balance=sampling"], FinetuneRecipe).resolve(get_task("cifar10"), 10)


def test_rows_without_labels_are_refused(workspace, cli, tmp_path):
    (tmp_path / "texts.txt").write_text("the dog sleeps\n" * 20)
    more = ("--unlabelled", tmp_path / "texts.txt", "--set", "balance=sampling")
    code, _, err = cli(*train_arguments(workspace, tmp_path / "run", *more))
    assert code == 2 and "classes are balanced by their labels" in err and not (tmp_path / "run").exists()
