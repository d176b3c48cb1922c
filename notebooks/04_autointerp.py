# %% [markdown]
# # 04 · Can latents be explained, and does it matter how often they fire?
#
# The *latents* of a sparse autoencoder (SAE) are meant to be readable: one might fire on “bank” after “river”, and on nothing else. To check
# thousands of them one lets a program read. *Autointerp* explains a latent from texts on which it fires, then predicts from the
# explanation alone how strongly it fires on other texts. The score is the rank correlation (Spearman's) of prediction and truth: one if the
# order is right, nought if the explanation says nothing.
#
# Such scores are usually averaged over latents. Then a latent that fires on every tenth token counts as much as one that fires once a book.
# [Smith et al. 2025](https://www.alignmentforum.org/posts/4uXCAJNuPKtKBsi28/negative-results-for-saes-on-downstream-tasks), "the post",
# average over *firings* instead: they draw latents in proportion to how often they fire. Does that change which SAE looks better? We ask it of
# SAEs of four kinds at two sparsities. *L0* is the number of active latents a token; at an L0 of ninety most SAEs have a tail of latents
# that fire on a tenth of tokens and more. The *quadratic-frequency* penalty (QF) of [notebook 05](05_quadratic_frequency.ipynb) is made to remove them.
#
# **In short.** It matters how one averages, but not as in the post. Over firings a QF and a JumpReLU SAE at an L0 of ninety are level; over latents JumpReLU is ahead. Latents that fire on a few tokens in
# a thousand to one in a hundred are explained best. Rarer ones score lower in every SAE, at least in part because there is less text to explain them from; more frequent ones
# score lower in JumpReLU SAEs only. So that interpretability falls with frequency is **not reproduced**, and the other two claims stay open.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "training.latents": 1024}

# %% tags=["hide-input"]
import functools
import itertools
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any, NamedTuple, Self

import matplotlib.pyplot as plt
import numpy as np
import openai
import torch
from IPython.display import display
from joblib import Parallel, delayed
from safetensors.numpy import load_file
from scipy.sparse import csc_array, csr_array, vstack
from scipy.stats import rankdata, spearmanr

from lib import claims, config, figures, pages, stats, store, wheels
from lib.config import AutointerpSection
from lib.latents.cards import token_texts
from lib.lm import activations, harvest, model, sequences
from lib.lm.model import Pinned
from lib.lm.residual import residuals
from lib.pages import expect
from lib.probes import views
from lib.sae import training
from lib.sae.metrics import HIGH
from lib.sae.variants import SAE, SAEConfig, make
from lib.store import Artifact, cached, result
from lib.study import open_study
from lib.texts import corpora, examples
from lib.texts.examples import Example

study = open_study(profile, overrides, frozen)
p, a = study.profile, study.profile.autointerp
pages.banner(profile, overrides)

# %% [markdown]
# ## The method: explain, predict, compare
#
# Our default explainer needs no language model. In the manner of Neuron-to-Graph ([Foote et al. 2023](https://arxiv.org/abs/2305.19911)) it notes how
# strongly a latent fires on each token, and on each token after a certain other one. An explainer is a class of two methods; a language model behind any
# OpenAI-compatible endpoint is another one, below.

# %% tags=["hide-input"]
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


# %%
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


# %%
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


# %% [markdown]
# Tried on a planted latent that fires on “bank”, and more strongly after “river”. It is explained from three windows of text and scored on three
# others, which it ranks right. As a control, the same three activations dealt out to the wrong windows: the score turns negative.

# %%
WORDS = ["the", "river", "bank", "robbed"]


def planted_in(texts, values):
    """Contexts of three words each."""
    tokens = np.array([[WORDS.index(word) for word in text.split()] for text in texts])
    return Contexts(tokens, np.array(values, float), np.broadcast_to(np.arange(3), tokens.shape), np.zeros((3, 1)))


seen = planted_in(["the river bank", "river bank robbed", "robbed the bank"], [(0, 0, 2), (0, 2, 0), (0, 0, 0.5)])
others = ["the bank robbed", "robbed river bank", "the river robbed"]
planted, dealt = (
    planted_in(others, values) for values in ([(0, 0.5, 0), (0, 0, 2), (0, 0, 0)], [(0, 2, 0), (0, 0, 0), (0, 0.5, 0)])
)
guess = Tokens().predict(Tokens().explain(seen), planted)
right, wrong = agreement(guess, planted.peaks), agreement(guess, dealt.peaks)
expect(
    right > 0.99 and wrong < 0,
    "the planted latent is scored right, and with activations dealt to the wrong windows it is not",
)

# %% tags=["hide-input"]
pages.table(
    (
        (text, f"{g:g}", f"{true:g}", f"{other:g}")
        for text, g, true, other in zip(others, guess, planted.peaks, dealt.peaks, strict=True)
    ),
    ("window", "predicted", f"planted (score {right:.2f})", f"dealt wrongly (score {wrong:.2f})"),
)

# %% [markdown]
# Some latents mark a place in the text, or its subject, which no token tells. So there are two more *forms* of explanation: the mean at each place of a text, and the direction
# of sentence embeddings (MiniLM) along which a latent's peaks rise. Of the three forms the one is taken that predicts best from one half to the other of the
# contexts that it is explained from.


# %% tags=["hide-input"]
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


# %% [markdown]
# A context is a window of at most thirty-two tokens of held-out chat. Conversations are dealt into two halves: from one a latent is explained, on the other it is scored. From each
# it gets thirty windows: its strongest ten, ten spread over the quantiles of the others in which it is active, ten in which it is silent. A rare latent gets as many as there are.
# Of each SAE four hundred latents that fire are sampled, by strata of frequency, and weighted so that the means over latents and over firings are those of all.


# %% tags=["hide-input"]
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


# %% tags=["hide-input"]
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
        raise ValueError("no latent fires on this text: raise tokens")
    size = len(fired) if every else section.latents
    which, stratum, sizes = stats.sample(fired, size, np.random.default_rng(seed))
    jobs = (delayed(score)(pools, latents, i, explainer, section.examples, seed) for i in which.tolist())
    done = Parallel(explainer.at_once, prefer="threads")(jobs)
    scores = np.array([np.nan if one is None else one.value for one in done], float)
    unanswered = sum(int(np.isnan(one.guess).sum()) for one in done if one is not None)
    if np.isnan(scores).all():
        raise ValueError("no latent could be scored: raise tokens, or see whether the endpoint answers")
    points = {"latent": which, "fired": fired[which], "stratum": stratum, "sizes": sizes}
    return (
        stats.weighted_means(scores, fired[which], stratum, sizes)
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


# %% [markdown]
# A language model is asked by the post's protocol: explain from marked excerpts, then say a level for each of the others, by the explanation alone. With
# `overrides = {"autointerp.model": "NAME"}` and `OPENAI_BASE_URL`, `OPENAI_API_KEY` set, the SAEs' means, the curves and the latent of your choice are made so (planted latents, the
# control with less text and the comparison of judges stay as they are, and the claims are about counting). Answers are kept; what cannot be read counts as no answer. A judge sees windows
# in a drawn order. The prompts are `data/prompts/explain.txt` and `judge.txt`.

# %% tags=["hide-input"]
EXPLAIN, JUDGE = (
    (config.ROOT / "data" / "prompts" / f"{name}.txt").read_text(encoding="utf-8") for name in ("explain", "judge")
)
LEVEL = re.compile(r"^[^\d\n]*(\d+)[ \t]*[:.)=-][ \t]*(\d+)[^\d\n]*$", re.MULTILINE)  # "3: 7", on one line
REFUSED = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError, openai.BadRequestError)


class EndpointError(config.Expected, RuntimeError):
    """An endpoint that cannot be used as it was asked: says why, and what to set."""


@functools.cache
def _client(url: str, timeout: float, retries: int) -> openai.OpenAI:
    key = os.environ.get("OPENAI_API_KEY") or "none"  # which servers at home take
    return openai.OpenAI(base_url=url or None, api_key=key, timeout=timeout, max_retries=retries)


@dataclass(frozen=True)
class Endpoint(Explainer):
    """The model ``name`` at ``url`` ("": OpenAI's own), its key in $OPENAI_API_KEY. Time-outs, refusals for haste (429) and errors of the
    server are tried again ``retries`` times, ever later; what fails then, or cannot be read, is no answer. Each answer is kept
    under its question in the cache, so that a run that is repeated asks for nothing. ``lm``'s tokenizer makes the texts."""

    name: str
    url: str
    lm: Pinned
    at_once: int = 8
    timeout: float = 120.0
    retries: int = 5
    prompts: tuple[str, str] = (EXPLAIN, JUDGE)

    def _asked(self, prompt: str) -> str:
        """The answer to a prompt, "" where there was none; EndpointError if the endpoint takes no such questions at all."""
        asked = {"model": self.name, "messages": [{"role": "user", "content": prompt}], "temperature": 0.0}
        kept = config.cache_dir() / "answers" / f"{store.digest([self.url, asked])}.json"
        if kept.is_file():
            return str(json.loads(kept.read_text(encoding="utf-8"))["answer"])
        try:
            said: Any = _client(self.url, self.timeout, self.retries).chat.completions.create(**asked)  # type: ignore[call-overload]
            answer = str(said.choices[0].message.content or "").strip()
        except REFUSED as error:
            where = self.url or "api.openai.com"
            remedy = "look at OPENAI_BASE_URL, OPENAI_API_KEY and model"
            raise EndpointError(f"{where} refuses {self.name}: {error.message[:200]}: {remedy}") from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError):
            return ""
        if answer:
            store.write_atomic(kept, json.dumps({"asked": asked, "answer": answer}))
        return answer

    def explain(self, seen: Contexts) -> str:
        """A sentence; "" where there was no answer."""
        tokenizer, top, lines = model.tokenizer(self.lm), max(float(seen.peaks.max()), 1e-9), []
        for number, (tokens, values) in enumerate(zip(seen.tokens, seen.values, strict=True), 1):
            levels = np.round(LEVELS * values[tokens >= 0] / top).astype(int).tolist()
            texts = zip(token_texts(tokenizer, tokens[tokens >= 0]), levels, strict=True)
            lines.append(f"{number}: " + "".join(f"<<{text}>>({level})" if level else text for text, level in texts))
        return self._asked(Template(self.prompts[0]).safe_substitute(contexts="\n".join(lines), most=LEVELS))

    def predict(self, explanation: str, shown: Contexts) -> np.ndarray:
        tokenizer, found = model.tokenizer(self.lm), np.full(len(shown.tokens), np.nan)
        if not explanation:
            return found
        drawn = np.random.default_rng(len(found)).permutation(
            len(found)
        )  # contexts come strongest first, which would tell
        texts = ("".join(token_texts(tokenizer, tokens[tokens >= 0])) for tokens in shown.tokens[drawn])
        lines = "\n".join(f"{number}: {text}" for number, text in enumerate(texts, 1))
        values = {"contexts": lines, "explanation": explanation, "most": LEVELS, "count": len(found)}
        for number, level in LEVEL.findall(self._asked(Template(self.prompts[1]).safe_substitute(values))):
            if 1 <= int(number) <= len(found) and int(level) <= LEVELS and np.isnan(found[drawn[int(number) - 1]]):
                found[drawn[int(number) - 1]] = int(level)
        return found


# %% tags=["hide-input"]
def halves_of(study):
    """Held-out chat in two halves, each of other conversations: to explain latents from, and to score explanations on."""
    found = []
    size = p.corpora.model_copy(update={"eval_tokens": a.tokens})
    for which in (0, 1):
        part = half(study.documents("chat"), which)
        read = harvest.harvest(sequences.text(part, study.lm, size, "eval", None), study.lm, (p.layer,))
        shown = windows(read, study.lm, p.layer, a.window)
        found.append(Text(read, views.embeddings(shown, wheels.wheel_hash(wheels.EMBEDDER_WHEEL[0]))))
    return tuple(found)


halves = halves_of(study)
explainer = Endpoint(a.model, os.environ.get("OPENAI_BASE_URL", ""), study.lm) if a.model else Best()


def explained(sae, run, name, **how):
    """Scores of an SAE; every second run takes the halves the other way round."""
    how = {"explainer": explainer, **how}
    return evaluate(sae, halves[:: -1 if run % 2 else 1], p.layer, section=a, seed=p.seed + run, name=name, **how)


# %% [markdown]
# ## The comparison
#
# SAEs on chat of four kinds, JumpReLU with the plain penalty on L0, with QF, TopK and Gated, each at the sparsity of [notebook 02](02_probing.ipynb) and *denser*,
# at an L0 of about ninety; and two that have read other text, *IT* and *pretraining* (notebook 01). Another SAE is one more line.

# %%
few = range(p.saes.level_seeds)
saes = {
    "IT": study.saes["IT"][: len(few)],
    "pretraining": study.saes["pretraining"][: len(few)],
    "JumpReLU": study.saes["chat"][: p.saes.fewer_seeds],
    "QF": study.saes["QF"],
    "TopK": study.saes["TopK"],
    "Gated": study.saes["Gated"],
} | {f"{name}, denser": trained for name, trained in study.denser.items()}
scores = store.values(
    {
        name: [explained(sae, run, f"04_{name.replace(', ', '_')}_{run}") for run, sae in enumerate(trained)]
        for name, trained in saes.items()
    }
)

# %% [markdown]
# ## Three latents
#
# Of one JumpReLU SAE: the one that is explained best, the one that fires most often, and, of those that fire on three to thirty tokens in a thousand, the one that is explained
# worst. The two strongest windows of either half; a pattern “a|b” is token b after token a.

# %% tags=["hide-input"]
first = scores["JumpReLU"][0]
in_first = [
    (s, n / first["tokens"], i)
    for i, s, n in zip(first["latent"], first["score"], first["fired"], strict=True)
    if s is not None
]
three = (
    max(x for x in in_first if 0.003 < x[1] < 0.03)[2],
    max(in_first, key=lambda x: x[1])[2],
    min(x for x in in_first if 0.003 < x[1] < 0.03)[2],
)
cards = look(saes["JumpReLU"][0], halves, study.lm, p.layer, explainer, a, p.seed, three, name="04_cards").value
often = {i: f for _, f, i in in_first}
for one in cards:
    display(
        pages.card(
            f"Latent {one['latent']}, on {often[one['latent']]:.1%} of tokens; explained by {one['explanation']!r}; score {one['score']:.2f}",
            {"explained from": one["seen"][:2], "scored on": one["shown"][:2]},
        )
    )

# %% [markdown]
# A latent that fires very often need not be a riddle: this one marks the first places of a text, which no token would tell. And one that scores low may be readable: the last
# fires on “calculate”, “compute” and their kin. But “calculates” and “Calculating”, which it is explained from, do not stand in the other half, and “Calcul”, “calculate” and “Comput”,
# which do, are other tokens.

# %%
expect(
    cards[0]["score"] > 0.9 and cards[1]["explanation"].startswith("places") and cards[1]["score"] > 0.8,
    "the most frequent latent marks places, and is explained by them",
)
expect(
    cards[2]["score"] < 0 and "calculates" in cards[2]["explanation"],
    "the worst one has patterns that do not carry over",
)

# %% [markdown]
# ## Which SAE is explained better?


# %%
def both(entries):
    """{over latents, over firings: mean over seeds with its interval} of an SAE kind's results."""
    return {said: stats.over_seeds([e[key]["mean"] for e in entries]) for said, key in SCHEMES.items()}


SCHEMES = {"over latents": "uniform", "over firings": "weighted"}
found = {name: both(entries) for name, entries in scores.items()}
ranked = sorted(saes, key=lambda name: -found[name]["over latents"]["mean"])
axis = figures.forest({name: found[name] for name in ranked}, "mean")
axis.set(
    xlabel="mean score (Spearman correlation of predicted and true activation)",
    ylabel="SAE",
    title="Averaged over firings, all but JumpReLU SAEs score higher",
)
pages.publish(
    axis.figure,
    "04_means",
    "Mean autointerp score of ten kinds of SAE, over latents and over firings, best over latents first. Only JumpReLU SAEs gain nothing over "
    "firings. Dots: SAE seeds; bars: 95 %, over seeds.",
    alt="Ten rows of two points: over firings all SAEs but the two JumpReLU ones score higher than over latents.",
)
by_firings = sorted(saes, key=lambda name: -found[name]["over firings"]["mean"])
gain = {name: e["over firings"]["mean"] - e["over latents"]["mean"] for name, e in found.items()}
expect(
    all((gain[name] > 0.015) == (not name.startswith("JumpReLU")) for name in saes),
    "over firings all kinds but JumpReLU score higher than over latents",
)
expect(
    ranked.index("JumpReLU, denser") == 1 and by_firings.index("JumpReLU, denser") == 6,
    "over latents the denser JumpReLU SAE is second of ten, over firings seventh",
)
expect(
    by_firings[0] == "Gated" and ranked.index("Gated") > 3,
    "over firings Gated comes first, over latents it is in the middle",
)
expect(
    {*ranked[-2:]} == {*by_firings[-2:]} == {"IT", "pretraining"},
    "by either mean the two SAEs that never read chat come last",
)

# %% [markdown]
# So it matters how one counts, as the post says, though not in its direction: over latents the denser JumpReLU SAE is second of ten, well ahead of its QF counterpart; over firings it is
# seventh, level with it. Gated comes first over firings only. What does not depend on it: SAEs that never read chat are explained worse on chat.
#
# Means are over latents that fire in both halves, .93 to all of those that fire at all. If the others scored nought, the denser JumpReLU SAE would be fifth over latents, ahead of its QF counterpart still, and JumpReLU
# SAEs too would score a little higher over firings.

# %%
at_worst = {
    name: stats.over_seeds([e["uniform"]["bounds"][0] for e in of]) for name, of in scores.items()
}  # unscored latents as 0
lead = stats.over_seeds(
    [
        x["uniform"]["bounds"][0] - y["uniform"]["bounds"][0]
        for x, y in zip(scores["JumpReLU, denser"], scores["QF, denser"], strict=True)
    ]
)
expect(
    sorted(at_worst, key=lambda name: -at_worst[name]["mean"]).index("JumpReLU, denser") == 4
    and lead["interval"][0] > 0
    and all(
        0 < found[name]["over firings"]["mean"] - at_worst[name]["mean"] < 0.03
        for name in ("JumpReLU", "JumpReLU, denser")
    ),
    "with what is not scored as nought denser JumpReLU is fifth, ahead of QF, and gains a little over firings",
)
expect(
    all(
        np.mean([e["uniform"]["scored"] for e in scores[name]]) > 0.925
        for label in ("", ", denser")
        for name in (f"JumpReLU{label}", f"QF{label}", f"TopK{label}", f"Gated{label}")
    ),
    "more than .925 of the latents that fire are scored",
)

# %% [markdown]
# ## Does a latent that fires often score lower?

# %%
EDGES = 10.0 ** np.arange(-4.5, 0.1, 0.5)


def by_frequency(entries):
    """(frequency, mean over seeds) of latents in bands of half a decade, of those in which every seed has five scored latents."""
    rows = []
    for low, high in itertools.pairwise(EDGES):
        seeds = []
        for e in entries:
            weight = np.array(e["sizes"])[e["stratum"]] / np.bincount(e["stratum"])[e["stratum"]]
            frequency, value = np.array(e["fired"]) / e["tokens"], np.array(e["score"], float)
            here = (frequency >= low) & (frequency < high) & ~np.isnan(value)
            seeds.append(np.average(value[here], weights=weight[here]) if here.sum() >= 5 else np.nan)
        if not np.isnan(seeds).any():
            rows.append((np.sqrt(low * high), stats.over_seeds(seeds)))
    return rows


two = {"L0 25 to 50": ("JumpReLU", "QF", "TopK", "Gated")}
two["L0 about 90"] = tuple(f"{name}, denser" for name in two["L0 25 to 50"])
axes = figures.panels(list(two), columns=2, x="firing frequency (share of tokens)", y="mean score", height=3.4)
for label, axis in axes.items():
    figures.curves(
        {name.removesuffix(", denser"): line for name in two[label] if (line := by_frequency(scores[name]))},
        "mean",
        axis=axis,
        ticks=(1e-4, 1e-2, 1e-1),
    )
    axis.axvspan(HIGH, 1, **figures.SHADE)
    figures.name_ends(axis)
figure = axes["L0 about 90"].figure
figures.headed(figure, "Explained best in the middle; only JumpReLU falls towards the frequent end")
pages.publish(
    figure,
    "04_by_frequency",
    "Mean score of latents by how often they fire, at two sparsities. Rare latents score low, those on some tokens in a thousand high; beyond, JumpReLU falls. "
    "Thin lines: SAE seeds; shaded: a tenth of tokens or more.",
    alt="Two panels of curves that rise with firing frequency up to a hundredth of tokens; those of JumpReLU then fall, the others stay level or rise.",
)
banded = {
    name: {f"{at:.1e}": e["mean"] for at, e in by_frequency(scores[name])} for label in two for name in two[label]
}
peak = {name: max(of.values()) for name, of in banded.items()}
expect(
    all(
        min(of.values()) < peak[name] - 0.1 and list(of.values()).index(min(of.values())) == 0
        for name, of in banded.items()
    ),
    "in every SAE the rarest latents score lowest, by a tenth and more",
)
fall = {name: peak[name] - list(of.values())[-1] for name, of in banded.items()}
expect(
    min(fall["JumpReLU"], fall["JumpReLU, denser"]) > 0.12
    and max(value for name, value in fall.items() if not name.startswith("JumpReLU")) < 0.12,
    "JumpReLU's most frequent latents score more than .12 below its best, no other kind's do",
)

# %% [markdown]
# In JumpReLU SAEs latents that fire on a few tokens in a hundred and more score .15 to .25 lower than those on a few in a thousand, as the post finds. In no other kind do they, and
# in Gated SAEs the most frequent latents are the best explained. In all of them the rarest score lowest. Is that the latents, or the text? A rare latent has a few windows to be
# explained from. As a control, a hundred latents that fire on three to thirty tokens in a thousand (the rarest of such) are explained anew, and scored, on less and less text.


# %% tags=["hide-input"]
@cached
def half_trained(out, config, source, layer, section, seed, stays):
    """Step: an SAE trained as the others are, but that the tensor ``stays`` never moves."""
    read = activations.read(source, layer, seed)
    sae = make(config, read.width)
    sae.initialise(training.sample(read, seed), torch.Generator().manual_seed(seed))
    getattr(sae, stays).register_hook(torch.zeros_like)
    trainee = training.Trainee(sae, section)
    training.fit([trainee], read, seed)
    if trainee.error is not None:
        raise trainee.error
    training.save(trainee.sae, trainee.log, out)


@cached
def random_directions(out, like, harvested, layer, seed):
    """Step: an SAE whose latents read random directions, each as often as the latent of ``like`` in whose place it stands."""
    sae, source = training.load(like), activations.read(harvested, layer)
    x = source.gather(np.random.default_rng(seed).permutation(len(source))[:20_000]) / sae.scale
    with torch.inference_mode():
        silent = (sae.encode(x * sae.scale) == 0).float().mean(0)
        made = make(SAEConfig(variant="jumprelu", latents=len(silent)), x.shape[1])
        made.W_enc.copy_(
            torch.nn.functional.normalize(
                torch.randn(made.W_enc.shape, generator=torch.Generator().manual_seed(seed)), dim=0
            )
        )
        ordered = ((x - x.mean(0)) @ made.W_enc).sort(0).values
        at = (silent * (len(x) - 1)).round().long()
        made.b_enc.copy_(-ordered.gather(0, at[None])[0] - x.mean(0) @ made.W_enc)
        made.theta.fill_(1e-6)
        made.scale.copy_(sae.scale)
    training.save(made, [], out)


@cached
def bigrams(out, latents, harvested, layer, seed):
    """Step: an SAE of bigrams and a basis. Two latents for each direction of a random basis, one either way, rebuild everything; each
    of the others looks for one frequent pair of tokens, by a linear discriminant, as often as it occurs, and writes nothing."""
    source, rng = activations.read(harvested, layer), np.random.default_rng(seed)
    d, latents = source.width, max(latents, 3 * source.width)  # at small sizes there would be no room for pairs
    token, sequence = source.column("token").astype(np.int64), source.column("sequence")
    pair = np.where(sequence[1:] == sequence[:-1], token[:-1] << 32 | token[1:], -1)
    known, count = np.unique(pair[pair >= 0], return_counts=True)
    wanted = known[np.argsort(-count, kind="stable")[: latents - 2 * d]]
    x = source.gather(rng.permutation(len(source))[:40_000])
    scale = x.square().sum(1).mean().sqrt()
    x, mean = x / scale, x.mean(0) / scale
    order = np.argsort(pair, kind="stable")
    starts = np.searchsorted(pair[order], wanted)
    ends = np.searchsorted(pair[order], wanted, side="right")
    centres = torch.stack(
        [source.gather(order[i : min(j, i + 200)] + 1).mean(0) for i, j in zip(starts, ends, strict=True)]
    )
    within = torch.cov(x.T) + 1e-5 * x.var(0).mean() * torch.eye(d)
    towards = torch.linalg.solve(within, (centres / scale - mean).T)
    towards /= towards.norm(dim=0)
    ordered = (x @ towards).sort(0).values
    rate = torch.from_numpy((ends - starts) / len(source)).float()
    at = ((1 - rate) * (len(x) - 1)).round().long()
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed))).Q
    sae = make(SAEConfig(variant="jumprelu", latents=latents), d)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([basis, -basis, towards], 1))
        sae.b_enc.copy_(torch.cat([-mean @ basis, mean @ basis, -ordered.gather(0, at[None])[0]]))
        sae.W_dec.copy_(torch.cat([basis.T, -basis.T, torch.zeros(latents - 2 * d, d)]))
        sae.b_dec.copy_(mean)
        sae.theta.fill_(1e-6)
        sae.scale.copy_(scale)
    training.save(sae, [], out)


# %%
chats, topk = study.activations("chat", "train"), study.sae("topk", k=p.saes.k)
floors = {
    "frozen decoder": [half_trained(topk, chats, p.layer, p.training, p.seed + run, "W_dec") for run in few],
    "random directions": [random_directions(study.denser["JumpReLU"][run], chats, p.layer, run) for run in few],
    "bigrams and a basis": [bigrams(p.training.latents, chats, p.layer, run) for run in few],
}
early = {
    f"{said} of the steps": [study.train("chat", study.jumprelu(), run=run, share=share) for run in few]
    for said, share in {"an eighth": 1 / 8, "half": 1 / 2}.items()
}
beside = store.values(
    {
        name: [explained(sae, run, f"04_{name.replace(' ', '_')}_{run}") for run, sae in enumerate(trained)]
        for name, trained in (floors | early).items()
    }
)
found |= {name: both(entries) for name, entries in beside.items()}
quality = store.values(
    {
        name: study.evaluate(one, "chat", f"04_quality_{name.replace(' ', '_')}")
        for name, one in {
            **{kind: trained[0] for kind, trained in study.denser.items()},
            "bigrams and a basis": floors["bigrams and a basis"][0],
        }.items()
    }
)

# %% tags=["hide-input"]
SUBJECTS = {
    "programming": " code function python javascript program variable array class html database",
    "food": " food recipe cook eat meal chicken sugar restaurant coffee bread",
    "money": " money price market sales customers investment financial cost business budget",
    "health": " health patient medical disease treatment doctor pain cancer symptoms body",
}


def columns_of(pool, kind, number, tokenizer, rng):
    """Values [tokens] of a planted latent on a pool: graded by token, by pair of tokens, by place, by words of a subject."""
    token = pool.tokens[pool.window, pool.offset]
    before = np.where(pool.offset > 0, np.roll(token, 1), -1)
    if kind == "place":
        return np.clip(4 - np.abs(pool.places[pool.window, pool.offset] - 6 * number), 0, None)
    if kind == "subject":
        ids = [tokenizer.encode(" " + word, add_special_tokens=False) for word in SUBJECTS[number].split()]
        said = np.isin(token, [one[0] for one in ids if len(one) == 1])
        return np.bincount(pool.window, said, len(pool.tokens))[pool.window]  # on every token of the window
    strength = dict(zip(number, (1.0, 2.0, 3.0, 4.0), strict=True))
    of = zip(before.tolist(), token.tolist(), strict=True) if kind == "pair" else token.tolist()
    return np.array([strength.get(one, 0.0) for one in of])


@result
def planted(texts, lm, layer, section, seed):
    """Step: rows {kind, explainer, scores}: of latents that are planted, one column each, and of dealt-out copies."""
    pools, tokenizer = pools_of(texts, layer, section.window), model.tokenizer(lm)
    flat = pools[0].tokens[pools[0].window, pools[0].offset]
    rng, often = np.random.default_rng(seed), np.bincount(flat)
    medium = np.flatnonzero((often > len(flat) / 2000) & (often < len(flat) / 100))
    same = pools[0].offset[1:] > 0
    pairs, count = np.unique(np.stack([flat[:-1][same], flat[1:][same]], 1), axis=0, return_counts=True)
    frequent = pairs[np.argsort(-count, kind="stable")[:200]].tolist()
    kinds = {
        "token": [rng.choice(medium, 4, replace=False).tolist() for _ in range(8)],
        "pair": [[tuple(frequent[i]) for i in rng.choice(len(frequent), 4, replace=False)] for _ in range(8)],
        "place": list(range(1, 9)),
        "subject": list(SUBJECTS),
    }
    out = []
    for kind, numbers in kinds.items():
        made = [
            csc_array(np.stack([columns_of(pool, kind, n, tokenizer, rng) for n in numbers], 1).astype(float))
            for pool in pools
        ]
        dealt = (made[0], csc_array(made[1].toarray()[rng.permutation(made[1].shape[0])]))
        for name, both in {kind: made, f"{kind}, dealt out": dealt}.items():
            for explainer in (Best(), Tokens(), Places(), Topic()):
                done = [score(pools, both, i, explainer, section.examples, seed) for i in range(len(numbers))]
                scored = [one.value for one in done if one is not None]
                out.append({"kind": name, "explainer": type(explainer).__name__, "scores": scored})
    return out


planted_rows = planted(halves, study.lm, p.layer, a, p.seed, name="04_planted").value


# %% tags=["hide-input"]
@result
def tokens_seen(sae, texts, layer, explainer, section, seed, latents, shares):
    """Step: rows {share, scores} of the same latents where only a share of the windows of either half may be drawn; of shares that leave enough."""
    pools, trained, out = pools_of(texts, layer, section.window), training.load(sae), []
    columns, allowed = tuple(pool.latents(trained) for pool in pools), [pool.drawn for pool in pools]
    for share in shares:
        for pool, drawn in zip(pools, allowed, strict=True):
            pool.drawn = drawn & (np.random.default_rng(seed).random(len(drawn)) < share)
        if min(pool.drawn.sum() for pool in pools) < 2 * (section.examples // 3):
            continue  # too few windows to choose from
        done = [score(pools, columns, latent, explainer, section.examples, seed) for latent in latents]
        out.append({"share": share, "scores": [None if one is None else round(one.value, 4) for one in done]})
    return out


# %% tags=["hide-input"]
SHOWN, AROUND = 12, 4  # excerpts of either kind, and tokens on either side of the peak


@cached
def excerpts(out, sae, text, lm, layer, section, latents, seed):
    """Step: of each latent, as prompts to be embedded, excerpts about its peak in so many windows, and as many of windows in which it is silent."""
    pool, tokenizer = pools_of((text, text), layer, section.window)[0], model.tokenizer(lm)
    f, rng, found = pool.latents(training.load(sae)), np.random.default_rng(seed), []
    for latent in latents:
        peaks, at = np.zeros(len(pool.tokens)), np.zeros(len(pool.tokens), int)
        mine = slice(f.indptr[latent], f.indptr[latent + 1])
        for row, value in zip(f.indices[mine], f.data[mine], strict=True):
            if value > peaks[pool.window[row]]:
                peaks[pool.window[row]], at[pool.window[row]] = value, pool.offset[row]
        lengths = (pool.tokens >= 0).sum(1)
        for which in (np.flatnonzero(peaks), np.flatnonzero(peaks == 0)):
            which = which if len(which) else np.arange(len(peaks))  # active everywhere, or nowhere: a coin, then
            for i in rng.choice(which, SHOWN, replace=len(which) < SHOWN):
                centre = at[i] if peaks[i] else rng.integers(lengths[i])
                ids = pool.tokens[i, max(0, centre - AROUND) : centre + AROUND + 1]
                found.append(tokenizer.decode(ids[ids >= 0].tolist(), skip_special_tokens=True))
    rest = {"label": 0, "split": "train", "slice": "", "transform": "plain"}
    examples.write(out, [Example(text=t, base=str(i), group=i, **rest) for i, t in enumerate(found)])


@result
def intruders(vectors, latents, seed, trials=200):
    """Step: [share of trials] of each latent: of four excerpts on which it is active and one on which it is not, that one is the least like
    the others, by sentence embedding. Chance is a fifth."""
    x = load_file(vectors.path / "embeddings.safetensors")["x"].reshape(len(latents), 2, SHOWN, -1)
    rng, found = np.random.default_rng(seed), []
    for active, silent in x:
        right = 0
        for _ in range(trials):
            five = np.concatenate([active[rng.choice(SHOWN, 4, replace=False)], silent[rng.integers(SHOWN)][None]])
            right += np.argmin((five @ five.T).sum(1)) == 4
        found.append(right / trials)
    return found


@result
def minimal(sae, text, lm, layer, section, latents, seed, contexts=2):
    """Step: rows {latent, context, left}, by the real model, over a latent's strongest contexts: of how many tokens up to the peak, after the same opening of the
    template, it keeps half of its activation (median); and what share it keeps when the token one, two or three before the peak is another (mean)."""
    pool = pools_of((text, text), layer, section.window)[0]
    f, trained, loaded = pool.latents(training.load(sae)), training.load(sae), model.load(lm)
    rows, rng = sequences.read(text.harvest.arguments["sequences"]), np.random.default_rng(seed)
    sequence, position = pool.source.column("sequence"), pool.source.column("position")
    lengths, vocabulary = (1, 2, 3, 5, 9, 17, 400), pool.source.column("token")

    def active(texts, latent):
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(np.array(t)) for t in texts], batch_first=True)
        last = torch.tensor([len(t) - 1 for t in texts])
        x = residuals(loaded, ids.long(), (layer,))[layer][torch.arange(len(texts)), last]
        with torch.inference_mode():
            return trained.encode(x.float())[:, latent].numpy()

    def with_others(ids, back):
        """The text twice, its token ``back`` tokens before the last another."""
        texts = [ids.copy(), ids.copy()]
        for changed in texts:
            changed[-1 - back] = rng.choice(vocabulary)
        return texts

    out = []
    for latent in latents:
        mine = slice(f.indptr[latent], f.indptr[latent + 1])
        needed, left = [], []
        for row in f.indices[mine][np.argsort(-f.data[mine], kind="stable")][:contexts]:
            start, ids = rows.keep_start[sequence[row]], rows[sequence[row]][: position[row] + 1]
            kept = active([[*ids[:start], *ids[max(start, len(ids) - n) :]] for n in lengths], latent)
            needed.append(next(n for n, value in zip(lengths, kept, strict=True) if value >= kept[-1] / 2))
            if kept[-1] > 0 and len(ids) - start > 3:
                changed = active([text for back in (1, 2, 3) for text in with_others(ids, back)], latent)
                left.append(changed.reshape(3, 2).mean(1) / kept[-1])
        shares = np.mean(left, 0) if left else []
        out.append({"latent": latent, "context": np.median(needed), "left": shares})
    return out


# %%
sae, run = saes["JumpReLU"][0], 0
every = explained(sae, run, "04_every", every=True).value
sampled = [
    i
    for i, s, fired in zip(*(scores["JumpReLU"][0][n] for n in ("latent", "score", "fired")), strict=True)
    if s is not None and fired >= 4 * SHOWN
][:200]
by = {
    "counting, the best form": explained(sae, run, "04_by_best", explainer=Best()),
    "tokens and pairs only": explained(sae, run, "04_by_tokens", explainer=Tokens()),
    "sentence embedding": explained(sae, run, "04_by_topic", explainer=Topic()),
}
by = store.values(by)
common = [
    i
    for i, n, s in zip(*(scores["JumpReLU"][0][name] for name in ("latent", "fired", "score")), strict=True)
    if s is not None and 0.003 <= n / scores["JumpReLU"][0]["tokens"] < 0.03
][:100]
less = tokens_seen(
    sae,
    halves,
    p.layer,
    Best(),
    a,
    p.seed,
    tuple(common),
    (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
    name="04_less_text",
).value
embedder = wheels.wheel_hash(wheels.EMBEDDER_WHEEL[0])
shown = excerpts(sae, halves[1], study.lm, p.layer, a, tuple(sampled), p.seed)
spotted = intruders(views.embeddings(shown, embedder), tuple(sampled), p.seed, name="04_intruders").value
checked = minimal(sae, halves[1], study.lm, p.layer, a, tuple(sampled[::5][:40]), p.seed, name="04_minimal").value

# %%
spread = [(row["share"] * a.tokens / 1e3, [x for x in row["scores"] if x is not None]) for row in less]
entries = [(thousand, stats.over_seeds(of) | {"seeds": []}) for thousand, of in spread]  # over latents, not seeds
axis = figures.curves({"latents": entries}, "mean", ticks=(1, 2, 5, 10, 20, 40))
axis.set(
    xlabel="thousand tokens to explain from, and as many to score on",
    ylabel="mean score",
    title="The same latents, explained from less text, score lower",
)
pages.publish(
    axis.figure,
    "04_less_text",
    "Mean score of a hundred latents of one JumpReLU SAE, explained from and scored on less and less text. From a thousand tokens they score as low as rare "
    "latents do from all. Bars: 95 %, over latents.",
    alt="A curve that falls from right to left: with a sixty-fourth of the text the mean score is far lower.",
)

# %% [markdown]
# Explained from as little text as a rare latent has, these score about as low as rare ones do. So the low end of the curves says little about rare latents, and every mean over latents, which counts
# each of them in full, depends on how much text there is.

# %%
from_less = [np.mean([x for x in row["scores"] if x is not None]) for row in less]
expect(
    from_less[0] < from_less[-1] / 2 and all(np.diff(from_less) > 0),
    "explained from a sixty-fourth of the text the same latents score less than half as high",
)

# %% [markdown]
# ## What is the score worth?
#
# Latents that were planted: each fires on four tokens, on four pairs of tokens, at some places, or on windows that name a subject, more strongly on one than on the next. Each form of explanation
# should find its own, and the best form all of them; dealt out to other tokens of the half that is scored, none.

# %% tags=["hide-input"]
names = [type(one).__name__ for one in (Best(), Tokens(), Places(), Topic())]
by_kind = {(row["kind"], row["explainer"]): row["scores"] for row in planted_rows}
pages.table(
    (
        (kind, *(f"{np.mean(by_kind[kind, name]):.2f}" for name in names))
        for kind in dict.fromkeys(row["kind"] for row in planted_rows)
    ),
    ("planted latent", *names),
)

# %%
best_form = {kind: np.mean(of) for (kind, explainer_name), of in by_kind.items() if explainer_name == "Best"}
expect(
    min(best_form[kind] for kind in ("token", "pair", "place")) > 0.95 and 0.5 < best_form["subject"] < 0.7,
    "planted tokens, pairs and places score above .95, subjects about .6",
)
expect(
    all(abs(score_) < 0.1 for kind, score_ in best_form.items() if kind.endswith("dealt out")),
    "dealt out, all score within a tenth of nought",
)

# %% [markdown]
# What is told by a token, a pair or a place is found and scored near one; a subject only partly, as sentence embeddings of short windows blur it. Dealt out, all score near nought.
#
# And what scores without having learnt to mean anything: SAEs whose decoder stays random (*frozen decoder*), and random directions, each of which fires as often as a latent of the denser
# JumpReLU SAE.

# %%
kinds = ("JumpReLU, denser", "TopK", "frozen decoder", "random directions")
axis = figures.forest({name: found[name] for name in kinds}, "mean")
axis.set(
    xlabel="mean score",
    ylabel="SAE",
    title="A random direction is explained better than nothing, trained latents better",
)
pages.publish(
    axis.figure,
    "04_floors",
    "Mean score of two kinds of trained SAE and of what has learnt less or nothing. Random directions that fire as often score well above zero, over firings more so. "
    "Dots: seeds; bars: 95 %.",
    alt="Rows of two points: trained SAEs near .6, random directions at about .3 over latents and .45 over firings.",
)

# %% [markdown]
# A score of .3 or .4 is thus no sign of meaning: a random direction of the residual stream still tells tokens apart, as any projection of it does, and one that fires often more so. Set against
# that floor, trained latents gain less over firings than over latents (sparse Gated SAEs about as much), and an SAE whose decoder never learnt comes within a tenth of most SAEs on chat over firings.
#
# ## An SAE that games the mean
#
# The post thinks of an SAE that scores high over latents and is worth nothing. We built it: half of its latents each look for one frequent pair of tokens and write nothing; the others
# are a basis of the residual stream, each direction twice, one for either sign, and rebuild all of it.

# %%
one = beside["bigrams and a basis"][0]
axis = plt.subplots()[1]
frequency, value = np.array(one["fired"]) / one["tokens"], np.array(one["score"], float)
for number, (label, here) in enumerate({"pairs of tokens": frequency < HIGH, "basis": frequency >= HIGH}.items()):
    axis.plot(frequency[here], value[here], linestyle="none", label=label, alpha=0.6, **figures.look(label, number))
axis.set(
    xscale="log",
    xlabel="firing frequency (share of tokens)",
    ylabel="score",
    title="Pairs are explained well, the basis that does the work less",
)
axis.legend()
pages.publish(
    axis.figure,
    "04_bigrams",
    "Score against firing frequency of an SAE made by hand: latents that each find a pair of tokens and write nothing, and a basis, on about half of all tokens, that "
    "rebuilds everything. A point is a sampled latent.",
    alt="Two clouds: pairs at low frequency, most of them above .6; basis directions at half of all tokens, about .5.",
)

# %% tags=["hide-input"]
pages.table(
    (
        (name, f"{e['l0']:.0f}", f"{e['fvu']:.3f}", f"{e['high']:,}", pages.share(e["high_share"]))
        for name, e in quality.items()
    ),
    (
        "SAE, first seed, held-out chat",
        "L0",
        "FVU, variance unexplained",
        "fire on a tenth of tokens",
        "their share of firing",
    ),
)

# %%
games = found["bigrams and a basis"]
expect(
    games["over latents"]["mean"] > max(found[name]["over latents"]["mean"] for name in saes)
    and sum(games["over firings"]["mean"] < found[name]["over firings"]["mean"] for name in saes) > 7,
    "the SAE of bigrams scores higher than any trained one over latents, less than most over firings",
)
expect(quality["bigrams and a basis"]["fvu"] < 1e-4, "the basis rebuilds everything")
expect(
    all(80 < e["l0"] < 100 for name, e in quality.items() if name != "bigrams and a basis"),
    "the denser SAEs have an L0 of about ninety",
)

# %% [markdown]
# Over latents it scores higher than any trained SAE, over firings less than most, as the post supposes; against JumpReLU SAEs at an L0 of ninety neither difference is sure, with three
# of each (D3). Its pairs are found by a linear detector, and some of them badly, so it is not as pathological as one could wish.

# %%
steps = {1 / 8: "an eighth of the steps", 1 / 2: "half of the steps", 1.0: "JumpReLU"}
axis = figures.curves(
    {
        said: [
            (round(share * p.training.steps * p.training.batch / 1e3), found[name][said])
            for share, name in steps.items()
        ]
        for said in SCHEMES
    },
    "mean",
)
axis.set(
    xlabel="thousand tokens that the SAE was trained on",
    ylabel="mean score",
    title="Longer training: better over latents, not over firings",
)
figures.name_ends(axis)
pages.publish(
    axis.figure,
    "04_tokens_seen",
    "Mean score of chat SAEs of an eighth, half and all of the steps. Over latents more training helps, over firings it does not. Bars: 95 %, over seeds.",
    alt="Two short curves over the number of tokens that SAEs were trained on.",
)

# %% [markdown]
# An SAE of an eighth of the steps is explained a little worse over latents, and better over firings: longer training helps over latents only.
#
# ## Do other judges agree?
#
# Of one JumpReLU SAE, two hundred latents (of the sampled ones that fire on fifty tokens or so, the rarest) are judged in other ways: by tokens and pairs alone, by embedding alone, and by *intruders*: of four excerpts about its peaks and one in which it is silent, is
# that one the least like the others, by sentence embedding? That needs no explanation; chance is a fifth.

# %%
counting = dict(zip(by["counting, the best form"]["latent"], by["counting, the best form"]["score"], strict=True))
scorers = {name: dict(zip(e["latent"], e["score"], strict=True)) for name, e in by.items()}
scorers["intruders, no explanation"] = dict(zip(sampled, spotted, strict=True))


def rank(first, second):
    """Rank correlation of two scorers over the latents that both scored, with a 95 % interval (Fisher's z)."""
    shared = [i for i in sampled if first.get(i) is not None and second.get(i) is not None]
    r = float(spearmanr([first[i] for i in shared], [second[i] for i in shared]).statistic)
    ends = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) * 1.03 / np.sqrt(len(shared) - 3))
    return f"{r:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"


pages.table(
    (
        (name, f"{np.mean([v for i, v in of.items() if i in set(sampled) and v is not None]):.2f}", rank(counting, of))
        for name, of in scorers.items()
    ),
    ("scorer", "mean", "rank correlation with the first"),
)

# %% [markdown]
# Tokens and pairs do nearly all of it, an embedding ranks latents otherwise, and intruders agree weakly: sentence embeddings of nine tokens seldom see what a latent has in common.
#
# The real model can say what a latent needs. Of forty latents the text before the peak is cut off, further and further, until less than half of the activation is left.

# %%
of_judges = {
    name: spearmanr(*zip(*[(counting[i], of[i]) for i in sampled if None not in (counting[i], of[i])], strict=True))
    for name, of in scorers.items()
}
expect(
    of_judges["tokens and pairs only"].statistic > 0.9
    and max(of_judges[name].statistic for name in ("sentence embedding", "intruders, no explanation")) < 0.4,
    "tokens and pairs rank latents as the best form does, embeddings and intruders hardly",
)
groups = {"the token": (0, 1), "and the one before": (1, 2), "three to five": (2, 5), "more": (5, 999)}
pages.table(
    (
        (
            said,
            len(mine := [row["latent"] for row in checked if low < row["context"] <= high]),
            *(f"{np.mean([of[i] for i in mine]):.2f}" if mine else "" for of in list(scorers.values())[:3]),
        )
        for said, (low, high) in groups.items()
    ),
    ("needs", "latents", *list(scorers)[:3]),
)

# %%
short = [counting[row["latent"]] for row in checked if row["context"] <= 1]
longer = [counting[row["latent"]] for row in checked if row["context"] > 1]
expect(
    np.mean([row["context"] <= 2 for row in checked]) > 0.6 and np.mean(short) > np.mean(longer) + 0.1,
    "more than half need two tokens at most, and those that need one are explained best",
)

# %% [markdown]
# Most latents need no more than the token and the one before, as the explainer supposes; those for which the token alone is enough are explained best. Forty latents are few.
#
# ## Which latents count?
#
# Of the same SAE every latent that fires was scored once. Its means lie in the intervals of the sample's. A cut-off for rare latents, such as the post has, raises the mean over
# latents by up to .06, as much as SAEs differ; none is made on this page.

# %%
times, value = np.array(every["fired"]), np.array(every["score"], float)
pages.table(
    (
        (
            f"{least:,}",
            f"{(here := times >= least).sum():,}",
            f"{np.isnan(value[here]).sum():,}",
            f"{np.nanmean(value[here]):.3f}",
        )
        for least in (1, 3, 10, 30, 100)
    ),
    ("fires on at least so many tokens", "latents", "not scored", "mean over latents"),
)

# %%
for said, key in SCHEMES.items():
    low, high = scores["JumpReLU"][0][key]["interval"]
    expect(low < every[key]["mean"] < high, f"the mean {said} of every latent lies in the interval of the sample's")
cut_off = np.nanmean(value[times >= 100]) - np.nanmean(value)
expect(0.05 < cut_off < 0.08, "a cut-off at a hundred tokens raises the mean over latents by .06")

# %% [markdown]
# ## A latent of your choice
#
# Another number here, and another SAE, shows why that latent got its score: what it is explained from, and what was predicted on other windows.

# %%
latent = three[0]
(mine,) = look(saes["JumpReLU"][0], halves, study.lm, p.layer, explainer, a, p.seed, (latent,), name="04_mine").value
display(pages.card(f"Latent {latent}, explained by {mine['explanation']}", {"explained from": mine["seen"][:2]}))
pages.table(
    (
        (pages.literal("".join(c["tokens"][: 1 + int(np.argmax(c["values"]))])[-60:]), c["predicted"], c["level"])
        for c in mine["shown"][:: max(1, len(mine["shown"]) // 8)][:8]
    ),
    ("window that it is scored on, up to its peak", "predicted, 0 to 10", f"true (score {mine['score'] or 0:.2f})"),
)

# %% [markdown]
# ## The claims
#
# Each test was written down before these numbers were seen (`data/claims.yaml`, rows D, with what was known).


# %%
def gaps(first, second, key):
    """By run, how much higher the first SAE's mean is."""
    return np.array([x[key]["mean"] - y[key]["mean"] for x, y in zip(first, second, strict=False)])


def part(values):
    return (entry := stats.over_seeds(values)) | {"difference": entry["mean"]}


qf, plain, pairs = scores["QF, denser"], scores["JumpReLU, denser"], beside["bigrams and a basis"]
parts = {
    "D1": {
        "over firings": part(gaps(qf, plain, "weighted")),
        "over firings less over latents": part(gaps(qf, plain, "weighted") - gaps(qf, plain, "uniform")),
    },
    "D2": {
        name: part([e["weighted"]["mean"] - e["uniform"]["mean"] for e in scores[name]])
        for kind in ("JumpReLU", "TopK", "Gated")
        for name in (kind, f"{kind}, denser")
    },
    "D3": {
        "over latents": part(gaps(pairs, plain, "uniform")),
        "over firings": part(-gaps(pairs, plain, "weighted")),
    },
}
shows = {"D1": "04_means", "D2": "04_by_frequency", "D3": "04_bigrams"}
records = [
    claims.judge(id, of, shows[id], first["tokens"], len(next(iter(of.values()))["seeds"])) for id, of in parts.items()
]
claims.filed(records, claims.fixed(), name="04_claims").value
expect(
    {record.id for record in records} == {c.id for c in claims.ledger().values() if c.notebook == "04_autointerp"},
    "every row of the ledger that is this notebook's is judged",
)
pages.table(claims.rows(records, tests=True), ("", "claim", "measure", "what decided", "test", "verdict"))

# %% [markdown]
# ## What we find
#
# - Averaged over firings all SAEs but JumpReLU's score higher than over latents, and their order changes. At an L0 of ninety QF is .05 behind JumpReLU over latents, and level
#   with it over firings: the difference is there where the post found it hidden, and hidden where it showed. Claim D1 stays open, as over firings neither is surely ahead.
# - Interpretability does not fall with firing frequency at every sparsity (D2, not reproduced): over firings TopK and Gated SAEs score higher, not lower. It falls in JumpReLU SAEs, beyond
#   one token in a hundred. At the rare end it is low everywhere, and a control with less text says that this need not be the latents.
# - An SAE of bigrams and a basis scores high over latents and lower over firings in the mean (D3, open).
# - The score has a floor well above nought: random directions reach .31 over latents, .44 over firings.
#
# **It means** that a mean over latents is in good part a measure of how much text one has, and that neither mean can be read without the floor beside it. That QF removes what cannot be explained is
# not what we see: the frequent latents that it removes score lower than others in the same SAE, but QF's own in the middle score lower too.
#
# **What would change our mind.** A language model as explainer: token patterns cannot tell “calculate” from “compute”, nor most subjects; it has not been run here. More held-out text. More seeds,
# as D1 and D3 are close. Intervals are for other SAEs and other latents, not for other texts. Not here yet: the finetuned SAE, and an SAE on a model with permuted weights as a floor.
#
# **Try** `overrides = {"autointerp.examples": 60}`, twice as many windows. **Next**: [05](05_quadratic_frequency.ipynb)
# counts how often latents fire under either penalty.

# %%
said = {"D1": claims.UNDECIDED, "D2": "not reproduced", "D3": claims.UNDECIDED}
expect({r.id: r.verdict for r in records} == said, "D2 is not reproduced, D1 and D3 stay open")
behind = stats.over_seeds(gaps(plain, qf, "uniform"))
expect(
    behind["interval"][0] > 0 and abs(behind["mean"] - 0.05) < 0.01,
    "over latents QF is .05 behind JumpReLU at an L0 of ninety, surely",
)
expect(abs(parts["D1"]["over firings"]["mean"]) < 0.01, "over firings they are level")
expect(peak["QF, denser"] < peak["JumpReLU, denser"] - 0.03, "QF's latents in the middle score lower than JumpReLU's")
floor = found["random directions"]
expect(
    abs(floor["over latents"]["mean"] - 0.31) < 0.01 and abs(floor["over firings"]["mean"] - 0.44) < 0.01,
    "random directions score .31 over latents, .44 over firings",
)
for_chat = ("JumpReLU", "QF", "TopK", *(f"{name}, denser" for name in ("JumpReLU", "QF", "TopK", "Gated")))
expect(
    all(
        e["over latents"]["mean"] - floor["over latents"]["mean"]
        > 0.07 + e["over firings"]["mean"] - floor["over firings"]["mean"]
        for e in (found[n] for n in for_chat)
    ),
    "above the floor trained latents are further over latents than over firings",
)
expect(
    all(
        found[name]["over firings"]["mean"] - found["frozen decoder"]["over firings"]["mean"] < 0.1 for name in for_chat
    ),
    "an SAE with a random decoder comes within a tenth of them over firings",
)
sooner = {said: found["an eighth of the steps"][said]["mean"] - found["JumpReLU"][said]["mean"] for said in SCHEMES}
expect(
    -0.1 < sooner["over latents"] < -0.03 < 0.02 < sooner["over firings"] < 0.05,
    "after an eighth of the steps latents are explained worse over latents, better over firings",
)
