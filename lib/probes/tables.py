"""Results made of probes' scores: tables of AUROCs by split and slice, paired differences, shares of a gap.

Figures are means over runs, with 95 % intervals over runs and clusters of base prompts (:func:`lib.stats.interval`), since a
prompt and its jailbroken copies are not independent. What cannot be fit is left out with its reason, {"left out": why}.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from lib import stats
from lib.probes import methods
from lib.store import Artifact, result
from lib.texts import examples
from lib.texts.examples import SPLITS, Labels, TooFew

Pick = tuple[Artifact, str | None]  # what :func:`lib.probes.methods.fit` made, and a setting or None for its own choice
TRANSFER = "ood - val"  # how much more one probe is ahead of the other out of distribution than on validation
Splits = tuple[str, ...]
Scores = Sequence[np.ndarray]  # [n] of each run
Entries = dict[str, dict[str, Any]]


def _each(
    prompts: Artifact, named: Mapping[str, Sequence[Pick]], times: int, seed: int, row: Callable[..., dict[str, Any]]
) -> Entries:
    """{name: ``row`` of the labels in each run, the weights of resampled clusters [times, n], and each pick's scores}, over
    the runs that all picks of a name have."""
    labels, found = Labels.of(examples.read(prompts)), Entries()
    weights = stats.draws(labels.group, labels.split == "ood", times, seed)  # those of every run
    for name, picks in tqdm(named.items(), desc="tables", disable=None):
        try:
            scores = [methods.scores(*pick) for pick in picks]
        except TooFew as reason:
            found[name] = {"left out": str(reason)}
            continue
        runs = [labels.drawn(run) for run in range(min(map(len, scores)))]
        found[name] = row(runs, weights, *(s[: len(runs)] for s in scores))
    return found


@result
def table(
    prompts: Artifact, picks: dict[str, Pick], times: int, seed: int, slices: bool = True, splits: Splits = SPLITS
) -> Entries:
    """Step: {probe: {split: entry; slices: {name: entry}; choices: what each run chose}}, looking at ``splits`` only.

    An entry is {auroc, interval, seeds, n, harmful, recall, accuracy, alarms}: AUROC with its interval and its value in
    each run; recall at 1 % false positives, None where too few are harmless; accuracy, and share of harmless prompts flagged, at the threshold that is
    best on validation. Slices are of OOD data, each ``against`` prompts of the other class, and ``n`` counts both.
    """

    def row(runs: Sequence[Labels], weights: np.ndarray, scores: Scores) -> dict[str, Any]:
        cuts = [stats.best_threshold(r.y[r.where("val")], s[r.where("val")]) for r, s in zip(runs, scores, strict=True)]
        entry = functools.partial(_entry, runs, weights, scores, cuts)
        found = {split: entry([labels.where(split) for labels in runs]) for split in splits}
        if slices and "ood" in splits:
            parts = _slices(runs[0]).items()
            found["slices"] = {name: entry([here] * len(runs)) | {"against": other} for name, (here, other) in parts}
        return found

    rows = _each(prompts, {name: (pick,) for name, pick in picks.items()}, times, seed, row)
    return {n: r if "left out" in r else r | {"choices": methods.choices(picks[n][0])} for n, r in rows.items()}


def _slices(labels: Labels) -> dict[str, tuple[np.ndarray, str]]:
    """{OOD slice: ([n] bool of it and what it is set against, the name of that)}: a harmful slice against the plain chat
    prompts, a harmless one against plain AdvBench, the benign twins against the harmful questions; where there are no such
    slices, against all prompts of the other class."""
    found: dict[str, tuple[np.ndarray, str]] = {}
    ood = labels.split == "ood"
    for name in sorted(set(labels.slice[ood])):
        here = ood & (labels.slice == name)
        classes = np.unique(labels.y[here])
        if len(classes) == 2:
            found[name] = here, "its other class"
            continue
        reference = "chat" if classes[0] else "AdvBench"
        reference = "question-form harmful" if name == "benign twins" else reference  # holds their harmful halves
        other = ood & (labels.slice == reference) & (labels.y != classes[0])
        if not other.any():
            reference, other = "all others", labels.where("ood") & (labels.y != classes[0])
        found[name] = here | other, reference
    return found


def _entry(
    runs: Sequence[Labels], weights: np.ndarray, scores: Scores, cuts: Sequence[float], where: Sequence[np.ndarray]
) -> dict[str, Any]:
    samples, rows = [], []
    for labels, score, here, cut in zip(runs, scores, where, cuts, strict=True):
        y, s = labels.y[here], score[here]
        samples.append(stats.aurocs(y, s, weights[:, here]))
        rows.append((roc_auc_score(y, s), stats.recall(y, s), ((s > cut) == y).mean(), (s[y == 0] > cut).mean()))
    seeds, recalls, *others = (list(column) for column in zip(*rows, strict=True))
    return {
        "auroc": np.mean(seeds),
        "interval": stats.interval(samples, seeds, (0.0, 1.0)),
        "seeds": seeds,
        "n": where[0].sum(),
        "harmful": runs[0].y[where[0]].sum(),
        "recall": None if None in recalls else np.mean(recalls),
        **dict(zip(("accuracy", "alarms"), map(np.mean, others), strict=True)),
    }


def _compared(
    split: str, runs: Sequence[Labels], weights: np.ndarray, *scores: Scores
) -> tuple[np.ndarray, np.ndarray]:
    """(samples [runs, probes, times], values [runs, probes]) of several probes' AUROCs on a split."""
    samples, values = [], []
    for labels, *of_run in zip(runs, *scores, strict=True):
        here = labels.where(split)
        samples.append([stats.aurocs(labels.y[here], s[here], weights[:, here]) for s in of_run])
        values.append([roc_auc_score(labels.y[here], s[here]) for s in of_run])
    return np.array(samples), np.array(values)


@result
def differences(prompts: Artifact, pairs: dict[str, tuple[Pick, Pick]], times: int, seed: int) -> Entries:
    """Step: {pair: {split or :data:`TRANSFER`: {difference, interval, seeds}}}: AUROC of the first minus the second, on the
    same prompts and runs."""

    def row(*given: Any) -> dict[str, Any]:
        gaps = {split: [a[:, 0] - a[:, 1] for a in _compared(split, *given)] for split in SPLITS}
        gaps[TRANSFER] = [ood - val for ood, val in zip(gaps["ood"], gaps["val"], strict=True)]
        return {
            split: {"difference": np.mean(seeds), "interval": stats.interval(drawn, seeds, (-2.0, 2.0)), "seeds": seeds}
            for split, (drawn, seeds) in gaps.items()
        }

    return _each(prompts, pairs, times, seed, row)


@result
def closed(prompts: Artifact, triples: dict[str, tuple[Pick, Pick, Pick]], times: int, seed: int) -> Entries:
    """Step: {name: {share, interval, gap, gap_interval}}: share of the OOD gap from the second to the first that the third
    closes (:func:`lib.stats.share_closed`)."""
    return _each(prompts, triples, times, seed, lambda *given: stats.share_closed(*_compared("ood", *given)))
