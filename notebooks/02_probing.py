# %% [markdown]
# # 02 · Probing for harmful intent, out of distribution
#
# **Question.** Do SAE latents make a better detector of harmful requests than the residual stream they are computed from,
# when the requests come from data sets and jailbreaks that training never saw?
#
# **Method.** Harmful prompts (HarmBench) and harmless ones (chat first turns) are split by cluster of base prompt, *before*
# they are wrapped in jailbreaks; a jailbroken prompt stays harmful, a harmful text inside an innocuous task is harmless.
# Every probe is a logistic regression on standardised features, fitted on train; its regularisation C is chosen on validation.
# Out-of-distribution (OOD) data are used for no choice. Intervals are 95 %, from a bootstrap over clusters
# of base prompts.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "training.latents": 1024}

# %%
from IPython.display import Markdown

from lib import figures, results
from lib.study import open_study, values

study = open_study(profile, overrides, frozen)
p = study.profile
counts = study.prompt_counts.value
Markdown(
    results.table(
        ((r["split"], r["slice"], "harmful" if r["label"] else "harmless", f"{r['n']:,}") for r in counts),
        ("split", "slice", "label", "prompts"),
    )
)

# %% [markdown]
# The slice *benign in a jailbreak* is a diagnostic: it is reported below, and left out of the overall OOD figures, as the post
# has no such prompts.
#
# ## The site
#
# The site of the committed profile, layer 12 at +1, was fixed before any OOD score was computed: it was joint best on
# validation in a first sweep, on an earlier draw of the chat prompts. Here is the sweep on the final draw: a dense probe with
# one fixed C at each layer and each position after the user's text, scored on validation only. Validation is close to
# saturated, so it hardly tells sites apart. Position +0 is the
# first token after the user's text, the last one is the last token of the prompt.

# %%
sweep = study.sweep.value
best = max(sweep, key=lambda row: row["val"])
saturated = sum(row["val"] > 0.99 for row in sweep)
site = next(row for row in sweep if (row["layer"], row["position"]) == (p.layer, str(p.probes.position)))
figures.publish(
    figures.layer_sweep(sweep, p.layer, str(p.probes.position)),
    "02_layer_sweep",
    f"Validation AUROC of the dense probe (n = {sum(r['n'] for r in counts if r['split'] == 'val'):,} prompts) by layer and position. "
    f"The site of this report, layer {p.layer} at +{p.probes.position} (framed), has {site['val']:.4f} and "
    f"ranks {1 + sum(row['val'] > site['val'] for row in sweep)} of {len(sweep)}; the best cell, layer {best['layer']} at "
    f"{best['position']!r}, has {best['val']:.4f}. {saturated} of {len(sweep)} cells are above 99 %.",
)

# %% [markdown]
# ## The dense probe and the style baseline
#
# The baseline sees 33 features of style: punctuation, length, case, the class of the first word. It knows no topic.

# %%
dense, style = study.dense.value, study.style.value
Markdown(
    results.table(
        (
            (name, *(results.interval(e[split]) for split in ("train", "val", "ood")), f"{e['C']:g}")
            for name, e in (("dense linear probe", dense), ("surface features", style))
        ),
        (
            "probe",
            f"train (n = {dense['train']['n']:,})",
            f"validation (n = {dense['val']['n']:,})",
            f"OOD (n = {dense['ood']['n']:,})",
            "C",
        ),
    )
)

# %% [markdown]
# ## k-sparse probes on SAE latents
#
# The k latents whose mean differs most between the classes on training data, then a logistic regression on those alone; k = 1
# is the latent with the largest mean difference, not the one with the best AUROC (that one is in the table below).

# %%
sparse = values(study.k_sparse)
best = {name: found["best"] for name, found in sparse.items()}
figures.publish(
    figures.k_sparse(sparse, dense, style),
    "02_k_sparse",
    "AUROC of probes on k latents, by SAE, with the dense probe and the surface baseline as lines (bands and bars: 95 % intervals). "
    "Out of distribution, "
    + "; ".join(
        f"{row['k']} latents of the {name} SAE (best k on validation) reach {row['ood']['auroc']:.3f}"
        for name, row in best.items()
    )
    + f"; the dense probe reaches {dense['ood']['auroc']:.3f}.",
)

# %%
Markdown(
    results.table(
        (
            (
                name,
                found["single"]["latent"],
                *(results.interval(found["single"][split]) for split in ("train", "val", "ood")),
            )
            for name, found in sparse.items()
        ),
        ("SAE", "single latent with the best AUROC on train", "train", "validation", "OOD"),
    )
)

# %% [markdown]
# ## Where they fail
#
# Each OOD slice against plain prompts of the other class, the benign twins against the harmful questions; n counts both sides. The
# overall OOD figure also ranks slices against each other, so it can be lower than most rows. *All caps* and *synonyms* are
# tasks on AdvBench texts ("repeat the following sentence in all capital letters: …"), hence harmless. The k-sparse probe is the finetuned SAE's, with k chosen on
# validation. An AUROC below 0.5 on a slice means that the probe has learnt something that points the wrong way there.

# %%
chosen = sparse["finetuned"]["best"]
probes = {"dense probe": dense, f"k-sparse probe, k = {chosen['k']}": chosen, "surface features": style}
weakest = {name: min(found["slices"].items(), key=lambda item: item[1]["auroc"]) for name, found in probes.items()}
figures.publish(
    figures.slices({name: found["slices"] for name, found in probes.items()}),
    "02_slices",
    "AUROC on each OOD slice, with 95 % intervals from a bootstrap over clusters of base prompts. Weakest slices: "
    + "; ".join(f"{name}, “{slice_}” at {entry['auroc']:.3f}" for name, (slice_, entry) in weakest.items())
    + ".",
)

# %% [markdown]
# ## What we conclude

# %%
Markdown(results.headline_02(dense, style, sparse))

# %% [markdown]
# **What would change our mind.** One SAE seed and one split seed stand behind these curves; intervals cover the choice of
# prompts only. Latents are read at one position, where the post also pools over the prompt. All chat prompts, in and out
# of distribution, come from one source.
