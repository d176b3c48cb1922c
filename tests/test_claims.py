"""The ledger: each claim's test says what it should at both sides of its bounds, and can fail."""

import pytest

from lib import claims


def entry(value: float, half: float = 0.001, name: str = "difference") -> dict:
    return {name: value, "interval": [value - half, value + half]}


def by_split(train: float, val: float, ood: float, half: float = 0.001, name: str = "difference") -> dict:
    more = {"ood - val": entry(ood - val, half, name)}
    return {s: entry(v, half, name) for s, v in (("train", train), ("val", val), ("ood", ood))} | more


def reproduced(half: float = 0.001) -> dict:
    """Results of a run that agrees with the post in everything."""
    dense = by_split(1.0, 1.0, 0.999, half, "auroc")
    for split_ in dense:
        dense[split_] |= {"n": 100, "seeds": [1, 2, 3]}
    differences = {
        "single, finetuned - pretraining": by_split(0.02, 0.02, 0.05, half),
        "max - position, dense": by_split(0, 0, 0.0, half),
        "max - position, k": by_split(0, 0, 0.0, half),
        "QF - JumpReLU, k": by_split(0, 0, 0.0, half),
        "attention - dense": by_split(0, 0, 0.01, half),
    }
    for name in claims.THREE:
        differences[f"dense - single, {name}"] = by_split(0.04, 0.05, 0.1, half)
        differences[f"dense - k, {name}"] = by_split(0.002, 0.004, 0.02, half)
        differences[f"rules, {name}"] = by_split(0, 0, 0.001, half)
        differences[f"dense - reconstruction, {name}"] = by_split(0.001, 0.002, 0.048, half)
    gap = {
        "share": 0.5,
        "interval": [0.5 - 50 * half, 0.5 + 50 * half],
        "gap": 0.04,
        "gap_interval": [0.04 - half, 0.04 + half],
    }
    return {"tables": {"dense": dense}, "differences": differences, "closed_gap": gap}


def verdicts(found: dict) -> dict[str, str]:
    return {record.id: record.verdict for record in (claim(found) for claim in claims.LEDGER)}


def test_a_run_like_the_posts_reproduces_all() -> None:
    found = verdicts(reproduced())
    assert list(found) == ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "O2", "O6"]
    assert {v for k, v in found.items() if k[0] == "B"} == {"reproduced"}
    assert found["O2"] == found["O6"] == "supported"


def test_wide_intervals_decide_nothing() -> None:
    assert set(verdicts(reproduced(0.5)).values()) == {"inconclusive at this scale"}


@pytest.mark.parametrize(
    ("claim", "change"),
    [
        ("B1", lambda f: f["tables"]["dense"].update(ood=entry(0.9, name="auroc") | {"n": 1, "seeds": [1]})),
        ("B2", lambda f: f["differences"].update({"dense - single, chat": by_split(0.0, 0, 0)})),
        ("B3", lambda f: f["differences"].update({"single, finetuned - pretraining": by_split(0, 0, -0.05)})),
        ("B4", lambda f: f["differences"].update({"dense - k, chat": by_split(0, 0.05, 0.02)})),
        ("B4", lambda f: f["differences"].update({"dense - k, chat": by_split(0, 0, -0.02)})),
        ("B4", lambda f: f["differences"].update({"dense - k, chat": by_split(0, 0.009, 0.002)})),
        ("B5", lambda f: f["closed_gap"].update(share=0.95, interval=[0.9, 1.0])),
        ("B6", lambda f: f["differences"].update({"rules, chat": by_split(0, 0, 0.1)})),
        ("B7", lambda f: f["differences"].update({"dense - reconstruction, finetuned": by_split(0, 0.1, 0.1)})),
        ("B7", lambda f: f["differences"].update({"dense - reconstruction, finetuned": by_split(0, 0.009, 0.003)})),
        ("B8", lambda f: f["differences"].update({"max - position, k": by_split(0, 0, -0.1)})),
        ("O2", lambda f: f["differences"].update({"QF - JumpReLU, k": by_split(0, 0, -0.1)})),
        ("O6", lambda f: f["differences"].update({"attention - dense": by_split(0, 0, -0.1)})),
    ],
)
def test_each_claim_can_fail(claim: str, change) -> None:
    found = reproduced()
    change(found)
    got = verdicts(found)
    assert got.pop(claim) in ("not reproduced", "not supported")
    assert {v for k, v in got.items() if k[0] == "B"} <= {"reproduced"}, "and fails alone"


def test_a_gap_that_is_not_resolved_cannot_be_half_closed() -> None:
    found = reproduced()
    found["closed_gap"]["gap_interval"] = [-0.01, 0.05]
    assert verdicts(found)["B5"] == "inconclusive at this scale"


def test_records_are_complete() -> None:
    for claim in claims.LEDGER:
        record = claim(reproduced())
        assert record.interval[0] <= record.value <= record.interval[1] and record.n and record.seeds
        assert all(low <= value <= high for value, low, high in record.parts.values())
        assert record.statement and record.measure and record.test and record.figure.startswith("02_")
