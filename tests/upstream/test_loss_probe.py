"""The probe of a loss: it knows right from wrong in releases that do not exist yet, and leaves no trace in training."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.conftest import NEWEST, OLDEST, ROOT, last_json

SUM = "target_scores.sum().clamp_(min=1)  # on the device: no host sync"
HELPER = "def _total(x):\n    return x.sum().clamp(min=1)\n\n\n"
SHARE = "return loss / fg_mask.sum()"
ASSIGNED = "return target_labels, target_bboxes, target_scores, fg_mask.bool(), target_gt_idx"
UNPACKED = "_, target_bboxes, target_scores, fg_mask, target_gt_idx = self.assigner("


def divided(text, model="yolo11n"):
    return [model, [["loss", SUM, text]]]


def masks(text):
    return ["yolo11n-seg", [["loss", SHARE, text]]]


def reordered(returned, unpacked):
    return ["yolo11n", [["loss", UNPACKED, f"{unpacked} = self.assigner("], ["tal", ASSIGNED, f"return {returned}"]]]


#: Of 8.4.190, what a later release may look like -> whether ranks still share what its losses are divided by.
SHARED = {
    "as it is": divided(SUM),
    "torch.sum": divided("torch.sum(target_scores).clamp_(min=1)"),
    "dimensions": divided("target_scores.sum((0, 1, 2)).clamp_(min=1)"),
    "mean x numel": divided("(target_scores.mean() * target_scores.numel()).clamp_(min=1)"),
    "maximum": divided("torch.maximum(target_scores.sum(), torch.ones(1)[0])"),
    "floor first": divided("max(1, target_scores.sum())"),
    "clamp both": divided("target_scores.sum().clamp(min=1, max=1e6)"),
    "torch.clamp": divided("torch.clamp(target_scores.sum(), min=1)"),
    "epsilon": divided("target_scores.sum() + 1e-9"),
    "in place": divided("target_scores.sum(); target_scores_sum.clamp_(min=1)"),
    "helper": ["yolo11n", [["loss", SUM, "_total(target_scores)"], ["loss", "class DFLoss", HELPER + "class DFLoss"]]],
    "end to end": divided("torch.sum(target_scores).clamp_(min=1)", "yolo26n"),
    "masks": masks("return loss / torch.sum(fg_mask)"),
    "masks, floor": masks("return loss / max(1, fg_mask.sum())"),
    "masks, counted": masks("return loss / fg_mask.count_nonzero()"),
}
UNSHARED = {
    "float": divided("max(float(target_scores.sum()), 1)"),
    "item": divided("max(target_scores.sum().item(), 1)"),
    "sum of sums": divided("target_scores.sum(-1).sum().clamp(min=1)"),
    "square root": divided("target_scores.sum().sqrt()"),
    "foreground": divided("max(int(fg_mask.sum()), 1)"),
    "masks, int": masks("return loss / max(int(fg_mask.sum()), 1)"),
    "masks, len": masks("return loss / len(fg_mask.nonzero())"),
    "mask before scores": reordered(
        "target_labels, target_bboxes, fg_mask.bool(), target_scores, target_gt_idx",
        "_, target_bboxes, fg_mask, target_scores, target_gt_idx",
    ),
    "scores before boxes": reordered(
        "target_labels, target_scores, target_bboxes, fg_mask.bool(), target_gt_idx",
        "_, target_scores, target_bboxes, fg_mask, target_gt_idx",
    ),
    "numbers before mask": reordered(
        "target_labels, target_bboxes, target_scores, target_gt_idx, fg_mask.bool()",
        "_, target_bboxes, target_scores, target_gt_idx, fg_mask",
    ),
    "one more": reordered(
        "mask_pos, target_labels, target_bboxes, target_scores, fg_mask.bool(), target_gt_idx",
        "_, _, target_bboxes, target_scores, fg_mask, target_gt_idx",
    ),
}


@pytest.fixture(scope="module")
def doctored(release, environment, interpreter):
    command = [interpreter, ROOT / "tests/upstream/doctored_losses.py", json.dumps({**SHARED, **UNSHARED})]
    done = subprocess.run(command, env={**environment, **release(NEWEST)}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return last_json(done)


@pytest.mark.parametrize("case", SHARED)
def test_proven_where_the_effect_is_there(case, doctored):
    found = doctored[case]
    assert found["alone"] > 1e-2
    assert found["shared"] < 1e-5, "what really comes of it"
    assert found["error"] is not None, found["why"]
    assert found["error"] <= 1e-6


@pytest.mark.parametrize("case", UNSHARED)
def test_refused_where_it_is_not(case, doctored):
    found = doctored[case]
    assert found["shared"] > 1e-2, "what really comes of it"
    assert found["shared"] <= found["alone"] * 1.001, "upstream's own, and nothing worse"
    assert found["error"] is None or found["error"] > 1e-2, found["why"]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_no_trace_in_a_training(version, digits, release, python):
    """Two epochs with a probe before the first step end with the same weights as two without."""
    tasks = {"detect": digits(), "pose": digits("pose")}
    seen = last_json(
        python(ROOT / "tests/upstream/probed_trainings.py", json.dumps(tasks), hook=False, **release(version))
    )
    for task, (plain, probed, another) in seen["weights"].items():
        assert plain == probed, task
        assert plain != another, "a training that another random number would have changed"
    assert all(error is not None for error in seen["growth"].values())
