"""Probes, and the one step that fits them: on train, choosing on validation, scoring every prompt.

A *run* is one draw of the split into train and validation together with one SAE seed. No choice looks at OOD prompts.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from lib.probes.changes import Change
from lib.probes.views import Data, Matrix, View
from lib.stats import column_aurocs
from lib.store import Artifact, apart
from lib.store.artifacts import plain
from lib.texts import examples
from lib.texts.examples import Labels, TooFew

TIE = 1e-6  # validation AUROCs closer than this are equal; the simpler choice wins

Fitted = tuple[dict[str, np.ndarray], dict[str, Any]]  # a run's scores [n] by setting, and what it chose
Columns = Iterator[tuple[int, np.ndarray, np.ndarray]]  # k, a matrix [n, k], which of the columns these are (or none)


@dataclass(frozen=True)
class Probe:
    """How scores come from a matrix and labels. A new probe is a class with this method."""

    def fit(self, x: Matrix, labels: Labels, run: int) -> Fitted:
        """({setting: scores [n]}, {"best": setting, ...}) of a view's ``x`` [n, features]; fit on the train prompts with the
        labels ``taught``, choices on validation with the true ones. "best" is "" where there is one setting only.
        TooFew if there is too little to fit or to choose with."""
        raise NotImplementedError


@dataclass(frozen=True)
class Logistic(Probe):
    """Logistic regression on standardised features, C the smallest of those ``penalties`` with the best validation AUROC."""

    penalties: tuple[float, ...]

    def fit(self, x: Matrix, labels: Labels, run: int) -> Fitted:
        train, val = np.flatnonzero(labels.where("train")), labels.where("val")
        scaler = StandardScaler(with_mean=not sparse.issparse(x)).fit(x[train])
        z, best = scaler.transform(x), (-1.0, 0.0, np.zeros(0))
        probe = LogisticRegression(max_iter=1000, warm_start=True)
        for c in sorted(self.penalties):
            score = probe.set_params(C=c).fit(z[train], labels.taught[train]).decision_function(z)
            value = float(roc_auc_score(labels.y[val], score[val]))
            if value > best[0] + TIE:
                best = value, c, score
        return {"": best[2]}, {"val": best[0], "C": best[1]}


class DifferenceOfMeans(Probe):
    """Projection on the difference between the class means of train prompts."""

    def fit(self, x: Matrix, labels: Labels, run: int) -> Fitted:
        train, taught = labels.where("train"), labels.taught
        return {"": x @ (x[train & (taught == 1)].mean(0) - x[train & (taught == 0)].mean(0))}, {}


class SingleLatent(Probe):
    """The one latent with the best AUROC on train, its sign included."""

    def fit(self, x: Matrix, labels: Labels, run: int) -> Fitted:
        train = labels.where("train")
        values = column_aurocs(_living(x[train]), labels.taught[train])
        latent = int(np.argmax(np.abs(values - 0.5)))
        sign = 1 if values[latent] >= 0.5 else -1
        return {"": sign * x[:, latent]}, {"latent": latent, "sign": sign}


@dataclass(frozen=True)
class Rule:
    """How k columns come out of a matrix, from train prompts only."""

    penalties: ClassVar[tuple[float, ...]] = ()  # C of the fits, if not the probe's

    def columns(self, x: np.ndarray, labels: Labels, ks: Sequence[int], run: int) -> Columns:
        """For every k of ``ks`` that ``x`` [n, M] can give."""
        train = labels.where("train")
        order = self.order(x[train], labels.taught[train], max(ks), run)
        yield from ((k, x[:, order[:k]], order[:k]) for k in ks if k <= len(order))

    def order(self, x: np.ndarray, y: np.ndarray, count: int, run: int) -> np.ndarray:
        """Columns of train prompts ``x`` [n, M] with labels ``y`` [n], the first to take first, at least ``count`` if it can."""
        raise NotImplementedError


@dataclass(frozen=True)
class KSparse(Probe):
    """Logistic regressions on the k columns that ``rule`` makes of a matrix, k the smallest of those that do best on
    validation; a k that the matrix cannot give is left out."""

    ks: tuple[int, ...]
    penalties: tuple[float, ...]
    rule: Rule

    def fit(self, x: Matrix, labels: Labels, run: int) -> Fitted:
        _living(x[labels.where("train")])
        probe, found = Logistic(self.rule.penalties or self.penalties), {}
        best: dict[str, Any] = {"best": "", "val": -1.0}
        for k, columns, which in self.rule.columns(x, labels, sorted(self.ks), run):
            scores, choice = probe.fit(columns, labels, run)
            found[str(k)] = scores[""]
            if choice["val"] > best["val"] + TIE:
                best |= {"best": str(k), "val": choice["val"]}
            best |= {"latents": which[:20]} if len(which) else {}
        if not found:
            raise TooFew(f"fewer columns to choose from than the smallest k, {min(self.ks)}")
        return found, best


def _living(x: np.ndarray) -> np.ndarray:
    """Itself, train prompts [n, M], if a column of it varies."""
    if not np.ptp(x, axis=0).any():
        raise TooFew("no living latents: none varies between the train prompts")
    return x


class ByMeanDifference(Rule):
    """The columns whose class means differ most."""

    def order(self, x: np.ndarray, y: np.ndarray, count: int, run: int) -> np.ndarray:
        return np.argsort(-np.abs(x[y == 1].mean(0) - x[y == 0].mean(0)), kind="stable")


class ByL1Path(Rule):
    """The order in which columns of unit variance enter an L1-regularised logistic regression as C grows; of those that
    enter together, the largest weight first. If the path ends before ``count``, the others follow by mean difference."""

    penalties = (1e4,)  # the refit is not regularised: larger ones change nothing but the time

    def order(self, x: np.ndarray, y: np.ndarray, count: int, run: int) -> np.ndarray:
        deviation, order = x.std(0), list[int]()
        used = np.flatnonzero(deviation > 0)
        z = sparse.csr_matrix(x[:, used] / deviation[used])
        for c in np.geomspace(1e-4, 1.0, 25):
            probe = LogisticRegression(C=c, l1_ratio=1.0, solver="liblinear", max_iter=200, random_state=0).fit(z, y)
            weight = np.abs(probe.coef_[0])
            seen = set(order)
            order += [i for i in np.argsort(-weight, kind="stable") if weight[i] > 0 and i not in seen]
            if len(order) >= count:
                break
        first = used[order]
        others = ByMeanDifference().order(x / np.where(deviation > 0, deviation, 1), y, count, run)
        return np.concatenate([first, others[~np.isin(others, first)]])


class AtRandom(Rule):
    """Columns that fire on at least 1 % of train prompts, at random."""

    def order(self, x: np.ndarray, y: np.ndarray, count: int, run: int) -> np.ndarray:
        return np.random.default_rng(run).permutation(np.flatnonzero((x > 0).mean(0) >= 0.01))


class PrincipalComponents(Rule):
    """The first k principal components of train prompts."""

    def columns(self, x: np.ndarray, labels: Labels, ks: Sequence[int], run: int) -> Columns:
        train = x[labels.where("train")]
        for k in (k for k in ks if k <= min(train.shape)):
            yield k, PCA(k, svd_solver="full").fit(train).transform(x), np.arange(0)


class RandomDirections(Rule):
    """Projections on k random directions."""

    def columns(self, x: np.ndarray, labels: Labels, ks: Sequence[int], run: int) -> Columns:
        for k in ks:
            directions = np.random.default_rng(run).normal(size=(x.shape[1], k)).astype(np.float32)
            yield k, x @ directions, np.arange(0)


@apart
def fit(
    out: Path, prompts: Artifact, harvest: Artifact, layer: int, probe: Probe, views: tuple[View, ...], change: Change
) -> None:
    """Step: run r fits ``probe`` on the r-th of ``views`` and the r-th draw of the split, after ``change``.

    ``scores.safetensors`` holds a vector [n] float32 for each run and setting ("0/20": run 0, k = 20), ``choices.json`` what
    each run chose; where there is too little to fit in one of them, the reason, and there are no scores.
    """
    data, found = Data(prompts, harvest, layer), dict[str, np.ndarray]()
    chosen: Any = []
    labels = Labels.of(examples.read(prompts))
    runs = [labels.drawn(run) for run in range(len(views))]
    try:
        with threadpool_limits(1):  # as fast at these sizes, and the same bits on any number of cores
            for run, view in enumerate(views):
                mine = change.apply(runs[run], data.texts, run)
                scored, choice = probe.fit(view.matrix(data, mine), mine, run)
                found |= {f"{run}/{name}": np.ascontiguousarray(s, dtype=np.float32) for name, s in scored.items()}
                train = mine.where("train")
                taught = {"n": train.sum(), "harmful": mine.taught[train].sum()}
                chosen.append({"best": "", "settings": list(scored), **taught, **choice})
    except TooFew as reason:
        found, chosen = {}, str(reason)
    save_file(found, out / "scores.safetensors")
    (out / "choices.json").write_text(json.dumps(plain(chosen)), encoding="utf-8")


def choices(fitted: Artifact) -> list[dict[str, Any]]:
    """What each run chose: {best: name of the setting, settings, n and harmful: train prompts, val: its AUROC, ...}; TooFew,
    with the reason, where the probe could not be fit."""
    found: list[dict[str, Any]] | str = json.loads((fitted.path / "choices.json").read_text(encoding="utf-8"))
    if isinstance(found, str):
        raise TooFew(found)
    return found


def scores(fitted: Artifact, setting: str | None = None) -> list[np.ndarray]:
    """[n] float64 scores of each run; ``setting`` None is each run's own choice on validation, or the only one. TooFew if
    the probe could not be fit, or not with this setting in every run."""
    chosen, found = choices(fitted), load_file(fitted.path / "scores.safetensors")
    names = [f"{run}/{choice['best'] if setting is None else setting}" for run, choice in enumerate(chosen)]
    if missing := [name for name in names if name not in found]:
        raise TooFew(f"no fit of run/setting {', '.join(missing)}")
    return [found[name].astype(np.float64) for name in names]
