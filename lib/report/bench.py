"""``make bench``: our training step and harvest beside the peers', on the same activations, in one run.

Every contender runs in a process of its own, one after the other, with the same threads and the environment that its
users have. Our code asks the C library to keep the memory of large tensors (:func:`lib.matmul.keep_memory`), which spares
page faults; at one width SAELens' steps are timed with that too. All trainers start from the same weights, of an SAE we have
trained for a while to the L0 aimed at, see the same batches, and end with weights whose loss on held-out tokens is measured
here: after the steps that are timed and, at one width, after as many tokens as the report's SAEs are trained on. The tables go
to ``data/bench.json`` and to the site.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lib import activations, config, store, study
from lib.config import TrainingSection
from lib.lm import contexts
from lib.lm import model as models
from lib.matmul import product
from lib.report.notebooks import ReportError
from lib.sae.adam import BETAS, EPSILON, MAX_NORM, Adam
from lib.sae.latents import Dense, Sparse
from lib.sae.training import Trainee, row_batches
from lib.sae.variants import SAE, Gated, Losses, SAEConfig, make

LAYER = 18
TOKENS = 170_000  # harvested; the last HELD_OUT measure the loss
HELD_OUT = 16_384
BATCH = 4096
L0 = 40
WIDTHS = {2304: 8, 4608: 24, 16_384: 4}  # latents, and steps of each contender
CONTROL_WIDTH = 4608
LOGGED = 1000  # as in a run of so many steps, of which every fiftieth is logged and looked at closely
WARM_UP = 2  # steps that are not timed: compilers and allocators settle
HEAD_START = 40  # steps that we train before all contenders start
TRAINERS = ("ours", "ours, dense", "saelens", "dictionary_learning")
TUNED = "memory kept as by ours"
ALLOCATOR = {  # what lib.matmul.keep_memory asks for, as an environment
    "MALLOC_MMAP_THRESHOLD_": "2147483647",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_TOP_PAD_": "268435456",
}
MENDED = "gate's loss kept from the decoder"  # in SAELens it trains the decoder too; a control for the loss reached
# Ours by rules of SAELens' gated SAE, which the paper does not have; the second applies to other variants too.
LEAKING = "gate's loss reaching the decoder"
FREE = "decoder norms free"  # and the L1 penalty weighted with them
BOTH = f"{LEAKING}, {FREE}"
CONTROLS = {  # by variant, at the middle width
    "jumprelu": (f"saelens, {TUNED}",),
    "topk": (f"saelens, {TUNED}",),
    "gated": (f"saelens, {TUNED}", f"saelens, {MENDED}"),
}
_REPORT = config.PROFILES["report"].training
LONG = _REPORT.steps * _REPORT.batch // BATCH  # steps that take as many tokens as an SAE of the report
LOSSES: dict[
    str, dict[str, str]
] = {  # whose loss is measured after so many too, at the middle width: ours by its rules
    "jumprelu": {"ours": "", "saelens": f"ours, {FREE}", f"ours, {FREE}": ""},
    "topk": {"ours": "", "saelens": ""},
    "gated": {
        "ours": "",
        "saelens": f"ours, {BOTH}",
        f"saelens, {MENDED}": f"ours, {FREE}",
        f"ours, {LEAKING}": "",
        f"ours, {FREE}": "",
        f"ours, {BOTH}": "",
    },
}
# Rules that change what the loss means are compared at equal L0 too: these penalties, times the usual one, for so many steps.
AT_EQUAL_L0: dict[str, tuple[str, ...]] = {"gated": ("ours", f"ours, {LEAKING}", f"ours, {BOTH}")}
PENALTIES = (0.4, 0.6, 1.0)
BY_LENGTH = "batches of like lengths"
HARVESTERS = (
    "ours",
    "transformer_lens",
    "transformer_bridge",
    "transformers",
    f"transformers, {TUNED}",
    f"transformers, {TUNED}, {BY_LENGTH}",
)
ROUNDS = 5  # of our harvest, with the limit measured between them
LIMIT_SECONDS = 30.0  # of work of one harvester on one set of texts
VARIANTS: dict[str, dict[str, Any]] = {
    "jumprelu": {"coefficient": 1.8e-3, "initial_l0": L0},
    "topk": {"k": L0},
    "gated": {"coefficient": 0.17, "initial_l0": L0},
}
PEERS = config.ROOT / ".venv" / "peers" / "bin" / "python"


def _weights(sae: SAE) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous().clone() for name, p in sae.named_parameters()}


def _sae(variant: str, start: dict[str, torch.Tensor], penalty: float = 1.0) -> SAE:
    """An SAE on unit inputs with the given weights; ``penalty`` times the usual coefficient."""
    width, latents = start["W_enc"].shape
    usual = SAEConfig(variant=variant, latents=latents, **VARIANTS[variant])
    sae = make(usual.model_copy(update={"coefficient": penalty * usual.coefficient}), width)
    sae.load_state_dict({**sae.state_dict(), **start})
    return sae


class _Leaking(Gated):
    """A gated SAE whose gate's own reconstruction trains the decoder too."""

    def reconstruction(
        self, z: Dense | Sparse, f: torch.Tensor, x: torch.Tensor, detached: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().reconstruction(z, f, x, detached=False)


class _FreeNorms(Gated):
    """A gated SAE whose L1 penalty weighs each latent with its decoder row's norm, for rows that are left free."""

    def losses(self, x: torch.Tensor, sparsity: float) -> Losses:
        found = super().losses(x, sparsity)
        gate = self.preactivations(x).relu()
        l1 = (gate @ self.W_dec.norm(dim=1)).mean()
        return found._replace(named={**found.named, "l1_penalty": sparsity * self.config.coefficient * l1})


class _LeakingFreeNorms(_Leaking, _FreeNorms):
    """Both."""


RULES: dict[str, type[Gated]] = {LEAKING: _Leaking, FREE: _FreeNorms, BOTH: _LeakingFreeNorms}


class _PlainAdam(Adam):
    """Clipping and torch's Adam, one after the other: decoder rows are free."""

    def __init__(self, sae: SAE) -> None:
        super().__init__(sae)
        self.plain = torch.optim.Adam(sae.parameters(), betas=BETAS, eps=EPSILON)

    def step(self, rate: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), MAX_NORM)
        for group in self.plain.param_groups:
            group["lr"] = rate
        self.plain.step()
        self.plain.zero_grad()


def _folded(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same SAE with decoder rows of norm 1. (A TopK SAE would choose by what its latents add, as SAELens' does.)"""
    norm = weights["W_dec"].norm(dim=1)
    grown: dict[str, torch.Tensor] = {
        name: weights[name] * norm for name in ("W_enc", "b_enc", "theta", "b_mag") if name in weights
    }
    return {**weights, **grown, "W_dec": weights["W_dec"] / norm[:, None]}


# ---------------------------------------------------------------------------------------------- one contender's run


def _memory() -> int:
    """Peak resident bytes of this process; on Linux not counting what its parent had."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(x.split()[1]) * 1024 for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Our steps, timed one by one, as ``peers.py`` times others; and the encoder product alone."""
    x, sae = load_file(job["x"])["x"], _sae(job["variant"], load_file(job["start"]), job.get("penalty", 1.0))
    sae.sparse = job["peer"] != "ours, dense"
    section = TrainingSection(
        steps=max(job["steps"], LOGGED),
        batch=job["batch"],
        learning_rate=job["learning_rate"],
        warmup=0,
        decay=0,
        sparsity_warmup=0,
    )
    rule = job["peer"].partition(", ")[2]
    if rule not in {"", "dense", FREE, *(RULES if isinstance(sae, Gated) else ())}:
        raise ValueError(f"no rule {rule!r} for {job['variant']}")
    if isinstance(sae, Gated) and rule in RULES:
        usual, sae = sae, RULES[rule](sae.config, x.shape[1])
        sae.load_state_dict(usual.state_dict())
    trainee, seconds, encoder = Trainee(sae, section), [], []
    if rule in (FREE, BOTH):
        trainee.adam = _PlainAdam(sae)
    for i in range(job["steps"]):
        batch = x[torch.arange(i * job["batch"], (i + 1) * job["batch"]) % len(x)]
        begun = time.perf_counter()
        product(batch, sae.W_enc.detach(), sae.b_enc.detach())
        between = time.perf_counter()
        trainee.advance(batch)
        seconds.append(time.perf_counter() - between)
        encoder.append(between - begun)
    save_file(_folded(_weights(sae)), job["weights"])
    return {"seconds": seconds, "encoder": encoder, "peak_bytes": _memory()}


def harvest(job: dict[str, Any]) -> dict[str, Any]:
    """Our harvest, timed as ``peers.py`` times others, and the model's matrix products alone on as many tokens."""
    tokens = load_file(job["tokens"])
    ids, offsets = tokens["ids"].numpy().astype(np.int32), tokens["offsets"].numpy()
    lengths = np.diff(offsets).astype(np.int32)
    rows = contexts.Sequences(ids, offsets, np.ones_like(lengths), lengths)
    lm = models.load(config.ModelSection(name=job["model"]))
    first = list(range(min(16, len(rows))))  # a whole batch, as the peers warm up
    list(activations.run_group(lm, activations.Group(0, first), rows, (job["layer"],)))
    length = round(np.average(lengths, weights=lengths))  # of the text that a token is in
    limits, seconds = [_products_only(lm, job["layer"], length)], []
    for _ in range(ROUNDS):
        count, begun = 0, time.perf_counter()
        for group in activations.group_by_prefix(rows):
            for index, _, kept in activations.run_group(lm, group, rows, (job["layer"],)):
                kept[job["layer"]].to(torch.float16)
                count += int(lengths[index])
        seconds.append(time.perf_counter() - begun)
        limits.append(_products_only(lm, job["layer"], length))
    # A round's limit is that before and after it, as the machine's speed drifts.
    shares = [count / s / statistics.mean(pair) for s, pair in zip(seconds, pairwise(limits), strict=True)]
    measured = {"tokens": count, "seconds": statistics.median(seconds), "peak_bytes": _memory()}
    return measured | {"limit_tokens_per_second": statistics.median(limits), "shares": shares}


@torch.inference_mode()
def _products_only(lm: models.LM, layer: int, length: int) -> float:
    """Tokens a second if blocks 0 to ``layer`` were their matrix products alone, for texts of ``length`` tokens.

    These are the linear layers and the two products of attention; of those a causal model needs half.
    """
    linear = [m for block in lm.blocks[: layer + 1] for m in block.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {m.in_features: torch.randn(activations.BATCH_TOKENS, m.in_features) for m in linear}
    config_ = lm.model.config.get_text_config()
    texts, heads = max(1, activations.BATCH_TOKENS // length), config_.num_attention_heads
    q = torch.randn(texts * heads, length, getattr(config_, "head_dim", None) or lm.width // heads)
    share = activations.BATCH_TOKENS / (texts * length) / 2  # of whole batches, causal
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        for m in linear:
            m(inputs[m.in_features])
        between = time.perf_counter()
        for _ in range(layer + 1):
            torch.bmm(torch.bmm(q, q.mT), q)
        times.append(between - begun + (time.perf_counter() - between) * share)
    return activations.BATCH_TOKENS / statistics.median(times)


# -------------------------------------------------------------------------------------------------- all contenders


def _run(command: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a contender measured, in a process of its own."""
    ours, tuned = job["peer"].startswith("ours"), TUNED in job["peer"]
    path = folder / "job.json"
    out = folder / "out.json"
    out.unlink(missing_ok=True)
    path.write_text(json.dumps({**job, "out": str(out)}), encoding="utf-8")
    program = (
        [sys.executable, "-m", "lib.report.bench"] if ours else [str(PEERS), str(Path(__file__).with_name("peers.py"))]
    )
    environment = {**os.environ, **(ALLOCATOR if tuned else {}), "TQDM_DISABLE": "1"}
    done = subprocess.run([*program, command, path], capture_output=True, text=True, check=False, env=environment)
    if done.returncode or not out.is_file():
        raise ReportError(f"bench: {job['peer']} failed at {command}: {done.stderr.strip()[-2000:]}")
    return json.loads(out.read_text(encoding="utf-8"))


def _held_out(variant: str, weights: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, float]:
    """FVU, L0 and the training loss (without warm-ups) of weights on unit inputs."""
    sae = _sae(variant, weights)
    sae.sparse = False
    sums: dict[str, float] = {"loss": 0.0, "l0": 0.0, "error": 0.0}
    with torch.no_grad():
        for part in x.split(BATCH):
            named, fired = sae.losses(part, 1.0)
            named.pop("auxk", None)
            for name, value in (
                ("loss", sum(float(v) for v in named.values())),
                ("l0", float(fired.sum()) / len(part)),
            ):
                sums[name] += value * len(part) / len(x)
            sums["error"] += float(named["reconstruction"]) * len(part)
    variance = float((x - x.mean(0)).square().sum())
    return {"loss": sums["loss"], "l0": sums["l0"], "fvu": sums["error"] / variance}


def _head_start(variant: str, latents: int, x: torch.Tensor) -> SAE:
    """An SAE trained for a while; JumpReLU is steered to the L0 aimed at."""
    fields = dict(VARIANTS[variant])
    if variant == "jumprelu":
        fields |= {"penalty": "target_l0", "target_l0": float(L0), "coefficient": 0.2}
    sae = make(SAEConfig(variant=variant, latents=latents, **fields), x.shape[1])
    sae.initialise(x[:16_384], torch.Generator().manual_seed(0))
    sae.rescale(1.0)  # inputs are of unit mean square already
    trainee = Trainee(
        sae, TrainingSection(steps=HEAD_START, batch=BATCH, sparsity_warmup=0, decay=0, learning_rate=1e-3)
    )
    for row in row_batches(len(x), HEAD_START, BATCH, seed=0):
        trainee.advance(x[torch.from_numpy(row)])
    return sae


def _training(folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    s = study.open_study("report", {"layer": LAYER, "corpora.train_tokens": TOKENS, "corpora.rollout_tokens": 0})
    say(f"activations of layer {LAYER}")
    source = activations.read(s.activations_of("chat", "train"), LAYER)
    x = source.gather(np.random.default_rng(0).permutation(len(source)))
    x /= x.double().square().sum(1).mean().sqrt().float()
    held, x = x[-HELD_OUT:], x[:-HELD_OUT]
    save_file({"x": x}, folder / "x.safetensors")
    found = []
    for latents, steps in WIDTHS.items():
        for variant, fields in VARIANTS.items():
            say(f"{variant}, {latents:,} latents")
            save_file(_weights(_head_start(variant, latents, x)), folder / "start.safetensors")
            by_trainer: dict[str, Any] = {}
            short: dict[str, dict[str, float]] = {}  # what each has reached after the timed steps
            job = {
                "variant": variant,
                "x": str(folder / "x.safetensors"),
                "start": str(folder / "start.safetensors"),
                "weights": str(folder / "end.safetensors"),
                "batch": BATCH,
                "learning_rate": 1e-3,
                "bandwidth": 0.02,
                "k": L0,
                "coefficient": fields.get("coefficient", 0.0),
            }

            def end(
                peer: str, count: int, penalty: float = 1.0, job: dict[str, Any] = job
            ) -> tuple[dict[str, Any], dict[str, float]]:
                """What a contender measured in so many steps, and what its SAE is like then."""
                own = {**job, "peer": peer, "mended": peer.endswith(MENDED), "steps": count, "penalty": penalty}
                measured = _run("train", own, folder)
                return measured, _held_out(job["variant"], load_file(folder / "end.safetensors"), held)

            for peer in (*TRAINERS, *(CONTROLS[variant] if latents == CONTROL_WIDTH else ())):
                measured, short[peer] = end(peer, steps)
                timed = measured["seconds"][min(WARM_UP, steps - 1) :]
                by_trainer[peer] = {
                    "version": measured.get("version"),
                    "step_seconds": statistics.median(timed),
                    "step_range": [min(timed), max(timed)],
                    "tokens_per_second": BATCH / statistics.median(timed),
                    "peak_gib": measured["peak_bytes"] / 2**30,
                    **short[peer],
                }
                if peer == "ours":
                    encoder = statistics.median(measured["encoder"][min(WARM_UP, steps - 1) :])
            start = _held_out(variant, load_file(folder / "start.safetensors"), held)
            row = {"latents": latents, "variant": variant, "steps": steps, "encoder_seconds": encoder, "start": start}
            found.append({**row, "trainers": by_trainer})
            say("   " + "; ".join(f"{n} {1e3 * t['step_seconds']:.0f} ms" for n, t in by_trainer.items()))
            if latents == CONTROL_WIDTH:
                found[-1]["losses"] = losses = {}
                for peer in LOSSES[variant]:
                    early = short[peer] if peer in short else end(peer, steps)[1]
                    losses[peer] = {str(BATCH * steps): early, str(BATCH * LONG): end(peer, LONG)[1]}
                    say("   " + f"{peer}: loss " + ", ".join(f"{t['loss']:.4f}" for t in losses[peer].values()))
                by_penalty: dict[str, list[dict[str, float]]] = {}
                for peer in AT_EQUAL_L0.get(variant, ()):
                    usual = losses[peer][str(BATCH * LONG)]
                    by_penalty[peer] = [
                        {"penalty": p, **(usual if p == 1 else end(peer, LONG, p)[1])} for p in PENALTIES
                    ]
                    say(
                        "   "
                        + f"{peer}: L0, FVU "
                        + "; ".join(f"{t['l0']:.1f}, {t['fvu']:.4f}" for t in by_penalty[peer])
                    )
                found[-1]["by_penalty"] = by_penalty
    return found


def _texts() -> dict[str, list[np.ndarray]]:
    """Token sequences to harvest: long texts, and labelled prompts in their templates, in a random order."""
    s = study.open_study("report")
    rng, found = np.random.default_rng(0), {}
    recipes: Iterable[tuple[str, store.Artifact, int]] = (
        ("long texts", s.contexts_of("pretraining", "eval"), 120),
        ("probe set", contexts.labelled(s.prompts, s.profile.model, "all"), 1200),
    )
    for name, recipe, count in recipes:
        rows = contexts.read(recipe)
        found[name] = [rows[i] for i in rng.permutation(len(rows))[:count]]
    return found


def _harvesting(folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    found = []
    for name, texts in _texts().items():
        offsets = np.concatenate([[0], np.cumsum([len(t) for t in texts])])
        ids = torch.from_numpy(np.concatenate(texts).astype(np.int64))
        save_file({"ids": ids, "offsets": torch.from_numpy(offsets)}, folder / "tokens.safetensors")
        row: dict[str, Any] = {"texts": name, "count": len(texts), "tokens": len(ids), "harvesters": {}}
        for peer in HARVESTERS:
            say(f"harvest of {name} by {peer}")
            job = {
                "peer": peer,
                "model": models.folder(config.ModelSection()),
                "tokens": str(folder / "tokens.safetensors"),
                "layer": LAYER,
                "batch": 16,
                "limit_s": LIMIT_SECONDS,
                "by_length": BY_LENGTH in peer,
            }
            measured = _run("harvest", job, folder)
            row["harvesters"][peer] = {
                "version": measured.get("version"),
                "tokens": measured["tokens"],
                "tokens_per_second": measured["tokens"] / measured["seconds"],
                "peak_gib": measured["peak_bytes"] / 2**30,
            }
            if peer == "ours":
                row |= {key: measured[key] for key in ("limit_tokens_per_second", "shares")}
        found.append(row)
    return found


def _machine() -> dict[str, str]:
    """The processor and software, no names or paths of a machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "processor": name or platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
    }


CONDITIONS = {
    "training": f"Contenders run in the environment of their users. Our code has the C library keep the memory of large tensors; at "
    f"{CONTROL_WIDTH:,} latents SAELens is timed with that too, and its gated SAE also with the gate's own reconstruction kept from the decoder. "
    "Losses of a gated SAE depend on that; they are set side by side below.",
    "loss": "The loss of a gated SAE holds the gate's own reconstruction. In SAELens that trains the decoder as well, which lowers it; by "
    "the paper (eq. 8) and here it does not. SAELens also leaves the norms of decoder rows free and weighs the L1 penalty with them; in the "
    "paper and here they are 1. So SAELens is also run with the decoder kept from the gate's loss, and ours with "
    "either of SAELens' rules and with both. A TopK SAE's loss leaves AuxK out; ours runs it for latents that have not fired for "
    f"{SAEConfig.model_fields['dead_tokens'].default:,} tokens (reached by timed steps only at {CONTROL_WIDTH:,} latents), SAELens, by its "
    "default, for none in so few steps.",
    "limit": f"these blocks' matrix products alone, linear layers and attention, measured before and after each of {ROUNDS} rounds of ours; "
    "its share is their median, with their range. Ours runs a beginning that prompts share once, and counts its tokens in each: so its share "
    "may be above 100 % on the probe set",
    "harvest": "Ours keeps the memory of large tensors here too, and transformers is timed both ways. Peers get 16 texts a batch, in a random "
    "order as a data set has them, so of the probe set's short and long prompts many tokens are padding; ours puts like lengths together. "
    f"A last row gives transformers that as well. Ours runs all texts {ROUNDS} times, a peer those of {LIMIT_SECONDS:.0f} s or the rest of a batch.",
}


def _label(name: str, measured: dict[str, Any]) -> str:
    peer, *how = name.split(", ", 1)
    return ", ".join([f"{peer} {measured['version']}" if measured["version"] else peer, *how])


def _losses(record: dict[str, Any]) -> list[str]:
    """Lines: what contenders reach after equal tokens."""
    rows = [row for row in record["training"] if "losses" in row]
    if not rows:
        return []
    lines = [
        "",
        f"**Loss after equal tokens**: those of these steps, and {BATCH * LONG:,}, the number that an SAE of the report is trained "
        f"on (there in one pass, here in {BATCH * LONG / (TOKENS - HELD_OUT):.1f}); from the same start, at a constant learning rate, "
        f"held-out as above. {record['conditions']['loss']}",
        "",
        "| latents | variant | tokens | trainer | loss | ours against it | ours by its rules against it | L0 | FVU |",
        "| ---: | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        reached = row["losses"]
        for tokens in reached["ours"]:
            for name, by_tokens in reached.items():
                t = by_tokens[tokens]
                label = _label(name, row["trainers"].get(name, {"version": None}))
                against = ("", "") if name.startswith("ours") else ("ours", LOSSES[row["variant"]][name])
                gaps = " | ".join(f"{reached[n][tokens]['loss'] / t['loss'] - 1:+.1%}" if n else "" for n in against)
                lines.append(
                    f"| {row['latents']:,} | {row['variant']} | {int(tokens):,} | {label} | {t['loss']:.4f} | {gaps} | {t['l0']:.1f} | "
                    f"{t['fvu']:.4f} |"
                )
    return lines


def _at_l0(points: list[dict[str, float]], l0: float) -> float:
    """FVU at an L0 between those of trained SAEs, linear in log L0."""
    by_l0 = sorted((math.log(t["l0"]), t["fvu"]) for t in points)
    return float(np.interp(math.log(l0), [x for x, _ in by_l0], [y for _, y in by_l0]))


def _equal_l0(record: dict[str, Any]) -> list[str]:
    """Lines: FVU of SAEs by rules that change what the loss means, at an L0 in the middle of those that all of them reach."""
    lines = []
    for row in record["training"]:
        by_rule = row.get("by_penalty", {})
        if not by_rule:
            continue
        alive = {name: [t for t in points if t["l0"] > 0] for name, points in by_rule.items()}
        low = max(min((t["l0"] for t in points), default=math.inf) for points in alive.values())
        high = min(max((t["l0"] for t in points), default=0.0) for points in alive.values())
        l0 = math.sqrt(low * high) if low <= high else None
        lines += [
            "",
            f"**{row['variant'].capitalize()} SAEs at equal L0**, {row['latents']:,} latents, {BATCH * LONG:,} tokens: each set of rules with "
            f"the penalty times {', '.join(f'{p:g}' for p in PENALTIES)}"
            + (f", and between these SAEs at L0 = {l0:.0f}, linear in log L0." if l0 else "; no L0 is reached by all.")
            + f" Whether “ours, {BOTH}” may stand for SAELens, the losses above say. Above 0 %: ours leaves more unexplained.",
            "",
            "| trainer | penalty | L0 | FVU | ours against it |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for name, points in by_rule.items():
            lines += [f"| {name} | {t['penalty']:g} | {t['l0']:.1f} | {t['fvu']:.4f} |  |" for t in points]
            if l0:
                ours, own = (_at_l0(alive[n], l0) for n in ("ours", name))
                lines.append(f"| {name} | between | {l0:.1f} | {own:.4f} | {ours / own - 1:+.1%} |")
    return lines


def table(record: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    lines = [
        f"Measured on {record['machine']['cores']} cores ({record['machine']['processor']}), "
        f"{record['machine']['threads']} threads, torch {record['machine']['torch']}, in one run; each contender in a process "
        f"of its own. Ratios are comparable, times are those of this machine.",
        "",
        f"**Training.** Batches of {BATCH:,} residuals of layer {LAYER} (width 576), float32. All trainers start from the same "
        f"weights, aimed at L0 = {L0}, and see the same batches. Loss is that of our objective on {HELD_OUT:,} held-out tokens "
        f"after {', '.join(f'{n} steps at {m:,} latents' for m, n in WIDTHS.items())}; the time is the median of all but the first {WARM_UP}; "
        f"dictionary_learning trains JumpReLU on another penalty, so its loss there is not comparable. "
        f"{record['conditions']['training']}",
        "",
        "| latents | variant | trainer | ms per step | tokens/s | × encoder product | ours is faster by | held-out loss | L0 | FVU | peak GiB |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in record["training"]:
        ours = row["trainers"]["ours"]["step_seconds"]
        for name, t in row["trainers"].items():
            label = _label(name, t)
            lines.append(
                f"| {row['latents']:,} | {row['variant']} | {label} | {1e3 * t['step_seconds']:.0f} | {t['tokens_per_second']:,.0f} | "
                f"{t['step_seconds'] / row['encoder_seconds']:.2f} | {t['step_seconds'] / ours:.1f} | {t['loss']:.4f} | {t['l0']:.1f} | "
                f"{t['fvu']:.4f} | {t['peak_gib']:.2f} |"
            )
    lines += _losses(record) + _equal_l0(record)
    lines += [
        "",
        f"**Harvest** of the residual stream after block {LAYER}, SmolLM2-135M-Instruct, float32. The limit is the time of "
        f"{record['conditions']['limit']}. transformers runs the whole model with all hidden states. "
        f"{record['conditions'].get('harvest', '')}",
        "",
        "| texts | harvester | tokens timed | tokens/s | ours is faster by | share of the limit | peak GiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in record["harvest"]:
        ours = row["harvesters"]["ours"]["tokens_per_second"]
        for name, h in row["harvesters"].items():
            label = _label(name, h)
            share = f"{h['tokens_per_second'] / row['limit_tokens_per_second']:.0%}"
            if name == "ours" and "shares" in row:
                share = f"{statistics.median(row['shares']):.0%} ({min(row['shares']):.0%} to {max(row['shares']):.0%})"
            lines.append(
                f"| {row['texts']} ({row['count']:,}, {row['tokens']:,} tokens) | {label} | {h['tokens']:,} | "
                f"{h['tokens_per_second']:,.0f} | {ours / h['tokens_per_second']:.1f} | {share} | {h['peak_gib']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def path() -> Path:
    """Where the committed measurements are."""
    return config.ROOT / "data" / "bench.json"


def run() -> str:
    """Measure everything, write ``data/bench.json``, return the table.

    Raises:
        ReportError: a contender failed; nothing is written then.
    """
    if not PEERS.exists():
        raise ReportError("the peers are not installed: run make bench, which installs them")
    folder = config.build_dir() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{(time.monotonic() - begun) / 60:4.1f} min] {text}", flush=True)

    try:
        record = {
            "machine": _machine(),
            "conditions": CONDITIONS,
            "harvest": _harvesting(folder, say),
            "training": _training(folder, say),
        }
    finally:
        for left in folder.glob("*.safetensors"):
            left.unlink()
    store.write_atomic(path(), json.dumps(store.plain(record), indent=1) + "\n")
    return table(record)


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    result = {"train": train, "harvest": harvest}[sys.argv[1]](task)
    Path(task["out"]).write_text(json.dumps(result), encoding="utf-8")
