"""What test_criteria.py asks of one release, answered as JSON: the wrappers of loss-norm in this process."""

from __future__ import annotations

import io
import json
import pickle
from types import SimpleNamespace

import torch
from ultralytics.cfg import get_cfg
from ultralytics.models.utils import loss as detr
from ultralytics.nn.tasks import ClassificationModel, DetectionModel, PoseModel, RTDETRDetectionModel
from ultralytics.utils import loss, tal

import yolo_patches.api
from yolo_patches.activation import activation
from yolo_patches.upstreams.ultralytics import criteria

MODULES = {module.__name__: module for module in (tal, loss, detr)}


class Recorder:
    """Stands for a run whose patch halves every normaliser, as one of two ranks with all labels would see it."""

    def __init__(self):
        self.seams = []

    def listens(self, seam):
        return True

    def fire(self, seam):
        seam.values, seam.ranks = seam.values / 2, 2
        self.seams.append(seam.values.tolist())
        return seam


def methods():
    return [vars(getattr(MODULES[module], owner, object)).get(name) for module, owner, name, _ in criteria.WRAPPERS]


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
    criterion({"scores": torch.zeros(1, 2, 4)} if named else [torch.zeros(1, 66, 2, 2)], {})
    return run.seams


def reaches(cls, name, **attributes):
    model = cls(f"{name}.yaml", verbose=False)
    vars(model).update(args=get_cfg(), **attributes)
    return criteria.normalises(model)


def main():
    yolo_patches.api.watch()
    wrapped, answer = methods(), {}
    answer["wrapped"] = sum(hasattr(method, "__wrapped__") for method in wrapped)
    answer["present"] = sum(method is not None for method in wrapped)

    plain, _ = assign()
    activation.current = run = Recorder()
    shared, assigner = assign()
    with torch.no_grad():
        quiet, _ = assign()
    answer["types"] = [[type(value).__name__ for value in result[2:4]] for result in (plain, shared, quiet)]
    answer["seams"] = run.seams
    answer["expected"] = [plain[2].sum().item() / 2, plain[3].sum().item() / 2]
    answer["divisor"] = [float(max(shared[2].sum(), 1)), float(shared[3].sum())]
    answer["equal"] = all(torch.equal(torch.Tensor.clone(a), torch.Tensor.clone(b)) for a, b in zip(plain, shared))
    file = io.BytesIO()
    torch.save(assigner, file)
    answer["pickled"] = [b"yolo_patches" in data for data in (file.getvalue(), pickle.dumps(assigner))]
    answer["early return"] = early_return()
    activation.current = None

    answer["reaches"] = [
        reaches(DetectionModel, "yolov8n"),
        reaches(PoseModel, "yolov8n-pose"),
        reaches(RTDETRDetectionModel, "rtdetr-l", nc=80),
        reaches(ClassificationModel, "yolov8n-cls"),
    ]
    yolo_patches.api.revert()
    reverted = methods()
    answer["reverted"] = [getattr(old, "__wrapped__", old) is new for old, new in zip(wrapped, reverted)]
    answer["after"] = reaches(DetectionModel, "yolov8n")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
