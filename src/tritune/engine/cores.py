"""How many threads help: the cores that this process may use."""

import os
from pathlib import Path

_CPUS, _QUOTA = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """Physical cores that this process may run on, and no more than its container's share of time amounts to.

    Where the system does not say which of its processors share a core, each counts as one.
    """
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    own = {_read(_CPUS / f"cpu{number}/topology/thread_siblings_list") or number for number in available}
    share, _, period = _read(_QUOTA).partition(" ")
    limit = int(share) // int(period) if share.isdecimal() and period.isdecimal() and int(period) else len(own)
    return max(1, min(len(own), limit))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
