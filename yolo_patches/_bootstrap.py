"""The start-up hook: what every Python process runs where yolo-patches is installed.

Its contract is to cost nothing: `sys` only, no third-party import, no file or metadata read. It notes which packages
may be an upstream's; the rest of yolo-patches is imported right before one of them runs its first line, and never
otherwise: whoever only asks where a package is (`find_spec`) pays for nothing.

The names come from the adapters' start-up files: ours is `yolo_patches.upstreams.start`, another adapter's `.pth` or
`.start` file calls `register` with its own. Two of them may name the same; calling twice is the same as calling once.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec

    #: Tells cheaply whether a package of a common name may be an upstream's.
    Test = Callable[[ModuleSpec], bool]


class UpstreamFinder:
    """Meta path finder that finds nothing of its own: it notices that an upstream's package is about to run."""

    def __init__(self) -> None:
        self.tests: dict[str, Test | None] = {}
        self.waiting: set[str] = set()
        self._searching: set[str] = set()

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the spec that the other finders give for a package of interest, with a loader that wakes us first."""
        if fullname not in self.waiting or fullname in self._searching:  # other finders may ask all of them again
            return None
        self._searching.add(fullname)
        try:
            spec = _find(fullname, path, target)
        finally:
            self._searching.discard(fullname)
        if spec is None or not hasattr(spec.loader, "exec_module"):
            return None
        test = self.tests[fullname]
        if test is None or _passes(test, spec):
            self._wake_before(spec)
        return spec

    def _wake_before(self, spec: ModuleSpec) -> None:
        loader = spec.loader

        def exec_module(module: object) -> None:
            # On the loader object alone, and gone again: whoever looks at the module's loader sees its own.
            del loader.exec_module  # type: ignore[union-attr]
            self.waiting.discard(spec.name)
            wake(spec.name, spec)
            loader.exec_module(module)  # type: ignore[union-attr, arg-type]
            executed(module)

        try:
            loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]
        except AttributeError:  # a loader that takes no attributes, e.g. an extension's
            self.waiting.discard(spec.name)


def _find(fullname: str, path: object, target: object) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = None if find is None or isinstance(finder, UpstreamFinder) else find(fullname, path, target)
        if spec is not None:
            return spec  # type: ignore[no-any-return]
    return None


def _passes(test: Test, spec: ModuleSpec) -> bool:
    try:
        return test(spec)
    except Exception:  # somebody's package that we cannot look into is not an upstream's
        return False


def wake(name: str, spec: ModuleSpec) -> None:
    """Let the adapters of a package wait for its modules; a failure is one line on stderr."""
    try:
        from yolo_patches.activation import wake as activate

        activate(name, spec)
    except Exception as error:  # an import of somebody's training package must not fail because of us
        print(f"yolo-patches: inactive, its start-up failed: {type(error).__name__}: {error}", file=sys.stderr)


def executed(module: object) -> None:
    """Let the adapters know that a package which woke them has run to its end."""
    activation = sys.modules.get("yolo_patches.activation")
    if activation is not None:
        activation.activation.executed(module)


def finder() -> UpstreamFinder:
    """Return this process's finder, first in line."""
    for found in sys.meta_path:
        if isinstance(found, UpstreamFinder):
            return found
    made = UpstreamFinder()
    sys.meta_path.insert(0, made)
    return made


def register(tests: dict[str, Test | None]) -> None:
    """Register interest in packages; idempotent, called at interpreter start-up.

    Args:
        tests: Package -> a cheap test of its spec, for names that many projects use; None where the name says enough.
    """
    found = finder()
    found.waiting.update(name for name in tests if name not in found.tests and name not in sys.modules)
    found.tests.update(tests)


def pending() -> set[str]:
    """Return the packages whose import the start-up hook still waits for."""
    return set(finder().waiting)


def disarm() -> None:
    """Let the start-up hook wait for nothing any more."""
    finder().waiting.clear()


def rearm() -> None:
    """Wait for the packages that have not been imported, also after `disarm`."""
    found = finder()
    found.waiting.update(name for name in found.tests if name not in sys.modules)
