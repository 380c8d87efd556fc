"""The registry: entry points -> Patch classes and adapters. Ours are found exactly as third parties' are."""

from __future__ import annotations

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import metadata
from typing import Any, ClassVar

from yolo_patches.errors import PatchesError
from yolo_patches.plan import Decision
from yolo_patches.seams import Facts, Seam, TrainStart
from yolo_patches.selection import COMMON_OPTIONS, Option, Spec

PATCHES = "yolo_patches.patches"
UPSTREAMS = "yolo_patches.upstreams"


class Patch(ABC):
    """One fix, written against seams. An instance serves one run.

    Subclasses set the class attributes, decide from facts alone (so that `doctor` can show the plan without training),
    and handle the seams that they need.

    Attributes:
        name: The name used in `patches=`.
        summary: One line for `yolo-patches list`.
        source: URL of the report or paper that asks for the fix.
        default: Whether `default` selects it.
        options: Options beside the common ones.
        needs: The seams without which the patch is unavailable.
        values: The options of this run, defaults filled in.
        pinned: Options that this run has settled on its own and that a resumed run must take over.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    default: ClassVar[bool]
    options: ClassVar[Mapping[str, Option]] = {}
    needs: ClassVar[tuple[type[Seam], ...]]

    def __init__(self, **given: Any) -> None:
        known = {**COMMON_OPTIONS, **self.options}
        self.values = {key: given.get(key, option.default) for key, option in known.items()}
        self.pinned: dict[str, Any] = {}

    @abstractmethod
    def decide(self, facts: Facts) -> Decision:
        """Return what this patch will do in a run with these facts; nothing may be touched yet.

        Raises:
            PatchesError: The run cannot be right whatever the patch does, e.g. fewer images than ranks.
        """

    @abstractmethod
    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Return the function to call at each seam; one that learns more than `decide` knew returns a new decision."""

    @abstractmethod
    def verify(self, live: TrainStart) -> bool:
        """Return whether the decided effect is seen on the live objects."""


@cache
def patches() -> Mapping[str, type[Patch]]:
    """Return the registered patches by name, ours first; a broken third-party plugin is skipped with a warning.

    Raises:
        PatchesError: yolo-patches' own entry points are missing, i.e. it was not installed.
    """
    found = {name: loaded for name, loaded in _load(_points(PATCHES)).items() if _is_patch(name, loaded)}
    return dict(sorted(found.items(), key=lambda item: not _is_ours(item[1].__module__)))


def specs() -> Mapping[str, Spec]:
    """Return what the `patches=` grammar must know about the registered patches."""
    return {name: Spec(cls.default, cls.options) for name, cls in patches().items()}


@cache
def upstreams() -> tuple[str, ...]:
    """Return the top-level import names that the registered adapters adapt, importing none of them.

    Raises:
        PatchesError: yolo-patches' own entry points are missing, i.e. it was not installed.
    """
    return tuple(dict.fromkeys(point.name for point in _points(UPSTREAMS)))


@cache
def adapter(name: str) -> Any:
    """Return one of `upstreams()` as an adapter, or None, with a warning, where it is broken."""
    return _load(point for point in _points(UPSTREAMS) if point.name == name).get(name)


def _is_patch(name: str, loaded: Any) -> bool:
    if isinstance(loaded, type) and issubclass(loaded, Patch) and getattr(loaded, "name", None) == name:
        return True
    _warn(f"plugin {name!r} is skipped: {loaded!r} is not a yolo_patches.registry.Patch named {name!r}")
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
