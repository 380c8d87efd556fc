"""One rank of test_loss_norm.py: the gradient of N ranks against that of one process, model by model, as JSON.

torchrun ... loss_norm_rank.py OUTPUT CASES, where CASES is JSON: a list of the arguments of `measure`.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
import ultralytics
from torch.nn.parallel import DistributedDataParallel
from ultralytics.cfg import get_cfg
from ultralytics.nn import tasks
from ultralytics.utils import loss as upstream

import yolo_patches.api
from yolo_patches.activation import activation
from yolo_patches.nn.common_step import common_step
from yolo_patches.nn.shards import rank_mean
from yolo_patches.nn.sync_batchnorm import convert
from yolo_patches.patches.label_smoothing import LabelSmoothing
from yolo_patches.seams import Normaliser
from yolo_patches.step_seams import TargetScores
from yolo_patches.upstreams.ultralytics import loss_wrappers
from yolo_patches.wrapping import Wrapping

SIZE, CLASSES = 64, 4
#: End of a model's name -> its class and task. The last two came with later releases.
KINDS = {
    "seg": ("SegmentationModel", "segment"),
    "pose": ("PoseModel", "pose"),
    "obb": ("OBBModel", "obb"),
    "sem": ("SemanticSegmentationModel", "semantic"),
    "depth": ("DepthModel", "depth"),
}


def boxes_per_image(layout, ranks, images):
    """Return how many boxes each image of the global batch has, `images` of them a rank."""
    shard = {"balanced": [3] * ranks, "skewed": [6] + [1] * (ranks - 1), "one rank": [4] + [0] * (ranks - 1)}
    if layout == "one box":
        return [1] + [0] * (images * ranks - 1)
    return [boxes for boxes in shard.get(layout, [0] * ranks) for _ in range(images)]


def global_batch(task, counts):
    """Return a batch as upstream's data loader would collate it."""
    generator = torch.Generator().manual_seed(len(counts) * 100 + sum(counts))
    total = sum(counts)

    def uniform(*shape, low=0.0, high=1.0):
        return torch.rand(*shape, generator=generator) * (high - low) + low

    boxes = torch.cat((uniform(total, 2, low=0.3, high=0.7), uniform(total, 2, low=0.15, high=0.5)), 1)
    batch = {
        "img": uniform(len(counts), 3, SIZE, SIZE),
        "batch_idx": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(boxes),
        "cls": torch.randint(CLASSES, (total, 1), generator=generator).to(boxes),
        "bboxes": torch.cat((boxes, uniform(total, 1, high=1.5)), 1) if task == "obb" else boxes,
        "resized_shape": [(SIZE, SIZE)] * len(counts),
    }
    if task == "pose":
        visible = (uniform(total, 17, 1) < 0.7) * 2.0
        batch["keypoints"] = torch.cat((uniform(total, 17, 2), visible), 2)
    if task == "semantic":
        batch["semantic_mask"] = torch.randint(CLASSES, (len(counts), SIZE, SIZE), generator=generator)
        for image, boxed in enumerate(counts):  # an image with few boxes has many pixels that count for nothing
            batch["semantic_mask"][image, : SIZE // (boxed + 1)] = 255
    if task == "depth":
        batch["depth"] = uniform(len(counts), SIZE, SIZE, low=1, high=9)
    if task == "segment":
        cells = SIZE // 4
        batch["masks"], batch["sem_masks"] = torch.zeros(2, len(counts), cells, cells)
        seen = [0] * len(counts)
        for image, cls, (x, y, w, h) in zip(batch["batch_idx"].int().tolist(), batch["cls"], boxes.tolist()):
            seen[image] += 1
            rows = slice(int((y - h / 2) * cells), int((y + h / 2) * cells) + 1)
            columns = slice(int((x - w / 2) * cells), int((x + w / 2) * cells) + 1)
            batch["masks"][image, rows, columns] = seen[image]
            batch["sem_masks"][image, rows, columns] = cls
    return batch


def shard(batch):
    """Return this rank's part of a global batch."""
    images = len(batch["img"]) // dist.get_world_size()
    mine = slice(dist.get_rank() * images, (dist.get_rank() + 1) * images)
    labels = (batch["batch_idx"] >= mine.start) & (batch["batch_idx"] < mine.stop)
    part = {
        key: value[labels] if key in {"cls", "bboxes", "keypoints"} else value[mine] for key, value in batch.items()
    }
    part["batch_idx"] = batch["batch_idx"][labels] - mine.start
    return part


def build(name):
    """Return a model with fixed weights in the default type, and its task."""
    if name.endswith("-distill"):
        return distillation(name), "detect"
    kind, task = KINDS.get(name.rpartition("-")[2], ("DetectionModel", "detect"))
    if name.startswith("rtdetr"):
        kind = "RTDETRDetectionModel"
    if name.startswith("yolov10") and hasattr(tasks, "YOLOv10DetectionModel"):  # its authors' fork
        kind = "YOLOv10DetectionModel"
    torch.manual_seed(0)
    model = getattr(tasks, kind)(f"{name}.yaml", nc=CLASSES, verbose=False).to(torch.get_default_dtype()).train()
    model.args = get_cfg(overrides={"task": task, "imgsz": SIZE})
    if name.startswith("rtdetr"):
        # As many queries as such small images have room for, and no denoising: its noise is drawn by each rank.
        model.model[-1].num_queries, model.model[-1].num_denoising = 40, 0
        model.nc = CLASSES  # which the trainer sets
    # As after some training: at its first weights a head predicts boxes larger than these images, which overlap so
    # little that the target scores sum to less than 1 and every rank divides by 1.
    head = model.model[-1]
    for branch in ("cv2", "one2one_cv2"):
        for convs in getattr(head, branch, ()):
            bins = torch.arange(float(head.reg_max))
            convs[-1].bias.data = (-((bins - 1.5) ** 2) if head.reg_max > 1 else bins + 1.5).repeat(4)
    for branch in ("cv3", "one2one_cv3"):
        for convs in getattr(head, branch, ()):
            convs[-1].bias.data.fill_(-2)
    return model, task


def distillation(name):
    """Return a model that learns from a larger one of its kind, which has seen other things."""
    from ultralytics.nn import distill_model

    if not hasattr(distill_model.DistillationModel.loss_sl2, "__wrapped__"):
        loss_wrappers.install(distill_model, Wrapping())
    student, teacher = (build(name.replace("-distill", ""))[0] for _ in range(2))
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.mul_(1.1)
    model = distill_model.DistillationModel(teacher, student).train()
    model.dis = 1.0  # its share of the loss: large enough that none of its errors is hidden
    return model


def gradient(model, batch, ranks):
    """Return the gradient as upstream's trainer has it after backward."""
    with common_step():
        loss, _ = model(batch)
        (loss.sum() * ranks).backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([grad.flatten() for grad in grads])


class Calls:
    """Counts collectives on vectors as short as normalisers are."""

    def __init__(self):
        self.count, self.original = 0, dist.all_reduce

    def __call__(self, tensor, *args, **kwargs):
        self.count += tensor.numel() <= 8
        return self.original(tensor, *args, **kwargs)


class Sharing:
    """Stands for a training with loss-norm, label-smoothing where there is an epsilon, and nothing else."""

    def __init__(self, epsilon=0.0, shares=True):
        self.smoothing = LabelSmoothing(epsilon=epsilon)
        self.seams = {Normaliser: shares, TargetScores: epsilon > 0}

    def listens(self, seam):
        return self.seams.get(seam, False)

    def fire(self, seam):
        if isinstance(seam, TargetScores):
            self.smoothing.handlers()[TargetScores](seam)
        else:
            seam.values, seam.ranks = rank_mean(seam.values)
        return seam


def measure(name, layouts, variants, calls, images=2, shift=0.0, ddp=True, epsilon=0.0):
    """Yield a row for each layout: relative gradient errors and collectives of each variant.

    What upstream's ranks make of it is measured with the first layout.
    With an epsilon, one process and the patched ranks smooth their targets.
    Without `ddp` the gradients are averaged by hand: the first DistributedDataParallel of a process takes 5 seconds.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model, task = build(name)
    likelihoods = []
    with shifted(model, shift, likelihoods):
        batches = [global_batch(task, boxes_per_image(layout, ranks, images)) for layout in layouts]
        activation.current = Sharing(epsilon, shares=False)
        mine = {
            index: gradient(deepcopy(model), deepcopy(batch), 1)
            for index, batch in enumerate(batches)
            if index % ranks == rank
        }
        activation.current = None
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        for index, (layout, batch) in enumerate(zip(layouts, batches)):
            expected = mine.get(index, torch.empty(size))
            dist.broadcast(expected, index % ranks)
            row = {"model": name, "task": task, "layout": layout, "norm": expected.norm().item()}
            for variant in variants[index > 0 and variants[0] == "upstream" :]:
                copy = deepcopy(model)
                if variant != "upstream":
                    convert(copy)
                likelihoods.clear()
                before, activation.current = calls.count, Sharing(epsilon) if variant == "patched" else None
                trained = DistributedDataParallel(copy, find_unused_parameters=True) if ddp else copy
                found = gradient(trained, shard(deepcopy(batch)), ranks)
                if not ddp:
                    dist.all_reduce(found)
                    found /= ranks
                if name.startswith("rtdetr"):
                    found /= ranks  # its loss is a mean that upstream multiplies by the ranks; linear-lr divides it
                row[variant] = ((found - expected).norm() / expected.norm()).item()
                row[f"{variant} calls"] = calls.count - before
                if variant == "patched":
                    row["likelihoods"] = [None] * ranks
                    dist.all_gather_object(row["likelihoods"], likelihoods)
                    if not rank:  # a validation, which other ranks may know nothing of
                        with torch.no_grad():
                            copy(shard(deepcopy(batch)))
                    row["no_grad calls"] = calls.count - before - row["patched calls"]
                activation.current = None
            yield row


@contextmanager
def shifted(model, amount, seen):
    """Lower the likelihood terms of YOLO26's pose loss, whose floor at zero matters after long training only."""
    if not amount:
        yield
        return
    flow, loss = type(model.model[-1].flow_model), upstream.PoseLoss26
    log_prob, calculate = flow.log_prob, loss.calculate_rle_loss
    flow.log_prob = lambda self, x: log_prob(self, x) + amount

    def record(*args):
        term = calculate(*args)
        seen.append(term.item())
        return term

    loss.calculate_rle_loss = record
    yield
    flow.log_prob, loss.calculate_rle_loss = log_prob, calculate


def main():
    output, cases = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float, torch.float32 = torch.Tensor.double, torch.float64  # where upstream rounds
    dist.init_process_group("gloo")
    yolo_patches.api.watch()
    dist.all_reduce = calls = Calls()
    rows = []
    for case in cases:
        for row in measure(**case, calls=calls):
            rows.append(row)
            if dist.get_rank() == 0:
                print(row, flush=True)
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps({"version": ultralytics.__version__, "rows": rows}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
