# %% [markdown]
# # 06 · Is it surprising that SAEs did not work?
#
# Notebook [02](02_probing.ipynb) taught detectors (*probes*) to tell harmful requests from harmless ones, and tested them on other requests and
# other jailbreaks: *out of distribution* (OOD). A probe on the model's *residual stream*, all its numbers at once (*dense*), kept working. A probe
# on twenty *latents* of a *sparse autoencoder* (SAE), the few active numbers into which an SAE rewrites the residual stream, did so less well. Why?
# [Smith et al. 2025](https://www.alignmentforum.org/posts/4uXCAJNuPKtKBsi28/negative-results-for-saes-on-downstream-tasks), "the post", name four
# explanations, and say that their data cannot tell them apart:
#
# - **H1** "Harmful intent" is no simple function of a few latents, but a sum of many.
# - **H2** Latents are not clean: none stands for a concept as a dense direction does.
# - **H3** Directions are missing: the SAE's dictionary does not have harm at all.
# - **H4** Spurious latents are as good as true ones on the training prompts, so the wrong ones are chosen.
#
# A ladder tells three of them apart, as far as it can; H2 has a test of its own. Its lowest rung is twenty latents chosen and weighed on training prompts, its highest the dense probe; from rung to rung
# one thing is given to the probe. In between it is given *hindsight*: it is taught on prompts of every kind, OOD ones too, and tested on others of
# them (no *cluster* of near-duplicates is on both sides). What hindsight gains was lost by learning under shift (H4). What all latents then gain over
# twenty was lost by sparsity (H1). What the dense probe gains over all latents is what the dictionary lacks (H3). The score is the AUROC: the chance
# that a harmful prompt ranks above a harmless one; one is perfect, a half is a coin.
#
# **In short.** At the *mean over the text*, where SAEs lose least, twenty latents taught on training prompts score .89 to .92 OOD, the dense probe .97; in hindsight
# twenty score .985 to .99, all latents and the dense probe .999. So on the post's mix of prompts H1 and H3 are **not supported** there. Both tests are blunt: most
# OOD prompts carry one of four wrappers, which hindsight gets to know, and all latents of an untrained SAE score as much. On *bare* prompts, which nothing wraps,
# twenty latents lack .04 to .07 of what all have, and at the post's *end of turn* the dictionary lacks .03 to .05. H2 is **supported**: a jailbreak has its latent,
# a collection, a form or a topic has none as good as a direction. H4, where the means point, stays **open**: hindsight gives latents more than the dense probe, surely so
# in IT and finetuned SAEs, at the mean over the text in none surely by more than .02. The dense probe has a higher mean than latents in every other design and on a sealed collection. This is one model of 135 M parameters with SAEs of 2,304
# latents: nothing follows for larger ones.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "training.latents": 1024}

# %% tags=["hide-input"]
import re
from dataclasses import dataclass, replace
from functools import cached_property

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown
from safetensors.numpy import load_file
from scipy.stats import rankdata, spearmanr
from sklearn.linear_model import orthogonal_mp
from sklearn.metrics import f1_score, precision_recall_curve
from transformers import AutoModelForCausalLM

from lib import claims, figures, pages, stats
from lib.config import ModelSection
from lib.lm import activations, harvest, model
from lib.pages import expect
from lib.probes import methods, tables
from lib.probes.changes import Balanced, Change, Fewer, LeftOut, Mislabelled
from lib.probes.methods import (
    AtRandom,
    ByL1Path,
    ByMeanDifference,
    KSparse,
    Logistic,
    PrincipalComponents,
    RandomDirections,
    Rule,
    SingleLatent,
)
from lib.probes.tables import NOTHING
from lib.probes.views import Data, Latents, Reconstruction, Residual, kept
from lib.sae import controls, training
from lib.sae.variants import make
from lib.store import Artifact, cached, result
from lib.study import Study, open_study
from lib.texts import examples, prompts, sources, style
from lib.texts.examples import Labels, TooFew

study = open_study(profile, overrides, frozen)
p, q = study.profile, study.profile.probes
pages.banner(profile, overrides)

# %% [markdown]
# ## Hindsight
#
# OOD prompts are dealt by cluster into folds. In each draw one fold stays OOD and is scored; the next joins validation, where settings are chosen;
# the others join the training prompts. So each OOD prompt is scored once, by a probe that has seen its kind but nothing of its cluster. A *change*
# of your own to a prompt set is a class of one method, as these are.


# %%
def dealt(labels, among, folds, run, others):
    """[n] str: the splits of the prompts ``among`` [n] bool, dealt by cluster: one fold is "ood", the next "val", the rest "train"."""
    groups = np.unique(labels.group[among])
    number = np.random.default_rng(0).permutation(len(groups)) % folds
    fold = (number[np.searchsorted(groups, labels.group).clip(max=len(groups) - 1)] - run) % folds
    return np.where(among, np.where(fold == 0, "ood", np.where(fold == 1, "val", "train")), others)


@dataclass(frozen=True)
class Hindsight(Change):
    """As if the post's OOD prompts had been seen. As many draws as ``folds`` score each once; with ``bare`` only those that no jailbreak or errand
    wraps are scored. What shares a cluster with them, of the wider set, is left out. All transforms count as one, so that settings are chosen on
    validation as it is: no shift is left to choose for. A table of such a fit, and of what it is compared with, is given the same change."""

    folds: int = 5
    bare: bool = False

    def apply(self, labels, texts, run):
        ood = labels.where("ood")
        split = dealt(labels, ood, self.folds, run, np.where(labels.split == "ood", "", labels.split))
        wrapped = (split == "ood") & (labels.transform != "plain")
        split = np.where(wrapped & self.bare, "", split)
        return replace(labels, split=split, transform=np.full_like(labels.transform, "plain")).checked()


# %% [markdown]
# Two more ways to come by twenty latents. *Across kinds* wants more than a difference of class means: every kind of harmful prompt on one side of
# every kind of harmless ones. It can be asked of training prompts alone, or in hindsight. *As* takes the latents of another probe, so that latents
# and their weights can be told apart.


# %%
@dataclass(frozen=True)
class AcrossKinds(Rule):
    """The columns in which the mean of every kind (slice) of harmful prompt lies beyond that of every harmless kind, by the gap between them in
    standard deviations; after them those whose kinds overlap least."""

    name = "across kinds"

    def columns(self, x, labels, ks, run):
        train, y = labels.where("train"), labels.taught
        means = {}
        for kind in np.unique(labels.slice[train]):
            for side in (0, 1):
                here = train & (labels.slice == kind) & (y == side)
                if here.any():
                    means.setdefault(side, []).append(x[here].mean(0))
        harmful, harmless = np.array(means[1]), np.array(means[0])
        gap = np.maximum(harmful.min(0) - harmless.max(0), harmless.min(0) - harmful.max(0))
        deviation = x[train].std(0)
        gap = np.where(deviation > 0, gap / np.where(deviation > 0, deviation, 1), -np.inf)
        order = np.argsort(-gap, kind="stable")
        yield from ((k, x[:, order[:k]], order[:k]) for k in ks if k <= len(order))


@dataclass(frozen=True)
class As(Rule):
    """The columns, at most twenty, that another fit has in the same run."""

    other: Artifact

    def columns(self, x, labels, ks, run):
        settings = methods.choices(self.other)[run // 1000][run % 1000]["settings"]
        for k in ks:
            which = np.array(settings[str(k)]["latents"])
            if len(which) == k:  # of more than twenty only so many are kept
                yield k, x[:, which], which


@dataclass(frozen=True)
class ChosenInEach(KSparse):
    """Probes on k columns whose rule and C are chosen in every draw: where a draw is a fold, the first one's choice has seen the others."""

    once = False


# %% [markdown]
# ## The ladder
#
# Read at the mean over the user's text, where SAEs lose least of how prompts differ (notebook 01), and, as in the post, at the end of turn, a token of the chat
# template after the text. OOD prompts are the post's mix: bare ones (AdvBench, chats, requests that only look harmful), and AdvBench in two jailbreaks (harmful) and in two
# innocent *errands*, such as putting a text in capitals (harmless). Terms that are not explained here (draw, seed, validation) are those of notebook 02. The IT SAE
# has read encyclopaedia text in the chat template, the *finetuned* one goes on from it to chats, the *chat* SAE has read chats only.

# %%
seen, k = Hindsight(folds=max(3, q.draws)), q.k_claim
saes, three = study.saes, ("IT", "finetuned", "chat")
places = {"mean over the text": "mean user", "end of turn": q.position}
few, short, linear = study.few(), study.few(ks=(k,)), study.linear
# On so many columns the strongest penalties matter, and ridges would cost most of the time.
wide = Logistic((1e-4, *q.penalties[:-1]))
same = Logistic((1e-4, *q.penalties))  # in hindsight: one family for residuals and latents
rules = (ByMeanDifference(), ByMeanDifference(standardised=True), AcrossKinds(), ByL1Path())
first = saes["chat"][: p.saes.fewer_seeds]
untrained = [
    controls.untrained(sae, study.labelled, study.prompt_activations, p.layer, n) for n, sae in enumerate(first)
]
rungs, beside = {}, {}
for where, at in places.items():
    count = p.saes.fewer_seeds if at == "mean user" else p.saes.level_seeds
    beside[where] = {
        "dense": study.fit(linear, Residual(at)),
        "dense in hindsight": study.fit(same, Residual(at), change=seen),
        "components": (study.fit(study.few(PrincipalComponents()), Residual(at)), str(k)),
        "components in hindsight": (study.fit(study.few(PrincipalComponents()), Residual(at), change=seen), str(k)),
        "all untrained latents in hindsight": study.fit(same, *study.see(Latents, untrained[:count], at), change=seen),
    }
    for name in three:
        view = study.see(Latents, saes[name][:count], at)
        taught = study.fit(study.few(*rules, ks=(k,)), *view)
        best = study.fit(ChosenInEach(q.ks, q.few_penalties, rules), *view, change=seen)
        rungs[where, name] = {
            f"{k} latents": (taught, str(k)),
            "same latents, weights in hindsight": (
                study.fit(study.few(As(taught), ks=(k,)), *view, change=seen),
                str(k),
            ),
            f"{k} latents in hindsight": (best, str(k)),
            "all latents in hindsight": study.fit(same, *view, change=seen),
            "dense in hindsight": beside[where]["dense in hindsight"],
        }
        beside[where] |= {
            f"{name}, weights of training prompts": (study.fit(study.few(As(best), ks=(k,)), *view), str(k)),
            f"{name}, across kinds": (study.fit(study.few(AcrossKinds(), ks=(k,)), *view), str(k)),
        }

# %% [markdown]
# Steps are differences of probes on the same prompts, seeds and folds. One is set against a control: hindsight helps *any* probe, so what counts as lost by
# learning under shift, latents and weights, is what hindsight gives twenty latents beyond what it gives the dense probe. That is more than H4 says, which is about latents.

# %%
named = {f"{where}, {name}, {row}": fit for (where, name), of in rungs.items() for row, fit in of.items()}
named |= {f"{where}, {name}": fit for where, of in beside.items() for name, fit in of.items()}
ladder = study.table(named, name="06_ladder", slices=False, splits=("val", "ood"), change=seen).value
pairs = {
    "weights": ("same latents, weights in hindsight", f"{k} latents"),
    "latents": (f"{k} latents in hindsight", "same latents, weights in hindsight"),
    "hindsight": (f"{k} latents in hindsight", f"{k} latents"),
    "sparsity": ("all latents in hindsight", f"{k} latents in hindsight"),
    "dictionary": ("dense in hindsight", "all latents in hindsight"),
}
steps = {
    f"{where}, {name}, {step}": (of[high], of[low])
    for (where, name), of in rungs.items()
    for step, (high, low) in pairs.items()
}
steps |= {
    f"{where}, {name}, latents alone": (beside[where][f"{name}, weights of training prompts"], of[f"{k} latents"])
    for (where, name), of in rungs.items()
}
excess = {
    f"{where}, {name}": (
        of[f"{k} latents in hindsight"],
        of[f"{k} latents"],
        beside[where]["dense in hindsight"],
        beside[where]["dense"],
    )
    for (where, name), of in rungs.items()
}
excess |= {
    f"{where}, components": tuple(
        of[row] for row in ("components in hindsight", "components", "dense in hindsight", "dense")
    )
    for where, of in beside.items()
}
bare = study.table(
    named, name="06_ladder_bare", slices=False, splits=("val", "ood"), change=replace(seen, bare=True)
).value
lost, choice = {}, {}
for scored in (seen, replace(seen, bare=True)):
    of = "bare" if scored.bare else "all"
    lost[of] = study.compare(tables.differences, steps, name=f"06_steps_{of}", change=scored).value
    choice[of] = study.compare(
        tables.differences, excess, name=f"06_choice_{of}", change=scored, weights=(1, -1, -1, 1)
    ).value


def rung(name, what, where="mean over the text"):
    """The OOD entry of a rung, or of what stands beside the ladder."""
    return ladder[", ".join(filter(None, (where, name, what)))]["ood"]


def step(name, what, where="mean over the text", of="all"):
    """The OOD entry of a step between rungs; "choice" is less what hindsight gives the dense probe."""
    return choice[of][f"{where}, {name}"]["ood"] if what == "choice" else lost[of][f"{where}, {name}, {what}"]["ood"]


# %%
axes = figures.panels([f"{name} SAE" for name in three], x="OOD AUROC, in five folds by cluster", height=3.0)
shown = [*rungs["mean over the text", "chat"]]
for name, axis in zip(three, axes.values(), strict=True):
    entries = [rung(name, what) for what in shown]
    axis.plot([e["auroc"] for e in entries], range(len(shown)), color=figures.CONTEXT, linewidth=1, zorder=0)
    figures.forest({what: {f"{name} SAE": e} for what, e in zip(shown, entries, strict=True)}, axis=axis)
figures.headed(axis.figure, "In hindsight twenty latents come close, and all of them reach the dense probe")
pages.publish(
    axis.figure,
    "06_ladder",
    "The ladder at the mean over the text: from twenty latents taught on training prompts (top) to the dense probe in hindsight (bottom). Dots: SAE "
    "seeds, of the dense probe draws; bars: 95 %, over prompts and runs.",
    alt="Three panels, one an SAE: the score of each rung of the ladder, from twenty latents at the top to the dense probe at the bottom.",
)

# %% tags=["hide-input"]
rows = {row: {name: f"{name}, {row}" for name in three} for row in rungs["mean over the text", "chat"]}
rows["latents in hindsight, weights of training prompts"] = {
    name: f"{name}, weights of training prompts" for name in three
}
rows["dense, taught on training prompts"] = dict.fromkeys(three, "dense")
rows["all untrained latents in hindsight"] = dict.fromkeys(three, "all untrained latents in hindsight")
pages.table(
    (
        (
            row,
            *(
                f"{ladder[f'mean over the text, {key}']['ood']['auroc']:.3f} ({bare[f'mean over the text, {key}']['ood']['auroc']:.3f})"
                for key in keys.values()
            ),
        )
        for row, keys in rows.items()
    ),
    ("OOD AUROC at the mean over the text (of bare prompts)", *(f"{name} SAE" for name in three)),
)

# %% [markdown]
# Either half of hindsight gains most of it: new weights on the latents that training prompts chose gain .06 to .07 of .08 to .10, and latents chosen in hindsight
# with weights of training prompts .06 to .08. Which comes first decides which seems to matter; these data do not rank them. Choosing latents that hold
# across kinds of training prompts does not help. All latents and the dense probe come within .002 of one; so do all latents of an *untrained* SAE: as many
# random directions of the residual stream, of which each token keeps its 39 largest, hold what it holds. So that all latents suffice says little of what was learnt.
#
# Scores here are means of five folds, for five seeds and the best of four rules; later figures score all OOD prompts at once, with notebook 02's two rules, for three to
# ten seeds. Compare within a figure.

# %%
hindsight_of = {name: {row: rung(name, row)["auroc"] for row in rungs["mean over the text", name]} for name in three}
expect(
    all(
        0.88 < of[f"{k} latents"] < 0.92
        and 0.98 < of[f"{k} latents in hindsight"] < of["all latents in hindsight"]
        and of["all latents in hindsight"] > 0.998
        for of in hindsight_of.values()
    )
    and rung("", "dense in hindsight")["auroc"] > 0.998
    and abs(rung("", "dense")["auroc"] - 0.97) < 0.005,
    "at the mean twenty latents score .89 to .92, dense .97; in hindsight twenty more than .98, all and dense more than .998",
)
halves_of = {
    name: [step(name, half)["difference"] for half in ("weights", "latents alone", "hindsight")] for name in three
}
expect(
    all(min(a, b) > 0.06 and max(a, b) < 0.09 and min(a, b) > 0.65 * whole for a, b, whole in halves_of.values()),
    "new weights alone, and new latents alone, gain .06 to .08, two thirds of the whole or more",
)
expect(
    all(rung("", f"{name}, across kinds")["auroc"] < rung(name, f"{k} latents")["auroc"] for name in three),
    "latents that hold across kinds of training prompts score less than the best of four rules",
)
expect(
    rung("", "all untrained latents in hindsight")["auroc"] > 0.998,
    "in hindsight all latents of an untrained SAE score as much",
)

# %%
told = {"choice": "learning under shift (H4)", "sparsity": "sparsity (H1)", "dictionary": "the dictionary (H3)"}
shown = [("mean over the text", "all"), ("mean over the text", "bare"), ("end of turn", "all")]
figure, trio = plt.subplots(1, 3, figsize=(figures.WIDTH, 3.0), sharey=True)
for (where, of), axis in zip(shown, trio, strict=True):
    rows = {said: {name: step(name, what, where, of) for name in three} for what, said in told.items()}
    figures.forest(rows, "difference", axis)
    axis.set_title(
        {"mean over the text": "mean over text"}.get(where, where) + (", bare" if of == "bare" else ""),
        fontsize="small",
    )
    axis.axvline(0, color=figures.CONTEXT, linewidth=1)
    axis.axvline(0.02, color=figures.CONTEXT, linewidth=1, linestyle=":")
    axis.tick_params(labelsize="small")
figure.supxlabel("OOD AUROC that a step loses (paired; dotted: .02)", fontsize="medium")
trio[0].legend(loc="lower right", fontsize="small")
figures.headed(figure, "Shift costs most in the mean over runs; sparsity costs more on bare prompts")
pages.publish(
    figure,
    "06_steps",
    "What each step of the ladder loses, by SAE; of shift, beyond what hindsight gives the dense probe. Scales differ. Middle: prompts that nothing wraps. Dots: SAE "
    "seeds; bars: 95 %, over prompts and runs.",
    alt="Forest plots of three steps in three settings: learning under shift, sparsity, the dictionary.",
)

# %% [markdown]
# **What hindsight sees.** Six in ten OOD prompts carry a jailbreak or an errand, and hindsight has seen all four: a probe that knew those templates and nothing of
# harm would score about .93. So the middle panel scores bare prompts alone (AdvBench against chats and over-refusal): there twenty latents in hindsight lack .04 to .07 of
# what all of them have, for sure more than .02 in IT and chat SAEs. The dictionary loses nothing that this test can see at the mean over the text; at the end of
# turn it lacks about .01, of bare prompts .03 to .05.

# %%
sparse, sparse_bare = ([step(name, "sparsity", of=of)["difference"] for name in three] for of in ("all", "bare"))
expect(
    max(sparse) < 0.02
    and 0.035 < min(sparse_bare) < max(sparse_bare) < 0.075
    and all(step(name, "sparsity", of="bare")["interval"][0] > 0.02 for name in ("IT", "chat")),
    "sparsity loses less than .02 on all OOD prompts, .04 to .07 on bare ones, there surely more than .02 in IT and chat SAEs",
)
ends = {of: [step(name, "dictionary", "end of turn", of)["difference"] for name in three] for of in lost}
expect(
    all(abs(step(name, "dictionary", of=of)["difference"]) < 0.002 for name in three for of in lost)
    and 0.005 < min(ends["all"]) < max(ends["all"]) < 0.015
    and 0.03 < min(ends["bare"]) < max(ends["bare"]) < 0.052,
    "the dictionary loses nothing at the mean; at the end of turn about .01, of bare prompts .03 to .05",
)
expect(
    all(step(name, "choice")["difference"] > max(sparse) for name in three),
    "learning under shift, beyond the dense probe's own gain, loses more than sparsity in the mean",
)
lows = {name: choice["all"][f"mean over the text, {name}"]["ood"]["interval"][0] for name in three}
expect(
    lows["chat"] < 0 < min(lows["IT"], lows["finetuned"]) < max(lows.values()) < 0.02,
    "hindsight gives latents of IT and finetuned SAEs surely more than the dense probe, none surely by .02",
)
least = choice["all"]["mean over the text, components"]["ood"]["interval"][0]
expect(least > 0.2, "principal components lose more than .2 by shift at the mean over the text")

# %% [markdown]
# Twenty principal components lose far more by shift at the mean over the text than latents do (.28 beyond the dense probe), and nothing at the end of turn.
# Notebook 02 reads them at the end of turn, as training prompts chose; what it says of them is about that place.
#
# ## H4: which latents do training prompts choose?
#
# Twenty latents of the first chat SAE, as its probe chose them in its first draw: the AUROC of each by itself on every kind of prompt, set against plain
# prompts of the other class, in the direction that it has on training prompts.


# %%
@result
def fates(data_of, fitted, views, k, change):
    """Of the twenty latents of each seed's first probe, rows {seed, latent, train, ood: AUROC in the direction that training prompts give; by_kind: AUROC
    on each kind, in distribution and out of it; style, r: the surface feature that it goes with most on training prompts, and their correlation}. OOD
    are the prompts of the fold that ``change`` scores first."""
    data = Data(*data_of)
    labels = Labels.of(examples.read(data.prompts))
    train, ood = labels.where("train"), change.apply(labels.drawn(0), data.texts, 0).where("ood")
    x = style.matrix(data.texts)[train]
    x = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    found = []
    for seed, view in enumerate(views):
        run = methods.choices(fitted)[seed][0]
        which = np.array(run["settings"][str(k)]["latents"][:k])
        f = view.matrix(data, labels)[:, which]
        known = stats.column_aurocs(f[train], labels.y[train])
        f = np.where(known >= 0.5, f, -f)
        by_kind = {}
        for side, inside in (("in", train), ("out", ood)):
            for kind in np.unique(labels.slice[inside]):
                here = inside & (labels.slice == kind)
                other = inside & (labels.transform == "plain") & (labels.y != labels.y[here][0])
                if len(np.unique(labels.y[here])) == 1 and other.any():
                    by_kind[f"{side}, {kind}"] = stats.column_aurocs(f[here | other], labels.y[here | other])
        out, z = stats.column_aurocs(f[ood], labels.y[ood]), f[train]
        r = x.T @ (z - z.mean(0)) / len(z) / np.where(z.std(0) > 0, z.std(0), 1)
        for at, latent in enumerate(which.tolist()):
            most = int(np.abs(r[:, at]).argmax())
            found.append(
                {"seed": seed, "latent": latent, "train": max(known[at], 1 - known[at]), "ood": out[at]}
                | {"style": style.FEATURES[most], "r": abs(r[most, at])}
                | {"by_kind": {kind: values[at] for kind, values in by_kind.items()}}
            )
    return found


@result
def kinds_of(labelled):
    """The slices of harmful prompts; transforms and sources, each where it first stands, but those of the balanced design; and how many prompts."""
    rows = examples.read(labelled)
    wrapped = dict.fromkeys(e.transform for e in rows if e.transform != "plain" and e.mix == "post")
    sources = dict.fromkeys(e.source for e in rows if e.source and e.mix != "balanced")
    harmful = sorted({e.slice for e in rows if e.label == 1})
    return {"harmful": harmful, "transforms": [*wrapped], "sources": [*sources], "n": len(rows)}


kinds_there = kinds_of(study.labelled, name="06_kinds").value
at = places["mean over the text"]
of_prompts = study.labelled, study.prompt_activations, p.layer
views = {name: study.see(Latents, saes[name][: p.saes.fewer_seeds], at) for name in three}
fate = {
    (name, what): fates(
        of_prompts,
        rungs["mean over the text", name][row][0],
        views[name],
        k,
        seen,
        name=f"06_fates_{name}_{what.replace(' ', '_')}",
    ).value
    for name in three
    for what, row in {"by training prompts": f"{k} latents", "in hindsight": f"{k} latents in hindsight"}.items()
}

# %%
mine = [row for row in fate["chat", "by training prompts"] if row["seed"] == 0]
mine.sort(key=lambda row: -row["ood"])
kinds = sorted(
    mine[0]["by_kind"], key=lambda kind: (kind[:2] != "in", kind.partition(", ")[2] not in kinds_there["harmful"])
)
grid = np.array([[row["by_kind"][kind] for kind in kinds] for row in mine])
figure, axis = plt.subplots(figsize=(figures.WIDTH, 4.6))
axis.grid(False)
picture = axis.imshow(grid, vmin=0, vmax=1, cmap="RdBu", aspect="auto")
border = sum(kind.startswith("in,") for kind in kinds) - 0.5
axis.axvline(border, color="black", linewidth=2)
axis.set_xticks(
    range(len(kinds)), [kind.partition(", ")[2] for kind in kinds], rotation=60, ha="right", fontsize="small"
)
axis.set_yticks(range(len(mine)), [f"{row['latent']}" for row in mine], fontsize="small")
axis.set(ylabel="latent of the first chat SAE", xlabel="kind of prompt: training, and right of the line OOD")
figure.colorbar(picture, label="AUROC on the kind (a half: a coin)")
figures.headed(figure, "The latents chosen know jailbreaks: on bare prompts, harmful or not, they are coins")
pages.publish(
    figure,
    "06_fates",
    "Each latent alone, on each kind of prompt against plain prompts of the other class, in the direction of training prompts. Blue: right; red: wrong way "
    "round. First seed and draw.",
    alt="A grid of twenty latents by kinds of prompt: blue on training kinds, and on OOD kinds a mixture of blue, white and red.",
)

# %% tags=["hide-input"]
Markdown(f"Where they fire, best first: {', '.join(pages.latent('chat', row['latent']) for row in mine)}.")

# %% [markdown]
# Few turn round OOD. They fire on role-plays, old and new: three of five harmful training prompts are inside one, and no harmless one is. Of bare prompts they say
# little, in distribution or out of it. Over all seeds, with how many go with a count of punctuation, length or case on training
# prompts (a correlation of at least a half with one of 33 features). *Hindsight* chooses others, most of which are of jailbreaks
# too: one by one, on bare prompts, they are little better than a coin.


# %%
def shares(rows):
    """What becomes of latents: share that turns round OOD, share that goes with style, and medians."""
    out = np.array([row["ood"] for row in rows])
    return {
        "turns": np.mean(out <= 0.45),
        "style": np.mean([row["r"] >= 0.5 for row in rows]),
        "train": np.median([row["train"] for row in rows]),
        "ood": np.median(out),
        "bare": np.median([row["by_kind"].get("out, AdvBench", np.nan) for row in rows]),
    }


fate_of = {of: shares(rows) for of, rows in fate.items()}
pages.table(
    (
        (
            f"{name}, {what}",
            *(pages.share(row[key]) for key in ("turns", "style")),
            *(f"{row[key]:.2f}" for key in ("train", "ood", "bare")),
        )
        for (name, what), row in fate_of.items()
    ),
    (f"{k} latents of, chosen", "turn round OOD", "go with style", "median AUROC, train", "OOD", "bare OOD prompts"),
)

# %%
chosen_by = {name: fate_of[name, "by training prompts"] for name in three}
expect(max(of["turns"] for of in fate_of.values()) <= 0.1, "at most a tenth of the chosen latents turn round OOD")
expect(
    all(abs(of["bare"] - 0.5) < 0.05 for of in chosen_by.values())
    and max(fate_of[name, "in hindsight"]["bare"] for name in three) < 0.6,
    "on bare OOD prompts the median latent that training prompts choose is a coin, of those of hindsight less than .6",
)
in_role_play = ("AIM", "cocky genius", "coming of age", "evil confidant")
strongest = {
    kind: np.median([row["by_kind"][kind] for row in fate["chat", "by training prompts"]])
    for kind in kinds
    if kind.partition(", ")[2] in (*in_role_play, "HarmBench", "AdvBench")
}
expect(
    min(v for kind, v in strongest.items() if kind.partition(", ")[2] in in_role_play) > 0.8
    and max(v for kind, v in strongest.items() if kind.endswith("Bench")) < 0.6,
    "chosen latents of chat SAEs know each role-play at .8 or more, and bare harmful prompts at less than .6",
)

# %% [markdown]
# Would it help to drop those that go with style? A view of your own is a class of one method: this one blanks the latents that go with a surface feature on training
# prompts before twenty are chosen.


# %%
@dataclass(frozen=True)
class Unstyled(Latents):
    """An SAE's latents [n, M], of which those are 0 whose correlation with a surface feature on train prompts is a half or more."""

    learns = True

    def matrix(self, data, labels):
        f, train = Latents(self.place, self.layer, self.sae, self.pooled).matrix(data, labels), labels.where("train")
        x, z = style.matrix(data.texts)[train], f[train]
        x, z = ((a - a.mean(0)) / np.where(a.std(0) > 0, a.std(0), 1) for a in (x, z))
        return np.where(np.abs(x.T @ z / len(x)).max(0) < 0.5, f, 0)


at_twenty_of = {name: (study.fit(few, *study.see(Latents, saes[name], at)), str(k)) for name in saes}  # of notebook 02
pruned = {
    name: study.fit(short, *study.see(Unstyled, saes[name][: p.saes.level_seeds], at), draws=min(2, q.draws))
    for name in three
}
prunes = study.compare(
    tables.differences,
    {name: (fit, at_twenty_of[name]) for name, fit in pruned.items()},
    name="06_pruned",
).value
pages.table(
    (
        (name, pages.interval(e["val"], "difference"), pages.interval(e["ood"], "difference"))
        for name, e in prunes.items()
    ),
    (f"{k} latents, without those that go with style, less {k} latents", "validation", "OOD"),
)

# %% [markdown]
# Not that we can see: what is left scores .08 to .15 less OOD in the mean, for sure only of the IT SAE.

# %%
expect(
    all(-0.16 < e["ood"]["difference"] < -0.07 for e in prunes.values())
    and [name for name in three if prunes[name]["ood"]["interval"][1] < 0] == ["IT"],
    "without those that go with style twenty latents score .08 to .15 less OOD in the mean, surely only of the IT SAE",
)

# %% [markdown]
# ## H1: how many latents does it take?
#
# Everything here is in hindsight, so nothing is lost by shift: what k latents lack, the concept is too wide for, or our rules fail to find.

# %%
sizes = {
    f"{name} SAE": [
        (size, (rungs["mean over the text", name][f"{k} latents in hindsight"][0], str(size))) for size in q.ks
    ]
    for name in ("finetuned", "chat")
}
rival = beside["mean over the text"]
sizes["principal components"] = [(size, (rival["components in hindsight"][0], str(size))) for size in q.ks]
by_chance = study.fit(study.few(RandomDirections()), Residual(at), change=seen)
sizes["random directions"] = [(size, (by_chance, str(size))) for size in q.ks]
by_k = study.table(
    {f"{name}, k={size}": pick for name, line in sizes.items() for size, pick in line},
    name="06_by_k",
    slices=False,
    splits=("val", "ood"),
    change=seen,
).value
lines = {
    name: [(size, by_k[f"{name}, k={size}"]["ood"]) for size, _ in line if "ood" in by_k[f"{name}, k={size}"]]
    for name, line in sizes.items()
}
axis = figures.curves(lines, ticks=q.ks)
axis.axhline(rung("chat", "dense in hindsight")["auroc"], color=figures.look("dense")["color"], linewidth=1.2)
axis.set(xlabel="k, features that a probe may use, chosen in hindsight", ylabel="OOD AUROC, in five folds")
axis.legend(loc="lower right")
figures.headed(axis.figure, "In hindsight twenty features nearly suffice, latents or components")
pages.publish(
    axis.figure,
    "06_by_k",
    "Probes on k features in hindsight at the mean over the text: latents by the best of four rules, the first k principal components, random directions. "
    "Thin: runs; thick: their mean; line: dense probe.",
    alt="OOD AUROC in hindsight against k: four rising curves under the dense probe's line.",
)
in_hindsight = {name: {size: entry["auroc"] for size, entry in line} for name, line in lines.items()}
of_saes, of_components = (
    [in_hindsight[f"{name} SAE"] for name in ("finetuned", "chat")],
    in_hindsight["principal components"],
)
if {2, 20} <= {*q.ks}:
    expect(
        min(of[20] for of in (*of_saes, of_components)) > 0.98 and in_hindsight["random directions"][20] < 0.9,
        "in hindsight twenty latents and twenty components score more than .98, twenty random directions less than .9",
    )
    expect(
        all(of[2] > of_components[2] + 0.1 and abs(of[20] - of_components[20]) < 0.01 for of in of_saes),
        "two latents score .1 more than two components, twenty no more than twenty",
    )

# %% [markdown]
# Where everything has been seen, one or two latents tell more than one or two principal components, and twenty as much.

# %% [markdown]
# ## H3: what does the dictionary lack?
#
# Two looks. First, probes in hindsight on what an SAE rebuilds of the residual stream and on what it leaves out.


# %%
@dataclass(frozen=True)
class LeftOver(Latents):
    """What an SAE leaves out [n, d] of the residual stream, as a mean over the text."""

    def matrix(self, data, labels):
        rebuilt = Reconstruction(self.place, self.layer, self.sae, self.pooled)
        return Residual(self.place, self.layer).matrix(data, labels) - rebuilt.matrix(data, labels)


halves = {
    f"{what}, {name}": study.fit(linear, *study.see(kind, saes[name][: p.saes.level_seeds], at), change=seen)
    for what, kind in {"reconstruction": Reconstruction, "left over": LeftOver}.items()
    for name in three
}
split_up = study.table(halves, name="06_left_over", slices=False, splits=("val", "ood"), change=seen).value
pages.table(
    (
        (name, *(pages.interval(split_up[f"{what}, {name}"]["ood"]) for what in ("reconstruction", "left over")))
        for name in three
    ),
    ("SAE", "in hindsight, OOD AUROC on what it rebuilds", "on what it leaves out"),
)

# %% [markdown]
# Both hold all of it: what these prompts differ in is written many times over in the residual stream, and what an SAE misses is also elsewhere. It also says how
# blunt the test is: what is left out could do the task alone.
#
# Second, can a few of the dictionary's directions write the *direction of harm*, how residuals move as the dense probe's score rises? Orthogonal matching
# pursuit ([Pati et al. 1993](https://doi.org/10.1109/ACSSC.1993.342465)) takes one decoder row after the other. Beside it the same for directions drawn at
# random with the covariance of the residuals, and from the rows of an untrained SAE.


# %%
@result
def expressed(data_of, fitted, place, dictionaries, counts, targets, seed):
    """Share of a direction's squared length that so many decoder rows write: {SAE: {harm: [seeds][counts], random: [seeds][counts], means over ``targets``
    random directions}}. Harm is the covariance of residuals times the weights of a dense probe's first run (Haufe et al. 2014)."""
    data = Data(*data_of)
    labels = Labels.of(examples.read(data.prompts))
    x = Residual(place).matrix(data, labels)[labels.where("train") | labels.where("val") | labels.where("ood")]
    x -= x.mean(0)
    weight = load_file(fitted.path / "directions.safetensors")["0/0"][:-1]
    noise = np.random.default_rng(seed).normal(size=(targets, len(x)))
    wanted = np.concatenate([(x @ weight)[None] @ x, noise @ x])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = {}
    for name, several in dictionaries.items():
        found[name] = {"harm": [], "random": []}
        for sae in several:
            rows = training.load(sae).W_dec.numpy().astype(np.float64)
            rows = rows[np.linalg.norm(rows, axis=1) > 0]
            shares = []
            for each in wanted:
                path = orthogonal_mp(rows.T, each, n_nonzero_coefs=max(counts), return_path=True).T
                left = [each - path[min(count, len(path)) - 1] @ rows for count in counts]
                shares.append([1 - float(rest @ rest) for rest in left])
            found[name]["harm"].append(shares[0])
            found[name]["random"].append(np.mean(shares[1:], axis=0).tolist())
    return found


some = slice(p.saes.level_seeds)
written = expressed(
    of_prompts,
    rungs["mean over the text", "chat"]["dense in hindsight"],
    at,
    {"finetuned": tuple(saes["finetuned"][some]), "chat": tuple(first[some]), "untrained": tuple(untrained[some])},
    q.ks,
    20,
    p.seed,
    name="06_expressed",
).value
axes = figures.panels(
    ["direction of harm", "random directions"], columns=2, x="decoder rows", y="share of its square", height=3.0
)
for axis, what in zip(axes.values(), ("harm", "random"), strict=True):
    for name, of in written.items():
        colour = figures.look(name)["color"]
        axis.plot(q.ks, np.transpose(of[what]), color=colour, linewidth=0.8, alpha=0.5)
        axis.plot(
            q.ks, np.mean(of[what], 0), color=colour, label=f"{name} SAE", **{"marker": figures.look(name)["marker"]}
        )
    axis.set_xscale("log")
    axis.set_xticks(q.ks, [f"{size}" for size in q.ks])
    axis.minorticks_off()
axes["direction of harm"].legend(fontsize="small")
figures.headed(axis.figure, "No few decoder rows write harm, though they write more of it than of random directions")
pages.publish(
    axis.figure,
    "06_expressed",
    "Share of a direction that k decoder rows write, by matching pursuit: of harm at the mean over the text, and of random directions with the residuals' "
    "covariance. Thin: SAE seeds.",
    alt="Two panels of curves: share of the direction of harm and of random directions that k decoder rows express, for three SAEs.",
)
more = {name: np.subtract(np.mean(of["harm"], 0), np.mean(of["random"], 0)) for name, of in written.items()}
expect(
    all(
        np.mean(written[name]["harm"], 0)[:3].max() < 0.45 and more[name].min() > 0.05 for name in ("finetuned", "chat")
    )
    and max(gain.max() for gain in more.values()) < 0.17,
    "five decoder rows write less than .45 of the direction of harm, never .17 more than of a random one",
)
single = {name: (np.mean(of["harm"], 0)[0], np.mean(of["random"], 0)[0]) for name, of in written.items()}
expect(
    all(0.15 < single[name][0] < 0.25 and single[name][0] > 2 * single[name][1] for name in ("finetuned", "chat")),
    "one row writes about a fifth of the direction of harm, more than twice what it writes of a random direction",
)

# %% [markdown]
# One row writes a fifth of harm's direction, more than twice what one writes of a random direction; twenty write two thirds. Harm is favoured, and spread.

# %% [markdown]
# ## H2: do latents hold concepts cleanly?
#
# Concepts that are known since we put them there: which jailbreak or errand a prompt is in, which collection it is from, whether it asks a question. For
# each, the latent that is best on other clusters against a dense probe taught on the same. *Topics* of harm are told by words in the prompt: weak
# labels, shown beside and not counted.


# %%
@dataclass(frozen=True)
class Concept(Change):
    """A concept in place of harm, its prompts dealt by cluster (:func:`dealt`): a transform against all others; of plain prompts a source, or a form or (of
    harmful ones) a topic that a regular expression tells."""

    by: str = ""
    value: str = ""
    folds: int = 5

    def apply(self, labels, texts, run):
        plain = (labels.mix != "balanced") & (labels.transform == "plain")
        among = {"transform": labels.mix == "post", "topic": plain & (labels.y == 1)}.get(self.by, plain)
        if self.by in ("transform", "source"):
            y = (getattr(labels, self.by) == self.value).astype(int)
        else:
            y = np.array([re.search(self.value, text.lower()) is not None for text in texts]).astype(int)
        same = {"transform": np.full_like(labels.transform, "plain"), "mix": np.full_like(labels.mix, "post")}
        split = dealt(labels, among, self.folds, run, np.full_like(labels.split, ""))
        return replace(labels, y=y, taught=y, split=split, **same).checked()


topics = {
    "computers": "hack|malware|phish|password|ransomware|spyware|software|network|computer",
    "weapons": "bomb|explosive|weapon|gun|firearm|grenade",
    "drugs": "drug|meth|cocaine|heroin|narcotic|steroid",
    "money": "money|fraud|bank|credit card|tax|scam|counterfeit|insider",
}
told_by = {name: ("transform", name) for name in kinds_there["transforms"]}
told_by |= {name: ("source", name) for name in kinds_there["sources"]}
told_by["question"] = ("form", "^(how|what|why|when|where|which|who|can|could|is|are|do|does|should|would|will) ")
told_by |= {name: ("topic", words) for name, words in topics.items()}
concepts = {name: Concept(by=by, value=value, folds=seen.folds) for name, (by, value) in told_by.items()}


@result
def held(labelled, fits, changes, known, pairs):
    """{concepts: {concept: {probe: {auroc, f1}}}, gaps: {pair: difference of AUROC, mean over the ``known`` concepts}} of probes {concept: {probe: fit}}. F1 is
    at the threshold that is best on validation. A concept with too few prompts is left out."""
    rows = examples.read(labelled)
    labels, texts = Labels.of(rows), [e.text for e in rows]
    names, group = np.unique(labels.group, return_inverse=True)
    found, moved = {}, {}
    for concept, probes in fits.items():
        try:
            scores = {name: methods.scores(fit) for name, fit in probes.items()}
            runs = [changes[concept].apply(labels.drawn(d), texts, d) for d in range(len(scores[pairs[0][0]][0]))]
        except TooFew:
            continue
        found[concept], moved[concept] = {}, {}
        for name, score in scores.items():
            values, pulls, f1 = np.zeros(score.shape[:2]), np.zeros((*score.shape[:2], len(names))), []
            for seed, draw in np.ndindex(*score.shape[:2]):
                run, s = runs[draw], score[seed, draw]
                out, val = run.where("ood"), run.where("val")
                values[seed, draw], pulls[seed, draw] = stats.influences(run.y[out], s[out], group[out], len(names))
                precision, recall, cuts = precision_recall_curve(run.y[val], s[val])
                best = np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-9))
                f1.append(f1_score(run.y[out], s[out] >= cuts[min(best, len(cuts) - 1)]))
            found[concept][name] = {"auroc": values.mean(), "f1": np.mean(f1), "seeds": values}
            moved[concept][name] = values, pulls
        found[concept]["clusters"] = min(
            len(np.unique(np.concatenate([run.group[run.where("ood") & (run.y == side)] for run in runs])))
            for side in (0, 1)
        )
    gaps, here = {}, [name for name in known if name in found]
    for high, low in pairs:
        means = [[np.mean([moved[c][name][part] for c in here], axis=0) for name in (high, low)] for part in (0, 1)]
        values, pulls = (np.array(np.broadcast_arrays(*both)) for both in means)
        fewest = min(found[c]["clusters"] for c in here)
        told = stats.summary(values, pulls, fewest, (-2.0, 2.0), (1, -1))
        gaps[f"{high} - {low}"] = {"difference": told.pop("mean"), "seeds": values[0] - values[1], **told}
    return {"concepts": found, "gaps": gaps}


one = SingleLatent()
latents_of = {name: study.see(Latents, saes[name][some], at) for name in ("finetuned", "chat")}
latents_of["untrained"] = study.see(Latents, untrained[some], at)
clean = held(
    study.labelled,
    {
        name: {"dense": study.fit(linear, Residual(at), change=change)}
        | {f"latent, {of}": study.fit(one, *view, change=change) for of, view in latents_of.items()}
        for name, change in concepts.items()
    },
    concepts,
    [name for name, change in concepts.items() if change.by != "topic"],
    [
        *(("dense", f"latent, {of}") for of in latents_of),
        *((f"latent, {of}", "latent, untrained") for of in ("finetuned", "chat")),
    ],
    name="06_concepts",
).value

# %%
of_concept = clean["concepts"]
order = sorted(of_concept, key=lambda name: (concepts[name].by == "topic", -of_concept[name]["latent, chat"]["auroc"]))
figure, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 0.24 * len(order) + 1.4), sharey=True)
for axis, value in ((left, "auroc"), (right, "f1")):
    for who in ("dense", "latent, finetuned", "latent, chat", "latent, untrained"):
        told = figures.look(who.removeprefix("latent, "))
        axis.plot(
            [of_concept[name][who][value] for name in order], range(len(order)), linestyle="none", label=who, **told
        )
    axis.axhline(sum(concepts[name].by != "topic" for name in order) - 0.5, color=figures.CONTEXT, linewidth=1)
left.set_yticks(range(len(order)), order, fontsize="small")
left.set(xlabel="AUROC", ylim=(len(order) - 0.5, -0.5))
right.set_xlabel("F1")
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
figures.headed(figure, "The best latent matches the dense probe for templates, not for collections, form or topic")
pages.publish(
    figure,
    "06_concepts",
    "Best single latent and dense probe for concepts known by construction and, below the line, topics told by words. On held-out clusters, means over "
    "three SAE seeds and five folds; no intervals.",
    alt="Dots of AUROC and F1 by concept, for a dense probe, the best latents of two SAEs and of an untrained one.",
)
by_sort = {}
for name, of in of_concept.items():
    by_sort.setdefault("transform" if concepts[name].by == "transform" else "other", []).append(of)
expect(
    all(of[f"latent, {who}"]["auroc"] > 0.99 for of in by_sort["transform"] for who in ("finetuned", "chat"))
    and all(of[f"latent, {who}"]["auroc"] < 0.96 for of in by_sort["other"] for who in ("finetuned", "chat")),
    "a latent tells each transform at .99 or more, and no other concept at .96",
)
expect(
    all(
        of["dense"]["auroc"] > of[f"latent, {who}"]["auroc"] + 0.03
        for of in by_sort["other"]
        for who in ("finetuned", "chat")
    ),
    "for every other concept the dense probe is more than .03 ahead",
)
expect(
    max(
        of["dense"]["auroc"] - of[f"latent, {who}"]["auroc"] for of in by_sort["other"] for who in ("finetuned", "chat")
    )
    < 0.25,
    "and less than .25",
)
ahead = [clean["gaps"][f"latent, {who} - latent, untrained"] for who in ("finetuned", "chat")]
expect(
    all(entry["interval"][0] > 0.01 and entry["difference"] < 0.03 for entry in ahead),
    "the best latents of trained SAEs are ahead of an untrained one's by more than .01, and less than .03 in the mean",
)

# %% [markdown]
# What marks a prompt as a whole, a template around it, has its latent; so it has in an untrained SAE, nearly. For what it is about, where it is from and whether it
# asks, the best latent falls .03 to .25 short of a dense direction. Over all concepts it lacks more than .05, and is ahead of an untrained SAE's by .02. That is
# about these concepts, and the mean hides that there are two sorts of them; harm itself is not among them (notebook 02 has its best latents).

# %% [markdown]
# ## Controls with known answers
#
# **N1.** An *oracle* SAE, one of whose latents, or the sum of five, is the dense probe's own direction (notebook 02). A method that cannot use it could not
# use a perfect SAE. **N2.** SAEs that learnt nothing of the model, or half of what SAEs learn ([Korznikov et al. 2026](https://arxiv.org/abs/2602.14111),
# [Heap et al. 2025](https://arxiv.org/abs/2501.17727)): untrained; trained with a decoder, or an encoder, that stays as it was drawn; and trained on a model whose
# blocks have their weights dealt out at random, each matrix within itself, while its embeddings stay, so that words can still be told apart. The trained
# ones are TopK SAEs: under a penalty such SAEs keep hundreds of latents active.


# %%
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
    def noise(self):
        of = self.profile.model
        return Folder(permuted(self.lm, self.profile.seed), of.device, of.dtype)

    @cached_property
    def prompt_activations(self):
        return harvest.harvest_prompts(self.conversations, self.noise, (self.profile.layer,), self.profile.layer)

    def activations(self, corpus, part):
        return harvest.harvest(self.text(corpus, part), self.noise, (self.profile.layer,))


noise, runs = OfNoise(p), range(p.saes.level_seeds)
chats, topk = study.activations("chat", "train"), study.sae("topk", k=p.saes.k)
nulls = {"untrained": untrained}
nulls |= {
    said: [half_trained(topk, chats, p.layer, p.training, p.seed + run, stays) for run in runs]
    for said, stays in {"frozen decoder": "W_dec", "frozen encoder": "W_enc"}.items()
}
of_noise = [noise.train("chat", topk, run=run) for run in runs]
early = [study.train("chat", study.jumprelu(), run=run, share=1 / 8) for run in runs]

# %% [markdown]
# **N3.** If reconstruction were the matter, SAEs that lose less should make better probes. *Lost* is the share of the variance between prompts that reconstructions
# miss. A series: chat SAEs of an eighth of the steps and of all; the pretraining SAE, which has read other text; every other kind of notebook 02.

# %%
told_answer = {
    (where, parts, cut): [
        controls.oracle(
            sae,
            study.fit(linear, Residual(places[where])),
            "0/0",
            parts,
            *of_prompts,
            places[where],
            **({} if cut else {"quantile": 0.0}),
        )
        for sae in first
    ]
    for where, parts, cut in (
        ("end of turn", 1, True),
        ("end of turn", 5, True),
        ("mean over the text", 1, False),
        ("mean over the text", 1, True),
        ("mean over the text", 5, True),
    )
}
oracle_gaps = study.compare(
    tables.differences,
    {
        f"{where}, {parts}{'' if cut else ', nothing cut off'}": (
            study.fit(linear, Residual(places[where])),
            study.fit(study.few(ks=(parts,)), *study.see(Latents, made, places[where]), draws=1),
        )
        for (where, parts, cut), made in told_answer.items()
    },
    name="06_oracle",
).value
at_twenty = {**at_twenty_of}
at_twenty |= {name: (study.fit(few, *study.see(Latents, made, at)), str(k)) for name, made in nulls.items()}
at_twenty["permuted model"] = (noise.fit(few, *noise.see(Latents, of_noise, at)), str(k))
at_twenty["random latents"] = (study.fit(study.few(AtRandom()), *study.see(Latents, first, at)), str(k))
at_twenty["early chat"] = (study.fit(few, *study.see(Latents, early, at)), str(k))
at_twenty |= {"principal components": rival["components"], "dense": rival["dense"]}
at_twenty["dense, permuted model"] = noise.fit(linear, Residual(at))
twenty = study.table(at_twenty, name="06_twenty", slices=False).value
null_names = ("untrained", "frozen decoder", "frozen encoder", "permuted model", "random latents")
less = study.compare(
    tables.differences,
    {name: (at_twenty["chat"], at_twenty[name]) for name in (*null_names, "early chat", "pretraining")},
    name="06_less",
).value
every_sae = {name: made[some] for name, made in saes.items()} | {name: made[some] for name, made in nulls.items()}
every_sae["early chat"] = early
looked = {
    f"{name}, {run}": {"mean": study.see(Latents, [sae], at)[0]}
    for name, made in every_sae.items()
    for run, sae in enumerate(made)
}
fidelity = kept(*of_prompts, looked, name="06_fidelity").value

# %%
pages.table(
    (
        (name, pages.interval(e["val"], "difference"), pages.interval(e["ood"], "difference"))
        for name, e in oracle_gaps.items()
    ),
    ("oracle: place, latents", "dense less oracle, validation", "OOD"),
)

# %% [markdown]
# Cut off below a threshold, as latents are, a latent cannot be the dense probe at the mean over the text; those two oracles are shown and not counted. What the
# nulls have active, and what they lose:

# %%
pages.table(
    (
        (name, f"{np.mean([row['l0'] for row in rows]):.0f}", f"{np.mean([row['lost'] for row in rows]):.2f}")
        for name, made in every_sae.items()
        for rows in [[fidelity[f"{name}, {run}"]["mean"] for run in range(len(made))]]
    ),
    ("SAE", "L0, a token of the text", "lost between prompts"),
)

# %%
shown = ["dense", "principal components", "chat", "finetuned", *null_names, "dense, permuted model"]
axis = figures.forest({name: {"validation": twenty[name]["val"], "OOD": twenty[name]["ood"]} for name in shown})
axis.set_xlabel(f"AUROC (OOD: n = {twenty['dense']['ood']['n']:,})")
figures.headed(axis.figure, "Validation hardly tells untrained SAEs from trained ones; OOD they score less in the mean")
pages.publish(
    axis.figure,
    "06_nulls",
    "Twenty latents of trained SAEs and of nulls, twenty principal components, the dense probe, at the mean over the text, taught on training prompts. Bars: 95 %, "
    "over prompts and runs.",
    alt="Forest plot of validation and OOD AUROC of trained SAEs, null SAEs, principal components and dense probes.",
)
of_null = {name: twenty[name] for name in null_names}
expect(
    min(of_null[name]["val"]["auroc"] for name in ("untrained", "frozen decoder", "frozen encoder")) > 0.94
    and twenty["chat"]["val"]["auroc"] < 0.97,
    "on validation untrained and half-trained SAEs come within .03 of trained ones",
)
trained_least = min(twenty[name]["ood"]["auroc"] for name in saes)
expect(
    all(entry["ood"]["auroc"] < trained_least - 0.04 for entry in of_null.values()) and trained_least > 0.8,
    "OOD every kind of trained SAE scores more than .8 and every null at least .04 less, in the mean",
)
expect(
    twenty["principal components"]["ood"]["auroc"] < 0.7 < trained_least,
    "twenty principal components score less than .7 OOD at the mean over the text",
)

# %%
figure, axis = plt.subplots(figsize=(figures.WIDTH, 3.4))
points = []
for number, name in enumerate(every_sae):
    told = figures.look(name, number)
    y = np.mean(twenty[name]["ood"]["seeds"], axis=1)
    x = [fidelity[f"{name}, {run}"]["mean"]["lost"] for run in range(len(every_sae[name]))]
    axis.plot(x, y[: len(x)], linestyle="none", label=name, alpha=0.85, **told)
    points += [(a, b, name) for a, b in zip(x, y, strict=False)]
axis.axhline(twenty["dense"]["ood"]["auroc"], color=figures.look("dense")["color"], linewidth=1.2)
axis.set(xlabel="lost: share of the variance between prompts that the SAE misses", ylabel="OOD AUROC")
figure.legend(loc="outside lower center", ncols=3, fontsize="small")
figures.headed(figure, "Nulls lose more and score less; among trained SAEs little tells, and seeds differ as much")
pages.publish(
    figure,
    "06_lost",
    "Twenty latents' OOD score against what the SAE loses between prompts, at the mean over the text; a dot is an SAE seed, its mean over draws. Line: dense "
    "probe.",
    alt="Scatter of OOD AUROC of twenty latents against the share of variance lost, for eleven kinds of SAE.",
)
by_kind = {name: [b for _, b, kind in points if kind == name] for name in every_sae}
lost_by = {name: np.mean([a for a, _, kind in points if kind == name]) for name in every_sae}
together = spearmanr([*lost_by.values()], [twenty[name]["ood"]["auroc"] for name in lost_by]).statistic
expect(together < -0.6, "kinds that lose less score more: their rank correlation is below -.6")
expect(
    max(np.ptp(values) for values in by_kind.values()) > 0.25 and len(by_kind) == 11,
    "seeds of one kind differ by more than .25",
)

# %% [markdown]
# So training gives an SAE something for this task, and validation hardly sees it: untrained and half-trained SAEs score within .03 there (the permuted model's lack .05,
# random latents .09). OOD every fully trained kind has a higher mean than every null, and at this place of reading than principal components; a chat SAE of an
# eighth of the steps has not. Two nulls of three seeds cannot be told apart from chat SAEs for sure. Between kinds the score goes with what is lost, by the nulls more
# than by trained SAEs, and N3 stays open.

# %% [markdown]
# ## Does the finding survive?
#
# Other designs, each with every method at the mean over the text. *Leave out*: of plain prompts alone, one collection of each class is held out, and the
# probe is taught on the others. *Balanced*: harmless prompts go through jailbreaks and errands too. *Few* and *wrong* labels: where
# [Kantamneni et al. 2025](https://arxiv.org/abs/2502.16681) looked for SAEs to win. *Sealed*: a collection that no choice has seen, harmful instructions
# against questions and instructions on investing, plain and through six jailbreaks, opened here. Its classes differ in topic, and questions in form.
#
# Collections have the names of `data/sources.yaml`: *refusal_pairs* are harmful questions with their benign twins, so both of its halves are left out together; *do_not_answer* are harmful
# questions; *overrefusal* and *sensitive_benign* are harmless prompts that look harmful.


# %%
class Sealed(Study):
    """The same recipes, with the sealed prompts in place of OOD ones."""

    @cached_property
    def labelled(self):
        kinds = ("harmful", "questions", "instructions", "templates")
        rows = sources.rows("wheels", *(f"sealed_{kind}" for kind in kinds))
        return prompts.sealed_set(self.prompts, rows, p.prompts.ood_harmful_bases // 4)


@dataclass(frozen=True)
class Without(Change):
    """OOD prompts without those of a source."""

    source: str = ""

    def apply(self, labels, texts, run):
        gone = (labels.split == "ood") & (labels.source == self.source)
        return replace(labels, split=np.where(gone, "", labels.split)).checked()


def contenders(of):
    """{method: (probe, views)} with the recipes of a study."""
    return {
        "dense": (linear, (Residual(at),)),
        "chat SAE, 20 latents": (short, of.see(Latents, first[some], at)),
        "finetuned SAE, 20 latents": (short, of.see(Latents, saes["finetuned"][some], at)),
        "all latents, chat SAE": (wide, of.see(Latents, first[some], at)),
        "principal components": (study.few(PrincipalComponents(), ks=(k,)), (Residual(at),)),
        "sentence embedding": (linear, (of.embedding,)),
    }


designs = {"as in the post": (study, NOTHING, NOTHING, "ood")}
if not q.data:  # the others are about the report's own prompts
    pairs = [("harmbench", "chat"), ("advbench", "overrefusal"), ("do_not_answer", "sensitive_benign")]
    for harmful, benign in (*pairs, ("refusal_pairs", "refusal_pairs")):
        change = LeftOut(harmful=harmful, benign=benign)
        designs[f"leave out {harmful}, {benign}"] = (study, change, change, "ood")
    designs["balanced, post's mix"] = (study, Balanced(), NOTHING, "ood")
    designs["balanced, balanced mix"] = (study, Balanced(), NOTHING, "balanced")
designs["64 clusters to learn from"] = (study, Fewer(64.0), NOTHING, "ood")
designs["a fifth of labels wrong"] = (study, Mislabelled(0.2), NOTHING, "ood")
if not q.data:
    sealed = Sealed(p)
    designs["sealed"] = (sealed, NOTHING, NOTHING, "ood")
    designs["sealed, instructions only"] = (sealed, NOTHING, Without(source="sealed_questions"), "ood")
under, order_of = {}, {}
for number, (name, (recipes, taught_on, scored, part)) in enumerate(designs.items()):
    fits = {who: recipes.fit(probe, *view, change=taught_on) for who, (probe, view) in contenders(recipes).items()}
    told = recipes.table(fits, name=f"06_design_{number}", slices=False, change=scored).value
    under[name] = {who: entry[part] for who, entry in told.items() if part in entry}
    order_of[name] = (
        recipes.compare(
            tables.differences,
            {"": (fits["dense"], fits["chat SAE, 20 latents"])},
            name=f"06_order_{number}",
            change=scored,
        )
        .value[""]
        .get(part)
    )

# %%
figure, axis = plt.subplots(figsize=(figures.WIDTH, 0.62 * len(under) + 1.5))
figures.forest(under, axis=axis).set_xlabel("AUROC on the prompts of the row")
axis.axvline(0.5, color=figures.CONTEXT, linewidth=1, linestyle=":")
figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
figures.headed(figure, "In every design the dense probe has a higher mean than any probe on latents")
pages.publish(
    figure,
    "06_designs",
    "Six methods under other designs, at the mean over the text. Dots: SAE seeds, else draws; bars: 95 %, over prompts and runs; dotted: a coin.",
    alt="Forest plot of six methods under eleven designs; the dense probe is to the right of every probe on latents in each.",
)
of_latents = [who for who in contenders(study) if "latents" in who]
expect(
    all(row["dense"]["auroc"] > row[who]["auroc"] for row in under.values() for who in of_latents if who in row),
    "in every design the dense probe has a higher mean than probes on latents",
)

# %% [markdown]
# The dense probe has the higher mean everywhere, not everywhere for sure: with one of the data sets left out, and in the balanced design, single SAEs come close. The
# other methods change places: principal components go from last to ahead of twenty latents where data sets are left out, and the sentence embedding passes the dense probe in about half the rows. Few labels and
# wrong ones, where SAEs might have won, cost latents more than the dense probe. On the sealed collection the dense probe falls to .88 and twenty latents to .58 and .65;
# the sentence embedding, which never sees the model, stays at .96. All latents together are between the two there and wherever a data set is left out.

# %%
if not q.data:
    opened = {who: entry["auroc"] for who, entry in under["sealed"].items()}
    expect(
        abs(opened["dense"] - 0.88) < 0.005
        and abs(opened["chat SAE, 20 latents"] - 0.58) < 0.006
        and abs(opened["finetuned SAE, 20 latents"] - 0.65) < 0.005
        and abs(opened["sentence embedding"] - 0.96) < 0.005,
        "on the sealed collection: dense .88, twenty latents .58 and .65, the sentence embedding .96",
    )
    expect(
        all(
            row["dense"]["auroc"] > row["all latents, chat SAE"]["auroc"] > row["chat SAE, 20 latents"]["auroc"]
            for name, row in under.items()
            if name.startswith(("leave out", "sealed"))
        ),
        "all latents are between dense probe and twenty latents where a data set is left out, and on the sealed one",
    )
    expect(
        all(
            row["principal components"]["auroc"] > max(row[who]["auroc"] for who in of_latents if "20" in who)
            for name, row in under.items()
            if name.startswith("leave out")
        )
        and min(under["as in the post"], key=lambda who: under["as in the post"][who]["auroc"])
        == "principal components",
        "principal components are last as in the post, and ahead of twenty latents where a data set is left out",
    )
    passed = sum(row["sentence embedding"]["auroc"] > row["dense"]["auroc"] for row in under.values())
    expect(4 < passed < 8, "the sentence embedding passes the dense probe in about half of eleven rows")
usual = under["as in the post"]
expect(
    all(
        usual[who]["auroc"] - under[name][who]["auroc"] > usual["dense"]["auroc"] - under[name]["dense"]["auroc"]
        for name in ("64 clusters to learn from", "a fifth of labels wrong")
        for who in ("chat SAE, 20 latents", "finetuned SAE, 20 latents")
    ),
    "few and wrong labels cost twenty latents more than the dense probe",
)

# %% [markdown]
# ## Noise, or a shift?
#
# The post tells two losses apart: *noise*, from train to validation, and *spurious correlation*, from validation to OOD. Here for probes taught on training prompts,
# at the mean over the text.

# %%
noisy = {
    "dense": rival["dense"],
    "principal components, 20": rival["components"],
    "chat SAE, 20 latents": at_twenty["chat"],
    "chat SAE, all latents": study.fit(wide, *study.see(Latents, first[some], at)),
    "finetuned SAE, 20 latents": at_twenty["finetuned"],
}
fits_at = study.table(noisy, name="06_noise", slices=False, splits=("train", "val", "ood")).value
pages.table(
    (
        (
            name,
            *(f"{a['auroc'] - b['auroc']:+.3f}" for a, b in ((e["train"], e["val"]), (e["val"], e["ood"]))),
            f"{e['ood']['auroc']:.3f}",
        )
        for name, e in fits_at.items()
    ),
    ("probe", "train − validation (noise)", "validation − OOD (shift)", "OOD"),
)

# %% [markdown]
# ## Do latents see what the dense probe misses?
#
# Latents could be of use beside a dense probe, if they erred on other prompts. *In common*: of the tenth of each class that one probe ranks worst OOD, the
# share that is also in the other's worst tenth; by chance a tenth. And a probe that sees both.


# %%
@dataclass(frozen=True)
class Both(Latents):
    """The residual stream, and beside it the ``k`` latents whose class means differ most between train prompts [n, d + k]."""

    learns = True
    k: int = 20

    def matrix(self, data, labels):
        f, train = Latents(self.place, self.layer, self.sae, self.pooled).matrix(data, labels), labels.where("train")
        which = ByMeanDifference().order(f[train], labels.taught[train], self.k, 0)[: self.k]
        return np.hstack([Residual(self.place, self.layer).matrix(data, labels), f[:, which]])


@result
def in_common(labelled, pairs, worst):
    """Share of the OOD prompts that one of two probes ranks ``worst`` in their class and the other does too: first seed; of one probe with itself, two draws."""
    labels, found = Labels.of(examples.read(labelled)), {}
    for name, (a, b) in pairs.items():
        first, second = methods.scores(*a)[0], methods.scores(*b)[0]
        scores, shared = (first[0], second[-1] if a == b else second[0]), []
        for side in (0, 1):
            here = np.flatnonzero(labels.where("ood") & (labels.y == side))
            count = round(worst * len(here))
            bad = [
                set(here[rankdata((1 - 2 * side) * score[here], method="ordinal") > len(here) - count])
                for score in scores
            ]
            shared.append(len(bad[0] & bad[1]) / count)
        found[name] = {"harmless": shared[0], "harmful": shared[1]}
    return found


both = {
    name: study.fit(
        linear, *(Both(at, sae=v.sae, pooled=v.pooled, k=k) for v in views[name][some]), draws=min(2, q.draws)
    )
    for name in ("finetuned", "chat")
}
joined = study.compare(
    tables.differences, {name: (fit, rival["dense"]) for name, fit in both.items()}, name="06_both"
).value
dense_fit, components = (rival["dense"], None), rival["components"]
common = in_common(
    study.labelled,
    {
        "dense probe, in another draw": (dense_fit, dense_fit),
        "20 principal components": (dense_fit, components),
        f"{k} latents, finetuned": (dense_fit, at_twenty["finetuned"]),
        f"{k} latents, chat": (dense_fit, at_twenty["chat"]),
    },
    0.1,
    name="06_in_common",
).value
pages.table(
    (
        (
            name,
            *(pages.share(e[side]) for side in ("harmful", "harmless")),
            pages.interval(joined[of]["ood"], "difference") if (of := name.rpartition(", ")[2]) in joined else "",
        )
        for name, e in common.items()
    ),
    ("dense probe and", "in common, harmful", "harmless", "gained by seeing both, OOD AUROC"),
)

# %% [markdown]
# Latents do err on other prompts: they share a fifth of the dense probe's worst tenth, where the dense probe of another draw shares four fifths. Yet a probe that
# sees both gains nothing, not a hundredth; perhaps since, taught on the same prompts, it cannot know when to trust which.

# %%
expect(
    all(0.1 < e[side] < 0.25 for name, e in common.items() if "latents" in name for side in e)
    and min(common["dense probe, in another draw"].values()) > 0.8,
    "latents share a fifth of the dense probe's worst prompts, itself in another draw four fifths",
)
expect(
    all(entry["ood"]["interval"][0] > -0.01 and entry["ood"]["interval"][1] < 0.01 for entry in joined.values()),
    "seeing both gains less than a hundredth, over the whole interval",
)

# %% [markdown]
# ## Claim by claim
#
# Each explanation and each control has a test that was written down before these numbers were seen (`data/claims.yaml`, rows H and N, with what was known). An
# explanation is *supported* here if what it says is lost is lost by more than .02, over the whole interval, by finetuned and chat SAEs both.

# %%
pair = ("finetuned", "chat")
left_out = [name for name in designs if name.startswith("leave out")]
count_of = {"N4": min(under[name]["dense"]["n"] for name in left_out)} if left_out else {}
count_of |= {"H2": kinds_there["n"]}
parts = {
    "H1": {name: step(name, "sparsity") for name in pair},
    "H2": {name: clean["gaps"][f"dense - latent, {name}"] for name in pair},
    "H3": {name: step(name, "dictionary") for name in pair},
    "H4": {name: step(name, "choice") for name in pair},
    "N1": {name: e["ood"] for name, e in oracle_gaps.items() if name.startswith("end") or name.endswith("off")},
    "N2": {name: less[name]["ood"] for name in null_names},
    "N3": {name: less[name]["ood"] for name in ("early chat", "pretraining")},
    "N4": {name: entry for name, entry in order_of.items() if name.startswith("leave out") and entry},
    "N5": {name: entry for name, entry in order_of.items() if name.startswith("balanced") and entry},
}
drawn_in = dict(
    zip(("H1", "H2", "H3", "H4", "N1"), ("06_ladder", "06_concepts", "06_ladder", "06_ladder", "06_nulls"), strict=True)
)
drawn_in |= {"N2": "06_nulls", "N3": "06_lost", "N4": "06_designs", "N5": "06_designs"}
records = [
    claims.judge(
        name,
        of,
        drawn_in[name],
        n=count_of.get(name, twenty["dense"]["ood"]["n"]),
        seeds=min(len(e["seeds"]) for e in of.values()),
    )
    for name, of in parts.items()
    if of
]
claims.filed(records, claims.fixed(), name="06_claims").value
expect(
    {record.id for record in records} == {c.id for c in claims.ledger().values() if c.notebook == "06_surprising"},
    "every row of the ledger that is this notebook's is judged",
)
expect(
    (len(parts["N4"]), len(parts["N5"]), len(clean["concepts"])) == (4, 2, len(concepts)),
    "none of the data sets left out, the mixes and the concepts was too small to be counted",
)
expect(
    lost_by["chat"] < min(lost_by["early chat"], lost_by["pretraining"]),
    "the chat SAE loses less than those that N3 sets it against",
)
pages.table(claims.rows(records, tests=True), ("", "claim", "measure", "what decided", "test", "verdict"))

# %% [markdown]
# ## What we find
#
# - **H1, not supported** on the post's mix; of bare prompts twenty latents lack .04 to .07, of the finetuned SAE not surely more than .02.
# - **H2, supported** in the mean over concepts, all of it by sources and form; topics, not counted, look alike.
# - **H3, not supported** at the mean over the text, by a blunt test. At the end of turn something is lost, .03 to .05 on bare prompts.
# - **H4, open**: twenty latents gain .08 to .10 by hindsight, the dense probe .03; surely more than it in IT and finetuned SAEs, in none surely by .02 (at the mean, on the post's mix). New latents and new weights each gain most of that alone. In
#   chat SAEs what training prompts choose are latents of jailbreaks, and most of what hindsight chooses is too.
# - Controls: one latent that is the answer is found; five are not always, and cut off, at the mean, even one lacks .03 (N1, open). Nulls score less than trained SAEs
#   OOD in the mean (N2, open), whether SAEs that lose less score more is open (N3). The dense probe stays ahead of twenty latents with data sets left out
#   (N4) and in the balanced design (N5), in the mean.
#
# **It means** that every probe loses when it learns from one distribution, at the mean over the text the dense one .02, twenty latents .08 to .11, and *all* latents of a chat SAE .12. So on
# the post's mix it is not the handful as such: latents, few or all, do not protect from shortcuts, which was the hope. Why they lose more than the residual stream that
# they rewrite, we do not know. It does not show that SAEs lack harm, and says nothing of SAEs that split concepts more finely, nor of larger models, whose features may be richer.
# **What would change our mind**: a rule that picks, without OOD labels, the latents or weights that hindsight does; a dictionary in which harm on bare prompts has a
# latent; more SAE seeds, as H4, N2 to N5 vary most between those. Folds share most of their training prompts, so the intervals of hindsight are a little too narrow.
# **Try** a rule of your own beside `AcrossKinds`, in `rules`: it is a class of one method, and only what it joins is fit anew. **Next**: [03](03_debugging.ipynb) asks what latents show of a data set.

# %%
gained = [step(name, "hindsight")["difference"] for name in three]
of_dense = rung("", "dense in hindsight")["auroc"] - rung("", "dense")["auroc"]
expect(
    0.07 < min(gained) < max(gained) < 0.105 and abs(of_dense - 0.03) < 0.005,
    "twenty latents gain .08 to .10 by hindsight, the dense probe .03",
)
shift = {name: e["val"]["auroc"] - e["ood"]["auroc"] for name, e in fits_at.items()}
expect(
    abs(shift["dense"] - 0.023) < 0.005
    and abs(shift["chat SAE, all latents"] - 0.12) < 0.006
    and all(0.075 < shift[f"{name} SAE, 20 latents"] < 0.115 for name in pair),
    "from validation to OOD the dense probe loses .02, twenty latents .08 to .11, all latents of a chat SAE .12",
)
said = {"H1": "not supported", "H2": "supported", "H3": "not supported"}
expect(
    {r.id: r.verdict for r in records}
    == {**dict.fromkeys(("H4", "N1", "N2", "N3", "N4", "N5"), claims.UNDECIDED), **said},
    "H2 is supported, H1 and H3 are not, and the other rows stay open",
)
