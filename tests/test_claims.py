"""The ledger: each claim's test says what it should at both sides of its bounds, and names the part that decided."""

import datetime
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from lib import claims, config, stats, store
from lib.claims import Test as Bounds
from lib.store import artifacts

ALIKE: dict[str, dict[str, float]] = {  # parts of a run that agrees with the post in everything
    "B1": {"train": 1.0, "validation": 1.0, "OOD": 0.999},
    "B2": {"IT": 0.04, "finetuned": 0.04, "chat": 0.04},
    "B3": {"OOD": 0.05},
    "B3b": {"OOD": 0.05},
    "B3c": {"L0 20": 0.06, "L0 50": 0.01, "L0 90": 0.03},
    "B4a": {"finetuned, train": 0.002, "finetuned, validation": 0.004},
    "B4b": {"finetuned, OOD": 0.02, "finetuned, OOD less validation": 0.016},
    "B4c": {"k = 5": 0.8, "chosen k": 0.9, "gap of the single latent": 0.05},
    "B5": {"share closed": 0.5, "gap of the IT SAE": 0.04},
    "B6": {"IT": 0.0, "finetuned": 0.001, "chat": -0.001},
    "B7a": {"IT": 0.0018, "finetuned": 0.0024},
    "B7b": {"IT": 0.046, "finetuned": 0.037},
    "B8": {"dense": 0.0, "latents": 0.0},
    "O2": {"OOD": 0.0},
    "O6": {"OOD": 0.01},
    "H1": {"finetuned": 0.05, "chat": 0.05},
    "H2": {"finetuned": 0.05, "chat": 0.05},
    "H3": {"finetuned": 0.05, "chat": 0.05},
    "H4": {"finetuned": 0.1, "chat": 0.1},
    "N1": {"end of turn, 1": 0.0, "end of turn, 5": 0.002},
    "N2": {"untrained": 0.05, "frozen decoder": 0.05},
    "N3": {"early chat": 0.05, "pretraining": 0.05},
    "N4": {"leave out a": 0.05, "leave out b": 0.05},
    "N5": {"balanced": 0.05},
    "D1": {"over firings": 0.05, "over firings less over latents": 0.04},
    "D2": {"JumpReLU": -0.05, "Gated, denser": -0.02},
    "D3": {"over latents": 0.2, "over firings": 0.1},
    "D2b": {"QF less JumpReLU": 0.1, "QF less random directions": 0.2},
    "E1": {"JumpReLU": 0.05, "TopK": 0.04, "Gated": 0.009},
    "E2": {"half of JumpReLU's less QF's": 0.03, "the rest": 0.1, "ω₀ = .01": 0.1},
    "E3": {"QF less JumpReLU": 0.01, "TopK less QF": 0.01, "Gated less QF": 0.02, ".02 less the first": 0.01},
    "E4a": {"JumpReLU": -0.02, "Gated": -0.05},
    "E4b": {"JumpReLU, at high L0": 0.02, "QF less JumpReLU": 0.01},
    "E4c": {"Gated less QF": 0.05},
    "E4d": {"Gated": 0.02, "TopK": 0.01},
    "O1": {"gain": 0.2, "ten": 0.1},
    "O3": {"high": 0.02, "cost": 0.01},
    "O4": {"high": 0.05, "rare": 0.05},
    "O7": {"against random directions": 0.05, "half before": 0.02},
    "A1": {"from IT, single latent": 0.05, "chat, k latents": 0.04},
    "A2": {"from IT, single latent": 0.0, "from pretraining, k latents": -0.01},
    "A3": {"from pretraining less from IT": 0.01, "from the end": -0.01},
    "A4": {"single latent": 0.005, "k latents": -0.005},
    "A5": {"none redrawn": 0.01, "half redrawn": -0.01},
    "A6a": {"less none redrawn": -0.05, "less IT": -0.02},
    "A6b": {"single latent": 0.03, "k latents": 0.02},
    "A6c": {"less pretraining": 0.02, "less chat": 0.01},
    "O5": {"from IT less chat": 0.005, "from pretraining less from IT": 0.05},
    "C1": {"at the middle strength": 0.8, "with nothing planted": 0.02},
    "C2": {"words": -0.5, "surface features": 0.0},
    "C2b": {"dense probe": 0.0},
    "C3": {"sentence embedding": 0.03, "bag of words": 0.02},
}
BOTH_WAYS = [  # what makes a run that is otherwise like the post's fail, by one part
    ("B1", {"OOD": 0.9}),
    ("B2", {"chat": 0.0}),
    ("B3", {"OOD": -0.05}),
    ("B3b", {"OOD": -0.05}),
    ("B4a", {"finetuned, validation": 0.05}),
    ("B4b", {"finetuned, OOD": -0.02}),
    ("B4b", {"finetuned, OOD less validation": -0.002}),
    ("B4c", {"k = 5": 0.3}),
    ("B4c", {"chosen k": 1.1}),
    ("B5", {"share closed": 0.95}),
    ("B6", {"chat": 0.1}),
    ("B6", {"chat": -0.1}),
    ("B7a", {"finetuned": 0.1}),
    ("B7b", {"finetuned": -0.006}),
    ("B8", {"latents": -0.1}),
    ("O2", {"OOD": -0.1}),
    ("O6", {"OOD": -0.1}),
    ("H1", {"chat": 0.01}),
    ("H2", {"finetuned": 0.0}),
    ("H3", {"chat": -0.01}),
    ("H4", {"finetuned": 0.015}),
    ("N1", {"end of turn, 5": 0.03}),
    ("N2", {"frozen decoder": -0.01}),
    ("N3", {"pretraining": -0.01}),
    ("N4", {"leave out b": -0.01}),
    ("N5", {"balanced": -0.01}),
    ("D1", {"over firings": -0.01}),
    ("D1", {"over firings less over latents": -0.01}),
    ("D2", {"Gated, denser": 0.02}),
    ("D3", {"over firings": -0.05}),
    ("D2b", {"QF less JumpReLU": -0.1}),
    ("E1", {"Gated": -0.04}),
    ("E2", {"the rest": -0.1}),
    ("E2", {"ω₀ = .01": -0.1}),
    ("E3", {"QF less JumpReLU": -0.01}),
    ("E3", {".02 less the first": -0.01}),
    ("E4a", {"JumpReLU": 0.02}),
    ("E4b", {"QF less JumpReLU": -0.01}),
    ("E4c", {"Gated less QF": -0.05}),
    ("E4d", {"TopK": -0.01}),
    ("O1", {"gain": -0.1}),
    ("O3", {"cost": -0.01}),
    ("O4", {"rare": -0.05}),
    ("O7", {"half before": -0.02}),
    ("A1", {"chat, k latents": -0.03}),
    ("A2", {"from pretraining, k latents": -0.05}),
    ("A2", {"from IT, single latent": 0.05}),
    ("A3", {"from the end": 0.04}),
    ("A4", {"k latents": -0.04}),
    ("A5", {"half redrawn": 0.06}),
    ("A6a", {"less IT": 0.02}),
    ("A6b", {"k latents": -0.02}),
    ("A6c", {"less chat": -0.01}),
    ("O5", {"from pretraining less from IT": 0.01}),
    ("C1", {"at the middle strength": 0.3}),
    ("C2", {"surface features": -0.4}),
    ("C2b", {"dense probe": -0.9}),
    ("C3", {"bag of words": -0.05}),
]


def entry(value: float, half: float = 0.001, freedom: float = 1e6) -> dict[str, Any]:
    """A difference with its interval as :func:`lib.stats.summary` gives them."""
    error = half / norm.ppf(0.975)
    return {"difference": value, "interval": [value - half, value + half], "error": error, "freedom": freedom}


def judge(id_: str, half: float = 0.001, **changes: float) -> claims.Record:
    parts = ALIKE[id_] | changes
    return claims.judge(id_, {name: entry(value, half) for name, value in parts.items()}, "02_x", 100, 3)


def test_a_run_like_the_posts_reproduces_all() -> None:
    assert list(claims.ledger()) == list(ALIKE)
    for id_ in ALIKE:
        assert judge(id_).verdict == ("supported" if id_[0] in "OHN" else "reproduced")


def test_wide_intervals_decide_nothing() -> None:
    assert {judge(id_, half=0.6).verdict for id_ in ALIKE} == {"inconclusive at this scale"}


@pytest.mark.parametrize(("id_", "changes"), BOTH_WAYS)
def test_each_claim_can_fail_and_names_the_part(id_: str, changes: dict[str, float]) -> None:
    record = judge(id_, **changes)
    assert record.verdict == ("not supported" if id_[0] in "OHN" else "not reproduced")
    ((part, value),) = changes.items()
    assert (record.decided_by, record.value) == (part, value)
    assert record.interval == pytest.approx((value - 0.001, value + 0.001))


def test_a_gap_that_is_not_resolved_cannot_be_half_closed() -> None:
    for share in (0.5, 0.95):
        record = judge("B5", **{"share closed": share, "gap of the IT SAE": 0.0})
        assert (record.verdict, record.decided_by) == ("inconclusive at this scale", "gap of the IT SAE")


def test_the_part_that_decides_is_the_weakest() -> None:
    assert judge("B2", finetuned=0.03).decided_by == "finetuned"
    assert judge("B6", chat=0.0195, finetuned=-0.0192).decided_by == "chat"
    assert judge("B1", train=0.97, OOD=0.9).decided_by == "OOD"


def test_bounds_are_not_touched() -> None:
    test = Bounds(above=0, below=1)
    cases = list(itertools.product((-0.5, 0.0, 0.5, 1.0, 1.5), repeat=2))
    holds = [(low, high) for low, high in cases if low <= high and test.room(low, high) > 0]
    fails = [(low, high) for low, high in cases if low <= high and test.fails(low, high)]
    assert holds == [(0.5, 0.5)] and fails == [(-0.5, -0.5), (1.5, 1.5)]
    half = Bounds(above=0.25, below=0.75, centre=0.5)
    assert half.fails(0.6, 0.9) and not half.fails(0.6, 0.7) and not half.fails(0.4, 0.9)
    assert str(half) == "all intervals above 0.25 and below 0.75; not if one leaves out 0.5"
    assert str(Bounds(above=0.99)) == "all intervals above 0.99; not if one lies outside"


def test_one_part_is_enough_where_the_claim_says_some() -> None:
    """It fails only if all fail, by the one that came nearest; undecided it is while one may still do."""
    assert (judge("B3c").verdict, judge("B3c").decided_by) == ("reproduced", "L0 50")
    failed = judge("B3c", **{"L0 50": 0.04})
    assert (failed.verdict, failed.decided_by) == ("not reproduced", "L0 90")
    undecided = judge("B3c", **{"L0 50": 0.0195})
    assert (undecided.verdict, undecided.decided_by) == ("inconclusive at this scale", "L0 50")
    assert "one interval below 0.02; not if every one lies outside" in failed.test


def exact(id_: str, parts: dict[str, tuple[float, float]]) -> claims.Record:
    """Of parts (value, standard error)."""
    given = {name: entry(value, 1.959964 * error) for name, (value, error) in parts.items()}
    return claims.judge(id_, given, "02_x", 100, 3)


def test_p_values_of_verdicts() -> None:
    """By hand: of all parts the largest, of one that is enough the smallest times their number."""

    def two_sided(z: float) -> float:
        return float(2 * norm.sf(z))

    both = exact("B2", {"a": (0.05, 0.01), "b": (0.06, 0.01)})
    assert both.verdict == "reproduced" and both.p == pytest.approx(two_sided(3), rel=1e-3)
    one = exact("B2", {"a": (-0.03, 0.01), "b": (0.06, 0.01)})
    assert one.verdict == "not reproduced" and one.p == pytest.approx(2 * two_sided(5), rel=1e-3)
    inside = exact("B6", {"a": (0.01, 0.004), "b": (-0.005, 0.001)})
    assert inside.verdict == "reproduced" and inside.p == pytest.approx(two_sided(2.5), rel=1e-3)
    some = exact("B3c", {"a": (0.01, 0.002), "b": (0.1, 0.01)})
    assert some.verdict == "reproduced" and some.p == pytest.approx(2 * two_sided(5), rel=1e-3)
    assert some.margin == pytest.approx(0.01 + 1.96 * 0.002, rel=1e-2), "that of the part that is enough"
    none = exact("B3c", {"a": (0.05, 0.01), "b": (0.1, 0.01)})
    assert none.verdict == "not reproduced" and none.p == pytest.approx(two_sided(3), rel=1e-3)
    half = exact("B5", {"share closed": (0.5, 0.1), "gap of the IT SAE": (0.021, 0.01)})
    assert half.verdict == "reproduced" and half.p == pytest.approx(
        two_sided(2.1), rel=1e-3
    )  # the gap is the less certain
    far = exact("B5", {"share closed": (0.9, 0.1), "gap of the IT SAE": (0.1, 0.01)})
    assert far.verdict == "not reproduced" and far.p == pytest.approx(two_sided(4), rel=1e-3)
    assert exact("B3", {"OOD": (0.01, 0.01)}).p == 1
    without = claims.judge("B3", {"OOD": {"difference": 0.05, "interval": [0.04, 0.06]}}, "02_x", 1, 1)
    assert without.verdict == "reproduced" and without.p is None and without.detectable is None


@pytest.mark.parametrize("id_", ALIKE)
def test_a_verdict_is_one_at_five_per_cent(id_: str) -> None:
    """Of one part: p is below .05 exactly where there is a verdict, whatever the degrees of freedom."""
    claim = claims.ledger()[id_]
    rng, needed = np.random.default_rng(0), {name: entry(9.0, freedom=9.0) for name in claim.needs}
    others = {name: entry(ALIKE[id_][name], 1e-9) for name in claim.post}
    for _ in range(60):
        middle, half, free = rng.normal(0.3, 0.5), abs(rng.normal(0, 0.3)) + 1e-3, float(rng.integers(2, 40))
        part = entry(middle, half, free)
        part["error"] = half / float(stats.stdtrit(free, 0.975))
        name = next(iter(others), "a")
        record = claims.judge(id_, {name: part} | needed, "02_x", 1, 1) if len(others) < 2 else None
        if record and claim.test.centre is None:
            assert record.p is not None and (record.p < 0.05) == (record.verdict != claims.UNDECIDED)


def test_holm_marks_what_stands_among_all() -> None:
    """Three decided rows of which the least certain would stand alone but not among four."""
    records = [
        exact("B3", {"OOD": (0.05, 0.01)}),
        exact("O6", {"OOD": (0.025, 0.01)}),
        exact("B3b", {"OOD": (0.021, 0.01)}),
        exact("O2", {"OOD": (-0.02, 0.01)}),
    ]
    assert [r.verdict for r in records] == ["reproduced", "supported", "reproduced", "inconclusive at this scale"]
    assert not any(r.holm for r in records)
    assert [r.holm for r in claims.marked(records)] == [True, True, False, False]
    assert [r.holm for r in claims.marked(records[:2])] == [True, True]
    unknown = claims.judge("B3", {"OOD": {"difference": 0.05, "interval": [0.04, 0.06]}}, "02_x", 1, 1)
    assert not claims.marked([unknown])[0].holm
    assert [row[-1] for row in claims.rows(records[:2])] == ["reproduced †", "supported †"]


def test_what_the_design_could_have_seen_and_what_would_decide() -> None:
    record = exact("B2", {"a": (0.03, 0.01), "b": (0.03, 0.02)})
    assert record.verdict == "inconclusive at this scale" and record.detectable == pytest.approx(
        2.8016 * 0.02, rel=1e-3
    )
    assert record.needed == pytest.approx(2.8016**2 * 4, rel=1e-3)  # of b, whose error is twice its distance
    assert exact("B3", {"OOD": (0.05, 0.01)}).needed is None and exact("B3", {"OOD": (0.0, 0.01)}).needed is None
    one = exact("O5", {"above": (0.05, 0.03), "further": (0.06, 0.06), "just below": (0.0199, 0.01)})
    assert one.verdict == "inconclusive at this scale"
    assert one.needed == pytest.approx(2.8016**2, rel=1e-3)  # one below cannot decide alone
    none = exact("O5", {"a": (0.01, 0.02), "b": (0.0, 0.02)})  # all must come to lie below, so the largest
    assert none.needed == pytest.approx((2.8016 * 2) ** 2, rel=1e-3)
    two = exact("B6", {"inside": (0.001, 0.03), "outside": (0.03, 0.02), "further": (0.05, 0.05)})
    assert two.needed == pytest.approx((2.8016 * 0.05 / 0.03) ** 2, rel=1e-3)  # one outside decides, whatever others do
    share = exact("B5", {"share closed": (0.9, 0.3), "gap of the IT SAE": (0.1, 0.01)})
    assert share.verdict == "inconclusive at this scale"
    assert share.needed == pytest.approx((2.8016 * 0.3 / 0.4) ** 2, rel=1e-3)  # by the centre, which it must leave out


@pytest.mark.parametrize(("id_", "value"), [("B3", 0.01), ("B6", 0.01), ("B6", 0.05), ("B7a", 0.004), ("O2", -0.03)])
def test_the_size_that_would_decide_decides_four_times_in_five(id_: str, value: float) -> None:
    part = {"IT": value, "finetuned": 0.0} if id_ == "B7a" else {"a": value}
    record = exact(id_, {name: (x, 0.02 if x == value else 1e-6) for name, x in part.items()})
    assert record.verdict == "inconclusive at this scale" and record.needed
    error, rng = 0.02 / math.sqrt(record.needed), np.random.default_rng(0)
    again = [
        exact(
            id_,
            {n: (rng.normal(x, error) if x == value else x, error if x == value else 1e-6) for n, x in part.items()},
        )
        for _ in range(400)
    ]
    assert np.mean([r.verdict != claims.UNDECIDED for r in again]) == pytest.approx(0.8, abs=0.06)


def test_no_difference_is_said_with_a_margin() -> None:
    assert exact("B6", {"a": (0.001, 0.002), "b": (-0.01, 0.003)}).margin == pytest.approx(
        0.01 + 1.96 * 0.003, rel=1e-3
    )
    assert exact("O2", {"OOD": (0.05, 0.01)}).margin == pytest.approx(
        -0.05 + 1.96 * 0.01, rel=1e-3
    )  # better, at any margin
    assert exact("B7a", {"IT": (0.002, 0.001), "finetuned": (-0.1, 0.01)}).margin == pytest.approx(0.00396, rel=1e-2)
    assert exact("B3", {"OOD": (0.05, 0.01)}).margin is None
    for claim in claims.ledger().values():
        ends = {abs(x) for x in (claim.test.above, claim.test.below) if math.isfinite(x)}
        assert claim.margin is None or ends == {claim.margin}, claim.id


def test_records_are_complete_and_survive_the_store(empty_store: store.Store) -> None:
    records = [judge(id_) for id_ in ALIKE]
    artifact = claims.filed(records, claims.fixed(), name="claims")
    assert artifact.value["records"] == artifacts.plain([record.model_dump() for record in claims.marked(records)])
    assert artifact.value["sha256"] == claims.fixed() and len(claims.fixed()) == 64
    back = [claims.Record(**row) for row in artifact.value["records"]]
    assert [record.verdict for record in back] == [record.verdict for record in records] and all(r.holm for r in back)
    fields = {
        "id",
        "statement",
        "measure",
        "test",
        "value",
        "interval",
        "decided_by",
        "parts",
        "n",
        "seeds",
        "verdict",
        "figure",
    }
    fields |= {"p", "holm", "detectable", "needed", "margin"}
    assert set(json.loads(artifact.path.read_text())["payload"]["records"][0]) == fields
    for record in records:
        assert record.interval[0] <= record.value <= record.interval[1] and record.statement and record.measure
        assert all(low <= value <= high for value, low, high in record.parts.values())
    assert "undecided unless gap of the IT SAE is above 0" in judge("B5").test
    assert judge("C1").test.endswith("undecided unless with nothing planted is below 0.1")
    lucky = judge("C1", **{"with nothing planted": 0.3})
    assert (lucky.verdict, lucky.decided_by) == (claims.UNDECIDED, "with nothing planted")
    changed = claims.filed(records, "another", name="claims")
    assert changed.key != artifact.key


def test_a_record_is_the_same_on_another_cpu() -> None:
    """Numbers that differ in their last bits only make one record, and so one key; the unrounded ones decided."""
    here, there = (
        claims.judge(
            "B3",
            {"OOD": {"difference": 0.05 * x, "interval": [0.01 * x, 0.09 * x], "error": 0.02 * x, "freedom": 9}},
            "f",
            1,
            1,
        )
        for x in (1.0, 1.0 + 2e-15)
    )
    assert here == there and here.p is not None and here.value == 0.05
    nothing = claims.judge("B3", {"OOD": {"difference": 0.1 + 0.2 - 0.3, "interval": [-0.0, 0.09]}}, "f", 1, 1)
    assert str(nothing.value) == str(nothing.interval[0]) == "0.0"
    assert claims.filed([here], "").key == claims.filed([there], "").key


def test_rows_show_what_decided() -> None:
    (short,), (whole,) = claims.rows([judge("B2", chat=0.0)]), claims.rows([judge("B3")], tests=True)
    assert short[0] == "B2" and short[2:] == ("0.000 [-0.001, 0.001] (chat)", "not reproduced †")
    assert len(whole) == 6 and whole[3] == "0.050 [0.049, 0.051]" and "above 0" in whole[4]
    (wide,) = claims.rows([exact("B6", {"a": (0.01, 0.01)})])
    assert wide[2:] == (
        "0.010 [-0.010, 0.030]; passes at a margin of 0.030",
        "inconclusive at this scale; 7.8 times the size would decide",
    )


def test_rows_are_fixed_before_their_run() -> None:
    ledger = claims.ledger()
    days = dict.fromkeys(("01_training", "05_quadratic_frequency", "03_debugging"), datetime.date(2026, 11, 27))
    assert all(c.fixed == days.get(c.notebook, datetime.date(2026, 11, 26)) for c in ledger.values())
    by_notebook = {"02_probing": "BO", "06_surprising": "HN", "04_autointerp": "D", "05_quadratic_frequency": "DEO"}
    by_notebook |= {"01_training": "AO", "03_debugging": "C"}
    assert all(id_[0] in by_notebook[claim.notebook] for id_, claim in ledger.items())
    assert all(claim.open for id_, claim in ledger.items() if id_[0] in "OHN"), "what is ours is supported or not"
    assert all(claim.amended and claim.place and claim.method for claim in ledger.values())
    of_post = [claim for id_, claim in ledger.items() if id_[0] in "BO"]
    assert not [claim for claim in of_post if "pretraining" in claim.measure or "pretraining" in claim.post]
    with pytest.raises(KeyError, match="B5 needs the parts gap of the IT SAE"):
        claims.judge("B5", {"share closed": entry(0.5)}, "02_x", 1, 1)
    with pytest.raises(KeyError, match="B99"):
        claims.judge("B99", {}, "02_x", 1, 1)


def judged_by(committed: Any) -> str | None:
    """The hash of the ledger that committed results were judged by; None of results from before it was kept."""
    payload = committed["payload"]
    return payload["sha256"] if isinstance(payload, dict) else None


def test_committed_results_were_judged_by_this_ledger() -> None:
    """A test that was changed after its numbers were seen is noticed."""
    assert judged_by({"payload": []}) is None and judged_by({"payload": {"sha256": "a", "records": []}}) == "a"
    found = judged_by(json.loads((config.ROOT / "data" / "results" / "claims.json").read_text(encoding="utf-8")))
    assert found == claims.fixed(), "data/claims.yaml was changed after the run that it judges: run make report again"
