"""monitor's parts: what ranks compare, what is said, and figures that need no training."""

from __future__ import annotations

import torch

from yolo_patches.monitoring.ranks import Fingerprint, Report, row, statistics, weights
from yolo_patches.monitoring.steps import Steps, _norms
from yolo_patches.monitoring.verdicts import Circumstances, Verdicts


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 100).half())


def test_ranks_that_differ_in_one_bit_differ():
    one, other = model(), model()
    assert weights(one).distance(weights(other)) == 0 == statistics(one).distance(statistics(other))
    flat = other[2].weight.data.view(-1)
    flat[77] = torch.nextafter(flat[77].float(), torch.tensor(9.0)).half() + 2**-10
    assert 0 < weights(one).distance(weights(other)) < 1e-3
    other[1].running_mean += 0.5
    assert statistics(one).distance(statistics(other)) == 0.5


def test_reports_travel_as_text():
    one = Report(1.0, 0.1, 2.0, weights(model()), statistics(model()), 3.0)
    assert Report.read(one.text()) == one
    waiting = Report(1.0, 0.1, 2.0, weights(model()), statistics(model()), exchange=0.7)
    assert row({0: one, 1: Report.read(waiting.text()), 2: one}, 10.0)["ranks/longest_wait_s"] == 0.7
    slow = Report(4.0, 0.3, 2.0, Fingerprint((1,), (0.0, 0.25)), statistics(model()))
    fast = Report(1.0, 0.1, 2.0, Fingerprint((2,), (0.0, 0.75)), statistics(model()))
    compared = row({0: fast, 1: slow, 2: fast}, 10.0)
    assert compared == {
        "ranks/heard": 3.0,
        "ranks/step_skew": 0.3 / 0.1,
        "ranks/data": 0.4,
        "ranks/weights_differ": 0.5,
        "ranks/statistics_differ": 0.0,
    }


def test_steps_that_overflow_are_left_out():
    found = _norms([float("inf"), 5.0, float("nan"), 20.0, 40.0], [10.0] * 5)
    assert (found["grad_norm/median"], found["grad_norm/max"]) == (20.0, 40.0)
    assert found["grad_norm/clipped"] == 2 / 3
    assert found["grad_norm/clip_factor"] == 0.375
    assert _norms([float("inf")], [10.0]) == {}


class Scaler:
    """torch's gradient scaler where it skips a step: the optimizer is not called, and the scale is halved."""

    def is_enabled(self):
        return True

    def get_scale(self):
        return 512.0


def test_skipped_steps_and_large_models(monkeypatch):
    monkeypatch.setattr("yolo_patches.monitoring.steps.SAMPLED", 100)
    layer = torch.nn.Linear(100, 10)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    steps, scaler = Steps(), Scaler()
    before = [p.detach().clone() for p in layer.parameters()]
    for number in range(3):
        layer.weight.grad, layer.bias.grad = torch.ones(10, 100), torch.zeros(10)
        steps.announce(optimizer, scaler)
        if number < 2:
            optimizer.step()
    found = steps.row(24)
    assert (found["amp/skipped"], found["amp/scale"], found["effective_batch"], found["lr/pg0"]) == (1, 512, 8, 0.5)
    assert found["update_ratio"] > 0
    assert all(value.shape == p.shape for value, p in zip(before, layer.parameters()))
    steps.close()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_verdicts_have_their_figure_and_come_once(monkeypatch):
    monkeypatch.setattr(Circumstances, "cores", 16)
    starved = {"time/data": 0.61, "time/validation": 0.1}
    verdicts = Verdicts()
    assert list(verdicts.of(starved, Circumstances(workers=2))) == [
        "input-bound: 61% of the epoch waits for data; workers 2 -> 6 (16 cores for this rank)"
    ]
    assert list(verdicts.of(starved, Circumstances(workers=2))) == []
    assert list(Verdicts().of({"time/data": 0.2, "time/validation": 0.4}, Circumstances())) == []
    assert "cache=disk" in next(Verdicts().of(starved, Circumstances(workers=16)))
    everything = {
        **starved, "time/validation": 0.6, "ranks/step_skew": 2.0, "ranks/weights_differ": 0.1, "amp/skipped": 5.0,
        "steps": 10.0, "amp/scale": 2.0,
    }  # fmt: skip
    assert len(list(Verdicts().of(everything, Circumstances()))) == 3
    (apart,) = Verdicts().of({"ranks/statistics_differ": 0.2}, Circumstances())
    assert "patches=sync-bn" in apart
    (defect,) = Verdicts().of({"ranks/statistics_differ": 0.2}, Circumstances(synchronised=True))
    assert "report" in defect
