"""One training of `yolo-patches verify`, in a process where nothing is ever rounded to bfloat16."""

import json
import sys

import torch

import yolo_patches.api
from yolo_patches.upstreams.ultralytics.proof import Job, train

torch.Tensor.bfloat16 = torch.Tensor.double
yolo_patches.api.watch()
train(Job(**json.loads(sys.argv[1])))
