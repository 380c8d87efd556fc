"""YOLOv5 (ultralytics/yolov5), a checkout or the installed package: its scripts and their losses."""

from __future__ import annotations

from types import ModuleType

from yolo_patches.upstreams.scripts.adapter import Scripts
from yolo_patches.upstreams.scripts.layout import Layout, Task
from yolo_patches.upstreams.scripts.session import Session

NORMALISER = "matched target count of each layer"
LAYOUT = Layout(
    "yolov5",
    scripts={"train.py": "detect", "segment/train.py": "segment"},
    tasks={
        "detect": Task("utils.dataloaders", ("utils.loss",), NORMALISER),
        "segment": Task("utils.segment.dataloaders", ("utils.segment.loss",), NORMALISER),
    },
    methods=("__init__", "__call__", "build_targets"),
)


def install(session: Session, name: str, module: ModuleType) -> None:
    """Wrap the criterion of one module, and the function with which it takes means over matched targets."""
    from yolo_patches.upstreams.scripts import functions
    from yolo_patches.upstreams.yolov5 import losses

    if "bbox_iou" not in vars(module) or "build_targets" not in vars(getattr(module, "ComputeLoss", object)):
        functions.criteria(session, module, compute=None)  # its means cannot be followed
        return
    functions.criteria(session, module, losses.compute)
    session.wrapping.wrap(module.ComputeLoss, "build_targets", losses.build_targets)
    session.wrapping.wrap(module, "bbox_iou", losses.bbox_iou)


def floored(criterion: type) -> bool:
    """Return that a criterion divides by nothing that may be zero: it takes no mean where nothing is matched."""
    return True


ADAPTER = Scripts(LAYOUT, install, floored)
