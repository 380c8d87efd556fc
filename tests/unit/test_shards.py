"""The tensors that stand for sums over all ranks, and what loss-norm makes of a proof."""

from __future__ import annotations

import pytest

from yolo_patches.facts import Batch, Devices, Facts, Loss
from yolo_patches.patches.loss_norm import LossNorm
from yolo_patches.seams import Live, LossProof, Normaliser

torch = pytest.importorskip("torch")

from yolo_patches.nn.common_step import common_step  # noqa: E402
from yolo_patches.nn.shards import Shard, Unfloored, Whole, rank_mean  # noqa: E402

#: What this rank has; its own sum is 1.5.
PART = torch.tensor([[1.0, 0.0], [0.5, 0.0]])
RANKS = 4
ONE = torch.ones(())


def shard(total, together=True, part=PART):
    """Return this rank's part of a batch with this total."""
    return Shard.of(part.clone(), Whole(torch.tensor(total / RANKS, dtype=torch.float64), RANKS, together))


#: What a loss divides by, as upstream writes it or may come to write it, for a batch `x` in one process.
DIVISORS = {
    "sum": lambda x: x.sum(),
    "torch.sum": lambda x: torch.sum(x),
    "torch.sum(input=)": lambda x: torch.sum(input=x),
    "dimensions": lambda x: x.sum((0, 1)),
    "negative dimensions": lambda x: x.sum(dim=(-1, -2)),
    "no dimensions": lambda x: torch.sum(x, dim=None),
    "dtype": lambda x: x.sum(dtype=torch.float64),
    "kept dimensions": lambda x: x.sum((0, 1), keepdim=True).squeeze(),
    "cast before": lambda x: x.float().sum(),
    "flat": lambda x: x.detach().flatten().sum(),
    "cast after": lambda x: x.sum().to(torch.float64).float(),
    "max": lambda x: max(x.sum(), 1),
    "floor first": lambda x: max(1, x.sum()),
    "tensor floor": lambda x: max(x.sum(), ONE),
    "tensor floor first": lambda x: max(ONE, x.sum()),
    "clamp": lambda x: x.sum().clamp(1),
    "clamp(min=)": lambda x: x.sum().clamp(min=1),
    "clamp_": lambda x: x.sum().clamp_(min=1),
    "clamp both": lambda x: x.sum().clamp(min=1, max=50),
    "clamp_min": lambda x: x.sum().clamp_min(1.0),
    "torch.clamp": lambda x: torch.clamp(x.sum(), min=1),
    "maximum": lambda x: torch.maximum(x.sum(), ONE),
    "maximum, floor first": lambda x: torch.maximum(ONE, x.sum()),
    "torch.max": lambda x: torch.max(x.sum(), ONE),
    "minimum": lambda x: torch.minimum(x.sum(), ONE * 50),
    "epsilon": lambda x: x.sum() + 1e-3,
    "epsilon first": lambda x: 1e-3 + x.sum(),
    "difference": lambda x: x.sum() - 0.25,
    "factor": lambda x: x.sum() * 3 + 1e-3,
    "factor first": lambda x: 3.0 * x.sum() / 2,
    "floor of a floor": lambda x: max(max(x.sum(), 1) * 0.5, 2),
    "mean": lambda x: (x.mean() * x.numel()).clamp(min=1),
    "numel first": lambda x: max(x.numel() * torch.mean(x), 1),
    "two sums": lambda x: torch.maximum(x.sum() + x.sum() * 0.5, ONE),
    "condition": lambda x: x.sum() if x.sum() >= 3 else x.sum() + 2,
}


def in_place(x):
    total = x.sum()
    total += 1e-3
    total.clamp_(min=1)
    return total


@pytest.mark.parametrize("total", [0.0, 0.4, 1.0, 3.0, 80.0])
def test_every_rank_divides_by_its_share_of_what_one_process_divides_by(total):
    terms = torch.tensor([6.0, 3.0], requires_grad=True)
    whole = torch.tensor([[total, 0.0], [0.0, 0.0]])
    for name, divisor in {**DIVISORS, "in place": in_place}.items():
        # one process has RANKS parts like this one, of which its mean is that of more elements
        expected = divisor(whole) / RANKS
        found = divisor(shard(total))
        assert float(1 / found) == pytest.approx(float(1 / expected)), name
        for quotient in (terms / found, terms.div(found), torch.div(terms, found), (1 / found) * terms):
            assert type(quotient) is torch.Tensor, name
            assert quotient.tolist() == pytest.approx((terms / expected).tolist()), name


@pytest.mark.parametrize("total", [5.0, 0.5])
def test_a_dispatch_mode_sees_the_same_gradient(total):
    """FlopCounterMode and its like call the kernels of the backward pass with the sum that was saved for it."""
    from torch.utils.flop_counter import FlopCounterMode

    def gradient():
        loss = torch.tensor([3.0], requires_grad=True)
        part = Shard.of(torch.tensor([total / 4, total / 4]), Whole(torch.tensor(total), 3))
        (loss.sum() / part.sum().clamp(min=1.0)).backward()
        return float(loss.grad)

    plain = gradient()
    with FlopCounterMode(display=False):
        assert gradient() == plain


def test_in_place_division():
    loss = torch.tensor([6.0, 3.0])
    loss /= shard(80.0).sum()
    assert type(loss) is torch.Tensor
    assert loss.tolist() == pytest.approx([0.3, 0.15])


def test_ratio_of_sums():
    ratio = shard(80.0).sum() / shard(20.0).sum()
    assert (type(ratio), float(ratio)) == (torch.Tensor, 4.0)


def test_mean_is_that_of_the_whole_batch():
    assert float(shard(80.0).mean()) == pytest.approx(80 / 16)
    assert float(shard(80.0).mean().clamp(min=6)) == 6


def test_what_cannot_be_shared_is_this_ranks_own():
    """A loss that leaves torch, or does what has no meaning for a sum, computes what it would without us."""
    part = shard(80.0)
    own = PART.sum()
    assert (int(part.sum()), float(part.sum()), part.sum().item()) == (1, 1.5, 1.5)
    assert part.sum().tolist() == 1.5
    assert float(part.sum() ** 2) == pytest.approx(2.25)
    assert float(part.sum().sqrt()) == pytest.approx(1.5**0.5)
    assert float(torch.log(part.sum())) == pytest.approx(float(own.log()))
    assert (PART * part.sum()).tolist() == (PART * own).tolist()
    assert float(part.sum(-1).sum()) == 1.5
    mask = Shard.of(PART > 0, Whole(torch.tensor(5.0), RANKS))
    assert int(mask.sum()) == 2
    assert len(torch.zeros(mask.sum())) == 2
    assert list(range(mask.sum())) == [0, 1]
    assert max(int(mask.sum()), 1) == 2
    assert f"{part.sum():.1f}" == "1.5"
    assert int(max(part.sum(), 2)) == 2, "floored as upstream floors its own"


def test_everything_else_is_the_part():
    part = Shard.of(PART, Whole(torch.tensor(20.0), RANKS))
    assert part.sum(-1).tolist() == [1.0, 0.5]
    assert part.mean(0).tolist() == [0.75, 0.0]
    assert {type(value) for value in (part.sum(-1), part * 2, part[0], part > 0, part.max())} == {torch.Tensor}
    assert part.data_ptr() == PART.data_ptr()
    assert [row.tolist() for row in part] == PART.tolist()
    mask = Shard.of(PART > 0, Whole(torch.tensor(3.0), 2))
    assert PART[mask].tolist() == [1.0, 0.5]
    assert float(mask.share) == pytest.approx(2 / 3)
    assert float(12 / mask.count_nonzero()) == 4.0
    assert type(part.to(torch.int64).sum()) is torch.Tensor, "a sum of rounded scores is another sum"


def test_each_sum_is_its_own():
    part = shard(0.0)
    assert float(1 / max(part.sum(), 1)) == 4
    assert float(1 / max(part.sum(), 2)) == 2
    assert float(part.whole.average) == 0.0


@pytest.mark.parametrize("question", [bool, lambda x: x > 0, lambda x: x != 0, lambda x: x >= 1e-9, torch.Tensor.bool])
def test_condition(question):
    """A loss that asks whether there is anything asks the whole batch, or this rank alone where it can do no better."""
    nothing = torch.zeros(2, 2)
    assert question(shard(9.0, part=nothing).sum())
    assert not question(shard(0.0, part=nothing).sum())
    assert not question(shard(9.0, together=False, part=nothing).sum())
    assert question(shard(9.0, together=False).sum())


FLOORS = [
    lambda x: x.clamp(min=0),
    lambda x: x.clamp(0),
    lambda x: x.clamp_min(0.0),
    lambda x: torch.clamp(x, min=0),
    lambda x: torch.maximum(x, torch.zeros(())),
    torch.nn.functional.relu,
    lambda x: max(x, 0),
    lambda x: max(0, x),
]


@pytest.mark.parametrize("floor", FLOORS)
def test_floor_that_waits(floor):
    term = (torch.tensor(-2.0, requires_grad=True) * 3).as_subclass(Unfloored)
    assert not term.floored
    value = floor(term) * 1
    assert (type(value), value.item(), value.requires_grad, term.floored) == (torch.Tensor, -6.0, True, True)


@pytest.mark.parametrize("other", [lambda x: x.clamp(min=0, max=9), lambda x: x.clamp(min=-9), lambda x: x * 2])
def test_what_is_no_floor_at_zero(other):
    term = torch.tensor(-6.0).as_subclass(Unfloored)
    assert other(term).item() == other(torch.tensor(-6.0)).item()
    assert not term.floored


def test_no_ranks_no_collective():
    values = torch.ones(2)
    with common_step():
        assert rank_mean(values) == (values, 1)


def facts(task="detect", ranks=2, **loss):
    loss = {"normaliser": "sum of scores", **loss}
    return Facts("x", "1", task, Batch(8), devices=Devices(ranks), loss=Loss(**loss))


def test_decision():
    active = LossNorm().decide(facts())
    assert active.status == "active"
    assert [str(change) for change in active.changes] == ["sum of scores each rank's own -> mean of 2 ranks"]
    assert LossNorm().decide(facts(ranks=1)).status == "inert"
    classify = LossNorm().decide(facts("classify", normaliser=""))
    assert (classify.status, "classify" in classify.reason) == ("inert", True)


@pytest.mark.parametrize(
    ("proof", "proven"),
    [
        (LossProof(2e-7, 2.0), True),
        (LossProof(3e-2, 2.0), False),
        (LossProof(float("inf"), 2.0), False),
        (LossProof(None, 2.0, "no normaliser has come to the seam"), False),
    ],
)
def test_verification_wants_a_proof_and_the_effect(proof, proven, monkeypatch):
    from yolo_patches.nn import shards

    patch = LossNorm()
    patch.decide(facts())
    live = Live(normalises=True, loss=lambda: proof)
    assert (patch.prove(live) == "") is proven
    assert patch.verify(live) is proven
    assert not patch.verify(live), "training has ended and no rank has been averaged"

    monkeypatch.setattr(shards, "rank_mean", lambda values: (values / 2, 2))
    seam = Normaliser(torch.tensor([3.0, 4.0]))
    patch.handlers()[Normaliser](seam)
    assert (seam.values.tolist(), seam.ranks) == ([1.5, 2.0], 2)
    assert patch.verify(live) is proven
