"""The wrappers of loss-norm in every supported release: in place, silent unless asked, and gone after revert."""

from __future__ import annotations

import pytest

from tests.conftest import RELEASES, ROOT, last_json

#: Of each release's criteria, the methods that bring normalisers to the seam: a change in number is worth a look.
METHODS = {"8.2.103": 6, "8.3.0": 6, "8.3.253": 8, "8.4.0": 11, "8.4.60": 11, "8.4.190": 11}


@pytest.mark.parametrize("version", RELEASES)
def test_wrappers(version, release, python):
    seen = last_json(python(ROOT / "tests/upstream/criteria.py", **release(version)))
    assert seen["present"] == seen["wrapped"] == METHODS[version]
    assert seen["types"] == [["Tensor", "Tensor"], ["Shard", "Shard"], ["Tensor", "Tensor"]]
    assert seen["equal"]
    assert len(seen["seams"]) == 1, "one for each assignment, none without gradients"
    assert seen["seams"][0] == pytest.approx(seen["expected"])
    assert seen["divisor"] == pytest.approx([max(seen["expected"][0], 0.5), seen["expected"][1]])
    assert seen["pickled"] == [False, False]
    assert seen["early return"] in (None, [[0.0, 0.0]])
    assert seen["reaches"] == [True, True, True, False]
    assert all(seen["reverted"])
    assert seen["after"] is False
