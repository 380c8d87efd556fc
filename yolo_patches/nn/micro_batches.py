"""One micro-batch in several parts, whose gradients add up to that of the whole.

Forward and backward pass of a part follow each other, so that only one part's activations are held at a time. What the
loss divides by must be the whole micro-batch's, which is known only when every part has been predicted: so there is a
forward pass without a graph before them, where the loss has such a normaliser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor, nn

from yolo_patches.nn.pooled_statistics import Statistics

Gradients = list[Optional[Tensor]]


class UnevenNormalisersError(RuntimeError):
    """Parts do not divide by the same things."""


@dataclass(frozen=True)
class Work:
    """What is computed in parts.

    Attributes:
        images: How many images the micro-batch has.
        part: Returns the micro-batch of the images from one number to another.
        compute: Forward pass of a micro-batch: the loss, a number or a vector, and the terms that are logged.
        model: Whose layers it goes through.
        parameters: Whose gradients are wanted.
        sharing: Lets the normalisers of a loss be told to a listener.
        shares: Whether the loss has normalisers that parts must share.
        summed: Whether the loss is multiplied by the number of images; otherwise it is their mean.
        autocast: Returns the context of automatic mixed precision that upstream computes in.
    """

    images: int
    part: Callable[[int, int], Any]
    compute: Callable[[Any], tuple[Any, Any]]
    model: nn.Module
    parameters: Sequence[nn.Parameter]
    sharing: Callable[[Any], AbstractContextManager[None]]
    shares: bool
    summed: bool
    autocast: Callable[[], AbstractContextManager[Any]]

    def ranges(self, largest: int) -> list[tuple[int, int]]:
        """Return as few parts as there can be, none larger than that, and of sizes that differ by one at most."""
        count = math.ceil(self.images / largest)
        edges = [round(self.images * number / count) for number in range(count + 1)]
        return list(zip(edges, edges[1:]))


class Normalisers:
    """Listens to the normalisers of a part's loss, and answers with the whole micro-batch's.

    Args:
        totals: Those of the whole, in the order in which the loss asks; None: each part is given its own.
        share: The part's share of the images. It divides by `total * share` what the whole divides by `total`, since
            its loss is multiplied by so many images less.
    """

    def __init__(self, totals: list[Tensor] | None = None, share: float = 1.0) -> None:
        self.heard: list[Tensor] = []
        self._totals, self._share = totals, share

    def fire(self, seam: Any) -> Any:
        """Note a part's own normalisers, and answer."""
        self.heard.append(seam.values.clone())
        if self._totals is not None:
            seam.values = self._totals[len(self.heard) - 1] * self._share
            seam.ranks = 1 / self._share
        return seam


def compute(work: Work, largest: int, seed: Callable[[Tensor], Tensor]) -> tuple[Tensor, Any]:
    """Compute a micro-batch in parts, add its gradients to those of the parameters, and return loss and terms.

    Random numbers of torch begin for every pass where they stood; they end where the last part leaves them.

    Args:
        work: What.
        largest: Images of a part, at most.
        seed: Returns the gradient with which a part's loss, which it is given, is backpropagated.
    """
    ranges = work.ranges(largest)
    statistics = Statistics(work.model)
    with statistics.tracked():
        totals = _totals(work, ranges) if work.shares else None
        losses, terms = [], []
        for start, stop in ranges:
            share = (stop - start) / work.images
            with torch.enable_grad(), work.sharing(Normalisers(totals, share)), statistics.part():
                with work.autocast():
                    loss, items = work.compute(work.part(start, stop))
                    loss = loss if work.summed else loss * share
                torch.autograd.backward([loss], [seed(loss)])
            losses.append(loss.detach())
            terms.append(_scaled(items, share))
            del loss
    return torch.stack(losses).sum(0), _sum(terms)


def _totals(work: Work, ranges: list[tuple[int, int]]) -> list[Tensor]:
    """Return the whole micro-batch's normalisers; random numbers are drawn, and put back."""
    heard = []
    with random_numbers_put_back(work.parameters):
        for start, stop in ranges:
            listener = Normalisers()
            with torch.no_grad(), work.sharing(listener), work.autocast():
                work.compute(work.part(start, stop))
            heard.append(listener.heard)
    if len({tuple(len(values) for values in part) for part in heard}) > 1:
        raise UnevenNormalisersError("images with fewer objects do not come to the normaliser as others do")
    return [torch.stack(values).sum(0) for values in zip(*heard)]


@contextmanager
def random_numbers_put_back(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Put torch's random numbers back where they stood, on the host and on the parameters' devices."""
    devices = sorted({parameter.device.index or 0 for parameter in parameters if parameter.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        yield


def mixed_precision(kind: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that makes contexts of the mixed precision that is on now, for this kind of device.

    They keep no cast weights: one that is cast without a graph would be taken for the cast of those that are trained.
    """
    try:
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    except TypeError:  # up to torch 2.3 the functions are CUDA's
        enabled, dtype = torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()
        enabled = enabled and kind == "cuda"
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)


def take(parameters: Sequence[nn.Parameter]) -> Gradients:
    """Return the gradients that have been accumulated so far, and leave none."""
    before: Gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return before


def put(parameters: Sequence[nn.Parameter], gradients: Gradients) -> None:
    """Let parameters have these gradients."""
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient


def add(parameters: Sequence[nn.Parameter], gradients: Gradients) -> None:
    """Add gradients, to the last bit as if the backward pass had accumulated onto them."""
    pairs = [(p, before) for p, before in zip(parameters, gradients) if before is not None]
    both = [(parameter.grad, before) for parameter, before in pairs if parameter.grad is not None]
    if both:
        torch._foreach_add_([fresh for fresh, _ in both], [before for _, before in both])
    for parameter, before in pairs:
        if parameter.grad is None:
            parameter.grad = before


class Backward:
    """What the backward pass of a loss calls, once.

    Args:
        call: Takes the loss's gradient.
    """

    def __init__(self, call: Callable[[Tensor], None]) -> None:
        self._call: Callable[[Tensor], None] | None = call

    def __call__(self, gradient: Tensor) -> None:
        """Call it, and let go of it: a trainer holds its loss, and through its graph it would hold itself."""
        call = self._call
        self.forget()
        if call is None:
            raise RuntimeError("a step's loss can be backpropagated once; oom-guard keeps no graph of it")
        call(gradient)

    def forget(self) -> None:
        """Let go of it."""
        self._call = None


class _Deferred(torch.autograd.Function):
    """A loss whose backward pass is a function of ours; its graph holds nothing of the loss's own."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, backward: Backward) -> Tensor:
        ctx.ours = backward
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.ours(gradient)
        return None, None, None


def deferred(loss: Tensor, backward: Backward) -> Tensor:
    """Return a tensor like a loss whose backward pass calls a function with the gradient.

    Upstream holds the loss while it is backpropagated: with its own graph, nothing could be freed where that fails.
    """
    anchor = torch.zeros((), requires_grad=True)
    made: Tensor = _Deferred.apply(loss.detach(), anchor, backward)
    return made


def _scaled(items: Any, share: float) -> Any:
    if isinstance(items, dict):
        return {name: _scaled(item, share) for name, item in items.items()}
    return items.detach() * share if isinstance(items, Tensor) else items * share


def _sum(terms: list[Any]) -> Any:
    if isinstance(terms[0], dict):
        return {name: _sum([part[name] for part in terms]) for name in terms[0]}
    return sum(terms[1:], terms[0])


def joined(outputs: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Return the predictions of several parts as those of one batch.

    Args:
        outputs: Of each part: tensors, in tuples, lists and dictionaries as they come.
        sizes: Images of each part. The dimension of images is told by them, so they should not all be the same.

    Raises:
        ValueError: Something has no dimension of images, and is not the same in all parts.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        if first.dim() == 0 and all(torch.equal(first, other) for other in outputs):
            return first
        for dimension in range(first.dim()):
            if all(output.shape[dimension] == size for output, size in zip(outputs, sizes)):
                return torch.cat(list(outputs), dimension)
        raise ValueError(f"predictions of shape {tuple(first.shape)} have no dimension of images")
    if isinstance(first, dict):
        return {name: joined([output[name] for output in outputs], sizes) for name in first}
    if isinstance(first, (tuple, list)):
        return type(first)(joined(parts, sizes) for parts in zip(*outputs))
    if all(output == first for output in outputs):
        return first
    raise ValueError(f"predictions of type {type(first).__name__} cannot be joined")
