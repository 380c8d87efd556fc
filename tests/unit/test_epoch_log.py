"""patches.csv: rows by epoch, columns that come later, a resumed run, and files that are not ours."""

from __future__ import annotations

import pytest

from yolo_patches.epoch_log import EpochLog


def test_rows(tmp_path):
    log = EpochLog(tmp_path)
    log.add(0, {"a": 1.0})
    log.add(1, {"a": 0.5})
    log.add(1, {"b": 2.0})
    assert (tmp_path / "patches.csv").read_text() == "epoch,a,b\n1,1,\n2,0.5,2\n"
    assert [file.name for file in tmp_path.iterdir()] == ["patches.csv"]
    assert EpochLog(tmp_path).rows == {}  # a new run in the same folder
    resumed = EpochLog(tmp_path, start=1)
    assert resumed.rows == {0: {"a": 1.0}}
    resumed.add(1, {"a": 3.0})
    assert (tmp_path / "patches.csv").read_text() == "epoch,a\n1,1\n2,3\n"


@pytest.mark.parametrize("text", ["", "x\n1\n", "epoch,a\nx,1\n", "epoch,a\n1,y\n", "\0\0"])
def test_what_is_no_table_of_ours_is_not_read(text, tmp_path):
    (tmp_path / "patches.csv").write_text(text)
    assert EpochLog(tmp_path, start=9).rows == {}


def test_a_folder_that_is_gone(tmp_path):
    with pytest.raises(OSError):  # noqa: PT011 - whatever the system says
        EpochLog(tmp_path / "gone").add(0, {"a": 1.0})
