"""Short messages between the ranks of one machine, over Unix sockets: where the latency of a collective is the cost.

SyncBatchNorm on the CPU sends two messages a layer and step, and none of them is worth a microsecond of bandwidth. gloo
passes each through threads that sleep and have to be woken on both sides, half a millisecond in the middle of a
training step on two cores; a socket between two threads that wait awake takes a tenth of that.

Nothing here waits without an end:

- A rank that has ended, by a signal or by an error, ends the others at once: its sockets close with it. Forked
  children, such as the loader's workers, do not keep them open.
- A rank that is alive and says nothing ends the others after the timeout of the process group. One that is stopped for
  less than that is waited for.
- A rank that breaks an exchange off closes its sockets, so that the others end, too, and nobody takes what is left in
  them for the next message.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import Any, Optional, cast
from weakref import WeakKeyDictionary, WeakSet, finalize

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.constants import default_pg_timeout

__all__ = ["Neighbours", "disconnect", "neighbours"]

#: Bytes of the longest message. Longer ones go through gloo: there it is bandwidth that counts.
LONGEST = 1 << 16
#: Seconds to wait awake: longer than a message takes, shorter than the wait for a rank that still loads images.
AWAKE = 0.005
#: Bytes before each message: its length.
_HEADER = 8
#: Milliseconds that the system's call can wait at most.
_FOREVER = (1 << 31) - 1

# Lets other threads run. (Windows has no such call; there a sleep of nothing does it.)
yield_cpu: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))

_KNOWN: WeakKeyDictionary[Any, Optional[Neighbours]] = WeakKeyDictionary()
_OPEN: WeakSet[Neighbours] = WeakSet()


def neighbours(group: Any) -> Optional[Neighbours]:
    """Return the connections among the ranks of a group, or None where they are not all on one machine.

    The first call for a group is a collective call.
    """
    if group not in _KNOWN:
        for old in [known for known in _KNOWN if not _exists(known)]:
            disconnect(old)  # somebody holds a group that has been destroyed: a model in DistributedDataParallel does
        found = _KNOWN[group] = _connect(group)
        if found is not None:
            finalize(group, found.close).atexit = False
    return _KNOWN[group]


def disconnect(group: Any = None) -> None:
    """Close the connections of a process group, or of all. A group that is used again is connected again, by all ranks.

    Not necessary: connections close when their group goes, or when the next one is connected.
    """
    for known in list(_KNOWN) if group is None else [group]:
        found = _KNOWN.pop(known, None)
        if found is not None:
            found.close()


class Neighbours:
    """One rank's connections to all others.

    An exchange is a `send` and the `receive` after it, by all ranks. In between, a rank may do something else: what the
    sockets do not take at once is sent while it receives. So it does not matter how much they take.

    Args:
        rank: This rank.
        sockets: The others' sockets by rank.
        timeout: How long an exchange may take.
    """

    def __init__(self, rank: int, sockets: dict[int, socket.socket], timeout: timedelta = default_pg_timeout) -> None:
        self._rank = rank
        self._sockets = sockets
        self._timeout = timeout
        self._under_way = self._closed = False
        self._unsent: dict[int, memoryview] = {}
        for peer in sockets.values():
            peer.setblocking(False)
        _OPEN.add(self)

    def send(self, message: Tensor) -> None:
        """Send a contiguous CPU tensor of at most `LONGEST` bytes to every other rank, without waiting for it.

        Raises:
            ConnectionError: A rank has ended, or an earlier exchange was broken off.
        """
        try:
            if self._closed or self._under_way:
                raise ConnectionError("an exchange with the other ranks has been broken off")
            self._under_way = True
            data = _bytes(message)
            frame = memoryview(len(data).to_bytes(_HEADER, "little") + data)
            self._unsent = dict.fromkeys(self._sockets, frame)
            self._push()
        except BaseException:  # Ctrl-C, too
            self.close()
            raise

    def receive(self, message: Tensor) -> Tensor:
        """Return what every rank has sent, one a row, this rank's own message among them.

        Raises:
            ConnectionError: A rank has ended, or has sent something else than a message of this length.
            TimeoutError: A rank has been silent for as long as the process group waits.
        """
        size = _HEADER + message.numel() * message.element_size()
        frames = bytearray(size * (len(self._sockets) + 1))
        view = memoryview(frames)
        missing = {rank: view[size * rank : size * (rank + 1)] for rank in self._sockets}
        view[size * self._rank + _HEADER : size * (self._rank + 1)] = _bytes(message)
        start = time.monotonic()
        try:
            if not self._under_way:
                raise ConnectionError("an exchange with the other ranks has been broken off")
            while missing or self._unsent:
                progress = self._pull(missing, frames, size)
                if self._unsent:
                    progress = self._push() or progress
                if progress:
                    continue
                waited = time.monotonic() - start
                if waited < AWAKE:
                    yield_cpu()
                elif not self._ready(missing, self._timeout.total_seconds() - waited):
                    late = ", ".join(map(str, sorted({*missing, *self._unsent})))
                    raise TimeoutError(f"rank {late} has been silent for {self._timeout}")
        except BaseException:
            self.close()
            raise
        self._under_way = False
        rows = torch.frombuffer(frames, dtype=message.dtype).view(len(self._sockets) + 1, -1)
        return rows[:, _HEADER // message.element_size() :]

    def close(self) -> None:
        """Close all connections, at the end and after every error: they may hold half a message."""
        self._closed, self._under_way = True, False
        for peer in self._sockets.values():
            peer.close()

    def _push(self) -> bool:
        """Send what the sockets take; return whether that was anything."""
        progress = False
        for rank, rest in list(self._unsent.items()):
            try:
                size = self._sockets[rank].send(rest)
            except BlockingIOError:
                continue
            except OSError as error:
                raise _ended(rank) from error
            progress = True
            if size == len(rest):
                del self._unsent[rank]
            else:
                self._unsent[rank] = rest[size:]
        return progress

    def _pull(self, missing: dict[int, memoryview], frames: bytearray, size: int) -> bool:
        """Receive what has arrived into the missing rests of frames of this size; return whether that was anything."""
        progress = False
        for rank, rest in list(missing.items()):
            try:
                received = self._sockets[rank].recv_into(rest)
            except BlockingIOError:
                continue
            except OSError as error:
                raise _ended(rank) from error
            if not received:
                raise _ended(rank)
            progress = True
            left, due = len(rest) - received, size - _HEADER
            if len(rest) > due >= left:  # the header is complete
                sent = int.from_bytes(frames[size * rank : size * rank + _HEADER], "little")
                if sent != due:
                    raise ConnectionError(
                        f"rank {rank} is elsewhere in its training step: it sends {sent} bytes where {due} are due"
                    )
            if left:
                missing[rank] = rest[received:]
            else:
                del missing[rank]
        return progress

    def _ready(self, missing: dict[int, memoryview], seconds: float) -> bool:
        """Sleep until a rank sends something or takes something; return False where none does."""
        poll = select.poll()
        for rank, peer in self._sockets.items():
            events = (select.POLLIN if rank in missing else 0) | (select.POLLOUT if rank in self._unsent else 0)
            if events:
                poll.register(peer, events)
        return bool(poll.poll(min(max(seconds, 0) * 1000, _FOREVER)))


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(cast(Any, tensor.numpy())).cast("B")


def _ended(rank: int) -> ConnectionError:
    return ConnectionError(f"rank {rank} has ended in the middle of a training step")


def _exists(group: Any) -> bool:
    """Return whether a process group has not been destroyed, as far as this torch tells."""
    try:
        return not hasattr(dist, "get_process_group_ranks") or bool(dist.get_process_group_ranks(group))
    except Exception:  # torch looks it up in a dictionary
        return False


def _timeout(group: Any) -> timedelta:
    """Return how long the operations of a group wait."""
    try:
        return cast(timedelta, group._get_backend(torch.device("cpu")).options._timeout)
    except (AttributeError, RuntimeError):  # a backend that has no such option, or a torch that does not show it
        return default_pg_timeout


def _connect(group: Any) -> Optional[Neighbours]:
    """Connect every rank to those below it; all ranks agree on whether that has worked."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    timeout = _timeout(group)
    with ExitStack() as until_connected, ExitStack() as until_closed:
        listener = _listen(until_connected, rank, ranks)
        paths = _of_all_ranks(listener and listener.getsockname(), group)
        sockets: dict[int, socket.socket] = {}
        # Another machine, or another container's file system, has no such path. Nobody waits for ranks that cannot
        # come: it is agreed first that all have called.
        called = False
        if all(paths):
            with suppress(OSError):
                for lower in range(rank):
                    sockets[lower] = until_closed.enter_context(socket.socket(socket.AF_UNIX))
                    _call(sockets[lower], paths[lower], rank, timeout)
                called = True
        if not all(_of_all_ranks(called, group)):
            return None
        answered = False
        with suppress(OSError):
            while len(sockets) < ranks - 1:
                higher, peer = _answer(cast(socket.socket, listener), timeout)
                sockets[higher] = until_closed.enter_context(peer)
            answered = sockets.keys() == set(range(ranks)) - {rank}
        if not all(_of_all_ranks(answered, group)):
            return None
        for peer in sockets.values():
            _widen(peer)
        until_closed.pop_all()  # from here on they are closed by whom they are given to
        return Neighbours(rank, sockets, timeout)


def _of_all_ranks(value: Any, group: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


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


def _call(peer: socket.socket, path: str, rank: int, timeout: timedelta) -> None:
    """Connect a socket to another rank and say who is calling."""
    peer.settimeout(timeout.total_seconds())
    peer.connect(path)
    peer.sendall(rank.to_bytes(4, "little"))


def _answer(listener: socket.socket, timeout: timedelta) -> tuple[int, socket.socket]:
    """Return the next rank that has called, and its socket."""
    listener.settimeout(timeout.total_seconds())
    peer, _ = listener.accept()
    try:
        peer.settimeout(timeout.total_seconds())
        name = peer.recv(4, socket.MSG_WAITALL)
        if len(name) < 4:
            raise ConnectionError("a rank has ended while it connected")
    except BaseException:
        peer.close()
        raise
    return int.from_bytes(name, "little"), peer


def _widen(peer: socket.socket) -> None:
    """Ask for room for a whole message, so that its sender need not wait. macOS gives 8 KiB unasked."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        with suppress(OSError):
            if peer.getsockopt(socket.SOL_SOCKET, option) < 2 * LONGEST:
                peer.setsockopt(socket.SOL_SOCKET, option, 2 * LONGEST)


def _close_in_child() -> None:
    """Close a forked child's copies of all sockets: else it would keep them open when its parent is killed."""
    for each in list(_OPEN):
        each.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
