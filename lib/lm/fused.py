"""A chat model's blocks on CPUs in float32: fewer passes over memory between the matrix products, the same results.

What transformers writes as a chain of tensor operations is one pass here: SwiGLU in the products' last step, attention in
causal blocks, RMSNorm, rotary embeddings. A module is changed only if its code is that of Llama's; others stay as they
are, and so does any call that wants a gradient, another type, or a hook on what would be skipped.
"""

import functools
import types
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb, rotate_half

from lib.cpu import fits, keep_memory, linear

BLOCK = 32  # queries of one pass of attention
LONG = 96  # tokens from which blocks are faster than torch's kernel (measured)


def speed_up(model: nn.Module) -> nn.Module:
    """The model itself, with faster forwards; a module that was given a ``forward`` of its own keeps it."""
    keep_memory()
    for module in model.modules():
        if "forward" in vars(module):
            continue
        if type(module) is nn.Linear and fits(module.weight):
            module.forward = functools.partial(_linear, module)  # type: ignore[method-assign]
        elif _is_swiglu(module):
            module.forward = functools.partial(_swiglu, module)
        elif _same(type(module).forward, LlamaRMSNorm.forward):
            module.forward = functools.partial(_rms_norm, module)
        elif _attends(module):
            module.forward = types.MethodType(_with_ours(type(module).forward), module)
    return model


def _same(a: Any, b: Any) -> bool:
    """Two functions of the same body and defaults, docstring aside; many models' parts are copies of Llama's."""

    def body(f: Any) -> tuple[Any, ...]:
        code = f.__code__
        return code.co_code, code.co_names, [c for c in code.co_consts if not isinstance(c, str)], f.__defaults__

    return body(a) == body(b)


def _is_swiglu(module: nn.Module) -> bool:
    """Computes what Llama's MLP computes."""
    return _same(type(module).forward, LlamaMLP.forward) and type(module.act_fn) in (nn.SiLU, SiLUActivation)


def _attends(module: nn.Module) -> bool:
    """An attention of transformers' kind, which turns queries and keys by a function that does what Llama's does."""
    forward = type(module).forward
    names, used = forward.__globals__, {"apply_rotary_pos_emb", "ALL_ATTENTION_FUNCTIONS", "get_interface"}
    if not used <= set(forward.__code__.co_names) or not {"apply_rotary_pos_emb", "rotate_half"} <= names.keys():
        return False
    turns = _same(names["apply_rotary_pos_emb"], apply_rotary_pos_emb) and _same(names["rotate_half"], rotate_half)
    return turns and names.get("ALL_ATTENTION_FUNCTIONS") is ALL_ATTENTION_FUNCTIONS


def _plain(*tensors: Tensor) -> bool:
    """Float32 on the CPU, of which no gradient is wanted."""
    if torch.is_autocast_enabled("cpu") or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return False
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    if not _plain(x, *module.parameters()):
        return type(module).forward(module, x)
    return linear(x, module.weight, module.bias)


@njit(parallel=True, cache=True)
def _normalised(x, weight, epsilon, out):  # type: ignore[no-untyped-def]
    d = x.shape[1]
    for r in prange(len(x)):
        squares = np.zeros(16, np.float32)
        for i in range(0, d - d % 16, 16):
            for j in range(16):
                squares[j] += x[r, i + j] * x[r, i + j]
        total = np.float32(0.0)
        for j in range(16):
            total += squares[j]
        for i in range(d - d % 16, d):
            total += x[r, i] * x[r, i]
        factor = np.float32(1.0) / np.sqrt(total / np.float32(d) + epsilon)
        for i in range(d):
            out[r, i] = weight[i] * (x[r, i] * factor)


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    """weight * x / sqrt(mean x^2 + epsilon) over the last axis, in one pass."""
    if not _plain(x, module.weight) or not x.is_contiguous() or x.shape[-1] != len(module.weight):
        return type(module).forward(module, x)
    out, d = torch.empty_like(x), x.shape[-1]
    rows, weight = x.detach().view(-1, d).numpy(), module.weight.detach().numpy()
    _normalised(rows, weight, np.float32(module.variance_epsilon), out.view(-1, d).numpy())
    return out


@njit(parallel=True, cache=True)
def _turned(x, cos, sin, out):  # type: ignore[no-untyped-def]
    n, length, heads, d = x.shape
    half = d // 2
    for r in prange(n * length):
        i, t = r // length, r % length
        c, s = cos[i % len(cos), t], sin[i % len(sin), t]
        for h in range(heads):
            row, turned = x[i, t, h], out[i, t, h]
            for j in range(half):
                turned[j] = row[j] * c[j] - row[half + j] * s[j]
                turned[half + j] = row[half + j] * c[half + j] + row[j] * s[half + j]


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """transformers' own, in one pass for queries and keys [n, heads, L, d] as their products leave them."""
    n, _, length, d = q.shape
    straight = all(x.transpose(1, 2).is_contiguous() for x in (q, k)) and k.shape[::2] == q.shape[::2]
    angles = cos.shape == sin.shape and cos.shape in ((1, length, d), (n, length, d))
    if unsqueeze_dim != 1 or not (straight and angles and _plain(q, k, cos, sin)):
        return apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)
    turned = []
    for x in (q, k):
        out = torch.empty_like(x.transpose(1, 2))
        _turned(x.detach().transpose(1, 2).numpy(), cos.detach().numpy(), sin.detach().numpy(), out.numpy())
        turned.append(out.transpose(1, 2))
    return turned[0], turned[1]


class _Attentions(AttentionInterface):
    """transformers' attentions, with :func:`_attention` for its sdpa."""

    def get_interface(self, attn_implementation: str, default: Any) -> Any:
        found = ALL_ATTENTION_FUNCTIONS.get_interface(attn_implementation, default)
        return _attention if found is sdpa_attention_forward else found


def _with_ours(forward: Any) -> Any:
    """An attention's function with ours for what it calls; the config still says sdpa, as masks and checks want it."""
    names = {**forward.__globals__, "apply_rotary_pos_emb": _rotary, "ALL_ATTENTION_FUNCTIONS": _Attentions()}
    changed = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    changed.__kwdefaults__ = forward.__kwdefaults__
    return changed


def _swiglu(module: Any, x: Tensor) -> Tensor:
    """down(silu(gate x) * up x): both steps in between happen in the products' last pass, without a tensor of their own."""
    gate, up, act = module.gate_proj, module.up_proj, module.act_fn
    ours = all(getattr(m.forward, "func", None) is _linear for m in (gate, up))
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (gate, up, act))
    if not ours or hooked or not _is_swiglu(module) or not _plain(x, *module.parameters()):
        return type(module).forward(module, x)
    gated = torch.ops.mkldnn._linear_pointwise(x, gate.weight, gate.bias, "swish", [], "")
    return module.down_proj(torch.ops.mkldnn._linear_pointwise.binary(x, gated, up.weight, up.bias, "mul"))


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """[n, heads, L, d]: softmax of scale * q k^T over each token and those before it, times v.

    ``q`` is [n, heads, L, d], ``k`` and ``v`` [n, groups, L, d]: heads of a group share keys. Queries go in blocks of
    :data:`BLOCK`, each against the keys up to its end, so that nearly half of both products is never computed.
    """
    n, heads, length, d = q.shape
    groups = k.shape[1]
    q = (q * scale).view(n, groups, -1, length, d)
    k, v = k.reshape(n * groups, length, d), v.reshape(n * groups, length, d)
    later = q.new_full((BLOCK, BLOCK), -torch.inf).triu(1)
    out = q.new_empty(n, length, groups, heads // groups, d)  # as transformers wants it in memory
    by_group = out.permute(0, 2, 3, 1, 4)
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        wide = stop - start
        score = torch.bmm(q[:, :, :, start:stop].reshape(n * groups, -1, d), k[:, :stop].mT)
        score.view(n * groups, -1, wide, stop)[..., start:] += later[:wide, :wide]
        by_group[:, :, :, start:stop] = torch.bmm(score.softmax(-1), v[:, :stop]).view(n, groups, -1, wide, d)
    return out.view(n, length, heads, d).transpose(1, 2)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: Any
) -> tuple[Tensor, None]:
    """transformers' sdpa, but for long plainly causal texts :func:`causal_attention`, a quarter faster on CPUs."""
    causal = attention_mask is None and how.get("is_causal") in (None, True) and getattr(module, "is_causal", False)
    simple = not how.get("dropout") and how.get("position_bias") is None and how.get("softcap") is None
    square = query.shape[2] == key.shape[2] >= LONG and query.shape[3] == value.shape[3]
    if causal and simple and square and _plain(query, key, value):
        scale = how.get("scaling") or query.shape[3] ** -0.5
        return causal_attention(query, key, value, scale).transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
