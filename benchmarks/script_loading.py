"""What a training sample of YOLOv9 or YOLOv5 costs, upstream against fast-load, and whether both are the same.

    python benchmarks/script_loading.py CHECKOUT HYP [--images 60] [--samples 60] [--rounds 5]   # CPU ms a sample
    python benchmarks/script_loading.py CHECKOUT HYP --compare 1000                               # every byte

CHECKOUT is the folder in which train.py lies, HYP a file of hyperparameters. The cases are the detection and the
segmentation data set, on polygons. Both arms are in one process and take turns; figures are medians of the rounds, in
milliseconds of the process's CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["YOLO_PATCHES"] = "compat"

import cv2
import numpy as np
import photographs
import torch
import yaml

from yolo_patches.loading.part import alike
from yolo_patches.loading_seams import Samples
from yolo_patches.patches.fast_load import FastLoad
from yolo_patches.upstreams.scripts import sample_parts
from yolo_patches.wrapping import instead

#: Case -> module, class, further arguments.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "detect": ("utils.dataloaders", "LoadImagesAndLabels", {}),
    "segment": ("utils.segment.dataloaders", "LoadImagesAndLabelsAndMasks", {"downsample_ratio": 4, "overlap": True}),
    "separate masks": ("utils.segment.dataloaders", "LoadImagesAndLabelsAndMasks", {"downsample_ratio": 4}),
}


class Arm:
    """fast-load alone: a lifecycle as far as its parts need one, and the functions that stand in while it is placed."""

    def __init__(self, root: Path, module: str) -> None:
        self.seam = Samples()
        there = sample_parts.places(root, module)
        with ExitStack() as stack:
            sample_parts.offer(self, stack, root, module)  # type: ignore[arg-type]
            names = [(place, sample_parts.FUNCTIONS[part]) for part, where in there.items() for place in where]
            self._ours = [(place, name, vars(place)[name]) for place, name in names]

    def fire(self, seam: Samples) -> Samples:
        """Let the patch set its ways."""
        self.seam = seam
        FastLoad().handlers()[Samples](seam)
        return seam

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Have the parts stand in."""
        with ExitStack() as stack:
            for place, name, ours in self._ours:
                stack.enter_context(instead(place, name, ours))
            yield


def made(dataset: Any, index: int, seed: int) -> list[Any]:
    """Return a sample's bytes, and what the generators have come to."""
    random.seed(seed)
    np.random.seed(seed)
    image, labels, _, _, *masks = dataset[index % len(dataset)]
    return [one.numpy() for one in (image, labels, *masks)] + [random.random(), float(np.random.random())]


def compare(dataset: Any, arm: Arm, samples: int) -> dict[str, Any]:
    """Return which samples were not equal in every byte, and how often each part stood in."""
    different = []
    for index in range(samples):
        theirs = made(dataset, index, index)
        with arm.placed():
            if not alike(theirs, made(dataset, index, index)):
                different.append(index)
    ledger = arm.seam.ledger
    stood_in = dict(zip(ledger.names, ledger.counts[:, 0].tolist()))
    return {"samples": samples, "different": different[:10], "trouble": ledger.trouble(), "stood in": stood_in}


def measure(dataset: Any, arm: Arm, samples: int, rounds: int) -> dict[str, float]:
    """Return medians of both arms, which take turns, and their ratio."""
    spent: dict[str, list[float]] = {"upstream": [], "exact": []}
    for turn in range(rounds + 1):
        for name in spent:
            random.seed(turn)
            np.random.seed(turn)
            with arm.placed() if name == "exact" else nullcontext():
                begun = time.process_time()
                for index in range(samples):
                    dataset[index % len(dataset)]
                spent[name].append((time.process_time() - begun) / samples * 1e3)
    medians = {name: statistics.median(values[1:]) for name, values in spent.items()}
    return {**medians, "ratio": medians["upstream"] / medians["exact"]}


def main() -> None:
    """Print one line of JSON a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("hyp", type=Path)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compare", type=int, default=0)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="hyperparameters to change")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    root = args.checkout.resolve()
    package = "yolov5." if root.name == "yolov5" and (root / "__init__.py").is_file() else ""
    sys.path.insert(0, str(root.parent if package else root))
    hyp = {**yaml.safe_load(args.hyp.read_text()), **{k: float(v) for k, v in (one.split("=") for one in args.set)}}
    with tempfile.TemporaryDirectory() as folder:
        data = photographs.make(Path(folder) / "data", args.images, photographs.SMALL, "polygons").parent
        for name in args.cases.split(","):
            module, kind, more = CASES[name]
            with redirect_stdout(sys.stderr):
                build = getattr(import_module(package + module), kind)
                dataset = build(str(data / "images"), args.imgsz, 16, augment=True, hyp=hyp, **more)
            arm = Arm(root, package + module)
            found = (
                compare(dataset, arm, args.compare)
                if args.compare
                else measure(dataset, arm, args.samples, args.rounds)
            )
            print(json.dumps({"case": name, **found}), flush=True)


if __name__ == "__main__":
    main()
