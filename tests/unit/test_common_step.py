"""Who is inside a step that every rank makes, and who is not."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")

from yolo_patches.nn import common_step  # noqa: E402
from yolo_patches.nn.common_step import inside  # noqa: E402
from yolo_patches.nn.shards import rank_mean  # noqa: E402

#: Backward passes within backward passes, beyond which autograd takes another thread: on the CPU, its only one.
DEEP = 70


class Backward(torch.autograd.Function):
    """Does something in the backward pass."""

    @staticmethod
    def forward(ctx, x, act):
        ctx.act = act
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.act()
        return gradient, None


def backward(act):
    """Do something in a backward pass, as layers are computed again under activation checkpointing."""
    with torch.enable_grad():
        Backward.apply(torch.ones(1, requires_grad=True), act).sum().backward()


def in_thread(function):
    """What a function returns in a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def test_between_steps_nobody_is_inside():
    assert not inside()
    with common_step.common_step():
        assert inside()
    assert not inside()
    common_step.open_step()
    assert inside()
    common_step.close()
    assert not inside()


def test_an_error_ends_the_step():
    with pytest.raises(KeyError), common_step.common_step():
        raise KeyError
    assert not inside()


def test_a_step_in_a_step_does_not_end_it():
    with common_step.common_step():
        with common_step.common_step():
            assert inside()
        assert inside()


def test_other_threads_are_outside():
    with common_step.common_step():
        assert not in_thread(inside)

    def step():
        with common_step.common_step():
            return inside()

    assert in_thread(step)


@pytest.mark.filterwarnings("ignore:.*jit.trace")
def test_a_trace_belongs_to_one_rank():
    found = []

    def traced(x):
        found.append(inside())
        return x + 1

    with common_step.common_step():
        torch.jit.trace(traced, torch.ones(1), check_trace=False)
        assert found == [False]
        assert inside()


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known to threading"])
def test_autograds_own_threads_are_inside(known):
    found = {}

    def deeper(depth=0):
        if known:
            threading.current_thread()  # makes a dummy of a thread that Python has not started, as logging does
        found[threading.get_ident()] = inside()
        if depth < DEEP:
            backward(lambda: deeper(depth + 1))

    with common_step.common_step():
        deeper()
    assert len(found) > 1, "autograd has taken a thread of its own"
    assert all(found.values())
    found.clear()
    deeper()
    assert not any(found.values())


def test_another_threads_backward_pass_is_outside():
    found = []
    with common_step.common_step():
        in_thread(lambda: backward(lambda: found.append(inside())))
        backward(lambda: found.append(inside()))
    assert found == [False, True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_outside():
    with common_step.common_step():
        child = os.fork()
        if not child:
            os._exit(10 + inside())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
        assert inside()


def test_no_step_no_collective(monkeypatch):
    """A rank that computes a loss alone takes its own normaliser, and does not ask the others."""
    dist = torch.distributed
    asked = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda values: asked.append(values.mul_(2)))
    values = torch.ones(2)
    assert rank_mean(values) == (values, 1)
    with common_step.common_step():
        assert in_thread(lambda: rank_mean(values)) == (values, 1)
        with torch.no_grad():
            assert rank_mean(values) == (values, 1)
        assert not asked
        assert rank_mean(values)[1] == 2
    assert len(asked) == 1
