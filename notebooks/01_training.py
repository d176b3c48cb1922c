# %% [markdown]
# # 01 · Training chat SAEs
#
# **Question.** A sparse autoencoder (SAE) trained on pretraining text meets chat text it has never seen. The post finetunes
# its SAEs on chat data before probing with them. How much better does an SAE describe chat activations once it is finetuned
# on chat, and is that as good as training on chat from scratch?
#
# **Method.** Three JumpReLU SAEs with the L0 penalty read the residual stream of the same chat model at the same site:
# one trained on encyclopaedia and news text, the same one finetuned on chat, and one trained on chat from scratch. The
# chat corpus is transcripts, and answers that the model itself wrote to their first turns; no probe prompt is in it. Both corpora have
# the same number of tokens. Held-out chat and held-out pretraining text, from other documents, measure
# the fraction of variance unexplained (FVU) and L0, the number of active latents per token.

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
p = study.profile
Markdown(
    f"Site: residual stream after block {p.layer}. Dictionary: {p.training.latents:,} latents. Training: "
    f"{p.training.steps:,} steps of {p.training.batch:,} tokens, then half as many on chat for finetuning. Each corpus: "
    f"{p.corpora.train_tokens:,} training tokens and {p.corpora.eval_tokens:,} held-out ones. λ = {p.training.coefficient:g}."
)

# %% [markdown]
# ## Training
#
# Losses are those of training batches, on inputs scaled to unit mean square. Finetuning starts from the end of the
# pretraining run with a fresh optimiser and the full sparsity penalty.

# %%
logs = values(study.training_logs)
figures.publish(
    figures.training_curves(logs),
    "01_training_curves",
    "Squared error and L0 of training batches. Each curve is one seed; the pretraining curve is on pretraining text, the other two are on "
    f"chat. The finetuned SAE begins at {logs['finetuned'][0]['reconstruction']:.3f}, the one from scratch at "
    f"{logs['chat'][0]['reconstruction']:.3f}; they end at {logs['finetuned'][-1]['reconstruction']:.3f} and "
    f"{logs['chat'][-1]['reconstruction']:.3f}.",
)

# %% [markdown]
# ## Reconstruction on held-out text

# %%
found, recovered = values(study.chat_evaluations), values(study.loss_recovered)
chat, text = found["chat"], found["pretraining"]
figures.publish(
    figures.fvu_by_sae(found),
    "01_fvu",
    "FVU of the three SAEs on held-out chat and pretraining text, with 95 % intervals from a bootstrap over texts. On chat, "
    f"finetuning changes FVU from {chat['pretraining']['fvu']:.3f} to {chat['finetuned']['fvu']:.3f}; on pretraining text from "
    f"{text['pretraining']['fvu']:.3f} to {text['finetuned']['fvu']:.3f}.",
)

# %%
Markdown(
    results.table(
        (
            (
                name,
                corpus,
                results.interval(e, "fvu", "fvu_interval"),
                results.interval(e, "l0", "l0_interval", digits=1),
                f"{e['bias']:.3f}",
                e["dead"],
                e["frequent"],
                e["high"],
                f"{e['high_share']:.1%}",
            )
            for corpus, by_name in found.items()
            for name, e in by_name.items()
        ),
        (
            "SAE",
            "held-out text",
            "FVU",
            "L0",
            "reconstruction bias",
            "dead latents",
            "on ≥ 1 % of tokens",
            "on ≥ 10 %",
            "share of firing of those",
        ),
    )
)

# %% [markdown]
# A reconstruction bias below 1 means that reconstructions are too small by that factor.
#
# ## What the model loses
#
# The SAE's reconstruction takes the place of the residual stream in the running model, on held-out chat. Loss recovered is
# the share of the cross-entropy between setting the stream to zero (0) and leaving it alone (1).

# %%
Markdown(
    results.table(
        (
            (name, f"{e['loss']:.3f}", results.interval(e, "recovered", "interval"))
            for name, e in recovered["saes"].items()
        ),
        ("SAE", "cross-entropy (nats per token)", "loss recovered"),
    )
    + f"\n\nClean {recovered['clean']:.3f}, zero {recovered['zero']:.3f} nats per token; n = {recovered['n']:,} predictions in "
    f"{recovered['texts']} texts; intervals from a bootstrap over texts."
)

# %% [markdown]
# ## What we conclude

# %%
Markdown(results.headline_01(chat))

# %% [markdown]
# **What would change our mind.** These are single seeds at one λ, and the SAEs differ a little in L0, which trades against
# FVU: a comparison at equal L0 over several seeds could reorder close neighbours. Intervals cover the choice of texts only. The
# finetuned SAE has seen half as many steps again as the other two. Dead latents are counted on the held-out tokens alone.
