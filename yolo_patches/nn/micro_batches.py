"""One micro-batch in several parts, whose gradients add up to that of the whole.

Forward and backward pass of a part follow each other, so that only one part's activations are held at a time. What the
loss divides by must be the whole micro-batch's, which is known only when every part has been predicted: so there is a
forward pass without a graph before them, where the loss has such a normaliser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Optional

import torch
from torch import Tensor, nn

from yolo_patches.nn.exchanges import Exchanges
from yolo_patches.nn.pooled_statistics import Counts, Statistics

Gradients = list[Optional[Tensor]]


class UnevenNormalisersError(RuntimeError):
    """Parts do not divide by the same things."""


class Known:
    """The normalisers of a micro-batch as all ranks have them, in the order in which its loss asks.

    Each is shared with the other ranks once, by whichever pass comes to it first.

    Args:
        share: Shares a seam's values with the other ranks, where there are any.

    Attributes:
        complete: Whether a pass has come to all of them.
    """

    def __init__(self, share: Callable[[Any], Any]) -> None:
        self._share = share
        self._seams: list[Any] = []
        self.complete = False

    def of(self, number: int, seam: Any, totals: list[Tensor] | None) -> Any:
        """Return the normalisers that the loss comes to as the `number`th.

        Args:
            number: From 0.
            seam: Of a pass that has come to them; kept.
            totals: The whole micro-batch's on this rank; None where the pass is of all images.

        Raises:
            UnevenNormalisersError: A part has more of them than the whole.
        """
        if number == len(self._seams):
            if totals is not None:
                if number >= len(totals):
                    raise UnevenNormalisersError("a part of the images comes to more normalisers than all of them")
                seam.values = totals[number]
            self._seams.append(self._share(seam))
        return self._seams[number]


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
        known: The normalisers, as far as they are known.
        exchanges: What ranks have told each other of it.
        counts: What its passes have been counted in before it began.
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
    known: Known = field(default_factory=lambda: Known(lambda seam: seam))
    exchanges: Exchanges = field(default_factory=Exchanges)
    counts: Optional[Counts] = None

    def ranges(self, largest: int) -> list[tuple[int, int]]:
        """Return as few parts as there can be, none larger than that, and of sizes that differ by one at most."""
        count = math.ceil(self.images / largest)
        edges = [round(self.images * number / count) for number in range(count + 1)]
        return list(zip(edges, edges[1:]))


class Normalisers:
    """Listens to the normalisers of a part's loss, and answers with the whole micro-batch's.

    Args:
        known: Those of the whole, as all ranks have them; None: each part is given its own.
        totals: Those of the whole on this rank; None where the part is the whole.
        share: The part's share of the images. It divides by `total * share` what the whole divides by `total`, since
            its loss is multiplied by so many images less.
    """

    def __init__(self, known: Known | None = None, totals: list[Tensor] | None = None, share: float = 1.0) -> None:
        self.heard: list[Tensor] = []
        self._known, self._totals, self._share = known, totals, share

    def fire(self, seam: Any) -> Any:
        """Note a part's own normalisers, and answer."""
        number = len(self.heard)
        self.heard.append(seam.values.clone())
        if self._known is None:
            return seam
        whole = self._known.of(number, replace(seam), self._totals)
        return replace(seam, values=whole.values * self._share, ranks=whole.ranks / self._share, instead=whole.instead)


def compute(work: Work, largest: int, seed: Callable[[Tensor], Tensor]) -> tuple[Tensor, Any, Gradients]:
    """Compute a micro-batch in parts; return loss, terms, and the gradients of the parameters.

    Random numbers of torch begin for every pass where they stood; they end where the last part leaves them.

    Args:
        work: What.
        largest: Images of a part, at most.
        seed: Returns the gradient with which a part's loss, which it is given, is backpropagated.
    """
    ranges = work.ranges(largest)
    statistics = Statistics(work.model, work.counts)
    gradients: Gradients = [None] * len(work.parameters)
    with statistics.tracked():
        totals = None
        if work.shares and not work.known.complete:
            with statistics.untouched():
                totals = _totals(work, ranges)
        losses, terms = [], []
        for start, stop in ranges:
            share = (stop - start) / work.images
            listener = Normalisers(work.known if work.shares else None, totals or [], share)
            speaks = work.exchanges.passing(1 / share, answers=start == 0)
            with torch.enable_grad(), work.sharing(listener), statistics.part(), speaks:
                with work.autocast():
                    loss, items = work.compute(work.part(start, stop))
                    loss = loss if work.summed else loss * share
                fresh = torch.autograd.grad([loss], work.parameters, [seed(loss)], allow_unused=True)
            gradients = [_added(before, more) for before, more in zip(gradients, fresh)]
            losses.append(loss.detach())
            terms.append(_scaled(items, share))
            del loss, fresh
    return torch.stack(losses).sum(0), _sum(terms), gradients


@contextmanager
def whole(work: Work, shared: bool) -> Iterator[None]:
    """Let the block compute a micro-batch at once, and note what ranks tell each other in it.

    Args:
        work: What.
        shared: Whether its normalisers go to other ranks.
    """
    with work.exchanges.passing():
        if not shared:
            yield
            return
        with work.sharing(Normalisers(work.known)):
            yield
        work.known.complete = True


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


def _added(before: Optional[Tensor], more: Optional[Tensor]) -> Optional[Tensor]:
    """Return a sum; nothing is changed in place, for two parameters may have been given one tensor."""
    if before is None or more is None:
        return more if before is None else before
    return before + more


class Backward:
    """What the backward pass of a loss calls, once.

    Args:
        call: Takes the loss's gradient, and returns those of the parameters.
    """

    def __init__(self, call: Callable[[Tensor], Gradients]) -> None:
        self._call: Callable[[Tensor], Gradients] | None = call

    def __call__(self, gradient: Tensor) -> Gradients:
        """Call it, and let go of it: a trainer holds its loss, and through its graph it would hold itself."""
        call = self._call
        self.forget()
        if call is None:
            raise RuntimeError("a step's loss can be backpropagated once; oom-guard keeps no graph of it")
        return call(gradient)

    def forget(self) -> None:
        """Let go of it."""
        self._call = None


class _Deferred(torch.autograd.Function):
    """A loss whose backward pass is a function of ours; its graph holds the parameters and nothing of the loss's own.

    Their gradients come to them as upstream's would: accumulated by autograd, averaged by DistributedDataParallel.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, backward: Backward, *parameters: Tensor) -> Tensor:
        ctx.ours = backward
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Optional[Tensor], ...]:
        return None, None, *ctx.ours(gradient)


def deferred(loss: Tensor, backward: Backward, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return a tensor like a loss whose backward pass calls a function with the gradient.

    Upstream holds the loss while it is backpropagated: with its own graph, nothing could be freed where that fails.
    """
    made: Tensor = _Deferred.apply(loss.detach(), backward, *parameters)
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
