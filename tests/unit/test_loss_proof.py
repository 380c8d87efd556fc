"""What is proven of a loss by ranks that are played in one process, and what is not."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from yolo_patches.seams import Normaliser  # noqa: E402
from yolo_patches.upstreams.loss_proof import Loss, prove  # noqa: E402
from yolo_patches.upstreams.normaliser_calls import fire, listening, probing  # noqa: E402
from yolo_patches.upstreams.synthetic_images import EMPTY, objects, overlapping, owners, pixels  # noqa: E402

#: What the images 0, 1, 2 and the one without objects have to divide, in two terms, and to divide by.
TERMS = {0: (9.0, 5.0), 1: (4.0, 7.0), 2: (2.0, 6.0), EMPTY: (3.0, 1.0)}
WEIGHTS = {0: 20.0, 1: 6.0, 2: 3.0, EMPTY: 0.0}


def loss(images, summed=True, floor=1.0, second="shared", items=False):
    """Return a loss of two terms that comes to the seam, its second term in a way of its own."""
    own = sum(WEIGHTS[image] for image in images)
    listener, total, ranks = listening(), own, 1
    if listener is not None:
        seam = fire(listener, torch.ones(()), own)
        total, ranks = seam.values[0].item(), seam.ranks
    share = max(total, floor / ranks)
    divisors = share, {"shared": share, "own": max(own, floor), "floored": max(total, floor)}[second]
    sums = (sum(TERMS[image][term] for image in images) for term in (0, 1))
    terms = torch.tensor([amount / divisor for amount, divisor in zip(sums, divisors)])
    value = terms * len(images) if summed else terms
    return Loss(value.sum(), terms) if items else Loss(value)


@pytest.mark.parametrize("items", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_proven(summed, items):
    proof = prove(lambda images: loss(images, summed, items=items))
    assert proof.error < 1e-6
    assert (proof.growth, proof.why) == (pytest.approx(2 if summed else 1), "")


@pytest.mark.parametrize("items", [False, True])
@pytest.mark.parametrize("second", ["own", "floored"])
def test_refuted(second, items):
    """One term of several is enough, and a floor that matters only where a batch has no objects."""
    assert prove(lambda images: loss(images, second=second, items=items)).error > 0.1


def raising(images):
    raise KeyError("masks")


def one_image_fails(images):
    if len(images) == 1:
        raise ValueError("upstream wants two")
    return loss(images)


def without_objects_fails(images):
    if set(images) == {EMPTY}:
        raise ValueError("upstream wants objects")
    return loss(images)


def silent(images):
    return Loss(torch.tensor(1.0 * len(images)))


def mixed(images):
    return Loss(loss(images).value.sum() + loss(images, summed=False).value.sum())


def infinite(images):
    return Loss(torch.tensor(float("inf")))


def seldom(images):
    with probing(listening()) if images[0] == 0 else probing(None):
        return loss(images)


def equal(images):
    listener = listening()
    if listener is not None:
        fire(listener, torch.ones(()), 1.0)
    return Loss(torch.tensor(2.0 * len(images)))


@pytest.mark.parametrize(
    ("compute", "growth", "why"),
    [
        (raising, None, "KeyError: 'masks'"),
        (one_image_fails, 2, "ValueError: upstream wants two"),
        (silent, 2, "no normaliser has come to the seam"),
        (mixed, None, "neither sum nor mean"),
        (infinite, None, "not finite"),
        (seldom, 2, "do not come to the seam as others do"),
        (equal, 2, "do not tell"),
    ],
)
def test_unproven(compute, growth, why):
    proof = prove(compute)
    assert proof.error is None
    assert why in proof.why
    if growth is not None:
        assert proof.growth == pytest.approx(growth)


def test_what_upstream_cannot_compute_is_left_out():
    assert prove(without_objects_fails).error < 1e-6


def test_nobody_listens_afterwards():
    prove(raising)
    prove(loss)
    assert listening() is None
    assert torch.is_grad_enabled()


def test_images():
    images = objects(classes=3)
    assert [len(image) for image in images] == [24, 5, 2, 0]
    assert torch.equal(images[0].boxes, objects(classes=3)[0].boxes)
    assert {int(c) for image in images for c in image.classes} == {0, 1, 2}
    assert owners(images).bincount().tolist() == [24, 5, 2]
    masks = overlapping(images, 16)
    assert masks.shape == (4, 16, 16)
    assert masks[3].sum() == 0
    assert masks[1].unique().tolist()[-1] == 5
    assert pixels(3, 64).shape == (3, 3, 64, 64)


def test_denoising_counts_ground_truths():
    """RT-DETR repeats a rank's ground truths more often where it has fewer: that makes a mean over them no other."""
    from yolo_patches.upstreams.ultralytics import detr_losses

    class Two:
        def listens(self, seam):
            return seam is Normaliser

        def fire(self, seam):
            seam.values, seam.ranks = torch.tensor([4.0, 4.0]), 2
            return seam

    def upstream(preds, batch, dn_meta=None):
        return {"loss_bbox": torch.tensor(1.0), "loss_bbox_dn": torch.tensor(1.0)}

    for count, groups in ((2, 5), (6, 1)):
        meta = {"dn_pos_idx": [range(count * groups)], "dn_num_group": groups}
        with probing(Two()):
            preds = (torch.ones(1), torch.ones(1))
            terms = detr_losses.forward(upstream, None, (preds, {"gt_groups": [count]}), {"dn_meta": meta})
        assert {name: float(term) for name, term in terms.items()} == dict.fromkeys(terms, count / 4)
