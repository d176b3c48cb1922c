"""The claims ledger: each of the post's claims with its measure and its test, and what a run says of it. The rows are
``data/claims.yaml``, fixed before the numbers that they are applied to were seen."""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel

from lib import config, stats, store

LEDGER = config.ROOT / "data" / "claims.yaml"
UNDECIDED = "inconclusive at this scale"
Number = Annotated[float, AfterValidator(lambda x: float(f"{x:.7g}") if abs(x) > 1e-12 else 0.0)]  # CPUs differ beyond


class Test(BaseModel, frozen=True, extra="forbid"):
    """Where the whole interval of every part must lie; it fails once one lies outside or, with ``centre``, leaves that out. With
    ``some`` one part is enough, and it fails if all lie outside."""

    above: float = -math.inf
    below: float = math.inf
    centre: float | None = None
    some: bool = False

    def room(self, low: float, high: float) -> float:
        """How far the interval keeps from the bounds; it lies within them where this is above 0."""
        return min(low - self.above, self.below - high)

    def against(self, low: float, high: float) -> float:
        """How far the interval keeps outside the bounds or, with a centre, from that; it does where this is above 0."""
        least, most = (self.above, self.below) if self.centre is None else (self.centre, self.centre)
        return max(low - most, least - high)

    def fails(self, low: float, high: float) -> bool:
        """Whether the interval says that the claim does not hold."""
        return self.room(low, high) <= 0 < self.against(low, high)

    def margin(self, low: float, high: float) -> float:
        """The smallest margin at which the interval passes a test of this form: of both sides, or of one."""
        return max(high if math.isfinite(self.below) else -math.inf, -low if math.isfinite(self.above) else -math.inf)

    @property
    def within(self) -> str:
        """Its bounds, in words."""
        ends = (("above", self.above), ("below", self.below))
        return " and ".join(f"{word} {at:g}" for word, at in ends if math.isfinite(at))

    def __str__(self) -> str:
        outside = "lies outside" if self.centre is None else f"leaves out {self.centre:g}"
        held, failed = ("one interval", "every one") if self.some else ("all intervals", "one")
        return f"{held} {self.within}; not if {failed} {outside}"


class Claim(BaseModel, frozen=True, extra="forbid"):
    """A row of the ledger. ``post`` has the post's numbers by part; ``open``: the post leaves the question open; ``needs``:
    parts with a test of their own, without which nothing is decided; ``margin``: what counts as no difference, a bound of the test."""

    id: str
    statement: str
    measure: str
    place: str
    method: str
    test: Test
    margin: float | None = None
    needs: dict[str, Test] = {}
    post: dict[str, float] = {}
    open: bool = False
    unit: str = "difference of AUROC"
    fixed: date
    amended: str = ""
    notebook: str


class Record(BaseModel, frozen=True, extra="forbid"):
    """What a run says of a claim. ``value`` and ``interval`` are those of the part that decided; ``parts`` {name: (value, low,
    high)}; ``n`` counts prompts or tokens, ``seeds`` runs. ``p``: of the verdict, 1 where nothing is decided, None where an entry has no error;
    ``holm``: it stands among all of the ledger (:func:`marked`); ``detectable``: the distance from a bound that every part would have
    shown with power .8; ``needed``: of an undecided row, :func:`growth`; ``margin``: the smallest at which the test of equivalence passes."""

    id: str
    statement: str
    measure: str
    test: str
    value: Number
    interval: tuple[Number, Number]
    decided_by: str
    parts: dict[str, tuple[Number, Number, Number]]
    n: int
    seeds: int
    verdict: Literal["reproduced", "not reproduced", "inconclusive at this scale", "supported", "not supported"]
    figure: str
    p: Number | None = None
    holm: bool = False
    detectable: Number | None = None
    needed: Number | None = None
    margin: Number | None = None


@functools.cache
def ledger() -> dict[str, Claim]:
    """All claims by id."""
    return {row["id"]: Claim(**row) for row in yaml.safe_load(LEDGER.read_text(encoding="utf-8"))}


def fixed() -> str:
    """sha256 of the ledger's file, as committed before the run that it judges."""
    return hashlib.sha256(LEDGER.read_bytes()).hexdigest()


def growth(test: Test, value: float, low: float, high: float) -> float:
    """By what factor prompts, seeds and draws must all grow for a part to be decided with power .8 if its value stays where it is:
    ((1.96 + .84) * error / distance) ** 2, error being half the interval over 1.96, distance that to the nearest bound or, outside, to a centre."""
    room = test.room(value, value)
    distance = room if room > 0 else test.against(value, value)
    return math.inf if distance < 1e-9 else ((1 + 0.8416 / 1.96) * (high - low) / 2 / distance) ** 2


def _chance(rooms: Sequence[tuple[Mapping[str, Any], float]], one_is_enough: bool) -> float:
    """p-value of what all entries must bear, the largest, or one, the smallest times their number; NaN if one has no error."""
    if not all("error" in entry for entry, _ in rooms):
        return math.nan
    each = [stats.chance(room, entry["error"], entry["freedom"]) for entry, room in rooms]
    return min(1.0, min(each) * len(each)) if one_is_enough else max(each, default=0.0)


def judge(id: str, parts: Mapping[str, Mapping[str, Any]], figure: str, n: int, seeds: int) -> Record:
    """The record of a claim from its parts, entries {auroc, difference, share, mean or fvu; interval; error and freedom, if p-values are wanted}. Of those that
    could decide, the part nearest to its bounds, or furthest outside, does. KeyError if there is no such claim, or a part that its row names is not given."""
    claim, found = ledger()[id], {}
    for name, entry in parts.items():
        kind = next(kind for kind in ("auroc", "difference", "share", "mean", "fvu") if kind in entry)
        found[name] = (entry[kind], *entry.get(f"{kind}_interval", entry.get("interval")))
    if lacking := {*claim.needs, *claim.post} - set(found):
        raise KeyError(f"{id} needs the parts {', '.join(sorted(lacking))}")
    test, tested = claim.test, [name for name in found if name not in claim.needs]
    room = {name: claim.needs.get(name, test).room(low, high) for name, (_, low, high) in found.items()}
    unmet = [name for name in claim.needs if room[name] <= 0]
    holding = [name for name in tested if room[name] > 0]
    failing = [name for name in tested if test.fails(*found[name][1:])]
    short = [name for name in tested if name not in holding + failing]
    holds, fails = (bool(holding), failing == tested) if test.some else (holding == tested, bool(failing))
    yes, no = ("supported", "not supported") if claim.open else ("reproduced", "not reproduced")
    verdict = UNDECIDED if unmet or not (holds or fails) else yes if holds else no
    nearest, at_once = (max, holding or failing * fails) if test.some and not unmet else (min, failing)
    decided = nearest(unmet or at_once or short or tested, key=room.__getitem__)
    p = [1.0]
    if verdict != UNDECIDED:
        far = [(parts[name], room[name] if holds else test.against(*found[name][1:])) for name in tested]
        p = [_chance(far, holds == test.some), _chance([(parts[name], room[name]) for name in claim.needs], False)]
    ends = (lambda x: test.room(x, x) > 0) if test.some else lambda x: test.fails(x, x)  # a part that would decide
    alone = [name for name in short if ends(found[name][0])]
    sizes = [growth(claim.needs.get(x, test), *found[x]) for x in unmet or alone or short if verdict == UNDECIDED]
    needed = (min if alone and not unmet else max)(sizes, default=math.inf)
    errors = [(x["error"], x["freedom"]) for x in map(parts.__getitem__, tested) if "error" in x]
    margin = (min if test.some else max)(test.margin(*found[name][1:]) for name in tested)
    value, *interval = found[decided]
    needs = (f"; undecided unless {part} is {own.within}" for part, own in claim.needs.items())
    return Record(
        **claim.model_dump(include={"id", "statement", "measure"}),
        **{"test": "".join([str(test), *needs]), "verdict": verdict, "figure": figure, "n": n, "seeds": seeds},
        **{"value": value, "interval": interval, "decided_by": decided, "parts": found},
        p=None if math.isnan(sum(p)) else max(p),
        detectable=max(stats.detectable(*x) for x in errors) if len(errors) == len(tested) else None,
        needed=needed if math.isfinite(needed) else None,
        margin=None if claim.margin is None else margin,
    )


def marked(records: Sequence[Record]) -> list[Record]:
    """Records of a whole ledger, ``holm`` where their verdict stands for all of them together; undecided rows count, unknown p as 1."""
    stand = stats.holm({r.id: 1.0 if r.p is None else r.p for r in records})
    return [r.model_copy(update={"holm": r.verdict != UNDECIDED and r.id in stand}) for r in records]


@store.result
def filed(records: Sequence[Record], sha256: str) -> dict[str, Any]:
    """Step: records, :func:`marked`, as a result, where the summary finds them, with the :func:`fixed` ledger they were judged by."""
    return {"sha256": sha256, "records": [record.model_dump() for record in marked(records)]}


def rows(records: Sequence[Record], tests: bool = False) -> list[tuple[str, ...]]:
    """Cells (id, claim, value with interval and the part that decided, verdict, † if :func:`marked`); with ``tests`` also measure and test."""
    found = []
    for r in marked(records):
        shown = f"{r.value:.3f} [{r.interval[0]:.3f}, {r.interval[1]:.3f}]{f' ({r.decided_by})' if len(r.parts) > 1 else ''}"
        shown += "" if r.margin is None else f"; passes at a margin of {r.margin:.3f}"
        verdict = f"{r.verdict}{' †' if r.holm else ''}"
        verdict += "" if r.needed is None else f"; {float(f'{r.needed:.2g}'):,g} times the size would decide"
        found.append((r.id, r.statement, *((r.measure, shown, r.test) if tests else (shown,)), verdict))
    return found
