"""Float32 matrix products on CPUs, through oneDNN, and the memory that they write to.

PyTorch sends float32 products to MKL, which on CPUs that are not Intel's reaches about half the speed of the oneDNN
kernels in the same build (measured: 80 to 100 against 180 to 190 GFLOP/s on two AMD cores). Elsewhere, and for other
types, these functions are plain PyTorch.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaMLP

BLOCK = 32  # queries of one pass of attention
LONG = 96  # tokens from which blocks are faster than torch's kernel (measured)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h


@functools.cache
def keep_memory() -> None:
    """Have the C library serve large tensors from its heap and keep what they leave, up to 2 GB (glibc; else nothing).

    By default each goes back to the system and comes again through page faults: a fifth of a harvest's time, measured.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        if not mallopt(_MMAP_THRESHOLD, 2**31 - 1):
            mallopt(_MMAP_THRESHOLD, 2**25)  # the most that older ones take
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 2**28)


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
    """Make a frozen float32 CPU model's linear layers use oneDNN, its SwiGLUs fused products, its attention blocks.

    Returns the model; what does not fit stays as it is.
    """
    keep_memory()
    for module in model.modules():
        if type(module) is nn.Linear and _fits(module.weight):
            module.forward = functools.partial(_forward, module)  # type: ignore[method-assign]
    for module in model.modules():
        if _is_swiglu(module):
            module.forward = functools.partial(_swiglu, module)
    if isinstance(model, PreTrainedModel) and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("sdpa_in_blocks")
    return model


def _is_swiglu(module: nn.Module) -> bool:
    """Computes what Llama's MLP computes, in the types that a fused product can take; many models' MLPs are copies of it."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(p) is nn.Linear and _fits(p.weight) for p in parts):
        return False
    here, llama = (kind.forward.__code__ for kind in (type(module), LlamaMLP))
    same = (here.co_code, here.co_names, here.co_consts[1:]) == (llama.co_code, llama.co_names, llama.co_consts[1:])
    return same and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")


def _swiglu(module: Any, x: torch.Tensor) -> torch.Tensor:
    """down(silu(gate x) * up x): both steps in between happen in the products' last pass, without a tensor of their own."""
    gate, up = module.gate_proj, module.up_proj
    gated = torch.ops.mkldnn._linear_pointwise(x, gate.weight, gate.bias, "swish", [], "")
    return module.down_proj(torch.ops.mkldnn._linear_pointwise.binary(x, gated, up.weight, up.bias, "mul"))


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """[n, heads, L, d]: softmax of scale * q k^T over each token and those before it, times v.

    ``q`` is [n, heads, L, d], ``k`` and ``v`` [n, groups, L, d]: heads of a group share keys. Queries go in blocks of
    :data:`BLOCK`, each against the keys up to its end, so that nearly half of both products is never computed.
    """
    n, heads, length, d = q.shape
    groups = k.shape[1]
    q = (q * scale).view(n, groups, -1, length, d)
    k, v = k.reshape(n * groups, length, d), v.reshape(n * groups, length, d)
    later = torch.full((BLOCK, BLOCK), -torch.inf).triu(1)
    out = torch.empty(n, length, groups, heads // groups, d)  # as transformers wants it in memory
    by_group = out.permute(0, 2, 3, 1, 4)
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        wide = stop - start
        score = torch.bmm(q[:, :, :, start:stop].reshape(n * groups, -1, d), k[:, :stop].mT)
        score.view(n * groups, -1, wide, stop)[..., start:] += later[:wide, :wide]
        by_group[:, :, :, start:stop] = torch.bmm(score.softmax(-1), v[:, :stop]).view(n, groups, -1, wide, d)
    return out.view(n, length, heads, d).transpose(1, 2)


def _attention(
    module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, **how: Any
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa, but for long plainly causal texts :func:`causal_attention`, a quarter faster on CPUs."""
    plain = mask is None and how.get("is_causal") in (None, True) and getattr(module, "is_causal", False)
    plain = plain and not how.get("dropout") and how.get("position_bias") is None and how.get("softcap") is None
    if plain and q.shape[2] == k.shape[2] >= LONG and q.shape[3] == v.shape[3] and _fits(q, k, v):
        scale = how.get("scaling") or q.shape[3] ** -0.5
        return causal_attention(q, k, v, scale).transpose(1, 2), None
    return sdpa_attention_forward(module, q, k, v, mask, **how)


ALL_ATTENTION_FUNCTIONS.register("sdpa_in_blocks", _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa_in_blocks", sdpa_mask)


def _forward(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return _linear(x, module.weight, module.bias)
