"""Sentences computed from results say what the numbers say."""

import numpy as np
import pytest

from lib import figures, results


def entry(value: float, half: float = 0.01) -> dict:
    return {"auroc": value, "interval": [value - half, value + half], "n": 10}


def sparse(*values: float) -> dict:
    return {f"s{i}": {"best": {"k": 5, "ood": entry(v)}} for i, v in enumerate(values)}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.6, 0.7), "No, not here: every k-sparse probe"),
        ((0.6, 0.9), "Not shown: 1 of 2"),
        ((0.6, 0.95), "In part: k-sparse probes on the s1 SAE are above"),
    ],
)
def test_verdict_follows_the_intervals(values: tuple[float, ...], words: str) -> None:
    text = results.verdict({"ood": entry(0.9)}, sparse(*values))
    assert words in text
    assert f"{min(values):.2f} to {max(values):.2f} against 0.90" in text


def test_difference_of_means() -> None:
    a, b = ({"mean": m, "interval": [m - 0.03, m + 0.03]} for m in (0.60, 0.50))
    assert results._difference(a, b) == "+0.10 [+0.06, +0.14] (resolved at this n)"
    assert "not resolved" in results._difference(a, {"mean": 0.58, "interval": [0.54, 0.62]})


def test_folded_auroc_says_which_side_is_higher() -> None:
    assert results._folded(0.2) == "0.800 (higher on harmless prompts)"
    assert results._folded(0.8) == "0.800 (higher on harmful prompts)"


def test_tables_escape_pipes() -> None:
    assert results.table([("a|b", 1)], ("x", "y")).splitlines()[-1] == "| a\\|b | 1 |"


def test_wilson_intervals_cover() -> None:
    low, high = figures.wilson(0.0, 200)
    assert low == pytest.approx(0, abs=1e-12) and 0.01 < high < 0.03
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.97):
        seen = rng.binomial(80, share, 4000) / 80
        covered = [low <= share <= high for low, high in (figures.wilson(s, 80) for s in seen)]
        assert np.mean(covered) > 0.92
