"""Batches whose last pixels loader workers have left undone: done on the device, and compared while they are new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo_patches.loading import last_pixels
from yolo_patches.loading.last_pixels import Left
from yolo_patches.loading.part import CALLS, DIFFERS, OFF, RAISES, Ledger

if TYPE_CHECKING:
    from torch import Tensor

#: The name of what is left in the ledger, and of samples whose workers have left nothing.
LEFT, KEPT = "last pixels", "last pixels that workers have done"
#: Batches of a training of which every image is made by itself, too, and compared.
COMPARED = 2
#: Steps of 8 bits by which the images of a batch may differ from that on average: roundings, and colours at their ends.
APART = 0.5


class Finishing:
    """Does what has been left undone in batches of one training, in the process that trains.

    Args:
        ledger: Whose row `LEFT` tells workers to leave nothing any longer.
        together: Makes a batch on its device; see `last_pixels.together`.
    """

    def __init__(self, ledger: Ledger, together: Callable[..., Any] = last_pixels.together) -> None:
        self._ledger = ledger
        self._together = together
        self._expected: Any = None
        self._compared = 0
        self.batches = 0  # that have been done for the training
        self.read = 0  # that somebody else has read
        self.trained_on = 0  # of those that were compared, those that it was given as workers would have made them
        self.why = ""

    @property
    def off(self) -> bool:
        """Whether nothing is to be left undone any longer."""
        return any(self._ledger.has(LEFT, column) for column in (DIFFERS, RAISES, OFF))

    def stop(self, why: str, column: int = OFF) -> None:
        """Have workers leave nothing from here on, in all processes.

        Args:
            why: In words.
            column: Of the ledger.
        """
        self.why = self.why or why
        self._ledger.count(LEFT, column)

    def done(self, images: Tensor, left: Sequence[Left], device: Any) -> Tensor:
        """Return a batch's images on the device that trains, or where they are if that fails; nothing is raised.

        Args:
            images: As they have come, bytes, [B, 3, H, W], on the host.
            left: Of each image, what is left to be done.
            device: Torch's.
        """
        self.batches += 1
        self._expected = None
        if not self.off:
            try:
                made = self.once(images, left, device)
                if self._compared >= COMPARED:
                    return made
                expected = self.on_host(images, left)
                if is_close(made, expected):
                    self._expected = expected
                    return made
                self.stop("the device had other pixels than workers make", DIFFERS)
            except Exception as error:  # out of memory, or an operation that this device lacks
                self.stop(f"on the device: {type(error).__name__}: {error}".splitlines()[0], RAISES)
        return self.on_host(images, left)

    def once(self, images: Tensor, left: Sequence[Left], device: Any) -> Tensor:
        """Return a batch's images on a device; see `done`, which falls back where this raises."""
        made: Tensor = self._together(images.to(device, non_blocking=images.is_pinned()), left)
        return made

    def note(self, trained_on: Any) -> None:
        """Compare what the training is about to see of a batch that is new.

        Args:
            trained_on: Images as upstream has made numbers of them, between 0 and 1, of a size that it may have drawn.
        """
        from torch.nn.functional import interpolate

        expected, self._expected = self._expected, None
        if expected is None:
            return
        self._compared += 1
        expected = expected.float()
        if trained_on.shape[2:] != expected.shape[2:]:
            expected = interpolate(expected, size=trained_on.shape[2:], mode="bilinear", align_corners=False)
        if is_close(trained_on.detach().float() * 255, expected):
            self.trained_on += 1
        else:
            self.stop("the training had other pixels than workers make", DIFFERS)

    def on_host(self, images: Tensor, left: Sequence[Left]) -> Tensor:
        """Return what workers would have made of a batch, image by image; see `done`."""
        import torch

        made = [
            last_pixels.by_itself(image.reshape(*image.shape[1:], 3), one)
            for image, one in zip(images.cpu().contiguous().numpy(), left)
        ]
        return torch.from_numpy(np.stack(made))

    def begin(self) -> None:
        """Count samples from here on: those before were made to be compared."""
        for name in (LEFT, KEPT):
            self._ledger.counts[self._ledger.names[name], CALLS] = 0

    @property
    def lost(self) -> bool:
        """Whether workers have left pixels undone, and nobody has done any."""
        return bool(self.samples[0]) and not (self.batches or self.read)

    @property
    def samples(self) -> tuple[int, int]:
        """How many samples have come with pixels left undone, and how many that workers have done all the same."""
        names, counts = self._ledger.names, self._ledger.counts
        return int(counts[names[LEFT], CALLS]), int(counts[names[KEPT], CALLS])


def is_close(images: Any, expected: Any) -> bool:
    """Return whether every image of a batch is the same but for roundings."""
    import torch

    apart = (images.to(expected.device, torch.float32) - expected.to(torch.float32)).abs()
    return apart.shape == expected.shape and bool(apart.flatten(1).mean(1).max() <= APART)
