"""The tensors that stand for sums over all ranks, and what loss-norm decides."""

from __future__ import annotations

import pytest

from yolo_patches.patches.loss_norm import LossNorm
from yolo_patches.seams import Facts, TrainStart

torch = pytest.importorskip("torch")

from yolo_patches.nn.shards import Shard, Unfloored, rank_mean  # noqa: E402

PART = torch.tensor([[1.0, 0.0], [0.5, 0.0]])


def shard(total, ranks=4, truth=1.0):
    return Shard.of(PART, torch.tensor(total / ranks), ranks, torch.tensor(truth))


@pytest.mark.parametrize("total", [0.0, 0.4, 1.0, 3.0, 80.0])
def test_every_floor_is_that_of_the_whole_batch(total):
    expected = pytest.approx(max(total, 1) / 4)
    assert float(max(shard(total).sum(), 1)) == expected
    assert float(shard(total).sum().clamp_(min=1)) == expected
    assert float(shard(total).sum().clamp(min=1)) == expected
    assert float(torch.tensor(6.0) / shard(total).sum()) == pytest.approx(24 / total if total else float("inf"))


def test_everything_else_is_the_part():
    part = shard(80.0)
    assert part.sum(-1).tolist() == [1.0, 0.5]
    assert type(part.sum(-1)) is type(part * 2) is type(part.to(torch.float64)) is type(part.sum() * 2) is torch.Tensor
    assert part.data_ptr() == PART.data_ptr()
    assert [row.tolist() for row in part] == PART.tolist()
    mask = Shard.of(PART > 0, torch.tensor(3.0), 2, torch.tensor(2))
    assert PART[mask].tolist() == [1.0, 0.5]
    assert float(mask.share) == pytest.approx(2 / 3)


def test_each_sum_is_its_own():
    part = shard(0.0)
    assert float(max(part.sum(), 1)) == 0.25
    assert float(max(part.sum(), 2)) == 0.5
    assert float(part.average) == 0.0


def test_condition():
    assert shard(0.0, truth=1.0).sum()
    assert not shard(9.0, truth=0.0).sum()


def test_floor_that_waits():
    term = (torch.tensor(-2.0, requires_grad=True) * 3).as_subclass(Unfloored)
    assert not term.floored
    value = term.clamp(min=0)
    assert (type(value), value.item(), value.requires_grad, term.floored) == (torch.Tensor, -6.0, True, True)


def test_no_ranks_no_collective():
    values = torch.ones(2)
    assert rank_mean(values) == (values, 1)


def facts(**changes):
    given = {"upstream": "x", "version": "1", "task": "detect", "world_size": 2, "global_batch": 8}
    return Facts(**{**given, "val_batch_factor": 2, "normaliser": "sum of scores", **changes})


def test_decision():
    active = LossNorm().decide(facts())
    assert active.status == "active"
    assert [str(change) for change in active.changes] == ["sum of scores each rank's own -> mean of 2 ranks"]
    assert LossNorm().decide(facts(world_size=1)).status == "inert"
    classify = LossNorm().decide(facts(task="classify", normaliser=""))
    assert (classify.status, "classify" in classify.reason) == ("inert", True)


def test_verification_wants_more_than_good_intentions(monkeypatch):
    from yolo_patches.nn import normaliser
    from yolo_patches.seams import Normaliser

    live = TrainStart(val_loader=None, normalises=True)
    patch = LossNorm()
    assert patch.verify(live)
    assert not patch.verify(live), "training has ended and no rank has been averaged"
    assert not LossNorm().verify(TrainStart(val_loader=None))

    patch = LossNorm()
    assert patch.verify(live)
    monkeypatch.setattr(normaliser, "rank_mean", lambda values: (values / 2, 2))
    seam = Normaliser(torch.tensor([3.0, 4.0]))
    patch.handlers()[Normaliser](seam)
    assert (seam.values.tolist(), seam.ranks) == ([1.5, 2.0], 2)
    assert patch.verify(live)
