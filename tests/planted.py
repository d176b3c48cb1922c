"""A labelled prompt set with a harvest and SAEs whose answers are known, for the tests of probes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from lib import store
from lib.probes import methods, tables
from lib.probes.changes import Change
from lib.probes.methods import Probe
from lib.probes.views import View
from lib.sae import training
from lib.sae.variants import SAEConfig, make
from lib.texts.examples import Example, Labels

POSITIONS, WIDTH = 3, 16


def examples(n: int = 600) -> list[Example]:
    """Half train, a quarter validation, a quarter OOD; labels alternate, two prompts a group. In distribution harmful prompts
    ask (a shortcut of style), OOD nobody does."""
    split = ["train"] * (n // 2) + ["val"] * (n // 4) + ["ood"] * (n // 4)
    return [
        Example(
            text=f"Prompt number {i}{' elsewhere' if s == 'ood' else '?' if i % 2 else ''}",
            label=i % 2,
            split=s,
            slice=("AdvBench" if i % 2 else "chat") if s == "ood" else ("HarmBench" if i % 2 else "chat"),
            transform="plain",
            base=str(i),
            group=i // 2,
        )
        for i, s in enumerate(split)
    ]


LABELS = Labels.of(examples())
TEXTS = [example.text for example in examples()]


@store.cached
def prompt_set(out: Path) -> None:
    (out / "examples.jsonl").write_text("\n".join(e.model_dump_json() for e in examples()))


@store.cached
def harvest(out: Path) -> None:
    """At position 1, coordinate 0 is causal in all splits; coordinate 1 is a stronger shortcut, in distribution only. Among
    each prompt's five other tokens, one at a random place is causal and says so in coordinate 2."""
    rng, labels = np.random.default_rng(0), Labels.of(examples())
    sign = 2 * labels.y - 1
    tail = rng.normal(size=(len(sign), POSITIONS, WIDTH))
    tail[:, 1, 0] += 1.0 * sign
    tail[:, 1, 1] += np.where(labels.split == "ood", 0, 6 * sign)
    tokens = rng.normal(size=(len(sign), 5, WIDTH))
    where = rng.integers(5, size=len(sign))
    tokens[np.arange(len(sign)), where, 0] = 4 * sign
    tokens[np.arange(len(sign)), where, 2] = 6
    every = torch.from_numpy(np.concatenate([tokens, tail], axis=1)).half()
    pools = torch.stack([every[:, :5].mean(1), every[:, :5].amax(1), every.mean(1), every.amax(1)], dim=1)
    save_file({"tail_0": torch.from_numpy(tail).half(), "pools_0": pools}, out / "summary.safetensors")
    n, length = every.shape[:2]
    columns = {"sequence": np.repeat(np.arange(n), length), "position": np.tile(np.arange(7, 7 + length), n)}
    order = rng.permutation(n * length)  # harvests are not in the order of the prompts
    x = every.reshape(-1, WIDTH)[torch.from_numpy(order)]
    tensors = {name: torch.from_numpy(values[order].astype(np.int32)) for name, values in columns.items()}
    tensors |= {"token": tensors["sequence"].clone(), "layer_0": x, "norm_0": x.float().norm(dim=1)}
    save_file({name: t.contiguous() for name, t in tensors.items()}, out / "shard_0000.safetensors")


@store.cached
def identity_sae(out: Path) -> None:
    """Latents that are the residual's own coordinates, each with either sign."""
    sae = make(SAEConfig(variant="jumprelu", latents=2 * WIDTH), WIDTH)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)], dim=1))
        sae.W_dec.copy_(sae.W_enc.T)
    training.save(sae, [], out)


@store.cached
def mute_sae(out: Path) -> None:
    """Latents that never fire."""
    sae = training.load(identity_sae())
    with torch.no_grad():
        sae.theta.fill_(1e6)
    training.save(sae, [], out)


@store.cached
def dense_sae(out: Path) -> None:
    """Latents that always fire."""
    sae = training.load(identity_sae())
    with torch.no_grad():
        sae.b_enc.fill_(1e3)
        sae.theta.fill_(1e-6)
    training.save(sae, [], out)


def fit(probe: Probe, *views: View, change: Change | None = None, draws: int = 2) -> store.Artifact:
    """Fits on the planted data, a view for each SAE seed."""
    return methods.fit(prompt_set(), harvest(), 0, probe, views, draws, change or Change())


def table(probe: store.Artifact, setting: str | None = None, **how: Any) -> dict:
    """The row of a probe."""
    return tables.table(prompt_set(), {"it": (probe, setting)}, **how).value["it"]
