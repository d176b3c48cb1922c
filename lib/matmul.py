"""Float32 matrix products on CPUs, through oneDNN.

PyTorch sends float32 products to MKL, which on CPUs that are not Intel's reaches about half the speed of the oneDNN
kernels in the same build (measured: 80 to 100 against 180 to 190 GFLOP/s on two AMD cores). Elsewhere, and for other
types, these functions are plain PyTorch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn


@functools.cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _fits(*tensors: torch.Tensor) -> bool:
    return _has_onednn() and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        return _linear(a.contiguous(), b.T.contiguous(), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        a, b = ctx.saved_tensors
        grad = grad.contiguous()
        left = _linear(grad, b.contiguous()) if ctx.needs_input_grad[0] else None
        right = _linear(a.T.contiguous(), grad.T.contiguous()) if ctx.needs_input_grad[1] else None
        return left, right, grad.sum(0) if ctx.needs_input_grad[2] else None


def product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """a @ b (+ bias) of matrices [n, k] and [k, m] and a vector [m], differentiable; fastest where b.T is contiguous."""
    if _fits(a, b):
        return _Product.apply(a, b, bias)
    return a @ b if bias is None else a @ b + bias


def speed_up(model: nn.Module) -> nn.Module:
    """Make a frozen float32 CPU model's linear layers use oneDNN; returns the model."""
    for module in model.modules():
        if type(module) is nn.Linear and _fits(module.weight):
            module.forward = functools.partial(_forward, module)  # type: ignore[method-assign]
    return model


def _forward(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return _linear(x, module.weight, module.bias)
