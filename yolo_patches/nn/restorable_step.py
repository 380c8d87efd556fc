"""What an optimizer's step changes, so that one which fails in the middle can be taken back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn


class Slots:
    """The places where modules hold their tensors: tensors are replaced there, e.g. by `module.half()`.

    Args:
        modules: Whose.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._places = [
            (held, name)
            for module in modules
            for part in module.modules()
            for held in (part._parameters, part._buffers)
            for name, value in held.items()
            if value is not None
        ]

    def tensors(self) -> list[Tensor]:
        """Return what is there now."""
        return [value.detach() for held, name in self._places if (value := held.get(name)) is not None]


class Snapshot:
    """Contents of all that a step may change: parameters, gradients, the optimizer's state, and what else is named.

    Args:
        optimizer: Whose step it is.
        tensors: Changed in place beside the optimizer's own, e.g. those of an average of the weights.
        holders: Objects whose attributes change: numbers, tensors, dictionaries of such.
        device: Where to keep the contents; None for where they are.
    """

    def __init__(
        self, optimizer: Any, tensors: Sequence[Tensor], holders: Sequence[Any], device: Optional[str] = None
    ) -> None:
        self._optimizer = optimizer
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._gradients = [p.grad for p in self._parameters]
        self._groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        self._state = {parameter: dict(state) for parameter, state in optimizer.state.items()}
        self._holders = [(holder, {name: _copied(value) for name, value in vars(holder).items()}) for holder in holders]
        held = [value for _, attributes in self._holders for value in attributes.values() if isinstance(value, Tensor)]
        states = [value for state in self._state.values() for value in state.values() if isinstance(value, Tensor)]
        gradients = [gradient for gradient in self._gradients if gradient is not None]
        self._tensors = [*(p.detach() for p in self._parameters), *gradients, *states, *tensors, *held]
        self._contents = _contents(self._tensors, device)

    def restore(self) -> None:
        """Put everything back as it was."""
        with torch.no_grad():
            for tensor, content in zip(self._tensors, self._contents):
                tensor.copy_(content)
        for parameter, gradient in zip(self._parameters, self._gradients):
            parameter.grad = gradient
        for group, values in zip(self._optimizer.param_groups, self._groups):
            group.update(values)
        self._optimizer.state.clear()
        for parameter, state in self._state.items():
            self._optimizer.state[parameter] = dict(state)
        for holder, attributes in self._holders:
            vars(holder).update({name: _copied(value) for name, value in attributes.items()})


def _contents(tensors: Sequence[Tensor], device: Optional[str]) -> list[Tensor]:
    """Return copies of tensors, in a few kernels a kind: one launch for each would take longer than the copies."""
    if device is not None:
        return [tensor.to(device, copy=True) for tensor in tensors]
    contents: list[Any] = [None] * len(tensors)
    kinds: dict[Any, list[int]] = defaultdict(list)
    for number, tensor in enumerate(tensors):
        kinds[tensor.dtype, tensor.device].append(number)
    for (dtype, _), numbers in kinds.items():
        of_kind = [tensors[number].detach() for number in numbers]
        copies = torch._foreach_mul(of_kind, 1) if dtype.is_floating_point else [tensor.clone() for tensor in of_kind]
        for number, copy in zip(numbers, copies):
            contents[number] = copy
    return contents


def _copied(value: Any) -> Any:
    """Return a dictionary with the dictionaries in it copied, anything else as it is."""
    if not isinstance(value, dict):
        return value
    copy: dict[Any, Any] = defaultdict(value.default_factory) if isinstance(value, defaultdict) else {}
    copy.update({name: _copied(part) for name, part in value.items()})
    return copy


def repeated(
    make: Callable[[], Any],
    snapshot: Callable[[Optional[str]], Snapshot],
    failed: Callable[[Exception], bool],
) -> Any:
    """Make a step that may fail for want of memory, and repeat it from where it began.

    Args:
        make: Makes the step.
        snapshot: Notes what it may change, on a device; None for where that is.
        failed: Told of an error; returns whether another attempt is worth it, once memory has been released.

    Raises:
        Exception: What the last attempt has raised; everything is as before the step then.
    """
    before, error = _noted(snapshot, None, failed)
    for attempt in range(3):
        if before is None:  # no room to note it anywhere: upstream's step as it is
            return make()
        try:
            return make()
        except Exception as problem:
            error = problem
        before.restore()
        if not failed(error) or attempt == 2:
            raise error
        # What has been noted lies where there was no room: what is noted again lies on the host.
        before = None
        before, _ = _noted(snapshot, "cpu", failed)
    raise AssertionError("three attempts have been made")


def _noted(
    snapshot: Callable[[Optional[str]], Snapshot], device: Optional[str], failed: Callable[[Exception], bool]
) -> tuple[Optional[Snapshot], Exception]:
    problem: Exception = RuntimeError()
    for place in dict.fromkeys((device, "cpu")):
        try:
            return snapshot(place), problem
        except Exception as error:
            problem = error
        if not failed(problem):
            raise problem
    return None, problem
