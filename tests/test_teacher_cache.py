"""A training that looks the teacher up is the training that asks it; and what the cache refuses."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

import tritune
from families import FAMILIES, text_batch
from test_trainer import arguments, rows
from tritune import TrituneError
from tritune.distil.losses import LOSSES
from tritune.errors import Interrupted
from tritune.recipes import load_recipe
from tritune.training.teacher_cache import ROW, TeacherCache
from tritune.training.trainer import DistillationTrainer
from workspace import make_workspace, train_arguments

BERT = FAMILIES["bert"]
EVERYTHING = {
    "logits": 1.0,
    "hidden_states": 1.0,
    "attention_scores": 0.5,
    "attention_map": 2.0,
    "block_output": 1.0,
    "context": 0.5,
    "projection": 0.3,
}
FIELDS = frozenset(tritune.modeling.trace.TRACE_FIELDS)


@pytest.fixture
def teacher():
    return tritune.instrument(BERT.build(seed=1))


def numbered(count: int) -> list[dict[str, torch.Tensor]]:
    return [row | {ROW: torch.tensor(number)} for number, row in enumerate(rows(count))]


def make_cache(folder, teacher, count=12, fields=FIELDS, layers=None) -> TeacherCache:
    batch = text_batch()
    with torch.no_grad():
        sample = teacher(**batch, output_trace=fields)
    return TeacherCache(folder, count, batch["input_ids"].shape[1], fields, sample, layers)


def losses(folder, teacher, cache, **values) -> list[dict[str, float]]:
    """The logged losses of nine steps over twelve rows in shuffled batches of three: more than two epochs."""
    run = DistillationTrainer(
        model=tritune.prepare(BERT.build()),
        teacher=teacher,
        args=arguments(folder, max_steps=9),
        train_dataset=numbered(12),
        coefficients=EVERYTHING,
        teacher_cache=cache,
        **values,
    )
    run.train()
    return [
        {name: value for name, value in log.items() if "loss" in name} for log in run.state.log_history if "loss" in log
    ]


def test_looking_up_chosen_layers_keeps_only_them(tmp_path, teacher):
    whole = make_cache(tmp_path / "whole", teacher)
    cache = make_cache(tmp_path / "cache", teacher, layers=(0, 2))
    for name, file in cache.files.items():
        count = {"logits": None, "hidden_states": 4}.get(name, 3)
        assert file.shape[1] == (2 if count else whole.files[name].shape[1]), name
        assert count is None or whole.files[name].shape[1] == count
    asked = losses(tmp_path / "a", teacher, None, distil_layers=(0, 2))
    looked_up = losses(tmp_path / "b", teacher, cache, distil_layers=(0, 2))
    assert cache.filled.all()
    for one, other in zip(asked, looked_up, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("average", ["padded", "valid"])
def test_looking_up_is_asking(tmp_path, teacher, average):
    calls = []
    handle = teacher.register_forward_hook(lambda *_: calls.append(1))
    asked = losses(tmp_path / "a", teacher, None, loss_average=average)
    assert len(calls) == 9
    calls.clear()
    cache = make_cache(tmp_path / "cache", teacher)
    calls.clear()
    looked_up = losses(tmp_path / "b", teacher, cache, loss_average=average)
    # Four batches an epoch; in the second one no row is new.
    assert len(calls) == 4
    handle.remove()
    assert len(asked) == len(looked_up) == 9
    for one, other in zip(asked, looked_up, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_steps_with_an_intervention_ask(tmp_path, teacher):
    cache = make_cache(tmp_path / "cache", teacher)
    expected = losses(tmp_path / "a", teacher, None, schedule="gradual")
    assert losses(tmp_path / "b", teacher, cache, schedule="gradual") == expected
    assert not cache.filled.any()


def test_filling_computes_every_row_once_with_those_of_its_length(tmp_path, teacher):
    lengths = [5, 2, 4, 3, 5, 2, 3, 4, 1]
    ids = [[1 + (row + place) % 9 for place in range(length)] for row, length in enumerate(lengths)]
    rows = Dataset.from_dict({"input_ids": ids, "labels": [0] * len(ids), ROW: range(len(ids))})
    fields, widths = frozenset({"hidden_states", "attention_probs"}), []

    def collate(batch):
        width = max(len(row["input_ids"]) for row in batch)
        widths.append(width)
        padded = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in batch])
        other = {"labels": torch.zeros(len(batch), dtype=torch.long), ROW: torch.tensor([row[ROW] for row in batch])}
        return {"input_ids": padded, "attention_mask": (padded > 0).long(), **other}

    with torch.no_grad():
        sample = teacher(**text_batch(), output_trace=fields)
    cache = TeacherCache(tmp_path / "cache", len(ids), max(lengths), fields, sample)
    run = DistillationTrainer(
        model=tritune.prepare(BERT.build()),
        teacher=teacher,
        args=arguments(tmp_path),
        train_dataset=rows,
        data_collator=collate,
        coefficients={"logits": 1.0, "hidden_states": 1.0, "attention_map": 1.0},
        teacher_cache=cache,
    )
    with pytest.raises(Interrupted, match="--resume computes them again"):
        run.fill_teacher_cache(lambda: len(widths) == 2)
    assert cache.filled.sum() == 3 and not cache.filled.all()
    widths.clear()
    state = torch.get_rng_state()
    run.fill_teacher_cache()
    assert torch.equal(state, torch.get_rng_state()), "dropout is that of a run without a cache"
    assert cache.filled.all() and widths == [5, 4, 2]
    for row, tokens in enumerate(ids):
        with torch.no_grad():
            alone = teacher(input_ids=torch.tensor([tokens]), output_trace=fields)
        torch.testing.assert_close(torch.tensor(cache.files["logits"][row]), alone.logits[0], rtol=1e-4, atol=1e-5)
        for place, hidden in enumerate(alone.trace.hidden_states):
            kept = torch.tensor(cache.files["hidden_states"][row][place, : len(tokens)])
            torch.testing.assert_close(kept, hidden[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_shorter_batches(tmp_path, teacher):
    batch = text_batch()
    cache = make_cache(tmp_path, teacher, fields=frozenset({"attention_probs", "hidden_states"}))
    calls = []

    def forward(batch):
        calls.append(len(batch["input_ids"]))
        return teacher(**batch, output_trace=cache.fields)

    short = {name: value[1:, :3] for name, value in batch.items()}
    first = cache.outputs(short, torch.tensor([5, 2]), forward)
    flipped = {name: value.flip(0) for name, value in short.items()}
    second = cache.outputs(flipped, torch.tensor([2, 5]), forward)
    assert calls == [2]
    assert torch.equal(second.logits, first.logits.flip(0))
    for own, theirs in zip(second.trace.hidden_states, first.trace.hidden_states, strict=True):
        assert torch.equal(own, theirs.flip(0))
    for own, theirs in zip(second.trace.layers, first.trace.layers, strict=True):
        assert torch.equal(own.attention_probs, theirs.attention_probs.flip(0)) and own.context is None
    cache.outputs(short, torch.tensor([5, 3]), forward)
    assert calls == [2, 2], "one row of two is new"


def test_what_lies_there_is_not_trusted(tmp_path, teacher):
    make_cache(tmp_path / "cache", teacher).filled[:] = True
    assert not make_cache(tmp_path / "cache", teacher).filled.any()


def test_a_teacher_in_training_mode_is_refused(tmp_path, teacher):
    cache = make_cache(tmp_path / "cache", teacher)
    run = DistillationTrainer(
        model=tritune.prepare(BERT.build()),
        teacher=teacher,
        args=arguments(tmp_path),
        train_dataset=numbered(12),
        teacher_cache=cache,
    )
    teacher.train()
    with pytest.raises(TrituneError, match="cache_teacher: the teacher is in training mode"):
        run.train()


@pytest.mark.parametrize("when", ["before", "while the place is taken"])
def test_a_disk_without_room_is_refused(tmp_path, teacher, monkeypatch, when):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    if when == "before":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    else:
        monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TrituneError, match=r"cache_teacher: needs \d\.\d GB in .*, where .* GB are free"):
        make_cache(tmp_path / "cache", teacher)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("data", [rows(3), None], ids=["rows", "nothing"])
def test_rows_without_numbers_are_refused(tmp_path, teacher, data):
    with pytest.raises(TrituneError, match="must number its rows in a column 'row'"):
        DistillationTrainer(
            model=tritune.prepare(BERT.build()),
            teacher=teacher,
            args=arguments(tmp_path),
            train_dataset=data,
            teacher_cache=make_cache(tmp_path / "cache", teacher),
        )


def test_padding_that_differs_from_epoch_to_epoch_is_refused():
    with pytest.raises(TrituneError, match="cache_teacher: with padding longest"):
        load_recipe("ti-g", ["cache_teacher=true", "padding=longest"])
    assert load_recipe("ti-g", ["cache_teacher=true", "padding=longest", "loss_average=valid"]).cache_teacher


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


SETTINGS = ("--set", "max_steps=20", "--set", "eval_steps=5", "--set", "logging_steps=1", "--set", "save_steps=2")
CACHED = (*SETTINGS, "--set", "cache_teacher=true")


def _losses(run: Path) -> list[float]:
    return [row["loss"] for row in map(json.loads, (run / "history.jsonl").open()) if "loss" in row]


@pytest.fixture
def looked_up(workspace, cli) -> Path:
    """A run with a cache; made once."""
    run = workspace / "looked-up"
    if not run.exists():
        code, _, err = cli(*train_arguments(workspace, run, *CACHED))
        assert code == 0, err
    return run


def test_a_run_with_a_cache(workspace, looked_up, cli):
    code, _, err = cli(*train_arguments(workspace, workspace / "asked", *SETTINGS))
    assert code == 0, err
    asked = _losses(workspace / "asked")
    assert len(asked) == 20 and asked == pytest.approx(_losses(looked_up), rel=1e-4)
    assert json.loads((looked_up / "metrics.json").read_text())["teacher_cache_bytes"] > 1e5
    assert not (looked_up / "checkpoints").exists()


@pytest.mark.parametrize("schedule", ["null", pytest.param("gradual", marks=pytest.mark.slow)])
def test_a_run_that_compares_nothing_but_logits(workspace, cli, schedule):
    trace_losses = [f"{name}_coefficient=0" for name, loss in LOSSES.items() if loss.fields]
    only_logits = [word for value in (*trace_losses, f"schedule={schedule}") for word in ("--set", value)]
    results = []
    for name, settings in (("asked", SETTINGS), ("looked-up", CACHED)):
        output = workspace / f"{name}-logits-{schedule}"
        code, _, err = cli(*train_arguments(workspace, output, *settings, *only_logits))
        assert code == 0, err
        results.append(_losses(output))
    assert len(results[0]) == 20 and results[0] == pytest.approx(results[1], rel=1e-4)


def test_a_run_with_a_cache_goes_on_after_a_stop(workspace, looked_up, cli, monkeypatch):
    """Stopped in step two, when the cache is half full."""
    step, calls = DistillationTrainer.training_step, []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 15:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    arguments = train_arguments(workspace, workspace / "stopped", *CACHED)
    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_step", stopping)
        assert cli(*arguments)[0] == 130
    assert cli(*arguments, "--resume")[0] == 0
    weights = [load_file(run / "model.safetensors") for run in (workspace / "stopped", looked_up)]
    for name, tensor in weights[0].items():
        # A row that was cached in one batch is asked in another one after the stop: its last bits differ.
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-5)


def test_what_a_cache_cannot_help_is_refused_before_anything_is_written(workspace, cli):
    arguments = train_arguments(workspace, workspace / "short", "--set", "max_steps=8", "--set", "cache_teacher=true")
    for more in ((), ("--dry-run",)):
        code, _, err = cli(*arguments, *more)
        assert code == 2 and "cache_teacher would change nothing: step two sees no row a second time" in err
        assert not (workspace / "short").exists()


def test_padding_on_the_left_moves_the_rows(workspace, cli):
    left = shutil.copytree(workspace / "teacher", workspace / "left")
    config = json.loads((left / "tokenizer_config.json").read_text()) | {"padding_side": "left"}
    (left / "tokenizer_config.json").write_text(json.dumps(config))
    settings = ("--set", "padding=longest", "--set", "loss_average=valid", "--output", workspace / "run-left")
    data = ("--task", "demo", "--data", workspace / "data", "--recipe", "ti-g")
    code, _, err = cli("train", left, *data, *CACHED, *settings)
    assert code == 2 and "cache_teacher: this tokenizer pads on the left" in err
