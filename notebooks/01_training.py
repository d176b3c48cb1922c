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
# read before: FVU .16, against .24 for the same pretraining text in the chat template and .30 for plain text. Its latents are explained as well. Finetune one that read *plain* text:
# the same quality, and few of its latents fall silent, while one in nine of those that began with text in the template do. Who needs pretraining text
# too should mix from the start, which costs .01 on chat and saves .05 there. Thirty thousand tokens of chat bring a quarter of what a million bring, half a million nine tenths. Whether such SAEs probe better is
# not judged yet (claims A1 to A5, A6a, A6b, O5: their tests are fixed, the runs are to come); notebook 02 has IT, finetuned and chat SAEs side by side.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "training.latents": 1024}

# %% tags=["hide-input"]
import tempfile
from contextlib import suppress
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from tqdm.auto import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper

from lib import figures, pages, stats
from lib.latents.cards import AROUND, token_texts
from lib.lm import activations, harvest, model, sequences, spans
from lib.pages import expect
from lib.probes.views import Latents, kept
from lib.sae import controls, exchange, metrics, training
from lib.sae.gradients import JumpReLUFunction
from lib.store import cached, result, values
from lib.study import open_study
from lib.texts import corpora

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
# So each of the last three has read one part of chat in three. A way of your own is one more line, and stands in what follows.

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

# %%
saes = {name: [way(study.jumprelu(), run) for run in range(headline.seeds)] for name, way in families.items()}

# %% [markdown]
# That schedule is called *equal total*. Beside it stands *from the end*, where finetuning goes on from the finished SAE, for a third of
# the steps more. And each family is trained at a second, sparser setting, with fewer seeds.

# %%
few, share = range(headline.level_seeds), headline.finetuning
left = round((1 - share) * t.steps)  # the steps after which finetuning leaves
ends = {
    f"from {name}'s end": [
        study.train("chat", study.jumprelu(), start=sae, run=run, share=share) for run, sae in enumerate(saes[name])
    ]
    for name in ("pretraining", "IT")
}
sparser = study.jumprelu(coefficient=headline.levels[len(headline.levels) // 2])
sparse = {f"{name}, sparser": [way(sparser, run) for run in few] for name, way in families.items()}

# %%
texts = {"on chat": "chat", "on pretraining text": "pretraining"}
measured = {name: of[: headline.fewer_seeds] for name, of in (saes | ends | sparse).items()}
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
figures.headed(figure, "With a third of its text chat, an SAE explains chat as one that read nothing else")
pages.publish(
    figure,
    "01_fvu_l0",
    "FVU (above) and loss recovered (below) against L0, two sparsities of each family. On chat those that read it lie together; on pretraining text "
    "mixed lies near pretraining. Bars: 95 %, over seeds above, below of one SAE over texts.",
    alt="Four panels of short curves. On chat four families lie together, IT and plain pretraining above them; on pretraining text pretraining and mixed are lowest and chat highest.",
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
        for name in (*saes, *ends)
    ),
    (
        "SAE, on chat (on pretraining text)",
        "FVU",
        "L0",
        f"of {t.latents:,} latents never fire · fire on a tenth of tokens or more",
    ),
)

# %% [markdown]
# What pays is to have read chat, not how. Finetuned from either start, for a third of the steps, an SAE explains as much of it as one that read chat alone, and more of pretraining text. To go on from the *end* of training,
# with a third more steps, gains less than .003. *Mixed* pays .01 on chat and keeps pretraining text. What an SAE has read decides what it is good for, as
# [Kissane et al. 2024](https://www.alignmentforum.org/posts/rtp6n7Z23uJpEH7od/saes-are-highly-dataset-dependent-a-case-study-on-the) found for a single direction, that of refusal: there text mattered more than
# whether the SAE's model was a chat model; here it matters more than the order in which text is read.
#
# The starts do differ in latents: one in nine of those from IT are silent on chat, hardly any of those from pretraining. IT and pretraining differ in more than the template: in user turns the error on the template's own tokens
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
    xlabel="mean autointerp score", ylabel="SAE", title="Latents of SAEs that read chat are explained better there"
)
pages.publish(
    axis.figure,
    "01_scores",
    f"Mean score on held-out chat, of {p.autointerp.latents} latents an SAE, over firings and over latents. SAEs that read chat score higher; "
    "among them no order holds over firings. Dots: seeds; bars: 95 %, over SAEs.",
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
    alt="Three histograms: between seeds a peak near .3, on chat a broad one from .3 to 1, on IT's own text a peak near 1.",
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
            f"Latent {latent}: on {first['chat'][at]:.1%} of chat tokens, {first['text'][at]:.2%} of IT's; nearest direction before: cosine {first['nearest'][at]:.2f}",
            contexts,
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

# %% [markdown]
# A bit of chat goes a long way, and more goes further: there is no point at which it is enough. The smallest bit also stands for a restart of the optimiser and a fall of the learning rate, which IT alone
# has had too; L0 falls along the curve, from 42 to 30, so error is not bought with more active latents.
#
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
small, fewer_steps = study.jumprelu(latents=t.latents // 2), t.model_copy(update={"steps": max(1, t.steps // 3)})
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
places = {"end of turn": q.position, "maximum": "max user", "mean": "mean user"}
random = controls.untrained(saes["chat"][0], study.labelled, study.prompt_activations, p.layer, 0)
every = {name: of[0] for name, of in saes.items()} | {name: study.saes[name][0] for name in ("TopK", "QF", "Gated")}
every |= {"untrained": random}
seen = {name: {place: study.see(Latents, [sae], at)[0] for place, at in places.items()} for name, sae in every.items()}
kept_of = kept(study.labelled, study.prompt_activations, p.layer, seen, name="01_lost").value
pages.table(
    (
        (name, *(f"{row[at]['lost']:.2f} ({row[at]['ood']:.2f})" for at in places))
        for name, row in kept_of.items()
        if name in saes or name == "untrained"
    ),
    ("SAE", *(f"lost at {at} (OOD)" for at in places)),
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
# hundredth in the mean, and leaves a quarter of the latents silent; four times the warm-up does as well as ours, with fewer silent ones.

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
# **We find** that an SAE which reads chat in the last third of its steps explains chat as well as one that read nothing else, whatever it read before; that its latents are explained as well;
# and that four in five of them keep a likeness to what they were. The chat template around other text makes up for less than half of the way.
#
# **It means** that how SAEs do on chat, in this report and elsewhere, depends on what they have read: one for pretraining text is a weak
# witness about a chat model. To get a chat SAE, finetune one that has read plain text; where pretraining text matters too, mix from the start. How one gets to chat matters less than getting there.
#
# **What would change our mind.** One size of dictionary, six hundred thousand tokens a corpus, one chat set: with more tokens the order between chat and the finetuned ones could change, as theirs have read
# a third as much of it. SAEs differ in L0 at one weight of the penalty; the second sparsity tells the same. The settings were searched for chat alone. Whether these SAEs *probe* alike is not answered here yet.
#
# **Try** `overrides = {"saes.coefficient": 5e-4}`, a weaker penalty: less error, more active latents. **Next**:
# [02](02_probing.ipynb) asks whether the latents of these SAEs help to spot harmful requests.
