"""The browser of latents: one page that holds its data, to be searched, filtered and linked to."""

import base64
import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_array
from tqdm.auto import tqdm

from lib.config import AutointerpSection
from lib.latents import autointerp
from lib.latents.autointerp import Pools, Texts
from lib.latents.cards import token_texts
from lib.latents.explainers import Explainer
from lib.lm import activations, model
from lib.lm.model import Pinned
from lib.sae import training
from lib.store import Artifact, cached, result
from lib.texts import examples

SHOWN, AROUND = 3, 6  # contexts of each class, and tokens on either side of a peak
LEVELS, BINS, TOKENS = 9, 10, 6  # steps of an activation, bars of a histogram, tokens that a latent raises or lowers


def page(found: Mapping[str, Any]) -> str:
    """The page of ``found``, the same bytes every time. It loads nothing, and opens from a disk as it does from a site.

    ``found`` is {title, note, saes: [{id, name, tokens, harmful, harmless}], vocabulary: [text of a token], latents: [{sae,
    latent, explanation, score, frequency, fires, histogram, max, up, down, contexts}]}. ``tokens``, ``harmful`` and ``harmless``
    are how many there are of held-out chat, and of prompts of either class. Of a latent, ``sae`` is an index into ``saes``,
    ``explanation`` may be "" and ``score`` None; ``frequency`` is the share of ``tokens`` on which it fires, ``fires`` those of
    harmful and of harmless prompts; ``histogram`` counts its activations above 0 on held-out chat, in ten equal bins from 0 to
    ``max``. ``up`` and ``down`` are the tokens whose logits it raises and lowers most, and ``contexts`` those of harmful and those
    of harmless prompts, strongest first, each [tokens, levels]. A token is an index into ``vocabulary``, a level goes from 0 to
    9, which is ``max``; a link to a latent ends in ``#<id>-<latent>``. ValueError if a number is not finite.
    """
    text = json.dumps(dict(found), separators=(",", ":"), allow_nan=False)  # ASCII: half a surrogate is no UTF-8
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()  # so no text of data is ever markup
    return Path(__file__).with_name("browser.html").read_text(encoding="utf-8").replace("__DATA__", packed)


def _told(
    pools: Pools,
    columns: tuple[csc_array, csc_array],
    which: Iterable[int],
    tokenizer: Any,
    by: Explainer,
    section: AutointerpSection,
    seed: int,
) -> dict[int, dict[str, Any]]:
    found = dict[int, dict[str, Any]]()
    for latent in tqdm(which, desc="explaining", disable=None):
        one = autointerp.score(pools, columns, latent, by, section.examples, seed)
        found[latent] = {"explanation": None if one is None else by.told(one.explanation, tokenizer)}
        found[latent]["score"] = None if one is None or np.isnan(one.value) else round(one.value, 4)
    return found


@result
def explained(
    sae: Artifact,
    texts: Texts,
    lm: Pinned,
    layer: int,
    by: Explainer,
    section: AutointerpSection,
    seed: int,
    which: tuple[int, ...],
) -> dict[int, dict[str, Any]]:
    """Step: {latent: {explanation, score}} of ``which``, from the first text, scored on the second (:func:`lib.latents.autointerp.score`); both None where
    a latent is active in none of one of them."""
    pools, trained = autointerp.pools_of(texts, layer, section.window), training.load(sae)
    columns = pools[0].latents(trained), pools[1].latents(trained)
    return _told(pools, columns, which, model.tokenizer(lm), by, section, seed)


def _directions(sae: Any, lm: model.LM) -> tuple[np.ndarray, np.ndarray]:
    """[M, :data:`TOKENS`] tokens whose logits each latent's decoder direction raises and lowers most, through the model's last norm alone."""
    norm = getattr(lm.model.get_decoder(), "norm", torch.nn.Identity())
    ends = []
    with torch.inference_mode():
        unembed = lm.model.get_output_embeddings().weight.float().cpu()
        for rows in sae.W_dec.detach().split(256):
            logits = norm(rows.to(lm.model.device, lm.model.dtype)).float().cpu() @ unembed.T
            ends.append([(sign * logits).topk(TOKENS, 1).indices.numpy() for sign in (1, -1)])
    up, down = (np.concatenate(each) for each in zip(*ends, strict=True))
    return up, down


@cached
def browser(
    out: Path,
    saes: dict[str, Artifact],
    prompts: Artifact,
    harvest: Artifact,
    texts: Texts,
    lm: Pinned,
    layer: int,
    by: Explainer,
    section: AutointerpSection,
    seed: int,
    words: dict[str, str],
) -> None:
    """Step: ``latents.json``, what a :func:`page` shows of all latents of ``saes`` {id: SAE}: how often they fire on ``texts`` and on labelled prompts, whose
    tokens are in ``harvest``, and where; explained are those of SAEs whose ids ``words`` has under "explained", beside the page's title and note, and the SAEs' names by id."""
    y, read = np.array([example.label for example in examples.read(prompts)]), activations.read(harvest, layer)
    owner, token = read.column("sequence"), read.column("token")
    pools, tokenizer, whole = autointerp.pools_of(texts, layer, section.window), model.tokenizer(lm), model.load(lm)
    latents, known, tokens = list[dict[str, Any]](), dict[int, int](), sum(len(pool.window) for pool in pools)

    def index(ids: Iterable[int]) -> list[int]:
        return [known.setdefault(int(each), len(known)) for each in ids]

    def contexts(f: np.ndarray, label: int) -> list[list[list[int]]]:
        """Of the prompts of a class the strongest peaks of a latent with activations ``f`` [n], as levels."""
        order = np.flatnonzero((f > 0) & (y[owner] == label))
        order = order[np.argsort(-f[order], kind="stable")]
        peaks = order[np.sort(np.unique(owner[order], return_index=True)[1])[:SHOWN]]
        parts = [np.arange(max(0, at - AROUND), min(len(f), at + AROUND + 1)) for at in peaks.tolist()]
        parts = [part[owner[part] == owner[at]] for part, at in zip(parts, peaks, strict=True)]
        return [[index(token[part]), np.ceil(LEVELS * f[part] / top).astype(int).tolist()] for part in parts]

    for number, (name, trained) in enumerate(saes.items()):
        sae = training.load(trained)
        columns = pools[0].latents(sae), pools[1].latents(sae)
        everything = range(sae.config.latents if name in words["explained"].split() else 0)
        told = _told(pools, columns, everything, tokenizer, by, section, seed)
        with torch.inference_mode():
            on_prompts = torch.cat([sae.encode(x) for x in read.chunks()]).numpy()
        up, down = _directions(sae, whole)
        for latent in range(sae.config.latents):
            f = on_prompts[:, latent]
            fired = np.concatenate([c.data[c.indptr[latent] : c.indptr[latent + 1]] for c in columns])
            if not (top := float(max(f.max(), fired.max(initial=0)))):
                continue  # fires nowhere
            firing = np.unique(owner[f > 0])
            latents.append(
                {"sae": number, "latent": latent, "max": round(top, 4), "frequency": round(len(fired) / tokens, 6)}
                | {"explanation": "", "score": None}
                | {key: value for key, value in told.get(latent, {}).items() if value is not None}
                | {
                    "fires": [
                        round(float((y[firing] == label).sum() / max(1, (y == label).sum())), 4) for label in (1, 0)
                    ]
                }
                | {"histogram": np.histogram(fired, BINS, (0, top))[0].tolist()}
                | {
                    "up": index(up[latent]),
                    "down": index(down[latent]),
                    "contexts": [contexts(f, label) for label in (1, 0)],
                }
            )
    counts = {"tokens": tokens, "harmful": int(y.sum()), "harmless": int((1 - y).sum())}
    told_of = [{"id": name, "name": words[name], **counts} for name in saes]
    vocabulary = token_texts(tokenizer, known)
    found = {
        "title": words["title"],
        "note": words["note"],
        "saes": told_of,
        "vocabulary": vocabulary,
        "latents": latents,
    }
    (out / "latents.json").write_text(json.dumps(found), encoding="utf-8")
