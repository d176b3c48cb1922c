"""Autointerp scores: latents are explained from windows of one text, and the explanations scored on windows of another."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed
from safetensors.numpy import load_file
from scipy.sparse import csc_array, csr_array, vstack

from lib import stats
from lib.config import AutointerpSection
from lib.latents.explainers import Contexts, Explainer, agreement
from lib.lm import activations, model
from lib.lm.model import Pinned
from lib.sae import training
from lib.sae.variants import SAE
from lib.store import Artifact, cached, solo
from lib.texts import corpora, examples, likeness
from lib.texts.examples import Example


class Text(NamedTuple):
    """A text to read latents on: residuals of its tokens, and its :func:`windows` with their sentence embeddings."""

    harvest: Artifact
    windows: Artifact
    vectors: Artifact


@cached
def half(out: Path, documents: Artifact, which: int) -> None:
    """Step: every second one of the held-out :func:`lib.texts.corpora.documents`, from the first or the second on, to evaluate with."""
    found = corpora.read(documents, "eval")[which::2]
    (out / "held_out.json").write_text(json.dumps(len(found)), encoding="utf-8")
    lines = "".join(json.dumps(document) + "\n" for document in found)
    (out / "documents.jsonl").write_text(lines, encoding="utf-8")


@cached
def windows(out: Path, harvest: Artifact, lm: Pinned, layer: int, width: int) -> None:
    """Step: the text of every window of a harvest, to be embedded as prompts are."""
    tokenizer, pool = model.tokenizer(lm), Pool(activations.read(harvest, layer), width)
    texts = (tokenizer.decode(row[row >= 0].tolist(), skip_special_tokens=True) for row in pool.tokens)
    told: dict[str, Any] = {"label": 0, "split": "train", "slice": "", "transform": "plain"}
    examples.write(out, [Example(text=t, base=str(i), group=i, **told) for i, t in enumerate(texts)])


def choose(peaks: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of ``count`` contexts, strongest first: a third the strongest, a third spread over the quantiles of the other active ones, a third
    silent or, where a latent hardly ever is, its weakest. Of a latent that is active in fewer than two thirds, all of those."""
    third = count // 3
    order = rng.permutation(len(peaks))
    order = order[np.argsort(-peaks[order], kind="stable")]
    end = min(int((peaks > 0).sum()), len(peaks) - third)  # what lies behind is silent, or the weakest there is
    top = min(third, end)
    spread = np.unique(np.linspace(top, end - 1, third if end > top else 0).round().astype(int))
    return np.concatenate([order[:top], order[spread], rng.choice(order[end:], third, replace=False)])


def cut(sequence: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(window, place in it, place in its text), each [n], of consecutive tokens of texts ``sequence`` [n]: each text is cut into
    as few windows of about equal length as are no longer than ``width``."""
    starts = np.flatnonzero(np.diff(sequence, prepend=-1))
    lengths = np.diff(starts, append=len(sequence))
    place = np.arange(len(sequence)) - np.repeat(starts, lengths)
    parts = -(-lengths // width)
    number = place * np.repeat(parts, lengths) // np.repeat(lengths, lengths)
    window = number + np.repeat(np.cumsum(parts) - parts, lengths)
    return window, np.arange(len(sequence)) - np.searchsorted(window, window), place


class Pool:
    """Windows of one text: tokens and places [W, width], embeddings [W, e]; and which of them may be ``drawn``."""

    def __init__(self, source: activations.Activations, width: int, vectors: np.ndarray | None = None) -> None:
        self.source, (self.window, self.offset, place) = source, cut(source.column("sequence"), width)
        self.tokens, self.places = np.full((2, self.window[-1] + 1, width), -1)
        self.tokens[self.window, self.offset] = source.column("token")
        self.places[self.window, self.offset] = place
        self.vectors = np.zeros((len(self.tokens), 1)) if vectors is None else vectors
        self.drawn = np.ones(len(self.tokens), bool)

    def latents(self, sae: SAE) -> csc_array:
        """Activations [tokens, M] of an SAE's latents."""
        with torch.inference_mode():
            parts = [csr_array(sae.encode(x).numpy()) for x in self.source.chunks()]
        return csc_array(vstack(parts))

    def contexts(self, rows: np.ndarray, values: np.ndarray, count: int, rng: np.random.Generator) -> Contexts | None:
        """Contexts that a latent with ``values`` at the tokens ``rows`` is told by; None where it is active in none."""
        peaks = np.zeros(len(self.tokens))
        np.maximum.at(peaks, self.window[rows], values)
        drawn = np.flatnonzero(self.drawn)
        if not peaks[drawn].any():
            return None
        which = drawn[choose(peaks[drawn], count, rng)]
        at = np.full(len(peaks), -1)
        at[which] = np.arange(len(which))
        mine = at[self.window[rows]]
        here, shown = mine >= 0, np.zeros((len(which), self.tokens.shape[1]))
        shown[mine[here], self.offset[rows[here]]] = values[here]
        return Contexts(self.tokens[which], shown, self.places[which], self.vectors[which])


Pools = tuple[Pool, Pool]  # to explain from, and to score on
Texts = tuple[Text, Text]


def pools_of(texts: Texts, layer: int, width: int) -> Pools:
    """Pools to explain from and to score on; a window of the second that is a near-duplicate of one of the first is not drawn."""
    first, second = (
        Pool(activations.read(t.harvest, layer), width, load_file(t.vectors.path / "embeddings.safetensors")["x"])
        for t in texts
    )
    said = [[example.text for example in examples.read(t.windows)] for t in texts]
    second.drawn[[there for _, there in likeness.leaks(*said)]] = False
    return first, second


class Scored(NamedTuple):
    """A latent's score, NaN where too little was answered; the ``active`` score, without the silent third of the contexts, NaN where that leaves fewer than a third; its
    explanation; contexts that it is explained from and scored on, and what was predicted of these, NaN where there was no answer."""

    value: float
    active: float
    explanation: Any
    seen: Contexts
    shown: Contexts
    guess: np.ndarray


def score(
    pools: Pools, latents: tuple[csc_array, csc_array], latent: int, explainer: Explainer, count: int, seed: int
) -> Scored | None:
    """One latent, by columns of ``latents``, explained from the first pool and scored on the second; None where it is active in none of one."""
    both = []
    for number, (pool, f) in enumerate(zip(pools, latents, strict=True)):
        mine, rng = slice(f.indptr[latent], f.indptr[latent + 1]), np.random.default_rng([seed, latent, number])
        both.append(pool.contexts(f.indices[mine], f.data[mine], count, rng))
    seen, shown = both
    if seen is None or shown is None:
        return None
    explanation = explainer.explain(seen)
    guess = explainer.predict(explanation, shown)
    strong = slice(0, len(guess) - count // 3)
    active = agreement(guess[strong], shown.peaks[strong]) if len(guess[strong]) >= count // 3 else float("nan")
    return Scored(agreement(guess, shown.peaks), active, explanation, seen, shown, guess)


@solo
def evaluate(
    sae: Artifact, texts: Texts, layer: int, by: Explainer, section: AutointerpSection, seed: int
) -> dict[str, Any]:
    """Step: {uniform, weighted: as :func:`lib.stats.weighted_means`; tokens; latent, score, active, fired, stratum: lists, one entry for each of
    ``section.latents`` sampled ones; sizes of strata; unanswered}, explained from the first text, scored on the second. A score is None where the latent is
    active in none of one of the texts, or half of the questions had no answer; ``unanswered`` counts these; ``active`` as in :class:`Scored`. ``fired`` counts
    tokens of both texts. ValueError if none fires, or none can be scored."""
    pools, trained = pools_of(texts, layer, section.window), training.load(sae)
    columns = pools[0].latents(trained), pools[1].latents(trained)
    fired = sum(np.diff(f.indptr) for f in columns)
    if not fired.any():
        raise ValueError("no latent fires on this text: raise tokens")
    which, stratum, sizes = stats.sample(fired, section.latents, np.random.default_rng(seed))
    jobs = (delayed(score)(pools, columns, latent, by, section.examples, seed) for latent in which.tolist())
    done = Parallel(by.at_once, prefer="threads")(jobs)
    scores = np.array([(np.nan, np.nan) if one is None else one[:2] for one in done], float)
    if np.isnan(scores[:, 0]).all():
        raise ValueError("no latent could be scored: raise tokens, or see whether the endpoint answers")
    found = stats.weighted_means(scores[:, 0], fired[which], stratum, sizes)
    found |= {"latent": which, "fired": fired[which], "stratum": stratum, "sizes": sizes}
    for name, column in zip(("score", "active"), scores.T, strict=True):
        found[name] = [None if np.isnan(value) else round(value, 4) for value in column]
    unanswered = sum(int(np.isnan(one.guess).sum()) for one in done if one is not None)
    return found | {"tokens": sum(len(pool.window) for pool in pools), "unanswered": unanswered}
