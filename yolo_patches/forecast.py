"""What `doctor` asks: a training, carried out of upstream's own start of it before anything is made."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Union

from yolo_patches.doctor.subject import Absent, DataSet, Settings
from yolo_patches.facts import Facts
from yolo_patches.plan import Plan

#: Set while `doctor` asks: nothing is trained, the plan is raised instead.
forecasting: ContextVar[bool] = ContextVar("forecasting", default=False)


@dataclass(frozen=True)
class Foreseen:
    """What a training will be.

    Attributes:
        plan: What the patches will do.
        facts: What they decided from.
        settings: The other arguments that `doctor` judges.
        data: Reads the data set, as upstream will, and writes nothing.
    """

    plan: Plan
    facts: Facts
    settings: Settings
    data: Callable[[], Union[DataSet, Absent]]


class Forecast(BaseException):
    """Carries the training's forecast out; no handler of upstream's may stop it."""

    def __init__(self, foreseen: Foreseen) -> None:
        super().__init__("forecast")
        self.foreseen = foreseen
