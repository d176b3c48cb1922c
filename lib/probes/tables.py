"""Results made of probes' scores: tables of AUROCs by split and slice, paired differences, shares of a gap, and what was chosen.

Figures are means over SAE seeds and draws of the split, with 95 % intervals over both and over clusters of base prompts
(:func:`lib.stats.summary`), since a prompt and its jailbroken copies are not independent. What cannot be fit is left out with its
reason, {"left out": why}.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lib import stats
from lib.probes import methods
from lib.probes.changes import Change
from lib.store import Artifact, result
from lib.texts import examples
from lib.texts.examples import NO_CHAT, SETS, SPLITS, Labels, TooFew

Pick = tuple[Artifact, str | None]  # what :func:`lib.probes.methods.fit` made, and a setting or None for its own choice
PARTS = (*SPLITS[:2], *SETS, NO_CHAT)
MACRO = {"macro": "ood", "macro, wider": "wider"}  # means over the slices of a set
TRANSFER = "ood - val"  # how much more one probe is ahead of the other out of distribution than on validation
NOTHING = Change()
Splits = tuple[str, ...]
Part = list[list[np.ndarray]]  # comparisons whose AUROCs are averaged, each [n] bool by draw: what it is taken over
Moved = tuple[np.ndarray, np.ndarray, int]  # AUROCs [S, D], their influences [S, D, G], clusters of the rarer class
Entries = dict[str, dict[str, Any]]


def _each(
    prompts: Artifact, named: Mapping[str, Sequence[Pick]], change: Change, row: Callable[..., dict[str, Any]]
) -> Entries:
    """{name: ``row`` of the labels in each draw and each pick's scores [S, D, n]}, over the seeds and draws that all picks of a name
    have; one without an SAE has one seed, which stands for all."""
    rows, found = examples.read(prompts), Entries()
    labels, texts = Labels.of(rows), [example.text for example in rows]
    for name, picks in tqdm(named.items(), desc="tables", disable=None):
        try:
            scores = [methods.scores(*pick) for pick in picks]
            seeds = min((len(s) for s in scores if len(s) > 1), default=1)
            runs = [change.apply(labels.drawn(d), texts, d) for d in range(min(s.shape[1] for s in scores))]
            found[name] = row(runs, *(s[:seeds, : len(runs)] for s in scores))
        except TooFew as reason:
            found[name] = {"left out": str(reason)}
    return found


@result
def table(
    prompts: Artifact, picks: dict[str, Pick], slices: bool = True, splits: Splits = PARTS, change: Change = NOTHING
) -> Entries:
    """Step: {probe: {split: entry; slices: {name: entry}; choices: :func:`lib.probes.methods.picked`}}, looking at ``splits`` only,
    of prompts after ``change``.

    Splits are train, val, the sets of OOD prompts (what one has of one class only, or has no more than "ood", is left out), and
    :data:`MACRO`. An entry is {auroc, interval, error, freedom, seeds, n, harmful, clusters, recall, recall_interval, accuracy, alarms}, and
    of "ood" spread (:func:`lib.stats.shares`): AUROC with its interval and its value for each SAE seed and draw; recall at 1 % false positives, None where too few are harmless, with the
    interval of so many harmful clusters; accuracy, and share of harmless prompts flagged, at the threshold that is best on
    validation. Slices are of OOD data, each ``against`` prompts of the other class, and ``n`` counts both.
    """

    def row(runs: Sequence[Labels], scores: np.ndarray) -> dict[str, Any]:
        val = [labels.where("val") for labels in runs]
        cuts = [[stats.best_threshold(r.y[v], s[v]) for r, v, s in zip(runs, val, of, strict=True)] for of in scores]
        found: dict[str, Any] = {}
        for name, part in _parts(runs, splits).items():
            moved = _moved(runs, scores, part)
            found[name] = _auroc(moved)
            found[name] |= {"slices": len(part)} if name in MACRO else _operating(runs, scores, cuts, part[0])
            found[name] |= {"spread": stats.shares(*moved[:2])} if name == "ood" else {}
        if slices and "ood" in splits:
            found["slices"] = {}
            for name, (here, other) in _slices(runs[0]).items():
                masks = [here] * len(runs)
                entry = _auroc(_moved(runs, scores, [masks]))
                found["slices"][name] = entry | _operating(runs, scores, cuts, masks) | {"against": other}
        return found

    rows = _each(prompts, {name: (pick,) for name, pick in picks.items()}, change, row)
    return {n: r if "left out" in r else r | {"choices": methods.picked(*picks[n])} for n, r in rows.items()}


def _parts(runs: Sequence[Labels], splits: Splits) -> dict[str, Part]:
    """What figures are taken over, by name: of ``splits`` those that have both classes and, beside "ood", more or less than that; the
    :data:`MACRO` means where "ood" is looked at, and is the same in every draw."""
    found, ood = dict[str, Part](), [labels.where("ood") for labels in runs]
    for name in splits:
        masks = [labels.where(name) for labels in runs]
        both = all(len(np.unique(labels.y[here])) == 2 for labels, here in zip(runs, masks, strict=True))
        if both and (name in SPLITS or not np.array_equal(masks, ood)):
            found[name] = [masks]
    for name, of in MACRO.items() if "ood" in splits and all((ood[0] == mask).all() for mask in ood) else ():
        inside = set(runs[0].slice[runs[0].where(of)])
        here = {mask.tobytes(): mask for slice_, (mask, _) in _slices(runs[0]).items() if slice_ in inside}
        if name == "macro" or len(here) > len(found["macro"]):  # two slices set against each other are one comparison
            found[name] = [[mask] * len(runs) for mask in here.values()]
    return found


def _slices(labels: Labels) -> dict[str, tuple[np.ndarray, str]]:
    """{OOD slice: ([n] bool of it and what it is set against, the name of that)}: a harmful slice against the plain chat prompts, a harmless one against plain
    AdvBench, the benign twins against the harmful questions; where there are no such slices, against all prompts of the other class."""
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


def _moved(runs: Sequence[Labels], scores: np.ndarray, part: Part) -> Moved:
    """Mean over the comparisons of a part, of scores [S, D, n]."""
    names, group = np.unique(runs[0].group, return_inverse=True)
    values, pulls = np.zeros(scores.shape[:2]), np.zeros((*scores.shape[:2], len(names)))
    for masks in part:
        for seed, draw in np.ndindex(*scores.shape[:2]):
            here, y = masks[draw], runs[draw].y
            value, pull = stats.influences(y[here], scores[seed, draw][here], group[here], len(names))
            values[seed, draw] += value / len(part)
            pulls[seed, draw] += pull / len(part)
    of_class = [
        [r.group[m & (r.y == kind)] for r, m in zip(runs, masks, strict=True)] for masks in part for kind in (0, 1)
    ]
    return values, pulls, min(len(np.unique(np.concatenate(groups))) for groups in of_class)


def _auroc(moved: Moved) -> dict[str, Any]:
    """{auroc: mean, seeds: [S][D], interval, error, freedom} (:func:`lib.stats.summary`)."""
    found = stats.summary(*moved, (0.0, 1.0))
    return {"auroc": found.pop("mean"), "seeds": moved[0], **found}


def _difference(values: np.ndarray, pulls: np.ndarray, fewest: int, weights: Sequence[float]) -> dict[str, Any]:
    """{difference: mean, seeds: [S][D], interval, error, freedom, detectable} of AUROCs [K, S, D] by ``weights`` [K]."""
    found = stats.summary(values, pulls, fewest, (-2.0, 2.0), weights)
    return {"difference": found.pop("mean"), "seeds": np.tensordot(weights, values, 1), **found}


def _operating(
    runs: Sequence[Labels], scores: np.ndarray, cuts: Sequence[Sequence[float]], masks: Sequence[np.ndarray]
) -> dict[str, Any]:
    """What is counted, and what the probe does at a threshold; counts are those of the first draw."""
    rows = []
    for seed, draw in np.ndindex(*scores.shape[:2]):
        y, s, cut = runs[draw].y[masks[draw]], scores[seed, draw][masks[draw]], cuts[seed][draw]
        rows.append((stats.recall(y, s), ((s > cut) == y).mean(), (s[y == 0] > cut).mean()))
    recalls, *others = (list(column) for column in zip(*rows, strict=True))
    share = None if None in recalls else float(np.mean(recalls))
    positives = len(np.unique(runs[0].group[masks[0] & (runs[0].y == 1)]))
    return {
        "n": masks[0].sum(),
        "harmful": runs[0].y[masks[0]].sum(),
        "clusters": len(np.unique(runs[0].group[masks[0]])),
        "recall": share,
        "recall_interval": None if share is None else stats.share_interval(share, positives),
        **dict(zip(("accuracy", "alarms"), map(np.mean, others), strict=True)),
    }


def _compared(runs: Sequence[Labels], scores: Sequence[np.ndarray], splits: Splits) -> dict[str, Moved]:
    """{part: AUROCs [probes, S, D], influences [probes, S, D, G], clusters of the rarer class} of several probes."""
    found = {}
    for name, part in _parts(runs, splits).items():
        moved = [_moved(runs, of_probe, part) for of_probe in scores]
        values, pulls = (np.array(np.broadcast_arrays(*each)) for each in list(zip(*moved, strict=True))[:2])
        found[name] = values, pulls, moved[0][2]
    return found


@result
def differences(
    prompts: Artifact,
    pairs: dict[str, tuple[Pick, ...]],
    change: Change = NOTHING,
    weights: tuple[float, ...] = (1, -1),
) -> Entries:
    """Step: {pair: {split, one of :data:`MACRO`, or :data:`TRANSFER`: {difference, interval, seeds, error, freedom, detectable}}}: AUROC of the first minus the
    second, or of as many as there are ``weights`` their sum by these, on the same prompts, seeds and draws."""

    def row(runs: Sequence[Labels], *scores: np.ndarray) -> dict[str, Any]:
        compared = _compared(runs, scores, PARTS)
        found = {name: _difference(*moved, weights) for name, moved in compared.items()}
        (out, pulled, few), (inside, pulled_inside, fewer) = compared["ood"], compared["val"]
        both = np.concatenate([out, inside]), np.concatenate([pulled, pulled_inside])
        return found | {TRANSFER: _difference(*both, min(few, fewer), (*weights, *(-w for w in weights)))}

    return _each(prompts, pairs, change, row)


@result
def closed(prompts: Artifact, triples: dict[str, tuple[Pick, Pick, Pick]], change: Change = NOTHING) -> Entries:
    """Step: {name: {OOD set or one of :data:`MACRO`: {share, interval, gap, gap_interval}}}: share of the gap from the second to the
    first that the third closes (:func:`lib.stats.share_closed`)."""

    def row(runs: Sequence[Labels], *scores: np.ndarray) -> dict[str, Any]:
        return {name: stats.share_closed(*it) for name, it in _compared(runs, scores, PARTS[2:]).items()}

    return _each(prompts, triples, change, row)


@result
def chosen(fits: dict[str, dict[str, Artifact]]) -> Entries:
    """Step: {method: {best: place, scores: {place: :func:`lib.probes.methods.picked`}}}: of the places that a method is fit at, the one
    with the highest fold score, mean over seeds and draws; of equal ones the first. TooFew if it could be fit at none."""
    found = Entries()
    for method, by_place in fits.items():
        scores: Entries = {}
        for place, fitted in by_place.items():
            try:
                scores[place] = methods.picked(fitted)
            except TooFew as reason:
                scores[place] = {"left out": str(reason)}
        means = {place: float(entry["mean"]) for place, entry in scores.items() if "mean" in entry}
        if not means:
            raise TooFew(f"{method} could be fit at none of {', '.join(by_place)}")
        found[method] = {"best": methods.first_best(means), "scores": scores}
    return found
