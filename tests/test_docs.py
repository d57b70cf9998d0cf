"""The documentation says what is so: links, command lines, scripts, tables and keys are checked against the code."""

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from dataclasses import fields
from pathlib import Path
from statistics import fmean, stdev

import datasets
import pytest
import typer
import yaml

from pictures import make_folder, make_parquet
from processes import Job
from tritune.cli import main
from tritune.distil.layer_map import mapped_layers
from tritune.recipes import FinetuneRecipe, Recipe, Sweep, load_recipe, load_sweeps, shipped_recipes, shipped_spaces
from tritune.tasks.data import load_task_data
from tritune.tasks.data.augment import PAPER_VARIANTS, VARIANTS
from tritune.tasks.heads import TEXT_CLASSIFICATION
from tritune.tasks.registry import TASKS, get_task, own_task
from workspace import make_workspace, train_arguments

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NAMES = [page.name for page in PAGES]
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# What a shortened training is given besides; the widths of its evaluations and checkpoints with it.
SHORT = {"max_steps": 8, "eval_steps": 4, "save_steps": 4}
NEEDS_NETWORK = ("bert-base-uncased", "glue/", "torchrun", "accelerate", "sst2", "squad", "conll")


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def blocks(path: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(path.read_text(encoding="utf-8")) if kind == language]


def anchors(path: Path) -> set[str]:
    """The ids that a page's headings get: lower case, no punctuation, hyphens for spaces."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        ascii_only = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())
        found.add(slug if slug not in found else f"{slug}_1")
    return found


def commands(path: Path) -> list[str]:
    """The lines of a file's `sh` blocks that run tritune, continued lines joined."""
    lines = "\n".join(blocks(path, "sh")).replace("\\\n", " ").splitlines()
    return [
        line
        for line in lines
        if re.search(r"(^|\| *|-m |--module )tritune\b", line) and not line.lstrip().startswith("#")
    ]


def arguments(line: str) -> list[str]:
    """What stands after the program's name, without redirections."""
    words = shlex.split(line, comments=True)
    start = next(index for index, word in enumerate(words) if word in ("tritune", "tritune.cli.main"))
    words = words[start + 1 :]
    return words[: words.index(">")] if ">" in words else words


def table_rows(path: Path, columns: int) -> list[list[str]]:
    rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [row for row in cells if len(row) == columns]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_resolve(path):
    for target in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(page), f"{path.name}: {target}"


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    navigation = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]
    assert sorted(page for entry in navigation for page in entry.values()) == NAMES


def test_every_figure_is_drawn_by_the_script_and_shown():
    sys.path.insert(0, str(DOCS))
    try:
        import figures
    finally:
        sys.path.remove(str(DOCS))
    shown = set(re.findall(r"figures/(\w+)\.svg", "".join(page.read_text(encoding="utf-8") for page in PAGES)))
    assert shown == set(figures.FIGURES) == {path.stem for path in (DOCS / "figures").glob("*.svg")}


def test_recipes_table():
    wanted = {}
    for name, values in shipped_recipes().items():
        own = {key: value for key, value in values.items() if key not in ("base", "name", "description")}
        base = f"`{values['base']}`" if "base" in values else ""
        differs = ", ".join(f"`{key}: {value}`" for key, value in own.items()) if base else ""
        wanted[f"`{name}`"] = [base, differs, values["description"]]
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in (DOCS / "train.md").read_text().splitlines()
    ]
    found = {row[0]: row[1:] for row in table if len(row) == 4 and row[0] in wanted}
    assert found == wanted


def test_keys_tables():
    documented = {}
    for name, default, _ in table_rows(DOCS / "train.md", 3):
        documented[name.strip("`")] = default.strip("`").strip()
    keys = {field.name: field.default for field in fields(Recipe)}
    assert keys.keys() == documented.keys()
    for key, default in keys.items():
        assert documented[key] == json.dumps(default).strip('"'), key


def test_sweep_page(tmp_path):
    """The table of keys, the files that ship, and the example."""
    page = DOCS / "sweep.md"
    documented = {name.strip("`"): default.strip("`") for name, default, _ in table_rows(page, 3)}
    keys = {field.name: field for field in fields(Sweep)}
    assert documented.keys() - {*shipped_spaces(), "sweeps"} == keys.keys()
    for name in ("recipe", "sampler", "sampler_seed", "objective", "pruner_startup_trials", "pruner_warmup_steps"):
        assert documented[name] == str(keys[name].default), name
    runs = {name.strip("`"): int(count) for name, _, count in table_rows(page, 3) if count.isdigit()}
    assert runs == {
        name: sum(sweep.count() * len(sweep.seeds) for sweep in load_sweeps(name)[1]) for name in shipped_spaces()
    }
    (example,) = blocks(page, "yaml")
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    _, (sweep,) = load_sweeps(tmp_path / "mine.yaml")
    assert sweep.count() == 20


def test_what_the_keys_section_says_of_finetune():
    text = prose(DOCS / "train.md")
    own, recipe = load_recipe("finetune", kind=FinetuneRecipe), load_recipe("ternarybert")
    for field in fields(FinetuneRecipe):
        value = getattr(own, field.name)
        if field.name not in ("name", "description") and value != getattr(recipe, field.name):
            assert f"`{field.name}: {value}`" in text


def test_metrics_and_files_are_documented(tmp_path):
    make_workspace(tmp_path)
    run(train_arguments(tmp_path, tmp_path / "run", *short([]), "--set", "reconstruct_steps=1"))
    text = prose(DOCS / "train.md")
    for path in (tmp_path / "run").iterdir():
        assert f"`{path.name}{'/' * path.is_dir()}`" in text, path.name
    for key in json.loads((tmp_path / "run" / "metrics.json").read_text()):
        assert f"`{key}`" in text, key


@pytest.mark.parametrize(
    "path, line",
    [
        pytest.param(path, line, id=f"{path.name}-{index}")
        for path in TEXTS
        for index, line in enumerate(commands(path))
        if path.name != "extend.md"  # whose names a plugin brings: test_extend_page
    ],
)
def test_commands_parse(path, line):
    name, *given = arguments(line)
    command = typer.main.get_command(main.app).commands[name]
    if isinstance(command, typer.core.TyperGroup):
        command = command.commands[given.pop(0)]
    parsed = command.make_context(name, given).params
    overrides = parsed.get("overrides")
    if overrides:
        kind = FinetuneRecipe if name == "finetune" else Recipe
        recipe = parsed.get("recipe")
        load_recipe(recipe if recipe in shipped_recipes() else None, overrides, kind)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_python_blocks_compile(path):
    for block in blocks(path, "python"):
        compile(block, path.name, "exec")


def run(line: list[str], stdin: str = "") -> str:
    """Run a command line in this process and return its standard output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tritune", *line])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        patch.setattr(sys, "stdout", out := io.StringIO())
        try:
            main.main()
        except SystemExit as leaving:
            assert not leaving.code, line
        return out.getvalue()


def short(given: list[str]) -> list[str]:
    """A training's arguments with its lengths cut; the default recipe has but one."""
    lengths = {"reconstruct_steps": 8} if given[:1] == ["train"] and "--recipe" not in given else SHORT
    return [*given, *(word for key, value in lengths.items() for word in ("--set", f"{key}={value}"))]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder with the `demo/` that the examples take, only smaller."""
    folder = tmp_path_factory.mktemp("docs")
    make_workspace(folder / "demo")
    run(short(train_arguments(folder / "demo", folder / "demo" / "ti-g")))
    return folder


@pytest.fixture
def at_demo(demo, monkeypatch):
    monkeypatch.chdir(demo)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", demo / "cache")
    return demo


def run_commands(path: Path) -> None:
    for line in commands(path):
        if any(word in line for word in NEEDS_NETWORK):
            continue
        given = arguments(line)
        text = run(
            short(given) if given[0] in ("train", "finetune") else given,
            stdin=line.split('"')[1] + "\n" if line.startswith("echo") else "",
        )
        if " > " in line:
            Path(line.split(" > ")[1].strip()).write_text(text, encoding="utf-8")


def test_commands_of_use_run(at_demo):
    run_commands(DOCS / "use.md")
    rows = (at_demo / "answers.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "sentence,label,prediction" and len(rows) == 61
    assert "probability_acceptable" in (at_demo / "answers.jsonl").read_text(encoding="utf-8")


@pytest.mark.slow
def test_commands_of_reconstruct_run(at_demo):
    rows = (at_demo / "demo" / "data" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    Path("texts.txt").write_text("\n".join(row.split("\t")[0] for row in rows) + "\n", encoding="utf-8")
    run_commands(DOCS / "reconstruct.md")
    counts = [json.loads((at_demo / name / "metrics.json").read_text()) for name in ("reconstructed", "unlabelled")]
    assert [metrics["rows"]["train"]["read"]["count"] for metrics in counts] == [len(rows)] * 2


@pytest.mark.slow
def test_commands_of_data_run(at_demo):
    run_commands(DOCS / "data.md")
    assert (at_demo / "own" / "small" / "config.json").is_file()
    rows = (at_demo / "own" / "answers.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "sentence,label,prediction" and len(rows) == 61 and rows[1].rpartition(",")[2] in ("0", "1")


def test_tables_and_task_file_of_data_are_read(tmp_path):
    page, found = DOCS / "data.md", []
    for kind, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if kind in ("csv", "jsonl"):
            (tmp_path / f"rows.{kind}").write_text(body, encoding="utf-8")
            task = own_task("text-classification", {"train": tmp_path / f"rows.{kind}"})
            assert len(load_task_data(task, splits=["train"])["train"]) == len(body.splitlines()) - (kind == "csv")
            found.append((task.problem, task.labels))
    names = ("late", "rude")
    many = ("multi_label", names)
    assert found == [("single_label", ("no", "yes")), many, many, ("regression", None)]
    (tmp_path / "reviews").mkdir()
    for name, rows in (("train", "a,good\nb,bad\n"), ("dev", "c,good\nd,bad\n")):
        (tmp_path / "reviews" / f"{name}.csv").write_text(f"text,mood\n{rows}", encoding="utf-8")
    (example,) = blocks(page, "yaml")
    (tmp_path / "task.yaml").write_text(example, encoding="utf-8")
    assert get_task(str(tmp_path / "task.yaml")).metric == "macro_f1"


@pytest.mark.slow
def test_commands_and_code_of_deploy_run(at_demo):
    pytest.importorskip("onnxscript", reason="needs tritune[onnx]")
    pytest.importorskip("onnxruntime", reason="needs tritune[onnx]")
    run_commands(DOCS / "deploy.md")
    assert {"model.onnx", "config.json", "tokenizer.json"} <= {path.name for path in (at_demo / "onnx").iterdir()}
    assert (at_demo / "dense" / "model.safetensors").is_file() and (at_demo / "bench" / "bench.csv").is_file()
    for block in blocks(DOCS / "deploy.md", "python"):
        if "FastAPI(" in block:  # test_service.py runs it
            continue
        exec(compile(block, "deploy.md", "exec"), {})
    assert (at_demo / "student.onnx").is_file()


@pytest.mark.slow
def test_commands_of_train_run(at_demo):
    run_commands(DOCS / "train.md")
    for folder in ("teacher", "run", "mine", "one", "two", "long", "accumulated", "checkpointed"):
        assert (at_demo / folder / "metrics.json").is_file(), folder


@pytest.mark.slow
def test_commands_of_analyse_run(at_demo):
    run_commands(DOCS / "analyse.md")
    assert (at_demo / "report.html").is_file()
    for line in commands(DOCS / "analyse.md"):
        command, name, *given = arguments(line)
        if command != "analyze":
            continue
        folder = at_demo / ("demo/teacher" if "--model" in given else "demo/ti-g") / "analysis" / name
        assert (folder / f"{name}.json").is_file(), line


@pytest.mark.slow
def test_commands_of_speed_run(at_demo):
    run_commands(DOCS / "speed.md")
    assert json.loads((at_demo / "cached" / "metrics.json").read_text())["teacher_cache_bytes"]


def test_tables_of_speed_are_the_measured_ones():
    """Every row of a table on the page is a row of its CSV file."""
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in page.splitlines() if line[:1] == "|"]

    def measured(name: str) -> list[dict[str, str]]:
        with (ROOT / "benchmarks" / "results" / name).open() as file:
            return list(csv.DictReader(file))

    steps: dict[tuple, dict] = {}
    for row in measured("training_step.csv"):
        steps.setdefault((row["shape"], row["tokens"], row["precision"]), {})[row["arm"]] = row
    assert len(steps) == 8
    for case, arms in steps.items():
        ratios = [f"{float(arms[arm]['ratio']):.2f}" for arm in ("qat", "finetune")]
        assert (*case, *ratios, f"{float(arms['float']['milliseconds']):.0f}") in rows
        if "qat plain" in arms:
            assert (*case[:2], f"{float(arms['qat plain']['ratio']):.2f}") in rows
    for row in measured("training_memory.csv"):
        case = (row["shape"], f"{row['batch']} x {row['tokens']}", row["precision"], row["arm"])
        parts = ("peak_mb", "ratio", "student_mb", "kept_for_backward_mb")
        assert (*case, *(row[part] for part in parts)) in rows
    for row in measured("quantizer_kernels.csv"):
        assert tuple(row.values()) in rows
    for row in measured("published.csv"):
        assert (row["shape"], row["tokens"], row["arm"], f"{float(row['ratio']):.2f}") in rows


def test_commands_and_python_blocks_of_pack_run(at_demo):
    run_commands(DOCS / "pack.md")
    for block in blocks(DOCS / "pack.md", "python"):
        exec(compile(block, "pack.md", "exec"), {})
    small, again = (at_demo / name / "model.safetensors" for name in ("small", "small_too"))
    assert small.read_bytes() == again.read_bytes() and (at_demo / "deploy_small" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.native
def test_commands_and_code_of_engine_run(at_demo):
    run_commands(DOCS / "engine.md")
    names: dict = {}
    for block in blocks(DOCS / "engine.md", "python"):
        exec(compile(block, "engine.md", "exec"), names)
    assert names["embeddings"].shape[0] == 2


def test_extend_page(at_demo):
    """In a process of its own: what is registered there stays there."""
    (at_demo / "mine.py").write_text("\n".join(blocks(DOCS / "extend.md", "python")))
    done = Job(_run_at, at_demo, DOCS / "extend.md").wait()
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (at_demo / "mine-run" / "history.jsonl").open()]
    assert all(row["cosine_loss"] > 0 for row in rows if "loss" in row)
    metrics = json.loads((at_demo / "mine-run" / "metrics.json").read_text())
    assert metrics["assisted"]["site"] == "context", "the second of two updates"
    assert (at_demo / "mine-small" / "model.safetensors").is_file()


def _run_at(folder: Path, page: Path) -> None:
    os.chdir(folder)
    run_commands(page)


def test_commands_and_python_blocks_of_augment_run(at_demo):
    page = DOCS / "augment.md"
    for block in blocks(page, "python"):
        exec(compile(block, "augment.md", "exec"), {})
    run_commands(page)
    lines = (at_demo / "demo" / "data" / "train_aug.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "sentence\tlabel" and len(lines) > 401
    assert (at_demo / "taught" / "metrics.json").is_file() and (at_demo / "learnt" / "metrics.json").is_file()


def test_table_of_augment():
    documented = {name.strip("`"): int(count) for name, count in table_rows(DOCS / "augment.md", 2) if count.isdigit()}
    assert documented == {
        name: VARIANTS.get(name, PAPER_VARIANTS) for name, task in TASKS.items() if task.head is TEXT_CLASSIFICATION
    }


def test_table_of_tasks():
    names = {"validation": "dev", "validation_matched": "dev_matched", "validation_mismatched": "dev_mismatched"}
    documented = {row[0].strip("`"): row[1:] for row in table_rows(DOCS / "tasks.md", 7)}
    assert documented.keys() == TASKS.keys()
    for name, task in TASKS.items():
        kind, files, metric, *numbers = documented[name]
        assert (kind, metric) == (task.head.name, f"`{task.metric}`")
        assert numbers == [str(task.max_length or ""), str(task.batch_size), str(task.eval_steps)]
        assert all(f"{names.get(split, split)}." in files for split in ("train", *task.dev_splits))


@pytest.mark.slow
def test_commands_and_code_of_vision_run(tmp_path, monkeypatch):
    """Everything on the page, with a ViT of two narrow layers."""
    pytest.importorskip("onnxscript", reason="needs tritune[onnx]")
    pytest.importorskip("onnxruntime", reason="needs tritune[onnx]")
    monkeypatch.chdir(tmp_path)
    make_parquet(Path("cifar10/train.parquet"), 40)
    make_parquet(Path("cifar10/test.parquet"), 20)
    for split in ("train", "dev"):
        make_folder(Path("photos") / split, 3)
    first, second = blocks(DOCS / "vision.md", "python")
    for old, new in (("hidden_size=128", "hidden_size=16"), ("layers=6", "layers=2"), ("e_size=256", "e_size=32")):
        assert old in first
        first = first.replace(old, new)
    for block in (first, second):
        exec(compile(block, "vision.md", "exec"), {})
    run_commands(DOCS / "vision.md")
    assert (tmp_path / "my-teacher" / "metrics.json").is_file() and (tmp_path / "onnx" / "model.onnx").is_file()
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 10
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 20


def test_table_of_deploy_is_the_measured_one():
    page = (DOCS / "deploy.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    table = {row[0]: row[1:] for row in cells if len(row) == 9}
    with (ROOT / "benchmarks" / "results" / "bench.csv").open() as file:
        for row in csv.DictReader(file):
            size, memory, *timings = table[row["name"]]
            column = table["contender"][2:].index(f"{row['batch']} x {row['length']}")
            assert timings[column] == f"{float(row['latency_ms']):.1f} ({float(row['ratio']):.2f})"
            assert size == f"{int(row['size_bytes']) / 1e6:.1f}"
            assert memory == f"{int(row['peak_memory_bytes']) / 1e6:.0f}"


@pytest.mark.parametrize("table", ["signals", "bits", "quantizers"])
def test_tables_of_accuracy_are_the_measured_ones(table):
    with (ROOT / "benchmarks" / "results" / f"accuracy_{table}.csv").open() as file:
        measured = [row for row in csv.DictReader(file) if row["arm"] != "teacher"]
    page = (DOCS / "accuracy.md").read_text(encoding="utf-8")
    lines = page.split(f"<!-- {table} -->")[1].split(f"<!-- end of {table} -->")[0].strip().splitlines()[2:]
    cells = {arm: rest for arm, *rest in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}
    assert list(cells) == list(dict.fromkeys(row["arm"] for row in measured))
    for arm, shown in cells.items():
        for cell, column in zip(shown, ("score", "agreement", "kl", "size_mb"), strict=True):
            values = [row[column] for row in measured if row["arm"] == arm]
            assert cell == ", ".join(values if len(set(values)) > 1 else values[:1])
    assert {row["seed"] for row in measured} == ({"42"} if table == "quantizers" else {"42", "52"})


@pytest.mark.parametrize(("table", "count"), [("tasks", 10), ("rate", 4)])
def test_tables_of_models_and_tasks_are_the_measured_ones(table, count):
    with (ROOT / "benchmarks" / "results" / f"accuracy_{table}.csv").open() as file:
        measured = {(row["model"], row["task"], row["arm"]): row for row in csv.DictReader(file)}
    page = (DOCS / "accuracy.md").read_text(encoding="utf-8")
    lines = page.split(f"<!-- {table} -->")[1].split(f"<!-- end of {table} -->")[0].strip().splitlines()[2:]
    shown = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    expected = []
    for model, task in dict.fromkeys(key[:2] for key in measured):
        teacher = next(row for key, row in measured.items() if key[1:] == (task, "teacher"))
        plain, intervened = (measured[model, task, arm] for arm in ("ternarybert-block", "ti-g"))
        scores = [teacher["score"], plain["untrained"], plain["score"], intervened["score"]]
        size = f"{teacher['size_mb']} to {plain['size_mb']}"
        expected.append((model, task, teacher["metric"], *scores, size))
        assert {(row["steps"], row["seed"]) for row in (plain, intervened)} == {("200", "42")}
    assert shown == expected and len(shown) == count


def test_table_of_the_readme_is_the_measured_one():
    with (ROOT / "benchmarks" / "results" / "convergence.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["rows"]) == ("MiniLM", "3200")]
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("**", "")
    tasks = re.search(r"\| model \| (CoLA .*) \| size \|", readme)[1].split(" | ")
    for name, arm, column, digits, size in (
        ("teacher (float)", "tritune", "teacher_score", 1, "90.9 MB"),
        ("`ti-g`", "ti-g 1e-4", "score", 1, "6.7 MB"),
        ("`tritune`", "tritune", "score", 1, "6.7 MB"),
        ("distance to the teacher, `ti-g`", "ti-g 1e-4", "kl", 3, ""),
        ("distance to the teacher, `tritune`", "tritune", "kl", 3, ""),
    ):
        cells = []
        for task in tasks:
            like = [row for row in rows if (row["task"], row["arm"]) == (task, arm)]
            assert sorted(row["seed"] for row in like) == ["42", "52", "62"]
            values = [float(row[column]) for row in like]
            deviation = f" ± {stdev(values):.{digits}f}" if column == "score" else ""
            cells.append(f"{fmean(values):.{digits}f}{deviation}")
            if column == "score":
                assert {f"{int(row['size_bytes']) / 1e6:.1f} MB" for row in like} == {size}
        assert f"| {name} | {' | '.join(cells)} | {size}" in readme


def test_table_of_4_bit_activations_is_the_measured_one():
    with (ROOT / "benchmarks" / "results" / "four_bits.csv").open() as file:
        measured = {row["inputs_in_4_bits"]: row["kl"] for row in csv.DictReader(file)}
    page = (DOCS / "convergence.md").read_text(encoding="utf-8").partition("## 4-bit activations")[2].replace("**", "")
    assert f"(seed 42, {measured.pop('none')})" in page
    shown = re.findall(r"\| (?:`(\w+)`[\w, ]*|(layer \d)) \| (\d\.\d{4}) ", page)
    assert {kind or layer: kl for kind, layer, kl in shown} == measured


def test_table_of_the_mix_is_the_measured_one():
    with (ROOT / "benchmarks" / "results" / "mixing.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 54 and {run["state"] for run in runs} == {"complete"}
    page = (DOCS / "accuracy.md").read_text(encoding="utf-8")
    keys = {"block": "block_output_coefficient", "map": "attention_map_coefficient"}
    for (sweep, key), name in zip(keys.items(), ("block output, with map 1", "map, with block output 1"), strict=True):
        points: dict[str, list[float]] = {}
        for run in runs:
            if run["sweep"] == sweep:
                points.setdefault(run[key], []).append(100 * float(run["last"]))
        assert [len(scores) for scores in points.values()] == [3] * 9
        cells = [f"{fmean(points[point]):.1f} ± {stdev(points[point]):.1f}" for point in sorted(points)]
        assert f"| {name} | {' | '.join(cells)} |" in page


def test_tables_of_pack_are_the_measured_ones():
    """Every row of a table on the page is a row of its CSV file, and the sizes are what was promised."""
    page = (DOCS / "pack.md").read_text(encoding="utf-8")
    rows = {
        tuple(cell.strip(" `") for cell in line.strip("|").split("|")) for line in page.splitlines() if line[:1] == "|"
    }
    tables = {}
    for name in ("packed_size", "packed_padding"):
        with (ROOT / "benchmarks" / "results" / f"{name}.csv").open() as file:
            tables[name] = list(csv.DictReader(file))
    for row in tables["packed_size"]:
        if row["part"] == "all":
            assert tuple(row[key] for key in ("model", "recipe", "rest", "float_mb", "packed_mb", "ratio")) in rows
            assert float(row["packed_mb"]) <= {"bert-base": 30, "minilm-l6": 7, "vit-base": 30}[row["model"]]
        elif (row["recipe"], row["rest"]) == ("ti-g", "float32"):
            assert tuple(row[key] for key in ("model", "part", "float_mb", "packed_mb")) in rows
    for row in tables["packed_padding"]:
        keys = ("recipe", "tokens", "flipped_codes", "equal_logits", "largest_difference", "logit_spread")
        assert tuple(row[key] for key in keys) in rows


@pytest.mark.slow
def test_commands_and_python_blocks_of_shrink_run(at_demo):
    run_commands(DOCS / "shrink.md")
    for folder in ("skip-run", "skip-one", "skip-two", "skip-last"):
        assert (at_demo / folder / "metrics.json").is_file(), folder
    assert json.loads((at_demo / "skip-small" / "config.json").read_text())["num_hidden_layers"] == 2
    maps = [load_recipe(at_demo / folder / "recipe.yaml").layer_map for folder in ("skip-run", "skip-last")]
    assert maps == [(0, 2), (1, 2)]
    names: dict = {}
    for block in blocks(DOCS / "shrink.md", "python"):
        exec(compile(block, "shrink.md", "exec"), names)
    assert names["output"].logits.shape == (2, 2)


def test_layer_maps_of_shrink():
    rows = {row[0].strip("`"): row[2:] for row in table_rows(DOCS / "shrink.md", 4)}
    for choice in ("uniform", "last"):
        for cell, student in zip(rows[choice], (4, 6), strict=True):
            assert tuple(map(int, cell.split(", "))) == mapped_layers(choice, student, 12)


@pytest.mark.parametrize("name", ["index.md", "use.md", "analyse.md", "format.md", "tasks.md", "reconstruct.md"])
def test_python_blocks_run(at_demo, name):
    for block in blocks(DOCS / name, "python"):
        exec(compile(block, name, "exec"), {})


@pytest.mark.slow
def test_python_blocks_of_train_run(at_demo):
    for block in blocks(DOCS / "train.md", "python"):
        block = block.replace("max_steps=120", "max_steps=4")
        exec(compile(block, "train.md", "exec"), {})
    assert (at_demo / "script" / "student" / "config.json").is_file() and (at_demo / "curves.png").is_file()


@pytest.mark.slow
def test_figures_can_be_drawn_again(tmp_path):
    copy = tmp_path / "figures.py"
    copy.write_text((DOCS / "figures.py").read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, str(copy)], check=True, timeout=300)
    for path in (DOCS / "figures").glob("*.svg"):
        assert (tmp_path / "figures" / path.name).stat().st_size > 0
