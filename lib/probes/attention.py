"""An attention probe: one learned query weighs a prompt's tokens, a linear readout scores their weighted mean.

score = w . sum_t softmax_t(q . x_t) x_t + b, on standardised residuals; trained with Adam on the logistic loss.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from lib.lm import activations
from lib.probes.methods import Fits, Model, Probe
from lib.probes.views import Data, View
from lib.texts.examples import Labels

BATCH = 256  # prompts
RATE = 3e-3


@dataclass(frozen=True)
class Ragged:
    """Every prompt's residuals, prompt by prompt: x [tokens, d] float16; prompt i holds rows starts[i] to starts[i + 1]."""

    x: torch.Tensor
    starts: np.ndarray

    def batch(self, prompts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(x [tokens, d] float32, number within the batch [tokens] int64) of some prompts' tokens."""
        rows = [np.arange(self.starts[i], self.starts[i + 1]) for i in prompts]
        which = np.repeat(np.arange(len(prompts)), [len(of_prompt) for of_prompt in rows])
        return self.x[torch.from_numpy(np.concatenate(rows))].float(), torch.from_numpy(which)


class Tokens(View):
    """The residual stream at the site of every token from the user's text on, attention sinks left out."""

    def matrix(self, data: Data, labels: Labels) -> Ragged:
        source = activations.read(data.harvest, data.layer)
        sequence = source.column("sequence")
        order = np.lexsort((source.column("position"), sequence))
        parts = [source.gather(part).half() for part in np.array_split(order, max(1, len(order) // 65_536))]
        starts = np.concatenate([[0], np.cumsum(np.bincount(sequence, minlength=len(labels.y)))])
        return Ragged(torch.cat(parts), starts)


def scored(
    x: torch.Tensor, which: torch.Tensor, count: int, q: torch.Tensor, w: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """[count] scores of prompts whose tokens are x [tokens, d], token t in prompt ``which[t]``."""
    attention, reading = x @ q, x @ w
    top = torch.full((count,), -torch.inf).scatter_reduce(0, which, attention.detach(), "amax")
    weight = (attention - top[which]).exp()
    total = torch.zeros(count).index_add(0, which, weight)
    return torch.zeros(count).index_add(0, which, weight * reading) / total + b


@dataclass(frozen=True)
class Attention(Probe):
    """On :class:`Tokens`; options are its weight decays. Training is expensive: the decay is chosen on the first draw of the split,
    and is that of the others too."""

    decays: tuple[float, ...]
    epochs: int
    once: ClassVar[bool] = True

    def at(self, options: dict[str, str]) -> Self:
        return replace(self, decays=tuple(decay for decay in self.decays if f"decay={decay:g}" == options[""]))

    def fit(self, x: Ragged, labels: Labels, run: int) -> Fits:
        train = np.flatnonzero(labels.where("train"))
        sample = x.batch(np.sort(np.random.default_rng(run).permutation(train)[:512]))[0]
        mean, deviation = sample.mean(0), sample.std(0).clamp_min(1e-6)
        taught, found = torch.from_numpy(labels.taught).float(), dict[str, Model]()
        for decay in sorted(self.decays, reverse=True):
            generator = torch.Generator().manual_seed(run)
            q = (torch.randn(len(mean), generator=generator) / len(mean)).requires_grad_()
            w, b = torch.zeros(len(mean), requires_grad=True), torch.zeros(1, requires_grad=True)
            adam = torch.optim.AdamW([q, w, b], lr=RATE, weight_decay=decay)
            steps = self.epochs * -(-len(train) // BATCH)
            fall = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.05, steps)

            def score(some: np.ndarray) -> torch.Tensor:
                tokens, which = x.batch(some)
                return scored((tokens - mean) / deviation, which, len(some), q, w, b)  # noqa: B023 - called here only

            for _ in range(self.epochs):
                for part in torch.randperm(len(train), generator=generator).split(BATCH):
                    mine = train[part.numpy()]
                    binary_cross_entropy_with_logits(score(mine), taught[torch.from_numpy(mine)]).backward()
                    adam.step()
                    adam.zero_grad()
                    fall.step()
            every = np.array_split(np.arange(len(taught)), -(-len(taught) // BATCH))
            with torch.inference_mode():
                final = torch.cat([score(some) for some in every]).double().numpy()
            found[f"decay={decay:g}"] = Model(final)
        return {"": found}
