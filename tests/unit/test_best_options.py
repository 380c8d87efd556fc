"""best: what its options mean, and what is wrong with them."""

from __future__ import annotations

import pytest

from tests.unit.test_lifecycle import known
from yolo_patches import facts, registry
from yolo_patches.errors import PatchesError
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.patches.best import _terms
from yolo_patches.seams import Save
from yolo_patches.selection import parse
from yolo_patches.validation_seams import Judged

NAMES = ("precision(B)", "mAP50(B)", "mAP50-95(B)", "mAP50(M)")


def make(spec, epochs=100, validates=True):
    known_facts = known(optimization=facts.Optimization(epochs=epochs), metrics=NAMES, validates=validates)
    return Lifecycle.of(known_facts, parse(spec, registry.specs()))


@pytest.mark.parametrize(("spec", "message"), [
    ("best:smooth=0", "an int of at least 1"),
    ("best:smooth=11", r"best:smooth=11 is as long as the run of 10 epochs, or longer"),
    ("best:skip=10", r"best:skip=10 is as long as the run of 10 epochs, or longer"),
    ("best:keep=0", "an int of at least 1"),
    ("best:metric=map50", r"'map50' is not a metric.*this task has precision\(B\), mAP50\(B\)"),
    ("best:metric=mAP50*x", r"'mAP50\*x' is not a metric, or a metric times a number"),
])  # fmt: skip
def test_bad_input(spec, message):
    with pytest.raises(PatchesError, match=message):
        make(spec, epochs=10)


def test_a_metric_without_its_kind_is_the_sum_over_the_kinds():
    assert _terms("mAP50", NAMES) == {"mAP50(B)": 1, "mAP50(M)": 1}
    assert _terms("mAP50-95*0.9 + mAP50(M)*0.1", NAMES) == {"mAP50-95(B)": 0.9, "mAP50(M)": 0.1}


def test_inert():
    for spec, validates in (("best", True), ("best:smooth=5", False)):
        run = make(spec, validates=validates)
        assert next(entry for entry in run.plan.entries if entry.name == "best").decision.status == "inert"


def test_a_fitness_that_is_no_number_is_upstreams():
    run = make("best:smooth=3")
    seam = run.fire(Judged(0, float("nan")))
    assert seam.stopping is None and seam.columns == {}


def test_only_checkpoints_of_judged_epochs_are_deleted(tmp_path):
    run = make("best:keep=1")
    for name in ("epoch7.pt", "epoch0.pt", "epoch1.pt", "epoch2.pt", "best.pt", "epoch1.txt", "myepoch1.pt"):
        (tmp_path / name).touch()
    for epoch, fitness in enumerate((0.1, 0.3, 0.2)):
        run.fire(Judged(epoch, fitness))
    assert run.around(Save(2, tmp_path), lambda: "saved") == "saved"
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"epoch7.pt", "epoch1.pt", "epoch2.pt", "best.pt", "epoch1.txt", "myepoch1.pt"}
