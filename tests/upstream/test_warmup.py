"""warmup: live rates and momentum of every iteration against the formula; length, floor, cap, resume, linear-lr."""

from __future__ import annotations

from functools import partial

import pytest

from tests.conftest import NEWEST, ROOT, entry
from yolo_patches.errors import PatchesError
from yolo_patches.facts import Batch, Devices, Facts, Given, Optimization
from yolo_patches.patches.warmup import Warmup
from yolo_patches.seams import WarmUp

TRAININGS = ROOT / "tests" / "upstream" / "warmed_trainings.py"
OLDEST = "8.0.200"  # the oldest that is supported
BIAS_LR, MOMENTUM = 0.1, (0.8, 0.937)  # upstream's defaults


@pytest.fixture(scope="module")
def warmed(trainings, digits):
    """Return a function of a release that returns its trainings."""

    def jobs(folder, version):
        common = {"data": digits(), "epochs": 3, "batch": 4, "nbs": 8, "imgsz": 32, "model": "yolov8n.yaml"}
        common["project"] = str(folder)

        def job(patches, **more):
            return {**common, "patches": f"compat,{patches}", **more}

        found = {
            "exponential": job("warmup:share=0.5:shape=exponential", optimizer="SGD"),
            "constant": job("warmup:epochs=1.5:shape=constant", optimizer="AdamW", lr0=0.001),
            "interrupted": job("warmup:epochs=2:shape=exponential", optimizer="SGD", stop_after=1),
            "resumed": {"resume": True, "patches": "compat,warmup:epochs=2:shape=exponential"},
            "disturbed": job("warmup:share=0.5", optimizer="SGD", override=0.123, epochs=1),
        }
        if version == NEWEST:
            # Twice the base batch: linear-lr would have a warm-up of its own.
            found["muon"] = job("warmup:share=0.25,linear-lr:base_batch=4", optimizer="MuSGD", cos_lr=True)
            found["auto"] = job("warmup:epochs=1", optimizer="auto", epochs=2)
        return found

    return partial(trainings, TRAININGS, jobs)


def formula(shape, share):
    return 1.0 if share >= 1 else {"linear": share, "exponential": 10 ** (share - 1), "constant": 0.1}[shape]


def check(seen, shape, length, bias_lr=BIAS_LR, lr=0.01):
    """Compare every iteration of a training with the formula, which is written down here once more."""
    for made in seen["iterations"]:
        done = formula(shape, (made["epoch"] * seen["batches"] + made["batch"]) / length)
        for group in made["groups"]:
            start, target = bias_lr if group["bias"] else 0.0, group["initial"] * seen["lf"][made["epoch"]]
            where = made["epoch"], made["batch"], group
            assert group["lr"] == pytest.approx(start + (target - start) * done, rel=1e-9, abs=1e-15), where
            if group["momentum"] is not None:
                assert group["momentum"] == pytest.approx(MOMENTUM[0] + (MOMENTUM[1] - MOMENTUM[0]) * done), where
    assert seen["iterations"][0]["groups"][0]["initial"] == pytest.approx(lr)
    assert seen["steps"]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_iteration_is_the_formulas(version, warmed):
    trainings = warmed(version)
    check(trainings["exponential"], "exponential", 6)
    check(trainings["constant"], "constant", 6, lr=0.001)
    for name in ("exponential", "constant"):
        mine = entry(trainings[name]["plan"], "warmup")
        assert (mine["status"], mine["verified"]) == ("active", True), mine
        changes = {change["what"]: (change["upstream"], change["patched"]) for change in mine["changes"]}
        assert changes["warm-up iterations"] == (100 if version == OLDEST else 8, 6)
        assert changes["warm-up shape"] == ("linear", name)
        # What upstream makes of its own warmup_epochs=3, which are 12 iterations, is in the plan.
        told = "least warm-up: 12 -> 100" if version == OLDEST else "before the last epoch: 12 -> 8"
        assert any(told in note for note in mine["notes"]), mine["notes"]
        assert any("biases begin at lr 0.1" in note for note in mine["notes"])
        assert "warmup_epochs: 3.0" in trainings[name]["args"]  # nothing of it reaches upstream's own files
    # The last iterations of the run accumulate up to nbs, also where upstream's own warm-up is longer than the run.
    assert [made["accumulate"] for made in trainings["exponential"]["iterations"]][-6:] == [2] * 6


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_a_resumed_run_goes_on_in_the_middle(version, warmed):
    trainings = warmed(version)
    check(trainings["interrupted"], "exponential", 8)
    check(trainings["resumed"], "exponential", 8)
    assert [made["epoch"] for made in trainings["resumed"]["iterations"]] == [1] * 4 + [2] * 4
    assert entry(trainings["resumed"]["plan"], "warmup")["verified"] is True


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_verified_is_false_where_a_step_is_made_at_another_rate(version, warmed):
    seen = warmed(version)["disturbed"]
    assert all(rate == 0.123 for _, _, rates in seen["steps"] for rate in rates)
    mine = entry(seen["plan"], "warmup")
    assert mine["verified"] is False
    assert "0.123" in mine["reason"]


def test_muon_and_linear_lr_and_auto(warmed):
    trainings = warmed(NEWEST)
    check(trainings["muon"], "linear", 3, lr=trainings["muon"]["iterations"][0]["groups"][0]["initial"])
    scaled = entry(trainings["muon"]["plan"], "linear-lr")
    assert scaled["status"] == "active"
    assert "warm-up epochs" not in {change["what"] for change in scaled["changes"]}
    assert scaled["notes"] == ["the warm-up is as long as warmup was asked for"]
    automatic = trainings["auto"]
    check(automatic, "linear", 4, bias_lr=0.0, lr=automatic["iterations"][0]["groups"][0]["initial"])
    assert "optimizer=auto: biases begin at lr 0.1 -> 0 (warmup_bias_lr)" in entry(automatic["plan"], "warmup")["notes"]


def facts(images=None, given=None, epochs=100, hours=0.0, **more):
    return Facts(
        "ultralytics",
        "8.4.190",
        "detect",
        Batch(16),
        optimization=Optimization(epochs=epochs, hours=hours),
        devices=Devices(),
        given=Given(given or {}),
        images=lambda: images,
        **more,
    )


@pytest.mark.parametrize(
    ("images", "given", "epochs", "upstream", "patched"),
    [
        (1000, {}, 100, 300, 1000),  # 10 epochs
        (1000, {}, 80, 300, 800),  # a tenth of the run
        (1000, {}, 20, 300, 300),  # a tenth of it is less than upstream's
        (5000, {}, 100, 300, 300),  # not few
        (1000, {"warmup_epochs": 3.0}, 100, 300, 300),  # the user's counts
        (1000, {}, 100, 0, 0),  # no warm-up at all
    ],
)
def test_small_data_warms_up_longer(images, given, epochs, upstream, patched):
    patch = Warmup()
    assert patch.decide(facts(given=given, epochs=epochs)).status == "inert"  # the images are not known yet
    seam = WarmUp(upstream, per_epoch=100, epochs=epochs, images=images)
    decision = patch.handlers()[WarmUp](seam)
    assert seam.iterations == patched
    assert decision.status == ("active" if patched != upstream else "inert")
    assert ("YOLOX#418" in decision.reason) == (patched != upstream)
    assert not seam.settled  # linear-lr may have a longer one
    forecast = Warmup().decide(facts(images, given, epochs))  # doctor counts them
    assert forecast.status == decision.status or not upstream


def test_a_resumed_run_keeps_the_warm_up_that_it_has_begun_with():
    patch = Warmup()
    patch.decide(facts(is_resumed=True))
    patch.handlers()[WarmUp](seam := WarmUp(300, per_epoch=100, epochs=100, images=1000))
    assert seam.iterations == 300
    patch.decide(facts(is_resumed=True, resumed={"warmup": {"status": "active"}}))
    patch.handlers()[WarmUp](seam)
    assert seam.iterations == 1000


@pytest.mark.parametrize(
    ("options", "more", "words"),
    [
        ({"share": 0.1, "epochs": 5.0}, {}, "share=0.1 and epochs=5 are two lengths of one warm-up; give one"),
        ({"share": 0.1}, {"hours": 2.0}, "give warmup:epochs="),
        ({"epochs": 20.0}, {"epochs": 10}, "longer than the run of 10 epochs; give at most 10"),
    ],
)
def test_what_cannot_be_is_an_error_before_training(options, more, words):
    with pytest.raises(PatchesError, match=words):
        Warmup(**options).decide(facts(**more))
