"""`yolo-patches verify`: whether N ranks train like one process, in this environment.

Three real trainings on the same images, in float64 on the CPU: one process, N ranks of upstream, N ranks patched. What
the ranks get is compared with what the one process gets. Upstream's ranks show that the comparison can fail: where it
finds no fault with them, it proves nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yolo_patches.errors import PatchesError
from yolo_patches.report import FILE_NAME

#: What is compared -> largest relative error that counts as equal. A trajectory is compared by the way that parameters
#: have gone, whatever they started from.
LIMITS: Mapping[str, float] = {"gradient": 1e-10, "BatchNorm statistics": 1e-12, "trajectory": 1e-8}
#: gloo on CUDA as well: NCCL refuses ranks that share a GPU.
PATCHES = {"upstream": "torchrun:backend=gloo", "patched": "torchrun:backend=gloo,sync-bn,loss-norm"}
WORKER = ["-m", "yolo_patches.upstreams.ultralytics.proof"]
#: Each rank is a process of half a gigabyte on this machine.
MOST_RANKS = 64
IMAGES_PER_RANK = 4


def verify(
    model: str,
    world_size: int,
    optimizer: str = "SGD",
    steps: int = 6,
    device: str = "cpu",
    dtype: str = "float64",
    rounds: bool = False,
) -> dict[str, Any]:
    """Measure, and judge by `LIMITS`.

    Args:
        model: An Ultralytics model file of the tasks detect, segment, pose or obb, e.g. "yolo11n.yaml".
        world_size: Number of ranks, 2 to `MOST_RANKS`.
        optimizer: Upstream's name of it.
        steps: Optimizer steps of the trajectory.
        device: "cpu" or "cuda", where all ranks share one GPU.
        dtype: What is computed in; `LIMITS` are meant for float64.
        rounds: Let upstream round to float32 and bfloat16 on the way, as it does, in a training in float64, too; then
            rounding alone makes up to 1e-7 of a gradient.

    Returns:
        model, world_size, optimizer, dtype, and rounds: whether upstream has rounded.
        errors: {"upstream": {what: relative error}, "patched": ...}, and limits: {what: largest error}.
        casts: Functions of upstream whose casts to fewer bits were computed in float64.
        blind: What upstream's ranks get right as well, so that it tells nothing.
        holds: Whether every error of "patched" is within its limit, and nothing is blind.

    Raises:
        PatchesError: The arguments are not valid, a training failed, or the trainings cannot be compared.
    """
    if not isinstance(world_size, int) or not 2 <= world_size <= MOST_RANKS:
        raise PatchesError(
            f"verify: {world_size} is not a number of ranks to compare with one process; give 2 to {MOST_RANKS}"
        )
    from yolo_patches.upstreams.ultralytics.proof import Job
    from yolo_patches.upstreams.ultralytics.subjects import make_data, task_of

    task = task_of(model)
    rounds = rounds or dtype != "float64"
    batch = IMAGES_PER_RANK * world_size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = str(make_data(folder / "data", task, batch))
        runs = {}
        for run, spec in {"one": "none", **PATCHES}.items():
            ranks = 1 if run == "one" else world_size
            seed = 1 if ranks == 1 else 0  # so that the one process draws the weights that rank 0 draws
            out = str(folder / f"{run}.pt")
            job = Job(model, os.getcwd(), data, out, spec, batch, optimizer, steps, seed, device, dtype, rounds)
            _start(json.dumps(asdict(job)), run, ranks, folder)
            runs[run] = _load(out)
            _check(run, runs, ranks, batch, spec, folder)
    errors = {run: _errors(runs[run], runs["one"]) for run in PATCHES}
    blind = [what for what, error in errors.get("upstream", {}).items() if error <= LIMITS[what]]
    return {
        "model": model,
        "world_size": world_size,
        "optimizer": optimizer,
        "dtype": dtype,
        "rounds": rounds,
        "errors": errors,
        "limits": dict(LIMITS),
        "casts": sorted({cast for values in runs.values() for cast in values["casts"]}),
        "blind": blind,
        "holds": not blind and all(errors["patched"][what] <= limit for what, limit in LIMITS.items()),
    }


def describe(result: Mapping[str, Any]) -> str:
    """Return a result of `verify` as the lines that its command prints."""
    lines = [
        f"{result['model']}: {result['world_size']} ranks against one process, {result['dtype']}, relative errors",
        f"{'':22}{'upstream':>10}{'patched':>10}{'limit':>10}",
    ]
    for what, limit in result["limits"].items():
        upstream, patched = (result["errors"][run][what] for run in ("upstream", "patched"))
        verdict = "FAILS" if not patched <= limit else "blind" if what in result["blind"] else "ok"
        lines.append(f"{what:22}{upstream:10.1e}{patched:10.1e}{limit:10.0e}  {verdict}")
    if result["blind"]:
        lines.append(
            "blind: upstream's own ranks train like one process here, as far as can be seen; so this check could not "
            "have failed, and proves nothing"
        )
    if not result["rounds"]:
        casts = f", and casts in {', '.join(result['casts'])}" if result["casts"] else ""
        lines.append(f"Upstream puts boxes and losses in float32{casts}; here all of it is computed in float64.")
    return "\n".join(lines)


def _start(job: str, run: str, ranks: int, folder: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    # The workers import what this process does, wherever that lies: in an archive, or beside the user's script.
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    done = subprocess.run(
        [sys.executable, *launcher, *WORKER, job],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    if done.returncode:
        raise PatchesError(_failure(run, ranks, folder, done))


def _failure(run: str, ranks: int, folder: Path, done: subprocess.CompletedProcess[str]) -> str:
    """Return one line that says which training failed, where and why, and below it the trace of the first to fail."""
    what = {
        "one": "upstream's own training, in one process and without any patch,",
        "upstream": f"the training by {ranks} ranks of upstream, without sync-bn and loss-norm,",
    }.get(run, f"the patched training by {ranks} ranks")
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.failed")]
    if reports:
        first = min(reports, key=lambda report: report["time"])
        where = f" on rank {first['rank']}" * (ranks > 1) + f" in {first['module']}" * bool(first["module"])
        return f"verify: {what} failed{where}: {first['error']}\n{first['trace']}"
    output = done.stdout + done.stderr
    ended = re.search(r"Signal \d+ \(\w+\)", output.rpartition("Root Cause")[2])  # the launcher ends the others
    if ended or done.returncode < 0:
        why = ended.group() if ended else signal.Signals(-done.returncode).name
        said = re.split(r"^[WE]\d{4} .*torch/distributed", done.stderr, maxsplit=1, flags=re.MULTILINE)[0][-2000:]
        return f"verify: {what} was ended by {why}; where nobody sent it, memory may have run out\n{said}".rstrip()
    return f"verify: {what} failed:\n{output[-3000:]}"


def _check(run: str, runs: Mapping[str, Any], ranks: int, images: int, spec: str, folder: Path) -> None:
    """Refuse to compare trainings that differ in anything but ranks and patches.

    Args:
        run: The training that has just ended.
        runs: It and all before it.
        ranks: Its number of ranks.
        images: How many images there are.
        spec: The patches that it was told to have.
        folder: Where it has left its files.
    """
    values = runs[run]
    if values["ranks"] != ranks:
        raise PatchesError(f"verify: {ranks} ranks were started, but {values['ranks']} trained together")
    if values["images"] != runs["one"]["images"] or len(set(values["images"])) != images:
        raise PatchesError("verify: ranks and one process were not given the same images, so they cannot be compared")
    if not values["start"].equal(runs["one"]["start"]):
        raise PatchesError(
            "verify: ranks and one process did not start from the same weights, so they cannot be compared"
        )
    file = folder / run / FILE_NAME
    plan = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"patches": []}
    asked = {item.partition(":")[0] for item in spec.split(",")} - {"none"}
    entries = {entry["name"]: entry for entry in plan["patches"]}
    active = {name for name, entry in entries.items() if entry["status"] == "active"}
    for name in sorted(asked ^ active):
        entry = entries.get(name, {"status": "absent", "reason": f"no {FILE_NAME} was written"})
        raise PatchesError(f"verify: {name} was {entry['status']} where patches={spec}: {entry['reason']}")


def _load(file: str) -> dict[str, Any]:
    import torch

    values: dict[str, Any] = torch.load(file, weights_only=True)
    return values


def _errors(run: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, float]:
    def error(key: str, since: str = "") -> float:
        """Return the error of a vector, or of the way that it has gone since it was another."""
        way = one[key] - one[since] if since else one[key]
        return float((run[key] - one[key]).norm() / way.norm())

    return {
        "gradient": error("gradient"),
        "BatchNorm statistics": error("statistics"),
        "trajectory": max(
            error("parameters", "start"), error("ema parameters", "start"), error("buffers"), error("ema buffers")
        ),
    }
