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
ALIKE = 0.9  # correlation over prompts from which two columns show the same


def token_texts(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """The text of each token on its own; bytes that are no whole character show as U+FFFD."""
    return [tokenizer.decode([int(token)], clean_up_tokenization_spaces=False) for token in ids]


def standardised(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[M] difference of the class means, ``y`` [n] 1 less 0, of the columns of ``x`` [n, M], in standard deviations within classes."""
    one, other = x[y == 1], x[y == 0]
    # More than 0, so that what tells the classes apart and never varies within them comes first.
    variance = (one.var(0) + other.var(0)) / 2 + 1e-12
    return (one.mean(0) - other.mean(0)) / np.sqrt(variance)


def ranked(x: np.ndarray, values: np.ndarray, count: int) -> list[list[int]]:
    """``count`` groups of columns of ``x`` [n, M], by the size of ``values`` [M]: each the first that is in none yet, and those after
    it, of four times as many, that go with it (correlation of :data:`ALIKE` or more)."""
    order = np.argsort(-np.abs(values), kind="stable")[: 4 * count]
    z = x[:, order] - x[:, order].mean(0)
    z /= np.maximum(np.linalg.norm(z, axis=0), 1e-12)
    near = z.T @ z >= ALIKE
    found, left = list[list[int]](), list(range(len(order)))
    while left and len(found) < count:
        group = [left[0], *(at for at in left[1:] if near[left[0], at])]
        found.append(order[group].tolist())
        left = [at for at in left if at not in group]
    return found


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
    """Step: the latents ``asked`` for, or so many whose maximum over the tokens kept differs most between the classes
    (:func:`standardised`), without near-duplicates (:func:`ranked`).

    Returns {n, harmful, latents: [{latent, alike: its near-duplicates, difference, harmful_share, harmless_share, auroc,
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
    difference = standardised(peaks, y)
    groups = ranked(peaks, difference, asked) if isinstance(asked, int) else [[latent] for latent in asked]
    chosen = [group[0] for group in groups]
    tokenizer = model.tokenizer(lm)

    def context(prompt: int, latent: int) -> dict[str, Any]:
        mine = np.flatnonzero(which == prompt)
        mine = mine[np.argsort(position[mine])]
        peak = int(np.argmax(f[mine, latent]))
        part = mine[max(0, peak - AROUND) : peak + AROUND + 1]
        return {"prompt": prompt, "tokens": token_texts(tokenizer, token[part]), "values": f[part, latent]}

    latents: list[dict[str, Any]] = []
    for (latent, *alike), auroc in zip(groups, column_aurocs(peaks[:, chosen], y), strict=True):
        card: dict[str, Any] = {"latent": latent, "alike": alike, "difference": difference[latent], "auroc": auroc}
        card["contexts"] = {}
        for name, here in classes.items():
            firing = np.flatnonzero(here & (peaks[:, latent] > 0))
            best = firing[np.argsort(-peaks[firing, latent], kind="stable")][:excerpts]
            card[f"{name}_share"] = (peaks[here, latent] > 0).mean()
            card["contexts"][name] = [context(prompt, latent) for prompt in best.tolist()]
        latents.append(card)
    return {"n": len(y), "harmful": int(y.sum()), "latents": latents}
