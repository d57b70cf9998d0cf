"""Reads questions from SQuAD's JSON, versions 1.1 and 2.0, and checks every one of them."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from ...errors import TrituneError, shown
from ..table import read_text

FEATURES = Features(
    {
        "id": Value("string"),
        "question": Value("string"),
        "context": Value("string"),
        "answers": List(Value("string")),
        "starts": List(Value("int64")),
    }
)
_SHAPE = "SQuAD's JSON has a list `data` of `paragraphs`, each a `context` with its `qas`"


def read_squad(path: Path, unanswerable: bool) -> Dataset:
    """The questions of a JSON file, see `questions`; TrituneError, naming file and question, if one cannot be used."""
    return questions(raw_questions(path), path, unanswerable)


def has_unanswerable(path: Path) -> bool:
    """Whether a file marks a question as impossible to answer; TrituneError if it is not SQuAD's JSON."""
    return any(bool(raw.get("is_impossible")) for raw in raw_questions(path))


def questions(raws: Iterable[dict[str, Any]], source: Path | str, unanswerable: bool) -> Dataset:
    """Checked questions: `id`, `question`, `context`, the texts of their `answers` and where they start.

    Args:
        raws: with `id`, `question`, `context`, and `answers`, each a `text` with its `answer_start`.
        source: what messages name.
        unanswerable: whether questions may have no answer (version 2.0); their list is then empty.

    Raises:
        TrituneError: a question cannot be used, two have the same id, or there is none.
    """
    rows: dict[str, dict[str, Any]] = {}
    for raw in raws:
        where = f"{source}, question {shown(raw.get('id'))}"
        row = checked_question(raw, where, unanswerable)
        if row["id"] in rows:
            raise TrituneError(f"{where}: this id occurs twice; every question needs its own")
        rows[row["id"]] = row
    if not rows:
        raise TrituneError(f"{source}: holds no questions")
    return Dataset.from_list(list(rows.values()), features=FEATURES)


def checked_question(raw: dict[str, Any], where: str, unanswerable: bool) -> dict[str, Any]:
    """A question as `questions` returns it; TrituneError, beginning with `where`, if it cannot be used."""
    for key in ("id", "question", "context"):
        if not isinstance(raw.get(key), str) or not raw[key].strip():
            raise TrituneError(f"{where}: its {key} must be text, found {shown(raw.get(key))}")
    answers = list(_answers(raw, where))
    if not answers and not unanswerable:
        raise TrituneError(f"{where}: has no answer; drop it, or use squad_v2, which allows questions without one")
    return {
        "id": raw["id"],
        "question": raw["question"].strip(),
        "context": raw["context"],
        "answers": [text for text, _ in answers],
        "starts": [start for _, start in answers],
    }


def _answers(raw: dict[str, Any], where: str) -> Iterator[tuple[str, int]]:
    """Text and first character of every answer."""
    if raw.get("is_impossible"):
        return
    answers = raw.get("answers")
    if not isinstance(answers, list):
        raise TrituneError(f"{where}: its answers must be a list, found {shown(answers)}")
    for answer in answers:
        text, start = (answer.get(key) if isinstance(answer, dict) else None for key in ("text", "answer_start"))
        if not isinstance(text, str) or not text.strip() or type(start) is not int:
            raise TrituneError(f"{where}: an answer needs `text` and `answer_start`, found {shown(answer)}")
        found = raw["context"][start : start + len(text)] if start >= 0 else ""
        if found != text:
            raise TrituneError(
                f"{where}: the answer {shown(text)} is not at character {start} of its context, where "
                f"{shown(found)} is; repair answer_start or drop the question"
            )
        yield text, start


def raw_questions(path: Path) -> Iterator[dict[str, Any]]:
    """Every question as the file has it, its context beside it; TrituneError if it is not SQuAD's JSON."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TrituneError(f"{path}: not JSON ({shown(str(error))}); {_SHAPE}") from None
    for article in _list(content, "data", path):
        for paragraph in _list(article, "paragraphs", path):
            for raw in _list(paragraph, "qas", path):
                if not isinstance(raw, dict):
                    raise TrituneError(f"{path}: {shown(raw)} is not a question; {_SHAPE}")
                yield raw | {"context": paragraph.get("context")}


def _list(holder: Any, key: str, path: Path) -> list:
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, list):
        raise TrituneError(f"{path}: the list `{key}` is missing; {_SHAPE}")
    return value
