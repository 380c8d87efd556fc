"""Where a step begins and ends that every rank makes: after everybody's listeners, and before the next of them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from yolo_patches.nn import common_step  # noqa: E402
from yolo_patches.upstreams.followed_loader import FollowedLoader  # noqa: E402
from yolo_patches.upstreams.scripts.steps import Steps  # noqa: E402


class Callbacks:
    """What the scripts' own class does."""

    def __init__(self):
        self.heard = []

    def run(self, hook, *args, **kwargs):
        self.heard.append((hook, common_step.inside()))


class Told:
    """What a training is told by its steps."""

    def __init__(self, by_events):
        self.events = []
        names = ("begin", "epoch", "epoch_over", "epoch_ended")
        self.steps = Steps(*(lambda name=name: self.events.append(name) for name in names), by_events)


def test_by_events():
    told, callbacks = Told(True), Callbacks()
    with told.steps.listening(callbacks):
        callbacks.run("on_train_epoch_start")
        callbacks.run("on_train_batch_start")
        assert common_step.inside()
        callbacks.run(hook="on_train_batch_end")
        assert not common_step.inside()
        callbacks.run("on_train_batch_start")
        callbacks.run("on_train_batch_start")
        callbacks.run("on_fit_epoch_end")
    assert "run" not in vars(callbacks)
    assert told.events == ["epoch", "begin", "begin", "begin", "epoch_over", "epoch_ended"]
    assert [inside for _, inside in callbacks.heard] == [False] * 6, "no listener is part of a step"


def test_somebody_elses_run_is_put_back_whatever_ends_the_training():
    callbacks, own = Callbacks(), lambda hook: None
    callbacks.run = own
    with pytest.raises(KeyboardInterrupt), Told(True).steps.listening(callbacks):
        raise KeyboardInterrupt
    assert callbacks.run is own


def test_a_listener_that_raises_raises():
    callbacks = Callbacks()
    callbacks.run = None
    with pytest.raises(TypeError), Told(True).steps.listening(callbacks):
        callbacks.run("on_train_batch_start")
    assert not common_step.inside()


@pytest.mark.parametrize("stops", [False, True])
def test_by_the_loader(stops):
    told = Told(False)

    class Loader(list):
        batch_size = 4

    loader = FollowedLoader(Loader([1, 2, 3]), lambda own: told.steps.passing(iter(own)))
    assert (len(loader), loader.batch_size, isinstance(loader, Loader)) == (3, 4, True)
    weight = torch.ones((), requires_grad=True)
    for index, batch in enumerate(loader):
        assert common_step.inside(), "from the moment at which the batch is there"
        loss = weight * batch
        told.steps.computed(loss)
        loss *= 2  # as the scripts do
        assert common_step.inside()
        if index != 1:
            loss.backward()
            assert not common_step.inside(), "until the backward pass has ended"
        elif stops:
            break
    assert not common_step.inside() or stops
    del loader
    assert told.events == ["begin"] * (2 if stops else 3)
    assert weight.grad == (2 if stops else 8)
    common_step.close()
