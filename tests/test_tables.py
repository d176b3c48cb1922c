"""Tables and paired differences against scikit-learn, of scores that are known."""

import json
from pathlib import Path

import numpy as np
import pytest
from planted import LABELS, TEXTS, examples, fit, prompt_set, table
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score

from lib import stats, store
from lib.probes import methods, tables
from lib.probes.changes import Fewer
from lib.probes.methods import Linear
from lib.probes.views import Residual
from lib.texts.examples import NO_CHAT, SPLITS, Example, Labels, LeakError, TooFew


@store.cached
def scored(out: Path, seed: int, noise: float, draws: int, seeds: int = 1) -> None:
    """The label with noise, rounded so that there are ties; the noise of seed + 1 is little more than that of seed."""
    y, rng = np.array([e.label for e in examples()]), np.random.default_rng(seed - seed % 2)
    cells = [f"{s}/{d}/" for s in range(seeds) for d in range(draws)]
    scores = {cell: np.round(y + rng.normal(0, noise, len(y)), 1) for cell in cells}
    more = np.random.default_rng(seed).normal(0, 0.1 * (seed % 2), len(y))
    save_file({name: (s + more).astype(np.float32) for name, s in scores.items()}, out / "scores.safetensors")
    run = {"best": "", "settings": {"": {"option": "", "score": 0.5 + 0.01 * seed, "edge": False}}, "n": 9}
    (out / "choices.json").write_text(json.dumps([[run] * draws] * seeds))


@store.cached
def unfit(out: Path) -> None:
    save_file({}, out / "scores.safetensors")
    (out / "choices.json").write_text(json.dumps("too few"))


def test_every_auroc_agrees_with_scikit_learn(empty_store: store.Store) -> None:
    """Train, validation, OOD and every slice of a table, for every seed in every draw."""
    fitted = scored(0, 1.0, 3, 2)
    found = table(fitted)
    runs, scores = [LABELS.drawn(run) for run in range(3)], methods.scores(fitted)
    assert found.keys() == {*SPLITS, "macro", "slices", "choices"}
    for split in SPLITS:
        for seed, draw in np.ndindex(2, 3):
            here = runs[draw].where(split)
            expected = roc_auc_score(LABELS.y[here], scores[seed, draw][here])
            assert found[split]["seeds"][seed][draw] == pytest.approx(expected)
        assert found[split]["auroc"] == pytest.approx(np.mean(found[split]["seeds"]))
        assert found[split]["interval"][0] < found[split]["auroc"] < found[split]["interval"][1]
        assert found[split]["n"] == LABELS.where(split).sum() == 2 * found[split]["harmful"]
        assert found[split]["clusters"] == len(np.unique(LABELS.group[LABELS.where(split)]))
    assert found["slices"]["AdvBench"]["auroc"] == pytest.approx(found["ood"]["auroc"])
    assert found["slices"]["chat"]["against"] == "AdvBench"
    assert found["macro"]["auroc"] == pytest.approx(found["ood"]["auroc"]) and found["macro"]["slices"] == 1
    assert found["choices"]["settings"] == {"": 6} and found["choices"]["n"] == [9, 9, 9]
    val, ood = LABELS.where("val"), LABELS.where("ood")
    cut = max(np.unique(scores[0, 0]) + 0.05, key=lambda cut: ((scores[0, 0][val] > cut) == LABELS.y[val]).mean())
    one = table(scored(0, 1.0, 1))
    assert one["ood"]["accuracy"] == pytest.approx(((scores[0, 0][ood] > cut) == LABELS.y[ood]).mean(), abs=0.02)


def mixed() -> list[Example]:
    """The planted prompts; OOD in three slices, further kinds, and harmless prompts of the balanced design."""
    kinds = [("AdvBench", 1, "post"), ("chat", 0, "post"), ("evil", 1, "post"), ("over-refusal", 0, "post")]
    kinds += [("questions", 1, "wider"), ("wrapped", 0, "balanced")]
    rows = []
    for i, e in enumerate(examples()):
        name, label, mix = kinds[i % 6]
        changed = {"slice": name, "label": label, "mix": mix, "group": i}
        rows.append(e.model_copy(update=changed) if e.split == "ood" else e)
    return rows


@store.cached
def mixed_set(out: Path) -> None:
    (out / "examples.jsonl").write_text("\n".join(e.model_dump_json() for e in mixed()))


def test_sets_and_means_over_slices(empty_store: store.Store) -> None:
    """Each set over its own prompts; a macro is the mean of comparisons, each counted once, and its influences are theirs."""
    labels, fitted = Labels.of(mixed()), scored(0, 1.0, 2, 2)
    found, scores = tables.table(mixed_set(), {"it": (fitted, None)}).value["it"], methods.scores(fitted)
    assert found.keys() == {*tables.PARTS, *tables.MACRO, "slices", "choices"}
    for name in ("ood", "wider", "balanced", NO_CHAT):
        here = labels.where(name)
        assert found[name]["n"] == here.sum()
        assert found[name]["seeds"][1][1] == pytest.approx(roc_auc_score(labels.y[here], scores[1, 1][here]))
    slices = found["slices"]
    assert slices.keys() == {"AdvBench", "chat", "evil", "over-refusal", "questions", "wrapped"}
    assert slices["AdvBench"]["auroc"] == slices["chat"]["auroc"], "set against each other: one comparison"
    post = [np.array(slices[name]["seeds"]) for name in ("AdvBench", "evil", "over-refusal")]
    np.testing.assert_allclose(found["macro"]["seeds"], np.mean(post, axis=0), atol=1e-6)
    wider = [*post, np.array(slices["questions"]["seeds"])]
    np.testing.assert_allclose(found["macro, wider"]["seeds"], np.mean(wider, axis=0), atol=1e-6)
    assert (found["macro"]["slices"], found["macro, wider"]["slices"]) == (3, 4)
    group, pulls = np.unique(labels.group, return_inverse=True)[1], []
    for name in ("AdvBench", "evil", "over-refusal"):
        here = tables._slices(labels)[name][0]
        pulls.append(stats.influences(labels.y[here], scores[0, 0][here], group[here], group.max() + 1)[1])
    part = tables._parts([labels], tables.PARTS)["macro"]
    np.testing.assert_allclose(tables._moved([labels], scores[:1, :1], part)[1][0, 0], np.mean(pulls, 0))
    few = tables.table(mixed_set(), {"it": (fitted, None)}, False, ("train", "val")).value["it"]
    assert few.keys() == {"train", "val", "choices"}


def test_a_set_without_chat_needs_both_classes(empty_store: store.Store) -> None:
    """The planted harmless OOD prompts are all chats: the row is left out, not wrong."""
    assert NO_CHAT not in table(scored(0, 1.0, 1))


def test_a_table_is_of_prompts_after_a_change(empty_store: store.Store) -> None:
    fitted = scored(0, 1.0, 2)
    found, change = table(fitted, change=Fewer(20)), Fewer(20)
    masks = [change.apply(LABELS.drawn(draw), TEXTS, draw).where("train") for draw in (0, 1)]
    scores = methods.scores(fitted)[0]
    expected = [roc_auc_score(LABELS.y[here], s[here]) for here, s in zip(masks, scores, strict=True)]
    assert found["train"]["seeds"] == [pytest.approx(expected)]
    assert found["train"]["n"] == masks[0].sum() < table(fitted)["train"]["n"]
    assert "not 151" in table(fitted, change=Fewer(151))["left out"]


def test_a_table_looks_at_no_other_split(empty_store: store.Store) -> None:
    """A sweep chooses by it: the OOD data change nothing, and stand nowhere."""
    recipes = {place: (fit(Linear((1e-2,)), Residual(place), draws=1), None) for place in (0, 1, 2, "max user")}
    picks = {f"0 {place}": pick for place, pick in recipes.items()}
    found = tables.table(prompt_set(), picks, splits=("train", "val")).value
    assert all(row.keys() == {"train", "val", "choices"} for row in found.values())
    assert found["0 1"]["val"]["auroc"] > 0.999
    assert all(0.3 < found[f"0 {place}"]["val"]["auroc"] < 0.7 for place in (0, 2))


def test_differences_are_paired(empty_store: store.Store) -> None:
    """A probe minus itself is 0 with the smallest interval there is; two noisy copies of one score differ less than their intervals are
    wide."""
    a, b = scored(0, 1.0, 2), scored(1, 1.0, 2)
    pairs = {"zero": ((a, None), (a, None)), "near": ((a, None), (b, None)), "not": ((a, None), (unfit(), None))}
    found = tables.differences(prompt_set(), pairs).value
    assert all(e["difference"] == 0 and max(np.abs(e["interval"])) < 0.06 for e in found["zero"].values())
    near, here = found["near"], LABELS.where("ood")
    assert near.keys() == {*SPLITS, "macro", tables.TRANSFER}
    assert np.ptp(near["ood"]["interval"]) < 0.4 * np.ptp(table(a)["ood"]["interval"])
    first, second = (roc_auc_score(LABELS.y[here], methods.scores(f)[0, 0][here]) for f in (a, b))
    assert near["ood"]["seeds"][0][0] == pytest.approx(first - second, abs=1e-6)
    more = near[tables.TRANSFER]["difference"]
    assert more == pytest.approx(near["ood"]["difference"] - near["val"]["difference"], abs=1e-6)
    assert found["not"] == {"left out": "too few"}


def test_more_than_two_probes_are_summed_by_weights(empty_store: store.Store) -> None:
    """One less the mean of two others is the mean of what it is ahead of each, and so is what each seed says."""
    a, b, c = ((scored(seed, shift, 2), None) for seed, shift in ((0, 1.5), (1, 1.0), (2, 0.5)))
    pairs = tables.differences(prompt_set(), {"ab": (a, b), "ac": (a, c)}).value
    three = tables.differences(prompt_set(), {"": (a, b, c)}, weights=(1, -0.5, -0.5)).value[""]
    for part in ("val", "ood", tables.TRANSFER):
        for key in ("difference", "seeds"):
            mean = np.mean([np.array(pairs[name][part][key]) for name in ("ab", "ac")], axis=0)
            np.testing.assert_allclose(three[part][key], mean, atol=1e-6)
        low, high = three[part]["interval"]
        assert low < three[part]["difference"] < high


def test_what_both_have_is_compared(empty_store: store.Store) -> None:
    """Of unequal draws and seeds the first; a probe without an SAE stands against every seed."""
    several, dense, fewer = scored(0, 1.0, 3, 4), scored(2, 1.0, 2), scored(4, 1.0, 3, 2)
    pairs = {"dense": ((several, None), (dense, None)), "seeds": ((several, None), (fewer, None))}
    found = tables.differences(prompt_set(), pairs).value
    assert np.shape(found["dense"]["ood"]["seeds"]) == (4, 2) and np.shape(found["seeds"]["ood"]["seeds"]) == (2, 3)
    here = LABELS.where("ood")
    values = [[roc_auc_score(LABELS.y[here], s[here]) for s in row] for row in methods.scores(several)[:, :2]]
    against = [roc_auc_score(LABELS.y[here], s[here]) for s in methods.scores(dense)[0]]
    np.testing.assert_allclose(found["dense"]["ood"]["seeds"], np.array(values) - against, atol=1e-6)


def test_the_share_of_a_gap_that_is_closed(empty_store: store.Store) -> None:
    top, low, middle = scored(0, 0.5, 2), scored(2, 4.0, 2), scored(4, 1.0, 2, 3)
    triples = {"it": ((top, None), (low, None), (middle, None)), "not": ((top, None), (unfit(), None), (middle, None))}
    found = tables.closed(prompt_set(), triples).value
    t, a, h = (table(f)["ood"]["auroc"] for f in (top, low, middle))
    assert found["it"].keys() == {"ood", "macro"}
    for share in found["it"].values():
        assert share["share"] == pytest.approx((h - a) / (t - a), abs=1e-5)
        assert share["gap"] == pytest.approx(t - a, abs=1e-6)
        assert share["interval"][0] < share["share"] < share["interval"][1]
    assert found["not"] == {"left out": "too few"}


def test_a_place_is_chosen_by_its_fold_scores(empty_store: store.Store) -> None:
    """Of equal ones the first; what could not be fit says why."""
    places = {"a": scored(0, 1.0, 2), "b": scored(2, 1.0, 2), "c": scored(2, 9.0, 1), "d": unfit()}
    found = tables.chosen({"it": places}).value["it"]
    assert found["best"] == "b" and found["scores"]["d"] == {"left out": "too few"}
    assert found["scores"]["b"]["mean"] == 0.52 and found["scores"]["b"]["settings"] == {"": 2}
    with pytest.raises(TooFew, match="it could be fit at none of d"):
        tables.chosen({"it": {"d": unfit()}}).value


@store.cached
def leaking(out: Path) -> None:
    """Every prompt of one group."""
    rows = [e.model_copy(update={"group": 0}) for e in examples()]
    (out / "examples.jsonl").write_text("\n".join(e.model_dump_json() for e in rows))


def test_a_leak_is_never_a_reason_to_leave_a_row_out(empty_store: store.Store) -> None:
    for step in (
        tables.table(leaking(), {"it": (scored(0, 1.0, 1), None)}),
        tables.closed(leaking(), {}),
    ):
        with pytest.raises(LeakError):
            step.value
