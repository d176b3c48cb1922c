"""What an SAE does on held-out activations, streamed: FVU, L0, firing frequencies, bias; and in the model: loss recovered."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lib import activations, store
from lib.config import ModelSection
from lib.lm import contexts
from lib.lm.model import LM
from lib.lm.model import load as load_lm
from lib.lm.residual import Replace, spliced
from lib.sae import training
from lib.sae.variants import SAE

HIGH = 0.1  # a high-frequency latent fires on at least this share of tokens
FREQUENT = 0.01
BINS = np.linspace(-5, 0, 51)  # log10 firing frequency


def stream(sae: SAE, source: activations.Activations) -> dict[str, np.ndarray]:
    """Sums over all tokens: ``fired`` [M] counts, and per sequence ``tokens``, ``l0``, ``error``, ``x`` [s, d], ``xx``,
    ``hat_hat`` and ``hat_x``.

    ``error`` is the squared error, ``x`` and ``xx`` the sum and squared norm of the residuals (float64), from which the
    variance about the mean follows for any set of sequences; ``hat_hat`` and ``hat_x`` the products of the reconstruction
    with itself and with the residual.
    """
    _, which = np.unique(source.column("sequence"), return_inverse=True)
    count = int(which.max()) + 1
    fired = np.zeros(sae.config.latents, np.int64)
    names = ("tokens", "l0", "error", "xx", "hat_hat", "hat_x")
    sums = {name: np.zeros(count) for name in names} | {"x": np.zeros((count, source.width))}
    at = 0
    with torch.inference_mode():
        for x in source.chunks():
            f = sae.encode(x)
            hat, x = (sae.decode(f) * sae.scale).double(), x.double()
            active = f > 0
            here = which[at : at + len(x)]
            at += len(x)
            fired += active.sum(0).numpy()
            per_token = {
                "tokens": torch.ones(len(x)),
                "l0": active.sum(1).double(),
                "error": (hat - x).square().sum(1),
                "xx": x.square().sum(1),
                "hat_hat": hat.square().sum(1),
                "hat_x": (hat * x).sum(1),
                "x": x,
            }
            for name, values in per_token.items():
                np.add.at(sums[name], here, values.numpy())
    return {"fired": fired, **sums}


def fvu(sums: dict[str, np.ndarray], weights: np.ndarray | None = None) -> float:
    """Fraction of variance unexplained, sum ||x - xhat||^2 / sum ||x - mean||^2, sequences counted ``weights`` times."""
    w = np.ones(len(sums["tokens"])) if weights is None else weights
    tokens, mean = w @ sums["tokens"], w @ sums["x"]
    return float(w @ sums["error"] / (w @ sums["xx"] - mean @ mean / tokens))


def bias(sums: dict[str, np.ndarray]) -> float:
    """Reconstruction bias gamma, the factor that reconstructions are too large by: argmin E ||xhat / gamma - x||^2, which
    is E ||xhat||^2 / E xhat.x (Rajamanoharan 2024a, arXiv:2404.16014, section 4). Below 1 they shrink."""
    return float(sums["hat_hat"].sum() / sums["hat_x"].sum())


@store.result
def evaluate(
    trained: store.Artifact, harvested: store.Artifact, layer: int, bootstrap: int, seed: int
) -> dict[str, Any]:
    """Step: {n, sinks, fvu, fvu_interval, l0, l0_interval, bias, latents, dead, frequent, frequent_share, high,
    high_share, max_frequency, histogram}.

    ``sinks`` are tokens left out as attention sinks. Intervals are 95 % percentile bootstrap over sequences. ``bias`` is
    the reconstruction bias (:func:`bias`). ``dead`` counts latents that never fire here, ``frequent`` and ``high`` those that fire on at
    least 1 % and 10 % of tokens, ``*_share`` their share of all firing; ``histogram`` counts latents by log10 frequency
    in :data:`BINS` (dead ones are not in it).
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
    high, frequent = frequency >= HIGH, frequency >= FREQUENT
    return {
        "n": int(tokens),
        "sinks": source.dropped,
        "fvu": fvu(sums),
        "fvu_interval": np.percentile(fvus, [2.5, 97.5]),
        "l0": sums["l0"].sum() / tokens,
        "l0_interval": np.percentile(l0s, [2.5, 97.5]),
        "bias": bias(sums),
        "latents": len(fired),
        "dead": int((fired == 0).sum()),
        "frequent": int(frequent.sum()),
        "frequent_share": float(fired[frequent].sum() / max(1, fired.sum())),
        "high": int(high.sum()),
        "high_share": float(fired[high].sum() / max(1, fired.sum())),
        "max_frequency": float(frequency.max()),
        "histogram": np.histogram(np.log10(np.clip(alive, 10 ** BINS[0], 1)), BINS)[0],
    }


# ------------------------------------------------------------------------------------------------- loss recovered

PASS_TOKENS = 1024  # padded tokens per forward pass; the logits of one take 200 MB


def _cross_entropies(lm: LM, ids: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """[batch]: summed cross-entropy, in nats, of the tokens that follow those at ``where`` [batch, tokens] bool."""
    logits = lm.model(input_ids=ids).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * where[:, :-1]).sum(1)


@store.result
def loss_recovered(
    saes: dict[str, store.Artifact],
    sequences: store.Artifact,
    harvested: store.Artifact,
    lm: ModelSection,
    layer: int,
    tokens: int,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Step: {n, texts, clean, zero, saes: {name: {loss, recovered, interval}}} over at least ``tokens`` predictions.

    Cross-entropies (nats per token) of the model's next-token predictions with the residual stream after ``layer`` left
    alone, set to zero, and set to an SAE's reconstruction, at all kept tokens that are not attention sinks by the
    standard of ``harvested``, the activations of these sequences. Loss recovered is (zero - sae) / (zero - clean); intervals are 95 % bootstrap over texts.
    """
    loaded, rows = load_lm(lm), contexts.read(sequences)
    norms = [shard[f"norm_{layer}"].numpy() for shard in activations.read(harvested, layer, sinks=True).shards]
    limit = activations.SINK * float(np.median(np.concatenate(norms)))
    order = np.random.default_rng(seed).permutation(len(rows))
    scored = np.maximum(0, np.minimum(rows.keep_stop, np.diff(rows.offsets) - 1) - rows.keep_start)[order]
    chosen = order[: int(np.searchsorted(np.cumsum(scored), tokens)) + 1]
    chosen = chosen[np.argsort(np.diff(rows.offsets)[chosen], kind="stable")]
    models = {name: training.load(sae).to(loaded.device) for name, sae in saes.items()}
    replacements: dict[str, Replace] = {
        "clean": lambda x: x,
        "zero": torch.zeros_like,
        **{name: sae.reconstruct for name, sae in models.items()},
    }
    sums: dict[str, list[float]] = {name: [] for name in replacements}
    count: list[int] = []
    size = max(1, PASS_TOKENS // max(len(rows[i]) for i in chosen))
    with torch.inference_mode():
        for at in tqdm(range(0, len(chosen), size), "loss recovered", unit="pass", disable=None):
            batch = chosen[at : at + size]
            ids = torch.full((len(batch), max(len(rows[i]) for i in batch)), loaded.pad, dtype=torch.int64)
            where = torch.zeros(ids.shape, dtype=torch.bool)
            for row, i in enumerate(batch):
                ids[row, : len(rows[i])] = torch.from_numpy(rows[i].astype(np.int64))
                where[row, rows.keep_start[i] : rows.keep_stop[i]] = True
            follows = torch.tensor([len(rows[i]) - 1 for i in batch])  # nothing is predicted after the last token
            counted = where & (torch.arange(ids.shape[1]) < follows[:, None])
            count += counted.sum(1).tolist()
            ids, where, counted = ids.to(loaded.device), where.to(loaded.device), counted.to(loaded.device)
            for name, replace in replacements.items():
                with spliced(loaded, layer, where, replace, limit):
                    sums[name] += _cross_entropies(loaded, ids, counted).tolist()
    totals, n = {name: np.array(values) for name, values in sums.items()}, np.array(count)
    weights = np.random.default_rng(seed).multinomial(len(n), np.full(len(n), 1 / len(n)), size=bootstrap)

    def recovered(name: str, w: np.ndarray) -> np.ndarray:
        clean, zero, sae = (w @ totals[key] / (w @ n) for key in ("clean", "zero", name))
        return (zero - sae) / (zero - clean)

    return {
        "n": int(n.sum()),
        "texts": len(n),
        "clean": totals["clean"].sum() / n.sum(),
        "zero": totals["zero"].sum() / n.sum(),
        "saes": {
            name: {
                "loss": totals[name].sum() / n.sum(),
                "recovered": float(recovered(name, np.ones(len(n)))),
                "interval": np.percentile(recovered(name, weights), [2.5, 97.5]),
            }
            for name in models
        },
    }
