"""Sentences computed from results say what the numbers say."""

import numpy as np
import pytest

from lib import figures, results


def entry(value: float, half: float = 0.01) -> dict:
    return {"auroc": value, "interval": [value - half, value + half], "n": 10}


@pytest.mark.parametrize(
    ("gaps", "words"),
    [
        ((0.2, 0.3), "No, not here: k-sparse probes on all 2 SAEs"),
        ((0.005, 0.3), "Not resolved on every SAE: k-sparse probes are below the dense linear probe on 1 of 2"),
        ((-0.05, 0.3), "In part: k-sparse probes on the s0 SAE are above"),
    ],
)
def test_verdict_follows_the_paired_intervals(gaps: tuple[float, ...], words: str) -> None:
    differences = {
        f"dense - best k, s{i}": {"ood": {"difference": g, "interval": [g - 0.01, g + 0.01]}}
        for i, g in enumerate(gaps)
    }
    text = results.verdict(differences, {"dense": {"ood": {**entry(0.9), "seeds": [1, 2, 3]}}})
    assert words in text
    assert f"{min(gaps):.3f} to {max(gaps):.3f}" in text and "0.900" in text


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


def test_losses_by_place_name_split_and_place() -> None:
    def loss(value: float) -> dict:
        return {"difference": value, "interval": [value - 0.01, value + 0.01]}

    differences = {
        "reconstruction, finetuned, 1": {"val": loss(0.04), "ood": loss(0.15)},
        "reconstruction, finetuned, mean user": {"val": loss(0.001), "ood": loss(0.06)},
    }
    assert results.lost_by_place(differences, 1) == (
        "a dense probe on the finetuned SAE's reconstructions loses at +1 0.040 [0.030, 0.050] on validation and 0.150 [0.140, "
        "0.160] OOD, and as the mean over the user's text 0.001 [-0.009, 0.011] on validation and 0.060 [0.050, 0.070] OOD."
    )


def test_by_place_names_where_saes_lose_and_where_not() -> None:
    """Counts take whole intervals; the place is chosen on validation, not OOD."""
    losses = {
        "reconstruction, finetuned, 1": 0.10,
        "reconstruction, finetuned, mean user": -0.05,
        "k-sparse, finetuned, 1": 0.10,
        "k-sparse, finetuned, mean user": 0.025,
    }
    differences = {key: {"ood": {"difference": d, "interval": [d - 0.01, d + 0.01]}} for key, d in losses.items()}
    tables = {
        "dense, , 1": {"ood": entry(0.91)},
        "dense, , mean user": {"ood": entry(0.82)},
        "k-sparse, finetuned, 1": {"val": entry(0.97), "ood": entry(0.81)},
        "k-sparse, finetuned, mean user": {"val": entry(0.96), "ood": entry(0.99)},
    }
    fidelity = {"finetuned": {"1": {"lost": 0.9, "l0": 7}, "mean user": {"lost": 0.25, "l0": 31.2}}}
    text = results.by_place(tables, differences, fidelity, 20, 1)
    assert "Probes on reconstructions: of 2 pairs of SAE and place" in text
    assert "below 0.02 at 1 (finetuned, as the mean over the user's text, dense 0.820) and above it at 1" in text
    assert "Probes on 20 latents" in text and "below 0.02 at 0 and above it at 1 (whole" in text
    assert "lose 90% at +1 (L0 7), 25% as the mean over the user's text (L0 31)." in text
    assert "as good as at the site (to 0.02) at +1; there the loss is shown to be none for 0 of 2 SAEs" in text
    assert "Of all 4 losses 3 are resolved from 0" in text
    assert "the finetuned SAE's 20 latents have the best validation AUROC at +1, where they have 0.810" in text
    assert "the dense probe 0.910" in text


def test_controls_ahead_of_the_best_sae() -> None:
    def rows(value: float) -> list[dict]:
        return [{"setting": 5, "ood": entry(0.5)}, {"setting": 20, "ood": entry(value)}]

    text = results.controls_ahead(
        {"a": rows(0.6), "b": rows(0.7)}, {"c": rows(0.7), "d": rows(0.69), "e": rows(0.8)[:1]}, 20
    )
    assert text == "Controls no lower than the best SAE (b): c."


def test_captions_say_who_is_ahead() -> None:
    def loss(value: float) -> dict:
        return {s: {"difference": value, "interval": [value - 0.01, value + 0.01]} for s in ("val", "ood")}

    text = results.losses_resolved({"a": loss(0.005), "b": loss(0.05), "c": loss(-0.05)})
    assert text.startswith("On validation the loss is above 0 for “b”; below 0 for “c”. OOD the loss is above")
    assert text.endswith("OOD: a +0.005; b +0.050; c -0.050.")
    assert "OOD the loss is resolved from 0 for none." in results.losses_resolved({"a": loss(0.005)})

    changes = {
        "plain": {"dense": {"ood": entry(0.8)}, "text": {"ood": entry(0.9)}, "style": {"ood": entry(0.5)}},
        "short": {"dense": {"ood": entry(0.8)}, "text": {"ood": entry(0.7)}, "style": {"ood": entry(0.5)}},
    }
    assert results.probes_ahead(changes, "dense") == "Higher mean than the dense probe: text on “plain”."
    assert results.probes_ahead(changes, "text") == "Higher mean than the text probe: dense on “short”."
    changes["short"]["text"] = {"ood": entry(0.85)}
    assert results.probes_ahead(changes, "dense").endswith(": text on all 2 training sets.")
    assert results.probes_ahead({"plain": changes["plain"]}, "dense").endswith(": text on “plain”.")
    for by_probe in changes.values():
        by_probe["text"] = {"ood": entry(0.1)}
    assert results.probes_ahead(changes, "dense").startswith("No other probe has a higher mean than the dense one")

    by_slice = {
        "dense": {"x": entry(0.9), "y": entry(0.4), "z": entry(1.0), "chat": entry(0.9)},
        "text": {"x": entry(0.8), "y": entry(0.5), "z": entry(1.0), "chat": entry(0.8)},
    }
    assert results.best_by_slice(by_slice) == "Highest of 3 slices: dense on 2; text on 2."
