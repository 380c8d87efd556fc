"""The start-up hook: what every Python process runs where yolo-patches is installed.

Its contract is to cost nothing: `sys` only, no third-party import, no file or metadata read. It notes which upstream
packages are of interest; the rest of yolo-patches is imported when one of them is, and never otherwise. The `.pth` line
and the PEP 829 `.start` file may both name `register`, so calling it twice is the same as calling it once.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

#: Packages whose import may mean an upstream. `utils` and `models` are what a checkout of YOLOv9 or YOLOv5 imports; so
#: do other projects, and only what lies beside them tells.
PACKAGES = ("ultralytics", "yolov9", "yolov5", "utils", "models")


class UpstreamFinder:
    """Meta path finder that finds nothing: it only notices that an upstream package is about to be imported."""

    def __init__(self) -> None:
        self.names = set(PACKAGES)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Activate the adapter for `fullname` just before its first import; always leave the finding to others."""
        if fullname in self.names:
            self.names.discard(fullname)  # first: what follows looks for the upstream, too
            from importlib.util import find_spec

            spec = find_spec(fullname)
            if spec is None:  # somebody only asks whether it is there
                self.names.add(fullname)
            else:
                activate(fullname, spec)


def pending() -> set[str]:
    """Return the upstreams whose import the start-up hook still waits for."""
    return set().union(*(finder.names for finder in sys.meta_path if isinstance(finder, UpstreamFinder)))


def disarm() -> None:
    """Let the start-up hook wait for nothing any more."""
    for finder in sys.meta_path:
        if isinstance(finder, UpstreamFinder):
            finder.names.clear()


def activate(name: str, spec: ModuleSpec | None = None) -> None:
    """Load the adapter named `name` and let it wait for its upstream's modules; a failure is one line on stderr.

    Args:
        name: The adapter's name; with a spec, that of the package.
        spec: Of a package that is about to be imported and may belong to an upstream, or to another project.
    """
    try:
        upstream: str | None = name
        if spec is not None and name != "ultralytics":
            from yolo_patches.upstreams.scripts.recognition import of_package

            upstream = of_package(spec)
        if upstream is None:
            return
        from yolo_patches.activation import activation

        activation.watch(upstream)
    except Exception as error:  # an import of somebody's training package must not fail because of us
        print(f"yolo-patches: inactive, its start-up failed: {type(error).__name__}: {error}", file=sys.stderr)


def register() -> None:
    """Register interest in the upstream packages; idempotent, called at interpreter start-up."""
    if not any(isinstance(finder, UpstreamFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, UpstreamFinder())


def rearm() -> None:
    """Wait for the upstream packages that have not been imported, also after `disarm` and without the start-up hook."""
    register()
    for finder in sys.meta_path:
        if isinstance(finder, UpstreamFinder):
            finder.names.update(name for name in PACKAGES if name not in sys.modules)
