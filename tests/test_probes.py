from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from lib import artifacts, probes, prompts, surface


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=30), st.integers(0, 99))
def test_bootstrap_aurocs_against_scikit_learn(rows: list[tuple[int, int]], seed: int) -> None:
    """Every resample of whole groups, ties and all, recomputed by repeating its rows."""
    y, score = (np.array(column) for column in zip(*rows, strict=True))
    group = np.arange(len(y)) // 3
    got = probes.bootstrap_aurocs(y, score.astype(float), group, 20, seed)
    names = np.unique(group)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=20)
    expected = []
    for count in counts:
        index = np.repeat(np.arange(len(y)), count[group])
        if len(np.unique(y[index])) == 2:
            expected.append(roc_auc_score(y[index], score[index]))
    np.testing.assert_allclose(got, expected)


def test_interval_covers_and_groups_widen_it() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(rng.integers(0, 2, 200), 5)
    score = y + np.repeat(rng.normal(0, 1, 200), 5)
    alone = probes.auroc(y, score, np.arange(1000), 500, 0)
    grouped = probes.auroc(y, score, np.repeat(np.arange(200), 5), 500, 0)
    width = [np.ptp(e["interval"]) for e in (alone, grouped)]
    assert alone["auroc"] == grouped["auroc"] == roc_auc_score(y, score)
    assert width[1] > 1.5 * width[0]
    with pytest.raises(ValueError, match="both classes"):
        probes.auroc(np.ones(4), np.arange(4), np.arange(4), 10, 0)


def test_column_aurocs_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, (50, 6)), rng.integers(0, 2, 50)
    expected = [roc_auc_score(y, x[:, j]) for j in range(6)]
    np.testing.assert_allclose(probes.column_aurocs(x, y), expected)


def examples(n: int = 600) -> list[prompts.Example]:
    """Half train, a quarter validation, a quarter OOD; labels alternate."""
    split = ["train"] * (n // 2) + ["val"] * (n // 4) + ["ood"] * (n // 4)
    return [
        prompts.Example(
            text=f"Prompt number {i}",
            label=i % 2,
            split=s,
            slice=("AdvBench" if i % 2 else "chat") if s == "ood" else "x",
            transform="plain",
            base=str(i),
            group=i // 2,
        )
        for i, s in enumerate(split)
    ]


@artifacts.cached
def prompt_set(out: Path) -> None:
    (out / "examples.jsonl").write_text("\n".join(e.model_dump_json() for e in examples()))


POSITIONS = 3


@artifacts.cached
def planted(out: Path) -> None:
    """Residuals with a causal direction in all splits and a stronger shortcut present in train and validation only."""
    rng = np.random.default_rng(0)
    rows, sequence, position = [], [], []
    for i, e in enumerate(examples()):
        for at in range(POSITIONS):
            x = rng.normal(size=16)
            if at == 1:
                x[0] += 1.5 * (2 * e.label - 1)  # causal
                if e.split != "ood":
                    x[1] += 6 * (2 * e.label - 1)  # shortcut
            rows.append(x)
            sequence.append(i)
            position.append(10 + i % 5 + at)
    order = rng.permutation(len(rows))  # harvests are not in the order of the prompts
    x = torch.tensor(np.array(rows)[order])
    columns = {"sequence": sequence, "position": position, "token": sequence}
    tensors = {name: torch.tensor(np.array(values)[order], dtype=torch.int32) for name, values in columns.items()}
    save_file({"layer_0": x.half(), "norm_0": x.norm(dim=1).float(), **tensors}, out / "shard_0000.safetensors")


def test_tail_reads_the_right_rows(store: artifacts.Store) -> None:
    y = np.array([e.label for e in examples()])
    assert probes.positions(planted(), 0) == POSITIONS
    means = [probes.tail(planted(), 0, at, len(y))[:, 0].numpy()[y == 1].mean() for at in range(POSITIONS)]
    assert means[1] > 1.2 and abs(means[0]) < 0.3 and abs(means[2]) < 0.3
    with pytest.raises(ValueError, match=r"position 3 .* exists in 0 of"):
        probes.tail(planted(), 0, 3, len(y))


def test_protocol_on_planted_data(store: artifacts.Store) -> None:
    """In distribution perfect; out of distribution the shortcut is gone and what is left is the causal direction."""
    found = probes.dense(prompt_set(), planted(), 0, 1, (1e-3, 1.0), 200, 0).value
    assert found["train"]["auroc"] > 0.999 and found["val"]["auroc"] > 0.999
    assert 0.6 < found["ood"]["auroc"] < 0.999
    assert set(found["slices"]) == {"AdvBench", "chat"}
    assert found["slices"]["AdvBench"]["auroc"] == found["ood"]["auroc"] == found["slices"]["chat"]["auroc"]
    rows = probes.sweep(prompt_set(), planted(), (0,), 1e-2).value
    assert max(rows, key=lambda r: r["val"])["position"] == 1
    assert all(0.3 < r["val"] < 0.7 for r in rows if r["position"] != 1)
    style = probes.style(prompt_set(), (1e-2,), 200, 0).value
    assert abs(style["ood"]["auroc"] - 0.5) < 0.15, "numbered prompts carry no style"


def test_choices_use_validation_only(store: artifacts.Store) -> None:
    """Scrambling OOD labels and residuals changes neither the probe nor its C."""
    labels = probes.Labels.of(examples())
    x = probes.tail(planted(), 0, 1, len(labels.y)).numpy()
    probe, c = probes.fit(x, labels, (1e-4, 1e-2, 1.0))
    scrambled = x.copy()
    ood = labels.split == "ood"
    scrambled[ood] = np.random.default_rng(1).normal(size=scrambled[ood].shape) * 100
    flipped = probes.Labels(
        np.where(ood, 1 - labels.y, labels.y), labels.split, labels.slice, labels.group, labels.overall
    )
    again, c2 = probes.fit(scrambled, flipped, (1e-4, 1e-2, 1.0))
    assert c == c2
    np.testing.assert_array_equal(probe[-1].coef_, again[-1].coef_)


def test_label_shuffle_gives_chance() -> None:
    labels = probes.Labels.of(examples())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(labels.y), 10))
    probe, _ = probes.fit(x, labels, (1e-2,))
    ood = labels.where("ood")
    assert abs(roc_auc_score(labels.y[ood], probe.decision_function(x[ood])) - 0.5) < 0.12


@artifacts.cached
def identity_sae(out: Path) -> None:
    """Latents that are the residual's own coordinates, each with either sign."""

    from lib.sae import training
    from lib.sae.variants import SAEConfig, make

    config = SAEConfig(variant="jumprelu", latents=32)
    sae = make(config, 16)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(16), -torch.eye(16)], dim=1))
    training.save(sae, [], out)


def test_k_sparse_on_planted_data(store: artifacts.Store) -> None:
    """Latents of the shortcut (coordinate 1) come first: alone perfect in distribution and at chance out of it; the
    causal coordinate 0 comes next; k is chosen on validation."""
    found = probes.k_sparse(prompt_set(), planted(), identity_sae(), 0, 1, (1, 2, 4, 99), (1e-2, 1.0), 100, 0).value
    assert [row["k"] for row in found["rows"]] == [1, 2, 4]
    assert {i % 16 for i in found["rows"][1]["latents"]} == {1}
    assert {i % 16 for i in found["rows"][2]["latents"]} == {0, 1}
    two, four = found["rows"][1], found["rows"][2]
    assert two["val"]["auroc"] > 0.999 and abs(two["ood"]["auroc"] - 0.5) < 0.15
    assert four["ood"]["auroc"] > two["ood"]["auroc"] + 0.1
    best = max(found["rows"], key=lambda row: (row["val"]["auroc"], -row["k"]))
    assert found["best"]["k"] == best["k"] and found["best"]["ood"] == best["ood"]
    assert found["single"]["latent"] % 16 == 1 and abs(found["single"]["ood"]["auroc"] - 0.5) < 0.15


def test_mean_difference_order() -> None:
    y = np.array([0, 0, 1, 1])
    x = np.array([[0, 5, 1.0], [0, 5, 1], [1, 0, 1], [1, 0, 1]])
    assert probes.by_mean_difference(x, y).tolist() == [1, 0, 2]


def test_diagnostic_slices_stay_out_of_the_overall_figures() -> None:
    rows = examples()
    rows[-1] = rows[-1].model_copy(update={"overall": False})
    assert probes.Labels.of(rows).where("ood").sum() == len(rows) // 4 - 1


def test_surface_features() -> None:
    names = dict(zip(surface.NAMES, surface.features("Write a poem, please. Can you?"), strict=True))
    assert names["first word is imperative"] == names["starts with Write or Give"] == names["polite"] == 1
    assert (names["commas"], names["question marks"], names["sentences"], names["words"]) == (1, 1, 2, 6)
    assert names["second person"] == 1 and names["first person"] == 0
    for text in ("", "?", "\n", "🙂", "x" * 10_000):
        assert np.isfinite(surface.features(text)).all()
    assert surface.matrix(["a", "b c"]).shape == (2, len(surface.NAMES))
