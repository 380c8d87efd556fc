"""YOLO training that comes out right: an entry-point plugin for unmodified Ultralytics, YOLOv9, YOLOv5 and YOLOv10."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["PatchesError", "__version__", "applied", "apply", "revert", "status"]

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing: this file runs at interpreter start-up
if TYPE_CHECKING:
    from yolo_patches.api import applied, apply, revert, status
    from yolo_patches.errors import PatchesError


def __getattr__(name: str) -> object:
    """Load the public interface on first use, so that the start-up hook pays for none of it (PEP 562)."""
    if name == "PatchesError":
        from yolo_patches.errors import PatchesError

        return PatchesError
    if name in __all__:
        from yolo_patches import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
