"""Fixtures that every test file may use, and what keeps runs repeatable."""

import os
from pathlib import Path

import pytest
import torch
import transformers

import golden
from workspace import Cli

DATA = Path(os.environ.get("TRITUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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
