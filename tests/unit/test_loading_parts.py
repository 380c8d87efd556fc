"""Parts of training samples against the plain way of making them."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest

from yolo_patches.loading import blend, masks, planes, polygons
from yolo_patches.loading.part import COMPARED, OFF, Ledger, Part, alike


def plain_masks(size, segments, ratio):
    """Draw each polygon on the whole image and make that smaller."""
    drawn = []
    for segment in segments:
        mask = np.zeros(size, np.uint8)
        cv2.fillPoly(mask, segment.astype(np.int32)[None], color=1)
        drawn.append(cv2.resize(mask, (size[1] // ratio, size[0] // ratio)))
    return np.array(drawn)


def fuzzed(random, size, count):
    """Return polygons, some degenerate: points, lines, on and along the borders, crossing themselves."""
    height, width = size
    points = random.uniform(0, 1, (count, 40, 2)) * random.uniform(0, 1, (count, 1, 2)) + random.uniform(
        -0.5, 1, (count, 1, 2)
    )
    points = np.clip(points * (width, height), 0, (width, height)).astype(np.float32)
    points[::5] = points[::5, :1]
    points[1::7, :, 0] = width
    points[2::7, :, 1] = points[2::7, :1, 1]
    return points


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_masks(ratio):
    random = np.random.default_rng(ratio)
    for turn in range(40):
        size = tuple(int(8 * side) for side in random.integers(2, 60, 2))
        segments = fuzzed(random, size, int(random.integers(1, masks.MOST + 1)) if turn % 8 == 0 else 9)
        drawn = plain_masks(size, segments, ratio)
        assert alike(masks.separate(size, segments, ratio), drawn)
        order = np.argsort(-np.array([mask.sum() for mask in drawn]))
        merged = np.zeros(drawn.shape[1:], np.uint8)
        for number, index in enumerate(order, 1):
            merged = np.maximum(merged, drawn[index] * np.uint8(number))
        assert alike(masks.overlapping(size, segments, ratio), (merged, order))


def test_masks_that_are_left_to_upstream():
    inside = np.full((3, 4, 2), 5, np.float32)
    assert masks.overlapping((32, 32), inside, 4) is not None
    assert masks.overlapping((32, 30), inside, 4) is None
    assert masks.overlapping((32, 32), inside, 3) is None
    assert masks.overlapping((32, 32), inside * 7, 4) is None
    assert masks.overlapping((32, 32), inside * np.float32(np.nan), 4) is None
    assert masks.overlapping((32, 32), np.repeat(inside, 1000, 0), 4) is None
    assert masks.separate((32, 32), inside[:0], 4) is None


def test_polygons_with_corners_keep_them():
    random = np.random.default_rng(0)
    shapes = [random.uniform(0, 1, (corners, 2)).astype(np.float32) for corners in (1, 2, 3, 17, 99, 100, 101, 300)]
    for kept, even, shape in zip(polygons.with_corners(shapes, 100), polygons.evenly(shapes, 100), shapes):
        assert kept.shape == even.shape == (100, 2)
        assert kept.dtype == even.dtype == np.float32
        if len(shape) < 100:
            assert {tuple(point) for point in shape.tolist()} <= {tuple(point) for point in kept.tolist()}
    assert polygons.with_corners([], 100) is None


@pytest.mark.parametrize("shape", [(64, 48, 3), (17, 31, 3), (1, 1, 3)])
def test_planes(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for view in (image, image[::-1], image[:, ::-1], image[::-1, ::-1]):
        straight = view.transpose(2, 0, 1)
        assert alike(planes.planes(view, False), np.ascontiguousarray(straight))
        assert alike(planes.planes(view, True), np.ascontiguousarray(straight[::-1]))
    assert planes.planes(image[..., :2], True) is None
    assert planes.planes(image.astype(np.uint16), True) is None


def test_blend():
    random = np.random.default_rng(0)
    for height in (1, 15, 16, 17, 100):
        one, two = random.integers(0, 256, (2, height, 40, 3), dtype=np.uint8)
        share = random.beta(32, 32)
        assert alike(blend.blend(one, two, share), (one * share + two * (1 - share)).astype(np.uint8))
    assert blend.blend(one, two[:-1], share) is None


def double(value):
    return value * 2


def square(value):
    return value * value


def test_the_way_that_does_the_same_stands_in():
    calls = []

    def upstream(value):
        calls.append(value)
        return value * value

    ledger = Ledger(["part"])
    part = Part("part", (double, square), ledger)
    assert [part(upstream, value) for value in (2, 3, 4, 5, 6, 7)] == [4, 9, 16, 25, 36, 49]
    assert len(calls) == COMPARED
    assert part.ways == [square]
    assert ledger.trouble() == []
    again = pickle.loads(pickle.dumps(part))  # as for a worker that is spawned
    assert again(upstream, 8) == 64
    assert len(calls) == COMPARED
    ledger.switch(False)
    assert part(upstream, 9) == 81
    assert len(calls) == COMPARED + 1
    assert ledger.has("part", OFF)


def test_a_part_that_differs_or_fails_is_upstreams():
    assert not alike(np.zeros(2), [np.zeros(2), np.zeros(3)])
    ledger = Ledger(["differs", "fails", "fails late"])
    for value in range(1, 9):
        assert Part("differs", (double,), ledger)(square, value) == value * value
    fails = Part("fails", (lambda value: 1 // 0,), ledger)
    late = Part("fails late", (lambda value: value * value // (value < 7),), ledger)
    for value in range(1, 9):
        assert fails(square, value) == late(square, value) == value * value
    assert ledger.trouble() == [
        "differs had another result than upstream's",
        "fails failed",
        "fails late failed",
    ]
