"""Train, and let something happen to one of the ranks at one moment. Run by torchrun, or alone.

    fault_rank.py JOB       (JOB: JSON: data, project, patches, epochs, fault, moment, rank)

Faults: killed (SIGKILL), raising, stopped (SIGSTOP, and SIGCONT after a while), interrupted (KeyboardInterrupt).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import torch

from yolo_patches import api

MOMENTS = {
    "construction": "on_pretrain_routine_start",
    "first step": "on_train_batch_start",
    "mid-epoch": "on_train_batch_end",
    "validation": "on_val_start",
    "save": "on_model_save",
    "end": "on_train_end",
}
STOP = 3


class HappenedError(Exception):
    """Somebody's own error, e.g. in a callback or a data set."""


def happen(fault):
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stopped":
        # Who is stopped cannot wake itself.
        subprocess.Popen(["sh", "-c", f"sleep {STOP}; kill -CONT {os.getpid()}"], start_new_session=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "interrupted":
        raise KeyboardInterrupt
    elif fault == "raising":
        raise HappenedError


def main(job):
    torch.set_num_threads(1)
    api.watch()
    from ultralytics import YOLO

    rank = int(os.environ.get("RANK", 0))
    model = YOLO("yolov8n.yaml")
    seen = []

    def callback(*_):
        seen.append(1)
        if rank == job["rank"] and len(seen) == (3 if job["moment"] == "mid-epoch" else 1):
            happen(job["fault"])

    if job["fault"]:
        model.add_callback(MOMENTS[job["moment"]], callback)
    model.train(
        data=job["data"], project=job["project"], name="run", patches=job["patches"], epochs=job["epochs"], imgsz=64,
        batch=8, device="cpu", plots=False, workers=0, exist_ok=True, verbose=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
