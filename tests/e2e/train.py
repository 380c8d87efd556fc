"""Train in this process and print what happened as one line of JSON: `train.py '{"model": ..., "data": ...}' [...]`.

Uses nothing of yolo_patches, so that it runs unchanged where the package cannot be imported.
"""

import hashlib
import json
import sys


def digest(module):
    """Return a hash over every float32 bit of a module's parameters and buffers."""
    state = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def train(arguments):
    from ultralytics import RTDETR, YOLO
    from ultralytics.utils import __file__ as where

    stop = arguments.pop("stop_after", None)
    name = arguments.pop("model")
    model = (RTDETR if str(name).startswith("rtdetr") else YOLO)(name)
    seen = {"where": where, "val": [], "batches": [], "keys": []}

    def on_val_start(validator):
        loader = validator.dataloader
        seen["val"].append(loader.batch_size)
        seen["batches"].append(len(loader))

    def on_train_start(trainer):
        seen["keys"] += [key for key in vars(trainer.args) if "patch" in key]
        callbacks = trainer.validator.callbacks["on_val_start"]
        if on_val_start not in callbacks:  # old OBB and RT-DETR trainers hand theirs no callbacks
            callbacks.append(on_val_start)

    def on_train_end(trainer):
        seen.update(model=digest(trainer.model), ema=digest(trainer.ema.ema), save_dir=str(trainer.save_dir))
        seen["metrics"] = {key: float(value) for key, value in trainer.metrics.items()}

    def on_train_epoch_start(trainer):
        if stop is not None and trainer.epoch == stop:
            seen["save_dir"] = str(trainer.save_dir)
            raise KeyboardInterrupt

    for callback in (on_val_start, on_train_start, on_train_end, on_train_epoch_start):
        model.add_callback(callback.__name__, callback)
    try:
        # Without loader processes: two cores have enough to do, and the pixels are the same.
        model.train(**{"device": "cpu", "imgsz": 64, "plots": False, "verbose": False, "workers": 0, **arguments})
    except KeyboardInterrupt:
        if stop is None:
            raise
    seen["loaded"] = "yolo_patches" in sys.modules
    return seen


if __name__ == "__main__":
    print("\n" + json.dumps([train(json.loads(text)) for text in sys.argv[1:]]))
