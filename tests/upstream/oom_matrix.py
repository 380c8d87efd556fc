"""How many of many failures of the allocator a training survives, with oom-guard and without.

    python -m tests.upstream.oom_matrix DATA PROJECT [POINTS] [SEED]

Trains 16 images for one epoch, each time with another call failing, drawn from all that ask for at least 4 KiB in
preparation, forward and backward pass, optimizer's step, EMA, validations and checkpoints, and first and last of each.
A run survives where it ends with the weights of the run without failures (1e-10 in float64, BatchNorm frozen).
"""

import json
import random
import subprocess
import sys
from pathlib import Path

RUNS = Path(__file__).with_name("oom_runs.py")
PLACES = ("prepare", "forward", "backward", "step", "ema", "validation", "save")
ARGUMENTS = {"epochs": 1, "nbs": 8}


def matrix(data, project, number, seed, base):
    """Return the results of runs with oom-guard, and of upstream's own."""
    draw = random.Random(seed)
    points = [(where, share) for where in PLACES for share in (0.0, 1.0)]  # the first and the last
    while len(points) < number:
        points.append((draw.choice(PLACES), draw.random()))
    points = points[:number]
    runs = [{"arguments": {**ARGUMENTS, "patches": base}}]
    for patches in (f"oom-guard,{base}" if base != "none" else "oom-guard", base):
        runs += [{"arguments": {**ARGUMENTS, "patches": patches}, "points": [point]} for point in points]
    done = subprocess.run(
        [sys.executable, str(RUNS), data, project, json.dumps({"runs": runs})], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    results = json.loads(done.stdout.strip().splitlines()[-1])[1:]
    return results[: len(points)], results[len(points) :]


def survived(result):
    """Return whether a run has ended as the one without failures."""
    same = "died" not in result and max(result[name] for name in ("end", "ema", "optimizer")) < 1e-10
    return same and result["batch"] == 8


def main(data, project, number="200", seed="0", base="none"):
    """Print a table, and every run that oom-guard has lost."""
    for name, results in zip(("oom-guard", "upstream"), matrix(data, project, int(number), int(seed), base)):
        fired = [result for result in results if result["fired"]]
        ended = sum("died" not in result for result in fired)
        print(f"{name}: {ended} of {len(fired)} end, {sum(map(survived, fired))} of them as without a failure")
        for where in PLACES:
            here = [result for result in fired if result["points"][0][0] == where]
            print(f"    {where:<10} {sum(map(survived, here))} of {len(here)}")
        for result in fired if name == "oom-guard" else []:
            if not survived(result):
                print("    lost:", json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
