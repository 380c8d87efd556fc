"""The parts of what makes Ultralytics' training samples that patches may replace, in place in one live data set.

Upstream's own code goes on making the labels and every decision, and draws the random numbers: a part is one operation
on pixels or polygons. What stands in survives pickling, as loader workers may be spawned.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from yolo_patches.loading.finishing import LEFT
from yolo_patches.loading.labels import Label
from yolo_patches.loading.part import DIFFERS, Part, alike, is_near
from yolo_patches.loading_seams import Samples
from yolo_patches.nn import random_numbers
from yolo_patches.upstreams.ultralytics import sample_classes
from yolo_patches.upstreams.ultralytics.origin import is_upstreams
from yolo_patches.upstreams.ultralytics.sample_canvas import CANVAS, canvas_steps
from yolo_patches.upstreams.ultralytics.sample_functions import CALLS, FUNCTIONS, functions, settle_polygons
from yolo_patches.upstreams.ultralytics.sample_objects import OUTLINES, WARPED, Outlines, has_outlines, object_steps
from yolo_patches.upstreams.ultralytics.sample_operations import OPERATIONS, is_known
from yolo_patches.upstreams.ultralytics.sample_remainders import REMAINDER, Collated, Remainders, is_plain, leaving
from yolo_patches.wrapping import instead

#: Samples that are made both ways before the first loader.
PROBED = 4
#: What a data set remembers of the images that it has read last.
REMEMBERED = ("ims", "im_hw0", "im_hw", "buffer")


def samples(dataset: Any, kept: str = "") -> Samples:
    """Return what is known of a data set: upstream's own transforms and functions, unmodified.

    Args:
        dataset: Upstream's, or a user's.
        kept: Why its last pixels cannot be left undone; empty where that is up to the data set.
    """
    found = set()
    if is_upstreams(dataset) and hasattr(dataset, "transforms"):
        known = [one for one in _transforms(dataset.transforms) if is_known(one)]
        found |= {part for one in known for part, _, _ in _operations(one)}
        if known:  # a classification set has neither boxes nor polygons
            found |= {part for part, (name, modules) in FUNCTIONS.items() if functions(name, modules)}
        chains = list(_chains(dataset.transforms))
        found |= {part for one in chains for part in sequence_steps(one, dataset)}
        if WARPED in found and has_outlines(dataset):
            found.add(OUTLINES)
        kept = kept or (
            "" if is_plain(dataset) else "colours, flips and channels are not the last that is done to images"
        )
        if not kept:
            found.add(LEFT)
    if sample_classes.last_steps(sample_classes.chain(dataset)):
        found.add(sample_classes.NUMBERS)
    return Samples(frozenset(found), kept=kept)


class InPlace:
    """Parts that stand in, in one data set.

    Args:
        dataset: Upstream's, with its transforms, and no loader of it yet.
        seam: As patches have made it.
    """

    def __init__(self, dataset: Any, seam: Samples) -> None:
        self._parts = {
            name: Part(name, ways, seam.ledger, seam.near) for name, ways in seam.ways.items() if name in seam.known
        }
        self._near = bool(seam.near)
        self._ledger = seam.ledger
        self._dataset = dataset
        self._finishing = seam.finishing
        if sample_classes.NUMBERS in self._parts:
            sample_classes.place(dataset, self._parts[sample_classes.NUMBERS])
            return
        if "polygons" in self._parts:
            settle_polygons(self._parts["polygons"])
        self._remainders = None if seam.finishing is None else Remainders(dataset, seam.ledger)
        before = dataset.transforms, dict(vars(dataset))
        try:
            if self._remainders is not None:
                dataset.collate_fn = Collated(type(dataset).collate_fn)
            self._transform(dataset.transforms)
            dataset.build_transforms = Rebuilt(dataset, self._transform)
            if OUTLINES in self._parts:
                dataset.update_labels_info = Outlines(dataset, self._parts[OUTLINES])
            if self._parts and all(type(one) is dict for one in dataset.labels):
                dataset.labels = [Label(one) for one in dataset.labels]
        except BaseException:
            self._take_back(before[0])
            vars(dataset).clear()
            vars(dataset).update(before[1])
            raise

    def functions(self, stack: ExitStack) -> None:
        """Replace upstream's functions for as long as the stack is open; forked workers have what stands then."""
        for part, (name, modules) in FUNCTIONS.items():
            if part in self._parts:
                for module in functions(name, modules):
                    ours = CALLS[part](self._parts[part], vars(module)[name])
                    stack.enter_context(instead(module, name, ours))

    def probe(self, dataset: Any, device: Any = "cpu") -> str:
        """Make samples both ways; return what is wrong, with upstream's ways in place, or nothing.

        Afterwards random numbers, and what the data set remembers, are as if nothing had happened.

        Args:
            dataset: The data set.
            device: On which the last pixels of samples are done.
        """
        for index in range(min(PROBED, len(dataset))):
            theirs, ours = (self._made(dataset, index, on) for on in (False, True))
            if theirs is None:  # upstream's own trouble, which it tells when it comes to this sample
                continue
            if ours is None or not self._same(theirs, ours):
                self._ledger.switch(False)
                return f"sample {index} of the training set had other contents than upstream's"
            if self._finishing is not None and not self._finishing.off:
                with leaving():
                    ours = self._made(dataset, index, True, device)
                if ours is None or not self._same(theirs, ours):
                    self._finishing.stop(f"sample {index} came out otherwise than upstream's", DIFFERS)
        if self._finishing is not None:
            self._finishing.begin()
        return ""

    def _same(self, theirs: list[Any], ours: list[Any]) -> bool:
        """Return whether samples are the same; images may be nearly so where that was asked for."""
        if self._near or self._finishing is not None:
            for (name, image), other in zip(theirs[0], ours[0]):
                if name == "img" and is_near(other[1], image):
                    other[1] = image
        return alike(theirs, ours)

    def _made(self, dataset: Any, index: int, on: bool, device: Any = None) -> list[Any] | None:
        """Return the contents of a sample and the random numbers after it; None where making it fails.

        Args:
            dataset: The data set.
            index: Of the sample.
            on: Whether what stands in does the work.
            device: Where pixels are done that have been left undone.
        """
        self._ledger.switch(on)
        with _unseen(dataset):
            random.seed(index)
            np.random.seed(index)
            torch.default_generator.manual_seed(index)
            try:
                sample = dataset[index]
                if (left := getattr(sample.get("img"), REMAINDER, None)) is not None:
                    sample["img"] = self._finishing.once(sample["img"][None], [left], device)[0].cpu()
                return [_bits(sample), random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()]
            except Exception:  # of whatever kind: a data set that is read at all is compared
                return None
            finally:
                self._ledger.switch(True)

    def _transform(self, transforms: Any) -> None:
        """Put the parts into a pipeline of transforms."""
        for one in filter(is_known, list(_transforms(transforms))):
            for part, method, operation in _operations(one):
                if part in self._parts:
                    setattr(one, method, operation(one, method, self._parts[part]))
        for composition in list(_chains(transforms)):
            for part, steps in sequence_steps(composition, self._dataset).items():
                for transform, method, step in steps if part in self._parts else ():
                    setattr(transform, method, step(self._parts[part]))
        if self._remainders is not None:
            self._remainders.place(transforms)

    def _take_back(self, transforms: Any) -> None:
        for one in _transforms(transforms):
            for name, value in list(vars(one).items()):
                if type(value).__module__.startswith("yolo_patches."):
                    delattr(one, name)


class Rebuilt:
    """A data set's `build_transforms`: upstream's, with the parts in place; it is called again for the last epochs.

    Args:
        dataset: Whose.
        transform: Puts the parts in.
    """

    def __init__(self, dataset: Any, transform: Callable[[Any], None]) -> None:
        self._dataset = dataset
        self._transform = transform

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Build the transforms."""
        transforms = type(self._dataset).build_transforms(self._dataset, *args, **kwargs)
        try:
            self._transform(transforms)
        except Exception:  # what stands in is complete in itself: what is not in place is upstream's
            return transforms
        return transforms


def _chains(transforms: Any) -> Iterator[Any]:
    """Yield the compositions of a pipeline, each once: what is mixed in has passed through a pipeline, too."""
    waiting, seen = [transforms], set()
    while waiting:
        one = waiting.pop()
        chain = getattr(one, "transforms", None)
        if isinstance(chain, list) and is_upstreams(one) and id(chain) not in seen:
            seen.add(id(chain))
            yield one
            waiting += [*chain, *(getattr(inner, "pre_transform", None) for inner in chain)]


def _transforms(transforms: Any) -> Iterator[Any]:
    for composition in _chains(transforms):
        yield from composition.transforms


def sequence_steps(composition: Any, dataset: Any) -> dict[str, list[Any]]:
    """Return, by part, what stands in where a composition makes mosaics and warps them."""
    canvas = canvas_steps(composition)
    return {**({CANVAS: canvas} if canvas else {}), **object_steps(composition, dataset)}


def _operations(transform: Any) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Yield of a transform the parts that it has, the first method of each that it knows, and what stands in."""
    for part, kind, methods, operation in OPERATIONS:
        method = next((name for name in methods if hasattr(transform, name)), None)
        if type(transform).__name__ == kind and method:
            yield part, method, operation


@contextmanager
def _unseen(dataset: Any) -> Iterator[None]:
    put_back = random_numbers.noted()
    held = {name: list(vars(dataset)[name]) for name in REMEMBERED if isinstance(vars(dataset).get(name), list)}
    try:
        yield
    finally:
        for name, values in held.items():
            vars(dataset)[name][:] = values
        put_back()


def _bits(sample: Any) -> list[Any]:
    """Return the tensors of a sample, and the words for what is none."""
    return [[name, value.numpy() if isinstance(value, torch.Tensor) else repr(value)] for name, value in sample.items()]
