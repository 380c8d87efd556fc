"""What ranks tell the first of an epoch, and whether they still train the same model.

They leave it in the store through which they found each other. That is no collective: nobody waits for anybody, and a
rank that says nothing is left out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

#: Values of each tensor that are sent, at most.
SENT = 16
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Fingerprint:
    """What shows that ranks hold the same tensors.

    Attributes:
        bits: The sum of every tensor's bits, taken for integers: one changed bit changes it.
        values: Some values of every tensor, and its mean.
    """

    bits: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, tensors: Iterable[torch.Tensor]) -> Fingerprint:
        """Return the fingerprint of tensors of floating-point numbers."""
        bits, values = [], []
        for tensor in tensors:
            flat = tensor.detach().contiguous().reshape(-1)
            if not flat.numel():
                continue
            bits.append(flat.view(INTEGERS[flat.element_size()]).sum(dtype=torch.int64))
            values += [flat.double().mean()[None], flat[:: -(-flat.numel() // SENT)].double()]
        if not bits:
            return cls((), ())
        return cls(tuple(torch.stack(bits).tolist()), tuple(torch.cat(values).tolist()))

    def distance(self, other: Fingerprint) -> float:
        """Return the largest difference that is seen between two; 0 where they are equal in every bit."""
        if self.bits == other.bits:
            return 0.0
        if len(self.values) != len(other.values):
            return float("inf")
        seen = max((abs(a - b) for a, b in zip(self.values, other.values) if a == a and b == b), default=0.0)
        return seen or torch.finfo(torch.float32).tiny  # different, by values that were not sent

    def pack(self) -> dict[str, Any]:
        """Return what `unpack` takes."""
        values = torch.tensor(self.values, dtype=torch.float64).numpy().tobytes()
        return {"bits": self.bits, "values": base64.b64encode(values).decode()}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Fingerprint:
        """Return the fingerprint that another rank has packed."""
        values = torch.frombuffer(bytearray(base64.b64decode(packed["values"])), dtype=torch.float64)
        return cls(tuple(packed["bits"]), tuple(values.tolist()))


def weights(model: torch.nn.Module) -> Fingerprint:
    """Return the fingerprint of a model's parameters."""
    return Fingerprint.of(model.parameters())


def statistics(model: torch.nn.Module) -> Fingerprint:
    """Return the fingerprint of a model's running statistics."""
    return Fingerprint.of(buffer for buffer in model.buffers() if buffer.is_floating_point())


@dataclass(frozen=True)
class Report:
    """What a rank tells of an epoch.

    Attributes:
        wait: Seconds that it has waited for data.
        step: Seconds of its median step.
        memory: GiB of its host's memory.
        weights: Of its model.
        statistics: Of its model's running statistics.
        peak: GiB, the peak of its device's memory in training; 0 where the device does not say.
        exchange: Seconds of its longest wait in an exchange with the others; None where its host waits in none.
    """

    wait: float
    step: float
    memory: float
    weights: Fingerprint
    statistics: Fingerprint
    peak: float = 0.0
    exchange: float | None = None

    def text(self) -> str:
        """Return it as one line."""
        packed = {"weights": self.weights.pack(), "statistics": self.statistics.pack()}
        return json.dumps({**vars(self), **packed})

    @classmethod
    def read(cls, text: str) -> Report:
        """Return the report of another rank."""
        read = json.loads(text)
        for name in ("weights", "statistics"):
            read[name] = Fingerprint.unpack(read[name])
        return cls(**read)


def row(reports: Mapping[int, Report], seconds: float) -> dict[str, float]:
    """Return the columns that compare ranks.

    Args:
        reports: Rank -> what it tells.
        seconds: Of the epoch.
    """
    steps = [report.step for report in reports.values()]
    prints = {
        "weights": [report.weights for report in reports.values()],
        "statistics": [report.statistics for report in reports.values()],
    }
    waited = [report.exchange for report in reports.values() if report.exchange is not None]
    return {
        "ranks/heard": float(len(reports)),
        "ranks/step_skew": max(steps) / median(steps) if median(steps) else 1.0,
        "ranks/data": max(report.wait for report in reports.values()) / seconds,
        **({"ranks/longest_wait_s": max(waited)} if waited else {}),
        **{f"ranks/{name}_differ": max(found[0].distance(other) for other in found) for name, found in prints.items()},
    }
