"""Images in memory that processes share: what is in it, who may write, and when it is gone."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from yolo_patches.caching_seams import CacheRoom, ImageCache
from yolo_patches.loading.shared_images import Filling, Handle, SharedImages, why_not
from yolo_patches.patches.shared_cache import SharedCache

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def pictures():
    numbers = np.random.default_rng(0)
    made = [numbers.integers(0, 256, (5 + i, 7, 3), np.uint8) for i in range(4)]
    made.append(numbers.integers(0, 60_000, (3, 4, 1), np.uint16))
    return [*made, made[0][:, ::-1, ::-1]]  # one whose pixels do not lie in order


def filled(images, notes=None):
    filling = Filling(len(images))
    for i in reversed(range(len(images))):
        filling[i] = images[i]
        filling[i] = images[i]  # some releases do
        np.testing.assert_array_equal(filling[i], images[i])
    return filling.finish(notes)


def alike(shared, images):
    return all(
        shared[i].dtype == image.dtype and shared[i].shape == image.shape and bool((shared[i] == image).all())
        for i, image in enumerate(images)
    )


def test_images_are_what_was_put_in():
    images = pictures()
    shared = filled(images, {"buffer": [1, 2]})
    assert alike(shared, images) and len(shared) == len(images) and shared.notes == {"buffer": [1, 2]}
    assert all(shared.has(shared[i]) for i in range(len(shared)))
    assert not shared.has(images[0])
    np.testing.assert_array_equal(shared[-1], images[-1])


def test_nobody_can_write_to_what_others_read():
    images = pictures()
    shared = filled(images)
    other = SharedImages.attach(Handle.read(shared.handle.text()))
    other[0][:] = 7  # upstream changes images in place here and there: its own copy
    assert (other[0] == 7).all() and alike(shared, images)
    with pytest.raises(PermissionError):
        os.pwrite(shared.handle.fd, b"x", 0)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(shared.handle.fd, 0)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_loader_workers_read_the_same_memory(method):
    images = pictures()
    shared = filled(images)
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    worker = context.Process(target=_look, args=(shared, answers), daemon=True)
    worker.start()
    pixels, inode = answers.get(timeout=60)
    worker.join()
    assert pixels == [image.tobytes() for image in images]
    assert inode == shared.handle.inode


def _look(shared, answers):
    answers.put(([shared[i].tobytes() for i in range(len(shared))], shared.handle.inode))


def test_a_number_that_now_is_another_file_is_not_taken_for_the_images(tmp_path):
    shared = filled(pictures())
    line = pickle.dumps(shared)
    shared.close()
    with (tmp_path / "other").open("w") as other:
        os.dup2(other.fileno(), shared.handle.fd)
        with pytest.raises(FileNotFoundError, match="another process"):
            pickle.loads(line)
    with suppress(OSError):
        os.close(shared.handle.fd)  # it was the file's own, or a second one
    with pytest.raises(OSError, match="No such file"):
        pickle.loads(line)


def test_what_the_system_does_not_take_stays_in_this_process():
    images = pictures()
    filling = Filling(len(images))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
        for i, image in enumerate(images):
            filling[i] = image
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert all((filling[i] == image).all() for i, image in enumerate(images))
    with pytest.raises(OSError, match="File too large"):
        filling.finish(None)
    filling.close()


def test_what_upstream_has_put_away_again_is_not_shared():
    filling = Filling(2)
    filling[0], filling[1] = pictures()[:2]
    filling[0] = None
    assert filling[0] is None
    with pytest.raises(OSError, match="put an image away"):
        filling.finish(None)
    filling.close()


HOLDER = """
import sys, time
import numpy as np
from yolo_patches.loading.shared_images import Filling, Handle, SharedImages
if len(sys.argv) > 1:
    shared = SharedImages.attach(Handle.read(sys.argv[1]))
else:
    filling = Filling(1)
    filling[0] = np.ones((8192, 8192, 3), np.uint8)
    shared = filling.finish(None)
    print(shared.handle.text(), flush=True)
assert shared[0].sum() == 3 << 26
print("reads", flush=True)
time.sleep(600)
"""


def test_it_is_gone_when_all_are_killed():
    names = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    first = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    handle = first.stdout.readline()
    second = subprocess.Popen([sys.executable, "-c", HOLDER, handle], stdout=subprocess.PIPE, text=True)
    try:
        assert second.stdout.readline() == "reads\n"
        inode = json.loads(handle)["inode"]
        assert {first.pid, second.pid} <= holders(inode)
        full = shared_mib()
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert holders(inode) == {second.pid}, "the memory outlives the rank that has filled it"
    finally:
        for process in (first, second):
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
    ends = time.monotonic() + 10
    while full - shared_mib() < 150:
        assert time.monotonic() < ends, "the 192 MiB have come back to the machine"
        time.sleep(0.05)
    assert holders(inode) == set()
    assert not Path("/dev/shm").is_dir() or set(Path("/dev/shm").iterdir()) <= names


def shared_mib():
    """Return how much memory the machine's processes share, in MiB."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["Shmem"].split()[0]) / 1024


def holders(inode):
    """Return the processes that map a memory of this inode and our name."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except OSError:
            continue
        if any("memfd:yolo-patches-images" in line and line.split()[4] == str(inode) for line in lines):
            found.add(int(maps.parent.name))
    return found


def test_images_that_do_not_fit_are_refused_with_figures():
    told = []
    patch = SharedCache()
    room = CacheRoom("key", 118_287, True, lambda: True, lambda: 205 << 40, told.append)
    patch.handlers()[CacheRoom](room)
    assert room.fits is False
    assert "118287 images take 2.1e+05 GiB decoded" in told[0] and "GiB left" in told[0] and "cache=disk" in told[0]
    assert patch.notes == told


@pytest.mark.parametrize("needed", [0, 1 << 60])
def test_upstreams_refusal_stands(needed):
    room = CacheRoom("key", 4, False, lambda: True, lambda: needed)
    SharedCache().handlers()[CacheRoom](room)
    assert room.fits is False


def test_a_release_that_puts_images_away_is_left_alone():
    room = CacheRoom("key", 4, True, lambda: False, lambda: 0)
    decision = SharedCache().handlers()[CacheRoom](room)
    assert decision.status == "inert" and room.fits


def test_images_that_upstream_cannot_decode_are_upstreams_error():
    act = ImageCache("key", 1, lambda: None, lambda images, notes: None, lambda i: None)

    def fails():
        raise FileNotFoundError("Image Not Found")

    with pytest.raises(FileNotFoundError, match="Image Not Found"):
        SharedCache().around()[ImageCache](act, fails)
    assert len(act.into) == 1


def test_a_rank_that_waits_in_vain_decodes_for_itself(monkeypatch):
    from torch import distributed

    from yolo_patches import agreement
    from yolo_patches.patches import shared_cache

    monkeypatch.setattr(shared_cache, "BEHIND", timedelta(seconds=0.1))
    monkeypatch.setattr(shared_cache, "DECODES", timedelta(seconds=0.1))
    told = []
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        for answers in ((), ("room",), ("room", "images")):  # of a first rank that ends, or has nothing to share
            patch = SharedCache()
            patch._first = 1  # another one than this
            store = agreement._store(f"{answers}/room"), agreement._store(f"{answers}/images")
            if "room" in answers:
                store[0].set("1", "fits")
            if "images" in answers:
                store[1].set("1", "")
            room = CacheRoom(f"{answers}", 4, False, lambda: True, lambda: 0, told.append)
            patch.handlers()[CacheRoom](room)
            assert room.fits is ("room" in answers), "upstream's own answer, or the first rank's"
            act = ImageCache(f"{answers}", 4, lambda: None, lambda *_: None, lambda i: None, tell=told.append)
            assert patch.around()[ImageCache](act, lambda: "upstream's") == "upstream's"
            assert act.into is None and patch.verify(None) is False
    finally:
        distributed.destroy_process_group()
    assert "rank 1 has not come to this data set" in told[0]
    assert all("rank 1 has no images to share" in line for line in told[1:]) and len(told) == 3
