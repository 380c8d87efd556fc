"""Run a training script as `python SCRIPT` would, and write down what its loaders and its validation are built with."""

import json
import runpy
import sys
from pathlib import Path

import torch.utils.data
import wrapt

out, target = sys.argv[1:3]
seen = {"loaders": [], "validations": [], "load": None, "np": None}
build = torch.utils.data.DataLoader.__init__


def record(self, dataset, *args, **kwargs):
    build(self, dataset, *args, **kwargs)
    seen["loaders"].append([bool(dataset.augment), len(dataset), self.batch_size])


def validation(module):
    run = module.run

    def recorded(*args, **kwargs):
        seen["validations"].append(kwargs["batch_size"])
        return run(*args, **kwargs)

    module.run = recorded


torch.utils.data.DataLoader.__init__ = record
for name in ("val", "val_dual", "val_triple", "segment.val", "segment.val_dual", "panoptic.val"):
    for prefix in ("", "yolov5."):
        wrapt.register_post_import_hook(validation, prefix + name)
load = torch.load
try:
    if target == "-m":
        sys.argv[:] = sys.argv[3:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = sys.argv[2:]
        sys.path[0] = str(Path(target).parent)
        runpy.run_path(target, run_name="__main__")
finally:
    seen["load"] = torch.load is load
    Path(out).write_text(json.dumps(seen))
