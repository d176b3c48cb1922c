"""Autointerp: explain a latent from texts on which it fires, then predict from the explanation alone how strongly it fires on others.

The score is the post's. An :class:`Explainer` explains and judges; a new one is a class of two methods, in any module or cell. Those
here need no language model: they count, in the manner of Neuron-to-Graph (Foote 2023, arXiv:2305.19911), or compare sentence
embeddings; :mod:`lib.latents.endpoint` asks one.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from joblib import Parallel, delayed
from safetensors.numpy import load_file
from scipy.sparse import csc_array, csr_array, vstack
from scipy.stats import rankdata

from lib.config import AutointerpSection
from lib.latents.cards import token_texts
from lib.lm import activations, model
from lib.lm.model import Pinned
from lib.sae import training
from lib.sae.variants import SAE
from lib.stats import sample, weighted_means
from lib.store import Artifact, cached, result
from lib.texts import corpora, examples
from lib.texts.examples import Example

LEVELS = 10  # activations are predicted on a scale of 0 to 10


@dataclass(frozen=True)
class Contexts:
    """Contexts of one latent: ``tokens`` [n, w], -1 beyond a context's end; the latent's activations there, ``values`` [n, w]; the
    ``places`` [n, w] of tokens in their text, from 0; sentence embeddings of the contexts, ``vectors`` [n, e]."""

    tokens: np.ndarray
    values: np.ndarray
    places: np.ndarray
    vectors: np.ndarray

    @property
    def peaks(self) -> np.ndarray:
        return self.values.max(1)

    def __getitem__(self, which: Any) -> Self:
        return replace(self, **{name: column[which] for name, column in vars(self).items()})


@dataclass(frozen=True)
class Explainer:
    """Explains a latent from contexts, and predicts from the explanation alone. ``at_once``: latents that it can work on side by side."""

    at_once = 1

    def explain(self, seen: Contexts) -> Any:
        """Whatever :meth:`predict` and :meth:`told` understand."""
        raise NotImplementedError("an explainer explains")

    def predict(self, explanation: Any, shown: Contexts) -> np.ndarray:
        """[n] the maximum activation of each context, on any scale; NaN where there is no answer. It must not read ``shown.values``."""
        raise NotImplementedError("an explainer predicts")

    def told(self, explanation: Any, tokenizer: Any) -> str:
        """The explanation in words, for people."""
        return str(explanation)


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
        best = sorted(explanation.items(), key=lambda item: -item[1])[:3]
        parts = [
            token_texts(tokenizer, [token for token in key if token is not None]) for key, value in best if value > 0
        ]
        return "tokens " + ", ".join("|".join(part) for part in parts)


@dataclass(frozen=True)
class Places(Explainer):
    """Its mean at each place of a text, first token, second and so on."""

    def explain(self, seen: Contexts) -> np.ndarray:
        here = seen.tokens >= 0
        count = np.bincount(seen.places[here])
        return np.bincount(seen.places[here], seen.values[here]) / np.maximum(count, 1)

    def predict(self, explanation: np.ndarray, shown: Contexts) -> np.ndarray:
        known = (shown.tokens >= 0) & (shown.places < len(explanation))
        return np.where(known, explanation[np.where(known, shown.places, 0)], 0.0).max(1)

    def told(self, explanation: np.ndarray, tokenizer: Any) -> str:
        return "places " + ", ".join(map(str, np.argsort(-explanation)[:3].tolist()))


@dataclass(frozen=True)
class Topic(Explainer):
    """What the contexts are about: the direction of sentence embeddings along which its peaks rise."""

    def explain(self, seen: Contexts) -> tuple[np.ndarray, np.ndarray]:
        towards = (seen.peaks - seen.peaks.mean()) @ seen.vectors
        along = seen.vectors @ towards
        line = np.polyfit(along, seen.peaks, 1) if np.ptp(along) > 1e-9 else np.zeros(2)
        return towards, line

    def predict(self, explanation: tuple[np.ndarray, np.ndarray], shown: Contexts) -> np.ndarray:
        towards, line = explanation
        return np.polyval(line, shown.vectors @ towards).clip(0)

    def told(self, explanation: Any, tokenizer: Any) -> str:
        return "what the text is about"


@dataclass(frozen=True)
class Best(Explainer):
    """Of several forms the one that tells halves of the contexts that it is explained from best from one another; of equal ones the first."""

    forms: tuple[Explainer, ...] = (Tokens(), Places(), Topic())

    def explain(self, seen: Contexts) -> tuple[int, Any]:
        even = np.arange(len(seen.tokens)) % 2 == 0

        def trial(form: Explainer) -> float:
            halves = ((seen[half], seen[~half]) for half in (even, ~even))
            return round(
                sum(agreement(form.predict(form.explain(one), other), other.peaks) for one, other in halves), 9
            )

        best = int(np.argmax([trial(form) for form in self.forms]))
        return best, self.forms[best].explain(seen)

    def predict(self, explanation: tuple[int, Any], shown: Contexts) -> np.ndarray:
        return self.forms[explanation[0]].predict(explanation[1], shown)

    def told(self, explanation: tuple[int, Any], tokenizer: Any) -> str:
        return self.forms[explanation[0]].told(explanation[1], tokenizer)


def agreement(guess: np.ndarray, truth: np.ndarray) -> float:
    """Spearman correlation of predicted and true maxima [n], both quantised to 0 ... :data:`LEVELS`, in [-1, 1], over those that were
    predicted; 0 where either does not vary, NaN where fewer than half were predicted."""
    known = ~np.isnan(guess)
    if known.mean() < 0.5:
        return float("nan")
    both = [np.round(LEVELS * v / v.max()) if v.max(initial=0) > 0 else 0 * v for v in (guess[known], truth[known])]
    if any(np.ptp(v) == 0 for v in both):
        return 0.0
    return float(np.corrcoef([rankdata(v) for v in both])[0, 1])


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
    """Windows of one text: tokens and places [W, width], embeddings [W, e]; and which of them may be drawn."""

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


class Scored(NamedTuple):
    """A latent's score, NaN where too little was answered; its explanation; contexts that it is explained from and scored on, and what
    was predicted of these, NaN where there was no answer."""

    value: float
    explanation: Any
    seen: Contexts
    shown: Contexts
    guess: np.ndarray


def score(
    pools: tuple[Pool, Pool],
    latents: tuple[csc_array, csc_array],
    latent: int,
    explainer: Explainer,
    count: int,
    seed: int,
) -> Scored | None:
    """One latent, by columns of ``latents``, explained from the first pool and scored on the second; None where it is active in none of one."""
    rng, both = np.random.default_rng([seed, latent]), []
    for pool, f in zip(pools, latents, strict=True):
        mine = slice(f.indptr[latent], f.indptr[latent + 1])
        both.append(pool.contexts(f.indices[mine], f.data[mine], count, rng))
    seen, shown = both
    if seen is None or shown is None:
        return None
    explanation = explainer.explain(seen)
    guess = explainer.predict(explanation, shown)
    return Scored(agreement(guess, shown.peaks), explanation, seen, shown, guess)


@dataclass(frozen=True)
class Text:
    """A text to read latents on, as artifacts: residuals of its tokens, and sentence embeddings of its windows."""

    harvest: Artifact
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
    rest: dict[str, Any] = {"label": 0, "split": "train", "slice": "", "transform": "plain"}
    examples.write(out, [Example(text=t, base=str(i), group=i, **rest) for i, t in enumerate(texts)])


def pools_of(texts: tuple[Text, Text], layer: int, width: int) -> tuple[Pool, Pool]:
    """Pools to explain from and to score on; a window of the second that also stands in the first is not drawn."""
    first, second = (
        Pool(activations.read(t.harvest, layer), width, load_file(t.vectors.path / "embeddings.safetensors")["x"])
        for t in texts
    )
    known = {row.tobytes() for row in first.tokens}
    second.drawn = np.array([row.tobytes() not in known for row in second.tokens])
    return first, second


@result
def evaluate(
    sae: Artifact,
    texts: tuple[Text, Text],
    layer: int,
    explainer: Explainer,
    section: AutointerpSection,
    seed: int,
    every: bool = False,
) -> dict[str, Any]:
    """Step: {uniform, weighted: as :func:`lib.stats.weighted_means`; latents, live, tokens, windows; latent, score, fired, stratum: lists, one entry for each
    of ``section.latents`` sampled ones, or of ``every`` one that fires; sizes of strata}, explained from the first text and scored on the second.

    A score is None where the latent is active in none of one of the texts, or half of the questions had no answer; ``unanswered`` counts
    these questions. ``fired`` counts tokens of both texts.
    """
    pools, trained = pools_of(texts, layer, section.window), training.load(sae)
    return of_columns(pools, tuple(pool.latents(trained) for pool in pools), explainer, section, seed, every)


def of_columns(
    pools: tuple[Pool, Pool],
    latents: tuple[csc_array, csc_array],
    explainer: Explainer,
    section: AutointerpSection,
    seed: int,
    every: bool = False,
) -> dict[str, Any]:
    """What :func:`evaluate` says of any columns of activations, a trained SAE's or others'. ValueError if none fires."""
    fired = sum(np.diff(f.indptr) for f in latents)
    if not fired.any():
        raise ValueError("no latent fires on this text: raise autointerp.tokens")
    size = len(fired) if every else section.latents
    which, stratum, sizes = sample(fired, size, np.random.default_rng(seed))
    jobs = (delayed(score)(pools, latents, i, explainer, section.examples, seed) for i in which.tolist())
    done = Parallel(explainer.at_once, prefer="threads")(jobs)
    scores = np.array([np.nan if one is None else one.value for one in done], float)
    unanswered = sum(int(np.isnan(one.guess).sum()) for one in done if one is not None)
    if np.isnan(scores).all():
        raise ValueError("no latent could be scored: raise autointerp.tokens, or see whether the endpoint answers")
    points = {"latent": which, "fired": fired[which], "stratum": stratum, "sizes": sizes}
    return (
        weighted_means(scores, fired[which], stratum, sizes)
        | points
        | {
            "score": [None if np.isnan(s) else round(s, 4) for s in scores],
            "latents": len(fired),
            "live": int((fired > 0).sum()),
            "tokens": sum(len(pool.window) for pool in pools),
            "windows": [len(pool.tokens) for pool in pools],
            "unanswered": unanswered,
        }
    )


@result
def look(
    sae: Artifact,
    texts: tuple[Text, Text],
    lm: Pinned,
    layer: int,
    explainer: Explainer,
    section: AutointerpSection,
    seed: int,
    latents: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Step: [{latent, score, explanation, seen, shown: [{tokens, values, level, predicted}]}] of the ``latents`` asked for, as
    :func:`evaluate` scores them: why each got its score. ``predicted`` and ``level`` are on the scale of 0 to 10, None where there
    was no answer; score is None where one cannot be scored."""
    pools, trained = pools_of(texts, layer, section.window), training.load(sae)
    columns = tuple(pool.latents(trained) for pool in pools)
    tokenizer, found = model.tokenizer(lm), list[dict[str, Any]]()
    for latent in latents:
        done = score(pools, columns, latent, explainer, section.examples, seed)
        if done is None:
            found.append({"latent": latent, "score": None, "explanation": "", "seen": [], "shown": []})
            continue
        said = explainer.told(done.explanation, tokenizer)
        one: dict[str, Any] = {
            "latent": latent,
            "score": None if np.isnan(done.value) else done.value,
            "explanation": said,
        }
        for name, contexts, guess in (("seen", done.seen, 0 * done.seen.peaks), ("shown", done.shown, done.guess)):
            levels = [LEVELS * v / max(float(np.nanmax(v)), 1e-9) for v in (contexts.peaks, guess)]
            one[name] = [
                {
                    "tokens": token_texts(tokenizer, tokens[tokens >= 0]),
                    "values": values[tokens >= 0],
                    "level": round(level),
                    "predicted": None if np.isnan(predicted) else round(predicted),
                }
                for tokens, values, level, predicted in zip(contexts.tokens, contexts.values, *levels, strict=True)
            ]
        found.append(one)
    return found
