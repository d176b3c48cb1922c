# %% [markdown]
# # 04 · Autointerp, over latents and over firings
#
# **Question.** Autointerp is usually averaged over latents, so a latent that fires on every other token counts as much as one
# that never fires. Does the comparison of two SAEs change when latents are weighted by how often they fire?
#
# **Method.** For each sampled latent, contexts from one half of the texts (the strongest, some spread over the quantiles, some on which
# it is silent, or weakest) give an explanation; from the explanation alone we predict the quantised maximum activation on contexts of the other half. The
# score is the Spearman correlation of prediction and truth. The explainer needs no language model: it learns on which token, after which
# token, the latent fires. One sample of latents is uniform, the other in proportion to firing frequency, so
# that its plain mean is the frequency-weighted mean.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "training.latents": 1024}

# %%
from IPython.display import Markdown

from lib import figures, results
from lib.store import values
from lib.study import open_study

study = open_study(profile, overrides, frozen)
scores = values(study.autointerp)

# %%
figures.publish(
    figures.autointerp_means(scores),
    "04_autointerp",
    "Left: mean score over latents and over firings, with 95 % intervals from a bootstrap over latents drawn. Right: score against firing "
    "frequency, one point a latent; the dotted line marks 10 % of tokens. "
    + " ".join(
        f"{name}: {s['uniform']['mean']:.2f} over latents, {s['weighted']['mean']:.2f} over firings."
        for name, s in scores.items()
    ),
)

# %%
Markdown(
    results.table(
        (
            (
                name,
                results.interval(s["uniform"], "mean", digits=2),
                results.interval(s["weighted"], "mean", digits=2),
                f"{s['eligible']:,} of {s['latents']:,}",
                f"{s['eligible_firing']:.1%}",
            )
            for name, s in scores.items()
        ),
        (
            "SAE",
            "mean over latents",
            "mean over firings",
            "latents that fire in enough contexts to be scored",
            "their share of firing",
        ),
    )
)

# %% [markdown]
# ## What explanations look like
#
# The best and the worst explained latents of each SAE. A pattern "a|b" is token b after token a.


# %%
def shown(points):
    ordered = sorted(points, key=lambda point: (-point["score"], point["latent"]))
    return ordered[:3] + ordered[-3:]


Markdown(
    results.table(
        (
            (
                name,
                point["latent"],
                f"{point['score']:.2f}",
                f"{point['frequency']:.2%}",
                ", ".join(results.literal(repr(x)[1:-1]) for x in point["patterns"]),
            )
            for name, s in scores.items()
            for point in shown(s["scored"])
        ),
        ("SAE", "latent", "score", "fires on", "strongest patterns"),
    )
)

# %% [markdown]
# ## What we conclude

# %%
Markdown(results.headline_04(scores))

# %% [markdown]
# **What would change our mind.** Token patterns cannot express a topic or a tone: a latent that follows one scores low here and might score high
# with a language model as explainer. Contexts come from the chat text that the SAEs were trained on. Latents that fire too
# rarely to fill both halves are left out, which favours frequent ones in the uniform mean; one that is hardly ever silent is
# scored against its weakest contexts instead. The two SAEs share λ, not L0.
