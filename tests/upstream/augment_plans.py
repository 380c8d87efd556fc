"""Print, as JSON, what `augment` plans for trainings that are not made: `augment_plans.py [[case, arguments], ...]`.

Each case's arguments are those of a trainer's constructor, which is left when it has decided. `yolo` among them makes a
YOLO(...) object of it instead, and `load` gives that weights.
"""

import contextlib
import json
import sys

from yolo_patches.forecast import Forecast, forecasting


def plan(arguments):
    from ultralytics import YOLO
    from ultralytics.models.yolo import classify, detect, obb, pose, segment

    trainers = {
        "detect": detect.DetectionTrainer,
        "segment": segment.SegmentationTrainer,
        "pose": pose.PoseTrainer,
        "obb": obb.OBBTrainer,
        "classify": classify.ClassificationTrainer,
    }
    arguments = {"device": "cpu", **arguments}
    token = forecasting.set(True)
    try:
        if arguments.pop("yolo", False):
            model, weights = YOLO(arguments.pop("model")), arguments.pop("load", None)
            if weights:
                model.load(weights)
            model.train(**arguments)
        else:
            trainers[arguments.get("task", "detect")](overrides=arguments)
    except Forecast as forecast:
        plan = forecast.foreseen.plan
        return {"version": plan.version, **{entry.name: entry.to_dict() for entry in plan.entries}}
    finally:
        forecasting.reset(token)
    raise AssertionError("a forecast makes no training")


def main():
    import torch
    from ultralytics import YOLO

    with contextlib.redirect_stdout(sys.stderr):
        if len(sys.argv) > 2:
            torch.save({"model": YOLO("yolov8n.yaml").model, "train_args": {}, "epoch": -1}, sys.argv[2])
        found = {name: plan(arguments) for name, arguments in json.loads(sys.argv[1])}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
