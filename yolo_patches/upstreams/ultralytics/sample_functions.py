"""Functions of Ultralytics' that transforms call by name, with ours in their place."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from yolo_patches.loading.part import COMPARED, Part
from yolo_patches.upstreams import polygon_calls
from yolo_patches.upstreams.ultralytics.origin import is_upstreams

#: Part -> upstream's function, and the modules that call it by name.
FUNCTIONS = {
    "polygons": ("resample_segments", ("ultralytics.data.dataset", "ultralytics.utils.instance")),
    "masks": ("polygons2masks_overlap", ("ultralytics.data.augment",)),
    "separate masks": ("polygons2masks", ("ultralytics.data.augment",)),
}


def settle_polygons(part: Part) -> None:
    """Find the way of this release where it can be told from the others: with fewer corners than points."""
    name, modules = FUNCTIONS["polygons"]
    ours = polygon_calls.resample(part, vars(functions(name, modules)[0])[name])
    for corners in range(3, 3 + COMPARED):
        ours([np.linspace(0, 1, 2 * corners, dtype=np.float32).reshape(corners, 2) ** 2], n=20)


CALLS = {"polygons": polygon_calls.resample, "masks": polygon_calls.overlap, "separate masks": polygon_calls.separate}


def functions(name: str, modules: Sequence[str]) -> list[Any]:
    """Return the modules that have upstream's own function under a name."""
    found = [import_module(module) for module in modules]
    return [module for module in found if is_upstreams(vars(module).get(name))]
