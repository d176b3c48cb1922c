import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import before
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib import store
from lib.config import Expected, ModelSection, TrainingSection
from lib.lm import activations, harvest, model, sequences
from lib.lm.residual import residuals, spliced
from lib.lm.sequences import Sequences
from lib.sae import metrics, training
from lib.sae.adam import Adam
from lib.sae.gradients import JumpReLUFunction, StepFunction
from lib.sae.metrics import Sums
from lib.sae.penalties import L0, Penalty, QuadraticFrequency
from lib.sae.variants import SAE, Gated, JumpReLU, SAEConfig, TopK, make
from tests.bench.penalty import TargetL0
from tests.cells import cells_of

SquaredFrequency = cells_of("05_quadratic_frequency").SquaredFrequency

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
    (weights * StepFunction.apply(pi, sae.theta, EPS, False)).sum().backward()
    theta = theta.detach().clone().requires_grad_()
    (weights * smooth_step(pi, theta)).sum().backward()
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


def penalty_gradient(penalty: Penalty) -> tuple[torch.Tensor, torch.Tensor]:
    sae, x = jumprelu(penalty=penalty, coefficient=0.7), unit_inputs()
    named, fired = sae.losses(x, 1.0)
    named[penalty.name].backward()
    return sae.theta.grad, fired / len(x)


@pytest.mark.parametrize("omega0", [0.1, 0.01])
def test_qf_gradient_is_l0_times_one_plus_two_omega_over_omega0(omega0: float) -> None:
    l0, omega = penalty_gradient(L0())
    qf, _ = penalty_gradient(QuadraticFrequency(omega0))
    torch.testing.assert_close(qf, l0 * (1 + 2 * omega / omega0))
    assert omega.max() > 0.1


def test_qf_becomes_l0_as_omega0_grows() -> None:
    l0, _ = penalty_gradient(L0())
    qf, _ = penalty_gradient(QuadraticFrequency(1e12))
    torch.testing.assert_close(qf, l0, rtol=1e-9, atol=0)


def test_penalties_have_their_stated_values() -> None:
    omega = torch.tensor([0.0, 0.1, 0.5])
    assert float(L0().of(omega)) == pytest.approx(0.6)
    assert float(QuadraticFrequency(0.1).of(omega)) == pytest.approx(0.1 * 2 + 0.5 * 6)
    assert float(TargetL0(0.5).of(omega)) == pytest.approx((0.6 / 0.5 - 1) ** 2)
    squared = float(SquaredFrequency().of(omega))
    assert squared == pytest.approx(3 * float(omega.var(correction=0) + omega.mean() ** 2))
    every = (L0(), QuadraticFrequency(0.1), SquaredFrequency(), TargetL0(3))
    names = ["l0_penalty", "quadratic_frequency_penalty", "squared_frequency_penalty", "target_l0_penalty"]
    assert [penalty.name for penalty in every] == names


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ("l0", L0, {}):
        with pytest.raises(ValueError, match=r"penalty\n.*instance of Penalty"):
            SAEConfig(variant="jumprelu", latents=4, penalty=wrong)  # type: ignore[arg-type]
    for kind in (QuadraticFrequency, TargetL0):
        with pytest.raises(ValueError, match="greater than 0"):
            kind(0.0)
    with pytest.raises(ValueError, match="unknown variant 'nope'"):
        make(SAEConfig(variant="nope", latents=4), 4)
    for prefixes in ((2, 3), (3, 2, 4), (0, 4), (2, 2, 4)):
        with pytest.raises(ValueError, match="prefixes must increase to the number of latents, 4"):
            make(SAEConfig(variant="topk", latents=4, k=1, prefixes=prefixes), 4)


def test_l0_penalty_is_lambda_times_l0() -> None:
    sae = jumprelu(coefficient=0.25)
    named, fired = sae.losses(unit_inputs(), 1.0)
    assert float(named["l0_penalty"].detach()) == pytest.approx(0.25 * float(fired.sum()) / 300)
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
        "tail": ids % 10 == 9,
    }
    save_file(tensors, folder / "shard_0000.safetensors")
    return activations.Activations([(folder, 1.0)], 0)


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
        SAEConfig(variant="batchtopk", latents=64, k=2),
        SAEConfig(variant="topk", latents=64, k=2, prefixes=(32, 64)),
        SAEConfig(variant="gated", latents=64, coefficient=0.4, initial_l0=6),
        SAEConfig(variant="jumprelu", latents=64, coefficient=0.03, theta=0.1, bandwidth=0.1),
        SAEConfig(variant="jumprelu", latents=64, coefficient=0.03, theta=0.1, bandwidth=0.1, initial_l0=6),
        SAEConfig(
            variant="jumprelu",
            latents=64,
            coefficient=0.2,
            theta=0.1,
            bandwidth=0.1,
            penalty=SquaredFrequency(),
        ),
        SAEConfig(variant="jumprelu", latents=64, coefficient=0.05, theta=0.1, bandwidth=0.1, penalty=TargetL0(2)),
        SAEConfig(
            variant="jumprelu",
            latents=64,
            coefficient=0.02,
            theta=0.1,
            bandwidth=0.1,
            penalty=QuadraticFrequency(0.5),
        ),
    ],
    ids=["topk", "batchtopk", "matryoshka", "gated", "jumprelu", "low start", "squared", "target", "qf"],
)
def test_planted_dictionary_is_recovered(config: SAEConfig, tmp_path: Path) -> None:
    directions, x = planted()
    source = write_shard(tmp_path, x)
    sae = make(config, 24)
    sae.initialise(source.gather(np.arange(4000)), torch.Generator().manual_seed(1))
    section = TrainingSection(latents=64, steps=700, batch=256, learning_rate=5e-3, tail_weight=1.0)
    training.fit([training.Trainee(sae, section)], source, seed=0)
    best = (directions @ sae.W_dec.detach().T).max(1).values
    assert float(best.mean()) > 0.95, best
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(64))


@store.cached
def harvest_of(out: Path, seed: int) -> None:
    write_shard(out, planted(3000, seed=seed)[1] + 1.0)


SECTION = TrainingSection(latents=32, steps=30, batch=128)
CONFIG = SAEConfig(variant="jumprelu", latents=32, coefficient=1e-2)


def test_training_is_reproducible_to_the_bit(empty_store: store.Store) -> None:
    digests = []
    for run in range(2):
        store.use(store.Store("report", empty_store.cache / str(run), empty_store.results, None))
        path = training.train(CONFIG, harvest_of(0), 0, SECTION, seed=3).path
        digests.append(json.loads((path / "meta.json").read_text())["files"])
    assert digests[0] == digests[1]
    other = training.train(CONFIG, harvest_of(0), 0, SECTION, seed=4).path
    assert json.loads((other / "meta.json").read_text())["files"]["sae.safetensors"] != digests[0]["sae.safetensors"]


def test_finetuning_starts_where_the_other_sae_ended(empty_store: store.Store) -> None:
    first = training.train(CONFIG, harvest_of(0), 0, SECTION, seed=3)
    still = SECTION.model_copy(update={"learning_rate": 1e-12, "steps": 1})
    tuned = training.load(training.train(CONFIG, harvest_of(1), 0, still, seed=3, start=first))
    for name, tensor in training.load(first).state_dict().items():
        if name != "idle":
            torch.testing.assert_close(tuned.state_dict()[name], tensor)


def test_training_log_names_its_losses(empty_store: store.Store) -> None:
    rows = training.log(training.train(CONFIG, harvest_of(0), 0, SECTION, seed=3)).value
    assert set(rows[0]) == {"step", "l0", "dead", "reconstruction", "l0_penalty"}
    assert rows[-1]["step"] == SECTION.steps - 1
    assert rows[-1]["reconstruction"] < rows[0]["reconstruction"]


@dataclass(frozen=True)
class Capped(Penalty):
    """As a reader would write one in a cell: above ``most``, firing costs nothing more."""

    most: float

    def of(self, omega: torch.Tensor) -> torch.Tensor:
        return omega.clamp_max(self.most).sum()


def test_a_penalty_of_a_readers_own(empty_store: store.Store) -> None:
    """It trains, counts in the key, and who loads the SAE need not know it."""

    def recipe(penalty: Penalty) -> store.Artifact:
        config = SAEConfig(variant="jumprelu", latents=32, coefficient=1e-2, penalty=penalty)
        return training.train(config, harvest_of(0), 0, SECTION, 3)

    capped = recipe(Capped(0.1))
    assert len({capped.key, recipe(Capped(0.2)).key, recipe(L0()).key}) == 3
    assert capped.key == recipe(Capped(0.1)).key
    assert set(training.log(capped).value[-1]) == {"step", "l0", "dead", "reconstruction", "penalty"}
    mine, usual = training.load(capped), training.load(recipe(L0()))
    assert not torch.equal(mine.state_dict()["theta"], usual.state_dict()["theta"])
    tuned = training.train(CONFIG, harvest_of(1), 0, SECTION, 3, start=capped)
    assert training.log(tuned).value[-1]["l0_penalty"] > 0
    script = (
        "import sys, types; from pathlib import Path; from lib.sae import training;"
        "sae = training.load(types.SimpleNamespace(path=Path(sys.argv[1])));"
        "print(sae.config.variant, sae.theta.double().sum().item(), 'test_sae' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(capped.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["jumprelu", str(mine.theta.double().sum().item()), "False"], done.stderr


def failure(sae: SAE, source: activations.Activations) -> str:
    """What is said of an SAE that cannot be trained."""
    trainee = training.Trainee(sae, SECTION)
    training.fit([trainee], source, 0)
    assert isinstance(trainee.error, training.TrainingError) and isinstance(trainee.error, Expected)
    return str(trainee.error)


def test_divergence_is_reported(tmp_path: Path) -> None:
    source = write_shard(tmp_path, planted(2000)[1])
    sae = make(CONFIG, 24)
    sae.initialise(source.gather(np.arange(1000)), torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_dec.fill_(float("nan"))
    assert failure(sae, source) == "jumprelu: the loss diverged at step 0: lower training.learning_rate"


def test_learning_rate_schedule() -> None:
    section = TrainingSection(steps=100, learning_rate=1.0, warmup=0.1, decay=0.2)
    rates = [training.learning_rate(step, section) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.1


def test_every_row_is_seen_once_per_pass() -> None:
    rows = training.row_batches(100, 10, 20, seed=0)
    assert rows.shape == (10, 20)
    assert np.array_equal(training.row_batches(100, 7, 20, seed=0), rows[:7])
    assert sorted(rows.ravel()[:100].tolist()) == sorted(rows.ravel()[100:].tolist()) == list(range(100))


def test_metrics_on_shifted_data_against_direct_formulas(tmp_path: Path) -> None:
    """FVU subtracts the mean: a constant shift of a thousand does not make it small."""
    source = write_shard(tmp_path, planted(3000)[1] + 20.0)
    sae = make(SAEConfig(variant="topk", latents=32, k=3), 24)
    sae.initialise(source.gather(np.arange(1000)), torch.Generator().manual_seed(0))
    sums = Sums.of(sae.requires_grad_(False), source)
    x = source.gather(np.arange(len(source))).double()
    error = (sae.reconstruct(x.float()).double() - x).square().sum()
    direct = float(error / (x - x.mean(0)).square().sum())
    assert sums.fvu() == pytest.approx(direct, rel=1e-4)
    assert direct > 0.2
    assert float(error / x.square().sum()) < 0.01, "the measure that forgets the mean would hide it"
    f = sae.encode(x.float())
    assert sums.fired.tolist() == (f > 0).sum(0).tolist()
    hat = sae.reconstruct(x.float()).double()
    assert sums.hat_x.sum() == pytest.approx(float((hat * x).sum()), rel=1e-6)
    assert sums.hat_hat.sum() == pytest.approx(float((hat * hat).sum()), rel=1e-6)
    assert sums.active.sum() / len(x) == pytest.approx(float((f > 0).double().sum(1).mean()))
    weights = np.zeros(len(sums.tokens))
    weights[[2, 5]] = (1, 3)
    part = torch.cat([x[20:30], *([x[50:60]] * 3)])
    expected = (sae.reconstruct(part.float()).double() - part).square().sum() / (part - part.mean(0)).square().sum()
    assert sums.fvu(weights) == pytest.approx(float(expected), rel=1e-4)


def test_a_constant_error_counts_in_fvu_and_is_not_lost() -> None:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    moved = Sums(1, 6, 6)
    for part in x.split(77):
        moved.add(part, part + 3.0, torch.eye(6)[:3].repeat(30, 1)[: len(part)])
    found = moved.fidelity()
    assert found["lost"] == pytest.approx(0, abs=1e-9) and found["l0"] == 1
    assert found["fvu"] == pytest.approx(9 * x.numel() / float((x - x.mean(0)).square().sum()), rel=1e-5)
    half = Sums(1, 6, 6)
    half.add(x, 0.5 * x, x)
    assert half.fidelity()["lost"] == pytest.approx(0.25)
    assert half.fvu() == pytest.approx(0.25 * float(x.square().sum() / (x - x.mean(0)).square().sum()), rel=1e-5)


def test_sums_by_sequence_add_up_to_those_over_all(tmp_path: Path) -> None:
    source = write_shard(tmp_path, planted(700)[1] + 2.0)
    sae = make(SAEConfig(variant="topk", latents=32, k=3), 24)
    sae.initialise(source.gather(np.arange(500)), torch.Generator().manual_seed(0))
    parts, whole = Sums.of(sae.requires_grad_(False), source), Sums(1, 24, 32)
    x = source.gather(np.arange(700))
    whole.add(x.double(), sae.reconstruct(x).double(), sae.encode(x))
    assert len(parts.tokens) == 70 and set(parts.tokens) == {10.0}
    for name, value in parts.fidelity().items():
        assert whole.fidelity()[name] == pytest.approx(value, rel=1e-9), name
    assert whole.bias() == pytest.approx(parts.bias(), rel=1e-9)


def test_evaluation_counts_dead_and_high_frequency_latents(empty_store: store.Store) -> None:
    found = metrics.evaluate(training.train(CONFIG, harvest_of(0), 0, SECTION, 0), harvest_of(1), 0, 50, 0).value
    assert found["fvu_interval"][0] < found["fvu"] < found["fvu_interval"][1]
    assert found["l0_interval"][0] < found["l0"] < found["l0_interval"][1]
    assert sum(found["histogram"]) == found["latents"] - found["dead"]
    high_bins = sum(n for n, left in zip(found["histogram"], metrics.BINS, strict=False) if left >= -1)
    assert high_bins == found["high"] <= found["frequent"]
    assert 0 <= found["high_share"] <= found["frequent_share"] <= 1


# ------------------------------------------------------------------------------------- defects known from elsewhere


def one_step(sae: JumpReLU | Gated | TopK, x: torch.Tensor, rate: float) -> dict[str, torch.Tensor]:
    named, _ = sae.losses(x, 1.0)
    torch.stack(list(named.values())).sum().backward()
    Adam(sae).step(rate)
    return named


@pytest.mark.parametrize("theta", [1e-3, 0.05])
def test_thresholds_move_by_the_learning_rate_whatever_their_size(theta: float) -> None:
    """Stored as its logarithm, a threshold of 0.001 would move a thousandth of that."""
    sae = jumprelu(coefficient=0.5).float()
    with torch.no_grad():
        sae.theta.fill_(theta)
    one_step(sae, unit_inputs().float(), 1e-4)
    moved = (sae.theta.detach() - theta).abs()
    assert float(moved.max()) == pytest.approx(1e-4, rel=1e-2)
    assert sae.theta.dtype == torch.float32, "in bfloat16 a step of 1e-4 would be rounded away"


def test_thresholds_stay_positive() -> None:
    sae = jumprelu(coefficient=0.0).float()
    with torch.no_grad():
        sae.theta.fill_(1e-5)
    for _ in range(3):
        one_step(sae, unit_inputs().float(), 1e-2)
        sae.constrain()
    assert float(sae.theta.detach().min()) > 0


def test_the_whole_kernel_counts() -> None:
    """A step applied to f instead of pi would miss latents just below their threshold, where f is 0."""
    theta = torch.tensor([0.5], requires_grad=True)
    for value, expected in ((0.45, -5.0), (0.55, -5.0), (0.35, 0.0), (0.65, 0.0)):
        (grad,) = torch.autograd.grad(StepFunction.apply(torch.tensor([[value]]), theta, EPS, False).sum(), theta)
        assert float(grad) == pytest.approx(expected)


def test_the_gate_does_not_train_the_decoder() -> None:
    sae = make(SAEConfig(variant="gated", latents=24, coefficient=0.1), 8)
    generator = torch.Generator().manual_seed(0)
    sae.initialise(torch.randn(200, 8, generator=generator), generator)
    named, _ = sae.losses(unit_inputs().float(), 1.0)
    for name in ("gate_reconstruction", "l1_penalty"):
        gradients = torch.autograd.grad(named[name], [sae.W_dec, sae.b_dec], allow_unused=True, retain_graph=True)
        assert gradients == (None, None), name
        (to_encoder,) = torch.autograd.grad(named[name], [sae.W_enc], retain_graph=True)
        assert to_encoder.abs().max() > 0


def test_gated_loss_against_its_formula() -> None:
    """Rajamanoharan 2024a, eq. 8, in float64."""
    sae = make(SAEConfig(variant="gated", latents=24, coefficient=0.3), 8).double()
    generator = torch.Generator().manual_seed(0)
    x = unit_inputs()
    sae.initialise(torch.randn(200, 8, generator=generator).double(), generator)
    with torch.no_grad():
        sae.r_mag.normal_(0, 0.3, generator=generator)  # type: ignore[operator]
        sae.b_mag.normal_(0, 0.3, generator=generator)  # type: ignore[operator]
    gate = x @ sae.W_enc + sae.b_enc
    f = (gate > 0) * (x @ (sae.W_enc * sae.r_mag.exp()) + sae.b_mag).relu()  # type: ignore[operator]
    named, fired = sae.losses(x, 1.0)
    torch.testing.assert_close(named["reconstruction"], (f @ sae.W_dec + sae.b_dec - x).square().sum(1).mean())
    torch.testing.assert_close(named["l1_penalty"], 0.3 * gate.relu().sum(1).mean())
    via = (gate.relu() @ sae.W_dec + sae.b_dec - x).square().sum(1).mean()
    torch.testing.assert_close(named["gate_reconstruction"], via)
    assert torch.equal(fired, (f > 0).sum(0).double())
    torch.testing.assert_close(sae.activate(gate), f)


def topk_with_dead_latents() -> tuple[TopK, torch.Tensor]:
    sae = make(SAEConfig(variant="topk", latents=24, k=3, k_aux=4, aux_coefficient=0.5, dead_tokens=10), 8).double()
    generator = torch.Generator().manual_seed(0)
    sae.initialise(torch.randn(200, 8, generator=generator).double() + 0.5, generator)
    sae.idle[5:15] = 10
    assert isinstance(sae, TopK)
    return sae, unit_inputs()


def test_auxk_against_its_formula_and_without_a_bias() -> None:
    """Gao 2024, A.2: the largest dead latents model the error; b_dec is no part of it, and the error gets no gradient."""
    sae, x = topk_with_dead_latents()
    named, _ = sae.losses(x, 1.0)
    pi = sae.preactivations(x)
    error = (x - sae.decode(sae.activate(pi))).detach()
    dead = torch.zeros_like(pi)
    for row in range(len(x)):
        for i in sorted(range(5, 15), key=lambda i, row=row: -float(pi[row, i].detach()))[:4]:
            dead[row, i] = pi[row, i].detach().relu()
    torch.testing.assert_close(named["auxk"], 0.5 * (dead @ sae.W_dec - error).square().sum(1).mean())
    to_bias, to_decoder = torch.autograd.grad(named["auxk"], [sae.b_dec, sae.W_dec], allow_unused=True)
    assert to_bias is None or not to_bias.any()
    assert set(to_decoder.abs().sum(1).nonzero().flatten().tolist()) <= set(range(5, 15))
    sae.idle.zero_()
    assert float(sae.losses(x, 1.0).named["auxk"]) == 0


def test_dead_latents_are_counted_in_tokens() -> None:
    sae, _ = topk_with_dead_latents()
    sae.idle.zero_()
    fired = torch.ones(24)
    fired[3] = 0
    for _ in range(2):
        sae.count(fired, 5)
    assert sae.dead.nonzero().flatten().tolist() == [3]
    sae.count(1 - fired, 5)
    assert int(sae.idle[3]) == 0 and int(sae.idle[0]) == 5


def test_matryoshka_loss_against_a_loop() -> None:
    """The mean over nested prefixes; each prefix is a reconstruction of its own, with b_dec."""
    for variant, extra in (("jumprelu", {"coefficient": 0.1}), ("topk", {"k": 5})):
        config = SAEConfig(variant=variant, latents=24, prefixes=(3, 10, 24), **extra)  # type: ignore[arg-type]
        sae, x = make(config, 8).double(), unit_inputs()
        generator = torch.Generator().manual_seed(0)
        sae.initialise(torch.randn(200, 8, generator=generator).double(), generator)
        f = sae.activate(sae.preactivations(x))
        losses = [(f[:, :m] @ sae.W_dec[:m] + sae.b_dec - x).square().sum(1).mean() for m in (3, 10, 24)]
        found = sae.losses(x, 1.0).named["reconstruction"]
        torch.testing.assert_close(found, torch.stack(losses).mean())
        for got, want in zip(
            torch.autograd.grad(found, [sae.W_dec, sae.b_dec], retain_graph=True),
            torch.autograd.grad(torch.stack(losses).mean(), [sae.W_dec, sae.b_dec]),
            strict=True,
        ):
            torch.testing.assert_close(got, want)


def test_batchtopk_threshold_gives_the_mean_l0(tmp_path: Path) -> None:
    source = write_shard(tmp_path, planted(4000)[1])
    sae = make(SAEConfig(variant="batchtopk", latents=64, k=3), 24)
    sae.initialise(source.gather(np.arange(1000)), torch.Generator().manual_seed(0))
    section = TrainingSection(steps=700, batch=400, learning_rate=2e-3)
    training.fit([training.Trainee(sae, section)], source, 0)
    x = source.gather(np.arange(2000))
    l0 = (sae.encode(x) > 0).sum(1).float()
    assert float(l0.mean()) == pytest.approx(3, rel=0.15)
    assert float(l0.std()) > 0.5, "tokens may differ in their number of active latents"


@pytest.mark.parametrize("variant", ["jumprelu", "gated"])
def test_a_low_start(variant: str) -> None:
    sae = make(SAEConfig(variant=variant, latents=400, initial_l0=10), 24)
    x = planted(4096)[1] + 0.5
    sae.initialise(x, torch.Generator().manual_seed(0))
    l0 = (sae.encode(x) > 0).sum(1).float().mean()
    assert float(l0) == pytest.approx(10, rel=0.05)


def test_bias_of_a_shrunken_reconstruction(tmp_path: Path) -> None:
    """Gamma is the factor that reconstructions are off by: E ||x^||^2 / E x^.x."""
    source = write_shard(tmp_path, planted(500, features=24)[1].relu())
    sae = make(SAEConfig(variant="topk", latents=25, k=25), 24)
    with torch.no_grad():
        sae.W_dec[:24] = torch.eye(24)
        sae.W_enc[:, :24] = 0.8 * torch.eye(24)
        sae.W_dec[24, 0], sae.b_enc[24] = 1.0, 0.3  # an error that does not follow x
    sums = Sums.of(sae.requires_grad_(False), source)
    x = source.gather(np.arange(500)).double()
    hat = sae.reconstruct(x.float()).double()
    grid = np.linspace(0.5, 1.5, 1001)
    best = grid[np.argmin([float((hat / g - x).square().sum()) for g in grid])]
    assert sums.bias() == pytest.approx(best, abs=1e-3)
    other = float((hat * x).sum() / x.square().sum())
    assert abs(best - other) > 0.01, "the regression the other way round is another number"


# -------------------------------------------------------------------------------------------------- loss recovered


@store.cached
def some_texts(out: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(rng.integers(3, 400, n).tolist(), int(rng.integers(1, 4)), n) for n in rng.integers(8, 30, 40)]
    Sequences.of(rows).save(out / "sequences.safetensors")


@store.cached
def fixed_sae(out: Path, kind: str) -> None:
    """An SAE whose reconstruction is the input ("copy") or zero."""
    sae = make(SAEConfig(variant="topk", latents=64, k=64), 32)
    eye = torch.eye(32) * (kind == "copy")
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], dim=1))
        sae.W_dec.copy_(torch.cat([torch.eye(32), -torch.eye(32)]))
    training.save(sae, [], out)


def test_cross_entropies_over_a_large_vocabulary_against_float64() -> None:
    """To the sixth digit, as differences between losses are in the fourth; over a middle axis it is 4e-6."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 40, 49_152, generator=generator)
    ids = torch.randint(0, 49_152, (2, 40), generator=generator)
    lm = SimpleNamespace(model=lambda input_ids: SimpleNamespace(logits=logits))
    where = torch.rand(2, 40, generator=generator) < 0.7
    found = metrics._cross_entropies(lm, ids, where)
    exact = torch.nn.functional.cross_entropy(
        logits[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(found.double(), (exact.view(2, 39) * where[:, :-1]).sum(1), rtol=1.5e-6, atol=0)


def test_loss_recovered_of_copy_and_zero(tiny: ModelSection, empty_store: store.Store) -> None:
    saes = {kind: fixed_sae(kind) for kind in ("copy", "zero")}
    harvested = harvest.harvest(some_texts(), model.pinned(tiny), (1,))
    found = metrics.loss_recovered(saes, some_texts(), harvested, model.pinned(tiny), 1, 300, 50, 0).value
    assert found["saes"]["copy"]["recovered"] == pytest.approx(1, abs=1e-4)
    assert found["saes"]["zero"]["recovered"] == pytest.approx(0, abs=1e-4)
    assert found["n"] >= 300
    assert found["clean"] != pytest.approx(found["zero"], abs=1e-3)

    lm, rows = model.load(model.pinned(tiny)), sequences.read(some_texts())
    everything = metrics.loss_recovered(saes, some_texts(), harvested, model.pinned(tiny), 1, 10**9, 20, 0).value
    total, count = 0.0, 0
    for i in range(len(rows)):
        ids = torch.from_numpy(rows[i].astype(np.int64))[None]
        with torch.inference_mode():
            log_probabilities = lm.model(input_ids=ids).logits[0].log_softmax(-1)
        for position in range(int(rows.keep_start[i]), min(int(rows.keep_stop[i]), ids.shape[1] - 1)):
            total -= float(log_probabilities[position, ids[0, position + 1]])
            count += 1
    assert everything["n"] == count
    assert everything["clean"] == pytest.approx(total / count, rel=1e-4)


def test_sinks_are_not_spliced(tiny: ModelSection) -> None:
    """A residual over the limit stays, whatever else is in its batch; every other one is replaced."""
    lm, ids = model.load(model.pinned(tiny)), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    (before,) = residuals(lm, ids, (1,)).values()
    where = torch.tensor([[False, True, True, True]] * 2)
    limit = float(before[where].norm(dim=1).sort().values[-2])  # the largest of the six is over it
    seen: list[torch.Tensor] = []
    read = lm.blocks[2].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode(), spliced(lm, 1, where, torch.zeros_like, limit):
        lm.model(input_ids=ids)
    read.remove()
    kept = (seen[0] != 0).any(-1)
    assert int(kept.sum()) == 2 + 1
    assert not kept[where & (before.norm(dim=-1) <= limit)].any()


def test_blocks_below_run_once_for_all_that_stand_in(
    tiny: ModelSection, empty_store: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bits as with each run whole; afterwards the model is as it was, also if something fails."""
    lm, ids = model.load(model.pinned(tiny)), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    where, ran = torch.tensor([[False, True, True, True]] * 2), list[int]()
    reads = [block.mlp.register_forward_hook(lambda *_, at=at: ran.append(at)) for at, block in enumerate(lm.blocks)]
    stand_ins = (lambda x: x, torch.zeros_like, lambda x: 2 * x, torch.zeros_like)

    def logits(replace: Any, held: list[Any] | None) -> torch.Tensor:
        with torch.inference_mode(), spliced(lm, 1, where, replace, np.inf, held):
            return lm.model(input_ids=ids).logits

    whole, held = [logits(replace, None) for replace in stand_ins], list[Any]()
    ran.clear()
    for replace, expected in zip(stand_ins, whole, strict=True):
        assert torch.equal(logits(replace, held), expected)
    above = range(2, len(lm.blocks))
    assert ran == [0, 1, *above] + 3 * [*above]
    with pytest.raises(ZeroDivisionError):
        logits(lambda x: x / 0 if 1 // 0 else x, held)
    assert not any("forward" in vars(block) for block in lm.blocks)
    assert torch.equal(logits(stand_ins[2], None), whole[2])
    monkeypatch.setattr(lm.model.config, "num_kv_shared_layers", 1, raising=False)  # as Gemma 4's, whose later blocks
    assert torch.equal(logits(stand_ins[0], again := []), whole[0])  # take keys and values of earlier ones
    assert again == []
    for read in reads:
        read.remove()


def test_loss_recovered_is_to_the_bit_what_it_was_with_every_block_run(
    tiny: ModelSection, empty_store: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    saes = {kind: fixed_sae(kind) for kind in ("copy", "zero")}
    given = (some_texts(), harvest.harvest(some_texts(), model.pinned(tiny), (1,)), model.pinned(tiny), 1, 300, 50, 0)
    shared = metrics.loss_recovered(saes, *given, name="shared").value
    monkeypatch.setattr(metrics, "spliced", lambda *how: before.spliced(*how[:-1]))
    assert metrics.loss_recovered(saes, *given, name="whole").value == shared


@pytest.mark.parametrize("variant", ["jumprelu", "topk", "gated", "batchtopk"])
@pytest.mark.parametrize("name", ["W_enc", "b_enc"])
def test_weights_that_are_not_numbers_are_reported(variant: str, name: str, tmp_path: Path) -> None:
    """They are never active, so the loss alone would not show them."""
    source = write_shard(tmp_path, planted(2000)[1])
    sae = make(SAEConfig(variant=variant, latents=32, k=3), 24)
    sae.initialise(source.gather(np.arange(1000)), torch.Generator().manual_seed(0))
    with torch.no_grad():
        getattr(sae, name)[..., 5] = float("nan")
    assert failure(sae, source).startswith(f"{variant}: the loss diverged at step 0")
