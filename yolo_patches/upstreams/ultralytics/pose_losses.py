"""Pose normalisers: means over foreground and, in YOLO26, over visible keypoints."""

from __future__ import annotations

from typing import Any

from yolo_patches.upstreams.normaliser_calls import arguments, listening, zero
from yolo_patches.upstreams.ultralytics.assigned_losses import Args, Kwargs, Wrapped, deferred, empty, fire

#: Terms of PoseLoss26, in upstream's order -> what each is divided by. Releases before 8.4.105 do not name them.
TERMS = {
    "box_loss": "scores",
    "pose_loss": "foreground",
    "kobj_loss": "foreground",
    "cls_loss": "scores",
    "dfl_loss": "scores",
    "rle_loss": "visible",
}
L1 = "l1_loss"  # takes the place of dfl_loss where boxes are regressed without distributions


def keypoints(wrapped: Wrapped, criterion: Any, args: Args, kwargs: Kwargs) -> Any:
    """Multiply v8PoseLoss's means over this rank's foreground by its share of all foreground."""
    from yolo_patches.nn.shards import Shard

    call = arguments(wrapped, args, kwargs)
    mask = call.get("masks")
    if empty(mask) and "pred_kpts" in call:
        return zero(call["pred_kpts"]), 0
    terms = wrapped(*args, **kwargs)
    return tuple(term * mask.share for term in terms) if isinstance(mask, Shard) else terms


def unknown_terms(criterion: Any) -> set[str]:
    """Return a PoseLoss26's terms that we do not know: then all of its terms are left as they are."""
    return set(getattr(criterion, "loss_names", ())) - {*TERMS, L1} if hasattr(criterion, "rle_loss") else set()


def pose26(wrapped: Wrapped, criterion: Any, args: Args, kwargs: Kwargs) -> Any:
    """Multiply each term by this rank's normaliser over the whole batch's.

    The term of the residual log-likelihood is a mean over visible keypoints and floored at zero: what all ranks have
    of both is known only once the loss is, so the assigner's normalisers wait for the same collective.
    """
    listener = listening()
    if listener is None or unknown_terms(criterion):
        return wrapped(*args, **kwargs)
    import torch

    own: dict[str, Any] = {"scores": 0.0, "foreground": 0.0, "visible": 0.0, "likelihood": None, "unknown": False}
    token = deferred.set(own)
    try:
        loss, items = wrapped(*args, **kwargs)
    finally:
        deferred.reset(token)
    term = own["likelihood"]
    likelihood, floored = (0.0, False) if term is None else (term.detach() * own["visible"], term.floored)
    seam = fire(listener, loss, own["scores"], own["foreground"], own["visible"], likelihood, floored)
    names = getattr(criterion, "loss_names", None) or tuple(TERMS)[: len(loss)]
    if own["unknown"] or len(names) != len(loss):
        return loss, items
    scores, foreground, visible, likelihood, floored = seam.values
    one = 1 / seam.ranks
    factors = {
        "scores": torch.as_tensor(own["scores"]).clamp(min=1) / scores.clamp(min=one),
        "foreground": own["foreground"] / foreground.clamp(min=one),
        "visible": (own["visible"] / visible.clamp(min=one)) * ~((floored > 0) & (likelihood < 0)),
    }
    if foreground > 0 and not own["foreground"]:  # as the ranks that have some, keep every head in the graph
        loss = loss + zero(args[0] if args else kwargs["preds"])
    factor = torch.stack([factors[TERMS.get(name, "scores")] for name in names]).to(loss)
    if isinstance(items, dict):
        return loss * factor, {name: item * part for (name, item), part in zip(items.items(), factor)}
    return loss * factor, items * factor


def rle(wrapped: Wrapped, module: Any, args: Args, kwargs: Kwargs) -> Any:
    """Note the visible keypoints and the term before its floor."""
    term = wrapped(*args, **kwargs)
    own = deferred.get()
    if own is None:
        return term
    from yolo_patches.nn.shards import Unfloored

    sigma = arguments(wrapped, args, kwargs).get("sigma")
    if sigma is None:
        own["unknown"] = True
        return term
    own.update(visible=float(len(sigma)), likelihood=term.as_subclass(Unfloored))
    return own["likelihood"]
