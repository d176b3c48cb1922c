"""SAEs in and out, against SAELens itself (run by the interpreter that `make test` prepares)."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_sae import harvest_of

from lib import config, store
from lib.config import TrainingSection
from lib.lm import activations
from lib.sae import exchange, training
from lib.sae.variants import SAE, SAEConfig, make

PEERS = config.ROOT / ".venv" / "peers" / "bin" / "python"
M = 48
CONFIGS = {
    "jumprelu": SAEConfig(variant="jumprelu", latents=M, coefficient=0.01, theta=0.05, bandwidth=0.1),
    "jumprelu_all": SAEConfig(
        variant="jumprelu", latents=M, coefficient=0.01, theta=0.05, bandwidth=0.1, sparsity_reaches="all"
    ),
    "gated": SAEConfig(variant="gated", latents=M, coefficient=0.02, initial_l0=8),
    "topk": SAEConfig(variant="topk", latents=M, k=4, k_aux=3, aux_coefficient=0.25, dead_tokens=1000),
    "topk_alive": SAEConfig(variant="topk", latents=M, k=4, aux_coefficient=0.0),
    "batchtopk": SAEConfig(variant="batchtopk", latents=M, k=4),
}
DEAD = 9  # latents of the TopK SAE that count as dead


def trained(name: str) -> store.Artifact:
    section = TrainingSection(latents=M, steps=40, batch=128, learning_rate=3e-3)
    return training.train(CONFIGS[name], harvest_of(0), 0, section, seed=1)


def ours(sae: SAE, unit: torch.Tensor) -> dict[str, torch.Tensor]:
    """Losses and gradients, as the SAE was trained, under SAELens' names."""
    sae.requires_grad_(True)
    sae.sparse = False
    if sae.config.variant == "topk" and sae.config.aux_coefficient:
        sae.idle.zero_()
        sae.idle[:DEAD] = 10_000
    named, _ = sae.losses(unit, 1.0)
    torch.stack(list(named.values())).sum().backward()
    names = exchange.NAMES[sae.config.variant]
    return {f"loss.{key}": value.detach().reshape(1) for key, value in named.items()} | {
        f"grad.{theirs}": dict(sae.named_parameters())[mine].grad for theirs, mine in names.items()
    }


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SAE], torch.Tensor]:
    """Every SAE exported, and what SAELens made of it."""
    base = tmp_path_factory.mktemp("oracle")
    store.use(store.Store("report", base / "cache", base / "results", None))
    folder = base / "exports"
    x = activations.read(harvest_of(0), 0).gather(np.arange(500))
    saes, jobs = {}, {}
    for name in CONFIGS:
        exchange.export(trained(name), folder / name, "test/model", 0, 64)
        saes[name] = training.load(trained(name))
        saes[name].config = CONFIGS[name]  # what is stored does not say how it was trained
        jobs[name] = {"variant": CONFIGS[name].variant}
        if name != "batchtopk":
            names = exchange.NAMES[CONFIGS[name].variant]
            tensors = {theirs: saes[name].state_dict()[mine].contiguous() for theirs, mine in names.items()}
            save_file(tensors, folder / f"{name}_unit.safetensors")
    c = CONFIGS["jumprelu"]
    step = {"jumprelu_bandwidth": c.bandwidth, "l0_coefficient": c.coefficient}
    jobs["jumprelu"] |= {"settings": step, "coefficients": {"l0": c.coefficient}}
    jobs["jumprelu_all"] |= {"settings": {**step, "jumprelu_ste_to_input": True}, "coefficients": {"l0": c.coefficient}}
    jobs["gated"] |= {"settings": {}, "coefficients": {"l1": CONFIGS["gated"].coefficient}}
    settings = {"k": 4, "rescale_acts_by_decoder_norm": False, "aux_loss_coefficient": 1.0}
    jobs["topk"] |= {"settings": settings, "coefficients": {}, "dead": [i < DEAD for i in range(M)]}
    jobs["topk_alive"] |= {"settings": settings, "coefficients": {}, "dead": [False] * M}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    save_file({"x": x, "unit": x / saes["jumprelu"].scale}, folder / "x.safetensors")
    script = Path(__file__).with_name("saelens_oracle.py")
    done = subprocess.run([PEERS, script, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, saes, x


@pytest.mark.parametrize("name", CONFIGS)
def test_saelens_encodes_and_decodes_as_we_do(name: str, oracle: tuple[Path, dict[str, SAE], torch.Tensor]) -> None:
    folder, saes, x = oracle
    theirs, sae = load_file(folder / f"{name}_out.safetensors"), saes[name]
    latents = sae.encode(x) * sae.scale  # theirs are in the model's units
    torch.testing.assert_close(theirs["latents"], latents, rtol=1e-5, atol=1e-5 * float(latents.max()))
    torch.testing.assert_close(theirs["reconstruction"], sae.reconstruct(x), rtol=1e-5, atol=1e-4)
    assert (latents > 0).any(1).float().mean() > 0.3


@pytest.mark.parametrize("name", ["jumprelu", "topk", "topk_alive"])
def test_losses_and_gradients_are_those_of_saelens(
    name: str, oracle: tuple[Path, dict[str, SAE], torch.Tensor]
) -> None:
    folder, saes, x = oracle
    theirs = load_file(folder / f"{name}_out.safetensors")
    mine = ours(saes[name], x / saes[name].scale)
    pairs = {"loss.reconstruction": "loss.mse_loss", "loss.l0_penalty": "loss.l0_loss"}
    for key, value in mine.items():
        if key in pairs or key.startswith("grad."):
            other = theirs[pairs.get(key, key)]
            if name == "topk" and key.startswith("grad."):
                continue  # AuxK differs by design: theirs lets dead latents be negative and k_aux follow d / 2
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_the_switch_that_lets_sparsity_reach_the_encoder(oracle: tuple[Path, dict[str, SAE], torch.Tensor]) -> None:
    """SAELens' switch also passes the reconstruction's straight-through term; ours passes the sparsity term alone."""
    folder, saes, x = oracle
    theirs, sae = load_file(folder / "jumprelu_all_out.safetensors"), saes["jumprelu_all"]
    mine = ours(sae, x / sae.scale)
    torch.testing.assert_close(mine["grad.threshold"], theirs["grad.threshold"], rtol=1e-4, atol=1e-6)
    plain = ours(saes["jumprelu"], x / sae.scale)["grad.W_enc"]
    assert not torch.allclose(mine["grad.W_enc"], plain)
    named, _ = sae.losses(x / sae.scale, 1.0)
    to_bias, to_theta = torch.autograd.grad(named["l0_penalty"], [sae.b_enc, sae.theta])
    torch.testing.assert_close(to_bias, -to_theta)


def test_gated_loss_is_that_of_saelens_but_for_its_leak(
    oracle: tuple[Path, dict[str, SAE], torch.Tensor],
) -> None:
    """The gate's own reconstruction must not train the decoder; SAELens 6.54's does."""
    folder, saes, x = oracle
    theirs, mine = load_file(folder / "gated_out.safetensors"), ours(saes["gated"], x / saes["gated"].scale)
    names = {
        "reconstruction": "mse_loss",
        "l1_penalty": "l1_loss",
        "gate_reconstruction": "auxiliary_reconstruction_loss",
    }
    for one, other in names.items():
        torch.testing.assert_close(mine[f"loss.{one}"], theirs[f"loss.{other}"], rtol=1e-4, atol=1e-6)
    for name in ("W_enc", "b_gate", "b_mag", "r_mag"):
        other = theirs[f"grad.{name}"]
        torch.testing.assert_close(mine[f"grad.{name}"], other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    assert not torch.allclose(mine["grad.W_dec"], theirs["grad.W_dec"], rtol=1e-2)


@pytest.mark.parametrize("name", ["jumprelu", "gated", "topk"])
def test_what_saelens_saves_comes_back(name: str, oracle: tuple[Path, dict[str, SAE], torch.Tensor]) -> None:
    folder, saes, x = oracle
    back, sae = exchange.read(folder / f"{name}_back"), saes[name]
    torch.testing.assert_close(back.encode(x), sae.encode(x) * sae.scale, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(back.reconstruct(x), sae.reconstruct(x), rtol=1e-5, atol=1e-4)


def test_export_has_a_card_with_provenance(tmp_path: Path, empty_store: store.Store) -> None:
    folder = exchange.export(trained("jumprelu"), tmp_path / "jumprelu", "test/{model}", 0, 64)
    text = (folder / "README.md").read_text()
    assert trained("jumprelu").key in text
    assert '"coefficient": 0.01' in text and '"penalty": {\n' in text
    assert "# Sparse autoencoder (jumprelu, 48 latents)" in text
    assert "after block 0 of `test/{model}`\n(`blocks.0.hook_resid_post`, width 24)" in text
    x = activations.read(harvest_of(0), 0).gather(np.arange(2000)).double()
    scale = re.search(r"residuals divided by ([\d.]+), so that their mean squared norm is one", text)
    assert scale and float((x / float(scale[1])).square().sum(1).mean()) == pytest.approx(1, rel=0.02)
    assert re.search(r"Last training batch: step 39, l0 [\d.]+, dead \d+, reconstruction", text)
    cfg = json.loads((folder / "cfg.json").read_text())
    assert cfg["apply_b_dec_to_input"] is False and cfg["normalize_activations"] == "none"


def gemma_scope(path: Path, width: int = 24, latents: int = 40) -> dict[str, np.ndarray]:
    """A params.npz in Gemma Scope's format."""
    rng = np.random.default_rng(0)
    W_dec = rng.standard_normal((latents, width)).astype(np.float32)
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    tensors = {
        "W_enc": W_dec.T * np.float32(0.9),
        "W_dec": W_dec,
        "b_enc": rng.standard_normal(latents).astype(np.float32),
        "b_dec": rng.standard_normal(width).astype(np.float32),
        "threshold": rng.uniform(0.5, 1.5, latents).astype(np.float32),
    }
    np.savez(path, **tensors)
    return tensors


def test_gemma_scope_import_is_exact(tmp_path: Path, empty_store: store.Store) -> None:
    """Against the formula of their tutorial; then renormalised to unit inputs, which changes nothing outside."""
    w = gemma_scope(tmp_path / "params.npz")
    x = activations.read(harvest_of(0), 0).gather(np.arange(300))
    pi = x.numpy() @ w["W_enc"] + w["b_enc"]
    latents = pi * (pi > w["threshold"])
    sae = exchange.read(tmp_path / "params.npz")
    torch.testing.assert_close(sae.encode(x).numpy(), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.reconstruct(x).numpy(), latents @ w["W_dec"] + w["b_dec"], rtol=1e-4, atol=1e-3)

    to_train = SAEConfig(variant="jumprelu", latents=40, coefficient=1e-2)
    brought = training.load(exchange.bring(tmp_path / "params.npz", harvest_of(0), 0))
    assert float(brought.scale) > 1.5
    torch.testing.assert_close(brought.reconstruct(x), sae.reconstruct(x), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(brought.encode(x) * brought.scale, sae.encode(x), rtol=1e-4, atol=1e-4)
    assert brought.config == SAEConfig(variant="jumprelu", latents=40)

    start = exchange.bring(tmp_path / "params.npz", harvest_of(0), 0)
    section = TrainingSection(latents=40, steps=5, batch=64)
    tuned = training.load(training.train(to_train, harvest_of(0), 0, section, 0, start))
    assert float(tuned.scale) == float(brought.scale)
    assert not torch.equal(tuned.W_dec, brought.W_dec)


def test_b_dec_on_the_input_and_other_decoder_norms_are_folded(tmp_path: Path) -> None:
    gemma_scope(tmp_path / "params.npz")
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    plain = exchange.read(tmp_path / "params.npz")
    tensors = {theirs: getattr(plain, mine).detach().clone() for theirs, mine in exchange.NAMES["jumprelu"].items()}
    tensors["b_enc"] += tensors["b_dec"] @ tensors["W_enc"]  # so that subtracting b_dec gives the same
    for name, factor in (("W_enc", 0.5), ("b_enc", 0.5), ("threshold", 0.5), ("W_dec", 2.0)):
        tensors[name] *= factor
    cfg = {"architecture": "jumprelu", "apply_b_dec_to_input": True}
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    sae = exchange.read(tmp_path)
    torch.testing.assert_close(sae.reconstruct(x), plain.reconstruct(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))


def test_bad_files_are_refused(tmp_path: Path, empty_store: store.Store) -> None:
    def write(cfg: dict[str, object], drop: str = "") -> None:
        sae = make(SAEConfig(variant="topk", latents=8, k=2), 4)
        torch.nn.init.normal_(sae.W_dec)
        tensors = {n: getattr(sae, m).detach().contiguous() for n, m in exchange.NAMES["topk"].items() if n != drop}
        save_file(tensors, tmp_path / "sae_weights.safetensors")
        (tmp_path / "cfg.json").write_text(json.dumps(cfg))

    with pytest.raises(exchange.ExchangeError, match="not a SAELens folder"):
        exchange.read(tmp_path)
    for cfg, message in (
        ({"architecture": "standard"}, "'standard' is not one of"),
        ({"architecture": "topk", "k": 2, "normalize_activations": "layer_norm"}, "layer_norm"),
        ({"architecture": "topk", "k": 2}, "ranks latents differently"),
    ):
        write(cfg)
        with pytest.raises(exchange.ExchangeError, match=message):
            exchange.read(tmp_path)
    write({"architecture": "topk", "k": 2}, drop="b_enc")
    with pytest.raises(exchange.ExchangeError, match="no b_enc"):
        exchange.read(tmp_path)
    for change, message in (
        ({"W_dec": np.zeros((40, 24), np.float32)}, "40 decoder rows are zero"),
        ({"threshold": np.full(40, -1, np.float32)}, "a threshold is negative"),
        ({"threshold": np.ones(3, np.float32)}, r"theta has shape \(3,\)"),
        ({"b_enc": np.full(40, np.nan, np.float32)}, "b_enc holds values that are not finite"),
    ):
        np.savez(tmp_path / "odd.npz", **{**gemma_scope(tmp_path / "good.npz"), **change})
        with pytest.raises(exchange.ExchangeError, match=message):
            exchange.read(tmp_path / "odd.npz")
    named = exchange.bring(tmp_path / "good.npz", harvest_of(0), 0)
    (tmp_path / "good.npz").write_bytes((tmp_path / "odd.npz").read_bytes())
    with pytest.raises(exchange.ExchangeError, match="has changed"):
        named.path
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    with pytest.raises(exchange.ExchangeError, match="not a Gemma Scope"):
        exchange.read(tmp_path / "bad.npz")
    with pytest.raises(exchange.ExchangeError, match="no such"):
        exchange.bring(tmp_path / "none", harvest_of(0), 0)
    gemma_scope(tmp_path / "wide.npz", width=5)
    wide = exchange.bring(tmp_path / "wide.npz", harvest_of(0), 0)
    with pytest.raises(exchange.ExchangeError, match="is for width 5"):
        wide.path
