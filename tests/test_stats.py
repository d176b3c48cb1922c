"""Statistics against scikit-learn, brute force and simulation."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm, ttest_1samp
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score, roc_curve

from lib import config, stats
from tests.bench import coverage


def interval(*given: Any) -> list[float]:
    """That of :func:`lib.stats.summary`."""
    return stats.summary(*given)["interval"]


def weighted(y: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    """AUROC by its definition, rows counted ``weight`` times."""
    pairs = np.outer(weight[y == 1], weight[y == 0])
    apart = np.subtract.outer(score[y == 1], score[y == 0])
    return float((pairs * ((apart > 0) + (apart == 0) / 2)).sum() / pairs.sum())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3), st.integers(0, 4)), min_size=4, max_size=30))
def test_influences_are_derivatives(rows: list[tuple[int, int, int]]) -> None:
    """Of the AUROC by its definition, by the weight of each group, ties and all."""
    y, score, group = (np.array(column) for column in zip(*rows, strict=True))
    if len(np.unique(y)) < 2:
        return
    auroc, pulls = stats.influences(y, score.astype(float), group, 5)
    assert auroc == pytest.approx(roc_auc_score(y, score))
    for which in range(5):
        up, down = (weighted(y, score, 1 + sign * 1e-4 * (group == which)) for sign in (1, -1))
        assert pulls[which] == pytest.approx((up - down) / 2e-4, abs=1e-6)


def planted(rng: np.random.Generator, apart: float, clusters: tuple[int, int], rows: int) -> tuple[np.ndarray, ...]:
    """(y, score, group): two normal classes ``apart``, in clusters of rows of which half the variance is shared."""
    group = np.repeat(np.arange(sum(clusters)), rows)
    y = (group < clusters[0]).astype(int)
    shared, own = rng.standard_normal(sum(clusters))[group], rng.standard_normal(len(group))
    return y, apart * y + (shared + own) / np.sqrt(2), group


def test_influences_have_the_variance_of_a_bootstrap_of_whole_groups() -> None:
    rng = np.random.default_rng(0)
    y, score, group = planted(rng, 1.5, (60, 90), 4)
    _, pulls = stats.influences(y, score, group, 150)
    counts = rng.multinomial(150, np.full(150, 1 / 150), 2000)
    drawn = [weighted(y, score, count[group].astype(float)) for count in counts]
    assert (pulls**2).sum() == pytest.approx(np.var(drawn), rel=0.15)


def error(values: np.ndarray, pulls: np.ndarray | None = None, fewest: int = 1000) -> tuple[float, float]:
    """(standard error, freedom) of a mean, by default for other seeds and draws alone."""
    none = np.zeros((*values.shape, 1))
    found = stats.summary(values, none if pulls is None else pulls, fewest, (-np.inf, np.inf))
    return found["error"], found["freedom"]


def test_mean_squares_are_those_of_the_two_way_layout() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 3))
    squares, freedom = stats.mean_squares(values)
    rows, columns = values.mean(1), values.mean(0)
    rest = sum((values[i, j] - rows[i] - columns[j] + values.mean()) ** 2 for i in range(5) for j in range(3))
    assert squares == pytest.approx([3 * rows.var(ddof=1), 5 * columns.var(ddof=1), rest / 8])
    assert freedom.tolist() == [4, 2, 8]
    several = rng.normal(size=(5, 3, 4))
    assert stats.mean_squares(several)[0] == pytest.approx(
        sum(stats.mean_squares(several[..., g])[0] for g in range(4))
    )


def test_variance_between_runs_is_unbiased() -> None:
    """Against the truth, for effects of seeds, of draws and of both together; of one axis it is that of a plain mean."""
    rng = np.random.default_rng(0)
    for of_seed, of_draw, of_both in ((0.1, 0.0, 0.1), (0.05, 0.1, 0.05), (0.0, 0.0, 0.1)):
        found = []
        for _ in range(2000):
            seeds, draws = rng.normal(0, of_seed, (6, 1)), rng.normal(0, of_draw, (1, 4))
            found.append(error(seeds + draws + rng.normal(0, of_both, (6, 4)))[0] ** 2)
        truth = of_seed**2 / 6 + of_draw**2 / 4 + of_both**2 / 24
        assert 0.97 < np.mean(found) / truth < (1.1 if of_draw or of_seed else 1.6)  # never less than a margin alone


def test_one_axis_of_runs_is_a_t_test() -> None:
    one = np.random.default_rng(0).normal(0.8, 0.1, 7)
    expected = ttest_1samp(one, 0).confidence_interval(0.95)
    for layout in (one[None], one[:, None]):
        low, high = interval(layout, np.zeros((*layout.shape, 1)), 9, (-np.inf, np.inf))
        assert (low, high) == pytest.approx((expected.low, expected.high))
        assert error(layout) == pytest.approx((one.std(ddof=1) / 7**0.5, 6))


def scores(rng: np.random.Generator, seeds: int, draws: int, clusters: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """(y, group, scores [seeds, draws, n]) of probes that differ by seed and draw, alone and with each prompt."""
    y, score, group = planted(rng, 1.2, clusters, 3)
    shifts = rng.normal(0, 0.3, (seeds, 1, 1)) + rng.normal(0, 0.1, (1, draws, 1))
    own = rng.normal(0, 0.5, (seeds, 1, len(y))) + rng.normal(0, 0.3, (1, draws, len(y)))
    return y, group, score + shifts * y + own


def test_a_bootstrap_of_clusters_has_our_error_and_the_pigeonholes_is_no_less() -> None:
    """The derivatives' error is the bootstrap's within a few per cent. That over seeds, draws and clusters together counts twice what
    two of them do together, so it is wider, if not below what an axis alone says."""
    rng, clusters, times = np.random.default_rng(1), (60, 90), 500
    ratios = []
    for _ in range(6):
        y, group, score = scores(rng, 4, 3, clusters)
        found = [stats.influences(y, each, group, 150) for each in score.reshape(12, -1)]
        values, pulls = (
            np.array([v for v, _ in found]).reshape(4, 3),
            np.array([p for _, p in found]).reshape(4, 3, 150),
        )
        apart = np.array([[(np.subtract.outer(s[y == 1], s[y == 0]) > 0) for s in row] for row in score])
        counts = rng.multinomial(150, np.full(150, 1 / 150), times).astype(float)
        a, b = counts[:, group[y == 1]], counts[:, group[y == 0]]
        drawn = np.einsum("tp,sdpn,tn->tsd", a, apart, b, optimize=True) / (a.sum(1) * b.sum(1))[:, None, None]
        ratios.append(np.sqrt((pulls.mean((0, 1)) ** 2).sum()) / drawn.mean((1, 2)).std())
        of_seeds, of_draws = (rng.multinomial(n, np.full(n, 1 / n), times) * (n - 1) ** -0.5 for n in (4, 3))
        centre = drawn.mean((1, 2), keepdims=True)
        by_seed = ((drawn - centre).mean(2) * of_seeds).sum(1) * 4**-0.5
        by_draw = ((drawn - centre).mean(1) * of_draws).sum(1) * 3**-0.5
        pigeonhole = drawn.mean((1, 2)) + by_seed + by_draw
        assert error(values, pulls, 60)[0] < 1.1 * pigeonhole.std()
    assert np.mean(ratios) == pytest.approx(1, abs=0.04)


def test_prompts_are_not_counted_twice() -> None:
    """Validation sets of each draw: what they share by chance, and what differs, is the prompts' variance once, not twice."""
    rng, truth, found = np.random.default_rng(0), [], []
    for _ in range(400):
        pool = rng.normal(0, 1, 200)
        held = np.array([rng.permutation(200)[:40] for _ in range(5)])
        pulls = np.zeros((1, 5, 200))
        for draw, chosen in enumerate(held):
            pulls[0, draw, chosen] = (pool[chosen] - pool[chosen].mean()) / 40
        truth.append(np.mean([pool[chosen].mean() for chosen in held]))
        found.append(error(np.array([[pool[chosen].mean() for chosen in held]]), pulls, 200)[0] ** 2)
    assert 0.9 < np.mean(found) / np.var(truth) < 1.25  # of two it would be 1.45


SMALL = (
    coverage.Design(0.75, 5, 0.1, 0.02),
    coverage.Design(0.98, 10, 0.015, 0.005),
    coverage.Design(0.997, 3, 0, 0.001),
)


def for_prompts_only(
    values: np.ndarray, pulls: np.ndarray, fewest: int, within: Any, weights: Any = (1,)
) -> list[float]:
    """What is often done: normal, for other prompts alone."""
    values, pulls = (x if values.ndim == 3 else x[None] for x in (values, pulls))
    pull = np.tensordot(np.array(weights), pulls, 1).mean((0, 1))
    middle, half = np.array(weights) @ values.mean((1, 2)), 1.96 * np.sqrt((pull**2).sum())
    return [middle - half, middle + half]


def short(made: coverage.Interval, n: int, share: int) -> list[str]:
    """Quantities of :data:`SMALL` designs whose coverage is below .93 by more than chance."""
    found = []
    for seed, design in enumerate(SMALL):
        for name, cell in coverage.coverage(design, n, seed, made, share).items():
            hits = round(cell["coverage"] * cell["n"])
            if binom.cdf(hits, cell["n"], 0.93) < 0.001:
                found.append(f"{design} {name}: {hits} of {cell['n']}")
    return found


def test_intervals_cover_and_naive_ones_are_noticed() -> None:
    """Crossed designs like the report's; data/coverage.json has more of them, and more data sets."""
    assert short(coverage.ours, 80, 20) == []
    assert len(short(for_prompts_only, 30, 0)) > 8


def test_the_simulation_counts_as_the_library_does() -> None:
    rng = np.random.default_rng(0)
    y, group, bins = rng.integers(0, 2, 300), rng.integers(0, 40, 300), rng.integers(0, 50, 300)
    pulls = np.zeros(40)
    auroc = coverage.influences(bins, y, group, pulls)
    expected, expected_pulls = stats.influences(y, bins.astype(float), group, 40)
    assert auroc == pytest.approx(expected) and pulls == pytest.approx(expected_pulls)


def test_committed_coverage_is_what_is_claimed() -> None:
    """At least .93 within Monte Carlo error with ten seeds and with five; what falls short with three is not hidden."""
    told = json.loads((config.ROOT / "data" / "coverage.json").read_text())
    cells = [dict(zip(told["columns"], row, strict=True)) for row in told["cells"]]
    assert told["n"] == 2000 and {cell["seeds"] for cell in cells} == {3, 5, 10}
    for cell in cells:
        least = 0.93 if cell["seeds"] >= 5 else 0.90
        assert binom.cdf(round(cell["coverage"] * cell["n"]), cell["n"], least) > 0.001, cell


@pytest.mark.parametrize("clusters", [(32, 120), (80, 40)])
@pytest.mark.parametrize("apart", [1.0, 2.8, 3.9, 4.8])
def test_intervals_of_one_fit_cover(apart: float, clusters: tuple[int, int]) -> None:
    """At the AUROCs and numbers of clusters of our validation set, up to .9997: where a plain interval covers .80."""
    rng, hits = np.random.default_rng(0), 0
    truth = norm.cdf(apart / np.sqrt(2))
    for _ in range(300):
        y, score, group = planted(rng, apart, clusters, 4)
        auroc, pulls = stats.influences(y, score, group, sum(clusters))
        low, high = interval(np.array([[auroc]]), pulls[None, None], min(clusters), (0.0, 1.0))
        hits += low <= truth <= high
    assert hits / 300 >= 0.92, hits


@pytest.mark.parametrize("groups", [1, 2, 14, 38, 200])
def test_no_interval_is_a_point(groups: int) -> None:
    """Told apart without a mistake: the end is where that has a chance of 1 in 40, by simulation of such a world."""
    y, score, group = np.repeat([0, 1], groups), np.repeat([0.0, 1.0], groups), np.arange(2 * groups)
    auroc, pulls = stats.influences(y, score, group, 2 * groups)
    given = np.array([[auroc]]), pulls[None, None], groups
    low, high = interval(*given, (0.0, 1.0))
    assert auroc == high == 1 and 0 < low < 1
    odds = 1 / low - 1  # of densities f and k F**(k - 1) f: AUROC k / (1 + k)
    rng = np.random.default_rng(0)
    most, least = rng.beta(groups, 1, 40_000), 1 - (1 - rng.beta(1, groups, 40_000))
    assert np.mean(least**odds > most) == pytest.approx(
        0.025, abs=0.004
    )  # the k-th root of a uniform one is above a uniform one
    same = stats.summary(np.stack([given[0]] * 2), np.stack([given[1]] * 2), groups, (-1.0, 1.0), (1, -1))
    assert same["interval"] == pytest.approx([low - 1, 1 - low])


def test_one_cluster_of_a_class_is_not_taken_for_certain() -> None:
    """Fault 22: .906 [.906, .906] where all harmful prompts are of one cluster."""
    rng = np.random.default_rng(0)
    y = np.repeat([1, 0], 30)
    group, score = np.where(y == 1, 0, np.arange(60)), y + rng.normal(0, 0.7, 60)
    auroc, pulls = stats.influences(y, score, group, 60)
    low, high = interval(np.array([[auroc]]), pulls[None, None], 1, (0.0, 1.0))
    assert low < 0.1 and high > auroc


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_every_summary_is_whole(seeds: int, draws: int, groups: int, seed: int) -> None:
    """Bounds in order, never a point, finite, with a p-value below .05 where and only where a bound lies outside."""
    rng = np.random.default_rng(seed)
    values = np.clip(rng.normal(0.97, 0.03, (2, seeds, draws)), 0, 1)
    pulls = rng.normal(0, 0.01, (2, seeds, draws, groups)) * rng.integers(0, 2)
    one = stats.summary(values[0], pulls[0], groups, (0.0, 1.0))
    two = stats.summary(values, pulls, groups, (-2.0, 2.0), (1, -1))
    for found in (one, two):
        low, high = found["interval"]
        assert (
            low <= found["mean"] <= high
            and low < high
            and np.isfinite([*found["interval"], found["error"], found["freedom"]]).all()
        )
        assert found["error"] > 0 and found["freedom"] >= 1
    assert "detectable" not in one and two["detectable"] > 2.7 * two["error"]
    for bound in (-0.1, 0.0, 0.02):
        room = max(two["interval"][0] - bound, bound - two["interval"][1])
        assert (stats.chance(room, two["error"], two["freedom"]) < 0.05) == (room > 0)


def test_detectable_is_what_is_seen_four_times_in_five() -> None:
    rng, seen = np.random.default_rng(0), 0
    truth = stats.detectable(0.1 / 10**0.5, 9)
    for _ in range(1000):
        values = rng.normal(truth, 0.1, (10, 1))
        seen += interval(values, np.zeros((10, 1, 1)), 10, (-9.0, 9.0))[0] > 0
    assert seen / 1000 == pytest.approx(0.8, abs=0.04)


def test_chance_is_a_t_tests() -> None:
    x = np.random.default_rng(0).normal(0.3, 0.5, 9)
    found = stats.summary(x[:, None], np.zeros((9, 1, 1)), 9, (-9.0, 9.0))
    assert stats.chance(found["interval"][0] - 0.1, found["error"], found["freedom"]) == pytest.approx(
        ttest_1samp(x, 0.1).pvalue
    )
    assert found["interval"][1] == pytest.approx(x.mean() + student.ppf(0.975, 8) * x.std(ddof=1) / 3)


def test_shares_of_variance_are_those_planted() -> None:
    rng, sds = np.random.default_rng(0), (0.1, 0.05, 0.04, 0.08)
    found = []
    for _ in range(300):
        of_seed, of_draw = rng.normal(0, sds[0], (8, 1)), rng.normal(0, sds[1], (1, 6))
        pull = rng.normal(0, sds[3] / 50**0.5, (8, 6, 50))  # each fit is moved by each prompt in its own way
        values = of_seed + of_draw + rng.normal(0, sds[2], (8, 6)) + pull.sum(2)
        found.append(stats.shares(values, pull))
    assert list(found[0]) == ["seeds", "draws", "seeds x draws", "prompts"]
    for name, sd in zip(found[0], sds, strict=True):
        assert np.mean([x[name]["sd"] ** 2 for x in found]) == pytest.approx(sd**2, rel=0.15)
        assert sum(x["share"] for x in found[0].values()) == pytest.approx(1)
    none = stats.shares(np.full((1, 4), 0.9), np.zeros((1, 4, 3)))
    assert all(x == {"sd": 0, "share": 0} for x in none.values())


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcde"), st.sampled_from([0.001, 0.01, 0.0125, 0.02, 0.03, 0.05, 0.2, 1.0]), max_size=5
    )
)
def test_holm_is_closed_testing_by_bonferroni(p: dict[str, float]) -> None:
    """A hypothesis is rejected if every intersection that it is part of has a p-value below level / size."""
    subsets = [set(x) for n in range(1, len(p) + 1) for x in itertools.combinations(p, n)]
    rejected = [x for x in subsets if min(p[name] for name in x) <= 0.05 / len(x)]
    assert stats.holm(p) == {name for name in p if all(x in rejected for x in subsets if name in x)}


def test_share_interval_is_exact() -> None:
    for n, hits in itertools.product((1, 7, 38, 200), (0.0, 0.3, 1.0)):
        count = round(n * hits)
        expected = binomtest(count, n).proportion_ci(method="exact")
        assert stats.share_interval(count / n, n) == pytest.approx((expected.low, expected.high))
    ends = [stats.share_interval(share, 20) for share in (0.5, 0.525, 0.55)]
    assert ends[0] < ends[1] < ends[2] and ends[0][1] < ends[1][1] < ends[2][1]


def three_probes(rng: np.random.Generator, gap: float, share: float, of_runs: float, of_prompts: float):
    """(values [3, 1, runs], pulls [3, 1, runs, 30]) of three probes in a few runs, the third of which closes ``share`` of the gap."""
    means, runs = np.array([0.9, 0.9 - gap, 0.9 - gap + share * gap]), int(rng.integers(1, 5))
    pulls = rng.normal(0, of_prompts / np.sqrt(30), (3, 1, 1, 30)) * np.ones((1, 1, runs, 1))
    return means[:, None, None] + rng.normal(0, of_runs, (3, 1, runs)), pulls


@pytest.mark.parametrize("seed", range(40))
def test_share_closed_against_a_fine_grid(seed: int) -> None:
    """From the least to the largest share whose remainder is compatible with 0."""
    rng = np.random.default_rng(seed)
    gap, of_runs, of_prompts = (float(rng.choice(x)) for x in ((0.005, 0.03, 0.1), (0.001, 0.01), (0.001, 0.01)))
    values, pulls = three_probes(rng, gap, float(rng.uniform(-1, 2)), of_runs, of_prompts)
    found = stats.share_closed(values, pulls, 15)
    (top, low, high), (least, most) = values.mean((1, 2)), found["interval"]
    assert found["share"] == pytest.approx((high - low) / (top - low))

    def compatible(share: float) -> bool:
        below, above = stats.summary(values, pulls, 15, (-1e9, 1e9), (-share, share - 1, 1))["interval"]
        return below <= 0 <= above

    around = np.geomspace(1e-3, 2 * stats.WIDEST, 60)
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


def test_share_of_no_gap() -> None:
    none = stats.share_closed(np.full((3, 1, 2), 0.9), np.zeros((3, 1, 2, 9)), 4)
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


def scored_latents(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of latents that fire rarely, often, very often; frequent ones score lower, and twenty never fire."""
    rng = np.random.default_rng(seed)
    fired = (rng.pareto(1, 500) * 5 + 1).astype(int)
    fired[:20] = 0
    return rng.normal(0.5, 0.3, 500) - 0.1 * np.log(fired + 1), fired


def test_means_of_a_sample_are_those_of_all_latents() -> None:
    """Over latents and over firings: of many samples the mean is right, and 95 % intervals hold it."""
    score, fired = scored_latents()
    truth = {"uniform": score[fired > 0].mean(), "weighted": (score * fired).sum() / fired.sum()}
    means: dict[str, list[float]] = {"uniform": [], "weighted": []}
    held = dict.fromkeys(means, 0)
    for seed in range(1000):
        which, stratum, sizes = stats.sample(fired, 80, np.random.default_rng(seed))
        assert len(which) == len(set(which)) == 80 and fired[which].min() > 0 and sizes.sum() == 480
        for name, entry in stats.weighted_means(score[which], fired[which], stratum, sizes).items():
            means[name].append(entry["mean"])
            low, high = entry["interval"]
            held[name] += low <= truth[name] <= high
    for name, found in means.items():
        assert abs(np.mean(found) - truth[name]) < 4 * np.std(found) / np.sqrt(1000) + 1e-3
        assert held[name] > 900


def test_strata_hold_those_that_carry_the_firing() -> None:
    _, fired = scored_latents()
    which, _, _ = stats.sample(fired, 40, np.random.default_rng(0))
    assert set(np.argsort(fired)[-3:]) <= set(which), "a handful carries a fourth of all firing: all of them"


def test_a_census_has_no_error_and_what_cannot_be_scored_is_bounded() -> None:
    score, fired = scored_latents()
    which, stratum, sizes = stats.sample(fired, 1000, np.random.default_rng(0))
    assert sorted(which) == np.flatnonzero(fired).tolist()
    found = stats.weighted_means(score[which], fired[which], stratum, sizes)
    assert found["uniform"]["error"] == found["weighted"]["error"] == 0
    assert found["uniform"]["mean"] == pytest.approx(score[fired > 0].mean())
    some = np.where(fired[which] < 8, np.nan, score[which])
    entry = stats.weighted_means(some, fired[which], stratum, sizes)["uniform"]
    known = ~np.isnan(some)
    assert entry["scored"] == pytest.approx(known.mean()) and entry["mean"] == pytest.approx(some[known].mean())
    assert entry["bounds"] == pytest.approx([np.nan_to_num(some).mean(), np.where(known, some, 1).mean()])


def test_over_seeds_is_students() -> None:
    values = [0.5, 0.53, 0.58]
    found = stats.over_seeds(values)
    low, high = student.interval(0.95, 2, np.mean(values), np.std(values, ddof=1) / np.sqrt(3))
    assert found["mean"] == pytest.approx(np.mean(values)) and found["interval"] == pytest.approx([low, high])
    assert found["seeds"] == values and stats.over_seeds([0.4])["interval"] == [-stats.WIDEST, stats.WIDEST]
