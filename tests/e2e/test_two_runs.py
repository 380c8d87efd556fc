"""Two trainings that write into one run directory at the same time: both end, and patches.json is one of theirs."""

from __future__ import annotations

import json
import subprocess
import time

from tests.conftest import ROOT, entry

BATCHES = {"first": 8, "second": 4}


def test_patches_json_is_whole_at_any_time(digits, environment, interpreter, tmp_path):
    project = tmp_path / "runs"
    project.mkdir()
    script, data, (first, second) = ROOT / "tests" / "e2e" / "two_runs.py", digits(), BATCHES
    runs = {}
    for name, other in ((first, second), (second, first)):
        with (tmp_path / name).open("w") as log:
            command = [interpreter, script, data, project, name, other, BATCHES[name]]
            runs[name] = subprocess.Popen(
                [*map(str, command)], cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
    file, seen, until = project / "run" / "patches.json", set(), time.monotonic() + 240
    try:
        while any(run.poll() is None for run in runs.values()) and time.monotonic() < until:
            if file.exists():  # from then on always, and whole
                seen.add(json.loads(file.read_text())["global_batch"])
            time.sleep(0.002)
    finally:
        for run in runs.values():
            if run.poll() is None:
                run.kill()
            run.wait()
    logs = {name: (tmp_path / name).read_text() for name in runs}
    assert {name: run.returncode for name, run in runs.items()} == dict.fromkeys(runs, 0), logs
    assert all((project / f"{name}-{number}").exists() for name in runs for number in (1, 2))  # they were at it at once
    assert not any("no patches.json" in log for log in logs.values()), logs
    plan = json.loads(file.read_text())
    assert plan["global_batch"] in BATCHES.values()
    assert (entry(plan)["status"], entry(plan)["verified"]) == ("active", True)
    assert seen <= {*BATCHES.values()}
    assert not [path.name for path in file.parent.iterdir() if path.name.startswith(".")]  # no half of one is left
