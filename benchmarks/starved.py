"""A consumer that is faster than its loader: images a second that reach it, upstream against feeding and fast-load.

    python benchmarks/starved.py [--images 120] [--batches 40] [--rounds 3] [--workers 2] [--milliseconds 5] [WORDS...]

WORDS are arguments of `yolo train`, e.g. task=segment mixup=0.15 copy_paste=0.3. The data set is made: photographs of
640x480 with polygons. Each arm is a process of its own that reads batches of 16 with two workers, and lets 5 ms pass
after each, as a fast accelerator would; arms take turns, figures are medians of the rounds. Nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from yolo_patches.activation import ENVIRONMENT
from yolo_patches.upstreams.ultralytics.loading_figures import ANSWER, instead_of_training, prepared


def starve(trainer: Any, workers: int, batches: int, seconds: float) -> float:
    """Return the images a second that reach a consumer.

    Args:
        trainer: Upstream's.
        workers: Of the loader.
        batches: How many are read, once what was made ahead is used up.
        seconds: What the consumer takes for each.
    """
    data, batch = prepared(trainer)
    trainer.args.workers = workers  # upstream has none of them on a CPU
    loader = trainer.get_dataloader(data, batch, rank=-1, mode="train")
    assert loader.num_workers == workers, "there are not enough images, or cores"
    read = chain.from_iterable(repeat(loader))
    for _ in islice(read, workers * (loader.prefetch_factor or 0) + 1):
        pass
    begun, images = time.perf_counter(), 0
    for one in islice(read, batches):
        images += len(one["img"])
        time.sleep(seconds)
    return images / (time.perf_counter() - begun)


def arm(selection: str, words: list[str], options: argparse.Namespace) -> float:
    """Read in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        child = [sys.executable, __file__, "--child", scratch, *options.passed, *words]
        done = subprocess.run(child, env={**os.environ, ENVIRONMENT: selection}, capture_output=True, text=True)
        answer = Path(scratch, ANSWER)
        if not answer.exists():
            raise SystemExit(done.stderr[-3000:])
        return float(json.loads(answer.read_text()))


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--milliseconds", type=float, default=5.0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    options.passed = [f"--{name}={getattr(options, name)}" for name in ("batches", "workers", "milliseconds")]
    if options.child:
        instead_of_training(
            lambda trainer: starve(trainer, options.workers, options.batches, options.milliseconds / 1000),
            options.child,
            options.words,
        )
    import photographs
    import ultralytics

    arms = {
        "upstream": "none", "feeding": "feeding", "exact": "fast-load", "near": "fast-load:level=near",
        "near and feeding": "fast-load:level=near,feeding",
    }  # fmt: skip
    seen: dict[str, list[float]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        data = photographs.make(Path(folder) / "data", options.images, photographs.SMALL, "polygons")
        words = ["train", "model=yolov8n.yaml", f"data={data}", "batch=16", *options.words]
        for _ in range(options.rounds):
            for name, selection in arms.items():
                seen[name].append(arm(selection, words, options))
    medians = {name: statistics.median(values) for name, values in seen.items()}
    ratios = {f"{name}/upstream": medians[name] / medians["upstream"] for name in arms}
    print(json.dumps({
        "ultralytics": ultralytics.__version__, "machine": platform.machine(), "cores": os.cpu_count(),
        "words": options.words, "images/s": medians, **ratios,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
