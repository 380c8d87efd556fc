"""Ultralytics' data sets that keep their decoded images in host memory: where that comes to the seams.

It happens within a data set's constructor, so that the wrappers are on the class; they ask the training under way.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from yolo_patches.activation import activation
from yolo_patches.caching_seams import CacheRoom, ImageCache
from yolo_patches.wrapping import Wrapping, instead

#: Upstream's class, and its methods: the first judges, the second decodes.
OWNER, METHODS = "BaseDataset", ("check_cache_ram", "cache_images")
#: What a data set has of each image beside its pixels.
SIZES = ("im_hw0", "im_hw")
#: Images that are decoded to know how large all of them are.
SAMPLED = 30
#: Where the key of a data set is kept between the two methods.
KEY = "_yolo_patches_key"
#: How often this process has come to each data set: ranks may train several times with one store.
_seen: Counter[str] = Counter()


def install(module: ModuleType, wrapping: Wrapping) -> None:
    """Wrap both methods, where this release has both."""
    owner = getattr(module, OWNER, None)
    if owner is not None and all(method in vars(owner) for method in METHODS):
        wrapping.wrap(owner, METHODS[0], _check)
        wrapping.wrap(owner, METHODS[1], _decode)


def defects() -> list[str]:
    """Return why the installed release has no seam, or nothing."""
    from ultralytics.data import base

    owner = getattr(base, OWNER, object)
    return [f"{OWNER}.{method} does not exist" for method in METHODS if method not in vars(owner)]


def _check(wrapped: Callable[..., Any], dataset: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    lifecycle = activation.current
    if lifecycle is None or not lifecycle.listens(CacheRoom):
        return wrapped(*args, **kwargs)
    before = getattr(dataset, "cache", None)
    fits = wrapped(*args, **kwargs)  # in any case: it draws random numbers

    def judge() -> bool:
        key = vars(dataset)[KEY] = _key(dataset)
        seam = CacheRoom(
            key, int(dataset.ni), bool(fits), lambda: _keeps(dataset), lambda: _needed(dataset), lifecycle.tell
        )
        return bool(lifecycle.fire(seam).fits)

    judged = lifecycle.attempt(judge, CacheRoom)
    if judged is None or judged == bool(fits):
        return fits
    # What upstream's own judgement leaves behind.
    dataset.cache = before if judged else None
    return judged


def _decode(wrapped: Callable[..., Any], dataset: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    lifecycle = activation.current
    key = vars(dataset).pop(KEY, None)
    if key is None or lifecycle is None or not lifecycle.listens(ImageCache):
        return wrapped(*args, **kwargs)

    def notes() -> Any:
        return {"buffer": list(dataset.buffer), **{name: getattr(dataset, name) for name in SIZES}}

    def keep(images: Any, noted: Any) -> None:
        dataset.ims = images
        dataset.buffer[:] = noted["buffer"]
        for name in SIZES:
            setattr(dataset, name, [tuple(size) for size in noted[name]])

    act = ImageCache(key, int(dataset.ni), notes, keep, lambda i: dataset.load_image(i)[0], tell=lifecycle.tell)

    def upstream() -> Any:
        if act.into is not None:
            dataset.ims = act.into
        with nullcontext() if act.into is None else _unpacked(dataset):
            return wrapped(*args, **kwargs)

    try:
        return lifecycle.around(act, upstream)
    finally:
        if act.into is not None and dataset.ims is act.into:  # nobody has made more of it
            dataset.ims = [act.into[i] for i in range(len(act.into))]
            act.into.close()


def _unpacked(dataset: Any) -> AbstractContextManager[None]:
    """From 8.4.1xx on upstream copies decoded images into one tensor of its own; here they are where they belong."""
    return instead(dataset, "_ImageCache", lambda images: images) if hasattr(dataset, "_ImageCache") else nullcontext()


def _key(dataset: Any) -> str:
    """Return a name for a data set, the same on every rank of a machine, and another one when it comes again."""
    files = "\n".join([*map(str, dataset.im_files), str(dataset.imgsz), str(dataset.augment)])
    digest = hashlib.sha1(files.encode(), usedforsecurity=False).hexdigest()
    _seen[digest] += 1
    return f"cached/{digest}/{_seen[digest]}"


def _apart(dataset: Any) -> Any:
    """Return a copy that may decode without a trace in the data set."""
    apart = copy.copy(dataset)
    apart.ims, apart.buffer = [None] * dataset.ni, []
    for name in SIZES:
        setattr(apart, name, [None] * dataset.ni)
    if not hasattr(apart, "npy_files"):  # before 8.2 it judges first
        apart.npy_files = [Path(file).with_suffix(".npy") for file in apart.im_files]
    return apart


def _keeps(dataset: Any) -> bool:
    """Decode an image as if as many as upstream holds for mosaics had been decoded before it, and see what it does."""
    if dataset.ni < 2:
        return True
    apart = _apart(dataset)
    apart.buffer, apart.max_buffer_length, apart.ims[1] = [1], 2, np.zeros(1)
    apart.load_image(0)
    return apart.ims[1] is not None


def _needed(dataset: Any) -> int:
    apart = _apart(dataset)
    numbers = sorted({round(i) for i in np.linspace(0, dataset.ni - 1, min(SAMPLED, dataset.ni))})
    return int(dataset.ni * np.mean([apart.load_image(i)[0].nbytes for i in numbers]))
