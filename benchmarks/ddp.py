"""What N ranks cost: step time and collectives of upstream, sync-bn, and all patches, as ratios.

Each round trains once with every selection, one after the other on the same images, so that a machine whose speed
drifts slows all of them; a step's time is the median of a training, the ratio the median over rounds.

    python benchmarks/ddp.py [--ranks 2] [--imgsz 64 128] [--rounds 3] [--model yolo11n.yaml] [--device cpu] [--json]

Bars on two CPU ranks: at most 2 times upstream's step, and 2 collectives a BatchNorm layer a step. `--device cuda` puts
all ranks on one GPU, through gloo.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: gloo on CUDA as well: NCCL refuses ranks that share a GPU.
SELECTIONS = {name: f"{spec},torchrun:backend=gloo" for name, spec in
              {"upstream": "none", "sync-bn": "sync-bn", "all": "all"}.items()}  # fmt: skip
#: What sync-bn and loss-norm call, beside their exchange over sockets. DistributedDataParallel's own reduction is in
#: C++ and the same for all selections.
COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "_all_gather_base", "all_to_all_single")
WARM = 4  # steps that are not counted


def worker(job: dict[str, Any]) -> None:
    """Train as one rank, and print the median step as rank 0."""
    import torch
    import torch.distributed as dist

    import yolo_patches.api

    yolo_patches.api.watch()
    from ultralytics import YOLO

    from yolo_patches.nn.neighbours import Neighbours

    torch.set_num_threads(1)
    calls, times = [0], []

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            return function(*args, **kwargs)

        return call

    for name in COLLECTIVES:
        if hasattr(dist, name):
            setattr(dist, name, counted(getattr(dist, name)))
    Neighbours.send = counted(Neighbours.send)  # type: ignore[method-assign]

    def begin(trainer: Any) -> None:
        if job["device"] == "cuda":
            torch.cuda.synchronize()
        calls[0] = 0
        times.append(-time.perf_counter())

    def end(trainer: Any) -> None:
        if job["device"] == "cuda":
            torch.cuda.synchronize()
        times[-1] += time.perf_counter()
        steps.append(calls[0])

    steps: list[int] = []
    layers: list[int] = []
    yolo = YOLO(job["model"])
    yolo.add_callback("on_train_batch_start", begin)
    yolo.add_callback("on_train_batch_end", end)
    yolo.add_callback(
        "on_train_start",
        lambda trainer: layers.append(sum(isinstance(m, torch.nn.BatchNorm2d) for m in trainer.model.modules())),
    )
    on_cpu = {"device": "cpu"} if job["device"] == "cpu" else {}
    yolo.train(
        data=job["data"], project=job["project"], patches=job["patches"], imgsz=job["imgsz"], batch=job["batch"],
        nbs=job["batch"], epochs=4, val=False, plots=False, verbose=False, amp=False, workers=0, mosaic=0.0, **on_cpu,
    )  # fmt: skip
    if int(os.environ["RANK"]) == 0:
        print()
        print(json.dumps({"step": statistics.median(times[WARM:]), "calls": steps[-1], "layers": layers[0]}))


def measure(options: argparse.Namespace, data: str, folder: Path, imgsz: int, patches: str) -> dict[str, Any]:
    """Start the ranks of one training and return what rank 0 measured."""
    job = {**vars(options), "data": data, "project": str(folder), "imgsz": imgsz, "patches": patches}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks)]
    command = [sys.executable, *launcher, __file__, "--worker", json.dumps(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    if done.returncode:
        sys.exit(f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--worker"]:
        worker(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--imgsz", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batch", type=int, default=16, help="global batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="yolo11n.yaml")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for imgsz in options.imgsz:
            data = folder / f"digits-{imgsz}"
            maker = [sys.executable, ROOT / "examples/make_digits.py", data, "--train", "96", "--val", "8"]
            subprocess.run([*maker, "--imgsz", str(imgsz)], check=True, capture_output=True)
            rounds = [
                {
                    name: measure(options, f"{data}/data.yaml", folder, imgsz, patches)
                    for name, patches in SELECTIONS.items()
                }
                for _ in range(options.rounds)
            ]
            for name in SELECTIONS:
                ratios = [each[name]["step"] / each["upstream"]["step"] for each in rounds]
                results.append(
                    {
                        "imgsz": imgsz,
                        "selection": name,
                        "step_ms": round(1000 * statistics.median(each[name]["step"] for each in rounds), 1),
                        "ratio": round(statistics.median(ratios), 3),
                        "collectives_per_step": rounds[0][name]["calls"],
                        "layers": rounds[0][name]["layers"],
                    }
                )
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for row in results:
        print(
            f"{row['imgsz']:4} px  {row['selection']:9} {row['step_ms']:8.1f} ms  ratio {row['ratio']:.2f}  "
            f"{row['collectives_per_step']} collectives in {row['layers']} BatchNorm layers"
        )


if __name__ == "__main__":
    main()
