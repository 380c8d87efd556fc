"""patches.csv: what patches have to say of each epoch, a row each, beside upstream's results.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from yolo_patches import report

FILE_NAME = "patches.csv"
EPOCH = "epoch"


class EpochLog:
    """The rows of one run directory.

    Args:
        directory: The run directory.
        start: The first epoch of this training, from 0: rows of a resumed run before it are kept.
    """

    def __init__(self, directory: Path, start: int = 0) -> None:
        self._path = directory / FILE_NAME
        self.rows = {epoch: row for epoch, row in self._read().items() if epoch < start}

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add columns to an epoch's row, and write the file: a reader sees the old one or the new one.

        Args:
            epoch: From 0; in the file it counts from 1, as in results.csv.
            values: Column -> value.

        Raises:
            OSError: The file cannot be written.
        """
        self.rows.setdefault(epoch, {}).update(values)
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow([EPOCH, *columns])
        for number, row in sorted(self.rows.items()):
            table.writerow([number + 1, *(f"{row[name]:.9g}" if name in row else "" for name in columns)])
        report.replace(self._path, text.getvalue())

    def _read(self) -> dict[int, dict[str, float]]:
        """Return the rows of the file; none where it is no table of ours."""
        try:
            with open(self._path, encoding="utf-8", newline="") as file:
                return {
                    int(row.pop(EPOCH)) - 1: {name: float(value) for name, value in row.items() if value}
                    for row in csv.DictReader(file)
                }
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            return {}
