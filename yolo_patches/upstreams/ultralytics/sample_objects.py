"""The objects of Ultralytics' mosaics and warps as plain arrays, and outlines resampled where their points are wanted.

Releases since 8.4.100 or so have a method for the objects of each transform; in older ones all of it is upstream's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import numpy as np

from yolo_patches.loading.outlines import Outline, is_straight, resampled, seen
from yolo_patches.loading.part import Part, alike
from yolo_patches.upstreams.ultralytics.sample_canvas import sequence, standing
from yolo_patches.upstreams.ultralytics.sample_operations import is_known

#: The names of the parts.
TILED, WARPED, OUTLINES = "boxes on the mosaic", "objects after the warp", "outlines"
#: Transforms that read no outlines; others may, where they stand after the warp.
BLIND = ("MixUp", "RandomHSV", "RandomFlip")
#: Arguments of upstream's method that warps outlines, where ours know what it does.
ARGUMENTS = ["segments", "M", "size"]
#: What takes the place of points that nobody looks at.
NO_POINTS = np.zeros((0, 0, 2), np.float32)


def object_steps(composition: Any, dataset: Any) -> dict[str, list[tuple[Any, str, Callable[[Part], Any]]]]:
    """Return, by part, the methods of a composition's transforms that ours stand in for; see `canvas_steps`."""
    found = sequence(composition)
    if found is None or not all(is_known(one) and hasattr(one, "apply_instances") for one in found if one is not None):
        return {}
    mosaic, paste, warp = found
    if list(inspect.signature(warp.apply_segments).parameters) != ARGUMENTS or getattr(warp, "preserve_obb", True):
        return {}
    steps: dict[str, list[tuple[Any, str, Callable[[Part], Any]]]] = {
        TILED: [(mosaic, "apply_instances", lambda part: TiledObjects(mosaic, composition, part))],
        WARPED: [(warp, "apply_instances", lambda part: WarpedObjects(warp, dataset, part))],
    }
    if paste is not None:
        steps[TILED].append((paste, "apply_instances", lambda _: PastedObjects(paste)))
    return steps


def has_outlines(dataset: Any) -> bool:
    """Return whether a data set's outlines may wait: upstream's own methods, which find the boxes that ours find."""
    kind = type(dataset)
    known = kind.__name__ == "YOLODataset" and "update_labels_info" not in vars(dataset)
    straight = not (getattr(dataset, "use_obb", True) or getattr(dataset, "use_keypoints", True))
    if not known or not straight:
        return False
    box = getattr(import_module("ultralytics.data.augment"), "segment2box", None)
    random = np.random.default_rng(0)
    for _ in range(40):
        points = (random.uniform(-1, 2, 2) + random.uniform(-1, 1, (30, 2)) * random.uniform(0.1, 1)) * 64
        points = points.astype(np.float32)
        if box is None or not alike(np.asarray(box(points, 64, 48)), seen(points[None], 64, 48)[0]):
            return False
    return True


@lru_cache(maxsize=1)
def _instances() -> Any:
    return import_module("ultralytics.utils.instance").Instances


@lru_cache(maxsize=1)
def outlined() -> Any:
    """Return a class of upstream's instances whose outlines are resampled when somebody asks for their points."""

    class Outlined(_instances()):  # type: ignore[misc]
        def __init__(self, plain: Any, outlines: list[Outline]) -> None:
            super().__init__(plain.bboxes, None, None, plain._bboxes.format, plain.normalized)
            self._points: Any = None
            self.outlines = outlines

        @property
        def waits(self) -> bool:
            """Whether nobody has asked yet."""
            return self._points is None

        @property
        def segments(self) -> Any:
            return Points(self) if self._points is None else self._points

        @segments.setter
        def segments(self, value: Any) -> None:
            self._points = value

        def points(self) -> Any:
            """Resample the outlines, once."""
            if self._points is None:
                self._points = resampled(self.outlines)
            return self._points

        def some(self, numbers: Sequence[int]) -> Any:
            """Return the points of at least one, [n, points, 2]."""
            return resampled([self.outlines[index] for index in numbers]) if self.waits else self._points[numbers]

        def boxes(self) -> Any:
            """Return upstream's instances with the boxes alone."""
            return _instances()(self.bboxes, None, None, self._bboxes.format, self.normalized)

        def denormalize(self, w: int, h: int) -> None:
            if self.normalized:
                self._step(super().denormalize, ("scale", w, h), w, h)

        def add_padding(self, padw: int, padh: int) -> None:
            self._step(super().add_padding, ("move", padw, padh), padw, padh)

        def fliplr(self, w: int) -> None:
            self._step(super().fliplr, ("mirror", w, 0), w)

        def _step(self, upstream: Callable[..., None], step: tuple[str, Any, Any], *args: Any) -> None:
            if not self.waits:
                upstream(*args)
                return
            self._points = np.zeros((0, 0, 2), np.float32)  # upstream changes the boxes alone
            try:
                upstream(*args)
            finally:
                self._points = None
            self.outlines = [one.then(step) for one in self.outlines]

        def __deepcopy__(self, memo: Any) -> Any:
            plain = self.boxes()
            plain.update(self.bboxes.copy())
            twin = Outlined(plain, list(self.outlines))
            twin._points = None if self.waits else self._points.copy()
            return twin

    return Outlined


class Points:
    """Stands for the points of outlines: only their number is known without resampling them.

    Args:
        owner: Whose they are.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __len__(self) -> int:
        return len(self._owner.outlines)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return np.array(self._owner.points(), *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owner.points(), name)

    def __getitem__(self, index: Any) -> Any:
        return self._owner.points()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._owner.points()[index] = value


class Outlines:
    """A data set's `update_labels_info`, after which outlines wait to be resampled.

    Args:
        dataset: Whose.
        part: Does the work.
    """

    def __init__(self, dataset: Any, part: Part) -> None:
        self._dataset = dataset
        self._part = part

    def __call__(self, label: Any) -> Any:
        """Put a label's boxes and outlines together."""
        whole = partial(type(self._dataset).update_labels_info, self._dataset)
        polygons = label.get("segments")
        if self._part.off or not polygons or label.get("keypoints") is not None:
            return whole(label)
        if not self._part.believed:
            label = whole({**label, "segments": list(polygons)})
            points = label["instances"].segments
            self._part(lambda *_: points, polygons, points.shape[1])
            return label
        label = whole({**label, "segments": []})
        plain = label["instances"]
        count = plain.segments.shape[1]
        if all(0 < len(one) < count - 1 for one in polygons) and len(polygons) == len(plain.bboxes):
            label["instances"] = outlined()(plain, [Outline(one, count) for one in polygons])
            self._part.stood_in()
            return label
        plain.segments = whole({**label, **_fields(plain), "segments": polygons})["instances"].segments
        return label


def _fields(plain: Any) -> dict[str, Any]:
    form = plain._bboxes.format
    return {"bboxes": plain.bboxes, "keypoints": None, "bbox_format": form, "normalized": plain.normalized}


class TiledObjects:
    """Upstream's `apply_instances` of the mosaic.

    Args:
        transform: Whose method it is.
        composition: Which it stands in.
        part: Does the work.
    """

    def __init__(self, transform: Any, composition: Any, part: Part) -> None:
        self._transform = transform
        self._composition = composition
        self._part = part

    def __call__(self, labels: Any, params: Any = None) -> Any:
        """Join the objects of the images."""
        one = self._transform
        whole = partial(type(one).apply_instances, one)
        if self._part.off:
            return whole(labels, params)
        layout = params["layout"]
        patches = [item["labels_patch"] for item in layout]
        objects = [patch["instances"] for patch in patches]
        found = standing(one, self._composition)
        ours = bool(found) and all(map(_is_ours, found))
        if not ours or one.n != 4 or not all(map(_is_label, objects)) or not any(map(len, objects)):
            return whole(labels, params)
        boxes = np.concatenate([some.bboxes for some in objects])
        cls = np.concatenate([patch["cls"] for patch in patches])
        ends = np.cumsum([len(some) for some in objects]).tolist()
        tiles = [
            (len(some), *item["img_shape"][::-1], item["padw"], item["padh"]) for some, item in zip(objects, layout)
        ]
        side = 2 * one.imgsz

        def upstream(*_: Any) -> Any:
            copies = [
                {**patch, "instances": deepcopy(patch["instances"]), "cls": np.arange(end - tile[0], end)[:, None]}
                for patch, tile, end in zip(patches, tiles, ends)
            ]
            items = [{**item, "labels_patch": patch} for item, patch in zip(layout, copies)]
            made = whole(copies[0], {**params, "layout": items})
            return made["instances"].bboxes, made["cls"][:, 0]

        kept, numbers = self._part(upstream, boxes, tiles, side)
        plain = _instances()(kept, objects[0].segments[:0], None, "xyxy", False)
        if any(isinstance(some, outlined()) for some in objects):
            placed = [
                (("scale", width, height), ("move", x, y), ("cut", side, side)) for _, width, height, x, y in tiles
            ]
            every = [
                outline.then(*steps)
                for some, steps in zip(objects, placed)
                for outline in getattr(some, "outlines", ())
            ]
            plain = outlined()(plain, [every[number] for number in numbers])
        labels.update(instances=plain, cls=cls[numbers], resized_shape=(side, side))
        return labels


class PastedObjects:
    """Upstream's `apply_instances` of copy-paste, for outlines that wait.

    Args:
        transform: Whose method it is.
    """

    def __init__(self, transform: Any) -> None:
        self._transform = transform

    def __call__(self, labels: Any, params: Any = None) -> Any:
        """Add the objects that have been pasted."""
        whole = partial(type(self._transform).apply_instances, self._transform)
        own, mirrored = params.get("instances"), params.get("instances2")
        if not all(isinstance(some, outlined()) and some.waits for some in (own, mirrored)):
            return whole(labels, params)
        plain = {"instances": own.boxes(), "instances2": mirrored.boxes()}
        labels = whole(labels, {**params, **plain})
        outlines = [*own.outlines, *(mirrored.outlines[index] for index in params["selected"])]
        labels["instances"] = outlined()(labels["instances"], outlines)
        return labels


class WarpedObjects:
    """Upstream's `apply_instances` of the warp.

    Args:
        transform: Whose method it is.
        dataset: Whose pipeline it stands in.
        part: Does the work.
    """

    def __init__(self, transform: Any, dataset: Any, part: Part) -> None:
        self._transform = transform
        self._dataset = dataset
        self._part = part

    def __call__(self, labels: Any, params: Any = None) -> Any:
        """Warp the objects, and keep those of which enough is left."""
        one = self._transform
        whole = partial(type(one).apply_instances, one)
        if self._part.off:
            return whole(labels, params)
        objects = labels["instances"]
        matrix, waits = params["M"], isinstance(objects, outlined()) and objects.waits
        known = is_straight(matrix) if waits else _is_plain(objects)
        if not known or not len(objects) or one.perspective:
            return whole(labels, params)
        objects.convert_bbox(format="xyxy")
        objects.denormalize(*params["orig_shape"][::-1])
        outlines = objects.outlines if waits else None
        points = waits and not is_blind(self._dataset.transforms)
        size = tuple(params["size"])

        def upstream(boxes: Any, *_: Any) -> Any:
            numbers = np.arange(len(boxes))[:, None]
            made = whole({**labels, "instances": deepcopy(objects), "cls": numbers}, params)
            left = made["instances"]
            return left.bboxes, made["cls"][:, 0], left.segments if points else NO_POINTS

        found = self._part(upstream, objects.bboxes, outlines, matrix, size, params["scale"], points)
        boxes, numbers, drawn = found
        if not points:  # nobody looks at them
            drawn = np.zeros((len(boxes), 1, 2), np.float32) if waits else objects.segments
        labels["instances"] = _instances()(boxes, drawn, None, "xyxy", False)
        labels["cls"] = labels["cls"][numbers]
        return labels


def is_blind(transforms: Any) -> bool:
    """Return whether nothing in a pipeline reads outlines after the warp."""
    for one in transforms.transforms:
        kind = type(one)
        if kind.__module__ != "ultralytics.data.augment":
            return False
        name = kind.__name__
        idle = name in BLIND or (name == "Compose" and sequence(one) is not None and len(one.transforms) <= 3)
        idle = idle or (name == "CutMix" and not one.p) or (name == "Albumentations" and one.transform is None)
        idle = idle or (name == "Format" and not one.return_mask and not one.return_obb)
        if not idle:
            return False
    return True


def _is_ours(step: Any) -> bool:
    return isinstance(vars(step).get("apply_instances"), (TiledObjects, PastedObjects, WarpedObjects))


def _is_plain(objects: Any) -> bool:
    """Return whether objects are known by their boxes alone."""
    return type(objects) is _instances() and objects.keypoints is None and not len(objects.segments)


def _is_label(objects: Any) -> bool:
    """Return whether objects are as a label has them, and their outlines wait."""
    plain = _is_plain(objects) or (isinstance(objects, outlined()) and objects.waits)
    return plain and objects.normalized and objects._bboxes.format == "xywh"
