"""A prompt set's splits: drawn by cluster, checked for leaks."""

import dataclasses
import itertools

import numpy as np
import pytest
from planted import LABELS, examples

from lib import stats
from lib.texts.examples import SPLITS, Labels, LeakError, TooFew


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


def test_runs_share_the_draws_of_clusters() -> None:
    """A cluster has one weight in all runs, wherever their splits put it: else a mean over runs would look too certain."""
    a, b = (stats.draws(r.group, r.split == "ood", 20, 0) for r in (LABELS.drawn(0), LABELS.drawn(1)))
    np.testing.assert_array_equal(a, b)


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


def test_diagnostic_slices_stay_out_of_the_overall_figures() -> None:
    rows = examples()
    rows[-1] = rows[-1].model_copy(update={"overall": False})
    labels = Labels.of(rows)
    assert labels.where("ood").sum() == len(rows) // 4 - 1
    kept = np.arange(len(rows)) % 3 > 0
    only = labels.only(kept)
    assert (only.where("train") == ((labels.split == "train") & kept)).all()
    np.testing.assert_array_equal(only.where("ood"), labels.where("ood"))
    assert dataclasses.replace(only, split=np.where(kept, only.split, "")).where("train").sum() == 200
