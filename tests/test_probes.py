"""The probing protocol against scikit-learn, brute force and planted data whose answer is known."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.probes.protocol import Labels, LeakError
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

from lib import prompts, store, surface
from lib.lm import activations
from lib.probes import attention, features, methods, protocol, tables
from lib.sae import training
from lib.sae.variants import SAEConfig, make

POSITIONS, WIDTH = 3, 16
RUNS = 2
TIMES = 200


def examples(n: int = 600) -> list[prompts.Example]:
    """Half train, a quarter validation, a quarter OOD; labels alternate, two prompts a group. In distribution harmful prompts
    ask (a shortcut of style), OOD nobody does."""
    split = ["train"] * (n // 2) + ["val"] * (n // 4) + ["ood"] * (n // 4)
    return [
        prompts.Example(
            text=f"Prompt number {i}{' elsewhere' if s == 'ood' else '?' if i % 2 else ''}",
            label=i % 2,
            split=s,
            slice=("AdvBench" if i % 2 else "chat") if s == "ood" else ("HarmBench" if i % 2 else "chat"),
            transform="plain",
            base=str(i),
            group=i // 2,
        )
        for i, s in enumerate(split)
    ]


LABELS = Labels.of(examples())


@store.cached
def prompt_set(out: Path) -> None:
    (out / "examples.jsonl").write_text("\n".join(e.model_dump_json() for e in examples()))


@store.cached
def planted(out: Path) -> None:
    """At position 1, coordinate 0 is causal in all splits; coordinate 1 is a stronger shortcut, in distribution only. Among
    each prompt's five other tokens, one at a random place is causal and says so in coordinate 2."""
    rng = np.random.default_rng(0)
    sign = 2 * LABELS.y - 1
    tail = rng.normal(size=(len(sign), POSITIONS, WIDTH))
    tail[:, 1, 0] += 1.0 * sign
    tail[:, 1, 1] += np.where(LABELS.split == "ood", 0, 6 * sign)
    tokens = rng.normal(size=(len(sign), 5, WIDTH))
    where = rng.integers(5, size=len(sign))
    tokens[np.arange(len(sign)), where, 0] = 4 * sign
    tokens[np.arange(len(sign)), where, 2] = 6
    every = torch.from_numpy(np.concatenate([tokens, tail], axis=1)).half()
    pools = torch.stack([every[:, :5].mean(1), every[:, :5].amax(1), every.mean(1), every.amax(1)], dim=1)
    save_file({"tail_0": torch.from_numpy(tail).half(), "pools_0": pools}, out / "summary.safetensors")
    n, length = every.shape[:2]
    columns = {"sequence": np.repeat(np.arange(n), length), "position": np.tile(np.arange(7, 7 + length), n)}
    order = rng.permutation(n * length)  # harvests are not in the order of the prompts
    x = every.reshape(-1, WIDTH)[torch.from_numpy(order)]
    tensors = {name: torch.from_numpy(values[order].astype(np.int32)) for name, values in columns.items()}
    tensors |= {"token": tensors["sequence"].clone(), "layer_0": x, "norm_0": x.float().norm(dim=1)}
    save_file({name: t.contiguous() for name, t in tensors.items()}, out / "shard_0000.safetensors")


@store.cached
def identity_sae(out: Path) -> None:
    """Latents that are the residual's own coordinates, each with either sign."""
    sae = make(SAEConfig(variant="jumprelu", latents=2 * WIDTH), WIDTH)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)], dim=1))
        sae.W_dec.copy_(sae.W_enc.T)
    training.save(sae, [], out)


@store.cached
def mute_sae(out: Path) -> None:
    """Latents that never fire."""
    sae = training.load(identity_sae())
    with torch.no_grad():
        sae.theta.fill_(1e6)
    training.save(sae, [], out)


def at(place: int | str, **more: object) -> dict:
    return {"of": "residual", "place": place, **more}


def probed() -> tuple[store.Artifact, store.Artifact, int]:
    return prompt_set(), planted(), 0


def read(fitted: store.Artifact) -> dict:
    return tables.tables(prompt_set(), {"it": fitted}, TIMES, 0).value["it"]


# ------------------------------------------------------------------------------------------------------ statistics


def labels_of(y: np.ndarray, group: np.ndarray, split: str = "ood") -> Labels:
    n = len(y)
    return Labels(y, np.full(n, split), np.full(n, "s"), group.astype(np.int64), np.ones(n, bool))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=30), st.integers(0, 99))
def test_bootstrap_against_scikit_learn(rows: list[tuple[int, int]], seed: int) -> None:
    """Every resample of whole groups, ties and all, recomputed by repeating its rows."""
    y, score = (np.array(column) for column in zip(*rows, strict=True))
    weights = protocol.resampled(labels_of(y, np.arange(len(y)) // 3), 20, seed)
    got = protocol.weighted_aurocs(y, score.astype(float), weights)
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
    weights = protocol.resampled(labels_of(y, group), 50, 0)
    assert all(len(set(row[group == g])) == 1 for row in weights for g in (0, 17, 199))
    assert (weights[:, ::5].sum(1) == 200).all()
    score = y + np.repeat(rng.normal(0, 1, 200), 5)
    alone, grouped = (
        np.std(protocol.weighted_aurocs(y, score, protocol.resampled(labels_of(y, g), 500, 0)))
        for g in (np.arange(1000), group)
    )
    assert grouped > 1.5 * alone


def test_runs_share_the_draws_of_clusters() -> None:
    """A cluster has one weight in all runs, wherever their splits put it: else a mean over runs would look too certain."""
    a, b = (protocol.resampled(LABELS.drawn(run), 20, 0) for run in (0, 1))
    np.testing.assert_array_equal(a, b)


def test_intervals_cover() -> None:
    """Means of three runs that share their prompts, many times over: the truth is missed about one time in twenty."""
    rng, missed = np.random.default_rng(0), {}
    for run_spread, prompt_spread in ((0.03, 0.0), (0.03, 0.01), (0.01, 0.03), (0.0, 0.03)):
        outside = 0
        for _ in range(600):
            seeds = rng.normal(0, run_spread, 3) + rng.normal(0, prompt_spread)
            boot = rng.normal(0, prompt_spread, 300)
            low, high = protocol.interval([boot + s for s in seeds], seeds, (-2, 2))
            outside += not low <= 0 <= high
        missed[run_spread, prompt_spread] = outside / 600
    assert all(0.02 < share < 0.09 for share in missed.values()), missed


def test_differences_are_paired() -> None:
    """A probe minus itself is 0 in every draw; two noisy copies of one score differ less than their intervals are wide."""
    rng = np.random.default_rng(0)
    a = LABELS.y + rng.normal(0, 1, len(LABELS.y))
    b = a + rng.normal(0, 0.1, len(a))
    runs = [LABELS] * 2
    zero = protocol.differences(runs, [a, a], [a, a], TIMES, 0)
    assert all(e["interval"] == [0, 0] and e["difference"] == 0 for e in zero.values())
    near = protocol.differences(runs, [a, a], [b, b], TIMES, 0)
    wide = protocol.table(runs, [a, a], TIMES, 0)["ood"]["interval"]
    assert np.ptp(near["ood"]["interval"]) < 0.4 * np.ptp(wide)
    here = LABELS.where("ood")
    expected = roc_auc_score(LABELS.y[here], a[here]) - roc_auc_score(LABELS.y[here], b[here])
    assert near["ood"]["difference"] == pytest.approx(expected)
    more = near[protocol.TRANSFER]["difference"]
    assert more == pytest.approx(near["ood"]["difference"] - near["val"]["difference"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=4, max_size=60))
def test_recall_and_threshold_against_brute_force(rows: list[tuple[int, int]]) -> None:
    y, score = (np.array(column) for column in zip(*rows, strict=True))
    if len(np.unique(y)) < 2:
        return
    allowed = [t for t in [*score, -1] if (score[y == 0] > t).sum() <= int(0.01 * (y == 0).sum())]
    assert protocol.recall(y, score) == max((score[y == 1] > t).mean() for t in allowed)
    cut = protocol.best_threshold(y, score)
    best = max(((score > t) == y).mean() for t in np.arange(-0.5, 7))
    assert ((score > cut) == y).mean() == pytest.approx(best)


def test_every_auroc_agrees_with_scikit_learn() -> None:
    """Train, validation, OOD and every slice of a table, in every run; recall agrees with its ROC curve."""
    rng = np.random.default_rng(0)
    runs = [LABELS.drawn(run) for run in range(3)]
    scores = [np.round(LABELS.y + rng.normal(0, 1, len(LABELS.y)), 1) for _ in runs]
    found = protocol.table(runs, scores, 50, 0)
    for split in protocol.SPLITS:
        for run, (labels, score) in enumerate(zip(runs, scores, strict=True)):
            here = labels.where(split)
            assert found[split]["seeds"][run] == pytest.approx(roc_auc_score(labels.y[here], score[here]))
        assert found[split]["auroc"] == pytest.approx(np.mean(found[split]["seeds"]))
        assert found[split]["interval"][0] < found[split]["auroc"] < found[split]["interval"][1]
    assert found["slices"]["AdvBench"]["auroc"] == pytest.approx(found["ood"]["auroc"])
    assert found["slices"]["chat"]["against"] == "AdvBench"
    here = LABELS.where("ood")
    alarms, hits, _ = roc_curve(LABELS.y[here], scores[0][here], drop_intermediate=False)
    assert protocol.recall(LABELS.y[here], scores[0][here]) == pytest.approx(hits[alarms <= 0.01].max())


def test_column_aurocs_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, (50, 6)), rng.integers(0, 2, 50)
    expected = [roc_auc_score(y, x[:, j]) for j in range(6)]
    np.testing.assert_allclose(protocol.column_aurocs(x, y), expected)


# ---------------------------------------------------------------------------------------------------------- splits


def test_draws_part_no_group_and_keep_sizes() -> None:
    before = {split: LABELS.where(split).sum() for split in protocol.SPLITS}
    draws = [LABELS.drawn(run) for run in range(4)]
    for labels in draws:
        assert {s: labels.where(s).sum() for s in protocol.SPLITS} == before
        np.testing.assert_array_equal(labels.split == "ood", LABELS.split == "ood")
        for a, b in itertools.combinations(protocol.SPLITS, 2):
            assert not set(labels.group[labels.split == a]) & set(labels.group[labels.split == b])
    assert len({tuple(labels.split) for labels in draws}) == 4
    few = labels_of(np.array([0, 1] * 3), np.array([0, 1, 2, 2, 3, 3]))
    few = dataclasses.replace(few, split=np.array(["train", "train", "val", "val", "ood", "ood"]))
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
    with pytest.raises(ValueError, match="'val' needs prompts of both labels"):
        Labels.of(rows)


def test_diagnostic_slices_stay_out_of_the_overall_figures() -> None:
    rows = examples()
    rows[-1] = rows[-1].model_copy(update={"overall": False})
    assert Labels.of(rows).where("ood").sum() == len(rows) // 4 - 1


# --------------------------------------------------------------------------------------------------------- fitting


def test_choices_use_validation_only() -> None:
    """Scrambling OOD labels and features changes neither C nor any score in distribution."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(LABELS.y), 6)) + LABELS.y[:, None]
    one = protocol.fit(x, LABELS, (1e-4, 1e-2, 1.0))
    ood = LABELS.split == "ood"
    scrambled = np.where(ood[:, None], 100 * rng.normal(size=x.shape), x)
    flipped = dataclasses.replace(LABELS, y=np.where(ood, 1 - LABELS.y, LABELS.y))
    two = protocol.fit(scrambled, flipped, (1e-4, 1e-2, 1.0))
    assert one.c == two.c
    np.testing.assert_array_equal(one.score[~ood], two.score[~ood])


def test_fit_is_scikit_learns_on_standardised_features() -> None:
    rng = np.random.default_rng(0)
    x = 5 + 3 * rng.normal(size=(len(LABELS.y), 4)) + LABELS.y[:, None]
    train = LABELS.where("train")
    z = (x - x[train].mean(0)) / x[train].std(0)
    expected = LogisticRegression(C=0.1, max_iter=1000).fit(z[train], LABELS.y[train]).decision_function(z)
    np.testing.assert_allclose(protocol.fit(x, LABELS, [0.1]).score, expected, atol=1e-3)


def test_selection_rules() -> None:
    y = np.array([0, 0, 1, 1])
    x = np.array([[0, 5, 1.0], [0, 5, 1], [1, 0, 1], [1, 0, 1]])
    assert protocol.by_mean_difference(x, y).tolist() == [1, 0, 2]
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = rng.normal(size=(400, 30))
    x[:, 7] += 2 * y
    x[:, 8] = x[:, 7] + 0.01 * rng.normal(size=400)  # a copy adds nothing: L1 takes one of the two first
    x[:, 21] += 0.8 * y
    x[:, 3] = 0
    order = protocol.by_l1_path(x, y, 3).tolist()
    assert order[0] in (7, 8) and 21 in order[:3] and order[-1] == 3 and sorted(order) == list(range(30))


# --------------------------------------------------------------------------------------------------------- planted


def test_dense_probe_on_planted_data(empty_store: store.Store) -> None:
    """In distribution perfect; out of it the shortcut is gone and what is left is the causal direction."""
    found = read(methods.logistic(*probed(), (at(1),) * RUNS, (1e-3, 1.0)))
    assert found["train"]["auroc"] > 0.999 and found["val"]["auroc"] > 0.999
    assert 0.6 < found["ood"]["auroc"] < 0.95
    assert len(found["ood"]["seeds"]) == RUNS
    rows = tables.sweep(prompt_set(), planted(), (0,), 1e-2).value
    assert [row["place"] for row in rows] == ["0", "1", "2", *activations.POOLS]
    assert next(row["val"] for row in rows if row["place"] == "1") > 0.999
    assert all(0.3 < row["val"] < 0.7 for row in rows if row["place"] in ("0", "2"))


def test_surface_probe_on_planted_data(empty_store: store.Store) -> None:
    """Style separates the classes in distribution and says nothing out of it."""
    found = read(methods.logistic(*probed(), ({"of": "surface"},), (1e-2, 1.0)))
    assert found["val"]["auroc"] > 0.999 and abs(found["ood"]["auroc"] - 0.5) < 0.15


@pytest.mark.parametrize("rule", ["mean difference", "L1 path"])
def test_k_sparse_on_planted_data(empty_store: store.Store, rule: methods.Rule) -> None:
    """The shortcut's two latents come first: alone perfect in distribution and at chance out of it; more latents bring
    the causal ones. k is chosen on validation, and is blind to what happens out of distribution."""
    view = {"of": "latents", "sae": identity_sae(), "place": 1}
    fitted = methods.k_sparse(*probed(), (view,) * RUNS, (1, 2, 8, 99), (1e-2, 1.0), rule)
    rows = tables.curves(prompt_set(), {"it": fitted}, TIMES, 0).value["it"]
    assert [row["setting"] for row in rows] == [1, 2, 8]
    assert {latent % WIDTH for latent in methods.choices(fitted)[0]["latents"][:2]} == {1}
    assert rows[1]["val"]["auroc"] > 0.999 and abs(rows[1]["ood"]["auroc"] - 0.5) < 0.15
    if rule == "mean difference":  # the refit after the L1 path is not regularised, and the shortcut takes all
        assert rows[2]["ood"]["auroc"] > rows[1]["ood"]["auroc"] + 0.1
    single = methods.single_latent(*probed(), (view,) * RUNS)
    assert methods.choices(single)[0]["latent"] % WIDTH == 1
    assert abs(read(single)["ood"]["auroc"] - 0.5) < 0.15
    gap = {"dense - single": ((methods.logistic(*probed(), (at(1),) * RUNS, (1e-3,)), None), (single, None))}
    assert tables.differences(prompt_set(), gap, TIMES, 0).value["dense - single"]["ood"]["interval"][0] > 0


def test_attention_finds_the_token_that_pooling_drowns(empty_store: store.Store) -> None:
    """The causal token stands at a random place and marks itself; a mean over tokens sees a fifth of it."""
    pooled = read(methods.logistic(*probed(), (at("mean user"),), (1e-2, 1.0)))
    fitted = methods.attention_probe(*probed(), (0.1,), 200, 1)
    assert read(fitted)["ood"]["auroc"] > max(0.97, pooled["ood"]["auroc"])


def test_attention_scores_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    x, q, w = (torch.randn(*shape, generator=generator) for shape in ((9, 4), (4,), (4,)))
    which = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2])
    got = attention.scored(x, which, 3, q, w, torch.tensor([0.5]))
    for i in range(3):
        mine = x[which == i]
        assert float(got[i]) == pytest.approx(float((mine @ q).softmax(0) @ mine @ w) + 0.5, abs=1e-5)


def over_user(of: str, how: str) -> np.ndarray:
    view = {"of": of, "sae": identity_sae(), "place": f"{how} user"}
    view["pooled"] = features.pooled(planted(), identity_sae(), 0)
    return np.asarray(features.matrix(features.Data(*probed()), view, LABELS))


def test_pooled_saes_against_a_loop(empty_store: store.Store) -> None:
    """Latents and reconstructions of each user token, the tail left out, pooled token by token."""
    sae = training.load(identity_sae())
    source = activations.read(planted(), 0, sinks=True)
    sequence, position = source.column("sequence"), source.column("position")
    for prompt in (0, 33, 599):
        rows = np.flatnonzero((sequence == prompt) & (position < 7 + 5))
        assert len(rows) == 5
        f, again = sae.encode(source.gather(rows)), sae.reconstruct(source.gather(rows))
        for what, values in (("latents", f), ("reconstruction", again)):
            for how, expected in (("max", values.amax(0)), ("mean", values.mean(0))):
                np.testing.assert_allclose(over_user(what, how)[prompt], expected.numpy(), rtol=2e-3, atol=1e-5)
    every = np.flatnonzero(position < 7 + 5)
    x = source.gather(every)
    found = json.loads((features.pooled(planted(), identity_sae(), 0).path / "fidelity.json").read_text())
    assert found["l0"] == pytest.approx(float((sae.encode(x) > 0).sum(1).float().mean()))
    error = x - sae.reconstruct(x)
    assert found["fvu"] == pytest.approx(float(error.square().sum() / (x - x.mean(0)).square().sum()), rel=1e-4)


def test_a_place_and_what_is_pooled_must_agree(empty_store: store.Store) -> None:
    for view in ({"place": "max user"}, {"place": 1, "pooled": features.pooled(planted(), identity_sae(), 0)}):
        with pytest.raises(ValueError, match="needs the SAE's pooled artifact"):
            features.matrix(features.Data(*probed()), {"of": "latents", "sae": identity_sae(), **view}, LABELS)


def test_a_constant_error_is_not_lost_to_a_probe() -> None:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    made = features.Fidelity(6)
    for part in x.split(77):
        made.add(part, part + 3.0, torch.eye(6)[:3].repeat(30, 1)[: len(part)])
    value = made.value()
    assert value["lost"] == pytest.approx(0, abs=1e-9) and value["fvu"] > 5 and value["l0"] == 1
    half = features.Fidelity(6)
    half.add(x, 0.5 * x, x)
    assert half.value()["lost"] == pytest.approx(0.25)


def test_where_an_sae_loses_is_found(empty_store: store.Store) -> None:
    """The identity SAE loses nothing at any place; one whose latents never fire loses everything, and says so."""
    places = (0, 1, "mean user", "max user")
    shown = {}
    for name, sae in (("whole", identity_sae()), ("mute", mute_sae())):
        for place in places:
            view = {"of": "reconstruction", "sae": sae, "place": place}
            view |= {"pooled": features.pooled(planted(), sae, 0)} if isinstance(place, str) else {}
            dense, there = (methods.logistic(*probed(), (v,) * RUNS, (1e-2,)) for v in (at(place), view))
            shown[f"{name}, {place}"] = ((dense, None), (there, None))
    found = tables.differences(prompt_set(), shown, TIMES, 0).value
    assert all(abs(found[f"whole, {place}"]["val"]["difference"]) < 0.02 for place in places)
    assert found["mute, 1"]["val"]["difference"] == pytest.approx(0.5, abs=0.02)
    views = {
        name: {
            **{str(place): {"sae": sae, "place": place} for place in (0, 1)},
            "max user": {"sae": sae, "place": "max user", "pooled": features.pooled(planted(), sae, 0)},
        }
        for name, sae in (("whole", identity_sae()), ("mute", mute_sae()))
    }
    fidelity = tables.fidelity(*probed(), views).value
    assert fidelity["whole"].keys() == {"0", "1", "max user"}
    assert all(e["lost"] < 0.01 for e in fidelity["whole"].values())
    assert all(e["lost"] == pytest.approx(1) and e["l0"] == 0 for e in fidelity["mute"].values())


def test_reconstruction_and_error_add_up(empty_store: store.Store) -> None:
    data = features.Data(*probed())
    parts = [
        features.matrix(data, {"of": of, "sae": identity_sae(), "place": 1}, LABELS)
        for of in ("reconstruction", "error")
    ]
    np.testing.assert_allclose(parts[0] + parts[1], activations.summary(planted(), 0, 1).numpy(), atol=1e-4)


def test_views_learn_from_train_prompts_only(empty_store: store.Store) -> None:
    """Principal components and the vocabulary of train prompts: validation and OOD prompts may be anything."""
    data = features.Data(*probed())
    x = activations.summary(planted(), 0, 1).numpy()
    train = LABELS.where("train")
    centred = x[train] - x[train].mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    got = np.asarray(features.matrix(data, {"of": "principal components", "k": 2, "place": 1}, LABELS))
    np.testing.assert_allclose(np.abs(got), np.abs((x - x[train].mean(0)) @ directions[:2].T), atol=1e-2)
    words = features.matrix(data, {"of": "words"}, LABELS)
    assert words.shape == (len(LABELS.y), 3) and words.nnz == 3 * len(LABELS.y), "elsewhere is no word of train prompts"
    with pytest.raises(ValueError, match="unknown view 'tea leaves'"):
        features.matrix(data, {"of": "tea leaves"}, LABELS)


# -------------------------------------------------------------------------------------------------------- controls


def test_shuffled_labels_give_chance(empty_store: store.Store) -> None:
    fitted = methods.controlled(*probed(), (at(1),) * RUNS, "shuffle", (0.0, 1.0, 2.0, 3.0, 4.0), (), (1e-2,))
    rows = tables.curves(prompt_set(), {"it": fitted}, 50, 0).value["it"]
    assert abs(np.mean([row["ood"]["auroc"] for row in rows]) - 0.5) < 0.1


def test_an_amount_that_a_run_cannot_have_is_left_out(empty_store: store.Store) -> None:
    """Few train clusters: the larger sizes fail in every run, and figures hold the others, each with its own fits."""
    sizes = (16.0, 64.0, 1e6)
    fitted = methods.controlled(*probed(), (at(1),) * RUNS, "size", sizes, (), (1e-2,))
    assert methods.settings(fitted) == ["16", "64"]
    rows = tables.curves(prompt_set(), {"it": fitted}, TIMES, 0).value["it"]
    assert [row["setting"] for row in rows] == [16, 64]
    assert [[fit["n"] for fit in row["fits"]] for row in rows] == [[32, 32], [128, 128]]


def test_settings_are_those_that_every_run_has(empty_store: store.Store) -> None:
    assert methods.settings(uneven()) == ["2"]
    fits = tables.curves(prompt_set(), {"it": uneven()}, TIMES, 0).value["it"][0]["fits"]
    assert fits == [{"n": 20}, {"n": 21}]


@store.cached
def uneven(out: Path) -> None:
    """Scores of two runs; the first lacks the setting "1"."""
    score = np.linspace(0, 1, len(LABELS.y))
    chosen = [
        {"best": "2", "settings": ["2"], "fits": {"2": {"n": 20}}},
        {"best": "2", "settings": ["1", "2"], "fits": {"1": {"n": 11}, "2": {"n": 21}}},
    ]
    methods._write(out, {"0/2": score, "1/1": score, "1/2": score}, chosen)


def test_fits_are_the_same_bytes_alone_and_beside_others(empty_store: store.Store, tmp_path: Path) -> None:
    """Principal components depend on the number of threads in the last digits; a fit always has one."""

    def fits(folder: str, *which: int) -> dict[int, bytes]:
        store.use(store.Store("report", tmp_path / folder, tmp_path / f"{folder}-results", None))
        views = ({"of": "principal components", "k": 5, "place": 1},) * RUNS
        made = {n: methods.by_size(*probed(), views, (1, 5), (10.0**-n,)) for n in which}
        _ = tables.curves(prompt_set(), {str(n): f for n, f in made.items()}, TIMES, 0, name="c").value
        return {n: (f.path / "scores.safetensors").read_bytes() for n, f in made.items()}

    together = fits("together", 0, 1, 2)
    assert fits("alone", 1)[1] == together[1]


def test_controls_change_what_they_say() -> None:
    texts = [e.text for e in examples()]
    train = LABELS.where("train")
    _, y, mine = methods.changed(LABELS, "noise", 0.25, 0, texts)
    turned = np.unique(LABELS.group[y != LABELS.y])
    assert len(turned) == round(0.25 * len(np.unique(LABELS.group[train]))) and mine is LABELS
    assert (y[~train] == LABELS.y[~train]).all()
    few, y, _ = methods.changed(LABELS, "size", 16, 0, texts)
    assert len(np.unique(LABELS.group[few])) == 16 and (few <= train).all() and (y == LABELS.y).all()
    _, y, _ = methods.changed(LABELS, "shuffle", 0, 0, texts)
    assert y[train].sum() == LABELS.y[train].sum() and (y[train] != LABELS.y[train]).any()
    wrapped = dataclasses.replace(LABELS, overall=np.arange(len(LABELS.y)) % 3 > 0)
    more, _, mine = methods.changed(wrapped, "wrapped", 0, 0, texts)
    assert more.sum() == train.sum() > wrapped.where("train").sum()
    np.testing.assert_array_equal(mine.where("ood"), wrapped.where("ood"))
    with pytest.raises(ValueError, match="150 train clusters, not 151"):
        methods.changed(LABELS, "size", 151, 0, texts)
    with pytest.raises(ValueError, match="unknown control"):
        methods.changed(LABELS, "weather", 0, 0, texts)


def test_matching() -> None:
    texts = [
        "Write a poem about the sea and boats",
        "Can you write a poem about the sea?",
        "Write a poem, please, I beg you now",
    ]
    assert surface.one_style(texts).tolist() == [True, False, False]
    y = np.array([1, 0, 0, 0, 0, 0])
    texts = ["one two three"] * 5 + ["one two three four five six seven"]
    kept = surface.one_length(texts, y, np.ones(6, bool), np.random.default_rng(0))
    assert kept[0] and kept[1:5].sum() == 3 and not kept[5]


# ---------------------------------------------------------------------------------------------------------- errors


def test_errors_are_the_worst_and_are_cut_short(empty_store: store.Store) -> None:
    fitted = methods.logistic(*probed(), (at(1),), (1e-2,))
    found = tables.errors(prompt_set(), {"it": fitted}, 3).value["it"]
    score, ood = methods.scores(fitted)[0], LABELS.where("ood")
    worst = np.flatnonzero(ood & (LABELS.y == 0))[np.argmax(score[ood & (LABELS.y == 0)])]
    assert found["harmless"][0]["excerpt"] == examples()[worst].text
    assert found["harmless"][0]["rank"] == pytest.approx((score[ood & (LABELS.y == 1)] < score[worst]).mean())
    assert all(len(row["excerpt"]) <= tables.SHOWN for kind in found.values() for row in kind)
    assert tables.excerpt("x\n" * 200)[0] == "…" and len(tables.excerpt("y" * 500)) == tables.SHOWN


def test_surface_features() -> None:
    names = dict(zip(surface.NAMES, surface.features("Write a poem, please. Can you?"), strict=True))
    assert names["first word is imperative"] == names["starts with Write or Give"] == names["polite"] == 1
    assert (names["commas"], names["question marks"], names["sentences"], names["words"]) == (1, 1, 2, 6)
    assert names["second person"] == 1 and names["first person"] == 0
    for text in ("", "?", "\n", "🙂", "x" * 10_000):
        assert np.isfinite(surface.features(text)).all()
    assert surface.matrix(["a", "b c"]).shape == (2, len(surface.NAMES))
