"""A defect of one upstream, as a patch: the releases that have it, and a probe that recognises it.

Such a patch is one file in its upstream's own folder, `yolo_patches/upstreams/NAME/defects/`, with a subclass of
`Defect`. The adapter finds it there, so it may know that upstream's names.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import ClassVar

from yolo_patches.facts import Facts
from yolo_patches.patch import Patch
from yolo_patches.plan import Decision


class Defect(Patch):
    """A patch for what one upstream does wrong.

    Attributes:
        releases: The first and the last release that have the defect, as far as they were looked at; for people.
    """

    default: ClassVar[bool] = False
    releases: ClassVar[tuple[str, str]]

    @abstractmethod
    def present(self) -> bool:
        """Return whether the installed upstream has the defect, by looking at what it does and not at its version."""

    @abstractmethod
    def mend(self, facts: Facts) -> Decision:
        """Return what this patch will do in a training with these facts, where the defect is present."""

    def decide(self, facts: Facts) -> Decision:
        """Step aside where upstream has no such defect any more."""
        if not self.present():
            return Decision("inert", f"fixed upstream: {facts.upstream} {facts.version} does not have this defect")
        return self.mend(facts)


def found_in(package: ModuleType) -> Mapping[str, type[Patch]]:
    """Return the defects in a package's modules, by name.

    Args:
        package: `defects` of an upstream's folder.
    """
    modules = [import_module(f"{package.__name__}.{module.name}") for module in iter_modules(package.__path__)]
    classes = [value for module in modules for value in vars(module).values() if _is_defect(value, module)]
    return {cls.name: cls for cls in classes}


def _is_defect(value: object, module: ModuleType) -> bool:
    return isinstance(value, type) and issubclass(value, Defect) and value.__module__ == module.__name__


def number(version: str) -> tuple[int, ...]:
    """Return a release's number for comparison: "8.4.190" is (8, 4, 190)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
