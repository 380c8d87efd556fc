"""What a training sample of YOLOv9 or YOLOv5 costs, upstream against fast-load, and whether both are the same.

    python benchmarks/script_loading.py CHECKOUT HYP [--images 60] [--samples 60] [--rounds 5]   # CPU ms a sample
    python benchmarks/script_loading.py CHECKOUT HYP --compare 1000                               # every byte

CHECKOUT is the folder in which train.py lies, HYP a file of hyperparameters. FAST_LOAD_LEVEL=near measures that level;
it compares labels and random numbers, and tells by how much pixels differ. Both arms are in one process and take turns;
figures are medians of the rounds, in milliseconds of the process's CPU time.
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

from yolo_patches.loading.part import Part, alike
from yolo_patches.loading_seams import Samples
from yolo_patches.patches.fast_load import FastLoad
from yolo_patches.upstreams.scripts import sample_parts

SETS = {
    "detect": ("utils.dataloaders", "LoadImagesAndLabels"),
    "segment": ("utils.segment.dataloaders", "LoadImagesAndLabelsAndMasks"),
}
OVERLAPPING = {"downsample_ratio": 4, "overlap": True}
TURNED = {"degrees": 10.0, "shear": 2.0, "flipud": 0.5, "mosaic": 0.7}
ODD = {"scale": 0.9, "translate": 0.5, "mosaic": 0.8, "mixup": 0.3, "copy_paste": 0.4}
#: Case -> data set, images (none: the odd ones), labels, further arguments, hyperparameters to change.
CASES: dict[str, tuple[str, Any, str, dict[str, Any], dict[str, float]]] = {
    "boxes": ("detect", photographs.SMALL, "boxes", {}, {}),
    "mixed sizes": ("detect", photographs.MIXED, "boxes", {}, {}),
    "polygons": ("detect", photographs.SMALL, "polygons", {}, {}),
    "segment": ("segment", photographs.SMALL, "polygons", OVERLAPPING, {}),
    "closed": ("detect", photographs.SMALL, "boxes", {}, {"mosaic": 0.0}),
    "ram": ("detect", photographs.MIXED, "boxes", {"cache_images": "ram"}, {}),
    "separate masks": ("segment", photographs.SMALL, "polygons", {"downsample_ratio": 4}, {}),
    "rect": ("detect", photographs.MIXED, "boxes", {"rect": True}, {}),
    "turned": ("detect", photographs.SMALL, "polygons", {}, TURNED),
    "turned masks": ("segment", photographs.SMALL, "polygons", OVERLAPPING, {**TURNED, "copy_paste": 0.5}),
    "perspective": ("detect", photographs.SMALL, "polygons", {}, {"perspective": 0.0005, "copy_paste": 0.5}),
    "odd boxes": ("detect", (), "boxes", {}, ODD),
    "odd polygons": ("detect", (), "polygons", {}, ODD),
    "odd masks": ("segment", (), "polygons", OVERLAPPING, ODD),
}
TIMED = ("boxes", "mixed sizes", "polygons", "segment", "closed", "ram")
#: Of fast-load.
LEVEL = os.environ.get("FAST_LOAD_LEVEL", "exact")


class Arm:
    """fast-load alone: its parts, which stand in while they are placed."""

    def __init__(self, root: Path, module: str) -> None:
        self._places = sample_parts.Places(root, module)
        self.seam = Samples(self._places.known)
        FastLoad(level=LEVEL).handlers()[Samples](self.seam)
        self._parts = {
            name: Part(name, ways, self.seam.ledger, self.seam.near) for name, ways in self.seam.ways.items()
        }

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Have the parts stand in."""
        with ExitStack() as stack:
            self._places.put(self._parts, stack)
            yield


def made(dataset: Any, index: int, seed: int) -> list[Any]:
    """Return a sample's bytes, and what the generators have come to."""
    random.seed(seed)
    np.random.seed(seed)
    image, labels, _, _, *masks = dataset[index % len(dataset)]
    return [one.numpy() for one in (image, labels, *masks)] + [random.random(), float(np.random.random())]


def compare(dataset: Any, arm: Arm, samples: int) -> dict[str, Any]:
    """Return which samples were not equal in every byte, and how often each part stood in."""
    different, apart = [], [0.0]
    for index in range(samples):
        theirs = made(dataset, index, index)
        with arm.placed():
            ours = made(dataset, index, index)
        if LEVEL != "exact" and ours[0].shape == theirs[0].shape:
            apart.append(float(np.abs(ours[0].astype(np.int16) - theirs[0]).mean()))
            ours[0] = theirs[0]
        if not alike(theirs, ours):
            different.append(index)
    ledger = arm.seam.ledger
    return {
        "samples": samples,
        "different": different[:10],
        **({"pixels": [statistics.mean(apart), max(apart)]} if LEVEL != "exact" else {}),
        "trouble": ledger.trouble(),
        "stood in": dict(zip(ledger.names, ledger.counts[:, 0].tolist())),
    }


def measure(dataset: Any, arm: Arm, samples: int, rounds: int) -> dict[str, float]:
    """Return medians of both arms, which take turns, and their ratio."""
    spent: dict[str, list[float]] = {"upstream": [], LEVEL: []}
    for turn in range(rounds + 1):
        for name in spent:
            random.seed(turn)
            np.random.seed(turn)
            with arm.placed() if name == LEVEL else nullcontext():
                begun = time.process_time()
                for index in range(samples):
                    dataset[index % len(dataset)]
                spent[name].append((time.process_time() - begun) / samples * 1e3)
    medians = {name: statistics.median(values[1:]) for name, values in spent.items()}
    return {**medians, "ratio": medians["upstream"] / medians[LEVEL]}


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
    parser.add_argument("--cases", default="")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="hyperparameters to change")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    root = args.checkout.resolve()
    package = "yolov5." if root.name == "yolov5" and (root / "__init__.py").is_file() else ""
    sys.path.insert(0, str(root.parent if package else root))
    changes = {name: float(value) for name, value in (one.split("=") for one in args.set)}
    with tempfile.TemporaryDirectory() as folder:
        names = args.cases.split(",") if args.cases else list(CASES if args.compare else TIMED)
        places = {}
        for name in names:  # before YOLOv9 replaces cv2.imwrite
            _, images, labels, _, _ = CASES[name]
            places[name] = Path(folder) / f"{labels} {images}"
            if not places[name].exists():
                make = photographs.make if images else photographs.odd
                make(places[name], *([args.images, images] if images else []), labels)
        for name in names:
            task, _, _, more, hyp = CASES[name]
            module, kind = SETS[task]
            hyp = {**yaml.safe_load(args.hyp.read_text()), **hyp, **changes}
            with redirect_stdout(sys.stderr):
                build = getattr(import_module(package + module), kind)
                dataset = build(str(places[name] / "images"), args.imgsz, 16, augment=True, hyp=hyp, **more)
            arm = Arm(root, package + module)
            found = (
                compare(dataset, arm, args.compare)
                if args.compare
                else measure(dataset, arm, args.samples, args.rounds)
            )
            print(json.dumps({"case": name, **found}), flush=True)


if __name__ == "__main__":
    main()
