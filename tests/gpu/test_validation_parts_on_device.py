"""On a CUDA GPU: images that are suppressed together, against torchvision image by image."""

from __future__ import annotations

import time
import warnings

import pytest

from yolo_patches.validation_seams import Suppression

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("candidates", [976, 2259, 4826])
def test_images_that_are_suppressed_together(candidates, capsys):
    """The same boxes to the last bit; waits of a batch, as torch counts them, and the time, are for the reader."""
    import torchvision

    from yolo_patches.validation import suppression

    random = torch.Generator().manual_seed(0)
    predictions = torch.zeros(16, 84, 8400)
    predictions[:, :2] = torch.rand(16, 2, 8400, generator=random) * 640
    predictions[:, 2:4] = torch.rand(16, 2, 8400, generator=random) ** 3 * 300 + 1
    for image in predictions:
        spots = torch.randperm(80 * 8400, generator=random)[:candidates]
        image[4 + spots // 8400, spots % 8400] = 0.0011 + 0.9 * torch.rand(candidates, generator=random) ** 6
    predictions, how = predictions.cuda(), Suppression(0.001, 0.7, 80, False, 300)

    def alone(images):
        return [suppression.suppressed_together(torchvision.ops.nms, image[None], how)[0] for image in images]

    def together(images):
        return suppression.suppress(torchvision.ops.nms, images, how)

    for ours, theirs in zip(together(predictions), alone(predictions)):
        assert torch.equal(ours, theirs)
    figures = {}
    for way in (alone, together):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(10):
            way(predictions)
        torch.cuda.synchronize()
        spent = (time.perf_counter() - begin) / 160 * 1e3
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                way(predictions)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        figures[way.__name__] = (spent, len(waits))
    with capsys.disabled():
        for name, (spent, waits) in figures.items():
            print(f"\n{candidates} candidates, {name}: {spent:.2f} ms an image, {waits} waits a batch of 16")
    assert figures["together"][1] < 16
