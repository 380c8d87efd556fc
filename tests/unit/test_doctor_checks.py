"""What holds of doctor's findings whatever upstream there is."""

from __future__ import annotations

import pytest

from yolo_patches.doctor import noise
from yolo_patches.doctor.examination import CHECKS, Check, examine
from yolo_patches.doctor.finding import Finding, status
from yolo_patches.doctor.machine_checks import cache
from yolo_patches.doctor.subject import Absent, DataSet, Labelled, Machine, Settings, Split, Subject
from yolo_patches.facts import Batch, Devices, Facts, Model, Optimization
from yolo_patches.forecast import Foreseen
from yolo_patches.plan import Decision, Entry, Plan


def foreseen(data=lambda: Absent("there is none"), **values):
    chosen = Optimization(optimizer="SGD", warmup_epochs=3)
    facts = Facts("ultralytics", "1", "detect", Batch(16, nbs=16), chosen, model=Model(scratch=True))
    return Foreseen(Plan("ultralytics", "1", 1, 16, "none", []), facts, Settings(**values), data)


def raising(*_):
    raise KeyError("no such thing")
    yield


def test_a_check_that_crashes_is_a_finding_and_stops_no_other():
    checks = [Check("broken", raising), Check("next", lambda subject: [Finding("next", "info", "", "", "", "")])]
    found = examine(foreseen(), Machine(8, 1 << 30), checks)
    assert [(one.id, one.severity) for one in found] == [("broken", "error"), ("next", "info")]
    assert found[0].figure == "KeyError: 'no such thing'"
    found = examine(foreseen(raising_data), Machine(8, 1 << 30), [])
    assert [(one.id, one.severity) for one in found] == [("data", "error")]


def raising_data():
    raise OSError("the disk is gone")


def test_what_an_upstream_does_not_say_is_named_and_not_judged():
    (found,) = examine(foreseen(imgsz=640, stride=32), Machine(8, 1 << 30))
    assert (found.id, found.severity, found.why) == ("not-judged", "info", "there is none.")
    without = {check.id for check in CHECKS if set(check.needs) - {"imgsz", "stride"}}
    assert set(found.figure.split(", ")) == without
    assert {"small-batch", "imgsz-stride"} & without == set()


@pytest.mark.parametrize(
    ("severities", "expected"), [((), 0), (("info",), 0), (("info", "warning"), 1), (("error", "warning"), 2)]
)
def test_exit_status(severities, expected):
    assert status(Finding("", severity, "", "", "", "") for severity in severities) == expected


def test_standard_error_is_the_binomial_one_where_it_can_be_worked_out():
    """One class, one object an image, found with probability 1/2: sqrt(1/4 / n), within the noise of 200 resamples."""
    for images in (25, 400):
        assert noise.standard_error([{0: 1}] * images) == pytest.approx((0.25 / images) ** 0.5, rel=0.2)
    assert noise.standard_error([{}]) is None
    rare = noise.standard_error([{0: 1, 1: 1}] + [{0: 1}] * 99)
    assert rare > noise.standard_error([{0: 1}] * 100), "a class of one object is as noisy as that"


def test_images_in_memory_count_once_a_machine_where_they_are_shared():
    images = [Labelled("", 640, 640, (), ())] * 1000
    data = DataSet({0: "one"}, Split(images), Split([]))
    machine = Machine(8, 3 << 30)  # 1.14 GiB of images: enough for two ranks, not for four
    for ranks, chosen, found in ((4, "off", 1), (4, "active", 0), (2, "off", 0)):
        plan = Plan("ultralytics", "1", ranks, 16, "", [Entry("shared-cache", Decision(chosen, ""))])
        facts = Facts("ultralytics", "1", "detect", Batch(16), devices=Devices(ranks))
        findings = list(cache(Subject(facts, Settings(cache="ram", imgsz=640), plan, machine, data)))
        assert len(findings) == found
        assert not findings or findings[0].change == "patches=shared-cache"
