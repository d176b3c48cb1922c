"""Planted worlds that the harness must tell apart: a leak, a shortcut, a true direction, an SAE that is told the answer, one that has
learnt nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib import store
from lib.probes import methods, tables, views
from lib.probes.changes import Change
from lib.probes.methods import ByMeanDifference, KSparse, Linear, Probe
from lib.probes.views import Latents, Residual, View
from lib.sae import controls, training
from lib.sae.variants import SAEConfig, make
from lib.stats import column_aurocs
from lib.texts.examples import Example, Labels, LeakError, write

WIDTH = 32
SHORTCUT, TRUE, BOTH, MARKED, SPARSE = range(5)  # places, tokens after the user's text, each a world of its own
JAILBREAKS, ERRANDS = ("AIM", "cocky"), ("count words", "numbered list")
LINEAR = Linear((1e-3, 1e-1), (1.0,))


def examples() -> list[Example]:
    """As the report's: harmful prompts also in jailbreaks and errands, those of OOD in others; a cluster is a base prompt."""
    rows: list[Example] = []
    for base in range(800):
        split, harmful = ("train", "val", "ood", "ood")[base % 4] if base % 8 < 6 else "train", base // 8 % 2
        names = ["plain"]
        if harmful:
            names += ["evil confidant", "capitals"] if split == "ood" else [*JAILBREAKS, *ERRANDS]
        for name in names:
            label = int(harmful and name not in (*ERRANDS, "capitals"))
            kind = ("AdvBench" if harmful else "chat") if split == "ood" and name == "plain" else name
            fields = {"split": split, "slice": kind, "transform": name, "base": str(base), "group": base}
            rows.append(Example(text=f"Prompt {base} {name}", label=label, **fields))
    return rows


@store.cached
def prompt_set(out: Path) -> None:
    write(out, examples())


def features() -> np.ndarray:
    """[WIDTH, WIDTH] the directions of the sparse world, one a row."""
    return np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))[0]


@store.cached
def harvest(out: Path) -> None:
    """One token of each world. SHORTCUT: a feature of the label that turns round OOD. TRUE: a direction of all coordinates, everywhere.
    MARKED: each transform, and plain harmful prompts, has a mark of its own in distribution; BOTH: that, and in coordinate 0 the
    truth. SPARSE: few active of many orthogonal features, one of which is harm."""
    rng, labels = np.random.default_rng(0), Labels.of(examples())
    sign, ood, n = 2 * labels.y - 1, labels.split == "ood", len(labels.y)
    x = rng.normal(size=(5, n, WIDTH))
    x[SHORTCUT, :, 1] += np.where(ood, -3, 3) * sign
    x[TRUE] += 2.2 * sign[:, None] / np.sqrt(WIDTH)
    x[BOTH:SPARSE] *= 0.4
    x[BOTH, :, 0] += sign
    for number, name in enumerate(("plain", *JAILBREAKS, *ERRANDS)):
        marked = ~ood & (labels.transform == name) & ((labels.y == 1) | (name != "plain"))
        x[BOTH:SPARSE, marked, 5 + number] += 20 if number < 3 else 8
    active = rng.random((n, WIDTH)) < 0.1
    active[:, 0] = np.where(labels.y == 1, rng.random(n) < 0.97, rng.random(n) < 0.03)
    x[SPARSE] = (active * rng.uniform(1, 2, (n, WIDTH))) @ features() + 0.05 * x[SPARSE]
    tail = torch.from_numpy(x).transpose(0, 1).half().contiguous()
    save_file({"tail_0": tail, "pools_0": tail[:, :4].contiguous()}, out / "summary.safetensors")
    tokens = tail[:, SPARSE].contiguous()  # the text of a prompt: one token
    columns = {"sequence": torch.arange(n), "position": torch.ones(n), "token": torch.arange(n)}
    shard = {name: column.to(torch.int32) for name, column in columns.items()}
    save_file(shard | {"layer_0": tokens, "norm_0": tokens.float().norm(dim=1)}, out / "shard_0000.safetensors")


def save_sae(directions: np.ndarray, theta: float, out: Path) -> None:
    """An SAE whose latents are these unit directions [M, WIDTH], above a threshold."""
    sae = make(SAEConfig(variant="jumprelu", latents=len(directions)), WIDTH)
    with torch.no_grad():
        sae.W_dec.copy_(torch.from_numpy(directions))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.theta.fill_(theta)
    training.save(sae, [], out)


@store.cached
def coordinates(out: Path) -> None:
    """Latents that are the residual's own coordinates, each with either sign."""
    save_sae(np.concatenate([np.eye(WIDTH), -np.eye(WIDTH)]), 1e-6, out)


@store.cached
def good(out: Path) -> None:
    """Latents that are the features of the sparse world."""
    save_sae(features(), 0.5, out)


def fit(probe: Probe, *seen: View, draws: int = 1) -> store.Artifact:
    return methods.fit(prompt_set(), harvest(), 0, probe, seen, draws, Change())


def table(**fits: store.Artifact) -> dict:
    return tables.table(prompt_set(), {name: (fitted, None) for name, fitted in fits.items()}).value


def few(*rules: ByMeanDifference, ks: tuple[int, ...] = (1, 2, 5)) -> KSparse:
    return KSparse(ks, (1e-2, 1.0), rules or (ByMeanDifference(), ByMeanDifference(standardised=True)))


@store.cached
def leaking(out: Path) -> None:
    """A train cluster's jailbroken copy among validation's prompts."""
    rows = examples()
    copy = next(i for i, e in enumerate(rows) if e.split == "train" and e.transform == "AIM")
    write(out, [e.model_copy(update={"split": "val"}) if i == copy else e for i, e in enumerate(rows)])


def test_a_leak_is_refused(empty_store: store.Store, tmp_path: Path) -> None:
    recipe = methods.fit(leaking(), harvest(), 0, LINEAR, (Residual(TRUE),), 1, Change())
    with pytest.raises(LeakError, match="in both train and val"):
        recipe.function(tmp_path, **recipe.arguments)
    with pytest.raises(LeakError, match="in both train and val"):
        tables.table(leaking(), {"it": (fit(LINEAR, Residual(TRUE)), None)}).value


def test_a_shortcut_and_a_true_direction_look_alike_until_ood(empty_store: store.Store) -> None:
    found = table(shortcut=fit(LINEAR, Residual(SHORTCUT)), true=fit(LINEAR, Residual(TRUE)))
    assert all(row["val"]["auroc"] > 0.98 for row in found.values())
    for entry in (*found["shortcut"]["slices"].values(), found["shortcut"]["macro"], found["shortcut"]["ood"]):
        assert entry["interval"][1] < 0.1
    for entry in (*found["true"]["slices"].values(), found["true"]["macro"], found["true"]["ood"]):
        assert entry["auroc"] > 0.97 and entry["interval"][0] > 0.95


def test_leaving_transforms_out_finds_what_transfers(empty_store: store.Store) -> None:
    """Marks of transforms separate validation better than the truth does, and say nothing of a transform that is new: validation
    prefers them, folds do not; between places, and between the options of one probe."""
    places = {"marked": fit(LINEAR, Residual(MARKED)), "true": fit(LINEAR, Residual(TRUE))}
    found = table(**places)
    assert found["marked"]["val"]["auroc"] > found["true"]["val"]["auroc"]
    assert found["marked"]["ood"]["auroc"] < 0.6 < 0.97 < found["true"]["ood"]["auroc"]
    told = tables.chosen({"it": places}).value["it"]
    assert told["best"] == "true" and told["scores"]["marked"]["mean"] < told["scores"]["true"]["mean"] - 0.1

    seen, three = Latents(BOTH, sae=coordinates()), few(ks=(3,))
    (chosen,) = methods.choices(fit(three, seen))[0]
    labels, x = Labels.of(examples()), seen.matrix(views.Data(prompt_set(), harvest(), 0), Labels.of(examples()))
    val, ood = labels.where("val"), labels.where("ood")
    by_option = {
        option: [column_aurocs(model.scores[here, None], labels.y[here])[0] for here in (val, ood)]
        for option, model in three.fit(x, labels, 0)["3"].items()
    }
    of_validation = max(by_option, key=lambda option: by_option[option][0])
    of_folds = chosen["settings"]["3"]["option"]
    assert of_validation.startswith("raw") and of_folds.startswith("standardised")
    assert by_option[of_folds][1] > by_option[of_validation][1] + 0.1


def test_an_sae_that_is_told_the_answer_gives_it(empty_store: store.Store) -> None:
    """One latent, or five that sum to the dense probe's direction; five of the SAE's own fall short of it."""
    dense = fit(LINEAR, Residual(TRUE))
    told = {
        f"{parts} {quantile:g}": controls.oracle(
            coordinates(), dense, "0/0", parts, prompt_set(), harvest(), 0, TRUE, quantile
        )
        for parts in (1, 5)
        for quantile in (0.5, 0.0)
    }
    fits = {name: fit(few(), Latents(TRUE, sae=sae)) for name, sae in told.items()}
    found = table(dense=dense, own=fit(few(), Latents(TRUE, sae=coordinates())), **fits)
    for name in told:
        assert found["dense"]["ood"]["auroc"] - found[name]["ood"]["auroc"] < 0.01, name
    assert found["own"]["ood"]["auroc"] < found["dense"]["ood"]["auroc"] - 0.05
    one, before = training.load(told["1 0.5"]), training.load(coordinates())
    assert ((one.W_enc != before.W_enc).any(0)).sum() == 1
    x = torch.from_numpy(Residual(TRUE).matrix(views.Data(prompt_set(), harvest(), 0), Labels.of(examples())))
    latent = one.encode(x)[:, (one.W_enc != before.W_enc).any(0)]
    harmless = torch.from_numpy(Labels.of(examples()).y == 0)
    assert 0.4 < float((latent[harmless] > 0).float().mean()) < 0.6 and one.W_dec.norm(dim=1).eq(0).sum() == 1


@store.cached
def topk(out: Path) -> None:
    training.save(make(SAEConfig(variant="topk", latents=8, k=2), WIDTH), [], out)


def test_an_oracle_is_made_of_jumprelu_saes(empty_store: store.Store, tmp_path: Path) -> None:
    recipe = controls.oracle(topk(), fit(LINEAR, Residual(TRUE)), "0/0", 1, prompt_set(), harvest(), 0, TRUE)
    with pytest.raises(ValueError, match="not of topk"):
        recipe.function(tmp_path, **recipe.arguments)


def test_an_sae_that_learnt_nothing_falls_short(empty_store: store.Store) -> None:
    """At the same k and the same L0 an untrained SAE probes worse, and loses more between prompts."""
    random = controls.untrained(good(), prompt_set(), harvest(), 0, 0)
    saes = {"good": good(), "random": random}
    seen = {name: Latents(SPARSE, sae=sae) for name, sae in saes.items()}
    found = table(**{name: fit(few(ks=(2,)), view) for name, view in seen.items()})
    kept = views.kept(prompt_set(), harvest(), 0, {name: {"there": view} for name, view in seen.items()}).value
    good_one, other = (kept[name]["there"] for name in ("good", "random"))
    assert other["l0"] == pytest.approx(good_one["l0"], abs=0.6)
    assert good_one["lost"] < 0.1 < 0.5 < other["lost"]
    assert found["good"]["ood"]["auroc"] > 0.95 > found["random"]["ood"]["auroc"] + 0.1
