"""The parts of what makes YOLOv9's and YOLOv5's training samples that patches may replace, by names in their modules.

Upstream's own functions go on joining labels and drawing random numbers, on images that cost nothing; what is replaced
is what they do to pixels and polygons. Loader workers that are forked have what stands then; those that are spawned are
upstream's.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.loading.part import COMPARED, Part
from yolo_patches.loading_seams import Samples
from yolo_patches.upstreams import polygon_calls
from yolo_patches.upstreams.scripts.sample_canvas import Canvases, Painting, paste
from yolo_patches.upstreams.scripts.sample_objects import Boxes
from yolo_patches.upstreams.stack import KeepingOverlay
from yolo_patches.wrapping import instead

#: Part -> upstream's function of it.
FUNCTIONS = {
    "colours": "augment_hsv",
    "paste": "copy_paste",
    "blend": "mixup",
    "even polygons": "resample_segments",
    "masks": "polygons2masks_overlap",
    "separate masks": "polygons2masks",
}
#: Parts that take more than one function, or a library's.
CANVAS, BOXES, PLANES = "canvas", "boxes around polygons", "planes"
#: Modules, as a checkout names them, that may call these functions by name.
MODULES = (
    "utils.dataloaders",
    "utils.augmentations",
    "utils.segment.dataloaders",
    "utils.segment.augmentations",
)
#: What upstream's warp is, and what it calls for the boxes of polygons.
WARP = ("random_perspective", "resample_segments", "segment2box")
#: What functions must take for ours to stand in, one of these; the warp takes more after it.
PARAMETERS = {
    "augment_hsv": ("im hgain sgain vgain",),
    "copy_paste": ("im labels segments p",),
    "mixup": ("im labels im2 labels2", "im labels segments im2 labels2 segments2"),
    "random_perspective": ("im targets segments",),
    "resample_segments": ("segments n",),
    "segment2box": ("segment width height",),
}
#: Of a data set that makes mosaics.
METHODS = ("__getitem__", "load_mosaic")


def offer(lifecycle: Lifecycle, stack: ExitStack, root: Path, loaders: str) -> None:
    """Let patches replace parts, for as long as a stack is open.

    Args:
        lifecycle: Of the training.
        stack: Closed when the training ends.
        root: Of the checkout.
        loaders: Module of the function that builds this training's loaders.
    """
    there = Places(root, loaders)
    seam = lifecycle.fire(Samples(there.known))
    parts = {name: Part(name, ways, seam.ledger, seam.near) for name, ways in seam.ways.items() if name in there.known}
    there.put(parts, stack)


class Places:
    """Where a checkout has its parts; each task has its own modules.

    Args:
        root: Of the checkout.
        loaders: Module of the function that builds its loaders.

    Attributes:
        known: The parts that are there.
    """

    def __init__(self, root: Path, loaders: str) -> None:
        package, _, inside = loaders.partition("utils.")
        folder = f"utils.{inside}".rpartition(".")[0]
        names = [package + name for name in MODULES if name.rpartition(".")[0] == folder]
        self._modules = [sys.modules[name] for name in names if name in sys.modules]
        self._augmentations = [
            sys.modules[name]
            for name in (f"{package}utils.augmentations", f"{package}{folder}.augmentations")
            if name in sys.modules
        ]
        self._root = root
        self._functions = {part: self._having(function) for part, function in FUNCTIONS.items()}
        self._warps = {name: self._having(name) for name in WARP}
        self._sets = [
            one
            for module in self._modules
            for one in vars(module).values()
            if isinstance(one, type)
            and one.__module__ == module.__name__
            and all(_is_upstreams(vars(one).get(name), root) for name in METHODS)
        ]
        known = {part for part, where in self._functions.items() if where}
        if self._modules and self._sets:
            known |= {PLANES, *([CANVAS] if self._warps["random_perspective"] else [])}
        if folder == "utils" and all(self._warps.values()):
            known.add(BOXES)  # for masks all points are wanted
        self.known = frozenset(known)

    def put(self, parts: Mapping[str, Part], stack: ExitStack) -> None:
        """Have parts stand in for as long as a stack is open."""
        put = partial(_put, stack)
        for name, part in parts.items():
            for module in self._functions.get(name, ()):
                put(module, FUNCTIONS[name], partial(STAND_INS[name], part))
        loaders = self._modules[:1]
        if PLANES in parts:
            for module in loaders:
                put(module, "np", partial(_planes, parts[PLANES]))
        if CANVAS in parts:
            canvases = Canvases(parts[CANVAS])
            for module in loaders:
                put(module, "np", canvases.numpy)
            for one in self._sets:
                put(one, "__getitem__", canvases.samples)
            for module in dict.fromkeys(self._augmentations):
                put(module, "cv2", canvases.opencv)
        if BOXES in parts:
            boxes = Boxes(parts[BOXES])
            for name, made in zip(WARP, (boxes.warp, boxes.resample, boxes.box)):
                for module in self._warps[name]:
                    put(module, name, made)
            for module in self._warps["segment2box"]:
                put(module, "cv2", boxes.opencv)

    def _having(self, function: str) -> list[ModuleType]:
        """Return the modules that have a function of upstream's under its name."""
        return [
            module
            for module in self._modules
            if _is_upstreams(vars(module).get(function), self._root) and takes(vars(module)[function], function)
        ]


def _put(stack: ExitStack, owner: Any, name: str, made: Callable[[Any], Any]) -> None:
    """Have something made of what is under a name stand in for it."""
    if name in vars(owner):
        stack.enter_context(instead(owner, name, made(vars(owner)[name])))


def takes(function: Any, name: str) -> bool:
    """Return whether a function of a name takes what those do that we know."""
    known = PARAMETERS.get(name)
    given = function.__code__.co_varnames[: function.__code__.co_argcount]
    some = given[:3] if name == WARP[0] else given
    return known is None or " ".join(some) in known


def _is_upstreams(function: Any, root: Path) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and root in Path(code.co_filename).resolve().parents


def _copy_paste(part: Part, theirs: Callable[..., Any]) -> Callable[..., Any]:
    pasted = 0  # images into which something has been pasted, in this process

    @wraps(theirs)
    def copy_paste(im: Any, labels: Any, segments: Any, p: float = 0.5) -> Any:
        nonlocal pasted
        there = len(segments)
        if not (p and there and part.ways):
            return theirs(im, labels, segments, p)
        before = random.getstate()

        def upstream(image: Any, _: Any) -> Any:
            after = random.getstate()
            random.setstate(before)
            try:
                return theirs(image.copy(), labels, segments[:there], p)[0]
            finally:
                random.setstate(after)

        try:
            row = np.zeros((1, *im.shape[1:]), np.uint8)  # what is computed of labels depends on the width alone
            _, joined, more = theirs(row, labels, segments[:there], p)
            outlines = _chosen(more[there:], segments, im.shape[1])
            if isinstance(im, Painting):
                image, pasted = paste(im, outlines, upstream), pasted + bool(outlines)
            elif outlines:
                image, pasted = part(upstream, im, outlines), pasted + 1
            else:
                image = im if pasted >= COMPARED else upstream(im, outlines)
        except Exception:  # upstream's own error shows below, where there is one
            random.setstate(before)
            return theirs(im, labels, segments, p)
        return image, joined, more

    return copy_paste


def _chosen(added: Any, segments: Any, width: int) -> list[Any]:
    """Return the outlines, in whole pixels, of which mirrored ones have been added.

    Raises:
        LookupError: One of them is no polygon's mirror image.
    """
    by_height: dict[bytes, list[Any]] = {}
    for one in segments if added else ():
        by_height.setdefault(one[:, 1].tobytes(), []).append(one)
    found = []
    for one in added:
        same = by_height.get(one[:, 1].tobytes(), [])
        outline = next((other for other in same if np.array_equal(width - other[:, 0], one[:, 0])), None)
        if outline is None:
            raise LookupError("a pasted polygon is none of the image's")
        found.append(outline.astype(np.int32))
    return found


def _augment_hsv(part: Part, theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def augment_hsv(im: Any, hgain: float = 0.5, sgain: float = 0.5, vgain: float = 0.5) -> None:
        if not part.ways or not (hgain or sgain or vgain):
            theirs(im, hgain, sgain, vgain)
            return
        before = np.random.get_state()

        def upstream(image: Any, _: Any) -> Any:
            np.random.set_state(before)
            changed = image.copy()
            theirs(changed, hgain, sgain, vgain)
            return changed

        im[:] = part(upstream, im, np.random.uniform(-1, 1, 3) * [hgain, sgain, vgain])

    return augment_hsv


def _planes(part: Part, library: Any) -> KeepingOverlay:
    """Return NumPy, whose `ascontiguousarray` takes an image's channels apart."""

    def ascontiguousarray(array: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or getattr(array, "ndim", 0) != 3 or array.shape[0] != 3:
            return library.ascontiguousarray(array, *args, **kwargs)
        return part(lambda *_: library.ascontiguousarray(array), array[::-1].transpose(1, 2, 0), True)

    return KeepingOverlay(library, ascontiguousarray=ascontiguousarray)


def _mixup(part: Part, theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def mixup(im: Any, labels: Any, *rest: Any) -> Any:
        place = (
            len(rest) // 2 - 1
        )  # of the other image: (image, labels), with masks (segments, image, labels, segments)
        before = np.random.get_state()
        if not part.ways:
            return theirs(im, labels, *rest)

        def upstream(image: Any, other: Any, _: float) -> Any:
            np.random.set_state(before)
            return theirs(image, labels, *rest[:place], other, *rest[place + 1 :])[0]

        try:
            blended = part(upstream, im, rest[place], np.random.beta(32.0, 32.0))
            np.random.set_state(before)
            _, *joined = theirs(im[:0], labels, *rest[:place], rest[place][:0], *rest[place + 1 :])
        except Exception:
            np.random.set_state(before)
            return theirs(im, labels, *rest)
        return (blended, *joined)

    return mixup


STAND_INS = {
    "colours": _augment_hsv,
    "paste": _copy_paste,
    "blend": _mixup,
    "even polygons": polygon_calls.resample,
    "masks": polygon_calls.overlap,
    "separate masks": polygon_calls.separate,
}
