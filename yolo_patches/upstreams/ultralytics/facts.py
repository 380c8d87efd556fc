"""Facts about an Ultralytics run, read from its arguments before anything is built."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yolo_patches import facts as known
from yolo_patches.facts import Facts, Given, Launcher
from yolo_patches.forecast import forecasting
from yolo_patches.upstreams import image_lists
from yolo_patches.upstreams.ultralytics import forks, model_facts, stack_gaps

#: Tasks whose validation loader upstream builds with the training batch itself: obb in every supported release,
#: semantic and depth since the releases that brought them (8.4.55, 8.4.105).
SAME_VAL_BATCH = frozenset({"obb", "semantic", "depth"})
#: What a rank's loss is divided by. Classify takes a mean over images, of which ranks have equally many; the losses of
#: semantic and depth are no sums that one number divides (Dice, a square root of a variance).
#: Figures of each kind of output, and the kinds of each task.
FIGURES = ("precision", "recall", "mAP50", "mAP50-95")
METRICS = {
    **{
        task: tuple(f"{name}({kind})" for kind in kinds for name in FIGURES)
        for task, kinds in {"detect": "B", "segment": "BM", "pose": "BP", "obb": "B"}.items()
    },
    "classify": ("accuracy_top1", "accuracy_top5"),
    "semantic": ("mIoU", "pixel_acc"),
    "depth": ("delta1", "delta2", "delta3", "abs_rel", "rmse", "silog"),
}
NORMALISERS = {
    "detect": "target score sum",
    "segment": "target score sum and foreground count",
    "pose": "target score sum, foreground and keypoint count",
    "obb": "target score sum",
}


def version() -> str:
    """Return upstream's version from its source file: both distributions share the module, only one has metadata."""
    spec = find_spec("ultralytics")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("ultralytics is not installed")
    found = re.search(r"""^__version__ = ["'](.+?)["']""", Path(spec.origin).read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else "unknown"


def described_version() -> str:
    """Return upstream's version, and whose copy of it this is where it is another's: "8.3.63 of iMoonLab/yolov13"."""
    spec = find_spec("ultralytics")
    owner = forks.fork(Path(spec.origin).parent) if spec is not None and spec.origin else ""
    return f"{version()} of {owner}" if owner else version()


def world_size(device: Any) -> int:
    """Return the number of ranks: in upstream's own workers as many as it started, else as many as `device=` names."""
    if "LOCAL_RANK" in os.environ and launcher() is None:
        return int(os.environ.get("WORLD_SIZE", 1))
    return len(device_names(device)) or 1


def device_names(device: Any) -> list[str]:
    """Return the accelerators that `device=` names, as upstream spells them; empty where it names none."""
    text = str(device if device is not None else "").lower()
    for mark in ("cuda:", "none", "(", ")", "[", "]", "'", " "):
        text = text.replace(mark, "")
    return [name for name in text.split(",") if name and name not in ("cpu", "mps", "mps:0")]


def launcher() -> Launcher | None:
    """Return the place of this process among the ranks that the user's launcher started.

    None without a launcher, and in the workers that upstream starts itself: it does so by torchrun and a file of its
    own, and what it does there is right for them.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if any(name not in os.environ for name in names) or _is_worker(getattr(sys.modules["__main__"], "__file__", None)):
        return None
    rank, size, local_rank = (int(os.environ[name]) for name in names[:3])
    local_size = os.environ.get("LOCAL_WORLD_SIZE")
    return Launcher(rank, size, local_rank, None if local_size is None else int(local_size))


def is_worker() -> bool:
    """Return whether this process is one that upstream has started itself, for one rank of a training."""
    return _is_worker(getattr(sys.modules["__main__"], "__file__", None))


def _is_worker(script: str | None) -> bool:
    path = Path(script or "")
    return path.parent.name == "DDP" and path.name.startswith("_temp_")


def facts(
    owner: type,
    args: Mapping[str, Any],
    ranks: Launcher | None = None,
    given: Given | None = None,
    device: str = "",
    resumed: Mapping[str, Mapping[str, Any]] | None = None,
    inherited: Mapping[str, Mapping[str, Any]] | None = None,
) -> Facts:
    """Return the facts of a training.

    Args:
        owner: The trainer's class.
        args: Upstream's resolved training arguments. One that this release does not have is taken for upstream's usual
            default; whatever depends on it is unavailable there.
        ranks: The launcher whose ranks train together, where a patch takes them over.
        given: The arguments as the user gave them.
        device: Type of the trainer's device, where it is known.
        resumed: Entries of a resumed training's patches.json.
        inherited: Of a worker, the entries of its parent's plan.
    """
    release, task, nbs = version(), str(args.get("task")), int(args.get("nbs") or 64)
    named = device_names(args.get("device"))
    return Facts(
        upstream="ultralytics",
        version=release,
        task=task,
        batch=known.Batch(
            size=args.get("batch", 16),
            nbs=nbs,
            accumulate=lambda batch: max(round(nbs / batch), 1),
            val_factor=1 if task in SAME_VAL_BATCH else 2,
        ),
        optimization=known.Optimization(
            optimizer=str(args.get("optimizer", "auto")),
            lr0=args.get("lr0", 0.01),
            weight_decay=args.get("weight_decay", 0.0005),
            epochs=args.get("epochs") or 100,
            warmup_epochs=args.get("warmup_epochs") or 0.0,
            patience=int(args.get("patience") or 0),
            hours=float(args.get("time") or 0),
        ),
        devices=known.Devices(
            world_size=world_size(args.get("device")) if ranks is None else ranks.world_size,
            kind=device or _kind(str(args.get("device") or ""), named),
            named=len(named),
            held=tuple(int(name.rpartition(":")[2]) for name in named if name.rpartition(":")[2].isdigit())
            or ((0,) if args.get("device") in (None, "") else ()),
            launcher=ranks,
        ),
        loss=known.Loss(
            normaliser=NORMALISERS.get(task, ""),
            mean=(task == "classify" and not release.startswith("8.0."))  # there it is a sum over 64
            or any(base.__name__ == "RTDETRTrainer" for base in owner.__mro__),
        ),
        model=model_facts.model(owner, args),
        given=given or Given(),
        resumed=resumed or {},
        validates=bool(args.get("val", True)),
        is_resumed=bool(args.get("resume")),
        inherited=inherited or {},
        metrics=METRICS.get(task, ()),
        gaps=stack_gaps.gaps(),
        images=functools.partial(_images, args.get("data")) if forecasting.get() else known.uncounted,
    )


def _images(data: Any) -> int | None:
    """Return the number of training images of a data set, where it is named by a file and lies here."""
    from ultralytics.utils import DATASETS_DIR

    return image_lists.count(str(data), (DATASETS_DIR,)) if str(data).endswith((".yaml", ".yml")) else None


def _kind(device: str, named: list[str]) -> str:
    """Return the type of device that `device=` names; empty where upstream will choose."""
    if named:
        kind = named[0].partition(":")[0]
        return kind if kind.isalpha() else "cuda"
    return device.partition(":")[0] if device in ("cpu", "mps", "mps:0") else ""
