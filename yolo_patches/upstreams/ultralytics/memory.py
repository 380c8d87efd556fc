"""Where Ultralytics' trainer asks for most of its memory: the forward pass of a step, and predictions of a validation.

The training loop is one method, so there is nothing to wrap around a step. But between the preprocessing of a batch and
the call of the model nothing else happens: for that moment the model object has a forward of ours, which takes itself
off when it is called. Copies of the model, checkpoints and workers never see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from random import getstate, setstate
from typing import Any, TypeVar

import torch

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.memory_seams import MicroStep, Prediction, Preparation
from yolo_patches.seams import Normaliser, Seam
from yolo_patches.upstreams.normaliser_calls import probing
from yolo_patches.upstreams.ultralytics import batch_parts
from yolo_patches.wrapping import Wrapping

Call = Callable[..., Any]
S = TypeVar("S", bound=Seam)
#: Where a module has a forward of its own.
FORWARD = "forward"


class _Part:
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


class Memory:
    """The acts of one trainer that need memory.

    Args:
        trainer: The trainer.
        lifecycle: Of its training.
    """

    def __init__(self, trainer: Any, lifecycle: Lifecycle) -> None:
        self._trainer = trainer
        self._lifecycle = lifecycle
        self._forget: Callable[[], None] | None = None

    def prepared(self, prepare: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return a batch as upstream prepares it, with these arguments, for the step that has begun."""
        if not self._lifecycle.listens(Preparation):
            return prepare(*args, **kwargs)
        before = getstate()

        def again() -> Any:
            setstate(before)  # which size the images are drawn to
            return prepare(*map(_copied, args), **{name: _copied(value) for name, value in kwargs.items()})

        return self._lifecycle.around(Preparation(), again)

    def expect(self, batch: Any) -> None:
        """Stand around the next call of the model, which is the step's own."""
        model = self._trainer.model
        if not (self._lifecycle.listens(MicroStep) and batch_parts.images(batch) and self._plain(model)):
            return
        held, upstreams, own = vars(model), model.forward, vars(model).get(FORWARD)

        def forget() -> None:
            self._forget = None
            if own is None:
                held.pop(FORWARD, None)
            else:
                held[FORWARD] = own

        def forward(*args: Any, **kwargs: Any) -> Any:
            forget()
            if kwargs or not (batch_parts.same_batch(args, batch) and torch.is_grad_enabled()):
                return upstreams(*args, **kwargs)
            act = self._lifecycle.attempt(lambda: self._act(model, batch, upstreams), MicroStep)
            return upstreams(batch) if act is None else self._lifecycle.around(act, lambda: upstreams(batch))

        self._forget = forget
        held[FORWARD] = forward

    def forget(self) -> None:
        """Take a forward of ours off that has not been called."""
        if self._forget is not None:
            self._forget()

    @staticmethod
    def _plain(model: Any) -> bool:
        """Return whether the model is the module itself, neither compiled nor in DistributedDataParallel."""
        return isinstance(model, torch.nn.Module) and not (hasattr(model, "_orig_mod") or hasattr(model, "module"))

    def _act(self, model: Any, batch: Any, upstreams: Call) -> MicroStep:
        trainer = self._trainer
        overlap = bool(getattr(trainer.args, "overlap_mask", True))
        return MicroStep(
            images=batch_parts.images(batch),
            shape=batch_parts.shape(batch),
            part=lambda start, stop: batch_parts.part(batch, start, stop, overlap),
            compute=upstreams,
            model=model,
            parameters=[p for group in trainer.optimizer.param_groups for p in group["params"] if p.requires_grad],
            scale=lambda: float(trainer.scaler.get_scale()),
            sharing=lambda normalisers: probing(_Part(self._lifecycle, normalisers)),
            tell=self._lifecycle.tell,
        )

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """Stand around every prediction of a batch in validation, by whichever of upstream's models."""
        wrapping = Wrapping()
        if self._lifecycle.listens(Prediction):
            self._lifecycle.attempt(
                lambda: wrapping.wrap(import_module("ultralytics.nn.tasks").BaseModel, FORWARD, self._predict),
                Prediction,
            )
        try:
            yield
        except Exception:
            # Upstream's loaders go on where a pass was left; the next is to begin with the first batch.
            reset = getattr(getattr(self._trainer, "test_loader", None), "reset", None)
            if reset is not None and self._lifecycle.listens(Prediction):
                self._lifecycle.attempt(reset)
            raise
        finally:
            wrapping.undo()

    def _predict(self, wrapped: Call, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pixels = args[0] if args else None
        if not isinstance(pixels, torch.Tensor) or pixels.dim() != 4 or torch.is_grad_enabled() or model.training:
            return wrapped(*args, **kwargs)
        act = Prediction(
            len(pixels),
            lambda start, stop: wrapped(pixels[start:stop], *args[1:], **kwargs),
            self._lifecycle.tell,
        )
        return self._lifecycle.around(act, lambda: wrapped(*args, **kwargs))


def _copied(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value
