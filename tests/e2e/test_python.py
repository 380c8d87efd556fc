"""From Python: `patches=` in every form, apply / revert / applied / status, whatever the order of imports."""

from __future__ import annotations

import pytest

from tests.conftest import entry, last_json

PRELUDE = """
import json, sys
data, project = sys.argv[1:3]
def train(**more):
    from ultralytics import YOLO
    model, seen = YOLO("yolov8n.yaml"), []
    model.add_callback("on_val_start", lambda validator: seen.append(validator.dataloader.batch_size))
    common = dict(data=data, project=project, epochs=1, imgsz=64, batch=4, device="cpu", plots=False, verbose=False,
        workers=0)
    model.train(**common, **more)
    return seen[0]
def wrapped():
    from ultralytics.engine.trainer import BaseTrainer
    return hasattr(vars(BaseTrainer)["__init__"], "__wrapped__")
out = []
"""


@pytest.fixture
def script(python, digits, tmp_path):
    def run(code, **how):
        return last_json(python("-c", f"{PRELUDE}{code}\nprint()\nprint(json.dumps(out))", digits(), tmp_path, **how))

    return run


def test_forms_of_the_argument(script):
    code = """
b3 = "val-batch:batch=3"
for spec in (b3, ["default", b3], {"val-batch": {"batch": 3}}, "none", None, False, True):
    out.append(train(patches=spec))
"""
    assert script(code) == [3, 3, 3, 8, 8, 8, 4]


def test_bad_argument_is_our_error(script):
    code = """
import yolo_patches
for spec in ("nope", ["all", 3], {"val-batch": {"size": 3}}, 7):
    try:
        train(patches=spec)
    except yolo_patches.PatchesError as error:
        out.append(str(error))
from pathlib import Path
out.append(sorted(path.name for path in Path(project).iterdir()))
"""
    *messages, made = script(code)
    assert len(messages) == 4
    assert all(message.startswith("patches: ") for message in messages)
    assert made == []


def test_direct_trainer_and_configuration_objects(script):
    """`patches` in a trainer's overrides, configuration dict or file: consumed, never stored, the dict not edited."""
    code = """
from pathlib import Path
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG_DICT
common = dict(model="yolov8n.yaml", data=data, project=project, epochs=1, imgsz=64, batch=4, device="cpu", plots=False)
overrides = {**common, "patches": "val-batch:batch=3"}
trainer = DetectionTrainer(overrides=overrides)
trainer.train()
out += [trainer.test_loader.batch_size, overrides["patches"], hasattr(trainer.args, "patches")]
trainer = DetectionTrainer(cfg={**DEFAULT_CFG_DICT, "patches": "val-batch:batch=2"}, overrides=common)
trainer.train()
out += [trainer.test_loader.batch_size, hasattr(trainer.args, "patches")]
file = Path(project, "config.yaml")
file.write_text("patches: val-batch:batch=5\\n")
out.append(train(cfg=str(file)))
out.append(train(cfg=str(file), patches="val-batch:batch=3"))
"""
    assert script(code) == [3, "val-batch:batch=3", False, 2, False, 5, 3]


def test_users_own_trainer_class(script):
    code = """
from ultralytics.models.yolo.detect import DetectionTrainer
calls = []
class Mine(DetectionTrainer):
    def get_dataloader(self, dataset_path, batch_size=16, rank=0, mode="train"):
        calls.append((mode, batch_size))
        return super().get_dataloader(dataset_path, batch_size, rank, mode)
out += [train(trainer=Mine), calls]
"""
    assert script(code) == [4, [["train", 4], ["val", 4]]]


ORDERS = {
    "import, then patch": ("import ultralytics.engine.trainer; import yolo_patches; yolo_patches.apply('all')", False),
    "patch, then import": ("import yolo_patches; yolo_patches.apply('all')", False),
    "patch twice": ("import yolo_patches; yolo_patches.apply('all'); yolo_patches.apply('all')", False),
    "hook, then patch": ("import yolo_patches; yolo_patches.apply('all')", True),
    "hook, import, patch": ("import ultralytics.engine.trainer, yolo_patches; yolo_patches.apply('all')", True),
    "revert, then patch": ("import yolo_patches; yolo_patches.revert(); yolo_patches.apply('all')", True),
    "patch, revert, patch": (
        "import yolo_patches as y; y.apply('all'); import ultralytics; y.revert(); y.apply()",
        False,
    ),
}


#: Orders that are trained in; of the others it is enough that the wrapper is there once, and gone after revert.
TRAINED = {"import, then patch", "hook, then patch"}


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_import_and_patch(script, order):
    code, hook = ORDERS[order]
    trained = "train()" if order in TRAINED else "None"
    after = f"""
from ultralytics.engine.trainer import BaseTrainer
out += [wrapped(), {trained}]
original = vars(BaseTrainer)["__init__"].__wrapped__
out.append(hasattr(original, "__wrapped__"))  # wrapped once, not twice
yolo_patches = __import__("yolo_patches")
yolo_patches.revert()
out += [vars(BaseTrainer)["__init__"] is original, {trained}]
yolo_patches.revert()
out.append(vars(BaseTrainer)["__init__"] is original)
"""
    expected = [4, 8] if order in TRAINED else [None, None]
    assert script(code + after, hook=hook) == [True, expected[0], False, True, expected[1], True]


def test_reverted_before_the_import_stays_upstream(script):
    assert script("import yolo_patches; yolo_patches.revert(); out += [wrapped(), train()]") == [False, 8]


@pytest.mark.parametrize("hook", [True, False])
def test_applied_for_a_block(script, hook):
    code = """
import yolo_patches
with yolo_patches.applied("val-batch:batch=3"):
    out.append(train())
    with yolo_patches.applied("none"):
        out.append(train())
    out.append(yolo_patches.status()["selection"])
out += [train(), yolo_patches.status()["selection"]]
"""
    assert script(code, hook=hook) == [3, 8, "val-batch:batch=3", 4 if hook else 8, "default"]


def test_status(script):
    code = """
import yolo_patches
import ultralytics
out.append(yolo_patches.status())
train(patches="val-batch")
out.append(yolo_patches.status())
try:
    yolo_patches.apply("nope")
except ValueError:
    out.append(yolo_patches.status()["selection"])
"""
    before, after, unchanged = script(code, YOLO_PATCHES="all")
    assert (before["active"], before["selection"], before["run"]) == (["ultralytics"], "all", None)
    assert "val-batch" in before["patches"]
    assert after["run"]["selection"] == "val-batch"
    assert entry(after["run"])["verified"] is True
    assert unchanged == "all"


def test_environment_is_put_back(script):
    code = """
import os
for before in (None, "none"):
    os.environ.pop("YOLO_PATCHES", None)
    os.environ.update({"YOLO_PATCHES": before} if before else {})
    train(patches="val-batch")
    out.append(os.environ.get("YOLO_PATCHES"))
out.append(os.environ.get("YOLO_PATCHES_PLAN"))
"""
    assert script(code) == [None, "none", None]


def test_apply_reaches_the_tuners_children(script):
    """They are `yolo` processes of their own: their plan says what apply() asked for, not `default`."""
    code = """
from pathlib import Path
import yolo_patches
yolo_patches.apply("val-batch:batch=3")
from ultralytics import YOLO
YOLO("yolov8n.yaml").tune(data=data, epochs=1, iterations=1, imgsz=64, batch=4, device="cpu", plots=False, val=False,
    project=project)
out += [json.loads(file.read_text())["selection"] for file in Path(project).rglob("patches.json")]
"""
    assert script(code) == ["val-batch:batch=3"]
