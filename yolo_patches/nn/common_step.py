"""The one place where ranks may wait for each other: a step that every rank makes.

A collective outside of such a step hangs whoever is alone in it, for hours: rank 0 that traces the model for
TensorBoard, a callback of the user's, a validation on one rank. So nothing here synchronises unless the trainer has
said that a step is under way which every rank makes, and then in nobody else's thread.

    with common_step():                 # around the forward and the backward pass, on every rank
        loss = criterion(model(images), targets)
        loss.backward()
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Optional

import torch

__all__ = ["close", "common_step", "inside", "open_step"]

#: The backward pass that runs in this thread, -1 for none: always for releases of torch that cannot tell.
_graph_task: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", lambda: -1)
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
    if _owner is None or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    return threading.get_ident() == _owner or _in_autograds_own_thread()


@contextmanager
def common_step() -> Iterator[None]:
    """Mark a block as a step that every rank makes. Inside of one that is under way it changes nothing."""
    global _owner
    before = _owner
    open_step()
    try:
        yield
    finally:
        _owner = before


def _in_autograds_own_thread() -> bool:
    """Return whether a backward pass runs here, in a thread that autograd has started for it.

    A thread that Python has started is somebody's, with a backward pass of its own. For `threading`, autograd's threads
    are unknown, or dummies once somebody has asked for the current thread there.
    """
    if _graph_task() == -1:
        return False
    here = threading.get_ident()
    return all(isinstance(thread, threading._DummyThread) for thread in threading.enumerate() if thread.ident == here)


if hasattr(os, "register_at_fork"):
    # In a forked child the main thread has the same number. What it does is its own affair: it loads images.
    os.register_at_fork(after_in_child=close)
