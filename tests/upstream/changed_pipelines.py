"""Print as JSON which samples differ from upstream's where a user changes a pipeline: `changed_pipelines.py DATA`."""

import json
import pickle
import sys
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from loading import alike, contents, dataset, fast, seeded
from ultralytics.cfg import get_cfg


class Noted:
    """A user's transform that looks at everything, and changes some of it."""

    def __call__(self, labels):
        labels["img"] = 255 - labels["img"][:, ::-1]
        labels["instances"].fliplr(labels["img"].shape[1])
        labels["points"] = zlib.crc32(np.asarray(labels["instances"].segments).tobytes())
        return labels


def between(data):
    data.transforms.transforms[0].transforms.insert(1, Noted())


def at_the_end(data):
    data.transforms.transforms.insert(-1, Noted())


def instead(data):
    data.transforms.transforms[:] = [data.transforms.transforms[0].transforms[0], Noted(), data.transforms[-1]]


def closed(data):
    data.close_mosaic(get_cfg(overrides={"task": "segment", "imgsz": 64}))


def main():
    changes = {"as it is": None, "spawned": None, "between": between, "at the end": at_the_end, "instead": instead}
    found = {}
    for name, change in {**changes, "closed": closed}.items():
        arms = []
        for ours in (False, True):
            seeded(0)
            data = dataset(Path(sys.argv[1]), "segment", {"copy_paste": 0.5}, 64)
            if ours:
                with fast(data) as seam:
                    assert not seam.trouble, seam.trouble
            if name == "spawned":
                data = pickle.loads(pickle.dumps(data))
            if change is not None:
                change(data)
            made = []
            for index in range(12):
                seeded(index)
                made.append(contents(data[index % len(data)]))
            arms.append(made)
        found[name] = [index for index, pair in enumerate(zip(*arms)) if not alike(*pair)]
    print(json.dumps(found))


main()
