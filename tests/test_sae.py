import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib import activations, artifacts
from lib.config import TrainingSection
from lib.sae import metrics, penalties, training
from lib.sae.variants import FrequencyFunction, JumpReLU, JumpReLUFunction, SAEConfig, make

EPS = 0.2


def jumprelu(latents: int = 24, width: int = 8, **fields: object) -> JumpReLU:
    config = SAEConfig(variant="jumprelu", latents=latents, bandwidth=EPS, **fields)  # type: ignore[arg-type]
    sae = make(config, width).double()
    generator = torch.Generator().manual_seed(0)
    sae.initialise(torch.randn(200, width, generator=generator).double() + 0.3, generator)
    assert isinstance(sae, JumpReLU)
    with torch.no_grad():
        sae.theta.copy_(0.02 + 0.3 * torch.rand(latents, generator=generator))
    return sae


def unit_inputs(n: int = 300, width: int = 8) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1)).double() / width**0.5


def smooth_step(pi: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """The Heaviside step convolved with the rectangle kernel: its derivative is K / eps exactly."""
    return ((pi - theta) / EPS + 0.5).clamp(0, 1)


def test_theta_gradients_are_those_of_the_smoothed_step() -> None:
    """In float64, against autograd through the smoothed step, with theta's own factor held at theta (the paper's choice)."""
    sae, x = jumprelu(), unit_inputs()
    pi = sae.preactivations(x).detach()
    upstream = torch.randn(pi.shape, generator=torch.Generator().manual_seed(2)).double()
    JumpReLUFunction.apply(pi, sae.theta, EPS).backward(upstream)
    got = sae.theta.grad.clone()
    theta = sae.theta.detach().clone().requires_grad_()
    (upstream * theta.detach() * smooth_step(pi, theta)).sum().backward()
    torch.testing.assert_close(got, theta.grad)

    sae.theta.grad = None
    weights = torch.rand(pi.shape[1], generator=torch.Generator().manual_seed(3)).double()
    (weights * FrequencyFunction.apply(pi, sae.theta, EPS)).sum().backward()
    theta = theta.detach().clone().requires_grad_()
    (weights * smooth_step(pi, theta).mean(0)).sum().backward()
    torch.testing.assert_close(sae.theta.grad, theta.grad)
    below = ((pi > sae.theta - EPS / 2) & (pi < sae.theta)).any()
    assert below, "half of the kernel lies below the threshold and must be exercised"


def test_reconstruction_gradient_reaches_active_latents_only() -> None:
    pi = torch.tensor([[0.5, 0.1, -1.0]], requires_grad=True)
    theta = torch.tensor([0.3, 0.3, 0.3])
    JumpReLUFunction.apply(pi, theta, 0.01).sum().backward()
    assert pi.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_sparsity_gradient_reaches_theta_only() -> None:
    sae = jumprelu(coefficient=0.5)
    named, _ = sae.losses(unit_inputs(), 1.0)
    gradients = torch.autograd.grad(named["l0_penalty"], list(sae.parameters()), allow_unused=True)
    touched = {
        name for (name, _), g in zip(sae.named_parameters(), gradients, strict=True) if g is not None and g.any()
    }
    assert touched == {"theta"}


def penalty_gradient(penalty: str, omega0: float) -> tuple[torch.Tensor, torch.Tensor]:
    sae, x = jumprelu(penalty=penalty, omega0=omega0, coefficient=0.7), unit_inputs()
    named, active = sae.losses(x, 1.0)
    named[f"{penalty}_penalty"].backward()
    return sae.theta.grad, active.double().mean(0)


@pytest.mark.parametrize("omega0", [0.1, 0.01])
def test_qf_gradient_is_l0_times_one_plus_two_omega_over_omega0(omega0: float) -> None:
    l0, omega = penalty_gradient("l0", omega0)
    qf, _ = penalty_gradient("quadratic_frequency", omega0)
    torch.testing.assert_close(qf, l0 * (1 + 2 * omega / omega0))
    assert omega.max() > 0.1


def test_qf_becomes_l0_as_omega0_grows() -> None:
    l0, _ = penalty_gradient("l0", 1.0)
    qf, _ = penalty_gradient("quadratic_frequency", 1e12)
    torch.testing.assert_close(qf, l0, rtol=1e-9, atol=0)


def test_penalties_have_their_stated_values() -> None:
    omega = torch.tensor([0.0, 0.1, 0.5])
    assert float(penalties.l0(omega, 0.1)) == pytest.approx(0.6)
    assert float(penalties.quadratic_frequency(omega, 0.1)) == pytest.approx(0.1 * 2 + 0.5 * 6)
    with pytest.raises(ValueError, match="unknown penalty"):
        make(SAEConfig(variant="jumprelu", latents=4, penalty="nope"), 4)


def test_l0_penalty_is_lambda_times_l0() -> None:
    sae = jumprelu(coefficient=0.25)
    named, active = sae.losses(unit_inputs(), 1.0)
    assert float(named["l0_penalty"].detach()) == pytest.approx(0.25 * float(active.double().sum(1).mean()))
    half, _ = sae.losses(unit_inputs(), 0.5)
    assert float(half["l0_penalty"].detach()) == pytest.approx(float(named["l0_penalty"].detach()) / 2)


def test_topk_against_a_loop() -> None:
    sae = make(SAEConfig(variant="topk", latents=30, k=4), 8)
    generator = torch.Generator().manual_seed(0)
    sae.initialise(torch.randn(100, 8, generator=generator), generator)
    pi = sae.preactivations(unit_inputs(20).float())
    f = sae.activate(pi)
    for row, values in zip(f, pi, strict=True):
        expected = torch.zeros(30)
        for i in sorted(range(30), key=lambda i: -values[i])[:4]:
            expected[i] = max(0.0, float(values[i].detach()))
        torch.testing.assert_close(row, expected)
    for k in (0, 31):
        with pytest.raises(ValueError, match="1 <= k <= 30"):
            make(SAEConfig(variant="topk", latents=30, k=k), 8)


def test_initialisation_and_units() -> None:
    """Unit mean-square inputs inside, the model's units outside; a change of units changes nothing else."""
    config = SAEConfig(variant="jumprelu", latents=16)
    sample = 50 * (torch.randn(400, 8, generator=torch.Generator().manual_seed(5)) + 2)
    one, two = make(config, 8), make(config, 8)
    one.initialise(sample, torch.Generator().manual_seed(0))
    two.initialise(sample * 10, torch.Generator().manual_seed(0))
    assert float(one.scale) == pytest.approx(float(sample.square().sum(1).mean().sqrt()), rel=1e-5)
    torch.testing.assert_close(one.encode(sample), two.encode(10 * sample), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(10 * one.reconstruct(sample), two.reconstruct(10 * sample), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(one.W_dec.norm(dim=1), torch.ones(16))
    torch.testing.assert_close(one.W_enc, one.W_dec.T)
    mean = (sample / one.scale).mean(0, keepdim=True)
    torch.testing.assert_close(one.preactivations(mean), torch.zeros(1, 16), rtol=0, atol=1e-5)


def write_shard(folder: Path, x: torch.Tensor) -> activations.Activations:
    n = len(x)
    ids = torch.arange(n, dtype=torch.int32)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "layer_0": x.half(),
        "norm_0": x.norm(dim=1),
        "sequence": ids // 10,
        "position": ids % 10,
        "token": ids % 7,
    }
    save_file(tensors, folder / "shard_0000.safetensors")
    return activations.Activations(folder, 0)


def planted(n: int = 20_000, width: int = 24, features: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse combinations of random unit directions, with coefficients well above zero."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, width, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    on = torch.rand(n, features, generator=generator) < 0.06
    return directions, (on * (1 + torch.rand(n, features, generator=generator))) @ directions


@pytest.mark.parametrize(
    "config",
    [
        SAEConfig(variant="topk", latents=64, k=2),
        SAEConfig(variant="jumprelu", latents=64, coefficient=0.03, theta=0.1, bandwidth=0.1),
        SAEConfig(
            variant="jumprelu",
            latents=64,
            coefficient=0.02,
            theta=0.1,
            bandwidth=0.1,
            penalty="quadratic_frequency",
            omega0=0.5,
        ),
    ],
    ids=["topk", "jumprelu", "qf"],
)
def test_planted_dictionary_is_recovered(config: SAEConfig, tmp_path: Path) -> None:
    directions, x = planted()
    source = write_shard(tmp_path, x)
    sae = make(config, 24)
    sae.initialise(source.gather(np.arange(4000)), torch.Generator().manual_seed(1))
    section = TrainingSection(latents=64, steps=700, batch=256, learning_rate=5e-3)
    training.fit(sae, source, section, seed=0)
    best = (directions @ sae.W_dec.detach().T).max(1).values
    assert float(best.mean()) > 0.95, best
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(64))


@artifacts.cached
def harvest_of(out: Path, seed: int) -> None:
    write_shard(out, planted(3000, seed=seed)[1] + 1.0)


SECTION = TrainingSection(latents=32, steps=30, batch=128)
CONFIG = SAEConfig(variant="jumprelu", latents=32, coefficient=1e-2)


def test_training_is_reproducible_to_the_bit(store: artifacts.Store) -> None:
    digests = []
    for run in range(2):
        artifacts.use(artifacts.Store("report", store.cache / str(run), store.results, None))
        path = training.train(CONFIG, harvest_of(0), 0, SECTION, seed=3).path
        digests.append(json.loads((path / "meta.json").read_text())["files"])
    assert digests[0] == digests[1]
    other = training.train(CONFIG, harvest_of(0), 0, SECTION, seed=4).path
    assert json.loads((other / "meta.json").read_text())["files"]["sae.safetensors"] != digests[0]["sae.safetensors"]


def test_finetuning_starts_where_the_other_sae_ended(store: artifacts.Store) -> None:
    first = training.train(CONFIG, harvest_of(0), 0, SECTION, seed=3)
    still = SECTION.model_copy(update={"learning_rate": 1e-12, "steps": 1})
    tuned = training.load(training.train(CONFIG, harvest_of(1), 0, still, seed=3, start=first))
    for name, tensor in training.load(first).state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], tensor)


def test_training_log_names_its_losses(store: artifacts.Store) -> None:
    rows = training.log(training.train(CONFIG, harvest_of(0), 0, SECTION, seed=3)).value
    assert set(rows[0]) == {"step", "l0", "reconstruction", "l0_penalty"}
    assert rows[-1]["step"] == SECTION.steps - 1
    assert rows[-1]["reconstruction"] < rows[0]["reconstruction"]


def test_divergence_is_reported(tmp_path: Path) -> None:
    source = write_shard(tmp_path, planted(2000)[1])
    sae = make(CONFIG, 24)
    sae.initialise(source.gather(np.arange(1000)), torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_dec.fill_(float("nan"))
    with pytest.raises(training.TrainingError, match=r"diverged at step 0: lower training.learning_rate"):
        training.fit(sae, source, SECTION, 0)


def test_learning_rate_schedule() -> None:
    section = TrainingSection(steps=100, learning_rate=1.0, warmup=0.1, decay=0.2)
    rates = [training.learning_rate(step, section) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.1


def test_every_row_is_seen_once_per_pass() -> None:
    rows = training._row_batches(100, TrainingSection(steps=10, batch=20), np.random.default_rng(0))
    assert rows.shape == (10, 20)
    assert sorted(rows.ravel()[:100].tolist()) == sorted(rows.ravel()[100:].tolist()) == list(range(100))


def test_metrics_on_shifted_data_against_direct_formulas(tmp_path: Path) -> None:
    """FVU subtracts the mean: a constant shift of a thousand does not make it small."""
    source = write_shard(tmp_path, planted(3000)[1] + 20.0)
    sae = make(SAEConfig(variant="topk", latents=32, k=3), 24)
    sae.initialise(source.gather(np.arange(1000)), torch.Generator().manual_seed(0))
    sums = metrics.stream(sae.requires_grad_(False), source)
    x = source.gather(np.arange(len(source))).double()
    error = (sae.reconstruct(x.float()).double() - x).square().sum()
    direct = float(error / (x - x.mean(0)).square().sum())
    assert metrics.fvu(sums) == pytest.approx(direct, rel=1e-4)
    assert direct > 0.2
    assert float(error / x.square().sum()) < 0.01, "the measure that forgets the mean would hide it"
    f = sae.encode(x.float())
    assert sums["fired"].tolist() == (f > 0).sum(0).tolist()
    assert sums["l0"].sum() / len(x) == pytest.approx(float((f > 0).double().sum(1).mean()))
    weights = np.zeros(len(sums["tokens"]))
    weights[[2, 5]] = (1, 3)
    part = torch.cat([x[20:30], *([x[50:60]] * 3)])
    expected = (sae.reconstruct(part.float()).double() - part).square().sum() / (part - part.mean(0)).square().sum()
    assert metrics.fvu(sums, weights) == pytest.approx(float(expected), rel=1e-4)


def test_evaluation_counts_dead_and_high_frequency_latents(store: artifacts.Store) -> None:
    found = metrics.evaluate(training.train(CONFIG, harvest_of(0), 0, SECTION, 0), harvest_of(1), 0, 50, 0).value
    assert found["fvu_interval"][0] < found["fvu"] < found["fvu_interval"][1]
    assert found["l0_interval"][0] < found["l0"] < found["l0_interval"][1]
    assert sum(found["histogram"]) == found["latents"] - found["dead"]
    high_bins = sum(n for n, left in zip(found["histogram"], metrics.BINS, strict=False) if left >= -1)
    assert high_bins == found["high"]
