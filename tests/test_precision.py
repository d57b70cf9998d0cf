"""`bf16`: what auto becomes and where it is kept, and that bfloat16 costs no accuracy."""

import json
import statistics
import warnings

import pytest
import torch
import yaml

from tritune.cli import demo
from tritune.compute import devices
from tritune.training import precision
from tritune.training.finetune import finetune
from tritune.training.resume import StopOnSignal
from workspace import make_workspace, train_arguments

SEEDS = (42, 52, 62)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SLOWER = "has no bfloat16 multiplication"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("precision"))


@pytest.fixture
def machine(monkeypatch):
    """A function that says whether the machine multiplies bfloat16; nobody has been warned yet."""
    precision._warn_of_bf16.cache_clear()
    return lambda fast: monkeypatch.setattr(precision, "multiplies_bf16", lambda device: fast)


@pytest.mark.parametrize(
    ("able", "library", "expected"),
    [
        ({"avx2": True}, False, False),
        ({"avx2": True, "avx_ne_convert": True}, True, False),  # it converts, and multiplies in float32
        ({"avx512_f": True, "avx512_vnni": True}, True, False),  # torch's library emulates it
        ({"avx512_bf16": True}, True, True),
        ({"avx512_bf16": True, "amx_bf16": True}, True, True),
        ({"avx512_bf16": True, "amx_bf16": True}, False, False),
        ({"neon": True, "bf16": False}, False, False),
        ({"neon": True, "bf16": True}, True, True),
    ],
)
def test_a_processor_is_asked(monkeypatch, able, library, expected):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: library)
    assert devices.multiplies_bf16(CPU) is expected


def test_torch_without_its_library_is_not_asked(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True})
    assert not devices.multiplies_bf16(CPU)


def test_a_gpu_is_asked_without_emulation(monkeypatch):
    for able in (True, False):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able or including_emulation
        )
        assert devices.multiplies_bf16(CUDA) is able
    assert not devices.multiplies_bf16(torch.device("mps"))


def _run(cli, workspace, output, *keys, more=(), stop=False):
    """A run of eight steps by the command line, or its first step alone."""
    given = ("max_steps=8", "eval_steps=8", "logging_steps=1", *keys)
    ends = StopOnSignal.on_step_end

    def first_step(self, args, state, control, **kwargs):
        self.asked = True
        return ends(self, args, state, control, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        if stop:
            patch.setattr(StopOnSignal, "on_step_end", first_step)
        arguments = (part for key in given for part in ("--set", key))
        return cli(*train_arguments(workspace, output, *arguments, *more))


def _recipe(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text())


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_says_what_auto_became(cli, workspace, tmp_path, machine, fast):
    machine(fast)
    name = "bfloat16" if fast else "float32"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", SLOWER)
        code, _, err = _run(cli, workspace, tmp_path / "run", "bf16=auto")
    assert code == 0, err
    assert f"ti-g, seed 42, {name}: " in err
    assert _recipe(tmp_path / "run")["bf16"] is _recipe(tmp_path / "run" / "best")["bf16"] is fast
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["precision"] == name and ("fused_kernels" in metrics) is fast
    assert f"Trained for 8 steps in {name}." in (tmp_path / "run" / "README.md").read_text()
    code, out, _ = cli("report", tmp_path / "run", "--output", tmp_path / "report.html")
    assert code == 0 and name in (tmp_path / "report.html").read_text()
    # As any run, it can be scored and made again from its own recipe.
    data = ("--task", "demo", "--data", workspace / "data")
    assert cli("evaluate", tmp_path / "run", *data)[0] == 0
    code, out, _ = cli(*train_arguments(workspace, tmp_path / "no", "--dry-run", recipe=tmp_path / "run/recipe.yaml"))
    assert code == 0 and f"bf16: {json.dumps(fast)}" in out


@pytest.mark.parametrize("fast", [True, False])
def test_a_dry_run_says_what_auto_becomes(cli, workspace, tmp_path, machine, fast):
    machine(fast)
    code, out, _ = cli(*train_arguments(workspace, tmp_path / "no", "--dry-run", recipe="ti-g-deploy"))
    assert code == 0 and f"bf16: {json.dumps(fast)}" in out


@pytest.mark.parametrize("fast", [True, False])
def test_a_teacher_takes_what_is_faster(cli, workspace, tmp_path, machine, fast):
    machine(fast)
    data = ("--task", "demo", "--data", workspace / "data", "--set", "max_steps=2", "--output", tmp_path / "teacher")
    code, _, err = cli("finetune", workspace / "base", *data)
    assert code == 0, err
    assert _recipe(tmp_path / "teacher")["bf16"] is fast
    metrics = json.loads((tmp_path / "teacher" / "metrics.json").read_text())
    assert metrics["precision"] == ("bfloat16" if fast else "float32")
    machine(not fast)
    code, _, err = cli("finetune", workspace / "base", *data, "--resume")
    assert code == 0, err
    assert _recipe(tmp_path / "teacher")["bf16"] is fast


def test_what_is_slower_is_taken_and_said_once(cli, workspace, tmp_path, machine):
    machine(fast=False)
    with pytest.warns(UserWarning, match=f"^bf16: this processor {SLOWER}.* bf16: auto .* float32 here$") as said:
        assert _run(cli, workspace, tmp_path / "run", "bf16=true")[0] == 0
        assert _run(cli, workspace, tmp_path / "again", "bf16=true")[0] == 0
    assert sum(SLOWER in str(warning.message) for warning in said) == 1
    assert _recipe(tmp_path / "run")["bf16"] is True
    machine(fast=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", SLOWER)
        assert _run(cli, workspace, tmp_path / "fast", "bf16=true")[0] == 0


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_goes_on_as_it_began(cli, workspace, tmp_path, machine, fast):
    machine(fast)
    assert _run(cli, workspace, tmp_path / "run", "bf16=auto", stop=True)[0] == 130
    machine(not fast)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        code, _, err = _run(cli, workspace, tmp_path / "run", "bf16=auto", more=["--resume"])
    assert code == 0, err
    assert sum(SLOWER in str(warning.message) for warning in said) == (1 if fast else 0)
    assert _recipe(tmp_path / "run")["bf16"] is fast
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["precision"] == ("bfloat16" if fast else "float32")
    # Finished, it is read and not made again, with the value itself too; another value is another run.
    assert _run(cli, workspace, tmp_path / "run", "bf16=auto", more=["--resume"])[0] == 0
    assert _run(cli, workspace, tmp_path / "run", f"bf16={json.dumps(fast)}", more=["--resume"])[0] == 0
    code, _, err = _run(cli, workspace, tmp_path / "run", f"bf16={json.dumps(not fast)}", more=["--resume"])
    assert code == 2 and "another task or recipe" in err


def test_a_run_that_begins_anew_does_not_keep_it(cli, workspace, tmp_path, machine):
    machine(fast=True)
    assert _run(cli, workspace, tmp_path / "run", "bf16=auto", stop=True)[0] == 130
    machine(fast=False)
    assert _run(cli, workspace, tmp_path / "run", "bf16=auto", more=["--overwrite"])[0] == 0
    assert _recipe(tmp_path / "run")["bf16"] is False


def test_kernels_that_were_asked_for_need_bfloat16(cli, workspace, tmp_path, machine):
    machine(fast=False)
    code, _, err = _run(cli, workspace, tmp_path / "run", "bf16=auto", "fused_kernels=true")
    assert code == 2 and "fused_kernels would change nothing: bf16 auto is float32 here" in err
    assert not (tmp_path / "run").exists()


def test_the_demo_does_not_depend_on_the_machine(machine):
    machine(fast=True)
    assert all(recipe.bf16 is False for recipe in demo._recipes(seed=42).values())


@pytest.mark.slow
def test_bf16_loses_no_more_than_a_point(cli, tmp_path):
    demo._write_inputs(tmp_path, seed=42)
    finetune(demo._job(tmp_path / "base", tmp_path, demo._recipes(seed=42)["finetune"], tmp_path / "teacher"))
    scores = {"false": [], "true": []}
    for seed in SEEDS:
        for bf16, found in scores.items():
            output = tmp_path / f"bf16-{bf16}-{seed}"
            data = ("--task", "demo", "--data", tmp_path / "data", "--recipe", "ti-g", "--output", output)
            settings = ("max_steps=120", "learning_rate=2e-4", f"seed={seed}", f"bf16={bf16}")
            code, _, err = cli("train", tmp_path / "teacher", *data, *(x for pair in settings for x in ("--set", pair)))
            assert code == 0, err
            found.append(json.loads((output / "metrics.json").read_text())["last"]["accuracy"])
    print(scores)
    assert statistics.mean(scores["true"]) >= statistics.mean(scores["false"]) - 0.01
