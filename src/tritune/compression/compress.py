"""The whole way from a file and a model to a small model that ships: each stage resumable, each announced."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..analysis.plots import save
from ..checkpoints.files import replace_folder
from ..deploy.export.write import write_export
from ..deploy.pack import pack_into
from ..errors import Interrupted, TrituneError
from ..progress import clock, stage
from ..progress import say as tell
from ..tasks.bars import without_bars
from ..tasks.data.splitting import TEST
from ..tasks.heads.classifier import Classifier
from ..tasks.heads.long_texts import WINDOW
from ..tasks.models import load_model
from ..tasks.registry import Task
from ..tasks.table import write_table
from ..training.finetune import finetune
from ..training.job import open_job
from ..training.run_folder import METRICS, check_free, claimed, read_json, remove, write_json
from ..training.versions import library_versions
from .answers import ANSWERS, answers, per_class
from .ladder import Ladder, Tried, chosen
from .opened import Opened, opened_request
from .planning import Plan, planned
from .report import PLAN, REMARKS, write_compression_report
from .request import Request, check
from .result import MODEL, Compressed, figure_of
from .scoring import compared, scored, verify

REPORT, PICTURE = "report.html", "sizes.png"
TEACHER, STUDENTS, DATA, EXPORT = "teacher", "students", "data", "export"
_FOLDERS = (MODEL, TEACHER, STUDENTS, DATA, EXPORT)
_FILES = (PLAN, REMARKS, REPORT, PICTURE, ANSWERS, METRICS)
_NO_REMARK = {"line": "", "kept": "", "reason": ""}


@without_bars()
def compress(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    group: str | None = None,
    time: str | None = None,
    minutes: float | None = None,
    max_loss: float | None = None,
    max_bad_rows: int | None = None,
    seed: int = 42,
    balance: str = "none",
    long: str = "truncate",
    export: str | None = None,
    overwrite: bool = False,
    task: str | None = None,
    eval: str | Path | None = None,
    say: Callable[[str], None] = tell,
) -> Compressed:
    """Make a small model of one file: split it, fine-tune a teacher, distil, pack and score.

        small = tritune.compress("bert-base-uncased", "tickets.csv", "small/", minutes=30)
        small.predict(["where is my parcel?"])

    A call with the same arguments goes on where an earlier one stopped.

    Args:
        model: folder or hub name of a pretrained model, or of one that was fine-tuned for such data.
        data: a file, a folder of images with one folder a class, or the name of a data set on the hub.
        output: the folder of everything that is made.
        text_columns, label_column: of the inputs and the labels by name; None finds them out and says so.
        group: a column whose equal values stay on one side of the split.
        time: a column by which the newest rows are the test part.
        minutes: that everything may take, as far as a plan can tell.
        max_loss: points that the student may lose; beyond it larger students are tried.
        max_bad_rows: rows that may be set aside; None for 1 % and at least one.
        seed: of the split, the training and the intervals.
        long: what is kept of texts that are too long: `truncate`, their beginning, `head-tail`, both ends, or
            `window`, all, in windows that overlap.
        balance: `weights` or `sampling` lets rare classes count as much as frequent ones in the fine-tuning.
        export: `onnx` or `dense`, to write the student in that format, too.
        overwrite: replace another compression in `output`.
        task: the kind of task, such as `token-classification`; None goes by the data.
        eval: a table of pairs of texts with scores, by which a sentence encoder is scored.
        say: told what happens, a line each; by default whoever hears of progress, see `tritune.progress`.

    Raises:
        Interrupted: a signal was received; the same call goes on.
        TrituneError: an argument, the file or the model cannot be used; nothing is written then.
    """
    columns = None if text_columns is None else tuple(text_columns)
    pairs = None if eval is None else Path(eval)
    request = Request(
        str(model), data, columns, label_column, group, time, minutes, max_bad_rows, seed, balance, long, task, pairs
    )
    check(max_loss, export)
    opened = opened_request(request, say)
    return finished(opened, Path(output), max_loss, export, overwrite, say)


def dry_run(opened: Opened, say: Callable[[str], None]) -> Plan:
    """Measure and show the plan; nothing is written that stays."""
    with tempfile.TemporaryDirectory() as scratch:
        opened.write(Path(scratch))
        plan = _planned(opened, Path(scratch))
    _show_plan(plan, opened.request.minutes, say)
    return plan


def _planned(opened: Opened, folder: Path) -> Plan:
    request = opened.request
    rows = opened.rows | opened.table.evaluated
    of_rows = opened.trains, rows, request.minutes, request.seed, opened.table.longest, request.long_texts
    with stage("measure a few steps"):
        return planned(request.model, opened.task(folder), *of_rows)


def _show_plan(plan: Plan, minutes: float | None, say: Callable[[str], None]) -> None:
    done = "read in windows" if plan.long_texts == WINDOW else "cut"
    cut = f"; {100 * plan.cut:.1f} % of the texts are {done}" if plan.cut else ""
    if plan.max_length is not None:
        say(f"plan: texts of up to {plan.max_length} tokens{cut}")
    stages = {name: f"{seconds:.0f} s" for name, seconds in plan.stages.items()}
    if plan.teacher_steps:
        say(
            f"plan: fine-tune {plan.teacher_steps} steps of {plan.batch_size} rows, about {stages['teacher']} "
            f"({plan.costs.teacher_step:.2f} s a step, measured)"
        )
    say(
        f"plan: distil {plan.student_steps} steps of every part, about {stages['student']} "
        f"({plan.costs.student_step:.2f} s a step, measured)"
    )
    say(
        f"plan: score both on {plan.rows[TEST]} test rows; all in all {plan.seconds:.0f} s, until {clock(plan.seconds)}"
    )
    if minutes is not None and plan.seconds > 60 * minutes:
        say(f"plan: longer than --minutes {minutes:g}, but fewer steps would teach nothing")


def finished(
    opened: Opened,
    output: Path,
    max_loss: float | None,
    export: str | None,
    overwrite: bool,
    say: Callable[[str], None],
) -> Compressed:
    """Do everything, from where an earlier call with the same request stopped.

    Raises:
        CannotWriteError: another command is writing into the folder.
        TrituneError: the folder holds something else.
    """
    with _own(output, opened.request):
        return _finished(opened, output, max_loss, export, overwrite, say)


@contextmanager
def _own(output: Path, request: Request) -> Iterator[None]:
    """Nobody else writes into the folder meanwhile, which is none of the inputs."""
    # With the mark of a run to resume, so that its advice is none of another command.
    inputs = [one for one in (request.model, request.data, request.eval) if one is not None]
    check_free(output, False, resume=True, inputs=inputs, mark=PLAN)
    data = Path(request.data)
    if data.is_dir() and output.resolve().is_relative_to(data.resolve()):
        raise TrituneError(
            f"{output}: lies in the folder of the data, where it would be taken for data; choose another"
        )
    try:
        with claimed(output, resume=True):
            yield
    finally:
        with suppress(OSError):  # it holds something, as it should
            output.rmdir()


def _finished(
    opened: Opened,
    output: Path,
    max_loss: float | None,
    export: str | None,
    overwrite: bool,
    say: Callable[[str], None],
) -> Compressed:
    began = time.time()
    plan = _begun(opened, output, overwrite, say)
    known = read_json(output / METRICS)
    if known and known["max_loss"] == max_loss and known.get("export", {}).get("format") == export:
        say(f"{output}: finished already")
        return Compressed(output, known, figure_of(known, output))
    ends = None if opened.request.minutes is None else began + 60 * opened.request.minutes
    task = opened.task(output / DATA)
    try:
        teacher = _teacher(opened, task, plan, output, say)
        tried = Ladder(teacher, task, plan, output / STUDENTS, opened.request.seed, say).climb(max_loss, ends)
    except Interrupted as error:
        same = f"the same command{' without --overwrite' * overwrite} goes on from there"
        raise Interrupted(f"{str(error).partition(';')[0]}; {same}") from None
    ships = chosen(tried, max_loss)
    if max_loss is not None and ships.loss > max_loss:
        say(f"no student is within {max_loss:g} points of its teacher on dev; {ships.name!r} is closest and ships")
    say(f"packing {ships.name!r}, scoring on the test part")
    # They tell of another student as soon as this one is packed.
    _remove(output, METRICS, ANSWERS, EXPORT)
    pack_into(ships.folder, output / MODEL)
    metrics = _scored(opened, plan, teacher, ships, output)
    if export is not None:
        metrics["export"] = _exported(ships.folder, task, output / EXPORT, export, plan.max_length)
    metrics |= {"tried": [_entry(one, one is ships) for one in tried], "max_loss": max_loss}
    metrics["seconds"] = round(time.time() - began, 1)
    figure = figure_of(metrics, output)
    save(figure, output / PICTURE)
    write_compression_report(output, output / REPORT, overwrite=True, metrics=metrics)
    write_json(output / METRICS, metrics)
    return Compressed(output, metrics, figure)


def _begun(opened: Opened, output: Path, overwrite: bool, say: Callable[[str], None]) -> Plan:
    """The plan, made now or by an earlier call; the parts of the file are then in the output folder."""
    request, known = opened.request, read_json(output / PLAN)
    if overwrite or not known:
        known = {"request": request.record(), "plan": dry_run(opened, say).as_dict()}
        _remove(output, *_FOLDERS, *_FILES)
    elif other := [key for key, value in request.record().items() if known["request"].get(key) != value]:
        raise TrituneError(
            f"{output}: holds a compression with another {' and '.join(other)}; give --overwrite or another folder"
        )
    else:
        say(f"{output}: goes on with the plan that was made at first")
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / PLAN, known)
    opened.write(output / DATA)
    write_table(output / REMARKS, [asdict(remark) for remark in opened.table.remarks] or [_NO_REMARK])
    return Plan.of(known["plan"])


def _remove(output: Path, *names: str) -> None:
    """What an earlier call made."""
    for name in names:
        remove(output / name)
        (output / name).unlink(missing_ok=True)


def _teacher(opened: Opened, task: Task, plan: Plan, output: Path, say: Callable[[str], None]) -> str | Path:
    if not opened.trains:
        return opened.request.model
    folder = output / TEACHER
    if not (folder / METRICS).is_file():
        say(f"teacher: {plan.teacher_steps} steps, until about {clock(plan.stages['teacher'])}")
        request = opened.request
        recipe = plan.teacher_recipe(request.seed, request.balance)
        job = open_job(request.model, task, None, recipe, folder, resume=True)
        finetune(job, resume=True)
    metrics = read_json(folder / METRICS)
    say(f"teacher: {100 * metrics['best'][task.metric]:.1f} on dev ({task.metric.replace('_', ' ')})")
    return folder


def _scored(opened: Opened, plan: Plan, teacher: str | Path, ships: Tried, output: Path) -> dict[str, Any]:
    """What `metrics.json` holds of both models."""
    task = opened.task(output / DATA, test=True)
    theirs = scored(teacher, task, plan.lengths)
    own = scored(output / MODEL, task, plan.lengths, packed=True)
    verified = verify(output / MODEL, ships.folder, task, own.data)
    table, rows = opened.table, []
    if isinstance(task.head, Classifier) and own.logits.ndim == 2:  # not one answer a word
        inputs = [(example.line, table.legible(example)) for example in opened.parts.rows[TEST]]
        read = (task.head.scored(one.logits, theirs.logits, task, one.data) for one in (theirs, own))
        (of_teacher, labels, _), (of_student, _, _) = read
        rows = answers(of_teacher, of_student, labels, task, inputs)
        write_table(output / ANSWERS, rows)
    return {
        "model": opened.request.model,
        "data": table.reading.file,
        "task": task.name,
        "metric": task.metric,
        **table.facts(),
        "file": {"rows": len(table.examples), "encoding": table.reading.encoding, "delimiter": table.reading.delimiter},
        "notes": table.notes,
        "set_aside": sum(not remark.kept for remark in table.remarks),
        "conflicts": sum(remark.kept for remark in table.remarks),
        "rows": opened.rows,
        "seed": opened.request.seed,
        "long_texts": plan.long_texts,
        "plan": plan.as_dict(),
        **compared(theirs, own, task, opened.request.seed),
        "classes": per_class(rows, task.labels, task.multi_label) if rows and task.labels else [],
        **_on_lines(table.lines(output / DATA), plan, teacher, output / MODEL),
        "verified_rows": verified,
        "versions": library_versions(),
    }


def _on_lines(task: Task | None, plan: Plan, teacher: str | Path, packed: Path) -> dict[str, Any]:
    """How close the models are on the data's own rows, where they are scored on others."""
    if task is None:
        return {}
    own, theirs = scored(packed, task, plan.lengths, packed=True), scored(teacher, task, plan.lengths)
    return {"lines": task.head.closeness(own.logits, theirs.logits, task, own.data)}


def _exported(student: Path, task: Task, output: Path, format: str, max_length: int | None) -> dict[str, Any]:
    task = task.for_model(student)
    model = load_model(student, task)
    processor = task.head.load_processor(student, model, max_length)
    with replace_folder(output) as folder:
        written = write_export(model, task.head, processor, folder, format, max_length=max_length)
        size_bytes = written.stat().st_size
    return {"format": format, "size_bytes": size_bytes}


def _entry(one: Tried, ships: bool) -> dict[str, Any]:
    return asdict(one) | {"folder": f"{STUDENTS}/{one.folder.name}", "ships": ships}
