"""Build a data set with cache=ram, as it is and as the first of two ranks would, and print what differs as JSON.

cached_sets.py DATA
"""

from __future__ import annotations

import json
import random
import sys

import numpy as np

from yolo_patches import api, registry

api.watch()
from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.data import build_yolo_dataset  # noqa: E402
from ultralytics.data.utils import check_det_dataset  # noqa: E402

from yolo_patches.activation import activation  # noqa: E402
from yolo_patches.facts import Batch, Devices, Facts, Given  # noqa: E402
from yolo_patches.lifecycle import Lifecycle  # noqa: E402
from yolo_patches.selection import parse  # noqa: E402
from yolo_patches.upstreams.ultralytics import cached_images  # noqa: E402

file = sys.argv[1]
given = {"cache": "ram", "imgsz": 64, "data": file, "model": "yolov8n.yaml", "task": "detect"}


def build(mode, **changed):
    random.seed(0)
    np.random.seed(0)
    data = check_det_dataset(file)
    return build_yolo_dataset(get_cfg(overrides={**given, **changed}), data[mode], 2, data, mode=mode)


def shown(data):
    return {
        "images": [None if data.ims[i] is None else [data.ims[i].shape, data.ims[i].tobytes()] for i in range(data.ni)],
        "sizes": [data.im_hw0, data.im_hw],
        "buffer": sorted(data.buffer),  # upstream's threads fill it in any order
        "drawn": [random.getstate(), np.random.get_state()[1].tolist()],
        "names": sorted(vars(data)),
        "cache": getattr(data, "cache", None),
    }


found = {}
plain = build("train", cache=False)
if hasattr(plain, "cache"):
    plain.cache = "ram"
before = shown(plain)
found["keeps"] = cached_images._keeps(plain)
found["needed"] = cached_images._needed(plain)
found["untouched"] = shown(plain) == before
for mode in ("train", "val"):
    own = build(mode)
    facts = Facts("ultralytics", "1", "detect", Batch(4), devices=Devices(2), given=Given(given))
    lifecycle = Lifecycle.of(facts, parse("shared-cache", registry.specs()))
    with lifecycle.under_way():
        shared = build(mode)
    found[mode] = {
        "kind": type(shared.ims).__name__,
        "bytes": sum(own.ims[i].nbytes for i in range(own.ni) if own.ims[i] is not None),
        "differs": [name for name, value in shown(own).items() if shown(shared)[name] != value],
        "status": next(one.decision.status for one in lifecycle.plan.entries if one.name == "shared-cache"),
        "reason": next(one.decision.reason for one in lifecycle.plan.entries if one.name == "shared-cache"),
    }
assert activation.current is None
print(json.dumps(found))
