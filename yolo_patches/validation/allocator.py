"""glibc's allocator, told to keep the memory that it has: a process that frees and takes large blocks all the time."""

from __future__ import annotations

import ctypes

#: Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
#: Free memory at the top of the heap that stays there; the largest that an int can say.
KEPT = 2**31 - 1


def available() -> bool:
    """Return whether this process uses glibc."""
    try:
        return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    except (OSError, TypeError):  # there is no such library: not Linux
        return False


def keep_memory() -> bool:
    """Let large blocks come from the heap, and let the heap keep what is freed; return whether it does.

    A large block otherwise comes fresh from the kernel, which clears every page of it, and goes back when it is freed.
    This is for the whole process and its lifetime: glibc has no way back to its moving thresholds (mallopt(3)).
    """
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, KEPT))
