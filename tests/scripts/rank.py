"""One rank, or the one process: the gradient of one step of upstream's own Model and ComputeLoss, in float64.

Started in a checkout, with a JSON job. Writes, by case and specification, the gradient and the BatchNorm statistics;
the one process also what a probe of the criterion finds.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

sys.path.insert(0, os.getcwd())
job = json.loads(sys.argv.pop(1))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from yolo_patches import api  # noqa: E402
from yolo_patches.activation import activation  # noqa: E402
from yolo_patches.nn.common_step import common_step  # noqa: E402
from yolo_patches.nn.shards import rank_mean  # noqa: E402
from yolo_patches.nn.sync_batchnorm import convert  # noqa: E402
from yolo_patches.seams import Normaliser  # noqa: E402
from yolo_patches.upstreams.scripts.loss_probe import prove  # noqa: E402

IMAGES, SIZE = 8, 64


def batch(objects):
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(IMAGES, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    rows = []
    masks = torch.zeros(IMAGES, SIZE // 4, SIZE // 4, dtype=torch.float64)
    for image, number in enumerate(objects):
        for index in range(number):
            x, y, w, h = (torch.rand(4, generator=generator, dtype=torch.float64) * 0.4 + 0.3).tolist()
            rows.append([image, index % 10, x, y, w / 2, h / 2])
            masks[
                image, int(16 * (y - h / 4)) : int(16 * (y + h / 4)), int(16 * (x - w / 4)) : int(16 * (x + w / 4))
            ] = index + 1
    stuff = torch.zeros(IMAGES, 173, SIZE // 4, SIZE // 4)  # where the dice loss, which stays each rank's own, is flat
    return images, torch.tensor(rows, dtype=torch.float64).view(-1, 6), masks, stuff


def compute(criterion, prediction, targets, masks, stuff, task):
    if task == "detect":
        return criterion(prediction, targets)
    return criterion(prediction, targets, masks=masks, **({"semasks": stuff} if task == "panoptic" else {}))


class Sharing:
    """Stands for a training with loss-norm."""

    def __init__(self, floored):
        self.instead = 0.0 if floored else 1.0

    def listens(self, seam):
        return seam is Normaliser

    def fire(self, seam):
        seam.values, seam.ranks = rank_mean(seam.values)
        seam.instead = self.instead
        return seam


def step(model_file, task, module, criterion, objects, spec):
    rank, ranks = int(os.getenv("RANK", "0")), int(os.getenv("WORLD_SIZE", "1"))
    yolo = importlib.import_module("models.yolo")
    cls = getattr(importlib.import_module(module), criterion)
    torch.manual_seed(0)
    build = yolo.SegmentationModel if task == "segment" else yolo.Model
    model = build(model_file, ch=3, nc=10).double().train()
    # What the authors' own hyperparameters have of those that the criteria read.
    model.hyp = {"cls_pw": 1.0, "obj_pw": 1.0, "fl_gamma": 0.0, "label_smoothing": 0.0, "anchor_t": 4.0, "box": 0.05,
                 "cls": 0.5, "obj": 1.0}  # fmt: skip
    name = "yolov9" if os.path.exists("train_dual.py") else "yolov5"
    floored = importlib.import_module(f"yolo_patches.upstreams.{name}").floored(cls)
    if "sync-bn" in spec and ranks > 1:
        convert(model)
    trained = DistributedDataParallel(model, static_graph=True) if ranks > 1 else model
    trained.hyp = model.hyp  # the scripts put it on whatever they train
    options = {"overlap": True} if task in ("segment", "panoptic") else {}
    compute_loss = cls(trained, **options)
    images, targets, masks, stuff = batch(objects)
    each = IMAGES // ranks
    mine = slice(rank * each, (rank + 1) * each)
    own = targets[(targets[:, 0] >= mine.start) & (targets[:, 0] < mine.stop)].clone()
    own[:, 0] -= mine.start
    proof = None if ranks > 1 or spec != "none" else prove(trained, compute_loss, task)
    before, activation.current = activation.current, Sharing(floored) if "loss-norm" in spec else None
    with common_step():
        loss, _ = compute(compute_loss, trained(images[mine]), own, masks[mine], stuff[mine], task)
        (loss * ranks).sum().backward()
    activation.current = before
    return {
        "gradient": torch.cat([_gradient(p).flatten() for p in model.parameters() if p.requires_grad]),
        "statistics": torch.cat([b.flatten() for n, b in model.named_buffers() if "running" in n]),
        "loss": loss.detach(),
        "proof": None if proof is None else [proof.error, proof.growth, proof.why],
        "collectives": collectives[0],
    }


def _gradient(parameter):
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


collectives = [0]
reduce_all = dist.all_reduce


def counted(*args, **kwargs):
    collectives[0] += 1
    return reduce_all(*args, **kwargs)


dist.all_reduce = counted

if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    api.apply("compat")
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    results = {}
    for name, *case, spec in job["cases"]:
        collectives[0] = 0
        results[f"{name}, {spec}"] = step(*case, spec)
    if os.getenv("RANK", "0") == "0":
        torch.save(results, job["out"])
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
