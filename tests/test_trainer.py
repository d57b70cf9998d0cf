"""`DistillationTrainer` against loops written by hand, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, TrainingArguments
from transformers.training_args import OptimizerNames

import tritune
from families import FAMILIES, LABELS, text_batch
from tritune import Intervention, Quantization, Site, TrituneError
from tritune.distil.losses import LOSSES, Pair, distillation_losses
from tritune.distil.schedule import SCHEDULES
from tritune.modeling.trace import TRACE_FIELDS
from tritune.training import trainer as training
from tritune.training.head_trainer import HeadTrainer
from tritune.training.optimizer import BertAdam, learning_rate
from tritune.training.trainer import DistillationTrainer

BERT = FAMILIES["bert"]
STEPS, LR = 6, 1e-3
SITE_FIELDS = [field for field in TRACE_FIELDS if field != "hidden_states"]


def rows(count: int = 12) -> list[dict[str, torch.Tensor]]:
    """Padded rows with labels; every batch of three is the families' batch with other words."""
    found = []
    for i in range(-(-count // 3)):
        batch = text_batch()
        batch["input_ids"] = batch["input_ids"].roll(i, 0) * batch["attention_mask"]
        batch["input_ids"][:, 0] += i + 1
        batch["labels"] = torch.arange(3) % LABELS
        found += [{key: value[row] for key, value in batch.items()} for row in range(3)]
    return found[:count]


def arguments(folder, **values) -> TrainingArguments:
    defaults = {"max_steps": STEPS, "per_device_train_batch_size": 3, "learning_rate": LR, "logging_steps": 1}
    values = defaults | {"save_strategy": "no", "seed": 3} | values
    return TrainingArguments(str(folder), report_to="none", disable_tqdm=True, use_cpu=True, **values)


class InOrder(DistillationTrainer):
    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(folder, student=None, teacher=None, kind=InOrder, data=None, arguments_values=None, **values):
    return kind(
        model=tritune.prepare(BERT.build()) if student is None else student,
        teacher=BERT.build(seed=1) if teacher is None else teacher,
        args=arguments(folder, **(arguments_values or {})),
        train_dataset=rows() if data is None else data,
        **values,
    )


def stack(part: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in part]) for key in part[0]}


def losses_of(student, teacher, batch, coefficients, site=None, average="padded"):
    batch = dict(batch)
    labels = batch.pop("labels")
    with torch.no_grad():
        theirs = teacher(**batch, output_trace=True)
    output = student(**batch, output_trace=True, intervention=site and Intervention(site, theirs.trace))
    return distillation_losses(Pair(output, theirs, batch["attention_mask"], labels, average), coefficients)


def decay_groups(model, decay):
    decayed = [p for name, p in model.named_parameters() if "bias" not in name and "LayerNorm" not in name]
    spared = [p for name, p in model.named_parameters() if "bias" in name or "LayerNorm" in name]
    return [{"params": decayed, "weight_decay": decay}, {"params": spared, "weight_decay": 0.0}]


def test_a_float_model_trained_by_the_published_optimizer_logs_the_rates_of_its_schedule(tmp_path):
    training = HeadTrainer(BERT.build(), arguments(tmp_path), train_dataset=rows(), optimizer="bert_adam")
    training.train()
    logged = [line["learning_rate"] for line in training.state.log_history if "loss" in line]
    assert logged == [learning_rate(LR, step, STEPS, 0.1) for step in range(STEPS)]
    assert isinstance(training.optimizer.optimizer, BertAdam)


@pytest.mark.parametrize(
    ("schedule", "average"), [(None, "valid"), ("gradual", "padded"), ("stochastic", "valid"), ("map", "padded")]
)
def test_training_is_the_loop(tmp_path, schedule, average):
    coefficients = {"logits": 1.0, "attention_map": 0.5, "block_output": 2.0, "ground_truth": 0.1}
    run = trainer(
        tmp_path,
        arguments_values={"weight_decay": 0.2},
        coefficients=coefficients,
        schedule=schedule,
        loss_average=average,
    )
    run.train()

    student, teacher, data = tritune.prepare(BERT.build()).train(), tritune.instrument(BERT.build(seed=1)), rows()
    optimizer = BertAdam(decay_groups(student, 0.2), lr=LR, total_steps=STEPS, eps=run.args.adam_epsilon)
    logs = [log for log in run.state.log_history if "loss" in log]
    for step in range(STEPS):
        batch = stack(data[3 * (step % 4) : 3 * (step % 4) + 3])
        site = SCHEDULES[schedule](step, STEPS, 3) if schedule else None
        losses = losses_of(student, teacher, batch, coefficients, site, average)
        total = sum(coefficients[name] * loss for name, loss in losses.items())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        assert logs[step]["loss"] == pytest.approx(total.item(), rel=1e-5)
        for name, loss in losses.items():
            assert logs[step][f"{name}_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for own, expected in zip(run.model.parameters(), student.parameters(), strict=True):
        assert torch.equal(own, expected)


def test_adamw_is_the_loop(tmp_path):
    values = {"weight_decay": 0.2, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    run = trainer(tmp_path, arguments_values=values, optimizer="adamw", coefficients={"logits": 1.0})
    run.train()
    student, teacher, data = tritune.prepare(BERT.build()).train(), tritune.instrument(BERT.build(seed=1)), rows()
    # Trainer's own kind: the fused one rounds otherwise, which Adam makes large where a gradient is next to nothing.
    fused = run.args.optim == OptimizerNames.ADAMW_TORCH_FUSED
    optimizer = torch.optim.AdamW(decay_groups(student, 0.2), lr=LR, eps=run.args.adam_epsilon, fused=fused)
    for step in range(STEPS):
        optimizer.zero_grad()
        losses_of(student, teacher, stack(data[3 * (step % 4) :][:3]), {"logits": 1.0})["logits"].backward()
        optimizer.step()
    for own, expected in zip(run.model.parameters(), student.parameters(), strict=True):
        assert torch.equal(own, expected)


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    results = []
    for size, accumulate in ((4, 1), (2, 2), (1, 4)):
        values = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate, "max_steps": 3}
        quantization = Quantization(activation_granularity="token")  # so that no answer depends on its batch mates
        student = tritune.prepare(BERT.build(), quantization).double()
        run = trainer(tmp_path, student, BERT.build(seed=1).double(), arguments_values=values, loss_average="valid")
        run.train()
        results.append([parameter.detach() for parameter in student.parameters()])
    for other in results[1:]:
        for own, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-7, atol=1e-9)


def test_bf16_covers_teacher_and_student(tmp_path):
    student, teacher = tritune.prepare(BERT.build()), tritune.instrument(BERT.build(seed=1))
    dtypes = {"student": set(), "teacher": set()}
    for name, model in (("student", student), ("teacher", teacher)):
        model.bert.encoder.layer[0].intermediate.dense.register_forward_hook(
            lambda module, args, output, name=name: dtypes[name].add(output.dtype)
        )
    run = trainer(tmp_path, student, teacher, arguments_values={"bf16": True})
    plain = trainer(tmp_path)
    for each in (run, plain):
        each.train()
    assert dtypes == {"student": {torch.bfloat16}, "teacher": {torch.bfloat16}}
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    losses = [[log["loss"] for log in each.state.log_history if "loss" in log] for each in (run, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


def test_training_twice(tmp_path):
    run = trainer(tmp_path)
    assert run.train().global_step == run.train().global_step == STEPS


def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(TrituneError, match="fp16: a CPU cannot train in float16"):
        trainer(tmp_path, arguments_values={"fp16": True})


def test_losses_with_coefficient_zero_are_not_computed(tmp_path, monkeypatch):
    def explode(pair):
        raise AssertionError("computed")

    for name in set(LOSSES) - {"logits"}:
        monkeypatch.setitem(LOSSES, name, type(LOSSES[name])(explode, LOSSES[name].fields))
    run = trainer(tmp_path, coefficients=dict.fromkeys(LOSSES, 0.0) | {"logits": 1.0})
    seen = []
    run.model.register_forward_hook(lambda m, args, kwargs, out: seen.append(set(out)), with_kwargs=True)
    run.train()
    (logs,) = {frozenset(log) for log in run.state.log_history if "loss" in log}
    assert {name for name in logs if name.endswith("_loss")} == {"logits_loss"}
    assert len(seen) == STEPS and not any({"trace", "hidden_states"} & keys for keys in seen)


class OneStep(Exception):
    """Enough has been seen."""


def recorded(monkeypatch, run) -> dict[str, list]:
    """Field to the layers that the first step's losses were handed, for student and teacher."""
    found = {}

    def look(pair, coefficients):
        for who in ("student", "teacher"):
            layers = getattr(pair, who).trace.layers
            for field in SITE_FIELDS:
                found[who, field] = [i for i, layer in enumerate(layers) if getattr(layer, field) is not None]
        raise OneStep

    monkeypatch.setattr(training, "distillation_losses", look)
    with pytest.raises(OneStep):
        run.train()
    return found


@pytest.mark.parametrize(("choice", "layers"), [("all", [0, 1, 2]), ("last", [2]), ((0, 2), [0, 2]), ("every-2", [1])])
def test_only_what_the_losses_read_is_recorded(tmp_path, monkeypatch, choice, layers):
    run = trainer(
        tmp_path, coefficients={"attention_map": 1.0, "context": 1.0}, distil_layers=choice, schedule="projection"
    )
    found = recorded(monkeypatch, run)
    expected = {"attention_probs": layers, "context": layers}
    for field in SITE_FIELDS:
        assert found["student", field] == expected.get(field, [])
        # An intervention needs the teacher's tensor of every layer.
        assert found["teacher", field] == ([0, 1, 2] if field == "attention_projection" else expected.get(field, []))


@pytest.mark.parametrize("choice", ["last", (0,)])
def test_chosen_layers_and_temperature_are_the_loop(tmp_path, choice):
    coefficients = {"logits": 1.0, "hidden_states": 1.0, "attention_map": 0.5, "block_output": 2.0}
    run = trainer(tmp_path, coefficients=coefficients, temperature=3.0, distil_layers=choice)
    run.train()
    student, teacher = tritune.prepare(BERT.build()).train(), tritune.instrument(BERT.build(seed=1))
    batch = stack(rows()[:3])
    batch.pop("labels")
    with torch.no_grad():
        theirs = teacher(**batch, output_trace=True)
    layers = (2,) if choice == "last" else choice
    pair = Pair(student(**batch, output_trace=True), theirs, batch["attention_mask"], temperature=3.0, layers=layers)
    first = run.state.log_history[0]
    for name, loss in distillation_losses(pair, coefficients).items():
        assert first[f"{name}_loss"] == pytest.approx(loss.item(), rel=1e-5)


def family(regression: bool):
    """BERT with classes, or with a score."""
    if not regression:
        return BERT
    config = BERT.config()
    config.num_labels = 1
    return replace(BERT, config=lambda: config)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("regression", [False, True])
def test_labels_mixed_into_the_loss(tmp_path, regression, share):
    """The mix a teacher's answer and the labels have by their coefficients, for classes and for scores."""
    student, teacher = (family(regression).build(seed) for seed in (0, 1))
    data = [row | {"labels": row["labels"].float() / 3 if regression else row["labels"]} for row in rows()]
    coefficients = {"logits": 1 - share, "ground_truth": share, "attention_map": 1.0, "block_output": 0.5}
    run = trainer(tmp_path, tritune.prepare(student), teacher, data=data, coefficients=coefficients)
    first = stack(data[:3])
    labels = first.pop("labels")
    with torch.no_grad():
        theirs = teacher(**first).logits
        own = run.model.train()(**first).logits
    run.train()
    if regression:
        expected = {"logits": (own - theirs).square().mean(), "ground_truth": (own[:, 0] - labels).square().mean()}
    else:
        logs = own.log_softmax(-1)
        expected = {
            "logits": -(theirs.softmax(-1) * logs).sum(-1).mean(),
            "ground_truth": -logs[torch.arange(3), labels].mean(),
        }
    log = run.state.log_history[0]
    for name, value in expected.items():
        if coefficients[name]:
            assert log[f"{name}_loss"] == pytest.approx(value.item(), rel=1e-4)
    total = sum(weight * log[f"{name}_loss"] for name, weight in coefficients.items() if weight)
    assert log["loss"] == pytest.approx(total, rel=1e-4)


def test_a_temperature_that_changes_nothing_is_refused(tmp_path):
    student, teacher = (family(regression=True).build(seed) for seed in (0, 1))
    with pytest.raises(TrituneError, match="temperature would change nothing"):
        trainer(tmp_path, tritune.prepare(student), teacher, temperature=2.0)
    with pytest.raises(TrituneError, match="temperature must be a positive number"):
        trainer(tmp_path, temperature=float("nan"))


def test_logs_hold_the_mean_of_every_loss_since_the_last(tmp_path):
    run = trainer(tmp_path, arguments_values={"logging_steps": 2}, schedule="gradual")
    single = trainer(tmp_path, schedule="gradual")
    for each in (run, single):
        each.train()
    means, values = ([log for log in each.state.log_history if "loss" in log] for each in (run, single))
    assert len(means) == 3 and len(values) == 6
    for name in ("loss", "logits_loss", "hidden_states_loss", "attention_scores_loss"):
        expected = [(a[name] + b[name]) / 2 for a, b in zip(values[::2], values[1::2], strict=True)]
        assert [log[name] for log in means] == pytest.approx(expected, rel=1e-5)


def test_losses_add_up_where_updates_have_unlike_numbers_of_batches(tmp_path):
    """Twelve rows make four batches, and those an update of three and one of a single batch."""
    values = {"gradient_accumulation_steps": 3, "logging_steps": 2, "max_steps": 3}
    coefficients = {"logits": 0.5, "hidden_states": 1.0, "attention_scores": 2.0}
    run = trainer(tmp_path, arguments_values=values, coefficients=coefficients)
    for _ in range(2):  # the third step is not logged, and is none of the next training's
        run.train()
        (log,) = [log for log in run.state.log_history if "loss" in log]
        parts = [weight * log[f"{name}_loss"] for name, weight in coefficients.items()]
        assert log["loss"] == pytest.approx(sum(parts), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"coefficients": {"logits": 1.0, "vibes": 1.0}}, "coefficient.*vibes"),
        ({"coefficients": {}}, "nothing to train on"),
        ({"coefficients": {"logits": 0.0}}, "nothing to train on"),
        ({"schedule": "sideways"}, "schedule.*sideways"),
        ({"loss_average": "median"}, "loss_average.*median"),
        ({"optimizer": "sgd"}, "optimizer.*sgd"),
        ({"distil_layers": "first"}, "distil_layers must be all, last"),
        ({"distil_layers": (3,)}, "distil_layers.*only 3 layers"),
    ],
    ids=str,
)
def test_unknown_names_are_refused(tmp_path, values, message):
    with pytest.raises(TrituneError, match=message):
        trainer(tmp_path, **values)


def test_models_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(TrituneError, match="prepare"):
        trainer(tmp_path, student=BERT.build())
    with pytest.raises(TrituneError, match=r"3 layers.*2"):
        trainer(tmp_path, teacher=FAMILIES["distilbert"].build())
    config = BERT.config()
    config.num_labels = LABELS + 2
    with pytest.raises(TrituneError, match=rf"{LABELS} labels.*{LABELS + 2}"):
        trainer(tmp_path, teacher=BERT.model(config))


def test_a_student_is_not_its_own_teacher(tmp_path):
    """`prepare` works in place, so `teacher = model` is an easy slip; it would freeze the student."""
    student = tritune.prepare(BERT.build())
    with pytest.raises(TrituneError, match="teacher"):
        trainer(tmp_path, student=student, teacher=student)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("instrumented", [True, False])
@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("classifier.weight", torch.nan),
        ("classifier.bias", torch.inf),
        ("bert.encoder.layer.1.output.LayerNorm.bias", torch.nan),
    ],
)
def test_a_broken_teacher_stops_the_run_at_once_with_a_line(tmp_path, name, bad, instrumented):
    teacher = BERT.build(seed=1)
    if instrumented:
        tritune.instrument(teacher)
    with torch.no_grad():
        teacher.get_parameter(name).view(-1)[0] = bad
    with pytest.raises(TrituneError, match="step 1: the logits loss is nan"):
        trainer(tmp_path, teacher=teacher).train()


def test_a_student_that_breaks_later_is_named_with_its_step(tmp_path):
    class Breaking(InOrder):
        def training_step(self, model, inputs, *args, **kwargs):
            if self.state.global_step == 3:
                with torch.no_grad():
                    model.bert.encoder.layer[1].output.LayerNorm.weight[0] = torch.nan
            return super().training_step(model, inputs, *args, **kwargs)

    with pytest.raises(TrituneError, match=r"step 4: the \w+ loss is nan"):
        trainer(tmp_path, kind=Breaking).train()


def test_evaluation_never_runs_the_teacher(tmp_path):
    run = trainer(tmp_path, schedule="projection", eval_dataset=rows())
    run.train()
    calls = []
    run.teacher.register_forward_hook(lambda *_: calls.append(1))
    metrics = run.evaluate()
    logits = torch.tensor(run.predict(rows()).predictions)
    assert calls == []
    student, batch = run.model.eval(), stack(rows())
    with torch.no_grad():
        own = torch.cat([student(**{k: v[i : i + 8] for k, v in batch.items()}).logits for i in range(0, 12, 8)])
    torch.testing.assert_close(logits, own)
    expected = torch.nn.functional.cross_entropy(own, batch["labels"])
    assert metrics["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_the_teacher_is_frozen_in_evaluation_mode_and_does_not_move(tmp_path):
    teacher = BERT.build(seed=1).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    run = trainer(tmp_path, teacher=teacher, schedule="gradual")
    run.train()
    assert run.teacher is teacher and not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(name.startswith("teacher") for name, _ in run.model.named_parameters())


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path):
    """With dropout and shuffling, which the global generators drive."""
    results = []
    for seed in (3, 3, 4):
        student = tritune.prepare(BERT.build())
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        torch.rand(len(results) + 1)  # what the process drew before must not matter
        run = DistillationTrainer(
            model=student,
            teacher=BERT.build(seed=1),
            args=arguments(tmp_path, seed=seed),
            train_dataset=rows(),
            schedule="stochastic",
        )
        run.train()
        results.append([parameter.detach().clone() for parameter in student.parameters()])
    same, other = (all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True)) for result in results[1:])
    assert same and not other


def test_the_site_is_that_of_the_schedule(tmp_path):
    sites = []

    class Watching(InOrder):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            sites.append(self.site)
            return loss

    trainer(tmp_path, kind=Watching, schedule="inverted").train()
    assert sites == [Site.MAP, Site.MAP, Site.CONTEXT, Site.CONTEXT, Site.PROJECTION, Site.PROJECTION]


def test_a_resumed_run_ends_on_the_same_bits(tmp_path):
    final = []
    for checkpoint in (None, tmp_path / "checkpoint-3"):
        args = arguments(tmp_path, save_strategy="steps", save_steps=3)
        student = tritune.prepare(BERT.build())
        run = DistillationTrainer(
            model=student, teacher=BERT.build(seed=1), args=args, train_dataset=rows(), schedule="gradual"
        )
        run.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        final.append([parameter.detach().clone() for parameter in run.model.parameters()])
    assert all(torch.equal(own, expected) for own, expected in zip(*final, strict=True))


def test_five_lines_are_enough(tmp_path):
    model, teacher, data = BERT.build(), BERT.build(), rows()
    student = tritune.prepare(model)
    run = DistillationTrainer(model=student, teacher=teacher, args=arguments(tmp_path / "run"), train_dataset=data)
    run.train()
    student.save_pretrained(tmp_path / "student")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    batch = BERT.batch()
    with torch.no_grad():
        expected = student.eval()(**batch).logits
        assert torch.equal(loaded(**batch).logits, expected)
        assert not torch.equal(tritune.prepare(BERT.build())(**batch).logits, expected)
