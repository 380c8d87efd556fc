"""Pixels that are nearly upstream's: within a step of 8 bits on average, else the exact way makes them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from yolo_patches.loading import blend, canvas, colours, near
from yolo_patches.loading.part import CALLS, COMPARED, Ledger, Part, is_near
from yolo_patches.loading_seams import Samples
from yolo_patches.patches.fast_load import FastLoad


@pytest.fixture(scope="module")
def photographs():
    """Return images with textures, noise and saturated areas."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(4):
        image = np.zeros((120, 160, 3), np.float32)
        for cells, strength in ((4, 90), (16, 45), (64, 25)):
            noise = random.normal(0, strength, (cells, cells, 3)).astype(np.float32)
            image += cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + 120, 0, 255).astype(np.uint8)
        image[:30, :40] = random.integers(0, 255, 3)
        images.append(image)
    return images


def apart(one, other):
    """Return mean and largest difference."""
    assert one.shape == other.shape
    difference = np.abs(one.astype(int) - other)
    return difference.mean(), difference.max()


def test_colours(photographs):
    """Every turn of the hue, to both sides, and gains that cut off saturation and value."""
    for turn in (-0.33, -0.015, -0.004, 0, 0.004, 0.015, 0.33):
        for gains in ((turn, 0.7, 0.4), (turn, -0.7, -0.4), (turn, 0.7, -0.4)):
            for image in photographs:
                assert apart(near.recoloured(image, gains), colours.recoloured(image, gains))[0] < 0.5, gains
    assert near.recoloured(photographs[0], (0.5, 0, 0)) is None


def test_blend(photographs):
    """One operation in place of four."""
    one, other = photographs[:2]
    for share in (0.5, 0.31, 1.0):
        mean, most = apart(near.blend(one, other, share), blend.blend(one, other, share))
        assert mean < 0.05 and most <= 1


def test_scaled(photographs):
    """Scaled and moved, beyond the canvas too, with objects pasted; what is turned is left to the exact way."""
    random = np.random.default_rng(0)
    tiles = [
        canvas.Tile(image, x, y, 160 - 20 * (x == 0), 120, 20 * (x == 0), 0)
        for image, (x, y) in zip(photographs, ((0, 40), (140, 40), (0, 160), (140, 160)))
    ]
    mask = np.zeros((320, 320), np.uint8)
    cv2.circle(mask, (90, 120), 50, 1, cv2.FILLED)
    scales = [*np.linspace(0.1, 1.9, 40), 0.01, *np.linspace(0.995, 1.005, 40)]
    made = 0
    for scale in scales:
        move = random.uniform(-0.4, 0.6, 2) * 160
        matrix = np.array([[scale, 0, move[0]], [0, scale, move[1]]])
        drawn = canvas.Canvas((320, 320, 3), tiles, [mask] if made % 2 else [])
        ours = near.scaled(drawn, matrix, (160, 160))
        if ours is not None:
            made += 1
            mean, most = apart(ours, canvas.warped(drawn, matrix, (160, 160)))
            assert mean < 0.5, (scale, mean, most)
    assert made > 25
    assert near.scaled(drawn, np.array([[1, 0.01, 0], [0, 1, 0.0]]), (160, 160)) is None


def test_part(photographs):
    """A near way stands in once it is shown to be near; else, and where it has no result, the exact way does."""
    image = photographs[0]

    def exact(image, add):
        return image // 2 + add

    def stands(way, add=1):
        ledger = Ledger(["part"])
        part = Part("part", (exact,), ledger, {exact: way})
        for _ in range(COMPARED):
            assert np.array_equal(part(exact, image, add), exact(image, add))
        found = part(lambda *_: pytest.fail("upstream's again"), image, add)
        assert ledger.counts[0, CALLS] == 1 and not ledger.trouble()
        return found

    assert np.array_equal(stands(lambda image, add: image // 2 + add + 1), image // 2 + 2)
    for far in (
        lambda image, add: image // 2 + add + 2,
        lambda image, add: None,
        lambda image, add: 1 / 0,
        lambda image, add: (image // 2 + add)[:-1],
    ):
        assert np.array_equal(stands(far), exact(image, 1))
    assert not is_near(image, image.astype(np.float32))


@pytest.mark.parametrize(("level", "known", "said"), [
    ("near", {"canvas", "planes"}, "pixels within 1/255 of upstream's on average"),
    ("near", {"planes"}, "the same samples"),
    ("exact", {"canvas"}, "the same samples"),
])  # fmt: skip
def test_plan(level, known, said):
    """The plan says which pixels there will be; where no part has a near way, they are upstream's."""
    seam = Samples(frozenset(known))
    decision = FastLoad(level=level).handlers()[Samples](seam)
    assert said in decision.reason
    assert bool(seam.near) == ("1/255" in said)
