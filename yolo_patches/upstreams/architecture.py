"""Which published model a model file describes: its layers decide, because a file can have any name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from yolo_patches import recipes
from yolo_patches.facts import Recognised

#: What makes two model files the same model; the number of classes does not.
LAYERS = ("backbone", "head")
#: What the name of a model that segments ends in; its recipe is that of the one which detects.
SEGMENT = "-seg"
#: How a file that is for one size alone says it.
MULTIPLES = ("depth_multiple", "width_multiple", "max_channels")


def recognise(upstream: str, stem: str, config: Mapping[str, Any], shipped: Iterable[Path]) -> Recognised:
    """Return the published model that has these layers.

    Args:
        upstream: The adapter's name.
        stem: The model file's name without its suffix, e.g. "yolov10x".
        config: Its content; `scale` in it says which of its `scales` is built.
        shipped: Model files of the installed upstream, which say what a name stands for.
    """
    layers = _layers(config, str(config.get("scale") or ""))
    why = f"{stem} is no published model that we know"
    for name, scale, file in sorted(_published(upstream, shipped), key=lambda entry: entry[0] != stem):
        if _layers(_load(file), scale) == layers:
            return Recognised(name, "" if name == stem else f"{stem} has the layers of {name}")
        if name == stem:
            why = f"{stem} does not have the layers of the model that was published by this name"
    return Recognised("", why)


def _published(upstream: str, shipped: Iterable[Path]) -> Iterator[tuple[str, str, Path]]:
    """Yield name, size and file of every published model that upstream ships; one file may hold all sizes."""
    known = recipes.known(upstream)
    for file in shipped:
        base = file.stem.removesuffix(SEGMENT)
        task = file.stem[len(base) :]
        for name in known:
            if name == base:
                yield file.stem, "", file
            elif re.sub(r"(?<=\d)[a-z]$", "", name) == base:
                yield name + task, name[len(base) :], file


def _layers(config: Mapping[str, Any], scale: str) -> Any:
    scales = config.get("scales") or {}
    size = scales.get(scale or next(iter(scales), ""))
    multiples = tuple(size) if size else tuple(config.get(name) for name in MULTIPLES)
    return [config.get(name) for name in LAYERS], multiples


def _load(file: Path) -> Mapping[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded = yaml.load(file.read_text(encoding="utf-8", errors="ignore"), Loader=loader)
    return loaded if isinstance(loaded, Mapping) else {}
