# %% [markdown]
# # 01 · Training chat SAEs
#
# A language model keeps a list of several hundred numbers for every token it reads, its *residual stream*. A *sparse autoencoder* (SAE)
# rewrites that list as a few active *latents* out of thousands and builds it again from them. Most SAEs learn from encyclopaedia and
# news text; the model that people use answers chats. Somebody who wants to look into a chat model can take such an SAE as it is,
# train a new one on chat, or *finetune* the old one: go on training it on chat. Which describes chat best?
#
# Two numbers answer. *FVU* is the fraction of variance unexplained: what the rebuilt list misses, zero if nothing. *L0* is how many latents
# are active on a token. Less of both is better, and each can be had for more of the other.
# [Smith et al. 2025](https://www.alignmentforum.org/posts/4uXCAJNuPKtKBsi28/negative-results-for-saes-on-downstream-tasks), "the post",
# finetune their SAEs on chat before they probe with them (notebook 02); here is what that does to the SAEs themselves.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "training.latents": 1024}

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown

from lib import figures, pages
from lib.pages import expect
from lib.probes.views import Latents, kept
from lib.sae import controls, metrics, training
from lib.sae.gradients import JumpReLUFunction
from lib.store import values
from lib.study import open_study

study = open_study(profile, overrides, frozen)
p, q, t = study.profile, study.profile.probes, study.profile.training
pages.banner(profile, overrides)

# %% [markdown]
# ## The comparison
#
# Four SAEs of one kind read the same place of the same model, for the same number of steps. The *pretraining* SAE has seen encyclopaedia and
# news text; *IT* the same text as if users had written it, in the model's chat template; *finetuned* leaves IT after two thirds of the steps and
# goes on with chat; *chat* has seen chat only. Chat is one user turn at a time, with the beginning of its answer. Another SAE is one more line here.

# %%
saes = {name: study.saes[name][0] for name in ("pretraining", "IT", "finetuned", "chat")}
quality = values(
    {
        corpus: {name: study.evaluate(trained, corpus, f"01_{name}_on_{corpus}") for name, trained in saes.items()}
        for corpus in ("chat", "pretraining")
    }
)
chat, text = quality["chat"], quality["pretraining"]

# %%
axis = figures.forest({name: {"on chat": chat[name], "on pretraining text": text[name]} for name in saes}, "fvu")
axis.set(
    xlabel=f"FVU, fraction of variance unexplained (n = {chat['chat']['n']:,} held-out tokens a text)",
    ylabel="SAE",
    title="Finetuning removes a third of the error on chat",
)
ends = [(chat[name]["fvu"], at - 0.17) for at, name in enumerate(("pretraining", "finetuned"))]
axis.annotate("", ends[1], ends[0], arrowprops={"arrowstyle": "->", "shrinkA": 8, "shrinkB": 8, "color": "#444444"})
pages.publish(
    axis.figure,
    "01_fvu",
    "What three SAEs leave unexplained of held-out chat and pretraining text. Finetuning moves the error on chat down by a third and on "
    "pretraining text up by a little. One SAE a row; bars: 95 %, over texts.",
    alt="Points with intervals: on chat the pretraining SAE leaves most unexplained, the finetuned and the chat SAE about a third less.",
)
expect(
    0.6 < chat["finetuned"]["fvu"] / chat["pretraining"]["fvu"] < 0.72,
    "finetuning on chat removes about a third of the variance unexplained there",
)
expect(
    text["finetuned"]["fvu"] - text["pretraining"]["fvu"] < (chat["pretraining"]["fvu"] - chat["finetuned"]["fvu"]) / 4,
    "on pretraining text it costs less than a quarter of what it wins on chat",
)

# %% tags=["hide-input"]
pages.table(
    (
        (
            f"{name}, on {'chat' if corpus == 'chat' else 'pretraining text'}",
            pages.interval(e, "fvu"),
            pages.interval(e, "l0", digits=1),
            e["dead"],
        )
        for corpus, by_name in quality.items()
        for name, e in by_name.items()
    ),
    ("SAE", "FVU", "L0", f"latents that never fire (of {t.latents:,})"),
)

# %% [markdown]
# The finetuned SAE is also a little ahead of the one trained on chat alone, at a lower L0; but it has had half as many steps again. It pays
# in latents: several hundred no longer fire on chat at all.

# %%
expect(
    chat["finetuned"]["fvu_interval"][1] < chat["chat"]["fvu_interval"][0]
    and chat["finetuned"]["l0"] < chat["chat"]["l0"],
    "the finetuned SAE explains more of chat than the one from scratch, with fewer active latents",
)
expect(
    chat["finetuned"]["dead"] > 5 * max(chat["chat"]["dead"], chat["pretraining"]["dead"]),
    "finetuning leaves far more latents silent on chat than the other two SAEs have",
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
# Inputs are scaled to a mean squared norm of one. Finetuning starts from the end of pretraining with a fresh optimiser and the full penalty.

# %%
logs = values({name: training.log(trained, name=f"01_log_{name}") for name, trained in saes.items()})
figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.2))
for axis, field, label in zip(axes, ("reconstruction", "l0"), ("squared error (unit inputs)", "L0"), strict=True):
    for name, rows in logs.items():
        colour = figures.look(name)["color"]
        axis.plot([row["step"] for row in rows], [row[field] for row in rows], label=name, color=colour)
    axis.set(xlabel="step", ylabel=label, ylim=(0, None))
axes[1].legend()
figures.headed(figure, "The finetuned SAE begins at a third of the error of a new one")
pages.publish(
    figure,
    "01_training_curves",
    "Error and L0 of training batches. The pretraining curve is on pretraining text, the other two on chat. The finetuned SAE starts far "
    "lower than the one from scratch and ends below it. One run each.",
    alt="Two panels of curves over training steps: the finetuned SAE's error starts at about a third of that of the chat SAE.",
)
expect(
    logs["finetuned"][0]["reconstruction"] < 0.36 * logs["chat"][0]["reconstruction"]
    and logs["finetuned"][-1]["reconstruction"] < logs["chat"][-1]["reconstruction"],
    "the finetuned SAE begins at about a third of the error of the one from scratch, and ends below it",
)

# %% [markdown]
# ## Can they read a prompt?
#
# A detector of harmful requests (notebook 02) reads an SAE at one place of a prompt: the end of turn, or the maximum or mean over the user's
# text. *Lost* is the share of the variance between prompts that reconstructions miss there. An *untrained* SAE, of random directions, says
# what a figure is worth. An SAE is evidence about SAEs only where it loses little: we ask for a fifth at most at the mean.

# %%
places = {"end of turn": q.position, "maximum": "max user", "mean": "mean user"}
random = controls.untrained(saes["chat"], study.labelled, study.prompt_activations, p.layer, q.position, 0)
every = {name: made[0] for name, made in study.saes.items()} | {"untrained": random}
seen = {name: {place: study.see(Latents, [sae], at)[0] for place, at in places.items()} for name, sae in every.items()}
kept_of = kept(study.labelled, study.prompt_activations, p.layer, seen, name="01_lost").value
held_out = values({name: study.evaluate(sae, "chat", f"01_{name}_held_out") for name, sae in every.items()})
pages.table(
    (
        (
            name,
            f"{held_out[name]['fvu']:.3f}",
            f"{held_out[name]['l0']:.0f}",
            " · ".join(f"{row[at]['lost']:.2f}" for at in places),
        )
        for name, row in kept_of.items()
    ),
    ("SAE", "FVU, held-out chat", "L0", f"lost at {', '.join(places)}"),
)

# %% [markdown]
# ## The settings: searched once
#
# Learning rate, warm-up and start are the same for every kind of SAE. Each was varied alone, on chat, for a third of the steps, at several
# sparsities; FVU is compared at one L0, by interpolation. The report's settings are the first row.

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
    "jumprelu": [{"coefficient": c * t.coefficient} for c in (0.5, 2)],
    "gated": [{"coefficient": c * t.gated} for c in (0.7, 1.6)],
}
kinds["topk"] = [{"k": t.k}]
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
    """FVU at L0 = k of the TopK SAE, between those tried."""
    points = sorted((entry["l0"], entry["fvu"]) for (w, k, _), entry in found.items() if (w, k) == (what, kind))
    return (
        float(np.interp(np.log(t.k), *zip(*((np.log(l0), fvu) for l0, fvu in points), strict=True))) if points else None
    )


search = {what: {kind: at_one_l0(what, kind) for kind in kinds} for what in tried}
pages.table(
    ((what, *("" if x is None else f"{x:.3f}" for x in row.values())) for what, row in search.items()),
    ("setting", *(f"FVU, {kind}" for kind in kinds)),
)

# %% [markdown]
# ## Check: what the model loses
#
# A reconstruction that looks good may still miss what the model needs. So the reconstruction takes the place of the residual stream in the
# running model, on held-out chat. *Loss recovered* is how far the model's cross-entropy comes back, from nought with the stream set to zero
# to one with the stream left alone.

# %%
recovered = metrics.loss_recovered(
    saes,
    study.text("chat", "eval"),
    study.activations("chat", "eval"),
    study.lm,
    p.layer,
    p.corpora.loss_tokens,
    p.probes.bootstrap,
    p.seed,
    name="01_loss_recovered",
).value
share = {name: entry["interval"] for name, entry in recovered["saes"].items()}
expect(
    share["pretraining"][1] < min(share["finetuned"][0], share["chat"][0]),
    "with the pretraining SAE's reconstructions the model loses more than with the other two",
)
expect(
    share["finetuned"][0] < share["chat"][1] and share["chat"][0] < share["finetuned"][1],
    "finetuned and trained from scratch cannot be told apart by what the model loses",
)

# %% tags=["hide-input"]
pages.table(
    ((name, f"{e['loss']:.3f}", pages.interval(e, "recovered")) for name, e in recovered["saes"].items()),
    ("SAE", "cross-entropy (nats per token)", "loss recovered"),
)

# %% tags=["hide-input"]
Markdown(
    f"Cross-entropy {recovered['clean']:.3f} as it is, {recovered['zero']:.3f} with zeros; n = {recovered['n']:,} predictions in "
    f"{recovered['texts']} texts; intervals over texts. Site: after block {p.layer}; {p.corpora.train_tokens:,} training tokens a corpus; "
    f"{t.steps:,} steps of {t.batch:,} tokens; λ = {t.coefficient:g}."
)

# %% [markdown]
# ## What we find
#
# **We find** that an SAE which never saw chat leaves over a third more unexplained there than one that did; that finetuning repairs this
# in half the steps of a new training and forgets little; and that it ends no worse than an SAE trained on chat from the start.
#
# **It means** that how SAEs do on chat, in this report and elsewhere, depends on what they have read: an SAE for pretraining text is a weak
# witness about a chat model. How one gets to chat matters less.
#
# **What would change our mind.** One run each, at one $\lambda$: SAEs from other seeds could reorder the close pair. The SAEs differ in L0,
# which trades against FVU, and in steps. Bars cover the choice of texts only.
#
# **Try** `overrides = {"training.coefficient": 1e-3}`, a weaker penalty: less error, more active latents. **Next**:
# [02](02_probing.ipynb) asks whether the latents of these SAEs help to spot harmful requests.

# %%
expect(
    chat["pretraining"]["fvu"] > 1.33 * max(chat["finetuned"]["fvu"], chat["chat"]["fvu"]),
    "the pretraining SAE leaves over a third more unexplained on chat than the other two",
)
