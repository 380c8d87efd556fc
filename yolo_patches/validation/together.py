"""Non-maximum suppression of several images in one call: an accelerator's host waits once a call, not once an image.

Boxes are multiplied by a power of two, another one for each image. That is exact in floating point, and so is all that
follows from it: an IoU is the same to the last bit. Boxes of different images then differ so much in area that their
IoU cannot reach the threshold: it is at most the ratio of their areas.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

#: Boxes of one call, at most: suppression compares each with each, and has a bit for each pair.
BOXES = 16384
#: Exponents of base two that areas may have; float32 has some more on either side.
LEAST, MOST = -120.0, 120.0


def kept(
    nms: Callable[..., torch.Tensor], boxes: torch.Tensor, scores: torch.Tensor, counts: list[int], threshold: float,
    spread: list[float],
) -> torch.Tensor:  # fmt: skip
    """Return what suppression keeps of each image.

    Args:
        nms: torchvision's.
        boxes: Corners in pixels, [N, 4], image by image.
        scores: [N].
        counts: Boxes of each image.
        threshold: IoU above which the worse of two boxes is dropped.
        spread: What `measured` has found.

    Returns:
        Indices into `boxes`; those of an image are in the order of torchvision's.
    """
    step, lowest, most = _steps(spread, threshold)
    found, start = [torch.zeros(0, dtype=torch.int64, device=boxes.device)], 0
    for group in groups(counts, most):
        size = sum(group)
        mine = slice(start, start + size)
        if size:
            scaled = boxes[mine]
            if len(group) > 1:
                parts = [
                    part * 2.0 ** (step * (lowest + index)) for index, part in enumerate(torch.split(scaled, group))
                ]
                scaled = torch.cat(parts)
            found.append(nms(scaled, scores[mine], threshold) + start)
        start += size
    return torch.cat(found)


def measured(boxes: torch.Tensor) -> torch.Tensor:
    """Return what `kept` must know of the boxes, without waiting for it.

    Args:
        boxes: Corners in pixels, [N, 4]; at least one.

    Returns:
        [4]: the least area and the largest, the least above zero, and the least distance of a coordinate from zero
        that is above it.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    far = torch.full((), math.inf, device=boxes.device)
    distances = boxes.abs()
    return torch.stack(
        (
            areas.amin(),
            areas.amax(),
            torch.where(areas > 0, areas, far).amin(),
            torch.where(distances > 0, distances, far).amin(),
        )
    )


def groups(counts: list[int], most: int) -> list[list[int]]:
    """Return the counts of the images of each call.

    Args:
        counts: Boxes of each image.
        most: Images of one call.
    """
    made: list[list[int]] = []
    for count in counts:
        if not made or len(made[-1]) >= most or sum(made[-1]) + count > BOXES:
            made.append([])
        made[-1].append(count)
    return made


def _steps(spread: list[float], threshold: float) -> tuple[int, int, int]:
    """Return by which power of two images are apart, which multiple of it the first has, and how many fit."""
    least, largest, smallest, nearest = spread
    alone = (0, 0, 1)
    if not (least >= 0 and 0 < threshold <= 1 and all(0 < value < math.inf for value in (largest, smallest, nearest))):
        return alone  # also where one is not a number
    high, low = math.log2(largest), math.log2(smallest)
    step = math.ceil((high - low - math.log2(threshold) + 1) / 2)  # four to the power of it, twice what it takes
    up = math.floor((MOST - high) / (2 * step))
    down = math.floor(min((low - LEAST) / (2 * step), (math.log2(nearest) - LEAST) / step))
    return alone if up < 0 or down < 0 else (step, -down, up + down + 1)
