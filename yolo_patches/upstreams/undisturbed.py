"""A live model that is computed with before its training, and of which nothing may be seen in that training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from yolo_patches.nn import random_numbers


@contextmanager
def undisturbed(model: nn.Module, *holders: Any) -> Iterator[None]:
    """Put everything back as it was, whatever happens: the model, random numbers, and these objects' attributes.

    What modules hold is put back by reference, and their buffers by value: flags, caches, a criterion that the model
    has made for itself.
    """
    modules = [(module, dict(vars(module)), dict(module._modules), dict(module._buffers)) for module in model.modules()]
    contents = [(buffer, buffer.clone()) for buffer in model.buffers()]
    attributes = [(holder, {name: _copied(value) for name, value in vars(holder).items()}) for holder in holders]
    device = next(model.parameters(), torch.zeros(())).device
    try:
        with _random_numbers(device), _deterministic(device), torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        for module, own, children, buffers in modules:
            _restore(vars(module), own)
            _restore(module._modules, children)
            _restore(module._buffers, buffers)
        for holder, own in attributes:
            _restore(vars(holder), own)
        with torch.no_grad():
            for buffer, content in contents:
                if not torch.equal(buffer, content):
                    buffer.copy_(content)


def settle(model: nn.Module) -> None:
    """Put a model in training mode, except for the layers whose output depends on other images, or on chance."""
    model.train()
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
            module.training = False


@contextmanager
def _random_numbers(device: torch.device) -> Iterator[None]:
    put_back = random_numbers.noted()
    here = [] if device.type in ("cpu", "mps") else [device]
    metal = torch.mps.get_rng_state() if device.type == "mps" else None
    with ExitStack() as stack:
        kind = {"device_type": device.type} if here and device.type != "cuda" else {}  # old releases know no other
        stack.enter_context(torch.random.fork_rng(here, **kind))
        try:
            yield
        finally:
            put_back()
            if metal is not None:
                torch.mps.set_rng_state(metal)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Let devices choose kernels whose result does not depend on what finishes first, where they have such."""
    if device.type == "cpu":
        yield
        return
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def _restore(held: Any, before: dict[str, Any]) -> None:
    held.clear()
    held.update(before)


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, (list, dict)) else value
