"""An attention probe: one learned query weighs a prompt's tokens, a linear readout scores their weighted mean.

score = w . sum_t softmax_t(q . x_t) x_t + b, on standardised residuals; trained with Adam on the logistic loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits

from lib import activations, store
from lib.probes.protocol import TIE, Fitted, Labels

BATCH = 256  # prompts
RATE = 3e-3


@dataclass(frozen=True)
class Tokens:
    """Every prompt's residuals, prompt by prompt: x [tokens, d] float16; prompt i holds rows starts[i] to starts[i + 1]."""

    x: torch.Tensor
    starts: np.ndarray

    @classmethod
    def of(cls, harvested: store.Artifact, layer: int, count: int) -> Tokens:
        """The tokens from the user's text on, attention sinks left out."""
        source = activations.read(harvested, layer)
        sequence = source.column("sequence")
        order = np.lexsort((source.column("position"), sequence))
        parts = [source.gather(part).half() for part in np.array_split(order, max(1, len(order) // 65_536))]
        starts = np.concatenate([[0], np.cumsum(np.bincount(sequence, minlength=count))])
        return cls(torch.cat(parts), starts)

    def batch(self, prompts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(x [tokens, d] float32, number within the batch [tokens] int64) of some prompts' tokens."""
        lengths = self.starts[prompts + 1] - self.starts[prompts]
        which = np.repeat(np.arange(len(prompts)), lengths)
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.repeat(self.starts[prompts], lengths) + within
        return self.x[torch.from_numpy(rows)].float(), torch.from_numpy(which)


def scored(
    x: torch.Tensor, which: torch.Tensor, count: int, q: torch.Tensor, w: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """[count] scores of prompts whose tokens are x [tokens, d], token t in prompt ``which[t]``."""
    attention, reading = x @ q, x @ w
    top = torch.full((count,), -torch.inf).scatter_reduce(0, which, attention.detach(), "amax")
    weight = (attention - top[which]).exp()
    total = torch.zeros(count).index_add(0, which, weight)
    return torch.zeros(count).index_add(0, which, weight * reading) / total + b


def fit(tokens: Tokens, labels: Labels, decays: Sequence[float], epochs: int, seed: int) -> Fitted:
    """Scores of the probe whose weight decay has the best validation AUROC."""
    train, val = np.flatnonzero(labels.where("train")), labels.where("val")
    sample = tokens.batch(np.sort(np.random.default_rng(seed).permutation(train)[:512]))[0]
    mean, deviation = sample.mean(0), sample.std(0).clamp_min(1e-6)
    y, best = torch.from_numpy(labels.y).float(), Fitted(np.zeros(0), 0.0, -1.0)
    for decay in sorted(decays, reverse=True):
        generator = torch.Generator().manual_seed(seed)
        q = (torch.randn(len(mean), generator=generator) / len(mean)).requires_grad_()
        w = torch.zeros(len(mean), requires_grad=True)
        b = torch.zeros(1, requires_grad=True)
        steps = epochs * -(-len(train) // BATCH)
        adam = torch.optim.AdamW([q, w, b], lr=RATE, weight_decay=decay)
        fall = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.05, steps)
        for _ in range(epochs):
            for part in torch.randperm(len(train), generator=generator).split(BATCH):
                mine = train[part.numpy()]
                x, which = tokens.batch(mine)
                score = scored((x - mean) / deviation, which, len(mine), q, w, b)
                binary_cross_entropy_with_logits(score, y[torch.from_numpy(mine)]).backward()
                adam.step()
                adam.zero_grad()
                fall.step()
        with torch.inference_mode():
            every = []
            for mine in np.array_split(np.arange(len(y)), -(-len(y) // BATCH)):
                x, which = tokens.batch(mine)
                every.append(scored((x - mean) / deviation, which, len(mine), q, w, b))
        final = torch.cat(every).double().numpy()
        value = float(roc_auc_score(labels.y[val], final[val]))
        if value > best.val + TIE:
            best = Fitted(final, decay, value)
    return best
