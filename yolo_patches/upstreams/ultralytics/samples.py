"""The parts of what makes Ultralytics' training samples that patches may replace, in place in one live data set.

Upstream's own code goes on making the labels and every decision, and draws the random numbers: a part is one operation
on pixels or polygons. What stands in survives pickling, as loader workers may be spawned.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from importlib import import_module
from typing import Any

import numpy as np
import torch

from yolo_patches.loading.part import COMPARED, Part, alike
from yolo_patches.loading_seams import Samples
from yolo_patches.nn import random_numbers
from yolo_patches.upstreams.ultralytics.origin import is_upstreams
from yolo_patches.wrapping import instead

#: Part -> the class of upstream's transform that has it.
TRANSFORMS = {"planes": "Format", "blend": "MixUp"}
#: Part -> upstream's function, and the modules that call it by name.
FUNCTIONS = {
    "polygons": ("resample_segments", ("ultralytics.data.dataset", "ultralytics.utils.instance")),
    "masks": ("polygons2masks_overlap", ("ultralytics.data.augment",)),
    "separate masks": ("polygons2masks", ("ultralytics.data.augment",)),
}
#: Samples that are made both ways before the first loader.
PROBED = 4
#: What a data set remembers of the images that it has read last.
REMEMBERED = ("ims", "im_hw0", "im_hw", "buffer")


def samples(dataset: Any) -> Samples:
    """Return what is known of a data set: upstream's own transforms and functions, unmodified."""
    found = set()
    if is_upstreams(dataset) and hasattr(dataset, "transforms"):
        kinds = {type(one).__name__ for one in _transforms(dataset.transforms) if _is_known(one)}
        found |= {part for part, kind in TRANSFORMS.items() if kind in kinds}
        if kinds:  # a classification set has neither boxes nor polygons
            found |= {part for part, (name, modules) in FUNCTIONS.items() if _functions(name, modules)}
    return Samples(frozenset(found))


class InPlace:
    """Parts that stand in, in one data set.

    Args:
        dataset: Upstream's, with its transforms, and no loader of it yet.
        seam: As patches have made it.
    """

    def __init__(self, dataset: Any, seam: Samples) -> None:
        self._parts = {name: Part(name, ways, seam.ledger) for name, ways in seam.ways.items() if name in seam.known}
        self._ledger = seam.ledger
        if "polygons" in self._parts:
            _settle_polygons(self._parts["polygons"])
        before = dataset.transforms, dict(vars(dataset))
        try:
            self._transform(dataset.transforms)
            dataset.build_transforms = Rebuilt(dataset, self._transform)
        except BaseException:
            self._take_back(before[0])
            vars(dataset).clear()
            vars(dataset).update(before[1])
            raise

    def functions(self, stack: ExitStack) -> None:
        """Replace upstream's functions for as long as the stack is open; forked workers have what stands then."""
        for part, (name, modules) in FUNCTIONS.items():
            if part in self._parts:
                for module in _functions(name, modules):
                    ours = CALLS[part](self._parts[part], vars(module)[name])
                    stack.enter_context(instead(module, name, ours))

    def probe(self, dataset: Any) -> str:
        """Make samples both ways; return what is wrong, with upstream's ways in place, or nothing.

        Afterwards random numbers, and what the data set remembers, are as if nothing had happened.
        """
        for index in range(min(PROBED, len(dataset))):
            made = []
            for ours in (False, True):
                self._ledger.switch(ours)
                with _unseen(dataset):
                    random.seed(index)
                    np.random.seed(index)
                    made.append((_bits(dataset[index]), random.getstate(), np.random.get_state()))
            if not all(map(alike, made[0], made[1])):
                self._ledger.switch(False)
                return f"sample {index} of the training set had other contents than upstream's"
        return ""

    def _transform(self, transforms: Any) -> None:
        """Put the parts into a pipeline of transforms."""
        for one in _transforms(transforms):
            if _is_known(one):
                kind = type(one).__name__
                if kind == TRANSFORMS["planes"] and "planes" in self._parts:
                    one._format_img = Planes(one, self._parts["planes"])
                elif kind == TRANSFORMS["blend"] and "blend" in self._parts:
                    method = "apply_image" if hasattr(one, "apply_image") else "_mix_transform"
                    setattr(one, method, Blend(one, method, self._parts["blend"]))

    def _take_back(self, transforms: Any) -> None:
        for one in _transforms(transforms):
            for name in ("_format_img", "apply_image", "_mix_transform"):
                if isinstance(vars(one).get(name), (Planes, Blend)):
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


class Planes:
    """Upstream's `_format_img`, with our operation on the pixels.

    Args:
        transform: Whose method it is.
        part: Does the work.
    """

    def __init__(self, transform: Any, part: Part) -> None:
        self._transform = transform
        self._part = part
        before = random.getstate()
        self._upstream(np.zeros((1, 1, 3), np.uint8))
        self._draws = random.getstate() != before  # whether the order of channels is left to chance
        random.setstate(before)

    def __call__(self, image: Any) -> Any:
        """Return the image as a tensor [C, H, W]."""
        if image.ndim != 3 or image.shape[2] != 3:
            return self._upstream(image)
        before = random.getstate() if self._draws else None

        def upstream(image: Any, _: bool) -> Any:
            if before is not None:
                random.setstate(before)
            return self._upstream(image).numpy()

        swapped = not self._draws or random.uniform(0, 1) > self._transform.bgr
        return torch.from_numpy(self._part(upstream, image, swapped))

    def _upstream(self, image: Any) -> Any:
        return type(self._transform)._format_img(self._transform, image)


class Blend:
    """Upstream's step of a transform that blends two images, with our operation on the pixels.

    Args:
        transform: Whose method it is.
        method: Its name: `apply_image`, or before 8.4.100 or so `_mix_transform`, which draws and joins labels, too.
        part: Does the work.
    """

    def __init__(self, transform: Any, method: str, part: Part) -> None:
        self._transform = transform
        self._method = method
        self._part = part

    def __call__(self, labels: Any, *params: Any) -> Any:
        """Blend `labels["img"]` with the image that is to be mixed in."""
        whole = partial(getattr(type(self._transform), self._method), self._transform)
        others = labels["mix_labels"]
        image, other = labels["img"], others[0]["img"]
        before = np.random.get_state()

        def upstream(image: Any, other: Any, _: float) -> Any:
            np.random.set_state(before)
            return whole({**labels, "mix_labels": [{**others[0], "img": other}]}, *params)["img"]

        share = params[0]["r"] if params else np.random.beta(32.0, 32.0)
        blended = self._part(upstream, image, other, share)
        if not params:  # labels are joined, and numbers drawn, where no pixel is computed
            np.random.set_state(before)
            nothing = image[:0]
            labels["img"], others[0]["img"] = nothing, nothing
            labels = whole(labels)
        labels["img"] = blended
        return labels


def _settle_polygons(part: Part) -> None:
    """Find the way of this release where it can be told from the others: with fewer corners than points."""
    name, modules = FUNCTIONS["polygons"]
    ours = _resample(part, vars(_functions(name, modules)[0])[name])
    for corners in range(3, 3 + COMPARED):
        ours([np.linspace(0, 1, 2 * corners, dtype=np.float32).reshape(corners, 2) ** 2], n=20)


def _resample(part: Part, theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def resample_segments(segments: Any, n: int = 1000) -> Any:
        if not isinstance(segments, list):
            return theirs(segments, n)
        segments[:] = part(lambda segments, n: theirs(list(segments), n), segments, n)
        return segments

    return resample_segments


def _overlap(part: Part, theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def polygons2masks_overlap(imgsz: Any, segments: Any, downsample_ratio: int = 1) -> Any:
        return part(theirs, imgsz, segments, downsample_ratio)

    return polygons2masks_overlap


def _separate(part: Part, theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def polygons2masks(imgsz: Any, polygons: Any, color: int, downsample_ratio: int = 1) -> Any:
        if color != 1:
            return theirs(imgsz, polygons, color, downsample_ratio)
        return part(lambda size, segments, ratio: theirs(size, segments, 1, ratio), imgsz, polygons, downsample_ratio)

    return polygons2masks


CALLS = {"polygons": _resample, "masks": _overlap, "separate masks": _separate}


def _chains(transforms: Any) -> Iterator[list[Any]]:
    """Yield the lists of a pipeline's transforms, each once: what is mixed in has passed through a pipeline, too."""
    waiting, seen = [transforms], set()
    while waiting:
        one = waiting.pop()
        chain = getattr(one, "transforms", None)
        if isinstance(chain, list) and is_upstreams(one) and id(chain) not in seen:
            seen.add(id(chain))
            yield chain
            waiting += [*chain, *(getattr(inner, "pre_transform", None) for inner in chain)]


def _transforms(transforms: Any) -> Iterator[Any]:
    for chain in _chains(transforms):
        yield from chain


def _is_known(transform: Any) -> bool:
    """Return whether a transform is upstream's own, and nobody has replaced its methods."""
    names = ("__call__", "_format_img", "_mix_transform", "apply_image", "get_params", "apply_instances")
    methods = [getattr(type(transform), name) for name in names if hasattr(type(transform), name)]
    return type(transform).__module__ == "ultralytics.data.augment" and all(
        is_upstreams(method) and name not in vars(transform)
        for name, method in zip([name for name in names if hasattr(type(transform), name)], methods)
    )


def _functions(name: str, modules: Sequence[str]) -> list[Any]:
    """Return the modules that have upstream's own function under a name."""
    found = [import_module(module) for module in modules]
    return [module for module in found if is_upstreams(vars(module).get(name))]


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
