"""A rank that goes once more through what it has exchanged, while the others wait for the next exchange."""

import pytest
import torch
from torch import distributed

from yolo_patches.agreement import once
from yolo_patches.nn.retelling import Retelling


@pytest.fixture
def group(tmp_path):
    distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def made(group, monkeypatch):
    """Return the names of the exchanges that are really made; sums come out as if a second rank had 10."""
    names = []

    def reduced(tensor, *args, **kwargs):
        names.append("all_reduce")
        tensor.add_(10)

    def barrier():
        names.append("barrier")

    monkeypatch.setattr(distributed, "all_reduce", reduced)
    monkeypatch.setattr(distributed, "barrier", barrier)
    return names


def test_what_has_been_told_is_told_again_and_nothing_is_sent_twice(made):
    with Retelling() as told:
        first = torch.tensor([1.0])
        distributed.all_reduce(first)
        distributed.barrier()
        seen, again = [None], [None]
        distributed.all_gather_object(seen, {"found": True})
        seen[0]["found"] = False  # whoever has been told does with it what he likes
        assert told.again()
        repeated = torch.tensor([1.0])
        distributed.all_reduce(tensor=repeated)
        distributed.barrier()
        distributed.all_gather_object(again, {"found": True})
        distributed.all_reduce(repeated)  # which comes next for everybody
    assert (first.item(), repeated.item(), again) == (11, 21, [{"found": True}])
    assert made == ["all_reduce", "barrier", "all_reduce"]
    distributed.all_reduce(repeated)
    assert made[3:] == ["all_reduce"]


def test_upstream_takes_another_way_the_second_time(made):
    with Retelling() as told:
        distributed.barrier()
        assert told.again()
        with pytest.raises(RuntimeError, match="the other ranks have been through barrier"):
            distributed.all_reduce(torch.zeros(1))
    assert made == ["barrier"]


@pytest.mark.parametrize("exchange", ["object", "asynchronous", "failed"])
def test_what_is_not_kept_is_not_gone_through_again(group, exchange):
    with Retelling() as told:
        distributed.all_reduce(torch.zeros(1))
        assert told.again()
        distributed.all_reduce(torch.zeros(1))
        if exchange == "object":
            distributed.gather_object("statistics", [None], dst=0)
        elif exchange == "asynchronous":
            distributed.all_reduce(torch.zeros(1), async_op=True).wait()
        else:
            with pytest.raises(TypeError):
                distributed.all_reduce("no tensor")
        distributed.all_reduce(torch.zeros(1))
        assert not told.again()


def test_ranks_agree_once_on_each_thing_of_a_validation():
    asked = []

    def agreed(word):
        asked.append(word)
        return word

    agree = once(agreed)
    assert [agree("now", True), agree("elsewhere", False), agree("now", False)] == [True, False, True]
    assert asked == [True, False]
