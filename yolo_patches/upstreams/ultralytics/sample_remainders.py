"""Pixels that Ultralytics' last transforms leave undone in loader workers, and the batches that they come in.

Only workers of the training loader leave anything: a data set that is read in the training's own process, or by anybody
else's loader, makes finished samples. Whoever reads a batch of the training loader finds finished images in it, too: it
is done when they are asked for. The trainer has it done on its device, before upstream's own preparation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
import wrapt

from yolo_patches.loading.finishing import KEPT, LEFT, Finishing
from yolo_patches.loading.last_pixels import Left
from yolo_patches.loading.part import CALLS, DIFFERS, OFF, RAISES, Ledger
from yolo_patches.upstreams.ultralytics.origin import is_upstreams
from yolo_patches.upstreams.ultralytics.sample_operations import METHODS
from yolo_patches.wrapping import instead

#: What a sample has until its last transform, a tensor after it, and a batch on its way.
REMAINDER = "yolo_patches_left"
IMAGE = "img"
#: Upstream's transforms at a pipeline's end, in their order, and which way those flip that do.
LAST = (("RandomHSV", None), ("RandomFlip", "vertical"), ("RandomFlip", "horizontal"), ("Format", None))
#: Three channels that tell where each has gone.
CHANNELS = np.arange(3, dtype=np.uint8).reshape(1, 1, 3)
#: Whether this process makes samples for the training loader.
_leaves = False


def is_plain(dataset: Any) -> bool:
    """Return whether samples and batches are made by upstream's own methods, and the pipeline ends as we know it."""
    kind = type(dataset)
    own = all(is_upstreams(getattr(kind, name, None)) for name in ("__getitem__", "collate_fn"))
    return own and is_upstreams(dataset) and "collate_fn" not in vars(dataset) and bool(_end(dataset.transforms))


def _end(transforms: Any) -> list[Any]:
    """Return the last transforms of a pipeline where they are upstream's own, in its order; else none."""
    chain = getattr(transforms, "transforms", None)
    found = chain[-len(LAST) :] if isinstance(chain, list) else []
    names = tuple((type(one).__name__, getattr(one, "direction", None)) for one in found)
    return found if names == LAST and all(map(_is_own, found)) and all(map(_has_step, found)) else []


def _has_step(transform: Any) -> bool:
    return hasattr(transform, "apply_image")


def _is_own(transform: Any) -> bool:
    """Return whether a transform is upstream's, with nothing but ours in the place of its methods."""
    kind, own = type(transform), vars(transform)
    return kind.__module__ == "ultralytics.data.augment" and all(
        is_upstreams(getattr(kind, name))
        and (name not in own or type(own[name]).__module__.startswith("yolo_patches."))
        for name in METHODS
        if hasattr(kind, name)
    )


class Remainders:
    """What stands in for the last transforms of one data set.

    Args:
        dataset: Whose.
        ledger: What workers are told, and tell.
    """

    def __init__(self, dataset: Any, ledger: Ledger) -> None:
        self._dataset = dataset
        self._ledger = ledger

    def place(self, transforms: Any) -> None:
        """Stand in at the end of a pipeline, before whatever stands in there already."""
        for one in _end(transforms):
            kind = KINDS[type(one).__name__]
            one.apply_image = kind(one, vars(one).get("apply_image"), self)

    def leaves(self, first: Any) -> bool:
        """Return whether the sample that has come to the first of them may leave its last pixels undone."""
        if not _leaves or any(self._ledger.has(LEFT, column) for column in (DIFFERS, RAISES, OFF)):
            return False
        chain = self._dataset.transforms.transforms[-len(LAST) :]  # a user may have changed it
        ordered = (
            len(chain) == len(LAST)
            and chain[0] is first
            and [getattr(one, "direction", None) for one in chain] == [direction for _, direction in LAST]
            and all(type(vars(one).get("apply_image")) is KINDS.get(type(one).__name__) for one in chain)
        )
        self._ledger.count(LEFT if ordered else KEPT, CALLS)
        return ordered


class _Step:
    """Stands in for `apply_image` of one transform.

    Args:
        transform: Whose method it is.
        instead: What stands in already, or nothing.
        remainders: Of the data set.
    """

    def __init__(self, transform: Any, instead: Any, remainders: Remainders) -> None:
        self._transform = transform
        self._instead = instead
        self._remainders = remainders

    def _whole(self, labels: Any, params: Any) -> Any:
        done = self._instead or partial(type(self._transform).apply_image, self._transform)
        return done(labels, params)


class LeftColours(_Step):
    """Colours: the random numbers are drawn, as upstream draws them."""

    def __call__(self, labels: Any, params: Any = None) -> Any:
        """Note on a sample by how much its colours are to change."""
        image, one = labels[IMAGE], self._transform
        plain = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size
        if not plain or not self._remainders.leaves(one):
            return self._whole(labels, params)
        gains = [one.hgain, one.sgain, one.vgain]
        left = Left()
        if any(gains):
            hue, saturation, value = (np.random.uniform(-1, 1, 3) * gains).tolist()
            left = Left(hue, saturation, value, recolour=True)
        labels[REMAINDER] = left
        return labels


class LeftFlip(_Step):
    """Flips: upstream has decided."""

    def __call__(self, labels: Any, params: Any = None) -> Any:
        """Note on a sample that it is to be flipped."""
        if REMAINDER not in labels:
            return self._whole(labels, params)
        if params["flip"]:
            side = "upside_down" if params["direction"] == "vertical" else "mirrored"
            labels[REMAINDER] = labels[REMAINDER]._replace(**{side: True})
        return labels


class LeftFormat(_Step):
    """The order of channels: upstream decides, on three of them."""

    def __call__(self, labels: Any, params: Any = None) -> Any:
        """Make a tensor of an image's bytes as they lie, with what is left to be done."""
        left = labels.pop(REMAINDER, None)
        if left is None:
            return self._whole(labels, params)
        ordered = type(self._transform)._format_img(self._transform, CHANNELS)
        image = np.ascontiguousarray(labels.pop(IMAGE))
        pixels = torch.from_numpy(image.reshape(3, *image.shape[:2]))
        setattr(pixels, REMAINDER, left._replace(swapped=int(ordered[0]) == 2))
        labels[IMAGE] = pixels
        return labels


KINDS: dict[str, type[_Step]] = {"RandomHSV": LeftColours, "RandomFlip": LeftFlip, "Format": LeftFormat}


class Collated:
    """A data set's `collate_fn`, which takes along what is left to be done.

    Args:
        upstream: Its own.
    """

    def __init__(self, upstream: Callable[[Any], Any]) -> None:
        self._upstream = upstream

    def __call__(self, samples: Any) -> Any:
        """Make a batch of samples."""
        found = [getattr(sample[IMAGE], REMAINDER, None) for sample in samples]
        if not any(found):
            return self._upstream(samples)
        batch = self._upstream(samples)
        batch[REMAINDER] = list(found)
        return batch


class Leaving:
    """A loader's `worker_init_fn`: its workers may leave pixels undone.

    Args:
        upstream: Its own.
    """

    def __init__(self, upstream: Callable[[int], Any]) -> None:
        self._upstream = upstream

    def __call__(self, worker: int) -> Any:
        """Begin a worker."""
        global _leaves
        _leaves = True
        return self._upstream(worker)


@contextmanager
def leaving() -> Iterator[None]:
    """Have samples that this process makes leave their pixels undone while this is open."""
    global _leaves
    before, _leaves = _leaves, True
    try:
        yield
    finally:
        _leaves = before


@contextmanager
def workers_leave(module: str) -> Iterator[None]:
    """Have the workers of loaders that functions of a module make while this is open leave pixels undone."""
    found = import_module(module)
    theirs = vars(found).get("seed_worker")
    if theirs is None or not is_upstreams(theirs):
        yield
        return
    with instead(found, "seed_worker", Leaving(theirs)):
        yield


def leaves(loader: Any) -> bool:
    """Return whether a loader has workers, and they leave pixels undone."""
    return bool(getattr(loader, "num_workers", 0)) and isinstance(getattr(loader, "worker_init_fn", None), Leaving)


class Unfinished(dict):  # type: ignore[type-arg]
    """A batch whose images are done when somebody asks for them.

    Args:
        batch: As it has come from a worker.
        finishing: Does it.
    """

    def __init__(self, batch: dict[str, Any], finishing: Finishing) -> None:
        super().__init__(batch)
        self._left: Any = super().pop(REMAINDER)
        self._finishing = finishing

    def on(self, device: Any) -> dict[str, Any]:
        """Return the batch with its images done on a device, or on the host if that fails."""
        if self._left is not None:
            images, left = super().__getitem__(IMAGE), self._left
            super().__setitem__(IMAGE, self._finishing.done(images, left, device))
            self._left = None
        return dict(super().items())

    def finish(self) -> None:
        """Do what is left on the host, image by image, as a worker would have done it."""
        if self._left is not None:
            self._finishing.read += 1
            super().__setitem__(IMAGE, self._finishing.on_host(super().__getitem__(IMAGE), self._left))
            self._left = None

    def __setitem__(self, key: Any, value: Any) -> None:
        if key == IMAGE:
            self._left = None
        super().__setitem__(key, value)

    def __reduce_ex__(self, _: Any) -> Any:
        """Be copied and pickled as the dictionary that it stands for."""
        self.finish()
        return dict, (dict(super().items()),)

    def __iter__(self) -> Iterator[Any]:  # dict(batch) and {**batch} look up what they take where this is overridden
        return super().__iter__()


def is_unfinished(batch: Any) -> bool:
    """Return whether the last pixels of a batch may be undone."""
    return isinstance(batch, Unfinished) or (isinstance(batch, dict) and REMAINDER in batch)


def _asking(name: str) -> Callable[..., Any]:
    """Return a method of dictionaries before which everything is done."""
    method = getattr(dict, name)

    def asked(self: Unfinished, *args: Any, **kwargs: Any) -> Any:
        self.finish()
        return method(self, *args, **kwargs)

    asked.__name__ = name
    return asked


for _name in ("get", "pop", "popitem", "setdefault", "items", "values", "copy", "update", "__getitem__", "__eq__",
              "__ne__", "__or__", "__ror__", "__ior__", "__repr__"):  # fmt: skip
    setattr(Unfinished, _name, _asking(_name))


class FinishedLoader(wrapt.ObjectProxy):  # type: ignore[misc,type-arg,unused-ignore]
    """A training loader from which whoever reads it gets images that are done.

    Args:
        loader: Upstream's.
        finishing: Does it.
    """

    def __init__(self, loader: Any, finishing: Finishing) -> None:
        super().__init__(loader)
        self._self_finishing = finishing

    def __iter__(self) -> Iterator[Any]:
        for batch in self.__wrapped__:
            yield Unfinished(batch, self._self_finishing) if is_unfinished(batch) else batch
