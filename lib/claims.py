"""The claims ledger: each of the post's claims with its measure, its test, and what this run says of it.

A claim is one function from results to a :class:`Record`, listed in :data:`LEDGER`. Its test was written before the
numbers it is applied to were seen (those of one seed, under an earlier protocol, were known), and uses intervals only. A verdict is *reproduced*, *not reproduced* or *inconclusive
at this scale*; for questions that the post leaves open, whose statement is ours, it is *supported* or *not supported*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lib import store
from lib.probes.protocol import TRANSFER
from lib.store import values
from lib.study import Study

Entry = dict[str, Any]
Verdict = Literal["reproduced", "not reproduced", "inconclusive at this scale", "supported", "not supported"]
THREE = ("pretraining", "finetuned", "chat")

NEAR_PERFECT = 0.99  # AUROC
MARGIN = 0.01  # of AUROC: less is no difference in distribution, where AUROCs are close to 1
EQUAL = 0.02  # of AUROC: less is no difference out of distribution, more is much in distribution


class Record(BaseModel):
    """One claim's line of the ledger. ``value`` is the headline number, ``interval`` its 95 % interval, ``parts`` all
    numbers that the test looks at, ``n`` the prompts behind the headline number, ``seeds`` the runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    statement: str
    measure: str
    test: str
    value: float
    interval: tuple[float, float]
    parts: dict[str, tuple[float, float, float]]
    n: int
    seeds: int
    verdict: Verdict
    figure: str


def above(entry: Entry, bound: float) -> bool:
    """The whole interval lies above ``bound``."""
    return entry["interval"][0] > bound


def below(entry: Entry, bound: float) -> bool:
    """The whole interval lies below ``bound``."""
    return entry["interval"][1] < bound


def _verdict(holds: bool, fails: bool, ours: bool = False) -> Verdict:
    assert not (holds and fails), "a claim's test contradicts itself"
    if holds:
        return "supported" if ours else "reproduced"
    if fails:
        return "not supported" if ours else "not reproduced"
    return "inconclusive at this scale"


def _three_numbers(entry: Entry) -> tuple[float, float, float]:
    value = entry[next(name for name in ("auroc", "difference", "share") if name in entry)]
    return (value, *entry["interval"])


def _record(
    found: Entry, head: Entry, parts: dict[str, Entry], verdict: Verdict, figure: str, split: str = "ood", **said: str
) -> Record:
    value, low, high = _three_numbers(head)
    return Record(
        value=value,
        interval=(low, high),
        parts={name: _three_numbers(part) for name, part in parts.items()},
        n=found["tables"]["dense"][split]["n"],
        seeds=len(found["tables"]["dense"]["ood"]["seeds"]),
        verdict=verdict,
        figure=figure,
        **said,
    )


def _gain(found: Entry, name: str, bound: float, figure: str, ours: bool = False, **said: str) -> Record:
    """A claim that one probe's OOD AUROC exceeds another's by more than ``bound``."""
    gain = found["differences"][name]
    verdict = _verdict(above(gain["ood"], bound), below(gain["ood"], bound), ours)
    return _record(found, gain["ood"], gain, verdict, figure, **said)


def b1(found: Entry) -> Record:
    """Dense probes are near perfect."""
    dense = {split: found["tables"]["dense"][split] for split in ("train", "val", "ood")}
    return _record(
        found,
        dense["ood"],
        dense,
        _verdict(
            all(above(e, NEAR_PERFECT) for e in dense.values()), any(below(e, NEAR_PERFECT) for e in dense.values())
        ),
        "02_slices",
        id="B1",
        statement="Dense linear probes are near perfect: AUROC 1.0 train, 1.0 validation, 0.999 OOD",
        measure="AUROC of the dense linear probe at the site, OOD",
        test=f"reproduced if the intervals on train, validation and OOD are all above {NEAR_PERFECT}; not if one is below",
    )


def b2(found: Entry) -> Record:
    """Single latents are much worse."""
    train = {name: found["differences"][f"dense - single, {name}"]["train"] for name in THREE}
    return _record(
        found,
        min(train.values(), key=lambda e: e["difference"]),
        train,
        _verdict(all(above(e, EQUAL) for e in train.values()), any(below(e, EQUAL) for e in train.values())),
        "02_single_latents",
        split="train",
        id="B2",
        statement="The best single latent is much worse than the dense probe, already on the training set",
        measure="AUROC of the dense probe minus that of the best single latent, on train; the smallest of three SAEs",
        test=f"reproduced if for all three SAEs the difference's interval is above {EQUAL}; not if one is below it",
    )


def b3(found: Entry) -> Record:
    """Finetuning helps single latents."""
    return _gain(
        found,
        "single, finetuned - pretraining",
        0,
        "02_single_latents",
        id="B3",
        statement="Finetuned SAEs have better single-latent probes than the pretraining SAE",
        measure="OOD AUROC of the best single latent, finetuned minus pretraining",
        test="reproduced if the interval is above 0, not if it is below",
    )


def b4(found: Entry) -> Record:
    """k latents fit and transfer worse."""
    gaps = {name: found["differences"][f"dense - k, {name}"] for name in THREE}
    inside = {f"{name}, {split}": gap[split] for name, gap in gaps.items() for split in ("train", "val")}
    ood = {f"{name}, OOD": gap["ood"] for name, gap in gaps.items()}
    more = {f"{name}, OOD less validation": gap[TRANSFER] for name, gap in gaps.items()}
    fits = all(below(e, EQUAL) for e in inside.values())
    worse = all(above(e, 0) for e in more.values()) and all(above(e, 0) for e in ood.values())
    fails = any(above(e, EQUAL) for e in inside.values()) or any(below(e, 0) for e in {**ood, **more}.values())
    return _record(
        found,
        gaps["finetuned"]["ood"],
        {**inside, **ood, **more},
        _verdict(fits and worse, fails),
        "02_k_sparse",
        id="B4",
        statement="About 20 latents fit train and validation but transfer worse OOD: a gap to the dense probe remains",
        measure="OOD AUROC of the dense probe minus that of 20 latents of the finetuned SAE",
        test=f"reproduced if for all three SAEs the gap is below {EQUAL} on train and validation, above 0 OOD, and larger OOD than "
        f"on validation (intervals); not if one is above {EQUAL} on train or validation, below 0 OOD, or smaller OOD",
    )


def b5(found: Entry) -> Record:
    """Finetuning closes half of the gap."""
    closed = found["closed_gap"]
    head = {"share": closed["share"], "interval": closed["interval"]}
    gap = {"difference": closed["gap"], "interval": closed["gap_interval"]}
    resolved = above(gap, 0)
    inside = above(head, 0.25) and below(head, 0.75)
    outside = above(head, 0.5) or below(head, 0.5)
    return _record(
        found,
        head,
        {"share closed": head, "gap of the pretraining SAE": gap},
        _verdict(resolved and inside, resolved and outside and not inside),
        "02_k_sparse",
        id="B5",
        statement="Finetuning closes about half of the gap to the dense probe",
        measure="share of the OOD gap between 20 latents of the pretraining SAE and the dense probe that finetuning closes",
        test="reproduced if the gap is above 0 and the share's interval within 0.25 and 0.75; not if the gap is above 0 and "
        "the interval leaves out 0.5",
    )


def b6(found: Entry) -> Record:
    """The selection rules agree."""
    ood = {name: found["differences"][f"rules, {name}"]["ood"] for name in THREE}
    return _record(
        found,
        max(ood.values(), key=lambda e: abs(e["difference"])),
        ood,
        _verdict(
            all(above(e, -EQUAL) and below(e, EQUAL) for e in ood.values()),
            any(above(e, EQUAL) or below(e, -EQUAL) for e in ood.values()),
        ),
        "02_k_sparse",
        id="B6",
        statement="The two rules to select latents agree",
        measure="OOD AUROC of 20 latents, mean difference minus L1 path; the largest of three SAEs",
        test=f"reproduced if all three intervals lie within ±{EQUAL}; not if one lies outside",
    )


def b7(found: Entry) -> Record:
    """Reconstructions lose more out of distribution."""
    loss = {name: found["differences"][f"dense - reconstruction, {name}"] for name in ("pretraining", "finetuned")}
    val = {f"{name}, validation": e["val"] for name, e in loss.items()}
    ood = {f"{name}, OOD": e["ood"] for name, e in loss.items()}
    more = {f"{name}, OOD less validation": e[TRANSFER] for name, e in loss.items()}
    return _record(
        found,
        loss["pretraining"]["ood"],
        {**val, **ood, **more},
        _verdict(
            all(below(e, MARGIN) for e in val.values()) and all(above(e, 0) for e in more.values()),
            any(above(e, MARGIN) for e in val.values()) or any(below(e, 0) for e in more.values()),
        ),
        "02_reconstructions",
        id="B7",
        statement="Probes on reconstructions lose little in distribution and more OOD (0.048; finetuned 0.039)",
        measure="OOD AUROC of the dense probe minus that of a probe on the pretraining SAE's reconstruction",
        test=f"reproduced if for both SAEs the loss is below {MARGIN} on validation and larger OOD than on validation "
        f"(intervals); not if one is above {MARGIN} on validation or smaller OOD",
    )


def b8(found: Entry) -> Record:
    """Max pooling equals the fixed position."""
    ood = {name: found["differences"][f"max - position, {name}"]["ood"] for name in ("dense", "k")}
    return _record(
        found,
        ood["dense"],
        ood,
        _verdict(
            all(above(e, -EQUAL) and below(e, EQUAL) for e in ood.values()),
            any(above(e, EQUAL) or below(e, -EQUAL) for e in ood.values()),
        ),
        "02_probes",
        id="B8",
        statement="Max pooling and the fixed end-of-turn position are about equal",
        measure="OOD AUROC, maximum over the user turn minus the fixed position: dense probe, and 20 latents",
        test=f"reproduced if both intervals lie within ±{EQUAL}; not if one lies outside",
    )


def o2(found: Entry) -> Record:
    """QF SAEs probe no worse."""
    return _gain(
        found,
        "QF - JumpReLU, k",
        -EQUAL,
        "02_k_sparse",
        ours=True,
        id="O2",
        statement="SAEs trained with the quadratic-frequency penalty probe no worse than those with the L0 penalty",
        measure="OOD AUROC of 20 latents, QF minus JumpReLU at the same lambda, both from scratch on chat",
        test=f"supported if the interval is above -{EQUAL}, not if it is below",
    )


def o6(found: Entry) -> Record:
    """Attention probes transfer better."""
    return _gain(
        found,
        "attention - dense",
        0,
        "02_probes",
        ours=True,
        id="O6",
        statement="Attention probes over the prompt's tokens transfer better than a dense probe at one position",
        measure="OOD AUROC, attention probe minus dense probe",
        test="supported if the interval is above 0, not if it is below",
    )


LEDGER: tuple[Callable[[Entry], Record], ...] = (b1, b2, b3, b4, b5, b6, b7, b8, o2, o6)


@store.result
def ledger(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Step: a :class:`Record` for every claim, from the results {tables, differences, closed_gap}."""
    found = values(inputs)
    return [claim(found).model_dump() for claim in LEDGER]


def ledger_of(study: Study) -> store.Artifact:
    """The recipe of a study's ledger."""
    inputs = {"tables": study.probe_tables, "differences": study.probe_differences, "closed_gap": study.closed_gap}
    return ledger(inputs, name="claims")


def rows(records: Sequence[Entry], tests: bool = False) -> list[tuple[str, ...]]:
    """Cells (id, claim, value with interval, verdict) of the ledger; with ``tests`` also what was measured and what decides,
    before the verdict."""
    return [
        (
            record["id"],
            record["statement"],
            *((record["measure"],) if tests else ()),
            f"{record['value']:.3f} [{record['interval'][0]:.3f}, {record['interval'][1]:.3f}]",
            *((record["test"],) if tests else ()),
            record["verdict"],
        )
        for record in records
    ]
