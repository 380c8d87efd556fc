"""Ultralytics' mosaic, copy-paste and warp, on a canvas that is painted only where the warp looks at it.

Releases since 8.4.60 or so have a method for the pixels of each; in older ones the canvas is upstream's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cv2
import numpy as np

from yolo_patches.loading.canvas import Canvas, Tile
from yolo_patches.loading.part import Part
from yolo_patches.upstreams.ultralytics.sample_operations import is_known

#: The name of the part.
CANVAS = "canvas"
#: What upstream fills a polygon with on the mask of what is pasted.
FILLED = 1


def canvas_steps(composition: Any) -> list[tuple[Any, str, Callable[[Part], Any]]]:
    """Return of a composition's transforms the methods that a canvas passes through, with what makes a step of ours.

    Empty where it is not a mosaic of four that a warp follows at once, or after copy-paste.
    """
    found = sequence(composition)
    if found is None or not all(is_known(one) and hasattr(one, "apply_image") for one in found if one is not None):
        return []
    mosaic, paste, warp = found
    steps: list[tuple[Any, str, Callable[[Part], Any]]] = [
        (mosaic, "apply_image", lambda part: Mosaicked(mosaic, composition, part)),
        (warp, "apply_image", lambda part: Warped(warp, part)),
    ]
    if paste is not None:
        steps.append((paste, "apply_image", lambda _: Pasted(paste)))
    return steps


def sequence(composition: Any) -> tuple[Any, Any, Any] | None:
    """Return a composition's mosaic, copy-paste (or None) and warp where they follow each other."""
    chain = composition.transforms
    names = [type(one).__name__ for one in chain]
    if "Mosaic" not in names:
        return None
    first = names.index("Mosaic")
    if names[first : first + 2] == ["Mosaic", "RandomPerspective"]:
        return chain[first], None, chain[first + 1]
    if names[first : first + 3] == ["Mosaic", "CopyPaste", "RandomPerspective"]:
        return chain[first], chain[first + 1], chain[first + 2]
    return None


def standing(mosaic: Any, composition: Any) -> list[Any]:
    """Return the transforms that a mosaic passes through, itself first, as they follow each other now.

    Empty where the composition that the mosaic was found in no longer has it so, or is no step of the data set's
    pipeline: a user may have changed either.
    """
    found = sequence(composition)
    steps = getattr(mosaic.dataset.transforms, "transforms", ())
    if found is None or found[0] is not mosaic or not any(step is composition for step in steps):
        return []
    return [one for one in found if one is not None]


class Mosaicked:
    """Upstream's `apply_image` of the mosaic, which leaves a canvas for the warp.

    Args:
        transform: Whose method it is.
        composition: Which it stands in; what follows it there is looked at each time.
        part: Does the work.
    """

    def __init__(self, transform: Any, composition: Any, part: Part) -> None:
        self._transform = transform
        self._composition = composition
        self._part = part

    def __call__(self, labels: Any, params: Any = None) -> Any:
        """Lay out the images, and paint none."""
        canvas = self._canvas(labels, params)
        if canvas is None or not self._part.believed:
            labels = type(self._transform).apply_image(self._transform, labels, params)
        if canvas is not None:
            canvas.whole = None if self._part.believed else labels["img"]
            labels["img"] = canvas
        return labels

    def _canvas(self, labels: Any, params: Any) -> Canvas | None:
        mosaic = self._transform
        found = standing(mosaic, self._composition)
        ours = all(isinstance(vars(one).get("apply_image"), (Pasted, Warped)) for one in found[1:])
        if self._part.off or mosaic.n != 4 or not found or not ours:
            return None
        tiles = list(_tiles(params["layout"]))
        if not all(_is_plain(tile.image) for tile in tiles):
            return None
        return Canvas((2 * mosaic.imgsz, 2 * mosaic.imgsz, 3), tiles)


def _is_plain(image: Any) -> bool:
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size > 0


def _tiles(layout: Any) -> Iterator[Tile]:
    for item in layout:
        left, top, right, bottom = (item[name] for name in ("x1a", "y1a", "x2a", "y2a"))
        yield Tile(item["labels_patch"]["img"], left, top, right - left, bottom - top, item["x1b"], item["y1b"])


class Pasted:
    """Upstream's `apply_image` of copy-paste, which notes on a canvas what is pasted.

    Args:
        transform: Whose method it is.
    """

    def __init__(self, transform: Any) -> None:
        self._transform = transform

    def __call__(self, labels: Any, params: Any = None) -> Any:
        """Paste the mirrored objects that have been chosen, or note which."""
        canvas = labels["img"]
        upstream = partial(type(self._transform).apply_image, self._transform)
        if not isinstance(canvas, Canvas):
            return upstream(labels, params)
        if canvas.whole is not None:
            canvas.whole = upstream({**labels, "img": canvas.whole}, params)["img"]
        try:
            mask = _pasted(canvas, params)
        except Exception:  # of whatever kind: upstream pastes on the whole canvas
            whole = canvas.whole is not None
            return {**labels, "img": canvas.whole} if whole else upstream({**labels, "img": canvas.painted()}, params)
        canvas.pasted += [] if mask is None else [mask]
        return labels


def _pasted(canvas: Canvas, params: Any) -> Any:
    """Return a mask of what is pasted, [H, W]; None where nothing has been chosen."""
    objects, selected = params["instances2"], params["selected"]
    if not len(selected):
        return None
    mask = np.zeros(canvas.shape[:2], np.uint8)
    for outline in objects.some(selected) if hasattr(objects, "some") else objects.segments[selected]:
        cv2.drawContours(mask, outline[None].astype(np.int32), -1, FILLED, cv2.FILLED)
    return mask


class Warped:
    """Upstream's `apply_image` of the warp, which looks at a canvas.

    Args:
        transform: Whose method it is.
        part: Does the work.
    """

    def __init__(self, transform: Any, part: Part) -> None:
        self._transform = transform
        self._part = part

    def __call__(self, labels: Any, params: Any = None) -> Any:
        """Warp `labels["img"]`."""
        canvas, warp = labels["img"], self._transform
        whole = type(warp).apply_image
        if not isinstance(canvas, Canvas) and _is_plain(canvas) and not self._part.off:
            height, width = canvas.shape[:2]
            canvas = Canvas(canvas.shape, [Tile(canvas, 0, 0, width, height, 0, 0)], whole=canvas)
        if not isinstance(canvas, Canvas):
            return whole(warp, labels, params)
        if warp.perspective:
            return whole(warp, {**labels, "img": canvas.painted()}, params)

        def upstream(canvas: Canvas, *_: Any) -> Any:
            return whole(warp, {**labels, "img": canvas.painted()}, params)["img"]

        labels["img"] = self._part(upstream, canvas, params["M"][:2], tuple(params["size"]))
        labels["resized_shape"] = labels["img"].shape[:2]
        return labels
