"""Train an SAE on harvested activations, from scratch or from another SAE."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from lib import activations, artifacts
from lib.config import TrainingSection
from lib.sae.variants import SAE, SAEConfig, make

DIVERGED = 1e3  # reconstruction loss of unit inputs above which training has failed


class TrainingError(RuntimeError):
    """Training that went wrong: says at which step and what to change."""


def learning_rate(step: int, section: TrainingSection) -> float:
    """Linear warm-up, constant, linear decay to zero over the last ``decay`` of the steps."""
    warm, fall = section.warmup * section.steps, section.decay * section.steps
    rise = min(1.0, (step + 1) / warm) if warm else 1.0
    return section.learning_rate * rise * (min(1.0, (section.steps - step) / fall) if fall else 1.0)


def _row_batches(count: int, section: TrainingSection, rng: np.random.Generator) -> np.ndarray:
    """[steps, batch] row numbers: fresh permutations of all rows, end to end."""
    need = section.steps * section.batch
    passes = [rng.permutation(count) for _ in range(-(-need // count))]
    return np.concatenate(passes)[:need].reshape(section.steps, section.batch)


def fit(sae: SAE, source: activations.Activations, section: TrainingSection, seed: int) -> list[dict[str, float]]:
    """Train ``sae`` in place and return its log, one row every twentieth of the way.

    Adam, gradient norm clipped to 1, decoder rows kept at unit norm with the gradient along them removed. Every batch is
    ``section.batch`` tokens drawn without replacement until all have been seen.

    Raises:
        TrainingError: the loss is no longer finite, or has exploded.
    """
    rows = _row_batches(len(source), section, np.random.default_rng(seed))
    optimiser = torch.optim.Adam(sae.parameters(), lr=section.learning_rate, betas=(0.9, 0.999))
    every, log = max(1, section.steps // 20), []
    for step in tqdm(range(section.steps), desc=f"train {sae.name}", unit="step", disable=None):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, section)
        x = source.gather(rows[step]) / sae.scale
        sparsity = min(1.0, (step + 1) / max(1.0, section.sparsity_warmup * section.steps))
        named, active = sae.losses(x, sparsity)
        loss = torch.stack(list(named.values())).sum()
        if not torch.isfinite(loss.detach()) or named["reconstruction"].detach() > DIVERGED:
            raise TrainingError(f"the loss diverged at step {step}: lower training.learning_rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        sae.project_gradient()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        sae.constrain()
        if step % every == 0 or step == section.steps - 1:
            row = {name: float(value.detach()) for name, value in named.items()}
            log.append({"step": step, "l0": float(active.float().sum(1).mean()), **row})
    return log


@artifacts.cached
def train(
    out: Path,
    config: SAEConfig,
    harvested: artifacts.Artifact,
    layer: int,
    section: TrainingSection,
    seed: int,
    start: artifacts.Artifact | None = None,
) -> None:
    """Step: a trained SAE as ``sae.safetensors``, ``sae.json`` (config, width) and ``log.json``.

    ``start`` is an SAE to finetune: its weights and its input scale are taken over, the optimiser starts afresh.

    Raises:
        TrainingError: training diverged.
        ValueError: ``start`` has another width or number of latents.
    """
    source = activations.read(harvested, layer)
    sae = make(config, source.width)
    if start is None:
        sample = source.gather(np.random.default_rng(seed).choice(len(source), min(len(source), 16_384), replace=False))
        sae.initialise(sample, torch.Generator().manual_seed(seed))
    else:
        sae.load_state_dict(load_file(start.path / "sae.safetensors"))
    log = fit(sae, source, section, seed)
    save_file({name: tensor.contiguous() for name, tensor in sae.state_dict().items()}, out / "sae.safetensors")
    (out / "sae.json").write_text(json.dumps({"config": config.model_dump(), "width": source.width}), encoding="utf-8")
    (out / "log.json").write_text(json.dumps(log), encoding="utf-8")


def load(trained: artifacts.Artifact) -> SAE:
    """The SAE of a :func:`train` artifact, in eval mode, without gradients."""
    meta = json.loads((trained.path / "sae.json").read_text(encoding="utf-8"))
    sae = make(SAEConfig.model_validate(meta["config"]), meta["width"])
    sae.load_state_dict(load_file(trained.path / "sae.safetensors"))
    return sae.eval().requires_grad_(False)


@artifacts.result
def log(trained: artifacts.Artifact) -> list[dict[str, float]]:
    """Step: the training log, rows {step, l0, one entry per named loss}."""
    rows: list[dict[str, float]] = json.loads((trained.path / "log.json").read_text(encoding="utf-8"))
    return rows
