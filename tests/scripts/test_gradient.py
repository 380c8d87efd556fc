"""Two ranks, gloo, float64: their gradient is that of one process, with upstream's own models and criteria."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch

from tests.conftest import ROOT

RANK = ROOT / "tests" / "scripts" / "rank.py"
#: Case -> model, task, module and name of the criterion. ComputeLossLH is what the authors' scripts offer in a comment.
CASES = {
    "yolov9": {
        "dual": ("dual", "detect", "utils.loss_tal_dual", "ComputeLoss"),
        "dual-lh": ("dual", "detect", "utils.loss_tal_dual", "ComputeLossLH"),
        "triple": ("triple", "detect", "utils.loss_tal_triple", "ComputeLoss"),
        "segment": ("segment", "segment", "utils.segment.loss_tal", "ComputeLoss"),
        "dual-segment": ("dual-segment", "segment", "utils.segment.loss_tal_dual", "ComputeLoss"),
        "panoptic": ("panoptic", "panoptic", "utils.panoptic.loss_tal", "ComputeLoss"),
    },
    "yolov5": {
        "v5-detect": ("v5-detect", "detect", "utils.loss", "ComputeLoss"),
        "v5-segment": ("v5-segment", "segment", "utils.segment.loss", "ComputeLoss"),
    },
}
#: Those that divide by a sum of target scores without a floor.
UNFLOORED = ("dual-lh", "segment", "dual-segment", "panoptic")
#: Objects of each image; two ranks take four images each.
BATCHES = {
    "uneven": (9, 1, 4, 3, 1, 0, 0, 0),
    "one rank empty": (9, 4, 3, 1, 0, 0, 0, 0),
    "empty": (0, 0, 0, 0, 0, 0, 0, 0),
}
PATCHED = "sync-bn,loss-norm"


@pytest.fixture(scope="module", params=["yolov9", "yolov5"])
def results(request, yolov9, yolov5, models, environment, interpreter, tmp_path_factory):
    """Return the cases' names, and the results of one process and of two ranks, by case, batch and specification."""
    folder = tmp_path_factory.mktemp("gradients")
    root, cases = {"yolov9": yolov9, "yolov5": yolov5}[request.param], CASES[request.param]

    def start(launcher, runs):
        rows = [
            [f"{name}, {batch}", str(models / f"{model}.yaml"), *rest, BATCHES[batch], spec]
            for name, (model, *rest) in cases.items()
            for batch, specs in runs.items()
            for spec in specs
        ]
        out = folder / f"{len(launcher)}.pt"
        command = [interpreter, *launcher, str(RANK), json.dumps({"cases": rows, "out": str(out)})]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        return torch.load(out)

    one = start((), {"uneven": ["none", "loss-norm"], "one rank empty": ["none"], "empty": ["none", "loss-norm"]})
    two = start(
        ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        {"uneven": ["none", "sync-bn", PATCHED], "one rank empty": [PATCHED], "empty": [PATCHED]},
    )
    return list(cases), one, two


def errors(found, of):
    def error(what):
        same = found[what].shape == of[what].shape
        return float((found[what] - of[what]).norm() / of[what].norm()) if same else float("inf")

    return error("gradient"), error("statistics")


def test_uneven_shards(results):
    cases, one, two = results
    for case in cases:
        for spec in ("none", "sync-bn", PATCHED):
            found = two[f"{case}, uneven, {spec}"]
            gradient, statistics = errors(found, one[f"{case}, uneven, none"])
            print(f"{case:14}{spec:20}{gradient:10.1e}{statistics:10.1e}")
            if spec == PATCHED:
                assert gradient <= 1e-10, case
                assert statistics <= 1e-12, case
                assert found["collectives"] == 1, "one for all branches of a criterion call"
            else:  # upstream, and SyncBN alone
                assert gradient > 0.1, case
                assert found["collectives"] == 0


def test_probe(results):
    """One process proves what two ranks then show."""
    cases, one, _ = results
    for case in cases:
        error, growth, why = one[f"{case}, uneven, none"]["proof"]
        assert (why, growth) == ("", pytest.approx(2)), case
        assert error <= 1e-6, case


def test_a_rank_without_objects(results):
    """It takes part in the collectives of the criterion, and of BatchNorm layers in heads that it has no use for."""
    cases, one, two = results
    for case in cases:
        gradient, statistics = errors(two[f"{case}, one rank empty, {PATCHED}"], one[f"{case}, one rank empty, none"])
        assert gradient <= 1e-10, case
        assert statistics <= 1e-12, case


def test_a_batch_without_objects(results):
    """Upstream divides by zero, on one rank, too; patched, the loss is finite, and that of one process."""
    cases, one, two = results
    for case in cases:
        alone, patched = one[f"{case}, empty, none"], one[f"{case}, empty, loss-norm"]
        assert bool(alone["loss"].isfinite().all()) is (case not in UNFLOORED)
        assert patched["loss"].isfinite().all()
        assert patched["gradient"].isfinite().all()
        gradient, _ = errors(two[f"{case}, empty, {PATCHED}"], patched)
        assert gradient <= 1e-10, case


def test_one_rank_with_objects_is_upstream(results):
    cases, one, _ = results
    for case in cases:
        alone, patched = one[f"{case}, uneven, none"], one[f"{case}, uneven, loss-norm"]
        assert torch.equal(alone["loss"], patched["loss"])
        assert torch.equal(alone["gradient"], patched["gradient"])
