"""Parts of YOLOv9's and YOLOv5's samples: the same bytes as whole canvases give."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest

from yolo_patches.loading import canvas, paste, script_polygons
from yolo_patches.loading.part import COMPARED, DIFFERS, RAISES, Ledger, Part, alike
from yolo_patches.upstreams.scripts.sample_canvas import Canvases, Painting
from yolo_patches.upstreams.scripts.sample_objects import Boxes
from yolo_patches.upstreams.scripts.sample_parts import STAND_INS, takes


def on_a_canvas(image, outlines):
    """Mirror by a mask and a flipped image of the whole size."""
    mask = np.zeros(image.shape, np.uint8)
    for outline in outlines:
        cv2.drawContours(mask, [outline], -1, (1, 1, 1), cv2.FILLED)
    where, made = cv2.flip(mask, 1).astype(bool), image.copy()
    made[where] = cv2.flip(image, 1)[where]
    return made


def outlines(draw, height, width, number):
    """Return polygons that reach over the image's edges, cut off there, some of a single point or line."""
    found = []
    for _ in range(number):
        corners, centre = int(draw.integers(1, 40)), draw.uniform(-0.2, 1.2, 2) * (width, height)
        points = centre + draw.normal(0, draw.uniform(0.3, width / 2), (corners, 2))
        found.append(np.clip(points, 0, (width, height)).astype(np.float32))
    return found


def test_paste():
    draw = np.random.default_rng(0)
    for _ in range(120):
        height, width = map(int, draw.integers(1, 300, 2))
        image = draw.integers(0, 256, (height, width, 3), np.uint8)
        drawn = [one.astype(np.int32) for one in outlines(draw, height, width, int(draw.integers(1, 9)))]
        before = image.copy()
        assert alike(paste.mirrored(image, drawn), on_a_canvas(image, drawn))
        assert alike(image, before)
    outside = [np.array([[-1, 0], [3, 3], [0, 5]], np.int32)]
    assert paste.mirrored(image, outside) is None
    assert paste.mirrored(image.astype(np.float32), drawn) is None


def test_polygons():
    draw = np.random.default_rng(1)
    segments = outlines(draw, 200, 300, 30)
    ours = script_polygons.evenly(segments, 1000)
    for one, made in zip(segments, ours):
        closed = np.concatenate((one, one[:1]))
        places = np.linspace(0, len(closed) - 1, 1000)
        whole = [np.interp(places, np.arange(len(closed)), closed[:, axis]) for axis in range(2)]
        assert alike(made, np.stack(whole, 1))
    assert script_polygons.evenly([], 1000) is None


def plain_box(points, width, height):
    """Return the box around the points that an image shows."""
    inside = points[((points >= 0) & (points <= (width, height))).all(1)]
    return np.concatenate((inside.min(0), inside.max(0))) if inside[:, 0].any() else np.zeros(4)


def plain_boxes(segments, matrix, size):
    """Warp every point of every polygon."""
    resampled = (np.hstack((one, np.ones((1000, 1)))) for one in script_polygons.evenly(segments, 1000))
    return np.stack([plain_box((one @ matrix.T)[:, :2], *size) for one in resampled])


def test_boxes_around_polygons():
    draw, seen = np.random.default_rng(2), 0
    for turn in range(150):
        segments = outlines(draw, 400, 500, int(draw.integers(1, 20)))
        segments += [np.array([[0, y], [0, y + 9]], np.float32) for y in (0, 50)]  # along a border
        matrix = np.diag([draw.uniform(0.1, 2)] * 2 + [1.0])
        matrix[:2, 2] = (0, 0) if turn % 5 == 0 else draw.uniform(-400, 300, 2)
        expected = plain_boxes(segments, matrix, (300, 200))
        seen += int(expected.any(1).sum())
        assert alike(script_polygons.around(segments, 1000, matrix[:2], (300, 200)), expected)
    assert seen > 300
    matrix[0, 1] = 0.1
    assert script_polygons.around(segments, 1000, matrix[:2], (300, 200)) is None


class Warping:
    """What upstream's warp is made of; it does not ask for the boxes of some polygons."""

    def __init__(self):
        self.left = ()
        self.cv2, self.resample_segments = cv2, lambda segments, n=1000: script_polygons.evenly(segments, n)
        self.segment2box = plain_box

    def random_perspective(self, im, targets=(), segments=(), scale=0.5):
        matrix = np.diag([random.uniform(1 - scale, 1 + scale)] * 2 + [1.0])
        im = self.cv2.warpAffine(im, matrix[:2], dsize=(50, 40), borderValue=(114, 114, 114))
        found = []
        for number, one in enumerate(self.resample_segments(list(segments))):
            points = np.hstack((one, np.ones((len(one), 1)))) @ matrix.T
            found.append(self.segment2box(points[:, :2], 50, 40) if number not in self.left else np.ones(4))
        return im, np.stack(found)


@pytest.mark.parametrize(("left", "late"), [((), False), ((2,), False), ((2,), True)])
def test_a_warp_takes_the_boxes_that_it_is_given(left, late):
    """One that leaves some, at once or later, has upstream's, from the same random numbers."""
    theirs, ours, ledger = Warping(), Warping(), Ledger(["boxes"])
    boxes = Boxes(Part("boxes", script_polygons.AROUND, ledger))
    ours.cv2, ours.segment2box = boxes.opencv(cv2), boxes.box(plain_box)
    ours.resample_segments = boxes.resample(ours.resample_segments)
    warp = boxes.warp(ours.random_perspective)
    draw = np.random.default_rng(3)
    for turn in range(2 * COMPARED):
        theirs.left = ours.left = () if late and turn < COMPARED else left
        segments = outlines(draw, 60, 80, 5)
        image, targets = draw.integers(0, 256, (60, 80, 3), np.uint8), np.ones((5, 5))
        made = []
        for function in (theirs.random_perspective, warp):
            random.seed(turn)
            made.append((*function(image, targets, segments), random.random()))
        assert all(map(alike, *made)), turn
    assert (ledger.has("boxes", 0), ledger.has("boxes", RAISES)) == (late or not left, late)


class Mosaic:
    """A data set of mosaics as upstreams paint them; `then` is what else it does with one."""

    augment, np, cv2, positional = True, np, cv2, False

    def __init__(self, then):
        self.then = then

    def __getitem__(self, index):
        x, y = (int(random.uniform(8, 24)) for _ in range(2))
        image = self.np.full((32, 32, 3), 114, dtype=np.uint8)
        image[0:y, 0:x] = np.random.randint(0, 256, (y, x, 3)).astype(np.uint8)
        image[y:32, x:32] = np.random.randint(0, 256, (32 - y, 32 - x, 3)).astype(np.uint8)
        self.then(image)
        matrix = np.array([[1.3, 0, random.uniform(-20, 9)], [0, 1.3, -3]])
        if self.positional:
            return self.cv2.warpAffine(image, matrix, (16, 16), None, cv2.INTER_LINEAR, 0, (114, 114, 114))
        return self.cv2.warpAffine(image, matrix, dsize=(16, 16), borderValue=(114, 114, 114))


def fails(image):
    raise LookupError("upstream's own")


@pytest.mark.parametrize(
    ("then", "column"),
    [(lambda image: None, 0), (lambda image: image.mean(), RAISES), (lambda image: image[3, 3], RAISES), (fails, None)],
)
def test_canvas(then, column):
    """Whatever else upstream does with a canvas has upstream's result, and so have its own errors."""
    ledger = Ledger(["canvas"])
    canvases = Canvases(Part("canvas", canvas.WAYS, ledger))
    theirs, ours = Mosaic(then), Mosaic(then)
    ours.np, ours.cv2 = canvases.numpy(np), canvases.opencv(cv2)
    sample = canvases.samples(Mosaic.__getitem__)
    for turn in range(2 * COMPARED):
        made = []
        for function, data in ((Mosaic.__getitem__, theirs), (sample, ours)):
            random.seed(turn)
            np.random.seed(turn)
            if then is fails:
                with pytest.raises(LookupError, match="upstream's own"):
                    function(data, turn)
                made.append([random.random()])
            else:
                made.append([function(data, turn), random.random(), np.random.random()])
        assert all(map(alike, *made)), turn
    assert [name for name in (0, DIFFERS, RAISES) if ledger.has("canvas", name)] == ([] if column is None else [column])
    assert isinstance(ours.np.full((4, 4, 3), 114, dtype=np.uint8), np.ndarray)  # outside of a sample


def test_calls_that_we_do_not_know_are_upstreams(monkeypatch):
    """Arguments in other places, arrays that are filled with something else, and functions that take more."""
    ledger = Ledger(["canvas", "boxes"])
    canvases, boxes = (
        Canvases(Part("canvas", canvas.WAYS, ledger)),
        Boxes(Part("boxes", script_polygons.AROUND, ledger)),
    )
    ours, theirs = Mosaic(lambda image: None), Mosaic(lambda image: None)
    ours.np, ours.cv2 = canvases.numpy(np), boxes.opencv(canvases.opencv(cv2))
    ours.positional = theirs.positional = True
    for turn in range(2 * COMPARED):
        made = []
        for function, data in ((Mosaic.__getitem__, theirs), (canvases.samples(Mosaic.__getitem__), ours)):
            random.seed(turn)
            np.random.seed(turn)
            made.append([function(data, turn), random.random(), np.random.random()])
        assert all(map(alike, *made)), turn

    def filled(data, _):
        return [
            data.np.full((2, 2, 3), 114, np.uint8, "C"),
            data.np.full(shape=(2, 2, 3), fill_value=114, dtype=np.uint8),
            data.np.full((2, 2, 3), (1, 2, 3), dtype=np.uint8),
            data.np.full((2, 2), 114, dtype=np.uint8),
            data.np.full(3, 114, dtype=np.uint8),
        ]

    assert alike(canvases.samples(filled)(ours, 0), filled(theirs, 0))
    assert not ledger.counts.any()
    monkeypatch.delattr(Mosaic, "augment")
    whole = canvases.samples(lambda data, _: data.np.full((4, 4, 3), 114, dtype=np.uint8))
    assert isinstance(whole(ours, 0), np.ndarray)


def test_functions_that_take_something_else_are_not_known():
    assert takes(lambda im, hgain, sgain, vgain: None, "augment_hsv")
    assert not takes(lambda im, hgain, sgain, vgain, more: None, "augment_hsv")
    assert takes(lambda im, targets, segments, degrees: None, "random_perspective")
    assert not takes(lambda im, boxes, segments: None, "random_perspective")
    assert not takes(lambda im, boxes: None, "mixup")


def test_letterbox_and_perspective():
    """A border is a canvas in a sample that is warped, and nowhere else; a warp that we do not know sees it whole."""
    part = Part("canvas", canvas.WAYS, Ledger(["canvas"]))
    canvases = Canvases(part)
    opencv, image = canvases.opencv(cv2), np.full((4, 6, 3), 9, np.uint8)
    border = {"value": (114, 114, 114)}

    kinds = []

    def bordered(*_):
        made = opencv.copyMakeBorder(image, 1, 2, 3, 0, cv2.BORDER_CONSTANT, **border)
        kinds.append(type(made))
        return opencv.warpPerspective(made, np.eye(3), dsize=(9, 7))

    whole = cv2.copyMakeBorder(image, 1, 2, 3, 0, cv2.BORDER_CONSTANT, **border)
    plain = type("Plain", (), {"augment": False})
    assert alike(canvases.samples(bordered)(Mosaic(None), 0), whole)
    assert alike(canvases.samples(bordered)(plain, 0), whole)
    assert kinds == [Painting, np.ndarray]


def upstreams(im, labels, segments, p=0.5):
    """Paste as upstreams do: labels and polygons are joined, and drawn from, beside the pixels."""
    chosen = random.sample(range(len(segments)), k=round(p * len(segments)))
    for number in chosen:
        one = segments[number]
        labels = np.concatenate((labels, labels[number : number + 1]))
        segments.append(np.concatenate((im.shape[1] - one[:, :1], one[:, 1:]), 1))
    im[:] = on_a_canvas(im, [segments[number].astype(np.int32) for number in chosen])
    return im, labels, segments


def test_pasting_on_a_canvas():
    """What is noted there is what upstream pastes, and a canvas that nothing is pasted on stays as it is."""
    ours = STAND_INS["paste"](Part("paste", paste.WAYS, Ledger(["paste"])), upstreams)
    draw = np.random.default_rng(4)
    for turn in range(30):
        segments = outlines(draw, 60, 80, 1 + turn % 7)
        labels = draw.random((len(segments), 5)).astype(np.float32)
        image = draw.integers(0, 256, (60, 80, 3), np.uint8)
        painting = Painting(image.shape, image.copy() if turn % 2 else None)
        painting[0:60, 0:80] = image
        made = []
        for function, canvas_ in ((upstreams, image.copy()), (ours, painting)):
            random.seed(turn)
            result, *rest = function(canvas_, labels.copy(), list(segments), 0.1 + turn % 3 / 3)
            made.append((result if canvas_ is not painting else result.canvas.painted(), *rest, random.random()))
        assert all(map(alike, *made)), turn
    with pytest.raises(ValueError, match="part of an image"):
        painting[0:4, 0:4] = image


def broken(image, outlines):
    raise RuntimeError("ours")


@pytest.mark.parametrize(
    ("way", "column"), [(paste.mirrored, None), (lambda image, _: image, DIFFERS), (broken, RAISES)]
)
def test_copy_paste(way, column):
    """Pixels, labels, polygons and the numbers drawn; also where ours differs or fails."""
    ledger = Ledger(["paste"])
    ours = STAND_INS["paste"](Part("paste", [way], ledger), upstreams)
    draw = np.random.default_rng(2)
    for turn in range(2 * COMPARED + 4):
        image = draw.integers(0, 256, (60, 80, 3), np.uint8)
        segments = outlines(draw, 60, 80, turn % 7)
        labels = draw.random((len(segments), 5)).astype(np.float32)
        made = []
        for function in (upstreams, ours):
            random.seed(turn)
            made.append((*function(image.copy(), labels.copy(), list(segments), 0.6), random.random()))
        assert all(map(alike, *made)), turn
    assert ledger.has("paste", DIFFERS) is (column is DIFFERS)
    assert ledger.has("paste", RAISES) is (column is RAISES)
    assert ledger.has("paste", 0) is (column is None)


def test_an_error_of_upstreams_is_upstreams():
    def fails(im, labels, segments, p):
        raise ValueError("upstream's own")

    ours = STAND_INS["paste"](Part("paste", paste.WAYS, Ledger(["paste"])), fails)
    with pytest.raises(ValueError, match="upstream's own"):
        ours(np.zeros((4, 4, 3), np.uint8), np.zeros((1, 5)), [np.zeros((3, 2), np.float32)], 1.0)
