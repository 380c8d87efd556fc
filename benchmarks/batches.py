"""What a batch costs on its way from a loader worker to the training's process: torch's way and feeding's, in turns.

    python benchmarks/batches.py [--batch 16] [--size 640] [--batches 40] [--rounds 5]

Nothing is decoded or augmented: a worker has its images, stacks and sends them, and the other process makes numbers of
them. Figures are medians, in milliseconds of CPU time a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from typing import Any

import torch
from ultralytics.data.dataset import YOLODataset

from yolo_patches.loading.batch_memory import BatchMemory, Collate

AHEAD = 4


class Images(torch.utils.data.Dataset[dict[str, Any]]):
    """Samples that are there already."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.images = [torch.randint(0, 255, (3, size, size), dtype=torch.uint8) for _ in range(16)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a sample with five objects."""
        image = self.images[index % len(self.images)]
        return {"img": image, "cls": torch.ones(5, 1), "bboxes": torch.ones(5, 4), "batch_idx": torch.zeros(5)}


def once(images: Images, batch: int, ours: bool) -> tuple[float, float]:
    """Return what the worker and this process spend on a batch, in milliseconds."""
    collate: Any = YOLODataset.collate_fn
    if ours:
        collate = Collate(collate, BatchMemory(batch * images.images[0].numel(), 1, AHEAD))
    loader = torch.utils.data.DataLoader(
        images, batch, num_workers=1, prefetch_factor=AHEAD, collate_fn=collate, drop_last=True
    )
    children, own = children_seconds(), time.process_time()
    for one in loader:
        one["img"].float()
        del one
    own = time.process_time() - own
    return 1e3 * (children_seconds() - children) / len(loader), 1e3 * own / len(loader)


def children_seconds() -> float:
    """Return the CPU time of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = Images(options.batch * options.batches, options.size)
    seen: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(options.rounds):
        for ours, figures in seen.items():
            figures.append(once(images, options.batch, ours))
    medians = {ours: [statistics.median(column) for column in zip(*figures)] for ours, figures in seen.items()}
    print(json.dumps({
        "torch": torch.__version__, "machine": platform.machine(), "cores": os.cpu_count(), "batch": options.batch,
        "worker ms": {"upstream": medians[False][0], "feeding": medians[True][0]},
        "training ms": {"upstream": medians[False][1], "feeding": medians[True][1]},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
