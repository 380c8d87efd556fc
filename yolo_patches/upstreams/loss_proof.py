"""Proof that a loss is right with shared normalisers, before the first step: ranks played in one process.

Each image of a small batch is a rank. Its loss is computed alone, once to hear its normalisers, and again with their
mean over the ranks for an answer; put together, the ranks must give the loss of the whole batch. A loss that takes its
normalisers in a way that we do not know gives something else, whatever it does with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from yolo_patches.seams import LossProof, Normaliser, Seam
from yolo_patches.upstreams.normaliser_calls import probing
from yolo_patches.upstreams.synthetic_images import EMPTY

#: What the ranks of a layout have. The first must be computable; at some of the others upstream fails in some releases.
LAYOUTS = ((0, 1, 2), (0, EMPTY, EMPTY), (EMPTY, EMPTY, EMPTY))
#: The relative error of a loss that is wrong: below it, the images of a probe do not tell right from wrong.
SENSITIVE = 1e-2
#: The share of the largest term below which a term's error is not its own: the rounding of others.
SMALL = 1e-2


class Loss(NamedTuple):
    """What a criterion has computed for some images.

    Attributes:
        value: What is backpropagated: a number, or a vector of terms.
        items: The terms that are logged, of images and not multiplied by their number; None where there are none.
    """

    value: Tensor
    items: Optional[Tensor] = None


#: Computes the loss of images, by their numbers.
Compute = Callable[[Sequence[int]], Loss]


class _Ranks:
    """Listens to the losses of ranks that are computed one after the other, and answers with what they have in common.

    Args:
        means: The answers, in order; without them each loss is given its own normalisers.
        ranks: Number of ranks.
    """

    def __init__(self, means: list[Tensor] | None = None, ranks: int = 1) -> None:
        self.heard: list[Tensor] = []
        self._means, self._ranks = means, ranks

    def listens(self, seam: type[Seam]) -> bool:
        """Return whether this is what a loss fires."""
        return issubclass(seam, Normaliser)

    def fire(self, seam: Normaliser) -> Normaliser:
        """Note a rank's normalisers, and answer with those of all."""
        self.heard.append(seam.values.clone())
        if self._means is not None:
            seam.values, seam.ranks = self._means[len(self.heard) - 1].to(seam.values), self._ranks
        return seam


def prove(compute: Compute) -> LossProof:
    """Prove a loss.

    Args:
        compute: Computes the loss of some of the images 0, 1 and 2, each of which may come more than once, or as
            `EMPTY`; always the same for the same images. The caller sees to it that nothing of a training is touched.
    """
    with torch.no_grad():
        try:
            growth = _growth(compute)
        except Exception as problem:
            return LossProof(None, None, f"the loss could not be computed: {told(problem)}")
        if growth is None:
            return LossProof(None, None, "the loss of the synthetic images is not finite, or zero")
        if not any(_near(growth, kind) for kind in (1, 2)):
            return LossProof(None, growth, f"the loss grows by {growth:.3f} with twice the batch: neither sum nor mean")
        try:
            error, apart, why = _error(compute, summed=_near(growth, 2))
        except Exception as problem:
            return LossProof(None, growth, f"the loss could not be computed for single images: {told(problem)}")
        return LossProof(error, growth, why, apart)


def _growth(compute: Compute) -> float | None:
    """Return by how much a loss grows when every image is there twice; None where it is of no use."""
    images = LAYOUTS[0]
    once, twice = (float(compute(batch).value.sum()) for batch in (images, images * 2))
    return twice / once if once and torch.tensor([once, twice]).isfinite().all() else None


def _near(growth: float, kind: int) -> bool:
    return abs(growth - kind) < 0.01  # constants that keep fractions from 0 / 0 have their part in it


def _error(compute: Compute, summed: bool) -> tuple[float | None, float | None, str]:
    """Return the largest error of all layouts with shared normalisers, or None and why there is none, and without."""
    worst = unpatched = 0.0
    normalised = True
    for layout in LAYOUTS:
        needed = layout == LAYOUTS[0]
        try:
            whole = _vector(compute(layout), len(layout), summed)
            own, heard = zip(*(_heard(compute, image, summed) for image in layout))
        except Exception:
            if needed:
                raise
            continue  # upstream fails here by itself
        if not whole.isfinite().all():
            continue
        unpatched = max(unpatched, _difference(_together(own, summed), whole))
        normalised &= any(heard)
        if not normalised:
            continue
        if len({tuple(len(values) for values in ranks) for ranks in heard}) > 1:
            return None, None, "images with fewer objects do not come to the seam as others do"
        means = [torch.stack(values).mean(0) for values in zip(*heard)]
        shared = [_heard(compute, image, summed, means, len(layout))[0] for image in layout]
        worst = max(worst, _difference(_together(shared, summed), whole))
    if not normalised:
        return None, unpatched, "no normaliser has come to the seam"
    if unpatched < SENSITIVE:
        why = f"the images do not tell shared normalisers from each rank's own, which are off by {unpatched:.1e}"
        return None, None, why
    return worst, unpatched, ""


def _heard(
    compute: Compute, image: int, summed: bool, means: list[Tensor] | None = None, ranks: int = 1
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of one image, and its normalisers."""
    listener = _Ranks(means, ranks)
    with probing(listener):
        loss = compute((image,))
    return _vector(loss, 1, summed), listener.heard


def _vector(loss: Loss, images: int, summed: bool) -> Tensor:
    """Return the total of a loss and its terms, all of which add up as the total does."""
    value = loss.value.detach().cpu().double().flatten()
    terms = value
    if len(value) == 1 and loss.items is not None:
        terms = loss.items.detach().cpu().double().flatten() * (images if summed else 1)
    return torch.cat((value.sum()[None], terms))


def _together(ranks: Sequence[Tensor], summed: bool) -> Tensor:
    """Return what ranks' losses come to: their gradients are averaged, and multiplied by their number in every term."""
    total = torch.stack(list(ranks)).sum(0)
    return total if summed else total / len(ranks)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest relative difference of a term; NaN and infinity count as such."""
    scale = expected.abs().clamp(min=SMALL * float(expected.abs().max()))
    difference = ((found - expected).abs() / scale).max()
    return float(difference) if difference.isfinite() else float("inf")


def told(error: Exception) -> str:
    """Return an error as one short line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__
