"""What every adapter's micro-steps have in common: who hears a part's normalisers, and what has gradients."""

from __future__ import annotations

from typing import Any, TypeVar

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.seams import Normaliser, Seam

S = TypeVar("S", bound=Seam)


class PartListener:
    """Hears a part of a step: its normalisers go to a listener of their own, all else to the training's patches.

    Args:
        lifecycle: The training's.
        normalisers: Their listener.
    """

    def __init__(self, lifecycle: Lifecycle, normalisers: Any) -> None:
        self._lifecycle = lifecycle
        self._normalisers = normalisers

    def listens(self, seam: type[Seam]) -> bool:
        """Return whether anybody does."""
        return seam is Normaliser or self._lifecycle.listens(seam)

    def fire(self, seam: S) -> S:
        """Let the one or the others see a seam; return it."""
        heard: S = (self._normalisers if isinstance(seam, Normaliser) else self._lifecycle).fire(seam)
        return heard


class Parameters:
    """What a backward pass has gradients for: of the optimizer and of the model, each once."""

    def __init__(self) -> None:
        self._found: tuple[Any, Any, list[Any]] | None = None

    def of(self, optimizer: Any, model: Any) -> list[Any]:
        """Return those that are trained."""
        found = self._found
        if found is None or found[0] is not optimizer or found[1] is not model:
            groups = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            each = {id(parameter): parameter for parameter in [*groups, *model.parameters()]}
            found = self._found = optimizer, model, list(each.values())
        return [parameter for parameter in found[2] if parameter.requires_grad]
