"""One profile's shared inputs by name: prompts, texts, activations; SAEs and probes with the profile's settings filled in. Only
recipes are here, so a notebook runs alone and in any order. What is compared with what stands in the notebooks."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from IPython import get_ipython

from lib import config, store, wheels
from lib.config import Profile
from lib.latents import autointerp
from lib.latents.explainers import Best, Explainer
from lib.lm import harvest, model, sequences
from lib.probes import methods, tables, views
from lib.probes.attention import Attention, Tokens
from lib.probes.changes import Change
from lib.probes.methods import ByMeanDifference, DifferenceOfMeans, KSparse, Linear, Probe
from lib.probes.tables import NOTHING, Pick
from lib.probes.views import Embedding, Latents, Residual, Surface, View, Words
from lib.sae import exchange, metrics, training
from lib.sae.penalties import QuadraticFrequency
from lib.sae.variants import SAEConfig
from lib.store import Artifact
from lib.texts import corpora, files, prompts, transforms
from lib.texts.corpora import Corpus, Part

Step = Callable[..., Artifact]
Fitted = Artifact | Pick  # probes at their own choice of setting, or at a named one


@dataclass(frozen=True)
class Study:
    """One profile's recipes."""

    profile: Profile

    @cached_property
    def lm(self) -> model.Pinned:
        return model.pinned(self.profile.model)

    @property
    def reader(self) -> model.Pinned:
        """The model whose residuals are read: ``lm``, unless a control says otherwise."""
        return self.lm

    @cached_property
    def prompts(self) -> Artifact:
        """The report's labelled prompts."""
        p = self.profile
        rows, rewrites = prompts.sources_of(p.sources), tuple(transforms.every().values())
        return prompts.prompt_set(p.prompts, rows, rewrites, p.seed)

    @cached_property
    def labelled(self) -> Artifact:
        """What probes are fit on and scored with: the report's prompts, or those of ``probes.data``."""
        q = self.profile.probes
        named = files.Named(q.text, q.label, q.positive)
        return files.prompt_file(q.data, files.digest(q.data), named) if q.data else self.prompts

    @cached_property
    def conversations(self) -> Artifact:
        """The labelled prompts in the chat template, as tokens."""
        return sequences.labelled(self.labelled, self.lm, "all", self.profile.probes.limit)

    @cached_property
    def prompt_activations(self) -> Artifact:
        """Residuals of every labelled prompt: at the site and at the swept layers after the user's text and pooled, at the site also of every token."""
        p = self.profile
        return harvest.harvest_prompts(self.conversations, self.reader, p.probes.layers, p.layer)

    def documents(self, corpus: Corpus) -> Artifact:
        """Of a corpus, without the labelled prompts."""
        p, plain = self.profile, corpus in ("pretraining", "IT")
        probed = () if plain else tuple({a.key: a for a in (self.prompts, self.labelled)}.values())
        return corpora.documents(corpora.sources_of(corpus, p.sources), probed, p.seed)

    def text(self, corpus: Corpus, part: Part) -> Artifact:
        """Token sequences of a corpus, for training or, from other documents, for evaluation; no labelled prompt is in them."""
        turns = self.text("chat", part) if corpus == "IT" else None
        return sequences.text(self.documents(corpus), self.lm, self.profile.corpora, part, turns)

    def activations(self, corpus: Corpus, part: Part) -> Artifact:
        """Residuals of a corpus at the site."""
        return harvest.harvest(self.text(corpus, part), self.reader, (self.profile.layer,))

    def sae(self, variant: str, **fields: Any) -> SAEConfig:
        """An SAE config with the profile's dictionary size, threshold and bandwidth."""
        t = self.profile.training
        shared = {"latents": t.latents, "theta": t.theta, "bandwidth": t.bandwidth, "initial_l0": t.initial_l0}
        return SAEConfig(variant=variant, **{**shared, **fields})

    def train(
        self,
        corpus: Corpus | Mapping[Corpus, float],
        sae: SAEConfig,
        start: Artifact | None = None,
        share: float = 1.0,
        run: int = 0,
        checkpoints: tuple[float, ...] = (),
        **how: Any,
    ) -> Artifact:
        """An SAE trained on a corpus, or on several {corpus: weight}, from scratch or from ``start`` (then with the full penalty
        from its first step), for ``share`` of the profile's steps; runs differ in their seed. ``how``: ``checkpoint`` and
        ``redrawn`` of :func:`lib.sae.training.train`, and fields of :class:`lib.config.TrainingSection`."""
        p = self.profile
        begin = {name: how.pop(name) for name in ("checkpoint", "redrawn") if name in how}
        changes: dict[str, Any] = {"steps": max(1, round(share * p.training.steps))}
        changes |= {"sparsity_warmup": 0.0} if start is not None else {}
        changes |= {"checkpoints": checkpoints} if checkpoints else {}
        read: Any = {corpus: 1.0} if isinstance(corpus, str) else corpus
        read = tuple((self.activations(name, "train"), weight) for name, weight in read.items())
        section = p.training.model_copy(update=changes | how)
        return training.train(sae, read, p.layer, section, p.seed + run, start, **begin)

    def jumprelu(self, **fields: Any) -> SAEConfig:
        """A JumpReLU SAE at the headline sparsity, unless told."""
        return self.sae("jumprelu", **{"coefficient": self.profile.saes.coefficient, **fields})

    def finetuned(self, sae: SAEConfig, run: int, first: Corpus = "IT") -> tuple[Artifact, Artifact]:
        """An SAE on ``first``, and one that leaves it before its learning rate falls and goes on with chat: of equal numbers of steps."""
        share, steps = self.profile.saes.finetuning, self.profile.training.steps
        left = round((1 - share) * steps)
        begun = self.train(first, sae, run=run, checkpoints=(left / steps,))
        return begun, self.train("chat", sae, start=begun, run=run, share=share, checkpoint=left)

    @cached_property
    def saes(self) -> dict[str, list[Artifact]]:
        """The SAEs that notebooks share, one a seed. All have had the same number of steps.

        *IT* has read pretraining text as user turns, as long as those of chat, as the post's baseline; *finetuned* goes on from it;
        *chat* has read chat only. Beside them *pretraining*, on plain text, and on chat TopK, QF and Gated SAEs.
        """
        which, sae = self.profile.saes, self.jumprelu()
        seeds, few = range(which.seeds), range(which.fewer_seeds)
        it, tuned = zip(*(self.finetuned(sae, run) for run in seeds), strict=True)
        penalised = self.jumprelu(penalty=QuadraticFrequency(which.omegas[0]))
        return {
            "IT": [*it],
            "finetuned": [*tuned],
            "chat": [self.train("chat", sae, run=run) for run in seeds],
            "pretraining": [self.train("pretraining", sae, run=run) for run in few],
            "TopK": [self.train("chat", self.sae("topk", k=which.k), run=run) for run in few],
            "QF": [self.train("chat", penalised, run=run) for run in few],
            "Gated": [self.train("chat", self.sae("gated", coefficient=which.gated), run=run) for run in few[:3]],
        }

    @cached_property
    def halves(self) -> autointerp.Texts:
        """Held-out chat in two halves, each of other conversations: to explain latents from, and to score explanations on."""
        p, found = self.profile, []
        size = p.corpora.model_copy(update={"eval_tokens": p.autointerp.tokens})
        for part in (autointerp.half(self.documents("chat"), which) for which in (0, 1)):
            read = harvest.harvest(sequences.text(part, self.lm, size, "eval", None), self.reader, (p.layer,))
            shown = autointerp.windows(read, self.lm, p.layer, p.autointerp.window)
            vectors = views.embeddings(shown, wheels.wheel_hash(wheels.EMBEDDER_WHEEL[0]))
            found.append(autointerp.Text(read, shown, vectors))
        return found[0], found[1]

    def explained(self, sae: Artifact, run: int, name: str, by: Explainer | None = None, **how: Any) -> Artifact:
        """:func:`lib.latents.autointerp.evaluate`, by counting unless told; every second run takes the halves the other way round."""
        p, texts = self.profile, self.halves[:: -1 if run % 2 else 1]
        return autointerp.evaluate(sae, texts, p.layer, by or Best(), p.autointerp, p.seed + run, **how, name=name)

    def evaluate(self, trained: Artifact, corpus: Corpus, name: str) -> Artifact:
        """:func:`lib.sae.metrics.evaluate` on held-out text."""
        p, held_out = self.profile, self.activations(corpus, "eval")
        return metrics.evaluate(trained, held_out, p.layer, p.probes.bootstrap, p.seed, name=name)

    def fit(self, probe: Probe, *seen: View, change: Change = NOTHING, draws: int = 0) -> Artifact:
        """A probe fit on what it sees, a view for each SAE seed, crossed with ``draws`` of the split or as many as the profile has."""
        layer, draws = self.profile.layer, draws or self.profile.probes.draws
        return methods.fit(self.labelled, self.prompt_activations, layer, probe, seen, draws, change)

    def see(self, kind: type[Latents], saes: Sequence[Artifact], place: int | str | None = None) -> tuple[Latents, ...]:
        """Views of SAEs, one a seed, at the profile's position unless told; over the user's text where the place says so."""
        place, layer = self.profile.probes.position if place is None else place, self.profile.layer
        pools = (views.pooled(self.prompt_activations, sae, layer) if isinstance(place, str) else None for sae in saes)
        return tuple(kind(place, sae=sae, pooled=pool) for sae, pool in zip(saes, pools, strict=True))

    def few(self, *rules: methods.Rule, ks: tuple[int, ...] = ()) -> KSparse:
        """Probes on k columns that one of ``rules`` picks, by mean difference, raw or standardised, unless told; for the profile's k unless told."""
        rules = rules or (ByMeanDifference(), ByMeanDifference(standardised=True))
        return KSparse(ks or self.profile.probes.ks, self.profile.probes.few_penalties, rules)

    @property
    def linear(self) -> Linear:
        """A probe on all columns: logistic or ridge regression."""
        return Linear(self.profile.probes.penalties, self.profile.probes.ridges)

    @cached_property
    def embedding(self) -> Embedding:
        return Embedding(views.embeddings(self.labelled, wheels.wheel_hash(wheels.EMBEDDER_WHEEL[0])))

    @cached_property
    def baselines(self) -> dict[str, Artifact]:
        """Probes that need no SAE, each at its own choices."""
        q = self.profile.probes
        linear, site = self.linear, Residual(q.position)
        return {
            "dense": self.fit(linear, site),
            "dense, mean over user turn": self.fit(linear, Residual("mean user")),
            "dense, max over user turn": self.fit(linear, Residual("max user")),
            "attention": self.fit(Attention(q.decays, q.epochs), Tokens()),
            "difference of means": self.fit(DifferenceOfMeans(), site),
            "sentence embedding": self.fit(linear, self.embedding),
            "bag of words": self.fit(linear, Words()),
            "surface features": self.fit(linear, Surface()),
        }

    def bring(self, path: Path | str, to_finetune: bool = False, any_place: bool = False) -> Artifact:
        """An SAE from elsewhere (:func:`lib.sae.exchange.bring`), read at the site; to finetune, it is scaled to chat."""
        chats = self.activations("chat", "train") if to_finetune else None
        return exchange.bring(path, self.lm, self.profile.layer, chats, any_place)

    def table(self, fitted: Mapping[str, Fitted], name: str, **how: Any) -> Artifact:
        return tables.table(self.labelled, {label: _pick(one) for label, one in fitted.items()}, **how, name=name)

    def compare(self, step: Step, named: Mapping[str, Sequence[Fitted]], name: str, **how: Any) -> Artifact:
        """:func:`lib.probes.tables.differences`, first minus second, or :func:`lib.probes.tables.closed`: (top, low, high)."""
        picks = {label: tuple(_pick(one) for one in several) for label, several in named.items()}
        return step(self.labelled, picks, **how, name=name)


def _pick(fitted: Fitted) -> Pick:
    return (fitted, None) if isinstance(fitted, Artifact) else fitted


def _refuse_unknown_parameters() -> None:
    """Papermill only warns of a parameter that a notebook does not have; here it is an error."""
    shell = get_ipython()
    for cell in shell.user_ns.get("In", []) if shell is not None else []:
        assigned = re.findall(r"^(\w+) = ", cell, re.MULTILINE) if cell.startswith("# Parameters\n") else []
        if unknown := {*assigned} - {"profile", "frozen", "overrides"}:
            raise config.ConfigError(
                f"unknown parameter {', '.join(sorted(unknown))}: notebooks take profile, frozen and overrides; "
                "fields of the profile go into overrides"
            )


def open_study(profile: str, overrides: dict[str, Any] | None = None, frozen: bool = False) -> Study:
    """Open a profile's store and return its recipes: a notebook's first line. ConfigError if there is no such profile or field, or
    a value does not fit; ModelError if the model has no such layer, or fewer embeddings than its tokenizer has ids."""
    _refuse_unknown_parameters()
    loaded = config.load(profile, overrides)
    if frozen and (overrides or profile != "report"):
        raise config.ConfigError("frozen shows the results of profile report without overrides: drop one of them")
    store.open_store(profile, frozen)
    study = Study(loaded)
    if overrides or profile != "report":
        model.check_vocabulary(study.lm)
        for field, layers in (("layer", (loaded.layer,)), ("probes.layers", loaded.probes.layers)):
            try:
                model.check_layers(loaded.model, layers)
            except model.ModelError as error:
                raise model.ModelError(f"{error}: set {field}") from None
    return study
