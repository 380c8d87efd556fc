"""Measure the optimizer's step against the batch, with a real trainer's model, loss, clip and optimizer.

`steps.py DATA PROJECT JOB` (JOB: optimizers, batches, clip and upstream's arguments, as JSON) prints, for every
optimizer and batch, the norm of the parameters' change of one step, and the part of it that weight decay makes. The
batch is the same 16 images repeated, so that the gradient's direction is the same at every size.
"""

import json
import sys

import torch


def trainer(data, project, **overrides):
    """Return a real trainer, set up and ready for its first step."""
    from ultralytics.models.yolo.classify import ClassificationTrainer
    from ultralytics.models.yolo.detect import DetectionTrainer

    kind = ClassificationTrainer if overrides.get("task") == "classify" else DetectionTrainer
    common = {"data": data, "project": project, "imgsz": 32, "device": "cpu", "plots": False, "epochs": 50, "seed": 1}
    made = kind(overrides={"model": "yolov8n.yaml", "warmup_epochs": 0, **common, **overrides})
    setup = made._setup_train
    setup(1) if setup.__code__.co_argcount > 1 else setup()
    made.model.double()  # weight decay's part of a step is below float32's resolution
    made.ema.ema.double()
    return made


def repeat(batch, times):
    """Return a batch that holds each image `times` times."""
    images = len(batch["img"])
    repeated = dict(batch, img=batch["img"].repeat(times, 1, 1, 1))
    if "batch_idx" not in batch:
        return {**repeated, "cls": batch["cls"].repeat(times)}
    index = torch.cat([batch["batch_idx"] + images * k for k in range(times)])
    return {**repeated, "batch_idx": index, **{key: batch[key].repeat(times, 1) for key in ("cls", "bboxes")}}


def parameters(made):
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


def main(data, project, job):
    torch.set_num_threads(1)
    common = {key: value for key, value in job.items() if key not in ("optimizers", "batches", "clip")}
    images = next(iter(trainer(data, project, batch=16, **common).train_loader))
    images["img"] = images["img"].double() / (255 if images["img"].dtype == torch.uint8 else 1)
    if not job.get("clip", True):
        torch.nn.utils.clip_grad_norm_ = lambda *_, **__: None
    gradients, results = {}, {}
    for batch in job["batches"]:
        made = trainer(data, project, batch=batch, optimizer="SGD", **common)
        made.model.train()
        # As upstream does: micro-steps of the batch, accumulated up to nbs.
        for _ in range(made.accumulate):
            made.model(repeat(images, batch // 16))[0].sum().backward()
        gradients[batch] = [None if p.grad is None else p.grad.clone() for p in made.model.parameters()]
    for name in job["optimizers"]:
        results[name] = {}
        for batch in job["batches"]:
            changes = {}
            for decay in (0.0005, 0.0):
                made = trainer(data, project, batch=batch, optimizer=name, **{**common, "weight_decay": decay})
                for parameter, gradient in zip(made.model.parameters(), gradients[batch]):
                    parameter.grad = None if gradient is None else gradient.clone()
                before = parameters(made).double()
                made.optimizer_step()
                changes[decay] = parameters(made).double() - before
            results[name][batch] = [changes[0.0].norm().item(), (changes[0.0005] - changes[0.0]).norm().item()]
    print()
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
