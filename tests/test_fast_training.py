"""The fast step against its dense reference, kernels against brute force, and training that can be killed or shared."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sae import CONFIG, SECTION, harvest_of, planted, write_shard

from lib import config, store
from lib.config import TrainingSection
from lib.lm import activations
from lib.sae import active, kernels, training
from lib.sae.adam import Adam
from lib.sae.penalties import QuadraticFrequency
from lib.sae.variants import SAE, SAEConfig, make
from tests.bench.penalty import TargetL0
from tests.cells import cells_of

SquaredFrequency = cells_of("05_quadratic_frequency").SquaredFrequency

VARIANTS: dict[str, dict[str, Any]] = {
    "jumprelu": {"variant": "jumprelu", "coefficient": 0.01, "bandwidth": 0.05},
    "jumprelu_all": {"variant": "jumprelu", "coefficient": 0.01, "bandwidth": 0.05, "sparsity_reaches": "all"},
    "quadratic": {"variant": "jumprelu", "coefficient": 0.01, "penalty": QuadraticFrequency(0.1)},
    "squared": {"variant": "jumprelu", "coefficient": 0.01, "penalty": SquaredFrequency()},
    "target": {"variant": "jumprelu", "coefficient": 0.01, "penalty": TargetL0(32)},
    "gated": {"variant": "gated", "coefficient": 0.01},
    "topk": {"variant": "topk", "k": 5, "k_aux": 7},
    "batchtopk": {"variant": "batchtopk", "k": 5, "k_aux": 7},
    "matryoshka_jumprelu": {"variant": "jumprelu", "coefficient": 0.01, "prefixes": (10, 33, 100)},
    "matryoshka_topk": {"variant": "topk", "k": 5, "prefixes": (1, 50, 100)},
    "matryoshka_batchtopk": {"variant": "batchtopk", "k": 5, "prefixes": (20, 100)},
    "matryoshka_gated": {"variant": "gated", "coefficient": 0.01, "prefixes": (20, 100)},
}
M, D = 100, 24  # neither is a multiple of a block


def prepared(name: str, l0: float, seed: int = 0) -> tuple[SAE, torch.Tensor]:
    """An SAE with ragged activity, empty rows and dead latents, and a batch of unit inputs."""
    sae = make(SAEConfig(latents=M, initial_l0=l0, dead_tokens=1000, **VARIANTS[name]), D)
    generator = torch.Generator().manual_seed(seed)
    x = planted(400, D, seed=seed)[1] + 0.5
    sae.initialise(x, generator)
    with torch.no_grad():
        sae.W_enc += 0.1 * torch.randn(D, M, generator=generator)
        sae.b_enc += 0.05 * torch.randn(M, generator=generator)
        if name.endswith("gated"):
            sae.r_mag += 0.2 * torch.randn(M, generator=generator)  # type: ignore[operator]
            sae.b_mag += 0.05 * torch.randn(M, generator=generator)  # type: ignore[operator]
    sae.idle[::7] = 5000
    unit = x[:150] / sae.scale
    unit[::10] = sae.b_dec.detach()  # the mean activates nothing: empty rows
    return sae, unit


def gradients(sae: SAE, x: torch.Tensor, sparse: bool) -> dict[str, torch.Tensor]:
    sae.sparse = sparse
    sae.zero_grad(set_to_none=True)
    named, fired = sae.losses(x, 1.0)
    torch.stack(list(named.values())).sum().backward()
    found = {f"grad {name}": p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    return found | {name: value.detach() for name, value in named.items()} | {"fired": fired}


@pytest.mark.parametrize("l0", [1.0, 8.0, 60.0])
@pytest.mark.parametrize("name", VARIANTS)
def test_fast_step_equals_the_dense_reference(name: str, l0: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active, "MAX_DENSITY", 1.0)  # no falling back: compare at any density
    sae, x = prepared(name, l0)
    if hasattr(sae, "threshold"):
        sae.threshold.fill_(0.1)
    z = sae.encoder(x).latents(active.Above(torch.zeros(M)))
    assert isinstance(z, active.Sparse)
    fast = gradients(sae, x, sparse=True)
    if hasattr(sae, "threshold"):
        sae.threshold.fill_(0.1)
    dense = gradients(sae, x, sparse=False)
    assert fast.keys() == dense.keys()
    for key, value in dense.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(
            fast[key], value, rtol=0, atol=1e-5 * max(scale, 1e-6), msg=lambda m, k=key: f"{k}: {m}"
        )
    assert float(dense["fired"].sum()) > 0


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("name", ["jumprelu", "gated", "topk", "batchtopk"])
def test_nothing_and_everything_active(name: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active, "MAX_DENSITY", 1.0)
    sae, x = prepared(name, 8.0)
    with torch.no_grad():
        for name_, p in sae.named_parameters():
            if name_ in ("b_enc", "b_mag"):
                p.fill_(10.0 if share else -10.0)
    fast, dense = gradients(sae, x, sparse=True), gradients(sae, x, sparse=False)
    each = VARIANTS[name].get("k", M)
    assert float(dense["fired"].sum()) == share * each * len(x)
    for key, value in dense.items():
        torch.testing.assert_close(fast[key], value, rtol=0, atol=1e-5 * max(float(value.abs().max()), 1e-6))


def test_dense_takes_over_by_measured_density() -> None:
    sae, x = prepared("jumprelu", 2.0)
    rule = active.Above(torch.full((M,), 1.0))
    assert isinstance(sae.encoder(x).latents(rule), active.Sparse)
    assert isinstance(sae.encoder(x).latents(active.Above(torch.full((M,), -9.0))), active.Dense)
    assert isinstance(sae.encoder(x).latents(active.Largest(M)), active.Dense)
    sae.sparse = False
    assert isinstance(sae.encoder(x).latents(rule), active.Dense)
    assert isinstance(sae.double().encoder(x.double()).latents(rule), active.Dense)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 70), st.integers(1, 20))
def test_selection_against_sorting(seed: int, n: int, m: int, k: int) -> None:
    """Rounded values make many ties; of equal ones the first are taken."""
    rng = np.random.default_rng(seed)
    pi = np.round(rng.standard_normal((n, m)), 1).astype(np.float32)
    allowed = rng.random(m) < 0.7
    bound = np.round(rng.standard_normal(m), 1).astype(np.float32)
    starts, found, values = kernels.above(pi, bound, n * m) or pytest.fail("over the limit")
    rows = np.repeat(np.arange(n), np.diff(starts))
    assert np.array_equal(np.stack([rows, found]), np.nonzero(pi > bound))
    assert np.array_equal(values, pi[rows, found])
    total = len(values)
    if total:
        assert kernels.above(pi, bound, total - 1) is None
    starts, found, values = kernels.largest(pi, k, allowed, n * m) or pytest.fail("over the limit")
    for r in range(n):
        order = sorted((j for j in range(m) if allowed[j] and pi[r, j] > 0), key=lambda j: (-pi[r, j], j))[:k]
        assert found[starts[r] : starts[r + 1]].tolist() == sorted(order)
    everything = kernels.above(pi, np.zeros(m, np.float32), n * m)
    assert everything is not None
    kept = kernels.largest_of_all(everything, k)
    flat = sorted((-pi[r, j], r, j) for r in range(n) for j in range(m) if pi[r, j] > 0)[:k]
    rows = np.repeat(np.arange(n), np.diff(kept[0]))
    assert sorted(zip(rows.tolist(), kept[1].tolist(), strict=True)) == sorted((r, j) for _, r, j in flat)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 4))
def test_products_against_dense_ones(seed: int, density: float, parts: int) -> None:
    rng = np.random.default_rng(seed)
    n, m, d = 30, 50, 19
    dense = (rng.standard_normal((n, m)) * (rng.random((n, m)) < density)).astype(np.float32)
    rows, latent = np.nonzero(dense)
    starts = np.concatenate([[0], np.cumsum(np.count_nonzero(dense, axis=1))])
    latent, values = latent.astype(np.int32), dense[rows, latent]
    part = np.sort(np.r_[rng.integers(0, parts, m - 1), parts - 1]).astype(np.int32)
    weights, grad = (
        rng.standard_normal((m, d)).astype(np.float32),
        rng.standard_normal((parts, n, d)).astype(np.float32),
    )
    out = kernels.decode(starts, latent, values, weights, part)
    for p in range(parts):
        np.testing.assert_allclose(out[p], dense[:, part == p] @ weights[part == p], atol=1e-4)
    np.testing.assert_allclose(
        kernels.sampled(starts, latent, weights, grad, part),
        np.einsum("ed,ed->e", grad[part[latent], rows], weights[latent]),
        atol=1e-4,
    )
    by_latent = kernels.transposed(starts, latent, m)
    order = np.lexsort((rows, latent))
    expected = np.searchsorted(latent[order], np.arange(m + 1)), order, rows[order]
    for got, want, kind in zip(by_latent, expected, (np.int64, np.int32, np.int32), strict=True):
        assert got.dtype == kind and np.array_equal(got, want)
    some = values * (rng.random(len(values)) < 0.5)
    kept, entries = kernels.nonzero(starts, some)
    assert np.array_equal(entries, np.nonzero(some)[0])
    assert np.diff(kept).tolist() == [np.count_nonzero(some[a:b]) for a, b in itertools.pairwise(starts)]
    np.testing.assert_allclose(kernels.sum_by_latent(*by_latent[:2], values), dense.sum(0), atol=1e-4)
    expected = np.stack([dense[:, i] @ grad[part[i]] for i in range(m)])
    np.testing.assert_allclose(kernels.gathered(*by_latent, values, grad, part), expected, atol=1e-4)


@pytest.mark.parametrize("fast", [True, False])
def test_adam_equals_clipping_torch_adam_and_normalising(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = prepared("gated", 8.0)
    reference, _ = prepared("gated", 8.0)
    if not fast:
        monkeypatch.setattr(Adam, "_fast", Adam._plain)
    mine, theirs = Adam(sae), torch.optim.Adam(reference.parameters(), lr=1e-2, betas=(0.9, 0.999))
    for step in range(5):
        rate = 1e-2 / (step + 1)
        theirs.param_groups[0]["lr"] = rate
        for model in (sae, reference):
            model.sparse = False
            named, _ = model.losses(3 * x, 1.0)
            (torch.stack(list(named.values())).sum() * (0.01 if step % 2 else 10.0)).backward()  # clipped and not
        with torch.no_grad():
            g, w = reference.W_dec.grad, reference.W_dec
            g -= (g * w).sum(1, keepdim=True) * w
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
            theirs.step()
            w /= w.norm(dim=1, keepdim=True)
        reference.zero_grad()
        mine.step(rate)
    for (name, p), q in zip(sae.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert all(p.grad is None for p in sae.parameters())


@pytest.mark.parametrize("variant", ["jumprelu", "gated", "topk", "batchtopk"])
def test_a_weighted_token_is_as_many_tokens_to_the_error_and_one_to_sparsity(variant: str) -> None:
    """Values and gradients of both paths against autograd on the errors themselves; a weight of one changes nothing."""
    for sparse in (True, False):
        sae, x = prepared(variant, 8.0)
        sae.sparse = sparse
        weights = torch.ones(len(x), 1)
        plain = sae.losses(x, 1.0).named
        for name, value in sae.losses(x, 1.0, weights).named.items():
            torch.testing.assert_close(value, plain[name])
        weights[::3] = 5.0
        found = sae.losses(x, 1.0, weights).named
        (to_dec,) = torch.autograd.grad(found["reconstruction"], sae.W_dec, retain_graph=True)
        f = sae.activate(sae.preactivations(x)).detach() if variant != "batchtopk" else None
        if f is not None:
            W_dec = sae.W_dec.detach().clone().requires_grad_()
            loss = (weights * (f @ W_dec + sae.b_dec - x).square()).sum() / len(x)
            torch.testing.assert_close(found["reconstruction"], loss.detach(), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(to_dec, torch.autograd.grad(loss, W_dec)[0], rtol=1e-3, atol=1e-5)
        for name in ("l1_penalty", "l0_penalty"):
            if name in found:
                torch.testing.assert_close(found[name], plain[name])


def test_the_update_is_along_the_sphere() -> None:
    sae, x = prepared("topk", 8.0)
    named, _ = sae.losses(x, 1.0)
    torch.stack(list(named.values())).sum().backward()
    before = sae.W_dec.detach().clone()
    kernels.project(before.numpy(), sae.W_dec.grad.numpy(), unit=True)
    torch.testing.assert_close((sae.W_dec.grad * before).sum(1), torch.zeros(M), rtol=0, atol=1e-6)


def two_of_one_pass() -> list[store.Artifact]:
    section = SECTION.model_copy(update={"checkpoints": (0.2, 0.8)})
    topk = SAEConfig(variant="topk", latents=32, k=3)
    return [training.train(config, harvest_of(0), 0, section, seed=3) for config in (CONFIG, topk)]


DIES = """
import os, signal, sys
from pathlib import Path
from test_fast_training import two_of_one_pass
from lib import store
from lib.sae import training
from lib.store import store as room
root, last = Path(sys.argv[1]), int(sys.argv[2])
advance, training.SAVE_SECONDS = training.Trainee.advance, 0.0
def dies(self, x, tail=None):
    if self.step == last:
        os.kill(os.getpid(), signal.SIGKILL)
    print(self.sae.name, self.step, flush=True)
    advance(self, x, tail)
training.Trainee.advance = dies
room._travels = lambda artifact: False  # so here, and in one pass
store.use(store.Store("report", root / "cache", root / "results", None)).ensure(two_of_one_pass())
"""


def test_a_pass_killed_by_9_goes_on_to_the_bit(empty_store: store.Store, tmp_path: Path) -> None:
    def files() -> list[dict[str, bytes]]:
        return [{path.name: path.read_bytes() for path in recipe.path.iterdir()} for recipe in two_of_one_pass()]

    whole = files()
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{config.ROOT}"}
    killed, again = (
        subprocess.run(
            [sys.executable, "-c", DIES, str(tmp_path / "there"), last],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for last in ("17", "-1")
    )
    assert killed.returncode == -signal.SIGKILL and killed.stdout.split("\n")[-2] == "topk 16", killed.stderr
    assert again.stdout.split("\n")[:2] == ["jumprelu 17", "topk 17"], again.stderr
    there = store.use(store.Store("report", tmp_path / "there" / "cache", tmp_path / "there" / "results", None))
    assert all(there.has(recipe) for recipe in two_of_one_pass())
    assert files() == whole
    assert {"step_000006.safetensors", "step_000024.safetensors"} <= whole[0].keys()
    assert not list((tmp_path / "there").rglob("partial.*"))


def test_a_damaged_state_is_not_trusted(tmp_path: Path) -> None:
    source = write_shard(tmp_path, planted(500)[1])
    sae = make(CONFIG, 24)
    sae.initialise(source.gather(np.arange(200)), torch.Generator().manual_seed(0))
    trainee = training.Trainee(sae, SECTION)
    (tmp_path / "state").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken")
    trainee.resume(tmp_path / "state")
    assert trainee.step == 0
    trainee.advance(source.gather(np.arange(100)))
    trainee.save(tmp_path / "state")
    whole = (tmp_path / "state").read_bytes()
    flipped = bytearray(whole)
    flipped[-1000] ^= 0x40
    for content, step in ((flipped, 0), (whole, 1)):
        (tmp_path / "state").write_bytes(content)
        again = training.Trainee(make(CONFIG, 24), SECTION)
        again.resume(tmp_path / "state")
        assert again.step == step


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, int]]]:
    """(variant, steps) of what each pass trains."""
    seen: list[list[tuple[str, int]]] = []
    fit = training.fit

    def noted(trainees: list[training.Trainee], *others: Any) -> None:
        seen.append([(t.sae.name, t.section.steps) for t in trainees])
        fit(trainees, *others)

    monkeypatch.setattr(training, "fit", noted)
    monkeypatch.setattr("lib.store.store._travels", lambda artifact: False)  # here, so in one pass
    return seen


SHORT = SECTION.model_copy(update={"steps": 12})
TOPK = SAEConfig(variant="topk", latents=32, k=3)


def test_several_in_one_pass_are_as_if_alone(empty_store: store.Store, passes: list[list[tuple[str, int]]]) -> None:
    start = training.train(CONFIG, harvest_of(0), 0, SHORT, 3)
    recipes = [
        training.train(CONFIG, harvest_of(0), 0, SECTION, 3),
        training.train(TOPK, harvest_of(0), 0, SHORT, 3),
        training.train(CONFIG, harvest_of(0), 0, SECTION, 3, start=start, redrawn=0.5),
    ]
    alone = [(recipe.path / "sae.safetensors").read_bytes() for recipe in recipes]
    assert len(passes) == 4 and all(len(names) == 1 for names in passes)
    passes.clear()
    again = store.use(store.Store("report", empty_store.cache / "again", empty_store.results, None))
    again.ensure([start])
    logs = store.values({str(i): training.log(recipe, name=f"log {i}") for i, recipe in enumerate(recipes)})
    assert passes == [[("jumprelu", 12)], [("jumprelu", 30), ("topk", 12), ("jumprelu", 30)]]
    assert [log[-1]["step"] for log in logs.values()] == [29, 11, 29]
    assert [(recipe.path / "sae.safetensors").read_bytes() for recipe in recipes] == alone
    assert not list(again.cache.rglob("partial.*"))
    assert len(passes) == 2, "nothing is trained twice"


def test_side_by_side_they_are_as_if_alone(empty_store: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of one thread, to the bit."""
    recipes = [training.train(config, harvest_of(0), 0, SECTION, 3) for config in (CONFIG, TOPK)]
    alone = [(recipe.path / "sae.safetensors").read_bytes() for recipe in recipes]
    again = store.use(store.Store("report", empty_store.cache / "again", empty_store.results, None))
    monkeypatch.setattr("lib.store.store._processes", lambda need=0: 2)
    assert again._compute_apart(recipes) == []
    assert [(recipe.path / "sae.safetensors").read_bytes() for recipe in recipes] == alone


def test_a_pass_is_of_those_that_read_the_same_batches(
    empty_store: store.Store, passes: list[list[tuple[str, int]]]
) -> None:
    mixed = ((harvest_of(0), 1.0), (harvest_of(1), 0.5))
    wide = SHORT.model_copy(update={"batch": 64})
    recipes = [
        training.train(TOPK, sources, 0, section, seed)
        for sources, section, seed in (
            (harvest_of(0), SHORT, 3),
            (harvest_of(0), SHORT, 4),
            (harvest_of(1), SHORT, 3),
            (mixed, SHORT, 3),
            (harvest_of(0), wide, 3),
        )
    ]
    empty_store.ensure(recipes)
    assert len(passes) == 5
    training.fit([], [], 0)  # type: ignore[arg-type]


def test_a_finetuned_sae_is_not_in_one_pass_with_the_one_it_starts_from(
    empty_store: store.Store, passes: list[list[tuple[str, int]]]
) -> None:
    """Though both read the same batches, and both are missing."""
    start = training.train(CONFIG, harvest_of(0), 0, SHORT, 3)
    tuned = training.train(CONFIG, harvest_of(0), 0, SECTION, 3, start=start)
    empty_store.ensure([tuned, start, training.train(TOPK, harvest_of(0), 0, SHORT, 3)])
    assert passes == [[("jumprelu", 12)], [("jumprelu", 30), ("topk", 12)]]


def test_finetuning_from_a_checkpoint_with_latents_redrawn(empty_store: store.Store) -> None:
    section = SECTION.model_copy(update={"checkpoints": (0.5,)})
    first = training.train(CONFIG, harvest_of(0), 0, section, seed=3)
    middle = training.load(first, checkpoint=15)
    assert not torch.equal(middle.W_dec, training.load(first).W_dec)
    with pytest.raises(ValueError, match=r"no checkpoint after 7 steps, there are \[15\]"):
        training.load(first, checkpoint=7)
    source = activations.read(harvest_of(1), 0)
    trainee = training._prepare(source, CONFIG, SECTION, 5, first, 15, redrawn=0.25)
    same = (trainee.sae.W_dec == middle.W_dec).all(1)
    assert int((~same).sum()) == 8
    torch.testing.assert_close(trainee.sae.W_enc[:, ~same], trainee.sae.W_dec[~same].T)
    torch.testing.assert_close(trainee.sae.b_enc[~same], -trainee.sae.W_dec[~same] @ middle.b_dec)
    assert (trainee.sae.theta[~same] == CONFIG.theta).all()  # type: ignore[index]
    assert torch.equal(trainee.sae.theta[same], middle.theta[same])  # type: ignore[index]
    assert float(trainee.sae.scale) == float(middle.scale)
    assert all(not moments.any() for group in (trainee.adam.m, trainee.adam.v) for moments in group.values())
    with pytest.raises(ValueError, match="cannot go on from a jumprelu SAE"):
        training.train(SAEConfig(variant="topk", latents=32, k=2), harvest_of(1), 0, SECTION, 3, first).path


def test_mixtures_repeat_and_sample(tmp_path: Path) -> None:
    for i in range(3):
        write_shard(tmp_path / str(i), torch.full((10 * (i + 1), 3), float(i)))
    write_shard(tmp_path / "wide", torch.zeros(4, 5))

    def mixture(*weights: float, names: tuple[str, ...] = ("0", "1", "2")) -> activations.Activations:
        folders = [(tmp_path / name, weight) for name, weight in zip(names, weights, strict=True)]
        return activations.Activations(folders, 0, seed=0)

    mixed = mixture(1, 2.5, 0.1)
    assert len(mixed) == 10 + 50 + 3
    x = mixed.gather(np.arange(len(mixed)))[:, 0]
    assert [int((x == i).sum()) for i in range(3)] == [10, 50, 3]
    rows = np.random.default_rng(0).permutation(len(mixed))
    torch.testing.assert_close(mixed.gather(rows)[:, 0], x[torch.from_numpy(rows)])
    copies = np.bincount(mixed.rows[10:60] - 10)
    assert set(copies.tolist()) == {2, 3} and int((copies == 3).sum()) == 10
    with pytest.raises(ValueError, match="widths"):
        mixture(1, 1, names=("0", "wide"))
    with pytest.raises(ValueError, match="positive"):
        mixture(1, 0, 1)


def test_training_on_a_mixture(empty_store: store.Store) -> None:
    mixed = ((harvest_of(0), 1.0), (harvest_of(1), 0.5))
    trained = training.train(CONFIG, mixed, 0, SECTION, 3)
    assert training.log(trained).value[-1]["step"] == SECTION.steps - 1
    assert trained.key != training.train(CONFIG, ((harvest_of(0), 1.0), (harvest_of(1), 1.0)), 0, SECTION, 3).key


def test_training_follows_the_dense_reference(tmp_path: Path) -> None:
    """Forty steps of the fast path end where forty dense ones do."""
    source = write_shard(tmp_path, planted(3000)[1] + 1.0)
    section = TrainingSection(steps=40, batch=200, learning_rate=2e-3)
    saes = []
    for sparse in (True, False):
        sae = make(SAEConfig(variant="jumprelu", latents=200, coefficient=5e-3, initial_l0=6), 24)
        sae.initialise(source.gather(np.arange(1000)), torch.Generator().manual_seed(0))
        sae.sparse = sparse
        training.fit([training.Trainee(sae, section)], source, 0)
        saes.append(sae)
    x = source.gather(np.arange(500))
    errors = [float((sae.reconstruct(x) - x).square().sum()) for sae in saes]
    assert errors[0] == pytest.approx(errors[1], rel=1e-2)
    assert errors[0] < 0.9 * float((x - x.mean(0)).square().sum())


def test_one_that_fails_does_not_take_the_others_along(empty_store: store.Store) -> None:
    wild = SECTION.model_copy(update={"learning_rate": 1e4, "decay": 0.0})
    good = training.train(CONFIG, harvest_of(0), 0, SECTION, 3)
    alone = (good.path / "sae.safetensors").read_bytes()
    again = store.use(store.Store("report", empty_store.cache / "again", empty_store.results, None))
    bad = training.train(TOPK, harvest_of(0), 0, wild, 3)
    wrong = training.train(TOPK, harvest_of(0), 0, SECTION, 3, start=training.train(CONFIG, harvest_of(0), 0, SHORT, 3))
    with pytest.raises(training.TrainingError, match="topk: the loss diverged at step"):
        again.ensure([bad, good, wrong])
    assert again.has(good) and (good.path / "sae.safetensors").read_bytes() == alone
    for failed, kind, message in (
        (bad, training.TrainingError, "topk: the loss diverged"),
        (wrong, ValueError, "cannot go on from a jumprelu SAE"),
    ):
        assert not again.has(failed) and not again.partial(failed).exists()
        with pytest.raises(kind, match=message):
            failed.path
    assert not list(again.cache.rglob("partial.*"))


def test_shares_and_starts_are_checked(empty_store: store.Store) -> None:
    first = training.train(CONFIG, harvest_of(0), 0, SECTION, 3)
    for fields in (
        {"start": first, "redrawn": -0.1},
        {"start": first, "redrawn": 1.5},
        {"redrawn": 0.5},
        {"checkpoint": 3},
    ):
        with pytest.raises(ValueError, match="share from 0 to 1"):
            training.train(CONFIG, harvest_of(0), 0, SECTION, 3, **fields).path
    for fields in ({"checkpoints": (0.0,)}, {"checkpoints": (1.5,)}, {"learning_rate": float("inf")}):
        with pytest.raises(ValueError, match=r"greater|less|finite"):
            TrainingSection(**fields)
    for fields in ({"k": -1}, {"k_aux": -3}, {"coefficient": float("inf")}):
        with pytest.raises(ValueError, match=r"greater|finite"):
            SAEConfig(variant="topk", latents=4, **fields)


def test_no_latent_to_choose() -> None:
    pi = np.ones((3, 20), np.float32)
    starts, latent, values = kernels.largest(pi, 4, np.zeros(20, bool), 60)
    assert starts.tolist() == [0] * 4 and not len(latent) and not len(values)
    assert len(kernels.largest(pi, 50, None, 60)[1]) == 60
    assert kernels.largest(pi, 4, None, 11) is None


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_off_the_cpu_never_waits_for_the_device(name: str) -> None:
    """On the meta device there are no values, so whatever would fetch one to the host fails."""
    sae, x = prepared(name, 8.0)
    trainee = training.Trainee(sae, TrainingSection(steps=1000, batch=150, device="meta"))
    trainee.step = 1  # not one that is logged
    trainee.advance(x)
    assert trainee.step == 2 and sae.W_dec.device.type == "meta"
    trainee.step = 0
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        trainee.advance(x)  # a logged step looks at the loss
