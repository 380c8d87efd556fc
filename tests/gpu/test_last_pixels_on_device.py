"""On a CUDA GPU: what fast-load:level=device leaves to it, against OpenCV; its time and memory are for the reader."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("number", [16, 128])
def test_last_pixels(number, capsys):
    """Within a step of 8 bits of what workers make, geometry exact, without waiting for the device."""
    from yolo_patches.loading.last_pixels import Left, by_itself, together

    random = np.random.default_rng(0)
    small = torch.from_numpy(random.integers(0, 256, (number, 3, 20, 20), dtype=np.uint8)).float()
    planes = torch.nn.functional.interpolate(small, size=(640, 640), mode="bilinear").round().to(torch.uint8)
    host = planes.permute(0, 2, 3, 1).contiguous().view(number, 3, 640, 640).pin_memory()
    gains = random.uniform(-1, 1, (number, 3)) * (0.015, 0.7, 0.4)
    left = [Left(*map(float, some), recolour=True, mirrored=i % 2 > 0) for i, some in enumerate(gains)]
    plain = [one._replace(recolour=False) for one in left]

    def alone(todo):
        return np.stack([by_itself(image.reshape(640, 640, 3), one) for image, one in zip(host.numpy(), todo)])

    there = host.cuda()
    assert np.array_equal(together(there, plain).cpu().numpy(), alone(plain))
    apart = np.abs(together(there, left).cpu().numpy().astype(int) - alone(left))
    assert apart.max() <= 1
    assert apart.mean() < 0.1
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    for _ in range(10):
        together(host.cuda(non_blocking=True), left)
    issued = time.perf_counter() - begin
    torch.cuda.synchronize()
    spent = time.perf_counter() - begin
    peak = (torch.cuda.max_memory_allocated() - before) / host.numel()
    begin = time.perf_counter()
    for _ in range(10):
        host.cuda(non_blocking=True)
    torch.cuda.synchronize()
    copied = time.perf_counter() - begin
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            together(there, left)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with capsys.disabled():
        print(
            f"\n{number} images of 640: {spent * 100:.2f} ms a batch with its copy, {copied * 100:.2f} the copy alone, "
            f"{issued * 100:.2f} until it is issued; {peak:.1f} times the batch's bytes; mean {apart.mean():.4f} apart"
        )
    assert not waits
    assert peak <= 9  # what upstream takes to make numbers of single precision of it, twice, and the bytes
