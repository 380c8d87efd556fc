"""On a CUDA GPU: batches in memory that is used again reach the device whole, pinned or not, while places change."""

from __future__ import annotations

import pytest

from tests.unit.test_batch_memory import BATCH, SIZE, Samples, collate, loader
from yolo_patches.loading.batch_memory import BatchMemory, Collate

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("pinned", [True, False])
def test_batches_arrive_as_they_were(pinned):
    """Copies are asynchronous; the device is kept busy, so that one that was read too late would be seen."""
    by = Collate(collate, BatchMemory(BATCH * SIZE[0] * SIZE[1] * SIZE[2], 2, 2))
    busy, found = torch.ones(4096, 4096, device="cuda"), []
    for batch in loader(Samples(160), by, pin_memory=pinned):
        busy = (busy @ busy).clamp(max=1)
        found.append(batch["img"].to("cuda", non_blocking=True))
        del batch
    expected = loader(Samples(160), collate)
    assert all(torch.equal(one.cpu(), other["img"]) for one, other in zip(found, expected))
    assert by.memory.used == len(found) == 40
