"""BatchNorm's running statistics of a batch that is computed in parts: one update, from the pooled moments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn

from yolo_patches.nn.sync_batchnorm import synchronises


class _Moments(NamedTuple):
    """Of one part in one layer: elements a channel, their mean, and their unbiased variance."""

    elements: int
    mean: Tensor
    variance: Tensor


class Counts:
    """How often BatchNorm layers have been updated, so that it can be told later which of them a pass has come to.

    Args:
        layers: The layers.
    """

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self._versions = [_version(layer) for layer in layers]

    def passed(self) -> set[nn.Module]:
        """Return the layers that have been updated since."""
        return {layer for layer, before in zip(self._layers, self._versions) if _version(layer) != before}


def normalising(model: nn.Module) -> list[Any]:
    """Return a model's BatchNorm layers."""
    return [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def _version(layer: Any) -> int:
    """Return how often a layer's counter has been written; reading the counter itself would wait for the device."""
    counter = layer.num_batches_tracked
    return 0 if counter is None else int(counter._version)


class Statistics:
    """The running statistics of a model's BatchNorm layers while a batch is computed in parts.

    Each part is normalised by its own moments, as in every micro-batch. What is tracked is what the whole batch would
    have left: mean and unbiased variance of all parts' elements, blended in once with the layer's own momentum. It is
    exact where the layer's input is that of the whole batch, as in the first one; behind it, the inputs differ by what
    the parts' own moments make of them. Layers that synchronise know themselves what they have tracked.

    Args:
        model: In training mode as a whole; layers that track nothing, or are frozen, are left alone.
        counts: Taken before the batch was tried as a whole: what that pass came to has been tracked.
    """

    def __init__(self, model: nn.Module, counts: Optional[Counts] = None) -> None:
        tracking = [layer for layer in normalising(model) if layer.training and layer.running_mean is not None]
        self._layers = [layer for layer in tracking if not synchronises(layer)]
        self._shared = [layer for layer in tracking if synchronises(layer)]
        self._passed = counts.passed() if counts else set()
        self._parts: list[dict[nn.Module, list[_Moments]]] = []
        self._noting = False

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Let the block compute parts; what they leave in the layers is pooled, or taken back where it fails."""
        buffers = [_buffers(layer) for layer in self._layers]
        momenta = [layer.momentum for layer in self._layers]
        hooks = []
        try:
            for layer in self._layers:
                hooks.append(layer.register_forward_hook(self._note))
                layer.momentum = 1.0  # the running statistics become the part's own moments
            yield
        except BaseException:
            self._parts = []
            raise
        finally:
            for hook in hooks:
                hook.remove()
            with torch.no_grad():
                for layer, before, momentum in zip(self._layers, buffers, momenta):
                    layer.momentum = momentum
                    _put_back(layer, before)
                    if layer not in self._passed:
                        self._pool(layer)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Let the block make passes without a graph, in which no layer synchronises, and none is to track anything."""
        buffers = [_buffers(layer) for layer in self._shared]
        try:
            yield
        finally:
            with torch.no_grad():
                for layer, before in zip(self._shared, buffers):
                    _put_back(layer, before)

    @contextmanager
    def part(self) -> Iterator[None]:
        """Let the block compute one part whose moments count."""
        self._parts.append({})
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def _note(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._noting:
            elements = inputs[0].numel() // inputs[0].shape[1]
            moments = _Moments(elements, layer.running_mean.clone(), layer.running_var.clone())
            self._parts[-1].setdefault(layer, []).append(moments)

    def _pool(self, layer: Any) -> None:
        """Blend in the pooled moments of each of a layer's passes: some are called more than once a batch."""
        passes = [part.get(layer, []) for part in self._parts]
        for parts in zip(*passes):
            elements = sum(part.elements for part in parts)
            mean = torch.stack([part.mean * (part.elements / elements) for part in parts]).sum(0)
            spread = [part.variance * (part.elements - 1) + (part.mean - mean) ** 2 * part.elements for part in parts]
            variance = torch.stack(spread).sum(0) / max(elements - 1, 1)
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.add_(1)
            momentum = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
            layer.running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
            layer.running_var.mul_(1 - momentum).add_(variance, alpha=momentum)


def _buffers(layer: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer._buffers.items() if value is not None}


def _put_back(layer: Any, buffers: dict[str, Tensor]) -> None:
    for name, value in buffers.items():
        layer._buffers[name].copy_(value)
