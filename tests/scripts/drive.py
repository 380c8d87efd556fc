"""Run training scripts as `python SCRIPT` would, one after the other in this process, and write down what they did.

Started with a file of runs, to which it adds what it has seen: see `tests.scripts.conftest.drive`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import runpy
import sys
from pathlib import Path

file = Path(sys.argv[1])
runs = json.loads(file.read_text())

import numpy  # noqa: E402
import torch  # noqa: E402
import torch.utils.data  # noqa: E402
import wrapt  # noqa: E402
from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from yolo_patches import _bootstrap, api  # noqa: E402
from yolo_patches.activation import activation  # noqa: E402
from yolo_patches.nn import common_step  # noqa: E402

NAMES = ("val", "val_dual", "val_triple", "segment.val", "segment.val_dual", "panoptic.val")
LOAD, TRAPZ = torch.load, hasattr(numpy, "trapz")
seen = {}
build, clip = torch.utils.data.DataLoader.__init__, torch.nn.utils.clip_grad_norm_


class Stopped(BaseException):
    """Enough optimizer steps."""


def built(self, dataset, *args, **kwargs):
    build(self, dataset, *args, **kwargs)
    seen["loaders"].append([bool(getattr(dataset, "augment", False)), len(dataset), self.batch_size])


def clipped(parameters, max_norm):
    norm = clip(parameters, max_norm)
    seen["norms"].append(float(norm))
    return norm


def before_step(optimizer, *_):
    group = optimizer.param_groups[1]
    seen["rates"].append([float(group["lr"]), group.get("weight_decay")])


def after_step(optimizer, *_):
    seen["parameters"] = [p for group in optimizer.param_groups for p in group["params"]]
    if len(seen["rates"]) == seen["steps"]:
        raise Stopped


def validation(module):
    run = getattr(module, "run", None)
    if run is None or hasattr(run, "records"):
        return

    @functools.wraps(run)
    def recorded(*args, **kwargs):
        seen["validations"].append(kwargs["batch_size"])
        return run(*args, **kwargs)

    module.run, recorded.records = recorded, True


torch.utils.data.DataLoader.__init__ = built
torch.nn.utils.clip_grad_norm_ = clipped
register_optimizer_step_pre_hook(before_step)
register_optimizer_step_post_hook(after_step)


def listen():
    """Have validations recorded, inside of what wraps them for training."""
    for name in NAMES:
        for prefix in ("", "yolov5.", "yolov9."):
            wrapt.register_post_import_hook(validation, prefix + name)


def enter(root):
    """Go into a checkout, out of another one: this process knows nothing of that any more."""
    api.revert()
    activation._registered.clear()
    for name, module in list(sys.modules.items()):
        if any(str(getattr(module, "__file__", "") or "").startswith(folder) for folder in entered):
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if path not in entered]
    entered.append(root)
    _bootstrap.rearm()
    listen()


def left_over(names):
    """Return what a training has left behind: nothing."""
    listens = "main" in names and "run" in vars(inspect.signature(names["main"]).parameters["callbacks"].default)
    return [
        what
        for what, there in {
            "a training": activation.current is not None,
            "a step": common_step.inside(),
            "torch.load": torch.load is not LOAD,
            "numpy": hasattr(numpy, "trapz") is not TRAPZ,
            "callbacks": listens,
        }.items()
        if there
    ]


def execute(run):
    for path, old, new in run.get("edits", ()):
        text = Path(path).read_text()
        assert old in text, (path, old)
        Path(path).write_text(text.replace(old, new))
    seen.clear()
    seen.update(loaders=[], validations=[], norms=[], rates=[], steps=run.get("steps"))
    activation.command_line = activation.applied = None
    if run["patches"] is not None:
        api.apply(run["patches"])
    script = str(Path(run["root"], run["script"]))
    sys.argv[:] = [script, *run["words"]]
    sys.path.insert(0, os.path.dirname(script))
    names = {}
    try:
        exec(run.get("before", ""), {"run": run})
        names = runpy.run_path(script, run_name="__main__")
    except Stopped:
        pass
    except (Exception, SystemExit) as error:
        run["error"] = f"{type(error).__name__}: {error}"
    sys.path.remove(os.path.dirname(script))
    values = b"".join(p.detach().numpy().tobytes() for p in seen.pop("parameters", ()))
    return {**seen, "digest": hashlib.sha256(values).hexdigest() if values else "", "left": left_over(names)}


entered: list[str] = []
for run in runs:
    print(f"=== {run['name']}", file=sys.stderr, flush=True)
    if run["root"] not in entered[-1:] or run.get("fresh"):
        enter(run["root"])
    try:
        run.update(execute(run))
    finally:
        file.write_text(json.dumps(runs, default=str))
