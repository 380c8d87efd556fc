"""mAP of one process and of N ranks on the same global batch, upstream and patched: whether ranks train like one.

Real trainings on the digits set, with upstream's default augmentation, one after the other. One process counts as rank
-1 in upstream's seed and rank 0 of several as 0: the seeds are shifted so that all start from the same weights.

    python benchmarks/world_size.py [--ranks 4] [--batch 16] [--epochs 15] [--seeds 3] [--json]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METRIC = "metrics/mAP50-95(B)"


def train(options: argparse.Namespace, data: Path, project: Path, ranks: int, spec: str, seed: int) -> float:
    """Return the mAP50-95 after the last epoch of one training."""
    name = f"{ranks}-{spec}-{seed}"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    words = [
        f"model={options.model}", f"data={data}/data.yaml", f"imgsz={options.imgsz}", f"batch={options.batch}",
        f"nbs={options.batch}", f"epochs={options.epochs}", f"seed={seed if ranks > 1 else seed + 1}", "device=cpu",
        "workers=0", "plots=False", f"project={project}", f"name={name}", f"patches={spec}",
    ]  # fmt: skip
    command = [sys.executable, *launcher, "-m", "yolo_patches", "train", *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    with open(project / name / "results.csv") as file:
        return float([{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)][-1][METRIC])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16, help="global batch")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=640, help="training images")
    parser.add_argument("--imgsz", type=int, default=96)
    parser.add_argument("--model", default="yolo11n.yaml")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = ((1, "none"), (1, "all"), (options.ranks, "torchrun"), (options.ranks, "all"))
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name, "digits")
        sizes = ["--train", str(options.images), "--val", "160", "--imgsz", str(options.imgsz)]
        maker = [sys.executable, ROOT / "examples/make_digits.py", data, *sizes]
        subprocess.run([str(word) for word in maker], check=True, capture_output=True)
        for seed in range(options.seeds):
            for ranks, spec in runs:
                row = f"{ranks} rank{'s' * (ranks > 1)}, {'patched' if spec == 'all' else 'upstream'}"
                found.setdefault(row, []).append(train(options, data, Path(name), ranks, spec, seed))
                print(f"seed {seed}, {row}: {found[row][-1]:.4f}", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for row, values in found.items():
        print(f"{row:20} mean {statistics.mean(values):.4f}  {'  '.join(f'{value:.4f}' for value in values)}")


if __name__ == "__main__":
    main()
