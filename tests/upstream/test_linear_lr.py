"""linear-lr: the step's norm against the batch, for every optimizer; no-op at the base batch; caps, rules, resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import NEWEST, OLDEST, ROOT, entry, last_json

STEPS = ROOT / "tests" / "upstream" / "steps.py"
TRAIN = ROOT / "tests" / "e2e" / "train.py"
OPTIMIZERS = {
    OLDEST: ["SGD", "AdamW", "auto"],
    NEWEST: ["SGD", "MuSGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSProp", "auto"],
}


@pytest.fixture
def steps(python, digits, tmp_path):
    def run(version_environment, task="detect", **job):
        done = python(
            STEPS, digits(task), tmp_path, json.dumps({"task": task, **job}), timeout=600, **version_environment
        )
        return {name: {int(batch): figures for batch, figures in row.items()} for name, row in last_json(done).items()}

    return run


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_step_grows_with_the_batch(version, release, steps):
    common = {"optimizers": OPTIMIZERS[version], "batches": [64, 256]}
    patched = steps(release(version), patches="linear-lr:base_batch=64", **common)
    others = steps(release(version), patches="linear-lr:base_batch=64", optimizers=["SGD"], batches=[48, 96, 128])
    patched["SGD"].update(others["SGD"])
    upstream = steps(release(version), patches="none", **common)
    for name in OPTIMIZERS[version]:
        base, base_decay = patched[name][64]
        for batch, (norm, decay) in patched[name].items():
            assert norm / base == pytest.approx(batch / 64, rel=0.01), (name, batch)
            assert decay / base_decay == pytest.approx(batch / 64, rel=0.01), (name, batch)
        # At the base batch nothing is touched, and upstream's own step does not grow: the test can fail.
        assert upstream[name][64] == patched[name][64], name
        assert upstream[name][256][0] / upstream[name][64][0] < 1.2, name


def test_cap_and_square_root(release, steps):
    common = {"optimizers": ["SGD", "AdamW"], "batches": [64, 256]}
    capped = steps(release(NEWEST), patches="linear-lr:base_batch=64:max_scale=2", **common)
    rooted = steps(release(NEWEST), patches="linear-lr:base_batch=64:rule=sqrt", **common)
    for name in common["optimizers"]:
        for figures in (capped, rooted):
            assert figures[name][256][0] / figures[name][64][0] == pytest.approx(2, rel=0.01)


def test_mean_losses(release, steps):
    """A classifier's loss is a mean: at the base batch nothing is touched, above it the step grows as for any other."""
    common = {"task": "classify", "model": "yolov8n-cls.yaml", "optimizers": ["SGD"], "batches": [16, 64, 128]}
    common["clip"] = False  # at initial weights it would hide the gradient's size
    patched = steps(release(NEWEST), patches="linear-lr", **common)["SGD"]
    upstream = steps(release(NEWEST), patches="none", **common)["SGD"]
    assert patched[16] == upstream[16]  # four micro-steps of 16 are 64 images
    assert patched[64] == upstream[64]
    assert patched[128][0] / patched[64][0] == pytest.approx(2, rel=0.01)
    assert upstream[128][0] / upstream[64][0] == pytest.approx(1, rel=0.01)


def run(python, release, version, jobs):
    return last_json(python(TRAIN, *map(json.dumps, jobs), **release(version)))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_base_batch_is_upstream_and_the_plan_says_the_rest(version, release, python, digits, tmp_path):
    def job(name, **more):
        common = {"model": "yolov8n.yaml", "data": digits(), "epochs": 2, "batch": 8, "nbs": 16, "optimizer": "SGD"}
        return {**common, "name": name, "project": str(tmp_path), **more}

    none, same, twice = run(
        python,
        release,
        version,
        [
            job("none", patches="none"),
            job("same", patches="linear-lr:base_batch=16"),
            job("twice", patches="linear-lr:base_batch=8", lr0=0.02),
        ],
    )
    assert (same["model"], same["ema"]) == (none["model"], none["ema"])
    assert twice["model"] != none["model"]
    plans = [json.loads((Path(seen["save_dir"]) / "patches.json").read_text()) for seen in (same, twice)]
    inert, active = (entry(plan, "linear-lr") for plan in plans)
    assert inert["status"] == "inert"
    assert (active["status"], active["verified"]) == ("active", True)
    assert active["reason"] == "x2 = effective batch 16 / base 8"
    changes = {change["what"]: (change["upstream"], change["patched"]) for change in active["changes"]}
    assert changes["lr0"] == (0.02, 0.04)  # the given lr0 is scaled, and that is said
    assert changes["weight decay"] == (0.0005, 0.00025)
    assert changes["gradient before the clip"] == ("x1", "x0.5")
    for seen in (same, twice):
        text = (Path(seen["save_dir"]) / "args.yaml").read_text()
        assert "warmup_epochs: 3.0" in text  # what is changed for the run never reaches upstream's own files
        assert f"lr0: {0.01 if seen is same else 0.02}" in text


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_resume_with_another_batch(version, release, python, digits, tmp_path):
    code = """
import json, sys
from ultralytics import YOLO
def train(model, **arguments):
    model, seen = YOLO(model), {}
    def on_train_start(trainer):
        seen["groups"] = [[g["initial_lr"], g["weight_decay"]] for g in trainer.optimizer.param_groups]
    def on_train_epoch_start(trainer):
        if "resume" not in arguments and trainer.epoch == 1:
            seen["last"] = str(trainer.last)
            raise KeyboardInterrupt
    for callback in (on_train_start, on_train_epoch_start):
        model.add_callback(callback.__name__, callback)
    try:
        model.train(device="cpu", plots=False, **arguments)
    except KeyboardInterrupt:
        pass
    return seen
common = dict(data=sys.argv[1], project=sys.argv[2], epochs=2, imgsz=64, nbs=16, optimizer="SGD")
seen = train("yolov8n.yaml", batch=8, patches="linear-lr:base_batch=8", **common)
print()
print(json.dumps([seen["groups"], train(seen["last"], resume=True, batch=32)["groups"]]))
"""
    first, second = last_json(python("-c", code, digits(), tmp_path, **release(version)))
    assert {lr for lr, _ in first} == {0.02}
    assert max(decay for _, decay in first) == pytest.approx(0.0005 * 8 / 16)
    assert {lr for lr, _ in second} == {0.04}  # not 0.02 from the checkpoint, not 0.08 from scaling it once more
    assert max(decay for _, decay in second) == pytest.approx(0.0005 * 8 / 16)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_warm_up(version, release, python, digits, tmp_path):
    """To twice the rate in 5 epochs, or in a tenth of the run; as long as the user says where he says it.

    Read from the live optimizer: upstream's third step of 3 epochs' warm-up, and the same step of ours.
    """
    code = """
import json, sys
from ultralytics import YOLO
def train(patches, epochs=200, **more):
    model, rates = YOLO("yolov8n.yaml"), []
    def on_train_batch_end(trainer):
        rates.append(max(group["lr"] for group in trainer.optimizer.param_groups))
        if len(rates) == 3:
            raise KeyboardInterrupt
    model.add_callback("on_train_batch_end", on_train_batch_end)
    try:
        model.train(data=sys.argv[1], project=sys.argv[2], epochs=epochs, imgsz=64, batch=1, nbs=2, optimizer="SGD",
                    device="cpu", warmup_bias_lr=0.0, lrf=1.0, plots=False, workers=0, patches=patches, **more)
    except KeyboardInterrupt:
        pass
    return rates[-1]
twice = "linear-lr:base_batch=1"
print()
print(json.dumps([train("none"), train("linear-lr:base_batch=2"), train(twice), train(twice, 40), train(twice, 30),
    train(twice, warmup_epochs=3.0)]))
"""
    data = digits("detect", 48, 12)
    none, same, five, tenth, short, given = last_json(python("-c", code, data, tmp_path, **release(version)))
    assert none == pytest.approx(0.01 * 2 / (3 * 48))
    assert same == none
    assert five / none == pytest.approx(2 * 3 / 5)
    assert tenth / none == pytest.approx(2 * 3 / 4)
    assert short / none == given / none == pytest.approx(2)


def test_auto_chooses_the_same_optimizer_at_every_batch(release, python, digits, tmp_path):
    code = """
import json, sys
from ultralytics.models.yolo.detect import DetectionTrainer
def chosen(batch, patches):
    trainer = DetectionTrainer(overrides=dict(model="yolov8n.yaml", data=sys.argv[1], project=sys.argv[2], imgsz=64,
        device="cpu", plots=False, batch=batch, epochs=6000, optimizer="auto", patches=patches))
    trainer._setup_train()
    return type(trainer.optimizer).__name__
print()
print(json.dumps([[chosen(batch, patches) for batch in (64, 128)] for patches in ("none", "linear-lr")]))
"""
    data = digits("detect", 96, 12)  # 2 iterations an epoch at batch 64, 1 at batch 128
    upstream, patched = last_json(python("-c", code, data, tmp_path, **release(NEWEST)))
    assert upstream == ["MuSGD", "AdamW"]
    assert patched == ["MuSGD", "MuSGD"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("model=yolov10x.yaml", "optimizer=SGD", "batch=320"), "x2 = effective batch 320 / base 160"),
        (("model=yolov10x.yaml", "optimizer=SGD", "batch=320", "lr0=0.02"), "x5 = effective batch 320 / base 64"),
        (("model=yolov10x.yaml", "batch=128"), "x2 = effective batch 128 / base 64"),
        (("model=yolo12n.yaml", "optimizer=SGD", "batch=128"), "x0.5 = effective batch 128 / base 256"),
        (("model=yolo11n.yaml", "batch=1024"), "x8 capped = effective batch 1024 / base 64"),
        (("model=yolo11n.yaml", "batch=16"), "effective batch 64 is the base batch"),
    ],
)
def test_base_batch_auto(python, words, reason):
    done = python("-m", "yolo_patches", "doctor", "--json", *words, "patches=linear-lr", check=False)
    assert entry(json.loads(done.stdout), "linear-lr")["reason"] == reason
