"""The registry: entry points -> Patch classes and adapters. Ours are found exactly as third parties' are."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from typing import Any

from yolo_patches.adapter import Adapter
from yolo_patches.errors import PatchesError
from yolo_patches.patch import Patch
from yolo_patches.selection import Spec

PATCHES = "yolo_patches.patches"
UPSTREAMS = "yolo_patches.upstreams"


@cache
def patches() -> Mapping[str, type[Patch]]:
    """Return the registered patches by name, ours first; a broken third-party plugin is skipped with a warning.

    Patches for every upstream have an entry point each; those for one upstream come from its adapter.

    Raises:
        PatchesError: yolo-patches' own entry points are missing, i.e. it was not installed.
    """
    found = {name: loaded for name, loaded in _load(_points(PATCHES)).items() if _is_patch(name, loaded)}
    for adapter in adapters():
        for name, loaded in adapter.patches().items():
            if _is_patch(name, loaded):
                found.setdefault(name, loaded)
    return dict(sorted(found.items(), key=lambda item: not _is_ours(item[1].__module__)))


def specs() -> Mapping[str, Spec]:
    """Return what the `patches=` grammar must know about the registered patches."""
    return {name: Spec(cls.default, cls.options) for name, cls in patches().items()}


@cache
def upstreams() -> tuple[str, ...]:
    """Return the names of the registered adapters, importing none of them.

    Raises:
        PatchesError: yolo-patches' own entry points are missing, i.e. it was not installed.
    """
    return tuple(dict.fromkeys(point.name for point in _points(UPSTREAMS)))


@cache
def adapter(name: str) -> Adapter | None:
    """Return one of `upstreams()` as an adapter, or None, with a warning, where it is broken."""
    loaded = _load(point for point in _points(UPSTREAMS) if point.name == name).get(name)
    if loaded is None or isinstance(loaded, Adapter):
        return loaded
    _warn(f"plugin {name!r} is skipped: {loaded!r} is not a yolo_patches.adapter.Adapter")
    return None


def adapters() -> list[Adapter]:
    """Return every adapter that is not broken."""
    found = (adapter(name) for name in upstreams())
    return [one for one in found if one is not None]


def _is_patch(name: str, loaded: Any) -> bool:
    if isinstance(loaded, type) and issubclass(loaded, Patch) and getattr(loaded, "name", None) == name:
        return True
    _warn(f"plugin {name!r} is skipped: {loaded!r} is not a yolo_patches.patch.Patch named {name!r}")
    return False


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "yolo_patches"


def _points(group: str) -> list[metadata.EntryPoint]:
    points = _entry_points(group)
    if not any(_is_ours(point.value.partition(":")[0]) for point in points):
        raise PatchesError(
            "yolo-patches is importable but not installed: its entry points are missing; run 'pip install "
            "yolo-patches' (or 'pip install -e .' in a checkout)"
        )
    return points


def _load(points: Iterable[metadata.EntryPoint]) -> dict[str, Any]:
    loaded: dict[str, Any] = {}
    for point in points:
        try:
            loaded.setdefault(point.name, point.load())
        except Exception as error:  # somebody else's code: whatever it raises, a training run must not depend on it
            _warn(f"plugin {point.name!r} ({point.value}) is skipped: {type(error).__name__}: {error}")
    return loaded


def _entry_points(group: str) -> list[metadata.EntryPoint]:
    if sys.version_info >= (3, 10):
        return list(metadata.entry_points(group=group))
    return list(metadata.entry_points().get(group, []))


def _warn(message: str) -> None:
    warnings.warn(f"yolo-patches: {message}", RuntimeWarning, stacklevel=2)
