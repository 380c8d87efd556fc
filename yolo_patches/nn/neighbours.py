"""Short messages between the ranks of one machine, over Unix sockets: where the latency of a collective is the cost.

SyncBatchNorm on the CPU sends two messages a layer and step, and none of them is worth a microsecond of bandwidth. gloo
passes each through threads that sleep and have to be woken on both sides, half a millisecond in the middle of a
training step on two cores; a socket between two threads that wait awake takes a tenth of that.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any, Optional, cast
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch import Tensor
from torch.distributed.constants import default_pg_timeout

__all__ = ["Neighbours", "neighbours"]

#: Bytes that the kernel takes at once: ranks that all send before they receive must not wait for each other.
LONGEST = 1 << 16
#: Seconds to wait awake: longer than a message takes, shorter than the wait for a rank that still loads images.
AWAKE = 0.005

# Lets other threads run. (Windows has no such call; there a sleep of nothing does it.)
yield_cpu: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))

_KNOWN: WeakKeyDictionary[Any, Optional[Neighbours]] = WeakKeyDictionary()


def neighbours(group: Any) -> Optional[Neighbours]:
    """Return the connections among the ranks of a group, or None where they are not all on one machine.

    The first call for a group is a collective call.
    """
    if group not in _KNOWN:
        _KNOWN[group] = _connect(group)
    return _KNOWN[group]


class Neighbours:
    """One rank's connections to all others.

    Args:
        rank: This rank.
        sockets: The others' sockets by rank.
    """

    def __init__(self, rank: int, sockets: dict[int, socket.socket]) -> None:
        self._rank = rank
        self._sockets = sockets

    def send(self, message: Tensor) -> None:
        """Send a contiguous CPU tensor of at most `LONGEST` bytes to every other rank, without waiting for it."""
        data = _bytes(message)
        for peer in self._sockets.values():
            peer.sendall(data)

    def receive(self, message: Tensor) -> Tensor:
        """Return what every rank has sent, one a row, this rank's own message among them.

        Raises:
            ConnectionError: A rank has ended.
            TimeoutError: A rank has sent nothing for as long as torch's process groups wait.
        """
        rows = message.new_empty((len(self._sockets) + 1, message.numel()))
        rows[self._rank] = message
        for rank, peer in self._sockets.items():
            _receive(peer, _bytes(rows[rank]), rank)
        return rows

    def close(self) -> None:
        """Close all connections."""
        for peer in self._sockets.values():
            peer.close()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(cast(Any, tensor.numpy())).cast("B")


def _receive(peer: socket.socket, view: memoryview, rank: int) -> None:
    until = time.monotonic() + AWAKE
    while view:
        try:
            size = peer.recv_into(view, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if time.monotonic() < until:
                yield_cpu()
            elif not _arrives(peer):
                raise TimeoutError(f"rank {rank} has sent nothing for {default_pg_timeout}") from None
            continue
        except ConnectionError:
            size = 0
        if not size:
            raise ConnectionError(f"rank {rank} has ended in the middle of a training step")
        view = view[size:]


def _arrives(peer: socket.socket) -> bool:
    poll = select.poll()
    poll.register(peer, select.POLLIN)
    return bool(poll.poll(default_pg_timeout.total_seconds() * 1000))


def _connect(group: Any) -> Optional[Neighbours]:
    """Connect every rank to those below it; all ranks agree on whether that has worked."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    with ExitStack() as stack:
        listener = _listen(stack, rank, ranks)
        paths: list[Any] = [None] * ranks
        dist.all_gather_object(paths, listener and listener.getsockname(), group=group)
        sockets: dict[int, socket.socket] = {}
        try:
            for lower in range(rank):
                sockets[lower] = socket.socket(socket.AF_UNIX)
                sockets[lower].connect(paths[lower] or "")
                sockets[lower].sendall(rank.to_bytes(4, "little"))
            connected = listener is not None
        except (AttributeError, OSError):  # another machine, or another container's file system
            connected = False
        everywhere = [False] * ranks
        dist.all_gather_object(everywhere, connected, group=group)
        found = Neighbours(rank, sockets)
        if listener is None or not all(everywhere):
            found.close()
            return None
        for _ in range(ranks - rank - 1):
            peer, _ = listener.accept()
            sockets[int.from_bytes(peer.recv(4, socket.MSG_WAITALL), "little")] = peer
        return found


def _listen(stack: ExitStack, rank: int, ranks: int) -> Optional[socket.socket]:
    """Return a socket that listens in a folder of its own until the stack is left; None where there can be none."""
    try:
        folder = stack.enter_context(TemporaryDirectory(prefix="ranks-"))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(os.path.join(folder, str(rank)))
        listener.listen(ranks)
    except (AttributeError, OSError):  # no such sockets on this system, or a path too long for one
        return None
    return listener
