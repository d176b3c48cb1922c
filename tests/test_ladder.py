"""Notebook 06, by its own cells: where a few latents fail in planted worlds, the right step of its ladder carries the loss; nulls keep
what they say they keep; concepts and folds leak nothing."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib import store
from lib.config import ModelSection, TrainingSection
from lib.lm import model
from lib.probes import methods, tables, views
from lib.probes.changes import Change
from lib.probes.methods import ByL1Path, ByMeanDifference, KSparse, Linear
from lib.probes.views import Latents, Residual
from lib.sae import training
from lib.sae.variants import SAEConfig, make
from lib.texts.examples import Example, Labels, TooFew, write
from tests.cells import cells_of

WIDTH = 16
ONE, SUM, MISSING, SHADOWED = range(4)  # worlds, each at a place of its own: tokens after the user's text
K, DRAWS = 3, 3


@pytest.fixture(scope="module")
def cells() -> Iterator[ModuleType]:
    """The imports, functions and classes of notebook 06, as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "lib.store.store._travels", lambda artifact: False
        )  # as of a notebook: no other process can import it
        yield cells_of("06_surprising")


def examples() -> list[Example]:
    """Two prompts a cluster; harmful ones of train and validation also in a jailbreak, those of OOD in another; OOD requests that only look
    harmful."""
    rows: list[Example] = []
    for base in range(480):
        split = ("train", "val", "ood", "ood", "train", "train")[base // 2 % 6]
        harmful = base // 12 % 2
        kinds = ["plain", "AIM" if split != "ood" else "evil confidant"][: 1 + harmful]
        for kind in kinds:
            fields = {"split": split, "slice": f"{kind} {harmful} {split}", "transform": kind, "base": str(base)}
            rows.append(Example(text=f"Prompt {base} {kind}", label=harmful, group=base // 2, **fields))
    return rows


@store.cached
def prompt_set(out: Path) -> None:
    write(out, examples())


@store.cached
def harvest(out: Path) -> None:
    """ONE: coordinate 0 is harm. SUM: so is the sum of all. MISSING: coordinate 0, which the SAE has no latent for. SHADOWED: coordinate
    0, and in distribution more strongly six others, which turn round OOD on what is in a jailbreak."""
    rng, labels = np.random.default_rng(0), Labels.of(examples())
    sign, inside, n = 2 * labels.y - 1, labels.split != "ood", len(labels.y)
    x = rng.normal(size=(4, n, WIDTH))
    x[ONE, :, 0] += 4 * sign
    x[SUM] += 2 * sign[:, None] / np.sqrt(WIDTH)
    x[MISSING, :, 0] += 4 * sign
    x[SHADOWED, :, 0] += 3 * sign
    turned = np.where(inside, sign, np.where(labels.transform == "plain", 0, -sign))
    x[SHADOWED, :, 1:7] += 6 * turned[:, None]
    tail = torch.from_numpy(x).transpose(0, 1).half().contiguous()
    save_file({"tail_0": tail, "pools_0": tail.clone()}, out / "summary.safetensors")


@store.cached
def text_harvest(out: Path) -> None:
    """As :func:`lib.lm.harvest.harvest_prompts` writes it: two tokens of text and one of the template a prompt, of which the first two
    are pooled."""
    n = len(examples())
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(n, 3, WIDTH))).half()
    pools = torch.stack([x[:, :2].float().mean(1), x[:, :2].float().amax(1)] * 2, 1).half()
    save_file({"tail_0": x[:, 2:].contiguous(), "pools_0": pools}, out / "summary.safetensors")
    position, flat = torch.arange(3, dtype=torch.int32).repeat(n), x.reshape(-1, WIDTH)
    columns = {"sequence": torch.arange(n, dtype=torch.int32).repeat_interleave(3), "position": position}
    columns |= {"token": torch.arange(3 * n, dtype=torch.int32), "tail": position == 2}
    save_file({"layer_0": flat, "norm_0": flat.float().norm(dim=1), **columns}, out / "shard_0000.safetensors")


@store.cached
def coordinates(out: Path, first: int) -> None:
    """Latents that are the residual's coordinates from ``first`` on, each with either sign."""
    directions = np.eye(WIDTH)[first:]
    sae = make(SAEConfig(variant="jumprelu", latents=2 * len(directions)), WIDTH)
    with torch.no_grad():
        sae.W_dec.copy_(torch.from_numpy(np.concatenate([directions, -directions])))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.theta.fill_(1e-6)
    training.save(sae, [], out)


def fit(probe: methods.Probe, view: Residual, change: Change) -> store.Artifact:
    return methods.fit(prompt_set(), harvest(), 0, probe, (view,), DRAWS, change)


def losses(cells: Any, place: int, first: int = 0) -> dict[str, float]:
    """OOD AUROC that each step of the ladder loses in a world."""
    hindsight = cells.Hindsight(folds=DRAWS)
    view, linear, penalties = Latents(place, sae=coordinates(first)), Linear((1e-2, 1.0), (1e-1,)), (1e-2, 1.0)
    rules = (ByMeanDifference(), ByMeanDifference(standardised=True), cells.AcrossKinds(), ByL1Path())
    taught = fit(KSparse((K,), penalties, rules), view, Change())
    rungs = {
        "taught": taught,
        "weights": fit(KSparse((K,), penalties, (cells.As(taught),)), view, hindsight),
        "choice": fit(cells.ChosenInEach((K,), penalties, rules), view, hindsight),
        "sparsity": fit(linear, view, hindsight),
        "dictionary": fit(linear, Residual(place), hindsight),
    }
    pairs = {"weights": "taught", "choice": "taught", "sparsity": "choice", "dictionary": "sparsity"}
    steps = {name: ((rungs[name], None), (rungs[low], None)) for name, low in pairs.items()}
    found = tables.differences(prompt_set(), steps, hindsight).value
    return {name: found[name]["ood"]["difference"] for name in pairs}


@pytest.mark.parametrize(
    ("place", "first", "step"), [(SUM, 0, "sparsity"), (MISSING, 1, "dictionary"), (SHADOWED, 0, "choice")]
)
def test_the_step_that_is_to_blame_carries_the_loss(
    cells: ModuleType, empty_store: store.Store, place: int, first: int, step: str
) -> None:
    found = losses(cells, place, first)
    del found["weights"]
    blamed = found.pop(step)
    assert blamed > 0.07
    assert max(map(abs, found.values())) < blamed / 3, "where nothing is known the others are noise"


def test_where_one_latent_is_the_concept_nothing_is_lost(cells: ModuleType, empty_store: store.Store) -> None:
    assert max(map(abs, losses(cells, ONE).values())) < 0.01


def test_wrong_latents_are_not_saved_by_other_weights(cells: ModuleType, empty_store: store.Store) -> None:
    """Where the chosen latents know nothing OOD that is true of all kinds, hindsight must choose others."""
    found = losses(cells, SHADOWED)
    assert found["choice"] > found["weights"] + 0.02


def test_hindsight_scores_every_ood_prompt_once_and_trains_on_none_of_its_cluster(cells: ModuleType) -> None:
    labels, texts = Labels.of(examples()), [e.text for e in examples()]
    runs = [cells.Hindsight(folds=DRAWS).apply(labels.drawn(run), texts, run) for run in range(DRAWS)]
    assert (np.sum([run.where("ood") for run in runs], axis=0) == labels.where("ood")).all()
    for run in runs:
        groups = {split: set(run.group[run.where(split)]) for split in ("train", "val", "ood")}
        assert not groups["ood"] & (groups["train"] | groups["val"]) and not groups["train"] & groups["val"]
        for split in ("train", "val"):
            assert any("evil confidant" in kind for kind in run.slice[run.where(split)])
        assert len(run.folds()) == 1, "settings are chosen on validation as it is"


def test_hindsight_leaves_out_what_shares_a_cluster_with_ood_prompts(cells: ModuleType) -> None:
    rows = examples()
    near = next(e for e in rows if e.split == "ood")
    labels = Labels.of([*rows, near.model_copy(update={"mix": "wider", "slice": "twin"})])
    for run in range(DRAWS):
        changed = cells.Hindsight(folds=DRAWS).apply(labels, [""] * len(labels.y), run)
        assert changed.split[-1] == ""


def test_hindsight_says_when_there_are_too_few_clusters(cells: ModuleType) -> None:
    with pytest.raises(TooFew, match="needs prompts of both labels"):
        cells.Hindsight(folds=400).apply(Labels.of(examples()), [], 0)


def test_across_kinds_wants_every_kind_on_its_side(cells: ModuleType) -> None:
    """Of three columns the one whose means differ most is wrong on one kind; a constant one comes last."""
    labels = Labels.of(examples())
    sign, x = 2 * labels.y - 1, np.zeros((len(labels.y), 3), np.float32)
    x[:, 1] = np.where(labels.slice == "AIM 1 train", -1, 10 * sign)
    x[:, 2] = sign
    ((_, _, order),) = cells.AcrossKinds().columns(x, labels, [3], 0)
    assert order.tolist() == [2, 1, 0]
    assert ByMeanDifference().order(x, labels.y, 3, 0)[0] == 1


def test_as_takes_the_latents_of_the_same_run(cells: ModuleType, empty_store: store.Store) -> None:
    view, probe = Latents(SHADOWED, sae=coordinates(0)), KSparse((K,), (1.0,), (ByMeanDifference(),))
    first = methods.fit(prompt_set(), harvest(), 0, probe, (view, view), DRAWS, Change())
    again = KSparse((K,), (1.0,), (cells.As(first),))
    second = methods.fit(prompt_set(), harvest(), 0, again, (view, view), DRAWS, cells.Hindsight(folds=DRAWS))
    for mine, other in zip(methods.choices(first), methods.choices(second), strict=True):
        for a, b in zip(mine, other, strict=True):
            assert a["settings"][str(K)]["latents"] == b["settings"][str(K)]["latents"]


def test_means_over_slices_are_of_what_every_draw_scores(cells: ModuleType, empty_store: store.Store) -> None:
    """In hindsight a slice's prompts are scored in one draw and taught in others, so there is no such mean."""
    made = fit(KSparse((K,), (1.0,), (ByMeanDifference(),)), Latents(ONE, sae=coordinates(0)), Change())
    assert "macro" in tables.table(prompt_set(), {"": (made, None)}).value[""]
    found = tables.table(prompt_set(), {"": (made, None)}, slices=False, change=cells.Hindsight(folds=DRAWS)).value[""]
    assert "ood" in found and "macro" not in found


def test_a_view_of_what_is_left_over_and_one_of_both(cells: ModuleType, empty_store: store.Store) -> None:
    """At the mean over the text: what an SAE leaves out is the residual less what it rebuilds; both is residual and chosen latents."""
    data = views.Data(prompt_set(), text_harvest(), 0)
    labels, pooled = Labels.of(examples()), views.pooled(text_harvest(), coordinates(1), 0)
    x = Residual("mean user").matrix(data, labels)
    left = cells.LeftOver("mean user", sae=coordinates(1), pooled=pooled).matrix(data, labels)
    assert np.abs(left[:, 0] - x[:, 0]).max() < 2e-3 and np.abs(left[:, 1:]).max() < 2e-3
    both = cells.Both("mean user", sae=coordinates(1), pooled=pooled, k=2).matrix(data, labels)
    assert both.shape[1] == WIDTH + 2 and np.array_equal(both[:, :WIDTH], x)


@pytest.mark.parametrize(("by", "value"), [("transform", "AIM"), ("form", "^prompt [0-4]")])
def test_a_concept_is_dealt_by_cluster(cells: ModuleType, by: str, value: str) -> None:
    labels, texts = Labels.of(examples()), [e.text for e in examples()]
    concept, counted = cells.Concept(by=by, value=value, folds=DRAWS), np.zeros(len(texts), int)
    for run in range(DRAWS):
        changed = concept.apply(labels, texts, run)
        counted += changed.where("ood")
        wanted = [(e.transform == value) if by == "transform" else e.text[7] in "01234" for e in examples()]
        assert (changed.y == np.array(wanted)).all() and (changed.taught == changed.y).all()
    assert set(counted.tolist()) == ({1} if by == "transform" else {0, 1})


# ------------------------------------------------------------------------------------------------------------- nulls


@store.cached
def tokens(out: Path) -> None:
    """Residuals of 4,000 tokens, sparse sums of 32 features."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(32, WIDTH)) / np.sqrt(WIDTH)
    x = torch.from_numpy((rng.random((4000, 32)) < 0.1) * rng.random((4000, 32)) @ features).half()
    count = torch.arange(4000, dtype=torch.int32)
    columns = {"sequence": count // 20, "position": count % 20, "token": count, "tail": torch.zeros(4000).bool()}
    save_file({"layer_0": x, "norm_0": x.float().norm(dim=1), **columns}, out / "shard_0000.safetensors")


@pytest.mark.parametrize("stays", ["W_dec", "W_enc"])
def test_a_half_trained_sae_keeps_what_it_says(cells: ModuleType, empty_store: store.Store, stays: str) -> None:
    section = TrainingSection(steps=30, batch=256, latents=48)
    sae_config = SAEConfig(variant="jumprelu", latents=48, coefficient=1e-3, initial_l0=8.0)
    made = training.load(cells.half_trained(sae_config, tokens(), 0, section, 0, stays))
    whole = training.load(training.train(sae_config, ((tokens(), 1.0),), 0, section, 0))
    start = make(sae_config, WIDTH)
    read = training.activations.read(tokens(), 0, 0)
    start.initialise(training.sample(read, 0), torch.Generator().manual_seed(0))
    other = "W_enc" if stays == "W_dec" else "W_dec"
    assert torch.allclose(getattr(made, stays), getattr(start, stays), atol=1e-6)
    assert not torch.allclose(getattr(made, other), getattr(start, other), atol=1e-3)
    assert not torch.allclose(getattr(whole, stays), getattr(start, stays), atol=1e-3)


def test_a_permuted_model_keeps_its_weights_but_not_their_places(
    cells: ModuleType, empty_store: store.Store, tiny: ModelSection
) -> None:
    lm = model.pinned(tiny)
    noise = cells.Folder(cells.permuted(lm, 0), "cpu", "float32")
    assert noise == model.pinned(noise.section) and hash(noise) == hash(
        cells.Folder(cells.permuted(lm, 0), "cpu", "float32")
    )
    before, after = (model.load(each).model.state_dict() for each in (lm, noise))
    for name, weight in before.items():
        same = torch.equal(weight, after[name])
        assert same is not ("layers." in name and weight.dim() > 1), name
        assert torch.equal(weight.flatten().sort().values, after[name].flatten().sort().values)
    assert str(noise.made.path) not in str(store.keys.canonical(noise)), "the same key on every machine"
