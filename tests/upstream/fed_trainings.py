"""Train with loader workers, which upstream has none of on a CPU, and print as JSON what each training had.

fed_trainings.py [arguments, ...]; beside upstream's: `processes` (workers) and `cores` (of this process, as we count
them). `workers` is not given unless it is among the arguments.
"""

import contextlib
import json
import sys

import cv2
import torch
from validated_trainings import train

from yolo_patches import cores


class Threads(torch.utils.data.Dataset):
    """The threads that OpenCV and torch have in a worker."""

    def __len__(self):
        return 8

    def __getitem__(self, _):
        return torch.tensor([cv2.getNumThreads(), torch.get_num_threads()])


def fed(arguments):
    from ultralytics import YOLO

    processes, found = arguments.pop("processes", None), {}
    count, given = arguments.pop("cores", 2), "workers" in arguments

    def on_pretrain_routine_start(trainer):
        if processes:
            trainer.args.workers = processes

    def on_train_epoch_end(trainer):
        found["workers"] = [trainer.train_loader.num_workers, trainer.test_loader.num_workers]
        pids = [worker.pid for worker in trainer.train_loader.iterator._workers]
        found["kept"] = pids == found.get("pids", pids)
        found["pids"] = pids

    make = YOLO.train

    def with_callbacks(model, **kwargs):
        for callback in (on_pretrain_routine_start, on_train_epoch_end):
            model.add_callback(callback.__name__, callback)
        return make(model, **{name: value for name, value in kwargs.items() if name != "workers" or given})

    usable = cores.usable
    cores.usable = lambda: count
    YOLO.train = with_callbacks
    try:
        return {**train(arguments), **found}
    finally:
        YOLO.train, cores.usable = make, usable


def main():
    torch.load = lambda *args, load=torch.load, **kwargs: load(*args, **{**kwargs, "weights_only": False})
    with contextlib.redirect_stdout(sys.stderr):
        found = [fed(arguments) for arguments in json.loads(sys.argv[1])]
        from ultralytics.data import build_dataloader

        limits = [batch.tolist() for batch in build_dataloader(Threads(), 2, 2)]
    print()
    print(json.dumps([found, limits]))


if __name__ == "__main__":
    main()
