"""The hook in the worker processes that a launcher starts."""

from __future__ import annotations

import json

import pytest

from tests.conftest import NEWEST, OLDEST, last_json


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
