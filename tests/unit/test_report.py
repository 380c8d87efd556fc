"""patches.json: its schema, and that no run depends on it."""

from __future__ import annotations

import json
import os

import pytest

from tests.unit.test_lifecycle import make
from yolo_patches import __version__, registry, report
from yolo_patches.errors import PatchesError
from yolo_patches.plan import STATUSES
from yolo_patches.selection import parse


def test_file_schema(tmp_path):
    run = make("all,val-batch:batch=3")
    run.write(tmp_path)
    plan = json.loads((tmp_path / report.FILE_NAME).read_text())
    assert plan["schema"] == 1
    assert plan["yolo_patches"] == __version__
    assert plan["upstream"] == {"name": "ultralytics", "version": "0"}
    assert plan["selection"] == "all,val-batch:batch=3"
    assert [item["name"] for item in plan["patches"]] == list(registry.patches())
    for item in plan["patches"]:
        assert set(item) == {"name", "status", "verified", "reason", "options", "changes", "notes"}
        assert item["status"] in STATUSES
        assert item["reason"]
    assert [path.name for path in tmp_path.iterdir()] == [report.FILE_NAME]  # no temporary left behind


def full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["replace", "fdopen"])
def test_a_failed_write_leaves_the_old_file_and_is_a_warning(tmp_path, monkeypatch, name):
    make().write(tmp_path)
    before = (tmp_path / report.FILE_NAME).read_text()
    told = []
    run = make("none")
    run._tell = told.append
    monkeypatch.setattr(os, name, full)
    run.write(tmp_path)
    assert (tmp_path / report.FILE_NAME).read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == [report.FILE_NAME]
    assert told == ["yolo-patches: no patches.json: OSError: [Errno 28] No space left on device"]


def test_a_file_system_without_permissions(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refused)
    make().write(tmp_path)
    assert (tmp_path / report.FILE_NAME).is_file()


def test_a_run_directory_that_has_gone(tmp_path):
    told = []
    run = make()
    run._tell = told.append
    run.write(tmp_path / "nowhere")
    assert len(told) == 1


def test_a_symlink_is_replaced_and_what_it_names_is_not(tmp_path):
    other = tmp_path / "other.json"
    other.write_text("mine")
    (tmp_path / report.FILE_NAME).symlink_to(other)
    make().write(tmp_path)
    assert other.read_text() == "mine"
    assert not (tmp_path / report.FILE_NAME).is_symlink()


@pytest.mark.parametrize("spec", ["val-batch:batch=3:strict=false", "none", "all"])
def test_recorded_selection(tmp_path, spec):
    run = make(spec)
    run.write(tmp_path)
    again = parse(report.recorded_selection(report.read(tmp_path)), registry.specs())
    assert again.chosen == run.selection.chosen


def test_an_upstream_run_has_none(tmp_path):
    assert report.read(tmp_path) is None


GARBAGE = ["", "{", "[]", "{}", '{"schema": 2}', '{"schema": 1, "patches": [{"name": "x"}]}', "[" * 100_000]


@pytest.mark.parametrize("text", [*GARBAGE, " " * (report.LONGEST + 1)])
def test_garbage(tmp_path, text):
    (tmp_path / report.FILE_NAME).write_text(text)
    with pytest.raises(PatchesError, match="patches=default"):
        report.read(tmp_path)


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / report.FILE_NAME).mkdir()
    with pytest.raises(PatchesError, match="patches=default"):
        report.read(tmp_path)
