"""accumulate: the images of each optimizer step in real trainings; what upstream derives from it; refusals."""

from __future__ import annotations

import json
import subprocess
from functools import partial

import pytest

from tests.conftest import NEWEST, ROOT, entry
from yolo_patches import registry
from yolo_patches.errors import PatchesError
from yolo_patches.facts import Batch, Devices, Facts
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.patches.accumulate import Accumulate
from yolo_patches.selection import parse

TRAININGS = ROOT / "tests" / "upstream" / "accumulated_trainings.py"
OLDEST = "8.0.200"
DECAY = 0.0005


@pytest.fixture(scope="module")
def accumulated(trainings, digits):
    """Return a function of a release that returns its trainings."""

    def jobs(folder, version):
        common = {
            "data": digits(), "epochs": 3, "batch": 4, "imgsz": 32, "model": "yolov8n.yaml", "project": str(folder),
            "optimizer": "SGD", "warmup_epochs": 0,
        }  # fmt: skip
        asked = {"patches": "compat,accumulate:effective=12"}
        found = {
            # Upstream's own with nbs=12 and the weight decay that this leads to at nbs=64; the ramp in full.
            "upstream": {**common, "warmup_epochs": 2, "nbs": 12, "weight_decay": DECAY * 12 / 64, "patches": "compat"},
            "patched": {**common, **asked, "warmup_epochs": 2},
            "interrupted": {**common, **asked, "stop_after": 2},
            "resumed": {"resume": True},  # and what it was started with
            "linear": {**common, "patches": "compat,accumulate:effective=16,linear-lr:base_batch=8"},
        }
        if version == NEWEST:
            found["disturbed"] = {**common, **asked, "disturbed": True}
            found["plain"] = {**common, "epochs": 1, "nbs": 12, "patches": "compat"}
            found["same"] = {**common, "epochs": 1, "nbs": 12, **asked}
            found["short"] = {**common, "epochs": 1, "patches": "compat,accumulate:effective=48"}
        return found

    return partial(trainings, TRAININGS, jobs)


def made_of(seen):
    """Return the iterations of the steps, and how many batches' gradients each of them has."""
    return [(iteration, len(batches)) for iteration, batches, _ in seen["steps"]]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_a_step_has_as_many_images_as_were_asked_for(version, accumulated):
    trainings = accumulated(version)
    # 4 batches an epoch, 3 a step; 8.0.200 zeroes gradients at the beginning of an epoch, and counts on.
    expected = [(2, 3), (5, 2)] if version == OLDEST else [(2, 3), (5, 3)]
    seen = trainings["interrupted"]
    assert made_of(seen) == expected
    assert all(len(images) == 4 for _, batches, _ in seen["steps"] for images in batches)
    assert len({image for batch in seen["steps"][0][1] for image in batch}) == 12
    assert seen["steps"][0][2] == pytest.approx([0.01, DECAY * 12 / 64])
    mine = entry(seen["plan"], "accumulate")
    assert (mine["status"], mine["reason"]) == ("active", "effective batch 12 = 3 batches of 4")
    assert {"what": "batches of an optimizer step", "upstream": 16, "patched": 3} in mine["changes"]
    told = "dropped by upstream" if version == OLDEST else "goes on in the next epoch"
    assert any(told in note for note in mine["notes"]), mine["notes"]
    assert "nbs: 64" in seen["args"]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_a_resumed_run_accumulates_as_before(version, accumulated):
    seen = accumulated(version)["resumed"]
    # Iteration 8 of the run is the first: upstream does not remember its last step. Then 3 batches make one.
    assert made_of(seen) == [(0, 1), (3, 3)]
    mine = entry(seen["plan"], "accumulate")
    assert (mine["status"], mine["verified"]) == ("active", True), mine
    assert any("after resuming" in note for note in mine["notes"])


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_it_is_upstreams_own_accumulation(version, accumulated):
    """Ramp, weight decay, end of epochs: not a bit differs from upstream with the nominal batch of 12."""
    upstream, patched = (accumulated(version)[name] for name in ("upstream", "patched"))
    assert upstream["iterations"] == patched["iterations"]
    assert patched["iterations"][0] == 1 and (version == OLDEST or patched["iterations"][-1] == 3)
    assert made_of(upstream) == made_of(patched)
    assert upstream["weights"] == patched["weights"]
    assert entry(patched["plan"], "accumulate")["verified"] is True
    assert patched["nbs"] == 64 and upstream["nbs"] == 12


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_linear_lr_scales_by_the_effective_batch(version, accumulated):
    seen = accumulated(version)["linear"]
    assert made_of(seen) == [(3, 4), (7, 4), (11, 4)]
    # Twice its base batch of 8: twice the rate, and the weight decay that upstream has at 8.
    assert all(rates == pytest.approx([0.02, DECAY * 8 / 64]) for _, _, rates in seen["steps"])
    mine = entry(seen["plan"], "linear-lr")
    assert (mine["status"], mine["reason"]) == ("active", "x2 = effective batch 16 / base 8")


def test_verified_is_false_where_steps_are_made_at_other_times(accumulated):
    seen = accumulated(NEWEST)["disturbed"]
    mine = entry(seen["plan"], "accumulate")
    assert mine["verified"] is False
    assert "where 3 make one" in mine["reason"]


def test_what_upstream_does_by_itself_is_left_alone(accumulated):
    plain, same = (accumulated(NEWEST)[name] for name in ("plain", "same"))
    assert plain["weights"] == same["weights"]
    mine = entry(same["plan"], "accumulate")
    assert (mine["status"], mine["changes"]) == ("active", [])


def test_a_run_shorter_than_one_step_makes_one(accumulated):
    seen = accumulated(NEWEST)["short"]
    assert made_of(seen) == [(3, 4)]
    assert "the whole run has 4 batches: they are one step" in entry(seen["plan"], "accumulate")["notes"]


def test_two_ranks_make_a_step_of_the_global_batch(environment, interpreter, release, digits, tmp_path):
    job = {
        "model": "yolov8n.yaml", "data": digits(), "project": str(tmp_path), "name": "run", "epochs": 2, "batch": 8,
        "imgsz": 32, "optimizer": "SGD", "warmup_epochs": 0,
        "patches": "torchrun,accumulate:effective=16,linear-lr:base_batch=8",
    }  # fmt: skip
    done = subprocess.run(
        [interpreter, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(TRAININGS), json.dumps(job)],
        cwd=tmp_path,
        env={**environment, **release(NEWEST)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text())[0] for rank in range(2)]
    for seen in ranks:  # the script has swallowed what failed
        assert seen["error"] is None, seen["error"]
        assert made_of(seen) == [(1, 2), (3, 2)]
        assert all(rates == pytest.approx([0.02, DECAY * 8 / 64]) for _, _, rates in seen["steps"])
    assert ranks[0]["weights"] == ranks[1]["weights"]
    for step in zip(*(seen["steps"] for seen in ranks)):
        assert len({image for _, batches, _ in step for batch in batches for image in batch}) == 16
    mine = entry(json.loads((tmp_path / "run" / "patches.json").read_text()), "accumulate")
    assert (mine["status"], mine["verified"]) == ("active", True)
    assert mine["reason"] == "effective batch 16 = 2 batches of 8"


def facts(batch, ranks=1, nbs=64):
    return Facts("ultralytics", NEWEST, "detect", Batch(batch, nbs=nbs), devices=Devices(world_size=ranks))


@pytest.mark.parametrize(
    ("effective", "batch", "ranks", "told"),
    [
        (100, 16, 1, "effective=96 or effective=112"),
        (8, 16, 1, "effective=16, or a smaller batch"),
        (64, 10, 4, "batch=8 or batch=12"),
    ],
)
def test_what_cannot_be_reached_is_refused_with_its_neighbours(effective, batch, ranks, told):
    with pytest.raises(PatchesError, match=told):
        Accumulate(effective=effective).decide(facts(batch, ranks))


def test_every_patch_decides_from_the_accumulation_that_was_asked_for():
    chosen = parse("accumulate:effective=128,linear-lr", registry.specs())
    made = Lifecycle.of(facts(16), chosen)
    assert made.facts.batch.accumulate(16) == 8
    reasons = {found.name: found.decision.reason for found in made.plan.entries}
    assert reasons["linear-lr"] == "x2 = effective batch 128 / base 64"
    assert Lifecycle.of(facts(16), parse("accumulate", registry.specs())).facts.batch.accumulate(16) == 4


def test_a_measured_batch_gets_the_nearest_multiple_and_says_so():
    from yolo_patches.step_seams import Accumulation

    patch = Accumulate(effective=64)
    assert patch.decide(facts(-1)).status == "active"
    seam = Accumulation(20, 3)
    decision = patch.handlers()[Accumulation](seam)
    assert seam.accumulate == 3 and decision.reason.endswith("3 batches of 20, as upstream, the nearest to 64")
    seam = Accumulation(40, 2)
    assert patch.handlers()[Accumulation](seam).reason.endswith("2 batches of 40, as upstream, the nearest to 64")
    seam = Accumulation(43, 1)
    assert patch.handlers()[Accumulation](seam).reason.endswith("1 batches of 43, as upstream, the nearest to 64")
