"""Checks of the arguments against the machine."""

from __future__ import annotations

from collections.abc import Iterator

from yolo_patches.doctor.finding import ERROR, INFO, WARNING, Finding
from yolo_patches.doctor.subject import Subject

GIB = 1 << 30
#: Of the usable cores, the share below which loader workers are far fewer than the machine can feed.
FAR_UNDER = 0.25


def mixed_precision(subject: Subject) -> Iterator[Finding]:
    """Mixed precision off on a device that has matrix units for it."""
    fast = [device.name for device in subject.machine.accelerators if device.half]
    if subject.settings.amp is False and fast:
        yield Finding(
            "amp-off",
            WARNING,
            f"amp off on {len(fast)} x {fast[0]}",
            "Its matrix units are left idle, and activations take twice the memory.",
            subject.change("amp", True),
            "https://arxiv.org/abs/1710.03740",
        )


def cache(subject: Subject) -> Iterator[Finding]:
    """Decoded images in host memory, once a rank."""
    data, imgsz = subject.data, subject.settings.imgsz
    assert data is not None
    assert imgsz is not None
    if subject.settings.cache != "ram":
        return
    shared = subject.active("shared-cache")
    ranks = 1 if shared else subject.facts.devices.on_node
    one = 0.0
    for image in (*data.train.images, *data.val.images):
        one += 3 * image.height * image.width * (imgsz / max(image.height, image.width)) ** 2
    wanted, there = one * ranks, subject.machine.memory
    each = f"{one / GIB:.3g} GiB x {ranks} {'copy' if shared else 'rank'}{'s' * (ranks > 1)}"
    apart = "Every rank keeps all images decoded, and upstream's own check looks at one rank alone."
    if wanted > there:
        yield Finding(
            "cache-ram",
            ERROR,
            f"{wanted / GIB:.3g} GiB = {each}, {there / GIB:.3g} GiB free",
            "All images are kept decoded." if shared else apart,
            "patches=shared-cache" if one <= there else subject.change("cache", "disk"),
            "https://github.com/ultralytics/ultralytics/issues/22307",
        )


def workers(subject: Subject) -> Iterator[Finding]:
    """Loader workers, which upstream starts on every rank, against the cores."""
    each, ranks, cores = subject.settings.workers or 0, subject.facts.devices.on_node, subject.machine.cores
    fitting = max(cores // ranks, 1)
    source = "https://github.com/ultralytics/ultralytics/issues/9843"
    if each * ranks > cores and "workers" in subject.facts.given:
        yield Finding(
            "workers-over",
            WARNING,
            f"{each} workers x {ranks} rank{'s' * (ranks > 1)} on {cores} cores",
            "Loader processes wait for each other's cores, each with its batches in memory.",
            subject.change("workers", fitting),
            source,
        )
    elif each * ranks > cores:
        yield Finding(
            "workers-over",
            INFO,
            f"upstream's {each} workers x {ranks} rank{'s' * (ranks > 1)} on {cores} cores",
            "Upstream lowers it to the cores of the machine, which may be more than this process may use.",
            subject.change("workers", fitting),
            source,
        )
    elif subject.machine.accelerators and each * ranks < cores * FAR_UNDER:
        yield Finding(
            "workers-under",
            WARNING,
            f"{each} workers x {ranks} rank{'s' * (ranks > 1)}, {cores} cores",
            "An accelerator that waits for images is the usual cause of a slow training; cores are free.",
            subject.change("workers", min(fitting, 16)),
            source,
        )
