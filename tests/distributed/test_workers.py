"""The hook in the worker processes that a launcher starts."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.conftest import NEWEST, OLDEST, entry, last_json


def test_active_in_children_of_the_launcher(python, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(
        "import json, os\nfrom pathlib import Path\nimport ultralytics.engine.trainer as module\nimport yolo_patches\n"
        "seen = {**yolo_patches.status(), 'wrapped': hasattr(vars(module.BaseTrainer)['__init__'], '__wrapped__')}\n"
        "Path(f\"rank{os.environ['RANK']}.json\").write_text(json.dumps(seen))\n"
    )
    python("-m", "torch.distributed.run", "--nproc-per-node", "2", script, YOLO_PATCHES="val-batch:batch=3")
    for rank in range(2):
        seen = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert seen["active"] == ["ultralytics"]
        assert seen["selection"] == "val-batch:batch=3"
        assert seen["wrapped"] is True


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_generated_worker_file_activates_where_the_hook_does_not_run(version, release, python, digits, tmp_path):
    """Upstream writes a file for its workers; run it in a process that has read no start-up file."""
    make = """
import json, sys
import yolo_patches
yolo_patches.apply()
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.dist import generate_ddp_file
trainer = DetectionTrainer(overrides=dict(model="yolov8n.yaml", data=sys.argv[1], project=sys.argv[2], device="cpu"))
trainer.hub_session = None
print()
print(json.dumps(generate_ddp_file(trainer)))
"""
    file = last_json(python("-c", make, digits(), tmp_path / "runs", hook=False, **release(version)))
    read = f"""
import json, runpy
runpy.run_path({file!r}, run_name="worker")
from ultralytics.engine.trainer import BaseTrainer
print(json.dumps(hasattr(vars(BaseTrainer)["__init__"], "__wrapped__")))
"""
    assert last_json(python("-c", read, hook=False, **release(version))) is True


def test_a_worker_takes_over_what_was_given_and_decided(release, python, digits, tmp_path):
    """Upstream hands its workers every argument as if the user had given it; the plan tells what the user gave."""
    make = """
import json, sys
from yolo_patches.activation import activation
from yolo_patches.handover import Handover
from yolo_patches.facts import Given
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.dist import generate_ddp_file
given = json.loads(sys.argv[1])
trainer = DetectionTrainer(overrides={**given, "patches": "augment:recipe=yolov10x"})
trainer.hub_session = None
handed = Handover.of(activation.last_plan, Given(given)).text()
print()
print(json.dumps([generate_ddp_file(trainer), handed]))
"""
    given = {"model": "yolov8n.yaml", "data": digits(), "epochs": 1, "mixup": 0.7, "device": "cpu", "imgsz": 32}
    given |= {"project": str(tmp_path), "name": "run", "exist_ok": True, "plots": False, "workers": 0, "batch": 8}
    where = release(NEWEST)
    file, handed = last_json(python("-c", make, json.dumps(given), **where))
    python(file, YOLO_PATCHES="augment:recipe=yolov10x", YOLO_PATCHES_PLAN=handed, **where)
    plan = json.loads((tmp_path / "run" / "patches.json").read_text())
    item = entry(plan, "augment")
    assert (item["status"], item["verified"]) == ("active", True)
    assert {change["what"]: change["patched"] for change in item["changes"]} == {"scale": 0.9, "copy_paste": 0.3}
    assert "mixup=0.7 is yours; published is 0.15" in item["notes"]
    arguments = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())
    assert [arguments[name] for name in ("scale", "mixup", "copy_paste")] == [0.9, 0.7, 0.3]
