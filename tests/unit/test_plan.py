"""The plan: decisions, patches.json and what a resumed run reads back."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from yolo_patches import __version__, registry
from yolo_patches.errors import PatchesError
from yolo_patches.lifecycle import Run
from yolo_patches.plan import FILE_NAME, STATUSES, recorded_selection
from yolo_patches.seams import Facts, TrainStart, ValLoader
from yolo_patches.selection import parse


def make(spec="val-batch", missing=None, **facts):
    known = {"task": "detect", "world_size": 1, "global_batch": 8, "val_batch_factor": 2, **facts}
    return Run(Facts("ultralytics", "0", **known), parse(spec, registry.specs()), missing or {})


def entry(run, name="val-batch"):
    return next(item for item in run.plan.to_dict()["patches"] if item["name"] == name)


def test_forecast_then_seam_then_live():
    run = make()
    assert entry(run)["changes"] == [{"what": "val batch per rank", "upstream": 16, "patched": 8}]
    assert entry(run)["verified"] is None
    assert run.fire(ValLoader(batch=20, train_batch=10)).batch == 10  # the seam beats the forecast
    assert entry(run)["changes"] == [{"what": "val batch per rank", "upstream": 20, "patched": 10}]
    run.verify(TrainStart(SimpleNamespace(batch_size=10, dataset=range(99))), 10)
    assert entry(run)["verified"] is True
    assert run.plan.to_dict()["global_batch"] == 10


def test_an_effect_that_did_not_come_is_said():
    run = make()
    run.fire(ValLoader(batch=16, train_batch=8))
    run.verify(TrainStart(SimpleNamespace(batch_size=16, dataset=range(99))), 8)
    assert entry(run)["verified"] is False
    assert any("did not take effect" in line for line in run.warnings())


def test_a_loader_holds_no_more_than_its_data_set():
    run = make()
    run.fire(ValLoader(batch=16, train_batch=8))
    run.verify(TrainStart(SimpleNamespace(batch_size=3, dataset=range(3))), 8)
    assert entry(run)["verified"] is True


def test_inert_where_upstream_already_does_it():
    run = make(val_batch_factor=1)
    assert entry(run)["status"] == "inert"
    assert run.fire(ValLoader(batch=8, train_batch=8)).batch == 8
    assert entry(run)["status"] == "inert"


def test_batch_option():
    run = make("val-batch:batch=3")
    assert run.fire(ValLoader(batch=16, train_batch=8)).batch == 3
    assert entry(run)["options"] == {"batch": 3}


@pytest.mark.parametrize("batch", [-1, 0.7])
def test_autobatch_is_left_to_the_seam(batch):
    run = make(global_batch=batch)
    assert entry(run)["status"] == "active"
    assert entry(run)["changes"] == []
    run.fire(ValLoader(batch=24, train_batch=12))
    assert entry(run)["changes"] == [{"what": "val batch per rank", "upstream": 24, "patched": 12}]


def test_fewer_images_than_ranks():
    with pytest.raises(PatchesError, match=r"batch=2 .* number of ranks \(3\).* multiple of 3"):
        make(world_size=3, global_batch=2)


def test_not_selected_is_off_and_does_nothing():
    run = make("none")
    assert entry(run)["status"] == "off"
    assert run.fire(ValLoader(batch=16, train_batch=8)).batch == 16


def test_missing_seam_is_unavailable_and_upstream_goes_on():
    run = make(missing={ValLoader: "no such method"})
    assert entry(run)["status"] == "unavailable"
    assert entry(run)["reason"] == "ValLoader: no such method"
    assert run.fire(ValLoader(batch=16, train_batch=8)).batch == 16
    assert any("unavailable" in line and "strict" in line for line in run.warnings())


def test_missing_seam_is_an_error_when_strict():
    with pytest.raises(PatchesError, match="val-batch: unavailable with ultralytics 0"):
        make("val-batch:strict=true", missing={ValLoader: "no such method"})


def test_file_schema(tmp_path):
    run = make("all,val-batch:batch=3")
    run.write(tmp_path)
    plan = json.loads((tmp_path / FILE_NAME).read_text())
    assert plan["schema"] == 1
    assert plan["yolo_patches"] == __version__
    assert plan["upstream"] == {"name": "ultralytics", "version": "0"}
    assert plan["selection"] == "all,val-batch:batch=3"
    assert [item["name"] for item in plan["patches"]] == list(registry.patches())
    for item in plan["patches"]:
        assert set(item) == {"name", "status", "verified", "reason", "options", "changes"}
        assert item["status"] in STATUSES
        assert item["reason"]
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]  # no temporary left behind


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    make().write(tmp_path)
    before = (tmp_path / FILE_NAME).read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PatchesError, match="No space left on device"):
        make("none").write(tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == before


def test_write_into_nothing(tmp_path):
    with pytest.raises(PatchesError, match=r"cannot write .*patches\.json"):
        make().write(tmp_path / "nowhere")


@pytest.mark.parametrize("spec", ["val-batch:batch=3:strict=false", "none", "all"])
def test_recorded_selection(tmp_path, spec):
    run = make(spec)
    run.write(tmp_path)
    again = parse(recorded_selection(tmp_path), registry.specs())
    assert again.chosen == run.selection.chosen


def test_recorded_selection_of_an_upstream_run(tmp_path):
    assert recorded_selection(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 2}', '{"schema": 1, "patches": [{"name": "x"}]}'])
def test_recorded_selection_of_garbage(tmp_path, text):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(PatchesError, match="patches=default"):
        recorded_selection(tmp_path)


def test_banner_is_one_line():
    assert make("all").plan.banner().startswith(f"yolo-patches {__version__} (patches=all): ")
    assert "\n" not in make("all").plan.banner()
    assert "val-batch: val batch per rank 16 -> 8 (the training batch)" in make().plan.banner()
