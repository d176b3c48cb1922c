"""The report's inputs by name: which prompts, texts, activations and SAEs the notebooks share.

Only recipes are here, nothing is computed until it is read; so a notebook runs alone and in any order.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from IPython import get_ipython

from lib import activations, artifacts, autointerp, config, corpora, debugging, probes, prompts, sources
from lib.artifacts import Artifact
from lib.config import Profile
from lib.lm import contexts
from lib.sae import metrics, training
from lib.sae.variants import SAEConfig

Corpus = Literal["pretraining", "chat"]
PLAIN_START = "JumpReLU, plain start"


@dataclass(frozen=True)
class Study:
    """One profile's recipes."""

    profile: Profile

    # prompts

    @cached_property
    def prompts(self) -> Artifact:
        """The labelled prompt set."""
        p = self.profile
        return prompts.prompt_set(p.prompts, p.sources, p.seed, sources.fingerprint())

    @cached_property
    def probe_activations(self) -> Artifact:
        """Residuals of every labelled prompt: at the site and at the swept layers after the user's text and pooled, at the
        site also of every token."""
        p = self.profile
        tokens = contexts.labelled(self.prompts, p.model, "all")
        return activations.harvest_prompts(tokens, p.model, p.probes.layers, p.layer)

    @cached_property
    def raw_pair(self) -> Artifact:
        """HarmBench and chat prompts as they come, for data set debugging."""
        return prompts.raw_pair(self.prompts, self.profile.debugging.prompts, self.profile.seed)

    @cached_property
    def raw_turns(self) -> Artifact:
        """Tokens of the raw pair, the user's text kept."""
        return contexts.labelled(self.raw_pair, self.profile.model, "user", 256)

    @cached_property
    def raw_activations(self) -> Artifact:
        """Residuals on the user's text of the raw pair, at the site."""
        return activations.harvest(self.raw_turns, self.profile.model, (self.profile.layer,))

    # texts

    def documents(self, corpus: Corpus) -> Artifact:
        """Documents of a corpus; chat leaves out every probe prompt."""
        p = self.profile
        return corpora.documents(corpus, p.sources, self.prompts, p.seed, sources.fingerprint())

    def contexts_of(self, corpus: Corpus, part: contexts.Part) -> Artifact:
        """Token contexts of a corpus, for training or, from other documents, for evaluation."""
        p, documents = self.profile, self.documents(corpus)
        if corpus == "pretraining":
            return contexts.pretraining(documents, p.model, p.corpora, part)
        rolled = None
        if p.corpora.rollout_tokens and part == "train":
            rolled = contexts.on_policy(documents, p.model, p.corpora, p.seed)
        return contexts.chat(documents, rolled, p.model, p.corpora, part)

    def activations_of(self, corpus: Corpus, part: contexts.Part) -> Artifact:
        """Residuals of a corpus at the site."""
        return activations.harvest(self.contexts_of(corpus, part), self.profile.model, (self.profile.layer,))

    # SAEs

    def config(self, variant: str, **fields: Any) -> SAEConfig:
        """An SAE config with the profile's dictionary size, threshold and bandwidth."""
        t = self.profile.training
        shared = {"latents": t.latents, "theta": t.theta, "bandwidth": t.bandwidth, "initial_l0": t.initial_l0}
        return SAEConfig(variant=variant, **{**shared, **fields})

    def train(self, corpus: Corpus, sae: SAEConfig, start: Artifact | None = None, share: float = 1.0) -> Artifact:
        """An SAE trained on a corpus, from scratch or from ``start``, for ``share`` of the profile's steps.

        Finetuning keeps the full sparsity penalty from its first step.
        """
        p = self.profile
        changes: dict[str, Any] = {"steps": max(1, round(share * p.training.steps))}
        if start is not None:
            changes["sparsity_warmup"] = 0.0
        section = p.training.model_copy(update=changes)
        return training.train(sae, self.activations_of(corpus, "train"), p.layer, section, p.seed, start)

    @cached_property
    def chat_saes(self) -> dict[str, Artifact]:
        """Notebook 01's three ways to get a chat SAE, all JumpReLU with the L0 penalty at the profile's lambda.

        Finetuning starts from the end of pretraining and takes half as many steps again.
        """
        jumprelu = self.config("jumprelu", coefficient=self.profile.training.coefficient)
        pretraining = self.train("pretraining", jumprelu)
        return {
            "pretraining": pretraining,
            "finetuned": self.train("chat", jumprelu, start=pretraining, share=0.5),
            "chat": self.train("chat", jumprelu),
        }

    @cached_property
    def frontier(self) -> dict[str, list[Artifact]]:
        """Notebook 05's families of SAEs, each over several k or lambda, all trained on chat from scratch in one pass.

        The first omega_0 gets the whole sweep, the others its middle lambda, as does the control: a JumpReLU SAE that
        starts with all thresholds equal, and so with hundreds of active latents.
        """
        t = self.profile.training
        middle = t.sweep[len(t.sweep) // 2]
        families: dict[str, list[SAEConfig]] = {
            "TopK": [self.config("topk", k=k) for k in t.k_sweep],
            "Gated": [self.config("gated", coefficient=c) for c in t.gated_sweep],
            "JumpReLU": [self.config("jumprelu", coefficient=c) for c in t.sweep],
            PLAIN_START: [self.config("jumprelu", coefficient=middle, initial_l0=0.0)],
        }
        for number, omega in enumerate(t.omegas):
            families[f"QF ω₀={omega:g}"] = [
                self.config("jumprelu", penalty="quadratic_frequency", omega0=omega, coefficient=c)
                for c in (t.sweep if number == 0 else (middle,))
            ]
        trained = {name: [self.train("chat", sae) for sae in saes] for name, saes in families.items()}
        training.together([sae for saes in trained.values() for sae in saes])
        return trained

    # results

    def _evaluate(self, sae: Artifact, corpus: Corpus, name: str) -> Artifact:
        p = self.profile
        held_out = self.activations_of(corpus, "eval")
        return metrics.evaluate(sae, held_out, p.layer, p.probes.bootstrap, p.seed, name=name)

    @cached_property
    def chat_evaluations(self) -> dict[str, dict[str, Artifact]]:
        """Notebook 01: {corpus: {SAE: :func:`lib.sae.metrics.evaluate`}} on held-out text."""
        corpora_: tuple[Corpus, ...] = ("chat", "pretraining")
        return {
            corpus: {
                name: self._evaluate(sae, corpus, f"01_{name}_on_{corpus}") for name, sae in self.chat_saes.items()
            }
            for corpus in corpora_
        }

    @cached_property
    def loss_recovered(self) -> Artifact:
        """Notebook 01: what the model loses on held-out chat when a reconstruction stands in for the residual stream."""
        p = self.profile
        texts = self.contexts_of("chat", "eval")
        return metrics.loss_recovered(
            self.chat_saes,
            texts,
            self.activations_of("chat", "eval"),
            p.model,
            p.layer,
            p.corpora.loss_tokens,
            p.probes.bootstrap,
            p.seed,
            name="01_loss_recovered",
        )

    @cached_property
    def training_logs(self) -> dict[str, Artifact]:
        """Notebook 01: training logs by SAE."""
        return {name: training.log(sae, name=f"01_log_{name}") for name, sae in self.chat_saes.items()}

    @cached_property
    def prompt_counts(self) -> Artifact:
        """Notebook 02: sizes of splits and slices."""
        return prompts.counts(self.prompts, name="02_prompt_counts")

    @cached_property
    def sweep(self) -> Artifact:
        """Notebook 02: the dense probe on validation, by layer and position."""
        p, middle = self.profile, sorted(self.profile.probes.penalties)
        layers = tuple(sorted({p.layer, *p.probes.layers}))
        return probes.sweep(
            self.prompts, self.probe_activations, layers, middle[(len(middle) - 1) // 2], name="02_sweep"
        )

    @cached_property
    def dense(self) -> Artifact:
        """Notebook 02: the dense linear probe."""
        p, q = self.profile, self.profile.probes
        arguments = (self.prompts, self.probe_activations, p.layer, q.position, q.penalties, q.bootstrap, p.seed)
        return probes.dense(*arguments, name="02_dense")

    @cached_property
    def style(self) -> Artifact:
        """Notebook 02: the surface-feature baseline."""
        q = self.profile.probes
        return probes.style(self.prompts, q.penalties, q.bootstrap, self.profile.seed, name="02_style")

    @cached_property
    def k_sparse(self) -> dict[str, Artifact]:
        """Notebook 02: k-sparse probes on notebook 01's SAEs."""
        p, q = self.profile, self.profile.probes
        return {
            name: probes.k_sparse(
                self.prompts,
                self.probe_activations,
                sae,
                p.layer,
                q.position,
                q.ks,
                q.penalties,
                q.bootstrap,
                p.seed,
                name=f"02_k_sparse_{name}",
            )
            for name, sae in self.chat_saes.items()
        }

    @cached_property
    def cards(self) -> Artifact:
        """Notebook 03: the latents that differ most between the classes of the raw pair, in the finetuned SAE."""
        p, d = self.profile, self.profile.debugging
        return debugging.cards(
            self.raw_pair,
            self.raw_turns,
            self.raw_activations,
            self.chat_saes["finetuned"],
            p.model,
            p.layer,
            d.cards,
            d.contexts,
            name="03_cards",
        )

    @cached_property
    def shortcuts(self) -> Artifact:
        """Notebook 03: surface features that separate the raw pair, each alone."""
        return debugging.shortcuts(self.raw_pair, name="03_shortcuts")

    @cached_property
    def autointerp(self) -> dict[str, Artifact]:
        """Notebook 04: scores of a JumpReLU and a QF SAE trained at the same lambda."""
        p = self.profile
        middle = {name: saes[len(saes) // 2] for name, saes in self.frontier.items()}
        first_qf = next(name for name in middle if name.startswith("QF"))
        return {
            name: autointerp.evaluate(
                middle[name],
                self.activations_of("chat", "train"),
                p.model,
                p.layer,
                p.autointerp,
                p.autointerp.tokens,
                p.probes.bootstrap,
                p.seed,
                name=f"04_autointerp_{label}",
            )
            for name, label in (("JumpReLU", "jumprelu"), (first_qf, "qf"))
        }

    @cached_property
    def frontier_evaluations(self) -> dict[str, list[Artifact]]:
        """Notebook 05: :func:`lib.sae.metrics.evaluate` of every SAE of the frontier on held-out chat."""
        slug = {name: re.sub(r"[^a-z0-9.]+", "_", name.lower().replace("ω₀=", "")) for name in self.frontier}
        return {
            name: [self._evaluate(sae, "chat", f"05_{slug[name]}_{number}") for number, sae in enumerate(saes)]
            for name, saes in self.frontier.items()
        }


def values(recipes: Any) -> Any:
    """The values of result artifacts, in whatever dicts and lists they stand."""
    if isinstance(recipes, Artifact):
        return recipes.value
    if isinstance(recipes, dict):
        return {name: values(recipe) for name, recipe in recipes.items()}
    return [values(recipe) for recipe in recipes]


def _refuse_unknown_parameters() -> None:
    """Papermill only warns of a parameter that a notebook does not have; here it is an error."""
    shell = get_ipython()
    for cell in shell.user_ns.get("In", []) if shell is not None else []:
        if cell.startswith("# Parameters\n"):
            names = {
                t.id
                for n in ast.parse(cell).body
                if isinstance(n, ast.Assign)
                for t in n.targets
                if isinstance(t, ast.Name)
            }
            if unknown := names - {"profile", "frozen", "overrides"}:
                raise config.ConfigError(
                    f"unknown parameter {', '.join(sorted(unknown))}: notebooks take profile, frozen and overrides; "
                    "fields of the profile go into overrides"
                )


def open_study(profile: str, overrides: dict[str, Any] | None = None, frozen: bool = False) -> Study:
    """Open a profile's store and return its recipes: a notebook's first line.

    Raises:
        ConfigError: unknown profile or field, or a value that does not fit.
    """
    _refuse_unknown_parameters()
    loaded = config.load(profile, overrides)
    artifacts.open_store(profile, frozen)
    return Study(loaded)
