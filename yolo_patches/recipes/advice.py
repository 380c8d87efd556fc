"""What upstream's own guides say about data sets of a size. Advice: nothing of it is set by itself."""

from __future__ import annotations

from collections.abc import Iterator

#: Training images below which a data set is small beside those that recipes were published for: COCO has 118,287.
SMALL = 5000
GUIDE = "https://docs.ultralytics.com/guides/yolo26-training-recipe"
TIPS = "https://docs.ultralytics.com/yolov5/tutorials/tips_for_best_training_results"


def advice(images: int, scratch: bool) -> Iterator[str]:
    """Yield what is said about a training, a sentence each, with its address.

    Args:
        images: Training images.
        scratch: Whether it starts from random weights.
    """
    if scratch and images < SMALL:
        yield f"{images} training images: Ultralytics recommends to start from weights where they are few ({TIPS})"
    elif not scratch and images < 1000:
        yield (
            f"{images} training images: below 1,000 Ultralytics' guide has mosaic=0.5 mixup=0 copy_paste=0 lr0=0.001 "
            f"epochs=50 patience=20 freeze=10 ({GUIDE})"
        )
    elif not scratch and images > 50_000:
        yield (
            f"{images} training images: above 50,000 Ultralytics' guide has mosaic=1 mixup=0.3 scale=0.9 "
            f"optimizer=MuSGD ({GUIDE})"
        )
    elif not scratch:
        yield f"{images} training images: Ultralytics' guide tells to train with its defaults first ({GUIDE})"
