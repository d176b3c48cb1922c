"""Float32 matrix products on CPUs, through oneDNN, and the memory that they write to: the one place that sets the allocator.

PyTorch sends float32 products to MKL, which on some CPUs that are not Intel's reaches about half the speed of the oneDNN kernels in the same build (measured
on two AMD cores: 80 to 100 against 180 to 190 GFLOP/s; on another host's, 180 to 190 against 155 to 175). For other types these functions are plain PyTorch.
"""

import ctypes
import functools
import sys
import timeit
from typing import Any

import joblib
import numba
import numpy as np
import torch
from torch import nn

# No more threads than this process may run at once: torch and numba count a machine's cores, not a container's. Numba first: its start sets torch's too.
_FOUND = torch.get_num_threads()
numba.set_num_threads(min(numba.get_num_threads(), joblib.cpu_count()))
torch.set_num_threads(min(_FOUND, joblib.cpu_count()))

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h


def _of_glibc(name: str) -> Any:
    """A function of the C library by name, or None: only glibc has these."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


@functools.cache
def keep_memory() -> None:
    """Have the C library serve large tensors from its heap and keep what they leave, up to 2 GB (glibc; else nothing). By default
    each goes back to the system and comes again through page faults: a fifth of a harvest's time, measured."""
    if (mallopt := _of_glibc("mallopt")) is not None:
        if not mallopt(_MMAP_THRESHOLD, 2**31 - 1):
            mallopt(_MMAP_THRESHOLD, 2**25)  # the most that older ones take
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 2**28)


def give_back() -> None:
    """Give what was freed back to the system, not only to the process: when a step is done, whatever was kept for it."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


def fits(*tensors: torch.Tensor) -> bool:
    """Tensors that oneDNN's products can take."""
    return _ONEDNN and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T (+ bias) through oneDNN, for tensors that :func:`fits`, without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def use_onednn(model: nn.Module) -> nn.Module:
    """The model itself, its linear layers through :func:`linear` wherever that can be; one with a forward of its own keeps it."""
    keep_memory()
    for module in model.modules():
        if type(module) is nn.Linear and "forward" not in vars(module) and fits(module.weight):
            module.forward = functools.partial(_forward, module)  # type: ignore[method-assign]
    return model


def _forward(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *module.parameters()))
    if wanted or torch.is_autocast_enabled("cpu") or not fits(x, *module.parameters()):
        return type(module).forward(module, x)
    return linear(x, module.weight, module.bias)


class _Product(torch.autograd.Function):
    """Of a matrix that is mostly zero, as latents are and their gradients, only the rest is multiplied: added up in oneDNN's order, in stretches of
    1,024 (512 where there are no more), fused, and so to the same bits of finite ones (seen on AMD's AVX-512; elsewhere to rounding) in less time."""

    @staticmethod
    @numba.njit(parallel=True, cache=True, fastmath={"contract"})
    def in_order(a, b, stretch):  # type: ignore[no-untyped-def]
        out = np.zeros((len(a), b.shape[1]), a.dtype)
        for r in numba.prange(len(a)):
            for begin in range(0, a.shape[1], stretch):
                sums = np.zeros_like(out[r])
                for column in range(begin, min(begin + stretch, a.shape[1])):
                    value, row = a[r, column], b[column]
                    if value != 0:
                        for x in range(len(sums)):
                            sums[x] += value * row[x]
                out[r] += sums
        return out

    @staticmethod
    def of(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        a, some = a.contiguous(), a[::16]
        if bias is not None or a.numel() < 2**20 or 8 * some.count_nonzero() > some.numel():
            return linear(a, b.T.contiguous(), bias)
        stretch = 1024 if a.shape[1] > 1024 else 512
        return torch.from_numpy(_Product.in_order(a.numpy(), b.contiguous().numpy(), stretch))

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        return _Product.of(a.detach(), b.detach(), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        a, b = ctx.saved_tensors
        left = _Product.of(grad, b.T) if ctx.needs_input_grad[0] else None
        right = _Product.of(a.T, grad) if ctx.needs_input_grad[1] else None
        return left, right, grad.sum(0) if ctx.needs_input_grad[2] else None


def product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """a @ b (+ bias) of matrices [n, k] and [k, m] and a vector [m], differentiable; fastest where b.T is contiguous."""
    if fits(a, b):
        return _Product.apply(a, b, bias)
    return a @ b if bias is None else a @ b + bias


def speed() -> float:
    """Float32 operations a second, in units of 1e9, of a product like an SAE's encoder: the best in about two seconds: in a quarter of one some starts read half."""
    x, weight = torch.ones(2048, 576), torch.ones(2304, 576)
    seconds = timeit.repeat(lambda: product(x, weight.T), number=1, repeat=64)
    return 2 * 2048 * 576 * 2304 / min(seconds) / 1e9
