"""Definitions of lib as they were before they were rewritten to do the same faster (``data/rewritten.json``): what the rewritten ones are
compared with, and what results are still filed under."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from lib.cpu import linear
from lib.latents.cards import token_texts
from lib.latents.explainers import Contexts, Explainer
from lib.lm.model import LM
from lib.lm.residual import Replace
from lib.probes.methods import Logistic
from lib.texts.examples import TooFew


def column_aurocs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    ranks = stats.rankdata(x, axis=0)
    m = int(y.sum())
    return (ranks[y == 1].sum(0) - m * (m + 1) / 2) / (m * (len(y) - m))


class Few(Logistic):
    solver = "newton-cholesky"


def _living(x: np.ndarray) -> np.ndarray:
    if not np.ptp(x, axis=0).any():
        raise TooFew("no living latents: none varies between the train prompts")
    return x


@dataclass(frozen=True)
class Tokens(Explainer):
    """Its mean on each token, and on each token after a certain other one, once such a pair was seen twice."""

    def explain(self, seen: Contexts) -> dict[tuple[int | None, int], float]:
        found: dict[tuple[int | None, int], list[float]] = defaultdict(list)
        for tokens, values in zip(seen.tokens.tolist(), seen.values.tolist(), strict=True):
            for before, token, value in zip((None, *tokens), tokens, values, strict=False):
                found[None, token].append(value)
                if before is not None:
                    found[before, token].append(value)
        return {key: float(np.mean(v)) for key, v in found.items() if key[1] >= 0 and (key[0] is None or len(v) > 1)}

    def predict(self, explanation: dict[tuple[int | None, int], float], shown: Contexts) -> np.ndarray:
        """Each token takes its longest known pattern; a context, its largest."""
        found = []
        for tokens in shown.tokens.tolist():
            alone = (explanation.get((None, token), 0.0) for token in tokens)
            found.append(max(0.0, *map(explanation.get, zip((None, *tokens), tokens, strict=False), alone)))
        return np.array(found)

    def told(self, explanation: dict[tuple[int | None, int], float], tokenizer: Any) -> str:
        best = [key for key, value in sorted(explanation.items(), key=lambda item: -item[1])[:3] if value > 0]
        parts = (token_texts(tokenizer, [token for token in key if token is not None]) for key in best)
        return "tokens " + ", ".join(map("|".join, parts))


@contextmanager
def spliced(lm: LM, layer: int, where: torch.Tensor, replace: Replace, limit: float = np.inf) -> Iterator[None]:
    def hook(module: Any, inputs: Any, output: Any) -> Any:
        x = (output[0] if isinstance(output, tuple) else output).clone()
        chosen = x[where]
        ordinary = chosen.float().norm(dim=1) <= limit
        x[where] = torch.where(ordinary[:, None], replace(chosen.float()).to(x.dtype), chosen)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    with lm.blocks[layer].register_forward_hook(hook):
        yield


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        return linear(a.contiguous(), b.T.contiguous(), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        a, b = ctx.saved_tensors
        grad = grad.contiguous()
        left = linear(grad, b.contiguous()) if ctx.needs_input_grad[0] else None
        right = linear(a.T.contiguous(), grad.T.contiguous()) if ctx.needs_input_grad[1] else None
        return left, right, grad.sum(0) if ctx.needs_input_grad[2] else None
