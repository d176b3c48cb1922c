"""Cards: which latents tell two sets of prompts apart, and on what text."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from lib.lm import activations, model
from lib.lm.model import Pinned
from lib.sae import training
from lib.stats import column_aurocs
from lib.store import Artifact, result
from lib.texts import examples

AROUND = 10  # tokens shown on either side of a peak: excerpts stay short


def token_texts(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """The text of each token on its own; bytes that are no whole character show as U+FFFD."""
    return [tokenizer.decode([int(token)], clean_up_tokenization_spaces=False) for token in ids]


@result
def cards(
    prompts: Artifact,
    harvest: Artifact,
    sae: Artifact,
    lm: Pinned,
    layer: int,
    asked: int | tuple[int, ...],
    excerpts: int,
) -> dict[str, Any]:
    """Step: the latents ``asked`` for, or so many whose maximum over the tokens kept differs most, in the mean, between the classes.

    Returns {n, harmful, latents: [{latent, difference, harmful_mean, harmless_mean, harmful_share, harmless_share, auroc,
    contexts: {harmful: [...], harmless: [...]}}]}. A share is that of prompts on which the latent fires. A context is
    {prompt, tokens, values}: at most 2 * :data:`AROUND` + 1 tokens about the peak.
    """
    y = np.array([example.label for example in examples.read(prompts)])
    source, trained = activations.read(harvest, layer), training.load(sae)
    with torch.inference_mode():
        f = torch.cat([trained.encode(x) for x in source.chunks()]).numpy()
    which, position, token = (source.column(name) for name in ("sequence", "position", "token"))
    peaks = np.zeros((len(y), f.shape[1]), f.dtype)  # of every prompt
    np.maximum.at(peaks, which, f)
    classes = {"harmful": y == 1, "harmless": y == 0}
    means = {name: peaks[here].mean(0) for name, here in classes.items()}
    difference = means["harmful"] - means["harmless"]
    chosen = np.argsort(-np.abs(difference), kind="stable")[:asked] if isinstance(asked, int) else np.array(asked)
    tokenizer = model.tokenizer(lm)

    def context(prompt: int, latent: int) -> dict[str, Any]:
        mine = np.flatnonzero(which == prompt)
        mine = mine[np.argsort(position[mine])]
        peak = int(np.argmax(f[mine, latent]))
        part = mine[max(0, peak - AROUND) : peak + AROUND + 1]
        return {"prompt": prompt, "tokens": token_texts(tokenizer, token[part]), "values": f[part, latent]}

    latents: list[dict[str, Any]] = []
    for latent, auroc in zip(chosen.tolist(), column_aurocs(peaks[:, chosen], y), strict=True):
        card: dict[str, Any] = {"latent": latent, "difference": difference[latent], "auroc": auroc, "contexts": {}}
        for name, here in classes.items():
            firing = np.flatnonzero(here & (peaks[:, latent] > 0))
            best = firing[np.argsort(-peaks[firing, latent], kind="stable")][:excerpts]
            card |= {f"{name}_mean": means[name][latent], f"{name}_share": (peaks[here, latent] > 0).mean()}
            card["contexts"][name] = [context(prompt, latent) for prompt in best.tolist()]
        latents.append(card)
    return {"n": len(y), "harmful": int(y.sum()), "latents": latents}
