"""What an SAE does on held-out activations, streamed: FVU, L0, firing frequencies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lib import activations, artifacts
from lib.sae import training
from lib.sae.variants import SAE

HIGH = 0.1  # a high-frequency latent fires on at least this share of tokens
BINS = np.linspace(-5, 0, 51)  # log10 firing frequency


def stream(sae: SAE, source: activations.Activations) -> dict[str, np.ndarray]:
    """Sums over all tokens: ``fired`` [M] counts, and per sequence ``tokens``, ``l0``, ``error``, ``x`` [s, d], ``xx``.

    ``error`` is the squared error, ``x`` and ``xx`` the sum and squared norm of the residuals (float64), from which the
    variance about the mean follows for any set of sequences.
    """
    _, which = np.unique(source.column("sequence"), return_inverse=True)
    count = int(which.max()) + 1
    fired = np.zeros(sae.config.latents, np.int64)
    sums = {name: np.zeros(count) for name in ("tokens", "l0", "error", "xx")} | {"x": np.zeros((count, source.width))}
    at = 0
    with torch.inference_mode():
        for x in source.chunks():
            f = sae.encode(x)
            error = (sae.decode(f) * sae.scale - x).double().square().sum(1)
            active = f > 0
            here = which[at : at + len(x)]
            at += len(x)
            fired += active.sum(0).numpy()
            np.add.at(sums["tokens"], here, 1)
            np.add.at(sums["l0"], here, active.sum(1).double().numpy())
            np.add.at(sums["error"], here, error.numpy())
            np.add.at(sums["xx"], here, x.double().square().sum(1).numpy())
            np.add.at(sums["x"], here, x.double().numpy())
    return {"fired": fired, **sums}


def fvu(sums: dict[str, np.ndarray], weights: np.ndarray | None = None) -> float:
    """Fraction of variance unexplained, sum ||x - xhat||^2 / sum ||x - mean||^2, sequences counted ``weights`` times."""
    w = np.ones(len(sums["tokens"])) if weights is None else weights
    tokens, mean = w @ sums["tokens"], w @ sums["x"]
    return float(w @ sums["error"] / (w @ sums["xx"] - mean @ mean / tokens))


@artifacts.result
def evaluate(
    trained: artifacts.Artifact, harvested: artifacts.Artifact, layer: int, bootstrap: int, seed: int
) -> dict[str, Any]:
    """Step: {n, sinks, fvu, fvu_interval, l0, l0_interval, dead, high, high_share, max_frequency, histogram}.

    ``sinks`` are tokens left out as attention sinks. Intervals are 95 % percentile bootstrap over sequences. ``dead`` counts latents that never fire here, ``high`` those
    that fire on at least 10 % of tokens, ``high_share`` their share of all firing; ``histogram`` counts latents by
    log10 frequency in :data:`BINS` (dead ones are not in it).
    """
    source = activations.read(harvested, layer)
    sums = stream(training.load(trained), source)
    tokens, fired = float(sums["tokens"].sum()), sums["fired"]
    frequency = fired / tokens
    rng, count = np.random.default_rng(seed), len(sums["tokens"])
    resampled = rng.multinomial(count, np.full(count, 1 / count), size=bootstrap)
    fvus = [fvu(sums, w) for w in resampled]
    l0s = (resampled @ sums["l0"]) / (resampled @ sums["tokens"])
    alive = frequency[fired > 0]
    high = frequency >= HIGH
    return {
        "n": int(tokens),
        "sinks": source.dropped,
        "fvu": fvu(sums),
        "fvu_interval": np.percentile(fvus, [2.5, 97.5]),
        "l0": sums["l0"].sum() / tokens,
        "l0_interval": np.percentile(l0s, [2.5, 97.5]),
        "latents": len(fired),
        "dead": int((fired == 0).sum()),
        "high": int(high.sum()),
        "high_share": float(fired[high].sum() / max(1, fired.sum())),
        "max_frequency": float(frequency.max()),
        "histogram": np.histogram(np.log10(np.clip(alive, 10 ** BINS[0], 1)), BINS)[0],
    }
