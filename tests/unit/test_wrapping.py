"""Wrappers are undone by handle, and never over somebody else's."""

from __future__ import annotations

import inspect

import pytest

from yolo_patches.errors import PatchesError
from yolo_patches.wrapping import Wrapping, bind


class Upstream:
    def method(self, first, second=2):
        return first + second


def double(wrapped, instance, args, kwargs):
    return 2 * wrapped(*args, **kwargs)


def test_wrap_and_undo():
    original = vars(Upstream)["method"]
    wrapping = Wrapping()
    wrapping.wrap(Upstream, "method", double)
    assert Upstream().method(1) == 6
    assert inspect.signature(Upstream.method) == inspect.signature(original)
    wrapping.undo()
    assert vars(Upstream)["method"] is original
    wrapping.undo()
    assert vars(Upstream)["method"] is original


def test_undo_refuses_when_somebody_wrapped_on_top():
    original = vars(Upstream)["method"]
    wrapping = Wrapping()
    wrapping.wrap(Upstream, "method", double)
    ours = vars(Upstream)["method"]
    Upstream.method = lambda self, first: 0
    try:
        with pytest.raises(PatchesError, match=r"Upstream\.method has been replaced"):
            wrapping.undo()
        Upstream.method = ours
        wrapping.undo()
        assert vars(Upstream)["method"] is original
    finally:
        Upstream.method = original


def test_bind_touches_one_object_only():
    bound, other = Upstream(), Upstream()
    bind(bound, "method", double)
    assert (bound.method(1), other.method(1)) == (6, 3)
