"""SAEs that show what a figure is worth: one that has learnt nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.lm import activations
from lib.sae import training
from lib.sae.variants import SAEConfig, make
from lib.store import Artifact, cached
from lib.texts import examples

DRAWN = 512  # prompts that the threshold is taken from: of each, as many values as latents


@cached
def untrained(
    out: Path, like: Artifact, prompts: Artifact, harvested: Artifact, layer: int, place: int, seed: int
) -> None:
    """Step: a JumpReLU SAE of random directions, of as many latents as ``like`` and, at a place of the train prompts, on average as
    many active, by one threshold for all."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    train = rng.permutation([i for i, e in enumerate(examples.read(prompts)) if e.split == "train"])
    x, sae = activations.summary(harvested, layer, place)[torch.from_numpy(train)], training.load(like)
    random: Any = make(SAEConfig(variant="jumprelu", latents=sae.config.latents), x.shape[1])
    random.initialise(x, generator)
    with torch.inference_mode():
        share = float((sae.encode(x[:DRAWN]) > 0).float().mean())
        values = random.preactivations(x[:DRAWN] / random.scale).flatten().sort(descending=True).values
        random.theta.fill_(float(values[min(round(share * len(values)), len(values) - 1)].clamp_min(1e-6)))
    training.save(random, [], out)
