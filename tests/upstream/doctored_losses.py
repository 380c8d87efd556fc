"""Change how a release's losses take their normalisers, and say what a probe of them finds and what really comes of it.

    doctored_losses.py CASES       (CASES: JSON, name -> [model, [[module, from, to], ...]])

Nothing is installed: the changed source is executed as the release's own module, case by case in one process. What
really comes of it is measured without the probe: the gradient of three ranks with an image each, against one process.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ultralytics.nn import tasks
from ultralytics.utils import loss, tal

from tests.distributed.loss_norm_rank import build, global_batch
from yolo_patches.activation import activation
from yolo_patches.seams import Normaliser
from yolo_patches.upstreams.normaliser_calls import probing
from yolo_patches.upstreams.ultralytics import loss_probe, loss_wrappers
from yolo_patches.wrapping import Wrapping

SOURCES = {module.__name__.rpartition(".")[2]: (module, Path(module.__file__).read_text()) for module in (tal, loss)}
#: Boxes of the three images, whose normalisers are far apart.
COUNTS = (6, 2, 1)


def doctor(edits):
    """Put changed modules in the place of the release's own; every edit must change something."""
    texts = {name: text for name, (_, text) in SOURCES.items()}
    for name, old, new in edits:
        assert old in texts[name], (name, old)
        texts[name] = texts[name].replace(old, new)
    for name, (module, _) in SOURCES.items():
        doctored = ModuleType(module.__name__)
        vars(doctored).update(__file__=module.__file__, __package__=module.__package__)
        sys.modules[module.__name__] = doctored
        exec(compile(texts[name], module.__file__, "exec"), vars(doctored))
        loss_wrappers.install(doctored, Wrapping())
    for name, value in vars(tasks).copy().items():
        if getattr(value, "__module__", "") == loss.__name__:
            setattr(tasks, name, getattr(sys.modules[loss.__name__], name))


class Ranks:
    """Hears each rank's normalisers, or answers with the mean of all that others have heard."""

    def __init__(self, others=()):
        self.heard, self.others = [], others

    def listens(self, seam):
        return seam is Normaliser

    def fire(self, seam):
        self.heard.append(seam.values)
        if self.others:
            seam.values = sum(other.heard[len(self.heard) - 1] for other in self.others) / len(self.others)
            seam.ranks = len(self.others)
        return seam


def gradient(model, batch, listener=None):
    model.zero_grad(set_to_none=True)
    with probing(listener) if listener else nullcontext():
        model.loss(dict(batch))[0].sum().backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def part(batch, image):
    """Return one image of a batch."""
    mine = batch["batch_idx"] == image
    of = {key: value[mine] if key in {"cls", "bboxes"} else value[image : image + 1] for key, value in batch.items()}
    return {**of, "batch_idx": torch.zeros(int(mine.sum()))}


def effect(model, task):
    """Return the relative error of three ranks' gradient, as upstream has it, and with what is heard shared."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    batch = global_batch(task, COUNTS)
    images = [part(batch, image) for image in range(len(COUNTS))]
    whole = gradient(model, batch)
    own = [Ranks() for _ in images]
    alone = sum(gradient(model, image, rank) for image, rank in zip(images, own))
    shared = sum(gradient(model, image, Ranks(own)) for image in images)
    return [float((found - whole).norm() / whole.norm()) for found in (alone, shared)]


def main():
    assert activation.current is None
    import_module("ultralytics.models.utils.loss")
    answer = {}
    for name, (model_name, edits) in json.loads(sys.argv[1]).items():
        doctor(edits)
        model, task = build(model_name)
        proof = loss_probe.prove(model, task)
        alone, shared = effect(model, task)
        answer[name] = {
            "error": proof.error,
            "why": proof.why,
            "growth": proof.growth,
            "alone": alone,
            "shared": shared,
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
