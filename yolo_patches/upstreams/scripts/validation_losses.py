"""The losses of a script's validation, where its own has the criterion commented out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

#: Where the masks are in a batch of the scripts that have some.
MASKS = 4


class ValidationLosses:
    """Compute the criterion beside a validation.

    The head is called a second time on the features that it has been given, as it is called in training: what it
    returns then is what the criterion is for, whatever it returns in validation.

    Args:
        keywords: Of the call that validates: its model and its criterion.
        attempt: Does something of ours, and drops it where that fails.
    """

    def __init__(self, keywords: Mapping[str, Any], attempt: Callable[[Callable[[], Any]], Any]) -> None:
        self._model = keywords["model"]
        self._criterion = keywords["compute_loss"]
        self._attempt = attempt
        self._batch: Any = None
        self._sum: Any = 0.0
        self._batches = 0

    def following(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Follow a pass over the validation images."""
        for batch in batches:
            # Upstream changes its targets in place, after the model has been called.
            self._batch = batch
            yield batch

    @contextmanager
    def computed(self) -> Iterator[None]:
        """Compute the loss whenever the head is called."""
        hook = self._model.model[-1].register_forward_pre_hook(self._called)
        try:
            yield
        finally:
            hook.remove()

    def told(self, result: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[float]]:
        """Return upstream's result with our losses in place of its zeros, and the losses; none where it has its own."""
        losses = (self._sum / self._batches).tolist() if self._batches else []
        figures = result[0]
        if not losses or any(figures[-len(losses) :]):
            return result, []
        return ((*figures[: -len(losses)], *losses), *result[1:]), losses

    def _called(self, head: Any, inputs: tuple[Any, ...]) -> None:
        if self._batch is not None:  # else it warms up
            self._attempt(lambda: self._add(head, inputs))

    def _add(self, head: Any, inputs: tuple[Any, ...]) -> None:
        batch, self._batch = self._batch, None
        features = [value.clone() if isinstance(value, torch.Tensor) else value for value in inputs[0]]
        mode, head.training = head.training, True  # its own flag alone: its layers go on as they are
        try:
            made = _float(head.forward(features))
        finally:
            head.training = mode
        device = next(self._model.parameters()).device
        masks = (batch[MASKS].to(device).float(),) if len(batch) > MASKS else ()
        items = self._criterion(made, batch[1].to(device), *masks)[1]
        self._sum = self._sum + items.detach().double().cpu()
        self._batches += 1


def _float(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float()
    return type(value)(map(_float, value)) if isinstance(value, (list, tuple)) else value
