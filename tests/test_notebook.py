"""The notebook in examples/, run from its first cell to its last with a tiny model."""

import shutil
from ast import literal_eval
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tritune.cli import demo

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TRAIN_ROWS", 100)
        patch.setattr(demo, "DEV_ROWS", 20)
        demo._write_inputs(folder, seed=0)
    shutil.copy(EXAMPLES / "tickets.py", folder)
    book = nbformat.read(EXAMPLES / "tickets.ipynb", as_version=4)
    (parameters,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = "MODEL, ROWS, MINUTES = 'base', 150, 0.001"
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return book


def outputs_of(book, line: str) -> list:
    """What the cell with this line gave."""
    (cell,) = [cell for cell in book.cells if cell.cell_type == "code" and line in cell.source]
    return cell.outputs


def shown_by(book, line: str) -> dict[str, str]:
    """What the last line of such a cell shows, by type."""
    (data,) = [
        output.data for output in outputs_of(book, line) if output.output_type in ("execute_result", "display_data")
    ]
    return data


def test_it_says_what_the_file_is_and_shows_the_table(notebook):
    said = "".join(output.text for output in outputs_of(notebook, "small = tritune.compress") if "text" in output)
    assert "rows (windows-1252, semicolon)" in said and "7 classes" in said and "plan:" in said
    assert "points lost" in shown_by(notebook, "small.table()")["text/html"]


def test_it_draws_a_picture_and_answers(notebook):
    assert "image/png" in shown_by(notebook, "small.plot()")
    labels = {"delivery", "invoice", "return", "account", "product", "complaint", "privacy"}
    answers = literal_eval(shown_by(notebook, "small.predict(")["text/plain"])
    (answer,) = literal_eval(shown_by(notebook, "tritune.engine.load")["text/plain"])
    assert len(answers) == 3 and {*answers, answer["prediction"]} <= labels
