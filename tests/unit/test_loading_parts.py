"""Parts of training samples against the plain way of making them."""

from __future__ import annotations

import pickle
from copy import deepcopy

import cv2
import numpy as np
import pytest
from torchvision.transforms import functional

from yolo_patches.loading import blend, boxes, canvas, colours, masks, numbers, outlines, planes, polygons
from yolo_patches.loading.labels import Label
from yolo_patches.loading.part import COMPARED, OFF, Ledger, Part, alike


def plain_masks(size, segments, ratio):
    """Draw each polygon on the whole image and make that smaller."""
    drawn = []
    for segment in segments:
        mask = np.zeros(size, np.uint8)
        cv2.fillPoly(mask, segment.astype(np.int32)[None], color=1)
        drawn.append(cv2.resize(mask, (size[1] // ratio, size[0] // ratio)))
    return np.array(drawn)


def fuzzed(random, size, count, beyond=0):
    """Return polygons, some degenerate: points, lines, on and along the borders, crossing themselves.

    They are cut off some pixels beyond the borders.
    """
    height, width = size
    points = random.uniform(0, 1, (count, 40, 2)) * random.uniform(0, 1, (count, 1, 2)) + random.uniform(
        -0.5, 1, (count, 1, 2)
    )
    points = np.clip(points * (width, height), -beyond, (width + beyond, height + beyond)).astype(np.float32)
    points[::5] = points[::5, :1]
    points[1::7, :, 0] = width
    points[2::7, :, 1] = points[2::7, :1, 1]
    return points


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_masks(ratio):
    random = np.random.default_rng(ratio)
    for turn in range(40):
        size = tuple(int(8 * side) for side in random.integers(2, 60, 2))
        count = int(random.integers(1, masks.MOST + 1)) if turn % 8 == 0 else 9
        segments = fuzzed(random, size, count, beyond=turn % 3 * 100)
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
    assert masks.overlapping((32, 32), inside * 7000, 4) is None
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


def whole_canvas(tiles, side):
    image = np.full((side, side, 3), 114, np.uint8)
    for tile in tiles:
        image[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = tile.image[
            tile.y : tile.y + tile.height, tile.x : tile.x + tile.width
        ]
    return image


@pytest.mark.parametrize("degrees", [0, 20])
def test_a_canvas_painted_where_it_is_seen(degrees):
    """What the warp shows is as of the whole canvas, with whatever an earlier sample has left on it."""
    random = np.random.default_rng(degrees)
    for _ in range(60):
        images = random.integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
        x, y = random.integers(32, 96, 2)
        tiles = [
            canvas.Tile(
                images[0], max(x - 64, 0), max(y - 48, 0), min(x, 64), min(y, 48), 64 - min(x, 64), 48 - min(y, 48)
            ),
            canvas.Tile(images[1], x, max(y - 48, 0), min(64, 128 - x), min(y, 48), 0, 48 - min(y, 48)),
            canvas.Tile(images[2], max(x - 64, 0), y, min(x, 64), min(48, 128 - y), 64 - min(x, 64), 0),
            canvas.Tile(images[3], x, y, min(64, 128 - x), min(48, 128 - y), 0, 0),
        ]
        image = whole_canvas(tiles, 128)
        mask = np.zeros((128, 128), np.uint8)
        cv2.fillPoly(mask, [random.integers(0, 128, (5, 2)).astype(np.int32)], 1)
        pasted = cv2.copyTo(cv2.flip(image, 1), mask, image.copy())
        matrix = cv2.getRotationMatrix2D((64, 64), degrees * random.uniform(-1, 1), random.uniform(0.2, 2))
        matrix[:, 2] += random.uniform(-40, 40, 2) - 32
        for masks_, of in (([], image), ([mask], pasted)):
            one = canvas.Canvas((128, 128, 3), tiles, masks_)
            assert alike(one.painted(), of)
            warped = cv2.warpAffine(of, matrix, (64, 64), borderValue=(114,) * 3)
            assert alike(canvas.warped(one, matrix, (64, 64)), warped)


@pytest.mark.parametrize("way", colours.WAYS)
def test_colours(way):
    random = np.random.default_rng(0)
    for turn in range(60):
        image = random.integers(0, 256, (int(random.integers(1, 150)), 37, 3), dtype=np.uint8)
        gains = random.uniform(-1, 1, 3) * ((0.015, 0.7, 0.4) if turn % 3 else (1, 1, 1)) * (turn % 10 > 0)
        x = np.arange(256, dtype=np.float64)
        hue = (x + gains[0] * 180) % 180 if way is colours.recoloured else x * (gains[0] + 1) % 180
        tables = [hue, np.clip(x * (gains[1] + 1), 0, 255), np.clip(x * (gains[2] + 1), 0, 255)]
        parts = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
        changed = cv2.merge([cv2.LUT(part, table.astype(np.uint8)) for part, table in zip(parts, tables)])
        before = image.copy()
        assert alike(way(image, gains), cv2.cvtColor(changed, cv2.COLOR_HSV2BGR))
        assert alike(image, before)
    assert way(image[..., :2], gains) is None


def test_stacked_polygons():
    random = np.random.default_rng(0)
    shapes = [random.uniform(0, 1, (corners, 2)).astype(np.float32) for corners in (1, 2, 3, 17, 98)]
    assert alike(polygons.stacked(shapes, 100), np.stack(polygons.with_corners(shapes, 100)))
    assert polygons.stacked([*shapes, np.ones((99, 2), np.float32)], 100) is None


def test_outlines_that_wait():
    """Bounds are those of all points, though only those of what is cut off are looked at."""
    random = np.random.default_rng(0)
    for turn in range(60):
        some = []
        for steps in (
            (("scale", 64, 48), ("move", -7, 30), ("cut", 128, 128)),
            (("scale", 30, 64), ("mirror", 128, 0)),
        ):
            corners = random.integers(1, 60, 6)
            some += [
                outlines.Outline(
                    (random.uniform(0, 1, 2) + random.uniform(0, 0.4, (k, 2))).astype(np.float32), 100, steps
                )
                for k in corners
            ]
        scale = random.uniform(0.3, 2)
        matrix = np.array(
            [[scale, 0, random.uniform(-60, 60)], [0, scale, random.uniform(-60, 60)], [0, 0, 1]], np.float32
        )
        assert outlines.is_straight(matrix)
        points = np.ones((12, 100, 3), np.float32)
        points[..., :2] = outlines.resampled(some)
        points = (points @ matrix.T)[..., :2]
        found = outlines.bounds(some, matrix, (64, 64))
        assert alike(found, outlines.seen(points, 64, 64))
        inside = ((points >= 0) & (points <= 64)).all((1, 2))
        assert alike(found[inside], np.concatenate((points.min(1), points.max(1)), 1)[inside])
        outside = ((points.max(1) < 0) | (points.min(1) > 64)).any(1)
        assert not found[outside].any()
        low, high = found[:, None, :2], found[:, None, 2:]
        assert alike(outlines.drawn(some, matrix, (64, 64), found), np.clip(points, low, high)), turn
    assert not outlines.is_straight(cv2.getRotationMatrix2D((0, 0), 1, 1)[[0, 1, 1]])


def odd_outlines(random):
    """Return outlines of every kind on a mosaic: cut off, on its borders, mirrored, of one corner, all in one place."""
    some = []
    for _ in range(4):
        steps = [("scale", *random.integers(30, 65, 2).tolist()), ("move", *random.integers(-40, 90, 2).tolist())]
        steps += [("cut", 128, 128), ("mirror", *((128, 0) if random.random() < 0.5 else (0, 128)))]
        steps = tuple(steps[: int(random.integers(0, 5))])
        for kind in random.integers(0, 3, random.integers(1, 5)):
            count = int(random.integers(1, 40))
            polygon = (
                random.uniform(-0.2, 1.2, (count, 2)),
                random.integers(0, 9, (count, 2)) / 8,
                np.repeat(random.uniform(0, 1, (1, 2)), count, 0),
            )[kind]
            some.append(outlines.Outline(polygon.clip(0, 1).astype(np.float32), 200, steps))
    return some


def test_the_bounds_of_odd_outlines_are_those_of_all_their_points():
    """Few of the points are resampled; what all of them would show is the same to the last bit."""
    cut = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        some = odd_outlines(random)
        scale = random.choice([0.5, 1, 1.5, random.uniform(0.3, 2)])
        moves = random.choice([0, -32, -16.5, 7.25], 2)
        matrix = np.array([[scale, 0, moves[0]], [0, scale, moves[1]], [0, 0, 1]], np.float32)
        points = np.ones((len(some), 200, 3), np.float32)
        points[..., :2] = outlines.resampled(some)
        points = (points @ matrix.T)[..., :2]
        low, high = points.min(1), points.max(1)
        inside = ((low >= 0) & (high <= (64, 48))).all(1)
        outside = ((high < 0) | (low > (64, 48))).any(1)
        expected = np.concatenate((low, high), 1)
        expected[outside] = 0
        expected[~(inside | outside)] = outlines.seen(points[~(inside | outside)], 64, 48)
        assert alike(outlines.bounds(some, matrix, (64, 48)), expected), seed
        cut += (~(inside | outside)).sum()
    assert cut > 300


def test_what_an_image_shows_of_an_outline():
    """Along a border, through a corner, around everything, and nothing of it."""
    shapes = np.array(
        [
            [(-10, 10), (20, 10), (20, 20), (-10, 20)],  # over the left border
            [(-100, -100), (200, -100), (200, 200), (-100, 200)],  # around
            [(-10, 30), (30, -10), (-10, -10), (-10, -10)],  # over a corner
            [(70, 10), (90, 10), (90, 20), (70, 20)],  # beside
            [(-20, 30), (30, -20), (-20, -20), (-20, -20)],  # the corner alone
        ],
        np.float32,
    )
    expected = [(0, 10, 20, 20), (0, 0, 64, 48), (0, 0, 20, 20), (0, 0, 0, 0), (0, 0, 10, 10)]
    np.testing.assert_allclose(outlines.seen(shapes, 64, 48), expected, atol=1e-5)


def test_boxes_that_a_warp_keeps():
    """Too small, too long, too little of it: each alone decides."""
    matrix = np.eye(3, dtype=np.float32)
    given = np.array([(0, 0, 50, 50), (10, 10, 12, 60), (0, 5, 350, 8), (-95, 0, 5, 60), (-60, 0, 40, 60)], np.float32)
    found, kept, points = boxes.warped(given, None, matrix, (400, 400), 1.0, False)
    assert kept.tolist() == [0, 4]
    assert found.tolist() == [[0, 0, 50, 50], [0, 0, 40, 60]]
    assert not len(points)


def test_labels_are_copied():
    label = Label(
        im_file="a", shape=(1, 2), cls=np.zeros((2, 1)), segments=[np.ones((3, 2))], keypoints=None, more={"a": [1]}
    )
    copy = deepcopy(label)
    assert type(copy) is dict
    assert list(copy) == list(label)
    copy["cls"][:] = copy["segments"][0][:] = 7
    copy["segments"].append(1)
    copy["more"]["a"].append(2)
    assert not label["cls"].any()
    assert label["segments"][0].max() == len(label["segments"]) == 1
    assert label["more"] == {"a": [1]}
    assert type(pickle.loads(pickle.dumps(label))) is Label


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


@pytest.mark.parametrize("constants", [((0.0,) * 3, (1.0,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_numbers(constants):
    """Every byte becomes what torchvision makes of it."""
    image = np.random.default_rng(0).permuted(np.tile(np.arange(256, dtype=np.uint8), (3, 2)), axis=1)
    image = np.ascontiguousarray(image.reshape(3, 16, 32).transpose(1, 2, 0))
    theirs = functional.normalize(functional.to_tensor(image), *constants).numpy()
    assert alike(numbers.normalised(image, *constants), theirs)
    assert numbers.normalised(image[..., :1], *constants) is None
    assert numbers.normalised(image, (0.0,), (1.0,)) is None
    assert numbers.normalised(image.astype(np.float32), *constants) is None
