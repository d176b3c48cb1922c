# %% [markdown]
# # 02 · Probing for harmful intent, out of distribution
#
# **Question.** Do SAE latents make a better detector of harmful requests than the residual stream they are computed from,
# when the requests come from data sets and jailbreaks that training never saw?
#
# **Method.** Harmful prompts (HarmBench) and harmless ones (chat first turns) are split by cluster of base prompt, *before*
# they are wrapped in jailbreaks; a jailbroken prompt stays harmful, a harmful text inside an innocuous task is harmless.
# Every probe is fit on train; all its choices (regularisation C, number of latents k, weight decay) are made on validation;
# out-of-distribution (OOD) data are used for no choice. Each probe is fit in several runs, each with its own draw of train and
# validation and, where there is an SAE, its own SAE seed. Figures are means over runs. Intervals are 95 %, of a bootstrap over
# clusters of base prompts and of the spread over runs; differences between probes are paired, on the same prompts and runs.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "probes.data": "my_prompts.csv"}

# %%
from IPython.display import Markdown

from lib import claims, figures, results
from lib.store import values
from lib.study import open_study

study = open_study(profile, overrides, frozen)
p, q = study.profile, study.profile.probes
counts = study.prompt_counts.value
Markdown(
    results.table(
        ((r["split"], r["slice"], "harmful" if r["label"] else "harmless", f"{r['n']:,}") for r in counts),
        ("split", "slice", "label", "prompts"),
    )
)

# %% [markdown]
# *Benign in a jailbreak* is a diagnostic: no probe is fit on it (but for one control, below) and no overall figure holds it, as
# the post has no such prompts.
#
# ## Do the jailbreaks work on this model?
#
# Each base prompt is asked plainly and inside every jailbreak; the model answers greedily, and a rule on the first tokens says
# whether it refuses. Small models refuse little, so the right panel has a graded quantity: the log-odds that the answer opens
# with one of a few refusals.

# %%
if not q.data:  # the transforms belong to the report's own prompts
    rates = study.refusal_rates.value
    plain = {r["kind"]: r for r in rates if r["transform"] == "plain"}
    broken = sorted((r for r in rates if r["kind"] == "harmful" and r["transform"] != "plain"), key=lambda r: r["rate"])
    figures.publish(
        figures.refusals(rates),
        "02_refusals",
        f"Refusals by transform. Asked plainly, the model refuses {plain['harmful']['rate']:.0%} of harmful prompts "
        f"(n = {plain['harmful']['n']}), {plain['over-refusal']['rate']:.0%} of over-refusal and {plain['chat']['rate']:.0%} of chat prompts; "
        f"inside jailbreaks {broken[0]['rate']:.0%} ({broken[0]['transform']}) to {broken[-1]['rate']:.0%} ({broken[-1]['transform']}) of "
        f"harmful ones, and up to {max(r['rate'] for r in rates if r['kind'] == 'chat'):.0%} of chat prompts. Left: Wilson intervals; right: bootstrap over base prompts.",
    )

# %%
check = study.refusal_check.value if not q.data else {"n": 0, "both": 0, "rule_only": 0, "reader_only": 0}
wrong = check["rule_only"] + check["reader_only"]
Markdown(
    f"The rule was set beside one reader's judgement of {check['n']} of these answers: {wrong} differ "
    f"({wrong / max(1, check['n']):.1%}); the rule alone called {check['rule_only']} a refusal, the reader alone "
    f"{check['reader_only']}, both {check['both']}."
)

# %% [markdown]
# ## The site: layer, position, pooling
#
# The dense probe with one fixed C, scored on validation only, at each layer and each position after the user's text, and on
# residuals pooled over the user's text or over everything but the first token. The report's site (layer 12 at +1) was fixed
# from a first sweep on an earlier draw of the chat prompts, before any OOD score was computed.

# %%
sweep = study.sweep.value
best = max(sweep, key=lambda row: row["val"])
saturated = sum(row["val"] > 0.99 for row in sweep)
site = next(row for row in sweep if (row["layer"], row["place"]) == (p.layer, str(q.position)))
pooled = {
    name: max(r["val"] for r in sweep if r["place"] == name) for name in {r["place"] for r in sweep} if " " in name
}
figures.publish(
    figures.layer_sweep(sweep, p.layer, str(q.position)),
    "02_layer_sweep",
    f"Validation AUROC of the dense probe (n = {sum(r['n'] for r in counts if r['split'] == 'val' and r['slice'] != 'benign in a jailbreak'):,} prompts) "
    f"by layer and place. The site of this report, layer {p.layer} at +{q.position} (framed), has {site['val']:.4f} and ranks "
    f"{1 + sum(row['val'] > site['val'] for row in sweep)} of {len(sweep)}; the best cell, layer {best['layer']} at “{best['place']}”, has "
    f"{best['val']:.4f}. {saturated} of {len(sweep)} cells are above 99 %. Best pooled over the user's text: mean {pooled['mean user']:.4f}, "
    f"maximum {pooled['max user']:.4f}; over everything: mean {pooled['mean all']:.4f}, maximum {pooled['max all']:.4f}.",
)

# %% [markdown]
# ## Every probe on equal footing
#
# The *dense* probe is a logistic regression on the residual stream at the site. *k-sparse* probes see k SAE latents only.
# Beside them: the same dense probe on SAE reconstructions and on what SAEs leave out (error), on pooled residuals, an attention
# probe over all tokens from the user's text on, the difference of class means, and three that never see the model: MiniLM
# sentence embeddings, a bag of words (TF-IDF of words and pairs), and 33 surface features that know no topic.

# %%
tables = study.probe_tables.value
order = sorted(tables, key=lambda name: -tables[name]["ood"]["auroc"])
figures.publish(
    figures.probes(tables),
    "02_probes",
    f"AUROC of {len(tables)} probes, by OOD AUROC (ticks: single runs; dotted: the dense probe). Best OOD: {order[0]} at "
    f"{tables[order[0]]['ood']['auroc']:.3f}; dense {tables['dense']['ood']['auroc']:.3f}, rank {1 + order.index('dense')}; worst: {order[-1]} at "
    f"{tables[order[-1]]['ood']['auroc']:.3f}. On validation {sum(t['val']['auroc'] > 0.99 for t in tables.values())} of {len(tables)} are above 0.99, "
    "which tells little about which will transfer.",
)

# %% [markdown]
# A monitor is used at one threshold: recall at 1 % false positives is a point of the OOD curve; accuracy, and the share of
# harmless prompts flagged, are at the threshold with the best accuracy on validation.

# %%
Markdown(results.probe_table(tables))

# %% [markdown]
# ## The best single latent
#
# For every SAE the one latent with the best AUROC on train. The first four have one SAE per run; the others one run.

# %%
singles = study.singles.value
top = max(singles, key=lambda name: singles[name]["ood"]["auroc"])
figures.publish(
    figures.single_latents(singles, tables["dense"]),
    "02_single_latents",
    f"AUROC of the best single latent by SAE. On train they reach {min(e['train']['auroc'] for e in singles.values()):.3f} to "
    f"{max(e['train']['auroc'] for e in singles.values()):.3f} (dense: {tables['dense']['train']['auroc']:.3f}); OOD "
    f"{min(e['ood']['auroc'] for e in singles.values()):.3f} to {singles[top]['ood']['auroc']:.3f} ({top}; dense: {tables['dense']['ood']['auroc']:.3f}).",
)

# %% [markdown]
# ## k-sparse probes
#
# Two rules pick the latents on train. *Mean difference*: the k whose mean differs most between the classes, then a
# logistic regression with C from validation. *L1 path*: the first k to enter an L1-regularised regression, then a refit without
# regularisation. Controls of the same size: the first principal components, random directions, random latents.

# %%
curves, size_controls = values(study.sparse_curves), study.size_controls.value
figures.publish(
    figures.k_sparse(curves, size_controls, tables["dense"], tables["surface features"]),
    "02_k_sparse",
    "AUROC against k: SAE latents by mean difference (top), by L1 path and controls of equal size (bottom). "
    f"At k = {q.k_claim}, OOD: "
    + "; ".join(
        f"{name} {next(r for r in rows if r['setting'] == q.k_claim)['ood']['auroc']:.3f}"
        for name, rows in {**curves["mean difference"], **size_controls}.items()
    )
    + f"; the dense probe {tables['dense']['ood']['auroc']:.3f}. "
    + results.controls_ahead(curves["mean difference"], size_controls, q.k_claim),
)

# %%
fidelity = study.fidelity.value
sparsities = {name: at[str(q.position)]["l0"] for name, at in fidelity.items()}
shown = {**curves["mean difference"], **study.other_curves.value}
at_k = {name: next(r for r in rows if r["setting"] == q.k_claim)["ood"]["auroc"] for name, rows in shown.items()}
figures.publish(
    figures.by_sparsity(shown, sparsities, q.k_claim, tables["dense"]),
    "02_sparsity",
    f"OOD AUROC of probes on {q.k_claim} latents against the SAE's L0, from {min(sparsities.values()):.0f} to {max(sparsities.values()):.0f}: best "
    f"{max(at_k, key=lambda name: at_k[name])} ({max(at_k.values()):.3f}), worst {min(at_k, key=lambda name: at_k[name])} ({min(at_k.values()):.3f}); "
    f"{sum(v >= tables['dense']['ood']['auroc'] for v in at_k.values())} of {len(at_k)} reach the dense probe's {tables['dense']['ood']['auroc']:.3f}. "
    "SAEs with a λ in their name and other families: one run.",
)

# %% [markdown]
# ## Is the signal in the reconstruction or in the error?

# %%
differences = study.probe_differences.value
parts = {
    f"{kind}, {name} SAE": differences[f"dense - {kind}, {name}"]
    for kind in ("reconstruction", "error")
    for name in ("pretraining", "finetuned", "chat")
}
figures.publish(
    figures.deltas(parts),
    "02_reconstructions",
    "What a dense probe loses (AUROC of the dense probe on residuals minus that of one on the part named; paired). "
    + results.losses_resolved(parts),
)

# %% [markdown]
# ## The SAEs, or the place they are read at?
#
# The site is one position after the user's text, where the tokens are the template's. If SAEs lose there because of the place,
# there should be another at which the dense probe is as good and they lose nothing. So the same three kinds of probe are set
# side by side at each position after the user's text, and pooled over that text: on residuals, on reconstructions, and on a
# fixed number of latents (over the text: each token reconstructed, or each token's latents, then pooled; the finetuned SAE only, since
# it has to read every token). *Lost* is the share of the variance between prompts that reconstructions miss at that place; the FVU of
# notebook 01 is over all tokens of held-out chat, of which the template's tokens are few.

# %%
places, place_differences = study.places.value, study.place_differences.value
figures.publish(
    figures.places(places, fidelity, q.k_claim),
    "02_places",
    results.by_place(places, place_differences, fidelity, q.k_claim, q.position),
)

# %% [markdown]
# ## Controls
#
# *Plain prompts only* trains without jailbroken copies and errands; *one style* and *matched length* are subsets of it: single
# imperative sentences without question mark, final punctuation or first and second person; harmless prompts of the same lengths
# as the harmful ones. *With benign in jailbreaks* adds harmless prompts inside the train jailbreaks. *Shuffled labels* should give
# chance, but for what the choice of C and k on true validation labels lets through.

# %%
found = values(study.controls)
changes = {
    "with benign in jailbreaks": "wrapped",
    "plain prompts only": "plain",
    "plain, one style": "style",
    "plain, matched length": "length",
    "shuffled labels": "shuffle",
}
named = {"as it stands": {name: next(r for r in rows if r["setting"] == 0) for name, rows in found["noise"].items()}}
named |= {  # at tiny sizes a control can leave too little to train on
    text: {name: rows[0] for name, rows in found[key].items()}
    for text, key in changes.items()
    if all(found.get(key, {"": []}).values())
}
shuffled = {name: sum(r["ood"]["auroc"] for r in rows) / len(rows) for name, rows in found["shuffle"].items()}
figures.publish(
    figures.controls(named),
    "02_controls",
    "OOD AUROC under changes of the training set (first run's number of train prompts in brackets). "
    + results.probes_ahead({text: by for text, by in named.items() if text != "shuffled labels"}, "dense")
    + " Dense probe and surface features: "
    + "; ".join(
        f"{text} {by['dense']['ood']['auroc']:.3f} and {by['surface features']['ood']['auroc']:.3f} ({by['dense']['fits'][0]['n']:,})"
        for text, by in named.items()
    )
    + f". Mean over {len(found['shuffle']['dense'])} shuffles in each run: "
    + ", ".join(f"{name} {v:.3f}" for name, v in shuffled.items())
    + ".",
)

# %%
size = found["size"]
if all(size.values()):  # a file with few clusters has none of the sizes
    few = {name: rows[0]["ood"]["auroc"] for name, rows in size.items()}
    ahead = [
        f"{row['setting']:.0f}"
        for row, d in zip(size["k-sparse, finetuned"], size["dense"], strict=True)
        if row["ood"]["auroc"] > d["ood"]["auroc"]
    ]
    figures.publish(
        figures.learning(size, found["noise"]),
        "02_learning",
        f"Little data and wrong labels. With {size['dense'][0]['setting']:.0f} train clusters, OOD: "
        + ", ".join(f"{name} {v:.3f}" for name, v in few.items())
        + ". k-sparse probes have a higher mean than the dense one at "
        + (f"{', '.join(ahead)} clusters" if ahead else "no size")
        + f". With {found['noise']['dense'][-1]['setting']:.0%} of clusters mislabelled: "
        + ", ".join(f"{name} {rows[-1]['ood']['auroc']:.3f}" for name, rows in found["noise"].items())
        + ". Validation keeps its true labels and full size.",
    )

# %% [markdown]
# ## Where they fail
#
# Each OOD slice against plain prompts of the other class, the benign twins against the harmful questions; n counts both sides. The
# overall OOD figure also ranks slices against each other, so it can be lower than most rows. *All caps* and *synonyms* are
# tasks on AdvBench texts ("repeat the following sentence in all capital letters: …"), hence harmless. An AUROC below 0.5 on a slice
# means that the probe has learnt something that points the wrong way there.

# %%
chosen = ("dense", "attention", "k-sparse, finetuned, mean difference", "sentence embedding", "surface features")
by_slice = {name: tables[name]["slices"] for name in chosen}
weakest = {name: min(found_.items(), key=lambda item: item[1]["auroc"]) for name, found_ in by_slice.items()}
figures.publish(
    figures.slices(by_slice),
    "02_slices",
    "AUROC on each OOD slice. "
    + results.best_by_slice(by_slice)
    + " Weakest slices: "
    + "; ".join(f"{name}, “{slice_}” at {entry['auroc']:.3f}" for name, (slice_, entry) in weakest.items())
    + ".",
)

# %%
Markdown(figures.CONTENT_NOTE)

# %%
errors = study.probe_errors.value
Markdown(
    results.table(
        (
            (name, kind, row["slice"], results.literal(row["excerpt"]), f"{row['rank']:.0%}")
            for name, kinds in errors.items()
            for kind, rows in kinds.items()
            for row in rows
        ),
        ("probe", "label", "slice", "end of the prompt", "prompts of the other class beyond it"),
    )
)

# %% [markdown]
# ## What we conclude

# %%
records = claims.ledger_of(study).value
Markdown(
    results.table(
        claims.rows(records, tests=True),
        ("", "the post's claim (O: open there)", "measure", "value", "test, by its intervals", "verdict"),
    )
)

# %%
Markdown(results.headline_02(tables, differences, records, place_differences, q.position))

# %% [markdown]
# **What would change our mind.** A larger model, whose refusals and features are richer; other harmless prompts than one chat
# source gives; SAEs trained on far more tokens. The tests of the claims are in `lib/claims.py`, with each record's inputs in
# `data/results/claims.json`.
