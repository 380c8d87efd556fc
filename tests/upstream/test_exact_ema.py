"""exact-ema: upstream's own validation in half precision, forced on the CPU, leaves every bit of the average."""

from __future__ import annotations

import json

import pytest

from tests.conftest import NEWEST, last_json

#: Trains, and prints a digest of the average after each epoch, in full precision.
TRAIN = """
import hashlib, json, sys
import numpy, torch
from ultralytics import YOLO
from yolo_patches.patches.exact_ema import ExactEma
from yolo_patches.plan import Decision

torch.set_num_threads(1)
numpy.trapz = getattr(numpy, "trapz", None) or numpy.trapezoid
torch.load = lambda *args, load=torch.load, **kwargs: load(*args, **{**kwargs, "weights_only": False})
ExactEma.decide = lambda self, facts: Decision("active", "as on a device")

def half(trainer):
    # As on a device: whatever upstream sets, it reads that it is to validate in half precision.
    args = trainer.validator.args
    kind = type("Half", (type(args),), {"half": property(lambda self: True, lambda self, value: None)})
    vars(args).pop("half", None)
    args.__class__ = kind

def digest(trainer):
    values = [v.detach().float().flatten() for v in trainer.ema.ema.state_dict().values()]
    seen["weights"].append(hashlib.sha256(torch.cat(values).numpy().tobytes()).hexdigest()[:12])

found = []
for spec, forced in json.loads(sys.argv[1]):
    seen = {"weights": []}
    model = YOLO("yolov8n.yaml")
    model.add_callback("on_fit_epoch_end", digest)
    if forced:
        model.add_callback("on_train_start", half)
    model.train(
        data=sys.argv[2], project=sys.argv[3], epochs=2, imgsz=32, batch=8, device="cpu", workers=0, plots=False,
        verbose=False, patches=spec, val=True,
    )
    plan = model.trainer.save_dir / "patches.json"
    seen["plan"] = next(
        one for one in json.loads(plan.read_text())["patches"] if one["name"] == "exact-ema"
    ) if plan.exists() else None
    found.append(seen)
print()
print(json.dumps(found))
"""


@pytest.mark.parametrize("version", ["8.0.200", "8.4.60"])
def test_half_precision_leaves_the_average_as_it_is(version, python, release, digits, tmp_path):
    runs = [["none", False], ["none", False], ["none", True], ["exact-ema", True]]  # the first draws other numbers
    done = python("-c", TRAIN, json.dumps(runs), digits("detect", 8, 4), tmp_path, **release(version))
    _, plain, rounded, exact = last_json(done)
    assert all(one != other for one, other in zip(rounded["weights"][:2], plain["weights"]))
    assert exact["weights"][:2] == plain["weights"][:2]
    assert (exact["plan"]["status"], exact["plan"]["verified"]) == ("active", True)
    assert exact["plan"]["notes"] == ["the weights were rounded by 2 of 2 validations"]


def test_a_release_that_does_not_round_is_left_alone(python, release, digits, tmp_path):
    runs = [["exact-ema", True]]
    done = python("-c", TRAIN, json.dumps(runs), digits("detect", 8, 4), tmp_path, **release(NEWEST))
    (found,) = last_json(done)
    assert (found["plan"]["verified"], found["plan"]["notes"]) == (None, [])
