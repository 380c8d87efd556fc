"""patches.png: the figures of patches.csv, as a person would rather look at them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

FILE_NAME = "patches.png"
#: Epochs up to which each is marked by a point.
MARKED = 40
TIMES = {"data": "waiting for data", "step": "steps", "validation": "validation", "elsewhere": "elsewhere"}

Rows = Mapping[int, Mapping[str, float]]


def draw(rows: Rows) -> bytes:
    """Return the chart as PNG.

    Args:
        rows: Epoch, from 0 -> columns.
    """
    # Not by pyplot: its figures are everybody's, and upstream draws its own in threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).flat
    for paint, axis in zip((_gradients, _updates, _rates, _times, _speed, _memory), axes):
        paint(axis, rows)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if len(rows) < 8:
            axis.set_xticks([epoch + 1 for epoch in rows])
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _line(axis: Any, rows: Rows, column: str, label: str, **how: Any) -> bool:
    """Draw a column where it has values; return whether it has."""
    points = [(epoch + 1, row[column]) for epoch, row in sorted(rows.items()) if column in row]
    if points:
        axis.plot(*zip(*points), label=label, marker="o" if len(rows) <= MARKED else "", markersize=3, **how)
    return bool(points)


def _finish(axis: Any, title: str, drawn: Sequence[bool], ncols: int = 1) -> None:
    axis.set_title(title)
    if any(drawn):
        axis.legend(fontsize="small", loc="best" if ncols == 1 else "upper center", ncols=ncols)
    else:
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes)


def _gradients(axis: Any, rows: Rows) -> None:
    drawn = [_line(axis, rows, f"grad_norm/{name}", name) for name in ("max", "p95", "median")]
    if any(drawn):
        axis.set_yscale("log")
    clipped = [row["grad_norm/clipped"] for row in rows.values() if "grad_norm/clipped" in row]
    title = "gradient norm before the clip"
    _finish(axis, f"{title} ({clipped[-1]:.0%} clipped)" if clipped else title, drawn)


def _updates(axis: Any, rows: Rows) -> None:
    drawn = [_line(axis, rows, "update_ratio", "|step| / |weights|")]
    if any(drawn) and all(row.get("update_ratio", 1) > 0 for row in rows.values()):
        axis.set_yscale("log")
    _finish(axis, "size of a step, relative to the weights", drawn)


def _rates(axis: Any, rows: Rows) -> None:
    groups = sorted({name for row in rows.values() for name in row if name.startswith("lr/")})
    drawn = [_line(axis, rows, name, name) for name in groups]
    batch = [row["effective_batch"] for row in rows.values() if "effective_batch" in row]
    title = "learning rate"
    _finish(axis, f"{title} (effective batch {batch[-1]:.0f})" if batch else title, drawn)


def _times(axis: Any, rows: Rows) -> None:
    timed = {epoch: row for epoch, row in sorted(rows.items()) if "time/epoch_s" in row}
    if timed:
        shares = [[100 * row[f"time/{name}"] for row in timed.values()] for name in TIMES]
        epochs = [epoch + 1 for epoch in timed]
        if len(timed) <= MARKED:
            floor = [0.0] * len(timed)
            for share, label in zip(shares, TIMES.values()):
                axis.bar(epochs, share, 0.8, bottom=floor, label=label)
                floor = [low + part for low, part in zip(floor, share)]
        else:
            axis.stackplot(epochs, *shares, labels=list(TIMES.values()))
        axis.set_ylim(0, 130)  # room for the legend
        axis.set_yticks(range(0, 101, 20))
    _finish(axis, "where an epoch's time goes, %", [bool(timed)], ncols=2)


def _speed(axis: Any, rows: Rows) -> None:
    drawn = [_line(axis, rows, "images_per_s", "images a second")]
    axis.set_ylim(0, axis.dataLim.y1 * 1.35 if any(drawn) else 1)
    _finish(axis, "images a second, while training", drawn)


def _memory(axis: Any, rows: Rows) -> None:
    names = {"memory/train_gib": "device, training", "memory/val_gib": "device, validation", "memory/host_gib": "host"}
    drawn = [_line(axis, rows, column, label) for column, label in names.items()]
    axis.set_ylim(0, axis.dataLim.y1 * 1.35 if any(drawn) else 1)
    _finish(axis, "memory, GiB", drawn)
