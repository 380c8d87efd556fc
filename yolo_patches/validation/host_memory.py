"""How much memory this machine, or the container that the process is in, has left."""

from __future__ import annotations

from pathlib import Path

#: (limit, used) of a control group, version 2 and 1; a limit may say "max".
GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available() -> int:
    """Return the bytes that may still be taken."""
    import psutil

    left = [int(psutil.virtual_memory().available)]
    for limit, used in GROUPS:
        try:
            left.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(min(left), 0)
