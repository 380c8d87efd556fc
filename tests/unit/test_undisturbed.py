"""A model that is computed with before its training is as it was, whatever has been done to it and however it ended."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")

from yolo_patches.upstreams.undisturbed import settle, undisturbed  # noqa: E402


class Careless(torch.nn.Module):
    """Does all that a model may do to itself in a forward pass."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.drop = torch.nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(2))
        self.cache = None

    def forward(self, x):
        self.seen += 1
        self.seen = self.seen + 1
        self.cache, self.criterion = x.shape, torch.nn.Linear(1, 1)
        self.register_buffer("more", torch.ones(1))
        return self.norm(self.drop(x)) * random.random() * numpy.random.rand() * torch.rand(1)


class Criterion:
    def __init__(self):
        self.balance, self.overlap = [4.0, 1.0], True


def state(model, criterion):
    tensors = {name: (value.data_ptr(), value.tolist()) for name, value in model.state_dict().items()}
    flags = [(sorted(vars(module)), sorted(module._modules), module.training) for module in model.modules()]
    numbers = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return tensors, flags, numbers, model.cache, vars(criterion), torch.is_grad_enabled()


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(fails):
    model, criterion = Careless().eval(), Criterion()
    model.norm.train()
    before = state(model, Criterion())
    try:
        with undisturbed(model, criterion):
            settle(model)
            for _ in range(2):
                model.train()(torch.rand(4, 3))
            torch.set_grad_enabled(False)
            criterion.balance[0] = 9.0
            criterion.more = 1
            assert state(model, Criterion()) != before
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert state(model, criterion) == before


def test_images_do_not_see_each_other():
    model = Careless().eval()
    with undisturbed(model):
        settle(model)
        assert model.training
        assert not model.norm.training
        assert not model.drop.training
        one, three = (model.norm(model.drop(torch.arange(12.0).reshape(4, 3)[:n])) for n in (1, 3))
        assert torch.equal(one[0], three[0])


def test_a_loaders_class_is_itself_for_whoever_asks():
    """Upstream may ask for an instance of the class that it calls, or look into it."""
    from torch.utils.data import DataLoader

    from yolo_patches.upstreams.fed_loaders import _instead_of

    made = _instead_of(DataLoader, lambda *args, **kwargs: DataLoader(*args, **kwargs, num_workers=0))
    loader = made([1, 2, 3], batch_size=2)
    assert type(loader) is DataLoader and isinstance(loader, made) and not isinstance([], made)
    assert issubclass(made, DataLoader) and made.__iter__ is DataLoader.__iter__
