"""BatchNorm over all ranks, in layers that stay BatchNorm to everybody else.

`torch.nn.SyncBatchNorm` runs on no CPU, is no `nn.BatchNorm2d` (trainers that freeze, fuse or group by that type miss
it) and writes its own class into every checkpoint. The layers here differ from plain BatchNorm in one thing only: the
statistics of a training step are those of all ranks together.

    layers = convert(model)             # in place: same modules, parameters, buffers, hooks and names
    with common_step():                 # on every rank; see yolo_patches.nn.common_step
        criterion(model(images)).backward()
    assert revert(model) == layers      # plain again; copy.deepcopy and torch.save give plain layers at any time

When a layer synchronises: inside a step that every rank makes, in training mode, with gradients enabled, in a process
group of two or more ranks, on a device that `supported` knows. Everything else (evaluation, `torch.no_grad()`, one
process, a rank that calls or traces the model on its own account, another thread) is `nn.BatchNorm2d` itself, to the
last bit, and waits for nobody. It is the forward pass that decides: the backward pass of a synchronised one is a
collective call wherever it is made, that of a plain one is none.
Re-entrant activation checkpointing, whose first pass runs without gradients, is not supported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Optional, cast
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm as _NativeSyncBatchNorm  # the kernels of nn.SyncBatchNorm

from yolo_patches.nn import common_step, exchanges
from yolo_patches.nn.exchanges import Exchanges
from yolo_patches.nn.gathering import Gathered, alive, asked
from yolo_patches.nn.sync_batchnorm_kernels import SyncBatchNormKernels

__all__ = [
    "SyncBatchNorm1d",
    "SyncBatchNorm2d",
    "SyncBatchNorm3d",
    "convert",
    "lasting",
    "revert",
    "supported",
    "synchronised_passes",
    "synchronises",
]

_HALF = (torch.float16, torch.bfloat16)

# Process groups that were given explicitly: beside the modules, since what a module holds is pickled. They are referred
# to weakly, here and in the autograd graph: one that outlives destroy_process_group aborts the interpreter at its exit.
_GROUPS: WeakKeyDictionary[nn.Module, ReferenceType[Any]] = WeakKeyDictionary()

_passes = 0


def supported(device_type: str) -> str:
    """Return "" where layers on this type of device can synchronise, else why they cannot."""
    if device_type in _FUNCTIONS:
        return ""
    return f"BatchNorm can be synchronised on {' and '.join(_FUNCTIONS)}, torch has no kernels for it on {device_type}"


def synchronises(layer: nn.Module) -> bool:
    """Return whether a layer is one of these."""
    return isinstance(layer, _Synchronised)


def lasting(layer: nn.Module) -> str:
    """Return "" where a rank may begin a step anew and this layer tells the other ranks nothing twice, else why not."""
    if type(layer) is nn.SyncBatchNorm:
        return "BatchNorm is synchronised by torch's own layers, which ranks can only call together"
    return ""


def synchronised_passes() -> int:
    """Return how many forward passes of layers have exchanged statistics with other ranks, in this process so far."""
    return _passes


def convert(model: nn.Module, process_group: Any = None) -> int:
    """Make every BatchNorm layer of a model synchronise over a process group (default: all ranks); return how many.

    In place, by changing the class of the module objects: references to them, their parameters, buffers and hooks stay
    valid. Only layers of exactly the types `nn.BatchNorm1d`, `2d` and `3d` are converted, subclasses have a forward of
    their own. Layers that synchronise already are left as they are, with the group that they have.
    """
    if process_group is not None and dist.get_rank(process_group) < 0:
        raise ValueError("this rank is not a member of the process group")
    layers = [module for module in model.modules() if type(module) in _SYNCHRONISED]
    for module in layers:
        module.__class__ = _SYNCHRONISED[type(module)]
        if process_group is not None:
            _GROUPS[module] = ref(process_group)
    return len(layers)


def revert(model: nn.Module) -> int:
    """Undo `convert`; return how many layers became plain BatchNorm again."""
    layers = [module for module in model.modules() if isinstance(module, _Synchronised)]
    for module in layers:
        _GROUPS.pop(module, None)
        module.__class__ = module._plain  # type: ignore[assignment]
    return len(layers)


class _Synchronised(nn.modules.batchnorm._BatchNorm):
    """The forward pass that all dimensionalities share."""

    _plain: type[nn.modules.batchnorm._BatchNorm]

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(input)
        return _uncompiled(self, input) if _is_compiling() else self._train(input)

    def _train(self, input: Tensor) -> Tensor:
        if not common_step.inside():
            return super().forward(input)
        function = _FUNCTIONS.get(input.device.type)
        if function is None or not (dist.is_available() and dist.is_initialized()):
            return super().forward(input)
        group = alive(_GROUPS[self]) if self in _GROUPS else dist.group.WORLD
        world_size = dist.get_world_size(group)
        if world_size < 2 or not _reaches(group, input.device):
            return super().forward(input)

        global _passes
        cast(Any, self)._check_input_dim(input)
        book = exchanges.current()
        if book is not None:
            function = _LASTING.get(input.device.type, function)
        call = 0 if book is None else book.call()
        running_mean = running_var = None
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats:
            running_mean, running_var = self.running_mean, self.running_var
            if self.num_batches_tracked is not None:
                if book is None or book.first("counted", call):
                    self.num_batches_tracked.add_(1)
                if book is not None:
                    book.note("counted", call)
                if self.momentum is None:  # cumulative average
                    momentum = 1.0 / float(self.num_batches_tracked)

        output = function.apply(
            # The native function sends an empty shard's statistics in the dtype of the input, all others in float32.
            input.float() if input.numel() == 0 and input.dtype in _HALF else input,
            self.weight,
            self.bias,
            running_mean,
            running_var,
            self.eps,
            momentum,
            group,
            world_size,
            *(() if function is _NativeSyncBatchNorm else (book, call)),
        )
        _passes += 1
        return cast(Tensor, output.to(input.dtype))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be copied and pickled as the plain layer, with the same state.

        So an EMA made by copy.deepcopy is plain (and never waits for other ranks), and a checkpoint names no class of
        ours. A constructor call and not copyreg.__newobj__, for which pickle insists on the class of the object.
        """
        return self._plain, (self.num_features,), self.__dict__


# In torch.compile a layer breaks the graph: whether a step is under way is asked at every call, and the exchange is
# no operation of a graph. (Releases of torch without these names have no torch.compile, or one that breaks there, too.)
_is_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)
_break_graph: Callable[..., Any] = getattr(torch, "_disable_dynamo", lambda function: function)


@_break_graph
def _uncompiled(layer: _Synchronised, input: Tensor) -> Tensor:
    return layer._train(input)


class SyncBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose training statistics are those of all ranks."""

    _plain = nn.BatchNorm1d


class SyncBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of all ranks."""

    _plain = nn.BatchNorm2d


class SyncBatchNorm3d(_Synchronised, nn.BatchNorm3d):
    """`nn.BatchNorm3d` whose training statistics are those of all ranks."""

    _plain = nn.BatchNorm3d


_SYNCHRONISED: dict[type, type[_Synchronised]] = {
    cls._plain: cls for cls in (SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d)
}


class _SyncBatchNormCPU(torch.autograd.Function):
    """Batch normalisation over all ranks, with one collective per layer and pass.

    The ranks may hold any number of elements, none included. Forward: each rank sends its element count and per channel
    its mean and the squared deviations from that mean; all combine them (Chan et al. 1979) in the same order and in
    float64, so they agree to the last bit, and nothing is lost to E[x^2] - E[x]^2. Backward: each rank sends
    sum(dy * x_hat) and sum(dy). The gradients of weight and bias stay the rank's own sums, since averaging them over
    ranks is the business of DistributedDataParallel.
    """

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
        book: Optional[Exchanges],
        call: int,
    ) -> Tensor:
        x = _dense(input)
        channels = x.shape[1]
        count = x.numel() // channels
        output = torch.empty_like(x)

        # Vectorised passes over x, with the output as scratch space: ATen's own CPU BatchNorm adds up in scalar double
        # precision, which takes four times as long on contiguous tensors and is no more accurate. The pivot is the mean
        # but for rounding, `rest` what rounding left of it.
        known = book is not None and book.settled("forward", call)
        if count and not known:
            dimensions = [dimension for dimension in range(x.dim()) if dimension != 1]
            pivot = x.sum(dimensions).div_(count)
            deviation = torch.sub(x, _along_channels(pivot, x), out=output)
            rest = deviation.sum(dimensions).div_(count)
            squares = deviation.square_().sum(dimensions)
            message = torch.cat((pivot, rest, squares, torch.tensor([count], dtype=torch.float64)))
        else:
            message = torch.zeros(3 * channels + 1, dtype=torch.float64)
        if book is not None and book.weight != 1:
            message[2 * channels :] *= book.weight  # deviations and count, as if all of the rank's images had been here
        rows = asked(book, "forward", call, message, group, partial(Gathered, message, group, world_size))()
        pivots, rests, squares, counts = torch.split(rows, [channels, channels, channels, 1], dim=1)

        total = counts.sum().item()
        if total == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {input.size()} on this rank and "
                f"a single value per channel on all {world_size} ranks together"
            )
        shares = counts / max(total, 1)
        mean = ((pivots + rests) * shares).sum(0)
        offsets = pivots - mean
        squares = torch.addcmul(squares, offsets.add(rests, alpha=2).mul_(offsets), counts)  # now about the mean of all
        var = squares.sum(0).div_(max(total, 1))
        fresh = book is None or book.first("tracked", call)
        if total and running_mean is not None and running_var is not None and fresh:
            blended = mean.to(running_mean.dtype), var.mul(total / (total - 1)).to(running_var.dtype)
            running_mean.lerp_(blended[0], momentum)
            running_var.lerp_(blended[1], momentum)
            if book is not None:
                book.note("tracked", call)

        inv_std = torch.rsqrt(var + eps)
        scale = (inv_std if weight is None else inv_std * weight).to(x.dtype)
        shift = (-mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)).to(x.dtype)
        torch.mul(x, _along_channels(scale, x), out=output).add_(_along_channels(shift, x))

        ctx.save_for_backward(input, weight, mean.to(x.dtype), var.to(x.dtype), inv_std.to(x.dtype), scale)
        ctx.eps, ctx.total, ctx.group, ctx.world_size = eps, total, ref(group), world_size
        ctx.book, ctx.call = book, call
        return output.to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Optional[Tensor], ...]:
        input, weight, mean, var, inv_std, scale = ctx.saved_tensors
        x = _dense(input)
        dy = grad_output
        if dy.stride() != x.stride() or dy.dtype != x.dtype:
            dy = torch.empty_like(x).copy_(dy)

        # This rank's sums, with the statistics of all ranks: what the evaluation-mode kernel does, in one pass.
        if x.numel():
            _, sum_dy_x_hat, sum_dy = torch.ops.aten.native_batch_norm_backward(
                dy, x, scale, mean, var, None, None, False, ctx.eps, (False, True, True)
            )
        else:
            sum_dy_x_hat = sum_dy = torch.zeros_like(mean)
        grad_weight = sum_dy_x_hat.to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = sum_dy.to(weight.dtype) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return (None, grad_weight, grad_bias, *[None] * 8)

        # dx = scale * (dy - sum(dy) / n - x_hat * sum(dy * x_hat) / n). While the sums travel, x - mean is computed:
        # one pass more than folding the mean into the constant term, but exact where the mean is large.
        message = torch.cat((sum_dy_x_hat, sum_dy))
        if ctx.book is not None and ctx.book.weight != 1:
            message *= ctx.book.weight
        group = alive(ctx.group)
        send = partial(Gathered, message, group, ctx.world_size)
        answers = asked(ctx.book, "backward", ctx.call, message, group, send)
        grad_input = x - _along_channels(mean, x)
        slope = scale / -max(ctx.total, 1)
        sum_dy_x_hat, sum_dy = answers().sum(0).mul_(slope.repeat(2)).chunk(2)
        grad_input.mul_(_along_channels(sum_dy_x_hat * inv_std, x)).add_(_along_channels(sum_dy, x))
        grad_input.addcmul_(dy, _along_channels(scale, x))
        return (grad_input.to(input.dtype), grad_weight, grad_bias, *[None] * 8)


#: By type of device. AMD's GPUs are called cuda, too.
_FUNCTIONS: dict[str, type[torch.autograd.Function]] = {"cpu": _SyncBatchNormCPU, "cuda": _NativeSyncBatchNorm}
#: The same where a rank may begin a step anew; by type of device.
_LASTING: dict[str, type[torch.autograd.Function]] = {"cuda": SyncBatchNormKernels}


def _reaches(group: Any, device: torch.device) -> bool:
    """Return whether a process group has a backend for a device; before torch 2 it had one for all."""
    try:
        group._get_backend(device)
    except RuntimeError:
        return False
    except AttributeError:
        return True
    return True


def _dense(input: Tensor) -> Tensor:
    """The input with one of the memory formats that kernels are fast for, and a dtype to keep statistics in."""
    if input.dtype in _HALF:
        input = input.float()
    for memory_format, dimensions in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if input.dim() == dimensions and input.is_contiguous(memory_format=memory_format):
            return input
    return input.contiguous()


def _along_channels(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (x.dim() - 2))
