"""What YOLOv9 and YOLOv5 call the same things: the names that the adapter of either must know."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: What the wrapped functions must have: module -> function -> parameters that are read or replaced.
FUNCTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "utils.torch_utils": {
        "select_device": ("device",),
        "smart_optimizer": ("model", "lr", "decay"),
        "smart_resume": ("ckpt", "optimizer"),
    },
    "utils.general": {"check_amp": ("model",)},
    "utils.autobatch": {"check_train_batch_size": ("model",)},
}
LOADER = ("batch_size", "hyp", "augment", "rank")
TRAIN = ("hyp", "opt", "device", "callbacks")


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
        return tuple(
            dict.fromkeys(
                [
                    *FUNCTIONS,
                    *(task.loaders for task in self.tasks.values()),
                    *(module for task in self.tasks.values() for module in (*task.criteria, task.assigner) if module),
                    *STAND_IN_MODULES,
                ]
            )
        )

    def defects(self, root: Path, script: str) -> dict[str, list[str]]:
        """Return what a checkout lacks that the wrappers count on, by the module that lacks it; empty where nothing.

        Args:
            root: Where the modules lie.
            script: One of `scripts`.
        """
        task = self.tasks[self.scripts[script]]
        wanted = {**FUNCTIONS, task.loaders: {"create_dataloader": LOADER}}
        found = {module: _lacking(root, module, functions) for module, functions in wanted.items()}
        found["script"] = _script_lacks(root / script)
        methods = {f"ComputeLoss.{method}": () for method in self.methods}
        found["criteria"] = [line for module in task.criteria for line in _lacking(root, module, methods)]
        if task.assigner:
            found["criteria"] += _lacking(root, task.assigner, {"TaskAlignedAssigner.forward": ()})
        return {module: why for module, why in found.items() if why}


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


@cache
def _functions(file: Path) -> Mapping[str, tuple[str, ...]]:
    """Return the functions and methods that a source file defines -> their parameters."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError):
        return {}
    found = {}
    for node in tree.body:
        members = [(f"{node.name}.", child) for child in node.body] if isinstance(node, ast.ClassDef) else [("", node)]
        for prefix, child in members:
            if isinstance(child, ast.FunctionDef):
                found[prefix + child.name] = tuple(argument.arg for argument in child.args.args)
    return found


def _lacking(root: Path, module: str, functions: Mapping[str, Iterable[str]]) -> list[str]:
    defined = _functions(root.joinpath(*module.split(".")).with_suffix(".py"))
    why = [f"{module}.{name} does not exist" for name in functions if name not in defined]
    for name, parameters in functions.items():
        missing = [parameter for parameter in parameters if name in defined and parameter not in defined[name]]
        if missing:
            why.append(f"{module}.{name} has no parameter {', '.join(missing)}")
    return why


def _script_lacks(file: Path) -> list[str]:
    why = _lacking(file.parent, file.stem, {"train": TRAIN})
    try:
        text = file.read_text(encoding="utf-8", errors="ignore")
    except OSError:
        return [f"{file.name} does not exist"]
    words = ("torch.nn.utils.clip_grad_norm_(", "validate.run(", "hyp['warmup_epochs'] * nb")
    return why + [f"{file.name} does not call {word}" for word in words if word not in text]
