"""An import hook for one project's modules: what must be there before their first line runs."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from yolo_patches.wrapping import Wrapping


class Importing:
    """Meta path finder that lets `before` see a module that is about to be executed.

    Args:
        names: Modules of interest.
        before: Called with the module; it may return modules by name that this module alone shall find.
    """

    def __init__(self, names: frozenset[str], before: Callable[[ModuleType], Mapping[str, ModuleType]]) -> None:
        self.names = names
        self.before = before
        self._searching: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the other finders give, with a loader that calls `before`."""
        if fullname not in self.names or fullname in self._searching:
            return None
        self._searching.add(fullname)
        try:
            spec = find_spec(fullname)  # its package has been imported: that is why we are asked
        finally:
            self._searching.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.before)  # type: ignore[assignment]
        return spec


class _Loader:
    """Another loader's, which it is again as soon as the module is executed."""

    def __init__(self, loader: Any, before: Callable[[ModuleType], Mapping[str, ModuleType]]) -> None:
        self._loader = loader
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        try:
            only_here = self._before(module)
        except Exception as error:  # somebody's import must not fail because of us
            print(f"yolo-patches: {module.__name__} is left alone: {type(error).__name__}: {error}", file=sys.stderr)
            only_here = {}
        if only_here:
            # The import statement looks `__import__` up in the module's own builtins: nobody else's imports change.
            vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import(only_here)}
        self._loader.exec_module(module)


def _import(only_here: Mapping[str, ModuleType]) -> Callable[..., Any]:
    def find(name: str, *args: Any, **kwargs: Any) -> Any:
        return only_here[name] if name in only_here else builtins.__import__(name, *args, **kwargs)

    return find


def install(importing: Importing, wrapping: Wrapping) -> None:
    """Put the finder first in line, until `wrapping` is undone."""
    sys.meta_path.insert(0, importing)
    wrapping.then(lambda: sys.meta_path.remove(importing))
