"""YOLOv9 (WongKinYiu/yolov9), a checkout or an installed package: its scripts and their heads."""

from __future__ import annotations

from types import ModuleType

from yolo_patches.upstreams.scripts.adapter import Scripts
from yolo_patches.upstreams.scripts.layout import Layout, Task
from yolo_patches.upstreams.scripts.session import Session

LAYOUT = Layout(
    "yolov9",
    scripts={
        "train_dual.py": "detect",
        "train.py": "detect",
        "train_triple.py": "detect",
        "segment/train.py": "segment",
        "segment/train_dual.py": "segment",
        "panoptic/train.py": "panoptic",
    },
    tasks={
        "detect": Task(
            "utils.dataloaders",
            ("utils.loss_tal", "utils.loss_tal_dual", "utils.loss_tal_triple"),
            "target score sum",
            "utils.tal.assigner",
        ),
        "segment": Task(
            "utils.segment.dataloaders",
            ("utils.segment.loss_tal", "utils.segment.loss_tal_dual"),
            "target score sum",
            "utils.segment.tal.assigner",
        ),
        # The dice loss of stuff is a ratio of sums over the batch: no normaliser makes it that of one process.
        "panoptic": Task(
            "utils.panoptic.dataloaders",
            ("utils.panoptic.loss_tal",),
            "target score sum (not the dice loss of stuff)",
            "utils.panoptic.tal.assigner",
        ),
    },
    methods=("__init__", "__call__"),
)


def install(session: Session, name: str, module: ModuleType) -> None:
    """Wrap the criteria, or the assigner, of one module."""
    from yolo_patches.upstreams.scripts import functions
    from yolo_patches.upstreams.yolov9 import losses

    if not name.endswith(".assigner"):
        functions.criteria(session, module, losses.compute)
    elif "forward" in vars(getattr(module, "TaskAlignedAssigner", object)):
        session.wrapping.wrap(module.TaskAlignedAssigner, "forward", losses.assign)


def floored(criterion: type) -> bool:
    """Return whether a criterion keeps its normaliser away from zero: it does so with the builtin `max`, or not."""
    call = vars(criterion).get("__call__")
    code = getattr(getattr(call, "__wrapped__", call), "__code__", None)
    return code is None or "max" in code.co_names


ADAPTER = Scripts(LAYOUT, install, floored)
