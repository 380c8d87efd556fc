"""A validation that fails and is made again: what patches count, they count once."""

import pytest

from yolo_patches.patches.async_val import AsyncVal
from yolo_patches.patches.val_period import ValPeriod
from yolo_patches.seams import Validation


def fail():
    raise MemoryError


def test_val_period_counts_it_once():
    patch = ValPeriod(every=1)
    act = Validation(0, epochs=3)
    with pytest.raises(MemoryError):
        patch.around()[Validation](act, fail)
    patch.around()[Validation](act, lambda: None)
    assert patch._made == 1


def test_async_val_measures_the_first_one_that_comes_to_an_end():
    """Else the rank that repeats it would send it elsewhere, and ask the other ranks, which ask nothing."""
    patch = AsyncVal(device="same")
    asked = []
    act = Validation(0, epochs=3, agreed=lambda name, word: asked.append(name))
    with pytest.raises(MemoryError):
        patch.around()[Validation](act, fail)
    assert patch.around()[Validation](act, lambda: "figures") == "figures"
    assert (patch._made, asked) == (1, [])
