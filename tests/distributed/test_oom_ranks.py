"""One of several ranks has no memory for its share of a step, and the others wait for what it owes them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

RANK = Path(__file__).with_name("oom_rank.py")


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_makes_the_step(environment, tmp_path, ranks):
    points = 4 if ranks == 2 else 2
    started = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(rank), str(ranks), str(tmp_path / "store"), str(points)],
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
    for setting, found in json.loads(ended[0][0].splitlines()[-1]).items():
        assert found["quiet"] == 0, (setting, found)
        assert found["fired"] > found["steps"], (setting, found)
        assert found["apart"] == 0, (setting, found)
        # Two micro-steps of three layers, forward and backward, and nothing more where something fails.
        assert found["messages"] == ([12] if "synchronised" in setting else [0]), (setting, found)
        if "frozen" in setting:
            assert found["error"] < 1e-10 and found["statistics"] == 0, (setting, found)
        else:
            assert found["error"] < 1.5 and found["statistics"] < 0.2, (setting, found)
