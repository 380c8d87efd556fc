"""Nothing of ours ends a training that upstream would have finished: what is injected in one_process.py, one by one."""

from __future__ import annotations

import pytest

from tests.conftest import NEWEST, OLDEST, ROOT, entry, last_json

CASES = (
    "disk_full",
    "own_loader",
    "own_optimizer",
    "own_optimizer_at_base",
    "own_loss",
    "interrupted",
    "out_of_memory",
    "not_a_number",
    "folder_gone",
    "folder_gone_upstream",
    "broken_plan",
    "resume_into_scale_1",
    "five_trainings",
)
#: In the oldest release, which recovers from nothing by itself: those at which its trainer differs.
OLD = ("disk_full", "own_loader", "interrupted", "broken_plan", "resume_into_scale_1")


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_trainings(version, release, digits, python, tmp_path):
    cases = CASES if version == NEWEST else OLD
    script = ROOT / "tests" / "e2e" / "one_process.py"
    done = python(script, digits(), tmp_path / "runs", *cases, timeout=900, **release(version))
    seen, log = last_json(done), done.stdout + done.stderr

    full = seen["disk_full"]
    assert (full["error"], full["ended"], full["best"], full["plan"]) == (None, True, True, None)
    assert "no patches.json: OSError: [Errno 28] No space left on device" in log

    own = seen["own_loader"]
    assert (own["error"], own["ended"], own["val"]) == (None, True, 5)
    assert entry(own["plan"])["verified"] is False
    assert "val-batch did not take effect" in log

    assert (seen["interrupted"]["error"], seen["interrupted"]["current"], seen["interrupted"]["step"]) == (
        "KeyboardInterrupt", True, False,
    )  # fmt: skip

    assert seen["broken_plan"]["val"] == 8
    assert seen["broken_plan"]["plan"]["selection"] == "default"
    assert "does not say which patches the run was started with" in log

    resumed = seen["resume_into_scale_1"]
    assert resumed["rates"] == [[pytest.approx(0.01), pytest.approx(0.0005)]] * 2
    assert entry(resumed["plan"], "linear-lr")["status"] == "inert"

    if version == OLDEST:
        return
    loss = seen["own_loss"]
    assert (loss["error"], loss["ended"]) == (None, True)

    assert seen["folder_gone"]["error"] == seen["folder_gone_upstream"]["error"]
    assert seen["folder_gone"]["ended"] == seen["folder_gone_upstream"]["ended"]

    upstream, ours = seen["five_trainings"]["none"], seen["five_trainings"]["all,"]
    assert ours["left"] == upstream["left"]
    assert all(ours["grown"][kind] <= upstream["grown"][kind] for kind in ours["grown"]), seen["five_trainings"]

    for case in ("own_optimizer", "own_optimizer_at_base"):
        assert (seen[case]["error"], seen[case]["ended"], seen[case]["best"]) == (None, True, True), log[-3000:]
    assert entry(seen["own_optimizer"]["plan"], "linear-lr")["verified"] is True
    assert entry(seen["own_optimizer_at_base"]["plan"], "linear-lr")["status"] == "inert"

    memory = seen["out_of_memory"]
    assert (memory["error"], memory["batch"], memory["val"]) == (None, 4, 4)
    assert memory["plan"]["global_batch"] == 4
    assert entry(memory["plan"], "linear-lr")["status"] == "inert"  # it was x2, and is the base batch now
    assert memory["groups"][0][0] == pytest.approx(0.01)

    nan = seen["not_a_number"]
    assert (nan["error"], nan["ended"]) == (None, True)
    assert [lr for lr, _ in nan["groups"]] == pytest.approx([0.02] * 3)
    assert entry(nan["plan"], "linear-lr")["verified"] is True
