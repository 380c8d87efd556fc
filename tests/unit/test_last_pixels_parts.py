"""The last pixels of batches: on a device, image by image, and as whoever reads a batch finds them."""

from __future__ import annotations

import copy
import pickle

import cv2
import numpy as np
import pytest
import torch

from yolo_patches.loading.finishing import KEPT, LEFT, Finishing
from yolo_patches.loading.last_pixels import Left, by_itself, together
from yolo_patches.loading.part import DIFFERS, RAISES, Ledger
from yolo_patches.upstreams.ultralytics.sample_remainders import REMAINDER, Unfinished

random = np.random.default_rng(0)


def images(number=9, height=48, width=80):
    """Return images of which neighbours are alike, each with a patch of noise."""
    small = random.integers(0, 256, (number, 6, 10, 3), dtype=np.uint8)
    large = np.stack([cv2.resize(one, (width, height)) for one in small])
    large[:, :16, :16] = random.integers(0, 256, (number, 16, 16, 3), dtype=np.uint8)
    return torch.from_numpy(large.reshape(number, 3, height, width))


def gains():
    return [float(value) for value in random.uniform(-1, 1, 3) * (0.015, 0.7, 0.4)]


def alone(batch, left):
    pairs = zip(batch.numpy(), left)
    return np.stack([by_itself(image.reshape(*image.shape[1:], 3), one) for image, one in pairs])


@pytest.mark.parametrize("swapped", [True, False, None])
def test_geometry_is_exact(swapped):
    batch = images()
    left = [
        Left(upside_down=i % 2 > 0, mirrored=i % 3 > 0, swapped=i % 4 > 0 if swapped is None else swapped)
        for i in range(9)
    ]
    expected = []
    for image, one in zip(batch.numpy(), left):
        image = image.reshape(*image.shape[1:], 3)
        image = cv2.flip(image, 0) if one.upside_down else image
        image = cv2.flip(image, 1) if one.mirrored else image
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if one.swapped else image
        expected.append(image.transpose(2, 0, 1))
    assert np.array_equal(together(batch, left).numpy(), np.stack(expected))
    assert np.array_equal(alone(batch, left), np.stack(expected))


def test_colours_are_within_a_rounding():
    """Of steps of 8 bits: one at the most, and far less on average, whatever is mirrored with it."""
    batch = images()
    kept = batch.clone()
    left = [Left(*gains(), recolour=i != 4, mirrored=i % 2 > 0) for i in range(9)]
    apart = np.abs(together(batch, left).numpy().astype(int) - alone(batch, left))
    assert torch.equal(batch, kept)
    assert apart.max() <= 1
    assert apart.mean() < 0.1
    assert not apart[4].any()
    assert (
        np.abs(alone(batch, left).astype(int) - alone(batch, [one._replace(recolour=False) for one in left])).mean() > 5
    )


def test_every_colour_of_a_cube():
    """All hues, at extreme gains: blacks, greys and full colours among them."""
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(1, 52, 2704, 3)
    batch = torch.from_numpy(cube.reshape(1, 3, 52, 2704))
    for some in ((0.5, 1, 1), (-0.5, -1, -1), (0.9, 0.3, -0.4), (0, 0, 0)):
        apart = np.abs(
            together(batch, [Left(*some, recolour=True)]).numpy().astype(int)
            - alone(batch, [Left(*some, recolour=True)])
        )
        assert apart.max() <= 1, some


def finishing(make=together):
    return Finishing(Ledger([LEFT, KEPT]), make)


def test_what_fails_is_done_on_the_host():
    batch, left = images(), [Left(*gains(), recolour=True, mirrored=True)] * 9
    for make, column in ((lambda *_: 1 / 0, RAISES), (lambda some, left: together(some, left).flip(-1), DIFFERS)):
        one = finishing(make)
        assert np.array_equal(one.done(batch, left, "cpu").numpy(), alone(batch, left))
        assert one.off
        assert one._ledger.has(LEFT, column)
        assert one.why


def test_other_pixels_than_were_prepared_are_seen():
    batch, left = images(), [Left()] * 9
    one = finishing()
    made = one.done(batch, left, "cpu")
    one.note(made.float() / 255)
    assert (one.trained_on, one.off) == (1, False)
    made = one.done(batch, left, "cpu")
    one.note(torch.nn.functional.interpolate(made.float() / 255, size=(32, 64), mode="bilinear"))
    assert (one.trained_on, one.off) == (2, False)
    other = finishing()
    other.note(other.done(batch, left, "cpu").flip(1).float() / 255)
    assert (other.trained_on, other.off) == (0, True)


@pytest.mark.parametrize(
    "read",
    [
        lambda batch: batch["img"],
        lambda batch: batch.get("img"),
        lambda batch: batch.pop("img"),
        lambda batch: dict(batch)["img"],
        lambda batch: {**batch}["img"],
        lambda batch: (batch | {})["img"],
        lambda batch: batch.copy()["img"],
        lambda batch: copy.copy(batch)["img"],
        lambda batch: copy.deepcopy(batch)["img"],
        lambda batch: dict(batch.items())["img"],
        lambda batch: dict(zip(batch, batch.values()))["img"],
        lambda batch: batch.setdefault("img"),
        lambda batch: pickle.loads(pickle.dumps(batch))["img"],
        lambda batch: batch.on("cpu")["img"],
    ],
)
def test_whoever_asks_finds_images_done(read):
    pixels, left = images(), [Left(*gains(), recolour=True, mirrored=True)] * 9
    batch = Unfinished({"img": pixels, "cls": torch.zeros(9), REMAINDER: left}, finishing())
    assert set(batch) == {"img", "cls"}
    assert type(pickle.loads(pickle.dumps(batch.__class__({**dict.copy(batch), REMAINDER: left}, finishing())))) is dict
    found = read(batch).numpy().astype(int)
    assert np.abs(found - alone(pixels, left)).max() <= 1
    if "img" in batch:
        assert torch.equal(batch["img"].int(), torch.from_numpy(found).int())  # and once is enough
