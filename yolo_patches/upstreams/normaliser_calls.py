"""What every adapter's losses do on their way to the `Normaliser` seam."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
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


def probe() -> Listener | None:
    """Return the probe that computes this loss, if it is one that does."""
    return _probe.get()


def listening() -> Listener | None:
    """Return whoever waits for the normalisers of the loss that is being computed; None where nobody does.

    A training listens in a step that every rank makes, and nowhere else: what it does with normalisers is a collective.
    """
    probing_listener = _probe.get()
    if probing_listener is not None:
        return probing_listener if probing_listener.listens(Normaliser) else None
    listener: Listener | None = activation.current
    if listener is None or not torch.is_grad_enabled() or not common_step.inside():
        return None
    return listener if listener.listens(Normaliser) else None


def fire(listener: Listener, like: Any, *values: Any) -> Normaliser:
    """Fire one loss's normalisers.

    Args:
        listener: As `listening` has returned it.
        like: A tensor of the device and the type that the loss is computed in, or something that holds one.
        values: Scalars. Their types may differ between ranks: under AMP, those of a rank without labels are half. So
            they travel as float64, which holds them all, or as float32 on devices that have no float64.
    """
    like = next(tensors(like), torch.zeros(()))
    wide = torch.float64 if like.device.type in ("cpu", "cuda") else torch.float32
    scalars = [torch.as_tensor(value, device=like.device).detach().to(wide) for value in values]
    seam = listener.fire(Normaliser(torch.stack(scalars)))
    seam.values = seam.values.to(torch.promote_types(like.dtype, torch.float32))
    return seam


def familiar(assigned: Any, scores: Any) -> bool:
    """Return whether an assigner's result begins as it does in every release that we know.

    Labels [images, anchors], boxes [images, anchors, 4 or 5], target scores of the predicted scores' shape, and a mask
    [images, anchors]. The mask is boolean; up to 8.4.120 a rank without labels has numbers for labels and zeros for the
    mask. Only shapes and types are looked at: a look at values would wait for the device at every step.
    """
    if not isinstance(assigned, (tuple, list)) or len(assigned) < 4 or not isinstance(scores, Tensor):
        return False
    if scores.dim() != 3 or not all(isinstance(value, Tensor) for value in assigned[:4]):
        return False
    labels, boxes, targets, mask = assigned[:4]
    anchors = scores.shape[:2]
    shapes = labels.shape == mask.shape == boxes.shape[:2] == anchors and targets.shape == scores.shape
    if not shapes or boxes.dim() != 3 or boxes.shape[2] not in (4, 5):
        return False
    masked = mask.dtype == torch.bool or (mask.is_floating_point() and labels.is_floating_point())
    return bool(masked and targets.is_floating_point() and boxes.is_floating_point())


def arguments(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name; nothing where the function does not take them, which is upstream's to say."""
    try:
        return inspect.signature(wrapped).bind(*args, **kwargs).arguments
    except TypeError:
        return {}


def zero(*outputs: Any) -> Any:
    """Return a zero that depends on each of these tensors, or tensors in lists and dictionaries.

    A rank without objects leaves boxes and masks out of its graph, and the others would wait for its backward pass.
    """
    return sum(output[..., :0].sum() for output in tensors(outputs))


def tensors(outputs: Any) -> Iterator[Tensor]:
    """Yield a tensor, or each one in lists and dictionaries."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (tuple, list, dict)):
        for part in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from tensors(part)
