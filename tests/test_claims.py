"""The ledger: each claim's test says what it should at both sides of its bounds, and names the part that decided."""

import datetime
import itertools
import json

import pytest

from lib import claims, store
from lib.claims import Test as Bounds
from lib.store import artifacts

ALIKE = {  # parts of a run that agrees with the post in everything
    "B1": {"train": 1.0, "validation": 1.0, "OOD": 0.999},
    "B2": {"pretraining": 0.04, "finetuned": 0.04, "chat": 0.04},
    "B3": {"OOD": 0.05},
    "B4a": {"finetuned, train": 0.002, "finetuned, validation": 0.004},
    "B4b": {"finetuned, OOD": 0.02, "finetuned, OOD less validation": 0.016},
    "B5": {"share closed": 0.5, "gap of the pretraining SAE": 0.04},
    "B6": {"pretraining": 0.0, "finetuned": 0.001, "chat": -0.001},
    "B7a": {"pretraining": 0.0018, "finetuned": 0.0024},
    "B7b": {"pretraining": 0.046, "finetuned": 0.037},
    "B8": {"dense": 0.0, "20 latents": 0.0},
    "O2": {"OOD": 0.0},
    "O6": {"OOD": 0.01},
}


def entry(value: float, half: float = 0.001) -> dict:
    return {"difference": value, "interval": [value - half, value + half]}


def judge(id_: str, half: float = 0.001, **changes: float) -> claims.Record:
    parts = ALIKE[id_] | {name.replace("_", " "): value for name, value in changes.items()}
    return claims.judge(id_, {name: entry(value, half) for name, value in parts.items()}, "02_x", 100, 3)


def test_a_run_like_the_posts_reproduces_all() -> None:
    assert list(claims.ledger()) == list(ALIKE)
    for id_ in ALIKE:
        assert judge(id_).verdict == ("supported" if id_[0] == "O" else "reproduced")


def test_wide_intervals_decide_nothing() -> None:
    assert {judge(id_, half=0.6).verdict for id_ in ALIKE} == {"inconclusive at this scale"}


@pytest.mark.parametrize(
    ("id_", "changes"),
    [
        ("B1", {"OOD": 0.9}),
        ("B2", {"chat": 0.0}),
        ("B3", {"OOD": -0.05}),
        ("B4a", {"finetuned, validation": 0.05}),
        ("B4b", {"finetuned, OOD": -0.02}),
        ("B4b", {"finetuned, OOD less validation": -0.002}),
        ("B5", {"share closed": 0.95}),
        ("B6", {"chat": 0.1}),
        ("B6", {"chat": -0.1}),
        ("B7a", {"finetuned": 0.1}),
        ("B7b", {"finetuned": -0.006}),
        ("B8", {"20 latents": -0.1}),
        ("O2", {"OOD": -0.1}),
        ("O6", {"OOD": -0.1}),
    ],
)
def test_each_claim_can_fail_and_names_the_part(id_: str, changes: dict[str, float]) -> None:
    record = judge(id_, **changes)
    assert record.verdict == ("not supported" if id_[0] == "O" else "not reproduced")
    ((part, value),) = changes.items()
    assert (record.decided_by, record.value) == (part, value)
    assert record.interval == pytest.approx((value - 0.001, value + 0.001))


def test_a_gap_that_is_not_resolved_cannot_be_half_closed() -> None:
    for share in (0.5, 0.95):
        record = judge("B5", **{"share closed": share, "gap of the pretraining SAE": 0.0})
        assert (record.verdict, record.decided_by) == ("inconclusive at this scale", "gap of the pretraining SAE")


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


# What the run of 25 November 2026 gave, and what the ledger said of it when each claim was a function of its own.
COMMITTED = {
    "B1": ("not reproduced", "OOD", {"train": (1, 1, 1), "validation": (0.9995009, 0.9989363, 1.0), "OOD": (0.8845646, 0.8424943, 0.9266349)}),
    "B2": ("reproduced", "pretraining", {"pretraining": (0.1520342, 0.1158383, 0.18823), "finetuned": (0.16913, 0.1395217, 0.1987383), "chat": (0.1676631, 0.1450023, 0.190324)}),
    "B3": ("inconclusive at this scale", "OOD", {"OOD": (-0.04700761, -0.1277622, 0.03374695)}),
    "B4a": ("not reproduced", "chat, validation", {"pretraining, train": (0.03912581, -0.00576172, 0.08401334), "pretraining, validation": (0.04807571, 0.001494817, 0.09465661), "finetuned, train": (0.05151702, -0.008944081, 0.1119781), "finetuned, validation": (0.05767363, -0.002613081, 0.1179603), "chat, train": (0.06884349, 0.0190581, 0.1186289), "chat, validation": (0.07005118, 0.03462342, 0.1054789)}),
    "B4b": ("inconclusive at this scale", "finetuned, OOD less validation", {"pretraining, OOD": (0.1360247, 0.03456712, 0.2374823), "finetuned, OOD": (0.1551155, 0.02602937, 0.2842017), "chat, OOD": (0.3040392, 0.01454644, 0.593532), "pretraining, OOD less validation": (0.087949, -0.01209617, 0.1879942), "finetuned, OOD less validation": (0.0974419, -0.04025407, 0.2351379), "chat, OOD less validation": (0.233988, -0.03222667, 0.5002028)}),
    "B5": ("not reproduced", "share closed", {"share closed": (-0.1403481, -0.3, 0.17), "gap of the pretraining SAE": (0.1360247, 0.03456712, 0.2374823)}),
    "B6": ("inconclusive at this scale", "chat", {"pretraining": (-0.01110796, -0.2374583, 0.2152424), "finetuned": (-0.02104238, -0.1509428, 0.108858), "chat": (-0.1546037, -0.5023405, 0.1931331)}),
    "B7a": ("inconclusive at this scale", "finetuned", {"pretraining": (0.02775434, 0.005709929, 0.04979875), "finetuned": (0.04671654, -0.006888798, 0.1003219)}),
    "B7b": ("inconclusive at this scale", "finetuned", {"pretraining": (0.07724584, -0.0746687, 0.2291604), "finetuned": (0.07910471, -0.1476825, 0.3058919)}),
    "B8": ("inconclusive at this scale", "20 latents", {"dense": (-0.005464221, -0.03106692, 0.02013848), "20 latents": (-0.009443382, -0.3389988, 0.320112)}),
    "O2": ("inconclusive at this scale", "OOD", {"OOD": (0.0004556508, -0.5212776, 0.5221889)}),
    "O6": ("inconclusive at this scale", "OOD", {"OOD": (0.02562508, -0.02649967, 0.07774984)}),
}  # fmt: skip


@pytest.mark.parametrize("id_", COMMITTED)
def test_verdicts_on_the_committed_numbers_are_what_they_were(id_: str) -> None:
    verdict, decided, numbers = COMMITTED[id_]
    parts = {name: {"difference": value, "interval": [low, high]} for name, (value, low, high) in numbers.items()}
    record = claims.judge(id_, parts, "02_x", 3858, 3)
    assert (record.verdict, record.decided_by) == (verdict, decided)
    assert record.parts == numbers and record.value == numbers[decided][0]


def test_records_are_complete_and_survive_the_store(empty_store: store.Store) -> None:
    records = [judge(id_) for id_ in ALIKE]
    artifact = claims.filed(records, name="claims")
    assert artifact.value == artifacts.plain([record.model_dump() for record in records])
    assert [claims.Record(**row).verdict for row in artifact.value] == [record.verdict for record in records]
    fields = {"id", "statement", "measure", "test", "value", "interval", "decided_by", "parts", "n", "seeds"}
    assert set(json.loads(artifact.path.read_text())["payload"][0]) == fields | {"verdict", "figure"}
    for record in records:
        assert record.interval[0] <= record.value <= record.interval[1] and record.statement and record.measure
        assert all(low <= value <= high for value, low, high in record.parts.values())
    assert "undecided unless gap of the pretraining SAE is above 0" in judge("B5").test


def test_rows_show_what_decided() -> None:
    (short,), (whole,) = claims.rows([judge("B2", chat=0.0)]), claims.rows([judge("B3")], tests=True)
    assert short[0] == "B2" and short[2:] == ("0.000 [-0.001, 0.001] (chat)", "not reproduced")
    assert len(whole) == 6 and whole[3] == "0.050 [0.049, 0.051]" and "above 0" in whole[4]


def test_each_row_has_its_date_and_parts_that_it_names_must_be_given() -> None:
    assert all(claim.fixed == datetime.date(2026, 11, 23) for claim in claims.ledger().values())
    assert {id_ for id_, claim in claims.ledger().items() if claim.amended} == {"B4a", "B4b", "B7a", "B7b"}
    with pytest.raises(KeyError, match="B5 needs the parts gap of the pretraining SAE"):
        claims.judge("B5", {"share closed": entry(0.5)}, "02_x", 1, 1)
    with pytest.raises(KeyError, match="B99"):
        claims.judge("B99", {}, "02_x", 1, 1)
