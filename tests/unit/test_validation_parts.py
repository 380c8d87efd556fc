"""The parts of a validation: pieces of suppression, images in memory that is used again, batches that are kept."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import numpy
import pytest
import torch
import torchvision

from yolo_patches.patches import fast_val
from yolo_patches.validation import allocator, host_memory, suppression, together
from yolo_patches.validation.kept_batches import KeptBatches
from yolo_patches.validation.scaled_images import ScaledImages
from yolo_patches.validation.weights import Weights
from yolo_patches.validation_seams import Suppression


def test_suppression_stops_when_it_has_enough():
    looked = []

    def nms(boxes, scores, threshold):
        looked.append(len(boxes))
        return torch.arange(len(boxes))  # keeps all

    scores = torch.arange(1000.0)
    kept = suppression.best_kept(nms, torch.rand(1000, 4), scores, 0.7, 50)
    assert looked == [100]
    assert kept[:50].tolist() == list(range(999, 949, -1))


def test_more_candidates_than_upstream_looks_at_are_upstreams(monkeypatch):
    monkeypatch.setattr(suppression, "MOST", 9)
    how = Suppression(0.001, 0.7, 5, False, 300)
    assert suppression.suppress(None, torch.ones(1, 9, 2), how) is None


#: What a box of an image may be: ordinary, without area, with a negative size, tiny, no number.
ODD = {"plain": 1.0, "flat": 0.0, "negative": -1.0, "tiny": 1e-9, "nan": math.nan}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("agnostic", [False, True])
def test_images_that_are_suppressed_in_one_call(odd, agnostic):
    """Eight crowded images: what torchvision keeps of each, in fewer calls where the sizes of boxes allow it."""
    predictions = torch.rand(8, 4 + 3 + 2, 200, generator=torch.Generator().manual_seed(0))
    predictions[:, :2] *= 300  # so that those of different images overlap
    predictions[:, 2:4] = predictions[:, 2:4] ** 3 * 300
    predictions[:, 2, ::9] *= ODD[odd]
    predictions[:, 4:7] *= (predictions[:, 4:7] * 8).round() / 8  # many are equal
    predictions[3, 4:7] = 0  # an image without a candidate
    how, calls = Suppression(0.3, 0.6, 3, agnostic, 40), []

    def nms(*call):
        calls.append(len(call[0]))
        return torchvision.ops.nms(*call)

    theirs = suppression.suppress(torchvision.ops.nms, predictions, how)
    ours = suppression.suppressed_together(nms, predictions, how)
    assert [len(one) for one in ours] == [len(one) for one in theirs] and sum(map(len, ours)) > 200
    assert all(torch.equal(one.nan_to_num(7), other.nan_to_num(7)) for one, other in zip(ours, theirs))
    assert (len(calls) <= 2) == (odd in ("plain", "flat", "tiny"))


def _layers():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    model[1].running_mean += torch.rand(4)
    return model


def _bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("change", "put_back"), [
    (lambda model: model.half().float(), True),
    (lambda model: model.bfloat16().float(), True),
    (lambda model: model.half(), True),  # an error has come between
    (lambda model: model.float(), False),
    (lambda model: model.double().float(), False),
    (lambda model: model[0].weight.data.add_(1), False),
])  # fmt: skip
def test_weights_that_a_validation_has_rounded(change, put_back):
    """Rounded ones are put back, to the last bit; a change that is something else is left to whoever made it."""
    model = _layers()
    before, held = _bits(model), Weights(model, compared=True)
    with torch.inference_mode():
        change(model)
    after = _bits(model)
    assert held.put_back() is put_back
    wanted = before if put_back else after
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    assert held.unchanged() is all(torch.equal(value, before[name]) for name, value in wanted.items())
    if put_back:  # the average's next update, outside of inference, which may not touch what was made there
        for value in model.state_dict().values():
            value.copy_(value / 2)


def test_no_call_has_more_boxes_than_suppression_has_room_for(monkeypatch):
    monkeypatch.setattr(together, "BOXES", 100)
    assert together.groups([40, 60, 1, 300, 0, 5], 9) == [[40, 60], [1], [300], [0, 5]]
    assert together.groups([1, 1, 1], 2) == [[1, 1], [1]]


def test_scaled_images_use_their_memory_again_unless_somebody_holds_it():
    scale = ScaledImages()
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    first = scale(images)
    assert torch.equal(first, images.float() / 255)
    place = first.data_ptr()
    del first
    held = scale(images)
    view = held[1]
    assert held.data_ptr() == place
    del held
    other = scale(255 - images)
    assert other.data_ptr() != place and torch.equal(view, (images.float() / 255)[1])
    assert torch.equal(scale(images[:1]), images[:1].float() / 255)


class Loader:
    """Gives batches of two images, and draws as upstream's `Format` does."""

    def __init__(self, batches=3, draw=random.random, draws=1):
        self.batches, self.draw, self.draws, self.passes = batches, draw, draws, 0

    def __len__(self):
        return self.batches

    def __iter__(self):
        self.passes += 1
        for index in range(self.batches):
            for _ in range(2 * self.draws):
                self.draw()
            yield {"img": torch.full((2, 3, 4, 4), index, dtype=torch.uint8), "cls": torch.ones(2), "name": ["a", "b"]}


def images(batch):
    return batch["img"]


def test_kept_batches_are_the_loaders_and_draw_as_many_numbers():
    loader, kept = Loader(), KeptBatches(10**6, images)
    ends = []
    for _ in range(3):
        random.seed(1)
        found = list(kept.passing(loader))
        ends.append(random.random())
        assert [batch["img"][0, 0, 0, 0].item() for batch in found] == [0, 1, 2]
        assert all(batch["cls"].tolist() == [1, 1] and batch["name"] == ["a", "b"] for batch in found)
        for batch in found:
            batch["cls"] *= 5  # YOLOv9's validation changes its targets in place
    assert loader.passes == 1 and kept.complete and len(set(ends)) == 1


@pytest.mark.parametrize(("loader", "limit", "why"), [
    (Loader(), 200, "GiB are more than may be kept"),
    (Loader(draw=lambda: torch.rand(1)), 10**6, "draw random numbers"),
    (Loader(draw=lambda: numpy.random.rand()), 10**6, "draw random numbers"),
    (Loader(draws=99), 10**6, "draw random numbers"),
])  # fmt: skip
def test_what_is_not_kept_is_read_again(loader, limit, why):
    kept = KeptBatches(limit, images)
    for turn in (1, 2):
        assert len(list(kept.passing(loader))) == 3
        assert loader.passes == turn
    assert why in kept.why and not kept.complete and kept.size == 0


def test_a_pass_that_was_left_early_is_not_kept():
    loader, kept = Loader(), KeptBatches(10**6, images)
    next(kept.passing(loader))
    assert not kept.complete
    assert len(list(kept.passing(loader))) == 3
    assert kept.complete and len(list(kept.passing(loader))) == 3


def test_memory_that_is_left():
    assert 0 < host_memory.available() < 2**50


def test_the_allocator_is_told_where_it_is_glibc(monkeypatch):
    assert allocator.available()
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not allocator.available()
    patch = fast_val.FastVal(allocator=True)
    decision = patch.decide(SimpleNamespace(devices=SimpleNamespace(launcher=None), world_size=1))
    assert decision.changes == () and patch.notes == ["allocator=true changes nothing: this is not glibc"]
