"""What long work tells while it runs: in a file, in a terminal, as JSON, not at all, and from many threads."""

import io
import json
import os
import pty
import re
import sys
import threading
import warnings
from contextlib import contextmanager, redirect_stderr
from itertools import chain

import pytest
from rich.console import Console

import tritune
from families import FAMILIES, text_batch
from processes import Job
from test_compress import write
from tritune import progress
from tritune.cli import live, main, show
from tritune.compression import planning, scoring
from tritune.errors import TrituneError
from tritune.progress import Lines, Listener, duration, plain, say, stage, told_to, tracked
from tritune.tasks.registry import own_task
from workspace import make_workspace, train_arguments

TIME = re.compile(r"\b\d+ min \d+ s\b|\b\d+(\.\d)? s\b|\d\d:\d\d:\d\d")


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.setattr(progress, "clock", lambda seconds: f"in {seconds:.0f}")
    return clock


class Kept(Listener):
    """Remembers everything."""

    def __init__(self):
        self.events = []

    def begun(self, stage):
        self.events.append(("begun", stage.title))

    def advanced(self, stage, is_news):
        self.events.append((stage.done, is_news))

    def ended(self, stage, whole):
        self.events.append(("ended", whole))

    def said(self, message):
        self.events.append(message)


@contextmanager
def lines_of():
    with redirect_stderr(io.StringIO()) as file, told_to(Lines()):
        yield lambda: file.getvalue().splitlines()


def run_stage(clock, steps, seconds_a_step, **options):
    with stage("fit", steps, **options) as shown:
        for step in range(shown.before, steps):
            clock.now += seconds_a_step
            shown.advance(loss=1 / (step + 1))


def test_a_log_has_a_line_at_the_begin_at_times_and_at_the_end(clock):
    with lines_of() as said:
        run_stage(clock, 100, 1)
    assert said() == [
        "fit: 100 steps",
        "fit: 11 of 100 steps, ends about in 89; loss 0.09091",
        "fit: 42 of 100 steps, ends about in 58; loss 0.02381",
        "fit: 73 of 100 steps, ends about in 27; loss 0.0137",
        "fit: 100 steps in 1 min 40 s; loss 0.01",
    ]


@pytest.mark.parametrize(("steps", "seconds", "most"), [(5, 1, 2), (1000, 0.01, 2), (3600, 1, 12), (36000, 1, 63)])
def test_a_log_has_few_lines_however_long_it_takes(clock, steps, seconds, most):
    with lines_of() as said:
        run_stage(clock, steps, seconds)
    assert 2 <= len(said()) <= most


def test_a_stage_that_goes_on_reckons_with_its_own_pace(clock):
    with lines_of() as said:
        run_stage(clock, 100, 11, before=98)
    assert said() == [
        "fit: 100 steps, goes on after 98",
        "fit: 99 of 100 steps, ends about in 11; loss 0.0101",
        "fit: 100 steps in 22 s; loss 0.01",
    ]


def test_stages_of_unknown_length_and_stages_that_fail(clock):
    with lines_of() as said:
        with stage("read") as shown:
            shown.advance(3)
        with pytest.raises(KeyError), stage("pack", 4, "files") as shown:
            shown.advance()
            raise KeyError
    assert said() == [
        "read: begins",
        "read: 3 steps in 0.0 s",
        "pack: 4 files",
        "pack: stopped after 1 of 4 files, 0.0 s",
    ]


def test_short_work_is_not_told(clock):
    with lines_of() as said:
        for seconds in (0.1, 3):
            for _ in tracked(range(4), "read", 4, "rows"):
                clock.now += seconds
        for _ in tracked(range(4), "write", 4, "rows"):
            clock.now += 6
            break
    assert said() == ["read: 2 of 4 rows, ends about in 6", "read: 4 rows in 12 s"]


def test_nothing_is_nested():
    kept = Kept()
    with told_to(kept), stage("whole", 2) as shown:
        with stage("part", 5) as inner:
            inner.advance(5, loss=1.0)
        assert list(tracked("ab", "letters", 2, delay=0)) == ["a", "b"]
        say("half")
        shown.advance(score=1)
        shown.note(score=1)
        shown.note(score=2)
    assert kept.events == [("begun", "whole"), "half", (1, True), (1, False), (1, True), ("ended", True)]


def test_a_loop_that_is_left_silences_nothing():
    kept = Kept()
    with told_to(kept):
        left = tracked(range(3), "left", 3, delay=0)
        next(left)
        with stage("next", 1):
            pass
        left.close()
    assert kept.events == [("begun", "left"), ("begun", "next"), ("ended", True), ("ended", False)]


def test_of_many_processes_the_first_one_speaks(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with lines_of() as said:
        run_stage(Clock(), 3, 0)
        say("nothing")
    assert said() == []


def test_eight_threads_do_not_mix():
    kept, errors, start = [Kept() for _ in range(8)], io.StringIO(), threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        with told_to(kept[number]) if number % 2 else told_to(Lines()):
            for turn in range(20):
                with stage(f"{number} {turn}", 3) as shown:
                    for _ in range(3):
                        shown.advance()

    with redirect_stderr(errors):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in range(1, 8, 2):
        one = [
            [("begun", f"{number} {turn}"), (1, False), (2, False), (3, False), ("ended", True)] for turn in range(20)
        ]
        assert kept[number].events == [*chain(*one)]
    lines = errors.getvalue().splitlines()
    expected = [[f"{n} {turn}: 3 steps", f"{n} {turn}: 3 steps in"] for n in range(0, 8, 2) for turn in range(20)]
    assert sorted(line.partition(" in ")[0] + " in" * (" in " in line) for line in lines) == sorted(chain(*expected))


def test_a_user_gets_lines_from_python_or_none(capsys):
    teacher = FAMILIES["bert"].build(seed=1).eval()
    batches = [text_batch()]
    for listener in (Lines(), Listener()):
        student = tritune.prepare(FAMILIES["bert"].build(seed=1))
        with told_to(listener):
            tritune.reconstruct(student, teacher, batches, steps=2)
    said = capsys.readouterr()
    begin, end = said.err.splitlines()
    assert said.out == "" and re.fullmatch(r"reconstruction: \d+ steps", begin)
    assert end.startswith(f"{begin} in ") and "error" in end


def test_scores_are_json():
    assert [plain(value) for value in (None, "a", True, 3, 0.5, float("nan"), float("inf"))] == [
        None,
        "a",
        True,
        3,
        0.5,
        None,
        None,
    ]
    assert (duration(59.6), duration(3599), duration(3600)) == ("1 min 0 s", "59 min 59 s", "1 h 0 min")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


SHORT = ("--set", "reconstruct_steps=3", "--set", "bf16=false")


def arguments(workspace, output, *more):
    return train_arguments(workspace, output, *SHORT, *more, recipe="tritune")


def test_a_training_in_a_file(workspace, tmp_path, cli):
    code, _, err = cli(*arguments(workspace, tmp_path / "run", "--set", "max_steps=4"))
    assert code == 0 and "\r" not in err and "\x1b" not in err
    plan, *lines = [TIME.sub("_", line) for line in err.splitlines()]
    assert plan.startswith("tritune, seed 42, float32: ")
    shown = [line for line in lines if ": error " not in line]
    assert [line.partition(";")[0] for line in shown] == [
        "reconstruction: 15 steps",
        "reconstruction: 15 steps in _",
        "training: 4 steps",
        "training: 4 steps in _",
    ]
    assert "accuracy" in shown[-1] and len(lines) - len(shown) == 5


def events_of(err: str) -> list[dict]:
    events = [json.loads(line) for line in err.splitlines()]
    stages = [event["stage"] for event in events if event["event"] == "begin"]
    for name in stages:
        own = [event for event in events if event.get("stage") == name]
        kinds = [event["event"] for event in own]
        assert kinds[0] == "begin" and kinds[-1] == "end" and set(kinds[1:-1]) <= {"step"}
        steps = [event["step"] for event in own]
        assert steps == sorted(steps)
        assert own[-1]["total"] is None or (steps[-1] == own[-1]["total"] and own[-1]["remaining"] == 0)
        seconds = [event["seconds"] for event in own]
        assert seconds == sorted(seconds)
    return events


def test_a_training_as_json(workspace, tmp_path, cli):
    code, out, err = cli(*arguments(workspace, tmp_path / "run", "--set", "max_steps=4", "--log-json", "--json"))
    assert code == 0 and json.loads(out)["task"] == "demo"
    events = events_of(err)
    assert [event["stage"] for event in events if event["event"] == "end"] == ["reconstruction", "training"]
    assert "accuracy" in events[-1]["scores"] and events[0]["event"] == "message"


def test_errors_and_warnings_as_json(workspace, tmp_path, cli):
    code, out, err = cli(*arguments(workspace, tmp_path / "run", "--set", "weight_bits=9", "--log-json"))
    (event,) = map(json.loads, err.splitlines())
    assert code == 2 and out == "" and event["event"] == "error" and "weight_bits" in event["message"]
    code, _, err = cli(*arguments(workspace, tmp_path / "run", "--log-json", "--quiet"))
    assert code == 2 and "--quiet and --log-json exclude each other" in err
    with redirect_stderr(io.StringIO()) as file, live._shown(quiet=False, log_json=True):
        live.warnings.warn("slow\nhere", stacklevel=1)
    assert json.loads(file.getvalue()) == {"event": "warning", "message": "slow here"}


def test_nothing_but_the_result_with_quiet(workspace, tmp_path, cli):
    code, out, err = cli(*arguments(workspace, tmp_path / "run", "--quiet"))
    assert code == 0 and err == "" and "best" in out
    code, out, err = cli(
        "evaluate", tmp_path / "run", "--task", "demo", "--data", workspace / "data", "--quiet", "--json"
    )
    assert code == 0 and err == "" and "accuracy" in json.loads(out)
    code, _, err = cli("evaluate", tmp_path / "nowhere", "--task", "demo", "--quiet")
    assert code == 2 and err.startswith("error: ")


def test_a_compression_as_json_and_silent(workspace, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(planning, "_FEWEST_STEPS", 4)
    monkeypatch.setattr(scoring, "RESAMPLES", 20)
    data = write(tmp_path / "tickets.csv")
    line = ("compress", workspace / "base", "--data", data, "--output", tmp_path / "small", "--minutes", "0.001")
    code, _, err = cli(*line, "--log-json")
    assert code == 0
    events = events_of(err)
    assert [event["stage"] for event in events if event["event"] == "end"] == [
        "measure a few steps",
        "fine-tuning",
        "reconstruction",
    ]
    assert any("bad 27, good 53" in event.get("message", "") for event in events)
    code, out, err = cli(*line, "--quiet")
    assert code == 0 and err == "" and "on the test part" in out


def _on_a_terminal(name: str, words: list[str]) -> None:
    os.dup2(os.open(name, os.O_RDWR), 2)
    os.environ |= {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    sys.argv = ["tritune", *words]
    main.main()


def test_a_training_in_a_terminal(workspace, tmp_path):
    ours, theirs = pty.openpty()
    job = Job(_on_a_terminal, os.ttyname(theirs), arguments(workspace, tmp_path / "run"))
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                shown.append(os.read(ours, 4096))
            except OSError:  # nobody has the other end any more
                return

    reader = threading.Thread(target=read)
    reader.start()
    done = job.wait()
    os.close(theirs)
    reader.join()
    text = b"".join(shown).decode()
    assert done.returncode == 0, text
    assert "\x1b[2K" in text and "0/15 steps" in text
    # What stays: each line was written once, and the live one was erased before.
    left = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rpartition("\r")[2] for line in text.split("\r\n")]
    left = [TIME.sub("_", line).partition(";")[0].strip() for line in left if " error " not in line or ";" in line]
    assert left.count("reconstruction: 15 steps in _") == 1 and left[0].startswith("tritune, seed 42")


def test_a_live_line_is_one_line(monkeypatch):
    terminal, file = live.Terminal(), io.StringIO()
    terminal.console = Console(file=file, force_terminal=True, width=80, color_system=None)
    with told_to(terminal), stage("fit [b]", 10) as shown:
        shown.advance(3, loss=0.25, site="projection", name="[/b] " + 60 * "x")
        for _ in tracked(range(2), "other", 2, delay=0):
            terminal.live.refresh()
        say("by the way")
    text = file.getvalue()
    frames = [frame for frame in re.split(r"\r|\n", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)) if frame.strip()]
    assert all(len(frame) <= 80 for frame in frames if "in 0.0 s" not in frame) and "other" not in text
    assert any("3/10 steps" in frame and "ends about" in frame for frame in frames)
    assert "by the way" in frames and frames[-1].startswith("fit [b]: 3 steps in 0.0 s; loss 0.25, site projection")
    with pytest.raises(TrituneError), live._shown(quiet=True, log_json=True):
        pass


def test_a_stage_without_steps_stops_without_steps(capsys):
    with pytest.raises(TrituneError), told_to(Lines()), stage("look"):
        raise TrituneError("no")
    assert capsys.readouterr().err.splitlines() == ["look: begins", "look: stopped after 0.0 s"]


def test_what_was_read_is_one_line_whatever_labels_hold(tmp_path, capsys):
    (tmp_path / "a.csv").write_text('text,label\n"x y","two\nlines"\nz w,\x1b[31mred\n')
    show.show_task(own_task("text-classification", {"train": tmp_path / "a.csv"}, labels=("two\nlines", "\x1b[31mred")))
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 labels (two lines, ?[31mred)" in line and line.isprintable()


def test_own_warnings_are_one_line(tmp_path):
    """Others tell where in their source they come from, which a user needs to silence them."""
    before = warnings.formatwarning
    with live._shown(quiet=True, log_json=False):
        own = warnings.formatwarning("two\nlines", UserWarning, live.__file__, 3)
        other = warnings.formatwarning("odd", UserWarning, str(tmp_path / "other.py"), 3)
    assert own == "warning: two lines\n" and other.startswith(f"{tmp_path}/other.py:3: UserWarning: odd")
    assert warnings.formatwarning is before
