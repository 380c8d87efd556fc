"""Where a script asks for most of its memory: a step's forward pass, the optimizer's step, a validation's predictions.

`train()` is one function: it calls the model, and with what comes of it the criterion. So for one call the model object
has a forward of ours, which computes nothing and takes itself off; what it returns is for the criterion alone, which
calls the model then. Nothing of the script's holds predictions while their loss is backpropagated.

DistributedDataParallel prepares its gradients for what the module returns, and in its first step passes it on through a
node of its own. So the criterion is called within it: it sees a loss, and not predictions that nobody has made yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import wrapt
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.memory_seams import MicroStep, Prediction
from yolo_patches.seams import Normaliser, Step
from yolo_patches.upstreams.micro_step import Parameters, PartListener
from yolo_patches.upstreams.next_forward import FORWARD, NextForward
from yolo_patches.upstreams.normaliser_calls import probing
from yolo_patches.wrapping import Wrapping, bind

#: By what a loss of half precision is multiplied: the script's own scaler is out of reach until it backpropagates.
HALF_SCALE = 1024.0

#: A micro-batch: images, labels, and what else the criterion is given.
Batch = tuple[Tensor, Tensor, dict[str, Any]]


class Later:
    """Stands for predictions until the criterion wants them.

    Args:
        images: Of the micro-batch.
        predict: Calls the model.
    """

    def __init__(self, images: Tensor, predict: Callable[[Tensor], Any]) -> None:
        self.images = images
        self.predict = predict


class Memory:
    """The acts of one training that need memory.

    Args:
        lifecycle: Of the training.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._parameters = Parameters()
        self._optimizer: Any = None
        self._model: Any = None  # not wrapped
        self._distributed = False
        self._next, self._inner = NextForward(), NextForward()

    def forget(self) -> None:
        """Stand around no call of the model."""
        self._next.forget()
        self._inner.forget()

    def expect(self, model: Any, optimizer: Any, criterion: Any) -> None:
        """Stand around the next call of the model, which is the step's own; its loss is computed by this criterion."""
        self.forget()
        followed = isinstance(vars(type(criterion)).get("__call__"), wrapt.FunctionWrapper)
        distributed = isinstance(model, DistributedDataParallel)
        module = model.module if distributed else model
        plain = isinstance(module, torch.nn.Module) and not (hasattr(module, "module") or hasattr(module, "_orig_mod"))
        if not (self._lifecycle.listens(MicroStep) and followed and plain and optimizer is not None):
            return
        self._optimizer, self._model, self._distributed = optimizer, module, distributed

        def forward(upstreams: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or not torch.is_grad_enabled():
                return upstreams(*args, **kwargs)
            return Later(args[0], upstreams)

        self._next.expect(model, forward)

    def computed(self, criterion: Callable[..., Any], overlap: bool, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Return what a criterion makes of predictions that have been put off, or of any others.

        Args:
            criterion: Upstream's, in which the patches hear its normalisers.
            overlap: Whether its masks are one an image.
            args: Predictions, and labels.
            kwargs: What else it is given.
        """
        later = args[0] if args else None
        if not isinstance(later, Later):
            return criterion(*args, **kwargs)

        labels = args[1] if len(args) > 1 else kwargs["targets"]
        batch = later.images, labels, {name: value for name, value in kwargs.items() if name != "targets"}

        def made(predict: Callable[[Tensor], Any]) -> Any:
            def compute(batch: Batch) -> Any:
                images, labels, more = batch
                return criterion(predict(images), labels, *args[2:], **more)

            act = self._lifecycle.attempt(lambda: self._act(batch, compute, overlap), MicroStep)
            return compute(batch) if act is None else self._lifecycle.around(act, lambda: compute(batch))

        return self._within(later, made) if self._distributed else made(later.predict)

    def _within(self, later: Later, made: Callable[[Callable[[Tensor], Any]], Any]) -> Any:
        """Return loss and terms that are made within DistributedDataParallel, which sees the loss.

        What it does before and after that, all ranks do together, whatever happens in between.
        """
        terms: list[Any] = []

        def forward(upstreams: Callable[..., Any], _: tuple[Any, ...], __: dict[str, Any]) -> Any:
            loss, *terms[:] = made(upstreams)
            return loss

        self._inner.expect(self._model, forward)
        loss = later.predict(later.images)
        return loss.clone(), *terms  # scripts multiply it in place, which releases of torch forbid for what DDP returns

    def scaled(self, scaler: Any) -> None:
        """Stand around the optimizer's steps that this gradient scaler makes."""
        if self._lifecycle.listens(Step):
            bind(scaler, "step", self._step)

    def _step(self, wrapped: Callable[..., Any], scaler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def act() -> Step:
            return Step(args[0] if args else kwargs["optimizer"], accumulate=0, holders=(scaler,))

        step = self._lifecycle.attempt(act, Step)
        if step is None:
            return wrapped(*args, **kwargs)
        return self._lifecycle.around(step, lambda: wrapped(*args, **kwargs))

    def _act(self, batch: Batch, compute: Callable[[Batch], Any], overlap: bool) -> MicroStep:
        images = batch[0]
        half = images.device.type == "cuda" and torch.is_autocast_enabled()
        ranks = self._lifecycle.plan.world_size
        return MicroStep(
            images=len(images),
            shape=f"{images.shape[2]} x {images.shape[3]} pixels",
            part=lambda start, stop: part(batch, start, stop, overlap),
            compute=compute,
            model=self._model,
            parameters=self._parameters.of(self._optimizer, self._model),
            scale=lambda: (HALF_SCALE if half else 1.0) * ranks,
            sharing=lambda normalisers: probing(PartListener(self._lifecycle, normalisers)),
            share=self._lifecycle.fire if self._lifecycle.listens(Normaliser) else None,
            tell=self._lifecycle.tell,
        )

    @contextmanager
    def predicting(self, model: Any) -> Iterator[None]:
        """Stand around every prediction of a model in a validation."""
        wrapping = Wrapping()
        if self._lifecycle.listens(Prediction) and isinstance(model, torch.nn.Module):
            owner = next(cls for cls in type(model).__mro__ if FORWARD in vars(cls))
            self._lifecycle.attempt(lambda: wrapping.wrap(owner, FORWARD, self._predict), Prediction)
        try:
            yield
        finally:
            wrapping.undo()

    def _predict(self, wrapped: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pixels = args[0] if args else None
        if not isinstance(pixels, Tensor) or pixels.dim() != 4 or torch.is_grad_enabled() or model.training:
            return wrapped(*args, **kwargs)
        act = Prediction(
            len(pixels), lambda start, stop: wrapped(pixels[start:stop], *args[1:], **kwargs), self._lifecycle.tell
        )
        return self._lifecycle.around(act, lambda: wrapped(*args, **kwargs))


def part(batch: Batch, start: int, stop: int, overlap: bool) -> Batch:
    """Return the images from `start` to `stop` of a micro-batch, and what belongs to them.

    Args:
        batch: Labels are [objects, 6], an object's image first; masks one an image or one an object.
        start: Number of the first image.
        stop: Number of the one after the last.
        overlap: Whether masks are one an image.

    Raises:
        ValueError: Something is neither labels nor masks.
    """
    images, labels, more = batch
    mine = (labels[:, 0] >= start) & (labels[:, 0] < stop)
    chosen = labels[mine].clone()
    chosen[:, 0] -= start
    made = {}
    for name, value in more.items():
        if name != "masks" or not isinstance(value, Tensor) or len(value) != len(images if overlap else labels):
            raise ValueError(f"{name!r} belongs neither to the {len(images)} images nor to their objects")
        made[name] = value[start:stop] if overlap else value[mine.to(value.device)]
    return images[start:stop], chosen, made
