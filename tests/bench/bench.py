"""``make bench``: our training step and harvest beside the peers', on the same activations, in one run.

Every contender runs in a process of its own, one after the other, with the same threads and the environment that its
users have. Our code asks the C library to keep the memory of large tensors (:func:`lib.cpu.keep_memory`), which spares
page faults; at one width SAELens' steps are timed with that too. All trainers start from the same weights, of an SAE we have
trained for a while to the L0 aimed at, see the same batches, and end with weights whose loss on held-out tokens is measured
here: after the steps that are timed and, at one width, after 614,400 tokens. Measurements
go to ``data/bench.json``, their page (from ``page.md``) to ``data/bench.md``.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lib import config, store, study
from lib.config import ROOT, Expected, TrainingSection
from lib.cpu import product
from lib.lm import activations
from lib.lm import harvest as harvests
from lib.lm import model as models
from lib.lm import sequences as texts
from lib.sae.training import Trainee, row_batches
from lib.sae.variants import SAE, SAEConfig, make
from lib.store.artifacts import plain
from tests.bench import gated
from tests.bench.gated import MENDED
from tests.bench.peers import memory
from tests.bench.penalty import TargetL0

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
ALLOCATOR = {  # what lib.cpu.keep_memory asks for, as an environment
    "MALLOC_MMAP_THRESHOLD_": "2147483647",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_TOP_PAD_": "268435456",
}
CONTROLS = {  # by variant, at the middle width
    "jumprelu": (f"saelens, {TUNED}",),
    "topk": (f"saelens, {TUNED}",),
    "gated": (f"saelens, {TUNED}", f"saelens, {MENDED}"),
}
LONG = 150  # steps after which losses are compared, at one width: 614,400 tokens
BY_LENGTH = "batches of like lengths"
HARVESTERS = (
    "ours",
    "transformer_lens",
    "transformer_bridge",
    "transformers",
    f"transformers, {TUNED}",
    f"transformers, {TUNED}, {BY_LENGTH}",
)
TEXTS = 16  # a batch of the peers
ROUNDS = 5  # of our harvest, with the limit measured between them
LIMIT_SECONDS = 30.0  # of work of one harvester on one set of texts
VARIANTS: dict[str, dict[str, Any]] = {
    "jumprelu": {"coefficient": 1.8e-3, "initial_l0": L0},
    "topk": {"k": L0},
    "gated": {"coefficient": 0.17, "initial_l0": L0},
}
PEERS = ROOT / ".venv" / "peers" / "bin" / "python"
RECORD, PAGE = ROOT / "data" / "bench.json", ROOT / "data" / "bench.md"


class BenchError(Expected, RuntimeError):
    """The benchmark cannot go on; nothing was written."""


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M')}] {text}", flush=True)


def weights(sae: SAE) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous().clone() for name, p in sae.named_parameters()}


def restored(variant: str, start: dict[str, torch.Tensor], penalty: float = 1.0) -> SAE:
    """An SAE on unit inputs with the given weights; ``penalty`` times the usual coefficient."""
    width, latents = start["W_enc"].shape
    usual = SAEConfig(variant=variant, latents=latents, **VARIANTS[variant])
    sae = make(usual.model_copy(update={"coefficient": penalty * usual.coefficient}), width)
    sae.load_state_dict({**sae.state_dict(), **start})
    return sae


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Our steps, timed one by one, as ``peers.py`` times others; and the encoder product alone."""
    x, rule = load_file(job["x"])["x"], job["peer"].partition(", ")[2]
    sae = restored(job["variant"], load_file(job["start"]), job.get("penalty", 1.0))
    sae.sparse = rule != "dense"
    steps, batch = job["steps"], job["batch"]
    constant = {"warmup": 0, "decay": 0, "sparsity_warmup": 0, "learning_rate": job["learning_rate"]}
    section = TrainingSection(steps=max(steps, LOGGED), batch=batch, **constant)
    trainee, seconds, encoder = gated.trainee(sae, rule.removeprefix("dense"), section), [], []
    for i in range(steps):
        rows = x[torch.arange(i * batch, (i + 1) * batch) % len(x)]
        begun = time.perf_counter()
        product(rows, sae.W_enc.detach(), sae.b_enc.detach())
        between = time.perf_counter()
        trainee.advance(rows)
        seconds.append(time.perf_counter() - between)
        encoder.append(between - begun)
    save_file(gated.folded(weights(trainee.sae)), job["weights"])
    return {"seconds": seconds, "encoder": encoder, "peak_bytes": memory("VmHWM")}


def harvest(job: dict[str, Any]) -> dict[str, Any]:
    """Our harvest, timed as ``peers.py`` times others, and the model's matrix products alone on as many tokens."""
    tokens = load_file(job["tokens"])
    ids, offsets = tokens["ids"].numpy().astype(np.int32), tokens["offsets"].numpy()
    lengths = np.diff(offsets).astype(np.int32)
    rows = texts.Sequences(ids, offsets, np.ones_like(lengths), lengths, *np.zeros((2, len(lengths)), np.int32))
    lm = models.load(models.pinned(config.ModelSection(name=job["model"])))
    first = list(range(min(TEXTS, len(rows))))  # a whole batch, as the peers warm up
    list(harvests.run_group(lm, harvests.Group(0, first), rows, (job["layer"],)))
    length = round(np.average(lengths, weights=lengths))  # of the text that a token is in
    limits, seconds = [products_only(lm, job["layer"], length)], []
    for _ in range(ROUNDS):
        count, begun = 0, time.perf_counter()
        for group in harvests.group_by_prefix(rows):
            for index, kept in harvests.run_group(lm, group, rows, (job["layer"],)):
                kept[job["layer"]].to(torch.float16)
                count += int(lengths[index])
        seconds.append(time.perf_counter() - begun)
        limits.append(products_only(lm, job["layer"], length))
    # A round's limit is that before and after it, as the machine's speed drifts.
    shares = [count / s / statistics.mean(pair) for s, pair in zip(seconds, pairwise(limits), strict=True)]
    measured = {"tokens": count, "seconds": statistics.median(seconds), "peak_bytes": memory("VmHWM")}
    return measured | {"limit_tokens_per_second": statistics.median(limits), "shares": shares}


@torch.inference_mode()
def products_only(lm: models.LM, layer: int, length: int) -> float:
    """Tokens a second if blocks 0 to ``layer`` were their matrix products alone, for texts of ``length`` tokens.

    These are the linear layers and the two products of attention; of those a causal model needs half.
    """
    size = harvests.BATCH_TOKENS
    linear = [m for block in lm.blocks[: layer + 1] for m in block.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {m.in_features: torch.randn(size, m.in_features) for m in linear}
    settings = lm.model.config.get_text_config()
    texts, heads = max(1, size // length), settings.num_attention_heads
    q = torch.randn(texts * heads, length, getattr(settings, "head_dim", None) or settings.hidden_size // heads)
    share = size / (texts * length) / 2  # of whole batches, causal
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        for m in linear:
            m(inputs[m.in_features])
        between = time.perf_counter()
        for _ in range(layer + 1):
            torch.bmm(torch.bmm(q, q.mT), q)
        times.append(between - begun + (time.perf_counter() - between) * share)
    return size / statistics.median(times)


def contend(command: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a contender measured, in a process of its own."""
    path, out = folder.resolve() / "job.json", folder.resolve() / "out.json"
    out.unlink(missing_ok=True)
    path.write_text(json.dumps({**job, "out": str(out)}), encoding="utf-8")
    ours = [sys.executable, "-m", "tests.bench.bench"]
    program = ours if job["peer"].startswith("ours") else [str(PEERS), "-P", str(Path(__file__).with_name("peers.py"))]
    environment = {**os.environ, **(ALLOCATOR if TUNED in job["peer"] else {})}
    environment |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run([*program, command, path], capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode or not out.is_file():
        raise BenchError(f"{job['peer']} failed at {command}: {done.stderr.strip()[-2000:]}")
    return json.loads(out.read_text(encoding="utf-8"))


@torch.no_grad()
def held_out(variant: str, end: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, float]:
    """FVU, L0 and the training loss (without warm-ups) of weights on unit inputs."""
    sae = restored(variant, end)
    sae.sparse = False
    loss = fired = error = 0.0
    for part in x.split(BATCH):
        named, count = sae.losses(part, 1.0)
        named.pop("auxk", None)
        loss += sum(float(v) for v in named.values()) * len(part) / len(x)
        fired += float(count.sum()) / len(x)
        error += float(named["reconstruction"]) * len(part)
    return {"loss": loss, "l0": fired, "fvu": error / float((x - x.mean(0)).square().sum())}


def head_start(variant: str, latents: int, x: torch.Tensor) -> SAE:
    """An SAE trained for a while; JumpReLU is steered to the L0 aimed at."""
    fields = dict(VARIANTS[variant])
    if variant == "jumprelu":
        fields |= {"penalty": TargetL0(L0), "coefficient": 0.2}
    sae = make(SAEConfig(variant=variant, latents=latents, **fields), x.shape[1])
    sae.initialise(x[:16_384], torch.Generator().manual_seed(0))
    sae.rescale(1.0)  # inputs are of mean squared norm 1 already
    section = TrainingSection(steps=HEAD_START, batch=BATCH, sparsity_warmup=0, decay=0, learning_rate=1e-3)
    trainee = Trainee(sae, section)
    for row in row_batches(len(x), HEAD_START, BATCH, seed=0):
        trainee.advance(x[torch.from_numpy(row)])
    return sae


def training(folder: Path) -> list[dict[str, Any]]:
    """Rows of the tables of training: every variant at every width."""
    s = study.open_study("report", {"layer": LAYER, "corpora.train_tokens": TOKENS, "corpora.rollout_tokens": 0})
    say(f"activations of layer {LAYER}")
    source = activations.read(s.activations("chat", "train"), LAYER)
    x = source.gather(np.random.default_rng(0).permutation(len(source)))
    x /= x.double().square().sum(1).mean().sqrt().float()
    save_file({"x": x[:-HELD_OUT]}, folder / "x.safetensors")
    return [trained(m, v, x[:-HELD_OUT], x[-HELD_OUT:], folder) for m in WIDTHS for v in VARIANTS]


def trained(latents: int, variant: str, x: torch.Tensor, held: torch.Tensor, folder: Path) -> dict[str, Any]:
    """One variant at one width by every trainer."""
    say(f"{variant}, {latents:,} latents")
    start, end, steps = folder / "start.safetensors", folder / "end.safetensors", WIDTHS[latents]
    save_file(weights(head_start(variant, latents, x)), start)
    files = {"x": str(folder / "x.safetensors"), "start": str(start), "weights": str(end)}
    job = files | {"variant": variant, "batch": BATCH, "learning_rate": 1e-3, "bandwidth": 0.02, "k": L0}
    job["coefficient"] = VARIANTS[variant].get("coefficient", 0.0)

    @functools.cache
    def reach(peer: str, count: int, penalty: float) -> tuple[dict[str, Any], dict[str, float]]:
        """What a contender measured in so many steps, and what its SAE is like then."""
        own = {**job, "peer": peer, "mended": peer.endswith(MENDED), "steps": count, "penalty": penalty}
        measured = contend("train", own, folder)
        return measured, held_out(variant, load_file(end), held)

    row: dict[str, Any] = {"latents": latents, "variant": variant, "steps": steps, "trainers": {}}
    row["start"] = held_out(variant, load_file(start), held)
    for peer in (*TRAINERS, *(CONTROLS[variant] if latents == CONTROL_WIDTH else ())):
        measured, reached = reach(peer, steps, 1.0)
        seconds = measured["seconds"][min(WARM_UP, steps - 1) :]
        row["trainers"][peer] = {
            "version": measured.get("version"),
            "step_seconds": statistics.median(seconds),
            "step_range": [min(seconds), max(seconds)],
            "tokens_per_second": BATCH / statistics.median(seconds),
            "peak_gib": measured["peak_bytes"] / 2**30,
            **reached,
        }
        say(f"   {peer} {1e3 * statistics.median(seconds):.0f} ms")
        if peer == "ours":
            row["encoder_seconds"] = statistics.median(measured["encoder"][min(WARM_UP, steps - 1) :])
    if latents == CONTROL_WIDTH:
        say("   losses after equal tokens")
        row |= gated.compare(variant, lambda *run: reach(*run)[1], steps, LONG, BATCH)
    return row


def sequences() -> dict[str, list[np.ndarray]]:
    """Token sequences to harvest: long texts, and labelled prompts in their templates, in a random order."""
    s, rng = study.open_study("report"), np.random.default_rng(0)
    prompts = texts.labelled(s.prompts, s.lm, "all")
    recipes = (("long texts", s.text("pretraining", "eval"), 120), ("probe set", prompts, 1200))
    found = {}
    for name, recipe, count in recipes:
        rows = texts.read(recipe)
        found[name] = [rows[i] for i in rng.permutation(len(rows))[:count]]
    return found


def harvesting(folder: Path) -> list[dict[str, Any]]:
    """Rows of the table of harvests: both sets of texts by every harvester."""
    found, path = [], folder / "tokens.safetensors"
    for name, found_texts in sequences().items():
        offsets = np.concatenate([[0], np.cumsum([len(t) for t in found_texts])])
        ids = torch.from_numpy(np.concatenate(found_texts).astype(np.int64))
        save_file({"ids": ids, "offsets": torch.from_numpy(offsets)}, path)
        job = {"model": models.folder(models.pinned(config.ModelSection())), "tokens": str(path), "layer": LAYER}
        job |= {"batch": TEXTS, "limit_s": LIMIT_SECONDS}
        row: dict[str, Any] = {"texts": name, "count": len(found_texts), "tokens": len(ids), "harvesters": {}}
        for peer in HARVESTERS:
            say(f"harvest of {name} by {peer}")
            measured = contend("harvest", {**job, "peer": peer, "by_length": BY_LENGTH in peer}, folder)
            row["harvesters"][peer] = {
                "version": measured.get("version"),
                "tokens": measured["tokens"],
                "tokens_per_second": measured["tokens"] / measured["seconds"],
                "peak_gib": measured["peak_bytes"] / 2**30,
            }
            row |= {key: measured[key] for key in ("limit_tokens_per_second", "shares") if key in measured}
        found.append(row)
    return found


def machine() -> dict[str, str]:
    """The processor and software, no names or paths of a machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "processor": name or platform.machine(),
        "cores": str(joblib.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
    }


def table(record: dict[str, Any]) -> str:
    """The measurements as a page of Markdown."""
    trainers, harvesters = [], []
    for row in record["training"]:
        ours = row["trainers"]["ours"]["step_seconds"]
        for name, t in row["trainers"].items():
            trainers.append(
                f"| {row['latents']:,} | {row['variant']} | {gated.label(name, t['version'])} | {1e3 * t['step_seconds']:.0f} | "
                f"{t['tokens_per_second']:,.0f} | {t['step_seconds'] / row['encoder_seconds']:.2f} | "
                f"{t['step_seconds'] / ours:.1f} | {t['loss']:.4f} | {t['l0']:.1f} | {t['fvu']:.4f} | {t['peak_gib']:.2f} |"
            )
    for row in record["harvest"]:
        ours = row["harvesters"]["ours"]["tokens_per_second"]
        texts = f"{row['texts']} ({row['count']:,}, {row['tokens']:,} tokens)"
        for name, h in row["harvesters"].items():
            share = f"{h['tokens_per_second'] / row['limit_tokens_per_second']:.0%}"
            if name == "ours":
                share = f"{statistics.median(row['shares']):.0%} ({min(row['shares']):.0%} to {max(row['shares']):.0%})"
            harvesters.append(
                f"| {texts} | {gated.label(name, h['version'])} | {h['tokens']:,} | {h['tokens_per_second']:,.0f} | "
                f"{ours / h['tokens_per_second']:.1f} | {share} | {h['peak_gib']:.2f} |"
            )
    between, at_equal_l0 = gated.equal_l0(
        next(row["by_penalty"] for row in record["training"] if row.get("by_penalty"))
    )
    slots = {
        "machine": record["machine"],
        "steps": ", ".join(f"{n} steps at {m:,} latents" for m, n in WIDTHS.items()),
        "tokens": BATCH * LONG,
        "passes": BATCH * LONG / (TOKENS - HELD_OUT),
        "dead_tokens": SAEConfig.model_fields["dead_tokens"].default,
        "penalties": ", ".join(f"{p:g}" for p in gated.PENALTIES),
        "between": between,
        "trainers": "\n".join(trainers),
        "losses": "\n".join(gated.loss_rows(record["training"])),
        "equal_l0": "\n".join(at_equal_l0),
        "harvesters": "\n".join(harvesters),
    }
    page = Path(__file__).with_name("page.md").read_text(encoding="utf-8")
    return page.format(**(globals() | slots))  # what stands in capitals there are the constants above


def run() -> None:
    """Measure everything; write ``data/bench.json`` and ``data/bench.md``.

    Raises:
        BenchError: a contender failed; nothing is written then.
    """
    if not PEERS.exists():
        raise BenchError("the peers are not installed: run make bench, which installs them")
    folder = config.build_dir().resolve() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        record = {"machine": machine(), "harvest": harvesting(folder), "training": training(folder)}
    finally:
        for left in folder.glob("*.safetensors"):
            left.unlink()
    record = plain(record)
    store.write_atomic(RECORD, json.dumps(record, indent=1) + "\n")
    store.write_atomic(PAGE, table(record))
    print(table(record))


if __name__ == "__main__":
    if len(sys.argv) == 3:  # one contender, in its own process
        task = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        steps: dict[str, Any] = {"train": train, "harvest": harvest}
        result = steps[sys.argv[1]](task)
        Path(task["out"]).write_text(json.dumps(result), encoding="utf-8")
    else:
        try:
            run()
        except Expected as error:
            sys.exit(f"bench: {error}")
