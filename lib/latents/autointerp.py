"""Autointerp without an LLM: explain a latent by token patterns, then predict its activation on unseen contexts.

The :func:`score` is the post's. The explainer is in the manner of Neuron-to-Graph (Foote 2023, arXiv:2305.19911): which token a
latent fires on, and after which token.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from lib.config import AutointerpSection
from lib.latents.cards import token_texts
from lib.lm import activations, model
from lib.lm.model import Pinned
from lib.sae import training
from lib.sae.variants import SAE
from lib.stats import percentiles
from lib.store import Artifact, result

LEVELS = 10  # activations are predicted on a scale of 0 to 10
Window = tuple[Sequence[int], Sequence[float]]  # token ids of a context, and one latent's activations on them
Patterns = dict[tuple[int | None, int], float]  # mean activation on (token before or None, token)


def explain(windows: Sequence[Window]) -> Patterns:
    """Patterns from contexts. A pair of tokens counts as a pattern of its own once it was seen twice."""
    seen: dict[tuple[int | None, int], list[float]] = defaultdict(list)
    for tokens, values in windows:
        for before, token, value in zip((None, *tokens[:-1]), tokens, values, strict=True):
            seen[None, token].append(value)
            if before is not None:
                seen[before, token].append(value)
    return {key: float(np.mean(v)) for key, v in seen.items() if key[0] is None or len(v) > 1}


def predict(patterns: Patterns, tokens: Sequence[int]) -> float:
    """The maximum activation expected in a context: each token takes its longest known pattern."""
    alone = (patterns.get((None, token), 0.0) for token in tokens)
    pairs = zip((None, *tokens[:-1]), tokens, strict=True)
    return max((0.0, *map(patterns.get, pairs, alone)))


def score(patterns: Patterns, windows: Sequence[Window]) -> float:
    """Spearman correlation of predicted and true quantised maxima, in [-1, 1]; 0 if either does not vary."""
    truth = np.array([max(values) for _, values in windows])
    guess = np.array([predict(patterns, tokens) for tokens, _ in windows])
    quantised = [np.round(LEVELS * v / v.max()) if v.max() > 0 else v for v in (truth, guess)]
    if any(np.ptp(v) == 0 for v in quantised):
        return 0.0
    return float(spearmanr(*quantised).statistic)


def choose(peaks: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray | None:
    """Indices of ``count`` contexts: a third the strongest, a third spread over the quantiles of the other active ones, a
    third silent or, where a latent hardly ever is, its weakest; None where it is active in too few."""
    third = count // 3
    order = rng.permutation(len(peaks))
    order = order[np.argsort(-peaks[order], kind="stable")]
    active = int((peaks > 0).sum())
    if active < 2 * third or len(peaks) < 4 * third:
        return None
    end = min(active, len(peaks) - third)  # what lies behind is silent, or the weakest there is
    spread = order[np.linspace(third, end - 1, third).round().astype(int)]
    return np.concatenate([order[:third], spread, rng.choice(order[end:], third, replace=False)])


def score_latent(
    tokens: np.ndarray, values: np.ndarray, sequence: np.ndarray, examples: int, rng: np.random.Generator
) -> tuple[float, Patterns] | None:
    """Score and patterns of one latent from windows [W, w] of tokens and activations, or None if it fires too rarely. Texts
    (``sequence`` [W] says which a window is from) are halved at random: one half to explain from, the other to score on."""
    names = np.unique(sequence)
    first = np.isin(sequence, rng.permutation(names)[: len(names) // 2])
    halves = []
    for half in (first, ~first):
        index = np.flatnonzero(half)
        picked = choose(values[index].max(1), examples, rng)
        if picked is None:
            return None
        halves.append([(tokens[i].tolist(), values[i].tolist()) for i in index[picked]])
    patterns = explain(halves[0])
    return score(patterns, halves[1]), patterns


def windows_of(source: activations.Activations, width: int, limit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers [W, width] of whole windows of consecutive tokens, and the sequence [W] of each; of sequences in a seeded
    order until ``limit`` tokens are covered."""
    sequence = source.column("sequence")
    texts = np.split(np.arange(len(sequence)), np.flatnonzero(np.diff(sequence)) + 1)
    order = np.random.default_rng(seed).permutation(len(texts))
    enough = np.searchsorted(np.cumsum([len(texts[i]) for i in order]), limit) + 1
    rows = np.concatenate([texts[i][: len(texts[i]) // width * width].reshape(-1, width) for i in order[:enough]])
    if not len(rows):
        raise ValueError(f"no text has {width} tokens in a row: lower autointerp.window")
    return rows, sequence[rows[:, 0]]


def _encoded(sae: SAE, source: activations.Activations, rows: np.ndarray) -> Iterator[tuple[slice, torch.Tensor]]:
    """(which windows, their latents [windows, width, M]), 256 windows at a time."""
    with torch.inference_mode():
        for at in range(0, len(rows), 256):
            f = sae.encode(source.gather(rows[at : at + 256].ravel()))
            yield slice(at, at + 256), f.view(-1, rows.shape[1], f.shape[1])


@result
def evaluate(
    sae: Artifact, harvest: Artifact, lm: Pinned, layer: int, section: AutointerpSection, bootstrap: int, seed: int
) -> dict[str, Any]:
    """Step: {uniform, weighted: {mean, interval, n}, eligible, latents, eligible_firing, windows, scored: [{latent, frequency,
    score, patterns}]}: an SAE's mean score over latents and over firings.

    For each ``section.latents`` latents are drawn with replacement, uniformly or in proportion to their firing frequency, so
    that the plain mean is unbiased; intervals are 95 % percentile bootstrap over the draws. ``eligible`` latents fire in
    enough contexts to be scored, ``eligible_firing`` of all firing. Patterns: the three strongest, as text, "before|token".
    """
    source, trained = activations.read(harvest, layer), training.load(sae)
    rows, owner = windows_of(source, section.window, section.tokens, seed)
    tokens = source.column("token")[rows]
    fired, in_windows = np.zeros((2, trained.config.latents), np.int64)
    for _, f in _encoded(trained, source, rows):
        fired += (f > 0).sum((0, 1)).numpy()
        in_windows += (f > 0).any(1).sum(0).numpy()
    needed = 2 * 2 * (section.examples // 3) + 4  # two halves, two active thirds each, and a margin for the split
    eligible = np.flatnonzero(in_windows >= needed)
    if not len(eligible):
        raise ValueError("no latent fires in enough contexts to be scored: raise corpora.train_tokens")
    rng, size = np.random.default_rng(seed), section.latents
    weights = fired[eligible] / fired[eligible].sum()
    draws = {"uniform": rng.choice(eligible, size), "weighted": rng.choice(eligible, size, p=weights)}
    wanted = np.unique(np.concatenate(list(draws.values())))
    values = np.empty((len(wanted), *rows.shape), np.float32)
    for part, f in _encoded(trained, source, rows):
        values[:, part] = f[:, :, torch.from_numpy(wanted)].permute(2, 0, 1).numpy()
    tokenizer = model.tokenizer(lm)
    scored: dict[int, dict[str, Any]] = {}
    for number, latent in enumerate(wanted.tolist()):
        done = score_latent(tokens, values[number], owner, section.examples, np.random.default_rng([seed, latent]))
        if done is not None:
            best = sorted(done[1].items(), key=lambda item: -item[1])[:3]
            texts = [token_texts(tokenizer, [t for t in key if t is not None]) for key, value in best if value > 0]
            frequency, patterns = fired[latent] / rows.size, ["|".join(text) for text in texts]
            scored[latent] = {"latent": latent, "frequency": frequency, "score": done[0], "patterns": patterns}
    out: dict[str, Any] = {}
    for scheme, drawn in draws.items():
        points = np.array([scored[i]["score"] for i in drawn.tolist() if i in scored])
        if not len(points):
            raise ValueError("no latent could be scored: raise corpora.train_tokens or lower autointerp.examples")
        means = rng.choice(points, (bootstrap, len(points))).mean(1)
        out[scheme] = {"mean": points.mean(), "interval": percentiles(means), "n": len(points)}
    return out | {
        "eligible": len(eligible),
        "latents": trained.config.latents,
        "eligible_firing": fired[eligible].sum() / fired.sum(),
        "windows": len(rows),
        "scored": list(scored.values()),
    }
