"""Scripts of which one rank, or both, run out of memory: every rank makes the steps that it makes without a failure."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import ROOT, entry
from tests.scripts.conftest import arguments, plan

RANK = ROOT / "tests" / "scripts" / "oom_rank.py"
CASES = {"yolov9": ("train_dual", "dual", "hyp9.yaml"), "yolov5": ("train", "v5-detect", "hyp5.yaml")}
#: What the scripts do on CUDA alone, and in which precision; every other line is theirs.
EDITS = {
    "    if cuda and RANK != -1:\n": "    if RANK != -1:\n",
    ".float() / 255": ".double() / 255",
    "model.half().float()": "model.double()",
}
SHARED = "compat,sync-bn,loss-norm"
GUARDED = f"{SHARED},oom-guard"
ONE = [["forward", 0.9], ["backward", 0.2], ["step", 0.5]]
TWICE = [["forward", 0.1], ["forward", 0.14]]  # in one step, of four
#: The last one's statistics are those of all ranks: what a rank has told before it fails is told once.
RUNS = {
    "plain": (SHARED, {}, True),
    "quiet": (GUARDED, {}, True),
    "one": (GUARDED, {"1": ONE}, True),
    "both": (GUARDED, {"0": [*ONE, ["validation", 0.4]], "1": [["forward", 0.1]]}, True),
    "twice": (GUARDED, {"0": TWICE}, True),
    "moving": (GUARDED, {"1": TWICE, "0": [["backward", 0.3]]}, False),
}


@pytest.mark.parametrize("name", CASES)
def test_ranks_end_as_without_failures(name, request, ranks, models, data, tmp_path):
    root = shutil.copytree(request.getfixturevalue(name), tmp_path / "checkout")
    module, model, hyp = CASES[name]
    script = root / f"{module}.py"
    text = script.read_text()
    for old, new in EDITS.items():
        assert old in text, old
        text = text.replace(old, new)
    script.write_text(text)
    runs = []
    for case, (patches, points, frozen) in RUNS.items():
        words = arguments(models / f"{model}.yaml", data("detect"), models / hyp, tmp_path, case, epochs=2, batch=8)
        runs.append([case, module, patches, [*map(str, words), "--noplots"], points, frozen])
    seen = ranks(root, runs, RANK, PYTHONPATH=str(ROOT))
    for first, second in zip(*(each.items() for each in seen)):
        (case, one), (_, two) = first, second
        _, points, frozen = RUNS[case]
        assert one["digest"] == two["digest"], f"{case}: ranks have gone apart"
        for rank, found in enumerate((one, two)):
            assert found["left"] == []
            asked = {where for where, _ in points.get(str(rank), [])}
            assert {where for where, _ in found["fired"]} == asked, (case, rank, found)
            if frozen:
                assert found["difference"] <= (1e-10 if asked or points else 0), (case, rank, found)
        if case != "plain":
            guard = entry(plan(tmp_path / case), "oom-guard")
            assert (guard["status"], guard["verified"]) == ("active", True), (case, guard)
    assert any("parts of at most" in note for note in entry(plan(tmp_path / "both"), "oom-guard")["notes"])
