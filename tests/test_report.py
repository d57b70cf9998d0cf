"""The report: every number of the run folders on one page that needs nothing else, and every damaged folder refused."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from matplotlib.colors import to_rgba

from run_folders import add_analysis, history, make_run, make_teacher, write_history
from tritune.analysis import plots
from tritune.errors import TrituneError
from tritune.recipes import load_recipe, to_yaml
from tritune.report import page
from tritune.report.analyses import CAPTIONS, table_of
from tritune.report.runs import read_run, read_runs
from tritune.training.versions import library_versions
from workspace import make_workspace, train_arguments


class Page(HTMLParser):
    """A page taken apart: its tables by label, its images, its tags, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.tables, self.images, self.tags, self.words = {}, [], [], []
        self.label, self.cell, self.hidden = None, None, False
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if attributes.get("role") == "region":
            self.label = attributes["aria-label"]
            self.tables[self.label] = []
        elif tag == "tr":
            self.tables[self.label].append([])
        elif tag in ("td", "th"):
            self.cell = []
        elif tag == "img":
            self.images.append(attributes)
        self.hidden = tag == "style" or (self.hidden and tag not in ("body", "header"))

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[self.label][-1].append(" ".join(" ".join(self.cell).split()))
            self.cell = None
        self.hidden = self.hidden and tag != "style"

    def handle_data(self, data):
        if not self.hidden:
            self.words.append(data)
        if self.cell is not None:
            self.cell.append(data)

    def rows(self, label: str) -> dict[str, dict[str, str]]:
        """A table's cells by the first cell of their row and the head of their column."""
        header, *rows = self.tables[label]
        return {row[0]: dict(zip(header[1:], row[1:], strict=False)) for row in rows}


def report(*folders) -> Page:
    return Page(page.render(read_runs(folders)))


def pictures(shown: Page) -> list[bytes]:
    """The SVG of every image."""
    return [base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,")) for image in shown.images]


def test_every_number_of_the_metrics_is_there(tmp_path):
    shown = report(make_run(tmp_path / "ti-g"), make_run(tmp_path / "plain", recipe="ternarybert-block"))
    costs = shown.rows("Scores and costs of the runs")
    assert costs["ti-g"] == {
        "teacher": "87.5",
        "quantized, untrained": "51.3",
        "best": "84.2 step 9",
        "last": "82.7 step 12",
        "assisted": "86.2 teacher's map inside, step 6",
        "steps": "12 6 + 6",
        "seconds": "123",
        "s per step": "0.68",
        "size*": "89.0 kB teacher 1.0 MB, 11.2 times",
    }
    assert costs["plain"]["assisted"] == "–" and costs["plain"]["steps"] == "12"
    lines = shown.tables["Every score of every model"]
    assert lines[0] == ["", "accuracy", "agreement", "kl to teacher"]
    assert ["all runs", "51.3", "53.8", "0.9877"] in lines
    assert any(line[0] == "assisted (the teacher's tensors inside: not a score of the student)" for line in lines)
    assert ["ti-g teacher's map inside, step 6", "86.2", "", ""] in lines
    facts = shown.rows("Where the runs come from")
    assert facts["size, bytes"]["ti-g"] == "89,028" and facts["teacher's size, bytes"]["ti-g"] == "1,000,000"
    assert facts["teacher's weights, sha256"]["ti-g"] == "a1" * 6 and facts["seed"]["plain"] == "42"
    assert facts["steps"]["ti-g"] == "step one: 6, step two: 6"


def test_scores_of_a_second_dev_split_stand_beside_the_first(tmp_path):
    last = {"accuracy": 0.75, "validation_mismatched": {"accuracy": 0.625}, "kl_to_teacher": 0.5, "step": 12}
    shown = report(make_run(tmp_path / "run", metrics={"last": last}))
    header, *lines = shown.tables["Every score of every model"]
    (line,) = [line for line in lines if line[1:2] == ["75.0"]]
    assert dict(zip(header, line, strict=True))["accuracy, validation mismatched"] == "62.5"


def test_a_panel_for_every_loss_and_score(tmp_path):
    shown = report(make_run(tmp_path / "one"), make_run(tmp_path / "two", recipe="ternarybert"))
    assert [image["alt"].split(" against")[0] for image in shown.images] == [
        *("sum of losses", "logits loss", "hidden states loss", "accuracy")
    ]
    assert "one from 0.3333 at step 3, 0.08333 at step 12; two from" in shown.images[1]["alt"]
    assert all(picture.rstrip().endswith(b"</svg>") for picture in pictures(shown))
    for words in ("teacher's projection inside", "teacher's context inside", "teacher's map inside", "teacher (87.5)"):
        assert words in shown.text
    assert "the steps that one made" in shown.text


def test_spans_are_those_of_the_schedule_and_not_of_the_log(tmp_path):
    assert read_run(make_run(tmp_path / "run"), "run").spans == [(0, 1, "projection"), (1, 2, "context"), (2, 6, "map")]
    rows = [row for row in history() if row["step"] <= 3]
    assert read_run(make_run(tmp_path / "short", rows=rows), "s").spans[-1] == (2, 3, "map")
    assert read_run(make_run(tmp_path / "plain", recipe="ternarybert"), "plain").spans == []
    sites = plots.schedule_spans("stochastic", 50, 3)
    assert sites[0][0] == 0 and sites[-1][1] == 50
    assert all(before[1] == after[0] and before[2] != after[2] for before, after in pairwise(sites))


def test_panels_draw_the_values_of_the_history():
    rows = history()
    figures = plots.curves({"a": rows, "b": rows[:2]}, {"a": [(0, 4, "map")], "b": []})
    assert list(figures) == ["loss", "logits_loss", "hidden_states_loss", "eval_accuracy"]
    (axes,) = figures["logits_loss"].axes
    first, second = axes.lines
    assert first.get_xdata().tolist() == [3, 6, 9, 12] and first.get_ydata().tolist() == [1 / 3, 1 / 6, 1 / 9, 1 / 12]
    assert second.get_xdata().tolist() == [3, 6] and first.get_color() != second.get_color()
    (shade,) = axes.collections
    corners = shade.get_paths()[0].vertices
    assert corners[:, 0].min() == 0 and corners[:, 0].max() == 4 and corners[:, 1].max() == 1
    assert shade.get_facecolor()[0] == pytest.approx(to_rgba(plots.SITE_COLOURS["map"]))


def test_runs_with_other_sites_get_a_strip_each():
    spans = {"a": [(0, 4, "map")], "b": [(0, 2, "map"), (2, 4, "projection")], "c": []}
    (axes,) = plots.curves(dict.fromkeys(spans, history()), spans)["loss"].axes
    feet = [collection.get_paths()[0].vertices[:, 1].min() for collection in axes.collections]
    assert feet == pytest.approx([0, 0.05, 0.05])


@pytest.mark.parametrize(("values", "scale"), [([1.0, 0.09], "log"), ([1.0, 0.5], "linear"), ([1.0, 0.0], "linear")])
def test_a_loss_that_falls_tenfold_has_a_logarithmic_axis(values, scale):
    rows = [{"step": step, "loss": value} for step, value in enumerate(values)]
    assert plots.curves({"run": rows})["loss"].axes[0].get_yscale() == scale


def test_numbers_that_are_not_finite_are_gaps_and_said(tmp_path):
    rows = history()
    rows[3]["loss"], rows[3]["logits_loss"], rows[4]["loss"] = float("nan"), float("inf"), float("-inf")
    run = make_run(tmp_path / "run", rows=rows, metrics={"last": {"accuracy": float("nan"), "step": 12}})
    shown = report(run)
    assert "run: 2 of 6 logs hold a number that is not finite, the first at step 9" in shown.text
    assert shown.rows("Scores and costs of the runs")["run"]["last"] == "nan step 12"


def test_without_an_evaluation_the_page_says_so(tmp_path):
    rows = [row for row in history() if "loss" in row]
    shown = report(make_run(tmp_path / "run", rows=rows))
    assert "No evaluation has been logged." in shown.text and len(shown.images) == 3


def unfinished(folder):
    """A run killed in its second step, in the middle of a line of history."""
    run = make_run(folder, rows=history()[:4])
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").unlink()
    (run / "checkpoints").mkdir()
    kept = {key: metrics[key] for key in ("task", "metric", "recipe", "seed", "steps", "teacher", "untrained")}
    (run / "checkpoints" / "metrics.json").write_text(json.dumps(kept | {"seconds": 0.0}))
    (run / "best").mkdir()
    (run / "best" / "config.json").write_text("{}")
    (run / "best" / "selection.json").write_text(json.dumps({"metric": "accuracy", "value": 0.6875, "step": 6}))
    with (run / "history.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    return run


def test_a_run_that_was_stopped(tmp_path):
    run = unfinished(tmp_path / "run")
    shown = report(run)
    costs = shown.rows("Scores and costs of the runs")["run unfinished"]
    assert costs["best"] == "68.8 step 6" and costs["last"] == "– at step 9 of 12" and costs["size*"] == "–"
    assert "best so far 68.8" in shown.text and json.dumps(str(run / "best")) in shown.text
    shutil.rmtree(run / "best")
    assert "There is no model to load yet." in report(run).text


def test_a_fine_tuning_by_itself(tmp_path):
    teacher = make_teacher(tmp_path / "teacher")
    shown = report(teacher)
    costs = shown.rows("Scores and costs of the runs")["teacher"]
    assert costs["best"] == "93.8 step 6" and costs["last"] == "91.3 step 12"
    assert costs["size*"] == "999.9 kB" and "assisted" not in costs and "import tritune" not in shown.text
    (teacher / "checkpoints").mkdir()
    (teacher / "metrics.json").unlink()
    (teacher / "checkpoints" / "metrics.json").write_text('{"task": "demo", "base_sha256": "b2"}')
    assert "is not finished: at step 12 of 12" in report(teacher).text


def test_a_demo_stands_for_its_students(tmp_path):
    for name in ("ternarybert-block", "ti-g"):
        make_run(tmp_path / "demo" / name, recipe=name)
    (tmp_path / "demo" / "demo.json").write_text('{"students": {"ternarybert-block": {}, "ti-g": {}}}')
    assert [run.name for run in read_runs([tmp_path / "demo"])] == ["ternarybert-block", "ti-g"]


def test_runs_of_one_name_are_called_by_their_paths(tmp_path):
    runs = read_runs([make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run"), make_run(tmp_path / "c")])
    assert [run.name for run in runs] == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run"), "c"]


def test_recipe_differences(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", recipe="ternarybert-block")
    old = "".join(line for line in (two / "recipe.yaml").read_text().splitlines(True) if "loss_average" not in line)
    (two / "recipe.yaml").write_text(old)
    shown = report(one, two)
    table = shown.rows("Keys in which the recipes differ")
    assert set(table) == {"name", "description", "schedule", "step_one_steps", "loss_average"}
    assert table["schedule"] == {"one": "gradual", "two": "null"}
    assert table["step_one_steps"] == {"one": "6", "two": "null"}
    assert table["loss_average"] == {"one": "padded", "two": "–"}
    for line in to_yaml(load_recipe(one / "recipe.yaml")).splitlines():
        assert " ".join(line.split()) in shown.text
    assert "All recipes are the same." in report(one, make_run(tmp_path / "twin")).text


def test_library_versions(tmp_path):
    versions = report(make_run(tmp_path / "run")).rows("Library versions")
    assert {name: cells["this page"] for name, cells in versions.items()} == library_versions()
    assert versions["torch"]["run"] == "9.8.7" and versions["python"]["run"] == "3.2.1"


def test_analyses(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    numbers = {"students": ["one", "two"], "tokens": 7, "mse": [[1.0, 2.0], [3.0, None]]}
    add_analysis(one, "layers", numbers, ("layers", "more_of_it"))
    folder = add_analysis(two, "of_my_own", {"trace": 1.5, "nested": {"deep_one": 2}})
    (folder / "notes.txt").write_text("mine")
    (two / "analysis" / "empty").mkdir()
    add_analysis(two, "layers", {"tokens": 8}, ())
    shown = report(one, two)
    assert CAPTIONS["layers"] in shown.text and "of_my_own" in shown.text and "empty" not in shown.text
    alts = [image["alt"] for image in shown.images[-3:]]
    assert alts == ["layers of one: layers", "layers of one: more of it", "of_my_own of two: figure"]
    assert pictures(shown)[-1] == (folder / "figure.svg").read_bytes()
    table = shown.rows("Numbers of layers")
    assert table["tokens"] == {"one": "7", "two": "8"} and table["mse, mean of one"] == {"one": "1.5", "two": "–"}
    assert table["mse, mean of two"]["one"] == "3" and table["mse"]["one"] == "2 x 2 numbers"
    assert shown.rows("Numbers of of_my_own") == {"trace": {"two": "1.5"}, "nested, deep one": {"two": "2"}}


def test_a_huge_svg_gives_way_to_its_png(tmp_path):
    run = make_run(tmp_path / "run")
    folder = add_analysis(run, "norms", {"rows": 1})
    (folder / "figure.svg").write_text("<svg>" + " " * 2_000_001 + "</svg>")
    assert report(run).images[-1]["src"].startswith("data:image/png;base64,")
    (folder / "figure.png").unlink()
    assert report(run).images[-1]["src"].startswith("data:image/svg+xml;base64,")


@pytest.mark.parametrize("values", [{"a": [], "b": {}, "c": None}, {"a": [[], []]}, {"a": [{"b": 1}]}, {"students": 3}])
def test_odd_results_of_an_analysis_are_shown_or_left_out(values):
    assert all(isinstance(cell, str) for cell in table_of(values).values())


NASTY = '<script>alert("1")</script>\'&amp;$x$ {{ 7 * 7 }}'


def test_what_files_hold_is_shown_as_text(tmp_path):
    metrics = {"teacher": {"accuracy": 0.5, "path": NASTY}, "recipe": NASTY, "versions": {"torch": NASTY}}
    rows = [{"step": 1, "loss": 2.0, f"{NASTY}_loss": 1.0}, {"step": 1, f"eval_{NASTY}": 0.5}]
    run = make_run(tmp_path / "<script>alert(2)<" / NASTY.replace("/", "|"), metrics=metrics, rows=rows)
    (run / "recipe.yaml").write_text(f"schedule: null\ndescription: '{NASTY.replace(chr(39), '')}'\n")
    folder = add_analysis(run, "<img src=x onerror=alert(3)>", {NASTY: NASTY}, ("<b>",))
    (folder / "<b>.svg").write_text("<svg><script>alert(4)</script></svg>")
    html = page.render(read_runs([run, make_run(tmp_path / "\udcff")]))
    shown = Page(html)
    assert not {"script", "b", "iframe", "object", "embed", "link"} & {tag for tag, _ in shown.tags}
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]
    assert NASTY in shown.text and "{{ 7 * 7 }}" in shown.text and "<img src=x" in shown.text
    assert all(image["src"].startswith("data:image/") for image in shown.images)
    assert html.encode("utf-8")


def test_the_page_loads_nothing(tmp_path):
    run = make_run(tmp_path / "run")
    add_analysis(run, "layers", {"tokens": 1})
    html = page.render(read_runs([run]))
    shown = Page(html)
    loaded = [attributes[name] for _, attributes in shown.tags for name in ("src", "href") if name in attributes]
    assert loaded and all(address.startswith(("data:image/", "#")) for address in loaded)
    assert "url(" not in html and "@import" not in html and "://" not in html
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert policy in [attributes.get("content") for tag, attributes in shown.tags if tag == "meta"]
    targets = {attributes["id"] for _, attributes in shown.tags if "id" in attributes}
    assert {address[1:] for address in loaded if address[0] == "#"} <= targets


def test_every_picture_has_words(tmp_path):
    assert all(image["alt"] for image in report(make_run(tmp_path / "run")).images)


def rows_of(dev: str, count: int = 60) -> dict:
    """What a run keeps of its rows, of which only the dev rows matter here."""
    splits = {"train": (1600, "of train"), "validation": (count, dev)}
    return {"rows": {split: {"read": {"count": n, "sha256": text}} for split, (n, text) in splits.items()}}


def test_runs_on_other_dev_rows_are_said(cli, tmp_path):
    runs = [
        make_run(tmp_path / name, metrics=metrics)
        for name, metrics in (
            ("old", {}),
            ("one", rows_of("a")),
            ("same", rows_of("a")),
            ("fewer", rows_of("b", 50)),
            ("other", rows_of("c")),
        )
    ]
    lines = [
        "fewer: selected and scored on 50 dev rows that are not the 60 of one; their scores do not compare.",
        "other: selected and scored on 60 dev rows that are not the 60 of one; their scores do not compare.",
    ]
    code, out, err = cli("report", *runs, "--output", tmp_path / "report.html")
    assert code == 0 and err.splitlines() == lines and out.startswith("Written to")
    assert all(line in (tmp_path / "report.html").read_text() for line in lines)
    code, _, err = cli("report", *runs[:3], "--output", tmp_path / "report.html")
    assert code == 0 and err == "" and "do not compare" not in (tmp_path / "report.html").read_text()


def test_rows_and_the_steps_that_a_run_went_on_from_are_facts(tmp_path):
    runs = [
        make_run(tmp_path / "one", metrics=rows_of("a") | {"resumed": [4, 10]}),
        make_run(tmp_path / "other"),
    ]
    facts = report(*runs).rows("Where the runs come from")
    assert facts["rows"] == {"one": "train: 1,600, validation: 60", "other": "–"}
    assert facts["resumed after step"] == {"one": "4, 10", "other": "–"}


DAMAGE = {
    "metrics not JSON": ("metrics.json", "{\n", "metrics.json, line 2: not JSON"),
    "metrics not UTF-8": ("metrics.json", b"\xff\xfe", "metrics.json: cannot be read (not UTF-8)"),
    "metrics a list": ("metrics.json", "[]", "metrics.json: must hold a JSON object"),
    "metrics empty": ("metrics.json", "{}", "metrics.json: not what a run writes: task must be text"),
    "a number too long": ("metrics.json", "1" * 9999, "metrics.json"),
    "metrics too deep": ("metrics.json", "[" * 99999, "metrics.json"),
    "no history": ("history.jsonl", None, "history.jsonl: cannot be read (No such file or directory)"),
    "history empty": ("history.jsonl", "", "history.jsonl: has no log yet"),
    "history not JSON": ("history.jsonl", '{"step": 1, "loss": 1}\n{', "history.jsonl, line 2: not JSON"),
    "a row without step": ("history.jsonl", '{"loss": 1}', "history.jsonl, line 1: not a log of a run"),
    "a loss in words": ("history.jsonl", '{"step": 1, "loss": "low"}', "line 1: 'loss' must be a number"),
    "a loss too large": ("history.jsonl", f'{{"step": 1, "loss": 1{"0" * 400}}}', "line 1: 'loss' must be a number"),
    "no recipe": ("recipe.yaml", None, "recipe.yaml: cannot be read"),
    "recipe not YAML": ("recipe.yaml", "a: [", "recipe.yaml, line 1: not YAML"),
    "recipe a word": ("recipe.yaml", "word", "recipe.yaml: a recipe is a list"),
    "analysis not JSON": ("analysis/layers/layers.json", "{", "layers.json, line 1: not JSON"),
    "half an SVG": ("analysis/layers/figure.svg", "<svg><g>", "figure.svg: not a complete SVG image"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_one_line_and_nothing_is_written(cli, tmp_path, case):
    name, content, message = DAMAGE[case]
    run, output = make_run(tmp_path / "run"), tmp_path / "report.html"
    add_analysis(run, "layers", {"tokens": 1})
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = cli("report", make_run(tmp_path / "sound"), run, "--output", output)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("error: ") and message in err and str(run) in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "sound"]


BAD_METRICS = {
    "no score": ({"last": {"step": 12}}, "last has no accuracy"),
    "a score in words": ({"best": {"accuracy": "high"}}, "best has no accuracy"),
    "a model that is a number": ({"teacher": 3}, "teacher must hold scores, got 3"),
    "steps as a number": ({"steps": 12}, "steps must name the length of each phase"),
    "assisted without its name": ({"assisted": {"accuracy": 0.5}}, "assisted has no assisted_accuracy"),
    "seconds in words": ({"seconds": "many"}, "seconds must be a number, got 'many'"),
    "rows as a number": ({"rows": {"train": 160}}, "rows must name the rows of each split"),
    "rows without a count": ({"rows": {"train": {"read": {"count": "few"}}}}, "rows must name the rows of each split"),
    "resumed as a number": ({"resumed": 3}, "resumed must be a list of steps, got 3"),
}


@pytest.mark.parametrize("case", BAD_METRICS)
def test_metrics_that_no_run_writes(cli, tmp_path, case):
    changes, message = BAD_METRICS[case]
    run = make_run(tmp_path / "run", metrics=changes)
    code, _, err = cli("report", run, "--output", tmp_path / "report.html")
    assert code == 2 and message in err and str(run / "metrics.json") in err and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("make", "model"), [(make_run, "teacher"), (make_run, "last"), (make_teacher, "best"), (make_teacher, "last")]
)
def test_a_finished_run_without_a_score_that_it_must_have(tmp_path, make, model):
    path = make(tmp_path / "run") / "metrics.json"
    metrics = json.loads(path.read_text())
    del metrics[model]
    path.write_text(json.dumps(metrics))
    with pytest.raises(TrituneError, match=f"metrics.json: not what a run writes: the scores of {model} are missing"):
        read_run(path.parent, "run")


@pytest.mark.parametrize(
    "best", [{"value": 0.5}, {"value": 0.5, "metric": ["a"]}, {"value": "x", "metric": "accuracy"}]
)
def test_a_selection_of_another_run(tmp_path, best):
    run = unfinished(tmp_path / "run")
    (run / "best" / "selection.json").write_text(json.dumps(best))
    (run / "checkpoints" / "metrics.json").write_text(json.dumps({"task": "demo"}))
    with pytest.raises(TrituneError, match=r"selection\.json: not the selection of"):
        read_run(run, "run")


def test_an_unfinished_fine_tuning_of_no_known_task(tmp_path):
    teacher = make_teacher(tmp_path / "teacher")
    (teacher / "metrics.json").unlink()
    (teacher / "checkpoints").mkdir()
    (teacher / "checkpoints" / "metrics.json").write_text('{"task": "nope", "base_sha256": "b2"}')
    with pytest.raises(TrituneError, match=r"checkpoints/metrics\.json: there is no task 'nope'"):
        read_run(teacher, "teacher")


@pytest.mark.parametrize("schedule", ["[1]", "{a: 1}", "unheard-of"])
def test_a_schedule_that_is_none_shades_nothing(tmp_path, schedule):
    run = make_run(tmp_path / "run")
    (run / "recipe.yaml").write_text(f"schedule: {schedule}\n")
    assert read_run(run, "run").spans == []


def test_folders_that_cannot_be_reported(cli, tmp_path):
    def line(*folders):
        code, _, err = cli("report", *folders, "--output", tmp_path / "report.html")
        assert code == 2 and len(err.splitlines()) == 1 and not (tmp_path / "report.html").exists()
        return err

    run, teacher = make_run(tmp_path / "run"), make_teacher(tmp_path / "teacher")
    (tmp_path / "empty").mkdir()
    assert "no such folder" in line(tmp_path / "nowhere")
    assert "this is a file" in line(run / "metrics.json")
    assert "empty: not a run folder: it has no metrics.json" in line(run, tmp_path / "empty")
    assert "run: given twice" in line(run, f"{run}/.")
    assert "teacher: a teacher's fine-tuning" in line(run, teacher)
    assert "teacher: a teacher's fine-tuning" in line(teacher, run)
    other = make_run(tmp_path / "other", metrics={"task": "sst2"})
    assert "its task is sst2" in line(run, other)
    (tmp_path / "empty" / "demo.json").write_text('{"seed": 42}')
    assert "the demo was not finished" in line(tmp_path / "empty")
    assert cli("report", "--output", tmp_path / "report.html")[0] == 2


def test_only_reports_are_replaced(cli, tmp_path):
    run, output = make_run(tmp_path / "run"), tmp_path / "new" / "report.html"
    code, out, _ = cli("report", run, "--output", output)
    assert code == 0 and f"Written to {output}: 1 run, 0 analyses" in out
    write_history(run, [{"step": 77, "loss": 1.0}])
    assert cli("report", run, "--output", output)[0] == 0 and "at step 77" in output.read_text()
    output.write_text("my own page")
    code, _, err = cli("report", run, "--output", output)
    assert code == 2 and "exists and is not a report; give --overwrite" in err and output.read_text() == "my own page"
    assert cli("report", run, "--output", output, "--overwrite")[0] == 0 and "at step 77" in output.read_text()
    assert "this is a folder" in cli("report", run, "--output", tmp_path)[2]
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


def test_a_disk_that_refuses_leaves_the_old_report(cli, tmp_path, monkeypatch):
    run, output = make_run(tmp_path / "run"), tmp_path / "report.html"
    assert cli("report", run, "--output", output)[0] == 0
    before = output.read_text()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tritune.checkpoints.files.os.replace", full)
    code, _, err = cli("report", run, "--output", output)
    assert code == 2 and "cannot be written (No space left on device)" in err and output.read_text() == before


def test_the_report_of_a_real_run(cli, tmp_path):
    workspace = make_workspace(tmp_path)
    steps = ("--set", "max_steps=8", "--set", "eval_steps=4", "--set", "logging_steps=1")
    assert cli(*train_arguments(workspace, tmp_path / "run", *steps))[0] == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["versions"] == library_versions()
    assert cli("report", tmp_path / "run", "--output", tmp_path / "report.html")[0] == 0
    shown = Page((tmp_path / "report.html").read_text())
    costs = shown.rows("Scores and costs of the runs")["run"]
    for model in ("best", "last"):
        assert costs[model] == f"{100 * metrics[model]['accuracy']:.1f} step {metrics[model]['step']}"
    assert len(shown.images) == 6 and re.search(r"run scores [\d.]+ after 8 steps, its teacher", shown.text)
    assert cli("report", workspace / "teacher", "--output", tmp_path / "teacher.html")[0] == 0
