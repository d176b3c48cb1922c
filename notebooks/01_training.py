# %% [markdown]
# # 01 · Training chat SAEs
#
# A language model keeps a list of several hundred numbers for every token it reads, its *residual stream*. A *sparse autoencoder* (SAE)
# rewrites that list as a few active *latents* out of thousands and builds it again from them. Most SAEs learn from encyclopaedia and
# news text; the model that people use answers chats. Somebody who wants to look into a chat model can take such an SAE as it is,
# train a new one on chat, mix the two, or *finetune* the old one: go on training it on chat. What should they do?
#
# *FVU* is the fraction of variance unexplained: what the rebuilt list misses, zero if nothing. *L0* is how many latents
# are active on a token. Less of both is better, and each can be had for more of the other.
# [Smith et al. 2025](https://www.alignmentforum.org/posts/4uXCAJNuPKtKBsi28/negative-results-for-saes-on-downstream-tasks), "the post",
# finetune their SAEs on chat before they probe with them (notebook 02); here is what that does to the SAEs themselves.
#
# **In short.** Have it read chat; how matters little. With chat in the last third of its steps an SAE explains as much of chat as one that read nothing else, whatever it
# read before: FVU .16, against .24 for the same pretraining text in the chat template and .30 for plain text. Its latents are explained no worse, as far as can be told. Finetune one that read *plain* text:
# the same quality, and few of its latents fall silent, while one in nine of those that began with text in the template do (the restart silences them, not chat). Who needs pretraining text
# too should mix from the start, which costs .01 on chat and saves .05 there. Thirty thousand tokens of chat bring a quarter of what a million bring, half a million nine tenths. For a *detector*
# take none of them: a dense probe scores .94, the best of these .85 in the mean. Which is the least bad cannot be told: ten SAEs of each kind do not separate them from IT, and differences of up to .05 to .16 of AUROC are not excluded.
# Nor is redrawing latents, or showing the SAE the detector's prompts, seen to help beside plain finetuning.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "training.latents": 1024}

# %% tags=["hide-input"]
import itertools
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper

from lib import claims, figures, pages, stats
from lib.latents.cards import AROUND, token_texts
from lib.lm import activations, harvest, model, sequences, spans
from lib.pages import expect
from lib.probes import methods, tables
from lib.probes.changes import Change, Fewer
from lib.probes.methods import SingleLatent
from lib.probes.views import Latents, kept
from lib.sae import controls, exchange, metrics, training
from lib.sae.gradients import JumpReLUFunction
from lib.store import cached, result, values
from lib.study import open_study
from lib.texts import corpora, examples

study = open_study(profile, overrides, frozen)
p, q, t = study.profile, study.profile.probes, study.profile.training
headline = p.saes
pages.banner(profile, overrides)

# %% [markdown]
# ## The comparison
#
# Six ways to get an SAE, all of one kind, at one weight of the sparsity penalty, with the same number of steps. *pretraining* reads encyclopaedia
# and news text; *IT*, the baseline, the same text as if users had written it, in the model's chat template; *chat* reads chat only, one user turn at a
# time with the beginning of its answer; *mixed* two parts of plain pretraining text and one of chat, throughout. *From pretraining* and *from IT* are finetuned: they leave
# those SAEs after two thirds of the steps, before the learning rate falls, and go on with chat. (*From IT* is what the other notebooks call finetuned.)
# So each of the last three has read one part of chat in three: the finetuned ones five sixths of six hundred thousand tokens once, where *chat* reads them all two and a half times. A way of your own is one more line, and stands in what follows.

# %%
families = {
    "pretraining": lambda sae, run: study.finetuned(sae, run, "pretraining")[0],
    "IT": lambda sae, run: study.finetuned(sae, run)[0],
    "chat": lambda sae, run: study.train("chat", sae, run=run),
    "mixed": lambda sae, run: study.train({"pretraining": 2, "chat": 1}, sae, run=run),
    "from pretraining": lambda sae, run: study.finetuned(sae, run, "pretraining")[1],
    "from IT": lambda sae, run: study.finetuned(sae, run)[1],
}
# yours: families["IT and chat"] = lambda sae, run: study.train({"IT": 2, "chat": 1}, sae, run=run)

# %% tags=["hide-input"]
saes = {name: [way(study.jumprelu(), run) for run in range(headline.seeds)] for name, way in families.items()}

# %% [markdown]
# That schedule is called *equal total*. Beside it stands *from the end*, where finetuning goes on from the finished SAE, for a third of
# the steps more; and, for as many steps as that, *longer* without finetuning, of IT and chat. Each family is trained at a second, sparser setting too, with fewer seeds.

# %%
few, share = range(headline.level_seeds), headline.finetuning
left = round((1 - share) * t.steps)  # the steps after which finetuning leaves
ends = {
    f"from {name}'s end": [
        study.train("chat", study.jumprelu(), start=sae, run=run, share=share) for run, sae in enumerate(saes[name])
    ]
    for name in ("pretraining", "IT")
}
longer = {
    f"{name}, longer": [study.train(name, study.jumprelu(), run=run, share=1 + share) for run in few]
    for name in ("IT", "chat")
}
sparser = study.jumprelu(coefficient=headline.levels[len(headline.levels) // 2])
sparse = {f"{name}, sparser": [way(sparser, run) for run in few] for name, way in families.items()}

# %% tags=["hide-input"]
texts = {"on chat": "chat", "on pretraining text": "pretraining"}
measured = {name: of[: headline.fewer_seeds] for name, of in (saes | ends | longer | sparse).items()}
quality = values(
    {
        where: {
            name: [
                study.evaluate(sae, corpus, f"01_{name}_{run}_on_{corpus}".replace(" ", "_").replace("'", ""))
                for run, sae in enumerate(of)
            ]
            for name, of in measured.items()
        }
        for where, corpus in texts.items()
    }
)


def over(field, where, name):
    """A figure of held-out text, its mean over seeds."""
    return stats.over_seeds([entry[field] for entry in quality[where][name]])


fvu = {where: {name: over("fvu", where, name) for name in measured} for where in texts}

# %% [markdown]
# *A probe* on an SAE: the *best single latent*, or the *k latents* whose means differ most between harmful and harmless training prompts, k and the rule chosen on
# folds of these. It reads the SAE at one of the post's two places, the end of turn or the maximum over the user's text, chosen in the same way. Tested OOD, on collections and
# jailbreaks that training never saw, over SAE seeds and draws of the training prompts (notebook 02).

# %% tags=["hide-input"]
places = {"end of turn": q.position, "maximum": "max user"}
readings = {"single latent": SingleLatent(), "k latents": study.few()}
by_place = {
    f"{reading}, {name}": {at: study.fit(probe, *study.see(Latents, made, place)) for at, place in places.items()}
    for reading, probe in readings.items()
    for name, made in (saes | ends).items()
}
choices = tables.chosen(by_place, name="01_choices").value
taught = {method: of[choices[method]["best"]] for method, of in by_place.items()}
probed = study.table(taught | {"dense": study.baselines["dense"]}, name="01_probes", slices=False).value


# %%
figure, axes = plt.subplots(1, 2, figsize=(figures.WIDTH, 3.2), sharey=True)
figures.forest({name: {"SAE": fvu["on chat"][name]} for name in saes}, "mean", axis=axes[0])
figures.forest({name: {"SAE": probed[f"k latents, {name}"]["ood"]} for name in saes}, axis=axes[1])
axes[1].axvline(probed["dense"]["ood"]["auroc"], color=figures.look("dense")["color"], linestyle="--")
axes[0].set(xlabel=f"FVU, held-out chat\n(n = {quality['on chat']['IT'][0]['n']:,} tokens)", ylabel="SAE")
axes[1].set(xlabel=f"OOD AUROC, k latents\n(n = {probed['dense']['ood']['n']:,} prompts)")
figures.headed(figure, "SAEs that have read chat explain it better; in probing none is surely ahead of IT")
pages.publish(
    figure,
    "01_answer",
    "FVU on held-out chat, five seeds of each family, and OOD AUROC of k latents, ten seeds in five draws. Three that read chat explain it alike, mixed nearly; "
    "all six AUROCs overlap. Dashed: dense probe. Bars: 95 %.",
    alt="Two panels of points by family. Error is lowest for the four that read chat; AUROCs of all six overlap, well below the dense probe's line.",
)


# %% [markdown]
# ## What they explain
#
# Held-out text of both kinds. *Loss recovered* asks the model itself: the reconstruction takes the place of its residual stream, and the measure is how far
# its cross-entropy comes back, from nought with the stream set to zero to one with the stream left alone.

# %%
curves = {
    where: {
        name: [(over("l0", where, which)["mean"], fvu[where][which]) for which in (name, f"{name}, sparser")]
        for name in saes
    }
    for where in texts
}
one = {name: of[0] for name, of in measured.items() if name.removesuffix(", sparser") in saes}
recovered = {
    where: metrics.loss_recovered(
        one,
        study.text(corpus, "eval"),
        study.activations(corpus, "eval"),
        study.lm,
        p.layer,
        p.corpora.loss_tokens,
        q.bootstrap,
        p.seed,
        name=f"01_loss_recovered_{where.replace(' ', '_')}",
    ).value["saes"]
    for where, corpus in texts.items()
}
back = {
    where: {
        name: [
            (quality[where][which][0]["l0"], of[which] | {"seeds": [of[which]["recovered"]]})
            for which in (name, f"{name}, sparser")
        ]
        for name in saes
    }
    for where, of in recovered.items()
}
figure, axes = plt.subplots(2, 2, figsize=(figures.WIDTH, 5.6), sharex="col", sharey="row")
for (above, below), where in zip(axes.T, texts, strict=True):
    figures.curves(curves[where], "mean", axis=above, ticks=(12, 20, 30, 45))
    figures.curves(back[where], "recovered", axis=below, ticks=(12, 20, 30, 45))
    above.set_title(where, fontsize="medium")
    below.set_xlabel("L0, active latents a token")
axes[0, 0].set_ylabel("FVU")
axes[1, 0].set_ylabel("loss recovered")
handles, labels = axes[0, 0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=3)
figures.headed(figure, "With chat in the last third of its steps, an SAE explains chat as one that read nothing else")
pages.publish(
    figure,
    "01_fvu_l0",
    "FVU and, below, loss recovered against L0, two sparsities each. On chat those that end on it lie together, mixed "
    "just above; on pretraining text mixed lies near pretraining. Bars: 95 %, over seeds; below, over texts.",
    alt="Four panels of short curves. On chat three families lie together, mixed just above them in FVU, IT and plain pretraining further up; on pretraining text pretraining and mixed are lowest and chat highest.",
)
mean = {where: {name: entry["mean"] for name, entry in by_name.items()} for where, by_name in fvu.items()}
on_chat, on_text = mean.values()
thirds = ("from pretraining", "from IT")
expect(
    max(abs(on_chat[name] - on_chat["chat"]) for name in thirds) < 0.002
    and max(abs(on_chat[f"{name}, sparser"] - on_chat["chat, sparser"]) for name in thirds) < 0.004,
    "finetuned SAEs explain as much of chat as the one that read nothing else, to within .002, sparser to within .004",
)
expect(
    0.155 < on_chat["chat"] < 0.165 and 0.235 < on_chat["IT"] < 0.245 and 0.295 < on_chat["pretraining"] < 0.305,
    "on chat FVU is .16 where it was read, .24 for pretraining text in the template, .30 for plain text",
)
expect(
    0.009 < on_chat["mixed"] - on_chat["chat"] < 0.014
    and min(on_text[name] for name in (*thirds, "chat")) - on_text["mixed"] > 0.05
    and on_text["mixed"] - on_text["pretraining"] < 0.01,
    "mixed costs .01 on chat, saves .05 on pretraining text, and lies within .01 of pretraining there",
)
expect(
    all(-0.003 < on_chat[f"{name}'s end"] - on_chat[name] < 0 for name in thirds),
    "from the end, with a third more steps, it is better by less than .003",
)
expect(
    all(0.005 < on_chat[name] - on_chat[f"{name}, longer"] < 0.008 for name in ("chat", "IT"))
    and on_chat["IT, longer"] - max(on_chat[name] for name in (*thirds, *ends)) > 0.07,
    "a third more steps on chat alone gain more than .005, on IT's own text too, which leaves it .07 behind",
)
expect(
    on_chat["pretraining"] - on_chat["IT"] < 0.5 * (on_chat["pretraining"] - on_chat["chat"]),
    "the chat template around other text makes up for less than half of the way to chat",
)
shown = {name: entry["interval"] for name, entry in recovered["on chat"].items()}
expect(
    min(shown[name][0] for name in (*thirds, "chat", "mixed")) > max(shown["IT"][1], shown["pretraining"][1]),
    "on chat the model loses less with reconstructions of SAEs that read chat than with those of IT and pretraining",
)
gone = {name: over("dead", "on chat", name)["mean"] / t.latents for name in thirds}
expect(
    0.1 < gone["from IT"] < 0.125 and gone["from pretraining"] < 0.01,
    "one latent in nine of those from IT is silent on chat, of those from pretraining fewer than one in a hundred",
)


# %% tags=["hide-input"]
def on_both(name, field, digits=0):
    """A mean over seeds on chat and, in brackets, on pretraining text."""
    chat, text = (f"{over(field, where, name)['mean']:.{digits}f}" for where in texts)
    return f"{chat} ({text})"


pages.table(
    (
        (name, on_both(name, "fvu", 3), on_both(name, "l0"), f"{on_both(name, 'dead')} · {on_both(name, 'high')}")
        for name in saes
    ),
    (
        "SAE, on chat (on pretraining text)",
        "FVU",
        "L0",
        f"of {t.latents:,} latents never fire · fire on a tenth of tokens or more",
    ),
)

# %% [markdown]
# The three schedules, of finetuning for $f$ steps, a third of $N$: *equal total*, *from the end*, and as many steps as the latter without finetuning.

# %% tags=["hide-input"]
schedules = {
    "equal total, N − f then f": [*thirds],
    "from the end, N then f": [*ends],
    "N + f, no finetuning": [*longer],
    "N, no finetuning": ["IT", "chat"],
}
pages.table(
    (
        (schedule, name, on_both(name, "fvu", 3), on_both(name, "l0"))
        for schedule, of in schedules.items()
        for name in of
    ),
    ("schedule", "SAE", "FVU on chat (on pretraining text)", "L0"),
)

# %% [markdown]
# What pays is to have read chat, not how. Finetuned from either start, for a third of the steps, an SAE explains as much of it as one that read chat alone, and more of pretraining text. To go on from the *end* of training,
# with a third more steps, gains less than .003; as many more on chat alone gain twice that, and on IT's own text too, which leaves it far behind. *Mixed* pays .01 on chat and keeps pretraining text. What an SAE has read decides what it is good for, as
# [Kissane et al. 2024](https://www.alignmentforum.org/posts/rtp6n7Z23uJpEH7od/saes-are-highly-dataset-dependent-a-case-study-on-the) found for a single direction, that of refusal: there text mattered more than
# whether the SAE's model was a chat model; here it matters more than the order in which text is read.
#
# The starts do differ in latents: one in nine of those from IT are silent on chat, hardly any of those from pretraining. It is the restart that silences them: as long on IT's own text leaves more silent (the control of *What survives finetuning*), and IT, longer, without one, no more than IT. IT and pretraining differ in more than the template: in user turns the error on the template's own tokens
# counts many times (below), and SAEs of one weight of the penalty differ in L0.
#
# ## Can their latents be explained?
#
# By counting tokens and comparing sentences, as in notebook 04: explained on one half of held-out chat, scored on the other by how well the explanation predicts where a latent
# is active. The mean is taken over firings, so that it is about what is active in a text, and over latents.

# %%
explained = values(
    {
        name: [
            study.explained(sae, run, f"01_score_{name}_{run}".replace(" ", "_"))
            for run, sae in enumerate(of[: headline.fewer_seeds])
        ]
        for name, of in saes.items()
    }
)


def score(entries, mean="weighted"):
    return stats.over_seeds([entry[mean]["mean"] for entry in entries])


def less(some, others, mean="weighted"):
    """Mean score of some SAEs less that of others, paired by seed."""
    return stats.over_seeds([a[mean]["mean"] - b[mean]["mean"] for a, b in zip(some, others, strict=False)])


means = {"over firings": "weighted", "over latents": "uniform"}
axis = figures.forest(
    {name: {said: score(of, mean) for said, mean in means.items()} for name, of in explained.items()}, "mean"
)
axis.set(
    xlabel="mean autointerp score",
    ylabel="SAE",
    title="SAEs that read chat have the higher scores there, not each surely",
)
pages.publish(
    axis.figure,
    "01_scores",
    f"Mean score on held-out chat, of {p.autointerp.latents} latents an SAE, over firings and over latents. SAEs that read chat have higher means; "
    "over firings no order holds among them. Dots: seeds; bars: 95 %, over SAEs.",
    alt="Rows of two points: IT and pretraining lowest over firings, the four that read chat higher and overlapping; over latents the finetuned ones are highest.",
)
ahead = {
    name: less(explained["from pretraining"], explained[name])["interval"]
    for name in explained
    if name != "from pretraining"
}
expect(
    min(ahead["IT"][0], ahead["pretraining"][0]) > 0
    and all(ahead[name][0] < 0 < ahead[name][1] for name in ("chat", "mixed", "from IT")),
    "over firings the SAE from pretraining scores higher than IT and pretraining, and cannot be told from the others",
)
over_all = {name: score(of)["mean"] for name, of in explained.items()}
expect(
    min(over_all[name] for name in (*thirds, "chat", "mixed")) > max(over_all["IT"], over_all["pretraining"]),
    "over firings the four that read chat have higher means than IT and pretraining",
)
best = {name: score(of, "uniform")["mean"] for name, of in explained.items()}
expect(
    sorted(best, key=best.__getitem__)[-2:] == ["from pretraining", "from IT"],
    "over latents the two finetuned ones score highest",
)

# %% [markdown]
# Over firings the SAE from pretraining scores higher than IT and pretraining do, and no differently from chat, mixed and from IT. The post finds it slightly best. SAEs of lower
# L0 score higher as such (notebook 04), and those that have read chat have the lower L0 there.

# %% [markdown]
# ## How well do they probe?
#
# Each family beside IT, the baseline, as in the post's bars; below, what each is ahead of it, on the same seeds, draws and prompts.

# %%
claimed = {
    "A1": [(name, "IT") for name in ("from pretraining", "from IT", "chat")],
    "A2": [(name, "chat") for name in ("from pretraining", "from IT")],
    "A3": [
        ("from pretraining", "from IT"),
        ("from pretraining's end", "from pretraining"),
        ("from IT's end", "from IT"),
    ],
}
ways = [name for name in (*saes, *ends) if name != "IT"]
pairs = sorted({*itertools.chain(*claimed.values()), *((name, "IT") for name in ways)})
gaps = study.compare(
    tables.differences,
    {f"{a} - {b}, {r}": (taught[f"{r}, {a}"], taught[f"{r}, {b}"]) for a, b in pairs for r in readings},
    name="01_differences",
).value
figure, axes = plt.subplots(2, 2, figsize=(figures.WIDTH, 6.4), sharex="row", sharey="row")
for (above, below), reading in zip(axes.T, readings, strict=True):
    figures.forest({name: {"SAE": probed[f"{reading}, {name}"]["ood"]} for name in ("IT", *ways)}, axis=above)
    above.axvline(probed["dense"]["ood"]["auroc"], color=figures.look("dense")["color"], linestyle="--")
    figures.forest({name: {"SAE": gaps[f"{name} - IT, {reading}"]["ood"]} for name in ways}, "difference", axis=below)
    below.axvline(0, color=figures.CONTEXT, linewidth=1)
    above.set(title=reading, xlabel="OOD AUROC")
    below.set_xlabel("OOD AUROC, less that of IT")
figures.headed(figure, "No family probes surely better or worse than IT")
pages.publish(
    figure,
    "01_probing",
    f"OOD AUROC (above), and how far ahead of IT (below); n = {probed['dense']['ood']['n']:,} prompts, {headline.seeds} seeds, {q.draws} draws. Every interval of a "
    "difference holds nought, and reaches .046 or more. Dots: seeds; bars: 95 %; dashed: dense probe.",
    alt="Four panels: AUROCs of eight ways between .70 and .85 with wide bars, far below the dense probe; below, differences to IT, all of whose bars cross zero.",
)
ahead_of_it = {f"{name}, {r}": gaps[f"{name} - IT, {r}"]["ood"]["interval"] for name in ways for r in readings}
expect(
    all(low < 0 < high and max(-low, high) > 0.04 for low, high in ahead_of_it.values()),
    "no way's probe is told from IT's, and none to within .04",
)
expect(
    max(max(-low, high) for low, high in ahead_of_it.values()) < 0.16
    and 0.84 < max(probed[method]["ood"]["auroc"] for method in taught) < 0.855
    and 0.93 < probed["dense"]["ood"]["auroc"] < 0.945,
    "differences from IT of up to .16 are not excluded; the best way's mean is .85, the dense probe .94",
)
expect(
    max(probed[method]["ood"]["interval"][1] for method in taught) < probed["dense"]["ood"]["interval"][0],
    "the intervals of all of them lie below the dense probe's",
)
told_apart = [pair for pair, entry in gaps.items() if not entry["ood"]["interval"][0] < 0 < entry["ood"]["interval"][1]]
expect(not told_apart, "no pair of ways that a claim names is told apart by its probes")

# %% [markdown]
# Would more data tell them apart? The pairs that claims A2 and A3 say are alike, with all training prompts and with half of their clusters, at the places that all prompts chose.

# %%
alike = sorted({*claimed["A2"], *claimed["A3"]})
half_of = Fewer(probed["dense"]["train"]["clusters"] // 2)
at_half = {
    f"{r}, {name}": study.fit(
        probe, *study.see(Latents, (saes | ends)[name], places[choices[f"{r}, {name}"]["best"]]), change=half_of
    )
    for r, probe in readings.items()
    for name in sorted({*itertools.chain(*alike)})
}
gaps_at_half = study.compare(
    tables.differences,
    {f"{a} - {b}, {r}": (at_half[f"{r}, {a}"], at_half[f"{r}, {b}"]) for a, b in alike for r in readings},
    name="01_differences_at_half",
    change=half_of,
).value


def unsigned(entry):
    """The size of a difference of AUROC: turned so that it is above 0, its upper end as far out as either end was."""
    low, high = sorted(np.sign(entry["difference"] or 1) * end for end in entry["interval"])
    return entry | {"difference": abs(entry["difference"]), "interval": [low, max(-low, high)]}


axis = figures.forest(
    {
        f"{a} less {b}": {
            f"{r}, {said}": of[f"{a} - {b}, {r}"]["ood"]
            for said, of in {"all prompts": gaps, "half": gaps_at_half}.items()
            for r in readings
        }
        for a, b in alike
    },
    "difference",
)
axis.axvspan(-0.02, 0.02, **figures.SHADE)
axis.set(xlabel=f"OOD AUROC, difference (n = {probed['dense']['ood']['n']:,})", ylabel="SAEs compared")
figures.headed(axis.figure, "Twice the training prompts do not tell the ways apart")
pages.publish(
    axis.figure,
    "01_alike",
    "The differences that A2 and A3 say are small, in OOD AUROC, with all training prompts and with half. Shaded: the margin, .02, which no interval keeps to; "
    "with half they are no wider. Dots: seeds; bars: 95 %.",
    alt="Five rows of four points about zero; all bars but one cross it and none stays within the shaded margin, with all prompts or with half.",
)
ends_of = {
    said: [of[f"{a} - {b}, {r}"]["ood"]["interval"] for a, b in alike for r in readings]
    for said, of in {"all": gaps, "half": gaps_at_half}.items()
}
wide = {said: np.mean([high - low for low, high in of]) for said, of in ends_of.items()}
expect(
    all(max(-low, high) > 0.02 for of in ends_of.values() for low, high in of),
    "no difference that A2 and A3 name is surely within .02, with all prompts or with half",
)
expect(
    0.135 < wide["all"] < 0.145 and 0.12 < wide["half"] < 0.13,
    "the intervals are .14 wide in the mean with all prompts, .12 with half",
)
by_seed = [np.mean(probed[method]["ood"]["seeds"], 1).std(ddof=1) for method in taught]
expect(
    min(by_seed) > 0.04 and max(by_seed) < 0.12,
    "the standard deviation over seeds is .04 to .12, of each way and reading",
)
spread = [probed[method]["ood"]["spread"] for method in taught]
expect(
    min(of["seeds"]["share"] for of in spread) > 0.5 and max(of["prompts"]["share"] for of in spread) < 0.2,
    "SAE seeds make more than half of the variance of an AUROC, prompts to test on less than a fifth",
)
expect(
    sum(low < 0 < high for low, high in ends_of["all"]) == len(alike) * len(readings)
    and sum(low < 0 < high for low, high in ends_of["half"]) == len(alike) * len(readings) - 1,
    "all intervals hold nought, but one with half the prompts",
)

# %% [markdown]
# By their probes the ways cannot be told from IT, though IT leaves half as much again of chat unexplained; all are below the dense probe. That is no proof that they are alike: differences of up to
# .05 to .16 are not excluded, either way. Twice the prompts did not narrow the intervals (in the mean .14, with half .12), so more of the same would hardly settle it; with half, one of ten leaves out nought, by .001.
# What varies most is the SAE: seeds make more than half of the variance. With k latents the draw of the training prompts matters too, but differently in each SAE.
#
# ## What survives finetuning
#
# Does finetuning turn the old latents towards chat, or replace them? For each latent after finetuning from IT: the cosine between the direction that it writes and the nearest that was there when
# finetuning began. Two controls: as many steps in the same way on IT's *own* text, and the latents of IT from *another seed*, which say what is near by chance.


# %%
@result
def turned(before, checkpoint, after, chats, texts, layer):
    """Of each latent after finetuning: the largest cosine of its decoder direction with any before; how often it fires on held-out chat and on
    another text. ``checkpoint`` None is the end."""
    old, new = training.load(before, checkpoint), training.load(after)
    a, b = (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8) for sae in (old, new))
    rates = {}
    for name, harvested in {"chat": chats, "text": texts}.items():
        sums = metrics.Sums.of(new, activations.read(harvested, layer))
        rates[name] = (sums.fired / sums.tokens.sum()).round(5)
    return {"nearest": (b @ a.T).amax(1).numpy().round(3), **rates}


def new_latents(entry):
    """Those like none before that fire on chat, and there ten times as often as on IT's text; the most frequent first."""
    nearest, chat, text = (np.array(entry[field]) for field in ("nearest", "chat", "text"))
    new = np.flatnonzero((nearest < 0.5) & (chat > 1e-3) & (chat > 10 * text))
    return new[np.argsort(-chat[new], kind="stable")].tolist()


held_out = {corpus: study.activations(corpus, "eval") for corpus in ("chat", "IT")}
usual = study.jumprelu()
starts = [study.finetuned(usual, run)[0] for run in few]
again = [study.train("IT", usual, start=sae, checkpoint=left, run=run, share=share) for run, sae in enumerate(starts)]
moves = {
    "on chat": [(starts[run], left, saes["from IT"][run]) for run in few],
    "as long on IT's own text": [(starts[run], left, again[run]) for run in few],
    "another seed's": [(starts[(run + 1) % len(few)], left, saes["from IT"][run]) for run in few],
}
moved = values(
    {
        name: [
            turned(
                *pair, *held_out.values(), p.layer, name=f"01_turned_{name}_{run}".replace(" ", "_").replace("'", "")
            )
            for run, pair in enumerate(of)
        ]
        for name, of in moves.items()
    }
)
edges = np.linspace(0, 1, 41)
figure, axis = plt.subplots(figsize=(figures.WIDTH, 3.2))
for number, (name, of) in enumerate(moved.items()):
    shares = np.mean([np.histogram(np.clip(e["nearest"], 0, 1), edges)[0] / len(e["nearest"]) for e in of], 0)
    axis.stairs(shares, edges, label=name, color=f"C{number}", linewidth=1.6)
axis.set(xlabel="cosine to the nearest direction before", ylabel="share of latents")
axis.legend()
figures.headed(figure, "Four in five latents keep a likeness through finetuning, on IT's own text nine in ten")
pages.publish(
    figure,
    "01_turned",
    f"Histogram of latents after finetuning, by the cosine of their direction to the nearest before; mean of {len(few)} seeds. On chat a fifth end below a half; "
    "as long on IT's own text few do, and between seeds most.",
    alt="Three histograms: between seeds a peak at low cosines, on chat a broad one from .3 to 1, on IT's own text a peak near 1.",
)
apart = {name: [np.mean(np.array(e["nearest"]) < 0.5) for e in of] for name, of in moved.items()}
fired = [np.array(e["chat"]) for e in moved["on chat"]]
by_new = [f[np.array(e["nearest"]) < 0.5].sum() / f.sum() for f, e in zip(fired, moved["on chat"], strict=True)]
found_new = {name: [len(new_latents(e)) for e in of] for name, of in moved.items()}
expect(
    min(apart["on chat"]) > 0.18
    and max(apart["on chat"]) < 0.22
    and max(apart["as long on IT's own text"]) < 0.08
    and min(apart["another seed's"]) > 0.8,
    "after finetuning a fifth of latents has no likeness of cosine a half before; on IT's own text fewer than one in ten, between seeds more than four in five",
)
silent = {name: [np.mean(np.array(e["chat"]) == 0) for e in of] for name, of in moved.items()}
expect(
    min(silent["as long on IT's own text"]) > max(silent["on chat"])
    and over("dead", "on chat", "IT, longer")["mean"] < 1.1 * over("dead", "on chat", "IT")["mean"],
    "as long on IT's own text leaves more latents silent on chat than finetuning on chat; longer without a restart leaves no more than IT",
)
expect(max(by_new) < 0.05, "that fifth does less than a twentieth of the firing on chat")
expect(
    min(found_new["on chat"]) > 70
    and max(found_new["on chat"]) < 95
    and max(found_new["as long on IT's own text"]) < 10,
    "seventy to ninety of them are new latents of chat, ten or fewer after as long on IT's own text",
)


# %%
@result
def strongest(sae, which, sides, lm, layer, count):
    """Where latents fire most: {latent: {side: [{tokens, values}]}}, of harvests ``sides``, the tokens about the strongest of different texts."""
    trained, tokenizer, found = training.load(sae), model.tokenizer(lm), {str(latent): {} for latent in which}
    for side, harvested in sides.items():
        source = activations.read(harvested, layer)
        with torch.inference_mode():
            f = torch.cat([trained.encode(x)[:, list(which)] for x in source.chunks()]).numpy()
        text, token = source.column("sequence"), source.column("token")
        for column, latent in enumerate(which):
            order = np.argsort(-f[:, column], kind="stable")
            order = order[f[order, column] > 0]
            first = order[np.sort(np.unique(text[order], return_index=True)[1])[:count]]
            shown = [np.arange(max(0, at - AROUND), min(len(text), at + AROUND + 1)) for at in first.tolist()]
            shown = [part[text[part] == text[at]] for part, at in zip(shown, first, strict=True)]
            found[str(latent)][side] = [
                {"tokens": token_texts(tokenizer, token[part]), "values": f[part, column]} for part in shown
            ]
    return found


first = moved["on chat"][0]
newest = new_latents(first)[:3]
sides = {"held-out chat": held_out["chat"], "held-out pretraining text as user turns": held_out["IT"]}
cards = strongest(
    saes["from IT"][0], newest, sides, study.lm, p.layer, p.debugging.contexts, name="01_new_latents"
).value
said = [["".join(shown["tokens"]).lower() for shown in of["held-out chat"]] for of in cards.values()]
expect(
    len(said) == 3
    and all("assistant" in text for text in said[0])
    and all("give" in text or "write" in text for text in said[1])
    and all("i apologize" in text for text in said[2]),
    "the three new latents that fire most are of the assistant's first words, of orders, and of apologies",
)
for latent, contexts in cards.items():
    at = int(latent)
    display(
        pages.card(
            f"on {first['chat'][at]:.1%} of chat tokens, {first['text'][at]:.2%} of IT's; nearest direction before: cosine {first['nearest'][at]:.2f}",
            contexts,
            pages.latent("finetuned", at),
        )
    )

# %% [markdown]
# A fifth of the latents end without a likeness among those before; they do less than a twentieth of the firing. Most of what finetuning does, it does by turning what is there. But not all: some eighty latents a seed are
# new, fire on chat and hardly on IT's text; as long on IT's own text, ten at most. Above are the three of the first seed that fire most: how an assistant begins to answer, what users
# order it to do, and its apologies.
#
# ## How much is a bit of chat?
#
# From the same checkpoint of IT, fewer or more steps on chat, each with its own fall of the learning rate. The last point reads the chat text more than once.

# %%
bits = sorted({1 / 48, 1 / 24, 1 / 12, 1 / 6, share, 2 * share})
after_bits = {
    bit: [
        study.train(
            "chat",
            study.jumprelu(),
            start=study.finetuned(study.jumprelu(), run)[0],
            checkpoint=left,
            run=run,
            share=bit,
        )
        for run in few
    ]
    for bit in bits
}
by_bit = values(
    {
        bit: [study.evaluate(sae, "chat", f"01_bit_{bit:.3f}_{run}") for run, sae in enumerate(of)]
        for bit, of in after_bits.items()
    }
)
tokens = {bit: max(1, round(bit * t.steps)) * t.batch for bit in bits}
line = [(tokens[bit], stats.over_seeds([e["fvu"] for e in of])) for bit, of in by_bit.items()]
short = [  # how far a seed is from its own end, as a share of that
    (count, stats.over_seeds([e["fvu"] / last["fvu"] - 1 for e, last in zip(of, by_bit[bits[-1]], strict=True)]))
    for (count, _), of in zip(line[:-1], by_bit.values(), strict=False)
]
enough = next((count for count, entry in short if entry["interval"][1] < 0.05), None)
end = line[-1][1]["mean"]
axis = figures.curves({"from IT": line}, "mean", ticks=[count for count, _ in line])
axis.set_xticks([count for count, _ in line], [f"{count / 1000:,.0f}k" for count, _ in line])
for name in ("IT", "chat"):
    axis.axhline(fvu["on chat"][name]["mean"], color=figures.look(name)["color"], linestyle="--")
    axis.annotate(
        name, (tokens[bits[0]], fvu["on chat"][name]["mean"]), (0, -12), "data", "offset points", **figures.OVER
    )
axis.axhspan(end, 1.05 * end, **figures.SHADE)
axis.set(
    xlabel="chat tokens that finetuning reads",
    ylabel="FVU, held-out chat",
)
figures.headed(
    axis.figure, "Thirty thousand tokens of chat bring a quarter of what a million bring, half a million nine tenths"
)
pages.publish(
    axis.figure,
    "01_bits",
    f"FVU on chat after finetuning from IT on more and more chat; thin lines: {len(few)} seeds. Shaded: within 5 % of the end, which no shorter "
    "finetuning surely reaches. Dashed: IT, and chat from scratch.",
    alt="A curve that falls from .22 at thirty thousand tokens to .16 at half a million and .15 at a million, steadily on a logarithmic axis.",
)
gained = {count: (on_chat["IT"] - entry["mean"]) / (on_chat["IT"] - end) for count, entry in line}
counts = list(gained)
expect(
    0.22 < gained[counts[0]] < 0.3
    and 0.87 < gained[counts[-2]] < 0.94
    and 28e3 < counts[0] < 33e3
    and 4.5e5 < counts[-2] < 5.5e5,
    "thirty thousand tokens bring a quarter of what a million do, half a million nine tenths",
)
expect(enough is None, "no shorter finetuning is surely within 5 % of the end")
expect(
    end < on_chat["chat, longer"] - 0.002
    and np.mean([e["l0"] for e in by_bit[bits[-1]]]) < over("l0", "on chat", "chat, longer")["mean"],
    "at as many steps as chat, longer, half of them chat, it leaves less unexplained, at a lower L0",
)

# %% [markdown]
# A bit of chat goes a long way, and more goes further: there is no point at which it is enough. The last point has had as many steps as *chat, longer*, half of them chat, and leaves less unexplained, at fewer active latents. The smallest bit also stands for a restart of the optimiser and a fall of the learning rate, which IT alone
# has had too; L0 falls along the curve, from 42 to 30, so error is not bought with more active latents.

# %% [markdown]
# ## Starting some latents anew, and showing the probe's prompts
#
# Two ideas of the post's. Latents that finetuning has no use for could be given another life: a share of them, drawn at random, is *redrawn*, that is
# starts anew when finetuning begins. And the SAE could be shown what it will be asked about: each training prompt of the probe stands in the finetuning mix a
# number of times, its *repeats*, beside the chat text once. The number of steps is the same and ends before the mix does, so a prompt is read less often than it stands there, and what
# prompts take, chat loses (table). All go on from IT, with half the latents. A pair is an SAE seed with a draw of the training prompts: the SAE has read those, and no others, and the probe is taught on
# them. So where k is chosen by leaving out a kind of prompt, such an SAE has read that kind; the prompts that are scored, in distribution or OOD, it has not. Every one is read where *from IT* is.


# %%
@cached
def training_prompts(out, prompts, harvested, draw):
    """Step: residuals of the training prompts of a draw, from the user's text on, as text that an SAE is trained on."""
    train = np.flatnonzero(examples.Labels.of(examples.read(prompts)).drawn(draw).where("train"))
    for path in sorted(harvested.path.glob("shard_*.safetensors")):
        shard = load_file(path)
        here = torch.from_numpy(np.isin(shard["sequence"].numpy(), train))
        save_file({name: column[here] for name, column in shard.items()}, out / path.name)


small = study.jumprelu(latents=t.latents // 2)


def tuned(run, redrawn=0.0, repeats=0, times=1):
    """An SAE finetuned from IT, of which a share of latents is redrawn, on chat and so many repeats of a draw's training prompts, for so many times as long."""
    read = ((study.activations("chat", "train"), 1.0),)
    if repeats:
        read += ((training_prompts(study.labelled, study.prompt_activations, run), float(repeats)),)
    steps = {"steps": max(1, round(times * share * t.steps)), "sparsity_warmup": 0.0}
    begun, section = study.finetuned(small, run)[0], t.model_copy(update=steps)
    return training.train(small, read, p.layer, section, p.seed + run, begun, left, redrawn)


# %%
half, four = 0.5, 4  # those of the claims
cells = {(redrawn, repeats): headline.level_seeds for redrawn in headline.redrawn for repeats in headline.repeats}
cells = {cell: count for cell, count in cells.items() if not cell[1] or not 0 < cell[0] < 0.25}
cells |= {(redrawn, repeats): headline.seeds for redrawn in (0.0, half) for repeats in (0, four)}
# yours, with two pairs or more: cells[0.75, 0] = 3, three quarters of the latents redrawn, of three pairs

# %%
grid = {cell: [tuned(run, *cell) for run in range(count)] for cell, count in cells.items()}
grid["IT"] = [study.finetuned(small, run)[0] for run in range(headline.seeds)]
twice = {redrawn: [tuned(run, redrawn, times=2) for run in few] for redrawn in (0.0, half)}  # as long again


def part(redrawn):
    return f"{100 * redrawn:g} % redrawn"


def named(cell):
    return cell if isinstance(cell, str) else f"{part(cell[0])}, {cell[1]} repeats"


# %%
@dataclass(frozen=True)
class Draw(Change):
    """The draw of the split whose number is ``amount``."""

    def changed(self, labels, texts, rng):
        return labels.drawn(round(self.amount))


@result
def by_pair(prompts, fits, compared):
    """OOD AUROC of {cell: fits, one a pair of seed and draw}, and the differences of the cells ``compared`` over the pairs that both have; intervals
    over other pairs and other prompts to test on."""
    labels = examples.Labels.of(examples.read(prompts))
    here, (names, group) = labels.where("ood"), np.unique(labels.group, return_inverse=True)
    y, of = labels.y[here], group[here]
    fewest = min(len(np.unique(of[y == kind])) for kind in (0, 1))
    moved = {
        cell: [stats.influences(y, methods.scores(fit)[0, 0][here], of, len(names)) for fit in mine]
        for cell, mine in fits.items()
    }
    values_of = {cell: np.array([[value] for value, _ in mine]) for cell, mine in moved.items()}
    pulls_of = {cell: np.array([[pull] for _, pull in mine]) for cell, mine in moved.items()}
    found = {
        cell: stats.summary(value, pulls_of[cell], fewest, (0.0, 1.0)) | {"seeds": value}
        for cell, value in values_of.items()
    }
    for a, b in compared:
        n = min(len(values_of[a]), len(values_of[b]))
        value, pull = (np.stack([which[a][:n], which[b][:n]]) for which in (values_of, pulls_of))
        found[f"{a} - {b}"] = stats.summary(value, pull, fewest, (-2.0, 2.0), (1, -1)) | {"seeds": value[0] - value[1]}
    return found


read_at = {reading: places[choices[f"{reading}, from IT"]["best"]] for reading in readings}
OWN = "IT, at its own place"  # that chosen at 2,304 latents; beside A6b, not counted
compared = [(cell, (0, 0)) for cell in cells if cell != (0, 0)]
compared += [((half, four), (half, 0)), ((half, 0), "IT"), ((0, 0), "IT"), ((half, 0), OWN)]
own = {reading: places[choices[f"{reading}, IT"]["best"]] for reading in readings}
seen_in = {
    reading: {cell: study.see(Latents, of, at) for cell, of in grid.items()}
    | {OWN: study.see(Latents, grid["IT"], own[reading])}
    for reading, at in read_at.items()
}
probed_in = {
    reading: by_pair(
        study.labelled,
        {
            named(cell): [study.fit(probe, view, draws=1, change=Draw(float(run))) for run, view in enumerate(views)]
            for cell, views in seen_in[reading].items()
        },
        [(named(a), named(b)) for a, b in compared],
        name=f"01_grid_{reading.replace(' ', '_')}",
    ).value
    for reading, probe in readings.items()
}
gap = {(a, b, r): probed_in[r][f"{named(a)} - {named(b)}"] for a, b in compared for r in readings}

# %%
shares = sorted({redrawn for redrawn, _ in cells})
ticks = sorted({repeats for _, repeats in cells})
axes = figures.panels([part(redrawn) for redrawn in shares], columns=5, height=3.2)
for redrawn, (title, axis) in zip(shares, axes.items(), strict=True):
    mine = sorted(repeats for share_of, repeats in cells if share_of == redrawn and (share_of, repeats) != (0, 0))
    for number, r in enumerate(readings):
        entries = [gap[(redrawn, n), (0, 0), r] for n in mine]
        x, shape = [ticks.index(n) + 0.1 * number for n in mine], figures.look(r, number)
        ends = np.abs(np.transpose([entry["interval"] for entry in entries]) - [entry["mean"] for entry in entries])
        axis.errorbar(x, [entry["mean"] for entry in entries], ends, label=r, **shape)
    axis.axhline(0, color=figures.CONTEXT, linewidth=1)
    axis.set_xticks(range(len(ticks)), ticks)
    axis.set_title(title, fontsize="medium", color="black")
next(iter(axes.values())).set_ylabel("OOD AUROC, less that of\nnone redrawn, no repeats")
[*axes.values()][len(axes) // 2].set_xlabel("repeats of the training prompts")
axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
figures.headed(axis.figure, "Beside plain finetuning, hardly a cell of the grid can be told from nought")
pages.publish(
    axis.figure,
    "01_repeats",
    "OOD AUROC less that of plain finetuning on the same pairs, by repeats and share redrawn. Ten pairs of seed and draw at nought and four repeats where none or half were redrawn, three elsewhere. "
    "Bars: 95 %.",
    alt="Panels of points with bars by number of repeats; nearly all bars cross zero, those of three pairs are several tenths long.",
)
told_in_grid = [
    key for key, entry in gap.items() if key[1] == (0, 0) and not entry["interval"][0] < 0 < entry["interval"][1]
]
expect(
    told_in_grid == [((0.25, 4), (0, 0), "k latents")],
    "of the cells of the grid one is told from plain finetuning: k latents at four repeats and a quarter redrawn, of three pairs",
)
# %%
within: dict[str, list] = {
    "A4": [((half, 0), (0, 0))],
    "A5": [((0.0, four), (0, 0)), ((half, four), (half, 0))],
    "A6b": [((half, 0), "IT")],
}
said_of = {
    (half, 0): "half redrawn",
    (0, 0): "none redrawn",
    (0, four): "four repeats",
    (half, four): "half redrawn, four repeats",
    "IT": "IT",
    OWN: OWN,
}
shown_pairs: list = [*itertools.chain(*within.values()), ((0, 0), "IT"), ((half, 0), OWN)]
drawn = {(a, b): {r: gap[a, b, r] for r in readings if b != OWN or own[r] != read_at[r]} for a, b in shown_pairs}
drawn = {pair: of for pair, of in drawn.items() if of}
axis = figures.forest({f"{said_of[a]} less {said_of[b]}": of for (a, b), of in drawn.items()}, "mean")
axis.axvspan(-0.02, 0.02, ymin=1 - 3 / len(drawn), **figures.SHADE)  # of A4 and A5
axis.axvline(0, color=figures.CONTEXT, linewidth=1)
axis.set(xlabel=f"OOD AUROC, difference (n = {probed['dense']['ood']['n']:,})", ylabel="SAEs compared")
figures.headed(
    axis.figure, "Shown the probe's prompts, k latents gain where half were redrawn; nothing else is told apart"
)
pages.publish(
    axis.figure,
    "01_pairs",
    "What A4, A5 and A6b compare, and two rows beside them that do not count: OOD AUROC, ten pairs of seed and draw each. Shaded: the margin of A4 and A5. "
    "Dots: pairs; bars: 95 %.",
    alt="Six rows of points about zero. All bars cross it but that of k latents for four repeats where half were redrawn, which lies above.",
)
stands_out = gap[(half, four), (half, 0), "k latents"]
told = [pair for pair, entry in gap.items() if not entry["interval"][0] < 0 < entry["interval"][1]]
expect(
    {*told} == {((0.25, 4), (0, 0), "k latents"), ((half, four), (half, 0), "k latents")} and len(gap) == 32,
    "two of thirty-one differences (one is there twice) are told from nought, both of k latents and four repeats",
)
stands_out = gap[(half, four), (half, 0), "k latents"]
expect(
    0.019 < stands_out["interval"][0] < 0.02
    and abs(stands_out["mean"] - 0.09) < 0.005
    and abs(gap[(half, 0), OWN, "k latents"]["mean"] + 0.1) < 0.015
    and gap[(half, 0), OWN, "k latents"]["interval"][1] > 0,
    "where half were redrawn k latents gain .09 by four repeats, which misses the margin of A5 by less than a thousandth; read at IT's place, IT's are ahead of half redrawn, not surely",
)

# %% [markdown]
# Beside plain finetuning neither idea is seen to help or harm, with ten pairs. Two of the thirty-one differences here are told from nought, both of k latents and four repeats: where half were redrawn, .09 (figure), and,
# with three pairs, where a quarter were. Chance alone would bring one or two. The first misses the margin of A5 by less than a thousandth, so that row stays open by a hair; both ask for a repetition. Read at the place that was chosen
# for it at 2,304 latents, IT's k latents are ahead of half redrawn, by a tenth in the mean, not surely. Below: what these SAEs have read, and what that did to them.


# %%
@result
def sizes(chats, prompts, layer):
    """Tokens of chat, and of the training prompts of each draw."""
    return {
        "chat": len(activations.read(chats, layer)),
        "prompts": [len(activations.read(one, layer)) for one in prompts],
    }


asked = [training_prompts(study.labelled, study.prompt_activations, run) for run in few]
size = sizes(study.activations("chat", "train"), asked, p.layer, name="01_grid_sizes").value
of_grid = values(
    {
        named(cell): [
            study.evaluate(
                sae, "chat", f"01_grid_{named(cell)}_{run}".replace(" ", "_").replace(",", "").replace("_%", "")
            )
            for run, sae in zip(few, of, strict=False)
        ]
        for cell, of in grid.items()
    }
)
told = [cell for cell in cells if not cell[0] or cell in [(half, 0), (half, four)]]
lost_in = kept(
    study.labelled,
    study.prompt_activations,
    p.layer,
    {named(cell): {reading: seen_in[reading][cell][0] for reading in readings} for cell in [*told, "IT"]},
    name="01_grid_lost",
).value
tuned_on = max(1, round(share * t.steps)) * t.batch  # tokens that finetuning reads
expect(
    2.4 < t.steps * t.batch / size["chat"] < 2.6 and 0.8 < tuned_on / size["chat"] < 0.85,
    "chat reads its text two and a half times, the finetuned ones five sixths of it once",
)


def times_read(repeats):
    """How often finetuning reads a token of chat, and one of the training prompts: of their mix it reads the first ``tuned_on``."""
    asked_for = repeats * np.mean(size["prompts"])
    each = tuned_on / (size["chat"] + asked_for)
    return each, repeats * each


# %% tags=["hide-input"]
at_place = {read_at[r]: r for r in readings}  # both may be read at one
pages.table(
    (
        (
            named(cell),
            "none" if cell == "IT" else "{:.2f} · {:.2f}".format(*times_read(cell[1])),
            "{:.3f} · {:.0f}".format(*(np.mean([e[field] for e in of_grid[named(cell)]]) for field in ("fvu", "l0"))),
            " · ".join("{lost:.2f} ({ood:.2f})".format(**lost_in[named(cell)][r]) for r in at_place.values()),
        )
        for cell in [*told, "IT"]
    ),
    (
        "SAE",
        "times that it reads chat · a training prompt",
        "FVU, held-out chat · L0",
        f"lost of prompts (OOD), where {' · '.join(at_place.values())} are read",
    ),
)

# %% [markdown]
# An SAE that is shown the prompts loses less of what differs between prompts in distribution, of which it has read the training part (one SAE); of OOD prompts it loses as much. And it leaves more of chat unexplained, as it has read less of it.

# %%
lost_at = {repeats: lost_in[named((0, repeats))]["k latents"] for repeats in (0, four)}
expect(
    lost_at[four]["lost"] < lost_at[0]["lost"] - 0.1 and lost_at[four]["ood"] > lost_at[0]["ood"] - 0.03,
    "four repeats lower what is lost of the prompts that were read by more than .1, and of OOD prompts by less than .03",
)
by_cell = {
    cell: {field: np.mean([e[field] for e in of_grid[named(cell)]]) for field in ("fvu", "dead")} for cell in cells
}
expect(
    by_cell[0, 0]["fvu"] + 0.02 < by_cell[0, four]["fvu"]
    and by_cell[0, four]["fvu"] + 0.02 < by_cell[0, max(ticks)]["fvu"],
    "the more prompts are read, the more of chat stays unexplained",
)
# %% [markdown]
# Are redrawn latents as well explained? The post finds that redrawing lowers the score, and supposes that new latents are under-trained. So beside the score of all latents stands that of
# the redrawn less that of the kept, in each SAE; and as controls what finetuning for twice as long does to it, and the same latents where none were redrawn.

# %%
by_share = {"IT": grid["IT"]} | {part(redrawn): grid[redrawn, 0] for redrawn, repeats in cells if not repeats}
by_share |= {f"{part(redrawn)}, twice as long": of for redrawn, of in twice.items()}
scored_in = values(
    {
        name: [
            study.explained(
                sae, run, f"01_score_{name}_of_half_{run}".replace(" ", "_").replace(",", "").replace("_%", "")
            )
            for run, sae in enumerate(of)
        ]
        for name, of in by_share.items()
    }
)


def redrawn_ones(seed, redrawn, latents):
    """[latents] bool: those that finetuning redrew, as lib/sae/training.py draws them."""
    order = torch.randperm(latents, generator=torch.Generator().manual_seed(seed)).numpy()
    return np.isin(np.arange(latents), order[: round(redrawn * latents)])


def over_sample(entry, inside, mean="weighted"):
    """Mean score of those sampled latents that are ``inside`` [M] bool, over their firings or (uniform) over them; NaN if there are none."""
    scores = np.where(inside[entry["latent"]], np.array(entry["score"], float), np.nan)
    columns = (np.array(entry[name]) for name in ("fired", "stratum", "sizes"))
    return np.nan if np.isnan(scores).all() else stats.weighted_means(scores, *columns)[mean]["mean"]


def shares_of(entry, inside, count):
    """Of ``count`` latents ``inside`` [M] bool: their share of the firing, and the share of them that fires at all; both by the sample."""
    stratum, here = np.array(entry["stratum"]), inside[entry["latent"]]
    each = (np.array(entry["sizes"]) / np.bincount(stratum))[stratum]
    firing = each * np.array(entry["fired"])
    return firing[here].sum() / firing.sum(), each[here].sum() / count


def set_apart(name, redrawn):
    """Of the latents that a share ``redrawn`` is: {mean: their score less that of the others}, over seeds, and the means of :func:`shares_of`."""
    drawn_ones = [redrawn_ones(p.seed + run, redrawn, small.latents) for run in range(len(scored_in[name]))]
    both = list(zip(scored_in[name], drawn_ones, strict=True))
    found = {
        said: stats.over_seeds([over_sample(e, new, mean) - over_sample(e, ~new, mean) for e, new in both])
        for said, mean in means.items()
    }
    return found, np.mean([shares_of(e, new, new.sum()) for e, new in both], 0)


halves = (part(0), part(half), f"{part(0)}, twice as long", f"{part(half)}, twice as long")
set_apart_of = {name: set_apart(name, half) for name in halves}
new_less_kept = {name: scores for name, (scores, _) in set_apart_of.items()}
firing, alive = ({name: shares[k] for name, (_, shares) in set_apart_of.items()} for k in range(2))
figure, axes = plt.subplots(1, 2, figsize=(figures.WIDTH, 3.4), sharey=True)
figures.forest(
    {name: {said: score(of, mean) for said, mean in means.items()} for name, of in scored_in.items()},
    "mean",
    axis=axes[0],
)
figures.forest({name: new_less_kept.get(name, {}) for name in scored_in}, "mean", axis=axes[1])
axes[1].axvline(0, color=figures.CONTEXT, linewidth=1)
axes[0].set(xlabel="mean score", ylabel=f"SAE of {small.latents:,} latents")
axes[1].set_xlabel("redrawn half less kept half")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
figures.headed(figure, "With half of the latents redrawn the score rises over firings, and falls over latents")
pages.publish(
    figure,
    "01_redrawn",
    f"Mean score on held-out chat, {p.autointerp.latents} latents an SAE; right, the half drawn to be redrawn less the other, where none were redrawn as a control. "
    "Dots: ten seeds, or three; bars: 95 %, over SAEs.",
    alt="Left: with half of the latents redrawn the score over firings is highest, and that over latents lower than with none. Right: redrawn latents score a tenth more over firings, a quarter less over latents; where none were redrawn the halves are alike.",
)
redone, none, start = (scored_in[name] for name in (part(half), part(0), "IT"))
expect(
    less(redone, none)["interval"][0] > 0.025
    and less(redone, start)["interval"][0] > 0.035
    and less(redone, none, "uniform")["interval"][1] < -0.04,
    "with half of the latents redrawn the score is higher over firings than with none, and than IT's; over latents it is lower than with none, by about .06",
)
longer_gap = less(*(scored_in[name] for name in (halves[3], halves[2])))["interval"]
expect(longer_gap[0] < 0 < longer_gap[1], "after twice as many steps the rise over firings is not told apart")
few_redrawn = {
    redrawn: np.mean(
        [
            shares_of(entry, redrawn_ones(p.seed + run, redrawn, small.latents), round(redrawn * small.latents))
            for run, entry in enumerate(scored_in[part(redrawn)])
        ],
        0,
    )
    for redrawn in headline.redrawn
    if 0 < redrawn < half
}
expect(
    all(new_less_kept[name]["over firings"]["interval"][0] > 0 for name in (halves[1], halves[3]))
    and all(new_less_kept[name]["over latents"]["interval"][1] < -0.09 for name in (halves[1], halves[3])),
    "redrawn latents score more than kept ones over firings, and less over latents, after as many steps and twice as many",
)
expect(
    all(
        new_less_kept[name]["over firings"]["interval"][0] < 0 < new_less_kept[name]["over firings"]["interval"][1]
        for name in (halves[0], halves[2])
    ),
    "where none were redrawn the halves are alike over firings",
)
expect(
    firing[halves[1]] < 0.025 and 0.03 < firing[halves[3]] < 0.05 and abs(firing[halves[0]] - 0.5) < 0.05,
    "redrawn latents do one fiftieth of the firing, a twenty-fifth after twice the steps, and the same ones half of it where none were redrawn",
)
expect(
    0.45 < alive[halves[1]] < 0.55
    and 0.65 < alive[halves[3]] < 0.75
    and all(0.2 < of[1] < 0.35 and of[0] < 0.002 for of in few_redrawn.values()),
    "half of the redrawn fire on chat, seven in ten after twice the steps, of a tenth or a quarter redrawn three in ten",
)

# %% [markdown]
# The post found a lower score with redrawn latents, and took those for under-trained. *Over firings* the score is higher here, with half of the latents redrawn; after twice as many steps that is no longer told apart. *Over
# latents* it is lower, by .06: redrawn latents that fire are explained worse than kept ones, which fits the post's reading. Over firings a few redrawn ones count and score more than kept ones, but all redrawn ones together do a fiftieth of the
# firing, so what raises that mean is the kept half, which does nearly all of the work, as if this were an SAE of half as many latents (one that we have not trained). Half of the redrawn never fire on chat, three in ten
# after twice as many steps, and some seven in ten where only a tenth or a quarter were redrawn.
# %% [markdown]
# ## Does it matter who answers?
#
# The chat that these SAEs read is people's: what they asked another model, and the beginning of what it said. A model's own answers, *rollouts*, are the
# text that it will meet in use. With as many tokens of either, eighty thousand, half the latents and a third of the steps: which describes held-out chat
# better? Sampling is at temperature .7 from the nucleus of .9, as small models ramble at one and repeat themselves at nought.


# %% tags=["hide-input"]
WIDEST = 256  # tokens that a nucleus may have


class Nucleus(LogitsProcessor):
    """The fewest tokens that hold the share ``p`` of the probability (Holtzman et al. 2020, arXiv:1904.09751, section 3.1), of
    the :data:`WIDEST` most probable: exact wherever these hold the nucleus, and without sorting the vocabulary."""

    def __init__(self, p):
        self.p = p

    def __call__(self, input_ids, scores):
        """[n, vocabulary] log-odds with those outside the nucleus at minus infinity."""
        top, which = scores.topk(min(WIDEST, scores.shape[1]), dim=1)
        share = (top - scores.logsumexp(1, keepdim=True)).exp()
        inside = top.masked_fill(share.cumsum(1) - share >= self.p, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter(1, which, inside)


def rollouts(lm, prompts, length, budget, seed, uncounted=0, batch=64):
    """Prompt and sampled answer for as many of ``prompts`` (token ids) as ``budget`` tokens pay for.

    ``length`` is the most new tokens per answer; ``budget`` counts prompt and answer tokens but for the first ``uncounted`` of each, which the
    template makes the same. Answers end after their end token. Prompts are taken in the order given, 8 batches at a time, batches of like length, and
    those in a seeded order, so that the end of the budget cuts no kind of prompt more than another.
    """
    sampling = {"do_sample": True, "top_p": 1.0, "top_k": 0, "temperature": 1.0}
    sampling["logits_processor"] = LogitsProcessorList([TemperatureLogitsWarper(0.7), Nucleus(0.9)])
    stops = lm.model.generation_config.eos_token_id
    stops = {*(stops if isinstance(stops, list) else [stops]), lm.tokenizer.eos_token_id} - {None}
    done, spent, rng = [], 0, np.random.default_rng(seed)
    with tqdm(total=budget, unit="tok", desc="rollouts", disable=None) as bar:
        for start in range(0, len(prompts), 8 * batch):
            window = sorted(prompts[start : start + 8 * batch], key=len)
            for at in rng.permutation(range(0, len(window), batch)).tolist():
                if spent >= budget:
                    return done
                chunk = window[at : at + batch]
                with torch.random.fork_rng(devices=[lm.model.device] if lm.model.device.type == "cuda" else []):
                    torch.manual_seed(seed + start + at)
                    out, mask = model.generate(lm, chunk, length, **sampling)
                for prompt, row in zip(chunk, out.sequences[:, mask.shape[1] :].tolist(), strict=True):
                    end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
                    done.append(prompt + row[:end])
                    spent += len(done[-1]) - uncounted
                    bar.update(len(done[-1]) - uncounted)
    return done


@cached
def on_policy(out, documents, lm, section, seed):
    """Step: the model's own answers to first turns of training conversations, with their prompts: ``rollout_tokens``."""
    loaded = model.load(lm)
    constant, asked, found = spans.chat(loaded.tokenizer, "x").user.start, 0, {}
    for turns in corpora.read(documents, "train"):
        with suppress(ValueError):
            chat = spans.chat(loaded.tokenizer, turns[0]["content"], section.turn)
            found[tuple(chat.ids)] = chat
            asked += len(chat.ids) - constant
        if asked >= section.rollout_tokens:
            break
    prompts = [chat.ids for chat in found.values()]
    rows = []
    for ids in rollouts(loaded, prompts, section.rollout_length, section.rollout_tokens, seed, constant):
        chat = next(found[tuple(ids[:n])] for n in range(len(ids), 0, -1) if tuple(ids[:n]) in found)
        rows.append(sequences.Row(ids, max(1, chat.user.start), len(ids), chat.tail.start, chat.tail.stop))
    sequences.Sequences.of(rows).save(out / "sequences.safetensors")


# %%
talks = study.documents("chat")
as_many = p.corpora.model_copy(update={"train_tokens": p.corpora.rollout_tokens})
said_by = {
    "the model itself": on_policy(talks, study.lm, p.corpora, p.seed),
    "transcripts": sequences.text(talks, study.lm, as_many, "train", None),
}
fewer_steps = t.model_copy(update={"steps": max(1, t.steps // 3)})
answered = {
    name: [
        training.train(
            small, ((harvest.harvest(text_of, study.lm, (p.layer,)), 1.0),), p.layer, fewer_steps, p.seed + run, None
        )
        for run in range(headline.level_seeds)
    ]
    for name, text_of in said_by.items()
}
by_voice = values(
    {
        name: [study.evaluate(sae, "chat", f"01_{name.replace(' ', '_')}_{run}") for run, sae in enumerate(of)]
        for name, of in answered.items()
    }
)
between = {
    name: stats.over_seeds([a[name] - b[name] for a, b in zip(*by_voice.values(), strict=True)])
    for name in ("fvu", "l0")
}

# %% tags=["hide-input"]
pages.table(
    (
        (
            name,
            *(
                f"{np.mean([e[field] for e in of]):.{digits}f}"
                for field, digits in (("fvu", 3), ("l0", 1), ("dead", 0))
            ),
        )
        for name, of in by_voice.items()
    ),
    ("answers by", "FVU, held-out transcripts", "L0", f"latents that never fire (of {small.latents:,})"),
)

# %% [markdown]
# It matters little: with the model's own answers an SAE leaves .007 more unexplained of held-out transcripts, in all three pairs, at an L0 lower by one or two. That is the transcripts' home ground, where the
# other should be at a disadvantage; on held-out rollouts neither was measured.

# %%
expect(
    between["fvu"]["interval"][0] > 0
    and abs(between["fvu"]["mean"] - 0.007) < 0.001
    and -2 < between["l0"]["mean"] < -1,
    "trained on rollouts an SAE leaves .007 more unexplained of held-out transcripts, at an L0 lower by one or two",
)

# %% [markdown]
# ## Claim by claim
#
# Nine rows of the ledger (`data/claims.yaml`), fixed before any of these numbers was seen, but for what notebook 02 had shown (it says so). One is decided, against the claim: redrawing does not lower the score over firings (A6a). A1 could not be reproduced as it is worded, from what was known. The others ask for more
# than ten seeds can give: from one SAE to the next a probe's AUROC, mean of the draws, has a standard deviation of .04 to .12. A2 to A5 say *no clear difference*; the smallest margin at which that holds, .12 to .16, stands beside. So the post's findings of no
# difference are no evidence of sameness here, and whether more data and seeds separate the ways (O5) stays open, at ten seeds and five draws.

# %% tags=["hide-input"]
parts = {
    id: {f"{a} less {b}, {r}": gaps[f"{a} - {b}, {r}"]["ood"] for a, b in of for r in readings}
    for id, of in claimed.items()
}
parts["O5"] = {name: unsigned(entry) for id in ("A2", "A3") for name, entry in parts[id].items()}
parts |= {
    id: {f"{said_of[a]} less {said_of[b]}, {r}": gap[a, b, r] for a, b in of for r in readings}
    for id, of in within.items()
}
parts["A6a"] = {"half redrawn less none": less(redone, none), "half redrawn less IT": less(redone, start)}
parts["A6c"] = {
    f"from pretraining less {name}": less(explained["from pretraining"], explained[name])
    for name in ("pretraining", "IT", "chat", "mixed", "from IT")
}
shows = {
    "A1": "01_probing",
    "A4": "01_pairs",
    "A5": "01_pairs",
    "A6a": "01_redrawn",
    "A6b": "01_pairs",
    "A6c": "01_scores",
}
prompts, tokens_scored = probed["dense"]["ood"]["n"], explained["IT"][0]["tokens"]
records = [
    claims.judge(
        id,
        parts[id],
        shows.get(id, "01_alike"),
        tokens_scored if id in ("A6a", "A6c") else prompts,
        headline.fewer_seeds if id == "A6c" else headline.seeds,
    )
    for id in sorted(parts)
]
claims.filed(records, claims.fixed(), name="01_claims").value
expect(
    {record.id for record in records} == {c.id for c in claims.ledger().values() if c.notebook == "01_training"},
    "every row of the ledger that is this notebook's is judged",
)
verdicts = {record.id: record.verdict for record in records}
expect(
    verdicts.pop("A6a") == "not reproduced" and {*verdicts.values()} == {claims.UNDECIDED},
    "redrawing does not lower the score, against the claim, and the other rows stay open",
)
margins = [record.margin for record in records if record.margin is not None]
expect(min(margins) > 0.11 and max(margins) < 0.16, "the tests of no difference pass only at margins of .11 to .16")
pages.table(claims.rows(records, tests=True), ("", "claim", "measure", "what decided", "test", "verdict"))


# %% [markdown]
# ## The method: a threshold that learns
#
# These are JumpReLU SAEs ([Rajamanoharan et al. 2024](https://arxiv.org/abs/2407.14435)). A latent has a pre-activation $\pi$ and a threshold
# $\theta$: it is silent below the threshold and passes its pre-activation above it. The loss is the squared error plus $\lambda$ times L0.
# Both jump at the threshold, so the true derivative with respect to $\theta$ is nothing almost everywhere. A *pseudo-derivative* stands
# in for it: pre-activations within half a *bandwidth* $\varepsilon$ of the threshold push it, the others do not.

# %%
pages.source(JumpReLUFunction)

# %% [markdown]
# Tried on four pre-activations, one threshold each. Only the two near the threshold move it, by $-\theta/\varepsilon$; only active ones pass
# a gradient on. As a control, the same function without the pseudo-derivative: its thresholds would never move.

# %%
pi = torch.tensor([0.03, 0.045, 0.055, 0.2], requires_grad=True)
theta = torch.full((4,), t.theta, requires_grad=True)
f = JumpReLUFunction.apply(pi, theta, t.bandwidth)
to_pi, to_theta = torch.autograd.grad(f.sum(), (pi, theta))
(plain,) = torch.autograd.grad(torch.where(pi > theta, pi, 0.0).sum(), theta, allow_unused=True)
expect(plain is None or not plain.any(), "without the pseudo-derivative no gradient reaches the thresholds")

# %% tags=["hide-input"]
pages.table(
    ([f"{value:g}" for value in row] for row in (torch.stack([pi, f, to_pi, to_theta], 1) + 0.0).tolist()),
    (f"π (θ = {t.theta:g})", "f", "gradient to π", f"to θ (ε = {t.bandwidth:g})"),
)

# %% [markdown]
# Inputs are scaled to a mean squared norm of one. Finetuning leaves before the learning rate falls, with a fresh optimiser and the full
# penalty. In user turns the error on the template's tokens after the text counts many times: prompts are read there, and there they differ least.

# %%
shown = ("pretraining", "IT", "chat", "from IT")
logs = values({name: training.log(saes[name][0], name=f"01_log_{name}".replace(" ", "_")) for name in shown})
figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.2))
begun = {name: t.steps - logs[name][-1]["step"] - 1 for name in logs}  # steps before finetuning
for axis, field, label in zip(axes, ("reconstruction", "l0"), ("squared error (unit inputs)", "L0"), strict=True):
    for name, rows in logs.items():
        colour = figures.look(name)["color"]
        axis.plot([begun[name] + row["step"] for row in rows], [row[field] for row in rows], label=name, color=colour)
    axis.set(xlabel="step, those before finetuning counted", ylabel=label, yscale="log")
axes[1].legend()
figures.headed(figure, "Finetuned for a third of the steps, an SAE ends where chat alone does")
pages.publish(
    figure,
    "01_training_curves",
    "Error and L0 of training batches, each on its own text. When the finetuned SAE turns to chat its error leaps by half; by its last step it is "
    "where the one from scratch is. One run each.",
    alt="Two panels of curves over training steps: the finetuned SAE begins two thirds of the way and ends at the error of the chat SAE.",
)
at_turn = min(logs["chat"], key=lambda row: abs(row["step"] - begun["from IT"]))["reconstruction"]
expect(
    1.3 < logs["from IT"][0]["reconstruction"] / at_turn < 1.7
    and abs(logs["from IT"][-1]["reconstruction"] / logs["chat"][-1]["reconstruction"] - 1) < 0.1,
    "turned to chat the finetuned SAE's error leaps by about half above that of the one from scratch, and ends within a tenth of it",
)

# %% [markdown]
# ## Can they read a prompt?
#
# A detector of harmful requests (notebook 02) reads an SAE at one place of a prompt: the end of turn, or the maximum or mean over the user's
# text. *Lost* is the share of the variance between prompts that reconstructions miss there. An *untrained* SAE, TopK of random
# directions, says what a figure is worth. An SAE is evidence about SAEs only where it loses little: we ask for a fifth at most at the mean, on
# prompts in distribution. What is lost OOD stands in brackets, and decides nothing.

# %%
every_place = places | {"mean": "mean user"}
random = controls.untrained(saes["chat"][0], study.labelled, study.prompt_activations, p.layer, 0)
every = {name: of[0] for name, of in saes.items()} | {name: study.saes[name][0] for name in ("TopK", "QF", "Gated")}
every |= {"untrained": random}
seen = {
    name: {place: study.see(Latents, [sae], at)[0] for place, at in every_place.items()} for name, sae in every.items()
}
kept_of = kept(study.labelled, study.prompt_activations, p.layer, seen, name="01_lost").value
pages.table(
    (
        (name, *(f"{row[at]['lost']:.2f} ({row[at]['ood']:.2f})" for at in every_place))
        for name, row in kept_of.items()
        if name in saes or name in ("TopK", "untrained")
    ),
    ("SAE", *(f"lost at {at} (OOD)" for at in every_place)),
)

# %% [markdown]
# At the mean, SAEs that have read chat lose less than a fifth; IT and pretraining, which never have, lose more: they are asked about a kind of text
# that they do not know, and what notebook 02 finds of them is a finding about that too. At the end of turn no JumpReLU SAE does what we aimed at,
# to lose three tenths at most; TopK comes close, and Gated does it with four times as many latents active there. An untrained SAE
# loses three fifths or more; at the end of turn it adds more than it explains.

# %%
lost = {name: {at: entry["lost"] for at, entry in row.items()} for name, row in kept_of.items()}
on_chat = ("mixed", "from pretraining", "from IT", "chat", "TopK", "QF", "Gated")
expect(
    max(lost[name]["mean"] for name in on_chat) < 0.2 < min(lost[name]["mean"] for name in ("IT", "pretraining")),
    "at the mean, SAEs that have read chat lose less than a fifth, and those that have not more",
)
expect(
    min(lost[name]["end of turn"] for name in (*saes, "QF")) > 0.3
    and 0.3 < lost["TopK"]["end of turn"] < 0.33
    and lost["Gated"]["end of turn"] < 0.2
    and kept_of["Gated"]["end of turn"]["l0"] > 4 * kept_of["TopK"]["end of turn"]["l0"],
    "at the end of turn JumpReLU SAEs lose more than three tenths, TopK hardly more, Gated less, with four times as many latents",
)
expect(
    min(lost["untrained"].values()) > 0.6 and lost["untrained"]["end of turn"] > 1,
    "an untrained SAE loses three fifths or more at every place, and more than there is at the end of turn",
)

# %% [markdown]
# ## The settings: searched once
#
# Learning rate, warm-up and start are the same for every kind of SAE. Each was varied alone, on chat, for a third of the steps, at several
# sparsities; FVU is compared at one L0, by interpolation (blank where none was tried on either side), and stands before the number of latents that
# never fire. The report's settings, the first row, were fixed before. Three times the rate has the lowest FVU, by less than a
# hundredth in the mean (better for JumpReLU and Gated, worse for TopK), and leaves a quarter of the latents silent; four times the warm-up does as well as ours, with fewer silent ones.

# %%
rate, third = t.learning_rate, {"share": 1 / 3}
tried = {"as in the report": ({}, {}), "a third of the rate": ({"learning_rate": rate / 3}, {})}
tried |= {
    "three times the rate": ({"learning_rate": 3 * rate}, {}),
    "four times the warm-up": ({"warmup": 4 * t.warmup}, {}),
}
tried |= {
    "start as sparse as the threshold has it": ({}, {"initial_l0": 0.0}),
    "start at three times the L0": ({}, {"initial_l0": 3 * t.initial_l0}),
}
kinds = {
    "jumprelu": [{"coefficient": c * headline.coefficient} for c in (0.5, 2)],
    "gated": [{"coefficient": c * headline.gated} for c in (0.4, 0.7, 1.6)],
}
kinds["topk"] = [{"k": headline.k}]
runs = {
    (what, kind, number): study.train("chat", study.sae(kind, **field, **fields), **third, **how)
    for what, (how, fields) in tried.items()
    for kind, among in kinds.items()
    for number, field in enumerate(among)
    if kind != "topk" or not fields  # its sparsity is given
}
found = values(
    {
        key: study.evaluate(run, "chat", "01_search_" + "_".join(map(str, key)).replace(" ", "-"))
        for key, run in runs.items()
    }
)


def at_one_l0(what, kind):
    """(FVU at L0 = k of the TopK SAE, between those tried, or None; the most latents that never fire)."""
    mine = [entry for (w, k, _), entry in found.items() if (w, k) == (what, kind)]
    if not mine:
        return None
    l0, fvu = zip(*sorted((entry["l0"], entry["fvu"]) for entry in mine), strict=True)
    between = float(np.interp(np.log(headline.k), np.log(l0), fvu)) if l0[0] - 1 <= headline.k <= l0[-1] + 1 else None
    return between, max(entry["dead"] for entry in mine)


search = {what: {kind: at_one_l0(what, kind) for kind in kinds} for what in tried}
pages.table(
    (
        (what, *("" if x is None or x[0] is None else f"{x[0]:.3f} ({x[1]})" for x in row.values()))
        for what, row in search.items()
    ),
    ("setting", *(f"FVU, {kind} (silent)" for kind in kinds)),
)

# %%
mean_of = {
    what: np.mean([found_there[0] for found_there in row.values()])
    for what, row in search.items()
    if all(found_there and found_there[0] is not None for found_there in row.values())
}
ours, faster = "as in the report", "three times the rate"
expect(
    ours in mean_of and mean_of[ours] < min(mean_of.values()) + 0.01,
    "no setting is ahead of the report's by more than a hundredth",
)
expect(
    faster in mean_of
    and min(search[faster][kind][1] for kind in kinds) > 3 * max(search[ours][kind][1] for kind in kinds),
    "three times the rate leaves more than three times as many latents silent, in every kind",
)

# %% [markdown]
# ## Take one with you
#
# Any SAE of this page goes out as a folder that [SAELens](https://github.com/jbloomAus/SAELens) loads, with a card that says how it was made. As a check,
# one of each family is written so, read back, and set beside the original on held-out chat.
#
# ```python
# exchange.export(saes["mixed"][0], "my_sae", exchange.PACKAGED_NAME, p.layer, p.corpora.context)
# ```


# %%
@result
def exported(saes, chats, layer, context):
    """Of each SAE and its exported folder, read back, on 2,048 tokens or all: the share on which other latents are active, and elsewhere the largest
    difference of reconstructions, over the largest entry."""
    source, found = activations.read(chats, layer), {}
    x = source.gather(np.random.default_rng(0).permutation(len(source))[:2048])
    for name, sae in saes.items():
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            back = exchange.read(exchange.export(sae, Path(folder) / "sae", exchange.PACKAGED_NAME, layer, context))
            ours, (a, b) = training.load(sae), (one.reconstruct(x) for one in (training.load(sae), back))
            same = ((ours.encode(x) > 0) == (back.encode(x) > 0)).all(1)
            found[name] = {"flipped": 1 - same.float().mean(), "off": (a - b)[same].abs().max() / a.abs().max()}
    return found


returned = exported(
    {name: of[0] for name, of in saes.items()}, held_out["chat"], p.layer, p.corpora.context, name="01_exported"
).value
expect(
    max(entry["off"] for entry in returned.values()) < 1e-5
    and max(entry["flipped"] for entry in returned.values()) < 0.002,
    "an SAE of each family comes back from its folder the same, to one part in a hundred thousand, but for latents at their very threshold",
)

# %% [markdown]
# ## What we find
#
# **We find** that an SAE which reads chat in the last third of its steps explains chat as well as one that read nothing else, whatever it read before; that its latents are explained no worse, as far as can be told;
# and that four in five of them keep a likeness to what they were. The chat template around other text makes up for less than half of the way. By their probes the ways cannot be told from IT. Of latents that are
# redrawn many never fire on chat, and the rest do little.
#
# **It means** that how SAEs do on chat, in this report and elsewhere, depends on what they have read: one for pretraining text is a weak
# witness about a chat model. To get a chat SAE, finetune one that has read plain text; where pretraining text matters too, mix from the start. How one gets to chat matters less than getting there.
#
# **What would change our mind.** More chat: the finetuned ones and *chat* have read nearly the same six hundred thousand tokens, once or two and a half times; with more distinct text their order could change. One size of dictionary, one chat set. SAEs differ in L0 at one weight of the penalty; the second sparsity tells the same. The settings were searched for chat alone. That probes
# cannot tell the ways apart is for want of SAEs more than of prompts: seeds make more than half of the variance, prompts to test on less than a fifth. The factors in the claims' last column say how far the tests are
# from deciding, not how large a difference is. Redrawn latents began with an L0 penalty at full strength; one that rises anew might save them.
#
# **Try** `overrides = {"saes.coefficient": 5e-4}`, a weaker penalty: less error, more active latents. **Next**:
# [02](02_probing.ipynb) asks how much the latents of these SAEs help to spot harmful requests.
