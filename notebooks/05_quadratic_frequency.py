# %% [markdown]
# # 05 · High-frequency latents and the quadratic-frequency penalty
#
# **Question.** JumpReLU and TopK SAEs have latents that fire on more than a tenth of all tokens. Does a penalty that grows with
# firing frequency remove them, and what does it cost?
#
# **Method.** With $\hat\omega_i$ the share of a batch's tokens on which latent $i$ fires, the L0 penalty is
# $\lambda \sum_i \hat\omega_i$ and the quadratic-frequency (QF) penalty
#
# $$\lambda \sum_i \hat\omega_i \left(1 + \frac{\hat\omega_i}{\omega_0}\right).$$
#
# Its gradient is that of L0 times $1 + 2\hat\omega_i/\omega_0$: rare latents hardly notice, frequent ones pay. TopK (with AuxK), Gated,
# JumpReLU and QF SAEs are trained on chat from scratch over several k and λ (QF with the smaller ω₀ at the middle λ only), in one pass
# over the same batches, and compared on held-out chat.
#
# JumpReLU, QF and Gated start sparse: each latent's threshold (Gated: gate bias) is the quantile of its own pre-activations that
# makes it fire as often as the others. Of the starts tried this one had the lowest FVU on held-out training text. As a control, one
# JumpReLU SAE has the plain start: all thresholds equal, hundreds of active latents in the first steps.

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
frontier = values(study.frontier_evaluations)
middle = {name: points[len(points) // 2] for name, points in frontier.items()}
t = study.profile.training
sweeps = {name: {"TopK": t.k_sweep, "Gated": t.gated_sweep}.get(name, t.sweep) for name in frontier}
settings = {name: s if len(s) == len(frontier[name]) else (s[len(s) // 2],) for name, s in sweeps.items()}

# %% [markdown]
# ## Who fires how often

# %%
figures.publish(
    figures.frequency_histograms(middle),
    "05_frequency_histograms",
    "Latents by firing frequency on held-out chat, for each family's middle k or λ; the shaded part is 10 % of tokens and more. High-frequency latents: "
    + ", ".join(f"{name} {e['high']} (most frequent {e['max_frequency']:.0%})" for name, e in middle.items())
    + ".",
)

# %% [markdown]
# ## What it costs in reconstruction

# %%
figures.publish(
    figures.fvu_against_l0(frontier),
    "05_fvu_l0",
    "FVU against L0 on held-out chat, lower left is better; bars are 95 % intervals from a bootstrap over texts. "
    + "; ".join(
        f"{name} spans L0 {min(e['l0'] for e in points):.0f} to {max(e['l0'] for e in points):.0f}"
        for name, points in frontier.items()
    )
    + ".",
)

# %%
Markdown(
    results.table(
        (
            (
                name,
                f"{setting:g}",
                results.interval(e, "l0", "l0_interval", digits=1),
                results.interval(e, "fvu", "fvu_interval"),
                e["high"],
                f"{e['high_share']:.1%}",
                f"{e['max_frequency']:.1%}",
                e["dead"],
            )
            for name, points in frontier.items()
            for setting, e in zip(settings[name], points, strict=True)
        ),
        (
            "family",
            "k or λ",
            "L0",
            "FVU",
            "on ≥ 10 % of tokens",
            "their share of firing",
            "most frequent latent",
            "dead",
        ),
    )
)

# %% [markdown]
# ## What we conclude

# %%
Markdown(results.headline_05(frontier))

# %% [markdown]
# **What would change our mind.** One seed a point. At equal λ a QF SAE has a lower L0 than a JumpReLU SAE, so histograms at equal λ compare SAEs of
# different sparsity: the table has the numbers for the neighbours. Few λ of Gated were tried before this run, to cover the same range of L0.
