"""Train with loader workers, and print as JSON how what the model saw differs from the first training.

finished_trainings.py [arguments, ...] [FOLDER of what ranks print]. A callback reads a batch of the training loader in
each epoch. Arguments beside upstream's:

    processes   loader workers, of which upstream has none on a CPU
    noted       a user's transform stands after the colours, which looks at final pixels
    own         a trainer of the user's own prepares batches: "whole" (without upstream's), "late" (set by a callback)
    broken      "raises" or "swaps": so the device does it, at once or from the third batch on ("late")
    undone      the patch is dropped after the first epoch
"""

import contextlib
import json
import os
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

#: What decides which training another is compared with.
KEYS = ("noted", "processes", "multi_scale")
LABELS = ("cls", "bboxes", "batch_idx", "masks", "keypoints", "im_file", "ori_shape")


def labels(batch):
    """Return a checksum of a batch's labels."""
    values = [batch[name] for name in LABELS if name in batch]
    return zlib.crc32(b"".join(np.asarray(one).tobytes() for one in values if isinstance(one, torch.Tensor))), [
        repr(one) for one in values if not isinstance(one, torch.Tensor)
    ]


def pixels(images):
    """Return images as bytes."""
    return (images.detach().float() * (1 if images.dtype == torch.uint8 else 255)).round().to(torch.uint8).numpy()


class Noted:
    """A user's transform, which looks at an image's final pixels."""

    def __call__(self, sample):
        sample["points"] = int(zlib.crc32(np.ascontiguousarray(sample["img"]).tobytes()) % 2 == 0)
        sample["img"] = 255 - sample["img"]
        return sample


def whole(trainer, batch):
    """Prepare a batch as a user does who knows what upstream does."""
    batch = {key: value.to(trainer.device) if hasattr(value, "to") else value for key, value in batch.items()}
    batch["img"] = batch["img"].float() / 255
    return batch


def train(arguments, seen):
    """Make one training; note what its model and its callbacks see, and return its plan."""
    from ultralytics import YOLO
    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.models.yolo.detect import DetectionTrainer

    processes, noted, own = arguments.pop("processes", 2), arguments.pop("noted", False), arguments.pop("own", "")
    broken, undone = arguments.pop("broken", ""), arguments.pop("undone", False)

    def begun(trainer, begin=BaseTrainer.train):  # a callback before there are loaders is the first rank's alone
        trainer.args.workers = processes
        return begin(trainer)

    def on_train_start(trainer):
        trainer.model.register_forward_pre_hook(look)
        if own == "late":
            trainer.preprocess_batch = whole.__get__(trainer)
        if noted:
            trainer.train_loader.dataset.transforms.transforms.insert(-3, Noted())
            trainer.train_loader.reset()

    def look(module, args):
        if module.training and isinstance(args[0], dict):
            seen.append((labels(args[0]), pixels(args[0]["img"])))

    def on_train_epoch_start(trainer):
        batch = next(iter(trainer.train_loader))
        batch = (batch, dict(batch), dict(batch.items()))[trainer.epoch % 3]
        seen.append((labels(batch), pixels(batch["img"])))
        sample = trainer.train_loader.dataset[0]  # by whoever reads the data set: no worker makes it
        assert set(map(type, vars(sample["img"]))) == set(), vars(sample["img"])
        if undone and trainer.epoch == 1:
            assert live[-1].undo()

    live = []
    if "fast-load" in str(arguments.get("patches")):
        from yolo_patches.loading import last_pixels
        from yolo_patches.patches.fast_load import FastLoad

        FastLoad.__init__ = lambda self, init=FastLoad.__init__, **given: (live.append(self), init(self, **given))[1]
        if broken:
            from yolo_patches.loading.finishing import Finishing

            calls, together = [], last_pixels.together

            def wrong(images, left):
                calls.append(len(left))
                if "late" in broken and len(calls) < 7:  # four samples before the first loader, two batches compared
                    return together(images, left)
                return 1 / 0 if "raises" in broken else together(images, left).flip(-1)

            Finishing.__init__.__defaults__ = (wrong,)
    model = YOLO("yolov8n.yaml")
    for callback in (on_train_start, on_train_epoch_start):
        model.add_callback(callback.__name__, callback)
    common = {"device": "cpu", "imgsz": 64, "batch": 4, "epochs": 3, "close_mosaic": 1, "plots": False, "val": False}
    if own == "whole":
        arguments["trainer"] = type("Own", (DetectionTrainer,), {"preprocess_batch": whole})
    before, BaseTrainer.train = BaseTrainer.train, begun
    try:
        model.train(**{**common, **arguments})
    finally:
        BaseTrainer.train = before
    if live and broken:
        Finishing.__init__.__defaults__ = (together,)
    plan = Path(model.trainer.save_dir, "patches.json")
    entries = json.loads(plan.read_text())["patches"] if plan.exists() else []
    left = sum(one.batches for patch in live for one in patch._finishing)
    checkpoint = Path(model.trainer.save_dir, "weights", "last.pt").read_bytes()
    assert b"yolo_patches" not in checkpoint
    others = {one["name"]: one["status"] for one in entries if one["status"] in ("failed", "unavailable")}
    return {"plan": next((one for one in entries if one["name"] == "fast-load"), None), "left": left, "others": others}


def apart(first, other):
    """Return how what one training saw differs from another's."""
    same = len(first) == len(other) and all(one[0] == two[0] for one, two in zip(first, other))
    shapes = all(one[1].shape == two[1].shape for one, two in zip(first, other))
    gaps = [np.abs(one[1].astype(int) - two[1]) for one, two in zip(first, other)] if shapes else []
    means = [float(image.mean()) for gap in gaps for image in gap]
    return {
        "batches": len(other),
        "labels": same,
        "mean": max(means, default=None),
        "most": max((int(gap.max()) for gap in gaps), default=None),
    }


def main():
    torch.load = lambda *args, load=torch.load, **kwargs: load(*args, **{**kwargs, "weights_only": False})
    torch.set_num_threads(1)
    found, first = [], {}
    with contextlib.redirect_stdout(sys.stderr):
        for arguments in json.loads(sys.argv[1]):
            seen, key = [], json.dumps([arguments.get(name) for name in KEYS])
            one = train(dict(arguments), seen)
            found.append({**one, **apart(first.setdefault(key, seen), seen)})
    print()
    print(json.dumps(found))
    if "RANK" in os.environ:
        Path(sys.argv[2], f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
