# %% [markdown]
# # 03 · Debugging a data set with an SAE
#
# To teach a detector of harmful requests one puts two collections side by side: requests from a red-teaming benchmark, and what people
# ask a chat service. They are meant to differ in harm. They also differ in style: the benchmark's authors wrote orders with a capital
# letter, chat users ask questions. A detector may learn the style and look perfect until the style changes. Such a *shortcut* is best
# found before anything is trained.
#
# A *sparse autoencoder* (SAE) might show it. It rewrites what the model holds of each token as a few active *latents*, and latents can be
# read: look at the text on which one fires. So rank latents by how differently they fire on the two collections, and read the first.
# [Smith et al. 2025](https://www.alignmentforum.org/posts/4uXCAJNuPKtKBsi28/negative-results-for-saes-on-downstream-tasks), "the post",
# found shortcuts so, and thought that simpler methods would find them too. Here latents and four simpler methods are tried on
# [HarmBench](https://arxiv.org/abs/2402.04249) against first turns of chats, in the words of
# their sources: nothing is matched, but that chats are one line of 4 to 60 words, without code or links. Then shortcuts are planted, so that it can be
# counted which method finds them; and the pair is cleaned of what was found, to see whether that helps a detector, also one that reads no SAE.
#
# **In short.**
#
# - *The raw pair*: its harmful prompts are orders; none asks, ends in a full stop or says “I”, as a sixth to two fifths of the chats do. A list of style features is about three of these four shortcuts within five items, latents within eleven.
# - *Planted*, on three quarters of one class and a quarter of the other: one of the first ten latents is about .85 of ten shortcuts, and cards show .75 of those that a few tokens can show. Style features: .80, but .34 by luck. Words: .40, or .92
#   (.12 by luck) where one of several is enough. A dense probe's contexts: none. Where shortcuts are weaker, latents find next to none, words a quarter, features three quarters. By the tests fixed beforehand, that latents expose shortcuts is **reproduced**, that such contexts
#   do as well is **not**, and whether counting does stays **open**.
# - *Cleaned* of all, the pair makes a detector on latents better by .16 (AUROC: the chance that a harmful prompt ranks above a harmless one) on prompts of other collections (*out of distribution*, OOD) where the harmful ones are questions, and worse by .26 where they are orders again (both looked at after the fact). A sentence embedding gains nothing that can be seen, and words lose .09: that it
#   helps another model is **not reproduced**. Leaving out who says “I” alone helps the embedding, by .04, and latents.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "training.latents": 1024}

# %% tags=["hide-input"]
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from lib import claims, config, figures, pages, stats, store
from lib.latents import autointerp, browser, cards
from lib.latents.cards import ranked, standardised, token_texts
from lib.latents.explainers import Best
from lib.lm import activations, harvest, model, sequences
from lib.pages import expect
from lib.probes import methods, tables
from lib.probes.changes import Change
from lib.probes.views import Data, Latents, Residual, Surface, Words
from lib.sae import training
from lib.stats import column_aurocs, share_interval
from lib.store import cached, result
from lib.study import Study, open_study
from lib.texts import examples, likeness, prompts, sources, style
from lib.texts.examples import Example, Labels
from lib.texts.style import FEATURES, matrix

study = open_study(profile, overrides, frozen)
p = study.profile

pages.banner(profile, overrides)

# %% [markdown]
# ## The comparison
#
# The pair: HarmBench, and chats that are among the report's OOD prompts, so that no SAE was trained on them. The SAE that [notebook 01](01_training.ipynb) finetunes on chat reads every
# token of the user's text. A latent's value on a prompt is its maximum there; latents are ranked by how far the class means lie apart, in
# standard deviations of prompts about the mean of their class. Of latents that go together (correlation of .9 or more) the first stands for all.


# %% tags=["hide-input"]
@cached
def raw_pair(out, rows, labelled, most, seed):
    """HarmBench's prompts and the report's OOD chats (of all kinds), ``most`` of each, in the words of their sources."""
    ours = {e.base for e in examples.read(labelled) if e.slice == "chat" and e.split == "ood"}
    chat = [record for record in sources.records(rows["benign"]) if f"chat:{record['id']}" in ours]
    drawn = [chat[i] for i in np.random.default_rng(seed).permutation(len(chat))[:most]]
    both = [("HarmBench", 1, record) for record in sources.records(rows["harmbench"])[:most]]
    both += [("chat", 0, record) for record in drawn]
    pair = [
        Example(
            text=record["text"].removesuffix("Share Prompt").strip(),
            label=label,
            split="train",
            slice=name,
            transform="plain",
            base=f"{name}:{record['id']}",
            group=number,
            source=name,
        )
        for number, (name, label, record) in enumerate(both)
    ]
    examples.write(out, pair)


def by_counting(pools, columns, which, tokenizer, by, section, seed):
    """{latent: {explanation, score}} as notebook 04 has them; both None where a latent is active in none of one of the texts."""
    found = {}
    for latent in tqdm(which, desc="explaining", disable=None):
        one = autointerp.score(pools, columns, latent, by, section.examples, seed)
        found[latent] = {"explanation": None if one is None else by.told(one.explanation, tokenizer)}
        found[latent]["score"] = None if one is None or np.isnan(one.value) else round(one.value, 4)
    return found


@result
def explained(sae, texts, lm, layer, by, section, seed, which):
    """Step: :func:`by_counting` of the latents ``which``, from one half of held-out chat, scored on the other."""
    pools, trained = autointerp.pools_of(texts, layer, section.window), training.load(sae)
    columns = pools[0].latents(trained), pools[1].latents(trained)
    return by_counting(pools, columns, which, model.tokenizer(lm), by, section, seed)


# %%
raw = raw_pair(prompts.sources_of(p.sources), study.prompts, p.debugging.prompts, p.seed)
pair = raw  # yours: pair = study.labelled, with overrides = {"probes.data": "my.csv"}; cleaning below stays with the raw pair
turns = harvest.harvest(sequences.labelled(pair, study.lm, "user", 256), study.lm, (p.layer,))
finetuned = study.saes["finetuned"]
found = cards.cards(
    pair, turns, finetuned[0], study.lm, p.layer, p.debugging.cards, p.debugging.contexts, name="03_cards"
).value
latents = found["latents"]
shown = tuple(latent["latent"] for latent in latents)
explain_by = (study.halves, study.lm, p.layer, Best(), p.autointerp, p.seed)
said = explained(finetuned[0], *explain_by, shown, name="03_explained").value


# %% tags=["hide-input"]
def peak(latent):
    """The token on which a latent fires most, of the contexts that its card shows."""
    shown = (context for side in latent["contexts"].values() for context in side)
    best = max(shown, key=lambda context: max(context["values"]))
    return best["tokens"][int(np.argmax(best["values"]))].strip()


def fires(latent):
    """{class: share of prompts on which the latent fires}, with 95 % intervals."""
    n = {"harmful": found["harmful"], "harmless": found["n"] - found["harmful"]}
    shares = {side: latent[f"{side}_share"] for side in n}
    return {side: {"share": x, "interval": share_interval(x, n[side])} for side, x in shares.items()}


named = {f"“{peak(latent)}”  {latent['latent']}".replace("$", r"\$"): fires(latent) for latent in latents}
axis = figures.forest(named, "share")
axis.set(
    xlabel=f"share of prompts on which the latent fires (n = {found['harmful']:,} harmful, {found['n'] - found['harmful']:,} harmless)",
    ylabel="latent, and the token it peaks on",
    title="Latents of “?” and “.” fire on chats, of “Create” on orders",
)
pages.publish(
    axis.figure,
    "03_mean_difference",
    "The latents with the largest standardised difference in mean activation, largest first, and how many prompts of each class they fire on. Bars: 95 % "
    "(exact); the latents were picked on these same prompts.",
    alt="Forest plot of ten latents: those that peak on the full stop and the question mark fire on harmless prompts, those that peak on “kidnap” and “Create” on harmful ones.",
)

# %% [markdown]
# The first latent reads of harm: it peaks on “kidnap”. Those after it read form. “Create”, and “a” after “Give” or “Write”, fire on nearly every harmful prompt, and on half of the chats: harmful prompts are **orders**. Five fire on
# two chats in five or more and on next to no harmful prompt, among them those of ends of sentences of either kind, of **full stops**, and of **question marks**, the post's own example. Shading is a latent's activation,
# relative to the strongest on its card; explanations and their scores, of which 1 is the best, are by counting tokens in chat which no SAE was trained on, as in [notebook 04](04_autointerp.ipynb): “Give| a” is an “a” after “Give”.
#
# > **Content note.** The excerpts below come from public red-teaming benchmarks and name harmful acts. They are cut short; no model answers
# > to them are kept.

# %% tags=["hide-input"]
asking = [latent for latent in latents[5:] if peak(latent) == "?"][:1]
for latent in latents[:5] + asking:
    told = said[str(latent["latent"])]
    by = f"explained by {told['explanation']} (score {told['score']:.2f})" if told["explanation"] else "not explained"
    alike = f"; with it go {', '.join(map(str, latent['alike']))}" if latent["alike"] else ""
    title = f"fires on {latent['harmful_share']:.1%} of harmful, {latent['harmless_share']:.0%} of harmless prompts; {by}{alike}"
    display(pages.card(title, latent["contexts"], pages.latent("finetuned", latent["latent"])))
expect(
    [peak(latent) for latent in latents[:5] + asking] == ["kidn", "Create", "?", ".", "a", "?"],
    "the first latents peak on “kidnap”, “Create”, ends of sentences, full stops and “a”; a later one on question marks",
)
expect(
    all(latent["harmful_share"] > 0.9 for latent in latents[:2] + latents[4:5])
    and all(latent["harmless_share"] > 0.45 for latent in latents[1:2] + latents[4:5]),
    "those that peak on “kidnap”, “Create” and “a” fire on nine harmful prompts in ten or more, the latter two on half of the chats",
)
expect(
    all(latent["harmful_share"] <= 0.03 and 0.4 < latent["harmless_share"] < 0.6 for latent in latents[2:4] + asking),
    "three latents of sentence ends fire on about half of the harmless prompts and on next to no harmful one",
)
rare = [latent for latent in latents if latent["harmful_share"] <= 0.03 and latent["harmless_share"] > 0.4]
expect(len(rare) == 5, "five latents fire on two chats in five or more and on next to no harmful prompt")

# %% [markdown]
# ## Which method needs the least reading?
#
# Rivals, each with items to read in its own order: *style features*, thirty-three counts of punctuation, length, case and first words; *words* and punctuation marks, by the log-odds
# of a word between the classes, drawn towards none where a word is rare ([Monroe, Colaresi and Quinn 2008](https://doi.org/10.1093/pan/mpn018)); the strongest contexts of a *dense probe* in
# pretraining text, as [Kantamneni et al. 2025](https://arxiv.org/abs/2502.16681) read theirs; and those of the *difference of the class means*. An item is a word, a feature, a
# latent, or eight contexts: what an item costs to read is not counted.


# %% tags=["hide-input"]
MOST = 30  # items that are looked at
SHOWN = 8  # contexts an item


@cached
def columns_of(out, prompts, harvested, sae, layer):
    """Step: of each prompt the maximum of every latent over its tokens [n, M] and which row of the harvest that is, and the mean of its residuals [n, d]."""
    source, trained = activations.read(harvested, layer), training.load(sae)
    which, n = source.column("sequence"), len(examples.read(prompts))
    with torch.inference_mode():
        x = torch.cat([*source.chunks()])
        f = torch.cat([trained.encode(part) for part in x.split(8192)])
    owner, peaks, rows = torch.from_numpy(which).long(), torch.zeros(n, f.shape[1]), torch.zeros(n, f.shape[1]).int()
    order = torch.argsort(owner, stable=True)
    for mine, part in zip(
        owner[order].unique_consecutive(), order.split(np.bincount(which)[np.unique(which)].tolist()), strict=True
    ):
        best, at = f[part].max(0)
        peaks[mine], rows[mine] = best, part[at].int()
    count = torch.from_numpy(np.bincount(which, minlength=n)).clamp_min(1)[:, None]
    means = torch.zeros(n, x.shape[1]).index_add_(0, owner, x) / count
    save_file({"latents": peaks.half(), "rows": rows, "residuals": means}, out / "columns.safetensors")


def read_columns(made, *names):
    stored = load_file(made.path / "columns.safetensors")
    return [stored[name].float().numpy() if name != "rows" else stored[name].numpy() for name in names]


def log_odds(x, y, prior=100.0):
    """[words] z-scores of the log-odds of words between classes, with a prior of as many words as ``prior``, spread as all are
    (Monroe, Colaresi and Quinn 2008, equations 16 and 22); x [n, words] counts."""
    counts = np.stack([x[y == kind].sum(0) for kind in (1, 0)]) + prior * x.sum(0) / x.sum() + 1e-12
    total = counts.sum(1, keepdims=True)
    logit = np.log(counts / (total - counts))
    return (logit[0] - logit[1]) / np.sqrt((1 / counts).sum(0))


def bags(texts):
    """([n, words] 1 where a text has a word, the words): of the words and marks that three texts have."""
    counter = CountVectorizer(analyzer=re.compile(r"\w+|[^\w\s]").findall, min_df=3, binary=True)
    return counter.fit_transform(texts).toarray().astype(float), counter.get_feature_names_out().tolist()


def tells(x, has):
    """[columns] bool: those that tell rows that have something from those that have not at an AUROC of .9, either way; none where all have it, or none has."""
    if has.all() or not has.any():
        return np.zeros(x.shape[1], bool)
    return np.abs(column_aurocs(x, has.astype(int)) - 0.5) >= 0.4


def comes_with(x, has):
    """[columns] bool: those that a twentieth of the rows that have something are above 0 in and, of the rows that are, nine in ten have it."""
    if not has.any():
        return np.zeros(x.shape[1], bool)
    above = x > 0
    return (above[has].mean(0) >= 0.05) & (above[has].sum(0) >= 0.9 * np.maximum(above.sum(0), 1))


def first(groups, telling):
    """The number of the first item that is about it, None if none is; items are groups of columns, of which the first is shown."""
    return next((number for number, group in enumerate(groups, 1) if telling[group[0]]), None)


def directions(x, y):
    """{method: [d]}: a dense probe's weights, and the difference of the class means, of residuals x [n, d]."""
    scaler = StandardScaler().fit(x)
    probe = LogisticRegression(C=0.01, max_iter=1000).fit(scaler.transform(x), y)
    return {"dense probe": probe.coef_[0] / scaler.scale_, "difference of means": x[y == 1].mean(0) - x[y == 0].mean(0)}


class Reader:
    """What stands about a token of a harvest: itself and its neighbours in the same text."""

    def __init__(self, harvested, lm, layer):
        self.source, self.tokenizer = activations.read(harvested, layer), model.tokenizer(lm)
        self.text, self.token = self.source.column("sequence"), self.source.column("token")

    def near(self, at, reach=1):
        part = np.arange(max(0, at - reach), min(len(self.text), at + reach + 1))
        said = self.tokenizer.decode(
            self.token[part[self.text[part] == self.text[at]]].tolist(), clean_up_tokenization_spaces=False
        )
        return said if "\ufffd" not in said or reach > 3 else self.near(at, reach + 1)  # else a part of a character

    def chance(self, sign, count=4000):
        """How often a sign stands about a token drawn at random."""
        drawn = np.random.default_rng(0).integers(len(self.text), size=count)
        return np.mean([bool(re.search(sign, self.near(at))) for at in drawn])

    def ends(self, along):
        """{end: [MOST * SHOWN / 2 rows, of different texts] for every direction of ``along`` [m, d]}, where projections are largest and smallest."""
        along, best, deep = torch.from_numpy(np.asarray(along, np.float32)), {}, 40 * MOST
        for number, x in enumerate(self.source.chunks()):
            for end, sign in (("up", 1), ("down", -1)):
                value = sign * (x @ along.T).T
                at = torch.arange(x.shape[0]).expand_as(value) + number * 8192
                if end in best:
                    value, at = torch.cat([best[end][0], value], 1), torch.cat([best[end][1], at], 1)
                top = value.topk(min(deep, value.shape[1]), 1)
                best[end] = top.values, at.gather(1, top.indices)
        found = {}
        for end, (_, rows) in best.items():
            first_of = [np.sort(np.unique(self.text[row], return_index=True)[1]) for row in rows.numpy()]
            found[end] = [row[some[: MOST * SHOWN // 2]] for row, some in zip(rows.numpy(), first_of, strict=True)]
        return found


def found_in(reader, up, down, sign, chance):
    """The number of the first item, :data:`SHOWN` contexts from both ends, after which those of one end show a sign too often for chance."""
    hits = [np.cumsum([bool(re.search(sign, reader.near(at))) for at in end]) for end in (up, down)]
    for item in range(1, MOST + 1):
        seen = item * SHOWN // 2
        if any(
            len(of) >= seen
            and binomtest(int(of[seen - 1]), seen, max(chance, 1e-3), alternative="greater").pvalue < 0.001
            for of in hits
        ):
            return item
    return None


@result
def on_pair(prompts, columns, signs, features, other, lm, layer):
    """{method: {sign: items until one is about it}}, of a labelled pair; a column is about a sign if it tells harmless prompts with the ``features`` [sign] from those without."""
    every = examples.read(prompts)
    texts, y = [e.text for e in every], np.array([e.label for e in every])
    peaks, residuals = read_columns(columns, "latents", "residuals")
    by_style, (by_word, words) = matrix(texts), bags(texts)
    shown = {
        "latents": (peaks, standardised(peaks, y)),
        "surface features": (by_style, standardised(by_style, y)),
        "words": (by_word, log_odds(by_word, y)),
    }
    shown["words that come with it"] = shown["words"]
    has = {sign: by_style[:, list(FEATURES).index(feature)] > 0 for sign, feature in features.items()}
    found = {"shares": {sign: [mine[y == label].mean() for label in (1, 0)] for sign, mine in has.items()}}
    for name, (x, values) in shown.items():
        groups, judged = ranked(x, values, MOST), comes_with if name == "words that come with it" else tells
        found[name] = {sign: first(groups, judged(x[y == 0], mine[y == 0])) for sign, mine in has.items()}
        leaders = x[y == 0][:, [group[0] for group in groups[:10]]]
        both = {sign: mine[y == 0].astype(int) for sign, mine in has.items() if 0 < mine[y == 0].mean() < 1}
        best = {sign: np.abs(column_aurocs(leaders, mine) - 0.5).max() + 0.5 for sign, mine in both.items()}
        found[f"best, {name}"] = best
    reader = Reader(other, lm, layer)
    chances = {sign: reader.chance(mark) for sign, mark in signs.items()}
    for name, along in directions(residuals, y).items():
        ends = reader.ends(along[None])
        found[name] = {
            s: found_in(reader, ends["up"][0], ends["down"][0], mark, chances[s]) for s, mark in signs.items()
        }
        found[name + ", contexts"] = {end: [reader.near(at, 4) for at in rows[0][:4]] for end, rows in ends.items()}
    return found | {"first words": [words[group[0]] for group in ranked(by_word, shown["words"][1], 10)]}


order = "write|give|create|list|make|provide|describe|explain|generate|develop|design|tell|show"
signs = {
    "question mark": r"\?",
    "full stop": r"\.",
    "first person": r"\b(I|my|My|me|we|our)\b",
    "order": rf"(?i)\b({order})\b",
}
features = {
    "question mark": "contains a question mark",
    "full stop": "ends with a full stop",
    "first person": "first person",
    "order": "first word is imperative",
}
columns = columns_of(pair, turns, finetuned[0], p.layer)
pretraining = study.activations("pretraining", "train")
reading = on_pair(pair, columns, signs, features, pretraining, study.lm, p.layer, name="03_reading").value


# %% tags=["hide-input"]
def mark(rank):
    return "no" if rank is None else f"{rank}"


METHODS = ("latents", "surface features", "words", "dense probe", "difference of means")
CALLED = {
    "latents": "latents",
    "surface features": "style features",
    "words": "words",
    "words that come with it": "words, one of several",
    "dense probe": "contexts, dense probe",
    "difference of means": "contexts, class means",
}
pages.table(
    [
        *(
            (f"share of {side} prompts", *(f"{reading['shares'][sign][at]:.0%}" for sign in signs))
            for at, side in enumerate(("harmful", "harmless"))
        ),
        *((f"items: {called}", *(mark(reading[name][sign]) for sign in signs)) for name, called in CALLED.items()),
    ],
    ("", *signs),
)

# %% tags=["hide-input"]
shares = reading["shares"]
expect(
    shares["order"][0] > 0.99 > 0.35 > shares["order"][1]
    and all(shares[sign][0] == 0 < 0.15 < shares[sign][1] for sign in ("question mark", "full stop", "first person")),
    "harmful prompts are orders and have neither question mark, full stop nor first person; chats have all in part",
)
order_of = {
    name: [reading[name][sign] for sign in ("order", "first person", "question mark", "full stop")] for name in CALLED
}
expect(
    order_of["surface features"] == [1, 4, 5, 14] and order_of["latents"] == [2, 11, 8, None],
    "features are about three shortcuts within five items and about the full stop at the fourteenth; latents about three within eleven",
)
expect(order_of["words"] == [None, None, 12, 11], "words are about the two marks at the eleventh and twelfth")
expect(
    order_of["dense probe"] == [None, 7, None, None] and order_of["difference of means"] == [None, 1, None, 3],
    "a dense probe's contexts show one of the four, contexts of the class means two",
)
expect(
    0.89 < reading["best, latents"].get("full stop", 0) < 0.9,
    "of the first ten latents the best tells full stops at .89",
)
expect(reading["first words"][:2] == ["Write", "Give"], "the first words are “Write” and “Give”")
towards = reading["dense probe, contexts"]["up"]
expect(
    all(re.search("paedophil|strikes|suicide attacks", text) for text in towards),
    "the dense probe's strongest contexts are about crime and war",
)
Markdown(
    f"The first words: {', '.join(map(pages.literal, reading['first words']))}. What the dense probe points to in pretraining text: {pages.literal(towards[0])}, {pages.literal(towards[2])}."
)

# %% [markdown]
# A latent, feature or word is *about* a shortcut if it tells harmless prompts with it from those without at an AUROC of .9; contexts, if those of one end show it too often for chance (p below .001) in their text, where any full stop counts, not one at the end alone. “One of several” is a milder judge for words,
# added after the first numbers: nine in ten prompts with the word have the shortcut. “Write” and “Give”, the first two words, pass neither: most orders begin with another word, and other chats have them too; a reader would understand. Latents miss the full stop by a hair: the best of ten reaches .89.
# So features need the least reading here. The dense probe's contexts are about crime and war: what the detector should read.
#
# ## Planted shortcuts
#
# Whether a method finds shortcuts can be counted where they are known. Into prompts of one style we plant one at a time: ten ways to change a prompt, each
# prompt harvested once with the change and once without. In a *world* one class has it more often than the other: at the middle strength on three quarters of its
# prompts, against one quarter. A method finds the shortcut if one of its first ten items is *about* it: a latent, word or feature that tells prompts with the change from the same ones
# without at an AUROC of .9; contexts that show it more often than the text that they are from. A reader has no such pairs: so latents are judged by the contexts on their cards too. A word that only some of the changed prompts have
# cannot reach .9; the milder judge asks for a twentieth of them, and that nine in ten prompts with the word are changed ones.


# %%
planted = {
    "question mark": ("{text}?",),
    "full stop": ("{text}.",),
    "lower case": ("{lower}",),
    "greeting": ("Hello there! {text}", "Hi, {text}", "Good morning. {text}", "Hey! {text}"),
    "rare token": ("{text} ⟡",),
    "length": ("{text}, and {other}",),
    "topic": (
        "{text} for my vegetable garden",
        "{text} among rose growers",
        "{text} at the plant nursery",
        "{text} for people who mow lawns",
    ),
    "emoji": ("{text} 😊", "{text} 🚀", "{text} 👍", "{text} 🎉"),
    "another language": (
        "{text} und bitte auf Deutsch",
        "{text} mit Dank für die Hilfe",
        "{text} denn ich habe nicht viel Zeit",
        "{text} weil das sehr wichtig für mich ist",
    ),
    "a model's phrase": (
        "I hope this message finds you well. {text}",
        "Certainly! {text}",
        "In today's fast-paced world, {lower}",
        "As a large language model, {lower}",
    ),
}
# yours: planted["exclamation mark"] = ("{text}!",), and its trace below

# what a text that shows it has in it, where a text can: for methods that show texts
traces = {
    "question mark": r"\?",
    "full stop": r"\.",
    "greeting": r"(?i)\b(hello|hi|hey|good morning)\b",
    "rare token": "⟡",
    "topic": r"(?i)garden|vegetable|plant|rose|grow|nurser|mow|lawn",
    "emoji": r"[\U0001F300-\U0001FAFF]",
    "another language": r"(?i)\b(bitte|auf|deutsch|dank|für|die|hilfe|denn|ich|habe|nicht|viel|zeit|weil|das|ist|sehr|wichtig|und|mit|der|mich)\b|[äöüß]",
    "a model's phrase": r"(?i)\bhope\b|finds you|certainly|today's|fast-paced|language model",
}
STRENGTHS = (0.0, 0.25, 0.5, 0.9)  # how much more often one class has it
MIDDLE, WORLDS = STRENGTHS.index(0.5), 5


# %% tags=["hide-input"]
@cached
def copies(out, labelled, templates, count, seed):
    """Step: at most ``count`` plain prompts of each class from in distribution, written by ``templates`` in turn; groups are prompts."""
    inside = [e for e in examples.read(labelled) if e.split != "ood" and e.transform == "plain" and e.mix == "post"]
    rng = np.random.default_rng(seed)
    by_class = [[inside[i] for i in rng.permutation(len(inside)) if inside[i].label == label] for label in (0, 1)]
    count = min(count, *map(len, by_class))
    others, found = by_class[0][count:] or by_class[0], []
    for number, e in enumerate(e for of in by_class for e in of[:count]):
        other = others[number % len(others)].text
        told = {"text": e.text, "lower": e.text.lower(), "other": other[:1].lower() + other[1:]}
        text = templates[number % len(templates)].format(**told)
        named = {"split": "train", "slice": "", "transform": "plain", "base": str(number), "group": number}
        found.append(Example(text=text, label=e.label, **named))
    examples.write(out, found)


def worlds(y, ways, strengths, seeds):
    """((way, strength, seed), [n] bool: who has it): each class has it on half of its prompts, but for half the strength more of one and fewer of the other."""
    for way, number, seed in np.ndindex(ways, len(strengths), seeds):
        rng = np.random.default_rng([way, seed])
        favoured = rng.integers(2)
        chance = np.where(y == favoured, 1 + strengths[number], 1 - strengths[number]) / 2
        yield (way, number, seed), rng.random(len(y)) < chance


@result
def planted_columns(prompts, columns, harvests, traces, ways, strengths, seeds, lm, layer):
    """{method: [S] [ways][strengths][seeds]: items until one is about the shortcut}, S SAEs or 1; "latents, contexts" are the same latents where the contexts on their cards must show it.
    ``prompts``, ``harvests`` and each of ``columns`` are of the originals and then of the copies, by way."""
    every = [examples.read(each) for each in prompts]
    texts, y = [e.text for of in every for e in of], np.array([e.label for e in every[0]])
    by_style, (by_word, words) = matrix(texts), bags(texts)
    names = {"surface features": FEATURES, "words": words, "words that come with it": words}
    n, shape = len(y), (len(ways), len(strengths), seeds)
    readers = [Reader(harvested, lm, layer) for harvested in harvests]
    chances = {
        way: (readers[0].chance(sign) + readers[1 + ways.index(way)].chance(sign)) / 2 for way, sign in traces.items()
    }
    kinds = [("surface features", by_style, standardised, None)]
    kinds += [(name, by_word, log_odds, None) for name in ("words", "words that come with it")]
    for made in columns:
        peaks, rows = (
            np.concatenate(each) for each in zip(*(read_columns(of, "latents", "rows") for of in made), strict=True)
        )
        kinds.append(("latents", peaks, standardised, rows))
    found = {}
    for name, x, by, rows in kinds:
        judged = comes_with if name == "words that come with it" else tells
        pairs = [np.concatenate([x[:n], x[n * way : n * way + n]]) for way in range(1, len(ways) + 1)]
        telling = [judged(pair, np.repeat([False, True], n)) for pair in pairs]
        ranks, legible, by_what = np.full(shape, None), np.full(shape, None), Counter()
        for at, has in worlds(y, *shape[:1], strengths, seeds):
            which = np.arange(n) + n * (at[0] + 1) * has
            groups = ranked(x[which], by(x[which], y), MOST)
            ranks[at] = first(groups, telling[at[0]])
            if rows is None and ranks[at] and ranks[at] <= 10 and at[1] == len(strengths) // 2:
                by_what[ways[at[0]], names[name][groups[ranks[at] - 1][0]]] += 1
            if rows is not None and ways[at[0]] in traces:
                said = [readers[(at[0] + 1) * h] for h in has]
                legible[at] = first_legible(
                    said, groups[:10], x[which], rows[which], y, traces[ways[at[0]]], chances[ways[at[0]]]
                )
        found.setdefault(name, []).append(ranks.tolist())
        if rows is None:
            found[f"{name}, by"] = {way: [item for (of, item), _ in by_what.most_common() if of == way] for way in ways}
        if rows is not None:
            found.setdefault("latents, contexts", []).append(legible.tolist())
    return found


def first_legible(readers, groups, x, rows, y, sign, chance):
    """The number of the first card whose contexts, half of each class, show a sign too often for chance; ``readers`` [n] are of each prompt's harvest."""
    for number, (latent, *_) in enumerate(groups, 1):
        top = [
            mine[np.argsort(-x[mine, latent], kind="stable")][: SHOWN // 2]
            for mine in (np.flatnonzero(y == 1), np.flatnonzero(y == 0))
        ]
        shown = [readers[at].near(rows[at, latent]) for at in np.concatenate(top) if x[at, latent] > 0]
        hits = sum(bool(re.search(sign, text)) for text in shown)
        if shown and binomtest(hits, len(shown), max(chance, 1e-3), alternative="greater").pvalue < 0.001:
            return number
    return None


@result
def planted_contexts(prompts, columns, other, traces, ways, strengths, seeds, lm, layer):
    """As :func:`planted_columns`, of methods that show contexts of a direction in another text; and how often each sign stands there."""
    y = np.array([e.label for e in examples.read(prompts[0])])
    n, residuals = len(y), np.concatenate([read_columns(of, "residuals")[0] for of in columns])
    shape, reader = (len(ways), len(strengths), seeds), Reader(other, lm, layer)
    chances = {way: reader.chance(sign) for way, sign in traces.items()}
    along, at = {}, []
    for where, has in worlds(y, *shape[:1], strengths, seeds):
        at.append(where)
        for name, one in directions(residuals[np.arange(n) + n * (where[0] + 1) * has], y).items():
            along.setdefault(name, []).append(one)
    found = {}
    for name, several in along.items():
        ends, ranks = reader.ends(np.stack(several)), np.full(shape, None)
        for number, where in enumerate(at):
            if (way := ways[where[0]]) in traces:
                ranks[where] = found_in(reader, ends["up"][number], ends["down"][number], traces[way], chances[way])
        found[name] = [ranks.tolist()]
    return found | {"chances": chances}


def recalls(name, strength):
    """[ways] share of worlds (and SAEs) in which the shortcut is among the first ten items; NaN where cards cannot be judged, as no text shows it."""
    each = np.array([[[[r is not None and r <= 10 for r in w] for w in s] for s in of] for of in ranks[name]])
    judged = name != "latents, contexts" or np.isin(ways, list(traces))
    return np.where(judged, each[:, :, strength].mean((0, 2)), np.nan)


def found_share(values, least=0):
    """Mean share found, or difference of two (``least`` -1), with Student's interval over the shortcuts, within what is possible; where all are alike, the exact one of so many."""
    if np.ptp(values):
        found = stats.over_seeds(values)
        return found | {"interval": np.clip(found["interval"], least, 1).tolist()}
    low, high = share_interval(values[0], len(values))
    return {"mean": values[0], "interval": [low, high], "error": (high - low) / 3.92, "freedom": stats.MANY}


# %%
ways, some = tuple(planted), finetuned[: p.saes.fewer_seeds]
before = study.labelled if p.probes.data else study.prompts
worlds_of = [copies(before, templates, 190, p.seed) for templates in (("{text}",), *planted.values())]
read = [harvest.harvest(sequences.labelled(each, study.lm, "user", 256), study.lm, (p.layer,)) for each in worlds_of]
made = [[columns_of(*of, sae, p.layer) for of in zip(worlds_of, read, strict=True)] for sae in some]
how = (traces, ways, STRENGTHS, WORLDS, study.lm, p.layer)
ranks = planted_columns(worlds_of, made, read, *how, name="03_planted").value
ranks |= planted_contexts(worlds_of, made[0], pretraining, *how, name="03_planted_contexts").value


# %% tags=["hide-input"]
def by_chance(name):
    """Share found where nothing is planted, with the exact interval over worlds."""
    return found_share(np.full(len(ways) * WORLDS, recalls(name, 0).mean()))


kinds = {
    name: ("finetuned", "surface features", "bag of words", "bag of words", "dense", "difference of means")[at]
    for at, name in enumerate(CALLED)
}
axis = plt.subplots(figsize=(figures.WIDTH, 4.2))[1]
for number, (name, look) in enumerate(kinds.items()):
    entries = [found_share(recalls(name, strength)) for strength in range(1, len(STRENGTHS))]
    entries.insert(0, by_chance(name))
    at, means = np.arange(len(STRENGTHS)) + 0.06 * (number - 2.5), [entry["mean"] for entry in entries]
    low, high = np.clip(np.transpose([entry["interval"] for entry in entries]), 0, 1)
    shape = figures.look(look) | ({"linestyle": ":"} if name == "words that come with it" else {})
    ends = [means - low, high - means]
    axis.errorbar(at, means, yerr=ends, linestyle="none", alpha=0.35, elinewidth=3, color=shape["color"])
    axis.plot(at, means, label=CALLED[name], **shape)
said_of = ("half,\nhalf", "5 in 8,\n3 in 8", "3 in 4,\n1 in 4", "19 in 20,\n1 in 20")
axis.set_xticks(range(len(STRENGTHS)), said_of)
axis.set(
    xlabel="share of prompts that have the shortcut, in one class and in the other",
    ylabel="share of shortcuts\nfound in ten items",
    ylim=(-0.02, 1.02),
)
axis.figure.legend(loc="outside lower center", ncols=3)
figures.headed(
    axis.figure, "At the middle strength ten latents are about most shortcuts, a probe's contexts about none"
)
pages.publish(
    axis.figure,
    "03_planted",
    "Share of shortcuts that one of the first ten items is about, by how unevenly they are planted. "
    "Bars: 95 %, Student's over the shortcuts; left, where nothing is planted, exact over worlds.",
    alt="Curves over the strength of planting: latents rise from nought to near one, features from a third to four fifths, words to two fifths; contexts stay low.",
)

# %% tags=["hide-input"]
judged = ("latents", "latents, contexts", "surface features", "words", "words that come with it", "difference of means")
grid = np.array([recalls(name, MIDDLE) for name in judged]).T
figure, axis = plt.subplots(figsize=(figures.WIDTH, 4.2))
axis.grid(False)
axis.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
for (row, column), value in np.ndenumerate(grid):
    axis.text(
        column,
        row,
        "–" if np.isnan(value) else f"{value:.0%}",
        ha="center",
        va="center",
        color="white" if value > 0.6 else "black",
        fontsize="small",
    )
labels = (
    "latents",
    "latents, if\ncontexts show it",
    "features",
    "words",
    "one of\nseveral",
    "contexts,\nmeans",
)
axis.set_xticks(range(len(judged)), labels, fontsize="small")
axis.set_yticks(range(len(ways)), ways)
figures.headed(figure, "Latents miss a topic and turns of phrase; their cards show almost what they are about")
pages.publish(
    figure,
    "03_by_shortcut",
    "How often each shortcut is found in ten items, at the middle strength; n = five worlds, for latents of five SAEs each; –: no few tokens can show it. The dense probe's contexts find none.",
    alt="A grid of ten shortcuts by six ways to find them: latents find eight of ten in nearly every world, and a topic and turns of phrase in a third of them.",
)

# %% tags=["hide-input"]
at_middle, at_weakest, by_luck = (
    {name: np.nanmean(recalls(name, strength)) for name in (*METHODS, *judged)} for strength in (MIDDLE, 1, 0)
)
expect(
    abs(at_middle["latents"] - 0.85) < 0.005
    and abs(at_middle["surface features"] - 0.8) < 0.005
    and abs(by_luck["surface features"] - 0.34) < 0.005
    and abs(at_middle["words"] - 0.4) < 0.005
    and abs(at_middle["words that come with it"] - 0.92) < 0.005
    and abs(by_luck["words that come with it"] - 0.12) < 0.005,
    "at the middle strength latents find .85, features .80 (.34 by luck), words .40, or .92 (.12 by luck) where one of several is enough",
)
expect(
    at_middle["dense probe"] == 0 and by_luck["latents"] == by_luck["words"] == 0,
    "a dense probe's contexts find none, and latents and words none where none is planted",
)
shown_there = ~np.isnan(recalls("latents, contexts", MIDDLE))
legible = found_share(recalls("latents, contexts", MIDDLE)[shown_there])
expect(
    abs(legible["mean"] - 0.75) < 0.005
    and legible["interval"][0] < 0.5
    and abs(recalls("latents", MIDDLE)[shown_there].mean() - 0.815) < 0.006,
    "cards show three quarters of eight, by which C1 would stay open; latents are about .82 of these",
)
expect(
    at_weakest["latents"] < 0.03
    and abs(at_weakest["words"] - 0.26) < 0.02
    and abs(at_weakest["surface features"] - 0.76) < 0.02,
    "at the weakest, latents find next to none, words a quarter, features three quarters",
)
hard = [ways.index("topic"), ways.index("a model's phrase")]
expect(
    max(recalls("latents", MIDDLE)[hard]) < 0.5 < min(np.delete(recalls("latents", MIDDLE), hard)),
    "a topic and turns of phrase are what latents miss",
)
by = ranks["surface features, by"]
expect(
    by["greeting"] == by["a model's phrase"] == ["first word is imperative"]
    and by["emoji"] == by["rare token"] == ["non-ASCII"],
    "features find greetings and phrases by the first word, emoji and the rare token as not ASCII",
)

# %% [markdown]
# What has a token of its own, or a form, some latent is about. A topic that is said in many words has no one latent here, nor has what chat models like to say. Of the eight shortcuts that a few
# tokens can show, latents are about .82, and their cards show three quarters. Features find greetings and phrases since the first word is no longer an order, rare tokens and emoji since they are not ASCII: they tell that something is there, not what. Where planting is weak, five eighths against three eighths,
# latents find next to none, words a quarter and features, a third by luck, three quarters.
#
# ## What cleaning does
#
# The raw pair again, to teach detectors on: as it was found, without each shortcut, and without all. Some changes rewrite (no question marks; no mark at the end; a capital first letter), one leaves out (who says “I” or “my”). For *orders* alone too few of these chats are
# left: they are replaced by those that the report has in distribution, which are orders. *All* are these again, brought to the report's one style (no “please”, no mark at the end, a capital first letter; one sentence, nobody addressed), which goes beyond what the cards show. *Other chats*, as many of all kinds, are a control for the swap. All training sets are of one size, class by class, drawn
# at random. OOD are plain prompts of other collections in the words of their sources: AdvBench, harmful questions, requests that only sound harmful, harmless twins.


# %% tags=["hide-input"]
CLEANINGS = ("as found", "other chats", "question marks", "full stops", "letter case", "first person", "orders", "all")


def rewritten(text, cleaning):
    """A prompt after a cleaning that rewrites, else as it is."""
    done = {
        "question marks": text.replace("?", ""),
        "full stops": text.rstrip(" .!:"),
        "letter case": text[:1].upper() + text[1:],
    }
    return (done | {"all": style.rewritten(text)}).get(cleaning, text)


def kept(text, cleaning):
    """Whether a cleaning leaves a prompt in."""
    has = style.features(text)
    drop = {
        "first person": has["first person"],
        "orders": not has["first word is imperative"],
        "all": not style.instruction(text),
    }
    return not drop.get(cleaning, False)


@cached
def to_clean(out, pair, labelled, rows, cleanings, seed):
    """Step: what is left of the raw pair after each of ``cleanings`` (the slice, those after which a text is the same joined by " + "), a fifth of the clusters for validation. Where orders alone are left, the chats are those that
    the report has in distribution, which are orders; "other chats" are as many of all kinds, drawn anew. OOD are the plain prompts of other collections, without neighbours of these. All in the words of their sources."""
    raw = {f"{s.name}:{r['id']}": r["text"] for s in rows.values() for r in sources.records(s)}
    raw |= {f"chat:{r['id']}": r["text"] for r in sources.records(rows["benign"])}
    every = [e for e in examples.read(labelled) if e.transform == "plain" and e.mix != "balanced" and e.base in raw]
    every = [e.model_copy(update={"text": raw[e.base], "mix": "post"}) for e in every]
    rng, found = np.random.default_rng(seed), [e for e in examples.read(pair) if e.split != "ood"]
    harmful = [e for e in found if e.label]
    chats = [e for e in every if e.slice == "chat" and e.split != "ood"]
    ours = {e.base for e in examples.read(labelled)} | {e.base for e in found}
    new = [base.id for base in prompts.benign_pool(rows["benign"]) if base.id not in ours]
    drawn = [new[i] for i in rng.permutation(len(new))[: len(found) - len(harmful)]]
    others = [
        chats[0].model_copy(update={"base": base, "text": raw[base].removesuffix("Share Prompt").strip()})
        for base in drawn
    ]
    inside = found + chats + others
    of_cleaning = {"orders": harmful + chats, "all": harmful + chats, "other chats": harmful + others}
    other = [e for e in every if e.split == "ood" and e.slice != "chat"]
    groups = likeness.clusters([e.text for e in inside + other]).tolist()
    of = {e.base: g for e, g in zip(inside, groups, strict=False)}
    made = [e.model_copy(update={"group": g}) for e, g in zip(other, groups[len(inside) :], strict=True)]
    made = [e for e in made if e.group not in of.values()]
    held = set()
    for label in (0, 1):
        names = sorted({of[e.base] for e in inside if e.label == label} - held)
        held |= set(rng.permutation(names)[: round(0.2 * len(names))].tolist())
    after: dict[tuple[str, str], list[str]] = {}
    for cleaning in cleanings:
        for e in of_cleaning.get(cleaning, found):
            text = rewritten(e.text, cleaning)
            if text.strip() and kept(text, cleaning):
                after.setdefault((e.base, text), []).append(cleaning)
    known = {e.base: e for e in inside}
    for (base, text), names in after.items():
        told = {"text": text, "slice": " + ".join(names), "transform": "plain", "group": of[base]}
        made.append(known[base].model_copy(update=told | {"split": "val" if of[base] in held else "train"}))
    Labels.of(made)
    examples.write(out, made)


@dataclass(frozen=True, kw_only=True)
class Cleaned(Change):
    """Train and validation after one cleaning; of train at most ``most`` harmless and harmful prompts, drawn."""

    cleaning: str
    most: tuple[int, int] = (10**9, 10**9)

    def changed(self, labels, texts, rng):
        mine = [self.cleaning in names.split(" + ") for names in labels.slice]
        split = np.where((labels.split == "ood") | mine, labels.split, "")
        for label, most in enumerate(self.most):
            there = np.flatnonzero((split == "train") & (labels.y == label))
            split[rng.permutation(there)[most:]] = ""
        return replace(labels, split=split).checked()


@dataclass(frozen=True, kw_only=True)
class Without(Change):
    """OOD prompts without those of a slice."""

    slice: str

    def apply(self, labels, texts, run):
        gone = (labels.split == "ood") & (labels.slice == self.slice)
        return replace(labels, split=np.where(gone, "", labels.split)).checked()


@result
def fewest(prompts, changes, draws):
    """[harmless, harmful]: the smallest numbers of train prompts after any of ``changes`` in any draw; and what each leaves in the first."""
    labels, texts = Labels.of(examples.read(prompts)), [e.text for e in examples.read(prompts)]
    found = {
        name: [
            [int((r.where("train") & (r.y == label)).sum()) for label in (0, 1)]
            for r in (change.apply(labels.drawn(d), texts, d) for d in range(draws))
        ]
        for name, change in changes.items()
    }
    return {
        "fewest": np.min([*found.values()], axis=(0, 1)),
        "first": {name: of[0] for name, of in found.items()},
        "n": int(labels.where("ood").sum()),
        "harmful": int(labels.y[labels.where("ood")].sum()),
    }


class OfPair(Study):
    """The same recipes on the raw pair."""

    @cached_property
    def labelled(self):
        return to_clean(raw, study.prompts, prompts.sources_of(p.sources), CLEANINGS, p.seed)

    @cached_property
    def prompt_activations(self):
        return harvest.harvest_prompts(self.conversations, self.reader, (p.layer,), p.layer)


dirty = OfPair(p)
size = fewest(
    dirty.labelled, {name: Cleaned(cleaning=name) for name in CLEANINGS}, p.probes.draws, name="03_sizes"
).value
most = tuple(size["fewest"])
k, place = min(p.probes.k_claim, max(p.probes.ks)), "max user"
probes_of = {
    "dense": (study.linear, (Residual(place),)),
    "k latents, finetuned": (study.few(ks=(k,)), dirty.see(Latents, some, place)),
    "sentence embedding": (study.linear, (dirty.embedding,)),
    "bag of words": (study.linear, (Words(),)),
    "surface features": (study.linear, (Surface(),)),
}
fits = {
    (name, cleaning): dirty.fit(probe, *seen, change=Cleaned(cleaning=cleaning, most=most))
    for name, (probe, seen) in probes_of.items()
    for cleaning in CLEANINGS
}
cleaned = {
    cleaning: dirty.table(
        {name: fits[name, cleaning] for name in probes_of},
        f"03_cleaned_{cleaning.replace(' ', '_')}",
        splits=("ood",),
        change=Cleaned(cleaning=cleaning, most=most),
    ).value
    for cleaning in ("as found", "all")
}
pairs = {
    f"{name}, {cleaning}": (fits[name, cleaning], fits[name, "as found"])
    for name in probes_of
    for cleaning in CLEANINGS[1:]
}
gains = dirty.compare(tables.differences, pairs, "03_gains").value
asked = dirty.compare(tables.differences, pairs, "03_gains_questions", change=Without(slice="AdvBench")).value
ordered = dirty.compare(
    tables.differences, pairs, "03_gains_orders", change=Without(slice="question-form harmful")
).value

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(figures.WIDTH, 5.2), sharey=True, sharex=True)
for axis, (what, of) in zip(axes, {"all OOD prompts": gains, "harmful ones are questions": asked}.items(), strict=True):
    rows = {cleaning: {name: of[f"{name}, {cleaning}"]["ood"] for name in probes_of} for cleaning in CLEANINGS[1:]}
    figures.forest(rows, "difference", axis)
    axis.axvline(0, color=figures.CONTEXT, linewidth=0.8)
    axis.set_title(what, fontsize="medium")
axes[0].set_ylabel("cleaned of")
for axis in axes:
    axis.set_xlabel("OOD AUROC, after less before")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
figures.headed(figure, "Cleaning helps where form misleads, and costs where it still tells")
pages.publish(
    figure,
    "03_cleaning",
    "Left, all OOD prompts; right, without AdvBench, whose prompts are orders (looked at after the fact). “Other chats”: a control. Bars: 95 %, over draws, SAEs and prompts; dots: SAEs, or draws.",
    alt="Two forest plots: over all OOD prompts, cleaned of all shortcuts, every detector loses in the mean, words surely; where harmful prompts are questions latents, features and the dense probe gain.",
)

# %% tags=["hide-input"]
OF = {"all OOD prompts": None, "AdvBench": "AdvBench", "harmful questions": "question-form harmful"}


def before_and_after(name, slice):
    both = (cleaned[cleaning][name] for cleaning in ("as found", "all"))
    return " → ".join(f"{(one['slices'][slice] if slice else one['ood'])['auroc']:.3f}" for one in both)


pages.table(
    ((name, *(before_and_after(name, slice) for slice in OF.values())) for name in probes_of),
    ("OOD AUROC, as found → all", *OF),
)


# %% tags=["hide-input"]
@result
def shortcuts_among(fitted, views, prompts, harvested, features, layer):
    """Of the latents that a probe on few reads, in each run, the share that is about one of ``features``: tells harmless prompts with it, as found, from those without."""
    every, data = examples.read(prompts), Data(prompts, harvested, layer)
    here = np.array(["as found" in e.slice.split(" + ") and e.label == 0 for e in every])
    has = matrix([e.text for e, there in zip(every, here, strict=True) if there]) > 0
    shares = []
    for view, runs in zip(views, methods.choices(fitted), strict=True):
        x = view.matrix(data, Labels.of(every))[here]
        telling = np.any([tells(x, has[:, list(FEATURES).index(feature)]) for feature in features], axis=0)
        shares.append([telling[run["settings"][run["best"]]["latents"]].mean() for run in runs])
    return {"seeds": shares, "mean": np.mean(shares)}


among = {
    cleaning: shortcuts_among(
        fits["k latents, finetuned", cleaning],
        probes_of["k latents, finetuned"][1],
        dirty.labelled,
        dirty.prompt_activations,
        tuple(features.values()),
        p.layer,
        name=f"03_among_{cleaning.replace(' ', '_')}",
    ).value
    for cleaning in ("as found", "all")
}
Markdown(
    f"Of the {k} latents that a probe reads, {among['as found']['mean']:.0%} are about one of the four shortcuts before cleaning, {among['all']['mean']:.0%} after."
)

# %% tags=["hide-input"]
of_all = {name: [of[f"{name}, all"]["ood"] for of in (gains, asked, ordered)] for name in probes_of}
expect(
    all(
        one["interval"][0] > 0
        for one in (of_all[name][1] for name in ("dense", "k latents, finetuned", "surface features"))
    )
    and abs(of_all["k latents, finetuned"][1]["difference"] - 0.155) < 0.005
    and abs(of_all["dense"][1]["difference"] - 0.03) < 0.005,
    "where harmful prompts are questions latents gain .16 by all, the dense probe .03, and features gain too",
)
expect(
    all(ordering["interval"][1] < 0 for _, _, ordering in of_all.values())
    and abs(of_all["k latents, finetuned"][2]["difference"] + 0.256) < 0.005,
    "on AdvBench every detector loses by all, latents .26",
)
expect(
    of_all["sentence embedding"][0]["interval"][0] < 0 < of_all["sentence embedding"][0]["interval"][1] < 0.02
    and abs(of_all["bag of words"][0]["difference"] + 0.09) < 0.005
    and of_all["bag of words"][0]["interval"][1] < 0,
    "over all OOD prompts the embedding gains nothing by all that can be seen, and words lose .09",
)
me = {name: gains[f"{name}, first person"]["ood"] for name in probes_of}
expect(
    all(me[name]["interval"][0] > 0 for name in me if name != "bag of words")
    and abs(me["sentence embedding"]["difference"] - 0.035) < 0.005
    and abs(me["k latents, finetuned"]["difference"] - 0.048) < 0.005,
    "to leave out the first person helps all but words, latents by .05 and the embedding by .04",
)
expect(
    gains["k latents, finetuned, question marks"]["ood"]["interval"][1]
    < 0
    < gains["sentence embedding, question marks"]["ood"]["interval"][0]
    and abs(gains["k latents, finetuned, question marks"]["ood"]["difference"] + 0.02) < 0.005,
    "without question marks latents lose .02, and the embedding gains as much",
)
expect(
    all(
        one["ood"]["interval"][0] < 0 < one["ood"]["interval"][1]
        for of in (gains, asked, ordered)
        for name in probes_of
        for one in (of[f"{name}, other chats"], of[f"{name}, full stops"], of[f"{name}, letter case"])
    ),
    "other chats, full stops and case move no detector that can be seen",
)
expect(
    among["as found"]["mean"] > 0.2 and among["all"]["mean"] < 0.01,
    "cleaning takes the shortcuts out of what latents a probe reads",
)

# %% [markdown]
# A shortcut is wrong only where it ends to hold. AdvBench's prompts are orders too: there form goes on paying, and a detector that was cleaned of it loses, latents .26. Without AdvBench, where harmful prompts and harmless ones ask, the same cleaning gives latents
# .16 and the dense probe .03. (Those parts were looked at after the first numbers; the row below counts all.) To leave out who says “I” helps all but words over all prompts, latents by .05, the embedding by .04. Full stops and case move nothing that can be seen; without question marks latents
# lose .02, and the embedding gains as much. Other chats of all kinds change nothing either, so it is not that chats were swapped; what else orders differ in cannot be told from their form here.
#
# ## The claims

# %% tags=["hide-input"]
of = {name: recalls(name, MIDDLE) for name in METHODS}
parts = {
    "C1": {
        "at the middle strength": found_share(of["latents"]),
        "with nothing planted": by_chance("latents"),
    },
    "C2": {name: found_share(of[name] - of["latents"], -1) for name in ("words", "surface features")},
    "C2b": {"dense probe": found_share(of["dense probe"] - of["latents"], -1)},
    "C3": {name: gains[f"{name}, all"]["ood"] for name in ("sentence embedding", "bag of words")},
}
shows = {"C3": ("03_cleaning", size["n"], p.probes.draws)}
records = [claims.judge(id, parts[id], *shows.get(id, ("03_planted", len(ways), WORLDS))) for id in sorted(parts)]
claims.filed(records, claims.fixed(), name="03_claims").value
pages.table(claims.rows(records), ("", "claim", "what decided", "verdict"))

# %% tags=["hide-input"]
expect(
    {r.id: r.verdict for r in records}
    == {"C1": "reproduced", "C2": claims.UNDECIDED, "C2b": "not reproduced", "C3": "not reproduced"},
    "C1 is reproduced, C2b and C3 are not, C2 stays open",
)
few_signs = recalls("latents, contexts", MIDDLE)
alike = found_share(-few_signs[~np.isnan(few_signs)], -1)
expect(alike["interval"][1] < -0.2, "judged by contexts alike, a dense probe's lack all that cards show")

# %% [markdown]
# † marks verdicts that stand when the rows of this page are taken together (Holm's correction); notebook 00 takes all rows. C1 is judged by what latents *are* about; by what their cards *show*, three quarters of eight shortcuts, it would be open. C2b was hard to pass: length has no sign that a few tokens show, and greetings, rare tokens, emoji and such phrases
# hardly stand in encyclopaedia and news. But judged alike, by contexts, cards show three quarters of what has a sign, and the probe's contexts nothing. “With nothing planted” says that no shortcut comes first by luck, not how mild a judge is.

# %% [markdown]
# ## Every latent
#
# <a href="latents.html">The latent browser</a>, a page of its own beside this one on the site (`build/report/site` after `make report`), has all latents of the finetuned SAE and of two others that notebooks name latents of: how often each
# fires, where, what it does to the next token and, of the finetuned SAE, explanations with their scores. It searches and filters; `/` searches, arrows and Enter move and open.

# %% tags=["hide-input"]
WIDE = 6  # tokens on either side of a peak
BINS = 10  # bars of a histogram
TOKENS = 6  # tokens that a latent raises or lowers


def through_the_last_norm(sae, lm):
    """([M, TOKENS] tokens whose logits a latent's decoder direction raises most, and lowers most), read off by the model's last norm and unembedding."""
    norm, ends = getattr(lm.model.get_decoder(), "norm", torch.nn.Identity()), []
    with torch.inference_mode():
        unembed = lm.model.get_output_embeddings().weight.float().cpu()
        for rows in sae.W_dec.detach().split(256):
            logits = norm(rows.to(lm.model.device, lm.model.dtype)).float().cpu() @ unembed.T
            ends.append([(sign * logits).topk(TOKENS, 1).indices.numpy() for sign in (1, -1)])
    return [np.concatenate(each) for each in zip(*ends, strict=True)]


@cached
def in_browser(out, saes, prompts, harvested, texts, lm, layer, by, section, seed, words):
    """Step: ``latents.json``, what :func:`lib.latents.browser.page` shows of all latents of ``saes`` {id: SAE}: where they fire on labelled prompts, and how often there and on
    ``texts``. ``words`` has the page's title and note, the SAEs' names by id, and of which of them latents are explained."""
    y, read = np.array([example.label for example in examples.read(prompts)]), activations.read(harvested, layer)
    owner, token = read.column("sequence"), read.column("token")
    pools, tokenizer, whole = autointerp.pools_of(texts, layer, section.window), model.tokenizer(lm), model.load(lm)
    latents, known, tokens = [], {}, sum(len(pool.window) for pool in pools)

    def index(ids):
        return [known.setdefault(int(each), len(known)) for each in ids]

    def contexts(f, label, top):
        """Of the prompts of a class the strongest peaks of a latent with activations ``f`` [n], as levels of its maximum."""
        order = np.flatnonzero((f > 0) & (y[owner] == label))
        order = order[np.argsort(-f[order], kind="stable")]
        peaks = order[np.sort(np.unique(owner[order], return_index=True)[1])[:3]].tolist()
        parts = [np.arange(max(0, at - WIDE), min(len(f), at + WIDE + 1)) for at in peaks]
        parts = [part[owner[part] == owner[at]] for part, at in zip(parts, peaks, strict=True)]
        return [[index(token[part]), np.ceil(9 * f[part] / top).astype(int).tolist()] for part in parts]

    for number, (name, trained) in enumerate(saes.items()):
        sae = training.load(trained)
        columns = pools[0].latents(sae), pools[1].latents(sae)
        some = range(sae.config.latents if name == words["explained"] else 0)
        told = by_counting(pools, columns, some, tokenizer, by, section, seed)
        with torch.inference_mode():
            on_prompts = torch.cat([sae.encode(x) for x in read.chunks()]).numpy()
        up, down = through_the_last_norm(sae, whole)
        for latent, f in enumerate(on_prompts.T):
            fired = np.concatenate([c.data[c.indptr[latent] : c.indptr[latent + 1]] for c in columns])
            top = float(max(f.max(), fired.max(initial=0)))
            firing = y[np.unique(owner[f > 0])]
            one = {"sae": number, "latent": latent, "explanation": "", "score": None}
            one |= {key: value for key, value in told.get(latent, {}).items() if value is not None}
            one |= {"max": round(top, 4), "frequency": round(len(fired) / tokens, 6)}
            one["fires"] = [round(float((firing == label).sum() / max(1, (y == label).sum())), 4) for label in (1, 0)]
            one["histogram"] = np.histogram(fired, BINS, (0, top or 1))[0].tolist()
            one |= {"up": index(up[latent]), "down": index(down[latent])}
            latents.append(one | {"contexts": [contexts(f, label, top) for label in (1, 0)]})
    counts = {"tokens": tokens, "harmful": int(y.sum()), "harmless": int((1 - y).sum())}
    found = {"title": words["title"], "note": words["note"], "latents": latents}
    found["saes"] = [{"id": name, "name": words[name], **counts} for name in saes]
    found["vocabulary"] = token_texts(tokenizer, known)
    (out / "latents.json").write_text(json.dumps(found), encoding="utf-8")


# %%
others = {"finetuned": finetuned[0], "IT": study.saes["IT"][0], "chat": study.saes["chat"][0]}
about = {
    "title": "Latents",
    "note": "Contexts below come from public red-teaming benchmarks and chats, and some name harmful acts. They are cut short; no model answers to them are kept.",
    "finetuned": "finetuned on chat, first seed",
    "IT": "pretraining text as user turns, first seed",
    "chat": "chat from scratch, first seed",
    "explained": "finetuned",  # whose latents are explained and scored, two minutes for an SAE
}
every_latent = in_browser(others, pair, turns, *explain_by, about)
if store.active().mode == "fresh":  # a run that builds the site: there the page lies beside this one
    shown_there = browser.page(json.loads((every_latent.path / "latents.json").read_text("utf-8")))
    store.write_atomic(config.build_dir() / profile / "attached" / "latents.html", shown_there)

# %% [markdown]
# ## What we find
#
# **We find** that of shortcuts that were planted, at three quarters against one quarter, ten latents are about most and their cards show three in four of those that can be shown, without anybody having thought of them. A list of features is about as many, and about none that nobody
# put on it: a topic, another language. Words are about most for a reader who takes one of several for a sign, and about more than latents where the shortcut is weak. The strongest contexts of a dense probe show what the detector should read, and of what was planted nothing.
#
# **It means** that SAEs are a fair tool to look into data with, as the post hoped; whether counting is as good, as it guessed, stays open, and reading a probe's contexts was not. But knowing a shortcut is not knowing whether it will mislead: cleaning helped or hurt by where the detector was sent.
#
# **What would change our mind.** People who read cards: here rules decide what an item is about and what a card shows. The ten shortcuts are ours, some of them alike, and intervals are for others of such kinds. Contexts were looked for in
# encyclopaedia and news; in chats a probe's may show more. Cleaning was tried on one pair, with some four hundred prompts to learn from.
#
# **Try** a shortcut of your own: `planted["exclamation mark"] = ("{text}!",)`; or `overrides = {"debugging.cards": 30}`, more latents down the list. **Next**: [04](04_autointerp.ipynb)
# asks how well latents can be explained at all.
