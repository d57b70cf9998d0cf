"""How the command line shows progress: a live line in a terminal, plain lines in a file, JSON lines, or nothing.

The options `--quiet` and `--log-json` of every command that takes long; see `tritune.progress`.
"""

import functools
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import Interrupted, TrituneError
from ..progress import Lines, Listener, Stage, outcome, plain, prospect, told_to

_SECONDS_BETWEEN_LINES = 1
_PACKAGE = Path(__file__).parents[1]

Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing to stderr but warnings and errors.")]
LogJson = Annotated[
    bool,
    typer.Option(
        "--log-json", help="Print everything that goes to stderr as JSON lines: stages, steps, scores and messages."
    ),
]


class Terminal(Listener):
    """One live line for the stage that is under way; when it ends, what came out stays in its place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.console = Console(stderr=True)
        self.live: Progress | None = None
        self.stage: Stage | None = None

    def begun(self, stage: Stage) -> None:
        """Begin the line; there is one at a time."""
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        if self.stage is not None:
            return
        text = functools.partial(TextColumn, markup=False)
        columns = (
            text("{task.description}"),
            BarColumn(bar_width=20),
            text("{task.fields[steps]}"),
            text("{task.fields[tail]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        )
        self.stage = stage
        self.live = Progress(*columns, console=self.console, transient=True, refresh_per_second=4, expand=True)
        self.live.add_task(stage.title, **_fields(stage))
        self.live.start()

    def advanced(self, stage: Stage, is_news: bool) -> None:
        """Renew the line."""
        if self.live is not None and stage is self.stage:
            self.live.update(self.live.task_ids[0], **_fields(stage))

    def ended(self, stage: Stage, whole: bool) -> None:
        """Leave what came out."""
        if stage is self.stage:
            self.close()
            self.said(outcome(stage, whole))

    def said(self, message: str) -> None:
        """A line above the live one."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the live line away."""
        if self.live is not None:
            self.live.stop()
        self.live = self.stage = None


def _fields(stage: Stage) -> dict[str, Any]:
    amount = f"{stage.done:,}" + (f"/{stage.total:,}" if stage.total is not None else "")
    steps = "" if stage.total is None and not stage.done else f"{amount} {stage.unit}"
    return {"completed": stage.done, "total": stage.total, "steps": steps, "tail": prospect(stage)}


class JsonLines(Listener):
    """Every event as a JSON object on a line of its own, on stderr; steps at most once a second."""

    def begun(self, stage: Stage) -> None:
        """See `Listener`."""
        self._stage("begin", stage)

    def advanced(self, stage: Stage, is_news: bool) -> None:
        """See `Listener`."""
        if is_news or stage.seconds - stage.shown_at >= _SECONDS_BETWEEN_LINES:
            stage.shown_at = stage.seconds
            self._stage("step", stage)

    def ended(self, stage: Stage, whole: bool) -> None:
        """See `Listener`."""
        self._stage("end" if whole else "stop", stage)

    def said(self, message: str) -> None:
        """See `Listener`."""
        self.tell("message", message=message)

    def warned(self, message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        """In place of `warnings.showwarning`."""
        self.tell("warning", message=" ".join(str(message).split()))

    def _stage(self, event: str, stage: Stage) -> None:
        self.tell(
            event,
            stage=stage.title,
            step=stage.done,
            total=stage.total,
            unit=stage.unit,
            seconds=round(stage.seconds, 3),
            remaining=None if stage.remaining is None else round(stage.remaining, 3),
            scores={name: plain(value) for name, value in stage.scores.items()},
        )

    def tell(self, event: str, **values: Any) -> None:
        """Write a line, in one piece."""
        sys.stderr.write(json.dumps({"event": event, **values}, ensure_ascii=False, allow_nan=False) + "\n")
        sys.stderr.flush()


@contextmanager
def _json_lines() -> Iterator[None]:
    """Everything on stderr as JSON, warnings and errors too."""
    lines = JsonLines()
    with told_to(lines), warnings.catch_warnings():
        warnings.showwarning = lines.warned
        try:
            yield
        except TrituneError as error:
            lines.tell("error", message=" ".join(str(error).split()))
            raise typer.Exit(exit_code(error)) from None


@contextmanager
def _shown(quiet: bool, log_json: bool) -> Iterator[None]:
    """Show the block's progress as the options say, or else as the stream suits."""
    if quiet and log_json:
        raise TrituneError("--quiet and --log-json exclude each other; give one of them")
    warnings.formatwarning, before = partial(_own_warning, warnings.formatwarning), warnings.formatwarning
    try:
        with _listening(quiet, log_json):
            yield
    finally:
        warnings.formatwarning = before


def _own_warning(
    usual: Callable[..., str], message: Warning | str, category: type[Warning], file: str, *more: Any
) -> str:
    """A warning of this package in one line, without the place in its source that nobody asked for."""
    if Path(file).is_relative_to(_PACKAGE):
        return f"warning: {' '.join(str(message).split())}\n"
    return usual(message, category, file, *more)


@contextmanager
def _listening(quiet: bool, log_json: bool) -> Iterator[None]:
    if log_json:
        with _json_lines():
            yield
    elif quiet:
        with told_to(Listener()):
            yield
    elif not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        with told_to(Lines()):
            yield
    else:
        terminal = Terminal()
        try:
            with told_to(terminal):
                yield
        finally:
            terminal.close()


def exit_code(error: TrituneError) -> int:
    """130 where somebody asked the work to stop, else 2."""
    return 130 if isinstance(error, Interrupted) else 2


def with_progress(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options `--quiet` and `--log-json`."""

    @functools.wraps(command)
    def run(*, quiet: bool = False, log_json: bool = False, **options: object) -> None:
        with _shown(quiet, log_json):
            command(**options)

    added = {"quiet": Quiet, "log_json": LogJson}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in added.items()
    ]
    signature = inspect.Signature([*inspect.signature(command).parameters.values(), *parameters])
    run.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it, and so does typer
    run.__annotations__ = {**command.__annotations__, **added}
    return run
