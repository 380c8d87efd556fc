"""Parts of YOLOv9's and YOLOv5's samples: the same bytes as whole canvases give."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest

from yolo_patches.loading import paste, script_polygons
from yolo_patches.loading.part import COMPARED, DIFFERS, RAISES, Ledger, Part, alike
from yolo_patches.upstreams.scripts.sample_parts import STAND_INS


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


def upstreams(im, labels, segments, p=0.5):
    """Paste as upstreams do: labels and polygons are joined, and drawn from, beside the pixels."""
    chosen = random.sample(range(len(segments)), k=round(p * len(segments)))
    for number in chosen:
        one = segments[number]
        labels = np.concatenate((labels, labels[number : number + 1]))
        segments.append(np.concatenate((im.shape[1] - one[:, :1], one[:, 1:]), 1))
    im[:] = on_a_canvas(im, [segments[number].astype(np.int32) for number in chosen])
    return im, labels, segments


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
