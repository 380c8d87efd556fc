"""What `doctor` asks: the plan of a training, carried out of upstream's own start of it before anything is made."""

from __future__ import annotations

from contextvars import ContextVar

from yolo_patches.plan import Plan

#: Set while `doctor` asks: nothing is trained, the plan is raised instead.
forecasting: ContextVar[bool] = ContextVar("forecasting", default=False)


class Forecast(BaseException):
    """Carries the plan out; no handler of upstream's may stop it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__("forecast")
        self.plan = plan
