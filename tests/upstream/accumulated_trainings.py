"""Train, and print what each optimizer step is made of: `accumulated_trainings.py '{"model": ..., "data": ...}' [...]`.

Under a launcher, each rank writes it to a file `rank0.json` in the job's project.

Uses nothing of yolo_patches. A job with `stop_after` ends before that epoch, the job after it may be
`{"resume": true}`; `disturbed` has somebody set the trainer's accumulation to 1.
"""

import json
import os
import sys
from pathlib import Path

import torch


def train(job, last):
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer

    stop, resumed = job.pop("stop_after", None), job.pop("resume", False)
    disturbed = job.pop("disturbed", False)
    seen = {"iterations": [], "steps": [], "error": None}
    pending = []  # images whose gradients are there

    class Recorded(DetectionTrainer):
        def preprocess_batch(self, batch):
            if torch.is_grad_enabled():
                seen["iterations"].append(int(self.accumulate))
                pending.append([str(file) for file in batch["im_file"]])
            return super().preprocess_batch(batch)

        def optimizer_step(self):
            group = max(self.optimizer.param_groups, key=lambda group: group["weight_decay"])
            rates = [float(group["initial_lr"]), float(group["weight_decay"])]
            seen["steps"].append([len(seen["iterations"]) - 1, list(pending), rates])
            super().optimizer_step()

    def on_train_start(trainer):
        seen.update(save_dir=str(trainer.save_dir), last=str(trainer.last), batches=len(trainer.train_loader))
        zero = trainer.optimizer.zero_grad

        def zeroed(*args, **kwargs):
            pending.clear()
            return zero(*args, **kwargs)

        trainer.optimizer.zero_grad = zeroed

    def on_train_epoch_start(trainer):
        if stop is not None and trainer.epoch == stop:
            raise KeyboardInterrupt

    def on_train_batch_end(trainer):
        if disturbed:
            trainer.accumulate = 1

    model = YOLO(last if resumed else job.pop("model"))
    for callback in (on_train_start, on_train_epoch_start, on_train_batch_end):
        model.add_callback(callback.__name__, callback)
    common = {"device": "cpu", "plots": False, "verbose": False, "workers": 0, "val": False}
    try:
        model.train(trainer=Recorded, **({"resume": True, **job} if resumed else {**common, **job}))
        seen["weights"] = [float(p.detach().double().sum()) for p in model.trainer.model.parameters()]
        seen["nbs"] = model.trainer.args.nbs
    except KeyboardInterrupt:
        if stop is None:
            raise
    except Exception as error:
        seen["error"] = f"{type(error).__name__}: {error}"
    return seen


if __name__ == "__main__":
    results = []
    for text in sys.argv[1:]:
        results.append(train(json.loads(text), results[-1].get("last") if results else None))
    if "RANK" in os.environ:
        Path(json.loads(sys.argv[1])["project"], f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
    else:
        print("\n" + json.dumps(results))
