"""Statistics against scikit-learn, brute force and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from lib import stats


def inside(y: np.ndarray) -> np.ndarray:
    return np.zeros(len(y), bool)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=30), st.integers(0, 99))
def test_bootstrap_against_scikit_learn(rows: list[tuple[int, int]], seed: int) -> None:
    """Every resample of whole groups, ties and all, recomputed by repeating its rows."""
    y, score = (np.array(column) for column in zip(*rows, strict=True))
    weights = stats.draws(np.arange(len(y)) // 3, inside(y), 20, seed)
    got = stats.aurocs(y, score.astype(float), weights)
    for value, count in zip(got, weights.astype(int), strict=True):
        index = np.repeat(np.arange(len(y)), count)
        if len(np.unique(y[index])) == 2:
            assert value == pytest.approx(roc_auc_score(y[index], score[index]))
        else:
            assert np.isnan(value)


def test_groups_are_drawn_whole_and_widen_the_interval() -> None:
    group = np.repeat(np.arange(200), 5)
    rng = np.random.default_rng(0)
    y = np.repeat(rng.integers(0, 2, 200), 5)
    weights = stats.draws(group, inside(y), 50, 0)
    assert all(len(set(row[group == g])) == 1 for row in weights for g in (0, 17, 199))
    assert (weights[:, ::5].sum(1) == 200).all()
    score = y + np.repeat(rng.normal(0, 1, 200), 5)
    alone, grouped = (
        np.std(stats.aurocs(y, score, stats.draws(g, inside(y), 500, 0))) for g in (np.arange(1000), group)
    )
    assert grouped > 1.5 * alone


def test_groups_outside_are_drawn_apart() -> None:
    """Each part keeps its number of groups in every sample, and what is drawn inside does not depend on what is outside."""
    group, outside = np.arange(50), np.arange(50) >= 30
    weights = stats.draws(group, outside, 40, 0)
    assert (weights[:, ~outside].sum(1) == 30).all() and (weights[:, outside].sum(1) == 20).all()
    np.testing.assert_array_equal(weights[:, :30], stats.draws(group[:30], outside[:30], 40, 0))


def test_intervals_cover() -> None:
    """Means of three runs that share their prompts, many times over: the truth is missed about one time in twenty."""
    rng, missed = np.random.default_rng(0), {}
    for run_spread, prompt_spread in ((0.03, 0.0), (0.03, 0.01), (0.01, 0.03), (0.0, 0.03)):
        outside = 0
        for _ in range(600):
            seeds = rng.normal(0, run_spread, 3) + rng.normal(0, prompt_spread)
            boot = rng.normal(0, prompt_spread, 300)
            low, high = stats.interval([boot + s for s in seeds], seeds, (-2, 2))
            outside += not low <= 0 <= high
        missed[run_spread, prompt_spread] = outside / 600
    assert all(0.02 < share < 0.09 for share in missed.values()), missed


Samples = tuple[list[list[np.ndarray]], list[list[float]]]


def three_probes(rng: np.random.Generator, gap: float, share: float, of_runs: float, of_prompts: float) -> Samples:
    """(samples, runs) of three probes in a few runs, the third of which closes ``share`` of the gap."""
    prompts = rng.normal(0, of_prompts, (3, 100))
    means = [0.9, 0.9 - gap, 0.9 - gap + share * gap]
    runs = [[m + rng.normal(0, of_runs) for m in means] for _ in range(int(rng.integers(1, 5)))]
    return [[m + p for m, p in zip(run, prompts, strict=True)] for run in runs], runs


@pytest.mark.parametrize("seed", range(40))
def test_share_closed_against_a_fine_grid(seed: int) -> None:
    """From the least to the largest share whose remainder is compatible with 0."""
    rng = np.random.default_rng(seed)
    gap, of_runs, of_prompts = (float(rng.choice(x)) for x in ((0.005, 0.03, 0.1), (0.001, 0.01), (0.001, 0.01)))
    samples, runs = three_probes(rng, gap, float(rng.uniform(-1, 2)), of_runs, of_prompts)
    found = stats.share_closed(samples, runs)
    (top, low, high), (least, most) = np.mean(runs, axis=0), found["interval"]
    assert found["share"] == pytest.approx((high - low) / (top - low))

    def compatible(share: float) -> bool:
        rest = [[(h - a) - share * (t - a) for t, a, h in of] for of in (samples, runs)]
        below, above = stats.interval(rest[0], rest[1], (-1e6, 1e6))
        return below <= 0 <= above

    around = np.geomspace(1e-3, 2 * stats.WIDEST, 400)
    grid = np.clip(found["share"] + np.r_[-around[::-1], 0, around], -stats.WIDEST, stats.WIDEST)
    inside = np.array([compatible(share) for share in grid])
    first, last = np.flatnonzero(inside)[[0, -1]]
    assert grid[max(first - 1, 0)] <= least <= grid[first] and grid[last] <= most <= grid[min(last + 1, len(grid) - 1)]
    for end in (least, most):
        if abs(end) < stats.WIDEST:
            assert compatible(found["share"] + (end - found["share"]) * (1 - 1e-6))
            assert not compatible(found["share"] + (end - found["share"]) * (1 + 1e-6))
    low_gap, high_gap = found["gap_interval"]
    assert (low_gap <= 0 <= high_gap) == (least == -stats.WIDEST or most == stats.WIDEST)


def test_share_of_no_gap_and_of_no_spread() -> None:
    exact = [[np.full(9, v) for v in (0.9, 0.5, 0.6)]], [[0.9, 0.5, 0.6]]
    assert stats.share_closed(*exact)["interval"] == pytest.approx([0.25, 0.25], abs=1e-6)
    none = stats.share_closed([[np.full(9, 0.9)] * 3], [[0.9] * 3])
    assert none["interval"] == [-stats.WIDEST, stats.WIDEST] and none["gap"] == none["share"] == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=4, max_size=60))
def test_recall_and_threshold_against_brute_force(rows: list[tuple[int, int]]) -> None:
    y, score = (np.array(column) for column in zip(*rows, strict=True))
    if len(np.unique(y)) < 2:
        return
    many, scores = np.tile(y, 100), np.tile(score, 100)  # enough harmless ones for 1 % of them to be some
    allowed = [t for t in [*score, -1] if (scores[many == 0] > t).sum() <= int(0.01 * (many == 0).sum())]
    assert stats.recall(many, scores) == max((score[y == 1] > t).mean() for t in allowed)
    cut = stats.best_threshold(y, score)
    best = max(((score > t) == y).mean() for t in np.arange(-0.5, 7))
    assert ((score > cut) == y).mean() == pytest.approx(best)


def test_recall_of_too_few_harmless_prompts_is_blank() -> None:
    """Of 99 harmless prompts, 1 % is none: the operating point cannot be resolved."""
    score = np.arange(120.0)
    for harmless, known in ((2, False), (99, False), (100, True)):
        y = (np.arange(120) >= harmless).astype(int)
        assert (stats.recall(y, score) is not None) == known


def test_recall_is_a_point_of_the_curve() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 500)
    score = np.round(y + rng.normal(0, 1, 500), 1)
    alarms, hits, _ = roc_curve(y, score, drop_intermediate=False)
    assert stats.recall(y, score) == pytest.approx(hits[alarms <= 0.01].max())


def test_column_aurocs_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, (50, 6)), rng.integers(0, 2, 50)
    expected = [roc_auc_score(y, x[:, j]) for j in range(6)]
    np.testing.assert_allclose(stats.column_aurocs(x, y), expected)


def test_percentile_bootstrap_of_texts() -> None:
    """Every sample has as many texts as there are; the interval of their mean covers 95 %."""
    assert (stats.texts(30, 10, 0).sum(1) == 30).all()
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 60))
    weights = stats.texts(60, 400, 1) / 60
    ends = np.array([stats.percentiles(weights @ row) for row in values])
    assert 0.9 < ((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean() < 0.98


def test_share_interval_is_wilsons() -> None:
    low, high = stats.share_interval(3, 20)
    z, p, n = 1.959964, 0.15, 20
    middle, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n),
    )
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert stats.share_interval(0, 20)[1] > 0.1 and stats.share_interval(20, 20)[0] < 0.9
