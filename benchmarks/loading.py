"""What a training sample costs, upstream against fast-load, and whether both are the same.

    python benchmarks/loading.py [--images 120] [--samples 60] [--rounds 5]   # CPU ms a sample, one core
    python benchmarks/loading.py --compare 2000 [--cases segment,pose]        # every byte of that many samples a case
    python benchmarks/loading.py --starved [--batches 60]                     # 2 workers, 5 ms a batch of 16

FAST_LOAD_LEVEL=near or device measures that level; it compares labels and random numbers, and tells by how much pixels
differ. The figures of level device are what is left to workers; what a batch of 16 takes after that is told beside.
Ultralytics is the installed one, or the one first in PYTHONPATH. Both arms are in one process and take turns; the
figures are medians of the rounds, in milliseconds of the process's CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_PATCHES", "none")

import cv2
import numpy as np
import photographs
import torch

from yolo_patches.loading.part import alike
from yolo_patches.loading_seams import Samples
from yolo_patches.patches.fast_load import FastLoad

RECIPE = {"scale": 0.9, "mixup": 0.15, "copy_paste": 0.3}
#: Case -> images (none: the odd ones), labels, task, arguments.
CASES: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    "boxes": (photographs.SMALL, "boxes", "detect", {}),
    "mixed sizes": (photographs.MIXED, "boxes", "detect", {}),
    "polygons": (photographs.SMALL, "polygons", "detect", {}),
    "segment": (photographs.SMALL, "polygons", "segment", RECIPE),
    "separate masks": (photographs.SMALL, "polygons", "segment", {**RECIPE, "overlap_mask": False}),
    "pose": (photographs.SMALL, "keypoints", "pose", {"flipud": 0.5, "degrees": 10.0}),
    "obb": (photographs.SMALL, "corners", "obb", {"degrees": 90.0}),
    "closed": (photographs.SMALL, "boxes", "detect", {"mosaic": 0.0}),
    "rect": (photographs.MIXED, "boxes", "detect", {"rect": True}),
    "ram": (photographs.MIXED, "boxes", "detect", {"cache": "ram"}),
    "disk": (photographs.SMALL, "boxes", "detect", {"cache": "disk"}),
    "odd boxes": ((), "boxes", "detect", {"degrees": 5.0, "mosaic": 0.7, "scale": 0.9}),
    "odd polygons": ((), "polygons", "detect", {"scale": 0.9, "translate": 0.5, "mosaic": 0.8}),
    "odd segments": ((), "polygons", "segment", {**RECIPE, "translate": 0.5, "mosaic": 0.8, "flipud": 0.5}),
    "turned segments": (photographs.SMALL, "polygons", "segment", {**RECIPE, "degrees": 10.0, "perspective": 0.0005}),
    "pasted later": (photographs.SMALL, "polygons", "segment", {**RECIPE, "copy_paste_mode": "mixup", "cutmix": 0.3}),
    "pasted seldom": (photographs.SMALL, "polygons", "segment", {**RECIPE, "copy_paste": 0.02}),
    "classes": (photographs.MIXED, "classes", "classify", {}),
    "single class": (photographs.SMALL, "polygons", "segment", {"single_cls": True, "mixup": 0.5}),
}
#: Of fast-load.
LEVEL = os.environ.get("FAST_LOAD_LEVEL", "exact")
TIMED = ("boxes", "mixed sizes", "polygons", "segment", "closed", "ram", "classes")


def dataset(data: Path, task: str, arguments: dict[str, Any], imgsz: int) -> Any:
    """Return upstream's training set; what a release has no argument for is left out."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data import ClassificationDataset, build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.utils import DEFAULT_CFG

    known = {name: value for name, value in arguments.items() if hasattr(DEFAULT_CFG, name)}
    args = get_cfg(overrides={"task": task, "imgsz": imgsz, **known})
    if task == "classify":
        args.imgsz = min(imgsz, 224)
        return ClassificationDataset(str(data / "train"), args, augment=True, prefix="train")
    found = check_det_dataset(str(data))
    return build_yolo_dataset(args, found["train"], 16, found, mode="train", rect=args.rect, stride=32)


@contextmanager
def fast(data: Any) -> Iterator[Samples]:
    """Have our parts in a data set."""
    from yolo_patches.upstreams.ultralytics import samples

    seam = samples.samples(data)
    FastLoad(level=LEVEL).handlers()[Samples](seam)
    placed = samples.InPlace(data, seam)
    with ExitStack() as stack:
        placed.functions(stack)
        seam.trouble = placed.probe(data)
        yield seam


def seeded(seed: int) -> None:
    """Begin with the same random numbers in both arms."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def contents(sample: Any) -> list[Any]:
    """Return a sample's values in an order, and what the generators have come to."""
    values = [
        [name, value.numpy() if isinstance(value, torch.Tensor) else repr(value)] for name, value in sample.items()
    ]
    return [*values, random.random(), float(np.random.random()), float(torch.rand(()))]


def done(sample: Any) -> Any:
    """Return a sample with its last pixels, where they have been left undone."""
    from yolo_patches.loading.last_pixels import together
    from yolo_patches.upstreams.ultralytics.sample_remainders import REMAINDER

    left = getattr(sample["img"], REMAINDER, None)
    return sample if left is None else {**sample, "img": together(sample["img"][None], [left])[0]}


def compare(theirs: Any, ours: Any, samples: int) -> dict[str, Any]:
    """Return how many samples were equal in every byte, and how often each part stood in."""
    different, worst = [], {"mean": 0.0, "most": 0, "mean of all": 0.0}
    with fast(ours) as seam:
        pass
    for index in range(samples):
        made = []
        for arm in (theirs, ours):
            seeded(index)
            with fast_functions(ours) if arm is ours else nullcontext():
                made.append(contents(done(arm[index % len(arm)])))
        if LEVEL != "exact":
            nearly(made, worst)
        if not alike(*made):
            what = [
                str(one[0] if isinstance(one, list) else "random numbers")
                for one, two in zip(*made)
                if not alike(one, two)
            ]
            different.append([index, *what])
    return {
        "samples": samples,
        "different": different[:10],
        **({"pixels": {**worst, "mean of all": worst["mean of all"] / samples}} if LEVEL != "exact" else {}),
        "trouble": [*seam.ledger.trouble(), *([seam.trouble] if seam.trouble else [])],
        "stood in": dict(zip(seam.ledger.names, seam.ledger.counts[:, 0].tolist())),
    }


def nearly(made: list[list[Any]], worst: dict[str, Any]) -> None:
    """Note by how much the images of two samples differ, and take one for both."""
    for one, two in zip(*made):
        if isinstance(one, list) and one[0] == "img" and one[1].shape == two[1].shape:
            apart = np.abs(one[1].astype(np.int16) - two[1])
            worst["mean"], worst["most"] = max(worst["mean"], float(apart.mean())), max(worst["most"], int(apart.max()))
            worst["mean of all"] += float(apart.mean())
            two[1] = one[1]


@contextmanager
def fast_functions(data: Any) -> Iterator[None]:
    """Have upstream's functions replaced, and pixels left undone, as in a worker of the training loader."""
    from yolo_patches.upstreams.ultralytics.sample_remainders import leaving

    with ExitStack() as stack, leaving():
        if "build_transforms" in vars(data):  # a classification set has none
            data.build_transforms._transform.__self__.functions(stack)
        yield


def timed(arm: Any, samples: int, start: int) -> float:
    """Return CPU milliseconds a sample."""
    begun = time.process_time()
    for index in range(start, start + samples):
        arm[index % len(arm)]
    return (time.process_time() - begun) / samples * 1e3


def measure(theirs: Any, ours: Any, samples: int, rounds: int) -> dict[str, float]:
    """Return medians of both arms, which take turns, and their ratio."""
    with fast(ours):
        pass
    spent: dict[str, list[float]] = {"upstream": [], LEVEL: []}
    for turn in range(rounds + 1):
        for name, arm in (("upstream", theirs), (LEVEL, ours)):
            seeded(turn)
            with fast_functions(ours) if arm is ours else nullcontext():
                spent[name].append(timed(arm, samples, turn * samples))
    medians = {name: statistics.median(values[1:]) for name, values in spent.items()}
    return {**medians, "ratio": medians["upstream"] / medians[LEVEL]}


def starved(theirs: Any, ours: Any, batches: int) -> dict[str, float]:
    """Return images a second of a consumer that needs 5 ms a batch and has two workers."""
    from ultralytics.data import build_dataloader

    spent: dict[str, list[float]] = {"upstream": [], LEVEL: []}
    with fast(ours):
        pass
    for _ in range(3):
        for name, arm in (("upstream", theirs), (LEVEL, ours)):
            with fast_functions(ours) if arm is ours else nullcontext():
                loader = build_dataloader(arm, 16, 2, shuffle=True)
                batch = iter(loader)
                for _ in range(4):
                    next(batch)
                begun = time.perf_counter()
                for _ in range(batches):
                    try:
                        next(batch)
                    except StopIteration:
                        batch = iter(loader)
                        next(batch)
                    time.sleep(0.005)
                spent[name].append(16 * batches / (time.perf_counter() - begun))
                del batch, loader
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return {**medians, "ratio": medians[LEVEL] / medians["upstream"]}


def main() -> None:
    """Print one line of JSON a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--compare", type=int, default=0)
    parser.add_argument("--starved", action="store_true")
    parser.add_argument("--cases", default="")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    import ultralytics

    from yolo_patches.upstreams.ultralytics import samples

    print(json.dumps({
        "ultralytics": ultralytics.__version__, "opencv": cv2.__version__, "numpy": np.__version__,
        "machine": platform.machine(), "cores": os.cpu_count(),
    }))  # fmt: skip
    names = args.cases.split(",") if args.cases else (CASES if args.compare else ("boxes",) if args.starved else TIMED)
    with tempfile.TemporaryDirectory() as folder:
        made: dict[Any, Path] = {}
        for name in names:
            sizes, labels, task, arguments = CASES[name]
            key = labels, sizes
            if key not in made:
                place = Path(folder) / str(len(made))
                if labels == "classes":
                    made[key] = photographs.classes(place, args.images, sizes)
                else:
                    make = photographs.make if sizes else photographs.odd
                    made[key] = make(place, *([args.images, sizes] if sizes else []), labels)
            theirs, ours = (dataset(made[key], task, arguments, args.imgsz) for _ in range(2))
            if not samples.samples(ours).known:
                found: dict[str, Any] = {"known": []}
            elif args.compare:
                found = compare(theirs, ours, args.compare)
            elif args.starved:
                found = starved(theirs, ours, args.batches)
            else:
                found = measure(theirs, ours, args.samples, args.rounds)
            print(json.dumps({"case": name, **found}), flush=True)


if __name__ == "__main__":
    main()
