"""How many of many failures of the allocator a training survives, with oom-guard and without.

    python -m tests.upstream.oom_matrix DATA PROJECT [POINTS] [SEED] [RANKS]

Trains 16 images for one epoch, each time with another call failing, drawn from all that ask for at least 4 KiB in the
check of mixed precision, preparation, forward and backward pass, optimizer's step, EMA, validations and checkpoints;
and the first and the last of each. A run survives where it ends with the weights of the run without failures (1e-10 in
float64, BatchNorm frozen).

With 2 RANKS or more calls fail on one of them or on all, with sync-bn and loss-norm, and ranks must end with the same
weights. Upstream has no such runs: the ranks that have memory wait for the others until their group gives up.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

RUNS = Path(__file__).with_name("oom_runs.py")
PLACES = ("check", "prepare", "forward", "backward", "step", "ema", "validation", "detections", "save")
ARGUMENTS = {"epochs": 1, "nbs": 8}
#: What ranks train with, beside oom-guard.
SHARED = "compat,torchrun,sync-bn,loss-norm"


def drawn(number, seed, ranks=1):
    """Return the runs that fail: `points`, and on which ranks."""
    draw = random.Random(seed)
    points = [(where, share) for where in PLACES for share in (0.0, 1.0)]  # the first and the last
    while len(points) < number:
        points.append((draw.choice(PLACES), draw.random()))
    failing = [draw.choice([[draw.randrange(ranks)], list(range(ranks))]) for _ in points]
    return [{"points": [point], **({"ranks": some} if ranks > 1 else {})} for point, some in zip(points, failing)][
        :number
    ]


def trained(command, data, project, runs):
    """Return the finished process of trainings."""
    job = json.dumps({"runs": runs})
    return subprocess.run([sys.executable, *command, str(RUNS), data, project, job], capture_output=True, text=True)


def on_one_rank(data, project, failures):
    """Return the results of runs with oom-guard, and of upstream's own."""
    runs = [{"arguments": {**ARGUMENTS, "patches": "none"}}]
    for patches in ("oom-guard", "none"):
        runs += [{"arguments": {**ARGUMENTS, "patches": patches}, **failure} for failure in failures]
    done = trained((), data, project, runs)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    results = json.loads(done.stdout.strip().splitlines()[-1])[1:]
    return results[: len(failures)], results[len(failures) :]


def on_ranks(data, project, failures, ranks):
    """Return for each run what has become of its ranks, as that of the one that is farthest from the reference."""
    reference = {"arguments": {**ARGUMENTS, "patches": SHARED}}
    runs = [{"arguments": {**ARGUMENTS, "patches": f"{SHARED},oom-guard"}, **failure} for failure in failures]
    results = []
    while len(results) < len(runs):  # a run that dies takes its ranks along, and the next ones get others
        files = [Path(project, f"rank{rank}.json") for rank in range(ranks)]
        for file in files:
            file.unlink(missing_ok=True)
        command = ("-m", "torch.distributed.run", f"--nproc-per-node={ranks}")
        done = trained(command, data, project, [reference, *runs[len(results) :]])
        rows = list(zip(*(json.loads(file.read_text())[1:] for file in files)))
        results += map(together, rows)
        if done.returncode:
            lost = runs[len(results)]
            results.append({**lost, "died": error(done.stderr), "fired": lost["points"]})
    return results


def error(text):
    """Return the last line of each traceback in a text."""
    return [line for line in text.splitlines() if "Error: " in line][:4]


def together(row):
    """Return one result for those of a run's ranks."""
    worst = max(row, key=lambda result: (1, 0) if "died" in result else (0, result["end"]))
    asked = next((result for result in row if result["points"]), worst)
    fired = [point for result in row for point in result["fired"]]
    apart = {} if len({result.get("digest") for result in row}) == 1 else {"died": "ranks differ"}
    return {**worst, "fired": fired, "points": asked["points"], **apart}


def survived(result):
    """Return whether a run has ended as the one without failures."""
    same = "died" not in result and max(result[name] for name in ("end", "ema", "optimizer")) < 1e-10
    return same and result["batch"] == 8


def main(data, project, number="200", seed="0", ranks="1"):
    """Print a table, and every run that oom-guard has lost."""
    os.makedirs(project, exist_ok=True)
    failures = drawn(int(number), int(seed), int(ranks))
    if int(ranks) > 1:
        tables = {"oom-guard": on_ranks(data, project, failures, int(ranks))}
    else:
        tables = dict(zip(("oom-guard", "upstream"), on_one_rank(data, project, failures)))
    for name, results in tables.items():
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
