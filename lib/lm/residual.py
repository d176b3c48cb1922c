"""Read and replace the residual stream of a running model."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from functools import lru_cache, partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import DynamicCache

from lib.lm.model import LM


class _Stop(Exception):
    """Raised by the last block of interest: the blocks above it need not run."""


def residuals(lm: LM, ids: torch.Tensor, layers: tuple[int, ...], cache: Any | None = None) -> dict[int, torch.Tensor]:
    """Residual stream [batch, tokens, d] after each of ``layers``, for ``ids`` [batch, tokens] int64.
    With ``cache``, ``ids`` go on from what the cache holds, to which their keys and values are added. Padding on the right is harmless."""
    found: dict[int, torch.Tensor] = {}

    def read(layer: int, module: Any, inputs: Any, output: Any) -> None:
        found[layer] = output[0] if isinstance(output, tuple) else output
        if layer == max(layers):
            raise _Stop

    with ExitStack() as hooks, suppress(_Stop), torch.inference_mode():
        for layer in layers:
            hooks.enter_context(lm.blocks[layer].register_forward_hook(partial(read, layer)))
        given = {} if cache is None else {"past_key_values": cache}
        lm.model.get_decoder()(input_ids=ids, use_cache=cache is not None, **given)
    return found


@lru_cache(maxsize=1)
def shared_cache(lm: LM) -> Any | None:
    """An empty cache that texts with a common beginning can share, or None. Tried on a few tokens, since architectures differ
    in what they keep of a text, and not all of it can be repeated."""
    ids, last = torch.arange(8, device=lm.model.device)[None], len(lm.blocks) - 1
    try:
        empty = DynamicCache(config=lm.model.config.get_text_config())
        cache = deepcopy(empty)
        residuals(lm, ids[:, :4], (last,), cache)
        cache.batch_repeat_interleave(2)
        after = residuals(lm, ids[:, 4:].repeat(2, 1), (last,), cache)[last]
        whole = residuals(lm, ids, (last,))[last][:, 4:]
    except (AttributeError, TypeError, ValueError, LookupError, NotImplementedError, RuntimeError):
        return None
    return empty if (after - whole).norm() <= 0.01 * after.norm() else None


Replace = Callable[[torch.Tensor], torch.Tensor]  # residuals [n, d] to what stands in for them


@contextmanager
def spliced(
    lm: LM, layer: int, where: torch.Tensor, replace: Replace, limit: float = np.inf, held: list[Any] | None = None
) -> Iterator[None]:
    """Within the block, the residual stream after ``layer`` is ``replace``d at ``where`` [batch, tokens] bool, but for residuals of a norm over
    ``limit``: attention sinks stay. ``held``, empty at first, keeps what ``layer`` gave; with it, of the same texts, blocks up to it do not run again."""
    shares = getattr(lm.model.config.get_text_config(), "num_kv_shared_layers", 0)  # blocks hand on more than residuals

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        if held == [] and torch.is_tensor(output) and not shares:
            held.append(output)
        x = (output[0] if isinstance(output, tuple) else output).clone()
        chosen = x[where]
        ordinary = chosen.float().norm(dim=1) <= limit
        x[where] = torch.where(ordinary[:, None], replace(chosen.float()).to(x.dtype), chosen)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    with ExitStack() as undone:
        if held:
            for block in lm.blocks[: layer + 1]:
                undone.enter_context(patch.object(block, "forward", lambda *inputs, **how: held[0]))
        undone.enter_context(lm.blocks[layer].register_forward_hook(hook))
        yield
