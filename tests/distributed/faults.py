"""What is injected into trainings of two ranks, what upstream loses by it, and what we lose (docs/faults.md).

    python -m tests.distributed.faults [--moments ...] [--faults ...] [--specs ...]

Without the package Ultralytics has no ranks on the CPU, so `torchrun` alone stands for upstream. Each line says how
long the launcher took to end, with what status, and whether last.pt can be loaded.
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

from tests.distributed.fault_rank import MOMENTS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "distributed" / "fault_rank.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
FAULTS = ("killed", "raising", "stopped")
LONGEST = 150


def inject(data, folder, spec, fault, moment, rank, epochs=2, environment=None):
    """Train with a fault; return what came of it."""
    job = {"data": data, "project": str(folder), "patches": spec, "epochs": epochs, "fault": fault, "moment": moment}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*TORCHRUN, str(SCRIPT), json.dumps({**job, "rank": rank})],
            cwd=folder, env=environment or os.environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            status = "hangs"
            os.killpg(process.pid, 9)
            process.wait()
        log.seek(0)
        text = log.read()
    return {
        "status": status,
        "seconds": round(time.monotonic() - started, 1),
        "last.pt": loads(Path(folder, "run", "weights", "last.pt")),
        "best.pt": loads(Path(folder, "run", "weights", "best.pt")),
        "log": text,
    }


def loads(file):
    """Return whether a checkpoint is there and whole."""
    import torch

    if not file.is_file():
        return False
    try:
        torch.load(file, map_location="cpu", weights_only=False)
    except Exception:
        return "broken"
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", default=FAULTS, choices=FAULTS)
    parser.add_argument("--moments", nargs="+", default=list(MOMENTS), choices=list(MOMENTS))
    parser.add_argument("--specs", nargs="+", default=("torchrun", "all"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make = [sys.executable, str(ROOT / "examples/make_digits.py"), str(root / "digits"), "--train", "16"]
        subprocess.run([*make, "--val", "12", "--imgsz", "64"], check=True, stdout=subprocess.DEVNULL)
        print("| fault | moment | rank | " + " | ".join(options.specs) + " |")
        print("|---" * (3 + len(options.specs)) + "|")
        for fault in options.faults:
            for moment in options.moments:
                for rank in (0, 1):
                    cells = []
                    for number, spec in enumerate(options.specs):
                        folder = root / f"{fault}-{moment}-{rank}-{number}".replace(" ", "-")
                        folder.mkdir()
                        seen = inject(str(root / "digits" / "data.yaml"), folder, spec, fault, moment, rank)
                        kept = {True: "last.pt whole", False: "no last.pt", "broken": "last.pt BROKEN"}[seen["last.pt"]]
                        ends = "trains to the end" if seen["status"] == 0 else f"ends ({seen['status']})"
                        cells.append(f"{ends}, {seen['seconds']:.0f} s, {kept}")
                    print(f"| {fault} | {moment} | {rank} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
