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
# two chat SAEs, with the plain penalty on L0 (the number of active latents a token) and with the *quadratic-frequency* penalty (QF) of
# [notebook 05](05_quadratic_frequency.ipynb), which punishes latents that fire often.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "training.latents": 1024}

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

from lib import figures, pages
from lib.latents import autointerp
from lib.pages import expect
from lib.sae.metrics import HIGH
from lib.sae.penalties import QuadraticFrequency
from lib.store import values
from lib.study import open_study

study = open_study(profile, overrides, frozen)
p = study.profile
pages.banner(profile, overrides)

# %% [markdown]
# ## The comparison
#
# Both SAEs are trained on chat from scratch, at the same $\lambda$. Another one to score is one more line.

# %%
omega = p.saes.omegas[0]
saes = {
    "JumpReLU": study.jumprelu(),
    f"QF ω₀={omega:g}": study.jumprelu(penalty=QuadraticFrequency(omega)),
}
scores = values(
    {
        name: autointerp.evaluate(
            study.train("chat", sae),
            study.activations("chat", "train"),
            study.lm,
            p.layer,
            p.autointerp,
            p.probes.bootstrap,
            p.seed,
            name=f"04_autointerp_{name.split()[0].lower()}",
        )
        for name, sae in saes.items()
    }
)

# %%
schemes = {"over latents": "uniform", "over firings": "weighted"}
axis = figures.forest({label: {name: s[key] for name, s in scores.items()} for label, key in schemes.items()}, "mean")
axis.set(
    xlabel=f"mean score (Spearman correlation), {p.autointerp.latents} latents drawn a mean",
    ylabel="mean",
    title="Averaged over firings, the QF SAE is explained better",
)
pages.publish(
    axis.figure,
    "04_autointerp",
    "Mean autointerp score of two SAEs. Over firings QF's is higher, and the intervals do not touch; over latents they overlap. Bars: 95 %, over the "
    "latents drawn. One SAE each.",
    alt="Four points: mean scores of a JumpReLU and a QF SAE; over latents their intervals overlap, over firings QF's lies higher.",
)
plain, penalised = scores.values()
expect(
    plain["weighted"]["interval"][1] < penalised["weighted"]["interval"][0],
    "over firings the QF SAE's mean score is higher, and the intervals do not touch",
)
expect(plain["uniform"]["interval"][1] > penalised["uniform"]["interval"][0], "over latents the two intervals overlap")

# %% [markdown]
# ## The method: explain by token, predict, compare
#
# Our explainer needs no language model. In the manner of Neuron-to-Graph ([Foote et al. 2023](https://arxiv.org/abs/2305.19911)) it notes how
# strongly the latent fires on each token, and on each token after a certain other one.

# %%
pages.source(autointerp.explain)

# %%
pages.source(autointerp.score)

# %% [markdown]
# Tried on a planted latent that fires on “bank”, and more strongly after “river”. It is explained from three windows of text and scored on three
# others, which it ranks right. As a control, the same three activations dealt out to the wrong windows: the score turns negative.

# %%
words = ["the", "river", "bank", "robbed"]


def window(text, *activations):
    return [words.index(word) for word in text.split()], activations


seen = [window("the river bank", 0, 0, 2), window("river bank robbed", 0, 2, 0), window("robbed the bank", 0, 0, 0.5)]
others = ["the bank robbed", "robbed river bank", "the river robbed"]
planted, dealt = [(0, 0.5, 0), (0, 0, 2), (0, 0, 0)], [(0, 2, 0), (0, 0, 0), (0, 0.5, 0)]
explanation = autointerp.explain(seen)
right, wrong = (
    autointerp.score(explanation, [window(text, *values) for text, values in zip(others, each, strict=True)])
    for each in (planted, dealt)
)
expect(
    right > 0.99 and wrong < 0,
    "the planted latent is scored right, and with activations dealt to the wrong windows it is not",
)

# %% tags=["hide-input"]
pages.table(
    (
        (text, f"{autointerp.predict(explanation, window(text, 0, 0, 0)[0]):g}", max(true), max(other))
        for text, true, other in zip(others, planted, dealt, strict=True)
    ),
    ("window", "predicted", f"planted (score {right:.2f})", f"dealt wrongly (score {wrong:.2f})"),
)

# %% [markdown]
# Each latent gets contexts from one half of the texts to be explained from (the strongest, some spread over the quantiles, some on which it
# is silent) and as many from the other half to be scored on.
#
# ## Check: what explanations look like, and who scores low
#
# The best and the worst explained latents of each SAE. A pattern “a|b” is token b after token a.

# %% tags=["hide-input"]
shown = []
for name, s in scores.items():
    ordered = sorted(s["scored"], key=lambda point: (-point["score"], point["latent"]))
    for point in ordered[:2] + ordered[-2:]:
        patterns = ", ".join(pages.literal(repr(pattern)[1:-1]) for pattern in point["patterns"])
        shown.append((f"{name}, {point['latent']}", f"{point['score']:.2f}", f"{point['frequency']:.2%}", patterns))
pages.table(shown, ("SAE, latent", "score", "fires on", "strongest patterns"))

# %% [markdown]
# Is the score a matter of how often a latent fires? The post finds that interpretability falls with frequency. So it does in the JumpReLU SAE: latents
# that fire on three tokens in a hundred or more are explained worse, by .15 in the mean. Below that there is no trend. The QF SAE has hardly any of the
# frequent ones.

# %%
FREQUENT = 0.03  # of tokens
figure, axis = plt.subplots()
apart = {}
for name, s in scores.items():
    frequency, score = np.array([(point["frequency"], point["score"]) for point in s["scored"]]).T
    apart[name] = (score[frequency < FREQUENT], score[frequency >= FREQUENT])
    axis.plot(frequency, score, linestyle="none", label=name, alpha=0.6, **figures.look(name))
axis.axvspan(HIGH, 1, **figures.SHADE)
axis.axvline(FREQUENT, color="#444444", linewidth=1, linestyle=":")
axis.set(
    xscale="log",
    xlabel="firing frequency (share of tokens; shaded: a tenth and more)",
    ylabel="score",
    title="Latents that fire often are explained worse, and QF has few of them",
)
axis.legend(loc="lower left")
pages.publish(
    figure,
    "04_frequency",
    "Score of every sampled latent against how often it fires. Right of the dotted line, three tokens in a hundred, scores of the JumpReLU SAE are "
    "lower; the QF SAE's latents hardly reach there. A point is a latent.",
    alt="Scatter of score against firing frequency: JumpReLU latents reach beyond a tenth of tokens and score lower there; QF latents stop before.",
)
(rare, often), (rare_too, often_too) = apart.values()
expect(
    len(often) > 0 and abs(rare.mean() - often.mean() - 0.15) < 0.02,
    "JumpReLU latents that fire on three tokens in a hundred or more score .15 lower than the others",
)
expect(
    len(often_too) < 0.05 * len(rare_too), "of the QF SAE's sampled latents fewer than one in twenty fire that often"
)

# %% tags=["hide-input"]
Markdown(
    "Latents that fire in enough contexts to be scored: "
    + "; ".join(
        f"{name} {s['eligible']:,} of {s['latents']:,}, with {s['eligible_firing']:.1%} of all firing"
        for name, s in scores.items()
    )
    + "."
)

# %% [markdown]
# ## What we find
#
# **We find** that averaged over latents the two SAEs' intervals overlap, and that averaged over firings the QF SAE is explained better: it has few of the
# latents that fire often, and those are explained worse.
#
# **It means** that what the post says of such averages may be so here: the one over latents can hide what the one over firings shows. It is one SAE of
# each kind, at one $\lambda$ and not at one L0, and an explainer by token; the claim is not tested here yet.
#
# **What would change our mind.** Other seeds; SAEs at equal L0, since these share $\lambda$ only. Token patterns cannot express a topic or a tone:
# a latent that follows one scores low here and might score high with a language model as explainer. Contexts are from the text that the SAEs
# were trained on. Latents that fire too rarely to fill both halves are left out, which flatters the mean over latents.
#
# **Try** `overrides = {"saes.coefficient": 2.5e-4}`, denser SAEs. **Next**: [05](05_quadratic_frequency.ipynb)
# counts how often latents fire under either penalty.
