"""What every adapter's losses do on their way to the `Normaliser` seam."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Optional, Protocol

import torch
from torch import Tensor

from yolo_patches.activation import activation
from yolo_patches.nn import common_step
from yolo_patches.seams import Normaliser, Seam


class Listener(Protocol):
    """Whoever normalisers are told to: the lifecycle of the training under way, or a probe of its loss."""

    def listens(self, seam: type[Seam]) -> bool:
        """Return whether this seam is waited for."""

    def fire(self, seam: Normaliser) -> Normaliser:
        """Show the seam to whoever waits for it, and return it."""


#: Takes the place of the lifecycle while a probe computes a loss that no other rank computes.
_probe: ContextVar[Optional[Listener]] = ContextVar("probe", default=None)


@contextmanager
def probing(listener: Listener) -> Iterator[None]:
    """Let normalisers be told to a listener instead of the training under way, with or without gradients."""
    token = _probe.set(listener)
    try:
        yield
    finally:
        _probe.reset(token)


def listening() -> Listener | None:
    """Return whoever waits for the normalisers of the loss that is being computed; None where nobody does.

    A training listens in a step that every rank makes, and nowhere else: what it does with normalisers is a collective.
    """
    probe = _probe.get()
    if probe is not None:
        return probe
    listener: Listener | None = activation.current
    if listener is None or not torch.is_grad_enabled() or not common_step.inside():
        return None
    return listener if listener.listens(Normaliser) else None


def fire(listener: Listener, like: Tensor, *values: Any) -> Normaliser:
    """Fire one loss's normalisers.

    Args:
        listener: As `listening` has returned it.
        like: A tensor of the device and the type that the loss is computed in.
        values: Scalars. Their types may differ between ranks: under AMP, those of a rank without labels are half. So
            they travel as float64, which holds them all, or as float32 on devices that have no float64.
    """
    wide = torch.float64 if like.device.type in ("cpu", "cuda") else torch.float32
    scalars = [torch.as_tensor(value, device=like.device).detach().to(wide) for value in values]
    seam = listener.fire(Normaliser(torch.stack(scalars)))
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
