"""Upstream's own roundings on the way, found and left out: what `yolo-patches verify` compares is the arithmetic.

A training whose model and images are float64 is not one in float64. Upstream casts masks, keypoints and sigmas to
float32, MuSGD its updates to bfloat16, and boxes and loss terms are put in tensors of torch's default type. Torch goes
further: a binary cross-entropy with float32 targets comes out, and goes back, as float32. Two ranks hide that, since
half of a number is rounded as the number itself is; a third of it is not, and makes 4e-8 of the gradient. Where the
same formula is computed without these roundings, what is left is what ranks do differently.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

#: The methods of a tensor that cast to fewer bits.
CASTS = ("float", "half", "bfloat16")
#: Where a cast is part of a training step; images and labels are made before.
STEP = ("ultralytics.nn.", "ultralytics.utils.", "ultralytics.optim.")


def leave_out() -> set[str]:
    """Let casts to fewer bits give float64, and make it torch's default type: for the rest of this process.

    Returns:
        The functions of upstream that cast, as "module.function"; it fills as they do.
    """
    torch.set_default_dtype(torch.float64)
    found: set[str] = set()
    for name in CASTS:
        setattr(torch.Tensor, name, _wide(found))
    return found


def _wide(found: set[str]) -> Callable[..., Any]:
    def double(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        module = caller.f_globals.get("__name__", "")
        if module.startswith(STEP):
            found.add(f"{module.partition('.')[2]}.{caller.f_code.co_name}")
        return tensor.double(*args, **kwargs)

    return double
