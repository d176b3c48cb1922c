"""Probes, and the one step that fits them: on train, choosing by transforms of train left out, scoring every prompt.

A *setting* is what a table asks for by name (k = 20, or "" where there is one), an *option* what has to be chosen within it (how
much is regularised). No probe chooses by itself, and no choice looks at OOD prompts.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import sparse
from sklearn._loss import HalfBinomialLoss
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.linear_model._glm._newton_solver import NewtonCholeskySolver
from sklearn.linear_model._linear_loss import LinearModelLoss
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from lib.probes.changes import Change
from lib.probes.views import Data, Matrix, View
from lib.stats import column_aurocs
from lib.store import Artifact, apart
from lib.store.artifacts import plain
from lib.texts import examples
from lib.texts.examples import Labels, TooFew

TIE = 1e-6  # AUROCs closer than this are equal; the simpler choice wins


class Model(NamedTuple):
    """What a probe learnt, by what it says."""

    scores: np.ndarray  # [n], of every prompt
    about: dict[str, Any] | None = None  # what is told of it: its columns
    direction: np.ndarray | None = None  # [d + 1] weights and offset of a linear probe, in the units of the matrix


Fits = dict[str, dict[str, Model]]  # by setting, then by option; of each the simplest first
Columns = Iterator[tuple[int, np.ndarray, np.ndarray]]  # k, a matrix [n, k], which of the columns these are (or none)


@dataclass(frozen=True)
class Probe:
    """How scores come from a matrix and labels. A new probe is a class with ``fit``."""

    once: ClassVar[bool] = False  # chooses on the first draw of the split only, since fitting is expensive

    def fit(self, x: Matrix, labels: Labels, run: int) -> Fits:
        """{setting: {option: model}} of a view's ``x`` [n, features], the simplest first, each fit on the train prompts with the labels ``taught``; ``run``
        seeds what is drawn. Options "C=0.1" and "C=1" are a grid: the same up to the last "=". TooFew if there is too little to fit."""
        raise NotImplementedError

    def at(self, options: dict[str, str]) -> Self:
        """The probe with these options alone {setting: option}, or itself where the others cost little."""
        return self


@dataclass(frozen=True)
class Logistic(Probe):
    """Logistic regressions on standardised features, one for each C of ``penalties``."""

    penalties: tuple[float, ...]
    solver: ClassVar[str] = "lbfgs"

    def estimators(self, n: int) -> dict[str, Any]:
        """By option, for ``n`` train prompts."""
        return {f"C={c:g}": LogisticRegression(C=c, max_iter=1000, solver=self.solver) for c in sorted(self.penalties)}

    def fit(self, x: Matrix, labels: Labels, run: int) -> Fits:
        train = np.flatnonzero(labels.where("train"))
        scaler = StandardScaler(with_mean=not sparse.issparse(x)).fit(x[train])
        z, found = scaler.transform(x), dict[str, Model]()
        known, sign = z[train], 2 * labels.taught[train] - 1
        for option, estimator in self.estimators(len(train)).items():
            estimator.fit(known, sign)
            weight, offset = np.ravel(estimator.coef_), np.ravel(estimator.intercept_)
            unscaled = weight / scaler.scale_
            moved = offset - (unscaled @ scaler.mean_ if scaler.with_mean else 0)
            found[option] = Model(z @ weight + offset, None, np.append(unscaled, moved).astype(np.float32))
        return {"": found}


class Few(Logistic):
    """These on few columns, by Newton's method: as fast there, and at its end also where C is large."""

    @dataclass
    class Newton:
        """LogisticRegression(C=c, solver="newton-cholesky"), to the bit, without what stands around its solver, two thirds of its time."""

        c: float

        def fit(self, z: np.ndarray, sign: np.ndarray) -> None:
            z = np.asarray_chkfinite(z, np.result_type(z, np.float32))
            y, how = (sign > 0).astype(z.dtype), {"coef": np.zeros(z.shape[1] + 1, z.dtype), "max_iter": 1000}
            how |= {"linear_loss": LinearModelLoss(HalfBinomialLoss(), True), "l2_reg_strength": 1 / (self.c * len(z))}
            *self.coef_, self.intercept_ = NewtonCholeskySolver(**how).solve(z, y, None).astype(z.dtype)

    def estimators(self, n: int) -> dict[str, Any]:
        return {f"C={c:g}": self.Newton(c) for c in sorted(self.penalties)}


@dataclass(frozen=True)
class Linear(Logistic):
    """These, and ridge regressions of the labels as -1 and 1, one for each of ``ridges``.

    A ridge r shrinks the weight along a direction whose variance is v, where each standardised feature has 1, to v / (v + r) of what
    least squares gives: scikit-learn's alpha is r times the number of train prompts.
    """

    ridges: tuple[float, ...] = ()

    def estimators(self, n: int) -> dict[str, Any]:
        return super().estimators(n) | {f"ridge={r:g}": Ridge(alpha=r * n) for r in sorted(self.ridges, reverse=True)}


class DifferenceOfMeans(Probe):
    """Projection on the difference between the class means of train prompts."""

    def fit(self, x: Matrix, labels: Labels, run: int) -> Fits:
        train, taught = labels.where("train"), labels.taught
        return {"": {"": Model(x @ (x[train & (taught == 1)].mean(0) - x[train & (taught == 0)].mean(0)))}}


class SingleLatent(Probe):
    """The one latent with the best AUROC on train, its sign included."""

    def fit(self, x: Matrix, labels: Labels, run: int) -> Fits:
        train = labels.where("train")
        seen = _living(x[train])
        living = np.flatnonzero(np.ptp(seen, axis=0))
        values = column_aurocs(seen[:, living], labels.taught[train])
        best = int(np.argmax(np.abs(values - 0.5)))
        latent, sign = int(living[best]), 1 if values[best] >= 0.5 else -1
        return {"": {"": Model(sign * x[:, latent], {"latent": latent, "sign": sign})}}


@dataclass(frozen=True)
class Rule:
    """How k columns come out of a matrix, from train prompts only."""

    name: ClassVar[str] = ""  # begins the names of the options
    penalties: ClassVar[tuple[float, ...]] = ()  # C of the fits, if not the probe's
    slow: ClassVar[bool] = False

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
    """Logistic regressions on k columns of a matrix; settings are ``ks``, options which of ``rules`` picks the columns, and C. A k that
    the matrix cannot give is left out."""

    ks: tuple[int, ...]
    penalties: tuple[float, ...]
    rules: tuple[Rule, ...]

    @property
    def once(self) -> bool:  # type: ignore[override]
        return any(rule.slow for rule in self.rules)

    def fit(self, x: Matrix, labels: Labels, run: int) -> Fits:
        _living(x[labels.where("train")])
        found: Fits = {}
        for rule in self.rules:
            probe = Few(rule.penalties or self.penalties)
            for k, columns, which in rule.columns(x, labels, sorted(self.ks), run):
                options = found.setdefault(str(k), {})
                for option, model in probe.fit(columns, labels, run)[""].items():
                    about = {"latents": which[:20]} if len(which) else None
                    options[f"{rule.name}, {option}".removeprefix(", ")] = Model(model.scores, about)
        if not found:
            raise TooFew(f"fewer columns to choose from than the smallest k, {min(self.ks)}")
        return found


def _living(x: np.ndarray) -> np.ndarray:
    """Itself, train prompts [n, M], if a column of it varies."""
    if not (x != x[:1]).any():
        raise TooFew("no living latents: none varies between the train prompts")
    return x


@dataclass(frozen=True)
class ByMeanDifference(Rule):
    """The columns whose class means differ most, in the columns' own units or in standard deviations."""

    standardised: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return "standardised" if self.standardised else "raw"

    def order(self, x: np.ndarray, y: np.ndarray, count: int, run: int) -> np.ndarray:
        difference = np.abs(x[y == 1].mean(0) - x[y == 0].mean(0))
        if self.standardised:
            deviation = x.std(0)
            difference /= np.where(deviation > 0, deviation, 1)
        return np.argsort(-difference, kind="stable")


class ByL1Path(Rule):
    """The order in which columns of unit variance enter an L1-regularised logistic regression as C grows; of those that
    enter together, the largest weight first. If the path ends before ``count``, the others follow by mean difference."""

    name, slow = "L1 path", True
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
        others = ByMeanDifference(standardised=True).order(x, y, count, run)
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


def _chosen(probe: Probe, see: Callable[[Labels], Matrix], labels: Labels, run: int) -> tuple[Fits, dict[str, Any]]:
    """(models fit on all of train, {setting: {option, score, margin, edge}}), the options by the mean AUROC over folds."""
    values = list[dict[tuple[str, str], float]]()
    for left, scored in labels.folds():
        made = probe.fit(see(left), left, run)
        every = {(s, o): model.scores[scored] for s, options in made.items() for o, model in options.items()}
        aurocs = column_aurocs(np.stack([*every.values()], axis=1), labels.y[scored])
        values.append(dict(zip(every, aurocs.tolist(), strict=True)))
    means = {pair: np.mean([v[pair] for v in values]) for pair in values[0] if all(pair in v for v in values)}
    found = dict[str, Any]()
    for setting in dict.fromkeys(setting for setting, _ in means):
        options = {option: float(mean) for (s, option), mean in means.items() if s == setting}
        option = first_best(options)
        others = [mean for other, mean in options.items() if other != option]
        grid = [other for other in options if other.rpartition("=")[0] == option.rpartition("=")[0]]
        found[setting] = {
            "option": option,
            "score": options[option],
            "margin": options[option] - max(others) if others else None,
            "edge": len(grid) > 1 and option in (grid[0], grid[-1]),
        }
    if left is not labels:  # else that was the fit on all of train
        made = probe.at({s: choice["option"] for s, choice in found.items()}).fit(see(labels), labels, run)
    return made, found


def first_best(scores: dict[str, float]) -> str:
    """The first within :data:`TIE` of the best."""
    return next(name for name, score in scores.items() if score >= max(scores.values()) - TIE)


@apart
def fit(
    out: Path,
    prompts: Artifact,
    harvest: Artifact,
    layer: int,
    probe: Probe,
    views: tuple[View, ...],
    draws: int,
    change: Change,
) -> None:
    """Step: fits ``probe`` on each of ``views``, one for each SAE seed, crossed with ``draws`` of the split, after ``change``.

    In each, for every setting, the option with the best mean AUROC over :meth:`Labels.folds` is chosen, then the setting, and fit
    on all of train. ``scores.safetensors`` holds [n] float32 of each ("0/1/20": seed 0, draw 1, k = 20), ``directions.safetensors``
    [d + 1] float32 of linear probes ("0/1"), ``choices.json`` what :func:`choices` reads; or the reason where there is too
    little to fit in one of them, and no scores.
    """
    data, found, directions = Data(prompts, harvest, layer), dict[str, np.ndarray](), dict[str, np.ndarray]()
    chosen: Any = []
    labels = Labels.of(examples.read(prompts))
    try:
        with threadpool_limits(1):  # as fast at these sizes, and the same bits on any number of cores
            runs = [change.apply(labels.drawn(draw), data.texts, draw) for draw in range(draws)]
            for seed, view in enumerate(views):
                chosen.append([])
                see: Callable[[Labels], Matrix] = functools.partial(view.matrix, data)
                see = see if view.learns else functools.partial(_given, see(labels))
                options = dict[str, Any]()
                for draw, mine in enumerate(runs):
                    run = 1000 * seed + draw
                    if probe.once and draw:
                        made = probe.at({s: c["option"] for s, c in options.items()}).fit(see(mine), mine, run)
                    else:
                        made, options = _chosen(probe, see, mine, run)
                    kept = {s: made[s][c["option"]] for s, c in options.items() if c["option"] in made.get(s, {})}
                    chosen[-1].append(_told(mine, options, kept))
                    best = kept[chosen[-1][-1]["best"]].direction
                    found |= {f"{seed}/{draw}/{s}": model.scores.astype(np.float32) for s, model in kept.items()}
                    directions |= {} if best is None else {f"{seed}/{draw}": best}
    except TooFew as reason:
        found, directions, chosen = {}, {}, str(reason)
    save_file({name: np.ascontiguousarray(score) for name, score in found.items()}, out / "scores.safetensors")
    save_file(directions, out / "directions.safetensors")
    (out / "choices.json").write_text(json.dumps(plain(chosen)), encoding="utf-8")


def _given(x: Matrix, labels: Labels) -> Matrix:
    """The matrix of a view that learns nothing."""
    return x


def _told(labels: Labels, options: dict[str, Any], kept: dict[str, Model]) -> dict[str, Any]:
    """What a run chose, of the settings whose models are ``kept``."""
    if not kept:
        raise TooFew("no setting can be fit in every fold")
    train, val = labels.where("train"), labels.where("val")
    aurocs = column_aurocs(np.stack([model.scores[val] for model in kept.values()], axis=1), labels.y[val])
    told = zip(kept.items(), aurocs, strict=True)
    settings = {setting: options[setting] | {"val": auroc} | (model.about or {}) for (setting, model), auroc in told}
    counts = {"n": train.sum(), "harmful": labels.taught[train].sum(), "folds": len(labels.folds())}
    return {"best": first_best({s: options[s]["score"] for s in kept}), "settings": settings, **counts}


def choices(fitted: Artifact) -> list[list[dict[str, Any]]]:
    """[seeds][draws] what each run chose: {best: name of the setting; settings: {name: {option, score: its mean AUROC over folds,
    margin: over the next option, edge: whether it ends its grid, val: AUROC on validation, ...}}; n, harmful: train prompts; folds:
    how many}. TooFew, with the reason, where the probe could not be fit."""
    found: list[list[dict[str, Any]]] | str = json.loads((fitted.path / "choices.json").read_text(encoding="utf-8"))
    if isinstance(found, str):
        raise TooFew(found)
    return found


def picked(fitted: Artifact, setting: str | None = None) -> dict[str, Any]:
    """:func:`choices` in short, of a setting or of each run's own: {mean, min, max of the scores; settings, options: how often each
    was chosen; edge: share of runs at the end of a grid; n: train prompts by draw; first: what the first run chose}."""
    rows = choices(fitted)
    names = [run["best"] if setting is None else setting for row in rows for run in row]
    runs = [run["settings"][name] for name, run in zip(names, (run for row in rows for run in row), strict=True)]
    values = [run["score"] for run in runs]
    return {
        "mean": np.mean(values),
        "min": min(values),
        "max": max(values),
        "settings": dict(Counter(names).most_common()),
        "options": dict(Counter(run["option"] for run in runs).most_common()),
        "edge": np.mean([run["edge"] for run in runs]),
        "n": [run["n"] for run in rows[0]],
        "first": runs[0],
    }


def scores(fitted: Artifact, setting: str | None = None) -> np.ndarray:
    """[seeds, draws, n] float64; ``setting`` None is each run's own choice, or the only one. TooFew if the probe could not be
    fit, or not with this setting in every run."""
    chosen, found = choices(fitted), load_file(fitted.path / "scores.safetensors")
    names = [
        [f"{seed}/{draw}/{run['best'] if setting is None else setting}" for draw, run in enumerate(row)]
        for seed, row in enumerate(chosen)
    ]
    if missing := [name for row in names for name in row if name not in found]:
        raise TooFew(f"no fit of seed/draw/setting {', '.join(missing)}")
    return np.array([[found[name] for name in row] for row in names], dtype=np.float64)
