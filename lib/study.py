"""The report's inputs by name: which prompts, texts, activations and SAEs the notebooks share.

Only recipes are here, nothing is computed until it is read; so a notebook runs alone and in any order.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from IPython import get_ipython

from lib import activations, autointerp, config, corpora, debugging, labelled, prompts, sources, store
from lib.config import Profile
from lib.lm import contexts, refusals, spans
from lib.lm.model import tokenizer
from lib.probes import features, methods, tables
from lib.sae import metrics, training
from lib.sae.variants import SAEConfig
from lib.store import Artifact

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
    def labelled(self) -> Artifact:
        """What probes are fit on and scored with: the prompt set, or the prompts of ``probes.data``."""
        where = self.profile.probes.data
        return labelled.prompt_file(where, labelled.digest(where)) if where else self.prompts

    @cached_property
    def probe_activations(self) -> Artifact:
        """Residuals of every labelled prompt: at the site and at the swept layers after the user's text and pooled, at the
        site also of every token."""
        p = self.profile
        tokens = contexts.labelled(self.labelled, p.model, "all")
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

    def train(
        self, corpus: Corpus, sae: SAEConfig, start: Artifact | None = None, share: float = 1.0, run: int = 0
    ) -> Artifact:
        """An SAE trained on a corpus, from scratch or from ``start``, for ``share`` of the profile's steps.

        Finetuning keeps the full sparsity penalty from its first step. Runs differ in their seed.
        """
        p = self.profile
        changes: dict[str, Any] = {"steps": max(1, round(share * p.training.steps))}
        if start is not None:
            changes["sparsity_warmup"] = 0.0
        section = p.training.model_copy(update=changes)
        return training.train(sae, self.activations_of(corpus, "train"), p.layer, section, p.seed + run, start)

    def three_saes(self, coefficient: float, run: int = 0) -> dict[str, Artifact]:
        """Three ways to get a chat SAE, all JumpReLU with the L0 penalty.

        Finetuning starts from the end of pretraining and takes half as many steps again.
        """
        jumprelu = self.config("jumprelu", coefficient=coefficient)
        pretraining = self.train("pretraining", jumprelu, run=run)
        return {
            "pretraining": pretraining,
            "finetuned": self.train("chat", jumprelu, start=pretraining, share=0.5, run=run),
            "chat": self.train("chat", jumprelu, run=run),
        }

    @cached_property
    def chat_saes(self) -> dict[str, Artifact]:
        """Notebook 01's SAEs, at the profile's lambda."""
        return self.three_saes(self.profile.training.coefficient)

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

    # probes

    @cached_property
    def prompt_counts(self) -> Artifact:
        """Notebook 02: sizes of splits and slices."""
        return prompts.counts(self.labelled, name="02_prompt_counts")

    @cached_property
    def refusals(self) -> Artifact:
        """Notebook 02: whether the model refuses, prompt by prompt."""
        p = self.profile
        return refusals.measure(self.prompts, p.model, p.refusals, p.seed, name="02_refusals")

    @cached_property
    def refusal_rates(self) -> Artifact:
        """Notebook 02: refusal rates by kind of prompt and transform."""
        return tables.refusal_rates(
            self.refusals, self.profile.probes.bootstrap, self.profile.seed, name="02_refusal_rates"
        )

    @cached_property
    def refusal_check(self) -> Artifact:
        """Notebook 02: the refusal rule beside a reader's judgement (data/refusal_check.json)."""
        p = self.profile
        judged = json.loads((config.ROOT / "data" / "refusal_check.json").read_text(encoding="utf-8"))
        same = (judged["model"], judged["tokens"]) == (p.model.name, p.refusals.tokens)  # else these are other answers
        return tables.rule_check(self.refusals, judged["rows"] if same else [], name="02_refusal_check")

    @property
    def _probed(self) -> tuple[Artifact, Artifact, int]:
        return self.labelled, self.probe_activations, self.profile.layer

    @cached_property
    def sweep(self) -> Artifact:
        """Notebook 02: the dense probe on validation, by layer and place."""
        p, middle = self.profile, sorted(self.profile.probes.penalties)
        layers = tuple(sorted({p.layer, *p.probes.layers}))
        c = middle[(len(middle) - 1) // 2]
        return tables.sweep(self.labelled, self.probe_activations, layers, c, name="02_sweep")

    @property
    def _embedding(self) -> dict[str, Any]:
        wheel = sources.wheel_hash(sources.EMBEDDER_WHEEL[0])
        return {"of": "embedding", "embeddings": features.embeddings(self.labelled, wheel)}

    def logistic(self, *views: dict[str, Any]) -> Artifact:
        """A logistic regression on a view; one view serves all runs."""
        q = self.profile.probes
        return methods.logistic(*self._probed, views * (q.seeds if len(views) == 1 else 1), q.penalties)

    def views_of(
        self, saes: Sequence[Artifact], of: str = "latents", place: int | str | None = None
    ) -> tuple[dict[str, Any], ...]:
        """Views of SAEs, one a run, at the profile's position unless told."""
        place = self.profile.probes.position if place is None else place
        views: list[dict[str, Any]] = [{"of": of, "sae": sae, "place": place} for sae in saes]
        if isinstance(place, str):
            views = [view | {"pooled": self.pooled(view["sae"])} for view in views]
        return tuple(views)

    def pooled(self, sae: Artifact) -> Artifact:
        """An SAE over the labelled prompts' user texts."""
        return features.pooled(self.probe_activations, sae, self.profile.layer)

    def k_sparse(
        self,
        saes: Sequence[Artifact],
        rule: methods.Rule,
        place: int | str | None = None,
        ks: tuple[int, ...] | None = None,
    ) -> Artifact:
        """k-sparse probes on SAEs' latents, one SAE a run."""
        q = self.profile.probes
        return methods.k_sparse(*self._probed, self.views_of(saes, place=place), ks or q.ks, q.penalties, rule)

    @cached_property
    def dense(self) -> Artifact:
        """The dense linear probe at the site."""
        return self.logistic({"of": "residual", "place": self.profile.probes.position})

    @cached_property
    def probed_saes(self) -> dict[str, tuple[Artifact, ...]]:
        """Notebook 02's SAEs, one a run: notebook 01's three kinds, and the QF SAE that compares with the one from scratch."""
        t, runs = self.profile.training, range(self.profile.probes.seeds)
        kinds = [self.three_saes(t.coefficient, run) for run in runs]
        qf = self.config("jumprelu", penalty="quadratic_frequency", omega0=t.omegas[0], coefficient=t.coefficient)
        return {
            **{name: tuple(saes[name] for saes in kinds) for name in kinds[0]},
            f"QF ω₀={t.omegas[0]:g}": tuple(self.train("chat", qf, run=run) for run in runs),
        }

    @cached_property
    def other_saes(self) -> dict[str, tuple[Artifact, ...]]:
        """More SAEs to probe, one run each: the three kinds at other lambdas, and the middles of the other families."""
        t = self.profile.training
        found: dict[str, tuple[Artifact, ...]] = {
            f"{name}, λ={c:g}": (sae,)
            for c in t.sweep
            if c != t.coefficient
            for name, sae in self.three_saes(c).items()
        }
        return found | {name: (self.frontier[name][len(self.frontier[name]) // 2],) for name in ("TopK", "Gated")}

    @cached_property
    def _sparse(self) -> dict[str, dict[str, Artifact]]:
        return {
            "mean difference": {n: self.k_sparse(saes, "mean difference") for n, saes in self.probed_saes.items()},
            "L1 path": {n: self.k_sparse(self.probed_saes[n], "L1 path") for n in ("pretraining", "finetuned", "chat")},
        }

    @cached_property
    def sparse_curves(self) -> dict[str, Artifact]:
        """Notebook 02: {rule: {SAE: AUROC by k}}."""
        q = self.profile.probes
        return {
            rule: tables.curves(self.labelled, fitted, q.bootstrap, self.profile.seed, name=f"02_k_sparse_{number}")
            for number, (rule, fitted) in enumerate(self._sparse.items())
        }

    @cached_property
    def other_curves(self) -> Artifact:
        """Notebook 02: AUROC by k at other L0 and of other families."""
        q = self.profile.probes
        fitted = {name: self.k_sparse(saes, "mean difference") for name, saes in self.other_saes.items()}
        return tables.curves(self.labelled, fitted, q.bootstrap, self.profile.seed, name="02_k_sparse_others")

    @cached_property
    def fidelity(self) -> Artifact:
        """Notebook 02: what the first run's SAEs keep of the prompts: all at the site, three at the control's places."""
        q, views = self.profile.probes, {}
        for name, saes in {**self.probed_saes, **self.other_saes}.items():
            places = {q.position, *(place for place, names in self._places.items() if name in names)}
            views[name] = {
                str(p): {k: v for k, v in self.views_of(saes[:1], place=p)[0].items() if k != "of"}
                for p in sorted(places, key=str)
            }
        return tables.fidelity(*self._probed, views, name="02_fidelity")

    @cached_property
    def singles(self) -> Artifact:
        """Notebook 02: the best single latent of every SAE."""
        q = self.profile.probes
        fitted = {name: self._single(saes) for name, saes in {**self.probed_saes, **self.other_saes}.items()}
        return tables.tables(self.labelled, fitted, q.bootstrap, self.profile.seed, name="02_singles")

    def _single(self, saes: Sequence[Artifact]) -> Artifact:
        return methods.single_latent(*self._probed, self.views_of(saes))

    @cached_property
    def _without_saes(self) -> dict[str, Artifact]:
        """Probes that need no SAE, at their own choices."""
        q = self.profile.probes
        residual = {"of": "residual", "place": q.position}
        return {
            "dense": self.dense,
            "dense, mean over user turn": self.logistic({"of": "residual", "place": "mean user"}),
            "dense, max over user turn": self.logistic({"of": "residual", "place": "max user"}),
            "dense, mean over everything": self.logistic({"of": "residual", "place": "mean all"}),
            "dense, max over everything": self.logistic({"of": "residual", "place": "max all"}),
            "attention": methods.attention_probe(*self._probed, q.decays, q.epochs, q.seeds),
            "difference of means": methods.difference_of_means(*self._probed, (residual,) * q.seeds),
            "sentence embedding": self.logistic(self._embedding),
            "bag of words": self.logistic({"of": "words"}),
            "surface features": self.logistic({"of": "surface"}),
        }

    @cached_property
    def _fits(self) -> dict[str, Artifact]:
        """Every probe that is compared on equal footing, at its own choices."""
        saes, found = self.probed_saes, dict(self._without_saes)
        for name in ("pretraining", "finetuned", "chat"):
            for kind in ("reconstruction", "error"):
                found[f"{kind}, {name}"] = self.logistic(*self.views_of(saes[name], kind))
        for rule, fitted in self._sparse.items():
            found |= {f"k-sparse, {name}, {rule}": f for name, f in fitted.items()}
        pooled = self.k_sparse(saes["finetuned"], "mean difference", "max user")
        return found | {"k-sparse, finetuned, max over user turn": pooled}

    @cached_property
    def probe_tables(self) -> Artifact:
        """Notebook 02: the table of every probe."""
        q = self.profile.probes
        return tables.tables(self.labelled, self._fits, q.bootstrap, self.profile.seed, name="02_probes")

    @cached_property
    def plain_tables(self) -> Artifact:
        """The table of the probes that need no SAE."""
        q = self.profile.probes
        return tables.tables(self.labelled, self._without_saes, q.bootstrap, self.profile.seed, name="02_plain_probes")

    @cached_property
    def size_controls(self) -> Artifact:
        """Notebook 02: principal components, random directions and random latents at the k of the k-sparse probes."""
        q = self.profile.probes
        runs = self.probed_saes["finetuned"]
        views = {
            "principal components": ({"of": "principal components", "place": q.position},) * q.seeds,
            "random directions": ({"of": "random directions", "place": q.position},) * q.seeds,
            "random latents, finetuned": self.views_of(runs, "random latents"),
        }
        fitted = {name: methods.by_size(*self._probed, each, q.ks, q.penalties) for name, each in views.items()}
        return tables.curves(self.labelled, fitted, q.bootstrap, self.profile.seed, name="02_size_controls")

    @cached_property
    def controls(self) -> dict[str, Artifact]:
        """Notebook 02: {control: {probe: AUROC by amount}}; see :func:`lib.probes.methods.changed`."""
        q, t = self.profile.probes, self.profile
        seen = {
            "dense": (({"of": "residual", "place": q.position},) * q.seeds, ()),
            "k-sparse, finetuned": (self.views_of(self.probed_saes["finetuned"]), q.ks),
            "sentence embedding": ((self._embedding,) * q.seeds, ()),
            "surface features": (({"of": "surface"},) * q.seeds, ()),
        }
        amounts: dict[str, tuple[float, ...]] = {
            "shuffle": tuple(float(i) for i in range(q.shuffles)),
            "noise": q.noise,
            "size": tuple(float(n) for n in q.sizes),
        }
        if not q.data:  # these are about the report's own slices
            amounts |= dict.fromkeys(("wrapped", "plain", "style", "length"), (0.0,))
        return {
            control: tables.curves(
                self.labelled,
                {
                    name: methods.controlled(*self._probed, views, control, values, ks, q.penalties)
                    for name, (views, ks) in seen.items()
                },
                q.bootstrap,
                t.seed,
                name=f"02_control_{control}",
            )
            for control, values in amounts.items()
        }

    @cached_property
    def probe_differences(self) -> Artifact:
        """Notebook 02: the paired differences that its claims rest on."""
        fits, sparse, q = self._fits, self._sparse["mean difference"], self.profile.probes
        single = {name: self._single(saes) for name, saes in self.probed_saes.items()}
        three, k = ("pretraining", "finetuned", "chat"), str(q.k_claim)
        qf = next(name for name in sparse if name.startswith("QF"))
        pairs: dict[str, tuple[tables.Pair, tables.Pair]] = {}
        for name in three:
            pairs[f"dense - single, {name}"] = ((self.dense, None), (single[name], None))
            pairs[f"dense - k, {name}"] = ((self.dense, None), (sparse[name], k))
            pairs[f"dense - best k, {name}"] = ((self.dense, None), (sparse[name], None))
            pairs[f"rules, {name}"] = ((sparse[name], k), (self._sparse["L1 path"][name], k))
            for kind in ("reconstruction", "error"):
                pairs[f"dense - {kind}, {name}"] = ((self.dense, None), (fits[f"{kind}, {name}"], None))
        pairs["single, finetuned - pretraining"] = ((single["finetuned"], None), (single["pretraining"], None))
        pairs["k, finetuned - pretraining"] = ((sparse["finetuned"], k), (sparse["pretraining"], k))
        pairs["max - position, dense"] = ((fits["dense, max over user turn"], None), (self.dense, None))
        pooled = fits["k-sparse, finetuned, max over user turn"]
        pairs["max - position, k"] = ((pooled, k), (sparse["finetuned"], k))
        pairs["QF - JumpReLU, k"] = ((sparse[qf], k), (sparse["chat"], k))
        pairs["attention - dense"] = ((fits["attention"], None), (self.dense, None))
        for name in ("sentence embedding", "bag of words", "difference of means", "surface features"):
            pairs[f"dense - {name}"] = ((self.dense, None), (fits[name], None))
        return tables.differences(self.labelled, pairs, q.bootstrap, self.profile.seed, name="02_differences")

    @cached_property
    def _places(self) -> dict[int | str, tuple[str, ...]]:
        """Where SAEs are set beside the dense probe, and which: the site, positions that the model's template has, and pooled.

        Over the user's text an SAE has to read every token, so there it is one only.
        """
        q, lm, three = self.profile.probes, self.profile.model, ("pretraining", "finetuned", "chat")
        tail = max((q.position, *q.places)) + 1 if lm.name == "packaged" else len(spans.chat(tokenizer(lm), "x").tail)
        positions = sorted({q.position, *(place for place in q.places if place < tail)})
        return dict.fromkeys(positions, three) | dict.fromkeys(("mean user", "max user"), ("finetuned",))

    @cached_property
    def _at_places(self) -> dict[tuple[str, str, str], Artifact]:
        """{(what a probe sees, SAE, place): fits}: residuals, reconstructions and ``k_claim`` latents of the same places."""
        q, saes = self.profile.probes, self.probed_saes
        found: dict[tuple[str, str, str], Artifact] = {}
        for place, names in self._places.items():
            found["dense", "", str(place)] = self.logistic({"of": "residual", "place": place})
            for name in names:
                views = self.views_of(saes[name], "reconstruction", place)
                found["reconstruction", name, str(place)] = self.logistic(*views)
                found["k-sparse", name, str(place)] = self.k_sparse(saes[name], "mean difference", place, (q.k_claim,))
        return found

    @cached_property
    def places(self) -> Artifact:
        """Notebook 02: {"what, SAE, place": table} of probes at other places than the site's."""
        q, fits = self.profile.probes, {", ".join(key): fitted for key, fitted in self._at_places.items()}
        return tables.tables(self.labelled, fits, q.bootstrap, self.profile.seed, False, name="02_places")

    @cached_property
    def place_differences(self) -> Artifact:
        """Notebook 02: {"what, SAE, place": the dense probe at the same place minus it}, paired."""
        q, fits = self.profile.probes, self._at_places
        pairs: dict[str, tuple[tables.Pair, tables.Pair]] = {
            ", ".join(key): ((fits["dense", "", key[2]], None), (fitted, None))
            for key, fitted in fits.items()
            if key[0] != "dense"
        }
        return tables.differences(self.labelled, pairs, q.bootstrap, self.profile.seed, name="02_place_differences")

    @cached_property
    def closed_gap(self) -> Artifact:
        """Notebook 02: how much of the gap between pretraining SAE and dense probe finetuning closes."""
        sparse, q = self._sparse["mean difference"], self.profile.probes
        saes = (sparse["pretraining"], sparse["finetuned"])
        arguments = (self.labelled, self.dense, *saes, str(q.k_claim), q.bootstrap, self.profile.seed)
        return tables.closed_gap(*arguments, name="02_closed_gap")

    @cached_property
    def probe_errors(self) -> Artifact:
        """Notebook 02: each probe's worst OOD errors."""
        names = ("dense", "attention", "k-sparse, finetuned, mean difference", "sentence embedding", "surface features")
        return tables.errors(self.labelled, {n: self._fits[n] for n in names}, 5, name="02_errors")

    # other notebooks

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
    store.open_store(profile, frozen)
    return Study(loaded)
