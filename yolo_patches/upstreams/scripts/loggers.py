"""The loggers of YOLOv9 and YOLOv5: one object whose methods the script registers with its callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def log(callbacks: Any, epoch: int, figures: Mapping[str, float]) -> None:
    """Give figures of an epoch to TensorBoard and Weights & Biases, whichever the script logs to.

    Args:
        callbacks: The script's.
        epoch: From 0, as the script counts for them.
        figures: Name -> value.
    """
    actions = callbacks.get_registered_actions("on_fit_epoch_end")
    for loggers in {id(owner): owner for owner in (_owner(action) for action in actions) if owner}.values():
        if getattr(loggers, "tb", None):
            for name, value in figures.items():
                loggers.tb.add_scalar(name, value, epoch)
        if getattr(loggers, "wandb", None):  # it sends them with the epoch's own
            loggers.wandb.log(dict(figures))


def _owner(action: Mapping[str, Any]) -> Any:
    return getattr(action.get("callback"), "__self__", None)
