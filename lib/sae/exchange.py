"""SAEs in and out: SAELens folders (``cfg.json``, ``sae_weights.safetensors``) and Gemma Scope ``params.npz``.

Outside, an SAE takes the model's own residuals; :meth:`lib.sae.variants.SAE.rescale` goes there and back, exactly.
Decoder rows that are not of unit norm are brought there by moving the norm into the encoder.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lib import store
from lib.config import Expected
from lib.lm import activations
from lib.sae import training
from lib.sae.variants import SAE, SAEConfig, make

_SHARED = {"W_enc": "W_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
# SAELens' names and ours, by SAELens' architecture
NAMES: dict[str, dict[str, str]] = {
    "jumprelu": {**_SHARED, "b_enc": "b_enc", "threshold": "theta"},
    "gated": {**_SHARED, "b_gate": "b_enc", "b_mag": "b_mag", "r_mag": "r_mag"},
    "topk": {**_SHARED, "b_enc": "b_enc"},
}
SAELENS_VERSION = "6.54.12"  # the format written here; from 6.0.0 on it is read without legacy defaults


class ExchangeError(Expected, ValueError):
    """A file that cannot be taken over as an SAE: says which, why, and what would do."""


def export(trained: store.Artifact, folder: Path, model: str, layer: int, context: int) -> Path:
    """Write a :func:`lib.sae.training.train` artifact as a SAELens folder with a model card; returns the folder.

    ``model`` is the name under which others load the model, ``layer`` L the block whose output the SAE reads, ``context``
    the number of tokens of a training text. BatchTopK becomes a JumpReLU with one threshold, as in SAELens; a nested SAE
    becomes its whole dictionary.
    """
    sae = training.load(trained)
    scale, config = float(sae.scale), sae.config
    sae.rescale(1.0)
    tensors = sae.state_dict()
    architecture = "jumprelu" if config.variant == "batchtopk" else config.variant
    if architecture not in NAMES:
        raise ExchangeError(f"SAELens has no architecture for {config.variant!r}: add it to lib/sae/exchange.py")
    if config.variant == "batchtopk":
        tensors["theta"] = tensors["threshold"].clamp_min(0).expand(config.latents)
    cfg: dict[str, Any] = {
        "architecture": architecture,
        "d_in": sae.W_dec.shape[1],
        "d_sae": config.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "sae_lens_training_version": None,
            "model_name": model,
            "hook_name": f"blocks.{layer}.hook_resid_post",
            "context_size": context,
            "prepend_bos": False,
        },
    }
    if architecture == "topk":
        cfg |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {theirs: tensors[ours].contiguous() for theirs, ours in NAMES[architecture].items()}
    save_file(weights, folder / "sae_weights.safetensors")
    store.write_atomic(folder / "cfg.json", json.dumps(cfg, indent=1) + "\n")
    store.write_atomic(folder / "README.md", _card(trained, sae=config, cfg=cfg, layer=layer, scale=scale))
    return folder


def _card(trained: store.Artifact, **facts: Any) -> str:
    """A model card in Markdown, card.md: what the SAE reads, how it was trained, on what, and how to load it."""
    meta, log = (json.loads((trained.path / name).read_text(encoding="utf-8")) for name in ("meta.json", "log.json"))
    last = ", ".join(f"{name} {value:.4g}" for name, value in log[-1].items()) if log else "not trained here"
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return template.format(trained=trained, last=last, made_from=json.dumps(meta["config"], indent=1), **facts)


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Settings, as in SAELens' cfg.json, and tensors."""
    npz = path.suffix == ".npz"
    try:
        if not npz:
            cfg = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
            return cfg, load_file(path / "sae_weights.safetensors")
        with np.load(path, allow_pickle=False) as file:
            tensors = {name: torch.from_numpy(file[name]) for name in file.files}
        return {"architecture": "jumprelu", "apply_b_dec_to_input": False}, tensors
    except (OSError, ValueError, SafetensorError) as error:
        kind = "Gemma Scope params.npz" if npz else "SAELens folder, which has cfg.json and sae_weights.safetensors"
        raise ExchangeError(f"{path}: not a {kind} ({error})") from None


def read(path: Path) -> SAE:
    """An SAE of a SAELens folder or a Gemma Scope ``params.npz``, in the model's own units (scale 1).

    Raises:
        ExchangeError: it cannot be read, or does something that our architectures do not.
    """
    cfg, theirs = _contents(path)
    architecture = cfg.get("architecture")
    if architecture not in NAMES:
        raise ExchangeError(f"{path}: architecture {architecture!r} is not one of {', '.join(NAMES)}")
    for setting in ("normalize_activations", "reshape_activations"):
        if cfg.get(setting, "none") != "none":
            raise ExchangeError(f"{path}: {setting} {cfg[setting]!r} cannot be folded into weights; fold it first")
    names = NAMES[architecture]
    if missing := names.keys() - theirs.keys():
        raise ExchangeError(f"{path}: no {', '.join(sorted(missing))} among its tensors")
    tensors = {ours: theirs[name].float() for name, ours in names.items()}
    width, latents = tensors["b_dec"].numel(), tensors["b_enc"].numel()
    shapes = {"W_dec": (latents, width), "W_enc": (width, latents), "b_dec": (width,)}
    for name, tensor in tensors.items():
        if tensor.shape != (shape := shapes.get(name, (latents,))):
            by = f"by the lengths of b_dec, {width}, and b_enc, {latents}"
            raise ExchangeError(f"{path}: {name} has shape {tuple(tensor.shape)}, not {shape}, {by}")
        if not torch.isfinite(tensor).all():
            raise ExchangeError(f"{path}: {name} holds values that are not finite")
    if "theta" in tensors and tensors["theta"].min() < 0:
        raise ExchangeError(f"{path}: a threshold is negative, so latents would be too")
    if cfg.get("apply_b_dec_to_input", True):
        shift = tensors["b_dec"] @ tensors["W_enc"]  # encodes x - b_dec
        tensors["b_enc"] = tensors["b_enc"] - shift
        if "b_mag" in tensors:
            tensors["b_mag"] = tensors["b_mag"] - shift * tensors["r_mag"].exp()
    norm = tensors["W_dec"].norm(dim=1)
    if not norm.all():
        raise ExchangeError(f"{path}: {int((norm == 0).sum())} decoder rows are zero; leave these latents out")
    if (norm - 1).abs().max() > 1e-4:
        if architecture == "topk" and not cfg.get("rescale_acts_by_decoder_norm"):
            raise ExchangeError(f"{path}: TopK with decoder rows of other norms ranks latents differently once scaled")
        tensors["W_dec"] = tensors["W_dec"] / norm[:, None]
        tensors |= {name: tensors[name] * norm for name in ("W_enc", "b_enc", "theta", "b_mag") if name in tensors}
    config = SAEConfig(variant=architecture, latents=latents, k=int(cfg.get("k", 0)))
    sae = make(config, width)
    sae.load_state_dict({**sae.state_dict(), **tensors})
    return sae.eval().requires_grad_(False)


def _digest(path: Path) -> str:
    """Hash of the contents of a file, or of a folder's files."""
    files = [path] if path.is_file() else sorted(x for x in path.glob("*") if x.is_file()) if path.is_dir() else []
    if not files:
        raise ExchangeError(f"{path}: no such SAELens folder or params.npz")
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


@store.cached
def imported(out: Path, path: str, digest: str, harvested: store.Artifact, layer: int) -> None:
    """Step: an SAE from elsewhere, ready to finetune: scaled so that the mean squared norm of ``harvested`` is one."""
    if _digest(Path(path)) != digest:
        raise ExchangeError(f"{path} has changed since it was named: call bring again")
    sae, source = read(Path(path)), activations.read(harvested, layer)
    if source.width != sae.W_dec.shape[1]:
        raise ExchangeError(f"{path} is for width {sae.W_dec.shape[1]}; layer {layer} has width {source.width}")
    sae.rescale(float(training.sample(source, 0).double().square().sum(1).mean().sqrt()))
    training.save(sae, [], out)


def bring(path: Path, harvested: store.Artifact, layer: int) -> store.Artifact:
    """The :func:`imported` recipe of a folder or file, keyed by its content: a ``start`` to finetune from."""
    return imported(str(path), _digest(path), harvested, layer)
