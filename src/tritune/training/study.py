"""An Optuna study that many processes work on together, each point once, even if some of them are killed.

Optuna's own grid occasionally gives a point to two processes, and a study does not know which of its running trials
have been abandoned. So the points are numbered here: a trial carries the number of its point, and a point is done, or
in progress, if it has a trial that counts. A trial counts unless it failed without a reason, as happens if its process
was killed or interrupted. If two processes start the same point at the same moment, the older trial counts.
"""

import platform
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from ..errors import TrituneError, first_line, shown
from .run_folder import LOCK

POINT, WORKER, REASON = "point", "worker", "reason"
DATABASE = "study.db"

# How often a process signals that it is alive, and when others assume that it is dead.
_HEARTBEAT_SECONDS, _GRACE_SECONDS = 60, 300
# The longest time from the start of a trial to the note of its worker.
_UNCLAIMED_SECONDS = 600


class Taken(Exception):
    """Another process already has the point."""


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Open the storage of a study.

    Args:
        url: a database URL as for SQLAlchemy (`postgresql://…`, `mysql://…`, `sqlite:///…`), `redis://…`, or the path
            of a journal `*.log`, which may be in a network folder; None is an SQLite file in `folder`.
        folder: of the sweep; must exist.

    Raises:
        TrituneError: it cannot be opened.
    """
    own = f"sqlite:///{folder / DATABASE}"
    url = url or own
    try:
        if url == own:
            (
                folder / DATABASE
            ).touch()  # with the modes of the umask; SQLite itself creates files that no group may write
        if url.endswith(".log") and "://" not in url:
            return JournalStorage(JournalFileBackend(url))
        if url.startswith("redis://"):
            return JournalStorage(JournalRedisBackend(url))
        # SQLite lets one process write at a time; the others wait.
        patience = {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else None
        alone = FileLock(folder / LOCK) if patience else nullcontext()
        with alone, warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(
                url, engine_kwargs=patience, heartbeat_interval=_HEARTBEAT_SECONDS, grace_period=_GRACE_SECONDS
            )
    except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
        raise TrituneError(
            f"--storage {shown(without_password(url))}: cannot be opened ({first_line(error)})"
        ) from None


def without_password(url: str) -> str:
    """A URL with its password masked.

    >>> without_password("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    """
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)


class Worker:
    """A process that works on a study; others on the same machine can tell whether it is still alive.

    It holds a lock that ends with the process. Other machines cannot see the lock and rely on heartbeats.
    """

    def __init__(self, folder: Path):
        self.path = folder.resolve() / ".workers" / f"{uuid.uuid4().hex}.lock"

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold the lock."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path)
        lock.acquire()
        try:
            yield
        finally:
            lock.release()
            self.path.unlink(missing_ok=True)

    def card(self) -> dict[str, str]:
        """The attributes by which a trial names its worker."""
        return {"host": platform.node(), "lock": str(self.path)}


def _is_gone(card: Mapping[str, str]) -> bool:
    """Whether a worker has ended; False if this machine cannot tell."""
    if card["host"] != platform.node() or not Path(card["lock"]).parent.is_dir():
        return False
    if not Path(card["lock"]).exists():
        return True
    lock = FileLock(card["lock"])
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    Path(card["lock"]).unlink(missing_ok=True)
    return True


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial stands for its point."""
    if POINT not in trial.user_attrs:
        return False
    return trial.state != TrialState.FAIL or REASON in trial.user_attrs


@dataclass(frozen=True)
class Queue:
    """The points of one study.

    Attributes:
        study: the Optuna study.
        count: number of points.
        worker: this process.
        fixed: the Optuna parameters of a point; empty if the sampler chooses them.
    """

    study: optuna.Study
    count: int
    worker: Worker
    fixed: Callable[[int], dict[str, Any]]

    def trials(self) -> dict[int, FrozenTrial]:
        """The trial that counts for each point, in the order of the points."""
        found: dict[int, FrozenTrial] = {}
        for trial in sorted(self.study.get_trials(deepcopy=False), key=lambda trial: trial.number):
            if counts(trial):
                found.setdefault(trial.user_attrs[POINT], trial)
        return dict(sorted((point, trial) for point, trial in found.items() if point < self.count))

    def prepare(self) -> bool:
        """Enqueue a trial for the next point; False if every point is done or in progress."""
        self._bury()
        trials = self.trials()
        if any(trial.state == TrialState.WAITING for trial in trials.values()):
            return True
        missing = next((point for point in range(self.count) if point not in trials), None)
        if missing is None:
            return False
        earlier = [trial for trial in self.study.get_trials(deepcopy=False) if trial.user_attrs.get(POINT) == missing]
        # A killed trial is continued with its values and finished seeds.
        params, attributes = self.fixed(missing), dict[str, Any]()
        for trial in earlier:
            params = trial.params or params
            attributes |= trial.user_attrs
        attributes.pop(WORKER, None)
        self.study.enqueue_trial(params, user_attrs={**attributes, POINT: missing})
        return True

    def claim(self, trial: optuna.Trial) -> int:
        """The number of the point that a new trial is to work on.

        Raises:
            Taken: another trial counts for it.
        """
        trial.set_user_attr(WORKER, self.worker.card())
        point = trial.user_attrs.get(POINT, -1)
        counting = self.trials().get(point)
        if counting is None or counting.number != trial.number:
            raise Taken
        return point

    def _bury(self) -> None:
        """Mark running trials as failed if their processes are gone."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)  # by heartbeats, if the storage has them
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            card = trial.user_attrs.get(WORKER)
            age = time.time() - trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            if _is_gone(card) if card else age > _UNCLAIMED_SECONDS:
                try:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                    continue  # another process was faster
