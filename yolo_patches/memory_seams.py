"""Seams at which a training asks for most of its memory; see `yolo_patches.seams`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

from yolo_patches.seams import Act


def _unshared(listener: Any) -> AbstractContextManager[None]:
    return nullcontext()


def _untold(line: str) -> None:
    pass


@dataclass
class Preparation(Act):
    """A micro-batch is about to be brought to the device; `proceed` returns it and leaves upstream's own alone."""

    repeatable: ClassVar[bool] = True


@dataclass
class PrecisionCheck(Act):
    """Upstream is about to try on the device whether mixed precision has the results of the whole one."""

    repeatable: ClassVar[bool] = True


@dataclass
class MicroStep(Act):
    """The forward pass of one micro-batch in training, whose loss upstream backpropagates next.

    `proceed` returns what upstream has of it: the loss, a number or a vector, and the terms that are logged, a tensor
    or a dictionary. What a patch returns in its place may be any tensor of that form whose backward pass leaves the
    gradients where upstream expects them.

    Attributes:
        images: How many images the micro-batch has on this rank.
        shape: Of one image, as text.
        part: Returns the micro-batch of the images from one number to another; raises where it cannot be told apart.
        compute: Upstream's forward pass of a micro-batch.
        model: The model, not wrapped.
        parameters: Whatever gradients are accumulated for.
        scale: Returns by what upstream is about to multiply the loss (AMP, ranks).
        sharing: Lets the normalisers of a loss be told to a listener; see `Normaliser`.
        share: Shares a `Normaliser` with the other ranks, as in a step of the whole micro-batch; None where no patch
            does.
        tell: Logs a warning, once.
    """

    repeatable: ClassVar[bool] = True
    images: int
    shape: str
    part: Callable[[int, int], Any]
    compute: Callable[[Any], tuple[Any, Any]]
    model: Any = None
    parameters: Sequence[Any] = field(default_factory=list)
    scale: Callable[[], float] = lambda: 1.0
    sharing: Callable[[Any], AbstractContextManager[None]] = _unshared
    share: Callable[[Any], Any] | None = None
    tell: Callable[[str], None] = _untold


@dataclass
class Prediction(Act):
    """A model is about to predict for a batch in validation; `proceed` returns its predictions.

    Attributes:
        images: How many images there are.
        compute: Predicts for the images from one number to another.
        tell: Logs a warning, once.
    """

    repeatable: ClassVar[bool] = True
    images: int
    compute: Callable[[int, int], Any]
    tell: Callable[[str], None] = _untold
