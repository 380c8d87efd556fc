"""Non-maximum suppression that looks at no more boxes than it must."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch

from yolo_patches.validation import together
from yolo_patches.validation_seams import Suppression

#: (boxes [N, 4] in corners, scores [N], IoU threshold) -> indices of the boxes that are kept, the best first.
Suppress = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
#: The first piece, as a multiple of the boxes that are wanted.
FIRST = 2
#: By how much the next piece is larger.
WIDER = 2
#: What torchvision calls its arguments.
NAMES = ("boxes", "scores", "iou_threshold")
#: Boxes of an image over which upstream leaves some out beforehand, by a sort that is not stable.
MOST = 30000
#: How far upstream moves boxes of another class away, in pixels a class.
APART = 7680


def best_kept(nms: Suppress, boxes: torch.Tensor, scores: torch.Tensor, threshold: float, limit: int) -> torch.Tensor:
    """Return the first `limit` boxes that suppression keeps, at least: what of it upstream reads.

    Suppression goes through the boxes by falling score, and whether it keeps one depends on the kept ones before it
    alone. So it may go by pieces, each beside what has been kept of those before, and stop where enough are kept. The
    order is the one that torchvision sorts by (stable), and so are ties.

    Args:
        nms: torchvision's.
        boxes: Corners in pixels, [N, 4].
        scores: [N].
        threshold: IoU above which the worse of two boxes is dropped.
        limit: How many of the kept boxes upstream reads.

    Returns:
        Indices into `boxes`, the best first.
    """
    count = len(scores)
    size = FIRST * limit
    if limit < 1 or count <= size or not boxes.is_cpu:  # an accelerator's host waits for each piece
        return nms(boxes, scores, threshold)
    order = scores.sort(descending=True, stable=True).indices
    kept, done = order[:0], 0
    while len(kept) < limit and done < count:
        look = torch.cat((kept, order[done : done + size]))
        kept = look[nms(boxes[look], scores[look], threshold)]
        done += size
        size *= WIDER
    return kept


def stand_in(nms: Suppress, limit: Callable[[], int]) -> Callable[..., torch.Tensor]:
    """Return what is called in torchvision's place, with the arguments that torchvision takes."""

    def suppress(*args: Any, **kwargs: Any) -> torch.Tensor:
        call = {**dict(zip(NAMES, args)), **kwargs}
        return best_kept(nms, call["boxes"], call["scores"], call["iou_threshold"], limit())

    return suppress


def suppress(nms: Suppress, prediction: torch.Tensor, settings: Suppression) -> list[torch.Tensor] | None:
    """Return what upstream's suppression of a batch returns, every class of a box being a candidate.

    Upstream takes all columns of every anchor with a candidate first; here the columns of a box are read when it is
    kept.

    Args:
        nms: torchvision's.
        prediction: [images, 4 + classes + extra, anchors]: centre, size, scores, and what goes with a box.
        settings: How.

    Returns:
        Of each image [boxes, 6 + extra]: corners, score, class, and what goes with it; None where it is upstream's to
        do: more candidates than upstream looks at.
    """
    if prediction.is_cuda:
        return suppressed_together(nms, prediction, settings)
    find = _found_on_cpu if prediction.device.type == "cpu" and prediction.dtype is torch.float32 else _found
    candidates = find(prediction[:, 4 : 4 + settings.classes], settings.confidence)
    if any(len(anchors) > MOST for anchors, _ in candidates):
        return None
    found = []
    for image, (anchors, classes) in zip(prediction, candidates):
        found.append(_kept(nms, image, anchors, classes, settings))
    return found


def suppressed_together(nms: Suppress, prediction: torch.Tensor, settings: Suppression) -> list[torch.Tensor] | None:
    """Return what `suppress` returns; the host waits for what it reads three times, and once a call of `nms`."""
    images, count, extra = len(prediction), settings.classes, prediction.shape[1] - 4 - settings.classes
    wanted = prediction[:, 4 : 4 + count].transpose(1, 2) > settings.confidence
    image, anchor, label = torch.where(wanted)
    if not len(image):
        return [torch.zeros((0, 6 + extra), device=prediction.device) for _ in range(images)]
    rows, boxes = _rows(prediction[image, :4, anchor], prediction[image, 4 + label, anchor], label, settings)
    told = torch.cat((wanted.sum((1, 2)).float(), together.measured(boxes))).tolist()
    counts = [int(number) for number in told[:images]]
    if max(counts) > MOST:
        return None
    kept = together.kept(nms, boxes, rows[:, 4], counts, settings.overlap, told[images:])
    kept = kept[image[kept].sort(stable=True).indices]
    counts = (image[kept] == torch.arange(images, device=kept.device)[:, None]).sum(1).tolist()
    kept = torch.cat([one[: settings.limit] for one in torch.split(kept, counts)])
    found = torch.cat((rows[kept], prediction[image[kept], 4 + count :, anchor[kept]]), 1)
    return list(torch.split(found, [min(number, settings.limit) for number in counts]))


def _rows(
    boxes: torch.Tensor, scores: torch.Tensor, label: torch.Tensor, settings: Suppression
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return candidates as corners, score and class, and the corners with classes moved apart, as upstream does it.

    Args:
        boxes: Centres and sizes, [N, 4].
        scores: [N].
        label: Classes, [N].
        settings: How.
    """
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    corners = torch.cat((centre - half, centre + half), 1)
    rows = torch.cat((corners, scores[:, None], label[:, None].float()), 1)  # one type, as upstream's table has
    return rows, rows[:, :4] + rows[:, 5:6] * (0 if settings.agnostic else APART)


def _kept(
    nms: Suppress, image: torch.Tensor, anchors: torch.Tensor, classes: torch.Tensor, settings: Suppression
) -> torch.Tensor:
    rest = image[4 + settings.classes :]
    if not len(anchors):
        return torch.zeros((0, 6 + len(rest)), device=image.device)
    rows, boxes = _rows(image[:4, anchors].T, image[4 + classes, anchors], classes, settings)
    kept = best_kept(nms, boxes, rows[:, 4], settings.overlap, settings.limit)[: settings.limit]
    return torch.cat((rows[kept], rest[:, anchors[kept]].T), 1)


def _found(scores: torch.Tensor, confidence: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the anchors and classes of every image's candidates, by anchor."""
    wanted = scores.transpose(1, 2) > confidence
    _, anchors, classes = torch.where(wanted)
    counts = wanted.sum((1, 2)).tolist()
    return list(zip(torch.split(anchors, counts), torch.split(classes, counts)))


def _found_on_cpu(scores: torch.Tensor, confidence: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the same, by NumPy, which finds few among many sooner."""
    found = []
    anchors = scores.shape[2]
    for image in scores.numpy():
        spots = numpy.flatnonzero(image > numpy.float32(confidence))
        spots = spots[numpy.argsort(spots % anchors, kind="stable")]  # within an anchor they are by class already
        found.append((torch.from_numpy(spots % anchors), torch.from_numpy(spots // anchors)))
    return found
