"""Copies of Ultralytics that other authors ship under its name, recognised by what they have added."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: What lies in the package -> whose copy it is. A later copy holds what an earlier one has: the first that fits counts.
MARKS: Mapping[str, str] = {
    "cfg/models/master": "Tencent/YOLO-Master",
    "cfg/models/v13/yolov13.yaml": "iMoonLab/yolov13",
    "cfg/models/v12/yolov12.yaml": "sunsmarterjie/yolov12",
    "models/yolov10": "THU-MIG/yolov10",
}


def fork(package: Path) -> str:
    """Return whose copy of Ultralytics this is; empty where it is Ultralytics' own.

    Args:
        package: The folder of the installed `ultralytics` package.
    """
    return next((name for mark, name in MARKS.items() if (package / mark).exists()), "")
