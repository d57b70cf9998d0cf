"""Sweeps: what a file expands to, every point made once whoever is killed, and what comes out in the end."""

import csv
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from statistics import fmean, stdev

import optuna
import psutil
import pytest
from filelock import FileLock
from optuna.trial import TrialState

from stopped import run_tritune, start_tritune
from tritune import TrituneError
from tritune.recipes import Range, load_recipe, load_sweeps, shipped_spaces, sweeps_to_yaml
from tritune.tasks.registry import get_task
from tritune.training import precision, recorder
from tritune.training import sweep as sweeping
from tritune.training.job import open_job, with_recipe
from tritune.training.run import plan, run
from tritune.training.study import POINT, REASON, WORKER, Queue, Taken, Worker, open_storage
from tritune.training.sweep import open_sweep, run_sweep
from tritune.training.sweep_plots import sweep_figure
from tritune.training.sweep_results import read_results, write_results
from workspace import make_workspace, train_arguments

GRID = """\
name: tiny
recipe: kd-map-block
set: {max_steps: 2, eval_steps: 1, save_steps: 1, learning_rate: 1e-3}
seeds: [1, 2]
space:
  attention_map_coefficient: [0.5, 1.0]
  distil_layers: [last, [0, 1]]
"""
TENTHS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def file(folder: Path, text: str, name: str = "space.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def arguments(workspace: Path, output: Path, space: Path, *more: object) -> list[str]:
    given = ("sweep", workspace / "teacher", "--task", "demo", "--data", workspace / "data", "--space", space)
    return [str(argument) for argument in (*given, "--output", output, *more)]


def opened(workspace: Path, output: Path, text: str, resume: bool = False, **values):
    title, sweeps = load_sweeps(file(workspace / "spaces", text, f"{output.name}.yaml"), **values)
    return open_sweep(workspace / "teacher", get_task("demo"), workspace / "data", title, sweeps, output, resume=resume)


def table(output: Path) -> list[dict[str, str]]:
    """The rows of a sweep's table without the time they took."""
    with (output / "sweep.csv").open() as lines:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(lines)]


# What a file expands to.


def test_the_mixing_sweep_is_the_published_one():
    title, sweeps = load_sweeps("mixing")
    assert title == "mixing" and [sweep.name for sweep in sweeps] == ["block", "map"]
    swept, constant = "block_output_coefficient", "attention_map_coefficient"
    for sweep in sweeps:
        assert list(sweep.grid()) == [{swept: value} for value in TENTHS]
        for values in sweep.grid():
            recipe = sweep.point(values, 52)
            assert (getattr(recipe, swept), getattr(recipe, constant), recipe.seed) == (values[swept], 1.0, 52)
            assert recipe.attention_scores_coefficient == 0 and recipe.schedule is None
        swept, constant = constant, swept
    assert sum(sweep.count() * len(sweep.seeds) for sweep in sweeps) == 54
    assert all(sweep.seeds == (42, 52, 62) and sweep.sampler == "grid" for sweep in sweeps)


def test_the_mixing_grid_is_every_combination():
    _, (sweep,) = load_sweeps("mixing-grid")
    fifths = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert [tuple(values.values()) for values in sweep.grid()] == [(a, b) for a in fifths for b in fifths]
    assert sweep.count() * len(sweep.seeds) == 108


@pytest.mark.parametrize("name", shipped_spaces())
def test_a_file_reads_back(name, tmp_path):
    title, sweeps = load_sweeps(name, {"max_steps": 7})
    assert load_sweeps(file(tmp_path, sweeps_to_yaml(title, sweeps))) == (title, sweeps)
    assert all(sweep.set["max_steps"] == 7 for sweep in sweeps)


def test_a_file_of_every_key_reads_back(tmp_path):
    text = """\
recipe: ti-g
seeds: [3]
sampler: tpe
sampler_seed: 9
trials: 4
objective: best
pruner: median
pruner_startup_trials: 2
pruner_warmup_steps: 10
keep_students: true
space:
  learning_rate: {low: 1e-5, high: 1e-3, log: true}
  logging_steps: {low: 2, high: 8, step: 2}
  layers: [null, [0, 1]]
"""
    title, (sweep,) = load_sweeps(file(tmp_path, text, "mine.yaml"))
    assert title == sweep.name == "mine"
    assert sweep.space["learning_rate"] == Range(1e-5, 1e-3, log=True)
    assert sweep.space["logging_steps"].values() == [2, 4, 6, 8] and sweep.space["layers"] == (None, [0, 1])
    assert load_sweeps(file(tmp_path, sweeps_to_yaml(title, [sweep]))) == (title, [sweep])


def test_parts_take_over_what_stands_above_them(tmp_path):
    text = GRID + "sweeps:\n  a: {}\n  b: {seeds: [7], set: {max_steps: 5}, space: {weight_clip: [1e0, 2]}}\n"
    _, (a, b) = load_sweeps(file(tmp_path, text))
    assert (a.seeds, a.set["max_steps"], len(a.space)) == ((1, 2), 2, 2)
    assert (b.seeds, b.set["max_steps"], b.set["eval_steps"], b.space) == ((7,), 5, 1, {"weight_clip": (1.0, 2.0)})


def test_a_recipe_beside_the_file_is_found(tmp_path):
    file(tmp_path, "base: ti-g\nseed: 5\n", "own.yaml")
    _, (sweep,) = load_sweeps(file(tmp_path, "recipe: own.yaml\nspace: {weight_clip: [2.0, 2.5]}\n"))
    assert sweep.point({"weight_clip": 2.0}, 1).schedule == "gradual"


BAD_FILES = {
    "not YAML": ("space: [", "line 1: not YAML"),
    "a list": ("- a\n", "must be a list of"),
    "unknown key": ("spice: 1\n", "unknown key 'spice'; did you mean space"),
    "key twice": ("space: {weight_clip: [1.0, 2.0]}\nspace: {weight_clip: [1.0]}\n", "'space' is given twice"),
    "part twice": (
        "sweeps:\n  a: {space: {weight_clip: [1.0]}}\n  a: {space: {weight_clip: [2.0]}}\n",
        "line 3: 'a' is given twice",
    ),
    "no space": ("seeds: [1]\n", "space is missing"),
    "no values": ("space: {weight_clip: []}\n", "space: weight_clip must be a list of values"),
    "one value": ("space: {weight_clip: 2.5}\n", "space: weight_clip must be a list of values"),
    "a value twice": ("space: {weight_clip: [1.0, 1.0]}\n", "weight_clip has a value twice"),
    "unknown recipe key": ("space: {weight_clipp: [1.0]}\n", "unknown key 'weight_clipp'; did you mean weight_clip"),
    "bad value": ("space: {weight_clip: [1.0, -1.0]}\n", "weight_clip=-1.0: weight_clip must be a positive number"),
    "bad type": ("space: {weight_clip: [wide]}\n", "weight_clip must be a number"),
    "unused": ("set: {weight_bits: null}\nspace: {threshold_factor: [0.6]}\n", "threshold_factor would change nothing"),
    "unused by one point": (
        "space: {weight_bits: [2, 4], threshold_factor: [0.6]}\n",
        "weight_bits=4, threshold_factor=0.6: threshold_factor would change nothing",
    ),
    "swept and set": ("set: {weight_clip: 1.0}\nspace: {weight_clip: [2.0]}\n", "weight_clip is both swept and set"),
    "seed": ("space: {seed: [1, 2]}\n", "seed cannot be swept"),
    "seed set": ("set: {seed: 1}\nspace: {weight_clip: [2.0]}\n", "seed cannot be set"),
    "seeds": ("seeds: [1, 1]\nspace: {weight_clip: [2.0]}\n", "seeds must be a list of different numbers"),
    "no seeds": ("seeds: []\nspace: {weight_clip: [2.0]}\n", "seeds must be a list of different numbers"),
    "negative seed": ("seeds: [-1]\nspace: {weight_clip: [2.0]}\n", "seed must be a whole number"),
    "recipe": ("recipe: ti_g\nspace: {weight_clip: [2.0]}\n", "there is no recipe 'ti_g'"),
    "sampler": (
        "sampler: bayes\nspace: {weight_clip: [2.0]}\n",
        "sampler must be one of grid, random, tpe; got 'bayes'",
    ),
    "objective": ("objective: first\nspace: {weight_clip: [2.0]}\n", "objective must be one of"),
    "pruner": ("pruner: hard\nspace: {weight_clip: [2.0]}\n", "pruner must be one of"),
    "no pruner": ("pruner_warmup_steps: 5\nspace: {weight_clip: [2.0]}\n", "would change nothing: there is no pruner"),
    "trials of a grid": ("trials: 5\nspace: {weight_clip: [2.0]}\n", "trials would change nothing"),
    "no trials": ("sampler: tpe\nspace: {weight_clip: [2.0]}\n", "trials must be the number of points that tpe tries"),
    "no step": ("space: {weight_clip: {low: 1, high: 2}}\n", "a grid needs a step"),
    "no high": ("space: {weight_clip: {low: 1}}\n", "space: weight_clip: high is missing"),
    "unknown range key": (
        "space: {weight_clip: {low: 1, high: 2, steps: 1}}\n",
        "unknown key 'steps'; did you mean step",
    ),
    "upside down": ("space: {weight_clip: {low: 2, high: 1, step: 1}}\n", "low must be below high"),
    "step and log": ("space: {weight_clip: {low: 1, high: 2, step: 1, log: true}}\n", "excludes log"),
    "log of nothing": (
        "sampler: tpe\ntrials: 1\nspace: {weight_clip: {low: 0, high: 2, log: true}}\n",
        "low must be positive",
    ),
    "range out of bounds": (
        "sampler: random\ntrials: 1\nspace: {weight_clip: {low: -1.0, high: 2.0}}\n",
        "weight_clip=-1.0: weight_clip must",
    ),
    "endless": ("space: {weight_clip: {low: 1, high: 2, step: 1e-9}}\n", "more than 10000 values"),
    "huge grid": (
        "space: {weight_clip: {low: 1, high: 2, step: .001}, learning_rate: {low: 1, high: 2, step: .001}}\n",
        "a grid of more than 10000 points",
    ),
    "name": ("name: a/b\nspace: {weight_clip: [2.0]}\n", "name must consist of letters"),
    "no text": ("name: [a]\nspace: {weight_clip: [2.0]}\n", "name must consist of letters"),
    "part's name": ("sweeps: {../x: {space: {weight_clip: [2.0]}}}\n", "name must consist of letters"),
    "parts": ("sweeps: [a]\n", "sweeps must be a list of"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    text, message = BAD_FILES[case]
    with pytest.raises(TrituneError) as caught:
        load_sweeps(file(tmp_path, text))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"space {tmp_path}")


def test_bad_names(tmp_path):
    with pytest.raises(TrituneError, match="shipped are mixing, mixing-grid"):
        load_sweeps("mixin")
    with pytest.raises(TrituneError, match="cannot be read"):
        load_sweeps(tmp_path / "none.yaml")


# Runs.


@pytest.fixture(scope="module")
def undisturbed(workspace):
    """A sweep that nobody stopped, with its students."""
    output = workspace / "undisturbed"
    job = opened(workspace, output, GRID + "keep_students: true\n")
    assert run_sweep(job) == 4
    write_results(job)
    return output


def test_the_table_and_the_best(undisturbed):
    rows = table(undisturbed)
    assert [(row["attention_map_coefficient"], row["distil_layers"], row["seed"]) for row in rows] == [
        (coefficient, layers, seed) for coefficient in ("0.5", "1.0") for layers in ("last", "[0, 1]") for seed in "12"
    ]
    for row in rows:
        folder = undisturbed / "trials" / "tiny" / f"{int(row['point']):03d}" / f"seed-{row['seed']}"
        metrics = json.loads((folder / "metrics.json").read_text())
        assert (float(row["last"]), float(row["best"])) == tuple(metrics[key]["accuracy"] for key in ("last", "best"))
        assert (row["state"], row["steps"], row["reason"]) == ("complete", "2", "")
        recipe = load_recipe(folder / "recipe.yaml")
        assert recipe.attention_map_coefficient == float(row["attention_map_coefficient"])
        assert recipe.distil_layers == ("last" if row["distil_layers"] == "last" else (0, 1))
    means = [fmean(float(row["last"]) for row in rows[i : i + 2]) for i in range(0, 8, 2)]
    best = load_recipe(undisturbed / "best.yaml")
    expected = rows[2 * means.index(max(means))]
    assert best.attention_map_coefficient == float(expected["attention_map_coefficient"])
    assert best.name == "tiny-best" and f"{max(means):.4f}" in best.description and best.seed == 1
    assert {"sweep.svg", "sweep.png", "sweep.yaml", "study.db"} <= {path.name for path in undisturbed.iterdir()}


def test_a_run_is_that_of_train(cli, workspace, undisturbed, tmp_path):
    """The teacher is used over and over; that changes no bit of a student."""
    folder = undisturbed / "trials" / "tiny" / "003" / "seed-2"
    code, _, err = cli(*train_arguments(workspace, tmp_path / "run", recipe=str(folder / "recipe.yaml")))
    assert code == 0, err
    for name in ("model.safetensors", "best/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=lambda how: how.name
)
def test_stopped_and_resumed(cli, workspace, undisturbed, tmp_path, how):
    space = file(tmp_path, GRID)
    output = tmp_path / "sweep"
    # In the middle of the second point's second run, so that a finished seed is not made again.
    moment = "open trials/*/001/seed-2/checkpoints/*/checkpoint-1/trainer_state.json"
    given = arguments(workspace, output, space, "--resume")
    stopped = run_tritune(*given, folder=output, at=moment, how=how)
    assert stopped.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), stopped.stderr[-2000:]
    finished = {path: path.stat().st_mtime_ns for path in output.glob("trials/*/*/*/metrics.json")}
    assert len(finished) >= 3
    code, _, err = cli(*arguments(workspace, output, space))
    assert code == 2 and "--resume" in err
    code, out, err = cli(*given, "--json")
    assert code == 0, err
    assert table(output) == table(undisturbed)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert json.loads(out)["runs_left"] == 0 and len(json.loads(out)["points"]) == 4
    assert not list(output.rglob("*.safetensors")), "students are not kept unless asked for"


def test_a_sweep_that_another_process_has_just_begun_is_joined(cli, workspace, tmp_path):
    output = tmp_path / "sweep"
    output.mkdir()
    open_storage(None, output)
    text = "name: short\nset: {max_steps: 4}\nseeds: [1]\nspace: {learning_rate: [1e-3]}\n"
    given = arguments(workspace, output, file(tmp_path, text))
    code, _, err = cli(*given)
    assert code == 2 and "give --resume" in err
    code, _, err = cli(*given, "--resume")
    assert code == 0, err
    assert [row["state"] for row in table(output)] == ["complete"]


@pytest.mark.slow
def test_two_processes_share_a_study(workspace, undisturbed, tmp_path):
    output = tmp_path / "sweep"
    given = arguments(workspace, output, file(tmp_path, GRID), "--resume")
    # Neither goes on before both have a point of their own.
    pair = [start_tritune(*given, folder=output, at="os.mkdir trials/*", how=signal.SIGSTOP) for _ in range(2)]
    while any(psutil.Process(process.pid).status() != psutil.STATUS_STOPPED for process in pair):
        time.sleep(0.05)
    for process in pair:
        os.killpg(process.pid, signal.SIGCONT)
    for process in pair:
        done = process.wait()
        assert done.returncode == 0, done.stderr[-2000:]
    assert table(output) == table(undisturbed)
    study = optuna.load_study(study_name="tiny.tiny", storage=f"sqlite:///{output}/study.db")
    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert sorted(trial.user_attrs[POINT] for trial in done) == [0, 1, 2, 3]
    assert all(trial.state == TrialState.FAIL for trial in study.trials if trial not in done)
    workers = {trial.user_attrs[WORKER]["lock"] for trial in done}
    assert len(workers) == 2, "both had their part"


def test_a_point_that_breaks_does_not_end_the_sweep(cli, workspace, tmp_path):
    text = "name: broken\nset: {max_steps: 4}\nseeds: [1, 2]\nspace: {learning_rate: [1e25, 1e-3]}\n"
    output = tmp_path / "sweep"
    given = arguments(workspace, output, file(tmp_path, text))
    code, _, err = cli(*given)
    assert code == 0, err
    rows = table(output)
    assert [(row["point"], row["seed"], row["state"]) for row in rows] == [
        ("0", "1", "failed"),
        ("1", "1", "complete"),
        ("1", "2", "complete"),
    ]
    assert re.search("loss is (nan|inf)", rows[0]["reason"]) and rows[0]["last"] == ""
    assert load_recipe(output / "best.yaml").learning_rate == 1e-3
    before = (output / "sweep.csv").read_bytes()
    assert cli(*given, "--resume")[0] == 0
    assert (output / "sweep.csv").read_bytes() == before, "what failed by itself is not tried again"


def test_runs_on_one_teacher_score_it_once(workspace, tmp_path, monkeypatch):
    passes = []
    score = recorder.dev_logits
    monkeypatch.setattr(recorder, "dev_logits", lambda model, *rest: passes.append(model) or score(model, *rest))
    data, recipe = workspace / "data", load_recipe("ternarybert", ["max_steps=1"])
    first = open_job(workspace / "teacher", get_task("demo"), data, recipe, tmp_path / "0")
    scores = [run(first, plan(first))["teacher"]["accuracy"]]
    keys = ("hidden_states_coefficient=0.5", "weight_bits=4", "padding=longest", "per_device_eval_batch_size=20")
    for number, override in enumerate(keys, 1):
        other = with_recipe(first, load_recipe("ternarybert", ["max_steps=1", override]), data, tmp_path / str(number))
        scores.append(run(other, plan(other))["teacher"]["accuracy"])
    assert len(set(scores)) == 1
    assert sum(model is first.model for model in passes) == 3, "once for each way to cut and batch the rows"
    assert len(passes) == 3 + 5 + 4, "every last student, and untrained ones that differ from those before"


def test_a_watcher_may_end_a_run(workspace, tmp_path):
    recipe = load_recipe("ti-m", ["max_steps=4", "eval_steps=1"])

    def job(resume):
        return open_job(
            workspace / "teacher", get_task("demo"), workspace / "data", recipe, tmp_path / "run", resume=resume
        )

    told = []

    def enough(step, score):
        told.append((step, score))
        if step == 3:
            raise optuna.TrialPruned

    first = job(False)
    with pytest.raises(optuna.TrialPruned):
        run(first, plan(first), watch=enough)
    assert [step for step, _ in told] == [1, 2, 3], "steps are counted over both phases"
    second = job(True)
    metrics = run(second, plan(second), resume=True)
    assert metrics["last"]["step"] == 4


def test_dry_run_and_stop_after(cli, workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    space, output = file(tmp_path, GRID), tmp_path / "sweep"
    code, out, _ = cli(*arguments(workspace, output, space, "--dry-run"))
    assert code == 0 and "8 runs, 16 steps in all" in out and "distil_layers=[0, 1]" in out
    code, out, _ = cli(*arguments(workspace, output, space, "--dry-run", "--json", "--set", "max_steps=3"))
    assert json.loads(out)["steps"] == {"tiny": 24} and len(json.loads(out)["runs"]) == 8
    assert not output.exists()


BAD_SWEEPS = {
    "points that do not fit": ("space: {distil_layers: [last, [9]]}\n", (), "distil_layers=[9]: distil_layers: [9]"),
    "layers": ("space: {layers: [null, [9]]}\n", (), "layers=[9]: layers"),
    "a budget": ("recipe: ti-g\nspace: {max_steps: [8, 1]}\n", (), "max_steps=1: step one of 1 steps leaves none"),
    "a swept key set": (
        "space: {weight_clip: [2.0, 2.5]}\n",
        ("--set", "weight_clip=1.0"),
        "weight_clip is both swept and set",
    ),
    "storage": ("space: {weight_clip: [2.0]}\n", ("--storage", "nowhere"), "--storage 'nowhere': cannot be opened"),
    "trials": ("space: {weight_clip: [2.0]}\n", ("--trials", "3"), "trials would change nothing"),
    "positions": ("space: {max_length: [16, 99]}\n", (), "max_length 99 is more than the 32 positions"),
}


@pytest.mark.parametrize("case", BAD_SWEEPS)
def test_bad_sweeps_train_nothing(cli, workspace, tmp_path, case, monkeypatch):
    text, more, message = BAD_SWEEPS[case]
    monkeypatch.setattr(sweeping, "run", None)
    code, _, err = cli(*arguments(workspace, tmp_path / "sweep", file(tmp_path, text), *more))
    assert code == 2 and message in err.strip().splitlines()[-1]
    assert not (tmp_path / "sweep" / "trials").exists()


# The study, with runs that are made up.


@pytest.fixture
def made_up(monkeypatch):
    """Runs that take no time: the score is a function of the recipe, told at every step."""
    runs = []

    def run(job, phases, resume, watch, resumed):
        recipe = job.recipe
        score = 1 - abs(recipe.weight_clip - 2.0) - recipe.seed / 1000
        runs.append((recipe.weight_clip, recipe.seed))
        for step in range(1, recipe.max_steps + 1):
            watch(step, score * step / recipe.max_steps)
        job.output.mkdir(parents=True)
        return {"metric": "accuracy", "last": {"accuracy": score}, "best": {"accuracy": score + 0.01}, "seconds": 1.0}

    monkeypatch.setattr(sweeping, "run", run)
    return runs


def stubbed(workspace, output, more: str, resume=False, **values):
    text = "name: stub\nseeds: [1, 2]\nset: {max_steps: 4}\n" + more
    return opened(workspace, output, text, resume=resume, **values)


SAMPLERS = {
    "grid": "space: {weight_clip: {low: 1.0, high: 3.0, step: 1.0}, ffn_in: [true, false]}\n",
    "random": "sampler: random\ntrials: 6\nspace: {weight_clip: {low: 1.0, high: 3.0}, ffn_in: [true, false]}\n",
    "tpe": "sampler: tpe\ntrials: 6\nspace: {weight_clip: {low: 1.0, high: 3.0}, ffn_in: [true, false]}\n",
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_go_on_where_they_stopped(workspace, tmp_path, made_up, sampler):
    assert run_sweep(stubbed(workspace, tmp_path / "whole", SAMPLERS[sampler])) == 6
    assert len(made_up) == 12
    made_up.clear()
    parts = tmp_path / "parts"
    assert run_sweep(stubbed(workspace, parts, SAMPLERS[sampler]), stop_after=2) == 2
    job = stubbed(workspace, parts, SAMPLERS[sampler], resume=True)
    assert read_results(job).open() == 8
    assert run_sweep(job) == 4
    assert len(made_up) == 12
    whole, part = (
        [(run["values"], run["seed"], run["last"]) for run in read_results(found).runs]
        for found in (stubbed(workspace, tmp_path / "whole", SAMPLERS[sampler], resume=True), job)
    )
    assert part == whole
    points = [json.dumps(values) for values, seed, _ in whole if seed == 1]
    assert len(set(points)) == 6, "no point twice"
    results = write_results(job)
    for point in results.points:
        scores = [1 - abs(point.values["weight_clip"] - 2.0) - seed / 1000 for seed in (1, 2)]
        assert point.scores == pytest.approx(scores)
        assert (point.mean, point.deviation) == pytest.approx((fmean(scores), stdev(scores)))
    header, *lines = (parts / "sweep.csv").read_text().splitlines()
    assert header.startswith("sweep,point,weight_clip,ffn_in,seed,state,last,best,") and len(lines) == 12
    assert results.best.mean == max(point.mean for point in results.points) and results.open() == 0


def test_more_trials_go_on_with_the_same_points(workspace, tmp_path, made_up):
    run_sweep(stubbed(workspace, tmp_path / "sweep", SAMPLERS["random"], trials=2))
    first = list(made_up)
    run_sweep(stubbed(workspace, tmp_path / "sweep", SAMPLERS["random"], resume=True))
    assert len(made_up) == 12 and made_up[:4] == first


def test_the_objective_may_be_the_best(workspace, tmp_path, made_up):
    job = stubbed(workspace, tmp_path / "sweep", "objective: best\nspace: {weight_clip: [2.0]}\n")
    run_sweep(job)
    assert read_results(job).best.scores == pytest.approx((1.009, 1.008))


def test_pruning_gives_up_what_is_worse_than_the_median(workspace, tmp_path, made_up):
    text = "pruner: median\npruner_startup_trials: 2\npruner_warmup_steps: 2\n"
    text += "space: {weight_clip: [2.0, 2.1, 2.9, 2.01]}\n"
    job = stubbed(workspace, tmp_path / "sweep", text)
    run_sweep(job)
    results = write_results(job)
    assert [point.state for point in results.points] == ["complete", "complete", "pruned", "complete"]
    assert made_up == [(2.0, 1), (2.0, 2), (2.1, 1), (2.1, 2), (2.9, 1), (2.01, 1), (2.01, 2)]
    (pruned,) = (run for run in results.runs if run["state"] == "pruned")
    assert pruned["steps"] == 2 and results.open() == 0 and results.best.values == {"weight_clip": 2.0}


def test_auto_is_one_precision_in_a_whole_study(workspace, tmp_path, monkeypatch):
    """The second process, on another machine perhaps, trains as the first one did; what is set stays as it is."""
    found = []

    def run(job, phases, resume, watch, resumed):
        found.append(job.recipe.bf16)
        job.output.mkdir(parents=True)
        return {"metric": "accuracy", "last": {"accuracy": 0.5}, "best": {"accuracy": 0.5}, "seconds": 1.0}

    monkeypatch.setattr(sweeping, "run", run)
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: True)
    text = "recipe: ti-g-deploy\nspace: {weight_clip: [2.0, 2.5]}\n"
    for output, fast in ((tmp_path / "fast", True), (tmp_path / "slow", False)):
        monkeypatch.setattr(precision, "multiplies_bf16", lambda device, fast=fast: fast)
        assert run_sweep(stubbed(workspace, output, text), stop_after=1) == 1
        monkeypatch.setattr(precision, "multiplies_bf16", lambda device, fast=fast: not fast)
        run_sweep(stubbed(workspace, output, text, resume=True))
    assert found == [*4 * [True], *4 * [False]]
    run_sweep(stubbed(workspace, tmp_path / "swept", "space: {bf16: [auto, false]}\n"))
    assert found[8:] == [True, True, False, False]


def test_another_sweep_in_the_study_is_refused(workspace, tmp_path, made_up):
    output = tmp_path / "sweep"
    run_sweep(stubbed(workspace, output, "space: {weight_clip: [2.0]}\n"))
    for text, what in (
        ("space: {weight_clip: [2.0, 2.1]}\n", "space"),
        ("space: {weight_clip: [2.0]}\nrecipe: ti-g\n", "recipe"),
        ("space: {weight_clip: [2.0]}\nobjective: best\n", "objective"),
    ):
        with pytest.raises(TrituneError, match=f"another {what}"):
            run_sweep(stubbed(workspace, output, text, resume=True))
    with pytest.raises(TrituneError, match="give --resume"):
        stubbed(workspace, output, "space: {weight_clip: [2.0]}\n")


def test_a_sweep_does_not_go_on_with_other_rows(workspace, tmp_path, made_up):
    text, output = "space: {weight_clip: [2.0]}\n", tmp_path / "sweep"
    run_sweep(stubbed(workspace, output, text))
    for name in ("data", "teacher", "spaces"):
        shutil.copytree(workspace / name, tmp_path / name)
    assert run_sweep(stubbed(tmp_path, output, text, resume=True)) == 0, "the same rows, in another place"
    lines = (tmp_path / "data" / "train.tsv").read_text().splitlines()
    for rows, now in ((lines[1:100], "99 now"), (lines[:0:-1], "200 others now")):
        (tmp_path / "data" / "train.tsv").write_text("\n".join([lines[0], *rows]))
        with pytest.raises(TrituneError, match=rf"there has other rows \(train: 200 rows then, {now}\)"):
            run_sweep(stubbed(tmp_path, output, text, resume=True))


def test_a_run_that_goes_on_is_said_beside_the_bar(workspace, tmp_path, made_up, monkeypatch, capsys):
    stub = sweeping.run

    def resumed_run(job, phases, resume, watch, resumed):
        resumed(3, job.recipe.max_steps)
        return stub(job, phases, resume, watch, resumed)

    monkeypatch.setattr(sweeping, "run", resumed_run)
    run_sweep(stubbed(workspace, tmp_path / "sweep", "space: {weight_clip: [2.0]}\n"))
    said = capsys.readouterr()
    assert said.out == "" and "stub: weight_clip=2.0, seed 1: resumed: goes on after step 3 of 4" in said.err


def queue(folder: Path, storage: str | None = None) -> Queue:
    folder.mkdir(exist_ok=True)
    study = optuna.create_study(storage=open_storage(storage, folder), study_name="s", load_if_exists=True)
    return Queue(study, 3, Worker(folder), lambda point: {"x": point})


@pytest.mark.parametrize("journal", [False, True])
def test_a_trial_whose_process_is_gone_is_made_again(tmp_path, journal):
    storage = str(tmp_path / "study.log") if journal else None
    first, second = queue(tmp_path / "a", storage), queue(tmp_path / "a", storage)
    with first.worker.at_work():
        assert first.prepare()
        trial = first.study.ask()
        assert first.claim(trial) == 0
        trial.suggest_int("x", 0, 9)
        trial.set_user_attr("seed 1", {"state": "complete"})
        assert second.prepare() and second.trials()[0].state == TrialState.RUNNING
        assert second.claim(second.study.ask()) == 1
    # The first process has left without a word; the second one is still there as far as this one can tell.
    with second.worker.at_work():
        third = queue(tmp_path / "a", storage)
        assert third.prepare()
        again = third.study.ask()
        assert third.claim(again) == 0 and again.suggest_int("x", 0, 9) == 0
        assert again.user_attrs["seed 1"] == {"state": "complete"}, "what it had finished is kept"


def test_a_process_on_another_machine_is_left_alone(tmp_path):
    one = queue(tmp_path / "a")
    one.prepare()
    trial = one.study.ask()
    one.claim(trial)
    trial.set_user_attr(WORKER, one.worker.card() | {"host": "elsewhere"})
    one.prepare()
    assert one.trials()[0].state == TrialState.RUNNING


def test_of_two_trials_of_a_point_the_older_one_counts(tmp_path):
    one = queue(tmp_path / "a")
    for _ in range(2):  # as two processes do that look at the same moment
        one.study.enqueue_trial({"x": 0}, user_attrs={POINT: 0})
    with one.worker.at_work():
        older, younger = one.study.ask(), one.study.ask()
        with pytest.raises(Taken):
            one.claim(younger)
        assert one.claim(older) == 0
        one.study.tell(younger, state=TrialState.FAIL)
        stray = one.study.ask()  # nothing waited, so Optuna made one up
        with pytest.raises(Taken):
            one.claim(stray)
        one.study.tell(older, state=TrialState.FAIL)
        assert 0 not in one.trials()
        one.prepare()
        failed = one.study.ask()
        assert one.claim(failed) == 0
        failed.set_user_attr(REASON, "it broke")
        one.study.tell(failed, state=TrialState.FAIL)
        assert one.trials()[0].user_attrs[REASON] == "it broke"
        assert one.prepare() and one.claim(one.study.ask()) == 1


def test_a_worker_s_lock_ends_with_it(tmp_path):
    worker = Worker(tmp_path)
    with worker.at_work(), pytest.raises(TimeoutError):
        FileLock(worker.path).acquire(timeout=0)
    assert not worker.path.exists()


def test_pictures():
    def axes(points, **values):
        figure = sweep_figure(points, "accuracy", **values)
        return [part for part in figure.axes if part.get_label() != "<colorbar>"]

    curve = [("a", {"x": x}, (x, x + 0.2)) for x in (0.3, 0.1, 0.2)]
    (panel,) = axes([*curve, ("b", {"y": 1}, (0.5,))], log_keys={"x", "y"})
    (line, bars, _) = (panel.containers[0].lines[0], panel.containers[0].lines[1], None)
    assert line.get_xydata().ravel().tolist() == pytest.approx([0.1, 0.2, 0.2, 0.3, 0.3, 0.4])
    assert len(panel.containers) == 2 and bars and panel.get_xscale() == "log"
    low, high = panel.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * stdev([0.1, 0.3]))

    grid = [("g", {"x": x, "y": y}, (x + y,)) for x in (1, 2) for y in ("a", "b", "c") for y in [len(y) + ord(y)]]
    (panel,) = axes(grid)
    assert panel.images[0].get_array().tolist() == [[99, 100, 101], [100, 101, 102]]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("y", "x")

    scattered = [("s", {"x": x, "y": name, "z": None}, (x,)) for x, name in ((0.1, "p"), (0.7, "q"), (0.4, "p"))]
    assert [panel.get_xlabel() for panel in axes(scattered)] == ["x", "y", "z"]
