"""The warm-up that is inlined in the training loops of Ultralytics, YOLOv5 and YOLOv9: read from the live groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from yolo_patches.step_seams import Ramp


def ramps(
    groups: Sequence[Mapping[str, Any]], bias_lr: float, decayed: float, share: float
) -> tuple[tuple[Ramp, ...], str]:
    """Return what upstream takes each group's learning rate through, and why that cannot be told, or nothing.

    Which group holds the biases differs between releases (the first one, or one by its tag), so it is read from the
    rate that upstream has just set: all others begin at 0.

    Args:
        groups: Of the optimizer, as upstream's warm-up has just set them.
        bias_lr: The learning rate with which biases begin.
        decayed: The scheduler's factor of this epoch.
        share: How much of upstream's warm-up has passed, 0 to 1.
    """
    found = []
    for number, group in enumerate(groups):
        target = float(group["initial_lr"] * decayed)
        known = [Ramp(0.0, target), Ramp(float(bias_lr), target)]
        fits = [ramp for ramp in known if math.isclose(ramp.at(share), group["lr"], rel_tol=1e-6, abs_tol=1e-12)]
        if not fits:
            return (), f"upstream has set group {number} to lr {group['lr']:.6g}, which is no warm-up that we know"
        found.append(fits[0])
    return tuple(found), ""
