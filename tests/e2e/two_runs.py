"""One of two trainings that write into one run directory at once: `two_runs.py DATA PROJECT NAME OTHER BATCH`.

What upstream itself writes there under one name (caches, checkpoints) is left to one at a time. Of patches.json, each
is about to put its own in place when the other is, too.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

import torch

DATA, PROJECT, NAME, OTHER, BATCH = sys.argv[1:]
#: Writes at which the two wait for each other: at the start, and after the first epoch.
TOGETHER = 2


def meet(number):
    """Wait for the other one, but not for ever: it may have failed."""
    Path(PROJECT, f"{NAME}-{number}").touch()
    until = time.monotonic() + 60
    while not Path(PROJECT, f"{OTHER}-{number}").exists() and time.monotonic() < until:
        time.sleep(0.01)


def main():
    torch.set_num_threads(1)
    from ultralytics import YOLO

    replace, written = os.replace, []

    def replaced(source, target, *args, **kwargs):
        if str(target).endswith("patches.json"):
            written.append(1)
            if len(written) <= TOGETHER:
                meet(len(written))
        return replace(source, target, *args, **kwargs)

    os.replace = replaced
    alone = open(Path(PROJECT, "alone"), "w")  # noqa: SIM115 - held until this process ends
    fcntl.flock(alone, fcntl.LOCK_EX)
    model = YOLO("yolov8n.yaml")
    model.add_callback("on_pretrain_routine_end", lambda _: fcntl.flock(alone, fcntl.LOCK_UN))
    model.add_callback("on_train_epoch_end", lambda _: fcntl.flock(alone, fcntl.LOCK_EX))
    model.train(
        data=DATA, project=PROJECT, name="run", exist_ok=True, patches="all", epochs=1, imgsz=64, batch=int(BATCH),
        device="cpu", plots=False, workers=0, verbose=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
