"""torch's clipping of gradients, whose result patches see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.observation_seams import Clip
from yolo_patches.wrapping import instead


def following(lifecycle: Lifecycle, clip: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that clips as this one does, and shows patches the norm that it returns."""

    def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
        norm = clip(*args, **kwargs)
        limit = args[1] if len(args) > 1 else kwargs.get("max_norm")
        lifecycle.attempt(lambda: lifecycle.fire(Clip(norm, float(limit))), Clip)  # type: ignore[arg-type]
        return norm

    return clip_grad_norm_


@contextmanager
def followed(lifecycle: Lifecycle) -> Iterator[None]:
    """Follow what is clipped in a block, where a patch wants to know."""
    if not lifecycle.listens(Clip):
        yield
        return
    with instead(torch.nn.utils, "clip_grad_norm_", following(lifecycle, torch.nn.utils.clip_grad_norm_)):
        yield
