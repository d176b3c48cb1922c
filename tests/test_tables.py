"""Tables and paired differences against scikit-learn, of scores that are known."""

import json
from pathlib import Path

import numpy as np
import pytest
from planted import LABELS, TIMES, examples, fit, prompt_set, table
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score

from lib import store
from lib.probes import methods, tables
from lib.probes.methods import Logistic
from lib.probes.views import Residual
from lib.texts.examples import SPLITS, LeakError


@store.cached
def scored(out: Path, seed: int, noise: float, runs: int) -> None:
    """The label with noise, rounded so that there are ties; the noise of seed + 1 is little more than that of seed."""
    y, rng = np.array([e.label for e in examples()]), np.random.default_rng(seed - seed % 2)
    scores = {f"{run}/": np.round(y + rng.normal(0, noise, len(y)), 1) for run in range(runs)}
    more = np.random.default_rng(seed).normal(0, 0.1 * (seed % 2), len(y))
    save_file({name: (s + more).astype(np.float32) for name, s in scores.items()}, out / "scores.safetensors")
    (out / "choices.json").write_text(json.dumps([{"best": "", "settings": [""]}] * runs))


@store.cached
def unfit(out: Path) -> None:
    save_file({}, out / "scores.safetensors")
    (out / "choices.json").write_text(json.dumps("too few"))


def test_every_auroc_agrees_with_scikit_learn(empty_store: store.Store) -> None:
    """Train, validation, OOD and every slice of a table, in every run."""
    fitted = scored(0, 1.0, 3)
    found = table(fitted)
    runs, scores = [LABELS.drawn(run) for run in range(3)], methods.scores(fitted)
    for split in SPLITS:
        for run, (labels, score) in enumerate(zip(runs, scores, strict=True)):
            here = labels.where(split)
            assert found[split]["seeds"][run] == pytest.approx(roc_auc_score(labels.y[here], score[here]))
        assert found[split]["auroc"] == pytest.approx(np.mean(found[split]["seeds"]))
        assert found[split]["interval"][0] < found[split]["auroc"] < found[split]["interval"][1]
        assert found[split]["n"] == LABELS.where(split).sum() == 2 * found[split]["harmful"]
    assert found["slices"]["AdvBench"]["auroc"] == pytest.approx(found["ood"]["auroc"])
    assert found["slices"]["chat"]["against"] == "AdvBench"
    val, ood = LABELS.where("val"), LABELS.where("ood")
    cut = max(np.unique(scores[0]) + 0.05, key=lambda cut: ((scores[0][val] > cut) == LABELS.y[val]).mean())
    one = table(scored(0, 1.0, 1))
    assert one["ood"]["accuracy"] == pytest.approx(((scores[0][ood] > cut) == LABELS.y[ood]).mean(), abs=0.02)


def test_a_table_looks_at_no_other_split(empty_store: store.Store) -> None:
    """A sweep chooses by it: the OOD data change nothing, and stand nowhere."""
    recipes = {place: (fit(Logistic((1e-2,)), Residual(place), runs=1), None) for place in (0, 1, 2, "max user")}
    picks = {f"0 {place}": pick for place, pick in recipes.items()}
    found = tables.table(prompt_set(), picks, 50, 0, splits=("train", "val")).value
    assert all(row.keys() == {"train", "val", "choices"} for row in found.values())
    assert found["0 1"]["val"]["auroc"] > 0.999
    assert all(0.3 < found[f"0 {place}"]["val"]["auroc"] < 0.7 for place in (0, 2))


def test_differences_are_paired(empty_store: store.Store) -> None:
    """A probe minus itself is 0 in every draw; two noisy copies of one score differ less than their intervals are wide."""
    a, b = scored(0, 1.0, 2), scored(1, 1.0, 2)
    pairs = {"zero": ((a, None), (a, None)), "near": ((a, None), (b, None)), "not": ((a, None), (unfit(), None))}
    found = tables.differences(prompt_set(), pairs, TIMES, 0).value
    assert all(e["interval"] == [0, 0] and e["difference"] == 0 for e in found["zero"].values())
    near, here = found["near"], LABELS.where("ood")
    assert np.ptp(near["ood"]["interval"]) < 0.4 * np.ptp(table(a)["ood"]["interval"])
    first, second = (roc_auc_score(LABELS.y[here], methods.scores(f)[0][here]) for f in (a, b))
    assert near["ood"]["seeds"][0] == pytest.approx(first - second, abs=1e-6)
    more = near[tables.TRANSFER]["difference"]
    assert more == pytest.approx(near["ood"]["difference"] - near["val"]["difference"], abs=1e-6)
    assert found["not"] == {"left out": "too few"}


def test_of_unequal_runs_those_that_both_have_are_compared(empty_store: store.Store) -> None:
    a, b = scored(0, 1.0, 3), scored(2, 1.0, 1)
    found = tables.differences(prompt_set(), {"it": ((a, None), (b, None))}, TIMES, 0).value["it"]
    assert len(found["ood"]["seeds"]) == 1


def test_the_share_of_a_gap_that_is_closed(empty_store: store.Store) -> None:
    top, low, middle = scored(0, 0.5, 2), scored(2, 4.0, 2), scored(4, 1.0, 2)
    triples = {"it": ((top, None), (low, None), (middle, None)), "not": ((top, None), (unfit(), None), (middle, None))}
    found = tables.closed(prompt_set(), triples, TIMES, 0).value
    t, a, h = (table(f)["ood"]["auroc"] for f in (top, low, middle))
    assert found["it"]["share"] == pytest.approx((h - a) / (t - a), abs=1e-5)
    assert found["it"]["gap"] == pytest.approx(t - a, abs=1e-6)
    assert found["it"]["interval"][0] < found["it"]["share"] < found["it"]["interval"][1]
    assert found["not"] == {"left out": "too few"}


@store.cached
def leaking(out: Path) -> None:
    """Every prompt of one group."""
    rows = [e.model_copy(update={"group": 0}) for e in examples()]
    (out / "examples.jsonl").write_text("\n".join(e.model_dump_json() for e in rows))


def test_a_leak_is_never_a_reason_to_leave_a_row_out(empty_store: store.Store) -> None:
    for step in (
        tables.table(leaking(), {"it": (scored(0, 1.0, 1), None)}, TIMES, 0),
        tables.closed(leaking(), {}, 9, 0),
    ):
        with pytest.raises(LeakError):
            step.value
