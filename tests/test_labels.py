"""A prompt set's splits: drawn by cluster, checked for leaks."""

import dataclasses
import itertools

import numpy as np
import pytest
from planted import LABELS, examples

from lib.texts.examples import NO_CHAT, SETS, SPLITS, Labels, LeakError, TooFew


def test_draws_part_no_group_and_keep_sizes() -> None:
    before = {split: LABELS.where(split).sum() for split in SPLITS}
    draws = [LABELS.drawn(run) for run in range(4)]
    for labels in draws:
        assert {s: labels.where(s).sum() for s in SPLITS} == before
        np.testing.assert_array_equal(labels.split == "ood", LABELS.split == "ood")
        for a, b in itertools.combinations(SPLITS, 2):
            assert not set(labels.group[labels.split == a]) & set(labels.group[labels.split == b])
    assert len({tuple(labels.split) for labels in draws}) == 4
    few = Labels.of([e.model_copy(update={"group": i}) for i, e in enumerate(examples(24))])
    few = few.only(np.isin(np.arange(24), [0, 1, 12, 13]))
    assert all(few.drawn(run).checked() for run in range(1, 20)), (
        "a draw that left a split without a class is drawn again"
    )


def test_a_draw_counts_clusters_by_class_once() -> None:
    """Harmful clusters that hold harmless errands too are not drawn a second time with the harmless ones."""
    rows = [
        e.model_copy(update={"group": e.group if e.split == "ood" else i // 4, "label": int(i % 12 == 0)})
        for i, e in enumerate(examples())
    ]
    rows = [e.model_copy(update={"label": i % 2}) if e.split == "ood" else e for i, e in enumerate(rows)]
    labels = Labels.of(rows)
    harmful = [labels.drawn(run).y[labels.drawn(run).where("val")].sum() for run in range(6)]
    assert len(set(harmful)) == 1


@pytest.mark.parametrize(("a", "b"), [("train", "val"), ("train", "ood"), ("val", "ood")])
def test_a_planted_leak_is_caught(a: str, b: str) -> None:
    rows = examples()
    first, second = (next(i for i, e in enumerate(rows) if e.split == split) for split in (a, b))
    rows[second] = rows[second].model_copy(update={"group": rows[first].group})
    with pytest.raises(LeakError, match=f"in both {a} and {b}"):
        Labels.of(rows)


def test_a_split_of_one_class_is_an_error() -> None:
    rows = [e.model_copy(update={"label": 0}) if e.split == "val" else e for e in examples()]
    with pytest.raises(TooFew, match="'val' needs prompts of both labels"):
        Labels.of(rows)


def test_sets_and_what_stays_out_of_every_figure() -> None:
    rows = examples()
    rows[-1] = rows[-1].model_copy(update={"mix": "wider"})
    rows[-2] = rows[-2].model_copy(update={"mix": "balanced", "slice": "wrapped"})
    labels, ood = Labels.of(rows), len(rows) // 4
    assert {name: labels.where(name).sum() for name in SETS} == {"ood": ood - 2, "wider": ood - 1, "balanced": ood - 1}
    assert (labels.slice[labels.where(NO_CHAT)] != "chat").all()
    assert labels.where(NO_CHAT).sum() == (labels.slice[labels.where("ood")] != "chat").sum()
    kept = np.arange(len(rows)) % 3 > 0
    only = labels.only(kept)
    assert (only.where("train") == ((labels.split == "train") & kept)).all()
    for name in SETS:
        np.testing.assert_array_equal(only.where(name), labels.where(name))
    assert dataclasses.replace(only, split=np.where(kept, only.split, "")).where("train").sum() == 200


def test_folds_leave_a_transform_out_and_score_it() -> None:
    """A transform of one class is set against plain prompts of the other; one of both against itself."""
    names = {3: "jailbreak", 4: "errand", 6: "both", 7: "both", 10: "never in validation"}
    rows = [
        e.model_copy(update={"transform": names.get(i % 12, "plain"), "group": i}) for i, e in enumerate(examples())
    ]
    rows = [
        e if i % 12 != 10 or e.split != "val" else e.model_copy(update={"transform": "plain"})
        for i, e in enumerate(rows)
    ]
    labels = Labels.of(rows)
    folds = {next(iter(set(labels.transform[labels.split != left.split]))): (left, m) for left, m in labels.folds()}
    assert folds.keys() == {"jailbreak", "errand", "both"}
    val, train = labels.where("val"), labels.where("train")
    for name, (left, scored) in folds.items():
        here = labels.transform == name
        np.testing.assert_array_equal(left.where("train"), train & ~here)
        np.testing.assert_array_equal(left.where("val"), val)
        others = {"jailbreak": 0, "errand": 1}.get(name)
        plain = val & (labels.transform == "plain") & (labels.y == others) if others is not None else val & False
        np.testing.assert_array_equal(scored, (val & here) | plain)
    ((same, scored),) = LABELS.folds()
    assert same is LABELS and (scored == LABELS.where("val")).all()
