"""The cores that a process may use, and what feeding makes of them."""

from __future__ import annotations

import math
import os
from types import SimpleNamespace

import pytest

from yolo_patches import cores
from yolo_patches.facts import Batch, Devices, Facts, Given
from yolo_patches.loading_seams import Feed
from yolo_patches.patches import feeding


@pytest.mark.parametrize(
    ("line", "files", "limit"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000", "cpu.max": "max 100000"}, 4),
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"}, 2),
        ("0::/gone/elsewhere", {"cpu.max": "300000 100000"}, 3),  # a container sees its own group as the root
        ("4:cpu,cpuacct:/x", {"cpu,cpuacct/x/cpu.cfs_quota_us": "50000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
         0.5),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("3:memory:/", {"memory/cpu.max": "1 1"}, math.inf),
        ("nonsense", {"cpu.max": "nonsense"}, math.inf),
    ],
)  # fmt: skip
def test_what_control_groups_allow(line, files, limit, tmp_path):
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(line + "\n")
    assert cores.quota(tmp_path / "cgroup", tmp_path / "membership") == limit


@pytest.mark.parametrize(("limit", "there"), [(0.5, 1), (1.5, 2), (math.inf, None)])
def test_cores(limit, there, monkeypatch):
    here = cores.usable() if there is None else 8
    monkeypatch.setattr(cores, "quota", lambda: limit)
    if there is not None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores.usable() == (there or here)


@pytest.fixture
def decided(monkeypatch):
    """Return a function that decides on a machine, and returns the workers of both loaders and the last decision."""

    def decide(usable, workers=8, option="cores", ranks=1, given=None, room=1 << 40, batch=16):
        monkeypatch.setattr(cores, "usable", lambda: usable)
        monkeypatch.setattr(feeding, "SHARED", SimpleNamespace(is_dir=lambda: True))
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=room, f_frsize=1), raising=False)
        patch = feeding.Feeding(workers=option)
        facts = Facts("ultralytics", "8.4.190", "detect", Batch(16), devices=Devices(ranks), given=Given(given or {}))
        assert patch.decide(facts).status == "active"
        seen = []
        for training, upstream in ((True, workers), (False, 2 * workers)):
            seam = Feed(upstream, training, 4, batch * 3 * 640 * 640)
            decision = patch.handlers()[Feed](seam)
            seen.append(seam.workers)
        return seen, decision, patch

    return decide


@pytest.mark.parametrize(
    ("machine", "workers"),
    [
        ({"usable": 16}, [15, 15]),
        ({"usable": 32, "ranks": 4}, [7, 7]),
        ({"usable": 2}, [1, 1]),
        ({"usable": 1}, [1, 1]),
        ({"usable": 64, "option": "upstream"}, [8, 8]),
        ({"usable": 64, "given": {"workers": 8}}, [8, 8]),
        ({"usable": 2, "given": {"workers": 8}}, [8, 8]),
        ({"usable": 64, "workers": 0}, [0, 0]),
        ({"usable": 64, "room": 64 << 20}, [8, 8]),
        ({"usable": 64, "room": 2 << 30}, [10, 10]),
        ({"usable": 64, "batch": 0}, [8, 8]),
    ],
)
def test_workers(machine, workers, decided):
    seen, decision, patch = decided(**machine)
    assert seen == workers
    upstream = machine.get("workers", 8)
    assert decision.status == ("active" if upstream else "inert")
    names = {change.what: (change.upstream, change.patched) for change in decision.changes}
    assert names == {
        name: values
        for name, values in {
            "loader workers": (upstream, workers[0]),
            "validation loader workers": (2 * upstream, workers[1]),
        }.items()
        if values[0] != values[1]
    }
    assert ("room for the batches" in " ".join(patch.notes)) is (machine.get("batch") == 0 or "room" in machine)


@pytest.mark.parametrize(("given", "error", "placed"), [
    ({}, None, True), ({"reuse": False}, None, False), ({}, OSError("none"), False), ({}, ValueError("huge"), False)
])  # fmt: skip
def test_memory_that_batches_use_again(given, error, placed, monkeypatch):
    from yolo_patches.loading import batch_memory

    def refused(*_):
        raise error

    if error:
        monkeypatch.setattr(batch_memory, "BatchMemory", refused)
    patch, seam = feeding.Feeding(**given), Feed(2, True, 4, 1 << 20, list)
    decision = patch.handlers()[Feed](seam)
    assert (seam.collate is not list) is placed
    assert decision.changes == ((feeding.MEMORY,) if placed else ())


def test_batches_that_did_not_come_there_are_not_verified():
    patch, seam = feeding.Feeding(), Feed(2, True, 4, 1 << 20, list)
    patch.handlers()[Feed](seam)
    live = SimpleNamespace(train_loader=SimpleNamespace(num_workers=2), val_loaders=[], began=False)
    assert patch.verify(live) is True
    live.began = True
    assert patch.verify(live) is False and "did not come" in patch.trouble
    seam.collate.memory.used = 1
    assert patch.verify(live) is True


def test_nothing_to_change(decided):
    patch = feeding.Feeding()
    for training in (True, False):
        decision = patch.handlers()[Feed](Feed(2, training))
    assert (decision.status, decision.changes) == ("inert", ())
