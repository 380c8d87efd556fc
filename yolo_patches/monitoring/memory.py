"""How much memory a training takes, on its device and on its host."""

from __future__ import annotations

from typing import Any

GIB = 1 << 30


class DeviceMemory:
    """The peaks of a CUDA device's memory, each between two looks at it; nothing on other devices.

    Looking sets torch's own peak back: upstream reads it nowhere.

    Args:
        device: The training's.
    """

    def __init__(self, device: Any) -> None:
        self._device = device if device is not None and device.type == "cuda" else None

    def peak(self) -> float | None:
        """Return the peak since the last look, in GiB; None where the device does not say."""
        if self._device is None:
            return None
        import torch

        peak = torch.cuda.max_memory_allocated(self._device) / GIB
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak


def of_host() -> float:
    """Return what this process and its children, the loader's workers, hold of the host's memory, in GiB.

    On Linux a page that several of them share counts once among them (PSS), elsewhere once for each (RSS).
    """
    import psutil

    process = psutil.Process()
    held = 0
    for one in (process, *process.children(recursive=True)):
        try:
            held += getattr(one.memory_full_info(), "pss", 0) or one.memory_info().rss
        except psutil.Error:  # it has ended, or is somebody else's
            continue
    return held / GIB
