"""Which batch fits, from footprints; the figures are measured ones, see `MEASURED`."""

from __future__ import annotations

import json

import pytest

from yolo_patches import registry
from yolo_patches.batch_search import BatchSearch, Footprint, fitted, shared
from yolo_patches.errors import PatchesError
from yolo_patches.facts import Batch, Devices, Facts, Given
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.seams import Arguments
from yolo_patches.selection import parse

#: Peak bytes of `measuring` on a CPU: yolov8n, 160 px, patches=default, 1 thread, 8.4.190, torch 2.15.
MEASURED = {8: 1_069_281_280, 16: 1_232_781_312, 32: 1_495_470_080}
WEIGHTS = 12_051_192


def taken(batch):
    """Return what a batch takes: measured where it was, on a line between and beyond."""
    if batch in MEASURED:
        return MEASURED[batch]
    (low, least), (high, most) = [(8, MEASURED[8]), (16, MEASURED[16])] if batch < 16 else list(MEASURED.items())[1:]
    return round(least + (most - least) / (high - low) * (batch - low))


def search(room, device=float("inf"), images=0, extra=0):
    tried = []

    def attempt(batch):
        tried.append(batch)
        return None if taken(batch) > device else Footprint(batch, taken(batch), 0, WEIGHTS, images)

    made = BatchSearch(attempt, lambda one: room, lambda one: extra)
    return made.largest(), tried


def test_two_measured_points_foretell_the_third_and_not_too_low():
    start, slope = fitted({batch: MEASURED[batch] for batch in (8, 16)})
    assert MEASURED[32] <= start + 32 * slope < MEASURED[32] * 1.06
    start, slope = fitted(MEASURED)
    assert all(start + batch * slope >= bytes_ - 1 for batch, bytes_ in MEASURED.items())
    assert fitted({8: 1.0}) is None


@pytest.mark.parametrize("room", [1_100_000_000, 1_288_000_000, 1_503_000_000, 3_000_000_000])
def test_what_is_found_was_tried_and_fits_and_hardly_more_would(room):
    found, tried = search(room)
    assert found in tried and taken(found) <= room
    assert len(tried) <= 5
    assert taken(round(found * 1.25) + 1) > room


def test_the_limits_are_the_device_the_data_set_and_upstreams_own():
    assert search(1e12, device=MEASURED[16])[0] == 16
    assert search(1e12, images=12) == (12, [8, 12])
    assert search(1e15)[0] == 1024
    assert search(MEASURED[16], extra=WEIGHTS)[0] < 16


def test_few_images_are_searched_downwards_and_none_is_none():
    found, tried = search(taken(4))
    assert (found, tried) == (4, [8, 4, 6])
    assert search(taken(1))[0] == 1
    assert search(taken(1) - 1) == (0, [8, 4, 2, 1])


@pytest.mark.parametrize(
    ("batch", "ranks", "nbs", "expected"),
    [(40, 1, 64, 32), (64, 1, 64, 64), (90, 1, 64, 90), (12, 4, 64, 8), (5, 3, 64, 5)],
)
def test_accumulation_reaches_nbs_exactly(batch, ranks, nbs, expected):
    assert shared(batch, ranks, nbs) == expected


def decided(trial, ranks=1, kind="cuda", size=-1, spec="auto-batch", given=(), launched=True):
    facts = Facts(
        "ultralytics", "8.4.190", "detect", Batch(size),
        devices=Devices(world_size=ranks, kind=kind), given=Given({"batch": size, **dict(given)}),
    )  # fmt: skip
    made = Lifecycle("ultralytics", "8.4.190", parse(spec, registry.specs()), {})
    seam = made.fire(Arguments(facts, trial=trial, foretold=not launched))
    made.decide(facts)
    return seam.values, next(entry for entry in made.plan.entries if entry.name == "auto-batch")


def on_a_device(total):
    def trial(changes, without):
        assert "oom-guard" in without
        shrunk = changes.get("imgsz", 640) / 640 * (0.5 if "model" in changes else 1)
        bytes_ = round(taken(changes["batch"]) * shrunk)
        return None if bytes_ > total else Footprint(changes["batch"], bytes_, total, WEIGHTS, 0)

    return trial


def test_the_batch_is_every_ranks_and_a_share_of_the_memory_stays_free():
    total = 2_200_000_000
    values, entry = decided(on_a_device(total))
    assert values["batch"] == 16 and taken(16) <= 0.6 * total  # upstream's share for -1, at a divisor of nbs
    assert "1.15" in entry.notes[0]  # 16 images, in GiB
    values, entry = decided(on_a_device(3_200_000_000), ranks=2)
    assert values["batch"] == 32
    assert entry.decision.reason.startswith("tried: 32 = 16 on each of 2 ranks")
    assert any("NCCL" in note for note in entry.notes)
    assert decided(on_a_device(total), size=0.5)[0]["batch"] < 16


def test_eight_images_come_before_a_share_that_stays_free():
    total = round(MEASURED[8] / 0.7)
    values, entry = decided(on_a_device(total))
    assert values["batch"] >= 8 and entry.decision.status == "active"
    assert decided(on_a_device(total), size=0.65)[0]["batch"] < 8  # a share that the user has given is kept
    assert decided(on_a_device(taken(1)))[0]["batch"] == 1  # it has run: upstream would not end it, either
    values, entry = decided(on_a_device(round(taken(4) / 0.895)))
    assert values["batch"] == 4
    assert any("few for BatchNorm" in note and "16 batches to 64" in note for note in entry.notes)


def test_where_not_one_image_fits_the_error_says_what_does():
    total = taken(1) - 1
    with pytest.raises(PatchesError, match=r"imgsz=480 takes 0.\d+ GiB.*imgsz=320 takes.*model=yolo11l.pt takes"):
        decided(on_a_device(total), given={"model": "yolo11x.pt", "imgsz": 640})


def test_upstream_goes_on_where_trials_cannot_be_made():
    def fails(changes, without):
        raise PatchesError("a trial failed")

    values, entry = decided(fails)
    assert values == {} and entry.decision.status == "failed"
    assert decided(None)[1].decision.status == "inert"
    assert decided(fails, kind="cpu")[1].decision.status == "inert"  # upstream's own 16
    assert decided(fails, kind="npu", spec="auto-batch:memory=4")[1].decision.status == "inert"
    assert decided(fails, size=16)[1].decision.status == "inert"
    values, entry = decided(fails, launched=False)  # doctor
    assert values == {} and entry.decision.status == "active"


def test_workers_take_the_parents_word():
    mine = {"status": "active", "reason": "tried: 32", "changes": [{"what": "batch", "upstream": -1, "patched": 32}]}
    facts = Facts("ultralytics", "8", "detect", Batch(32), inherited={"auto-batch": json.loads(json.dumps(mine))})
    made = Lifecycle.of(facts, parse("auto-batch", registry.specs()))
    entry = next(entry for entry in made.plan.entries if entry.name == "auto-batch")
    assert (entry.decision.status, entry.decision.reason) == ("active", "tried: 32")
