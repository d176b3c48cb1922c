"""SAEs in and out: SAELens folders (``cfg.json``, ``sae_weights.safetensors``) and Gemma Scope ``params.npz``.

Outside, an SAE takes the model's own residuals; :meth:`lib.sae.variants.SAE.rescale` goes there and back, exactly. Decoder rows
that are not of unit norm are brought there by moving the norm into the encoder.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lib import store
from lib.config import Expected
from lib.lm import activations, model
from lib.lm.model import Pinned
from lib.sae import training
from lib.sae.variants import SAE, SAEConfig, make
from lib.wheels import file_hash

_FORMAT = yaml.safe_load(Path(__file__).with_name("exchange.yaml").read_text(encoding="utf-8"))
NAMES: dict[str, dict[str, str]] = _FORMAT["names"]  # SAELens' names and ours, by SAELens' architecture
_INNER = ("metadata", "activation_fn_kwargs")  # settings that hold others
_HOOK = re.compile(r"(?:blocks|model\.layers|transformer\.h)\.(\d+)(?:\.hook_resid_(pre|post))?")
PACKAGED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what others call the packaged model


class ExchangeError(Expected, ValueError):
    """A file that cannot be taken over as an SAE: says which, why, and what would do."""


def export(trained: store.Artifact, folder: Path | str, name: str, layer: int, context: int) -> Path:
    """Write a :func:`lib.sae.training.train` artifact as a SAELens folder with a model card; returns the folder.

    ``name`` is that under which others load the model, ``layer`` L the block whose output the SAE reads, ``context`` the number of tokens of
    a training text. BatchTopK becomes a JumpReLU with one threshold, as in SAELens; a nested SAE becomes its whole dictionary.
    """
    sae, folder = training.load(trained), Path(folder)
    scale, config = float(sae.scale), sae.config
    sae.rescale(1.0)
    tensors = sae.state_dict()
    architecture = "jumprelu" if config.variant == "batchtopk" else config.variant
    if architecture not in NAMES:
        raise ExchangeError(f"SAELens has no architecture for {config.variant!r}: add it to lib/sae/exchange.yaml")
    if config.variant == "batchtopk":
        tensors["theta"] = tensors["threshold"].clamp_min(0).expand(config.latents)
    sizes = {"architecture": architecture, "d_in": sae.W_dec.shape[1], "d_sae": config.latents}
    reads = {"model_name": name, "hook_name": f"blocks.{layer}.hook_resid_post", "context_size": context}
    cfg: dict[str, Any] = sizes | _FORMAT["written"] | {"metadata": _FORMAT["metadata"] | reads}
    if architecture == "topk":
        cfg |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {theirs: tensors[ours].contiguous() for theirs, ours in NAMES[architecture].items()}
    save_file(weights, file := folder / "sae_weights.safetensors")
    store.by_umask(file)
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
    path = path / "params.npz" if (path / "params.npz").is_file() else path
    npz = path.suffix == ".npz"
    try:
        if not npz:
            cfg = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
            if not isinstance(cfg, dict) or not all(isinstance(cfg.get(name) or {}, dict) for name in _INNER):
                raise ValueError("cfg.json, or a part of it, holds no object")
            return cfg, load_file(path / "sae_weights.safetensors")
        with np.load(path, allow_pickle=False) as file:
            tensors = {name: torch.from_numpy(file[name]) for name in file.files}
        return {"architecture": "jumprelu", "apply_b_dec_to_input": False}, tensors
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        kind = "Gemma Scope params.npz" if npz else "SAELens folder, which has cfg.json and sae_weights.safetensors"
        others = {"ae.pt": "dictionary_learning", "sae.safetensors": "sparsify"}
        other = next((f"; {maker}'s are not read" for name, maker in others.items() if (path / name).is_file()), "")
        raise ExchangeError(f"{path}: not a {kind} ({error}){other}") from None


def _understood(path: Path, cfg: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Our names by theirs, of an architecture all of whose settings and tensors are understood."""
    readable = NAMES | _FORMAT["read"]
    names = dict(readable.get(str(cfg["architecture"]), {}))
    if not names:
        raise ExchangeError(f"{path}: architecture {cfg['architecture']!r} is not one of {', '.join(readable)}")
    for name, value in cfg.items():
        plain = _FORMAT["plain"]
        known = name in _FORMAT["known"] or ("metadata" not in cfg and name not in plain)
        if not known and value not in plain.get(name, ()):
            raise ExchangeError(f"{path}: {name} = {value!r} is not understood; fold it into the weights first")
    if cfg.get("finetuning_scaling_factor"):
        names["finetuning_scaling_factor"] = "factor"
    if missing := names.keys() - tensors.keys():
        raise ExchangeError(f"{path}: no {', '.join(sorted(missing))} among its tensors")
    ones = {name for name, tensor in tensors.items() if "scaling_factor" in name and (tensor == 1).all()}
    if more := tensors.keys() - names.keys() - ones:
        raise ExchangeError(f"{path}: {', '.join(sorted(more))}: tensors that are not understood")
    return names


def read(path: Path | str) -> SAE:
    """An SAE of a SAELens folder or a Gemma Scope ``params.npz``, in the model's own units (scale 1); ExchangeError if it cannot
    be read, or has or does something that our architectures do not."""
    path = Path(path)
    cfg, theirs = _contents(path)
    cfg |= {"architecture": cfg.get("architecture") or "standard"}
    if "topk" in (cfg.get("activation_fn"), cfg.get("activation_fn_str")):  # of before 6.0, where it is no architecture
        cfg |= {"architecture": "topk", "k": cfg.get("k") or (cfg.get("activation_fn_kwargs") or {}).get("k")}
    architecture, names = cfg["architecture"], _understood(path, cfg, theirs)
    tensors = {ours: theirs[name].float() for name, ours in names.items()}
    width, latents = tensors["b_dec"].numel(), tensors["b_enc"].numel()
    if architecture == "standard":
        tensors["theta"] = torch.zeros(latents)
    if "theta" in tensors and tensors["theta"].numel() == 1:
        tensors["theta"] = tensors["theta"].expand(latents)
    for name, size in (("d_in", width), ("d_sae", latents)):
        if cfg.get(name, size) != size:
            raise ExchangeError(f"{path}: cfg.json says {name} = {cfg[name]}, its tensors {size}")
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
    by_norm = bool(cfg.get("rescale_acts_by_decoder_norm"))
    if (norm - 1).abs().max() > 1e-4:
        if architecture == "topk" and not by_norm:
            raise ExchangeError(f"{path}: TopK with decoder rows of other norms ranks latents differently once scaled")
        if architecture == "batchtopk" and by_norm:
            tensors["theta"] = tensors["theta"] / norm  # which is of latents once they are scaled
        tensors["W_dec"] = tensors["W_dec"] / norm[:, None]
        tensors |= {name: tensors[name] * norm for name in ("W_enc", "b_enc", "theta", "b_mag") if name in tensors}
    if (factor := tensors.pop("factor", None)) is not None:  # of latents, before they are decoded
        if architecture == "topk" or not (factor > 0).all():
            raise ExchangeError(f"{path}: a finetuning_scaling_factor of TopK, or not above 0, cannot be folded in")
        tensors |= {name: tensors[name] * factor for name in ("W_enc", "b_enc", "theta", "b_mag") if name in tensors}
    variant = "jumprelu" if "theta" in tensors else architecture
    k = cfg.get("k") if architecture == "topk" else 0
    if architecture == "topk" and not (isinstance(k, int) and 1 <= k <= latents):
        raise ExchangeError(f"{path}: k = {k!r} of {latents} latents")
    sae = make(SAEConfig(variant=variant, latents=latents, k=k), width)
    sae.load_state_dict({**sae.state_dict(), **tensors})
    return sae.eval().requires_grad_(False)


def _place(path: Path) -> tuple[str, str, bool]:
    """(model, hook, whether weights that write to the residual stream were centred), as an SAE says."""
    cfg = _contents(path)[0]
    given = cfg | (cfg.get("metadata") or {})
    centred = (given.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights")
    return str(given.get("model_name")), str(given.get("hook_name") or given.get("hook_point")), bool(centred)


def says(path: Path | str) -> str:
    """What an SAE's folder or file says that it reads."""
    trained_on, hook, centred = _place(Path(path).expanduser())
    if "None" in (trained_on, hook):
        return f"{path} does not say what it reads"
    return f"{path} says that it reads {trained_on}{' with centred weights' * centred} at {hook}"


def _refuse_elsewhere(path: Path, lm: Pinned, layer: int) -> None:
    """ExchangeError unless an SAE says that it reads this model after block ``layer``."""
    trained_on, hook, centred = _place(path)
    found = _HOOK.fullmatch(hook)
    block = int(found[1]) - (found[2] == "pre") if found else None
    names = {PACKAGED_NAME if lm.section.name == "packaged" else lm.section.name, Path(model.folder(lm)).name}
    known = {name.rsplit("/")[-1].lower() for name in names}
    if block != layer or trained_on.rsplit("/")[-1].lower() not in known or centred:
        raise ExchangeError(
            f"{says(path)}; here {lm.section.name} is read after block {layer}: "
            "choose layer and model.name, or say that it may be of any place (--any-place, any_place=True)"
        )


def _digest(path: Path) -> str:
    """Hash of the contents of a file, or of a folder's files."""
    files = [path] if path.is_file() else sorted(x for x in path.glob("*") if x.is_file()) if path.is_dir() else []
    if not files:
        raise ExchangeError(f"{path}: no such SAELens folder or params.npz")
    return store.digest([_FORMAT, {file.name: file_hash(file) for file in files}])


@store.cached
def imported(out: Path, path: str, digest: str, lm: Pinned, layer: int, harvested: store.Artifact | None) -> None:
    """Step: an SAE from elsewhere; ready to finetune where ``harvested`` is given, whose mean squared norm it is scaled to be one."""
    if _digest(Path(path)) != digest:
        raise ExchangeError(f"{path} has changed since it was named: call bring again")
    sae, width = read(Path(path)), model.settings(lm).hidden_size
    if sae.W_dec.shape[1] != width:
        raise ExchangeError(f"{path} is for width {sae.W_dec.shape[1]}; the model's residual stream has width {width}")
    if harvested is not None:
        sample = training.sample(activations.read(harvested, layer), 0)
        sae.rescale(float(sample.double().square().sum(1).mean().sqrt()))
    training.save(sae, [], out)


def bring(
    path: Path | str, lm: Pinned, layer: int, harvested: store.Artifact | None = None, any_place: bool = False
) -> store.Artifact:
    """The :func:`imported` recipe of a folder or file, keyed by its content: to probe with or, with activations to be scaled to,
    a ``start`` to finetune from. ExchangeError if it is not of this model and block, or does not say so, unless ``any_place``."""
    path = Path(path).expanduser().resolve()
    found = _digest(path)
    if not any_place:
        _refuse_elsewhere(path, lm, layer)
    return imported(str(path), found, lm, layer, harvested)
