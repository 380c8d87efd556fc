"""auto-batch: trainings are tried in processes of their own, and the one that fits is trained. On a CPU, by memory=."""

from __future__ import annotations

import json
import re

import pytest
import torch

from tests.conftest import NEWEST, entry
from yolo_patches.upstreams.ultralytics.trials import OUT_OF_MEMORY


def test_a_batch_is_found_by_trials_and_trained(yolo, release, digits, tmp_path):
    """The process of 8 images takes 0.9 to 1.2 GiB, by its machine's libraries, and each further image 0.02."""
    data = digits("detect", 64, 8)
    words = [
        "train", "model=yolov8n.yaml", f"data={data}", "imgsz=160", "batch=-1", "epochs=1", "device=cpu",
        "plots=False", "val=False", "workers=0", f"project={tmp_path}", "name=run",
        "patches=auto-batch:memory=1.4,accumulate:effective=32",
    ]  # fmt: skip
    done = yolo(*words, **release(NEWEST))
    plan = json.loads((tmp_path / "run" / "patches.json").read_text())
    mine = entry(plan, "auto-batch")
    assert (mine["status"], mine["verified"]) == ("active", True), mine
    figures = {int(size): float(taken) for size, taken in re.findall(r"(\d+): (\d\.\d+)", mine["notes"][0])}
    tried = list(figures)
    assert tried[0] == 8 and done.stdout.count("for some steps and a validation") == len(tried) >= 3, mine["notes"]
    batch = mine["changes"][0]["patched"]
    assert batch in (8, 16) and plan["global_batch"] == batch  # divisors of nbs
    assert f"batch: {batch}\n" in (tmp_path / "run" / "args.yaml").read_text()
    assert 0.8 < figures[8] < figures[16] < 1.6, mine["notes"]
    assert figures[batch] <= 1.4, "what is trained fits"
    assert entry(plan, "accumulate")["reason"] == f"effective batch 32 = {32 // batch} batches of {batch}"
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "trials leave nothing behind"


def test_a_trial_that_fails_for_another_reason_is_no_lack_of_memory(python, release, tmp_path):
    code = """
from yolo_patches.errors import PatchesError
from yolo_patches.facts import Batch, Facts
from yolo_patches.upstreams.ultralytics.trials import Trials
known = Facts("ultralytics", "8", "detect", Batch(-1))
trials = Trials({"model": "yolov8n.yaml", "data": "nowhere.yaml"}, {"auto-batch": {}}, known)
try:
    trials({"batch": 8, "device": "cpu"}, ("auto-batch",))
except PatchesError as error:
    print(error)
"""
    assert "a trial with batch=8, device=cpu failed: " in python("-c", code, **release(NEWEST)).stdout


def test_torchs_own_words_for_a_lack_of_memory_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert any(words in str(caught.value) for words in OUT_OF_MEMORY)
