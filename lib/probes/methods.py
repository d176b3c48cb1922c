"""Steps that fit probes and keep their scores of every prompt, for tables and paired differences.

A step writes ``scores.safetensors``, one vector [n] float32 for each run and setting ("0/20": run 0, k = 20), and
``choices.json``, what each run chose. OOD prompts are scored like all others and looked at by no choice.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from lib import artifacts, prompts, surface
from lib.probes import attention, features, protocol
from lib.probes.features import Data, View
from lib.probes.protocol import Labels

Rule = Literal["mean difference", "L1 path"]
UNREGULARISED = 1e4  # C of the refit after the L1 path; larger ones change nothing but the time


def _write(out: Path, scores: dict[str, np.ndarray], choices: Any) -> None:
    save_file(
        {name: np.ascontiguousarray(s, dtype=np.float32) for name, s in scores.items()}, out / "scores.safetensors"
    )
    (out / "choices.json").write_text(json.dumps(artifacts.plain(choices)), encoding="utf-8")


def scores(fitted: artifacts.Artifact, setting: str | None = None) -> list[np.ndarray]:
    """[n] float64 scores of each run; ``setting`` None is each run's own choice on validation, or the only one."""
    found, chosen = load_file(fitted.path / "scores.safetensors"), choices(fitted)
    names = [f"{run}/{setting if setting is not None else choice['best']}" for run, choice in enumerate(chosen)]
    return [found[name].astype(np.float64) for name in names]


def choices(fitted: artifacts.Artifact) -> list[dict[str, Any]]:
    """What each run chose: {best: name of the setting, val: its AUROC, ...}."""
    found: list[dict[str, Any]] = json.loads((fitted.path / "choices.json").read_text(encoding="utf-8"))
    return found


def settings(fitted: artifacts.Artifact) -> list[str]:
    """Names of the settings that every run has scores of."""
    first, *others = (choice["settings"] for choice in choices(fitted))
    return [name for name in first if all(name in other for other in others)]


def _data(prompt_set: artifacts.Artifact, harvested: artifacts.Artifact, layer: int) -> tuple[Data, Labels]:
    return Data(prompt_set, harvested, layer), Labels.of(prompts.read(prompt_set))


@artifacts.cached
def logistic(
    out: Path,
    prompt_set: artifacts.Artifact,
    harvested: artifacts.Artifact,
    layer: int,
    views: tuple[View, ...],
    penalties: tuple[float, ...],
) -> None:
    """Step: a logistic regression on a view; run r uses the r-th of ``views`` and the r-th draw of the split."""
    data, labels = _data(prompt_set, harvested, layer)
    found, chosen = {}, []
    for run, view in enumerate(views):
        mine = labels.drawn(run)
        fitted = protocol.fit(features.matrix(data, view, mine), mine, penalties)
        found[f"{run}/"] = fitted.score
        chosen.append({"best": "", "settings": [""], "val": fitted.val, "C": fitted.c})
    _write(out, found, chosen)


@artifacts.cached
def difference_of_means(
    out: Path, prompt_set: artifacts.Artifact, harvested: artifacts.Artifact, layer: int, view: View, runs: int
) -> None:
    """Step: projection on the difference between the class means of train prompts."""
    data, labels = _data(prompt_set, harvested, layer)
    found: dict[str, np.ndarray] = {}
    x = np.asarray(features.matrix(data, view, labels))
    for run in range(runs):
        train = (mine := labels.drawn(run)).where("train")
        found[f"{run}/"] = x @ (x[train & (mine.y == 1)].mean(0) - x[train & (mine.y == 0)].mean(0))
    _write(out, found, [{"best": "", "settings": [""]}] * runs)


@artifacts.cached
def attention_probe(
    out: Path,
    prompt_set: artifacts.Artifact,
    harvested: artifacts.Artifact,
    layer: int,
    decays: tuple[float, ...],
    epochs: int,
    runs: int,
) -> None:
    """Step: one learned query attends over the tokens from the user's text on; its weight decay is chosen on validation."""
    labels = Labels.of(prompts.read(prompt_set))
    found: dict[str, np.ndarray] = {}
    chosen = []
    tokens = attention.Tokens.of(harvested, layer, len(labels.y))
    for run in range(runs):
        fitted = attention.fit(tokens, labels.drawn(run), decays, epochs, seed=run)
        found[f"{run}/"] = fitted.score
        chosen.append({"best": "", "settings": [""], "val": fitted.val, "decay": fitted.c})
    _write(out, found, chosen)


@artifacts.cached
def single_latent(
    out: Path, prompt_set: artifacts.Artifact, harvested: artifacts.Artifact, layer: int, views: tuple[View, ...]
) -> None:
    """Step: the one latent with the best AUROC on train, its sign included."""
    data, labels = _data(prompt_set, harvested, layer)
    found, chosen = {}, []
    for run, view in enumerate(views):
        mine = labels.drawn(run)
        x, train = np.asarray(features.matrix(data, view, mine)), mine.where("train")
        values = protocol.column_aurocs(x[train], mine.y[train])
        latent = int(np.argmax(np.abs(values - 0.5)))
        sign = 1 if values[latent] >= 0.5 else -1
        found[f"{run}/"] = sign * x[:, latent]
        chosen.append({"best": "", "settings": [""], "latent": latent, "sign": sign})
    _write(out, found, chosen)


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
    return found, {"best": best[0], "val": best[1], "settings": list(by_k), "latents": order[:20].tolist()}


@artifacts.cached
def k_sparse(
    out: Path,
    prompt_set: artifacts.Artifact,
    harvested: artifacts.Artifact,
    layer: int,
    views: tuple[View, ...],
    ks: tuple[int, ...],
    penalties: tuple[float, ...],
    rule: Rule = "mean difference",
) -> None:
    """Step: :func:`k_sparse_scores` of a view in every run."""
    data, labels = _data(prompt_set, harvested, layer)
    found: dict[str, np.ndarray] = {}
    chosen = []
    for run, view in enumerate(tqdm(views, desc=f"k-sparse, {rule}", disable=None)):
        mine = labels.drawn(run)
        scored, choice = k_sparse_scores(np.asarray(features.matrix(data, view, mine)), mine, ks, penalties, rule)
        found |= {f"{run}/{k}": score for k, score in scored.items()}
        chosen.append(choice)
    _write(out, found, chosen)


@artifacts.cached
def by_size(
    out: Path,
    prompt_set: artifacts.Artifact,
    harvested: artifacts.Artifact,
    layer: int,
    views: tuple[View, ...],
    ks: tuple[int, ...],
    penalties: tuple[float, ...],
) -> None:
    """Step: a control's curve over k: the views with ``k`` and ``draw`` filled in, k chosen on validation; a k that a view
    cannot give is left out."""
    data, labels = _data(prompt_set, harvested, layer)
    found, chosen = {}, []
    for run, view in enumerate(views):
        mine, best, there = labels.drawn(run), ("", -1.0), []
        for k in sorted(ks):
            x = features.matrix(data, {**view, "k": k, "draw": run}, mine)
            if x.shape[1] < k:
                break
            there.append(str(k))
            fitted = protocol.fit(x, mine, penalties)
            found[f"{run}/{k}"] = fitted.score
            if fitted.val > best[1] + protocol.TIE:
                best = (str(k), fitted.val)
        chosen.append({"best": best[0], "val": best[1], "settings": there})
    _write(out, found, chosen)


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


@artifacts.cached
def controlled(
    out: Path,
    prompt_set: artifacts.Artifact,
    harvested: artifacts.Artifact,
    layer: int,
    views: tuple[View, ...],
    control: str,
    amounts: tuple[float, ...],
    ks: tuple[int, ...],
    penalties: tuple[float, ...],
) -> None:
    """Step: a probe under a control (:func:`changed`), one setting per amount; with ``ks``, k-sparse by mean difference."""
    data, labels = _data(prompt_set, harvested, layer)
    texts = [example.text for example in data.examples()]
    found, chosen = {}, []
    for run, view in enumerate(tqdm(views, desc=f"control: {control}", disable=None)):
        drawn = labels.drawn(run)
        x, kept = features.matrix(data, view, drawn), {}
        for amount in amounts:
            try:
                train, y, mine = changed(drawn, control, amount, run, texts)
            except ValueError:
                continue  # at tiny sizes; such an amount is left out
            if ks:
                scored, choice = k_sparse_scores(np.asarray(x), mine, ks, penalties, train=train, y=y)
                found[f"{run}/{amount:g}"], note = scored[choice["best"]], choice["best"]
            else:
                fitted = protocol.fit(x, mine, penalties, train, y)
                found[f"{run}/{amount:g}"], note = fitted.score, f"{fitted.c:g}"
            kept[f"{amount:g}"] = {"n": int(train.sum()), "harmful": int(y[train].sum()), "choice": note}
        chosen.append(kept)
    names = [f"{a:g}" for a in amounts if all(f"{a:g}" in kept for kept in chosen)]
    notes = [
        {"best": names[-1] if names else "", "settings": names, "fits": [kept[n] for n in names]} for kept in chosen
    ]
    _write(out, found, notes)
