"""The scripts' criteria: which classes they are."""

from __future__ import annotations

from types import ModuleType

from yolo_patches.wrapping import Wrapper, Wrapping


def wrap(module: ModuleType, wrapping: Wrapping, call: Wrapper, started: Wrapper) -> None:
    """Wrap every criterion of a module.

    Args:
        module: The module.
        wrapping: Records what is replaced.
        call: Wrapper of `__call__`.
        started: Wrapper of `__init__`.
    """
    for name, cls in list(vars(module).items()):
        if name.startswith("ComputeLoss") and isinstance(cls, type) and cls.__module__ == module.__name__:
            wrapping.wrap(cls, "__init__", started)
            wrapping.wrap(cls, "__call__", call)
