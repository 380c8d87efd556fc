"""Seams of what a validation does and of what is made of its figures; see `yolo_patches.seams`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from yolo_patches.seams import Seam


@dataclass(frozen=True)
class Suppression:
    """How the predictions of one batch are suppressed; every class of a box is a candidate.

    Attributes:
        confidence: Least score of a candidate.
        overlap: IoU above which the worse of two boxes is dropped.
        classes: Number of classes.
        agnostic: Whether boxes of different classes suppress each other.
        limit: Boxes that are kept of an image, at most.
    """

    confidence: float
    overlap: float
    classes: int
    agnostic: bool
    limit: int


@dataclass
class Evaluation(Seam):
    """A validation is about to begin on this rank: its parts beside the model.

    A patch may replace each part by one that has the same results; a part that fails is upstream's again.

    Attributes:
        passing: Returns the iterator of one pass over the loader that it is called with; a patch may replace it.
        unchanging: Whether every pass over the loader gives the same batches.
        images: Finds the images of one of its batches, [N, C, H, W]; None where there are none.
        nms: torchvision's suppression of one image, with its arguments; a patch may replace it.
        limit: Returns how many of the boxes that it keeps upstream reads.
        suppress: Upstream's suppression of a batch, or None where there is none that we know: (predictions
            [images, 4 + classes + extra, anchors], `Suppression`) -> of each image [boxes, 6 + extra]. A patch may
            replace it; None as the result leaves it to upstream.
        match: Upstream's matching, or None where there is none that we know: (IoU [objects, predictions], zero where
            the classes differ; thresholds, rising) -> right [predictions, thresholds], all NumPy's. A patch may replace
            it; None as the result leaves it to upstream.
        scale: Returns images of bytes as numbers between 0 and 1; None where they are not scaled like that on the CPU.
            A patch may replace it.
        on_cpu: Whether the model is on the CPU.
        page_locked: Whether batches are to be in page-locked memory, from which they are copied to the model's device
            while the host goes on.
        timed: Whether upstream times its stages by waiting for the device, in a validation that tells nobody. A patch
            may clear it.
        metrics_on_cpu: Whether predictions are to be compared with objects on the CPU, which takes one copy a batch. A
            patch may set it.
        patient: Whether suppression is to take its time; upstream drops the images that it has not come to after a
            while. A patch may set it.
        loss: Whether the loss is evaluated. A patch may clear it, and its columns then say nan; or set it where
            upstream leaves it at zero.
        results: What has come of it, when it has been made: "losses", where they were computed for a patch.
        trusted: Parts that were compared with upstream's where they are put to use -> whether they were equal; those
            that were not are upstream's.
    """

    passing: Callable[[Any], Iterator[Any]] = iter
    unchanging: bool = False
    images: Callable[[Any], Any] = lambda batch: None
    nms: Callable[..., Any] | None = None
    limit: Callable[[], int] = lambda: 0
    suppress: Callable[[Any, Suppression], Any] | None = None
    match: Callable[[Any, Any], Any] | None = None
    scale: Callable[[Any], Any] | None = None
    on_cpu: bool = True
    page_locked: bool = False
    timed: bool = False
    metrics_on_cpu: bool = False
    patient: bool = False
    loss: bool = True
    results: dict[str, Any] = field(default_factory=dict)
    trusted: dict[str, bool] = field(default_factory=dict)


@dataclass
class Judged(Seam):
    """A validation has told how good its weights are. Fired where checkpoints are written: on the first rank alone.

    Attributes:
        epoch: Number of the epoch, from 0.
        fitness: What upstream takes for it: best.pt holds the weights of the largest. A patch may replace it.
        metrics: Figures by the names of results.csv, without "metrics/".
        past: Rows of patches.csv of the epochs before this training, where it is resumed.
        stopping: What early stopping is to take in place of `fitness`, or None for the same. A patch may set it.
        eligible: Whether these weights may be called best; a patch may clear it.
        recalled: The best that early stopping has been given, and its epoch; a patch may set it where it knows more
            than a release that forgets it when it resumes.
        columns: What is to be written to patches.csv; patches may add to it.
    """

    epoch: int
    fitness: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    past: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    stopping: float | None = None
    eligible: bool = True
    recalled: tuple[float, int] | None = None
    columns: dict[str, float] = field(default_factory=dict)


@dataclass
class Deferral(Seam):
    """What it takes to have a validation made by another process, later. It comes with `Validation`, and is not fired.

    Attributes:
        module: The module whose `prepare(setup)` returns the function that does a task, in that process.
        device: The training's own.
        draws: Random numbers that a validation may draw, at most.
        hindrance: Returns why another process cannot validate for this training; empty where it can.
        setup: Returns what that process needs, for a device; raises where it cannot be sent.
        task: Returns this epoch's weights, and what else a validation reads.
        postpone: Puts off what upstream does with the figures until the next epoch ends, and returns what upstream is
            to have now. It is given the task, and a function that waits for the figures; None from it says that there
            are none.
        tell: Logs a warning, once.
    """

    module: str
    device: str
    draws: int
    hindrance: Callable[[], str]
    setup: Callable[[str], bytes]
    task: Callable[[], bytes]
    postpone: Callable[[bytes, Callable[[], Any]], Any]
    tell: Callable[[str], None]
