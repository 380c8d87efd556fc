"""The cores that this process may use: those that it may run on, and the time on them that a container is given."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

#: Where Linux shows control groups, and which of them this process is in.
GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable() -> int:
    """Return the number of cores that this process may use, at least 1."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = quota()
    return max(min(here, math.ceil(limit)), 1) if limit < here else here


def quota(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> float:
    """Return the cores' worth of time that control groups allow, infinite where none limits it.

    A group's limit holds for those inside it, so the least on the way to the root counts.

    Args:
        groups: Root of the control groups, of version 2 or 1.
        membership: File that says which group this process is in.
    """
    return min(_limits(groups, membership), default=math.inf)


def _limits(groups: Path, membership: Path) -> Iterator[float]:
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / controllers if controllers else groups
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            limit = _read(folder / "cpu.max").split()  # version 2: microseconds of each period, or "max"
            limit = limit or [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            if len(limit) == 2 and all(word.isdigit() for word in limit) and int(limit[1]):
                yield int(limit[0]) / int(limit[1])
            if folder == root:
                break


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
