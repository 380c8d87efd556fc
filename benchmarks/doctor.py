"""What `doctor --measure` foretells of runs, against the runs: seconds of an epoch, of two models at two batches.

    python benchmarks/doctor.py [--seconds 20] [--epochs 12] [--images 64] [--rounds 2]

It trains on handwritten digits, as they are measured; the ratio should be between 0.87 and 1.15 on a machine that does
nothing else. The first epoch, in which everything is read for once, is left out of the run's.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
#: Model -> its data set's task.
MODELS = {"yolo11n.yaml": "detect", "yolov8n-seg.yaml": "segment"}
BATCHES = (4, 8)


def foretold(words: list[str], seconds: float) -> float:
    """Return the seconds of an epoch that doctor measures."""
    command = [sys.executable, "-m", "yolo_patches", "doctor", "--json", "--measure", str(seconds)]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    return float(json.loads(done.stdout)["measured"]["measured"]["epoch"])


def taken(words: list[str], folder: str, name: str) -> float:
    """Return the median seconds of the epochs of a run."""
    command = [sys.executable, "-m", "yolo_patches", "train", *words, f"project={folder}", f"name={name}"]
    subprocess.run(command, capture_output=True, check=True)
    with (Path(folder) / name / "results.csv").open() as file:
        times = [float(row["time"]) for row in csv.DictReader(file)]
    return median(later - sooner for sooner, later in zip(times, times[1:]))


def main() -> None:
    """Measure, and train, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "examples"))
    from make_digits import make_digits

    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for model, task in MODELS.items():
            sizes = {"train": options.images, "val": options.images // 2, "imgsz": 96}
            data = make_digits(Path(folder) / task, task=task, **sizes)
            for batch, number in product(BATCHES, range(options.rounds)):
                words = [
                    f"model={model}", f"data={data}", f"epochs={options.epochs}", "imgsz=96", f"batch={batch}",
                    "workers=2", "device=cpu", "plots=False", "cache=ram", "optimizer=SGD", "patches=none",
                ]  # fmt: skip
                said = foretold(words, options.seconds)
                was = taken(words, folder, f"{task}-{batch}-{number}")
                ratios.append(said / was)
                line = (
                    f"{model}, batch {batch}: an epoch: foretold {said:.3f} s, was {was:.3f} s, ratio {said / was:.3f}"
                )
                print(line, flush=True)
    print(f"median ratio {median(ratios):.3f} on {platform.processor() or platform.machine()}")


if __name__ == "__main__":
    main()
