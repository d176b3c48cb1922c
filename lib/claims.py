"""The claims ledger: each of the post's claims with its measure and its test, and what a run says of it. The rows are
``data/claims.yaml``, fixed before the numbers that they are applied to were seen."""

import datetime
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from lib import config, store


class Test(BaseModel, frozen=True, extra="forbid"):
    """Where the whole interval of every part must lie; it fails once one lies outside or, with ``centre``, leaves that out."""

    above: float = -math.inf
    below: float = math.inf
    centre: float | None = None

    def room(self, low: float, high: float) -> float:
        """How far the interval keeps from the bounds; it lies within them where this is above 0."""
        return min(low - self.above, self.below - high)

    def fails(self, low: float, high: float) -> bool:
        """Whether the interval says that the claim does not hold."""
        if self.centre is not None:
            return self.room(low, high) <= 0 and not low <= self.centre <= high
        return high < self.above or low > self.below

    def __str__(self) -> str:
        ends = [f"{word} {at:g}" for word, at in (("above", self.above), ("below", self.below)) if math.isfinite(at)]
        fails = "lies outside" if self.centre is None else f"leaves out {self.centre:g}"
        return f"all intervals {' and '.join(ends)}; not if one {fails}"


class Claim(BaseModel, frozen=True, extra="forbid"):
    """A row of the ledger. ``post`` has the post's numbers by part; ``open``: the post leaves the question open; ``needs``:
    parts with a test of their own, without which nothing is decided."""

    id: str
    statement: str
    measure: str
    test: Test
    needs: dict[str, Test] = {}
    post: dict[str, float] = {}
    open: bool = False
    unit: str = "difference of AUROC"
    fixed: datetime.date
    amended: str = ""
    notebook: str


class Record(BaseModel, frozen=True, extra="forbid"):
    """What a run says of a claim. ``value`` and ``interval`` are those of the part that decided; ``parts`` {name: (value, low,
    high)}; ``n`` counts prompts or tokens, ``seeds`` runs."""

    id: str
    statement: str
    measure: str
    test: str
    value: float
    interval: tuple[float, float]
    decided_by: str
    parts: dict[str, tuple[float, float, float]]
    n: int
    seeds: int
    verdict: Literal["reproduced", "not reproduced", "inconclusive at this scale", "supported", "not supported"]
    figure: str


@functools.cache
def ledger() -> dict[str, Claim]:
    """All claims by id."""
    text = (config.ROOT / "data" / "claims.yaml").read_text(encoding="utf-8")
    return {row["id"]: Claim(**row) for row in yaml.safe_load(text)}


def judge(id: str, parts: Mapping[str, Mapping[str, Any]], figure: str, n: int, seeds: int) -> Record:
    """The record of a claim from its parts, entries {auroc, difference, share, mean or fvu; interval}. Of those that could
    decide, the part nearest to its bounds, or furthest outside, does. KeyError if there is no such claim, or a part that its
    row names is not given."""
    claim, found = ledger()[id], {}
    for name, entry in parts.items():
        kind = next(kind for kind in ("auroc", "difference", "share", "mean", "fvu") if kind in entry)
        found[name] = (entry[kind], *entry.get(f"{kind}_interval", entry.get("interval")))
    if lacking := {*claim.needs, *claim.post} - set(found):
        raise KeyError(f"{id} needs the parts {', '.join(sorted(lacking))}")
    room = {name: claim.needs.get(name, claim.test).room(low, high) for name, (_, low, high) in found.items()}
    tested = [name for name in found if name not in claim.needs]
    unmet = [name for name in claim.needs if room[name] <= 0]
    failing = [name for name in tested if claim.test.fails(*found[name][1:])]
    short = [name for name in tested if room[name] <= 0]
    yes, no = ("supported", "not supported") if claim.open else ("reproduced", "not reproduced")
    verdict = "inconclusive at this scale" if unmet or (short and not failing) else no if failing else yes
    decided = min(unmet or failing or short or tested, key=room.__getitem__)
    value, *interval = found[decided]
    needs = (f"; undecided unless {part} is above {test.above:g}" for part, test in claim.needs.items())
    said = claim.model_dump(include={"id", "statement", "measure"}) | {"test": "".join([str(claim.test), *needs])}
    shown = {"verdict": verdict, "value": value, "interval": interval, "decided_by": decided, "parts": found}
    return Record(**said, **shown, n=n, seeds=seeds, figure=figure)


@store.result
def filed(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Step: records as a result, where the summary finds them."""
    return [record.model_dump() for record in records]


def rows(records: Sequence[Record], tests: bool = False) -> list[tuple[str, ...]]:
    """Cells (id, claim, value with interval and the part that decided, verdict); with ``tests`` also measure and test."""
    found = []
    for r in records:
        part = f" ({r.decided_by})" if len(r.parts) > 1 else ""
        shown = f"{r.value:.3f} [{r.interval[0]:.3f}, {r.interval[1]:.3f}]{part}"
        found.append((r.id, r.statement, *((r.measure, shown, r.test) if tests else (shown,)), r.verdict))
    return found
