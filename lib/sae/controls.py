"""SAEs that show what a figure is worth: one that has learnt nothing, and one that is told the answer."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from lib.lm import activations
from lib.sae import training
from lib.sae.variants import SAEConfig, make
from lib.store import Artifact, cached
from lib.texts import examples
from lib.texts.examples import Labels

DRAWN = 512  # prompts that values are taken from; of tokens, eight times as many


@cached
def untrained(out: Path, like: Artifact, prompts: Artifact, harvested: Artifact, layer: int, seed: int) -> None:
    """Step: a TopK SAE of random directions, of as many latents as ``like``, of which at tokens of the train prompts as many are active in
    the mean; centred, and scaled so that it rebuilds these tokens as well as it can."""
    generator, source = torch.Generator().manual_seed(seed), activations.read(harvested, layer)
    train = np.flatnonzero(Labels.of(examples.read(prompts)).where("train"))
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(np.isin(source.column("sequence"), train)))
    x, sae = source.gather(rows[: 8 * DRAWN]), training.load(like)
    with torch.no_grad():
        active = float((sae.encode(x) > 0).sum(1).float().mean())
        random = make(SAEConfig(variant="topk", latents=sae.config.latents, k=max(1, round(active))), x.shape[1])
        random.initialise(x, generator)
        apart, rebuilt = x - x.mean(0), random.reconstruct(x) - x.mean(0)
        for weights in (random.W_enc, random.b_enc):
            weights.mul_((apart * rebuilt).sum() / rebuilt.square().sum())
    training.save(random, [], out)


@cached
def oracle(
    out: Path,
    like: Artifact,
    directions: Artifact,
    run: str,
    parts: int,
    prompts: Artifact,
    harvested: Artifact,
    layer: int,
    place: int | str,
    quantile: float = 0.5,
) -> None:
    """Step: the JumpReLU SAE ``like`` with the latents that fire least at a place of train prompts replaced by ``parts`` whose
    sum is the direction ``run`` ("0/1": seed 0, draw 1) of a linear probe there (:func:`lib.probes.methods.fit`).

    Each is graded above the ``quantile`` of its values on harmless prompts (a maximum of 0 below), and as large as a latent that writes the
    difference between the class means would be; it writes nothing. Parts differ by random directions that sum to zero, each of which moves a part
    as much as it has of the probe. At a pooled place, values are those of tokens from the user's text on: the mean over them can show the
    probe, a maximum cannot. ValueError if the SAE is of another architecture.
    """
    sae: Any = training.load(like)
    if sae.config.variant != "jumprelu":
        raise ValueError(f"an oracle is made of a jumprelu SAE, not of {sae.config.variant}")
    labels = Labels.of(examples.read(prompts))
    train = np.flatnonzero(labels.where("train"))
    if isinstance(place, int):
        x, y = activations.summary(harvested, layer, place)[torch.from_numpy(train)], labels.y[train]
    else:
        source = activations.read(harvested, layer)
        rows = np.flatnonzero(np.isin(source.column("sequence"), train[:: max(1, len(train) // DRAWN)]))
        x, y = source.gather(rows), labels.y[source.column("sequence")[rows]]
    harmless = torch.from_numpy(y == 0)
    unit, w = x / sae.scale, load_file(directions.path / "directions.safetensors")[run][:-1] * sae.scale
    apart = unit[~harmless].mean(0) - unit[harmless].mean(0)
    w *= apart.norm() / (w @ apart).abs().clamp_min(1e-6)
    noise = torch.randn(parts, len(w), generator=torch.Generator().manual_seed(0))
    noise -= noise.mean(0)
    noise *= (unit @ w).std() / parts / (unit @ noise.T).std(0).mean().clamp_min(1e-6)
    written = w / parts + noise
    values = unit[harmless] @ written.T
    fired = torch.stack([(sae.encode(part) > 0).sum(0) for part in x.split(4096)]).sum(0)
    which = fired.argsort(stable=True)[:parts]
    with torch.no_grad():
        sae.W_enc[:, which], sae.W_dec[which] = written.T, 0.0
        sae.b_enc[which] = -torch.from_numpy(np.quantile(values.numpy(), quantile, axis=0)).float()
        sae.theta[which] = 1e-6
    training.save(sae, [], out)
