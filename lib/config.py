"""Profiles: every number a run depends on, typed, with the values of ``report``; the others are rows of ``data/profiles.yaml``.
All take the same code path and differ in values only."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ROOT = Path(__file__).resolve().parents[1]


def cache_dir() -> Path:
    """Where heavy artifacts live: ``$SAE_REPORT_CACHE`` or ``data/cache``."""
    return Path(os.environ.get("SAE_REPORT_CACHE") or ROOT / "data" / "cache").expanduser().resolve()


def build_dir() -> Path:
    """Where runs write: ``$SAE_REPORT_BUILD`` or ``build``."""
    return Path(os.environ.get("SAE_REPORT_BUILD") or ROOT / "build").expanduser().resolve()


class Expected(Exception):
    """The base of every error that the command line prints as one line: it says what is wrong, where, and what to do."""


class ConfigError(Expected, ValueError):
    """A setting that cannot be used; the message names the field and the remedy."""


def reasons(error: ValidationError) -> str:
    """What pydantic found, each by its field, on one line."""
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


class ModelSection(_Section):
    """The chat model and the site it is read at."""

    name: str = "packaged"  # "packaged": SmolLM2-135M-Instruct from its wheel; else a folder or a hub name
    dtype: Literal["float32", "bfloat16"] = "float32"  # bf16 is slower than fp32 on CPUs without AMX
    device: str = "cpu"


class PromptSection(_Section):
    """Sizes of the labelled prompt set; 0 means all there are. The post had 4,046 / 1,014 / 3,850 examples."""

    harmful_bases: int = Field(0, ge=0)  # in-distribution harmful base prompts, before augmentation
    benign: int = Field(0, ge=0)  # in-distribution benign prompts
    ood_harmful_bases: int = Field(0, ge=0)  # prompts of each OOD kind but chat, before augmentation
    ood_benign: int = Field(650, ge=1)  # OOD chat prompts
    balanced: int = Field(0, ge=0)  # benign prompts through every jailbreak and errand; 0: as many as harmful
    validation: float = Field(0.2, gt=0, lt=1)  # share of in-distribution clusters


class CorpusSection(_Section):
    """Text that SAEs are trained and evaluated on, in tokens after the first of each context."""

    train_tokens: int = Field(600_000, ge=1_000)  # per corpus, equal across corpora
    eval_tokens: int = Field(40_000, ge=500)  # per corpus, from other documents
    turn: int = Field(96, ge=8)  # of a user's text, at most
    answer: int = Field(16, ge=0)  # of the answer to it
    rollout_tokens: int = Field(80_000, ge=1)  # of prompts that the model itself answers
    rollout_length: int = Field(96, ge=8)  # new tokens per rollout, at most
    context: int = Field(256, ge=16)  # of plain text
    loss_tokens: int = Field(6_000, ge=50)  # held-out predictions that loss recovered is measured on


class TrainingSection(_Section):
    """SAE training shared by all variants. Recipe measured at d = 576: inputs of mean squared norm 1, theta 0.05, eps 0.02."""

    device: str = "cpu"
    checkpoints: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()  # shares of steps after which it is kept
    latents: int = Field(2304, ge=8)  # dictionary size M
    steps: int = Field(732, ge=1)
    batch: int = Field(2048, ge=8)  # tokens
    tail_weight: float = Field(32.0, gt=0)  # of errors on the template's tokens after a text: there prompts are read
    learning_rate: float = Field(3e-3, gt=0)
    bandwidth: float = Field(0.02, gt=0)  # epsilon of the rectangle kernel
    theta: float = Field(0.05, gt=0)  # initial threshold
    initial_l0: float = Field(60.0, ge=0)  # active latents that JumpReLU and Gated SAEs start with; 0: as theta has it
    warmup: float = Field(0.05, ge=0, lt=1)  # share of steps over which the learning rate rises
    decay: float = Field(0.3, ge=0, le=1)  # share of steps over which it falls linearly to zero
    sparsity_warmup: float = Field(0.3, ge=0, le=1)  # share of steps over which lambda rises


class SAESection(_Section):
    """Which SAEs the notebooks compare. Apart from how they are trained, so that an edit renews only those that it is about."""

    seeds: int = Field(10, ge=1)  # SAEs of each kind that the claims rest on
    fewer_seeds: int = Field(5, ge=1)  # of the other kinds
    coefficient: float = Field(1e-3, ge=0)  # lambda of JumpReLU SAEs at the headline sparsity
    k: int = Field(40, ge=1)  # of TopK SAEs there
    gated: float = Field(0.12, ge=0)  # L1 coefficient of Gated SAEs there
    finetuning: float = Field(1 / 3, gt=0, lt=1)  # share of the steps that a finetuned SAE reads chat for, its last
    levels: tuple[float, ...] = (3.3e-4, 3e-3, 9e-3)  # lambdas beside it in notebook 02's sweep of sparsities
    level_seeds: int = Field(3, ge=1)  # SAEs of each kind there
    redrawn: tuple[float, ...] = (0, 0.1, 0.25, 0.5)  # shares of latents that notebook 01 starts anew
    repeats: tuple[int, ...] = (0, 1, 4, 16)  # of the probe's training prompts in its finetuning mix
    # Lambda, k and L1 coefficient at which SAEs on chat have an L0 of about 90, and a tail of latents that fire often.
    denser: dict[str, float] = {"JumpReLU": 4.4e-4, "QF": 1.7e-4, "TopK": 90, "Gated": 0.0715}
    sweep: tuple[int, ...] = (10, 25, 40, 90, 150)  # levels of L0, about, of notebook 05's curves
    omegas: tuple[float, ...] = (0.1, 0.01)  # omega_0 of the quadratic-frequency penalty


class ProbeSection(_Section):
    """Probing protocol of notebook 02. No choice looks at OOD data."""

    data: str = ""  # your prompts, a file or hub:owner/name as lib/texts/files.py takes them; "": the report's
    text: str = "text"  # the column of your prompts, their label's, and which label is harmful ("": harmful, 1, yes …)
    label: str = "label"
    positive: str = ""
    limit: int = Field(1024, ge=1)  # tokens of a prompt that are read; how many are cut is said
    layers: tuple[int, ...] = (4, 8, 12, 16, 20)  # swept with the dense probe
    position: int = Field(1, ge=0)  # tokens after the end of the user's text, fixed with the layer: the end of turn
    places: tuple[int, ...] = (0, 1, 2, 3, 4, 5)  # of SAEs beside the dense probe, a control; those the template has
    ks: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    draws: int = Field(5, ge=1)  # of the split into train and validation, crossed with the seeds
    # C of logistic regressions on all columns, weight decay of ridge regressions there as a share of the variance; C on k columns.
    penalties: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    ridges: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    few_penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    k_claim: int = Field(20, ge=1)  # the k of the claims; one of ks
    decays: tuple[float, ...] = (0.1, 3.0, 30.0)  # weight decay of the attention probe, decoupled from its rate of 3e-3
    epochs: int = Field(12, ge=1)  # of its training
    shuffles: int = Field(5, ge=1)  # draws of shuffled labels in each run
    noise: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4)  # shares of train clusters with their labels turned round
    sizes: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048)  # train clusters of the learning curve
    bootstrap: int = Field(1000, ge=20)

    @model_validator(mode="after")
    def _claim_is_among(self) -> Self:
        if self.k_claim not in self.ks:
            raise ValueError(f"k_claim={self.k_claim} must be one of ks, {', '.join(map(str, self.ks))}")
        if 0.0 not in self.noise:
            raise ValueError("noise must hold 0, labels as they are")
        return self


class RefusalSection(_Section):
    """Notebook 02: how often the model refuses, by transform."""

    harmful: int = Field(60, ge=4)  # base prompts, each under every jailbreak
    harmless: int = Field(30, ge=4)  # of chat, and of over-refusal
    tokens: int = Field(14, ge=4)  # of the greedy answer that is looked at


class AutointerpSection(_Section):
    """Notebook 04: which latents are explained and scored, and on what text."""

    latents: int = Field(400, ge=4)  # per SAE, sampled by how often they fire
    examples: int = Field(30, ge=6)  # contexts to explain from, and as many others to score on
    window: int = Field(32, ge=8)  # tokens per context, at most
    tokens: int = Field(44_000, ge=500)  # of held-out chat to explain from, and as many of others to score on
    model: str = ""  # at the OpenAI-compatible endpoint $OPENAI_BASE_URL; "": by counting, without a language model


class DebuggingSection(_Section):
    """Notebook 03: the raw pair of data sets and the cards drawn from it."""

    prompts: int = Field(600, ge=20)  # benign prompts set against HarmBench
    cards: int = Field(10, ge=1)
    contexts: int = Field(4, ge=1)  # per class and card


class Profile(_Section):
    """One run's settings. ``layer`` L is the site: the residual stream after block L, counted from 0."""

    name: str
    seed: int = 0
    sources: Literal["wheels", "hub"] = "wheels"
    layer: int = Field(12, ge=0)  # fixed from a first sweep on validation, before any OOD score (notebook 02)
    model: ModelSection = ModelSection()
    prompts: PromptSection = PromptSection()
    corpora: CorpusSection = CorpusSection()
    training: TrainingSection = TrainingSection()
    saes: SAESection = SAESection()
    probes: ProbeSection = ProbeSection()
    refusals: RefusalSection = RefusalSection()
    autointerp: AutointerpSection = AutointerpSection()
    debugging: DebuggingSection = DebuggingSection()


PROFILES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "data" / "profiles.yaml").read_text(encoding="utf-8"))


def load(name: str, overrides: dict[str, Any] | None = None) -> Profile:
    """The profile ``name`` with ``overrides`` (dotted field names) applied; ConfigError if one does not fit."""
    if name not in PROFILES:
        raise ConfigError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    try:
        data = Profile.model_validate({**(PROFILES[name] or {}), "name": name}).model_dump()
        for dotted, value in (overrides or {}).items():
            section, _, leaf = dotted.rpartition(".")
            node = data.get(section) if section else data
            if not isinstance(node, dict) or isinstance(node.get(leaf, {}), dict) or dotted == "name":
                raise ConfigError(f"unknown parameter {dotted!r}: the fields are those of lib/config.py, section.field")
            node[leaf] = value
        return Profile.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"bad value in profile {name!r}: {reasons(error)}") from None
