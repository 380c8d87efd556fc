"""What an Ultralytics training set does to its images, as its live transforms say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from yolo_patches.seams import TrainSet

#: Class of a transform -> upstream's argument -> the transform's attribute that holds it.
TRANSFORMS: Mapping[str, Mapping[str, str]] = {
    "Mosaic": {"mosaic": "p"},
    "CopyPaste": {"copy_paste": "p"},
    "MixUp": {"mixup": "p"},
    "CutMix": {"cutmix": "p"},
    "RandomPerspective": {name: name for name in ("degrees", "translate", "scale", "shear", "perspective")},
    "RandomHSV": {"hsv_h": "hgain", "hsv_s": "sgain", "hsv_v": "vgain"},
    "Format": {"bgr": "bgr"},
}
FLIPS = {"vertical": "flipud", "horizontal": "fliplr"}


def read(dataset: Any) -> TrainSet | None:
    """Return what a data set's live transforms do; None where there is no such data set."""
    if dataset is None:
        return None
    labels = getattr(dataset, "labels", None)
    polygons = None
    if isinstance(labels, list) and labels and isinstance(labels[0], dict):
        polygons = any(len(label.get("segments", ())) for label in labels)
    return TrainSet(len(dataset), dict(_values(getattr(dataset, "transforms", None))), polygons)


def _values(transform: Any) -> Iterator[tuple[str, Any]]:
    for part in getattr(transform, "transforms", None) or ():
        kind = type(part).__name__
        if kind == "RandomFlip":
            yield FLIPS.get(part.direction, part.direction), part.p
        for argument, attribute in TRANSFORMS.get(kind, {}).items():
            if hasattr(part, attribute):
                yield argument, getattr(part, attribute)
        yield from _values(part)
