"""Facts about an Ultralytics run, read from its arguments before anything is built."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yolo_patches.seams import Facts

#: Tasks whose validation loader upstream builds with the training batch itself: obb in every supported release,
#: semantic and depth since the releases that brought them (8.4.55, 8.4.105).
SAME_VAL_BATCH = frozenset({"obb", "semantic", "depth"})


def version() -> str:
    """Return upstream's version from its source file: both distributions share the module, only one has metadata."""
    spec = find_spec("ultralytics")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("ultralytics is not installed")
    found = re.search(r"""^__version__ = ["'](.+?)["']""", Path(spec.origin).read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else "unknown"


def world_size(device: Any) -> int:
    """Return the number of ranks: the launcher's inside a worker, else what upstream reads from `device=`."""
    if "LOCAL_RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1))
    if isinstance(device, (list, tuple)):
        return max(len(device), 1)
    return len([index for index in str(device if device is not None else "").split(",") if index.strip()]) or 1


def facts(args: Mapping[str, Any]) -> Facts:
    """Return the facts of a run.

    Args:
        args: Upstream's resolved training arguments.
    """
    return Facts(
        upstream="ultralytics",
        version=version(),
        task=str(args.get("task")),
        world_size=world_size(args.get("device")),
        global_batch=args["batch"],
        val_batch_factor=1 if args.get("task") in SAME_VAL_BATCH else 2,
    )
