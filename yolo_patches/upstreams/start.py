"""The packages that wake our own adapters, registered at interpreter start-up.

`utils` and `models` are what a checkout of YOLOv9 or YOLOv5 imports. So do many other projects, and only the files that
lie beside the package tell them apart; that is looked at before anything of ours is imported.
"""

from __future__ import annotations

from yolo_patches import _bootstrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


def register() -> None:
    """Register interest in our upstreams; the callable that the start-up files name."""
    _bootstrap.register(
        {"ultralytics": None, "yolov9": _script, "yolov5": _script, "utils": _script, "models": _script}
    )


def _script(spec: ModuleSpec) -> bool:
    from yolo_patches.upstreams.scripts.recognition import of_package

    return of_package(spec) is not None
