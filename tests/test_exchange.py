"""SAEs in and out, against SAELens itself (run by the interpreter that `make test` prepares)."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from planted import LABELS, dense_sae, identity_sae, mute_sae, prompt_set
from planted import harvest as prompts
from safetensors.torch import load_file, save_file
from test_sae import harvest_of

from lib import config, store
from lib.config import ModelSection, TrainingSection
from lib.lm import activations, model
from lib.lm.model import Pinned
from lib.sae import controls, exchange, training
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


@pytest.fixture
def here(tmp_path: Path) -> Pinned:
    """A model's folder, of which the config alone is read: residuals of width 24."""
    transformers.LlamaConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2).save_pretrained(
        tmp_path / "small"
    )
    return model.pinned(ModelSection(name=str(tmp_path / "small")))


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
    if not PEERS.exists():
        pytest.skip("SAELens is not installed: make test does it")
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


@pytest.mark.parametrize("kind", ["training", "use"])
@pytest.mark.parametrize("by_norm", [False, True])
def test_batchtopk_of_saelens(kind: str, by_norm: bool, oracle: tuple[Path, dict[str, SAE], torch.Tensor]) -> None:
    """Kept in the middle of training or for use, with decoder rows of any norm."""
    folder, _, x = oracle
    theirs = load_file(folder / f"batchtopk_{by_norm}_out.safetensors")
    mine = exchange.read(folder / f"batchtopk_{by_norm}_{kind}")
    close = {"rtol": 1e-4, "atol": 1e-4 * float(theirs["reconstruction"].abs().max())}
    torch.testing.assert_close(mine.reconstruct(x), theirs["reconstruction"], **close)
    torch.testing.assert_close(mine.encode(x), theirs["latents"] * theirs["norm"], **close)
    assert 0.05 < float((theirs["latents"] > 0).float().mean()) < 0.95


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


def test_gemma_scope_import_is_exact(tmp_path: Path, empty_store: store.Store, here: Pinned) -> None:
    """Against the formula of their tutorial; then renormalised to unit inputs, which changes nothing outside."""
    w = gemma_scope(tmp_path / "params.npz")
    x = activations.read(harvest_of(0), 0).gather(np.arange(300))
    pi = x.numpy() @ w["W_enc"] + w["b_enc"]
    latents = pi * (pi > w["threshold"])
    sae = exchange.read(tmp_path / "params.npz")
    torch.testing.assert_close(sae.encode(x).numpy(), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.reconstruct(x).numpy(), latents @ w["W_dec"] + w["b_dec"], rtol=1e-4, atol=1e-3)

    to_train = SAEConfig(variant="jumprelu", latents=40, coefficient=1e-2)
    brought = training.load(exchange.bring(tmp_path / "params.npz", here, 0, harvest_of(0), any_place=True))
    assert float(brought.scale) > 1.5
    torch.testing.assert_close(brought.reconstruct(x), sae.reconstruct(x), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(brought.encode(x) * brought.scale, sae.encode(x), rtol=1e-4, atol=1e-4)
    assert brought.config == SAEConfig(variant="jumprelu", latents=40)

    start = exchange.bring(tmp_path / "params.npz", here, 0, harvest_of(0), any_place=True)
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


def test_bad_files_are_refused(tmp_path: Path, empty_store: store.Store, here: Pinned) -> None:
    def write(cfg: object, drop: str = "") -> None:
        sae = make(SAEConfig(variant="topk", latents=8, k=2), 4)
        torch.nn.init.normal_(sae.W_dec)
        tensors = {n: getattr(sae, m).detach().contiguous() for n, m in exchange.NAMES["topk"].items() if n != drop}
        save_file(tensors, tmp_path / "sae_weights.safetensors")
        (tmp_path / "cfg.json").write_text(json.dumps(cfg))

    with pytest.raises(exchange.ExchangeError, match="not a SAELens folder"):
        exchange.read(tmp_path)
    for cfg, message in (
        ({"architecture": "transcoder"}, "'transcoder' is not one of jumprelu, gated, topk, standard, batchtopk"),
        ({"architecture": "standard", "activation_fn": "tanh-relu"}, "activation_fn = 'tanh-relu' is not understood"),
        ({"architecture": "topk", "k": 2, "ignore_sign": True, "metadata": {}}, "ignore_sign = True is not understood"),
        ({"architecture": "standard", "hook_head_index": 3}, "hook_head_index = 3 is not understood"),
        ({"architecture": "topk", "k": None, "rescale_acts_by_decoder_norm": True}, "k = None of 8 latents"),
        ({"architecture": "topk", "k": "a", "rescale_acts_by_decoder_norm": True}, "k = 'a' of 8 latents"),
        ({"architecture": "standard", "metadata": ["x"]}, "holds no object"),
        ({"architecture": "topk", "k": 0, "rescale_acts_by_decoder_norm": True}, "k = 0 of 8 latents"),
        ({"architecture": "topk", "k": 9, "rescale_acts_by_decoder_norm": True}, "k = 9 of 8 latents"),
        ({"architecture": "standard", "finetuning_scaling_factor": True}, "no finetuning_scaling_factor among"),
        ([], "cfg.json, or a part of it, holds no object"),
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
    named = exchange.bring(tmp_path / "good.npz", here, 0, harvest_of(0), any_place=True)
    (tmp_path / "good.npz").write_bytes((tmp_path / "odd.npz").read_bytes())
    with pytest.raises(exchange.ExchangeError, match="has changed"):
        named.path
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    with pytest.raises(exchange.ExchangeError, match="not a Gemma Scope"):
        exchange.read(tmp_path / "bad.npz")
    with pytest.raises(exchange.ExchangeError, match="no such"):
        exchange.bring(tmp_path / "none", here, 0, harvest_of(0), any_place=True)
    gemma_scope(tmp_path / "wide.npz", width=5)
    wide = exchange.bring(tmp_path / "wide.npz", here, 0, harvest_of(0), any_place=True)
    with pytest.raises(exchange.ExchangeError, match="is for width 5"):
        wide.path


def folder_of(path: Path, cfg: dict[str, object], **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """A SAELens folder of 32 latents and width 24, with decoder rows of norms from 0.5 to 2."""
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(32, 24, generator=generator)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True) * torch.linspace(0.5, 2, 32)[:, None]
    biases = {"b_enc": torch.randn(32, generator=generator), "b_dec": torch.randn(24, generator=generator)}
    tensors = {"W_enc": W_dec.T.contiguous() * 0.8, "W_dec": W_dec, **biases, **more}
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "sae_weights.safetensors")
    place = {"model_name": "someone/small", "hook_name": "blocks.0.hook_resid_post"}
    new = {} if "hook_point" in cfg else {"metadata": place, "apply_b_dec_to_input": True}
    (path / "cfg.json").write_text(json.dumps(new | cfg))
    return tensors


@pytest.mark.parametrize("name", ["standard", "before 6.0", "jumprelu, scaled", "batchtopk", "batchtopk, by norm"])
def test_saes_as_others_publish_them(tmp_path: Path, name: str) -> None:
    """ReLU, finetuned and BatchTopK folders, by the formulas of SAELens: encode x - b_dec, activate, scale, decode."""
    x = torch.randn(60, 24, generator=torch.Generator().manual_seed(1))
    cfg: dict[str, object] = {"architecture": name.split(",")[0]}
    more: dict[str, torch.Tensor] = {}
    if name == "before 6.0":
        cfg = {"hook_point": "blocks.0.hook_resid_post", "activation_fn_str": "relu", "normalize_activations": False}
    if name.startswith("jumprelu"):
        more = {"threshold": torch.tensor(0.3), "finetuning_scaling_factor": torch.linspace(0.5, 1.5, 32)}
        cfg |= {"finetuning_scaling_factor": True}
    if name.startswith("batchtopk"):
        more, cfg = (
            {"topk_threshold": torch.tensor(0.4)},
            cfg | {"k": 4, "rescale_acts_by_decoder_norm": "norm" in name},
        )
    w = folder_of(tmp_path, cfg, **more)
    norm = w["W_dec"].norm(dim=1)
    pi = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * (norm if "norm" in name else 1)
    latents = pi * (pi > more.get("threshold", more.get("topk_threshold", torch.tensor(0.0))))
    scaled = latents * more.get("finetuning_scaling_factor", 1) / (norm if "norm" in name else 1)
    sae = exchange.read(str(tmp_path))
    torch.testing.assert_close(sae.reconstruct(x), scaled @ w["W_dec"] + w["b_dec"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.encode(x), scaled * norm, rtol=1e-4, atol=1e-4)
    assert 0.1 < float((latents > 0).float().mean()) < 0.9


def test_old_topk_folders_have_their_k_elsewhere(tmp_path: Path) -> None:
    for more in ({"activation_fn": "topk"}, {"activation_fn_str": "topk", "architecture": "standard"}):
        cfg = {"activation_fn_kwargs": {"k": 5}, "rescale_acts_by_decoder_norm": True, "hook_point": "x", **more}
        folder_of(tmp_path, cfg)
        sae = exchange.read(tmp_path)
        assert (sae.config.variant, sae.config.k) == ("topk", 5)


def test_what_is_not_understood_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, {"architecture": "jumprelu"}, threshold=torch.ones(32), W_skip=torch.ones(24, 24))
    with pytest.raises(exchange.ExchangeError, match=r"W_skip: tensors that are not understood"):
        exchange.read(tmp_path)
    scaled = {"architecture": "topk", "k": 3, "finetuning_scaling_factor": True, "rescale_acts_by_decoder_norm": True}
    folder_of(tmp_path, scaled, finetuning_scaling_factor=torch.linspace(0.5, 1.5, 32))
    with pytest.raises(exchange.ExchangeError, match="a finetuning_scaling_factor of TopK"):
        exchange.read(tmp_path)
    folder_of(tmp_path, {"architecture": "standard"}, scaling_factor=torch.ones(32))
    assert exchange.read(tmp_path)
    ones = torch.full((32,), 2.0)
    folder_of(tmp_path, {"architecture": "jumprelu"}, threshold=torch.ones(32), finetuning_scaling_factor=ones)
    with pytest.raises(exchange.ExchangeError, match="finetuning_scaling_factor: tensors that are not"):
        exchange.read(tmp_path)
    for name, maker in (("ae.pt", "dictionary_learning"), ("sae.safetensors", "sparsify")):
        (tmp_path / maker).mkdir()
        (tmp_path / maker / name).write_bytes(b"")
        with pytest.raises(exchange.ExchangeError, match=f"not a SAELens folder.*; {maker}'s are not read"):
            exchange.read(tmp_path / maker)


@pytest.mark.parametrize(("name", "size"), [("d_in", 48), ("d_sae", 100)])
def test_a_cfg_that_contradicts_its_weights_is_refused(
    tmp_path: Path, empty_store: store.Store, name: str, size: int
) -> None:
    folder = exchange.export(trained("jumprelu"), tmp_path / "out", "test/model", 0, 64)
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**cfg, name: size}))
    with pytest.raises(exchange.ExchangeError, match=rf"out: cfg.json says {name} = {size}, its tensors {cfg[name]}"):
        exchange.read(folder)


def test_an_sae_of_another_place_is_refused(tmp_path: Path, empty_store: store.Store, here: Pinned) -> None:
    """Of another block, hook or model, or one that does not say; unless it is said that it may be."""

    def says(hook: str, name: str = "someone/Small") -> Path:
        folder_of(tmp_path / "sae", {"architecture": "standard", "metadata": {"hook_name": hook, "model_name": name}})
        return tmp_path / "sae"

    for hook in ("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre", "model.layers.1"):
        assert exchange.bring(says(hook), here, 1).path.is_dir()
    for hook, name in (
        ("blocks.0.hook_resid_post", "someone/small"),
        ("blocks.1.hook_resid_pre", "someone/small"),
        ("blocks.1.hook_mlp_out", "someone/small"),
        ("blocks.1.hook_resid_post", "someone/large"),
    ):
        with pytest.raises(
            exchange.ExchangeError, match=f"says that it reads {name} at {hook}; here .*small is read after block 1"
        ):
            exchange.bring(says(hook, name), here, 1)
        assert exchange.bring(says(hook, name), here, 1, any_place=True).path.is_dir()
    place = {"hook_name": "blocks.1.hook_resid_post", "model_name": "someone/small"}
    place |= {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    folder_of(tmp_path / "sae", {"architecture": "standard", "metadata": place})
    with pytest.raises(exchange.ExchangeError, match="reads someone/small with centred weights at"):
        exchange.bring(tmp_path / "sae", here, 1)
    gemma_scope(tmp_path / "params.npz")
    with pytest.raises(exchange.ExchangeError, match=r"params\.npz does not say what it reads; here"):
        exchange.bring(tmp_path / "params.npz", here, 1)


def test_an_untrained_sae_is_as_large_and_as_sparse(empty_store: store.Store) -> None:
    """Its directions are random, so that it shows what an SAE of this size and sparsity keeps without having learnt."""
    sae, source = identity_sae(), activations.read(prompts(), 0)
    x = source.gather(np.flatnonzero(np.isin(source.column("sequence"), np.flatnonzero(LABELS.where("train")))))

    def untrained(like: store.Artifact, seed: int = 0) -> SAE:
        return training.load(controls.untrained(like, prompt_set(), prompts(), 0, seed))

    random = untrained(sae)
    active = [float((each.encode(x) > 0).sum(1).float().mean()) for each in (training.load(sae), random)]
    assert random.config.latents == training.load(sae).config.latents
    assert active[1] == pytest.approx(active[0], rel=0.1)
    assert not torch.equal(untrained(sae, 1).W_dec, random.W_dec)
    assert untrained(mute_sae()).config.k == 1, "of a dead SAE one with a latent"
    assert (untrained(dense_sae()).encode(x) > 0).float().mean() > 0.3, "of a dense one all that are above nought"


def test_exported_files_can_be_read_by_others(tmp_path: Path, empty_store: store.Store) -> None:
    """Modes follow the umask, as of any new file: a shared folder or an image must not hold files of one user alone."""
    mask = os.umask(0o022)
    try:
        folder = exchange.export(trained("topk"), str(tmp_path / "out"), "test/model", 0, 64)
        files = [*folder.iterdir(), *trained("topk").path.rglob("*")]
        assert {oct(path.stat().st_mode & 0o777) for path in files if path.is_file()} == {"0o644"}
    finally:
        os.umask(mask)
