"""Ultralytics' cache=ram as it comes to the seams of `shared-cache`, on releases that differ in it; no training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import NEWEST, OLDEST, last_json

PROGRAM = Path(__file__).with_name("cached_sets.py")


@pytest.mark.parametrize(("version", "keeps"), [("8.0.200", False), (OLDEST, True), (NEWEST, True)])
def test_the_same_set_in_shared_memory(version, keeps, python, release, digits):
    found = last_json(python(PROGRAM, digits("detect", 24, 8), **release(version)))
    assert found["keeps"] is keeps, "whether upstream keeps more than the last 8 batches"
    assert found["untouched"], "asking leaves no trace in the data set, and draws no random number"
    assert found["needed"] == 24 * 64 * 64 * 3
    for mode in ("train", "val"):
        kind = "SharedImages" if keeps or mode == "val" else "list"
        assert (found[mode]["kind"], found[mode]["status"]) == (kind, "inert" if kind == "list" else "active")
        assert keeps is False or found[mode]["bytes"] == (24 if mode == "train" else 8) * 64 * 64 * 3
        # Up to 8.0.200 its threads decide which images of the training set are left.
        assert found[mode]["differs"] == [] or (mode == "train" and not keeps)
