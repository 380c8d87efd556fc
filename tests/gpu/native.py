"""One of two ranks on one GPU: a converted layer against BatchNorm2d on the whole batch, as JSON from rank 0."""

import json

import torch
import torch.distributed as dist
from torch import nn

from yolo_patches.nn.common_step import common_step
from yolo_patches.nn.sync_batchnorm import convert


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    whole = torch.randn(8, 16, 12, 12, device="cuda") * 3 + 1
    weights = torch.randn_like(whole)
    plain, ours = nn.BatchNorm2d(16).cuda(), nn.BatchNorm2d(16).cuda()
    assert convert(ours) == 1

    whole.requires_grad_()
    expected = plain(whole)
    (expected * weights).sum().backward()
    mine = slice(4 * rank, 4 * rank + 4)
    part = whole.detach()[mine].requires_grad_()
    with common_step():
        found = ours(part)
        (found * weights[mine]).sum().backward()

    def error(value, target):
        return ((value - target).norm() / target.norm()).item()

    if rank == 0:
        seen = {
            "function": type(found.grad_fn).__name__,
            "output": error(found, expected[mine]),
            "gradient": error(part.grad, whole.grad[mine]),
            "variance": error(ours.running_var, plain.running_var),
        }
        print(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
