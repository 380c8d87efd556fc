"""Synthetic photographs: as many edges, textures and bytes as a camera's JPEG, with objects of every size."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

#: Width and height.
SMALL = ((640, 480),)
MIXED = ((640, 480), (1280, 720), (1920, 1080), (500, 375), (1024, 1024))
CLASSES = 8


def photograph(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return an image of noise at several scales, [height, width, 3]."""
    image = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((4, 90), (16, 45), (64, 25), (256, 12)):
        noise = random.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    image += random.normal(0, 3, image.shape).astype(np.float32)
    return np.clip(image + 120, 0, 255).astype(np.uint8)


def outline(random: np.random.Generator, corners: int) -> np.ndarray:
    """Return the corners of a star-shaped polygon, normalised, [corners, 2]."""
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    size = random.uniform(0.02, 0.3) * random.uniform(0.5, 1, corners)
    centre = random.uniform(0.1, 0.9, 2)
    points = centre + np.column_stack([np.cos(angles), np.sin(angles)]) * size[:, None]
    return np.clip(points, 0, 1)


def make(folder: Path, images: int, sizes: tuple[tuple[int, int], ...], labels: str, objects: int = 14) -> Path:
    """Make a data set whose training images are also its validation's.

    Args:
        folder: Where; it must not exist.
        images: How many.
        sizes: Widths and heights, in turns.
        labels: boxes, polygons, corners (of rotated boxes) or keypoints.
        objects: Objects of an image, at most.

    Returns:
        The data set's yaml file.
    """
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for index in range(images):
        image = photograph(random, *sizes[index % len(sizes)])
        lines = []
        for _ in range(int(random.integers(0, objects + 1))):
            points = outline(random, int(random.integers(8, 60)))
            low, high = points.min(0), points.max(0)
            cv2.fillPoly(image, [(points * image.shape[1::-1]).astype(np.int32)], random.integers(0, 255, 3).tolist())
            box = [*((low + high) / 2), *(high - low)]
            rectangle = [low[0], low[1], high[0], low[1], high[0], high[1], low[0], high[1]]
            keypoints = [value for x, y in points[:4] for value in (x, y, 2)]
            values = {
                "boxes": box,
                "polygons": points.ravel().tolist(),
                "corners": rectangle,
                "keypoints": [*box, *keypoints],
            }[labels]
            lines.append(" ".join([str(random.integers(CLASSES)), *(f"{value:.6f}" for value in values)]))
        cv2.imwrite(str(folder / "images" / f"{index:05}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        (folder / "labels" / f"{index:05}.txt").write_text("\n".join(lines))
    extra = "kpt_shape: [4, 3]\nflip_idx: [1, 0, 3, 2]\n" if labels == "keypoints" else ""
    names = ", ".join(f"class{index}" for index in range(CLASSES))
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [{names}]\n{extra}")
    return file
