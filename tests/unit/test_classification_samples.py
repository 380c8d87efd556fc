"""The last numbers of classification samples, whatever becomes of the steps that make them."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from yolo_patches.loading import numbers
from yolo_patches.loading.part import COMPARED, DIFFERS, OFF, Ledger, Part
from yolo_patches.upstreams.ultralytics import sample_classes


class Dataset:
    __module__ = "ultralytics.data.dataset"

    def __init__(self):
        steps = transforms.ToTensor(), transforms.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
        self.torch_transforms = transforms.Compose([transforms.RandomHorizontalFlip(), *steps])

    def made(self, index, grey=False):
        torch.manual_seed(index)
        pixels = np.random.default_rng(index).integers(0, 256, (9, 7, 3), np.uint8)
        return self.torch_transforms(Image.fromarray(pixels).convert("L" if grey else "RGB"))


class Doubled:
    """A user's step, which makes another tensor of one."""

    def __call__(self, tensor):
        return tensor * 2


def between(data):
    data.torch_transforms.transforms.insert(2, Doubled())


def another(data):
    data.torch_transforms.transforms[2] = transforms.Normalize((0.1,) * 3, (0.9,) * 3)


def removed(data):
    del data.torch_transforms.transforms[2]


def at_the_end(data):
    data.torch_transforms.transforms.append(Doubled())


def placed():
    data, ledger = Dataset(), Ledger([sample_classes.NUMBERS])
    sample_classes.place(data, Part(sample_classes.NUMBERS, numbers.WAYS, ledger))
    return data, ledger


@pytest.mark.parametrize("change", [None, between, another, removed, at_the_end])
@pytest.mark.parametrize("spawned", [False, True])
def test_the_same_numbers(change, spawned):
    theirs, (ours, ledger) = Dataset(), placed()
    if spawned:
        ours.torch_transforms = pickle.loads(pickle.dumps(ours.torch_transforms))
        (part,) = (one for one in ours.torch_transforms.transforms if isinstance(one, sample_classes.Numbers))
        ledger = part._part._ledger
    for index in range(12):
        if index == 2 * COMPARED and change is not None:
            change(theirs)
            change(ours)
        grey = change is removed and index == 11
        one, other = theirs.made(index, grey), ours.made(index, grey)
        assert torch.equal(one, other) and one.stride() == other.stride() and not vars(other)
    assert ledger.has(sample_classes.NUMBERS, 0) and not ledger.has(sample_classes.NUMBERS, DIFFERS)


def test_upstreams_where_it_is_switched_off_or_another():
    data, ledger = placed()
    ledger.count(sample_classes.NUMBERS, OFF)
    assert torch.equal(data.made(3), Dataset().made(3))
    other = Dataset()
    other.torch_transforms.transforms.reverse()
    assert sample_classes.last_steps(sample_classes.chain(other)) is None
    assert sample_classes.chain(type("Mine", (Dataset,), {"__module__": "mine"})()) == []
