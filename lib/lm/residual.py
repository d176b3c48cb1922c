"""Read and replace the residual stream of a running model."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from lib.lm.model import LM


class _Stop(Exception):
    """Raised by the last block of interest: the blocks above it need not run."""


def residuals(lm: LM, ids: torch.Tensor, layers: tuple[int, ...], cache: Any | None = None) -> dict[int, torch.Tensor]:
    """Residual stream [batch, tokens, d] after each of ``layers``, for ``ids`` [batch, tokens] int64.

    With ``cache``, ``ids`` go on from what the cache holds, and their keys and values are added to it. Padding on the
    right is harmless: the model is causal.
    """
    found: dict[int, torch.Tensor] = {}

    def read(layer: int, module: Any, inputs: Any, output: Any) -> None:
        found[layer] = output[0] if isinstance(output, tuple) else output
        if layer == max(layers):
            raise _Stop

    with ExitStack() as hooks, suppress(_Stop), torch.inference_mode():
        for layer in layers:
            hooks.enter_context(lm.blocks[layer].register_forward_hook(partial(read, layer)))
        lm.model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
    return found


Replace = Callable[[torch.Tensor], torch.Tensor]  # residuals [n, d] to what stands in for them


@contextmanager
def spliced(lm: LM, layer: int, where: torch.Tensor, replace: Replace, limit: float = np.inf) -> Iterator[None]:
    """Within the block, the residual stream after ``layer`` is ``replace``d at ``where`` [batch, tokens] bool, but for
    residuals of a norm over ``limit``: attention sinks stay as they are."""

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        x = (output[0] if isinstance(output, tuple) else output).clone()
        chosen = x[where]
        ordinary = chosen.float().norm(dim=1) <= limit
        x[where] = torch.where(ordinary[:, None], replace(chosen.float()).to(x.dtype), chosen)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    with lm.blocks[layer].register_forward_hook(hook):
        yield
