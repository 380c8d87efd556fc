"""Batches in memory that is used again, by torch's own loaders and workers: none is other than it would be."""

from __future__ import annotations

import gc
import os
import pickle

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are not forked")

from tests.conftest import ROOT  # noqa: E402
from yolo_patches.loading.batch_memory import BatchMemory, Collate  # noqa: E402

SIZE, BATCH = (3, 8, 16), 4


class Samples(torch.utils.data.Dataset):
    """Samples of different contents, as dictionaries or tuples."""

    def __init__(self, count=64, kind=dict, shape=lambda index: SIZE):
        self.count, self.kind, self.shape = count, kind, shape

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.full(self.shape(index), index, dtype=torch.uint8)
        image[0, 0, 0] = 255 - index
        labels = torch.tensor([[0.0, index]])
        return {"img": image, "batch_idx": labels, "file": str(index)} if self.kind is dict else (image, labels, "x")


def collate(samples):
    """Collate as upstreams do: labels are changed in place."""
    if isinstance(samples[0], tuple):
        images, labels, files = zip(*samples)
        for number, one in enumerate(labels):
            one[:, 0] = number
        return torch.stack(images), torch.cat(labels), files
    for number, one in enumerate(samples):
        one["batch_idx"][:, 0] += number
    labels = torch.cat([one["batch_idx"] for one in samples])
    return {
        "img": torch.stack([one["img"] for one in samples]),
        "batch_idx": labels,
        "file": [s["file"] for s in samples],
    }


def loader(data, by, workers=2, **more):
    return torch.utils.data.DataLoader(data, BATCH, num_workers=workers, collate_fn=by, prefetch_factor=2, **more)


def ours(by=collate, workers=2, size=BATCH * 3 * 8 * 16):
    return Collate(by, BatchMemory(size, workers, 2))


def same(one, other):
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return type(one) is type(other) is torch.Tensor and torch.equal(one, other)
    return len(one) == len(other) and all(map(same, one, other)) if isinstance(one, tuple) else one == other


@pytest.mark.parametrize("kind", [dict, tuple])
def test_batches_are_the_same_and_those_that_are_kept_stay_as_they_are(kind):
    """Sixteen batches are kept; a worker has four places."""
    theirs, by = list(loader(Samples(kind=kind), collate)), ours()
    found = list(loader(Samples(kind=kind), by))
    assert len(found) == 16 and all(map(same, found, theirs))
    assert by.memory.used == 8, "every place has been taken once, and is not let go"


def test_places_are_used_again():
    by, places = ours(workers=1), set()
    for batch in loader(Samples(160), by, workers=1):
        places.add(batch["img"].data_ptr())
        del batch
    assert by.memory.used == 40 and len(places) <= 4


def test_what_is_a_part_of_a_batch_holds_it():
    theirs, by, kept = list(loader(Samples(), collate)), ours(workers=1), []
    for batch in loader(Samples(), by, workers=1):
        kept.append(batch["img"][1:2, 0].numpy() if len(kept) % 2 else batch["img"][1:2, 0])
        del batch
    assert all((torch.as_tensor(one) == other["img"][1:2, 0]).all() for one, other in zip(kept, theirs))


def test_a_forked_process_lets_nothing_go():
    by = ours(workers=1)
    passing = iter(loader(Samples(), by, workers=1))
    batch = next(passing)
    place = batch["img"].data_ptr()
    child = os.fork()
    if not child:
        del batch
        os._exit(0)
    os.waitpid(child, 0)
    before = batch["img"].clone()
    for other in passing:
        assert other["img"].data_ptr() != place
        del other
    assert torch.equal(batch["img"], before)


def test_passes_that_follow_or_overlap():
    """A pass has workers of its own; Ultralytics starts the next ones before it ends the last."""
    data, by = Samples(), ours()
    made, theirs = loader(data, by), list(loader(data, collate))
    for turn in range(4):
        assert all(map(same, made, theirs))
        assert by.memory.used == 16 * (turn + 1)
    before = iter(made)
    next(before)
    after = iter(made)  # more workers than lanes are not there yet, so none goes torch's way
    next(after)
    del before
    assert all(map(same, after, theirs[1:]))
    for _ in range(3):
        assert all(map(same, made, theirs))
    assert by.memory.used > 16 * 8


@pytest.mark.parametrize("data", [
    Samples(shape=lambda index: (3, 8, 64)),  # larger than a place
    Samples(shape=lambda index: (3, 8 * (1 + index // 4 % 2), 8)),  # of different shapes from batch to batch
])  # fmt: skip
def test_what_does_not_fit_goes_torchs_way(data):
    assert all(map(same, loader(data, ours()), loader(data, collate)))


def quad(samples):
    batch = collate(samples)
    batch["img"] = torch.cat((batch["img"][:2], batch["img"][2:]), 2)
    return batch


def mean(samples):
    batch = collate(samples)
    batch["mean"] = batch["img"].float().mean()
    return batch


def fails_on_nothing(samples):
    if not samples[0]["img"].numel():
        raise ValueError("no pixels")
    return collate(samples)


@pytest.mark.parametrize("function", [quad, mean, fails_on_nothing])
def test_a_function_that_looks_at_pixels_keeps_them(function):
    by = ours(function)
    assert all(map(same, loader(Samples(), by), loader(Samples(), function)))
    assert by.memory.used == 0


def test_what_is_noted_at_an_image_is_there(monkeypatch):
    def noted(samples):
        return {**collate(samples), "notes": [getattr(sample["img"], "note", None) for sample in samples]}

    item = Samples.__getitem__

    def with_note(self, index):
        sample = item(self, index)
        sample["img"].note = index
        return sample

    monkeypatch.setattr(Samples, "__getitem__", with_note)
    by = ours(noted)
    assert [batch["notes"][0] for batch in loader(Samples(), by)] == [*range(0, 64, 4)]
    assert by.memory.used == 16


def test_a_function_that_fails_fails_as_it_does():
    def fails(samples):
        if samples[0]["file"] == "32":
            raise ValueError("a broken sample")
        return collate(samples)

    with pytest.raises(ValueError, match="a broken sample"):
        list(loader(Samples(), ours(fails)))


def test_a_killed_worker_ends_the_pass_as_torch_does(python):
    code = """
import os, signal
from tests.unit import test_batch_memory as here

class Killed(here.Samples):
    def __getitem__(self, index):
        if index == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

list(here.loader(Killed(), here.ours()))
"""
    done = python("-c", code, check=False, timeout=60, PYTHONPATH=str(ROOT))
    # torch tells of the worker, or fails to fetch what it has sent before: whichever comes first.
    assert done.returncode == 1
    assert any(words in done.stderr for words in ("DataLoader worker", "Connection", "EOFError")), done.stderr[-2000:]


def test_images_are_tensors_for_who_wraps_the_function():
    by = ours()

    def wrapped(samples):
        batch = by(samples)
        return {**batch, "half": batch["img"] // 2, "type": isinstance(batch["img"], torch.Tensor)}

    for batch, theirs in zip(loader(Samples(), wrapped), loader(Samples(), collate)):
        assert same(batch["img"], theirs["img"]) and batch["type"]
        assert type(batch["half"]) is torch.Tensor and torch.equal(batch["half"], theirs["img"] // 2)


def test_without_workers_and_in_spawned_ones_it_is_upstreams():
    by = ours()
    assert pickle.loads(pickle.dumps(by)) is collate
    assert all(map(same, torch.utils.data.DataLoader(Samples(), BATCH, collate_fn=by), loader(Samples(), collate)))
    assert by.memory.used == 0


def test_nothing_is_left_of_it():
    def descriptors():
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    counts = []
    for make in (lambda: collate, lambda: collate, ours, ours):
        list(loader(Samples(), make()))
        gc.collect()
        counts.append(descriptors())
    assert counts[1:] == counts[1:2] * 3, counts
