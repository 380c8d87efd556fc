"""Host memory of trainings with cache=ram, upstream and shared-cache, at several numbers of ranks.

Real trainings by torchrun on CPU ranks. When they are about to begin, every rank reads every image once, as an epoch
would, and tells what it and its loader workers hold. RSS counts a page once for each process that has it, PSS shares it
among them: PSS is what the machine is short of. "images" is what the run takes more than the same run without a cache.

    python benchmarks/host_memory.py [--images 400] [--imgsz 640] [--ranks 1,2,4] [--workers 1] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MIB = 1 << 20


def rank(job: dict[str, Any]) -> None:
    """Be one rank: train to the first step, read every image, tell what is held, and end."""
    import psutil
    from torch import distributed
    from ultralytics import YOLO

    out = Path(job.pop("out"))

    def together() -> None:
        if distributed.is_initialized():  # one rank has no group
            distributed.barrier()

    def look(trainer: Any) -> None:
        for loader in (trainer.train_loader, trainer.test_loader):
            images = loader.dataset.ims
            for image in images if images[0] is not None else ():
                image.sum()
        together()
        process = psutil.Process()
        found = [one.memory_full_info() for one in (process, *process.children(recursive=True))]
        held = [sum(one.rss for one in found), sum(one.pss for one in found)]
        together()  # nobody ends before all have looked
        (out / f"{os.environ['RANK']}.json").write_text(json.dumps(held))
        os._exit(0)

    model = YOLO("yolov8n.yaml")
    model.add_callback("on_train_start", look)
    model.train(**job)


def measure(options: argparse.Namespace, data: Path, project: Path, ranks: int, cache: Any, spec: str) -> list[float]:
    """Return RSS and PSS of all ranks and workers of one training, in MiB."""
    out = project / f"{ranks}-{cache}-{spec}"
    out.mkdir()
    job = {
        "data": str(data), "imgsz": options.imgsz, "batch": 8, "epochs": 1, "device": "cpu", "cache": cache,
        "workers": options.workers, "plots": False, "project": str(out), "patches": spec, "out": str(out),
    }  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [sys.executable, *launcher, __file__, "--rank", json.dumps(job)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    files = sorted(out.glob("*.json"))
    if len(files) < ranks:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    return [sum(values) / MIB for values in zip(*(json.loads(file.read_text()) for file in files))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--workers", type=int, default=1, help="loader workers a rank")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rank", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        rank(options.rank)
    from photographs import SMALL, make

    rows = []
    with tempfile.TemporaryDirectory() as name:
        data = make(Path(name, "photographs"), options.images, SMALL, "boxes")
        for ranks in map(int, options.ranks.split(",")):
            plain = measure(options, data, Path(name), ranks, False, "torchrun")
            for spec in ("torchrun", "torchrun,shared-cache"):
                rss, pss = measure(options, data, Path(name), ranks, "ram", spec)
                images = {"images_rss": rss - plain[0], "images_pss": pss - plain[1]}
                rows.append({"ranks": ranks, "patches": spec, "rss": rss, "pss": pss, **images})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
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
