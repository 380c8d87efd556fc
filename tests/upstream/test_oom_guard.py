"""Trainings whose allocator fails, against the same trainings without failures."""

import json
from pathlib import Path

import pytest

from tests.conftest import NEWEST, OLDEST, last_json

RUNS = Path(__file__).with_name("oom_runs.py")
SHORT = {"epochs": 1, "batch": 5, "nbs": 10}
#: One failure in each place, in one run.
POINTS = [
    ["check", 1],
    ["prepare", 0.4],
    ["forward", 0.95],
    ["backward", 0.2],
    ["step", 0.5],
    ["ema", 0.5],
    ["validation", 0.4],
    ["save", 0.5],
]


def runs(python, release, digits, tmp_path, version, *jobs):
    done = python(RUNS, digits(train=10, val=6), tmp_path, json.dumps({"runs": jobs}), **release(version))
    return done, last_json(done)


def run(patches, *points, **more):
    return {"arguments": {**SHORT, "patches": patches}, "points": points, **more}


@pytest.mark.parametrize("version", [OLDEST, "8.3.253", NEWEST])
def test_a_training_ends_as_without_failures(python, release, digits, tmp_path, version):
    jobs = [
        run("compat"),
        run("compat,oom-guard", *POINTS),
        run("compat,oom-guard:micro=3", limit=2),  # parts of 2 and 3 images, then of 2 and 1
    ]
    if version == NEWEST:
        jobs.append(run("compat,oom-guard"))
    done, (reference, failing, limited, *quiet) = runs(python, release, digits, tmp_path, version, *jobs)
    assert "died" not in failing, failing
    # The newest release's EMA asks for no memory.
    everywhere = {where for where, _ in POINTS} - ({"ema"} if version == NEWEST else set())
    assert {where for where, _ in failing["fired"]} == everywhere
    assert limited["fired"]
    for result in (failing, limited, *quiet):
        assert "died" not in result, result
        assert max(result[name] for name in ("end", "ema", "optimizer")) < 1e-10
        assert (result["batch"], result["random"], result["names"]) == (5, reference["random"], [])
        assert (result["notes"]["status"], result["notes"]["verified"]) == ("active", True)
    for result in quiet:
        assert result["end"] == result["ema"] == result["optimizer"] == 0
        assert not any("parts of at most" in note for note in result["notes"]["notes"])
    assert any("parts of at most" in note for note in failing["notes"]["notes"])
    assert sum("parts of at most 2" in note for note in limited["notes"]["notes"]) == 1
    assert "asked for 1.50 GiB" in done.stdout + done.stderr


def test_one_image_that_does_not_fit_says_what_to_change(python, release, digits, tmp_path):
    job = run("oom-guard", limit=0.5)  # a release without a retry of its own
    done, (result,) = runs(python, release, digits, tmp_path, "8.3.253", job)
    assert result["died"].startswith("OutOfMemoryError")
    assert "a single image of 64 x 64 pixels does not fit" in done.stdout + done.stderr


WORKERS = """
import json, os, signal, sys
from pathlib import Path
import torch
from ultralytics import YOLO
from ultralytics.data.base import BaseDataset

data, project = sys.argv[1:3]
flag, getitem = Path(project, "flag"), BaseDataset.__getitem__

def fetched(dataset, index):
    if dataset.augment and flag.exists():
        if flag.read_text() == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError
    return getitem(dataset, index)

BaseDataset.__getitem__ = fetched
seen = {}
for fault in ("raising", "killed"):
    flag.unlink(missing_ok=True)
    model = YOLO("yolov8n.yaml")
    model.add_callback("on_pretrain_routine_start", lambda trainer: setattr(trainer.args, "workers", 1))  # 0 on a CPU
    model.add_callback("on_train_epoch_start", lambda trainer: trainer.epoch == 1 and flag.write_text(fault))
    try:
        model.train(data=data, project=project, name=fault, epochs=6, imgsz=32, batch=4, device="cpu",
                    plots=False, val=False, patches="oom-guard")
    except Exception as error:
        checkpoint = torch.load(Path(project, fault, "weights/last.pt"), weights_only=False)
        seen[fault] = [type(error).__name__, checkpoint["epoch"]]
print()
print(json.dumps(seen))
"""


def test_a_worker_without_memory_says_what_to_change(python, digits, tmp_path):
    (tmp_path / "runs").mkdir()
    done = python("-c", WORKERS, digits(), tmp_path / "runs")
    seen = last_json(done)
    assert {fault: kind for fault, (kind, _) in seen.items()} == {"raising": "MemoryError", "killed": "RuntimeError"}
    assert all(epoch >= 0 for _, epoch in seen.values())
    assert (done.stdout + done.stderr).count("the host has no memory left for the images") == 2
