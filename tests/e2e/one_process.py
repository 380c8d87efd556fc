"""What happens to trainings of one process, one by one: `one_process.py DATA PROJECT CASE ...` prints JSON by case.

Every case trains for real. What is injected is at the edge: the file system, the user's own classes, the allocator.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import torch

DATA, PROJECT = sys.argv[1:3]
SPEC = "all,linear-lr:base_batch=4"


def train(name, patches=SPEC, model="yolov8n.yaml", callbacks=(), **more):
    from ultralytics import YOLO

    yolo, seen = YOLO(model) if isinstance(model, str) else model, {"ended": False}

    def on_train_end(trainer):
        seen["ended"] = True
        seen["val"] = trainer.test_loader.batch_size
        seen["groups"] = [[g["initial_lr"], g.get("weight_decay")] for g in trainer.optimizer.param_groups]
        seen["batch"] = trainer.batch_size

    yolo.add_callback("on_train_end", on_train_end)
    for event, callback in callbacks:
        yolo.add_callback(event, callback)
    common = {
        "data": DATA, "project": PROJECT, "name": name, "epochs": 1, "imgsz": 64, "batch": 8, "nbs": 8,
        "optimizer": "SGD", "warmup_epochs": 0.0, "device": "cpu", "plots": False, "verbose": False, "workers": 0,
        "patches": patches,
    }  # fmt: skip
    try:
        yolo.train(**{**common, **more})
        seen["error"] = None
    except (Exception, KeyboardInterrupt) as error:
        seen["error"] = type(error).__name__
        traceback.print_exc()
    file = Path(PROJECT, name, "patches.json")
    seen["plan"] = json.loads(file.read_text()) if file.is_file() else None
    seen["best"] = Path(PROJECT, name, "weights", "best.pt").is_file()
    return seen


def disk_full():
    """At every write of patches.json; upstream's own files have room."""
    write = os.replace

    def full(source, target, *args, **kwargs):
        if str(target).endswith("patches.json"):
            raise OSError(28, "No space left on device")
        return write(source, target, *args, **kwargs)

    os.replace = full
    try:
        return train("disk_full")
    finally:
        os.replace = write


def own_loader():
    """A user's trainer that builds its validation loader itself."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Mine(DetectionTrainer):
        def get_validator(self):
            self.test_loader = DetectionTrainer.get_dataloader(
                self, self.data["val"], batch_size=5, rank=-1, mode="val"
            )
            return super().get_validator()

    return train("own_loader", trainer=Mine)


def own_optimizer(patches=SPEC, name="own_optimizer"):
    """A user's trainer whose optimizer has no weight decay."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Mine(DetectionTrainer):
        def build_optimizer(self, model, *args, **kwargs):
            return torch.optim.Rprop(model.parameters(), lr=0.01)

        def _setup_scheduler(self):
            super()._setup_scheduler()

    return train(name, patches, trainer=Mine)


def own_optimizer_at_base():
    return own_optimizer("all,linear-lr:base_batch=8", "own_optimizer_at_base")


def own_loss():
    """A user's model with a loss of its own, and none that upstream could make."""
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils.loss import v8DetectionLoss

    def refuse(self):
        raise ValueError("no criterion")

    def loss(self, batch, preds=None):
        if getattr(self, "criterion", None) is None:
            self.criterion = v8DetectionLoss(self)
        return self.criterion(self.forward(batch["img"]) if preds is None else preds, batch)

    kept = DetectionModel.init_criterion, DetectionModel.loss
    DetectionModel.init_criterion, DetectionModel.loss = refuse, loss
    try:
        return train("own_loss", model=YOLO("yolov8n.yaml"), val=False)
    finally:
        DetectionModel.init_criterion, DetectionModel.loss = kept


def interrupted():
    """Ctrl-C in the middle of an epoch."""
    seen = []

    def callback(trainer):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt

    result = train("interrupted", callbacks=[("on_train_batch_start", callback)], epochs=2)
    from yolo_patches.activation import activation
    from yolo_patches.nn import common_step

    return {**result, "current": activation.current is None, "step": common_step.inside()}


def out_of_memory():
    """In the second step of the first epoch: upstream halves the batch and goes on, where oom-guard is not there."""
    from ultralytics.nn.tasks import DetectionModel

    loss, calls = DetectionModel.loss, []

    def once(self, *args, **kwargs):
        if torch.is_grad_enabled():
            calls.append(1)
        if len(calls) == 2 and torch.is_grad_enabled():
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(self, *args, **kwargs)

    DetectionModel.loss = once
    try:
        return train("out_of_memory", SPEC + ",-oom-guard", batch=8, nbs=4)
    finally:
        DetectionModel.loss = loss


def not_a_number():
    """A loss that is not finite at the end of the second epoch: upstream goes back to last.pt."""
    done = []

    def poison(trainer):
        if trainer.epoch == 1 and not done:
            done.append(1)
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter.mul_(float("nan"))

    return train("not_a_number", callbacks=[("on_train_epoch_start", poison)], epochs=3)


def folder_gone(patches=SPEC, name="folder_gone"):
    """The run directory is removed in the middle of the training."""

    def remove(trainer):
        shutil.rmtree(trainer.save_dir, ignore_errors=True)

    return train(name, patches, callbacks=[("on_train_epoch_start", remove)])


def folder_gone_upstream():
    return folder_gone("none", "folder_gone_upstream")


def broken_plan():
    """A resumed run whose patches.json is no plan."""

    def stop(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    train("broken_plan", callbacks=[("on_train_epoch_start", stop)], epochs=2)
    Path(PROJECT, "broken_plan", "patches.json").write_text('{"schema": 1, "patch')
    from ultralytics import YOLO

    seen = {}
    yolo = YOLO(Path(PROJECT, "broken_plan", "weights", "last.pt"))
    yolo.add_callback("on_train_end", lambda trainer: seen.update(val=trainer.test_loader.batch_size))
    yolo.train(resume=True)
    return {**seen, "plan": json.loads(Path(PROJECT, "broken_plan", "patches.json").read_text())}


def resume_into_scale_1():
    """A run whose learning rate was doubled, resumed at the base batch: the rate that the optimizer steps with."""

    def stop(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    first = train("resumed", "linear-lr:base_batch=4", callbacks=[("on_train_epoch_start", stop)], epochs=2, lrf=1.0)
    step, rates = torch.optim.SGD.step, []

    def stepped(self, *args, **kwargs):
        rates.append([self.param_groups[0]["lr"], max(g["weight_decay"] for g in self.param_groups)])
        return step(self, *args, **kwargs)

    torch.optim.SGD.step = stepped
    from ultralytics import YOLO

    try:
        YOLO(Path(PROJECT, "resumed", "weights", "last.pt")).train(resume=True, patches="linear-lr:base_batch=8")
    finally:
        torch.optim.SGD.step = step
    return {
        "first": first["error"],
        "rates": rates,
        "plan": json.loads(Path(PROJECT, "resumed/patches.json").read_text()),
    }


def five_trainings():
    """What five trainings leave behind in a process, and what the last three of them leave in its memory."""
    found = {}
    train("warm", "none")
    train("drawn", "monitor")  # matplotlib keeps the fonts of a process's first chart open
    for spec in ("none", SPEC):
        before = left()
        for number in range(5):
            train(f"five-{spec[:4]}-{number}", spec)
            if number == 1:
                second = alive()
        last, after = alive(), left()
        found[spec[:4]] = {
            "left": {key: after[key] - before[key] for key in before},
            "grown": {key: last[key] - second[key] for key in last},
        }
    return found


def left():
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "folders": len(os.listdir(tempfile.gettempdir())),
    }


def alive():
    """Count the objects that somebody still holds, and what the tensors among them take."""
    from yolo_patches.lifecycle import Lifecycle
    from yolo_patches.patch import Patch

    gc.collect()
    kinds = {"lifecycles": Lifecycle, "patches": Patch, "modules": torch.nn.Module, "tensors": torch.Tensor}
    found = {
        name: [one for one in gc.get_objects() if issubclass(type(one), kind)]  # a proxy may say anything of its class
        for name, kind in kinds.items()
    }
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found["tensors"]}
    return {**{name: len(objects) for name, objects in found.items()}, "bytes": sum(storages.values())}


def main():
    torch.set_num_threads(1)
    tempfile.tempdir = tempfile.mkdtemp()
    results = {}
    for name in sys.argv[3:]:
        results[name] = globals()[name]()
        print(f"--- {name} is over", file=sys.stderr)
    print()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
