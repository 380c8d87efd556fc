"""Which seams an installed Ultralytics has: the methods, arguments and modules that each of them comes from."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from importlib import import_module

from yolo_patches.activation import activation
from yolo_patches.caching_seams import CacheRoom, ImageCache
from yolo_patches.loading_seams import Feed, Samples
from yolo_patches.memory_seams import MicroStep, PrecisionCheck, Prediction, Preparation
from yolo_patches.observation_seams import Clip, EpochEnd
from yolo_patches.seams import (
    Arguments,
    EpochLosses,
    Loading,
    ModelBuilt,
    Normaliser,
    OptimizerBuilt,
    OptimizerChoice,
    OptimizerRestored,
    OptimizerStep,
    Ranks,
    Save,
    Seam,
    StackGap,
    Step,
    Validation,
    ValLoader,
    WarmUp,
)
from yolo_patches.step_seams import Accumulation, TargetScores, WarmUpStep
from yolo_patches.validation_seams import Deferral, Evaluation, Judged

#: The parameters that each wrapped method must have; what upstream may add beside them does not matter.
SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "__init__": ("cfg", "overrides", "_callbacks"),
    "train": (),
    "run_callbacks": ("event",),
    "get_dataloader": ("dataset_path", "batch_size", "mode"),
    "build_dataset": ("img_path", "mode"),
    "build_optimizer": ("model", "name", "lr", "decay", "iterations"),
    "optimizer_step": (),
    "preprocess_batch": ("batch",),
    "set_model_attributes": (),
    "resume_training": ("ckpt",),
    "validate": (),
    "final_eval": (),
    "save_model": (),
    "save_metrics": ("metrics",),
    "label_loss_items": (),
}
#: Where upstream builds its loaders, and the name of their class there.
LOADERS, LOADER = "ultralytics.data.build", "InfiniteDataLoader"
OPTIMIZER = ("build_optimizer", "optimizer_step", "resume_training")
SEAMS: Mapping[type[Seam], tuple[str, ...]] = {
    Arguments: (),
    ValLoader: ("get_dataloader",),
    Accumulation: (*OPTIMIZER, "preprocess_batch"),
    OptimizerChoice: OPTIMIZER,
    OptimizerBuilt: OPTIMIZER,
    OptimizerRestored: OPTIMIZER,
    OptimizerStep: OPTIMIZER,
    WarmUp: (),
    WarmUpStep: (*OPTIMIZER, "preprocess_batch"),
    TargetScores: ("preprocess_batch",),
    # What synchronises needs to know where a step begins that every rank makes.
    ModelBuilt: ("set_model_attributes", "preprocess_batch"),
    Normaliser: ("preprocess_batch",),
    EpochLosses: (),
    Step: ("optimizer_step",),
    Clip: ("optimizer_step",),
    EpochEnd: (),
    Validation: ("validate", "final_eval"),
    Evaluation: ("validate",),
    Judged: ("validate", "save_model"),
    Deferral: ("validate", "final_eval", "save_metrics", "label_loss_items"),
    Save: ("save_model",),
    Loading: (),
    Preparation: ("preprocess_batch",),
    PrecisionCheck: (),
    MicroStep: ("preprocess_batch", *OPTIMIZER),
    Prediction: ("validate", "final_eval"),
    Samples: ("build_dataset",),
    Feed: ("get_dataloader",),
    StackGap: (),
}
#: The arguments that patches at a seam read.
ARGUMENTS: Mapping[type[Seam], tuple[str, ...]] = {
    ValLoader: ("batch",),
    Accumulation: ("nbs", "weight_decay"),
    OptimizerChoice: ("nbs", "optimizer"),
    OptimizerBuilt: ("nbs", "lr0", "weight_decay"),
    WarmUp: ("warmup_epochs",),
    WarmUpStep: ("warmup_bias_lr", "warmup_momentum", "momentum"),
}
#: Seams that come from elsewhere than the trainer's methods.
ELSEWHERE: tuple[type[Seam], ...] = (Ranks, CacheRoom, ImageCache)
#: Without these nothing can be patched at all, and nothing is.
REQUIRED = ("__init__", "train", "run_callbacks")


def left_alone() -> list[str]:
    """Return why nothing can be patched at all, or nothing."""
    import ultralytics.engine.trainer  # noqa: F401 - wraps it, or says why not

    why = activation.left_alone.get("ultralytics.engine.trainer")
    return [why] if why else []


def defects(owner: type, methods: Iterable[str]) -> list[str]:
    """Return what is wrong with methods of a trainer class, one line each; empty where they are as they must be."""
    found = []
    for method in methods:
        function = getattr(owner, method, None)
        if function is None:
            found.append(f"{owner.__name__}.{method} does not exist")
            continue
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            found.append(f"{owner.__name__}.{method} has no signature")
            continue
        takes_all = {p.kind for p in parameters.values()} >= {inspect.Parameter.VAR_KEYWORD}
        lacking = [name for name in SIGNATURES[method] if name not in parameters and not takes_all]
        if lacking:
            found.append(f"{owner.__name__}.{method} has no parameter {', '.join(lacking)}")
    return found


def missing(owner: type) -> Mapping[type[Seam], str]:
    """Return the seams that a trainer class lacks -> why.

    Args:
        owner: BaseTrainer, or the class of a live trainer: a user's subclass may lack what upstream has.
    """
    from ultralytics.utils import DEFAULT_CFG_DICT

    from yolo_patches.upstreams.ultralytics import cached_images, launch, loss_wrappers

    found = {seam: defects(owner, methods) for seam, methods in SEAMS.items()}
    for seam, names in ARGUMENTS.items():
        found[seam] += [f"there is no argument {name}" for name in names if name not in DEFAULT_CFG_DICT]
    losses = loss_wrappers.defects() + [
        f"{module}: {why}" for module, why in activation.left_alone.items() if module in loss_wrappers.MODULES
    ]
    found[Normaliser] += losses
    found[TargetScores] += losses
    found[Ranks] = launch.defects(owner)
    found[CacheRoom] = found[ImageCache] = cached_images.defects()
    if not hasattr(import_module(LOADERS), LOADER):
        found[Feed].append(f"{LOADERS}.{LOADER} does not exist")
    return {seam: "; ".join(why) for seam, why in found.items() if why}
