"""Memory in which loader workers leave the images of their batches, and which is used again.

torch gives each batch shared memory of its own: a worker stacks the images, copies the stack into new memory, whose
every page has to be brought in, and the training's process brings all of them in once more. Here the process that
trains has the memory before it forks its workers; they stack into it, and what it gets of a batch is its place there.

A place is free until a worker writes a batch, and again when nothing in the training's process refers to that batch any
longer. Each worker has places of its own, a lane, so that nobody waits for anybody; where no place is free, or a batch
does not fit, it takes torch's way.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch

#: Where a dictionary has its images.
IMAGE = "img"
#: A lane's number is a byte.
MOST_LANES = 256
#: Places of a lane beyond the batches that a worker makes ahead: one is trained on, and one is on its way.
BEYOND = 2
#: What a place is; the last while the training's process refers to it.
FREE, WRITTEN, HELD = 0, 1, 2

_numbers = count()
_known: weakref.WeakValueDictionary[int, BatchMemory] = weakref.WeakValueDictionary()


class BatchMemory:
    """The places of one loader.

    Args:
        size: Bytes of a place.
        workers: How many there are at a time; a loader's next ones begin before its last ones have ended.
        ahead: Batches that each makes ahead.
    """

    def __init__(self, size: int, workers: int, ahead: int) -> None:
        lanes = min(2 * workers, MOST_LANES)
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._each = ahead + BEYOND
        self._owner = os.getpid()
        self._memory = mmap.mmap(-1, lanes * self._each * self._size)  # a page is taken when it is written to
        self._places = mmap.mmap(-1, lanes * self._each)
        ends = self._free_lanes, self._returned = os.pipe()
        weakref.finalize(self, _closed, ends).atexit = False
        os.set_blocking(self._free_lanes, False)
        os.write(self._returned, bytes(range(lanes)))
        self._lane: int | None = None
        self._worker = self._owner
        self.number = next(_numbers)
        self.used = 0
        _known[self.number] = self

    def place(self, size: int) -> int | None:
        """Return a place that is this worker's to write to; None where there is none for so many bytes."""
        if self._worker != os.getpid():
            self._worker, self._lane = os.getpid(), self._begun()
        if self._lane is None or size > self._size:
            return None
        first = self._lane * self._each
        place = self._places.find(bytes((FREE,)), first, first + self._each)
        if place < 0:
            return None
        self._places[place] = WRITTEN
        return place

    def give_back(self, place: int) -> None:
        """Free a place."""
        self._places[place] = FREE

    def tensor(self, place: int, shape: Sequence[int]) -> torch.Tensor:
        """Return the bytes of a place, of some shape; in the training's process it is free when they are let go."""
        array = np.frombuffer(self._memory, np.uint8, int(np.prod(shape)), place * self._size).reshape(shape)
        if os.getpid() == self._owner:
            self._places[place] = HELD
            self.used += 1
            weakref.finalize(array, self._let_go, place).atexit = False
        return torch.from_numpy(array)

    def _let_go(self, place: int) -> None:
        if os.getpid() == self._owner:  # a forked process has copies of what the training's refers to
            self.give_back(place)

    def _begun(self) -> int | None:
        """Return a lane for a worker that has just begun, until it ends; None where all are taken."""
        try:
            lane = os.read(self._free_lanes, 1)[0]
        except (OSError, IndexError):
            return None
        Finalize(self, self._ended, args=(lane,), exitpriority=0)
        return lane

    def _ended(self, lane: int) -> None:
        """Give a lane and its memory back: what has not been received by now never will be."""
        for place in range(lane * self._each, (lane + 1) * self._each):
            if self._places[place] != HELD:
                self.give_back(place)
                with suppress(OSError, AttributeError):  # it stays taken where the system cannot do otherwise
                    self._memory.madvise(mmap.MADV_REMOVE, place * self._size, self._size)
        os.write(self._returned, bytes((lane,)))


def _closed(ends: tuple[int, int]) -> None:
    for end in ends:
        os.close(end)


class Placed(torch.Tensor):
    """A batch's images at a place: a tensor, of which another process is sent the place alone."""

    # What is made of it is a plain tensor.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _sent: tuple[int, int, tuple[int, ...]]

    @classmethod
    def at(cls, memory: BatchMemory, place: int, shape: Sequence[int]) -> Placed:
        """Return the images at a place."""
        made = memory.tensor(place, shape).as_subclass(cls)
        made._sent = (memory.number, place, tuple(shape))
        return made

    def __reduce_ex__(self, _: Any) -> Any:
        """Say where it is."""
        return _received, self._sent


def _received(number: int, place: int, shape: Sequence[int]) -> torch.Tensor:
    return _known[number].tensor(place, shape)


class Collate:
    """A loader's `collate_fn`: upstream's, with images that are stacked in memory that is used again.

    Upstream's function is given images of no height. A worker's first batch is made upstream's way, too, and where the
    two differ the worker keeps to it.

    Args:
        upstream: Its own: samples -> batch, dictionaries or tuples.
        memory: In which workers stack.
    """

    def __init__(self, upstream: Callable[[Any], Any], memory: BatchMemory) -> None:
        self._upstream = upstream
        self._believed: bool | None = None
        self.memory = memory

    def __reduce__(self) -> Any:
        """Be upstream's own in a spawned worker, which has not our memory."""
        return _itself, (self._upstream,)

    def __call__(self, samples: Any) -> Any:
        """Make a batch."""
        worker = torch.utils.data.get_worker_info()
        if worker is None or self._believed is False or not _stackable(samples):
            return self._upstream(samples)
        images = [_image(sample) for sample in samples]
        shape = (len(images), *images[0].shape)
        expected = None if self._believed else self._upstream([_copied(sample) for sample in samples])
        place = self.memory.place(int(np.prod(shape)))
        if place is None:
            return self._upstream(samples) if expected is None else expected
        batch = None
        try:
            stacked = Placed.at(self.memory, place, shape)
            torch.stack(images, out=stacked)
            batch = _with(self._upstream([_with(sample, _emptied(_image(sample))) for sample in samples]), stacked)
        except Exception:
            if expected is None:
                self.memory.give_back(place)
                raise
        if expected is not None:
            self._believed = batch is not None and _same(batch, expected)
        if self._believed:
            return batch
        self.memory.give_back(place)
        return expected


def _itself(collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return collate


def _image(sample: Any) -> Any:
    """Return what a sample or batch has for images: a dictionary under a name, a tuple in the first place."""
    if isinstance(sample, dict):
        return sample.get(IMAGE)
    return sample[0] if isinstance(sample, tuple) and sample else None


def _with(sample: Any, image: torch.Tensor) -> Any:
    return {**sample, IMAGE: image} if isinstance(sample, dict) else (image, *sample[1:])


def _stackable(samples: Any) -> bool:
    """Return whether all samples have images that are bytes, [C, H, W], of one shape."""
    images = [_image(sample) for sample in samples]
    return bool(images) and all(
        isinstance(image, torch.Tensor) and image.dtype is torch.uint8 and image.ndim == 3
        and image.shape == images[0].shape
        for image in images
    )  # fmt: skip


def _emptied(image: torch.Tensor) -> torch.Tensor:
    """Return an image of no height, with what is noted at the image."""
    emptied = image[:, :0]
    vars(emptied).update(vars(image))
    return emptied


def _copied(sample: Any) -> Any:
    """Return a sample whose tensors upstream may change, as it does with its labels."""
    if isinstance(sample, dict):
        return {key: _copied_value(value) for key, value in sample.items()}
    return tuple(map(_copied_value, sample))


def _copied_value(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    copied = value.clone()
    vars(copied).update(vars(value))
    return copied


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        both = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        return both and one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    try:
        return bool(one == other)
    except Exception:  # of whatever kind: what cannot be compared is not known to be the same
        return False
