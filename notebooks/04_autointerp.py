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
# **In short.** It can matter how one averages: over latents an SAE finetuned on chat is among the best of eleven, over firings among the worst. But a latent that fires often is easier to predict whatever it
# means: random directions score .31 over latents, .45 over firings. Of what is left above such a floor, the denser JumpReLU SAE and the finetuned one lose about half when firings count, QF and Gated SAEs nothing, and an SAE made by hand to game the mean
# has nothing left at all (its basis is random directions), much as the post says. Tested as fixed beforehand (amended once), without that floor, the post's three claims are not borne out: that interpretability falls with frequency at every sparsity is **not reproduced**,
# as by that test it surely falls in the denser JumpReLU SAE alone; and that means over latents hide what QF gains over JumpReLU, and the claim about the SAE made by hand, stay open.

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
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from string import Template
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import openai
import torch
from IPython.display import display
from safetensors.numpy import load_file
from scipy.sparse import csc_array
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM

from lib import claims, config, figures, pages, stats, store, wheels
from lib.config import ModelSection
from lib.latents import autointerp
from lib.latents.cards import token_texts
from lib.latents.explainers import LEVELS, Best, Contexts, Explainer, Places, Tokens, Topic, agreement
from lib.lm import activations, model, sequences
from lib.lm.model import Pinned
from lib.lm.residual import residuals
from lib.pages import expect
from lib.probes import views
from lib.sae import training
from lib.sae.metrics import HIGH
from lib.sae.penalties import QuadraticFrequency
from lib.sae.variants import SAEConfig, make
from lib.store import Artifact, cached, result
from lib.study import Study, open_study
from lib.texts import examples
from lib.texts.examples import Example

study = open_study(profile, overrides, frozen)
p, a = study.profile, study.profile.autointerp
pages.banner(profile, overrides)

# %% [markdown]
# ## The method: explain, predict, compare
#
# Our default explainer needs no language model. In the manner of Neuron-to-Graph ([Foote et al. 2023](https://arxiv.org/abs/2305.19911)) it notes how
# strongly a latent fires on each token, and on each token after a certain other one. An explainer is a small class; a language model behind any
# OpenAI-compatible endpoint is another one, below.

# %%
pages.source(Tokens)

# %%
pages.source(agreement)

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

# %% [markdown]
# A context is a window of at most thirty-two tokens of held-out chat. Conversations are dealt into two halves: from one a latent is explained, on the other it is scored. From each
# it gets thirty windows: its strongest ten, ten spread over the quantiles of the others in which it is active, ten in which it is silent. A rare latent gets as many as there are.
# Of each SAE four hundred latents that fire are sampled, by strata of frequency, and weighted so that the means over latents and over firings are those of all.
# A window that is a near-duplicate of one that latents are explained from, about one in fifty, is not scored on (a rule of the second run; under the first, without it, the claims below had the same verdicts).

# %% [markdown]
# A language model is asked by the post's protocol: explain from marked excerpts, then say a level for each of the others, by the explanation alone. With
# `overrides = {"autointerp.model": "NAME"}` and `OPENAI_BASE_URL`, `OPENAI_API_KEY` set, the SAEs' means, the curves and the latent of your choice are made so (planted latents, the
# control with less text and the comparison of judges stay as they are, and the claims are about counting). Answers are kept; what cannot be read counts as no answer. A judge sees windows
# in a drawn order. The prompts are `data/prompts/explain.txt` and `judge.txt`.

# %% tags=["hide-input"]
EXPLAIN, JUDGE = (
    (config.ROOT / "data" / "prompts" / f"{name}.txt").read_text(encoding="utf-8") for name in ("explain", "judge")
)
LEVEL = r"^[^\d\n]*(\d+)[ \t]*[:.)=-][ \t]*(\d+)[^\d\n]*$"  # "3: 7", on one line


class EndpointError(config.Expected, RuntimeError):
    """An endpoint that cannot be used as it was asked: says why, and what to set."""


@functools.cache
def _client(url, timeout, retries):
    key = os.environ.get("OPENAI_API_KEY") or "none"  # which servers at home take
    return openai.OpenAI(base_url=url or None, api_key=key, timeout=timeout, max_retries=retries)


@functools.cache
def _outcomes(url, name):
    """How many questions of this process were answered, and how many failed, in all and in a row."""
    return Counter()


@dataclass(frozen=True)
class Endpoint(Explainer):
    """The model ``name`` at ``url`` ("": OpenAI's own), its key in $OPENAI_API_KEY. Time-outs, refusals for haste (429) and errors of the
    server are tried again ``retries`` times, ever later; what fails then, is cut off or cannot be read, is no answer; where more than ``tolerated`` of the
    questions fail so, or more than ``at_once`` in a row, EndpointError. Each answer is kept under its question in the cache, so that a run that was interrupted asks
    only for what is missing. ``lm``'s tokenizer makes the texts."""

    name: str
    url: str
    lm: Pinned
    at_once: int = 8
    timeout: float = 120.0
    retries: int = 5
    tolerated: float = 0.05
    longest: int = 2048  # tokens of an answer, those that a model thinks in among them
    prompts: tuple[str, str] = (EXPLAIN, JUDGE)

    def _asked(self, prompt: str) -> str:
        """The answer to a prompt, "" where there was none; EndpointError if the endpoint takes no such questions at all."""
        asked = {"model": self.name, "messages": [{"role": "user", "content": prompt}], "temperature": 0.0}
        asked["max_completion_tokens"] = self.longest
        kept = config.cache_dir() / "answers" / f"{store.digest([self.url, asked])}.json"
        if kept.is_file():
            return str(json.loads(kept.read_text(encoding="utf-8"))["answer"])
        try:
            said: Any = _client(self.url, self.timeout, self.retries).chat.completions.create(**asked)  # type: ignore[call-overload]
            choice = said.choices[0]
            answer = str(choice.message.content or "").strip() if choice.finish_reason != "length" else ""
        except openai.APIStatusError as error:
            if error.status_code < 500 and error.status_code not in (408, 409, 429):
                where, remedy = self.url or "api.openai.com", "look at OPENAI_BASE_URL, OPENAI_API_KEY and model"
                raise EndpointError(f"{where} refuses {self.name}: {error.message[:200]}: {remedy}") from None
            return self._failed(f"status {error.status_code}")
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
            return self._failed(type(error).__name__)
        if not answer:
            return self._failed("an empty answer, or one cut off")
        _outcomes(self.url, self.name).update(answered=1, row=-_outcomes(self.url, self.name)["row"])
        store.write_atomic(kept, json.dumps({"asked": asked, "answer": answer}))
        return answer

    def _failed(self, why: str) -> str:
        """No answer; EndpointError if there are too many such, in a row or in all: a result is not made of an outage, and what was answered is kept."""
        count = _outcomes(self.url, self.name)
        count.update(failed=1, row=1)
        questions = count["failed"] + count["answered"]
        if count["row"] > self.at_once or count["failed"] > max(3, self.tolerated * questions):
            of = f"{count['failed']} of {questions} questions to {self.name} at {self.url or 'api.openai.com'} failed"
            raise EndpointError(f"{of}, the last with {why}: run again to go on, answers are kept")
        return ""

    def told(self, explanation: str, tokenizer: Any) -> str:
        return explanation

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
        for number, level in re.findall(
            LEVEL, self._asked(Template(self.prompts[1]).safe_substitute(values)), re.MULTILINE
        ):
            if 1 <= int(number) <= len(found) and int(level) <= LEVELS and np.isnan(found[drawn[int(number) - 1]]):
                found[drawn[int(number) - 1]] = int(level)
        return found


# %% tags=["hide-input"]
explainer = Endpoint(a.model, os.environ.get("OPENAI_BASE_URL", ""), study.lm) if a.model else Best()
if a.model and not explainer._asked("Answer with the one word yes."):  # before anything is trained for it
    raise EndpointError(f"{a.model} does not answer: look at OPENAI_BASE_URL, OPENAI_API_KEY and model")


@result
def look(sae, texts, lm, layer, explainer, section, seed, latents):
    """Step: [{latent, score, explanation, seen, shown: [{tokens, values, level, predicted}]}] of the ``latents`` asked for, as
    :func:`lib.latents.autointerp.evaluate` scores them: why each got its score. ``predicted`` and ``level`` are on the scale of 0 to 10, None where
    there was no answer; score is None where one cannot be scored."""
    trained = training.load(sae)
    if wrong := [i for i in latents if not 0 <= i < trained.config.latents]:
        raise config.ConfigError(f"latent {wrong[0]}: this SAE has latents 0 to {trained.config.latents - 1}")
    pools = autointerp.pools_of(texts, layer, section.window)
    columns = tuple(pool.latents(trained) for pool in pools)
    tokenizer, found = model.tokenizer(lm), []
    for latent in latents:
        done = autointerp.score(pools, columns, latent, explainer, section.examples, seed)
        if done is None:
            found.append({"latent": latent, "score": None, "explanation": "", "seen": [], "shown": []})
            continue
        said, value = explainer.told(done.explanation, tokenizer), None if np.isnan(done.value) else done.value
        one = {"latent": latent, "score": value, "explanation": said}
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
# ## The comparison
#
# SAEs on chat of four kinds, JumpReLU with the plain penalty on L0, with QF, TopK and Gated, each at the sparsity of [notebook 02](02_probing.ipynb) and *denser*,
# at an L0 of about ninety; two that have read other text, *IT* and *pretraining*, and one that went on from IT with chat, *finetuned* (notebook 01). Another SAE is one more line.

# %%
few, many, at = range(p.saes.level_seeds), range(p.saes.fewer_seeds), p.saes.denser
kinds = {
    "JumpReLU": (study.jumprelu(coefficient=at["JumpReLU"]), many),
    "QF": (study.jumprelu(coefficient=at["QF"], penalty=QuadraticFrequency(p.saes.omegas[0])), many),
    "TopK": (study.sae("topk", k=round(at["TopK"])), few),
    "Gated": (study.sae("gated", coefficient=at["Gated"]), few),
}
denser = {kind: [study.train("chat", sae, run=run) for run in runs] for kind, (sae, runs) in kinds.items()}
saes = {name: study.saes[name][: len(few)] for name in ("IT", "pretraining", "finetuned")}
saes |= {"JumpReLU": study.saes["chat"][: len(many)], **{name: study.saes[name] for name in ("QF", "TopK", "Gated")}}
saes |= {f"{kind}, denser": trained for kind, trained in denser.items()}


def scored(saes, study=study, by=explainer):
    """Scores of SAEs, {name: one a seed}."""
    named = {name: name.replace(", ", "_").replace(" ", "_") for name in saes}
    return store.values(
        {
            name: [study.explained(sae, run, f"04_{named[name]}_{run}", by) for run, sae in enumerate(of)]
            for name, of in saes.items()
        }
    )


scores = scored(saes)
expect(not any(e["unanswered"] for of in scores.values() for e in of), "every question has an answer")

# %% [markdown]
# ## Three latents
#
# Of one JumpReLU SAE, of latents that fire on three to thirty tokens in a thousand, the one that is explained best and the one that is explained worst; between them the one that fires most often of all.
# The two strongest windows of either half; a pattern “a|b” is token b after token a.

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
cards = look(saes["JumpReLU"][0], study.halves, study.lm, p.layer, explainer, a, p.seed, three, name="04_cards").value
often = {i: f for _, f, i in in_first}
for one in cards:
    display(
        pages.card(
            f"on {often[one['latent']]:.1%} of tokens; explained by {one['explanation']!r}; score {one['score']:.2f}",
            {"explained from": one["seen"][:2], "scored on": one["shown"][:2]},
            pages.latent("chat", one["latent"]),
        )
    )

# %% [markdown]
# A latent that fires very often need not be a riddle: this one marks the first places of a text, which no token would tell. And one that scores low may be readable: the last
# fires where somebody asks to be shown something, or for a suggestion. But it is explained from “show” alone, and in many windows of the other half stands “suggest”, another token.

# %%
expect(
    cards[0]["score"] > 0.9 and cards[1]["explanation"].startswith("places") and cards[1]["score"] > 0.8,
    "the most frequent latent marks places, and is explained by them",
)
expect(
    cards[2]["score"] < 0
    and "show" in cards[2]["explanation"]
    and sum(" suggest" in context["tokens"] for context in cards[2]["shown"] if context["level"] > 5) > 3
    and not any(" suggest" in context["tokens"] for context in cards[2]["seen"] if context["level"] > 5),
    "the worst one is explained from the token show, and fires on suggest in the other half",
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
    title="Over latents finetuned is among the best, over firings among the worst",
)
pages.publish(
    axis.figure,
    "04_means",
    "Mean autointerp score of eleven kinds of SAE, over latents and over firings, best over latents first. Most gain over firings; JumpReLU SAEs on chat "
    "do not, and the finetuned one loses. Dots: SAE seeds; bars: 95 %, over seeds.",
    alt="Eleven rows of two points: over firings most SAEs score higher than over latents; the finetuned one, among the best over latents, is next to last.",
)
by_firings = sorted(saes, key=lambda name: -found[name]["over firings"]["mean"])
gain = {name: e["over firings"]["mean"] - e["over latents"]["mean"] for name, e in found.items()}
unmoved = ("JumpReLU", "JumpReLU, denser", "finetuned")
expect(
    all((gain[name] > 0.015) == (name not in unmoved) for name in saes),
    "over firings all kinds but JumpReLU on chat and finetuned score higher than over latents",
)
expect(
    ranked[0] == "finetuned" and by_firings.index("finetuned") == 9 and gain["finetuned"] < -0.05,
    "over latents the finetuned SAE is first of eleven, over firings tenth",
)


def ahead_of(name, said):
    """Interval, over paired seeds, of how far the finetuned SAE's mean is ahead of another's."""
    key = SCHEMES[said]
    pairs = zip(scores["finetuned"], scores[name], strict=False)
    return stats.over_seeds([x[key]["mean"] - y[key]["mean"] for x, y in pairs])["interval"]


expect(
    all(ahead_of(name, "over latents")[0] > 0 for name in ("IT", "pretraining"))
    and all(ahead_of(name, "over latents")[0] < 0 for name in ("TopK", "Gated"))
    and all(ahead_of(name, "over firings")[1] < 0 for name in ("TopK", "Gated", "QF"))
    and ahead_of("pretraining", "over firings")[1] > 0,
    "over latents finetuned is surely ahead of IT and pretraining and not of TopK or Gated, over firings surely behind TopK, Gated and QF",
)
expect(
    ranked.index("JumpReLU, denser") < 4 and by_firings.index("JumpReLU, denser") == 7,
    "over latents the denser JumpReLU SAE is among the first four, over firings eighth",
)
expect(
    by_firings[0] == "Gated" and 2 < ranked.index("Gated") < 7,
    "over firings Gated comes first, over latents it is in the middle",
)
expect(ranked[-1] == by_firings[-1] == "IT", "by either mean IT comes last")

# %% [markdown]
# So it matters how one counts, as the post says: finetuned comes first over latents and tenth over firings, with three seeds. Places are means': over latents it is surely ahead of IT and pretraining and not of TopK or Gated;
# over firings it is surely behind TopK, Gated and QF. The denser JumpReLU SAE is among the first four and eighth; Gated comes first
# over firings only. IT, which never read chat, is last by either.
#
# Means are over latents that fire in both halves, .93 to all of those that fire at all. If the others scored nought, the denser JumpReLU SAE would be in the middle over latents, ahead of its QF counterpart still, and JumpReLU
# SAEs on chat too would score a little higher over firings.

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
    3 < sorted(at_worst, key=lambda name: -at_worst[name]["mean"]).index("JumpReLU, denser") < 8
    and lead["interval"][0] > 0
    and all(
        0 < found[name]["over firings"]["mean"] - at_worst[name]["mean"] < 0.03
        for name in ("JumpReLU", "JumpReLU, denser")
    ),
    "with what is not scored as nought denser JumpReLU is in the middle, ahead of QF, and gains a little over firings",
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
#
# What is a score worth? A direction of the residual stream drawn at random tells tokens apart too, as any projection does. So beside the SAEs stand *random directions*, each with
# a threshold above which it is active as often as a latent of the denser JumpReLU SAE: what a latent of that frequency scores without having been learnt.


# %% tags=["hide-input"]
@cached
def half_trained(out, config, source, layer, section, seed, stays):
    """Step: an SAE of which ``stays``, "W_dec" or "W_enc", gets no gradient and keeps its random start; all else is as in
    :func:`lib.sae.training.train`."""
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
def permuted(out, lm, seed):
    """Step: a model as a folder, the weights of its blocks dealt out within each matrix."""
    noise, rng = (
        AutoModelForCausalLM.from_pretrained(model.folder(lm), revision=lm.pin),
        torch.Generator().manual_seed(seed),
    )
    for name, weight in noise.named_parameters():
        if "layers." in name and weight.dim() > 1:
            weight.data = (
                weight.data.flatten()[torch.randperm(weight.numel(), generator=rng)].view_as(weight).contiguous()
            )
    noise.save_pretrained(out, safe_serialization=True)
    model.tokenizer(lm).save_pretrained(out)


@dataclass(frozen=True, eq=False)
class Folder:
    """A model that a step made, as harvests are given one: equal to what :func:`lib.lm.model.pinned` says of its folder."""

    made: Artifact
    device: str
    dtype: str

    @property
    def section(self):
        return ModelSection(name=str(self.made.path), device=self.device, dtype=self.dtype)

    @property
    def pin(self):
        return model.pinned(self.section).pin

    def __eq__(self, other):
        return (self.section, self.pin) == (other.section, other.pin)

    def __hash__(self):
        return hash(self.made.key)


class OfNoise(Study):
    """The same recipes on residuals of the permuted model."""

    @cached_property
    def reader(self):
        of = self.profile.model
        return Folder(permuted(self.lm, self.profile.seed), of.device, of.dtype)


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
def components(out, like, harvested, layer, seed):
    """Step: an SAE whose latents read principal components, two for each, one either way; the further back a component, the rarer, over the frequencies of the
    latents of ``like`` that fire."""
    sae, source = training.load(like), activations.read(harvested, layer)
    x = source.gather(np.random.default_rng(seed).permutation(len(source))[:20_000]) / sae.scale
    with torch.inference_mode():
        often = (sae.encode(x * sae.scale) > 0).float().mean(0).sort(descending=True).values
        mean, d = x.mean(0), x.shape[1]
        axes = torch.linalg.svd(x - mean, full_matrices=False).Vh.T  # [d, d], the largest first
        made = make(SAEConfig(variant="jumprelu", latents=2 * d), d)
        made.W_enc.copy_(torch.stack([axes, -axes], 2).flatten(1))
        rates = often[often > 0][torch.linspace(0, int((often > 0).sum()) - 1, 2 * d).long()]
        ordered = ((x - mean) @ made.W_enc).sort(0).values
        at = ((1 - rates) * (len(x) - 1)).round().long()
        made.b_enc.copy_(-ordered.gather(0, at[None])[0] - mean @ made.W_enc)
        made.theta.fill_(1e-6)
        made.scale.copy_(sae.scale)
    training.save(made, [], out)


@cached
def bigrams(out, latents, harvested, layer, seed):
    """Step: an SAE of bigrams and a basis. Two latents for each direction of a random basis, one either way, rebuild everything; each
    of the others looks for one of the frequent pairs of tokens, half of which are drawn, by a linear discriminant, as often as it occurs, and writes nothing."""
    source, rng = activations.read(harvested, layer), np.random.default_rng(seed)
    d, latents = source.width, max(latents, 3 * source.width)  # at small sizes there would be no room for pairs
    token, sequence = source.column("token").astype(np.int64), source.column("sequence")
    pair = np.where(sequence[1:] == sequence[:-1], token[:-1] << 32 | token[1:], -1)
    known, count = np.unique(pair[pair >= 0], return_counts=True)
    frequent = known[np.argsort(-count, kind="stable")[: 2 * (latents - 2 * d)]]
    wanted = frequent[rng.permutation(len(frequent))[: latents - 2 * d]]
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
noise = OfNoise(p)
floors = {
    "frozen decoder": [half_trained(topk, chats, p.layer, p.training, p.seed + run, "W_dec") for run in few],
    "frozen encoder": [half_trained(topk, chats, p.layer, p.training, p.seed + run, "W_enc") for run in few],
    "principal components": [components(denser["JumpReLU"][run], chats, p.layer, run) for run in few],
    "random directions": [random_directions(denser["JumpReLU"][run], chats, p.layer, run) for run in few],
    "bigrams and a basis": [bigrams(p.training.latents, chats, p.layer, run) for run in few],
}
early = {
    f"{said} of the steps": [study.train("chat", study.jumprelu(), run=run, share=share) for run in few]
    for said, share in {"an eighth": 1 / 8, "half": 1 / 2}.items()
}
beside = scored(floors | early) | scored({"permuted model": [noise.train("chat", topk, run=run) for run in few]}, noise)
found |= {name: both(entries) for name, entries in beside.items()}


# %%
EDGES = 10.0 ** np.arange(-4.5, 0.1, 0.5)


def by_frequency(entries, what="score"):
    """(frequency, mean over seeds) of latents in bands of half a decade, of those in which every seed has five scored latents."""
    rows = []
    for low, high in itertools.pairwise(EDGES):
        seeds = []
        for e in entries:
            weight = np.array(e["sizes"])[e["stratum"]] / np.bincount(e["stratum"])[e["stratum"]]
            frequency, value = np.array(e["fired"]) / e["tokens"], np.array(e[what], float)
            here = (frequency >= low) & (frequency < high) & ~np.isnan(value)
            seeds.append(np.average(value[here], weights=weight[here]) if here.sum() >= 5 else np.nan)
        if not np.isnan(seeds).any():
            rows.append((np.sqrt(low * high), stats.over_seeds(seeds)))
    return rows


two = {"L0 25 to 50": ("JumpReLU", "QF", "TopK", "Gated")}
two["L0 about 90"] = tuple(f"{name}, denser" for name in two["L0 25 to 50"])
axes = figures.panels(list(two), columns=2, x="firing frequency (share of tokens)", y="mean score", height=3.4)
for label, axis in axes.items():
    shown_here = {name.removesuffix(", denser"): scores[name] for name in two[label]}
    shown_here["random"] = beside["random directions"]
    figures.curves(
        {name: line for name, entries in shown_here.items() if (line := by_frequency(entries))},
        "mean",
        axis=axis,
        ticks=(1e-4, 1e-2, 1e-1),
    )
    axis.axvspan(HIGH, 1, **figures.SHADE)
figure = axes["L0 about 90"].figure
axes["L0 25 to 50"].legend(loc="lower right", ncols=2, fontsize="small", columnspacing=1)
figures.headed(figure, "The rarest latents score lowest in every SAE, and random directions gain with frequency")
pages.publish(
    figure,
    "04_by_frequency",
    "Mean score of latents by how often they fire, at two sparsities. Rare ones score low, those on some tokens in a thousand high. Bands "
    "under five latents are bridged. Thin lines: seeds; shaded: a tenth of tokens or more.",
    alt="Two panels of curves that rise with firing frequency up to a hundredth of tokens and then part; that of random directions rises from .15 to .53, by fits.",
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
chance_line = [e["mean"] for _, e in by_frequency(beside["random directions"])]
expect(
    chance_line[0] < 0.2 and chance_line[-1] > 0.5 and spearmanr(range(len(chance_line)), chance_line).statistic > 0.9,
    "random directions rise from below .2 to above .5",
)


# %%
def bands_of(e, what):
    """[M] bool each: scored latents on three tokens in a hundred and more, and on one to ten in a thousand."""
    frequency, scored = np.array(e["fired"]) / e["tokens"], ~np.isnan(np.array(e[what], float))
    return scored & (frequency >= 0.03), scored & (frequency >= 0.001) & (frequency < 0.01)


def fall(entries, what):
    """Over seeds, mean score of latents of the first of :func:`bands_of` less that of the second; None where a seed has fewer than three in one of them."""
    seeds = []
    for e in entries:
        weight = np.array(e["sizes"])[e["stratum"]] / np.bincount(e["stratum"])[e["stratum"]]
        bands = bands_of(e, what)
        if min(band.sum() for band in bands) < 3:
            return None
        first, second = (np.average(np.array(e[what], float)[band], weights=weight[band]) for band in bands)
        seeds.append(first - second)
    return stats.over_seeds(seeds)


in_band = {name: np.sum([bands_of(e, "score") for e in scores[name]], 2) for name in ("QF", "QF, denser")}
expect(
    (in_band["QF, denser"].min(0) >= (316, 7)).all()
    and (in_band["QF, denser"].max(0) <= (324, 13)).all()
    and (in_band["QF"][:, 0].min(), in_band["QF"][:, 0].max()) == (17, 23),
    "denser QF SAEs have 7 to 13 middling latents among the scored ones, against some 320; the sparser 17 to 23 frequent ones",
)
compared = {name: scores[name] for label in two for name in two[label]}
compared["random directions"] = beside["random directions"]
ways = {"all windows": "score", "active windows only": "active"}
falls = {
    name: {said: entry for said, what in ways.items() if (entry := fall(entries, what))}
    for name, entries in compared.items()
}
axis = figures.forest(falls, "mean")
axis.axvline(0, color=figures.CONTEXT, linewidth=1)
axis.set(
    xlabel="mean score of frequent latents less that of middling ones",
    ylabel="SAE",
    title="In JumpReLU SAEs frequent latents score lower, among random directions higher",
)
pages.publish(
    axis.figure,
    "04_fall",
    "Score of latents on three tokens in a hundred and more, less that of those on one to ten in a thousand: over all windows, and without those in which a latent "
    "is silent. Dots: SAE seeds; bars: 95 %.",
    alt="Rows of two points: JumpReLU SAEs left of the line by .13 to .17, random directions right of it, the others between, Gated at an L0 of ninety furthest right.",
)

# %% [markdown]
# In JumpReLU SAEs latents that fire on three tokens in a hundred and more score .13 to .17 lower than those on one to ten in a thousand, as the post finds; in TopK SAEs they do not surely, and in Gated SAEs
# they score higher. Denser QF SAEs hardly have such middling latents: 7 to 13 of the scored ones in each, against some 320; the sparser have 17 to 23 frequent ones. One reason to doubt such a comparison is that a latent which is hardly ever silent is asked another question: which windows of its own are strongest, not which hold it at all. Scored on active windows only the sparser QF and Gated SAEs
# fall too. Another is the floor: random directions score .16 *higher* where they fire often.
#
# In all SAEs the rarest latents score lowest. Is that the latents, or the text? A rare latent has a few windows to be explained from. As a control, a hundred latents that fire on three to thirty tokens in a thousand, drawn at random,
# are explained anew from less and less text, and scored on the same windows.

# %%
nothing = {"mean": np.nan, "interval": [np.nan, np.nan]}  # where latents are too few to compare
fell = {(name, said): of.get(said, nothing) for name, of in falls.items() for said in ways}
lower = {which: e["interval"][1] < 0 for which, e in fell.items()}
on_all, on_active = ways
expect(
    all(
        -0.2 < fell[name, said]["mean"] < -0.12 and lower[name, said]
        for name in ("JumpReLU", "JumpReLU, denser")
        for said in ways
    ),
    "in JumpReLU SAEs frequent latents score .13 to .17 lower than middling ones, also on active windows only",
)
expect(
    not any(lower[name, on_all] for name in falls if not name.startswith("JumpReLU"))
    and {name for name in falls if lower[name, on_active]} == {"JumpReLU", "JumpReLU, denser", "QF", "Gated"},
    "no other kind surely falls over all windows, and on active windows the sparser QF and Gated SAEs do",
)
expect(
    all(fell[name, on_all]["interval"][0] > 0 for name in ("random directions", "Gated", "Gated, denser")),
    "random directions and Gated latents score higher where they fire often",
)


# %% tags=["hide-input"]
SUBJECTS = {
    "programming": " code function python javascript program variable array class html database",
    "food": " food recipe cook eat meal chicken sugar restaurant coffee bread",
    "money": " money price market sales customers investment financial cost business budget",
    "health": " health patient medical disease treatment doctor pain cancer symptoms body",
}


def columns_of(pool, kind, number):
    """Values [tokens] of a planted latent on a pool: graded by token, by pair of tokens, by place, by how many of the tokens of a subject a window has."""
    token = pool.tokens[pool.window, pool.offset]
    if kind == "place":
        return np.clip(4 - np.abs(pool.places[pool.window, pool.offset] - 6 * number), 0, None)
    if kind == "subject":
        return np.bincount(pool.window, np.isin(token, number), len(pool.tokens))[
            pool.window
        ]  # on every token of the window
    before = np.where(pool.offset > 0, np.roll(token, 1), -1)
    strength = dict(zip(number, (1.0, 2.0, 3.0, 4.0), strict=True))
    of = zip(before.tolist(), token.tolist(), strict=True) if kind == "pair" else token.tolist()
    return np.array([strength.get(one, 0.0) for one in of])


@result
def planted(texts, lm, layer, section, seed, subjects, deals=20):
    """Step: rows {kind, explainer, scores}: of latents that are planted, and of the same predictions where the windows' activations are dealt out anew."""
    pools, tokenizer = autointerp.pools_of(texts, layer, section.window), model.tokenizer(lm)
    flat = pools[0].tokens[pools[0].window, pools[0].offset]
    rng, often = np.random.default_rng(seed), np.bincount(flat)
    medium = np.flatnonzero((often > len(flat) / 2000) & (often < len(flat) / 100))
    same = pools[0].offset[1:] > 0
    pairs, count = np.unique(np.stack([flat[:-1][same], flat[1:][same]], 1), axis=0, return_counts=True)
    frequent = pairs[np.argsort(-count, kind="stable")[:200]].tolist()
    words = [[tokenizer.encode(" " + word, add_special_tokens=False) for word in of.split()] for of in subjects]
    kinds = {
        "token": [rng.choice(medium, 4, replace=False).tolist() for _ in range(8)],
        "pair": [[tuple(frequent[i]) for i in rng.choice(len(frequent), 4, replace=False)] for _ in range(8)],
        "place": list(range(1, 9)),
        "subject": [[ids[0] for ids in of if len(ids) == 1] for of in words],
    }
    out = []
    for kind, numbers in kinds.items():
        made = [csc_array(np.stack([columns_of(pool, kind, n) for n in numbers], 1).astype(float)) for pool in pools]
        for by in (Best(), Tokens(), Places(), Topic()):
            done = [autointerp.score(pools, made, i, by, section.examples, seed) for i in range(len(numbers))]
            done = [one for one in done if one is not None]
            dealt = [agreement(one.guess, rng.permutation(one.shown.peaks)) for one in done for _ in range(deals)]
            both = {kind: [one.value for one in done], f"{kind}, dealt out": dealt}
            out += [{"kind": name, "explainer": type(by).__name__, "scores": of} for name, of in both.items()]
    return out


planted_rows = planted(study.halves, study.lm, p.layer, a, p.seed, tuple(SUBJECTS.values()), name="04_planted").value


# %% tags=["hide-input"]
@result
def tokens_seen(sae, texts, layer, explainer, section, seed, latents, shares):
    """Step: rows {share, scores} of the same latents, on the same windows, where only a share of the windows that they are explained from may be drawn; of
    shares that leave enough. None where a latent is active in none of these."""
    pools, trained, out = autointerp.pools_of(texts, layer, section.window), training.load(sae), []
    columns = tuple(pool.latents(trained) for pool in pools)
    part = np.random.default_rng(seed).random(len(pools[0].drawn))
    for share in shares:
        pools[0].drawn = part < share
        if pools[0].drawn.sum() < 2 * (section.examples // 3):
            continue  # too few windows to choose from
        done = [autointerp.score(pools, columns, latent, explainer, section.examples, seed) for latent in latents]
        out.append({"share": share, "scores": [None if one is None else round(one.value, 4) for one in done]})
    return out


# %% tags=["hide-input"]
SHOWN, AROUND = 12, 4  # excerpts of either kind, and tokens on either side of the peak


@cached
def excerpts(out, sae, text, lm, layer, section, latents, seed):
    """Step: of each latent, as prompts to be embedded, excerpts about its peak in so many windows, and as many of windows in which it is silent."""
    pool, tokenizer = autointerp.pools_of((text, text), layer, section.window)[0], model.tokenizer(lm)
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
    template, it keeps half of its activation (median); and what share it keeps when the token one, two or three before the peak is another (mean). None where it
    is silent when its contexts are read again, or too short to have three tokens before the peak."""
    pool = autointerp.pools_of((text, text), layer, section.window)[0]
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
            if kept[-1] <= 0:
                continue
            needed.append(next(n for n, value in zip(lengths, kept, strict=True) if value >= kept[-1] / 2))
            if len(ids) - start > 3:
                changed = active([text for back in (1, 2, 3) for text in with_others(ids, back)], latent)
                left.append(changed.reshape(3, 2).mean(1) / kept[-1])
        needs, shares = np.median(needed) if needed else None, np.mean(left, 0) if left else None
        out.append({"latent": latent, "context": needs, "left": shares})
    return out


# %%
sae = saes["JumpReLU"][0]
everything = a.model_copy(update={"latents": p.training.latents})
every = autointerp.evaluate(sae, study.halves, p.layer, explainer, everything, p.seed, name="04_every").value
rng, of_first = np.random.default_rng(p.seed), scores["JumpReLU"][0]
drawn = [
    (of_first["latent"][i], of_first["fired"][i])
    for i in rng.permutation(len(of_first["latent"]))
    if of_first["score"][i] is not None
]
sampled = tuple(latent for latent, fired in drawn if fired >= 4 * SHOWN)[:200]
common = tuple(latent for latent, fired in drawn if 0.003 <= fired / of_first["tokens"] < 0.03)[:100]
by = {
    name: study.explained(sae, 0, f"04_by_{type(form).__name__.lower()}", form)
    for name, form in {
        "counting, the best form": Best(),
        "tokens and pairs only": Tokens(),
        "sentence embedding": Topic(),
    }.items()
}
by = store.values(by)
shares = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
less = tokens_seen(sae, study.halves, p.layer, Best(), a, p.seed, common, shares, name="04_less_text").value
embedder = wheels.wheel_hash(wheels.EMBEDDER_WHEEL[0])
shown = excerpts(sae, study.halves[1], study.lm, p.layer, a, sampled, p.seed)
spotted = intruders(views.embeddings(shown, embedder), sampled, p.seed, name="04_intruders").value
checked = minimal(sae, study.halves[1], study.lm, p.layer, a, sampled[:50], p.seed, name="04_minimal").value

# %%
spread = [(row["share"] * a.tokens / 1e3, [x for x in row["scores"] if x is not None]) for row in less]
entries = [(thousand, stats.over_seeds(of) | {"seeds": []}) for thousand, of in spread]  # over latents, not seeds
axis = figures.curves({"latents": entries}, "mean", ticks=(1, 2, 5, 10, 20, 40))
axis.set(
    xlabel="thousand tokens to explain from",
    ylabel="mean score",
    title="The same latents, explained from less text, score lower",
)
pages.publish(
    axis.figure,
    "04_less_text",
    "Mean score of a hundred latents of one JumpReLU SAE, explained from less and less text, scored on the same. From a thousand tokens they score as low as "
    "rare latents do. Bars: 95 %, over latents.",
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
# should find its own, and the best form all of them; with the activations of the windows that are scored dealt out among them, none.

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
    min(best_form[kind] for kind in ("token", "pair", "place")) > 0.95 and 0.6 < best_form["subject"] < 0.8,
    "planted tokens, pairs and places score above .95, subjects about .7",
)
expect(
    all(abs(score_) < 0.1 for kind, score_ in best_form.items() if kind.endswith("dealt out")),
    "dealt out, all score within a tenth of nought",
)

# %% [markdown]
# What is told by a token, a pair or a place is found and scored near one; a subject only partly: which of thirty windows name it more often, an embedding of a short window tells roughly. So latents that mark subjects score too low here.
# Dealt out, all score near nought.
#
# And what scores without having learnt to mean anything: an SAE whose decoder, or encoder, stays random (*frozen decoder*, *frozen encoder*), one on a model whose weights were dealt out anew within each matrix
# (*permuted model*), principal components, one latent either way, and the random directions.

# %%
kinds = ("JumpReLU, denser", "TopK", "frozen decoder", "frozen encoder", "permuted model", "principal components")
kinds += ("random directions",)
axis = figures.forest({name: found[name] for name in kinds}, "mean")
axis.set(
    xlabel="mean score",
    ylabel="SAE",
    title="What has learnt less, or nothing, scores well above nought",
)
pages.publish(
    axis.figure,
    "04_floors",
    "Mean score of two kinds of trained SAE and of five that have learnt less or nothing. Random directions score .3 over latents, .45 over firings, a frozen encoder no more. "
    "Dots: seeds; bars: 95 %.",
    alt="Rows of two points: trained SAEs near .6; the permuted model, frozen encoder, components and random directions at .2 to .4 over latents and .4 to .5 over firings.",
)

# %% [markdown]
# A score of .3 or .45 is thus no sign of meaning. And the floor differs between SAEs, as it rises with frequency. So from each latent we take what random directions of its frequency score in the mean,
# and average the rest over latents and over firings. **This was thought of after the first numbers were seen, and decides no claim.**


# %%
def floor_at(frequencies):
    """What random directions score in the mean at these frequencies: interpolated between bands of half a decade that have fifteen of them."""
    pooled = [(np.array(e["fired"]) / e["tokens"], np.array(e["score"], float)) for e in beside["random directions"]]
    at, value = (np.concatenate(column) for column in zip(*pooled, strict=True))
    points = []
    for low, high in itertools.pairwise(EDGES):
        here = (at >= low) & (at < high) & ~np.isnan(value)
        points += (
            [(np.log10(low * high) / 2, value[here].mean())] if here.sum() >= max(1, min(15, len(value) // 10)) else []
        )
    return np.interp(np.log10(frequencies), *zip(*points, strict=True))


def above(entries):
    """{over latents, over firings: mean over seeds} of score less that floor."""
    rows = []
    for e in entries:
        weight = np.array(e["sizes"])[e["stratum"]] / np.bincount(e["stratum"])[e["stratum"]]
        fired, value = np.array(e["fired"]), np.array(e["score"], float)
        rest, known = value - floor_at(fired / e["tokens"]), ~np.isnan(value)
        rows.append([np.average(rest[known], weights=w[known]) for w in (weight, weight * fired)])
    return {said: stats.over_seeds(column) for said, column in zip(SCHEMES, zip(*rows, strict=True), strict=True)}


rest = {name: above(entries) for name, entries in (scores | beside).items() if not name.endswith("steps")}
axis = figures.forest(dict(sorted(rest.items(), key=lambda item: -item[1]["over firings"]["mean"])), "mean")
axis.axvline(0, color=figures.CONTEXT, linewidth=1)
axis.set(
    xlabel="mean score above that of random directions of the same frequency",
    ylabel="SAE",
    title="Above the floor, QF is ahead of JumpReLU over firings",
)
pages.publish(
    axis.figure,
    "04_above",
    "Mean of score less what random directions that fire as often score. Over firings JumpReLU SAEs keep .4 to .8 of it, QF and Gated all, an SAE of bigrams and a basis nothing. "
    "Dots: seeds; bars: 95 %.",
    alt="Seventeen rows of two points, Gated first over firings; at the bottom the SAE of bigrams, .22 over latents and nought over firings, and random directions at nought.",
)
lead = stats.over_seeds(
    [
        above([x])["over firings"]["mean"] - above([y])["over firings"]["mean"]
        for x, y in zip(scores["QF, denser"], scores["JumpReLU, denser"], strict=True)
    ]
)
kept = {name: of["over firings"]["mean"] / of["over latents"]["mean"] for name, of in rest.items()}
expect(
    lead["interval"][0] > 0.04
    and rest["QF, denser"]["over latents"]["mean"] < rest["JumpReLU, denser"]["over latents"]["mean"] - 0.04,
    "above the floor denser QF is surely ahead of JumpReLU over firings, and behind it over latents",
)
expect(
    kept["JumpReLU, denser"] < 0.5 < kept["finetuned"] < 0.6 < kept["JumpReLU"] < 0.85
    and min(kept[name] for name in ("QF", "QF, denser", "Gated", "Gated, denser")) > 0.95,
    "of what is above the floor JumpReLU SAEs keep less than half to four fifths over firings, QF and Gated all",
)
expect(
    rest["bigrams and a basis"]["over latents"]["mean"] > 0.2
    and abs(rest["bigrams and a basis"]["over firings"]["mean"]) < 0.03,
    "the SAE of bigrams is .2 above the floor over latents, and on it over firings",
)
expect(
    all(of["over firings"]["interval"][0] > 0 for name, of in rest.items() if name in saes)
    and rest["JumpReLU, denser"]["over firings"]["mean"]
    < rest["frozen decoder"]["over firings"]["mean"]
    < rest["TopK"]["over firings"]["mean"],
    "every trained SAE is above the floor over firings; frozen decoders are further than denser JumpReLU, less far than TopK",
)
expect(
    rest["permuted model"]["over firings"]["mean"] > rest["JumpReLU, denser"]["over firings"]["mean"]
    and rest["permuted model"]["over latents"]["mean"] < rest["JumpReLU, denser"]["over latents"]["mean"] - 0.15,
    "over firings an SAE on the permuted model is no less above the floor than denser JumpReLU, over latents far less",
)
ends = rest["frozen encoder"]["over latents"]["interval"] + rest["frozen encoder"]["over firings"]["interval"]
expect(
    ends[0] < 0 < ends[1] and ends[2] < 0 < ends[3] and rest["principal components"]["over latents"]["interval"][1] < 0,
    "a frozen encoder is on the floor by either mean, principal components below it over latents",
)

# %% [markdown]
# Every trained SAE is above the floor. Over latents the denser JumpReLU SAE has more left than its QF counterpart; over firings it has lost more than half and QF nothing, so that QF is ahead. That is the post's
# picture, which the plain means hide. The SAE of bigrams is on the floor by construction: nearly all that fires in it is a basis, which is random directions. An SAE of half as many active latents whose decoder never
# learnt is further above the floor over firings than the denser JumpReLU SAE, and less far than TopK of its own kind; even one on the permuted model is no less above it than that JumpReLU SAE, though far less over latents. With a random encoder
# an SAE is on the floor, as it should be, and principal components are below it over latents.
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
firsts = {kind: trained[0] for kind, trained in denser.items()} | {
    "bigrams and a basis": floors["bigrams and a basis"][0]
}
quality = store.values(
    {name: study.evaluate(one, "chat", f"04_quality_{name.replace(' ', '_')}") for name, one in firsts.items()}
)
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
    sum(games["over latents"]["mean"] > found[name]["over latents"]["mean"] for name in saes) > 9
    and sum(games["over firings"]["mean"] < found[name]["over firings"]["mean"] for name in saes) > 9,
    "the SAE of bigrams scores higher than nearly all trained ones over latents, less than nearly all over firings",
)
expect(quality["bigrams and a basis"]["fvu"] < 1e-4, "the basis rebuilds everything")
expect(
    all(80 < e["l0"] < 100 for name, e in quality.items() if name != "bigrams and a basis"),
    "the denser SAEs have an L0 of about ninety",
)

# %% [markdown]
# Over latents it scores higher than nearly all trained SAEs, over firings less than nearly all, as the post supposes; against JumpReLU SAEs at an L0 of ninety only the second difference is sure, with three
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
    title="Eight times the training: no sure gain by either mean",
)
for line in axis.get_lines():
    if line.get_label() in SCHEMES:
        how = figures.OVER | {"color": line.get_color(), "weight": "bold"}
        axis.annotate(line.get_label(), line.get_xydata()[0], (8, -16), "data", "offset points", **how)
pages.publish(
    axis.figure,
    "04_tokens_seen",
    "Mean score of chat SAEs of an eighth, half and all of the steps. Over latents the mean rises a little, over firings it falls, neither surely. Bars: 95 %, over seeds.",
    alt="Two short curves over the number of tokens that SAEs were trained on.",
)

# %% [markdown]
# An SAE of an eighth of the steps scores .05 lower over latents and .03 higher over firings; with three seeds neither is sure.
#
# ## Do other judges agree?
#
# Of one JumpReLU SAE, two hundred of the sampled latents that fire on fifty tokens or more, drawn at random, are judged in other ways: by tokens and pairs alone, by embedding alone, and by *intruders*: of four excerpts about its peaks and one in which it is silent, is
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
# The real model can say what a latent needs. Of fifty of them, the text before the peak is cut off, further and further, until less than half of the activation is left; and one
# token, one to three before the peak, is replaced by one drawn from all of the half.

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
kept_rows = [row for row in checked if row["context"] is not None and row["left"] is not None]
in_group = {said: [row for row in kept_rows if low < row["context"] <= high] for said, (low, high) in groups.items()}
pages.table(
    (
        (
            said,
            len(rows),
            " · ".join(pages.share(x) for x in np.mean([row["left"] for row in rows], 0)),
            f"{np.mean([counting[row['latent']] for row in rows]):.2f}",
        )
        for said, rows in in_group.items()
        if rows
    ),
    ("needs", "latents", "kept with another token one · two · three before", "mean score"),
)

# %%
short = [counting[row["latent"]] for row in kept_rows if row["context"] <= 1]
longer = [counting[row["latent"]] for row in kept_rows if row["context"] > 1]
expect(
    np.mean([row["context"] <= 2 for row in kept_rows]) > 0.6 and np.mean(short) > np.mean(longer) + 0.1,
    "more than half need two tokens at most, and those that need one are explained best",
)

# %% [markdown]
# Most latents need no more than the token and the one before, as the explainer supposes; those for which the token alone is enough are explained best. Fifty latents are few (and one has contexts too short to say).
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


@result
def near_duplicates(texts, layer, width):
    """Step: share of the windows to score on that are near-duplicates of one to explain from, either way round."""
    return [float(1 - autointerp.pools_of(each, layer, width)[1].drawn.mean()) for each in (texts, texts[::-1])]


alike = near_duplicates(study.halves, p.layer, a.window, name="04_near_duplicates").value
expect(0.01 < min(alike) < max(alike) < 0.03, "about one window in fifty is a near-duplicate, and not scored on")

# %% [markdown]
# ## A latent of your choice
#
# Another number here, and another SAE, shows why that latent got its score: what it is explained from, and what was predicted on other windows. (In a fresh clone that SAE is trained first, some minutes.)

# %%
latent = sampled[0]
(mine,) = look(
    saes["JumpReLU"][0], study.halves, study.lm, p.layer, explainer, a, p.seed, (latent,), name="04_mine"
).value
told = f"explained by {mine['explanation']}"
display(pages.card(told, {"explained from": mine["seen"][:2]}, pages.latent("chat", latent)))
pages.table(
    (
        (pages.literal("".join(c["tokens"][: 1 + int(np.argmax(c["values"]))])[-60:]), c["predicted"], c["level"])
        for c in mine["shown"][:: max(1, len(mine["shown"]) // 8)][:8]
    ),
    (
        "window that it is scored on, up to its peak",
        "predicted, 0 to 10",
        "true" if mine["score"] is None else f"true (score {mine['score']:.2f})",
    ),
)

# %% [markdown]
# ## The claims
#
# Each test was written down before its first numbers were seen (`data/claims.yaml`, rows D, with what was known). Rows and tests are those; after a first run two things were changed, near-duplicate windows (above) and, for D3,
# the pairs of tokens, which are drawn anew for each basis. The verdicts were the same.


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
# - How one averages changes which SAE looks better: finetuned is first of eleven over latents and tenth over firings. For the pair that the post is about it does not go the post's way: at an L0 of ninety QF is .04 behind JumpReLU over latents, and level
#   with it over firings. Claim D1 stays open, as over firings neither is surely ahead.
# - Interpretability does not fall with firing frequency at every sparsity (D2, not reproduced): over firings TopK and Gated SAEs score higher, not lower. It falls in JumpReLU SAEs on chat, beyond
#   one token in a hundred. At the rare end it is low everywhere, and a control with less text says that this need not be the latents.
# - An SAE of bigrams and a basis scores high over latents and surely lower than JumpReLU over firings (D3, open: over latents it is not surely higher).
# - The score has a floor well above nought, which rises with frequency: random directions reach .31 over latents, .45 over firings. Seen after the fact: above that floor QF is ahead of JumpReLU over firings, and the SAE of bigrams, mostly a basis of random directions, has nothing left.
#
# **It means** that neither mean can be read without the floor beside it. Over latents, a score is in good part a measure of how much text one has; over firings, of how often latents fire. What the post sees in plain means, with a language
# model as explainer, we see once the floor is taken off: latents on a tenth of tokens and more say little, and QF has hardly any. Where it has some they are not surely the better explained ones (D2b, notebook 05, open).
#
# **What would change our mind.** A language model as explainer: token patterns cannot tell “calculate” from “compute”, nor most subjects; it has not been run here. More held-out text. More seeds,
# as D1 and D3 are close. Intervals are for other SAEs and other latents, not for other texts, and the floor's own is in none of them.
#
# **Try** `overrides = {"autointerp.examples": 60}`, twice as many windows. **Next**: [05](05_quadratic_frequency.ipynb)
# counts how often latents fire under either penalty.

# %%
said = {"D1": claims.UNDECIDED, "D2": "not reproduced", "D3": claims.UNDECIDED}
expect({r.id: r.verdict for r in records} == said, "D2 is not reproduced, D1 and D3 stay open")
behind = stats.over_seeds(gaps(plain, qf, "uniform"))
expect(
    behind["interval"][0] > 0 and abs(behind["mean"] - 0.04) < 0.01,
    "over latents QF is .04 behind JumpReLU at an L0 of ninety, surely",
)
expect(abs(parts["D1"]["over firings"]["mean"]) < 0.01, "over firings they are level")
floor = found["random directions"]
expect(
    abs(floor["over latents"]["mean"] - 0.31) < 0.01 and abs(floor["over firings"]["mean"] - 0.45) < 0.01,
    "random directions score .31 over latents, .45 over firings",
)
surer = parts["D3"]
expect(
    surer["over firings"]["interval"][0] > 0 > surer["over latents"]["interval"][0],
    "over firings the SAE of bigrams is surely behind JumpReLU, over latents not surely ahead",
)
expect(
    min(parts["D2"][name]["mean"] for name in parts["D2"] if not name.startswith("JumpReLU")) > 0,
    "over firings TopK and Gated SAEs score higher than over latents",
)
sooner = {
    said: stats.over_seeds(gaps(beside["an eighth of the steps"], scores["JumpReLU"], key))
    for said, key in SCHEMES.items()
}
expect(
    all(e["interval"][0] < 0 < e["interval"][1] for e in sooner.values())
    and abs(sooner["over latents"]["mean"] + 0.05) < 0.01
    and abs(sooner["over firings"]["mean"] - 0.03) < 0.01,
    "after an eighth of the steps the mean is .05 lower over latents, .03 higher over firings, neither surely",
)
