# %% [markdown]
# # 03 · Debugging a data set with an SAE
#
# **Question.** Two sets of prompts meant to differ in harmfulness also differ in style. Do the latents that differ most between
# them show us the shortcuts?
#
# **Method.** HarmBench against chat first turns, raw: nothing matched, nothing cleaned. The finetuned SAE of notebook 01 reads
# every token of the user's text; a latent's value on a prompt is its maximum. Latents are ranked by the difference between class
# means. Each card shows the latent's strongest contexts from both classes. Beside them stands a rival that needs no
# model: each surface feature alone.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "training.latents": 1024}

# %%
from IPython.display import Markdown, display

from lib import figures, results
from lib.study import open_study

study = open_study(profile, overrides, frozen)
cards, shortcuts = study.cards.value, study.shortcuts.value

# %%
first = cards["latents"][0]
figures.publish(
    figures.mean_differences(cards),
    "03_mean_difference",
    f"The {len(cards['latents'])} latents with the largest difference in mean maximum activation (n = {cards['n']} prompts), by the share of "
    f"prompts on which they fire. Latent {first['latent']} fires on {first['harmful_share']:.0%} of harmful and "
    f"{first['harmless_share']:.0%} of harmless prompts. Bars: 95 % Wilson intervals; the latents were picked on these same prompts.",
)

# %% [markdown]
# ## The latents
#
# Shading is the latent's activation, relative to the strongest shown on its card.

# %%
display(Markdown(figures.CONTENT_NOTE))
for latent in cards["latents"]:
    display(figures.latent_card(latent))

# %% [markdown]
# ## The rival: style features, each alone
#
# An AUROC above 0.5 means that harmful prompts have more of the feature.

# %%
Markdown(
    results.table(
        ((row["feature"], f"{row['auroc']:.3f}") for row in shortcuts[:10]), ("surface feature", "AUROC alone")
    )
)

# %% [markdown]
# ## What we conclude

# %%
Markdown(results.headline_03(cards, shortcuts))

# %% [markdown]
# **What would change our mind.** Reading cards is a judgement; it becomes a measurement once shortcuts are planted and each
# method is scored on finding them. The excerpts are the strongest contexts of each latent, which can look more coherent
# than its weaker ones.
