"""What an SAE does on held-out activations, streamed: FVU, L0, firing frequencies, bias; and in the model: loss recovered."""

from typing import Any, Self

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from lib import store
from lib.lm import activations, model
from lib.lm.model import LM, Pinned
from lib.lm.residual import Replace, spliced
from lib.lm.sequences import read as read_sequences
from lib.sae import training
from lib.sae.variants import SAE
from lib.stats import percentiles, texts

HIGH = 0.1  # a high-frequency latent fires on at least this share of tokens
FREQUENT = 0.01
BINS = np.linspace(-5, 0, 51)  # log10 firing frequency
PASS_TOKENS = 1024  # padded tokens per forward pass of loss recovered; the logits of one take 200 MB


class Sums:
    """What an SAE does to tokens, summed in float64 as they stream by: by sequence, so that sequences can be resampled.

    Over the tokens of each sequence: ``tokens`` and ``active`` count them and their active latents, ``error`` sums the
    squared error, ``x`` [s, d] the residuals, ``xx`` their squared norm, ``hat_hat`` and ``hat_x`` the products of the
    reconstruction with itself and with the residual. Over all: ``fired`` [M] counts, ``errors`` [d] sums the errors.
    """

    def __init__(self, sequences: int, width: int, latents: int) -> None:
        self.tokens, self.active, self.error, self.xx, self.hat_hat, self.hat_x = np.zeros((6, sequences))
        self.x, self.errors = np.zeros((sequences, width)), np.zeros(width)
        self.fired = np.zeros(latents, np.int64)

    @classmethod
    def of(cls, sae: SAE, source: activations.Activations) -> Self:
        _, which = np.unique(source.column("sequence"), return_inverse=True)
        sums, at = cls(int(which.max()) + 1, source.width, sae.config.latents), 0
        with torch.inference_mode():
            for x in source.chunks():
                f = sae.encode(x)
                sums.add(x.double(), (sae.decode(f) * sae.scale).double(), f, which[at : at + len(x)])
                at += len(x)
        return sums

    def add(self, x: torch.Tensor, hat: torch.Tensor, f: torch.Tensor, which: np.ndarray | None = None) -> None:
        """Add tokens: residuals and reconstructions [n, d], latents [n, M], numbers of their sequences [n] (default 0)."""
        active, error, x, hat = f > 0, (x - hat).double(), x.double(), hat.double()
        sequence = torch.zeros(len(x), dtype=torch.int64) if which is None else torch.from_numpy(which)
        self.fired += active.sum(0).numpy()
        self.errors += error.sum(0).numpy()
        for total, values in (
            (self.tokens, torch.ones(len(x)).double()),
            (self.active, active.sum(1).double()),
            (self.error, error.square().sum(1)),
            (self.xx, x.square().sum(1)),
            (self.hat_hat, hat.square().sum(1)),
            (self.hat_x, (hat * x).sum(1)),
            (self.x, x),
        ):
            torch.from_numpy(total).index_add_(0, sequence, values)

    def _variance(self, weights: np.ndarray) -> float:
        """Sum ||x - mean||^2 of the residuals."""
        mean = weights @ self.x
        return float(weights @ self.xx - mean @ mean / (weights @ self.tokens))

    def fvu(self, weights: np.ndarray | None = None) -> float:
        """Fraction of variance unexplained, sum ||x - xhat||^2 / sum ||x - mean||^2, sequences counted ``weights`` times."""
        w = np.ones(len(self.tokens)) if weights is None else weights
        return float(w @ self.error / self._variance(w))

    def bias(self) -> float:
        """Reconstruction bias gamma, the factor that reconstructions are too large by: argmin E ||xhat / gamma - x||^2, which
        is E ||xhat||^2 / E xhat.x (Rajamanoharan 2024a, arXiv:2404.16014, section 4). Below 1 they shrink."""
        return float(self.hat_hat.sum() / self.hat_x.sum())

    def fidelity(self) -> dict[str, float]:
        """{l0, fvu, lost}: ``lost`` is the variance of the error over that of the residuals. A probe does not see a constant
        error, and ``lost`` leaves out what FVU counts of it."""
        tokens = self.tokens.sum()
        error = self.error.sum() - self.errors @ self.errors / tokens
        lost = float(error / self._variance(np.ones(len(self.tokens))))
        return {"l0": float(self.active.sum() / tokens), "fvu": self.fvu(), "lost": lost}


@store.solo
def evaluate(
    trained: store.Artifact, harvested: store.Artifact, layer: int, bootstrap: int, seed: int
) -> dict[str, Any]:
    """Step: {n, sinks, fvu, fvu_interval, l0, l0_interval, bias, latents, dead, frequent, frequent_share, high,
    high_share, max_frequency, histogram}.

    ``sinks`` are tokens left out as attention sinks. Intervals are 95 % percentile bootstrap over sequences. ``dead`` counts
    latents that never fire here, ``frequent`` and ``high`` those that fire on at least 1 % and 10 % of tokens, ``*_share`` their
    share of all firing; ``histogram`` counts latents by log10 frequency in :data:`BINS` (dead ones are not in it).
    """
    source = activations.read(harvested, layer)
    sums = Sums.of(training.load(trained), source)
    tokens, fired = float(sums.tokens.sum()), sums.fired
    frequency = fired / tokens
    resampled = texts(len(sums.tokens), bootstrap, seed)
    high, frequent = frequency >= HIGH, frequency >= FREQUENT
    return {
        "n": int(tokens),
        "sinks": source.dropped,
        "fvu": sums.fvu(),
        "fvu_interval": percentiles(np.array([sums.fvu(w) for w in resampled])),
        "l0": sums.active.sum() / tokens,
        "l0_interval": percentiles((resampled @ sums.active) / (resampled @ sums.tokens)),
        "bias": sums.bias(),
        "latents": len(fired),
        "dead": int((fired == 0).sum()),
        "frequent": int(frequent.sum()),
        "frequent_share": float(fired[frequent].sum() / max(1, fired.sum())),
        "high": int(high.sum()),
        "high_share": float(fired[high].sum() / max(1, fired.sum())),
        "max_frequency": float(frequency.max()),
        "histogram": np.histogram(np.log10(np.clip(frequency[fired > 0], 10 ** BINS[0], 1)), BINS)[0],
    }


def _cross_entropies(lm: LM, ids: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """[batch]: summed cross-entropy, in nats, of the tokens that follow those at ``where`` [batch, tokens] bool."""
    logits = lm.model(input_ids=ids).logits[:, :-1].float()
    # One row a token: over a vocabulary on the middle axis, float32 loses the fourth digit.
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses.view_as(where[:, 1:]) * where[:, :-1]).sum(1)


@store.result
def loss_recovered(
    saes: dict[str, store.Artifact],
    sequences: store.Artifact,
    harvested: store.Artifact,
    lm: Pinned,
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
    loaded, rows = model.load(lm), read_sequences(sequences)
    lengths = np.diff(rows.offsets)
    norms = activations.read(harvested, layer, sinks=True).column(f"norm_{layer}")
    limit = activations.SINK * float(np.median(norms))
    order = np.random.default_rng(seed).permutation(len(rows))
    scored = np.maximum(0, np.minimum(rows.keep_stop, lengths - 1) - rows.keep_start)[order]
    chosen = order[: int(np.searchsorted(np.cumsum(scored), tokens)) + 1]
    chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
    replacements: dict[str, Replace] = {"clean": lambda x: x, "zero": torch.zeros_like}
    replacements |= {name: training.load(sae).to(loaded.model.device).reconstruct for name, sae in saes.items()}
    totals, n = {name: np.zeros(len(chosen)) for name in replacements}, np.zeros(len(chosen), np.int64)
    size = max(1, PASS_TOKENS // int(lengths[chosen].max()))
    with torch.inference_mode():
        for at in tqdm(range(0, len(chosen), size), "loss recovered", unit="pass", disable=None):
            batch = chosen[at : at + size]
            ids = pad_sequence([torch.from_numpy(rows[i].astype(np.int64)) for i in batch], True, loaded.pad)
            place, bounds = np.arange(ids.shape[1]), (rows.keep_start, rows.keep_stop, lengths - 1)
            start, stop, last = (bound[batch, None] for bound in bounds)
            where = torch.from_numpy((place >= start) & (place < stop))
            counted = where & torch.from_numpy(place < last)  # nothing is predicted after the last token
            n[at : at + size] = counted.sum(1)
            ids, where, counted = (x.to(loaded.model.device) for x in (ids, where, counted))
            held: list[Any] = []
            for name, replace in replacements.items():
                with spliced(loaded, layer, where, replace, limit, held):
                    totals[name][at : at + size] = _cross_entropies(loaded, ids, counted).cpu()
    weights = texts(len(n), bootstrap, seed)

    def recovered(name: str, w: np.ndarray) -> np.ndarray:
        clean, zero, sae = (w @ totals[key] / (w @ n) for key in ("clean", "zero", name))
        return (zero - sae) / (zero - clean)

    losses, ones = {name: float(total.sum() / n.sum()) for name, total in totals.items()}, np.ones(len(n))
    found = {name: {"loss": losses[name], "recovered": float(recovered(name, ones))} for name in saes}
    entries = {name: e | {"interval": percentiles(recovered(name, weights))} for name, e in found.items()}
    return {"n": int(n.sum()), "texts": len(n), "clean": losses["clean"], "zero": losses["zero"], "saes": entries}
