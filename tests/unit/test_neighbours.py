"""Exchanges over real sockets: whatever they take at once, and whatever happens to the other ranks."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from yolo_patches.nn import neighbours  # noqa: E402
from yolo_patches.nn.neighbours import LONGEST, Neighbours  # noqa: E402

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
#: Seconds after which a test says that ranks hang.
LONG = 20
SHORT = timedelta(seconds=0.2)


def connected(ranks, size=None, **given):
    """Ranks with a socket pair between each two, of which each takes `size` bytes at once."""
    sockets = {rank: {} for rank in range(ranks)}
    for one, other in itertools.combinations(range(ranks), 2):
        sockets[one][other], sockets[other][one] = socket.socketpair()
    for peer in (peer for peers in sockets.values() for peer in peers.values()):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF) if size else ():
            peer.setsockopt(socket.SOL_SOCKET, option, size)
    return [Neighbours(rank, peers, **given) for rank, peers in sockets.items()]


def together(functions):
    """What functions return, or raise, that run at the same time."""
    found = [None] * len(functions)

    def run(index):
        try:
            found[index] = functions[index]()
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    until = time.monotonic() + LONG
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))
    assert not any(thread.is_alive() for thread in threads), "ranks hang"
    return found


def closed(near):
    return all(peer.fileno() == -1 for peer in near._sockets.values())


@pytest.fixture
def pair():
    ranks = connected(2, timeout=SHORT)
    yield ranks
    for rank in ranks:
        rank.close()


@pytest.mark.parametrize("length", [12_000, LONGEST])
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size", [4096, None])
def test_any_buffer_will_do(ranks, length, size):
    """All ranks send before any receives; rank 0 is two messages ahead of whoever waits for another rank."""
    everybody = connected(ranks, size)
    all_have_sent = threading.Barrier(ranks)

    def exchange(near, rank):
        rows = []
        for step in range(3):
            message = torch.arange(length // 4, dtype=torch.float32).add(1000 * rank + step)
            near.send(message)
            if not step:
                all_have_sent.wait(LONG / 2)
            rows.append(near.receive(message)[:, [0, -1]].tolist())
        return rows

    found = together([lambda near=near, rank=rank: exchange(near, rank) for rank, near in enumerate(everybody)])
    last = length // 4 - 1
    expected = [[[1000.0 * rank + step, 1000.0 * rank + step + last] for rank in range(ranks)] for step in range(3)]
    assert found == [expected] * ranks
    for near in everybody:
        near.close()


def test_a_rank_that_is_late_is_waited_for():
    here, there = connected(2, timeout=timedelta(seconds=LONG))
    message = torch.ones(3)
    here.send(message)

    def late():
        time.sleep(0.3)
        there.send(message)
        return there.receive(message)

    found = together([lambda: here.receive(message), late])
    assert [rows.tolist() for rows in found] == [[[1.0] * 3] * 2] * 2
    here.close()
    there.close()


def test_a_rank_that_is_silent(pair):
    here, there = pair
    here.send(torch.ones(3))
    with pytest.raises(TimeoutError, match="rank 1 has been silent for 0:00:00"):
        here.receive(torch.ones(3))
    assert closed(here)
    with pytest.raises(ConnectionError, match="rank 0 has ended"):  # and not only after its own timeout
        there.send(torch.ones(3))


def test_a_rank_that_takes_nothing():
    here, there = connected(2, 4096, timeout=SHORT)
    mute = there._sockets[0]
    mute.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LONGEST)
    assert mute.send(LONGEST.to_bytes(8, "little") + bytes(LONGEST)) == LONGEST + 8
    message = torch.ones(LONGEST // 4)
    here.send(message)
    with pytest.raises(TimeoutError, match="rank 1 has been silent"):
        here.receive(message)
    there.close()


@pytest.mark.parametrize("when", ["before", "between", "after half a message"])
def test_a_rank_that_has_ended(pair, when):
    here, there = pair
    if when == "before":
        there.close()
        with pytest.raises(ConnectionError, match="rank 1 has ended in the middle of a training step"):
            here.send(torch.ones(3))
        return
    here.send(torch.ones(3))
    if when == "after half a message":
        there._sockets[0].send((12).to_bytes(8, "little") + bytes(5))
    there.close()
    with pytest.raises(ConnectionError, match="rank 1 has ended in the middle of a training step"):
        here.receive(torch.ones(3))
    assert closed(here)


@pytest.mark.parametrize("lengths", [(3, 5), (5, 3), (1, 4000)])
def test_ranks_at_different_places(pair, lengths):
    """Nobody takes one layer's message for another's."""

    def exchange(near, length):
        near.send(torch.ones(length))
        near.receive(torch.ones(length))

    found = together([lambda near=near, length=length: exchange(near, length) for near, length in zip(pair, lengths)])
    assert all(isinstance(error, ConnectionError) for error in found), found
    assert any("elsewhere in its training step" in str(error) for error in found)


def test_an_exchange_that_was_broken_off(pair):
    """An error between `send` and `receive`: what the others have sent must not be the answer to the next message."""
    here, there = pair
    for near in pair:
        near.send(torch.ones(3))
    with pytest.raises(ConnectionError, match="broken off"):
        here.send(torch.ones(3))
    assert there.receive(torch.ones(3)).tolist() == [[1.0] * 3] * 2  # that message is whole
    with pytest.raises(ConnectionError, match="rank 0 has ended"):
        there.send(torch.ones(3))
    for act in (here.send, here.receive):
        with pytest.raises(ConnectionError, match="broken off"):
            act(torch.ones(3))


def test_ctrl_c(pair, monkeypatch):
    here, _ = pair
    here.send(torch.ones(3))

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(neighbours, "yield_cpu", interrupt)
    with pytest.raises(KeyboardInterrupt):
        here.receive(torch.ones(3))
    assert closed(here)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_keep_a_dead_rank_alive(pair):
    """Workers of a loader outlive a killed rank by seconds."""
    here, there = pair
    child = os.fork()
    if not child:
        time.sleep(LONG)
        os._exit(0)
    try:
        here.send(torch.ones(3))
        there.close()
        with pytest.raises(ConnectionError, match="rank 1 has ended"):
            here.receive(torch.ones(3))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# ------------------------------------------------------------------------------------------------------- connecting


class Group:
    """One rank's process group among threads: what `neighbours` needs of torch.distributed."""

    def __init__(self, rank, values, barrier):
        self.rank, self.values, self.barrier = rank, values, barrier

    def gather(self, out, value):
        self.values[self.rank] = value
        self.barrier.wait(LONG / 2)
        out[:] = self.values
        self.barrier.wait(LONG / 2)

    def _get_backend(self, device):
        return SimpleNamespace(options=SimpleNamespace(_timeout=SHORT))


@pytest.fixture
def groups(monkeypatch):
    """Three ranks as threads."""
    barrier, values = threading.Barrier(3), [None] * 3
    dist = SimpleNamespace(
        get_rank=lambda group: group.rank,
        get_world_size=lambda group: 3,
        all_gather_object=lambda out, value, group: group.gather(out, value),
        get_process_group_ranks=lambda group: {}[group] if group.barrier is None else [0, 1, 2],
    )
    monkeypatch.setattr(neighbours, "dist", dist)
    yield [Group(rank, values, barrier) for rank in range(3)]
    neighbours.disconnect()


def connect(groups):
    return together([lambda group=group: neighbours.neighbours(group) for group in groups])


def test_connecting(groups):
    found = connect(groups)
    assert all(isinstance(near, Neighbours) for near in found), found
    assert connect(groups) == found
    for near in found:
        for peer in near._sockets.values():
            assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 2 * LONGEST


def test_no_unix_sockets(groups, monkeypatch):
    monkeypatch.delattr(socket, "AF_UNIX")
    assert connect(groups) == [None] * 3


@pytest.mark.parametrize("fault", ["never calls", "dies before it names itself", "cannot call", "calls twice"])
def test_a_rank_that_fails_to_connect(groups, monkeypatch, fault):
    """All go through the process group instead, none waits."""
    call = getattr(neighbours, "_call", None)

    def faulty(peer, path, rank, timeout):
        if rank != 2:
            call(peer, path, rank, timeout)
        elif fault == "dies before it names itself":
            peer.connect(path)
            peer.close()
        elif fault == "cannot call":
            raise FileNotFoundError(path)
        elif fault == "calls twice":
            call(peer, path, 1, timeout)

    monkeypatch.setattr(neighbours, "_call", faulty, raising=False)
    assert connect(groups) == [None] * 3


def test_connections_close_with_their_group(groups):
    found = connect(groups)
    del groups[:]
    assert all(closed(near) for near in found)


def test_a_destroyed_group_that_somebody_holds(groups):
    first = connect(groups)
    others = [Group(group.rank, group.values, group.barrier) for group in groups]
    second = connect(others)
    assert not any(closed(near) for near in first)
    for group in groups:
        group.barrier = None  # destroyed
    more = [Group(group.rank, group.values, group.barrier) for group in others]
    assert not any(closed(near) for near in connect(more))
    assert all(closed(near) for near in first)
    assert not any(closed(near) for near in second)


def test_disconnecting(groups):
    found = connect(groups)
    neighbours.disconnect(groups[0])
    assert [closed(near) for near in found] == [True, False, False]
    neighbours.disconnect()
    neighbours.disconnect(groups[0])
    assert all(closed(near) for near in found)
