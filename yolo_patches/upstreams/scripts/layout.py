"""What YOLOv9 and YOLOv5 call the same things: the names that the adapter of either must know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Functions that are wrapped in every task: module -> function -> parameters that are read.
FUNCTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "utils.torch_utils": {"select_device": (), "smart_optimizer": (), "smart_resume": ()},
    "utils.general": {"check_amp": ("model",)},
    "utils.autobatch": {"check_train_batch_size": ()},
}
#: Modules whose `torch` or `np` stands in for the library where compat asks for it.
STAND_IN_MODULES = (
    "utils.general",
    "utils.loggers",
    "utils.metrics",
    "utils.plots",
    "utils.segment.metrics",
    "utils.panoptic.metrics",
    "models.common",
    "models.experimental",
)


@dataclass(frozen=True)
class Task:
    """One task of an upstream.

    Attributes:
        loaders: Module of `create_dataloader`.
        criteria: Modules of its criteria, classes named ComputeLoss...
        normaliser: What a rank's loss is divided by, in words.
        assigner: Module of TaskAlignedAssigner, where there is one.
    """

    loaders: str
    criteria: tuple[str, ...]
    normaliser: str
    assigner: str = ""


@dataclass(frozen=True)
class Layout:
    """One upstream.

    Attributes:
        name: Its name, which is that of its installed package.
        scripts: Training scripts, from the root -> task.
        tasks: The tasks by name.
        methods: What the wrappers need of a criterion.
    """

    name: str
    scripts: Mapping[str, str]
    tasks: Mapping[str, Task]
    methods: tuple[str, ...]

    def modules(self) -> tuple[str, ...]:
        """Return every module in which something is replaced, as a checkout names it."""
        found = [*FUNCTIONS, *STAND_IN_MODULES]
        for task in self.tasks.values():
            found += [task.loaders, *task.criteria, *([task.assigner] if task.assigner else [])]
        return tuple(dict.fromkeys(found))
