"""What every adapter's criteria do on their way to the `Normaliser` seam."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from yolo_patches.activation import activation
from yolo_patches.lifecycle import Run
from yolo_patches.seams import Normaliser


def listening() -> Run | None:
    """Return the run whose training step is under way, if an active patch of it waits for normalisers."""
    run: Run | None = activation.current
    return run if run is not None and torch.is_grad_enabled() and run.listens(Normaliser) else None


def fire(run: Run, like: Tensor, *values: Any) -> Normaliser:
    """Fire one criterion call's normalisers.

    Args:
        run: The run.
        like: A tensor of the device and the type that the loss is computed in.
        values: Scalars. Their types may differ between ranks: under AMP, those of a rank without labels are half. So
            they travel as float64, which holds them all.
    """
    scalars = [torch.as_tensor(value, device=like.device).detach().double() for value in values]
    seam = run.fire(Normaliser(torch.stack(scalars)))
    seam.values = seam.values.to(torch.promote_types(like.dtype, torch.float32))
    return seam


def zero(*outputs: Any) -> Any:
    """Return a zero that depends on each of these tensors, or tensors in lists.

    A rank without objects leaves boxes and masks out of its graph, and the others would wait for its backward pass.
    """
    return sum(output[..., :0].sum() for output in _tensors(outputs))


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for part in outputs:
            yield from _tensors(part)
