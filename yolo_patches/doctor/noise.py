"""How noisy a validation's figure is, from its images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional

#: Probability that the assumed model finds an object: where a share is noisiest.
FOUND = 0.5
RESAMPLES = 200


def standard_error(images: Sequence[Mapping[int, int]]) -> Optional[float]:
    """Return the standard error of the mean recall over classes, which stands in for mAP.

    There is no model yet. So each object is found with probability 1/2, independently, and images are drawn with
    replacement (Efron 1979, https://doi.org/10.1214/aos/1176344552): a class of few objects is as noisy as its few are.
    Objects of one image that are found or missed together would make it larger.

    Args:
        images: Class -> number of its objects, of each image.

    Returns:
        Between 0 and 0.5, or None where no image has an object.
    """
    import numpy as np

    classes = sorted({number for image in images for number in image})
    if not classes:
        return None
    there = np.array([[image.get(number, 0) for number in classes] for image in images], dtype=np.int64)
    random = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        drawn = there[random.integers(0, len(images), len(images))].sum(0)
        found = random.binomial(drawn, FOUND)
        seen = drawn > 0
        if seen.any():
            means.append(float((found[seen] / drawn[seen]).mean()))
    return float(np.std(means))
