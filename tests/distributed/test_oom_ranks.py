"""One of several ranks has no memory for its share of a step, and the others wait for what it owes them."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import NEWEST, ROOT

RANK = Path(__file__).with_name("oom_rank.py")
RUNS = ROOT / "tests" / "upstream" / "oom_runs.py"


def steps(ranks, points, kernels, environment, interpreter, folder):
    """Return what ranks find of steps that fail."""
    words = [str(ranks), str(folder / "store"), str(points), *kernels]
    started = [
        subprocess.Popen(
            [interpreter, str(RANK), str(rank), *words],
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        ended = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), [errors[-3000:] for _, errors in ended]
    return json.loads(ended[0][0].splitlines()[-1])


@pytest.mark.parametrize(("ranks", "kernels"), [(2, ()), (3, ()), (2, ("played",)), (3, ("played",))])
def test_every_rank_makes_the_step(environment, interpreter, tmp_path, ranks, kernels):
    """Also with what synchronises BatchNorm on CUDA, where three ranks' sums are added up in another order."""
    quiet = 1e-12 if kernels and ranks > 2 else 0
    results = steps(ranks, 3 if ranks == 2 else 1, kernels, environment, interpreter, tmp_path)
    assert results["shards"] <= 1e-12
    for setting, found in results["settings"].items():
        assert found["quiet"] <= quiet, (setting, found)
        assert found["fired"] > found["steps"], (setting, found)
        assert found["apart"] == 0, (setting, found)
        # Two micro-steps of three layers, forward and backward, and nothing more where something fails.
        assert found["messages"] == ([12] if "synchronised" in setting else [0]), (setting, found)
        if "frozen" in setting:
            assert found["error"] < 1e-10 and found["statistics"] == 0, (setting, found)
        else:
            assert found["error"] < 1.5 and found["statistics"] < 0.2, (setting, found)


def test_a_training_ends_as_without_failures(python, release, digits, tmp_path):
    """Two ranks with synchronised BatchNorm and shared normalisers; what fails on one, the other does not know of."""
    arguments = {"epochs": 1, "batch": 6, "patches": "compat,torchrun,sync-bn,loss-norm"}
    guarded = {**arguments, "patches": arguments["patches"] + ",oom-guard"}
    points = [
        ["prepare", 0.4],
        ["forward", 0.9],
        ["backward", 0.2],
        ["step", 0.5],
        ["validation", 0.4],
        ["detections", 0.3],
        ["detections", 0.8],
    ]
    jobs = [
        {"arguments": arguments},
        {"arguments": guarded, "points": points, "ranks": [1]},
        {"arguments": guarded, "points": [["forward", 200], ["forward", 700]], "exact": False},
    ]
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    variables = {"PYTHONPATH": os.pathsep.join([*release(NEWEST).values(), str(ROOT)])}
    done = python(*launcher, RUNS, digits(train=12, val=6), tmp_path, json.dumps({"runs": jobs}), **variables)
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for first, second in zip(*results):
        assert "died" not in first and "died" not in second, (first, second)
        assert first["digest"] == second["digest"]
        assert (first["batch"], first["names"], second["names"]) == (6, [], [])
    for rank, (reference, failing, split) in enumerate(results):
        assert {where for where, _ in failing["fired"]} == ({where for where, _ in points} if rank else set())
        assert max(failing[name] for name in ("end", "ema", "optimizer")) < 1e-10
        assert (failing["random"], failing["figures"]) == (reference["random"], reference["figures"])
        assert split["fired"] and (split["notes"]["status"], split["notes"]["verified"]) == ("active", True)
    assert "rank 1: oom-guard: a step asked for" in done.stderr
