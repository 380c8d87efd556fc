"""The weights of a model, as they are at one moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

#: What weights may have been rounded to.
KINDS = (torch.float16, torch.bfloat16)


class Weights:
    """Holds on to a model's parameters and buffers; converting a module gives it other tensors, and leaves these.

    Args:
        model: A torch module.
        compared: Whether to keep copies as well, to compare with.
    """

    def __init__(self, model: Any, compared: bool = False) -> None:
        self._model = model
        self._held = [tensor for _, _, tensor in _slots(model)]
        self._copies = [tensor.clone() for tensor in self._held] if compared else None

    def put_back(self) -> bool:
        """Give the model these tensors again, where those that it has now are these, rounded; return whether it was so.

        Weights that have changed otherwise are somebody's, and left to them.
        """
        slots = list(_slots(self._model))
        if len(slots) != len(self._held):
            return False
        moved = [(slot, held) for slot, held in zip(slots, self._held) if slot[2].data_ptr() != held.data_ptr()]
        if not moved or not _rounded([(slot[2], held) for slot, held in moved]):
            return False
        for (place, name, _), held in moved:
            if isinstance(place, torch.nn.Parameter):
                place.data = held
            else:
                place[name] = held
        return True

    def unchanged(self) -> bool:
        """Return whether the model has every bit that it had, or is converted only."""
        slots = list(_slots(self._model))
        return self._copies is None or (
            len(slots) == len(self._copies) and all(map(_same, (slot[2] for slot in slots), self._copies))
        )


def _slots(model: Any) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """Yield where each tensor of numbers is held, its name there, and the tensor."""
    for parameter in model.parameters():
        yield parameter, "data", parameter.data
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                yield module._buffers, name, buffer


def _rounded(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return any(
        all(_same(now.to(held.dtype), held.to(kind).to(held.dtype)) for now, held in pairs if held.is_floating_point())
        for kind in KINDS
    )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
