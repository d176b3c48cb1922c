"""Probes, rules and controls against scikit-learn and on planted data whose answer is known."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import LABELS, TEXTS, WIDTH, examples, fit, harvest, identity_sae, mute_sae, prompt_set, table
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression

from lib import store
from lib.probes import attention, methods, tables
from lib.probes.attention import Attention, Tokens
from lib.probes.changes import Change, Fewer, Mislabelled, OneLength, OneStyle, Plain, Shuffled, Wrapped
from lib.probes.methods import (
    AtRandom,
    ByL1Path,
    ByMeanDifference,
    DifferenceOfMeans,
    KSparse,
    Logistic,
    PrincipalComponents,
    Probe,
    RandomDirections,
    Rule,
    SingleLatent,
)
from lib.probes.views import Latents, Residual, Surface, Words
from lib.texts.examples import Labels, TooFew

SITE = Residual(1)

# --------------------------------------------------------------------------------------------------------- fitting


def test_choices_use_validation_only() -> None:
    """Scrambling OOD labels and features changes neither C nor any score in distribution."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(LABELS.y), 6)) + LABELS.y[:, None]
    probe = Logistic((1e-4, 1e-2, 1.0))
    one, chosen = probe.fit(x, LABELS, 0)
    ood = LABELS.split == "ood"
    scrambled = np.where(ood[:, None], 100 * rng.normal(size=x.shape), x)
    flipped = np.where(ood, 1 - LABELS.y, LABELS.y)
    two, again = probe.fit(scrambled, dataclasses.replace(LABELS, y=flipped, taught=flipped), 0)
    assert chosen == again
    np.testing.assert_array_equal(one[""][~ood], two[""][~ood])


def test_fit_is_scikit_learns_on_standardised_features() -> None:
    rng = np.random.default_rng(0)
    x = 5 + 3 * rng.normal(size=(len(LABELS.y), 4)) + LABELS.y[:, None]
    train = LABELS.where("train")
    z = (x - x[train].mean(0)) / x[train].std(0)
    expected = LogisticRegression(C=0.1, max_iter=1000).fit(z[train], LABELS.y[train]).decision_function(z)
    np.testing.assert_allclose(Logistic((0.1,)).fit(x, LABELS, 0)[0][""], expected, atol=1e-3)


def test_of_equal_penalties_the_smallest_wins() -> None:
    x = LABELS.y[:, None] + np.zeros((1, 2))
    assert Logistic((1.0, 1e-3, 0.1)).fit(x, LABELS, 0)[1] == {"val": 1.0, "C": 1e-3}


def test_difference_of_means_and_what_training_is_told() -> None:
    """Every probe learns the labels that it is taught, and is chosen by the true ones."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(LABELS.y), 6)) + LABELS.y[:, None]
    train = LABELS.where("train")
    means = x[train & (LABELS.y == 1)].mean(0) - x[train & (LABELS.y == 0)].mean(0)
    np.testing.assert_allclose(DifferenceOfMeans().fit(x, LABELS, 0)[0][""], x @ means)
    wrong = dataclasses.replace(LABELS, taught=1 - LABELS.y)
    rule = KSparse((1, 6), (1e-2,), ByMeanDifference())
    for probe in (Logistic((1e-2,)), DifferenceOfMeans(), SingleLatent(), rule):
        (one, _), (other, chosen) = probe.fit(x, LABELS, 0), probe.fit(x, wrong, 0)
        for setting, score in one.items():
            assert np.corrcoef(score, other[setting])[0, 1] < -0.9
        assert chosen.get("val", 0) < 0.5


def order_of(rule: Rule, x: np.ndarray, y: np.ndarray, count: int) -> list[int]:
    return rule.order(x, y, count, 0).tolist()


def test_selection_rules() -> None:
    y = np.array([0, 0, 1, 1])
    x = np.array([[0, 5, 1.0], [0, 5, 1], [1, 0, 1], [1, 0, 1]])
    assert order_of(ByMeanDifference(), x, y, 3) == [1, 0, 2]
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
    found = table(fit(Logistic((1e-3, 1.0)), SITE))
    assert found["train"]["auroc"] > 0.999 and found["val"]["auroc"] > 0.999
    assert 0.6 < found["ood"]["auroc"] < 0.95
    assert len(found["ood"]["seeds"]) == 2


def test_surface_probe_on_planted_data(empty_store: store.Store) -> None:
    """Style separates the classes in distribution and says nothing out of it."""
    found = table(fit(Logistic((1e-2, 1.0)), Surface(), runs=1))
    assert found["val"]["auroc"] > 0.999 and abs(found["ood"]["auroc"] - 0.5) < 0.15


@pytest.mark.parametrize("rule", [ByMeanDifference(), ByL1Path()])
def test_k_sparse_on_planted_data(empty_store: store.Store, rule: Rule) -> None:
    """The shortcut's two latents come first: alone perfect in distribution and at chance out of it; more latents bring
    the causal ones. k is chosen on validation, and is blind to what happens out of distribution."""
    view = Latents(1, sae=identity_sae())
    fitted = fit(KSparse((1, 2, 8, 99), (1e-2, 1.0), rule), view)
    assert all(choice["settings"] == ["1", "2", "8"] for choice in methods.choices(fitted))
    assert {latent % WIDTH for latent in methods.choices(fitted)[0]["latents"][:2]} == {1}
    two, eight = table(fitted, "2"), table(fitted, "8")
    assert two["val"]["auroc"] > 0.999 and abs(two["ood"]["auroc"] - 0.5) < 0.15
    if isinstance(rule, ByMeanDifference):  # the refit after the L1 path is not regularised, and the shortcut takes all
        assert eight["ood"]["auroc"] > two["ood"]["auroc"] + 0.1
    single = fit(SingleLatent(), view)
    assert methods.choices(single)[0]["latent"] % WIDTH == 1
    assert abs(table(single)["ood"]["auroc"] - 0.5) < 0.15
    gap = {"dense - single": ((fit(Logistic((1e-3,)), SITE), None), (single, None))}
    assert tables.differences(prompt_set(), gap, 200, 0).value["dense - single"]["ood"]["interval"][0] > 0


def test_attention_finds_the_token_that_pooling_drowns(empty_store: store.Store) -> None:
    """The causal token stands at a random place and marks itself; a mean over tokens sees a fifth of it."""
    pooled = table(fit(Logistic((1e-2, 1.0)), Residual("mean user"), runs=1))
    fitted = fit(Attention((0.1,), 200), Tokens(), runs=1)
    assert table(fitted)["ood"]["auroc"] > max(0.97, pooled["ood"]["auroc"])
    assert methods.choices(fitted)[0]["decay"] == 0.1


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
        made = {n: fit(KSparse((1, 5), (10.0**-n,), PrincipalComponents()), SITE) for n in which}
        picks = {f"{n}": (f, None) for n, f in made.items()}
        _ = tables.table(prompt_set(), picks, 50, 0, name="t").value
        return {n: (f.path / "scores.safetensors").read_bytes() for n, f in made.items()}

    together = fits("together", 0, 1, 2)
    assert fits("alone", 1)[1] == together[1]


class Given(Probe):
    """A probe of a test's own: the true label, with an error where it is even."""

    def fit(self, x: Any, labels: Labels, run: int) -> methods.Fitted:
        return {"": labels.y - 2.0 * (x[:, 0] > 1) * labels.y}, {"rows": len(x)}


def test_a_probe_of_ones_own(empty_store: store.Store) -> None:
    fitted = fit(Given(), SITE)
    assert [choice["rows"] for choice in methods.choices(fitted)] == [len(LABELS.y)] * 2
    assert {"best", "settings", "n", "harmful"} <= methods.choices(fitted)[0].keys()
    assert methods.choices(fitted)[0]["settings"] == [""] and 0.3 < table(fitted)["train"]["auroc"] < 1


# -------------------------------------------------------------------------------------------------------- controls


def changed(change: Change, labels: Labels = LABELS, run: int = 0) -> Labels:
    return change.apply(labels, TEXTS, run)


def test_shuffled_labels_give_chance(empty_store: store.Store) -> None:
    fits = {f"{i}": (fit(Logistic((1e-2,)), SITE, change=Shuffled(float(i))), None) for i in range(5)}
    rows = tables.table(prompt_set(), fits, 50, 0, False).value
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
    benign = np.arange(len(LABELS.y)) % 3 == 0  # stands for harmless prompts in jailbreaks
    labels = dataclasses.replace(LABELS, overall=~benign)
    more = changed(Wrapped(), labels)
    for split in ("train", "val"):
        assert more.where(split).sum() == (LABELS.split == split).sum() > labels.where(split).sum()
    jailbroken = dataclasses.replace(labels, slice=np.where(np.arange(len(LABELS.y)) % 4 == 1, "evil", LABELS.slice))
    plain = changed(Plain(), jailbroken)
    assert set(plain.slice[plain.where("train")]) == {"HarmBench", "chat"}
    assert (plain.where("train") == (jailbroken.where("train") & (jailbroken.slice != "evil"))).all()
    for control in (more, plain, changed(OneLength(), jailbroken)):
        np.testing.assert_array_equal(control.where("ood"), labels.where("ood"))
    with pytest.raises(TooFew, match="needs prompts of both labels"):
        changed(OneStyle(), jailbroken)  # none is one imperative sentence
    texts = [f"Write a short poem about the number {i}" if i % 5 else "Numbers" for i in range(len(LABELS.y))]
    style = OneStyle().apply(jailbroken, texts, 0)
    assert (style.where("val") == (plain.where("val") & (np.arange(len(texts)) % 5 > 0))).all()


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
    labels = dataclasses.replace(LABELS, overall=two, y=np.where(LABELS.split == "train", LABELS.group % 2, LABELS.y))
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
    assert "no living latents" in reason(fit(KSparse((1, 2), (1e-2,), rule), mute))
    assert "no living latents" in reason(fit(SingleLatent(), mute))


def test_too_few_columns_and_clusters_are_reasons(empty_store: store.Store) -> None:
    wide = KSparse((99,), (1e-2,), ByMeanDifference())
    assert "the smallest k, 99" in reason(fit(wide, Latents(1, sae=identity_sae())))
    assert "not 151" in reason(fit(Logistic((1e-2,)), SITE, change=Fewer(151)))


@store.cached
def without_spaces(out: Path) -> None:
    """Text without spaces, no character twice."""
    rows = [e.model_copy(update={"text": chr(0x4E00 + i)}) for i, e in enumerate(examples())]
    (out / "examples.jsonl").write_text("\n".join(e.model_dump_json() for e in rows))


def test_text_without_words_leaves_only_its_row_out(empty_store: store.Store) -> None:
    prompts = without_spaces()
    fits = {
        name: (methods.fit(prompts, harvest(), 0, Logistic((1e-2,)), (view,), Change()), None)
        for name, view in {"words": Words(), "dense": SITE}.items()
    }
    found = tables.table(prompts, fits, 50, 0).value
    assert "no words to learn from" in found["words"]["left out"] and found["dense"]["val"]["auroc"] > 0.9


@store.cached
def uneven(out: Path) -> None:
    """Scores of two runs; the first lacks the setting "1"."""
    score = np.linspace(0, 1, len(examples())).astype(np.float32)
    chosen = [{"best": "2", "settings": ["2"], "n": 20}, {"best": "2", "settings": ["1", "2"], "n": 21}]
    save_file({"0/2": score, "1/1": score, "1/2": score}, out / "scores.safetensors")
    (out / "choices.json").write_text(json.dumps(chosen))


def test_a_setting_that_a_run_lacks_is_left_out(empty_store: store.Store) -> None:
    assert table(uneven(), "1") == {"left out": "no fit of run/setting 0/1"}
    assert [choice["n"] for choice in table(uneven(), "2")["choices"]] == [20, 21]
