"""`tritune predict`, end to end: every kind of file in and out, and everything that can be wrong with one."""

import csv
import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, pipeline

import tritune  # noqa: F401  (the pipeline needs its attention and its checkpoints)
from processes import Job
from tritune.checkpoints.load import load_tokenizer
from tritune.cli import main
from tritune.inference import predict as predicting
from tritune.inference.evaluate import dev_logits
from tritune.tasks import table
from tritune.tasks.data import load_task_data
from tritune.tasks.models import load_model
from tritune.tasks.registry import get_task
from workspace import Cli, make_workspace, train_arguments

LABELS = ("unacceptable", "acceptable")
PROBABILITIES = [f"probability_{label}" for label in LABELS]


class Predict(Cli):
    """`tritune predict` and what it wrote or refused."""

    def rows(self, *arguments: object, stdin: bytes = b"") -> list[dict[str, str]]:
        code, out, err = self(*arguments, stdin=stdin)
        assert code == 0, err
        return list(csv.DictReader(io.StringIO(out, newline="")))

    def refusal(self, *arguments: object, stdin: bytes = b"") -> str:
        code, out, err = self(*arguments, stdin=stdin)
        assert code == 2 and out == "" and "Traceback" not in err
        (line,) = err.strip().splitlines()
        return line.removeprefix("error: ")


@pytest.fixture
def cli(capsys, monkeypatch):
    return Predict(capsys, monkeypatch, ("predict",))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def sentences(workspace):
    lines = (workspace / "data" / "dev.tsv").read_text().splitlines()[1:]
    return [line.split("\t")[0] for line in lines]


def _dev_logits(model: Path, data: Path) -> np.ndarray:
    """As `tritune evaluate` takes them."""
    task = get_task("demo")
    loaded = load_model(model, task)
    encoded = task.head.encode(
        load_task_data(task, data, task.dev_splits), task, load_tokenizer(model, loaded, 32), 32, "max_length"
    )
    return dev_logits(loaded, encoded, task, 32)["validation"]


def _divide(model: Path, data: Path) -> None:
    """Move the border between the labels of a hardly trained classifier into the middle of the dev set."""
    logits = _dev_logits(model, data)
    weights = load_file(model / "model.safetensors")
    scale = 1 / np.ptp(logits[:, 1] - logits[:, 0])
    weights["classifier.weight"] *= scale
    weights["classifier.bias"] *= scale
    weights["classifier.bias"][1] -= scale * np.median(logits[:, 1] - logits[:, 0])
    save_file(weights, model / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def run_folder(workspace):
    """A short run with answers of both kinds."""
    output = workspace / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tritune", *train_arguments(workspace, output, "--set", "max_steps=2")])
        with pytest.raises(SystemExit, match="0"):
            main.main()
    _divide(output, workspace / "data")
    return output


@pytest.fixture(scope="module")
def answers(run_folder, workspace):
    """The names and the shares that evaluation gives for the dev set."""
    shares = torch.from_numpy(_dev_logits(run_folder, workspace / "data")).softmax(-1).numpy()
    names = [LABELS[index] for index in shares.argmax(-1)]
    assert 20 <= names.count(LABELS[0]) <= 40
    return names, shares


@pytest.fixture(scope="module")
def regressor(workspace):
    """A model with a score instead of labels."""
    folder = workspace / "regressor"
    shutil.copytree(workspace / "teacher", folder)
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][:1].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    _configure(folder, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, problem_type="regression")
    return folder


def _configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Answers


def test_a_dev_file_gets_the_answers_of_evaluation(cli, run_folder, workspace, answers, sentences):
    names, shares = answers
    rows = cli.rows(run_folder, "--input", workspace / "data" / "dev.tsv", "--probabilities")
    assert list(rows[0]) == ["sentence", "label", "prediction", *PROBABILITIES]
    assert [row["sentence"] for row in rows] == sentences
    assert [row["prediction"] for row in rows] == names
    given = np.array([[float(row[name]) for name in PROBABILITIES] for row in rows])
    assert np.abs(given - shares).max() < 1e-6
    assert np.abs(given.sum(-1) - 1).max() < 2e-6
    assert [LABELS[index] for index in given.argmax(-1)] == names


def _csv(sentences):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["text", "id"], *([text, number] for number, text in enumerate(sentences))])
    return file.getvalue()


FILES = {
    "rows.csv": _csv,
    "rows.TSV": lambda sentences: "id\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(sentences)),
    "rows.jsonl": lambda sentences: "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(sentences)),
    "rows.json": lambda sentences: "\n\n".join(json.dumps({"text": text}) for text in sentences),
    "rows.txt": "\r\n".join,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_every_kind_of_input(cli, run_folder, tmp_path, answers, sentences, name, bom):
    path = _write(tmp_path / name, bom + FILES[name](sentences).encode())
    rows = cli.rows(run_folder, "--input", path)
    assert [row["text"] for row in rows] == sentences
    assert [row["prediction"] for row in rows] == answers[0]
    if "id" in rows[0]:
        assert [row["id"] for row in rows] == [str(number) for number in range(len(sentences))]


def test_lines_from_standard_input(cli, run_folder, answers, sentences):
    rows = cli.rows(run_folder, stdin="\n".join(sentences).encode())
    assert [(row["text"], row["prediction"]) for row in rows] == list(zip(sentences, answers[0], strict=True))


def test_pairs(cli, run_folder, tmp_path):
    pairs = [("the actor sleeps", "one boy saw himself"), ("one boy saw himself", "the actor sleeps")]
    lines = cli.rows(run_folder, "--probabilities", stdin="".join(f"{a}\t{b}\n" for a, b in pairs).encode())
    assert [(row["text"], row["text_pair"]) for row in lines] == pairs
    assert lines[0][PROBABILITIES[0]] != lines[1][PROBABILITIES[0]]
    path = _write(tmp_path / "rows.csv", "b,a\n" + "".join(f"{second},{first}\n" for first, second in pairs))
    given = cli.rows(run_folder, "--input", path, "--probabilities", "--text-columns", "a, b")
    assert [row[PROBABILITIES[0]] for row in given] == [row[PROBABILITIES[0]] for row in lines]
    swapped = cli.rows(run_folder, "--input", path, "--probabilities", "--text-columns", "b,a")
    assert [row[PROBABILITIES[0]] for row in swapped] == [row[PROBABILITIES[0]] for row in lines[::-1]]


@pytest.mark.parametrize(
    ("header", "used"),
    [
        ("sentence,label", "sentence"),
        ("id,text", "text"),
        ("review", "review"),
        ("text,text_pair,id", "text,text_pair"),
        ("hypothesis,premise", "premise,hypothesis"),
        ("sentence,question", "question,sentence"),
        ("sentence1,sentence2,sentence", "sentence1,sentence2"),
    ],
)
def test_columns_are_guessed_as_glue_names_them(cli, run_folder, tmp_path, header, used):
    fields = ["the actor sleeps", "one boy saw himself", "the"][: header.count(",") + 1]
    path = _write(tmp_path / "rows.csv", f"{header}\n{','.join(fields)}\n")
    guessed = cli.rows(run_folder, "--input", path, "--probabilities")
    assert guessed == cli.rows(run_folder, "--input", path, "--probabilities", "--text-columns", used)


def test_a_text_is_kept_as_it_is(cli, run_folder, tmp_path):
    texts = ['say "hi", twice', "one\r\ntwo\nthree\rfour", "tab\there", "naïve 猫 \u2028", "", "x" * 300_000]
    source = _write(tmp_path / "in.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name in ("out.csv", "out.jsonl"):
        assert cli(run_folder, "--input", source, "--output", tmp_path / name)[0] == 0
        assert [row["text"] for row in table.read_table(tmp_path / name)] == texts
        _write(tmp_path / f"in{name[3:]}", (tmp_path / name).read_bytes().replace(b"prediction", b"earlier"))
        assert cli(run_folder, "--input", tmp_path / f"in{name[3:]}", "--output", tmp_path / f"again{name[3:]}")[0] == 0
        assert [row["text"] for row in table.read_table(tmp_path / f"again{name[3:]}")] == texts


def test_tsv_has_no_quotes(cli, run_folder, tmp_path):
    text = '"the" actor \r said "'
    source = _write(tmp_path / "in.tsv", f'text\tid\n{text}\t"7\n\n\t8\n')
    assert cli(run_folder, "--input", source, "--output", tmp_path / "out.tsv")[0] == 0
    assert [(row["text"], row["id"]) for row in table.read_table(tmp_path / "out.tsv")] == [(text, '"7'), ("", "8")]


def test_a_field_that_tsv_cannot_hold_is_found_before_the_work(cli, workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "load_pretrained", None)
    source = _write(tmp_path / "in.csv", 'text,note\na,b\nc,"d\te"\n')
    message = cli.refusal(workspace / "teacher", "--input", source, "--output", tmp_path / "out.tsv")
    assert message == f"{tmp_path}/out.tsv: 'note' of row 2 holds a tab or a line end, which .tsv cannot; " + (
        "write .csv or .jsonl"
    )


def test_other_columns_of_json_lines_are_kept(cli, run_folder, tmp_path):
    extra = [{"n": 1.5, "tags": ["a", "ä"]}, {"n": None, "more": {"k": True}}]
    lines = [{"text": "the actor"} | more for more in extra]
    source = _write(tmp_path / "in.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert cli(run_folder, "--input", source, "--output", tmp_path / "out.jsonl")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in row if key != "prediction"} for row in rows] == lines
    cells = cli.rows(run_folder, "--input", source)
    assert [(row["n"], row["tags"], row["more"]) for row in cells] == [
        ("1.5", '["a", "ä"]', ""),
        ("", "", '{"k": true}'),
    ]


def test_a_long_text_is_cut(cli, run_folder):
    start = "one boy saw himself and " * 10
    first, second = cli.rows(
        run_folder, "--probabilities", stdin=f"{start}the actor\n{start}{'sleeps ' * 9999}".encode()
    )
    assert [first[name] for name in PROBABILITIES] == [second[name] for name in PROBABILITIES]


def test_a_score_instead_of_a_label(cli, regressor, sentences):
    rows = cli.rows(regressor, stdin="\n".join(sentences[:3]).encode())
    model = AutoModelForSequenceClassification.from_pretrained(regressor).eval()
    tokens = load_tokenizer(regressor, model, 32)(sentences[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**tokens).logits[:, 0].tolist()
    assert [float(row["prediction"]) for row in rows] == pytest.approx(scores, rel=1e-5)
    message = cli.refusal(regressor, "--probabilities", stdin=b"a")
    assert message == f"--probabilities would change nothing: {regressor} gives no labels"


# The output file


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_output_is_what_standard_output_gets(cli, run_folder, workspace, tmp_path, ending):
    arguments = (run_folder, "--input", workspace / "data" / "dev.tsv", "--probabilities")
    code, out, _ = cli(*arguments, "--output", tmp_path / f"out.{ending}")
    assert code == 0 and out == "" and [path.name for path in tmp_path.iterdir()] == [f"out.{ending}"]
    rows = table.read_table(tmp_path / f"out.{ending}")
    assert [{key: str(value) for key, value in row.items()} for row in rows] == cli.rows(*arguments)


def test_output_is_written_whole_or_not_at_all(cli, run_folder, tmp_path, monkeypatch):
    output = _write(tmp_path / "out.csv", "earlier\n")
    assert "row 2" in cli.refusal(
        *(run_folder, "--output", output, "--input", _write(tmp_path / "in.jsonl", '{"text": "a"}\n{"text": 3}\n'))
    )
    table_of = table._table

    def full(rows):
        yield from list(table_of(rows))[:2]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(table, "_table", full)
    message = cli.refusal(run_folder, "--output", output, stdin=b"a\nb\nc\n")
    assert message == f"{output}: cannot be written (No space left on device)"
    assert output.read_text() == "earlier\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.csv"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.txt", "predictions are written as .csv, .tsv or .jsonl"),
        ("out", "predictions are written as .csv, .tsv or .jsonl"),
        ("none/out.csv", "there is no folder"),
        ("folder.csv", "this is a folder; give the name of a file"),
    ],
)
def test_bad_output_is_refused_before_the_work(cli, tmp_path, name, message):
    (tmp_path / "folder.csv").mkdir()
    line = cli.refusal("./no-model", "--output", tmp_path / name, stdin=b"a")
    assert line.startswith(f"{tmp_path / name}: ") and message in line
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


def test_a_reader_that_leaves_early(run_folder, tmp_path):
    source = _write(tmp_path / "in.txt", ("the " * 1000 + "\n") * 100)
    os.mkfifo(tmp_path / "pipe")
    # A slow machine shows a bar.
    job = Job(_tritune, tmp_path / "pipe", "predict", str(run_folder), "--input", str(source), TQDM_DISABLE="1")
    with (tmp_path / "pipe").open() as pipe:
        assert pipe.readline() == "text,prediction\n"
    done = job.wait()
    assert (done.returncode, done.stderr) == (1, "")


def _tritune(output: Path, *arguments: str) -> None:
    os.dup2(os.open(output, os.O_WRONLY), 1)
    sys.argv = ["tritune", *arguments]
    main.main()


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be written (No space left on device)"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "give --output, or set PYTHONUTF8=1"),
    ],
)
def test_standard_output_that_fails(cli, run_folder, monkeypatch, failure, message):
    def fail(file, rows):
        raise failure

    monkeypatch.setattr(table, "_write_csv", fail)
    line = cli.refusal(run_folder, stdin=b"a")
    assert line.startswith("standard output: ") and message in line


# Bad input

BAD_FILES = {
    "empty.csv": ("", ": holds no rows"),
    "empty.tsv": ("\n\n", ": holds no rows"),
    "empty.jsonl": ("\n", ": holds no rows"),
    "empty.txt": ("", ": holds no rows"),
    "header.csv": ("text,label\n", ": holds no rows"),
    "header.tsv": ("text\tlabel\n", ": holds no rows"),
    "short.csv": ("text,label\na,1\n\nb\n", ", line 4: 1 fields, the header has 2; repair or drop the row"),
    "long.csv": ("text,label\na,1,2\n", ", line 2: 3 fields, the header has 2"),
    "short.tsv": ("text\tlabel\na\n", ", line 2: 1 fields, the header has 2"),
    "long.tsv": ('text\tlabel\n"a\tb"\t1\n', ", line 2: 3 fields, the header has 2"),
    "quote.csv": ('text,label\n"a"b,1\n', ", line 2: not CSV ("),
    "open.csv": ('text,label\n"a\nb,1\n', ", line 3: not CSV (unexpected end of data)"),
    "twice.csv": ("text,text\na,b\n", ", line 1: the header has 'text' more than once"),
    "semicolons.csv": ("id;text\n1;a\n", ", line 1: one column 'id;text'; the delimiter must be ','"),
    "commas.tsv": ("id,text\n1,a\n", r", line 1: one column 'id,text'; the delimiter must be '\t'"),
    "latin.csv": (b"text\nok\ncaf\xe9\n", ", line 3: not UTF-8 text; convert it"),
    "latin.tsv": (b"text\ncaf\xe9\n", ", line 2: not UTF-8 text; convert it"),
    "latin.jsonl": (b'{"text": "caf\xe9"}\n', ", line 1: not UTF-8 text; convert it"),
    "latin.txt": (b"a\nb\n\xff", ", line 3: not UTF-8 text; convert it"),
    "wide.txt": ("the actor".encode("utf-16"), ", line 1: not UTF-8 text; convert it"),
    "list.jsonl": ('{"text": "a"}\n["b"]\n', ", line 2: not a JSON object on one line"),
    "text.jsonl": ('"a"\n', ", line 1: not a JSON object on one line"),
    "cut.jsonl": ('{"text": "a"}\n{"text": \n', ", line 2: not a JSON object on one line"),
    "deep.jsonl": ("[" * 100_000, ": not a JSON list of objects"),
    "array.json": ('[\n{"text": "a"}\nb]\n', ", line 3: not a JSON list of objects"),
    "half.jsonl": ('{"text": "a"}\n{"text": "\\ud83d"}\n', ", line 2: half of a surrogate pair"),
    "number.jsonl": ('{"text": "a"}\n\n{"text": 3}\n', ", row 2: 'text' must be text, found 3"),
    "missing.jsonl": ('{"text": "a"}\n{"label": "b"}\n', ", row 2: 'text' must be text, found nothing"),
    "null.jsonl": ('{"text": null}\n', ", row 1: 'text' must be text, found nothing; fill it in or drop the row"),
    "nothing.jsonl": ("{}\n", ": there is no column for the text"),
    "unknown.csv": ("a,b\nc,d\n", ": say with --text-columns which of 'a', 'b' hold the text"),
    "three.txt": ("a\tb\n\na\tb\tc\n", ", line 3: 3 texts; a line holds one or two, separated by a tab"),
    "mixed.txt": ("a\nb\tc\n", ", row 1: 'text_pair' must be text, found nothing"),
    "taken.csv": ("text,prediction\na,b\n", ": has 'prediction' already; rename or drop it"),
    "rows.xlsx": ("a", ": unknown kind of file; known are .csv, .tsv, .jsonl, .json, .txt, .parquet and - for"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(cli, run_folder, tmp_path, name):
    content, message = BAD_FILES[name]
    path = _write(tmp_path / name, content)
    line = cli.refusal(run_folder, "--input", path, "--output", tmp_path / "out.csv")
    assert line.startswith(f"{path}{message}")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_input_that_cannot_be_read(cli, run_folder, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    assert "none.csv: cannot be read (No such file" in cli.refusal(run_folder, "--input", tmp_path / "none.csv")
    assert "folder.csv: cannot be read (Is a dir" in cli.refusal(run_folder, "--input", tmp_path / "folder.csv")
    assert cli.refusal(run_folder) == "standard input: holds no rows"
    assert cli.refusal(run_folder, stdin=b"a\ncaf\xe9\n").startswith("standard input, line 2: not UTF-8 text")
    assert cli.refusal(run_folder, stdin=b"a\nb\tc").startswith("standard input, row 1: 'text_pair' must be text")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("c", ": no column 'c'; there are 'text', 'b'"),
        ("text,c", ": no column 'c'; there are 'text', 'b'"),
        ("", ": no column ''; there are 'text', 'b'"),
        ("text,b,text", "--text-columns takes one or two columns, got 'text', 'b', 'text'"),
    ],
)
def test_bad_columns(cli, run_folder, tmp_path, columns, message):
    path = _write(tmp_path / "rows.csv", "text,b\nc,d\n")
    assert message in cli.refusal(run_folder, "--input", path, "--text-columns", columns)


def test_bad_overrides_and_models(cli, run_folder, workspace, tmp_path):
    assert "no room for text beside 2 special" in cli.refusal(run_folder, "--set", "max_length=2", stdin=b"a")
    assert "max_length 33 is more than the 32 positions" in cli.refusal(
        run_folder, "--set", "max_length=33", stdin=b"a"
    )
    assert "seed would change nothing" in cli.refusal(run_folder, "--set", "seed=1", stdin=b"a")
    assert cli.refusal("./nowhere", stdin=b"a") == "./nowhere: there is no such folder"
    several = shutil.copytree(run_folder, tmp_path / "several")
    for names in ({"5": "a", "6": "b"}, {"0": "a", "1": "a"}):
        _configure(several, id2label=names)
        assert "several: id2label in its config.json must give each label from 0 to 1" in cli.refusal(
            several, stdin=b"a"
        )


def test_answers_that_are_not_numbers_are_refused(cli, workspace, tmp_path):
    folder = shutil.copytree(workspace / "teacher", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"].fill_(3e38)
    weights["classifier.weight"].fill_(3e38)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    message = cli.refusal(folder, stdin=b"the actor\nthe")
    assert message == f"{folder}: gives NaN or infinite values for row 1 of standard input; train it again"


# transformers' own pipeline


@pytest.fixture(scope="module")
def classify(run_folder):
    return pipeline("text-classification", model=str(run_folder), device="cpu", top_k=None)


def _compare(piped: list[list[dict]], rows: list[dict[str, str]]) -> None:
    assert [answer[0]["label"] for answer in piped] == [row["prediction"] for row in rows]
    assert len({row["prediction"] for row in rows}) == 2
    for answer, row in zip(piped, rows, strict=True):
        for entry in answer:
            assert entry["score"] == pytest.approx(float(row[f"probability_{entry['label']}"]), abs=1e-6)


def test_pipeline_one_text_at_a_time(cli, run_folder, classify, sentences):
    """Per-tensor scales see the padding, so both must pad alike: a single text with `longest` is not padded at all."""
    alone = ("--set", "per_device_eval_batch_size=1", "--set", "padding=longest")
    rows = cli.rows(run_folder, "--probabilities", *alone, stdin="\n".join(sentences).encode())
    _compare([classify([text])[0] for text in sentences], rows)
    _compare(classify(sentences, batch_size=1), rows)


def test_pipeline_as_the_recipe_pads(cli, run_folder, classify, workspace, sentences):
    rows = cli.rows(run_folder, "--probabilities", "--input", workspace / "data" / "dev.tsv")
    _compare(classify(sentences, batch_size=32, padding="max_length", max_length=32, truncation=True), rows)
