"""What a validation costs beside its model: upstream against fast-val, stage by stage.

    python benchmarks/validation.py [--images 64] [--rounds 5] [--json]   # the stages
    python benchmarks/validation.py --whole [--images 48] [--rounds 3]   # a whole pass, with allocator=true

    python benchmarks/validation.py --run [--images 64] [--rounds 3]     # a run's wall time with each of the patches

The stages: the real trainer validates photographs-sized images with 80 classes, and a stand-in for the model gives
predictions as crowded as those of a model in training (976, 2,259 and 4,826 candidates an image). Both arms are in one
process and take turns; the figures are medians, in milliseconds an image.

The whole pass is the real model. The allocator's settings are for a whole process and cannot be taken back, so that
each arm is a process of its own, and they take turns.

Bars: beside inference and loss at least 3.5 times as fast with 976 candidates, 5 times with 2,259, with equal metrics;
a whole pass at least twice as fast with the allocator's settings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))
CLASSES, OBJECTS = 80, 12
STRIDES = (8, 16, 32)
CANDIDATES = (976, 2259, 4826)
#: Batches in which fast-val compares its parts with upstream's.
COMPARED = 4


class ReadyError(Exception):
    """The trainer is ready."""


def photographs(folder: Path, images: int) -> str:
    """Make a data set of JPEG files, and return its `data=`."""
    import cv2
    from make_digits import make_digits

    data = make_digits(folder / "digits", train=16, val=images, imgsz=640)
    for file in (folder / "digits").rglob("*.png"):
        cv2.imwrite(str(file.with_suffix(".jpg")), cv2.imread(str(file)), [cv2.IMWRITE_JPEG_QUALITY, 90])
        file.unlink()
    return str(data)


def trainer(data: str, folder: str, patches: str, batch: int = 16, size: int = 640) -> Any:
    """Return a trainer with everything built and no step made."""
    from ultralytics import YOLO

    def stop(_: Any) -> None:
        raise ReadyError

    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_start", stop)
    with contextlib.suppress(ReadyError):
        model.train(
            data=data, project=folder, epochs=2, imgsz=size, batch=batch, device="cpu", workers=0, plots=False,
            verbose=False, patches=patches,
        )  # fmt: skip
    model.trainer.epoch = 0
    return model.trainer


class Crowd:
    """Stands in for the model: predictions around the real objects, and around others.

    Args:
        candidates: Scores over the threshold, of each image.
        batches: The batches that it will be asked for, in their order.
        classes: How many there are.
    """

    def __init__(self, candidates: int, batches: list[dict[str, Any]], classes: int = CLASSES) -> None:
        self.outputs = [self._output(batch, candidates, classes, index) for index, batch in enumerate(batches)]
        self.turn = 0

    def __call__(self, images: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, list[Any]]:
        """Return the predictions of the next batch."""
        self.turn += 1
        return self.outputs[(self.turn - 1) % len(self.outputs)].clone(), []

    @staticmethod
    def _output(batch: dict[str, Any], candidates: int, classes: int, seed: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(seed)
        count, size = len(batch["img"]), batch["img"].shape[-1]
        anchors = sum((size // stride) ** 2 for stride in STRIDES)
        output = torch.zeros(count, 4 + classes, anchors)
        for image in range(count):
            mine = batch["batch_idx"] == image
            boxes, labels = batch["bboxes"][mine] * size, batch["cls"][mine].long().flatten()
            others = OBJECTS - len(boxes)
            if others > 0:
                spot = torch.rand(others, 4, generator=random) * size * torch.tensor([0.8, 0.8, 0.3, 0.3])
                boxes = torch.cat((boxes, spot + torch.tensor([64.0, 64.0, 16.0, 16.0])))
                labels = torch.cat((labels, torch.randint(0, classes, (others,), generator=random)))
            which = torch.randint(0, len(boxes), (anchors,), generator=random)
            jitter = torch.randn(anchors, 4, generator=random)
            output[image, :2] = (boxes[which, :2] + jitter[:, :2] * boxes[which, 2:] * 0.15).T
            output[image, 2:4] = (boxes[which, 2:] * torch.exp(jitter[:, 2:] * 0.15)).T
            chosen = torch.randperm(anchors * 4, generator=random)[:candidates]
            anchor, other = chosen % anchors, chosen // anchors
            label = (labels[which[anchor]] + other * 7) % classes
            output[image, 4 + label, anchor] = 0.0011 + 0.9 * torch.rand(candidates, generator=random) ** 6
        return output


class Timed:
    """Adds up the time of some of a validator's methods."""

    def __init__(self, validator: Any) -> None:
        self.spent: dict[str, float] = {}
        for name, stage in (("update_metrics", "matching"), ("get_stats", "average precision")):
            self._time(validator, name, stage)

    def _time(self, owner: Any, name: str, stage: str) -> None:
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[stage] = self.spent.get(stage, 0.0) + time.perf_counter() - begin

        setattr(owner, name, timed)


def stages(arm: Any, images: int, timed: Timed) -> tuple[dict[str, float], Any]:
    """Validate once; return milliseconds an image of each stage, and the metrics."""
    timed.spent.clear()
    begin = time.perf_counter()
    metrics, _ = arm.validate()
    total = time.perf_counter() - begin
    speed = arm.validator.metrics.speed
    found = {stage: seconds / images * 1e3 for stage, seconds in timed.spent.items()}
    found |= {"scaling": speed["preprocess"], "suppression": speed["postprocess"]}
    model = speed["inference"] + speed["loss"]
    found["loading and the rest"] = total / images * 1e3 - model - sum(found.values())
    return found, metrics


def beside_the_model(images: int, rounds: int) -> dict[str, Any]:
    """Measure the stages of both arms, at each number of candidates."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = photographs(Path(folder), images)
        arms = {name: trainer(data, folder, spec) for name, spec in (("upstream", "none"), ("fast-val", "fast-val"))}
        timers = {name: Timed(arm.validator) for name, arm in arms.items()}
        batches = list(arms["upstream"].test_loader)
        zeros = {key: torch.zeros(()) for key in ("box_loss", "cls_loss", "dfl_loss")}
        warm = math.ceil(COMPARED / len(batches))
        for candidates in CANDIDATES:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
            metrics = {}
            for index in range(rounds + warm):
                for name in list(arms)[:: 1 if index % 2 else -1]:
                    arm, crowd = arms[name], Crowd(candidates, batches)
                    arm.loss_items, arm.loss = zeros, torch.zeros(())
                    arm.ema.ema.names = dict(enumerate(map(str, range(CLASSES))))
                    arm.ema.ema.forward = crowd
                    arm.ema.ema.loss = lambda *_: (None, zeros)
                    seen, metrics[name] = stages(arm, images, timers[name])
                    if index >= warm:  # the first read, compile and compare
                        found[name].append(seen)
            medians = {
                name: {stage: statistics.median(one[stage] for one in ones) for stage in ones[0]}
                for name, ones in found.items()
            }
            sums = {name: [sum(one.values()) for one in ones] for name, ones in found.items()}
            ratio = statistics.median(a / b for a, b in zip(sums["upstream"], sums["fast-val"]))
            equal = metrics["upstream"] == metrics["fast-val"]
            figures[str(candidates)] = {**medians, "ratio": ratio, "equal": equal, "metrics": metrics["upstream"]}
    return figures


ONE_PASS = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(int(sys.argv[5]))
from validation import trainer
arm = trainer(sys.argv[2], sys.argv[3], sys.argv[4])
arm.loss_items, arm.loss = {key: torch.zeros(()) for key in ("box_loss", "cls_loss", "dfl_loss")}, torch.zeros(())
arm.validate()
begin = time.perf_counter()
arm.validate()
print()
print(time.perf_counter() - begin)
"""


RUN = """
import sys, time
import torch
torch.set_num_threads(int(sys.argv[4]))
from ultralytics import YOLO
begin = time.perf_counter()
YOLO("yolo11n.yaml").train(
    data=sys.argv[1], project=sys.argv[2], epochs=6, imgsz=320, batch=16, device="cpu", plots=False, verbose=False,
    patches=sys.argv[3],
)
print()
print(time.perf_counter() - begin)
"""
#: Validations take their turns with training, are left out, cost less, or run beside it (here on the same cores).
RUNS = ("none", "val-period:every=3", "fast-val", "fast-val:allocator=true", "async-val:device=same")


def whole_run(images: int, rounds: int) -> dict[str, Any]:
    """Measure the wall time of a run of six epochs with each patch, in processes that take turns."""
    found: dict[str, list[float]] = {spec: [] for spec in RUNS}
    with tempfile.TemporaryDirectory() as folder:
        data = photographs(Path(folder), images)
        for index in range(rounds):
            for spec in RUNS[:: 1 if index % 2 else -1]:
                words = (data, folder, spec, torch.get_num_threads())
                done = subprocess.run(
                    [sys.executable, "-c", RUN, *map(str, words)], check=True, capture_output=True, text=True
                )
                found[spec].append(float(done.stdout.strip().splitlines()[-1]))
    return {
        spec: {
            "seconds": statistics.median(times),
            "ratio": statistics.median(a / b for a, b in zip(found["none"], times)),
        }
        for spec, times in found.items()
    }


def whole_pass(images: int, rounds: int) -> dict[str, Any]:
    """Measure a pass of the real model in processes that take turns."""
    specs = ("none", "fast-val", "fast-val:allocator=true")
    found: dict[str, list[float]] = {spec: [] for spec in specs}
    with tempfile.TemporaryDirectory() as folder:
        data = photographs(Path(folder), images)
        for index in range(rounds):
            for spec in specs[:: 1 if index % 2 else -1]:
                words = (ROOT / "benchmarks", data, folder, spec, torch.get_num_threads())
                done = subprocess.run(
                    [sys.executable, "-c", ONE_PASS, *map(str, words)], check=True, capture_output=True, text=True
                )
                found[spec].append(float(done.stdout.strip().splitlines()[-1]) / images * 1e3)
    ratios = {spec: statistics.median(a / b for a, b in zip(found["none"], times)) for spec, times in found.items()}
    return {spec: {"ms an image": statistics.median(times), "ratio": ratios[spec]} for spec, times in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--whole", action="store_true", help="a whole pass with the real model")
    parser.add_argument("--run", action="store_true", help="a whole run, with each of the patches")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure = whole_run if options.run else whole_pass if options.whole else beside_the_model
    figures = measure(options.images, options.rounds)
    if options.json:
        print(json.dumps(figures, indent=2, default=float))
        return
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {options.threads} thread(s)")
    for name, figure in figures.items():
        if options.run:
            print(f"{name:26} {figure['seconds']:8.1f} s, upstream's time over it {figure['ratio']:.2f}")
            continue
        if options.whole:
            print(f"{name:26} {figure['ms an image']:8.1f} ms an image, upstream's time over it {figure['ratio']:.2f}")
            continue
        print(f"{name} candidates an image: {figure['ratio']:.2f} times as fast, metrics equal: {figure['equal']}")
        for stage, upstream in figure["upstream"].items():
            ours = figure["fast-val"][stage]
            print(f"    {stage:22} {upstream:8.2f} -> {ours:7.2f} ms")


if __name__ == "__main__":
    main()
