"""Host memory of trainings with cache=ram, upstream and shared-cache, at several numbers of ranks.

Real trainings by torchrun on CPU ranks; while they train, the memory of every rank and loader worker is read from the
system. RSS counts a page once for each process that has it, PSS shares it among them: PSS is what the machine is short
of. "images" is what the run takes more than the same run without a cache.

    python benchmarks/host_memory.py [--images 600] [--imgsz 320] [--ranks 1,2,4] [--workers 1] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from photographs import SMALL, make

MIB = 1 << 20
#: Looks at a training, a second apart; the largest sum counts.
LOOKS = 5


def held(launcher: int) -> tuple[float, float]:
    """Return RSS and PSS of everything that a launcher has started, in MiB."""
    rss = pss = 0
    for process in psutil.Process(launcher).children(recursive=True):
        try:
            found = process.memory_full_info()
        except psutil.Error:
            continue
        rss, pss = rss + found.rss, pss + found.pss
    return rss / MIB, pss / MIB


def measure(options: argparse.Namespace, data: Path, project: Path, ranks: int, cache: str, spec: str) -> list[float]:
    """Return the peaks of RSS and PSS of one training, which is ended in its second epoch."""
    name = f"{ranks}-{cache}-{spec}"
    words = [
        "model=yolov8n.yaml", f"data={data}", f"imgsz={options.imgsz}", "batch=8", "epochs=1000", "device=cpu",
        f"workers={options.workers}", "plots=False", f"project={project}", f"name={name}", f"cache={cache}",
        "val=False", f"patches={spec}",
    ]  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    log = project / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "yolo_patches", "train", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        while not (project / name / "results.csv").exists():  # every image has been read by then
            if process.poll() is not None:
                sys.exit(log.read_text()[-4000:])
            time.sleep(0.2)
        peaks = [0.0, 0.0]
        for _ in range(LOOKS):
            peaks = [max(pair) for pair in zip(peaks, held(process.pid))]
            time.sleep(1)
        return peaks
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        for child in [*children, process]:
            child.kill()
        process.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--workers", type=int, default=1, help="loader workers a rank")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        data = make(Path(name, "photographs"), options.images, SMALL, "boxes")
        for ranks in map(int, options.ranks.split(",")):
            plain = measure(options, data, Path(name), ranks, "False", "torchrun")
            for spec in ("torchrun", "torchrun,shared-cache"):
                rss, pss = measure(options, data, Path(name), ranks, "ram", spec)
                row = {
                    "ranks": ranks, "patches": spec, "rss": rss, "pss": pss,
                    "images_rss": rss - plain[0], "images_pss": pss - plain[1],
                }  # fmt: skip
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("ranks  patches                  RSS MiB  PSS MiB  images: RSS    PSS")
    for row in rows:
        print(
            f"{row['ranks']:5}  {row['patches']:22} {row['rss']:9.0f}{row['pss']:9.0f}{row['images_rss']:13.0f}"
            f"{row['images_pss']:7.0f}"
        )


if __name__ == "__main__":
    main()
