"""Notebook 05: what its own steps say of SAEs, subspaces and worlds whose answers are known."""

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats as scipy_stats
from scipy.optimize import linprog

from lib import store
from lib.config import TrainingSection
from lib.lm import activations
from lib.sae import training
from lib.sae.variants import SAEConfig, make
from tests.cells import cells_of

WIDTH, TEXTS, LENGTH = 8, 120, 50


@pytest.fixture(scope="module")
def cells() -> Any:
    return cells_of("05_quadratic_frequency")


@store.cached
def tokens(out: Path) -> None:
    """Coordinates 0 and 1 are active on three tokens in ten each, never both; 2 at the first five places, 3 on token 7, the others are noise of both signs.
    Coordinate 0 varies most."""
    rng, n = np.random.default_rng(0), TEXTS * LENGTH
    x = 0.3 * rng.standard_normal((n, WIDTH))
    which, token = rng.random(n), rng.integers(20, size=n)
    place = np.tile(np.arange(LENGTH), TEXTS)
    x[:, 0], x[:, 1] = 4 * (which < 0.3) * (1 + rng.random(n)), 4 * (which > 0.7) * (1 + rng.random(n))
    x[:, 2], x[:, 3] = 3.0 * (place < 5), 3.0 * (token == 7)
    columns = {"sequence": np.repeat(np.arange(TEXTS), LENGTH), "position": place, "token": token}
    tensors = {name: torch.from_numpy(of.astype(np.int32)) for name, of in columns.items()}
    kept = torch.from_numpy(x).half()
    tensors |= {"layer_0": kept, "norm_0": kept.float().norm(dim=1), "tail": torch.zeros(n, dtype=torch.bool)}
    save_file({name: t.contiguous() for name, t in tensors.items()}, out / "shard_0000.safetensors")


@store.cached
def reads(out: Path, rows: tuple[tuple[float, ...], ...]) -> None:
    """An SAE whose latents read, and write, these directions, and are active above a half."""
    directions = torch.nn.functional.normalize(torch.tensor(rows), dim=1)
    sae = make(SAEConfig(variant="jumprelu", latents=len(rows)), WIDTH)
    with torch.no_grad():
        sae.W_enc.copy_(directions.T)
        sae.W_dec.copy_(directions)
        sae.theta.fill_(0.5)
    training.save(sae, [], out)


def unit(*ones: int) -> tuple[float, ...]:
    return tuple(float(i in ones) for i in range(WIDTH))


def test_a_latent_that_is_split_is_told_by_several_and_not_by_one(cells: ModuleType, empty_store: store.Store) -> None:
    both = reads((unit(0, 1), unit(4)))
    others = {"whole": both, "split": reads((unit(0), unit(1), unit(2))), "noise": reads((unit(5), unit(6), unit(7)))}
    found = cells.told(both, others, tokens(), 0, 0.1, 2.0, name="t").value
    assert found["latent"] == [0] and 0.55 < found["frequency"][0] < 0.65
    of = {name: {key: column[0] for key, column in columns.items()} for name, columns in found["of"].items()}
    assert of["split"]["one"] < 0.7 and of["split"]["ten"] > 0.99 and of["split"]["all"] > 0.98
    assert max(of["noise"][key] for key in ("one", "ten", "all")) < 0.05
    assert of["split"]["cosine"] == pytest.approx(0.5**0.5, abs=1e-3)
    assert 0.4 < of["split"]["together"] < 0.6  # its nearest fires on half of its tokens
    assert min(of["whole"][key] for key in ("one", "cosine", "together")) > 0.999


def test_a_portrait_names_what_tells_a_latent(cells: ModuleType, empty_store: store.Store) -> None:
    opposite = tuple(-x for x in unit(4))
    found = cells.portrait(reads((unit(2), unit(3), unit(4), opposite)), tokens(), 0, name="p").value
    assert found["latent"] == [0, 1, 2, 3]
    assert found["place"][0] > 0.99 and found["token"][0] < 0.05
    assert found["token"][1] > 0.99 and found["place"][1] < 0.05
    assert max(found[what][2] for what in ("place", "token")) < 0.05
    assert np.allclose(found["opposite"][2:], -1, atol=1e-5) and np.allclose(found["opposite"][:2], 0, atol=1e-5)


@pytest.fixture
def spaces(cells: ModuleType, empty_store: store.Store) -> store.Artifact:
    return cells.subspaces(reads((unit(0), unit(4, 5, 6))), tokens(), 0, 0.9, 0)


def test_subspaces_hold_what_they_say(cells: ModuleType, spaces: store.Artifact) -> None:
    held, x = load_file(spaces.path / "subspaces.safetensors"), activations.read(tokens(), 0).gather(np.arange(6000))
    assert abs(held["written"][:, 0].norm() - 1) < 1e-2 and len(held["written"]) == 1  # what the frequent latent writes
    variance = torch.cov(x.T)
    for name, share in zip(("written", "random"), held["held"], strict=True):
        basis = held[name]
        assert torch.allclose(basis @ basis.T, torch.eye(len(basis)), atol=1e-5)
        assert float((basis @ variance @ basis.T).trace() / variance.trace()) == pytest.approx(float(share), abs=0.02)
    assert held["held"][1] >= held["held"][0] > 0.25


def test_components_in_a_row_are_as_many_and_hold_as_nearly_as_much(cells: ModuleType, spaces: store.Artifact) -> None:
    held = load_file(spaces.path / "subspaces.safetensors")
    beside = load_file(cells.in_a_row(spaces, tokens(), 0, 0).path / "subspaces.safetensors")
    x, basis = activations.read(tokens(), 0).gather(np.arange(6000)).double(), beside["components"].double()
    variances, vectors = np.linalg.eigh(np.cov(x.numpy().T))
    shares = variances[::-1] / variances.sum()
    first = int(np.abs(shares - float(held["held"][0])).argmin())
    assert len(basis) == len(held["written"]) == 1 and torch.equal(beside["mean"], held["mean"])
    assert abs(float(basis[0] @ torch.from_numpy(vectors[:, ::-1][:, first].copy()))) > 0.999
    assert float(beside["held"][0]) == pytest.approx(shares[first], abs=1e-3)


@pytest.mark.parametrize("which", ["written", "random"])
def test_what_is_without_a_subspace_does_not_vary_in_it(cells: ModuleType, spaces: store.Artifact, which: str) -> None:
    source = activations.read(tokens(), 0)
    held, rows = load_file(spaces.path / "subspaces.safetensors"), np.arange(0, 6000, 7)
    without, basis = cells.Without(source, spaces, which), held[which]
    x, left = source.gather(rows), without.gather(rows)
    assert torch.allclose(left @ basis.T, (held["mean"] @ basis.T).expand(len(rows), -1), atol=1e-3)
    rest = torch.eye(WIDTH) - basis.T @ basis
    assert torch.allclose(left @ rest, x @ rest, atol=1e-3)
    assert torch.equal(torch.cat([*without.chunks()])[rows], left)
    passed = training.load(cells.passing(spaces, which)).reconstruct(x)  # the same, as an SAE
    assert torch.allclose(passed, left, atol=1e-3)


def test_an_sae_is_trained_and_measured_without_a_subspace(cells: ModuleType, spaces: store.Artifact) -> None:
    section = TrainingSection(steps=60, batch=256, latents=16)
    config = SAEConfig(variant="topk", latents=16, k=2)
    trained = cells.trained_without(config, tokens(), 0, section, 0, spaces, "written")
    assert float(training.load(trained).W_dec[:, 0].abs().max()) < 0.9  # nothing there to write along
    found = cells.regrown(trained, tokens(), 0, spaces, "written", name="r").value
    assert found["rank"] == 1 and found["fvu"] < 0.8 and found["l0"] <= 2
    same = training.load(cells.trained_without(config, tokens(), 0, section, 0, spaces, "random"))
    assert not torch.equal(same.W_dec, training.load(trained).W_dec)


def test_a_world_is_as_it_says(cells: ModuleType) -> None:
    world = cells.World(0, features=400, width=64)
    x, active = world.draw(30_000, [0, 0])
    assert x.shape == (30_000, 64) and np.isfinite(x).all()
    assert np.allclose(active[:, : cells.DENSE].mean(0), world.frequency[: cells.DENSE], rtol=0.2)
    ratio = active.mean(0)[cells.DENSE :] / world.frequency[cells.DENSE :]
    assert 0.9 < np.median(ratio) < 1.1
    children = np.flatnonzero(world.parent >= 0)
    assert len(children) > 250 and not (active[:, children] & ~active[:, world.parent[children]]).any()
    again, _ = world.draw(30_000, [0, 0])
    assert np.array_equal(x, again) and not np.array_equal(x[:50], world.draw(50, [0, 1])[0])


def test_truth_knows_a_perfect_sae_and_a_wrong_one(
    cells: ModuleType, empty_store: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = cells.World

    class Apart(plain):  # type: ignore[misc, valid-type]
        """A small world whose directions are orthogonal, so that a latent can tell its feature exactly."""

        def __init__(self, seed: int) -> None:
            super().__init__(seed, 96, 128)
            self.directions = np.linalg.qr(self.directions.T)[0].T.astype(np.float32)

    monkeypatch.setattr(cells, "World", Apart)
    world = Apart(0)

    def folder(directions: np.ndarray, path: Path) -> SimpleNamespace:
        sae = make(SAEConfig(variant="jumprelu", latents=len(directions)), 128)
        with torch.no_grad():
            sae.W_enc.copy_(torch.from_numpy(directions.T))
            sae.W_dec.copy_(torch.from_numpy(directions))
            sae.theta.fill_(0.3)
        path.mkdir(parents=True)
        training.save(sae, [], path)
        return SimpleNamespace(path=path)

    step = cells.truth.__wrapped__
    right = step(folder(world.directions, empty_store.cache / "right"), 0, 5000)
    assert right["f1"] > 0.95 and right["cosine"] > 0.999 and right["right"] == right["high"] == cells.DENSE
    assert right["known"] == 1
    assert np.allclose(right["dense"]["frequency"], right["dense"]["true"], atol=0.02)
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((128, 128)))[0][:96].astype(np.float32)
    wrong = step(folder(turned, empty_store.cache / "wrong"), 0, 5000)
    assert wrong["f1"] < 0.3 and wrong["right"] == 0 and wrong["known"] < 0.1


def test_pooled_errors_are_those_of_a_t_test(cells: ModuleType) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, 5), rng.normal(0.4, 1, 3)
    entry = cells.combined([first, second], [1, -1], cells.pooled([first, second]))
    oracle = scipy_stats.ttest_ind(first, second)
    interval = oracle.confidence_interval()
    assert entry["freedom"] == 6 and np.allclose(entry["interval"], [interval.low, interval.high])
    lone = cells.combined([first, np.array([0.1])], [1, -1], cells.pooled([first, [0.1]]))
    assert lone["freedom"] == 4 and np.ptp(lone["interval"]) > np.ptp(entry["interval"])
    nothing = cells.combined([[0.3], [0.1]], [1, -1], cells.pooled([[0.3], [0.1]]))
    assert nothing["mean"] == pytest.approx(0.2) and np.ptp(nothing["interval"]) > 100


def test_fvu_is_moved_along_the_curve_of_its_own_kind(cells: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    of = {10: [(10.0, 0.4)], 90: [(80.0, 0.2), (100.0, 0.18)], 150: [(160.0, 0.1)]}
    found = {"QF": {level: [{"l0": l0, "fvu": fvu} for l0, fvu in seeds] for level, seeds in of.items()}}
    monkeypatch.setattr(cells, "found", found, raising=False)
    moved = cells.moved("QF", 90, 90.0)
    down, up = (0.4 - 0.19) / np.log(9), (0.19 - 0.1) / np.log(160 / 90)  # slopes on either side of the level's mean
    assert np.allclose(moved, [0.2 - down * np.log(90 / 80), 0.18 + up * np.log(100 / 90)])
    assert np.allclose(cells.moved("QF", 10, 10.0), 0.4)


def test_quantiles_weigh_what_was_sampled(cells: ModuleType) -> None:
    """Two strata: a hundred rare latents of which ten were drawn, and ten frequent ones, all drawn."""
    entry = {
        "sizes": [100, 10],
        "stratum": [0] * 10 + [1] * 10,
        "fired": [*range(10, 20), *range(1000, 1010)],
        "tokens": 10_000,
        "score": [0.1] * 10 + [0.9] * 10,
    }
    rows = cells.by_quantile(entry, parts=2)
    assert len(rows) == 2 and rows[0][1]["mean"] == pytest.approx(0.1)
    assert 0.1 < rows[1][1]["mean"] < 0.9 and rows[0][0] < rows[1][0]


def test_no_smaller_move_gives_the_mean_that_equal_l0_forces(cells: ModuleType) -> None:
    """Against a linear programme that may move every latent to any bin below a tenth, or to a tenth."""
    rng = np.random.default_rng(0)
    centres = (cells.BINS[1:] + cells.BINS[:-1]) / 2
    first = {"histogram": np.where(centres < -1, rng.integers(0, 9, len(centres)), 3), "high_share": 0.5}
    second = {"histogram": np.where(centres < -1, 4, 1), "high_share": 0.2}
    factor, moves = cells.forced(first, second)
    x = centres[centres < -1]
    count, to = first["histogram"][centres < -1], np.append(x, -1)
    cost = np.abs(to - x[:, None]) / count.sum()
    leaves = np.kron(np.eye(len(x)), np.ones(len(to)))
    reach = -np.tile(10.0**to, len(x))
    found = linprog(cost.ravel(), reach[None], [-factor * (count @ 10**x)], leaves, count)
    assert found.status == 0 and moves == pytest.approx(found.fun, rel=1e-6)


def test_what_equal_l0_forces_on_the_rest(cells: ModuleType) -> None:
    """A hundred latents on 10 ** -1.95 of tokens and ten on half of them, against a hundred alone that do all of the firing."""
    rare = int(np.argmin(np.abs((cells.BINS[1:] + cells.BINS[:-1]) / 2 + 1.95)))
    histogram = np.zeros(len(cells.BINS) - 1)
    histogram[rare] = 100
    few, all_of_it = {"histogram": histogram.copy(), "high_share": 0.9}, {"histogram": np.roll(histogram, 8)}
    few["histogram"][-4] = 10
    assert cells.forced(few, all_of_it | {"high_share": 0.0}) == pytest.approx((10, 0.95))  # all, as far as they may
    half = (5 - 1) * 10**-1.95 / (0.1 - 10**-1.95)  # of the latents, moved to a tenth
    assert cells.forced(few, all_of_it | {"high_share": 0.5}) == pytest.approx((5, half * 0.95))
    assert cells.distance(few, all_of_it) == pytest.approx(0.8)  # decades; the high ones do not count
