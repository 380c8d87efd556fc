"""`yolo-patches verify`: whether N ranks train like one process, in this environment.

Three real trainings on the same images, in float64 on the CPU: one process, N ranks of upstream, N ranks patched. What
the ranks get is compared with what the one process gets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yolo_patches.errors import PatchesError

#: What is compared -> largest relative error that counts as equal (DESIGN: gradient 1e-10, statistics 1e-12).
LIMITS: Mapping[str, float] = {"gradient": 1e-10, "BatchNorm statistics": 1e-12, "trajectory": 1e-8}
#: gloo on CUDA as well: NCCL refuses ranks that share a GPU.
PATCHES = {"upstream": "torchrun:backend=gloo", "patched": "torchrun:backend=gloo,sync-bn,loss-norm"}
WORKER = ["-m", "yolo_patches.upstreams.ultralytics.proof"]
TASKS = {"seg": "segment", "pose": "pose", "obb": "obb"}


def verify(
    model: str,
    world_size: int,
    optimizer: str = "SGD",
    steps: int = 6,
    device: str = "cpu",
    dtype: str = "float64",
) -> dict[str, Any]:
    """Measure, and judge by `LIMITS`.

    Args:
        model: An Ultralytics model file of the tasks detect, segment, pose or obb, e.g. "yolo11n.yaml".
        world_size: Number of ranks, at least 2.
        optimizer: Upstream's name of it.
        steps: Optimizer steps of the trajectory.
        device: "cpu" or "cuda", where all ranks share one GPU.
        dtype: What is computed in; `LIMITS` are meant for float64.

    Returns:
        model, world_size, optimizer, errors: {"upstream": {what: relative error}, "patched": ...}, limits, and holds:
        whether every error of "patched" is within its limit.

    Raises:
        PatchesError: The arguments are not valid, or a training failed.
    """
    if world_size < 2:
        raise PatchesError(f"verify: {world_size} is not a number of ranks to compare with one process; give 2 or more")
    from yolo_patches.upstreams.ultralytics.proof import Job, make_data

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = TASKS.get(Path(model).stem.partition("-")[2], "detect")
        batch = 4 * world_size
        data = str(make_data(folder / "data", task, batch))
        runs = {}
        for run, ranks, spec in (
            ("one", 1, "none"),
            *((run, world_size, spec) for run, spec in PATCHES.items()),
        ):
            seed = 1 if ranks == 1 else 0  # so that the one process draws the weights that rank 0 draws
            out = str(folder / f"{run}.pt")
            job = Job(model, data, out, spec, batch, optimizer, steps, seed, device, dtype)
            _start(json.dumps(asdict(job)), ranks, folder)
            runs[run] = _load(job.out)
    errors = {run: _errors(runs[run], runs["one"]) for run in PATCHES}
    return {
        "model": model,
        "world_size": world_size,
        "optimizer": optimizer,
        "errors": errors,
        "limits": dict(LIMITS),
        "holds": all(errors["patched"][what] <= limit for what, limit in LIMITS.items()),
    }


def _start(job: str, ranks: int, folder: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, *WORKER, job]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise PatchesError(f"verify: a training with {ranks} ranks failed:\n{(done.stdout + done.stderr)[-3000:]}")


def _load(file: str) -> dict[str, Any]:
    import torch

    values: dict[str, Any] = torch.load(file, weights_only=True)
    return values


def _errors(run: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, float]:
    def error(key: str) -> float:
        return float((run[key] - one[key]).norm() / one[key].norm())

    return {
        "gradient": error("gradient"),
        "BatchNorm statistics": error("statistics"),
        "trajectory": max(error("parameters"), error("buffers"), error("ema")),
    }
