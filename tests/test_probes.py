"""Probes, rules and controls against scikit-learn and on planted data whose answer is known."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import LABELS, TEXTS, WIDTH, examples, fit, harvest, identity_sae, mute_sae, prompt_set, table
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

from lib import store
from lib.lm import activations
from lib.probes import attention, methods, tables
from lib.probes.attention import Attention, Tokens
from lib.probes.changes import Balanced, Change, Fewer, LeftOut, Mislabelled, Plain, Shuffled
from lib.probes.methods import (
    AtRandom,
    ByL1Path,
    ByMeanDifference,
    DifferenceOfMeans,
    KSparse,
    Linear,
    Logistic,
    Model,
    PrincipalComponents,
    Probe,
    RandomDirections,
    Rule,
    SingleLatent,
)
from lib.probes.views import Data, Latents, Residual, Surface, Words
from lib.texts.examples import SETS, Example, Labels, TooFew

SITE = Residual(1)

# --------------------------------------------------------------------------------------------------------- fitting


def test_models_see_train_only() -> None:
    """Scrambling validation and OOD changes no model."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(LABELS.y), 6)) + LABELS.y[:, None]
    train, probe = LABELS.where("train"), Linear((1e-2, 1.0), (1.0,))
    scrambled = np.where(train[:, None], x, 100 * rng.normal(size=x.shape))
    flipped = np.where(train, LABELS.y, 1 - LABELS.y)
    other = probe.fit(scrambled, dataclasses.replace(LABELS, y=flipped, taught=flipped), 0)[""]
    for option, model in probe.fit(x, LABELS, 0)[""].items():
        np.testing.assert_array_equal(model.scores[train], other[option].scores[train])
        np.testing.assert_array_equal(model.direction, other[option].direction)


def test_fits_on_few_columns_are_at_their_end_whatever_c() -> None:
    """Float32 columns that nearly agree, hardly regularised, against float64 with a fine tolerance; lbfgs as it comes stops on its way."""
    rng, train = np.random.default_rng(0), LABELS.where("train")
    x = rng.normal(size=(len(LABELS.y), 1)) + 0.3 * rng.normal(size=(len(LABELS.y), 6)) + 0.5 * LABELS.y[:, None]
    x = x.astype(np.float32)
    z = (x - x[train].mean(0, dtype=float)) / x[train].std(0, dtype=float)
    exact = LogisticRegression(C=1e3, tol=1e-10, max_iter=100_000).fit(z[train], 2 * LABELS.y[train] - 1)
    expected = exact.decision_function(z)
    found, early = (probe((1e3,)).fit(x, LABELS, 0)[""]["C=1000"].scores for probe in (methods.Few, Logistic))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(early - expected).max() > 3 * np.abs(found - expected).max()


def test_fits_are_scikit_learns_on_standardised_features() -> None:
    """Each option, the most regularised first; its direction says the same of raw features."""
    rng = np.random.default_rng(0)
    x = 5 + 3 * rng.normal(size=(len(LABELS.y), 4)) + LABELS.y[:, None]
    train = LABELS.where("train")
    z = (x - x[train].mean(0)) / x[train].std(0)
    found = Linear((0.1, 1e-3), (0.5, 2.0)).fit(x, LABELS, 0)[""]
    assert list(found) == ["C=0.001", "C=0.1", "ridge=2", "ridge=0.5"]
    expected = LogisticRegression(C=0.1, max_iter=1000).fit(z[train], LABELS.y[train]).decision_function(z)
    np.testing.assert_allclose(found["C=0.1"].scores, expected, atol=1e-3)
    ridge = Ridge(alpha=0.5 * train.sum()).fit(z[train], 2 * LABELS.y[train] - 1).predict(z)
    np.testing.assert_allclose(found["ridge=0.5"].scores, ridge, atol=1e-6)
    for model in found.values():
        np.testing.assert_allclose(np.c_[x, np.ones(len(x))] @ model.direction, model.scores, atol=1e-5)
    sparse = csr_matrix(np.where(x > 5, x, 0))
    words = Linear((0.1,), (1.0,)).fit(sparse, LABELS, 0)[""]
    for model in words.values():
        np.testing.assert_allclose(sparse @ model.direction[:-1] + model.direction[-1], model.scores, atol=1e-4)


def test_a_ridge_shrinks_as_it_says() -> None:
    """Of uncorrelated features, each weight to v / (v + r) with v = 1."""
    x = np.random.default_rng(0).normal(size=(len(LABELS.y), 3)) + LABELS.y[:, None] * [1, 0, 0]
    train = LABELS.where("train")
    white = (x - x[train].mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x[train].T, ddof=0))).T
    free, shrunk = (Linear((), (r,)).fit(white, LABELS, 0)[""][f"ridge={r:g}"].direction[:3] for r in (1e-9, 3.0))
    np.testing.assert_allclose(shrunk, free / 4, atol=1e-6)


def test_difference_of_means_and_what_training_is_told() -> None:
    """Every probe learns the labels that it is taught."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(LABELS.y), 6)) + LABELS.y[:, None]
    train = LABELS.where("train")
    means = x[train & (LABELS.y == 1)].mean(0) - x[train & (LABELS.y == 0)].mean(0)
    np.testing.assert_allclose(DifferenceOfMeans().fit(x, LABELS, 0)[""][""].scores, x @ means)
    wrong = dataclasses.replace(LABELS, taught=1 - LABELS.y)
    few = KSparse((1, 6), (1e-2,), (ByMeanDifference(), ByMeanDifference(standardised=True)))
    for probe in (Linear((1e-2,), (1.0,)), DifferenceOfMeans(), SingleLatent(), few):
        one, other = probe.fit(x, LABELS, 0), probe.fit(x, wrong, 0)
        for setting, options in one.items():
            for option, model in options.items():
                assert np.corrcoef(model.scores, other[setting][option].scores)[0, 1] < -0.9


# ------------------------------------------------------------------------------------------------------- choosing


def transformed() -> list[Example]:
    """The planted prompts, every third of which is under one of two transforms."""
    names = ("plain", "plain", "one", "plain", "plain", "two")
    return [e.model_copy(update={"transform": names[i % 6], "group": i}) for i, e in enumerate(examples())]


@store.cached
def with_transforms(out: Path) -> None:
    (out / "examples.jsonl").write_text("\n".join(e.model_dump_json() for e in transformed()))


@dataclasses.dataclass(frozen=True)
class Known(Probe):
    """How well an option does in which fold is known: by how far it moves harmful prompts, in standard deviations."""

    moves: dict[str, dict[str, tuple[int, int, int]]]  # {setting: {option: of "one", of "two", of plain prompts}}

    def fit(self, x: Any, labels: Labels, run: int) -> methods.Fits:
        which = np.select([labels.transform == "one", labels.transform == "two"], [0, 1], 2)
        noise = np.random.default_rng(0).normal(size=len(which))
        return {
            setting: {o: Model(labels.y * np.array(by)[which] + noise) for o, by in options.items()}
            for setting, options in self.moves.items()
        }


def test_choices_leave_out_transforms_and_take_the_simplest(empty_store: store.Store) -> None:
    """By the mean over folds, of equal ones the first; the margin and the ends of a grid are told."""
    grid = {"C=1": (1, 1, 1), "C=2": (2, 2, 2), "C=3": (2, 2, 2), "ridge=1": (0, 0, 9)}
    probe = Known({"1": grid, "2": {"": (2, 2, 2)}, "3": {"": (1, 1, 3)}})
    fitted = methods.fit(with_transforms(), harvest(), 0, probe, (SITE, SITE), 3, Change())
    found = methods.choices(fitted)
    assert [len(row) for row in found] == [3, 3] and methods.scores(fitted).shape == (2, 3, len(LABELS.y))
    labels = Labels.of(transformed())
    folds = labels.folds()
    assert len(folds) == 2 and found[0][0]["folds"] == 2
    values = {
        o: np.mean([roc_auc_score(labels.y[m], probe.fit(None, left, 0)["1"][o].scores[m]) for left, m in folds])
        for o in grid
    }
    first = found[0][0]["settings"]
    assert found[0][0]["best"] == "1" and list(first) == ["1", "2", "3"]
    assert max(values, key=values.get) == "C=2" == first["1"]["option"], "its equal comes later"
    assert first["1"]["score"] == pytest.approx(values["C=2"]) == pytest.approx(first["2"]["score"])
    assert first["1"]["margin"] == pytest.approx(0) and first["2"]["margin"] is None
    assert not first["1"]["edge"] and not first["2"]["edge"]
    at_the_end = Known({"": {"C=1": (3, 3, 3), "C=2": (0, 0, 0)}})
    other = methods.choices(methods.fit(with_transforms(), harvest(), 0, at_the_end, (SITE,), 1, Change()))[0][0]
    assert other["settings"][""]["edge"] and other["settings"][""]["margin"] > 0.2
    told = methods.picked(fitted)
    assert told["settings"] == {"1": 6} and sum(told["options"].values()) == 6 and len(told["n"]) == 3
    assert told["min"] <= told["mean"] <= told["max"] and told["first"] == first["1"]
    best = tables.chosen({"a probe": {"worse": fitted, "none": mute_fit(), "it": fitted}}).value["a probe"]
    assert best["best"] == "worse" and "no living latents" in best["scores"]["none"]["left out"]


def mute_fit() -> store.Artifact:
    return fit(SingleLatent(), Latents(1, sae=mute_sae()))


def test_an_expensive_probe_chooses_once(empty_store: store.Store) -> None:
    fitted = methods.fit(with_transforms(), harvest(), 0, Attention((0.1, 3.0), 2), (Tokens(),), 3, Change())
    (rows,) = methods.choices(fitted)
    assert len({row["settings"][""]["option"] for row in rows}) == 1
    assert len({row["settings"][""]["score"] for row in rows}) == 1
    assert len(np.unique(methods.scores(fitted)[0, :, 0])) == 3
    assert Attention((0.1, 3.0), 2).at({"": "decay=3"}) == Attention((3.0,), 2)
    path = KSparse((1, 4), (), (ByL1Path(),))
    assert path.once and not KSparse((1, 4), (), (ByMeanDifference(),)).once


def test_crossing_is_every_seed_in_every_draw(empty_store: store.Store) -> None:
    """A cell is what a fit of its view and its draw alone says, the choice included."""
    probe, places = Linear((1e-3, 1.0), (1.0,)), (Residual(0), Residual(1))
    both = fit(probe, *places, draws=2)
    assert set(load_file(both.path / "directions.safetensors")) == {"0/0", "0/1", "1/0", "1/1"}
    for seed, place in enumerate(places):
        alone = fit(probe, place, draws=2)
        np.testing.assert_array_equal(methods.scores(both)[seed], methods.scores(alone)[0])
        assert methods.choices(both)[seed] == methods.choices(alone)[0]
    x = activations.summary(harvest(), 0, 1).numpy()
    made = load_file(both.path / "directions.safetensors")["1/1"]
    np.testing.assert_allclose(x @ made[:-1] + made[-1], methods.scores(both)[1, 1], atol=1e-4)


class Counting(Residual):
    """A view that says how often it is asked."""

    def matrix(self, data: Data, labels: Labels) -> np.ndarray:
        asked.append(labels)
        return super().matrix(data, labels)


class Learning(Counting):
    learns = True


asked: list[Labels] = []


def test_a_view_that_learns_nothing_is_made_once(empty_store: store.Store, tmp_path: Path) -> None:
    for view, times in ((Counting(1), 1), (Learning(1), 2 * 3)):
        asked.clear()
        recipe = methods.fit(with_transforms(), harvest(), 0, DifferenceOfMeans(), (view,), 2, Change())
        recipe.function(tmp_path, **recipe.arguments)
        assert len(asked) == times


def order_of(rule: Rule, x: np.ndarray, y: np.ndarray, count: int) -> list[int]:
    return rule.order(x, y, count, 0).tolist()


def test_selection_rules() -> None:
    y = np.array([0, 0, 1, 1])
    x = np.array([[0, 5, 1.0], [0, 5, 1], [1, 0, 1], [1, 0, 1]])
    assert order_of(ByMeanDifference(), x, y, 3) == [1, 0, 2]
    assert order_of(ByMeanDifference(standardised=True), x + [0, 3, 0] * np.arange(4)[:, None] % 2, y, 3) == [0, 1, 2]
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = rng.normal(size=(400, 30))
    x[:, 7] += 2 * y
    x[:, 8] = x[:, 7] + 0.01 * rng.normal(size=400)  # a copy adds nothing: L1 takes one of the two first
    x[:, 21] += 0.8 * y
    x[:, 3] = 0
    order = order_of(ByL1Path(), x, y, 3)
    assert order[0] in (7, 8) and 21 in order[:3] and order[-1] == 3 and sorted(order) == list(range(30))
    x[:, 5] = np.arange(400) < 3  # fires on less than 1 %
    x[:, 6] = np.arange(400) < 4
    drawn = order_of(AtRandom(), x, y, 3)
    assert sorted(drawn) == [i for i in range(30) if i not in (3, 5)] and drawn != sorted(drawn)
    assert drawn == order_of(AtRandom(), x, y, 9) != AtRandom().order(x, y, 3, 1).tolist()


def test_projections_learn_from_train_prompts_only() -> None:
    """Principal components of train prompts: validation and OOD prompts may be anything."""
    x = np.random.default_rng(0).normal(size=(len(LABELS.y), 8)) * np.arange(1, 9)
    train = LABELS.where("train")
    _, _, directions = np.linalg.svd(x[train] - x[train].mean(0), full_matrices=False)
    made = {k: columns for k, columns, _ in PrincipalComponents().columns(x, LABELS, [1, 2, 9], 0)}
    assert made.keys() == {1, 2}, "there are eight"
    np.testing.assert_allclose(np.abs(made[2]), np.abs((x - x[train].mean(0)) @ directions[:2].T), atol=1e-8)
    drawn = {k: columns for k, columns, _ in RandomDirections().columns(x, LABELS, [2, 9], 3)}
    expected = x @ np.random.default_rng(3).normal(size=(8, 9)).astype(np.float32)
    np.testing.assert_array_equal(drawn[9], expected)


# --------------------------------------------------------------------------------------------------------- planted


def test_dense_probe_on_planted_data(empty_store: store.Store) -> None:
    """In distribution perfect; out of it the shortcut is gone and what is left is the causal direction."""
    found = table(fit(Linear((1e-3, 1.0)), SITE))
    assert found["train"]["auroc"] > 0.999 and found["val"]["auroc"] > 0.999
    assert 0.6 < found["ood"]["auroc"] < 0.95
    assert np.shape(found["ood"]["seeds"]) == (1, 2)


def test_surface_probe_on_planted_data(empty_store: store.Store) -> None:
    """Style separates the classes in distribution and says nothing out of it."""
    found = table(fit(Linear((1e-2, 1.0)), Surface(), draws=1))
    assert found["val"]["auroc"] > 0.999 and abs(found["ood"]["auroc"] - 0.5) < 0.15


@pytest.mark.parametrize("rule", [ByMeanDifference(), ByL1Path()])
def test_k_sparse_on_planted_data(empty_store: store.Store, rule: Rule) -> None:
    """The shortcut's two latents come first: alone perfect in distribution and at chance out of it; more latents bring
    the causal ones. k is chosen on validation, and is blind to what happens out of distribution."""
    view = Latents(1, sae=identity_sae())
    fitted = fit(KSparse((1, 2, 8, 99), (1e-2, 1.0), (rule,)), view)
    assert all([*choice["settings"]] == ["1", "2", "8"] for choice in methods.choices(fitted)[0])
    assert {latent % WIDTH for latent in methods.choices(fitted)[0][0]["settings"]["8"]["latents"][:2]} == {1}
    two, eight = table(fitted, "2"), table(fitted, "8")
    assert two["val"]["auroc"] > 0.999 and abs(two["ood"]["auroc"] - 0.5) < 0.15
    if isinstance(rule, ByMeanDifference):  # the refit after the L1 path is not regularised, and the shortcut takes all
        assert eight["ood"]["auroc"] > two["ood"]["auroc"] + 0.1
    single = fit(SingleLatent(), view)
    assert methods.choices(single)[0][0]["settings"][""]["latent"] % WIDTH == 1
    assert abs(table(single)["ood"]["auroc"] - 0.5) < 0.15
    gap = {"dense - single": ((fit(Linear((1e-3,)), SITE), None), (single, None))}
    assert tables.differences(prompt_set(), gap).value["dense - single"]["ood"]["interval"][0] > 0


def test_attention_finds_the_token_that_pooling_drowns(empty_store: store.Store) -> None:
    """The causal token stands at a random place and marks itself; a mean over tokens sees a fifth of it."""
    pooled = table(fit(Linear((1e-2, 1.0)), Residual("mean user"), draws=1))
    fitted = fit(Attention((0.1,), 200), Tokens(), draws=1)
    assert table(fitted)["ood"]["auroc"] > max(0.97, pooled["ood"]["auroc"])
    assert methods.choices(fitted)[0][0]["settings"][""]["option"] == "decay=0.1"


def test_attention_scores_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    x, q, w = (torch.randn(*shape, generator=generator) for shape in ((9, 4), (4,), (4,)))
    which = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2])
    got = attention.scored(x, which, 3, q, w, torch.tensor([0.5]))
    for i in range(3):
        mine = x[which == i]
        assert float(got[i]) == pytest.approx(float((mine @ q).softmax(0) @ mine @ w) + 0.5, abs=1e-5)


def test_fits_are_the_same_bytes_alone_and_beside_others(empty_store: store.Store, tmp_path: Path) -> None:
    """Principal components depend on the number of threads in the last digits; a fit always has one."""

    def fits(folder: str, *which: int) -> dict[int, bytes]:
        store.use(store.Store("report", tmp_path / folder, tmp_path / f"{folder}-results", None))
        made = {n: fit(KSparse((1, 5), (10.0**-n,), (PrincipalComponents(),)), SITE) for n in which}
        picks = {f"{n}": (f, None) for n, f in made.items()}
        _ = tables.table(prompt_set(), picks, name="t").value
        return {n: (f.path / "scores.safetensors").read_bytes() for n, f in made.items()}

    together = fits("together", 0, 1, 2)
    assert fits("alone", 1)[1] == together[1]


class Given(Probe):
    """A probe of a test's own: the true label, with an error where it is even."""

    def fit(self, x: Any, labels: Labels, run: int) -> methods.Fits:
        return {"": {"": Model(labels.y - 2.0 * (x[:, 0] > 1) * labels.y, {"rows": len(x)})}}


def test_a_probe_of_ones_own(empty_store: store.Store) -> None:
    fitted = fit(Given(), SITE)
    assert [choice["settings"][""]["rows"] for choice in methods.choices(fitted)[0]] == [len(LABELS.y)] * 2
    assert {"best", "settings", "n", "harmful", "folds"} == methods.choices(fitted)[0][0].keys()
    assert 0.3 < table(fitted)["train"]["auroc"] < 1


# -------------------------------------------------------------------------------------------------------- controls


def changed(change: Change, labels: Labels = LABELS, run: int = 0) -> Labels:
    return change.apply(labels, TEXTS, run)


def test_shuffled_labels_give_chance(empty_store: store.Store) -> None:
    fits = {f"{i}": (fit(Linear((1e-2,)), SITE, change=Shuffled(float(i))), None) for i in range(5)}
    rows = tables.table(prompt_set(), fits, False).value
    assert abs(np.mean([row["ood"]["auroc"] for row in rows.values()]) - 0.5) < 0.1


def test_controls_change_what_they_say() -> None:
    train = LABELS.where("train")
    assert changed(Change()) is LABELS
    noisy = changed(Mislabelled(0.25))
    turned = np.unique(LABELS.group[noisy.taught != LABELS.y])
    assert len(turned) == round(0.25 * len(np.unique(LABELS.group[train])))
    assert (noisy.y == LABELS.y).all() and (noisy.taught[~train] == LABELS.y[~train]).all()
    few = changed(Fewer(16))
    kept = few.where("train")
    assert len(np.unique(LABELS.group[kept])) == 16 and (kept <= train).all() and (few.taught == LABELS.y).all()
    np.testing.assert_array_equal(few.where("val"), LABELS.where("val"))
    shuffled = changed(Shuffled())
    assert shuffled.taught[train].sum() == LABELS.y[train].sum() and (shuffled.taught[train] != LABELS.y[train]).any()
    with pytest.raises(TooFew, match="150 train clusters, not 151"):
        changed(Fewer(151))


def test_controls_of_the_training_set() -> None:
    """Wrapped prompts come in, others go out, in train and validation alike; OOD stays as it is."""
    wrapped = np.arange(len(LABELS.y)) % 3 == 0  # stands for harmless prompts in jailbreaks
    labels = dataclasses.replace(LABELS, mix=np.where(wrapped, "balanced", "post"))
    more = changed(Balanced(), labels)
    for split in ("train", "val"):
        assert more.where(split).sum() == (LABELS.split == split).sum() > labels.where(split).sum()
    jailbroken = dataclasses.replace(
        labels, transform=np.where(np.arange(len(LABELS.y)) % 4 == 1, "evil", LABELS.transform)
    )
    plain = changed(Plain(), jailbroken)
    assert (plain.where("train") == (jailbroken.where("train") & (jailbroken.transform == "plain"))).all()
    for control in (more, plain):
        for name in SETS:
            np.testing.assert_array_equal(control.where(name), labels.where(name))
    assert more.where("balanced").sum() > more.where("ood").sum()


def test_leaving_data_sets_out() -> None:
    """Plain prompts of the two are OOD, no cluster of theirs is in train, and a fifth of the others' clusters is validation."""
    number = np.arange(len(LABELS.y))
    source = np.where(LABELS.y == 1, np.array(["a", "b", "c"])[number % 3], np.array(["x", "y"])[number // 2 % 2])
    transform = np.where(number % 10 == 7, "evil", "plain")
    labels = dataclasses.replace(LABELS, source=source, transform=transform, mix=np.where(number < 50, "wider", "post"))
    made = [changed(LeftOut(harmful="b", benign="y"), labels, run) for run in (0, 0, 1)]
    one, again, other = made
    np.testing.assert_array_equal(one.split, again.split)
    assert (one.split != other.split).any() and (one.mix == "post").all()
    ood = one.where("ood")
    np.testing.assert_array_equal(ood, other.where("ood"))
    assert set(one.source[ood & (one.y == 1)]) == {"b"} and set(one.source[ood & (one.y == 0)]) == {"y"}
    assert not np.isin(one.group[one.where("train") | one.where("val")], one.group[ood]).any()
    assert (one.split[transform != "plain"] == "").all()
    groups = {split: len(np.unique(one.group[one.where(split)])) for split in ("train", "val")}
    assert groups["val"] == pytest.approx(0.2 * sum(groups.values()), abs=1)
    (fold,) = one.folds()
    assert fold[0] is one, "without transforms, choices are made on validation"
    with pytest.raises(TooFew, match="'ood' needs prompts of both labels"):
        changed(LeftOut(harmful="nowhere", benign="y"), labels)


def test_draws_depend_on_run_and_amount() -> None:
    """A control in several amounts is several fits, each with a draw of its own, the same in every process."""
    draws = [tuple(changed(Shuffled(amount), run=run).taught) for amount in (0.0, 1.0) for run in (0, 1)]
    assert len(set(draws)) == 4 and draws[0] == tuple(changed(Shuffled(0.0)).taught)
    train = LABELS.where("train")
    expected = LABELS.y.copy()
    expected[train] = np.random.default_rng([1, 1000]).permutation(expected[train])
    np.testing.assert_array_equal(draws[3], expected)


def test_a_change_that_leaves_one_label_is_too_much() -> None:
    two = np.isin(LABELS.group, [0, 1]) | (LABELS.split != "train")
    mix = np.where(two, "post", "balanced")
    labels = dataclasses.replace(LABELS, mix=mix, y=np.where(LABELS.split == "train", LABELS.group % 2, LABELS.y))
    with pytest.raises(TooFew, match="one label only"):
        changed(Mislabelled(0.5), labels)


# ------------------------------------------------------------------------------------------ what cannot be fit


def reason(fitted: store.Artifact) -> str:
    with pytest.raises(TooFew) as caught:
        methods.scores(fitted)
    assert not list((fitted.path).glob("*.npz")) and table(fitted) == {"left out": str(caught.value)}
    return str(caught.value)


@pytest.mark.parametrize("rule", [ByMeanDifference(), ByL1Path(), AtRandom()])
def test_an_sae_without_living_latents_says_so(empty_store: store.Store, rule: Rule) -> None:
    mute = Latents(1, sae=mute_sae())
    assert "no living latents" in reason(fit(KSparse((1, 2), (1e-2,), (rule,)), mute))
    assert "no living latents" in reason(fit(SingleLatent(), mute))


def test_too_few_columns_and_clusters_are_reasons(empty_store: store.Store) -> None:
    wide = KSparse((99,), (1e-2,), (ByMeanDifference(),))
    assert "the smallest k, 99" in reason(fit(wide, Latents(1, sae=identity_sae())))
    assert "not 151" in reason(fit(Linear((1e-2,)), SITE, change=Fewer(151)))


@store.cached
def without_spaces(out: Path) -> None:
    """Text without spaces, no character twice."""
    rows = [e.model_copy(update={"text": chr(0x4E00 + i)}) for i, e in enumerate(examples())]
    (out / "examples.jsonl").write_text("\n".join(e.model_dump_json() for e in rows))


def test_text_without_words_leaves_only_its_row_out(empty_store: store.Store) -> None:
    prompts = without_spaces()
    fits = {
        name: (methods.fit(prompts, harvest(), 0, Logistic((1e-2,)), (view,), 1, Change()), None)
        for name, view in {"words": Words(), "dense": SITE}.items()
    }
    found = tables.table(prompts, fits).value
    assert "no words to learn from" in found["words"]["left out"] and found["dense"]["val"]["auroc"] > 0.9


@store.cached
def uneven(out: Path) -> None:
    """Scores of two draws; the first lacks the setting "1"."""
    score = np.linspace(0, 1, len(examples())).astype(np.float32)
    one, two = ({k: {"option": "", "score": 0.5, "edge": False} for k in ks} for ks in (["2"], ["1", "2"]))
    chosen = [[{"best": "2", "settings": one, "n": 20}, {"best": "2", "settings": two, "n": 21}]]
    save_file({"0/0/2": score, "0/1/1": score, "0/1/2": score}, out / "scores.safetensors")
    (out / "choices.json").write_text(json.dumps(chosen))


def test_a_setting_that_a_run_lacks_is_left_out(empty_store: store.Store) -> None:
    assert table(uneven(), "1") == {"left out": "no fit of seed/draw/setting 0/0/1"}
    assert table(uneven(), "2")["choices"]["n"] == [20, 21]
