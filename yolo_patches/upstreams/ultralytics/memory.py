"""Where Ultralytics' trainer asks for most of its memory: the forward pass of a step, and predictions of a validation.

The training loop is one method, so there is nothing to wrap around a step. But between the preprocessing of a batch and
the call of the model nothing else happens: for that moment the model object has a forward of ours, which takes itself
off when it is called. Copies of the model, checkpoints and workers never see it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib import import_module
from logging import WARNING
from random import getstate, setstate
from typing import Any

import torch

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.memory_seams import MicroStep, PrecisionCheck, Prediction, Preparation
from yolo_patches.seams import Normaliser
from yolo_patches.upstreams.micro_step import Parameters, PartListener
from yolo_patches.upstreams.next_forward import FORWARD, NextForward
from yolo_patches.upstreams.normaliser_calls import probing
from yolo_patches.upstreams.ultralytics import batch_parts
from yolo_patches.wrapping import Wrapping, instead

Call = Callable[..., Any]
#: Where upstream calls the check of mixed precision, and its name there.
TRAINER, CHECK = "ultralytics.engine.trainer", "check_amp"


class Memory:
    """The acts of one trainer that need memory; entered with its training, and left with it.

    Args:
        trainer: The trainer.
        lifecycle: Of its training.
    """

    def __init__(self, trainer: Any, lifecycle: Lifecycle) -> None:
        self._trainer = trainer
        self._lifecycle = lifecycle
        self._next = NextForward()
        self.forget = self._next.forget
        self._parameters = Parameters()
        self._told: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Memory:
        if self._lifecycle.listens(PrecisionCheck):
            self._lifecycle.attempt(self._follow_check, PrecisionCheck)
        return self

    def __exit__(self, *_: object) -> None:
        """Put upstream's function back, and forget what a step was about to do."""
        self._stack.close()
        self.forget()

    def _follow_check(self) -> None:
        trainer = import_module(TRAINER)
        upstreams = getattr(trainer, CHECK, None)
        if upstreams is None:  # this release checks otherwise, and all else can be guarded
            return

        @wraps(upstreams)
        def check(*args: Any, **kwargs: Any) -> Any:
            return self._lifecycle.around(PrecisionCheck(), lambda: upstreams(*args, **kwargs))

        self._stack.enter_context(instead(trainer, CHECK, check))

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
        model = self._module()
        if model is None or not (self._lifecycle.listens(MicroStep) and batch_parts.images(batch)):
            return

        def forward(upstreams: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if kwargs or not (batch_parts.same_batch(args, batch) and torch.is_grad_enabled()):
                return upstreams(*args, **kwargs)
            act = self._lifecycle.attempt(lambda: self._act(model, batch, upstreams), MicroStep)
            return upstreams(batch) if act is None else self._lifecycle.around(act, lambda: upstreams(batch))

        self._next.expect(model, forward)

    def _module(self) -> Any:
        """Return the module that is called, within DistributedDataParallel where it is; None where it is compiled.

        What DistributedDataParallel does before and after it, all ranks do together, whatever happens in between.
        """
        model = self._trainer.model
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
        plain = isinstance(model, torch.nn.Module) and not (hasattr(model, "_orig_mod") or hasattr(model, "module"))
        return model if plain else None

    def _act(self, model: Any, batch: Any, upstreams: Call) -> MicroStep:
        trainer = self._trainer
        overlap = bool(getattr(trainer.args, "overlap_mask", True))
        ranks = self._lifecycle.plan.world_size
        return MicroStep(
            images=batch_parts.images(batch),
            shape=batch_parts.shape(batch),
            part=lambda start, stop: batch_parts.part(batch, start, stop, overlap),
            compute=upstreams,
            model=model,
            parameters=self._parameters.of(trainer.optimizer, model),
            scale=lambda: float(trainer.scaler.get_scale()) * ranks,
            sharing=lambda normalisers: probing(PartListener(self._lifecycle, normalisers)),
            share=self._lifecycle.fire if self._lifecycle.listens(Normaliser) else None,
            tell=self._tell,
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
            self._tell,
        )
        return self._lifecycle.around(act, lambda: wrapped(*args, **kwargs))

    def _tell(self, line: str) -> None:
        """Tell something of this rank's memory: upstream's log is the first rank's alone."""
        from ultralytics.utils import LOGGER, RANK

        if not LOGGER.isEnabledFor(WARNING) and line not in self._told:
            self._told.add(line)
            print(f"yolo-patches: rank {RANK}: {line}", file=sys.stderr)
        self._lifecycle.tell(line)


def _copied(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value
