"""The model authors' published hyperparameters, each value with its source and confidence (recipes.yaml)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

FILE = "recipes.yaml"
#: Model file stems -> family: Ultralytics names some families otherwise than their authors do.
FAMILIES = {
    "yolov8": "yolov8",
    "yolov10": "yolov10",
    "yolo11": "yolo11",
    "yolo12": "yolov12",
    "yolov12": "yolov12",
    "yolov13": "yolov13",
}
TRUSTED = ("high", "medium")


@dataclass(frozen=True)
class Recipe:
    """One variant's recipe for training from scratch.

    Attributes:
        family: e.g. "yolov10".
        variant: e.g. "x".
        batch: Images per optimizer step over all GPUs.
        optimizer: The authors' optimizer.
        lr0: Their initial learning rate, at that batch.
    """

    family: str
    variant: str
    batch: int
    optimizer: str
    lr0: float


@cache
def _table() -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the file is long: 20 times as fast where libyaml is there
    table: dict[str, Any] = yaml.load(files(__package__).joinpath(FILE).read_text(encoding="utf-8"), Loader=loader)
    return table


def find(model: str) -> Recipe | None:
    """Return the recipe of a model name, where its batch is known with at least medium confidence.

    Args:
        model: A model file's stem, e.g. "yolov10x"; other heads than detection have no recipe of their own.

    Returns:
        The recipe, or None.
    """
    found = re.fullmatch(r"(yolov?\d+)([a-z])", model.lower())
    if found is None or found.group(1) not in FAMILIES:
        return None
    family, variant = FAMILIES[found.group(1)], found.group(2)
    entry = _table()[family].get(variant)
    if entry is None or entry["applies_to"] != "scratch":
        return None
    confidence = entry.get("key_confidence", {}).get("batch", entry["confidence"])
    values = entry["params"]
    if confidence not in TRUSTED or not isinstance(values["batch"], int):
        return None
    return Recipe(family, variant, values["batch"], values["optimizer"], values["lr0"])
