"""`apply`, `revert`, `applied` and `status`: the package from Python, with or without the start-up hook."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from yolo_patches import __version__, registry
from yolo_patches._bootstrap import finder, pending, rearm, register
from yolo_patches.activation import activation
from yolo_patches.selection import parse
from yolo_patches.upstreams import start


def watch() -> None:
    """Let the adapters wrap the upstreams that are imported, and wait for the others, as the start-up hook does."""
    start.register()
    for adapter in registry.adapters():
        register({name: None for name in adapter.packages if name not in finder().tests})
        specs = [getattr(sys.modules[name], "__spec__", None) for name in adapter.packages if name in sys.modules]
        if any(spec is not None and adapter.recognises(spec) for spec in specs):
            activation.watch(adapter.name)
    rearm()


def apply(spec: Any = "default") -> None:
    """Activate the adapters and make `spec` this process's selection where no `patches=` argument is given.

    Args:
        spec: A specification, see `yolo_patches.selection`.

    Raises:
        PatchesError: The specification is not valid; nothing is changed then.
    """
    selection = parse(spec, registry.specs(), "apply()")
    watch()
    activation.applied = selection


def revert() -> None:
    """Put the original objects back into upstream; harmless when nothing is applied.

    Raises:
        PatchesError: Somebody else has wrapped on top of us; nothing is changed then.
    """
    activation.revert()


@contextmanager
def applied(spec: Any = "default") -> Iterator[None]:
    """Apply `spec` for the duration of a block, then return to what was in force before.

    Args:
        spec: A specification, see `yolo_patches.selection`.

    Raises:
        PatchesError: The specification is not valid.
    """
    before, active = activation.applied, activation.active or pending()
    apply(spec)
    try:
        yield
    finally:
        if active:
            activation.applied = before
        else:
            activation.revert()


def status() -> dict[str, Any]:
    """Return what is active in this process.

    Returns:
        version: Of yolo-patches. active: Adapters that have wrapped their upstream or wait for it. selection: What
        `apply` or the environment variable asks for, "default" where neither speaks. patches: The registered patches'
        names. run: The plan of the last training in this process, as in patches.json, or None.
    """
    selection = activation.selection()
    return {
        "version": __version__,
        "active": list(activation.active),
        "selection": "default" if selection is None else selection.text,
        "patches": list(registry.patches()),
        "run": None if activation.last_plan is None else activation.last_plan.to_dict(),
    }
