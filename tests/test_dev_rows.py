"""Without `--dev-file`: some rows of the training file are the dev rows, the same ones for teacher and student."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import pictures
import small_answers
from small_answers import question, squad
from test_own_data import base, options, table, write  # noqa: F401  a fixture
from tritune import TrituneError
from tritune.tasks.data import load_task_data
from tritune.tasks.data.rows_record import rows_sha256
from tritune.tasks.registry import own_task

KIND = "text-classification"
BRIEF = ("max_steps=2", "eval_steps=2", "per_device_train_batch_size=4", "bf16=false")


def texts_of(rows) -> list[str]:
    """Every row as one text, of images by their bytes."""
    if "image" in rows.column_names:
        return [hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).hexdigest() for image in rows["image"]]
    return [json.dumps(row, sort_keys=True) for row in rows]


def text_file(folder: Path, labels: list) -> Path:
    return write(folder / "train.jsonl", table(labels))


def squad_file(folder: Path) -> Path:
    contexts = [f"Ada {n} lives in Como." for n in range(20)]
    paragraphs = [(text, [question(text + m, f"Where {m}?", text, "Como") for m in "ab"]) for text in contexts]
    path = folder / "train.json"
    path.write_text(json.dumps(squad(paragraphs)))
    return path


def tag_file(folder: Path) -> Path:
    small_answers.write_tagged(folder, rows=40)
    return folder / "train.txt"


FILES = {
    "words": (KIND, lambda folder: text_file(folder, ["a"] * 50 + ["b"] * 30)),
    "many": (KIND, lambda folder: text_file(folder, [["a"], ["a", "b"], []] * 20)),
    "scores": (KIND, lambda folder: text_file(folder, [n / 7 for n in range(60)])),
    "questions": ("question-answering", squad_file),
    "tags": ("token-classification", tag_file),
    "images": ("image-classification", lambda folder: pictures.make_folder(folder / "photos", per_class=10)),
    "pairs": (
        "feature-extraction",
        lambda folder: write(
            folder / "pairs.csv",
            [{"sentence1": f"a dog {n}", "sentence2": f"a cat {n}", "score": n / 5} for n in range(40)],
        ),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_task_holds_out_rows(tmp_path, name):
    kind, make = FILES[name]
    task = own_task(kind, {"train": make(tmp_path)})
    splits, again = load_task_data(task), load_task_data(task)
    assert set(splits) == {"train", "validation"}
    whole = Counter(texts_of(task.head.read_undivided(task)))
    train, dev = (Counter(texts_of(splits[split])) for split in ("train", "validation"))
    assert train + dev == whole, "every row is on one side"
    assert not train & dev and 0.05 * whole.total() <= dev.total() <= 0.2 * whole.total()
    assert all(rows_sha256(splits[split]) == rows_sha256(again[split]) for split in splits)
    alone = load_task_data(task, splits=["validation"])
    assert set(alone) == {"validation"} and rows_sha256(alone["validation"]) == rows_sha256(splits["validation"])


def test_equal_texts_and_contexts_are_on_one_side(tmp_path):
    spellings = ("Ünï {}!", "ünï  {}", "ÜNÏ {}")
    rows = [{"text": text.format(n), "label": "ab"[n % 2]} for n in range(40) for text in spellings]
    splits = load_task_data(own_task(KIND, {"train": write(tmp_path / "x.csv", rows)}))
    number = {split: {text.strip("!").split()[-1] for text in splits[split]["text"]} for split in splits}
    assert not number["train"] & number["validation"] and len(splits["validation"]) % 3 == 0
    asked = load_task_data(own_task("question-answering", {"train": squad_file(tmp_path)}))
    assert not set(asked["train"]["context"]) & set(asked["validation"]["context"])


def test_rare_classes_are_on_both_sides(tmp_path):
    splits = load_task_data(own_task(KIND, {"train": text_file(tmp_path, ["a"] * 95 + ["b"] * 5)}))
    dev = Counter(splits["validation"]["label"])
    assert abs(dev[0] - 9.5) <= 0.5 and dev[1] == 1 and Counter(splits["train"]["label"])[1] == 4


def test_a_student_is_scored_on_rows_that_its_teacher_has_not_learnt(cli, base, tmp_path):  # noqa: F811
    """Teacher and student with other seeds: the same dev rows, in nobody's training, and the seed is on record."""
    file = write(tmp_path / "tickets.csv", table(["a", "b"] * 30))
    own = ("--task", KIND, "--train-file", file)
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    code, _, said = cli("finetune", base, *own, "--output", teacher, *options(*BRIEF, "seed=1"))
    assert code == 0 and "on a tenth of the training rows (seed 42)" in said, said
    code, _, said = cli("train", teacher, *own, "--recipe", "ti-g", "--output", run, *options(*BRIEF, "seed=2"))
    assert code == 0, said
    splits = load_task_data(own_task(KIND, {"train": file}))
    for folder in (teacher, run):
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["data"]["dev"] == {"held_out_of": "train", "seed": 42}
        for split in ("train", "validation"):
            assert metrics["rows"][split]["read"] == {"count": len(splits[split]), "sha256": rows_sha256(splits[split])}
        assert "dev_file" not in (folder / "task.yaml").read_text()
    assert not set(splits["train"]["text"]) & set(splits["validation"]["text"])
    code, out, said = cli("evaluate", run, "--task", run / "task.yaml", "--json")
    assert code == 0 and json.loads(out)["accuracy"] == metrics["last"]["accuracy"], said
    code, out, said = cli("evaluate", run, "--task", run / "task.yaml", "--dev-file", file, "--json")
    assert code == 0 and json.loads(out)["rows"] == 60, said


def test_a_sweep_takes_them_too(cli, base, tmp_path):  # noqa: F811
    file = write(tmp_path / "tickets.csv", table(["a", "b"] * 15))
    own = ("--task", KIND, "--train-file", file)
    assert cli("finetune", base, *own, "--output", tmp_path / "teacher", *options(*BRIEF))[0] == 0
    space = ("--space", "mixing", "--output", tmp_path / "sweep", "--dry-run")
    code, _, said = cli("sweep", tmp_path / "teacher", *own, *space)
    assert code == 0 and "on a tenth of the training rows" in said, said


def test_what_cannot_be_held_out_is_one_line(tmp_path):
    def line(kind: str, path: Path, **more) -> str:
        with pytest.raises(TrituneError) as caught:
            load_task_data(own_task(kind, {"train": path}, **more))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    few = write(tmp_path / "few.csv", table(["a", "b"]))
    assert "few.csv: no rows are left for the dev part" in line(KIND, few) and "or give --dev-file" in line(KIND, few)
    same = write(tmp_path / "same.csv", [{"text": "again", "label": label} for label in "ab" * 10])
    assert "too few that differ; at least 2 are needed" in line(KIND, same)
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    assert "scored on pairs of texts with a score" in line("feature-extraction", tmp_path / "lines.txt")
    unscored = write(tmp_path / "pairs.csv", [{"sentence1": "a", "sentence2": "b"}] * 3)
    assert "give some with --dev-file" in line("feature-extraction", unscored)
