"""The batches of a loader that gives the same ones in every pass, kept from the first pass on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from yolo_patches.validation.draws import Draws, draw

#: Random numbers that one image may draw and that we look for, at most: upstream draws one in validation, too.
DRAWS = 4


class KeptBatches:
    """Keep what a loader gives.

    A loader that works in this process draws random numbers for every image, also where nothing comes of them. A pass
    over what is kept draws as many, so that the training after it is the same.

    Args:
        limit: Bytes that may be kept.
        images: Finds the images of a batch, and how many they are.
        page_locked: Whether what is given of what is kept is to be in page-locked memory, as a loader's batches are.
    """

    def __init__(self, limit: int, images: Callable[[Any], torch.Tensor | None], page_locked: bool = False) -> None:
        self.why = ""
        self.size = 0
        self._limit = limit
        self._images = images
        self._page_locked = page_locked
        self._batches: list[Any] = []
        self._draws: list[int] = []
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether passes are made over what is kept."""
        return self._complete

    def passing(self, loader: Any) -> Iterator[Any]:
        """Return the iterator of a pass over the loader, or over what has been kept of it."""
        if self._complete:
            return self._replayed()
        return iter(loader) if self.why else self._recorded(loader)

    def _recorded(self, loader: Any) -> Iterator[Any]:
        self._forget()
        beginning = Draws()
        batches = iter(loader)
        if beginning.counted(0) is None:
            self._forget("its passes draw random numbers when they begin")
        for _ in range(len(loader)):
            before = Draws()
            try:
                batch = next(batches)
            except StopIteration:  # fewer than it says
                return
            try:
                self._keep(batch, len(loader), before)
            except Exception as error:  # upstream's pass goes on
                self._forget(f"{type(error).__name__}: {error}")
            yield batch
        self._complete = not self.why

    def _keep(self, batch: Any, batches: int, before: Draws) -> None:
        if self.why:
            return
        images = self._images(batch)
        draws = None if images is None else before.counted(DRAWS * len(images))
        if draws is None:
            self._forget("its images draw random numbers in a way that we do not know")
            return
        self._batches.append(_copied(batch, lambda tensor: tensor.detach().clone()))
        self._draws.append(draws)
        self.size += _size(batch)
        expected = max(self.size, self.size / len(self._batches) * batches)
        if expected > self._limit:
            self._forget(f"{expected / 2**30:.1f} GiB are more than may be kept")

    def _forget(self, why: str = "") -> None:
        self.why = self.why or why
        self._batches, self._draws, self.size = [], [], 0

    def _replayed(self) -> Iterator[Any]:
        for batch, draws in zip(self._batches, self._draws):
            draw(draws)
            yield _copied(batch, torch.Tensor.pin_memory if self._page_locked else _own)


def _copied(value: Any, copy: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a batch with copies of its tensors."""
    if isinstance(value, torch.Tensor):
        return copy(value)
    if isinstance(value, dict):
        return {key: _copied(item, copy) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item, copy) for item in value)
    return value


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy, but of images in bytes, which nobody changes in place."""
    return tensor if tensor.dtype is torch.uint8 else tensor.clone()


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (dict, list, tuple)):
        return sum(map(_size, value.values() if isinstance(value, dict) else value))
    return 0
