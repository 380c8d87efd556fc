"""BatchNorm over all ranks by torch's CUDA kernels, for a rank that may begin its step anew.

`torch.nn.SyncBatchNorm` sends a layer's statistics between kernels: what is told is lost with a kernel that has no
memory for its output. Here it stays in the step's book (`yolo_patches.nn.exchanges`). The kernels are the same, and so
are the messages; the backward pass gathers the ranks' sums, where torch's own has them added up on the way.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Optional
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo_patches.nn.exchanges import Exchanges
from yolo_patches.nn.gathering import GatheredOnDevice, alive, asked

__all__ = ["SyncBatchNormKernels"]


class SyncBatchNormKernels(torch.autograd.Function):
    """The arguments are those of `torch.nn.modules._functions.SyncBatchNorm`, and the book, and the layer's call."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Optional[Tensor],
        bias: Optional[Tensor],
        running_mean: Optional[Tensor],
        running_var: Optional[Tensor],
        eps: float,
        momentum: float,
        group: Any,
        world_size: int,
        book: Exchanges,
        call: int,
    ) -> Tensor:
        """Normalise this rank's images by the statistics of all ranks."""
        x = _dense(input)
        weight = None if weight is None else weight.contiguous()
        channels = x.shape[1]
        if x.numel() and not book.settled("forward", call):
            mean, inv_std = torch.batch_norm_stats(x, eps)
            count = x.numel() // channels * book.weight  # as if all of the rank's images had been here
            message = torch.cat((mean, inv_std, mean.new_full((1,), round(count))))
        else:
            message = torch.zeros(2 * channels + 1, dtype=_kept(x.dtype), device=x.device)
        send = partial(GatheredOnDevice, message, group, world_size)
        rows = asked(book, "forward", call, message, group, send)()
        rows = rows[rows[:, -1] >= 1]  # the kernel divides by a first row's count
        means, inv_stds, counts = torch.split(rows, [channels, channels, 1], dim=1)
        counts = counts.reshape(-1)

        fresh = book.first("tracked", call)
        tracked = (running_mean, running_var) if fresh else (None, None)
        kept = counts if running_mean is None else counts.to(running_mean.dtype)
        mean, inv_std = torch.batch_norm_gather_stats_with_counts(
            x, means.contiguous(), inv_stds.contiguous(), *tracked, momentum, eps, kept
        )
        if fresh:
            book.note("tracked", call)
        ctx.save_for_backward(x, weight, mean, inv_std, counts.to(torch.int32))
        ctx.group, ctx.world_size, ctx.book, ctx.call = ref(group), world_size, book, call
        return torch.batch_norm_elemt(x, weight, bias, mean, inv_std, eps) if x.numel() else torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Optional[Tensor], ...]:
        """Return the gradients of this rank's images, with the sums of all ranks, and its own of weight and bias."""
        x, weight, mean, inv_std, counts = ctx.saved_tensors
        dy, book = _dense(grad_output), ctx.book
        grad_weight = grad_bias = None
        if x.numel():
            sum_dy, sum_dy_xmu, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
                dy, x, mean, inv_std, weight, *ctx.needs_input_grad[:3]
            )
            message = torch.cat((sum_dy, sum_dy_xmu))
        else:
            message = torch.zeros(2 * x.shape[1], dtype=mean.dtype, device=x.device)
        if weight is None or not ctx.needs_input_grad[1]:
            grad_weight = None
        if weight is None or not ctx.needs_input_grad[2]:
            grad_bias = None
        if not ctx.needs_input_grad[0]:
            return (None, grad_weight, grad_bias, *[None] * 8)
        if book.weight != 1:
            message *= book.weight
        group = alive(ctx.group)
        send = partial(GatheredOnDevice, message, group, ctx.world_size)
        sums = asked(book, "backward", ctx.call, message, group, send)().sum(0)
        if not x.numel():
            return (torch.empty_like(x), grad_weight, grad_bias, *[None] * 8)
        scale = weight if weight is None or weight.dtype == mean.dtype else weight.to(mean.dtype)
        sum_dy, sum_dy_xmu = sums.chunk(2)
        grad_input = torch.batch_norm_backward_elemt(dy, x, mean, inv_std, scale, sum_dy, sum_dy_xmu, counts)
        return (grad_input, grad_weight, grad_bias, *[None] * 8)


def _dense(tensor: Tensor) -> Tensor:
    """The tensor with a memory format that the kernels know: channels last, or contiguous."""
    if any(tensor.is_contiguous(memory_format=one) for one in (torch.channels_last, torch.channels_last_3d)):
        return tensor
    return tensor.contiguous()


def _kept(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the kernels keep statistics of another."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
