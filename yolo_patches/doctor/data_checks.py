"""Checks of a data set, and of arguments against it. All of them have one: `Subject.data` is never None here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from yolo_patches.doctor import likeness, noise
from yolo_patches.doctor.finding import ERROR, WARNING, Finding
from yolo_patches.doctor.subject import DataSet, Labelled, Subject

#: A median object of fewer pixels a side cannot be told from noise.
SMALLEST_OBJECT = 4
#: Standard error of mAP above which "no better for `patience` epochs" is mostly luck.
LARGEST_ERROR = 0.02
FORMAT = "https://docs.ultralytics.com/datasets/detect/"
CFG = "https://docs.ultralytics.com/usage/cfg/#train-settings"
#: So many are named in a finding; the others are counted.
NAMED = 3


def _data(subject: Subject) -> DataSet:
    assert subject.data is not None, "checks of a data set are made where there is one"
    return subject.data


def labels(subject: Subject) -> Iterator[Finding]:
    """What upstream's own scan objects to."""
    data = _data(subject)
    for part, split in (("train", data.train), ("val", data.val)):
        if split.problems:
            count = len(split.problems)
            yield Finding(
                "labels",
                ERROR,
                f"{part}: {count} image{'s' * (count > 1)} or label file{'s' * (count > 1)}: "
                + _named([" ".join(problem.split()) for problem in split.problems], "; "),
                "Upstream leaves such images out, or repairs them, and trains on.",
                "the files named",
                FORMAT,
            )


def classes(subject: Subject) -> Iterator[Finding]:
    """Classes without a box."""
    data = _data(subject)
    for part, split in (("train", data.train), ("val", data.val)):
        seen = {int(number) for image in split.images for number in image.classes}
        empty = [name for number, name in data.names.items() if number not in seen]
        if empty:
            yield Finding(
                f"classes-{part}",
                WARNING,
                f"{len(empty)} of {len(data.names)} classes without a box in {part}: {_named(empty)}",
                "The model cannot learn them."
                if part == "train"
                else "They are left out of mAP: nothing is known of them.",
                f"{part}: or names: in the data set's file",
                FORMAT,
            )


def _named(words: Sequence[str], separator: str = ", ") -> str:
    return separator.join(words[:NAMED]) + (f" and {len(words) - NAMED} more" if len(words) > NAMED else "")


def copy_paste(subject: Subject) -> Iterator[Finding]:
    """Copy-paste without polygons to cut out."""
    share = subject.settings.copy_paste
    if share and not any(image.polygons for image in _data(subject).train.images):
        yield Finding(
            "copy-paste",
            WARNING,
            f"copy_paste {share:g}, no polygon in {len(_data(subject).train.images)} images",
            "Copy-paste cuts objects out along their polygons: without any it does nothing.",
            subject.change("copy_paste", 0.0),
            "https://arxiv.org/abs/2012.07177",
        )


def small_objects(subject: Subject) -> Iterator[Finding]:
    """Objects that shrink to a few pixels at this resolution."""
    imgsz, stride = subject.settings.imgsz, subject.settings.stride or 32
    sides = sorted(_sides(_data(subject).train.images))
    if not sides or imgsz is None:
        return
    median = sides[len(sides) // 2] * imgsz
    if median < SMALLEST_OBJECT:
        yield Finding(
            "small-objects",
            WARNING,
            f"median object {median:.2g} px a side at imgsz {imgsz} ({len(sides)} boxes)",
            f"Half of the objects are smaller than {SMALLEST_OBJECT} px, half the finest stride of the usual heads.",
            subject.change("imgsz", math.ceil(imgsz * SMALLEST_OBJECT / median / stride) * stride),
            "https://arxiv.org/abs/2202.06934",
        )


def _sides(images: Sequence[Labelled]) -> Iterator[float]:
    """Yield the root of each box's area, as a share of its image's longer side."""
    for image in images:
        area = image.height * image.width / max(image.height, image.width) ** 2
        for box in image.boxes:
            yield math.sqrt(float(box[2]) * float(box[3]) * area)


def resolution(subject: Subject) -> Iterator[Finding]:
    """A resolution that the model's grid does not divide."""
    imgsz, stride = subject.settings.imgsz, subject.settings.stride
    if imgsz and stride and imgsz % stride:
        yield Finding(
            "imgsz-stride",
            WARNING,
            f"imgsz {imgsz}, stride {stride}",
            "Upstream rounds it up: the run is not at the resolution that was asked for.",
            subject.change("imgsz", math.ceil(imgsz / stride) * stride),
            CFG,
        )


def detections(subject: Subject) -> Iterator[Finding]:
    """Fewer detections kept than an image has objects."""
    limit = subject.settings.max_det
    images = _data(subject).val.images
    densest = max(images, key=lambda image: len(image.boxes), default=None)
    if limit is not None and densest is not None and len(densest.boxes) > limit:
        yield Finding(
            "max-det",
            WARNING,
            f"{len(densest.boxes)} boxes in {densest.path}, max_det {limit}",
            "Recall cannot reach 1 in such an image, however good the model is.",
            subject.change("max_det", math.ceil(len(densest.boxes) / 100) * 100),
            "https://docs.ultralytics.com/usage/cfg/#validation-settings",
        )


def leak(subject: Subject) -> Iterator[Finding]:
    """The same image in training and validation, or nearly."""
    data = _data(subject)
    train, val = ([image.path for image in split.images] for split in (data.train, data.val))
    same = likeness.same(train, val)
    if same:
        yield Finding(
            "leak",
            ERROR,
            f"{len(same)} of {len(val)} validation images are training images, too: {_named([b for _, b in same])}",
            "Validation tells how well the model remembers, and the best epoch is the most overfitted one.",
            "val: in the data set's file",
            "https://arxiv.org/abs/1902.00423",
        )
    found = likeness.near(train, sorted(set(val) - {b for _, b in same}))
    if found.pairs:
        pairs = [f"{b} like {a}" for a, b in found.pairs]
        yield Finding(
            "near-duplicates",
            WARNING,
            f"{len(pairs)} of {found.compared} validation images looked at: {_named(pairs)}",
            f"They differ in at most {likeness.NEAR} of {likeness.BITS} bits of a difference hash: the same scene, most"
            " likely.",
            "val: in the data set's file",
            "https://arxiv.org/abs/1902.00423",
        )


def validation_noise(subject: Subject) -> Iterator[Finding]:
    """A validation set whose figure is too noisy to stop by."""
    patience = subject.facts.optimization.patience
    images = _data(subject).val.images
    if not subject.facts.validates or not 0 < patience < subject.facts.optimization.epochs:
        return
    if subject.active("best"):
        return
    error = noise.standard_error([Counter(int(number) for number in image.classes) for image in images])
    if error is not None and error > LARGEST_ERROR:
        needed = math.ceil(len(images) * (error / LARGEST_ERROR) ** 2)
        yield Finding(
            "validation-noise",
            WARNING,
            f"standard error of mAP about {error:.3f} with {len(images)} validation images, patience {patience}",
            "An epoch may be the best one by luck, and the run stops for it. (A bootstrap over images of a model that"
            " finds every object with probability 1/2, before there is a model: one set's error, of which two epochs"
            " share a part.)",
            f"about {needed} images in val:, or {subject.change('patches', 'best:smooth=5')}",
            "https://arxiv.org/abs/2103.03098",
        )
