"""Fixtures that every test file may use, and what keeps runs repeatable."""

import gc
import os
from pathlib import Path

import pytest
import torch
import transformers

import golden
from tritune.engine import binding
from workspace import Cli

DATA = Path(os.environ.get("TRITUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))

COMPILE = "python setup.py build_ext --inplace"
SOURCES = binding.LIBRARY.parent / "native"

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()


# Files that take long begin first, so that no worker waits for the other one's last file; the rest go by name.
LONG = [
    "convert",
    "many_devices",
    "resume",
    "sweep",
    "threads",
    "teacher_cache",
    "precision",
    "plugin",
    "cli",
    "trainer",
    "predict",
    "export",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)
    native = [item for item in items if item.get_closest_marker("native")]
    if native and not binding.LIBRARY.exists():
        for item in native:
            item.add_marker(pytest.mark.skip(reason=f"{binding.why_not()} ({COMPILE})"))
    elif native and binding.LIBRARY.stat().st_mtime < max(path.stat().st_mtime for path in SOURCES.iterdir()):
        raise pytest.UsageError(f"{binding.LIBRARY} is older than its sources: {COMPILE}")


def pytest_collection_finish() -> None:
    """Garbage is looked for among what tests make, not among what libraries are: every training collects twice."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _a_device_without_bfloat16():
    """`bf16: auto` is float32 in every test that does not say otherwise, whatever processor it runs on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tritune.training.precision.multiplies_bf16", lambda device: False)
        yield


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    if not golden.FOLDER.is_dir():
        pytest.skip(golden.ABSENT)
    return golden.FOLDER


@pytest.fixture(scope="session")
def data_folder() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"no real data in {DATA}; set TRITUNE_DATA")
    return DATA


@pytest.fixture
def cli(capsys, monkeypatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.fixture(scope="session")
def load_driver(tmp_path_factory):
    from engine_models import Driver

    return Driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="session")
def packed_bert(tmp_path_factory) -> Path:
    from engine_models import DEPLOY, save_packed

    return save_packed("BERT", 0, DEPLOY, tmp_path_factory.mktemp("bert") / "packed")
