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
# found shortcuts so, and thought that simpler methods would find them too. Here both are tried on
# [HarmBench](https://arxiv.org/abs/2402.04249) against first turns of chats, in the words of
# their sources: nothing is matched, but that chats are one line of 4 to 60 words, without code or links.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "training.latents": 1024}

# %% tags=["hide-input"]
import numpy as np
from IPython.display import display

from lib import figures, pages
from lib.latents import cards
from lib.lm import harvest, sequences
from lib.pages import expect
from lib.stats import column_aurocs, share_interval
from lib.store import cached, result
from lib.study import open_study
from lib.texts import examples, prompts, sources
from lib.texts.style import FEATURES, matrix

study = open_study(profile, overrides, frozen)
p = study.profile

pages.banner(profile, overrides)

# %% [markdown]
# ## The comparison
#
# The pair: HarmBench, and chats that are among the report's OOD prompts, so that no SAE was trained on them. The finetuned SAE of [notebook 01](01_training.ipynb) reads every
# token of the user's text. A latent's value on a prompt is its maximum there; latents are ranked by the difference of the two class means.


# %%
@cached
def raw_pair(out, rows, labelled, benign, seed):
    """HarmBench's prompts, and ``benign`` of the report's OOD chats at most (of all kinds), in the words of their sources."""
    ours = {e.base for e in examples.read(labelled) if e.slice == "chat" and e.split == "ood"}
    chat = [record for record in sources.records(rows["benign"]) if f"chat:{record['id']}" in ours]
    drawn = [chat[i] for i in np.random.default_rng(seed).permutation(len(chat))[:benign]]
    both = [("HarmBench", 1, record) for record in sources.records(rows["harmbench"])]
    both += [("chat", 0, record) for record in drawn]
    pair = [
        examples.Example(
            text=record["text"],
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


pair = raw_pair(prompts.sources_of(p.sources), study.prompts, p.debugging.prompts, p.seed)
turns = sequences.labelled(pair, study.lm, "user", 256)
finetuned = study.saes["finetuned"][0]
found = cards.cards(
    pair,
    harvest.harvest(turns, study.lm, (p.layer,)),
    finetuned,
    study.lm,
    p.layer,
    p.debugging.cards,
    p.debugging.contexts,
    name="03_cards",
).value
latents = found["latents"]


# %%
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
    title="Latents that peak on “?”, “.” and “I” fire on chats",
)
pages.publish(
    axis.figure,
    "03_mean_difference",
    "The latents with the largest difference in mean activation, largest first, and how many prompts of each class they fire on. Bars: 95 % "
    "(exact); the latents were picked on these same prompts.",
    alt="Forest plot of ten latents: those that peak on full stop, question mark and “I” fire on harmless prompts, “Give” and “Create” on harmful ones.",
)
style = {peak(latent): latent["harmless_share"] - latent["harmful_share"] for latent in latents}
expect(
    min(style.get(token, 0) for token in "?.I") > 0.15,
    "latents that peak on the question mark, the full stop and “I” fire more often on chat prompts",
)

# %% [markdown]
# ## The latents that separate best
#
# Of these, the five that tell the classes apart best by themselves. Shading is the latent's activation, relative to the strongest on its
# card. The best one peaks on “kidnap” and fires on nine harmful prompts in ten: it reads of harm. The others follow style: orders
# (“Create”), the full stop, the question mark, and verbs in lower case at the beginning.
#
# > **Content note.** The excerpts below come from public red-teaming benchmarks and name harmful acts. They are cut short; no model answers
# > to them are kept.

# %%
best = sorted(latents, key=lambda latent: -abs(latent["auroc"] - 0.5))[:5]
for latent in best:
    title = f"Latent {latent['latent']}: fires on {latent['harmful_share']:.0%} of harmful, {latent['harmless_share']:.0%} of harmless prompts"
    display(pages.card(title, latent["contexts"]))
expect(
    best[0]["auroc"] > 0.9 and best[0]["harmful_share"] > 0.9 and peak(best[0]) == "kidn",
    "the latent that separates best fires on nine harmful prompts in ten and peaks on “kidnap”",
)
expect(
    {".", "?", "Create"} <= {peak(latent) for latent in best},
    "of the five latents that separate best, three read the full stop, the question mark and “Create”",
)

# %% [markdown]
# ## The rival: style features, each alone
#
# Does one need a model for this? Some thirty counts of punctuation, length, case and first words (no topic words) are set against the latents,
# one at a time. The score is the AUROC: the chance that a harmful prompt has more of it than a harmless one; a half is chance, and far below
# a half is as telling as far above.


# %%
@result
def shortcuts(prompts):
    """The AUROC of each style feature alone between the classes, farthest from chance first."""
    every = examples.read(prompts)
    aurocs = column_aurocs(matrix([e.text for e in every]), np.array([e.label for e in every]))
    order = np.argsort(-np.abs(aurocs - 0.5), kind="stable")
    return [{"feature": list(FEATURES)[i], "auroc": aurocs[i]} for i in order]


rival = shortcuts(pair, name="03_shortcuts").value


# %%
def apart(row):
    """How well a score separates the classes, whichever way it points."""
    return max(row["auroc"], 1 - row["auroc"])


of_style = [apart(latent) for latent in latents if peak(latent) in {".", "?", "I", "Create"}]
expect(
    abs(apart(rival[0]) - max(of_style)) < 0.05 < max(map(apart, latents)) - apart(rival[0]),
    "the best style feature separates about as well as the best latent of style, and worse than that of harm",
)
expect(
    {"contains a question mark", "first word is imperative", "ends with punctuation", "first person"}
    <= {row["feature"] for row in rival[:10]},
    "the first style features tell of orders, of final punctuation, of question marks and of the first person",
)

# %% tags=["hide-input"]
rows = [("style", row["feature"], row) for row in rival[:4]]
rows += [("latent", f"peaks on {pages.literal(peak(latent))}", latent) for latent in best[:4]]
pages.table(
    (
        (kind, what, f"{apart(row):.3f}", "harmful" if row["auroc"] > 0.5 else "harmless")
        for kind, what, row in sorted(rows, key=lambda row: -apart(row[2]))
    ),
    ("found by", "what it reads", "AUROC alone", "more of it in"),
)

# %% [markdown]
# ## What we find
#
# **We find** the shortcuts by reading a handful of cards: the benchmark's prompts are orders, without full stops, question marks or a first
# person. Counting features, with no model, finds the same ones. What separates best is no shortcut: a latent that reads of harm, which no list of
# style features has.
#
# **It means** that latents are a quick way to see what is in a data set, for somebody who does not know what to look for; at shortcuts they are
# no better than a list of obvious features, and the list had to be thought of. A detector taught on this pair could learn to
# spot orders as well as harm. That is why notebook 02 brings all prompts to one style before it teaches.
#
# **What would change our mind.** Reading cards is a judgement; it becomes a measurement once shortcuts are planted and each method is scored on
# finding them. The excerpts are each latent's strongest contexts, which look more coherent than its weaker ones. The features were chosen
# by people who knew of such shortcuts.
#
# **Try** `overrides = {"debugging.cards": 30}`, more latents down the list, where topics appear. **Next**: [04](04_autointerp.ipynb)
# asks how well latents can be explained at all.
