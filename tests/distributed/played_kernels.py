"""torch's CUDA kernels for synchronised BatchNorm, played on the CPU by their arithmetic: `play()` registers them."""

from contextlib import contextmanager

import torch

from yolo_patches.nn import sync_batchnorm


def along(vector, x):
    return vector.view(-1, *[1] * (x.dim() - 2)).to(x.dtype)


def over(x):
    return [dimension for dimension in range(x.dim()) if dimension != 1]


def stats(x, eps):
    return x.mean(over(x)), torch.rsqrt(x.var(over(x), correction=0) + eps)


def gather(x, mean, invstd, running_mean, running_var, momentum, eps, counts):
    share = (counts / counts.sum())[:, None]
    whole = (mean * share).sum(0)
    variance = ((invstd**-2 - eps + (mean - whole) ** 2) * share).sum(0)
    if running_mean is not None:
        running_mean.lerp_(whole, momentum)
        running_var.lerp_(variance * counts.sum() / (counts.sum() - 1), momentum)
    return whole, torch.rsqrt(variance + eps)


def normalise(x, weight, bias, mean, invstd, eps):
    normal = (x - along(mean, x)) * along(invstd, x)
    normal = normal if weight is None else normal * along(weight, x)
    return normal if bias is None else normal + along(bias, x)


def reduce(dy, x, mean, invstd, weight, input_g, weight_g, bias_g):
    total, product = dy.sum(over(x)), (dy * (x - along(mean, x))).sum(over(x))
    return total, product, product * invstd, total.clone()


def backward(dy, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts):
    slope = along(sum_dy_xmu / counts.sum() * invstd**2, x)
    grad = (dy - along(sum_dy / counts.sum(), x) - (x - along(mean, x)) * slope) * along(invstd, x)
    return grad if weight is None else grad * along(weight, x)


KERNELS = {
    "batch_norm_stats": stats,
    "batch_norm_gather_stats_with_counts": gather,
    "batch_norm_elemt": normalise,
    "batch_norm_backward_reduce": reduce,
    "batch_norm_backward_elemt": backward,
}


CPU = sync_batchnorm._FUNCTIONS["cpu"]


def play():
    """Let CPU layers be synchronised as CUDA's are; return what must be kept as long as they are."""
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel, "CPU")
    for functions in (sync_batchnorm._FUNCTIONS, sync_batchnorm._LASTING):
        functions["cpu"] = functions["cuda"]
    return library


@contextmanager
def put_aside():
    """Let CPU layers be synchronised by our own function again."""
    before = [dict(functions) for functions in (sync_batchnorm._FUNCTIONS, sync_batchnorm._LASTING)]
    sync_batchnorm._FUNCTIONS["cpu"] = sync_batchnorm._LASTING["cpu"] = CPU
    yield
    for functions, values in zip((sync_batchnorm._FUNCTIONS, sync_batchnorm._LASTING), before):
        functions.clear()
        functions.update(values)
