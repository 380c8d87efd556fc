"""What an adapter is: the only code that knows the names of one upstream. It decides no value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

from yolo_patches.doctor.loading import Figures
from yolo_patches.doctor.measurement import Largest, Measured
from yolo_patches.errors import PatchesError
from yolo_patches.forecast import Foreseen
from yolo_patches.patch import Patch
from yolo_patches.plan import Plan
from yolo_patches.seams import Seam
from yolo_patches.wrapping import Wrapping

Install = Callable[[ModuleType, Wrapping], None]


class Adapter(ABC):
    """One upstream.

    Attributes:
        name: The entry point's name.
        packages: Top-level packages whose import may mean this upstream. They wake the adapter where its start-up file
            has named them to `yolo_patches._bootstrap.register`.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]

    def recognises(self, spec: ModuleSpec) -> bool:
        """Return whether a package of one of these names, found but not imported yet, is this upstream's."""
        return True

    @abstractmethod
    def installed(self) -> bool:
        """Return whether the upstream is installed, or lies in the current folder. It is not imported for that."""

    @abstractmethod
    def hooks(self) -> Mapping[str, Install]:
        """Return upstream module name -> function that wraps in that module, called once it has been imported.

        What a function has wrapped is taken back where it raises: a module is wrapped as a whole, or left alone.
        """

    def prepare(self, wrapping: Wrapping) -> None:  # noqa: B027 - most have nothing to prepare
        """Put in place what upstream's first import must meet; called whenever the adapter begins to wait."""

    def patches(self) -> Mapping[str, type[Patch]]:
        """Return the patches that are for this upstream alone, by name: what it does wrong, in some releases."""
        return {}

    @abstractmethod
    def missing(self) -> Mapping[type[Seam], str]:
        """Return the seams that the installed upstream lacks -> why. Imports upstream."""

    @abstractmethod
    def version(self) -> str:
        """Return upstream's version without importing it."""

    def defaults(self) -> Mapping[str, Any]:
        """Return upstream's own value of every training argument, without importing it; none where it has no file."""
        return {}

    @abstractmethod
    def command(self, words: list[str]) -> int:
        """Run upstream's own command line with these words and return its exit status."""

    @abstractmethod
    def forecast(self, words: list[str]) -> Foreseen:
        """Return what is known beforehand of the training that upstream's command line would start with these words.

        Raises:
            PatchesError: These words start no training, or the training is refused.
        """

    def measured(self, words: list[str], changes: Mapping[str, Any], seconds: float) -> Measured | None:
        """Return what some seconds of that training take, or None where it does not run.

        Args:
            words: What upstream's command line takes.
            changes: Arguments to change.
            seconds: How long to train.

        Raises:
            PatchesError: Trainings of this upstream are not measured.
        """
        raise PatchesError(f"doctor --measure is for Ultralytics; trainings of {self.name} are not measured")

    def at_largest_batch(self, words: list[str], plan: Plan, seconds: float) -> Largest | None:
        """Return what that training takes with the largest batch that fits, or None where memory is not measured.

        Args:
            words: What upstream's command line takes.
            plan: What the patches do in that training.
            seconds: How long to train once the batch is found.
        """
        return None

    def loading(self, words: list[str], selection: str, seconds: float, cores: int) -> Figures:
        """Return what making the samples of that training takes. Nothing is trained.

        Args:
            words: What upstream's command line takes.
            selection: What is given as `patches=`.
            seconds: How long each measurement takes.
            cores: Loaders are measured with up to so many workers.

        Raises:
            PatchesError: Samples of this upstream are not measured, or it cannot make them.
        """
        raise PatchesError(f"bench-loading is for Ultralytics; loaders of {self.name} are not measured")
