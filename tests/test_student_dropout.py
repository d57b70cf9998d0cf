"""`student_dropout: false`: nothing is dropped in training, and everything else of training mode stays as it is."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

import tritune
from families import FAMILIES, Grumble, ZorpForWhatever
from test_learned import COMBINATIONS
from test_trainer import BERT, arguments, rows, trainer
from test_zoo import answer
from tritune import DistillationTrainer
from tritune.modeling.dropout import dropping_modules
from tritune.quant import MovingMinMax
from workspace import make_workspace, train_arguments
from zoo import SERVED

RATE = 0.4


def with_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """Every rate that the family knows; some are in the configuration of a part."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            with_dropout(value)
        elif ("drop" in name and "token" not in name) and (value is None or isinstance(value, float)):
            setattr(config, name, RATE)
    return config


def dropping(name: str):
    """A float model with dropout wherever its family has any."""
    family = SERVED[name]
    config = with_dropout(getattr(transformers, family.config)(**family.values))
    if hasattr(config, "resid_pdrop"):
        config.resid_pdrop = RATE
    torch.manual_seed(0)
    return getattr(transformers, family.classes[0])._from_config(config, attn_implementation="eager")


def rates(config: PreTrainedConfig) -> dict[str, float | None]:
    return {name: value for name, value in config.to_dict().items() if "drop" in name}


def passes(folder, student, teacher, batch, count: int = 2, **settings) -> list[list[torch.Tensor]]:
    """The answer and all traced tensors of training passes over one batch."""
    run = DistillationTrainer(student, teacher, arguments(folder), train_dataset=rows(), **settings)
    found = []
    for _ in range(count):
        student.train()  # as Trainer does before every batch
        _, output = run.compute_loss(student, dict(batch), return_outputs=True)
        found.append([answer(output).detach(), *(state.detach() for state in output.trace.hidden_states)])
    return found


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("dropout", [True, False])
def test_two_training_passes_differ_by_dropout_alone(name, dropout, tmp_path):
    family, teacher = SERVED[name], dropping(name)
    student = tritune.prepare(copy.deepcopy(teacher), family.quantization)
    settings = {"student_dropout": dropout, "coefficients": family.coefficients}
    one, two = passes(tmp_path, student, teacher, family.batch(), **settings)
    same = [torch.equal(*both) for both in zip(one, two, strict=True)]
    assert all(same) if not dropout else not any(same[:1] + same[2:])
    student.eval()
    if not dropout:
        with torch.no_grad():
            assert torch.equal(answer(student(**family.batch())), one[0])


def test_what_is_silent_is_what_drops_and_the_config_keeps_its_rates(tmp_path):
    teacher = dropping("BERT")
    student = tritune.prepare(copy.deepcopy(teacher))
    before = rates(student.config)
    run = trainer(tmp_path, student, teacher, student_dropout=False, arguments_values={"max_steps": 2})
    run.train()
    silent = {name for name, module in student.named_modules() if not module.training}
    assert silent == {
        name
        for name, module in student.named_modules()
        if isinstance(module, nn.Dropout) or name.endswith("attention.self")
    }
    assert before["hidden_dropout_prob"] == before["attention_probs_dropout_prob"] == RATE
    student.save_pretrained(tmp_path / "student")
    assert rates(student.config) == rates(type(student.config).from_pretrained(tmp_path / "student")) == before
    student.train()
    assert all(module.training for module in student.modules())


def test_a_training_without_dropout_is_one_of_a_model_that_has_none(tmp_path):
    """To the bit: quantizers, moving ranges and gradient checkpointing do what they do in training."""
    found = []
    for rate, checkpointing in ((0.0, False), (RATE, False), (RATE, True)):
        config = BERT.config()
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = rate
        family = replace(BERT, config=lambda config=config: config)
        student = tritune.prepare(family.build(), COMBINATIONS["seq-moving"])
        values = {"max_steps": 3}
        if checkpointing:
            options = {"use_reentrant": False}
            values |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": options}
        run = trainer(tmp_path, student, schedule="gradual", student_dropout=rate == 0, arguments_values=values)
        run.train()
        found.append(student.state_dict())
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-7, msg=name)
    assert all(torch.equal(found[1][name], tensor) for name, tensor in found[0].items())
    ranges = [module for module in student.modules() if isinstance(module, MovingMinMax)]
    assert ranges and all(module.training for module in ranges)


class Leaky(Grumble):
    """A layer that drops by itself, at a rate of its own."""

    def __init__(self, config):
        super().__init__(config)
        self.gloop_dropout = RATE

    def forward(self, gloop, veil):
        return F.dropout(super().forward(gloop, veil), self.gloop_dropout, self.training)


class LeakyZorp(ZorpForWhatever):
    def __init__(self, config):
        super().__init__(config)
        self.stack = nn.ModuleList(Leaky(config) for _ in range(config.grumbles))


@pytest.mark.parametrize("dropout", [True, False])
def test_a_module_that_calls_the_function_itself(dropout, tmp_path):
    family = FAMILIES["zorp"]
    teacher = LeakyZorp._from_config(family.config(), attn_implementation="eager")
    student = tritune.prepare(copy.deepcopy(teacher))
    one, two = passes(tmp_path, student, teacher, family.batch(), student_dropout=dropout)
    assert torch.equal(one[0], two[0]) is not dropout
    assert {type(module) for module in dropping_modules(student)} == {Leaky, type(student.stack[0].blick)}


@pytest.mark.parametrize(("overrides", "kept"), [((), True), (("student_dropout=false",), False)])
def test_a_run_asks_its_recipe(overrides, kept, tmp_path, cli, monkeypatch):
    make_workspace(tmp_path)
    teacher = tmp_path / "teacher" / "config.json"
    teacher.write_text(json.dumps(json.loads(teacher.read_text()) | {"hidden_dropout_prob": RATE}))
    asked, train = [], DistillationTrainer.train

    def training(self, *args, **kwargs):
        asked.append(not self.silenced)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", training)
    settings = [word for setting in ("max_steps=4", *overrides) for word in ("--set", setting)]
    code, _, err = cli(*train_arguments(tmp_path, tmp_path / "run", *settings))
    assert code == 0, err
    assert asked == [kept, kept]  # both steps
    assert f"student_dropout: {str(kept).lower()}" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["hidden_dropout_prob"] == RATE
