"""Compare ours with the imported release's suppression and matching on random crowds; print what was compared."""

import json
from types import SimpleNamespace

import numpy
import torch
import torchvision
from ultralytics.engine.validator import BaseValidator

from yolo_patches.upstreams.ultralytics.evaluation import suppression_module
from yolo_patches.validation import matching, suppression
from yolo_patches.validation_seams import Suppression


def matches(random, tries=400):
    """Return hits, and images that the release's own way leaves to an unstable sort."""
    thresholds = torch.linspace(0.5, 0.95, 10)
    judge = SimpleNamespace(iouv=thresholds)
    hits = ties = 0

    def upstream(iou, _):
        objects, predictions = (torch.zeros(size) for size in iou.shape)
        return BaseValidator.match_predictions(judge, predictions, objects, torch.from_numpy(iou)).numpy()

    way = matching.like(upstream)
    for trial in range(tries):
        iou = random.random((random.integers(0, 30), random.integers(0, 301)), dtype=numpy.float32)
        iou **= numpy.float32(random.choice([0.3, 1, 4]))
        if trial % 4 == 0:
            iou = (iou * 20).round() / 20  # many overlaps are equal, and many equal a threshold
        iou *= random.random(iou.shape) < 0.4
        ours, theirs = way(iou, thresholds.numpy()), upstream(iou, None)
        if ours is None:
            ties += 1
            continue
        assert (ours == theirs).all()
        hits += int(theirs.any(1).sum())
    return way.__name__, hits, ties


def suppressions(random, tries=60):
    """Return the boxes that were kept alike."""
    kept = 0
    for trial in range(tries):
        classes, extra, anchors = int(random.choice([1, 3, 80])), int(random.choice([0, 32])), 300
        predictions = torch.from_numpy(random.random((2, 4 + classes + extra, anchors), dtype=numpy.float32))
        predictions[:, :2] *= 200 if trial % 2 else 2000
        predictions[:, 2:4] *= 80
        scores = predictions[:, 4 : 4 + classes]
        scores *= torch.rand(scores.shape, generator=torch.Generator().manual_seed(trial)) < random.choice([0.02, 0.5])
        if trial % 3 == 0:
            scores.copy_((scores * 8).round() / 8)  # many scores are equal
        predictions[:, :, 1::7] = predictions[:, :, :-1:7]  # and many boxes
        how = Suppression(0.001, 0.7, classes, bool(trial % 5 == 0), int(random.choice([1, 20, 300])))
        theirs = suppression_module().non_max_suppression(
            predictions.clone(), how.confidence, how.overlap, nc=classes, agnostic=how.agnostic, multi_label=True,
            max_det=how.limit, max_time_img=1e6,  # else a busy machine makes it give up
        )  # fmt: skip
        for find in ("_found_on_cpu", "_found"):
            suppression._found_on_cpu, before = getattr(suppression, find), suppression._found_on_cpu
            ours = suppression.suppress(torchvision.ops.nms, predictions, how)
            suppression._found_on_cpu = before
            assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs)), (trial, find)
        ours = suppression.suppressed_together(torchvision.ops.nms, predictions, how)
        assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs)), trial
        kept += sum(map(len, theirs))
    return kept


def main():
    torch.set_num_threads(1)
    random = numpy.random.default_rng(0)
    print(json.dumps([*matches(random), suppressions(random)]))


if __name__ == "__main__":
    main()
