"""What this machine has."""

from __future__ import annotations

from yolo_patches import cores
from yolo_patches.doctor.subject import Accelerator, Machine
from yolo_patches.facts import Devices
from yolo_patches.validation import host_memory

#: The first compute capability with matrix units for half precision (Volta).
HALF = 7


def here(devices: Devices) -> Machine:
    """Return this machine, and those of its accelerators that the training will use.

    Args:
        devices: Where the training runs.
    """
    return Machine(cores.usable(), host_memory.available(), _accelerators(devices))


def _accelerators(devices: Devices) -> tuple[Accelerator, ...]:
    import torch

    if devices.kind not in ("", "cuda") or not torch.cuda.is_available():
        return ()
    found = [number for number in devices.held if number < torch.cuda.device_count()]
    return tuple(
        Accelerator(torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number)[0] >= HALF)
        for number in found
    )
