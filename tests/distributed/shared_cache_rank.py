"""One rank of a training that keeps its images in memory; it writes what it has seen into a file of its own.

Where the job has a fault, [what, rank], that rank raises or is killed "while it decodes", raises "in a step", or trains
on and on until it is "killed from outside".
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

job = json.loads(sys.argv[1])
out, limits, (fault, faulty) = Path(job.pop("out")), job.pop("limits", {}), job.pop("fault", ["", -1])
rank = int(os.environ["RANK"])
if str(rank) in limits:  # the system's own refusal to write more
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[str(rank)], resource.RLIM_INFINITY))

import torch  # noqa: E402
from ultralytics import YOLO  # noqa: E402
from ultralytics.data.base import BaseDataset  # noqa: E402

found = {}
loads, load_image = [], BaseDataset.load_image


def loaded(dataset, i, *args, **kwargs):
    loads.append(i)
    if rank == faulty and "decodes" in fault and len(loads) > 60:  # 24 tell how many bytes there will be
        (out / "fault").touch()
        if fault.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("a disk is gone")
    return load_image(dataset, i, *args, **kwargs)


def step(trainer):
    (out / f"{rank}.step").write_text(json.dumps(found))
    if rank == faulty and fault == "raises in a step":
        raise RuntimeError("in the middle")
    if fault == "killed from outside":
        time.sleep(300)


def look(trainer):
    for name, loader in (("train", trainer.train_loader), ("val", trainer.test_loader)):
        if loader is None:
            continue
        data = loader.dataset
        images = [data.ims[i] for i in range(data.ni)]
        handle = getattr(data.ims, "handle", None)
        found[name] = {
            "pixels": hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest(),
            "sizes": [list(map(list, data.im_hw0)), list(map(list, data.im_hw))],
            "memory": handle and [handle.device, handle.inode],
            "spare": sorted(set(vars(data)) & {"_yolo_patches_key", "_ImageCache"}),
        }
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def end(trainer):
    weights = b"".join(value.cpu().numpy().tobytes() for value in trainer.model.state_dict().values())
    found["weights"] = hashlib.sha256(weights).hexdigest()


model = YOLO("yolov8n.yaml")
model.add_callback("on_train_start", look)
model.add_callback("on_train_epoch_end", end)
if fault:
    BaseDataset.load_image = loaded
    model.add_callback("on_train_batch_end", step)
torch.set_num_threads(1)
model.train(**job)
(out / f"{rank}.json").write_text(json.dumps(found))
