"""A micro-batch in parts, a step that is taken back: plain torch."""

import contextlib
import io

import pytest
import torch
from torch import nn
from ultralytics.engine import trainer

from yolo_patches.nn import micro_batches
from yolo_patches.nn.out_of_memory import asked, is_out_of_memory, lacked_memory
from yolo_patches.nn.pooled_statistics import Counts, Statistics, normalising
from yolo_patches.nn.restorable_step import Slots, Snapshot, repeated
from yolo_patches.upstreams.ultralytics import batch_parts
from yolo_patches.upstreams.ultralytics.memory import Memory


def images(number=6):
    return torch.randn(number, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("sizes", [(3, 3), (1, 5), (1, 2, 3)])
def test_running_statistics_are_those_of_the_whole(momentum, sizes):
    whole, parted = (nn.BatchNorm2d(3, momentum=momentum).double() for _ in range(2))
    for _ in range(2):
        whole(images())
        statistics = Statistics(parted)
        with statistics.tracked():
            parted(images())  # a pass that does not count
            for part in images().split(sizes):
                with statistics.part():
                    parted(part)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parted.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    assert parted.momentum == momentum and not parted._forward_hooks


def test_running_statistics_are_taken_back_where_a_part_fails():
    layer = nn.BatchNorm2d(3).double()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    statistics = Statistics(layer)

    def compute():
        with statistics.tracked():
            with statistics.part():
                layer(images())
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        compute()
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert layer.momentum == 0.1


def test_gradients_accumulate_to_the_last_bit_as_autograd_accumulates():
    mine, theirs = (nn.Linear(5, 4) for _ in range(2))
    theirs.load_state_dict(mine.state_dict())
    parameters = list(mine.parameters())
    for number in range(3):
        values = torch.randn(8, 5, generator=torch.Generator().manual_seed(number))
        theirs(values).pow(2).sum().backward()
        loss = mine(values).pow(2).sum()
        backward = micro_batches.Backward(
            lambda gradient, loss=loss: list(torch.autograd.grad([loss], parameters, [gradient]))
        )
        micro_batches.deferred(loss, backward, parameters).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(mine.parameters(), theirs.parameters()))


def test_a_pass_that_failed_is_tracked_once():
    """What the whole batch came to has been tracked; parts track the rest."""
    layers = nn.ModuleList(nn.BatchNorm2d(3).double() for _ in range(2))
    whole = nn.BatchNorm2d(3).double()
    whole(images())
    counts = Counts(normalising(layers))
    layers[0](images())  # and there is no memory for the second
    statistics = Statistics(layers, counts)
    with statistics.tracked():
        for part in images().split(3):
            with statistics.part():
                for layer in layers:
                    layer(part)
    for layer in layers:
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(layer.state_dict()[name], value, rtol=1e-12, atol=1e-12)


def test_random_numbers_of_a_loss_without_graph_are_drawn_again():
    layer = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5)).double()
    seen = []

    def compute(part):
        loss = layer(part).pow(2).sum()
        seen.append(float(loss.detach()))
        return loss, loss.detach()[None]

    values = torch.ones(4, 5, dtype=torch.float64)
    work = micro_batches.Work(
        4,
        lambda start, stop: values[start:stop],
        compute,
        layer,
        list(layer.parameters()),
        lambda _: contextlib.nullcontext(),
        shares=True,
        summed=True,
        autocast=contextlib.nullcontext,
    )
    micro_batches.compute(work, 2, torch.ones_like)
    assert seen[:2] == seen[2:] and seen[0] != seen[1]


@pytest.mark.parametrize("sizes", [(3, 2), (1, 1), (2, 2, 1)])
def test_predictions_are_joined_along_images(sizes):
    total = sum(sizes)
    whole = (torch.randn(total, 4, 9), {"layers": [torch.randn(6, total, 2)], "none": None}, torch.tensor(1.0))
    pieces = zip(*(value.split(sizes) for value in (whole[0], whole[1]["layers"][0].transpose(0, 1))))
    outputs = [(a, {"layers": [b.transpose(0, 1)], "none": None}, whole[2]) for a, b in pieces]
    made = micro_batches.joined(outputs, sizes)
    assert torch.equal(made[0], whole[0]) and torch.equal(made[1]["layers"][0], whole[1]["layers"][0])
    with pytest.raises(ValueError, match="no dimension of images"):
        micro_batches.joined([torch.zeros(7), torch.zeros(7)], (1, 2))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_a_step_that_fails_is_taken_back_and_repeated(optimizer):
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    trained = []
    for fails in (False, True):
        torch.manual_seed(0)
        model, average = nn.Linear(5, 5), nn.Linear(5, 5)
        steps = optimizer(model.parameters(), lr=0.1, **options)
        holder = type("Counter", (), {})()
        holder.updates = 0
        attempts = []

        def make(model=model, average=average, steps=steps, holder=holder, attempts=attempts, fails=fails):
            holder.updates += 1
            steps.step()
            average.weight.data.mul_(0.9)
            attempts.append(1)
            if fails and len(attempts) % 2:
                raise RuntimeError("CUDA out of memory")
            steps.zero_grad()

        for _ in range(3):
            model(torch.ones(2, 5)).pow(2).sum().backward()
            slots = Slots([average])
            repeated(
                make,
                lambda place, steps=steps, slots=slots, holder=holder: Snapshot(
                    steps, slots.tensors(), [holder], place
                ),
                is_out_of_memory,
            )
        trained.append((model.weight, average.weight, holder.updates))
    assert torch.equal(trained[0][0], trained[1][0]) and torch.equal(trained[0][1], trained[1][1])
    assert trained[0][2] == trained[1][2] == 3


def test_a_part_has_its_own_objects():
    batch = {
        "img": torch.zeros(3, 3, 8, 8),
        "im_file": ["a", "b", "c"],
        "batch_idx": torch.tensor([0.0, 2.0, 2.0]),
        "cls": torch.tensor([[1.0], [2.0], [3.0]]),
        "bboxes": torch.zeros(3, 4),
        "masks": torch.zeros(3, 2, 2),
    }
    part = batch_parts.part(batch, 1, 3, overlap=True)
    assert (part["im_file"], part["batch_idx"].tolist(), part["cls"].flatten().tolist()) == (["b", "c"], [1, 1], [2, 3])
    assert len(part["masks"]) == 2 and len(part["bboxes"]) == 2
    assert len(batch_parts.part(batch, 0, 1, overlap=False)["masks"]) == 1
    with pytest.raises(ValueError, match="'odd'"):
        batch_parts.part({**batch, "odd": torch.zeros(5)}, 0, 1, overlap=True)


def test_what_is_out_of_memory():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")
    assert is_out_of_memory(error) and asked(error) == "20.00 MiB"
    assert is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 640 bytes.")
    )
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(
        ValueError("out of memory")
    )


def test_a_checkpoint_whose_end_could_not_be_written_lacked_memory():
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell():
                raise MemoryError
            return super().write(data)

    with pytest.raises(RuntimeError, match="unexpected pos") as raised:
        torch.serialization.save({"weights": torch.zeros(5000)}, Full())  # Ultralytics replaces the other name
    assert lacked_memory(raised.value) and not is_out_of_memory(raised.value)
    assert not lacked_memory(RuntimeError("shapes do not match"))


class Listening:
    """What a training's patches are to its memory: somebody stands around everything."""

    def listens(self, seam):
        return True

    def attempt(self, act, seam=None):
        return act()

    def around(self, act, proceed):
        return [type(act).__name__, proceed()]


def test_the_check_of_precision_is_followed_where_there_is_one(monkeypatch):
    """A release that has renamed it is guarded in all else."""
    monkeypatch.setattr(trainer, "check_amp", check := lambda model: model)
    with Memory(object(), Listening()):
        assert trainer.check_amp(3) == ["PrecisionCheck", 3]
    assert trainer.check_amp is check
    monkeypatch.delattr(trainer, "check_amp")
    with Memory(object(), Listening()):
        assert not hasattr(trainer, "check_amp")
