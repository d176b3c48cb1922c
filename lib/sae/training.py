"""Train SAEs on harvested activations: from scratch, from another SAE, several in one pass or side by side. Training is the same
to the bit when it is repeated, when it is killed and goes on, and whether an SAE is trained alone or beside others."""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialised
from tqdm.auto import tqdm

from lib import store
from lib.config import Expected, TrainingSection
from lib.cpu import keep_memory
from lib.lm import activations
from lib.lm.activations import Activations, Harvests
from lib.sae.adam import Adam
from lib.sae.variants import SAE, SAEConfig, make

DIVERGED = 1e3  # reconstruction loss of unit inputs above which training has failed
SAVE_SECONDS = 30.0  # work that a kill may cost
SAMPLE = 16_384  # tokens that set the input scale and the initial biases

Tensors = dict[str, torch.Tensor]


class TrainingError(Expected, RuntimeError):
    """Training that went wrong: says at which step and what to change."""


def learning_rate(step: int, section: TrainingSection) -> float:
    """Linear warm-up, constant, linear decay to zero over the last ``decay`` of the steps."""
    warm, fall = section.warmup * section.steps, section.decay * section.steps
    rise = min(1.0, (step + 1) / warm) if warm else 1.0
    return section.learning_rate * rise * (min(1.0, (section.steps - step) / fall) if fall else 1.0)


def row_batches(count: int, steps: int, batch: int, seed: int) -> np.ndarray:
    """[steps, batch] row numbers: fresh permutations of all rows, end to end; more steps only add rows."""
    rng = np.random.default_rng(seed)
    passes = [rng.permutation(count) for _ in range(-(-steps * batch // count))]
    return np.concatenate(passes)[: steps * batch].reshape(steps, batch)


def _write(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file that is whole or not there."""
    with store.atomic(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def _digest(tensors: Tensors) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):  # one at a time: a copy of all may be more than there is room for
        found.update(serialised({name: tensors[name].contiguous()}))
    return found.hexdigest()


class Trainee:
    """An SAE in training, with its optimiser, its log and the number of steps it has done."""

    def __init__(self, sae: SAE, section: TrainingSection) -> None:
        keep_memory()
        self.sae, self.section = sae.to(section.device), section
        self.adam, self.step = Adam(self.sae), 0
        self.log: list[dict[str, float]] = []
        self.kept: dict[int, Tensors] = {}  # checkpoints by number of steps
        self.error: TrainingError | None = None  # why it was left behind

    def advance(self, x: torch.Tensor, tail: torch.Tensor | None = None) -> None:
        """One step on residuals x [batch, d], of which ``tail`` [batch, 1] bool are the template's after a user's text; FloatingPointError if the loss has exploded, or it, a gradient or a weight is no
        longer finite."""
        section, step = self.section, self.step
        warm = section.sparsity_warmup * section.steps
        weights = None if tail is None else torch.where(tail.to(section.device), section.tail_weight, 1.0)
        x = x.to(section.device) / self.sae.scale
        losses = self.sae.losses(x, min(1.0, (step + 1) / max(1.0, warm)), weights)
        loss = torch.stack(list(losses.named.values())).sum()
        logged = step % max(1, section.steps // 20) == 0 or step == section.steps - 1
        seen = logged or loss.device.type == "cpu"  # elsewhere looking at the loss would wait for the device
        if seen and not (torch.isfinite(loss.detach()) and losses.named["reconstruction"].detach() <= DIVERGED):
            raise FloatingPointError("the loss has exploded")
        if logged:  # a latent that is not a number is never active, so the loss may not show it
            self._check_weights()
        loss.backward()
        self.adam.step(learning_rate(step, section))
        self.sae.constrain()
        self.sae.count(losses.fired, len(x))
        if logged:
            values = {name: float(value.detach()) for name, value in losses.named.items()}
            l0, dead = float(losses.fired.sum()) / len(x), int(self.sae.dead.sum())
            self.log.append({"step": step, "l0": l0, "dead": dead, **values})
        self.step += 1
        if self.step in {round(share * section.steps) for share in section.checkpoints}:
            self.kept[self.step] = {name: tensor.clone() for name, tensor in self.sae.state_dict().items()}
        if self.step == section.steps:
            self._check_weights()

    def _check_weights(self) -> None:
        if not all(torch.isfinite(p).all() for p in self.sae.parameters()):
            raise FloatingPointError("a weight is not finite")

    def _state(self) -> Tensors:
        """The tensors that the next step depends on, by name."""
        groups = {"sae": self.sae.state_dict(), "m": self.adam.m, "v": self.adam.v}
        return {f"{group}.{name}": x for group, tensors in groups.items() for name, x in tensors.items()}

    def save(self, path: Path) -> None:
        kept = {f"kept.{step}.{name}": x for step, weights in self.kept.items() for name, x in weights.items()}
        tensors = self._state() | kept
        _write(tensors, path, {"step": str(self.step), "log": json.dumps(self.log), "sha256": _digest(tensors)})

    def resume(self, path: Path) -> None:
        """Go on from what :meth:`save` stored; a missing or damaged file means starting at the beginning."""
        try:
            with safe_open(path, "pt", device=self.section.device) as file:
                meta, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return
        if meta.get("sha256") != _digest(tensors):
            return
        with torch.no_grad():
            for name, x in self._state().items():
                x.copy_(tensors.pop(name))
        for name, x in tensors.items():
            _, step, rest = name.split(".", 2)
            self.kept.setdefault(int(step), {})[rest] = x
        self.step = self.adam.steps = int(meta["step"])
        self.log = json.loads(meta["log"])


def fit(trainees: Sequence[Trainee], source: Activations, seed: int, states: Sequence[Path] = ()) -> None:
    """Train in place, all on the same :func:`row_batches`, each for as many steps as its section says.

    With ``states``, one file for each trainee is written now and then, and read first. One that diverges is left behind, with
    its ``error``. ValueError if the source has no tokens.
    """
    if not trainees:
        return
    if not len(source):
        raise ValueError("there are no tokens to train on")
    for trainee, state in zip(trainees, states, strict=False):
        trainee.resume(state)
    rows = row_batches(len(source), max(t.section.steps for t in trainees), trainees[0].section.batch, seed)
    names = ", ".join(dict.fromkeys(t.sae.name for t in trainees))
    first, saved = min(t.step for t in trainees), time.monotonic()
    tail = source.column("tail")[:, None] if any(t.section.tail_weight != 1 for t in trainees) else None
    steps = tqdm(rows[first:], f"train {names}", initial=first, total=len(rows), unit="step", disable=None)
    for step, row in enumerate(steps, first):
        x, after = source.gather(row), None if tail is None else torch.from_numpy(tail[row])
        for trainee in trainees:
            if trainee.error is None and trainee.step == step < trainee.section.steps:
                try:
                    trainee.advance(x, after)
                except FloatingPointError:
                    where = f"{trainee.sae.name}: the loss diverged at step {trainee.step}"
                    trainee.error = TrainingError(f"{where}: lower training.learning_rate")
        if states and time.monotonic() - saved > SAVE_SECONDS:
            for trainee, state in zip(trainees, states, strict=True):
                if trainee.error is None:
                    trainee.save(state)
            saved = time.monotonic()


def save(sae: SAE, log: list[dict[str, float]], out: Path) -> None:
    """Write ``sae.safetensors``, ``sae.json`` (what the SAE is) and ``log.json`` into the folder ``out``."""
    _write(sae.state_dict(), out / "sae.safetensors")
    meta = sae.config.model_dump(include=SAEConfig.what) | {"width": sae.W_dec.shape[1]}
    (out / "sae.json").write_text(json.dumps(meta), encoding="utf-8")
    (out / "log.json").write_text(json.dumps(log), encoding="utf-8")


def sample(source: Activations, seed: int) -> torch.Tensor:
    """[at most SAMPLE, d] residuals drawn from a source."""
    return source.gather(np.random.default_rng(seed).choice(len(source), min(len(source), SAMPLE), replace=False))


def _prepare(
    source: Activations,
    config: SAEConfig,
    section: TrainingSection,
    seed: int,
    start: store.Artifact | None,
    checkpoint: int | None,
    redrawn: float,
    **others: object,
) -> Trainee:
    if not 0 <= redrawn <= 1 or (start is None and (redrawn or checkpoint is not None)):
        raise ValueError(f"redrawn={redrawn} must be a share from 0 to 1, and it and checkpoint need a start")
    sae, generator = make(config, source.width), torch.Generator().manual_seed(seed)
    if start is None:
        sae.initialise(sample(source, seed), generator)
    else:
        begun = load(start, checkpoint)
        if (begun.config.variant, begun.W_dec.shape) != (config.variant, sae.W_dec.shape):
            raise ValueError(
                f"cannot go on from a {begun.config.variant} SAE with {begun.config.latents} latents of width "
                f"{begun.W_dec.shape[1]} as {config.variant} with {config.latents} of width {source.width}"
            )
        sae.load_state_dict(begun.state_dict())
        sae.idle.zero_()
        chosen = torch.randperm(config.latents, generator=generator)[: round(redrawn * config.latents)]
        sae.draw(chosen.sort().values, sample(source, seed), generator)
    return Trainee(sae, section)


# Those of one pass have sources, layer, batch size and seed in common.
@store.together(lambda config, sources, layer, section, seed, *others: [sources, layer, section.batch, seed])
def train(
    jobs: list[store.Job],
    config: SAEConfig,
    sources: Harvests,
    layer: int,
    section: TrainingSection,
    seed: int,
    start: store.Artifact | None = None,
    checkpoint: int | None = None,
    redrawn: float = 0.0,
) -> list[Exception | None]:
    """Step: a trained SAE, as :func:`save` writes it; several that read the same batches can be trained in one pass.

    ``start`` is an SAE to finetune (or its ``checkpoint`` after so many steps), trained here or imported by
    :mod:`lib.sae.exchange`: its weights and its input scale are taken over, the optimiser starts afresh. A share
    ``redrawn`` of its latents, drawn at random, is initialised anew. Checkpoints are ``step_<steps>.safetensors``.

    Errors: TrainingError where training diverged; ValueError where ``start`` has another variant, width or number of latents,
    or no such checkpoint.
    """
    source, trainees = activations.read(sources, layer, seed), dict[int, Trainee]()
    errors: list[Exception | None] = [None] * len(jobs)
    for number, job in enumerate(jobs):
        try:
            trainees[number] = _prepare(source, **job.arguments)
        except ValueError as error:
            errors[number] = error
    fit(list(trainees.values()), source, seed, [jobs[number].partial / "state.safetensors" for number in trainees])
    for number, trainee in trainees.items():
        errors[number] = trainee.error
        if trainee.error is not None:
            shutil.rmtree(jobs[number].partial, ignore_errors=True)
            continue
        save(trainee.sae, trainee.log, jobs[number].out)
        for step, tensors in trainee.kept.items():
            _write(tensors, jobs[number].out / f"step_{step:06d}.safetensors")
    return errors


def load(trained: store.Artifact, checkpoint: int | None = None) -> SAE:
    """The SAE of a :func:`train` artifact, or of its ``checkpoint`` after so many steps (ValueError if there is none), in eval mode, without gradients."""
    meta = json.loads((trained.path / "sae.json").read_text(encoding="utf-8"))
    name = "sae.safetensors" if checkpoint is None else f"step_{checkpoint:06d}.safetensors"
    if not (trained.path / name).is_file():
        there = sorted(int(path.stem.removeprefix("step_")) for path in trained.path.glob("step_*.safetensors"))
        raise ValueError(f"no checkpoint after {checkpoint} steps, there are {there}: set training.checkpoints")
    width = meta.pop("width")
    sae = make(SAEConfig.model_validate(meta), width)
    sae.load_state_dict(load_file(trained.path / name))
    return sae.eval().requires_grad_(False)


@store.result
def log(trained: store.Artifact) -> list[dict[str, float]]:
    """Step: the training log, rows {step, l0, dead, one entry per named loss}."""
    return json.loads((trained.path / "log.json").read_text(encoding="utf-8"))
