"""The probing protocol: fit on train, choose on validation, read OOD once.

Every AUROC comes with a 95 % interval from a bootstrap over clusters of base prompts, since a prompt and its jailbroken
copies are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from lib import activations, artifacts, prompts, surface
from lib.sae import training

SPLITS = ("train", "val", "ood")


# ------------------------------------------------------------------------------------------------------- intervals


def bootstrap_aurocs(y: np.ndarray, score: np.ndarray, group: np.ndarray, times: int, seed: int) -> np.ndarray:
    """[times] AUROCs of samples of whole groups, drawn with replacement; samples with one class only are left out."""
    names, which = np.unique(group, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=times)
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    weights = counts[:, which[order]].astype(np.float64)
    positive = np.add.reduceat(weights * y[order], starts, axis=1)
    negative = np.add.reduceat(weights * (1 - y[order]), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + negative / 2)).sum(1)
    pairs = positive.sum(1) * negative.sum(1)
    return wins[pairs > 0] / pairs[pairs > 0]


def auroc(y: np.ndarray, score: np.ndarray, group: np.ndarray, times: int, seed: int) -> dict[str, Any]:
    """{auroc, interval, n, harmful}; raises ValueError unless both classes are there."""
    if len(np.unique(y)) < 2:
        raise ValueError("an AUROC needs both classes: this slice has one")
    spread = np.percentile(bootstrap_aurocs(y, score, group, times, seed), [2.5, 97.5])
    return {"auroc": float(roc_auc_score(y, score)), "interval": spread, "n": len(y), "harmful": int(y.sum())}


# ------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Labels:
    """Columns of a prompt set, one entry a prompt."""

    y: np.ndarray  # [n] int, 1 harmful
    split: np.ndarray  # [n] str
    slice: np.ndarray  # [n] str
    group: np.ndarray  # [n] int
    overall: np.ndarray  # [n] bool

    @classmethod
    def of(cls, examples: Sequence[prompts.Example]) -> Labels:
        return cls(
            *(
                np.array([getattr(e, name) for e in examples])
                for name in ("label", "split", "slice", "group", "overall")
            )
        )

    def where(self, split: str) -> np.ndarray:
        """[n] bool: the examples that the figures of ``split`` are taken over."""
        return (self.split == split) & self.overall


# ---------------------------------------------------------------------------------------------------------- probes


def fit(x: np.ndarray, labels: Labels, penalties: Sequence[float]) -> tuple[Pipeline, float]:
    """Logistic regression on standardised features, C the one of ``penalties`` with the best validation AUROC.

    Of equal ones the smallest C wins. Returns the fitted probe and its C.
    """
    train, val = labels.where("train"), labels.where("val")
    best: tuple[float, Pipeline, float] | None = None
    for c in sorted(penalties):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
        probe.fit(x[train], labels.y[train])
        value = roc_auc_score(labels.y[val], probe.decision_function(x[val]))
        if best is None or value > best[0] + 1e-6:
            best = (value, probe, c)
    assert best is not None, "no penalties to choose from"
    return best[1], best[2]


def table(labels: Labels, score: np.ndarray, times: int, seed: int) -> dict[str, Any]:
    """{train, val, ood: AUROC entries; slices: {name: AUROC entry}} of a probe's scores [n].

    A harmful OOD slice is set against the plain chat prompts of the OOD set, a harmless one against plain AdvBench, and
    the benign twins against the harmful questions. ``n`` counts both sides.
    """
    out: dict[str, Any] = {}
    for split in SPLITS:
        here = labels.where(split)
        out[split] = auroc(labels.y[here], score[here], labels.group[here], times, seed)
    ood, slices = labels.split == "ood", {}
    for name in sorted(set(labels.slice[ood])):
        here = ood & (labels.slice == name)
        reference = "chat" if labels.y[here].all() else "AdvBench"
        if name == "benign twins":
            reference = "question-form harmful"  # which holds their harmful halves
        both = here | (ood & (labels.slice == reference))
        slices[name] = auroc(labels.y[both], score[both], labels.group[both], times, seed)
        slices[name]["against"] = reference
    return out | {"slices": slices}


@artifacts.result
def dense(
    prompt_set: artifacts.Artifact,
    harvested: artifacts.Artifact,
    layer: int,
    position: int,
    penalties: tuple[float, ...],
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Step: the dense linear probe on the residual stream, as :func:`table` with its C."""
    labels = Labels.of(prompts.read(prompt_set))
    x = activations.summary(harvested, layer, position).numpy()
    probe, c = fit(x, labels, penalties)
    return table(labels, probe.decision_function(x), bootstrap, seed) | {"C": c}


@artifacts.result
def style(prompt_set: artifacts.Artifact, penalties: tuple[float, ...], bootstrap: int, seed: int) -> dict[str, Any]:
    """Step: the same protocol on the surface features of the prompt's text."""
    examples = prompts.read(prompt_set)
    labels = Labels.of(examples)
    x = surface.matrix([example.text for example in examples])
    probe, c = fit(x, labels, penalties)
    return table(labels, probe.decision_function(x), bootstrap, seed) | {"C": c}


@artifacts.result
def sweep(
    prompt_set: artifacts.Artifact, harvested: artifacts.Artifact, layers: tuple[int, ...], c: float
) -> list[dict[str, Any]]:
    """Step: train and validation AUROC of the dense probe at every layer and position: rows {layer, position, train, val}.

    OOD data are not looked at.
    """
    labels = Labels.of(prompts.read(prompt_set))
    rows = []
    for layer in layers:
        for position in activations.places(harvested, layer):
            x = activations.summary(harvested, layer, position).numpy()
            score = fit(x, labels, [c])[0].decision_function(x)
            values = {s: roc_auc_score(labels.y[labels.where(s)], score[labels.where(s)]) for s in ("train", "val")}
            rows.append({"layer": layer, "position": str(position), **values})
    return rows


def column_aurocs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[M] AUROC of every column of ``x`` [n, M] as a score for ``y`` [n], ties counted half."""
    ranks = rankdata(x, axis=0)
    m = int(y.sum())
    return (ranks[y == 1].sum(0) - m * (m + 1) / 2) / (m * (len(y) - m))


def by_mean_difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[M] columns of ``x`` in falling order of the absolute difference between class means."""
    return np.argsort(-np.abs(x[y == 1].mean(0) - x[y == 0].mean(0)), kind="stable")


@artifacts.result
def k_sparse(
    prompt_set: artifacts.Artifact,
    harvested: artifacts.Artifact,
    trained: artifacts.Artifact,
    layer: int,
    position: int,
    ks: tuple[int, ...],
    penalties: tuple[float, ...],
    bootstrap: int,
    seed: int,
    rule: Literal["mean difference"] = "mean difference",
) -> dict[str, Any]:
    """Step: probes on the k latents that a rule picks on training data, and the best single latent on training data.

    Returns {rows: [{k, C, latents, train, val, ood}], best: the :func:`table` of the k with the best validation AUROC (of
    equal ones the smallest), single: {latent, sign, train, val, ood}}.
    """
    labels = Labels.of(prompts.read(prompt_set))
    sae = training.load(trained)
    with torch.inference_mode():
        x = torch.cat(
            [sae.encode(part) for part in activations.summary(harvested, layer, position).split(4096)]
        ).numpy()
    train = labels.where("train")
    order = by_mean_difference(x[train], labels.y[train])
    rows: list[dict[str, Any]] = []
    best: dict[str, Any] = {}
    for k in sorted(k for k in ks if k <= x.shape[1]):
        chosen = x[:, order[:k]]
        probe, c = fit(chosen, labels, penalties)
        found = table(labels, probe.decision_function(chosen), bootstrap, seed)
        rows.append({"k": k, "C": c, "latents": order[:k].tolist()[:20], **{s: found[s] for s in SPLITS}})
        if not best or found["val"]["auroc"] > best["val"]["auroc"] + 1e-6:
            best = {"k": k, **found}
    values = column_aurocs(x[train], labels.y[train])
    latent = int(np.argmax(np.abs(values - 0.5)))
    sign = 1 if values[latent] >= 0.5 else -1
    found = table(labels, sign * x[:, latent].astype(np.float64), bootstrap, seed)
    return {"rows": rows, "best": best, "single": {"latent": latent, "sign": sign, **{s: found[s] for s in SPLITS}}}
