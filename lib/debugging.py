"""Data set debugging with an SAE: which latents tell two sets of prompts apart, and on what text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lib import activations, prompts, store, surface
from lib.config import ModelSection
from lib.lm import contexts, model
from lib.probes import protocol
from lib.sae import training

AROUND = 10  # tokens shown on either side of a peak: excerpts stay short


def pool_max(f: np.ndarray, which: np.ndarray, count: int) -> np.ndarray:
    """[count, M] maximum of latents [n, M] over the rows of every sequence (``which`` [n] int)."""
    out = np.zeros((count, f.shape[1]), f.dtype)
    np.maximum.at(out, which, f)
    return out


def token_texts(tokenizer: Any, ids: np.ndarray) -> list[str]:
    """The text of each token on its own; bytes that are no whole character show as U+FFFD."""
    return [tokenizer.decode([int(token)], clean_up_tokenization_spaces=False) for token in ids]


@store.result
def cards(
    prompt_set: store.Artifact,
    sequences: store.Artifact,
    harvested: store.Artifact,
    trained: store.Artifact,
    lm: ModelSection,
    layer: int,
    count: int,
    excerpts: int,
) -> dict[str, Any]:
    """Step: the ``count`` latents whose maximum over the user's text differs most, in the mean, between the classes.

    Returns {n, harmful, latents: [{latent, difference, harmful_mean, harmless_mean, harmful_share, harmless_share, auroc,
    contexts: {harmful: [...], harmless: [...]}}]}. A share is that of prompts on which the latent fires. A context is
    {prompt, tokens, values}: at most 2 * :data:`AROUND` + 1 tokens about the peak.
    """
    y = np.array([example.label for example in prompts.read(prompt_set)])
    source, rows = activations.read(harvested, layer), contexts.read(sequences)
    sae = training.load(trained)
    with torch.inference_mode():
        f = torch.cat([sae.encode(x) for x in source.chunks()]).numpy()
    which, position = source.column("sequence"), source.column("position")
    pooled = pool_max(f, which, len(y))
    means = {label: pooled[y == label].mean(0) for label in (1, 0)}
    difference = means[1] - means[0]
    chosen = np.argsort(-np.abs(difference), kind="stable")[:count]
    aurocs = protocol.column_aurocs(pooled[:, chosen], y)
    tokenizer = model.tokenizer(lm)
    latents = []
    for latent, value in zip(chosen.tolist(), aurocs, strict=True):
        shown = {}
        for label, name in ((1, "harmful"), (0, "harmless")):
            mine = np.flatnonzero((y == label) & (pooled[:, latent] > 0))
            best = mine[np.argsort(-pooled[mine, latent], kind="stable")][:excerpts]
            shown[name] = [_excerpt(int(p), f[:, latent], which, position, rows, tokenizer) for p in best]
        latents.append(
            {
                "latent": latent,
                "difference": difference[latent],
                "harmful_mean": means[1][latent],
                "harmless_mean": means[0][latent],
                "harmful_share": (pooled[y == 1, latent] > 0).mean(),
                "harmless_share": (pooled[y == 0, latent] > 0).mean(),
                "auroc": value,
                "contexts": shown,
            }
        )
    return {"n": len(y), "harmful": int(y.sum()), "latents": latents}


def _excerpt(
    prompt: int, values: np.ndarray, which: np.ndarray, position: np.ndarray, rows: contexts.Sequences, tokenizer: Any
) -> dict[str, Any]:
    mine = np.flatnonzero(which == prompt)
    mine = mine[np.argsort(position[mine])]
    peak = int(np.argmax(values[mine]))
    part = mine[max(0, peak - AROUND) : peak + AROUND + 1]
    return {"prompt": prompt, "tokens": token_texts(tokenizer, rows[prompt][position[part]]), "values": values[part]}


@store.result
def shortcuts(prompt_set: store.Artifact) -> list[dict[str, Any]]:
    """Step: the AUROC of each surface feature alone between the classes: rows {feature, auroc}, farthest from 0.5 first."""
    examples = prompts.read(prompt_set)
    y = np.array([example.label for example in examples])
    values = protocol.column_aurocs(surface.matrix([e.text for e in examples]), y)
    order = np.argsort(-np.abs(values - 0.5), kind="stable")
    return [{"feature": surface.NAMES[i], "auroc": values[i]} for i in order]
