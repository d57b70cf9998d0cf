"""An Optuna study that many processes work off together, each point once, whoever of them is killed.

Optuna's own grid hands a point to two processes now and then, and a study alone does not know which of its running
trials nobody runs any more. So the points are numbered here: a trial carries the number of its point, and a point is
done, or being done, if it has a trial that counts. A trial counts unless it failed without a reason, as one does whose
process was killed or interrupted. Where two processes begin the same point at the same moment the older trial counts.
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

# How often a process tells the others that it is alive, and when they take it for dead.
_HEARTBEAT_SECONDS, _GRACE_SECONDS = 60, 300
# A trial between its start and the note of who runs it; nobody is slower than this.
_UNCLAIMED_SECONDS = 600


class Taken(Exception):
    """Another process has the point already."""


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Where a study is kept.

    Args:
        url: a database as SQLAlchemy writes it (`postgresql://…`, `mysql://…`, `sqlite:///…`), `redis://…`, or the path
            of a journal, a file `*.log` that may lie in a network folder; None is an SQLite file in `folder`.
        folder: of the sweep; it exists.

    Raises:
        TrituneError: it cannot be opened.
    """
    own = f"sqlite:///{folder / DATABASE}"
    url = url or own
    try:
        if url == own:
            (folder / DATABASE).touch()  # an empty database; in one that SQLite makes no group may write
        if url.endswith(".log") and "://" not in url:
            return JournalStorage(JournalFileBackend(url))
        if url.startswith("redis://"):
            return JournalStorage(JournalRedisBackend(url))
        # SQLite lets one process write at a time; the others are to wait for it.
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
    """An address as it may be shown.

    >>> without_password("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    """
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)


class Worker:
    """A process that works on a study, and how another one on the same machine sees that it is gone.

    It holds a lock that ends with the process. From other machines a lock cannot be seen; they go by heartbeats.
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
        """What a trial says of who runs it."""
        return {"host": platform.node(), "lock": str(self.path)}


def _is_gone(card: Mapping[str, str]) -> bool:
    """Whether a worker has ended; False where that cannot be told from here."""
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
        study: Optuna's.
        count: how many points there are.
        worker: this process.
        fixed: point to Optuna's parameters where they are known beforehand; otherwise the sampler chooses them.
    """

    study: optuna.Study
    count: int
    worker: Worker
    fixed: Callable[[int], dict[str, Any]]

    def trials(self) -> dict[int, FrozenTrial]:
        """Point to the trial that counts, in the order of the points."""
        found: dict[int, FrozenTrial] = {}
        for trial in sorted(self.study.get_trials(deepcopy=False), key=lambda trial: trial.number):
            if counts(trial):
                found.setdefault(trial.user_attrs[POINT], trial)
        return dict(sorted((point, trial) for point, trial in found.items() if point < self.count))

    def prepare(self) -> bool:
        """See to it that a trial waits for whoever asks next; False if every point is done or in work."""
        self._bury()
        trials = self.trials()
        if any(trial.state == TrialState.WAITING for trial in trials.values()):
            return True
        missing = next((point for point in range(self.count) if point not in trials), None)
        if missing is None:
            return False
        earlier = [trial for trial in self.study.get_trials(deepcopy=False) if trial.user_attrs.get(POINT) == missing]
        # A killed trial goes on with its values and with the seeds that it had finished.
        params, attributes = self.fixed(missing), {}
        for trial in earlier:
            params = trial.params or params
            attributes |= trial.user_attrs
        attributes.pop(WORKER, None)
        self.study.enqueue_trial(params, user_attrs={**attributes, POINT: missing})
        return True

    def claim(self, trial: optuna.Trial) -> int:
        """The number of the point that a trial just begun is to work on.

        Raises:
            Taken: another trial counts for it.
        """
        trial.set_user_attr(WORKER, self.worker.card())
        point = trial.user_attrs.get(POINT)
        counting = self.trials().get(point)
        if counting is None or counting.number != trial.number:
            raise Taken
        return point

    def _bury(self) -> None:
        """Fail the running trials whose processes are gone."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)  # by heartbeats, where the storage keeps them
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            card = trial.user_attrs.get(WORKER)
            age = time.time() - trial.datetime_start.timestamp()
            if _is_gone(card) if card else age > _UNCLAIMED_SECONDS:
                try:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                    continue  # somebody else was faster
