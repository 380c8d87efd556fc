"""Trainings of one release that are made together, for several tests."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import last_json


@pytest.fixture(scope="module")
def trainings(environment, release, tmp_path_factory):
    """Return a function that makes trainings of a release in one process, once, and returns by name what each was.

    It takes a program that is given a JSON job for each; a function of a folder and the version that returns the jobs
    by name; and the version. Each training comes back with its plan and args.yaml.
    """

    @functools.cache
    def make(program, jobs, version):
        folder = tmp_path_factory.mktemp("trainings")
        asked = jobs(folder, version)
        done = subprocess.run(
            [sys.executable, str(program), *map(json.dumps, asked.values())],
            cwd=folder,
            env={**environment, **release(version), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},  # YOLO(last.pt)
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        made = dict(zip(asked, last_json(done)))
        for name, seen in made.items():
            assert seen["error"] is None, (name, seen["error"])
            seen["plan"] = json.loads((Path(seen["save_dir"]) / "patches.json").read_text())
            seen["args"] = (Path(seen["save_dir"]) / "args.yaml").read_text()
        return made

    return make
