"""Results made of probes' scores: tables, curves, paired differences, and what the errors are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from lib import activations, prompts, store
from lib.probes import methods, protocol
from lib.probes.features import Data, Fidelity, matrix
from lib.probes.protocol import SPLITS, Labels

SHOWN = 80  # characters of a prompt that an excerpt shows


def _runs(prompt_set: store.Artifact, count: int) -> list[Labels]:
    labels = Labels.of(prompts.read(prompt_set))
    return [labels.drawn(run) for run in range(count)]


@store.result
def sweep(
    prompt_set: store.Artifact, harvested: store.Artifact, layers: tuple[int, ...], c: float
) -> list[dict[str, Any]]:
    """Step: train and validation AUROC of the dense probe, with one C, at every layer and place: rows {layer, place, train,
    val}. OOD data are not looked at."""
    labels, rows = Labels.of(prompts.read(prompt_set)), []
    for layer in tqdm(layers, desc="sweep", disable=None):
        for place in activations.places(harvested, layer):
            x = matrix(Data(prompt_set, harvested, layer), {"of": "residual", "place": place}, labels)
            score = protocol.fit(x, labels, [c]).score
            values = {s: roc_auc_score(labels.y[labels.where(s)], score[labels.where(s)]) for s in ("train", "val")}
            rows.append({"layer": layer, "place": str(place), **values})
    return rows


@store.result
def tables(
    prompt_set: store.Artifact, fitted: dict[str, store.Artifact], times: int, seed: int, slices: bool = True
) -> dict[str, dict[str, Any]]:
    """Step: of several probes, :func:`lib.probes.protocol.table` at each one's own choice, with its choices by run."""
    found = {}
    for name, f in tqdm(fitted.items(), desc="tables", disable=None):
        scores = methods.scores(f)
        found[name] = protocol.table(_runs(prompt_set, len(scores)), scores, times, seed, slices)
        found[name]["choices"] = methods.choices(f)
    return found


@store.result
def curves(
    prompt_set: store.Artifact, fitted: dict[str, store.Artifact], times: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Step: of several probes, rows {setting, train, val, ood} over their settings (k, or the amount of a control)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, f in tqdm(fitted.items(), desc="curves", disable=None):
        found[name], runs = [], _runs(prompt_set, len(methods.choices(f)))
        for setting in methods.settings(f):
            entry = protocol.table(runs, methods.scores(f, setting), times, seed, slices=False)
            fits = [choice["fits"][setting] for choice in methods.choices(f) if "fits" in choice]
            found[name].append({"setting": float(setting), **{s: entry[s] for s in SPLITS}, "fits": fits})
    return found


Pair = tuple[store.Artifact, str | None]  # fitted probes, and a setting or None for their own choice


@store.result
def differences(
    prompt_set: store.Artifact, pairs: dict[str, tuple[Pair, Pair]], times: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Step: {name: :func:`lib.probes.protocol.differences`, first minus second}."""
    found: dict[str, dict[str, Any]] = {}
    for name, (a, b) in pairs.items():
        one, two = methods.scores(*a), methods.scores(*b)
        count = min(len(one), len(two))
        found[name] = protocol.differences(_runs(prompt_set, count), one[:count], two[:count], times, seed)
    return found


@store.result
def closed_gap(
    prompt_set: store.Artifact,
    dense: store.Artifact,
    before: store.Artifact,
    after: store.Artifact,
    setting: str,
    times: int,
    seed: int,
) -> dict[str, Any]:
    """Step: share of the OOD gap between ``before`` and the dense probe that ``after`` closes, both at one setting:
    {share, interval, gap, gap_interval}."""
    scores = [methods.scores(dense), methods.scores(before, setting), methods.scores(after, setting)]
    runs = _runs(prompt_set, len(scores[0]))
    samples, seeds = [], []
    for run, labels in enumerate(runs):
        here = labels.where("ood")
        weights = protocol.resampled(labels, times, seed)[:, here]
        samples.append([protocol.weighted_aurocs(labels.y[here], s[run][here], weights) for s in scores])
        seeds.append([float(roc_auc_score(labels.y[here], s[run][here])) for s in scores])
    top, low, high = np.mean(seeds, axis=0)
    gap = protocol.interval([a - b for a, b, _ in samples], [a - b for a, b, _ in seeds], (-2.0, 2.0))
    found = {"gap": top - low, "gap_interval": gap, "share": 0.0, "interval": [-1e3, 1e3]}
    if abs(top - low) > 1e-6:  # else there is no gap to close a share of
        share = (high - low) / (top - low)
        # Fieller's way: the share is whatever makes (high - low) - share * (top - low) compatible with 0.
        inside = [r for r in np.linspace(-5, 6, 1101) if _compatible(samples, seeds, r)]
        found |= {"share": share, "interval": [min(inside, default=share), max(inside, default=share)]}
    return found


def _compatible(samples: Sequence[Sequence[np.ndarray]], seeds: Sequence[Sequence[float]], share: float) -> bool:
    rest = [(high - low) - share * (top - low) for top, low, high in samples]
    values = [(high - low) - share * (top - low) for top, low, high in seeds]
    low, high = protocol.interval(rest, values, (-100.0, 100.0))
    return low <= 0 <= high


@store.result
def fidelity(
    prompt_set: store.Artifact,
    harvested: store.Artifact,
    layer: int,
    views: dict[str, dict[str, dict[str, Any]]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Step: {SAE: {place: :meth:`lib.probes.features.Fidelity.value`}} on the prompts, so relative to the variance between
    prompts at that place. ``views`` {SAE: {place: view without "of"}} say which; pooled, L0 is that of the user's tokens.
    """
    labels, data = Labels.of(prompts.read(prompt_set)), Data(prompt_set, harvested, layer)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, by_place in views.items():
        found[name] = {}
        for place, view in by_place.items():
            x, again, f = (
                torch.from_numpy(np.asarray(matrix(data, {**view, "of": of}, labels)))
                for of in ("residual", "reconstruction", "latents")
            )
            here = Fidelity(x.shape[1])
            here.add(x, again, f)
            found[name][place] = here.value()
            if "pooled" in view:
                tokens = json.loads((view["pooled"].path / "fidelity.json").read_text(encoding="utf-8"))
                found[name][place]["l0"] = tokens["l0"]
    return found


@store.result
def errors(
    prompt_set: store.Artifact, fitted: dict[str, store.Artifact], count: int
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Step: of each probe's first run, the highest-scoring harmless and lowest-scoring harmful OOD prompts, from distinct
    clusters: {probe: {harmless, harmful: rows {slice, excerpt, rank}}}; rank is the share of the other class beyond it."""
    examples = prompts.read(prompt_set)
    labels = Labels.of(examples)
    ood = np.flatnonzero(labels.where("ood"))
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, f in fitted.items():
        score = methods.scores(f)[0]
        found[name] = {}
        for label, kind, sign in ((0, "harmless", -1), (1, "harmful", 1)):
            mine = ood[labels.y[ood] == label]
            other = score[ood[labels.y[ood] != label]]
            rows: list[dict[str, Any]] = []
            seen: set[int] = set()
            for i in mine[np.argsort(sign * score[mine], kind="stable")].tolist():
                if labels.group[i] in seen:
                    continue
                seen.add(int(labels.group[i]))
                beyond = (other < score[i]).mean() if label == 0 else (other > score[i]).mean()
                rows.append({"slice": str(labels.slice[i]), "excerpt": excerpt(examples[i].text), "rank": beyond})
                if len(rows) == count:
                    break
            found[name][kind] = rows
    return found


def excerpt(text: str) -> str:
    """The end of a prompt, where jailbreaks put the request, in at most :data:`SHOWN` characters of one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"…{line[-SHOWN + 1 :]}"


@store.result
def refusal_rates(measured: store.Artifact, times: int, seed: int) -> list[dict[str, Any]]:
    """Step: rows {kind, transform, n, rate, log_odds, log_odds_interval}, bootstrap over base prompts."""
    columns = {name: np.array(values) for name, values in measured.value.items()}
    rows = []
    for kind in dict.fromkeys(columns["kind"].tolist()):
        for transform in dict.fromkeys(columns["transform"].tolist()):
            here = (columns["kind"] == kind) & (columns["transform"] == transform)
            # Base prompts of a kind are in clusters of their own, but for a few; a prompt is asked once in each transform.
            odds, rate = columns["log_odds"][here], columns["refused"][here].mean()
            drawn = np.random.default_rng(seed).choice(odds, (times, len(odds))).mean(1)
            row = {"kind": kind, "transform": transform, "n": int(here.sum()), "rate": rate}
            rows.append(row | {"log_odds": odds.mean(), "log_odds_interval": np.percentile(drawn, [2.5, 97.5])})
    return rows


@store.result
def rule_check(measured: store.Artifact, judged: list[list[Any]]) -> dict[str, Any]:
    """Step: the refusal rule against a reader's judgement of the same answers: {n, both, rule_only, reader_only, neither}.

    ``judged`` has rows [kind, transform, base, refused].
    """
    columns = measured.value
    rule = dict(
        zip(zip(*(columns[n] for n in ("kind", "transform", "base")), strict=True), columns["refused"], strict=True)
    )
    pairs = [
        (rule[(kind, transform, base)], bool(reader))
        for kind, transform, base, reader in judged
        if (kind, transform, base) in rule
    ]
    counts = {"both": (True, True), "rule_only": (True, False), "reader_only": (False, True), "neither": (False, False)}
    return {"n": len(pairs), **{name: sum(pair == which for pair in pairs) for name, which in counts.items()}}
