"""The one place where ranks may wait for each other: a step that every rank makes.

A collective outside of such a step hangs whoever is alone in it, for hours: rank 0 that traces the model for TensorBoard,
a callback of the user's, a validation on one rank. So nothing here synchronises unless the trainer has said that a step
is under way which every rank makes, and by nobody else's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

import torch

__all__ = ["close", "common_step", "inside", "open_step"]

#: The thread that makes the step, or None between steps.
_owner: Optional[int] = None


def open_step() -> None:
    """Say that from here on every rank does the same in this thread, until `close`."""
    global _owner
    _owner = threading.get_ident()


def close() -> None:
    """Say that ranks go their own ways from here on."""
    global _owner
    _owner = None


def inside() -> bool:
    """Return whether this is part of a step that every rank makes.

    True in the thread that opened the step, and in autograd's threads, which recompute layers there under activation
    checkpointing. Never while a model is traced: a trace belongs to one rank.
    """
    if _owner is None or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
        return False
    return threading.get_ident() == _owner or torch._C._current_graph_task_id() != -1


@contextmanager
def common_step() -> Iterator[None]:
    """Mark a block as a step that every rank makes."""
    open_step()
    try:
        yield
    finally:
        close()
