"""The scripts' criteria: how what they divide by comes to the seam."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from yolo_patches.run import Run
from yolo_patches.runtime import runtime
from yolo_patches.seams import Normaliser
from yolo_patches.wrapping import Wrapper, Wrapping


def listening() -> Run | None:
    """Return the run whose training step is under way, if an active patch of it waits for normalisers."""
    run: Run | None = runtime.current
    return run if run is not None and torch.is_grad_enabled() and run.listens(Normaliser) else None


def fire(run: Run, values: Sequence[Tensor]) -> Normaliser:
    """Fire one criterion call's normalisers, of this rank's type, as one vector.

    They travel as float64: under AMP a rank without labels has half, and a model may compute in float64.
    """
    seam = run.fire(Normaliser(torch.stack([value.detach().double() for value in values])))
    seam.values = seam.values.to(torch.promote_types(values[0].dtype, torch.float32))
    return seam


def wrap(module: ModuleType, wrapping: Wrapping, call: Wrapper, started: Wrapper) -> None:
    """Wrap every criterion of a module.

    Args:
        module: The module.
        wrapping: Records what is replaced.
        call: Wrapper of `__call__`.
        started: Wrapper of `__init__`.
    """
    for name, cls in list(vars(module).items()):
        if name.startswith("ComputeLoss") and isinstance(cls, type) and cls.__module__ == module.__name__:
            wrapping.wrap(cls, "__init__", started)
            wrapping.wrap(cls, "__call__", call)


def zero(predictions: Any) -> Any:
    """Return a zero that depends on every prediction.

    A rank without objects leaves boxes and masks out of its graph, and the others would wait for its backward pass.
    """
    return sum(tensor[..., :0].sum() for tensor in _tensors(predictions))


def _tensors(predictions: Any) -> Iterator[Tensor]:
    if isinstance(predictions, Tensor):
        yield predictions
    else:
        for part in predictions:
            yield from _tensors(part)
