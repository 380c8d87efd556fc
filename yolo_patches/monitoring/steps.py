"""What the optimizer's steps of an epoch were like. On a device nothing is read before the epoch's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

#: Parameters that are compared before and after a step, at most: of a larger model every Kth.
SAMPLED = 1 << 22


class Steps:
    """The steps of one epoch after the other."""

    def __init__(self) -> None:
        self._optimizer: Any = None
        self._hooks: list[Any] = []
        self._scaler: Any = None
        self._before: list[torch.Tensor] = []
        self.announced = self.clipped = 0  # of the whole training
        self.clear()

    def clear(self) -> None:
        """Begin an epoch."""
        self._norms: list[Any] = []
        self._limits: list[float] = []
        self._changes: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._due = self._made = 0
        self._rates: list[float] = []

    def announce(self, optimizer: Any, scaler: Any) -> None:
        """Follow a step that is about to be made."""
        self.announced += 1
        self._due += 1
        self._scaler = scaler
        if optimizer is not self._optimizer:
            self.close()
            self._optimizer = optimizer
            if hasattr(optimizer, "register_step_pre_hook"):  # torch 2.0
                self._hooks = [
                    optimizer.register_step_pre_hook(lambda *_: self._begins()),
                    optimizer.register_step_post_hook(lambda *_: self._ends()),
                ]

    def clip(self, norm: Any, limit: float) -> None:
        """Follow a clip: its norm is read later."""
        self.clipped += 1
        self._norms.append(norm.detach() if isinstance(norm, torch.Tensor) else torch.tensor(float(norm)))
        self._limits.append(limit)

    def close(self) -> None:
        """Let go of the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._optimizer = [], None

    def _begins(self) -> None:
        if self._made & (self._made + 1) == 0:  # steps 1, 2, 4, 8, ... of the epoch are compared
            self._before = [values.clone() for values in self._sample()]

    def _ends(self) -> None:
        self._made += 1
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        if self._before:
            after = self._sample()
            change = torch.stack([(new - old).float().square().sum() for new, old in zip(after, self._before)]).sum()
            weight = torch.stack([old.float().square().sum() for old in self._before]).sum()
            self._changes.append((change.sqrt(), weight.sqrt()))
            self._before = []

    def _sample(self) -> list[torch.Tensor]:
        """Return the parameters that are trained, of a large model every Kth, as views where they can be."""
        parameters = [p.detach() for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]
        every = -(-sum(p.numel() for p in parameters) // SAMPLED)
        return [p.reshape(-1)[::every] for p in parameters]

    def row(self, images: int) -> dict[str, float]:
        """Return the epoch's columns, and begin the next.

        Args:
            images: Read in this epoch, over all ranks.
        """
        row: dict[str, float] = {}
        if self._norms:
            row.update(_norms(torch.stack([n.float().cpu() for n in self._norms]).tolist(), self._limits))
        if self._changes:
            ratios = [float(change) / float(weight) for change, weight in self._changes if float(weight)]
            row["update_ratio"] = _quantile(ratios, 0.5) if ratios else 0.0
        row["steps"] = float(self._due)
        if self._due:
            row["effective_batch"] = images / self._due
        for number, rate in enumerate(self._rates):
            row[f"lr/pg{number}"] = rate
        if self._scaler is not None and self._scaler.is_enabled():
            row["amp/scale"] = float(self._scaler.get_scale())
            if self._hooks:
                row["amp/skipped"] = float(self._due - self._made)
        self.clear()
        return row


def _norms(norms: Sequence[float], limits: Sequence[float]) -> dict[str, float]:
    """Return what the gradients' norms before the clip were like.

    Those of steps that overflow are no numbers, and are left out: AMP skips such steps.
    """
    pairs = [(norm, limit) for norm, limit in zip(norms, limits) if norm == norm and norm != float("inf")]
    if not pairs:
        return {}
    finite = sorted(norm for norm, _ in pairs)
    factors = [limit / norm for norm, limit in pairs if norm > limit]
    row = {
        "grad_norm/median": _quantile(finite, 0.5),
        "grad_norm/p95": _quantile(finite, 0.95),
        "grad_norm/max": finite[-1],
        "grad_norm/clipped": len(factors) / len(pairs),
    }
    if factors:
        row["grad_norm/clip_factor"] = _quantile(factors, 0.5)
    return row


def _quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile, linear between two values."""
    return float(torch.quantile(torch.tensor(values, dtype=torch.float64), share))
