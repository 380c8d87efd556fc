"""On a machine with a CUDA GPU: one of two ranks on it has no memory for its share of a step; NCCL wants two GPUs."""

from __future__ import annotations

import sys

import pytest

from tests.distributed.test_oom_ranks import steps

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_every_rank_makes_the_step(environment, tmp_path):
    """BatchNorm is synchronised by CUDA's kernels; torch's own function has the same where nothing fails."""
    results = steps(2, 3, ("cuda",), environment, sys.executable, tmp_path)
    assert results["shards"] < 1e-10
    for setting, found in results["settings"].items():
        assert found["quiet"] < 1e-9, (setting, found)
        assert found["fired"] > found["steps"], (setting, found)
        assert found["messages"] == [12], (setting, found)
        assert found["error"] < 1.5 and found["statistics"] < 0.2, (setting, found)
