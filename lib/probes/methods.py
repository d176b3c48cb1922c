"""Steps that fit probes and keep their scores of every prompt, for tables and paired differences.

A step writes ``scores.safetensors``, one vector [n] float32 for each run and setting ("0/20": run 0, k = 20), and
``choices.json``, what each run chose. OOD prompts are scored like all others and looked at by no choice.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file, save_file

from lib import activations, prompts, store, surface
from lib.probes import attention, features, protocol
from lib.probes.features import Data, View
from lib.probes.protocol import Labels

Rule = Literal["mean difference", "L1 path"]
UNREGULARISED = 1e4  # C of the refit after the L1 path; larger ones change nothing but the time


def _write(out: Path, scores: dict[str, np.ndarray], choices: Any) -> None:
    save_file(
        {name: np.ascontiguousarray(s, dtype=np.float32) for name, s in scores.items()}, out / "scores.safetensors"
    )
    (out / "choices.json").write_text(json.dumps(store.plain(choices)), encoding="utf-8")


def scores(fitted: store.Artifact, setting: str | None = None) -> list[np.ndarray]:
    """[n] float64 scores of each run; ``setting`` None is each run's own choice on validation, or the only one."""
    found, chosen = load_file(fitted.path / "scores.safetensors"), choices(fitted)
    names = [f"{run}/{setting if setting is not None else choice['best']}" for run, choice in enumerate(chosen)]
    return [found[name].astype(np.float64) for name in names]


def choices(fitted: store.Artifact) -> list[dict[str, Any]]:
    """What each run chose: {best: name of the setting, val: its AUROC, ...}."""
    found: list[dict[str, Any]] = json.loads((fitted.path / "choices.json").read_text(encoding="utf-8"))
    return found


def settings(fitted: store.Artifact) -> list[str]:
    """Names of the settings that every run has scores of."""
    first, *others = (choice["settings"] for choice in choices(fitted))
    return [name for name in first if all(name in other for other in others)]


Found = tuple[dict[str, np.ndarray], dict[str, Any]]  # a run's scores by setting, and what it chose


def _every_run(
    out: Path,
    prompt_set: store.Artifact,
    harvested: store.Artifact,
    layer: int,
    views: Sequence[View],
    fit: Callable[[Data, View, Labels, int], Found],
) -> None:
    """Run r fits the r-th of ``views`` on the r-th draw of the split; write all scores and choices."""
    data, labels = Data(prompt_set, harvested, layer), Labels.of(prompts.read(prompt_set))
    found: dict[str, np.ndarray] = {}
    chosen = []
    for run, view in enumerate(views):
        scored, choice = fit(data, view, labels.drawn(run), run)
        found |= {f"{run}/{setting}": score for setting, score in scored.items()}
        chosen.append({"best": "", "settings": list(scored), **choice})
    _write(out, found, chosen)


@store.apart
def logistic(
    out: Path,
    prompt_set: store.Artifact,
    harvested: store.Artifact,
    layer: int,
    views: tuple[View, ...],
    penalties: tuple[float, ...],
) -> None:
    """Step: a logistic regression on a view in every run."""

    def fit(data: Data, view: View, labels: Labels, run: int) -> Found:
        fitted = protocol.fit(features.matrix(data, view, labels), labels, penalties)
        return {"": fitted.score}, {"val": fitted.val, "C": fitted.c}

    _every_run(out, prompt_set, harvested, layer, views, fit)


@store.apart
def difference_of_means(
    out: Path, prompt_set: store.Artifact, harvested: store.Artifact, layer: int, views: tuple[View, ...]
) -> None:
    """Step: projection on the difference between the class means of train prompts."""

    def fit(data: Data, view: View, labels: Labels, run: int) -> Found:
        x, train = np.asarray(features.matrix(data, view, labels)), labels.where("train")
        return {"": x @ (x[train & (labels.y == 1)].mean(0) - x[train & (labels.y == 0)].mean(0))}, {}

    _every_run(out, prompt_set, harvested, layer, views, fit)


@store.apart
def attention_probe(
    out: Path,
    prompt_set: store.Artifact,
    harvested: store.Artifact,
    layer: int,
    decays: tuple[float, ...],
    epochs: int,
    runs: int,
) -> None:
    """Step: one learned query attends over the tokens from the user's text on; its weight decay is chosen on validation."""
    tokens = attention.Tokens.of(harvested, layer, activations.summary_shape(harvested, layer)[0])

    def fit(data: Data, view: View, labels: Labels, run: int) -> Found:
        fitted = attention.fit(tokens, labels, decays, epochs, seed=run)
        return {"": fitted.score}, {"val": fitted.val, "decay": fitted.c}

    _every_run(out, prompt_set, harvested, layer, [{}] * runs, fit)


@store.apart
def single_latent(
    out: Path, prompt_set: store.Artifact, harvested: store.Artifact, layer: int, views: tuple[View, ...]
) -> None:
    """Step: the one latent with the best AUROC on train, its sign included."""

    def fit(data: Data, view: View, labels: Labels, run: int) -> Found:
        x, train = np.asarray(features.matrix(data, view, labels)), labels.where("train")
        values = protocol.column_aurocs(x[train], labels.y[train])
        latent = int(np.argmax(np.abs(values - 0.5)))
        sign = 1 if values[latent] >= 0.5 else -1
        return {"": sign * x[:, latent]}, {"latent": latent, "sign": sign}

    _every_run(out, prompt_set, harvested, layer, views, fit)


def _ranked(x: np.ndarray, y: np.ndarray, rule: Rule, count: int) -> np.ndarray:
    return protocol.by_mean_difference(x, y) if rule == "mean difference" else protocol.by_l1_path(x, y, count)


def k_sparse_scores(
    x: np.ndarray,
    labels: Labels,
    ks: Sequence[int],
    penalties: Sequence[float],
    rule: Rule = "mean difference",
    train: np.ndarray | None = None,
    y: np.ndarray | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """({k: scores}, choice): probes on the k latents that ``rule`` picks on train prompts, k chosen on validation.

    By mean difference, then a logistic regression with C chosen on validation; by L1 path, then one without
    regularisation. Of equal k the smallest wins.
    """
    train = labels.where("train") if train is None else train
    y = labels.y if y is None else y
    order = _ranked(x[train], y[train], rule, max(ks))
    by_k = {str(k): order[:k] for k in sorted(ks) if k <= len(order)}
    found, best = {}, ("", -1.0)
    for k, which in by_k.items():
        fitted = protocol.fit(
            x[:, which], labels, penalties if rule == "mean difference" else (UNREGULARISED,), train, y
        )
        found[k] = fitted.score
        if fitted.val > best[1] + protocol.TIE:
            best = (k, fitted.val)
    return found, {"best": best[0], "val": best[1], "latents": order[:20].tolist()}


@store.apart
def k_sparse(
    out: Path,
    prompt_set: store.Artifact,
    harvested: store.Artifact,
    layer: int,
    views: tuple[View, ...],
    ks: tuple[int, ...],
    penalties: tuple[float, ...],
    rule: Rule = "mean difference",
) -> None:
    """Step: :func:`k_sparse_scores` of a view in every run."""

    def fit(data: Data, view: View, labels: Labels, run: int) -> Found:
        return k_sparse_scores(np.asarray(features.matrix(data, view, labels)), labels, ks, penalties, rule)

    _every_run(out, prompt_set, harvested, layer, views, fit)


@store.apart
def by_size(
    out: Path,
    prompt_set: store.Artifact,
    harvested: store.Artifact,
    layer: int,
    views: tuple[View, ...],
    ks: tuple[int, ...],
    penalties: tuple[float, ...],
) -> None:
    """Step: a control's curve over k: the views with ``k`` and ``draw`` filled in, k chosen on validation; a k that a view
    cannot give is left out."""

    def fit(data: Data, view: View, labels: Labels, run: int) -> Found:
        found, best = {}, ("", -1.0)
        for k in sorted(ks):
            x = features.matrix(data, {**view, "k": k, "draw": run}, labels)
            if x.shape[1] < k:
                break
            fitted = protocol.fit(x, labels, penalties)
            found[str(k)] = fitted.score
            if fitted.val > best[1] + protocol.TIE:
                best = (str(k), fitted.val)
        return found, {"best": best[0], "val": best[1]}

    _every_run(out, prompt_set, harvested, layer, views, fit)


# -------------------------------------------------------------------------------------------------------- controls


def changed(
    labels: Labels, control: str, amount: float, run: int, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, Labels]:
    """(train [n] bool, labels to train on [n], labels to choose and report with) of a control.

    These change what is trained on and leave validation as it is: "shuffle", train labels dealt out anew (``amount`` only
    numbers the draw); "noise", a share ``amount`` of train clusters with their labels turned round; "size", ``amount``
    train clusters, in the proportion of the classes. These change train and validation alike: "wrapped", with the benign
    prompts inside train jailbreaks; "plain", without jailbroken copies and errands; "style" and "length", of those the
    prompts of one style (:func:`lib.surface.one_style`) or of matched length.

    Raises:
        ValueError: the control leaves too little to train on or to choose with.
    """
    rng = np.random.default_rng([run, round(1000 * amount)])
    train, y = labels.where("train"), labels.y.copy()
    groups = np.unique(labels.group[train])
    if control == "shuffle":
        y[train] = rng.permutation(y[train])
    elif control == "noise":
        here = train & np.isin(labels.group, rng.permutation(groups)[: round(amount * len(groups))])
        y[here] = 1 - y[here]
    elif control == "size":
        if amount > len(groups):
            raise ValueError(f"there are {len(groups)} train clusters, not {amount:g}")
        kept: list[np.ndarray] = []
        of_class = np.array([labels.y[train][labels.group[train] == g].max() for g in groups])
        for label in (0, 1):
            mine = rng.permutation(groups[of_class == label])
            kept.append(mine[: max(2, round(amount * len(mine) / len(groups)))])
        train = train & np.isin(labels.group, np.concatenate(kept))
    elif control in ("wrapped", "plain", "style", "length"):
        inside = labels.split != "ood"
        plain = inside & labels.overall & np.isin(labels.slice, ["HarmBench", "chat"])
        kept_inside = {
            "wrapped": lambda: inside,
            "plain": lambda: plain,
            "style": lambda: plain & surface.one_style(texts),
            "length": lambda: surface.one_length(texts, labels.y, plain, rng),
        }[control]()
        labels = dataclasses.replace(labels, overall=np.where(inside, kept_inside, labels.overall)).checked()
        train = labels.where("train")
    else:
        raise ValueError(f"unknown control {control!r}")
    return train, y, labels


@store.apart
def controlled(
    out: Path,
    prompt_set: store.Artifact,
    harvested: store.Artifact,
    layer: int,
    views: tuple[View, ...],
    control: str,
    amounts: tuple[float, ...],
    ks: tuple[int, ...],
    penalties: tuple[float, ...],
) -> None:
    """Step: a probe under a control (:func:`changed`), one setting per amount; with ``ks``, k-sparse by mean difference.

    At tiny sizes an amount can leave too little to train on; it is left out.
    """
    texts = [example.text for example in prompts.read(prompt_set)]

    def fit(data: Data, view: View, labels: Labels, run: int) -> Found:
        x, found, fits = features.matrix(data, view, labels), {}, []
        for amount in amounts:
            try:
                train, y, mine = changed(labels, control, amount, run, texts)
            except ValueError:
                continue
            if ks:
                scored, choice = k_sparse_scores(np.asarray(x), mine, ks, penalties, train=train, y=y)
                found[f"{amount:g}"], note = scored[choice["best"]], choice["best"]
            else:
                fitted = protocol.fit(x, mine, penalties, train, y)
                found[f"{amount:g}"], note = fitted.score, f"{fitted.c:g}"
            fits.append({"n": int(train.sum()), "harmful": int(y[train].sum()), "choice": note})
        return found, {"best": next(reversed(found), ""), "fits": dict(zip(found, fits, strict=True))}

    _every_run(out, prompt_set, harvested, layer, views, fit)
