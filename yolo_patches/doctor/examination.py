"""The checks, and how they are made: one that crashes is a finding of its own, and stops no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from yolo_patches.doctor import data_checks, machine_checks, optimization_checks
from yolo_patches.doctor.finding import ERROR, INFO, Finding
from yolo_patches.doctor.subject import Absent, DataSet, Machine, Subject
from yolo_patches.forecast import Foreseen

DATA = "data"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        id: Its name.
        findings: Judges a training.
        needs: Settings that it reads, or "data": where this upstream has none of that name it is not made.
    """

    id: str
    findings: Callable[[Subject], Iterable[Finding]]
    needs: tuple[str, ...] = ()


CHECKS = (
    Check("small-batch", optimization_checks.small_batch),
    Check("memory-order", optimization_checks.memory_order),
    Check("accumulation", optimization_checks.accumulation),
    Check("auto-optimizer", optimization_checks.auto_optimizer),
    Check("finetune-lr", optimization_checks.fine_tuning),
    Check("warm-up", optimization_checks.warm_up, ("warmup",)),
    Check("close-mosaic", optimization_checks.close_mosaic, ("close_mosaic",)),
    Check("patience-unjudged", optimization_checks.patience),
    Check("amp-off", machine_checks.mixed_precision, ("amp",)),
    Check("workers", machine_checks.workers, ("workers",)),
    Check("cache-ram", machine_checks.cache, ("cache", "imgsz", DATA)),
    Check("imgsz-stride", data_checks.resolution, ("imgsz", "stride")),
    Check("labels", data_checks.labels, (DATA,)),
    Check("classes", data_checks.classes, (DATA,)),
    Check("copy-paste", data_checks.copy_paste, ("copy_paste", DATA)),
    Check("small-objects", data_checks.small_objects, ("imgsz", DATA)),
    Check("max-det", data_checks.detections, ("max_det", DATA)),
    Check("leak", data_checks.leak, (DATA,)),
    Check("validation-noise", data_checks.validation_noise, (DATA,)),
)


def examine(foreseen: Foreseen, machine: Machine, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Return what is to be said of a training, the worst first.

    Args:
        foreseen: What the adapter knows of it.
        machine: Where it will run.
        checks: Those to make.
    """
    data = _attempt(DATA, foreseen.data)
    findings = [data] if isinstance(data, Finding) else []
    found = data if isinstance(data, DataSet) else None
    if isinstance(data, Absent) and data.fatal:
        findings.append(Finding("data-set", ERROR, data.why, "Upstream will not train on it.", "data", ""))
    subject = Subject(foreseen.facts, foreseen.settings, foreseen.plan, machine, found)
    left_out = []
    for check in checks:
        if any((found if name == DATA else getattr(foreseen.settings, name)) is None for name in check.needs):
            left_out.append(check.id)
            continue
        made = _attempt(check.id, partial(_listed, check, subject))
        findings += [made] if isinstance(made, Finding) else made
    if left_out:
        why = data.why if isinstance(data, Absent) else f"{foreseen.facts.upstream} does not say what they need"
        findings.append(Finding("not-judged", INFO, ", ".join(left_out), f"{why.rstrip('.')}.", "", ""))
    order = (ERROR, "warning", INFO)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _listed(check: Check, subject: Subject) -> list[Finding]:
    return list(check.findings(subject))


def _attempt(name: str, act: Callable[[], Any]) -> Any:
    try:
        return act()
    except Exception as error:  # one check of many, on input of somebody else's
        words = f"{type(error).__name__}: {error}"
        return Finding(name, ERROR, words, "This check has crashed; the others have been made.", "", "")
