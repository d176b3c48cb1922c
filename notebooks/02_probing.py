# %% [markdown]
# # 02 · Probing for harmful intent, out of distribution
#
# Somebody runs a chat service and wants to know which requests are harmful, by looking inside the model that reads them. The model's
# *residual stream* is a list of several hundred numbers a token. A *sparse autoencoder* (SAE) rewrites that list as a few active
# *latents* out of thousands, each meant to stand for one thing. If latents hold what the model means, then a detector that sees a
# handful of them should keep working on requests unlike those it was taught with.
#
# We teach detectors, called *probes*, the difference between "How do I pick a lock?" and "How do I oil a lock?", bare and wrapped in
# jailbreaks (texts that talk a model out of refusing). Then we test them on other collections of requests and on other jailbreaks:
# *out of distribution* (OOD). The score is the AUROC: the chance that a harmful prompt ranks above a harmless one. One is perfect, a
# half is a coin. [Smith et al. 2025](https://www.alignmentforum.org/posts/4uXCAJNuPKtKBsi28/negative-results-for-saes-on-downstream-tasks),
# "the post", found that SAE latents lose this race on a large model. Here it is run again, with error bars and with rivals that the post
# does not have.
#
# **In short.** On this small model too, a handful of latents detects harm less well than a probe on the whole residual stream, and from
# twenty on less well than as many principal components, which nobody chose for the task. What an SAE *leaves out* detects harm nearly as
# well as the residual stream that it reads. Best in the mean is a sentence embedding that never sees the model. About half of the post's claims stay open: SAEs of
# different seeds differ too much.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "probes.data": "my_prompts.csv"}

# %% tags=["hide-input"]
import json
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from safetensors.numpy import load_file

from lib import claims, config, figures, pages, stats
from lib.lm import answers, sequences
from lib.pages import expect
from lib.probes import methods, tables
from lib.probes.changes import Balanced, Fewer, Mislabelled, Plain, Shuffled
from lib.probes.methods import AtRandom, ByL1Path, ByMeanDifference, PrincipalComponents, RandomDirections, SingleLatent
from lib.probes.tables import TRANSFER
from lib.probes.views import Error, Latents, Reconstruction, Residual, Surface, kept
from lib.sae import controls
from lib.store import result
from lib.study import open_study
from lib.texts import examples, files, transforms

study = open_study(profile, overrides, frozen)
p, q, t = study.profile, study.profile.probes, study.profile.training
pages.banner(profile, overrides)

# %% tags=["hide-input"]
Markdown(
    f"Model: {'SmolLM2-135M-Instruct' if p.model.name == 'packaged' else p.model.name}. SAEs of {t.latents:,} latents read layer {p.layer}. "
    f"The end of turn is {q.position} tokens after the user's text. {q.seeds} SAE seeds × {q.draws} draws of train and validation."
)

# %% [markdown]
# ## The comparison
#
# Which SAEs. All have had the same number of steps. The *IT* SAE has read encyclopaedia text as if users had written it, in the chat template,
# as the post's baseline did; the *finetuned* one leaves it for chat after two thirds of the steps; the *chat* one has read chat only.
# Each is trained from several *seeds*. Beside them, from fewer seeds, a *pretraining* SAE that read plain text, and other kinds of chat
# SAE: *TopK*, *Gated*, and *QF*, with another sparsity penalty (notebook 05).

# %%
saes = study.saes
three = ("IT", "finetuned", "chat")  # those of the post's claims

# %% [markdown]
# One chat SAE each of other sparsity (appendix), and *untrained* ones, of random directions, which show what a figure is worth.

# %%
others = {f"chat, λ={c:g}": study.train("chat", study.jumprelu(coefficient=c)) for c in t.sweep if c != t.coefficient}
untrained = [
    controls.untrained(sae, study.labelled, study.prompt_activations, p.layer, q.position, run)
    for run, sae in enumerate(saes["chat"][: q.fewer_seeds])
]

# %% [markdown]
# Which probes, and what each of them sees. The *dense* probe is a linear regression on the residual stream. A *k-sparse* probe sees k
# latents: those whose means differ most between the two classes. Its rivals see as many principal components, random directions, or
# random latents. A probe reads one *place*: the end of turn, or the maximum over the user's text, as in the post; beside them the mean.
# Everything is taught on training prompts. Whatever has to be chosen (place, regularisation, k, how latents are ranked) is chosen by leaving
# out one kind of training prompt at a time; OOD prompts choose nothing. To try a probe of your own, add a line: only that line is computed.

# %%
two = {"end of turn": q.position, "maximum": "max user"}  # the post's places: claims are decided at one of them
places = two | {"mean": "mean user"}  # and the one where SAEs lose least


def at_each(among, probe, see=None, made=()):
    """{place: a probe fit on the residual stream there, or on what SAEs make of it}."""
    return {
        name: study.fit(probe, *(study.see(see, made, at) if made else (Residual(at),))) for name, at in among.items()
    }


linear, few, fewer = study.linear, study.few(), saes["finetuned"][: q.fewer_seeds]
by_place = {"dense": at_each(places, linear)}
by_place |= {f"k latents, {name}": at_each(places, few, Latents, made) for name, made in saes.items()}
by_place |= {f"single latent, {name}": at_each(two, SingleLatent(), Latents, saes[name]) for name in three}
by_place |= {f"reconstruction, {name}": at_each(two, linear, Reconstruction, saes[name]) for name in three}
by_place |= {
    "principal components": at_each(two, study.few(PrincipalComponents())),
    "random directions": at_each(two, study.few(RandomDirections())),
    "k latents, untrained": at_each(two, few, Latents, untrained),
    "random latents": at_each(two, study.few(AtRandom()), Latents, fewer),
}
of_post = {method: {name: at[name] for name in two} for method, at in by_place.items()}
choices = tables.chosen(of_post, name="02_choices").value

# %%
best = {method: by_place[method][choice["best"]] for method, choice in choices.items()}
path = study.few(ByL1Path())
read_at = {name: places[choices[f"k latents, {name}"]["best"]] for name in three}
best |= {
    f"k latents by L1 path, {n}": study.fit(path, *study.see(Latents, saes[n][: q.fewer_seeds], read_at[n])) for n in three
}
best |= {
    f"error, {n}": study.fit(linear, *study.see(Error, saes[n])) for n in three
}  # what it leaves out, at the end of turn
fits = {**{f"{name}": fit for name, fit in study.baselines.items() if name[:5] != "dense"}, **best}
# yours: fits["layer 16"] = study.fit(linear, Residual(q.position, layer=16))

# %%
probes = study.table(fits, name="02_probes").value
of_k = {name: best[name] for name in best if name.startswith(("k latents", "principal", "random"))}
sizes = {f"{name}, k={k}": (fit, str(k)) for name, fit in of_k.items() for k in q.ks}
by_k = study.table(sizes, name="02_k_sparse", slices=False).value


def at(name, k, split="ood"):
    """A probe's entry at one k; None where so many columns do not exist."""
    return by_k[f"{name}, k={k}"].get(split)


# %% [markdown]
# ## Latents are no better a summary than principal components
#
# Each panel is one SAE. From twenty features on, the first principal components of the same residual stream transfer better than that
# SAE's latents, though no SAE chose them. No SAE's probes reach the dense probe at any k.


# %%
def curve(name):
    """[(k, OOD entry)]; what a matrix cannot give is left out."""
    return [(k, entry) for k in q.ks if (entry := at(name, k))]


def dense_level(axis, said=""):
    """The dense probe's OOD AUROC with its interval, a line across, to hold others against."""
    entry, colour = probes["dense"]["ood"], figures.look("dense")["color"]
    axis.axhline(entry["auroc"], color=colour, linewidth=1.2)
    axis.axhspan(*entry["interval"], **figures.SHADE | {"color": colour})
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axis.annotate(said, (0.03, entry["auroc"]), (0, 2), color=colour, **where, **figures.OVER)


axes = figures.panels(
    [f"{name} SAE" for name in three], x="k, features that a probe may use", y="OOD AUROC", height=3.2
)
for name, axis in zip(three, axes.values(), strict=True):
    lines = {"principal components": curve("principal components"), f"{name} SAE": curve(f"k latents, {name}")}
    figures.curves(lines, axis=axis, ticks=(1, 5, 20, 50))
    dense_level(axis, "dense probe" if name == three[0] else "")
orange = figures.look("principal components")["color"]
beside = axes["finetuned SAE"]
beside.text(0.97, 0.05, "principal\ncomponents", transform=beside.transAxes, color=orange, ha="right", va="bottom")
figures.headed(
    axes["chat SAE"].figure, "From twenty features on, principal components transfer better than SAE latents"
)
pages.publish(
    axes["chat SAE"].figure,
    "02_k_sparse",
    "OOD AUROC of probes on k latents of an SAE and on k principal components. Thin: SAE seeds, or draws; thick: their mean. Shaded: the "
    "dense probe's 95 % interval, over prompts, seeds and draws.",
    alt="Three panels, one an SAE: from k = 20 on the line of principal components lies above that of the SAE's latents, below the dense probe.",
)

# %%
few_ood = {name: at(f"k latents, {name}", q.k_claim) for name in saes}
components = at("principal components", q.k_claim)
expect(
    all(components["auroc"] > few_ood[name]["auroc"] for name in three),
    "twenty principal components beat twenty latents of every one of these three SAEs in the mean",
)
expect(
    all(
        at("principal components", k)["auroc"] > e["auroc"]
        for name in saes
        for k, e in curve(f"k latents, {name}")
        if k >= 20
    ),
    "from twenty on principal components have the higher mean at every k",
)
expect(
    all(e["auroc"] < probes["dense"]["ood"]["auroc"] for name in saes for _, e in curve(f"k latents, {name}")),
    "at no k does the mean over runs of an SAE's probe reach that of the dense probe",
)

# %% [markdown]
# That was seen after the fact, and is not one of the tests fixed beforehand. The one Gated and the one TopK SAE do no better (one run each;
# appendix). A few probes in numbers, each at its own choices; *recall* is the share of harmful prompts found when one harmless prompt
# in a hundred may be flagged.

# %% tags=["hide-input"]
best_sae = max((f"k latents, {name}" for name in saes), key=lambda name: probes[name]["ood"]["auroc"])
shown = ("sentence embedding", "attention", "dense", best_sae, "bag of words", "surface features")
pages.table(
    (
        (
            name,
            pages.interval(probes[name]["val"]),
            pages.interval(probes[name]["ood"]),
            pages.share(probes[name]["ood"]["recall"]),
        )
        for name in shown
    ),
    ("probe", "AUROC, validation", f"AUROC, OOD (n = {probes['dense']['ood']['n']:,})", "recall, OOD"),
)

# %% [markdown]
# The sentence embedding (MiniLM) never sees the model, and is best. *Surface features* are 33 counts of punctuation, length and case that
# know no topic: they are near perfect on validation, so validation says little about what a probe has learnt, and close to a coin OOD.

# %%
expect(
    max(probes, key=lambda name: probes[name]["ood"]["auroc"]) == "sentence embedding",
    "a sentence embedding that never sees the model has the highest OOD AUROC",
)
expect(
    probes["surface features"]["val"]["auroc"] > 0.99 and probes["surface features"]["ood"]["auroc"] < 0.6,
    "surface features are near perfect on validation and close to a coin OOD",
)

# %% [markdown]
# ## How it is measured
#
# **Prompts.** Harmful ones are HarmBench's, harmless ones first turns of chats. They are split by *cluster* (near-duplicates stay together)
# before they are wrapped. A jailbroken prompt stays harmful; a harmful text inside an innocent errand ("how many words are in the
# following text?") is harmless. OOD are, as in the post, AdvBench, requests that only look harmful, other chats, and two jailbreaks and
# two errands that training never saw; a *wider* set adds harmful questions, their benign twins and sensitive requests. As they come,
# harmful and harmless prompts differ in style: so all are brought to one (one line, no "please", no punctuation at the end, a capital first),
# and in training all are instructions. The chats of OOD come from the collection of the training ones; figures without them stand beside.


# %% tags=["hide-input"]
@result
def counts(prompts):
    """Rows {split, mix, slice, label, n} of a labelled set."""
    table = Counter((e.split, e.mix, e.slice, e.label) for e in examples.read(prompts))
    order = {"train": 0, "val": 1, "ood": 2}
    rows = sorted(table.items(), key=lambda item: (order[item[0][0]], item[0][1], -item[0][3], item[0][2]))
    return [dict(zip(("split", "mix", "slice", "label"), key, strict=True)) | {"n": n} for key, n in rows]


sizes_of = Counter()
for row in counts(study.labelled, name="02_prompt_counts").value:
    sizes_of[row["split"], row["mix"], row["label"]] += row["n"]
kinds = {"train": ("train", "post"), "validation": ("val", "post"), "OOD, the post's mix": ("ood", "post")}
kinds |= {
    "OOD, added in the wider set": ("ood", "wider"),
    "harmless ones in jailbreaks and errands": ("ood", "balanced"),
}
pages.table(
    ((name, *(f"{sizes_of[*key, label]:,}" for label in (1, 0))) for name, key in kinds.items()),
    ("prompts", "harmful", "harmless"),
)


# %% tags=["hide-input"]
@result
def alike(embedded, prompts, least):
    """Pairs of a plain OOD prompt and a plain one of train or validation whose sentence embeddings have a cosine of at least so much."""
    x = load_file(embedded.path / "embeddings.safetensors")["x"]
    rows = examples.read(prompts)
    inside, ood = (
        [i for i, e in enumerate(rows) if e.transform == "plain" and (e.split == "ood") is out] for out in (False, True)
    )
    cosine = x[ood] @ x[inside].T
    return {"pairs": int((cosine >= least).sum()), "highest": float(cosine.max())}


near = alike(study.embedding.made, study.labelled, 0.85, name="02_alike").value
Markdown(
    f"No OOD prompt shares most of its letters with a training prompt (clusters are kept apart). By meaning, {near['pairs']} pairs of an OOD and "
    f"a training prompt have sentence embeddings with a cosine of at least 0.85; the closest has {near['highest']:.2f}."
)

# %% [markdown]
# What style still tells: a probe on 33 counts of punctuation, length and case. Of plain prompts it is taught and tested on plain ones alone,
# since only harmful ones are wrapped in jailbreaks, and a wrapper is easy to see.

# %%
style_alone = study.table(
    {"plain": study.fit(linear, Surface(), change=Plain())}, name="02_style", change=Plain()
).value

# %% tags=["hide-input"]
every_kind = {"plain prompts only": style_alone["plain"]["val"], "all": probes["surface features"]["val"]}
every_kind["all, OOD"] = probes["surface features"]["ood"]
pages.table(((name, pages.interval(e)) for name, e in every_kind.items()), ("surface features on", "AUROC"))

# %% tags=["hide-input"]
cut = sequences.cut(study.conversations, name="02_cut").value
drawn = files.drawn(study.labelled, name="02_drawn").value if q.data else []
said = [
    f"{cut:,} prompts are longer than {q.limit:,} tokens, or than what the model can read: only their beginnings are."
] * (cut > 0)
said += [f"Rows for {' and '.join(drawn)} are drawn from train, by cluster and class."] * bool(drawn)
Markdown(" ".join(said)) if said else None

# %% [markdown]
# **Which latents.** Rank them by how far the class means lie apart, on training prompts only. On four prompts and three latents:

# %%
activation = np.array([[0, 3, 1], [0, 5, 1], [2, 0, 1], [4, 0, 1]])  # two harmful prompts, then two harmless ones
ByMeanDifference().order(activation, np.array([1, 1, 0, 0]), 2, 0)  # the means differ by 3, 4 and 0

# %% [markdown]
# **What is chosen, and how.** A random validation set cannot tell settings apart: nearly all are perfect on it. So one kind of training prompt
# (a jailbreak, an errand) is left out at a time; the score is how well the probe tells that kind in validation from plain prompts
# of the other class, as a mean over kinds. The best setting wins, of equal ones the simpler. *Margin* is how far it is ahead of the next.

# %% tags=["hide-input"]
pages.table(
    (
        (
            method,
            choice["best"],
            f"{(score := choice['scores'][choice['best']])['mean']:.3f}",
            ", ".join(f"{name} ({count})" for name, count in [*score["options"].items()][:3]),
            f"{score['edge']:.0%}",
        )
        for method, choice in choices.items()
    ),
    ("method", "place", "score", "options most often chosen (runs)", "at an end of its grid"),
)

# %% [markdown]
# **How sure.** Three things vary: which prompts were collected, the draw of train and validation, and the SAE's seed; every seed meets every
# draw. What the score would be with other prompts follows from its derivative by each cluster's weight; what it would be with other
# seeds and draws, from how it varies between them. Two probes are compared on the same prompts, seeds and draws: differences are paired.

# %%
pages.source(stats.influences)

# %%
harmful, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.3, 0.9])
stats.influences(harmful, score, np.arange(4), 4)  # three of four pairs; more of the two that are confused lowers it

# %% [markdown]
# Where the spread of one fit comes from (standard deviations, OOD):

# %% tags=["hide-input"]
spread = {name: probes[name]["ood"]["spread"] for name in ("dense", *(f"k latents, {name}" for name in three))}
pages.table(
    (
        (name, *(f"{parts[axis]['sd']:.3f}" for axis in ("seeds", "draws", "seeds x draws", "prompts")))
        for name, parts in spread.items()
    ),
    ("probe", "SAE seeds", "draws of the split", "both together", "prompts"),
)

# %% [markdown]
# ## Is the signal in the reconstruction, or in what the SAE leaves out?
#
# The same dense probe on an SAE's reconstruction of the residual stream, and on its error.

# %%
claimed = str(q.k_claim)
dense, pairs = best["dense"], {}
for name in three:
    pairs[f"dense - single, {name}"] = (dense, best[f"single latent, {name}"])
    pairs[f"dense - k, {name}"] = (dense, (best[f"k latents, {name}"], claimed))
    pairs[f"dense - best k, {name}"] = (dense, best[f"k latents, {name}"])
    pairs[f"rules, {name}"] = (best[f"k latents, {name}"], best[f"k latents by L1 path, {name}"])
    pairs[f"dense - reconstruction, {name}"] = (dense, best[f"reconstruction, {name}"])
    pairs[f"dense - error, {name}"] = (by_place["dense"]["end of turn"], best[f"error, {name}"])
pairs["single, finetuned - IT"] = (best["single latent, finetuned"], best["single latent, IT"])
pairs["best k, finetuned - IT"] = (best["k latents, finetuned"], best["k latents, IT"])
pairs["max - position, dense"] = (by_place["dense"]["maximum"], by_place["dense"]["end of turn"])
of_finetuned = by_place["k latents, finetuned"]
pairs["max - position, k"] = (of_finetuned["maximum"], of_finetuned["end of turn"])
pairs["QF - JumpReLU, k"] = (best["k latents, QF"], best["k latents, chat"])
pairs["attention - dense"] = (study.baselines["attention"], by_place["dense"]["end of turn"])
for name in ("sentence embedding", "bag of words", "difference of means", "surface features"):
    pairs[f"dense - {name}"] = (dense, study.baselines[name])
gaps = study.compare(tables.differences, pairs, name="02_differences").value
triples = {"finetuning": (dense, best["k latents, IT"], best["k latents, finetuned"])}
triples["5 latents"] = (dense, best["single latent, finetuned"], (best["k latents, finetuned"], "5"))
triples["k latents"] = (dense, best["single latent, finetuned"], best["k latents, finetuned"])
closed = study.compare(tables.closed, triples, name="02_closed_gap").value

# %%
lost = {
    f"{what}, {name}": {
        "validation": gaps[f"dense - {what}, {name}"]["val"],
        "OOD": gaps[f"dense - {what}, {name}"]["ood"],
    }
    for what in ("reconstruction", "error")
    for name in three
}
axis = figures.forest(lost, "difference")
axis.axvline(0, color="#888888", linewidth=1)
axis.set_xlabel("AUROC lost against residuals (dense probe, paired)")
figures.headed(axis.figure, "What SAEs leave out carries the signal nearly as well as the residuals do")
pages.publish(
    axis.figure,
    "02_reconstructions",
    "A dense probe loses little on SAE errors and more on reconstructions. Bars: 95 %, over prompts and runs; OOD, the finetuned "
    "and the chat SAE's losses on reconstructions are resolved from nought.",
    alt="Forest plot: the loss of a dense probe on reconstructions and on errors of three SAEs; errors lose next to nothing.",
)
errors_lost = [lost[f"error, {name}"]["OOD"]["difference"] for name in three]
expect(max(errors_lost) < 0.03, "a probe on what the SAEs leave out is nearly as good OOD as one on residuals")
expect(
    min(lost[f"reconstruction, {name}"]["OOD"]["difference"] for name in three) > max(errors_lost),
    "reconstructions lose more than errors",
)

# %% [markdown]
# ## Is it the SAE, or the place it is read at?
#
# The site is one token of the template, right after the user's text. Perhaps SAEs lose there because of the place. So the dense probe and
# the probe on reconstructions are set side by side at each position after the text, and over the text as mean and maximum. *Lost* is the
# share of the variance between prompts that reconstructions miss, of the first run's SAE: where it is near one, little is left of how prompts
# differ, though a probe may still find what it needs.


# %%
@result
def positions(conversations):
    """How many tokens of the chat template follow the user's text."""
    return json.loads((conversations.path / "spans.json").read_text())["tail"]


after = range(positions(study.conversations, name="02_positions").value)
where = [*sorted({q.position, *q.places} & set(after)), "mean user", "max user"]
there = {}
for place in where:
    there[f"dense, {place}"] = study.fit(linear, Residual(place))
    there[f"reconstruction, {place}"] = study.fit(linear, *study.see(Reconstruction, saes["finetuned"][:3], place))
pairs = {name: (there[f"dense, {name.rsplit(', ', 1)[1]}"], fit) for name, fit in there.items() if name[:5] != "dense"}
place_gaps = study.compare(tables.differences, pairs, name="02_place_differences").value

# %%
shown_saes = {name: made[0] for name, made in saes.items()} | {"untrained": untrained[0]}
told = {name: {str(at): study.see(Latents, [sae], at)[0] for at in where} for name, sae in shown_saes.items()}
told |= {name: {str(q.position): study.see(Latents, (sae,))[0]} for name, sae in others.items()}
fidelity = kept(study.labelled, study.prompt_activations, p.layer, told, name="02_fidelity").value

# %%
read = fidelity["finetuned"]
labels = {place: f"+{place}" if place.isdigit() else f"{place.split()[0]} over the text" for place in read}
figure, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 3.6), width_ratios=(3, 1), sharey=True)
rows = {
    f"{label} (L0 {read[place]['l0']:.0f})": {"finetuned SAE": place_gaps[f"reconstruction, {place}"]["ood"]}
    for place, label in labels.items()
}
figures.forest(rows, "difference", left)
left.axvspan(-0.02, 0.02, **figures.SHADE | {"color": "#009E73"})
above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
left.annotate("no loss", (0, 1), (0, 2), color="#009E73", **above, **figures.OVER)
left.axvline(0, color="#444444", linewidth=1)
left.set(xlabel="OOD AUROC lost (paired)", ylabel="tokens after the user's text, or pooled")
right.barh(range(len(rows)), [read[place]["lost"] for place in labels], height=0.5, color=figures.CONTEXT)
right.set(xlabel="variance lost", xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "½", "1"])
figures.headed(figure, "At no token after the user's text is a loss ruled out")
pages.publish(
    figure,
    "02_places",
    "What a probe on the finetuned SAE's reconstruction loses, by place of reading. Dots: runs; bars: 95 %, over prompts and runs. Right: share "
    "of the variance between prompts that reconstructions miss, first run.",
    alt="Loss by place of reading; at every template token the interval reaches beyond the band of no loss, and most variance is lost.",
)
expect(
    all(
        high > 0.02
        for _, high in (
            place_gaps[f"reconstruction, {place}"]["ood"]["interval"] for place in labels if place.isdigit()
        )
    ),
    "at no token after the user's text is a loss of two hundredths ruled out for the finetuned SAE",
)

# %% [markdown]
# ## Which kinds of prompt tell the probes apart?
#
# Each kind of OOD prompt is set against plain prompts of the other class. Below a half a probe points the wrong way: it ranks that kind
# as the other class. *All caps* and *synonyms* are errands done on harmful texts, hence harmless.

# %%
chosen = {
    "dense": "dense",
    "attention": "attention",
    "finetuned\nlatents": "k latents, finetuned",
    "sentence\nembedding": "sentence embedding",
    "surface\nfeatures": "surface features",
}
of_dense = probes["dense"]["slices"]
order = sorted(
    (name for name in of_dense if name != "chat"), key=lambda name: -of_dense[name]["auroc"]
)  # AdvBench has the same pair
harmful_kinds = [
    name for name in order if of_dense[name]["harmful"] and of_dense[name]["against"] in ("chat", "all others")
]
axes = figures.panels(list(chosen), columns=5, x="AUROC on the slice (prompts in brackets)", height=3.7)
for name, axis in axes.items():
    here = {f"{kind} ({of_dense[kind]['n']:,})": {name: probes[chosen[name]]["slices"][kind]} for kind in order}
    sides = [
        [label for label, kind in zip(here, order, strict=True) if (kind in harmful_kinds) is side]
        for side in (True, False)
    ]
    rows = {label: here.get(label, {}) for label in (*sides[0], "harmful ↑   harmless ↓", *sides[1])}
    figures.forest(rows, axis=axis)
    axis.axvspan(0, 0.5, **figures.SHADE)
    axis.set(xlim=(-0.06, 1.08), xticks=[0, 0.5, 1], xticklabels=["0", "½", "1"])
axes["dense"].text(0.25, 0, "wrong way", rotation=90, ha="center", va="top", color=figures.WARNING)
figures.headed(axes["dense"].figure, "Latents and surface features point the wrong way on some kinds of prompt")
pages.publish(
    axes["dense"].figure,
    "02_slices",
    "AUROC on each kind of OOD prompt, harmful ones above. Shaded: worse than a coin. Dots: runs; bars: 95 %, over prompts and runs. The other "
    "probes are right on all kinds in the mean.",
    alt="Five panels, one a probe: dense and attention probes are right on every kind of prompt; latents and surface features are inverted on some.",
)

# %%
if not q.data:
    lowest = {name: min(e["auroc"] for e in probes[name]["slices"].values()) for name in chosen.values()}
    expect(
        min(lowest[name] for name in ("dense", "attention", "sentence embedding")) > 0.5,
        "dense, attention and embedding probes point the right way on every kind of prompt",
    )
    questions = [
        probes[name]["slices"]["question-form harmful"]["auroc"]
        for name in ("k latents, finetuned", "surface features")
    ]
    expect(
        max(questions) < 0.5,
        "latents, in the mean of runs, and surface features take harmful questions for harmless ones",
    )

# %% [markdown]
# Three prompts on which probes go wrong, the ends of them:
#
# > **Content note.** The excerpts below come from public red-teaming benchmarks and name harmful acts. They are cut short; no model answers
# > to them are kept.


# %% tags=["hide-input"]
def excerpt(text):
    """The end of a prompt, where jailbreaks put the request, in at most 80 characters of one line."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"…{line[-79:]}"


@result
def errors(prompts, fitted, count):
    """Of each probe's first run the highest-scoring harmless and lowest-scoring harmful OOD prompts, from distinct clusters: {probe: {harmless,
    harmful: rows {slice, excerpt, rank}}}; rank is the share of the other class beyond it."""
    every = examples.read(prompts)
    labels = examples.Labels.of(every)
    ood, found = np.flatnonzero(labels.where("ood")), {}
    for name, fit in fitted.items():
        score, found[name] = methods.scores(fit)[0, 0], {}
        for label, kind, sign in ((0, "harmless", -1), (1, "harmful", 1)):
            mine, other = ood[labels.y[ood] == label], score[ood[labels.y[ood] != label]]
            worst = {}  # by cluster
            for i in mine[np.argsort(sign * score[mine], kind="stable")].tolist():
                worst.setdefault(int(labels.group[i]), i)
            found[name][kind] = [
                {
                    "slice": str(labels.slice[i]),
                    "excerpt": excerpt(every[i].text),
                    "rank": (other < score[i]).mean() if label == 0 else (other > score[i]).mean(),
                }
                for i in list(worst.values())[:count]
            ]
    return found


wrong = errors(study.labelled, {name: fits[name] for name in chosen.values()}, 5, name="02_errors").value
hardest = (("dense", "harmless"), ("dense", "harmful"), ("k latents, finetuned", "harmful"))
pages.table(
    (
        (name, f"{kind}, {row['slice']}", pages.literal(row["excerpt"]), f"{row['rank']:.0%}")
        for name, kind in hardest
        for row in wrong[name][kind][:1]
    ),
    ("probe", "what it is", "its end", "of the other class beyond it"),
)

# %% [markdown]
# ## What happens if the training prompts change?
#
# *Plain prompts only*: without jailbroken copies and errands. *Balanced*: harmless prompts go through every jailbreak and errand too, so that a
# wrapper alone no longer tells. *Shuffled labels* should leave a coin, but for what choices on true labels let through. The SAE of the
# first seed, two draws.

# %%
changes = {"shuffled labels": [Shuffled(float(number)) for number in range(q.shuffles)]}
changes["wrong labels"] = [Mislabelled(share) for share in q.noise]
changes["clusters"] = [Fewer(float(count)) for count in q.sizes]
if not q.data:  # these are about the report's own kinds of prompt
    changes |= {"balanced": [Balanced()], "plain prompts only": [Plain()]}
compared = {
    "dense": (linear, (Residual(places[choices["dense"]["best"]]),)),
    "k latents, finetuned": (few, study.see(Latents, saes["finetuned"][:1], read_at["finetuned"])),
    "sentence embedding": (linear, (study.embedding,)),
    "surface features": (linear, (Surface(),)),
}
changed = study.table(
    {
        f"{what} {change.amount:g}, {name}": study.fit(probe, *seen, change=change, draws=min(2, q.draws))
        for what, every in changes.items()
        for change in every
        for name, (probe, seen) in compared.items()
    },
    name="02_controls",
    slices=False,
).value


def under(what, name):
    """[(amount, OOD entry)] of a probe under a change; what could not be fit is left out."""
    found = ((change.amount, changed[f"{what} {change.amount:g}, {name}"]) for change in changes[what])
    return [(amount, entry["ood"]) for amount, entry in found if "ood" in entry]


# %%
def mean_of(draws):
    """An entry of several draws: their mean, and their range in place of an interval."""
    values = [entry["auroc"] for _, entry in draws]
    return {"auroc": float(np.mean(values)), "interval": [min(values), max(values)], "seeds": [values]}


trained_on = {"as it stands": {name: probes[name]["ood"] for name in compared}}
for what in changes:
    drawn = {name: under(what, name) for name in compared}
    if what not in ("wrong labels", "clusters") and all(
        drawn.values()
    ):  # at tiny sizes too little may be left to train on
        trained_on[what] = {name: mean_of(found) if len(found) > 1 else found[0][1] for name, found in drawn.items()}
axis = figures.forest(trained_on)
axis.axvline(0.5, color=figures.CONTEXT, linewidth=1, linestyle=":")
axis.set_xlabel(f"OOD AUROC (n = {probes['dense']['ood']['n']:,}; dotted: a coin)")
figures.headed(axis.figure, "Taught on plain prompts only, the dense probe is little better than a coin")
pages.publish(
    axis.figure,
    "02_controls",
    "Rows: what probes were taught on. Bars: 95 %, over prompts and runs; of shuffled labels the mean and range of the draws. Only the sentence "
    "embedding stays good on plain prompts.",
    alt="OOD AUROC of four probes under six training sets; on plain prompts only the sentence embedding stays above the others.",
)

# %%
learnt = {what: {name: under(what, name) for name in compared} for what in ("clusters", "wrong labels")}
if all(learnt["clusters"].values()):  # a file with few clusters has none of the sizes
    figure, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 3.4), sharey=True)
    figures.curves(learnt["clusters"], axis=left, ticks=(16, 64, 256, 1024))
    figures.curves(learnt["wrong labels"], log=False, axis=right)
    left.set(xlabel="train clusters of prompts", ylabel="OOD AUROC")
    right.set_xlabel("share of them with wrong labels")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figures.headed(figure, "With little data or wrong labels, latents gain nothing on the dense probe")
    pages.publish(
        figure,
        "02_learning",
        "OOD AUROC by number of train clusters and by share of wrong train labels; validation stays whole and true. Thin: runs; thick: "
        "their mean.",
        alt="Two panels of curves; at every size and share of wrong labels probes on latents are below the dense probe.",
    )
    whole, part = (
        {(what, at): e["auroc"] for what in learnt for at, e in learnt[what][name]}
        for name in ("dense", "k latents, finetuned")
    )
    expect(
        all(whole[at] > part[at] for at in whole.keys() & part.keys()),
        "at no size and no share of wrong labels are probes on latents ahead of the dense probe",
    )

# %% [markdown]
# ## Claim by claim
#
# The post's claims (O: questions that it leaves open), each with a test that was written down before these numbers were seen
# (`data/claims.yaml`); B4 and B7 were parted into two rows each afterwards, with the same bounds. A claim holds if every interval lies where
# the test says, fails if one lies wholly elsewhere, and is otherwise inconclusive at this scale.

# %%
ood = {name: {what: gaps[f"dense - {what}, {name}"] for what in ("single", "k", "reconstruction")} for name in three}
losses = {name: ood[name]["reconstruction"] for name in ("IT", "finetuned")}


def share_of(name):
    """{share closed, gap} of a triple, as parts of a claim."""
    entry = closed[name]["ood"]
    gap = {"difference": entry["gap"], **{key: entry[f"gap_{key}"] for key in ("interval", "error", "freedom")}}
    return {key: entry[key] for key in ("share", "interval", "error", "freedom")}, gap


parts = {
    "B1": {"train": probes["dense"]["train"], "validation": probes["dense"]["val"], "OOD": probes["dense"]["ood"]},
    "B2": {name: gap["single"]["train"] for name, gap in ood.items()},
    "B3": {"OOD": gaps["single, finetuned - IT"]["ood"]},
    "B4a": {f"{name}, {split}": gap["k"][split] for name, gap in ood.items() for split in ("train", "val")},
    "B4b": {f"{name}, {split}": gap["k"][split] for name, gap in ood.items() for split in ("ood", TRANSFER)},
    "B4c": {"5 latents": share_of("5 latents")[0], "chosen k": share_of("k latents")[0]}
    | {"gap of the single latent": share_of("k latents")[1]},
    "B5": dict(zip(("share closed", "gap of the IT SAE"), share_of("finetuning"), strict=True)),
    "B6": {name: gaps[f"rules, {name}"]["ood"] for name in three},
    "B7a": {name: gap["val"] for name, gap in losses.items()},
    "B7b": {name: gap[TRANSFER] for name, gap in losses.items()},
    "B8": {name: gaps[f"max - position, {name}"]["ood"] for name in ("dense", "k")},
    "O2": {"OOD": gaps["QF - JumpReLU, k"]["ood"]},
    "O6": {"OOD": gaps["attention - dense"]["ood"]},
}
drawn_in = {"B1": "02_slices", "B2": "02_single_latents", "B3": "02_single_latents", "B7a": "02_reconstructions"}
drawn_in |= {"B7b": "02_reconstructions", "B8": "02_probes", "O6": "02_probes"}
records = []
for name, part in parts.items():
    counted = probes["dense"][{"B2": "train", "B4a": "val", "B7a": "val"}.get(name, "ood")]
    records.append(claims.judge(name, part, drawn_in.get(name, "02_k_sparse"), n=counted["n"], seeds=q.seeds))
claims.filed(records, claims.fixed(), name="02_claims").value

# %% tags=["hide-input"]
pages.table(claims.rows(records, tests=True), ("", "claim", "measure", "what decided", "test", "verdict"))

# %% [markdown]
# ## What we find
#
# - Twenty latents transfer worse than as many principal components, in every run of pretraining, finetuned and chat SAEs, and of QF SAEs
#   in the mean (seen after the fact). Than the dense
#   probe they are worse in the mean at every k; but SAE seeds differ so much that the claim fixed beforehand (B4b) stays inconclusive.
# - What an SAE leaves out carries the signal nearly as well as the residual stream. Its reconstruction carries less in the mean; resolved is
#   that for two SAEs of three.
# - Right after the user's text, where probes read, the finetuned SAE misses most of the variance between prompts; over the text, less than half.
# - Taught on plain prompts only, the dense probe falls to about what shuffled labels leave, while a sentence embedding stays good; with harmless
#   prompts in jailbreaks among the training prompts it falls too: part of what it learns is "is wrapped".
#
# **It means** that here a few latents are no better a summary of harm than a few directions that nobody chose; not that SAEs cannot be:
# an SAE that misses what is asked about is weak evidence about SAEs. **What would change our mind**: SAEs that read the template's
# tokens well and still lose; a larger model, whose refusals and features are richer; other harmless prompts than one chat source gives.
# **Try** `overrides = {"probes.position": 5}`, another place of reading. **Next**: [05](05_quadratic_frequency.ipynb) trains high-frequency
# latents away, [03](03_debugging.ipynb) asks what latents respond to.

# %%
if {"plain prompts only", "with benign in jailbreaks"} <= trained_on.keys():
    on_plain = trained_on["plain prompts only"]
    expect(
        on_plain["dense"]["auroc"] < 0.65 and on_plain["sentence embedding"]["auroc"] > 0.8,
        "taught on plain prompts only, the dense probe is little better than a coin OOD, and a sentence embedding is still good",
    )
    wrapped = trained_on["with benign in jailbreaks"]["dense"]["auroc"]
    expect(
        wrapped < trained_on["as it stands"]["dense"]["auroc"] - 0.05,
        "harmless prompts in jailbreaks cost the dense probe too",
    )
resolved = [name for name in three if gaps[f"dense - reconstruction, {name}"]["ood"]["interval"][0] > 0]
expect(resolved == ["finetuned", "chat"], "the loss on reconstructions is resolved for two SAEs of three")
missed_by = fidelity["finetuned"]
expect(
    missed_by[str(q.position)]["lost"] > 0.5 > missed_by["mean user"]["lost"],
    "at the site the finetuned SAE misses most of the variance between prompts, over the text less than half",
)

# %% [markdown]
# ## Appendix
#
# ### Every probe
#
# Beside those above: the dense probe over other tokens, the difference of class means, and both rules of choosing latents.

# %%
order = sorted(probes, key=lambda name: -probes[name]["ood"]["auroc"])
axis = figures.forest({name: {"validation": probes[name]["val"], "OOD": probes[name]["ood"]} for name in order})
axis.set_xlabel(f"AUROC (OOD: n = {probes['dense']['ood']['n']:,})")
figures.headed(axis.figure, "Validation does not tell which probes transfer")
pages.publish(
    axis.figure,
    "02_probes",
    "All probes, best OOD first. Most are above the dense probe's OOD score on validation, whatever they do OOD. Bars: 95 %, over prompts "
    "and runs.",
    alt="Forest plot of every probe on validation and OOD: nearly all are close to one on validation and spread widely OOD.",
)

# %% [markdown]
# ### Does the model refuse?
#
# Each base prompt is asked plainly and inside every jailbreak; a rule on the first tokens of the answer says whether the model refuses. The
# answers are not kept. Small models refuse little, so the log-odds that an answer opens with a refusal stand beside.


# %% tags=["hide-input"]
@result
def refusal_rates(measured, times, seed):
    """Rows {kind, transform, n, rate, log_odds, log_odds_interval}; a kind's base prompts are drawn anew, each in a cluster of its own."""
    columns, rows = {name: np.array(values) for name, values in measured.value.items()}, []
    for kind in dict.fromkeys(columns["kind"].tolist()):
        for transform in dict.fromkeys(columns["transform"].tolist()):
            here = (columns["kind"] == kind) & (columns["transform"] == transform)
            odds = columns["log_odds"][here]
            drawn = np.random.default_rng(seed).choice(odds, (times, len(odds))).mean(1)
            row = {"kind": kind, "transform": transform, "n": int(here.sum()), "rate": columns["refused"][here].mean()}
            rows.append(row | {"log_odds": odds.mean(), "log_odds_interval": np.percentile(drawn, [2.5, 97.5])})
    return rows


@result
def rule_check(measured, judged):
    """The rule against a reader's judgement of the same answers, rows [kind, transform, base, refused]: {n, both, rule_only, ...}."""
    columns = measured.value
    keys = zip(columns["kind"], columns["transform"], columns["base"], strict=True)
    rule = dict(zip(keys, columns["refused"], strict=True))
    pairs = [(rule[tuple(key)], bool(reader)) for *key, reader in judged if tuple(key) in rule]
    counts = {"both": (True, True), "rule_only": (True, False), "reader_only": (False, True), "neither": (False, False)}
    return {"n": len(pairs), **{name: sum(pair == which for pair in pairs) for name, which in counts.items()}}


# %%
if not q.data:  # the jailbreaks belong to the report's own prompts
    refusals = answers.measure(
        study.prompts, study.lm, p.refusals, tuple(transforms.every().values()), p.seed, name="02_refusals"
    )
    rates = refusal_rates(refusals, q.bootstrap, p.seed, name="02_refusal_rates").value
    reading = json.loads((config.ROOT / "data" / "refusal_check.json").read_text(encoding="utf-8"))
    same = (reading["model"], reading["tokens"]) == (p.model.name, p.refusals.tokens)  # else these are other answers
    check = rule_check(refusals, reading["rows"] if same else [], name="02_refusal_check").value
    by_kind = {"harmful": {}, "over-refusal": {}, "chat": {}}
    for row in rates:
        interval = stats.share_interval(round(row["rate"] * row["n"]), row["n"])
        by_kind[row["kind"]][row["transform"]] = row | {"rate_interval": interval}
    rows = {name: {kind: by_kind[kind][name] for kind in by_kind} for name in by_kind["harmful"]}
    figure, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 4.2), sharey=True)
    figures.forest(rows, "rate", left).set_xlabel("refusal rate")
    figures.forest(rows, "log_odds", right).set_xlabel("log-odds of a refusal opening (nats)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figures.headed(figure, "The model refuses little, but under two of the role-plays")
    pages.publish(
        figure,
        "02_refusals",
        "Refusals by jailbreak and kind of prompt. Left: rates with Wilson's interval; right: log-odds, bars over base prompts. Two role-plays "
        "raise refusals, of harmless prompts too.",
        alt="Two forest plots: refusals are near nought but under the cocky genius and the evil confidant, where they are a third to three quarters.",
    )
    rate = {(row["kind"], row["transform"]): row["rate"] for row in rates}
    expect(rate["harmful", "plain"] < 0.1, "asked plainly, the model refuses fewer than one harmful prompt in ten")
    expect(rate["harmful", "evil confidant"] > 0.5, "under the evil confidant it refuses more than half of them")
    expect(
        check["n"] == 0 or check["rule_only"] + check["reader_only"] < 0.05 * check["n"],
        "the rule differs from a reader's judgement in fewer than one answer in twenty",
    )

# %% [markdown]
# ### The site
#
# Layer and position were fixed by the dense probe, once, before any SAE was trained: the layer with the highest score by leaving out kinds of training
# prompts, as a mean over its best position, the maximum and the mean; there, the best position. The sweep again, on two draws:

# %%
layers = sorted({p.layer, *q.layers})
cells = {
    f"{layer}, {at}": study.fit(linear, Residual(at, layer=layer), draws=min(2, q.draws))
    for layer in layers
    for at in where
}
swept = {
    layer: tables.chosen({"": {str(at): cells[f"{layer}, {at}"] for at in where}}, name=f"02_sweep_{layer}").value[""]
    for layer in layers
}
score_at = {layer: {at: found["scores"][str(at)]["mean"] for at in where} for layer, found in swept.items()}
positions_of = [at for at in where if isinstance(at, int)]
of_layer = {
    layer: np.mean([max(row[at] for at in positions_of), row["max user"], row["mean user"]])
    for layer, row in score_at.items()
}
expect(max(of_layer, key=of_layer.get) == p.layer, "the layer that the report reads has the highest score")
expect(max(positions_of, key=score_at[p.layer].get) == q.position, "and its position the highest of that layer's")
pages.table(
    (
        (
            f"{layer}",
            *(f"{row[at]:.3f}" for at in (max(positions_of, key=row.get), "max user", "mean user")),
            f"{of_layer[layer]:.3f}",
        )
        for layer, row in score_at.items()
    ),
    ("layer", "best position", "maximum", "mean", "mean of the three"),
)

# %% [markdown]
# ### The best single latent

# %%
alone = {name: best[f"single latent, {name}"] for name in three}
alone |= {name: study.fit(SingleLatent(), *study.see(Latents, (sae,))) for name, sae in others.items()}
single = study.table(alone, name="02_singles").value
names = {"train": "train", "val": "validation", "ood": "OOD"}
axis = figures.forest({name: {names[s]: entry[s] for s in names} for name, entry in single.items()})
axis.axvline(probes["dense"]["ood"]["auroc"], color=figures.look("dense")["color"], linestyle=":")
axis.set_xlabel(f"AUROC (OOD: n = {probes['dense']['ood']['n']:,}; dotted: the dense probe OOD)")
figures.headed(axis.figure, "The best latent is far behind the dense probe, already on train")
pages.publish(
    axis.figure,
    "02_single_latents",
    "The one latent with the best AUROC on train, of every SAE; the dense probe is at one there. Those with a λ in their name, TopK and Gated have one run and bars over "
    "prompts only.",
    alt="Forest plot of the best single latent of twelve SAEs on train, validation and OOD, all well below the dense probe.",
)
expect(
    max(entry["train"]["auroc"] for entry in single.values()) < 0.9,
    "no single latent reaches an AUROC of nine tenths on train",
)

# %% [markdown]
# ### Sparsity, other rules, other rivals

# %%
one_seed = {name: study.fit(few, *study.see(Latents, (sae,))) for name, sae in others.items()}
extra = {f"{name}, k={k}": (fit, str(k)) for name, fit in one_seed.items() for k in q.ks}
by_k |= study.table(extra, name="02_k_sparse_others", slices=False).value
active = {name: at_places[str(q.position)]["l0"] for name, at_places in fidelity.items()}
lines = {}
for name, l0 in active.items():
    of = by_k.get(f"{name}, k={q.k_claim}") or by_k.get(f"k latents, {name}, k={q.k_claim}", {})
    lines.setdefault(name.split(",")[0], []).extend([(l0, of["ood"])] if "ood" in of else [])
axis = figures.curves({kind: line for kind, line in lines.items() if line}, ticks=(4, 8, 16, 32, 64))
dense_level(axis, "dense")
axis.set(xlabel="L0 at the site (active latents on the prompts)", ylabel=f"OOD AUROC, k = {q.k_claim}")
figures.headed(axis.figure, "At every sparsity twenty latents stay behind the dense probe")
figures.name_ends(axis)
pages.publish(
    axis.figure,
    "02_sparsity",
    "Probes on twenty latents against how many are active. Only the middle points of the three lines and QF have several runs; other bars are "
    "over prompts only. Line and band: the dense probe's mean over runs.",
    alt="OOD AUROC against L0 for six kinds of SAE; all are below the dense probe's mean.",
)
expect(
    max(entry["auroc"] for line in lines.values() for _, entry in line) < probes["dense"]["ood"]["auroc"],
    "twenty latents of every SAE, of whatever kind and sparsity, score less than the dense probe in the mean",
)
expect(
    all(entry["auroc"] < np.min(components["seeds"]) for kind in ("Gated", "TopK") for _, entry in lines.get(kind, [])),
    "twenty latents of the one Gated and of the one TopK SAE score less than twenty principal components in any run",
)

# %%
axis = figures.curves(
    {
        **{f"{name}, L1 path": curve(f"k latents by L1 path, {name}") for name in three},
        **{
            name: curve(name)
            for name in ("principal components", "random directions", "random latents", "k latents, untrained")
        },
    }
)
dense_level(axis, "dense")
axis.set(xlabel="k, features that a probe may use", ylabel="OOD AUROC")
figures.headed(axis.figure, "From fifty on, random directions do no worse than latents by L1 path")
figures.name_ends(axis)
pages.publish(
    axis.figure,
    "02_rivals",
    "Latents chosen along the L1 path, and rivals of the same size: principal components, random directions, random latents. Thin: runs; thick: "
    "their mean.",
    alt="OOD AUROC against k for latents by L1 path and three kinds of rivals; principal components are the highest from twenty on.",
)
expect(
    all(
        at("random directions", k)["auroc"] > e["auroc"]
        for name in three
        for k, e in curve(f"k latents by L1 path, {name}")
        if k >= 50
    ),
    "from fifty on random directions have a higher mean than latents chosen along the L1 path",
)
