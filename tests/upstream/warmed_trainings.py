"""Train, and print the live rates of every iteration: `warmed_trainings.py '{"model": ..., "data": ...}' [...]`.

Uses nothing of yolo_patches. A job with `stop_after` ends before that epoch; the job after it may be
`{"resume": true}`, and goes on with its last.pt.
"""

import json
import sys

from torch.optim.optimizer import register_optimizer_step_pre_hook


def train(job, last):
    from ultralytics import YOLO

    stop, override, resumed = job.pop("stop_after", None), job.pop("override", None), job.pop("resume", False)
    seen = {"iterations": [], "steps": [], "error": None}

    def on_train_start(trainer):
        seen.update(save_dir=str(trainer.save_dir), last=str(trainer.last), batches=len(trainer.train_loader))
        seen["lf"] = [float(trainer.lf(epoch)) for epoch in range(trainer.epochs)]
        if override:  # somebody else's hook, between the warm-up and the step
            seen["hook"] = trainer.model.register_forward_pre_hook(
                lambda *_: [group.update(lr=override) for group in trainer.optimizer.param_groups] and None
            )

    def on_train_epoch_end(trainer):
        if "hook" in seen:
            seen.pop("hook").remove()  # before the model is pickled

    def on_train_epoch_start(trainer):
        seen["epoch"], seen["batch"] = trainer.epoch, 0
        if stop is not None and trainer.epoch == stop:
            raise KeyboardInterrupt

    def on_train_batch_end(trainer):
        groups = [
            {
                "lr": float(group["lr"]),
                "initial": float(group["initial_lr"]),
                "momentum": float(group["momentum"]) if "momentum" in group else None,
                "bias": group.get("param_group", "bias" if number == 0 else "") == "bias",
            }
            for number, group in enumerate(trainer.optimizer.param_groups)
        ]
        seen["iterations"].append(
            {"epoch": trainer.epoch, "batch": seen["batch"], "accumulate": int(trainer.accumulate), "groups": groups}
        )
        seen["batch"] += 1

    def stepped(optimizer, args, kwargs):
        if "epoch" in seen:
            seen["steps"].append(
                [seen["epoch"], seen["batch"], [float(group["lr"]) for group in optimizer.param_groups]]
            )

    model = YOLO(last if resumed else job.pop("model"))
    for callback in (on_train_start, on_train_epoch_start, on_train_batch_end, on_train_epoch_end):
        model.add_callback(callback.__name__, callback)
    hook = register_optimizer_step_pre_hook(stepped)
    common = {"device": "cpu", "imgsz": 64, "plots": False, "verbose": False, "workers": 0, "val": False}
    try:
        model.train(**({"resume": True, **job} if resumed else {**common, **job}))
        seen["weights"] = [float(p.detach().double().sum()) for p in model.trainer.model.parameters()]
    except KeyboardInterrupt:
        if stop is None:
            raise
    except Exception as error:
        seen["error"] = f"{type(error).__name__}: {error}"
    finally:
        hook.remove()
    return seen


if __name__ == "__main__":
    results = []
    for text in sys.argv[1:]:
        results.append(train(json.loads(text), results[-1].get("last") if results else None))
    print("\n" + json.dumps(results))
