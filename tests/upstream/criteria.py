"""What test_criteria.py asks of one release, answered as JSON: the wrappers of loss-norm in this process."""

from __future__ import annotations

import io
import json
import pickle
import sys
import time
from types import SimpleNamespace

import torch
from ultralytics.cfg import get_cfg
from ultralytics.models.utils import loss as detr
from ultralytics.nn import tasks
from ultralytics.utils import loss, tal

import yolo_patches.api
from yolo_patches.activation import activation
from yolo_patches.nn.common_step import common_step
from yolo_patches.seams import Normaliser
from yolo_patches.upstreams.ultralytics import loss_probe, loss_wrappers

MODULES = {module.__name__: module for module in (tal, loss, detr)}
#: What is probed: model file -> class, task. Models that a release does not have are left out.
PROBED = {
    "yolov8n": ("DetectionModel", "detect"),
    "yolov8n-seg": ("SegmentationModel", "segment"),
    "yolov8n-pose": ("PoseModel", "pose"),
    "yolov8n-obb": ("OBBModel", "obb"),
    "yolov8n-cls": ("ClassificationModel", "classify"),
    "yolov10n": ("DetectionModel", "detect"),
    "yolo11n": ("DetectionModel", "detect"),
    "yolo26n": ("DetectionModel", "detect"),
    "yolo26n-seg": ("SegmentationModel", "segment"),
    "yolo26n-pose": ("PoseModel", "pose"),
    "yolo26n-obb": ("OBBModel", "obb"),
    "yolo26n-sem": ("SemanticSegmentationModel", "semantic"),
    "yolo26n-depth": ("DepthModel", "depth"),
    "rtdetr-l": ("RTDETRDetectionModel", "detect"),
}


class Recorder:
    """Stands for a run whose patch halves every normaliser, as one of two ranks with all labels would see it."""

    def __init__(self):
        self.seams = []

    def listens(self, seam):
        return seam is Normaliser

    def fire(self, seam):
        seam.values, seam.ranks = seam.values / 2, 2
        self.seams.append(seam.values.tolist())
        return seam


def methods():
    return [
        vars(getattr(MODULES.get(module), owner, object)).get(name) for module, owner, name, _ in loss_wrappers.WRAPPERS
    ]


def assign():
    """Return what an assigner gives for one image with one box."""
    assigner = tal.TaskAlignedAssigner(topk=10, num_classes=2)
    points = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)) * 8 + 4
    boxes = torch.cat((points - 10, points + 10), 1)[None]
    box = torch.tensor([[[4.0, 4.0, 28.0, 28.0]]])
    result = assigner(torch.full((1, 16, 2), 0.5), boxes, points, torch.zeros(1, 1, 1), box, torch.ones(1, 1, 1))
    return result, assigner


def early_return():
    """Let a prompt loss return before it assigns, and say what has been fired."""
    cls = getattr(loss, "TVPDetectLoss", None)
    if cls is None:
        return None
    criterion = cls.__new__(cls)
    inner = SimpleNamespace(device="cpu", reg_max=16, parse_output=lambda preds: preds)
    vars(criterion).update(ori_nc=2, ori_reg_max=16, vp_criterion=inner, loss_names=("box", "cls", "dfl"))
    named = "loss" in vars(cls)
    activation.current = run = Recorder()
    with common_step():
        criterion({"scores": torch.zeros(1, 2, 4)} if named else [torch.zeros(1, 66, 2, 2)], {})
    return run.seams


def build(name):
    """Return a model as the trainer has it; None where the release has no such model."""
    cls, task = PROBED[name]
    try:
        model = getattr(tasks, cls)(f"{name}.yaml", verbose=False)
    except (AttributeError, FileNotFoundError):
        return None
    vars(model).update(args=get_cfg(overrides={"task": task}), nc=80)
    return model


def state(model):
    """Return everything of a model and of this process that a probe must leave as it was."""
    modules = [(sorted(vars(module)), module.training) for module in model.modules()]
    return modules, {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()


def same(before, after):
    (modules, tensors, numbers), (modules_, tensors_, numbers_) = before, after
    equal = tensors.keys() == tensors_.keys() and all(torch.equal(tensors[key], tensors_[key]) for key in tensors)
    return modules == modules_ and equal and torch.equal(numbers, numbers_)


def probe(model, name):
    """Return what a probe finds, the processor time that it takes, and whether it leaves a trace."""
    before, start = state(model), time.process_time()
    proof = loss_probe.prove(model, PROBED[name][1])
    seconds = time.process_time() - start
    return {"error": proof.error, "growth": proof.growth, "why": proof.why, "seconds": seconds,
            "undisturbed": same(before, state(model))}  # fmt: skip


def raising():
    """Return what is said of models whose criterion cannot be made, or computed."""
    model = build("yolov8n")
    model.init_criterion = lambda: 1 / 0
    before = state(model)
    proof = loss_probe.prove(model, "detect")
    return [loss_wrappers.normalises(model), proof.error, proof.growth, proof.why, same(before, state(model)),
            loss_probe.prove(None, "detect").error]  # fmt: skip


def main():
    yolo_patches.api.watch()
    wrapped, answer = methods(), {}
    answer["wrapped"] = sum(hasattr(method, "__wrapped__") for method in wrapped)
    answer["present"] = sum(method is not None for method in wrapped)

    plain, _ = assign()
    activation.current = run = Recorder()
    alone, _ = assign()  # a callback's own forward pass, perhaps on one rank: not in a step that all make
    with common_step():
        shared, assigner = assign()
        with torch.no_grad():
            quiet, _ = assign()
    results = (plain, alone, shared, quiet)
    answer["types"] = [[type(value).__name__ for value in result[2:4]] for result in results]
    answer["seams"] = run.seams
    answer["expected"] = [plain[2].sum().item() / 2, plain[3].sum().item() / 2]
    answer["divisor"] = [float(1 / (1 / max(shared[2].sum(), 1))), float(1 / (1 / shared[3].sum()))]
    answer["equal"] = all(torch.equal(torch.Tensor.clone(a), torch.Tensor.clone(b)) for a, b in zip(plain, shared))
    file = io.BytesIO()
    torch.save(assigner, file)
    answer["pickled"] = [b"yolo_patches" in data for data in (file.getvalue(), pickle.dumps(assigner))]
    answer["early return"] = early_return()
    activation.current = None

    models = {name: build(name) for name in PROBED if name in sys.argv[1:]}
    answer["probes"] = {name: probe(model, name) for name, model in models.items() if model is not None}
    answer["normalises"] = {
        name: loss_wrappers.normalises(model) for name, model in models.items() if model is not None
    }
    answer["raising"] = raising()
    yolo_patches.api.revert()
    reverted = methods()
    answer["reverted"] = [getattr(old, "__wrapped__", old) is new for old, new in zip(wrapped, reverted)]
    answer["after"] = loss_wrappers.normalises(models["yolov8n"])
    answer["probe after"] = probe(models["yolov8n"], "yolov8n")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
