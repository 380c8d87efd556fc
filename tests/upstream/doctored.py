"""Train copies of a release in which something has been changed, each in a forked child; print what came of it.

    doctored.py RELEASE DATA FOLDER JOBS       (JOBS: JSON, name -> {"edits": [[file pattern, from, to], ...],
                                                                  "specs": [...], "train": {...}})

What a training really does is measured here, outside of the package: the validation batch, and at each step of the
optimizer the learning rate (of all groups, too), the weight decay and the gradient's norm.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import traceback
from pathlib import Path

import cv2  # noqa: F401 - imported before forking, as what follows: each child starts in a tenth of the time
import matplotlib.pyplot  # noqa: F401
import torch
import torchvision  # noqa: F401

HASHED = {}


def doctor(release, folder, edits):
    """Copy a release and change its source; every edit must change something."""
    shutil.copytree(Path(release, "ultralytics"), folder / "ultralytics")  # with what was compiled: times are kept
    for pattern, old, new in edits:
        changed = 0
        for file in (folder / "ultralytics").glob(pattern):
            text = file.read_text(encoding="utf-8")
            edited = re.sub(old, new, text)
            if edited != text:
                changed += 1
                file.write_text(edited, encoding="utf-8")
        assert changed, (pattern, old)


def digest(module):
    import hashlib

    state = hashlib.sha256()
    for tensor in module.state_dict().values():
        state.update(tensor.detach().contiguous().numpy().tobytes())
    return state.hexdigest()


def train(spec, data, project, more):
    """Train with a specification and return what was seen from outside."""
    from ultralytics import YOLO

    seen = {"val": None, "steps": [], "rates": [], "error": None, "weights": None, "plan": None}
    model = YOLO(more.pop("model", "yolov8n.yaml"))

    def on_val_start(validator):
        seen["val"] = validator.dataloader.batch_size

    def on_train_end(trainer):
        seen["weights"] = digest(trainer.model)

    model.add_callback("on_val_start", on_val_start)
    model.add_callback("on_train_end", on_train_end)
    step = torch.optim.SGD.step

    def stepped(self, *args, **kwargs):
        groups = self.param_groups
        grads = [p.grad.norm() for group in groups for p in group["params"] if p.grad is not None]
        seen["steps"].append(
            [groups[0]["lr"], max(g["weight_decay"] for g in groups), float(torch.stack(grads).norm())]
        )
        seen["rates"].append([group["lr"] for group in groups])
        return step(self, *args, **kwargs)

    torch.optim.SGD.step = stepped
    common = {
        "data": data, "imgsz": 64, "epochs": 1, "batch": 8, "nbs": 8, "optimizer": "SGD", "warmup_epochs": 0.0,
        "device": "cpu", "plots": False, "verbose": False, "workers": 0, "project": project,
        "name": re.sub(r"\W", "_", spec or "defaults"),
    }  # fmt: skip
    if "nbs_renamed" in more:
        del common["nbs"]
    try:
        model.train(**{**common, **more}, **({} if spec is None else {"patches": spec}))
    except BaseException as error:
        seen["error"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    finally:
        torch.optim.SGD.step = step
    plan = next(Path(project).glob(f"{common['name']}/patches.json"), None)
    seen["plan"] = plan and json.loads(plan.read_text())
    return seen


def child(release, data, folder, job, out):
    doctor(release, folder, job.get("edits", []))
    sys.path.insert(0, str(folder))
    log = open(folder / "log", "w")  # noqa: SIM115 - upstream's loggers hold it until this child ends
    sys.stdout = sys.stderr = log
    results = {}
    try:
        exec(job.get("first", ""), {})
        for spec in job["specs"]:
            results[str(spec)] = train(spec, data, str(folder / "runs"), dict(job.get("train", {})))
    except BaseException:
        results["import"] = traceback.format_exc()
    sys.stdout.flush()
    results["log"] = (folder / "log").read_text()
    out.write_text(json.dumps(results))


def main(release, data, folder, jobs):
    torch.set_num_threads(1)
    results = {}
    for name, job in json.loads(jobs).items():
        home = Path(folder, re.sub(r"\W", "_", name))
        home.mkdir()
        pid = os.fork()
        if pid == 0:
            try:
                child(release, data, home, job, home / "out.json")
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        results[name] = json.loads((home / "out.json").read_text())
        shutil.rmtree(home)
    print()
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
