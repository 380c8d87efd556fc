"""The parts of what makes YOLOv9's and YOLOv5's training samples that patches may replace, as functions of a module.

Upstream's own functions go on joining labels and drawing random numbers, on images that cost nothing; what is replaced
is what they do to pixels and polygons. Loader workers that are forked have what stands then; those that are spawned are
upstream's.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.loading.part import COMPARED, Part
from yolo_patches.loading_seams import Samples
from yolo_patches.upstreams import polygon_calls
from yolo_patches.wrapping import instead

#: Part -> upstream's function of it.
FUNCTIONS = {
    "paste": "copy_paste",
    "blend": "mixup",
    "even polygons": "resample_segments",
    "masks": "polygons2masks_overlap",
    "separate masks": "polygons2masks",
}
#: Modules, as a checkout names them, that may call these functions by name.
MODULES = (
    "utils.dataloaders",
    "utils.augmentations",
    "utils.segment.dataloaders",
    "utils.segment.augmentations",
)


def offer(lifecycle: Lifecycle, stack: ExitStack, root: Path, loaders: str) -> None:
    """Let patches replace parts, for as long as a stack is open.

    Args:
        lifecycle: Of the training.
        stack: Closed when the training ends.
        root: Of the checkout.
        loaders: Module of the function that builds this training's loaders.
    """
    there = places(root, loaders)
    seam = lifecycle.fire(Samples(frozenset(there)))
    for name, ways in seam.ways.items():
        if name in there:
            part = Part(name, ways, seam.ledger)
            for module in there[name]:
                ours = STAND_INS[name](part, vars(module)[FUNCTIONS[name]])
                stack.enter_context(instead(module, FUNCTIONS[name], ours))


def places(root: Path, loaders: str) -> dict[str, list[ModuleType]]:
    """Return part -> the modules that have upstream's function of it; each task has its own modules.

    Args:
        root: Of the checkout.
        loaders: Module of the function that builds its loaders.
    """
    package, _, inside = loaders.partition("utils.")
    folder = f"utils.{inside}".rpartition(".")[0]
    names = [package + name for name in MODULES if name.rpartition(".")[0] == folder]
    modules = [sys.modules[name] for name in names if name in sys.modules]
    found = {
        part: [module for module in modules if _is_upstreams(vars(module).get(function), root)]
        for part, function in FUNCTIONS.items()
    }
    return {part: where for part, where in found.items() if where}


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
            random.setstate(before)
            return theirs(image.copy(), labels, segments[:there], p)[0]

        try:
            row = np.zeros((1, *im.shape[1:]), im.dtype)  # what is computed of labels depends on the width alone
            _, joined, more = theirs(row, labels, segments[:there], p)
            outlines = _chosen(more[there:], segments, im.shape[1])
            if outlines:
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
    "paste": _copy_paste,
    "blend": _mixup,
    "even polygons": polygon_calls.resample,
    "masks": polygon_calls.overlap,
    "separate masks": polygon_calls.separate,
}
