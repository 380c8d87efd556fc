"""The last operations on the pixels of a training image - colours, flips, the order of channels - on whole batches.

Loader workers leave them undone and say what is to be done with each image; whoever takes the batch has them done, on
the training device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from yolo_patches.loading import colours, planes

if TYPE_CHECKING:
    from torch import Tensor

#: Most pixels of the images that are computed together: a result of one operation has four bytes for each.
TOGETHER = 1 << 21
#: Parts of a batch that are computed one after the other, at least: what they take beside it is then less than upstream
#: takes to make numbers of single precision of it.
PARTS = 4
#: OpenCV's tables of quotients have parts of 4096.
SHIFT, HALF = 12, 1 << 11
#: Channel, blue first: the hue around which it is the least or the largest, and how far it is below the largest of all,
#: as `away * |hue - around| + at`, between 0 and 30.
WAVES = ((120, 1, -30), (60, 1, -30), (90, -1, 60))
#: Saturation has 255 steps, and a channel is below the largest by up to 30.
STEPS = 255 * 30


class Left(NamedTuple):
    """What is left to be done with one image.

    Attributes:
        hue: Part of the whole circle by which it is turned.
        saturation: What it is multiplied by, less one; so `value`.
        value: See `saturation`.
        recolour: Whether colours change at all.
        upside_down: Whether rows come in reverse.
        mirrored: Whether columns do.
        swapped: Whether the last channel comes first.
    """

    hue: float = 0.0
    saturation: float = 0.0
    value: float = 0.0
    recolour: bool = False
    upside_down: bool = False
    mirrored: bool = False
    swapped: bool = True


def by_itself(image: Any, left: Left) -> Any:
    """Return what a worker would have made of an image.

    Args:
        image: Bytes, [H, W, 3], blue first.
        left: What is left to be done.

    Returns:
        Bytes, [3, H, W].
    """
    if left.recolour:
        image = colours.recoloured(image, (left.hue, left.saturation, left.value))
    image = image[:: -1 if left.upside_down else 1, :: -1 if left.mirrored else 1]
    return planes.planes(image, left.swapped)


def together(images: Tensor, left: Sequence[Left]) -> Tensor:
    """Return a batch as workers would have made it, but for roundings of colours; the device is not waited for.

    Args:
        images: Bytes, [B, 3, H, W], of which every image holds what is [H, W, 3], blue first.
        left: Of each image, what is left to be done.

    Returns:
        Bytes, [B, 3, H, W], on the same device.
    """
    number, _, height, width = images.shape
    made = images.new_empty(images.shape)
    stored = images.contiguous().view(number, height, width, 3)
    size = max(1, min(TOGETHER // max(height * width, 1), -(-number // PARTS)))
    for first in range(0, number, size):
        todo, part = left[first : first + size], stored[first : first + size]
        part = _where([one.upside_down for one in todo], lambda some: some.flip(1), part)
        part = _where([one.mirrored for one in todo], lambda some: some.flip(2), part).permute(0, 3, 1, 2)
        part = _where([one.recolour for one in todo], partial(_recoloured, todo), part)
        made[first : first + size] = _where([one.swapped for one in todo], lambda some: some.flip(1), part)
    return made


def _where(which: list[bool], change: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return images, [B, ...], some of which are changed; a change that none needs is not made."""
    import torch

    if not any(which):
        return images
    changed = change(images)
    return changed if all(which) else torch.where(_each(which, images), changed, images)


def _each(values: list[Any], like: Tensor) -> Tensor:
    """Return one number an image, [B, 1, 1, 1], on the device of a tensor."""
    import torch

    numbers = torch.tensor(values)
    numbers = numbers.pin_memory() if like.device.type == "cuda" else numbers  # else it would be waited for
    return numbers.to(like.device, non_blocking=True)[:, None, None, None]


def _recoloured(left: Sequence[Left], images: Tensor) -> Tensor:
    """Change colours as OpenCV and upstream's tables do: hues in steps of two degrees, the rest in steps of 8 bits.

    Args:
        left: Of each image, what is left to be done.
        images: Bytes, [B, 3, H, W], blue first.
    """
    import torch

    # Upstream cuts off what is left of a step of hue.
    turn = _each([float(np.floor(one.hue * 180) % 180) for one in left], images)
    saturating, brightening = (
        _each([1.0 + gain for gain in gains], images)
        for gains in ([one.saturation for one in left], [one.value for one in left])
    )
    channels = [images[:, place : place + 1] for place in range(3)]
    value = torch.maximum(torch.maximum(channels[0], channels[1]), channels[2])
    range_ = (value - torch.minimum(torch.minimum(channels[0], channels[1]), channels[2])).to(torch.int32)
    value = value.to(torch.int32)
    blue, green, red = (channel.to(torch.int32) for channel in channels)
    beside = torch.where(green == value, blue - red + 2 * range_, red - green + 4 * range_)
    beside = torch.where(red == value, green - blue, beside)  # where two are the largest, red counts, then green
    hue = _quotient(beside, 180 / 6, range_).add_(turn + 180)
    hue.sub_(hue.add(0.5).div_(180).floor_(), alpha=180)
    saturation = _quotient(range_, 255, value).mul_(saturating).floor_().clamp_(0, 255)
    value = (value * brightening).floor_().clamp_(0, 255)
    chroma = saturation.mul_(value)
    value += _rounding()
    result = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    for channel, (around, away, at) in enumerate(WAVES):
        below = (hue - around).abs_().mul_(away).add_(at).clamp_(0, 30)
        result[:, channel : channel + 1] = torch.addcmul(value, chroma, below, value=-1 / STEPS)
    return result


def _quotient(numbers: Tensor, factor: float, divisors: Tensor) -> Tensor:
    """Return `numbers * factor / divisors` in whole numbers as OpenCV rounds them, in single precision."""
    import torch

    parts = (factor * (1 << SHIFT) / divisors.clamp(min=1)).round_().to(torch.int32)
    return parts.mul_(numbers).add_(HALF).bitwise_right_shift_(SHIFT).to(torch.float32)


@lru_cache(maxsize=1)
def _rounding() -> float:
    """Return what is added before a channel's fraction is cut off: OpenCV's releases cut off, or round."""
    greens = np.stack(np.meshgrid([60], np.arange(256), np.arange(256), indexing="ij"), -1)[0]  # as wide as images are
    least = cv2.cvtColor(greens.astype(np.uint8), cv2.COLOR_HSV2BGR).min(-1)
    exact = greens[..., 2] * (1 - greens[..., 1] / 255)
    cut, rounded = (np.abs(least - way(exact)).mean() for way in (np.floor, np.rint))
    return 0.0 if cut < rounded else 0.5
