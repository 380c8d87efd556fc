"""Whose code something is: upstream's own, which we know, or somebody's."""

from __future__ import annotations


def is_upstreams(value: object) -> bool:
    """Return whether a function or class, or the class of an object, is one of Ultralytics' own."""
    return str(getattr(value, "__module__", "")).startswith("ultralytics.")
