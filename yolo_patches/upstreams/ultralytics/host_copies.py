"""What a validation compares, on the host: predictions, copied once a batch, and labels, which have come from there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


class HostCopies:
    """Knows a batch's labels as they were before they went to the device.

    Upstream brings every tensor of a batch to the device, and asks for its labels there image by image, which waits for
    the device each time.
    """

    def __init__(self) -> None:
        self._labels: dict[str, torch.Tensor] = {}

    def remember(self, batch: Any) -> None:
        """Keep what a batch has on the host, but its images."""
        items = batch.items() if isinstance(batch, Mapping) else ()
        self._labels = {
            key: value
            for key, value in items
            if key != "img" and isinstance(value, torch.Tensor) and value.device.type == "cpu"
        }

    def labels(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch whose labels are on the host, and whose images, of which the shape alone is read, are not."""
        return {key: self._on_host(key, value) for key, value in batch.items()}

    def _on_host(self, key: str, value: Any) -> Any:
        if key == "img" or not isinstance(value, torch.Tensor):
            return value
        known = self._labels.get(key)
        # Upstream makes floats of some; what has only changed its place is known.
        return known if known is not None and (known.dtype, known.shape) == (value.dtype, value.shape) else value.cpu()


def predictions(preds: list[Any]) -> list[Any]:
    """Copy the predictions of a batch in one go: one tensor an image, or since 8.3.150 or so a dict of them."""
    if not preds or not isinstance(preds[0], Mapping):
        return _copied(preds)
    plain = [key for key, value in preds[0].items() if value.dtype is torch.float32]
    widths = [math.prod(preds[0][key].shape[1:]) for key in plain]
    rows = _copied([torch.cat([_rows(one[key], width) for key, width in zip(plain, widths)], 1) for one in preds])
    others = {key: _copied([one[key] for one in preds]) for key in preds[0] if key not in plain}
    made = []
    for image, one in enumerate(preds):
        columns = dict(zip(plain, torch.split(rows[image], widths, 1)))
        made.append(
            {key: columns[key].reshape(one[key].shape) if key in columns else others[key][image] for key in one}
        )
    return made


def _rows(values: torch.Tensor, width: int) -> torch.Tensor:
    return values.reshape(len(values), width)


def _copied(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    sizes = [len(tensor) for tensor in tensors]
    return list(torch.split(torch.cat(tensors).cpu(), sizes)) if tensors else []
