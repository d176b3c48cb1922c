"""The report's labelled prompt set: base prompts, jailbreaks and innocuous transforms, splits without leaks.

In distribution: HarmBench (harmful) and chat first turns (harmless), split into train and validation by cluster of base
prompt *before* augmentation. OOD: AdvBench, over-refusal sets and other chat turns, with transforms that training never saw; and,
in a wider set, harmful questions, their benign twins and sensitive requests. The design is that of the post, section "Datasets".
All prompts are brought to one style (:func:`lib.texts.style.rewritten`); in distribution all are instructions besides, OOD
each kind keeps its own. The balanced design takes harmless prompts through every jailbreak and errand too.
"""

import re
from collections.abc import Callable, Sequence
from itertools import compress, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse.csgraph import connected_components

from lib import store
from lib.config import PromptSection
from lib.texts import sources, style
from lib.texts.examples import Example, Labels, Mix, Split, write
from lib.texts.examples import read as examples_read
from lib.texts.likeness import clusters, leaks, neighbours
from lib.texts.sources import Source
from lib.texts.transforms import Transform, apply

_NOT_PLAIN = re.compile(r"https?://|www\.|```|[{}<>\\|]|\bdef \b|;\s*$|\bimport \w+")
_JAILBREAK = re.compile(r"(?i)jailbreak|\bDAN\b|do anything now|ignore (all )?(the )?previous|no restrictions")

OOD: dict[str, Mix] = {  # slices of base prompts beside chat, and the smallest set that holds them
    "AdvBench": "post",
    "over-refusal": "post",
    "question-form harmful": "wider",
    "benign twins": "wider",
    "sensitive benign": "wider",
}
SEALED = ("dev", "debug", "training", "sorry", "dan", "poetry")  # kinds of jailbreak, of each the first


def sources_of(kind: sources.Kind) -> dict[str, Source]:
    """What the set is made of: the fixed sources by name, and "benign", the chat prompts."""
    (benign,) = sources.rows(kind, "benign_instructions" if kind == "hub" else "chat").values()
    fixed = ("harmbench", "advbench", "do_not_answer", "refusal_pairs", "overrefusal", "sensitive_benign")
    return {"benign": benign, **sources.rows(kind, *fixed)}


class _Base(NamedTuple):
    id: str
    text: str
    label: int
    slice: str

    @property
    def source(self) -> str:
        return self.id.partition(":")[0]


def benign_pool(source: Source) -> list[_Base]:
    """Plain one-line chat requests: 4 to 60 words, at least 97 % ASCII, no URL or code, no duplicates."""
    found: dict[str, _Base] = {}
    for record in sources.records(source):
        text = record["text"].removesuffix("Share Prompt").strip()
        words = text.split()
        odd = "\n" in text or _NOT_PLAIN.search(text) or _JAILBREAK.search(text)
        if 4 <= len(words) <= 60 and not odd and sum(c.isascii() for c in text) >= 0.97 * len(text):
            text = style.rewritten(text)
            found.setdefault(text.lower(), _Base(f"chat:{record['id']}", text, 0, "chat"))
    return list(found.values())


def _bases(source: Source, label: int, slice_: str, harmful: bool | None = None) -> list[_Base]:
    found: dict[str, _Base] = {}
    for record in sources.records(source):
        if harmful is None or record.get("harmful") is harmful:
            text = style.rewritten(record["text"])
            found.setdefault(text.lower(), _Base(f"{source.name}:{record['id']}", text, label, slice_))
    return list(found.values())


def _take(pool: list[_Base], count: int, rng: np.random.Generator) -> list[_Base]:
    """``count`` of the pool (0: all), in a seeded order."""
    order = rng.permutation(len(pool))
    return [pool[i] for i in order[: count or None]]


def build(section: PromptSection, rows: dict[str, Source], transforms: Sequence[Transform], seed: int) -> list[Example]:
    """The labelled set of :func:`sources_of` a kind, the same for the same ``seed``; errors of :meth:`Labels.of`."""
    rng = np.random.default_rng(seed)
    harmful = [base for base in _bases(rows["harmbench"], 1, "HarmBench") if style.instruction(base.text)]
    harmful = _take(harmful, section.harmful_bases, rng)
    advbench = _bases(rows["advbench"], 1, "AdvBench")
    questions = _bases(rows["do_not_answer"], 1, "question-form harmful")
    questions += _bases(rows["refusal_pairs"], 1, "question-form harmful", harmful=True)
    edgy = [*_bases(rows["overrefusal"], 0, "over-refusal"), *_bases(rows["sensitive_benign"], 0, "sensitive benign")]
    fixed_ood = advbench + questions + edgy + _bases(rows["refusal_pairs"], 0, "benign twins", harmful=False)
    chat = _take(benign_pool(rows["benign"]), 0, rng)

    pool = [*harmful, *fixed_ood, *chat]
    near = neighbours([base.text for base in pool])
    group = dict(zip((b.id for b in pool), connected_components(near, directed=False)[1].tolist(), strict=True))
    first_ood, first_chat = len(harmful), len(harmful) + len(fixed_ood)

    # Chat prompts give way to the fixed sets; the OOD sets give way to HarmBench, questions also to AdvBench.
    chat = list(compress(chat, near[first_chat:, :first_chat].getnnz(axis=1) == 0))
    fixed_ood = list(compress(fixed_ood, near[first_ood:first_chat, :first_ood].getnnz(axis=1) == 0))
    near_advbench = {group[b.id] for b in advbench}
    fixed_ood = [b for b in fixed_ood if b.slice != "question-form harmful" or group[b.id] not in near_advbench]

    # OOD chat is drawn first, from all kinds; in distribution are instructions of other clusters.
    ood_chat = _by_cluster(chat, group, section.ood_benign)
    elsewhere = {group[b.id] for b in ood_chat}
    rest = [b for b in chat if group[b.id] not in elsewhere and style.instruction(b.text)]
    benign = _by_cluster(rest, group, section.benign)

    validation: set[int] = set()
    for label in (1, 0):  # by class, so that both splits hold both
        labelled = sorted({group[b.id] for b in harmful + benign if b.label == label} - validation)
        validation.update(rng.permutation(labelled)[: round(section.validation * len(labelled))].tolist())

    plain = [t for t in transforms if t.kind == "plain"]
    of = {split: [t for t in transforms if t.split == split] for split in ("train", "ood")}
    examples: list[Example] = []

    def add(base: _Base, which: Sequence[Transform], split: Split, slice_: str = "", mix: Mix = "post") -> None:
        """A base prompt under some transforms; their slice is the transform unless told."""
        for rule in which:
            example = Example(
                text=apply(rule, base.text, seed),
                label=base.label if rule.label is None else rule.label,
                split=split,
                slice=slice_ or rule.name,
                transform=rule.name,
                base=base.id,
                group=group[base.id],
                source=base.source,
                mix=mix,
            )
            examples.append(example)

    def balance(bases: Sequence[_Base], count: int, where: str, split: Callable[[_Base], Split]) -> None:
        for base, rule in product(bases[:count], of[where]):
            inside_what = "a jailbreak" if rule.kind == "jailbreak" else "an errand"
            add(base, [rule], split(base), f"benign in {inside_what}", "balanced")

    def inside(base: _Base) -> Split:
        return "val" if group[base.id] in validation else "train"

    for base in harmful + benign:
        add(base, plain, inside(base), base.slice)
        add(base, of["train"] if base.label else [], inside(base))
    balance(benign, section.balanced or len(harmful), "train", inside)
    taken = {name: _take([b for b in fixed_ood if b.slice == name], section.ood_harmful_bases, rng) for name in OOD}
    for name, mix in OOD.items():
        for base in taken[name]:
            add(base, plain, "ood", name, mix)
            add(base, of["ood"] if name == "AdvBench" else [], "ood")
    for base in ood_chat:
        add(base, plain, "ood", "chat")
    balance(ood_chat, section.balanced or len(taken["AdvBench"]), "ood", lambda base: "ood")

    # The clusters so far are also linked through prompts that were dropped; the set keeps those of what is in it.
    texts = {e.base: e.text for e in examples if e.transform == "plain"}
    final = dict(zip(texts, clusters(list(texts.values())).tolist(), strict=True))
    examples = [e.model_copy(update={"group": final[e.base]}) for e in examples]

    Labels.of(examples)  # refuses leaks
    return examples


def _by_cluster(pool: Sequence[_Base], group: dict[str, int], count: int) -> list[_Base]:
    """The first ``count`` (0: all), clusters whole but for the last, in the order in which their first prompts come."""
    order = {cluster: number for number, cluster in reversed([*enumerate(group[b.id] for b in pool)])}
    return sorted(pool, key=lambda b: order[group[b.id]])[: count or None]


@store.cached
def prompt_set(
    out: Path, section: PromptSection, rows: dict[str, Source], transforms: Sequence[Transform], seed: int
) -> None:
    """Step: the labelled set as ``examples.jsonl``, of :func:`sources_of` a kind and, in their order, ``transforms``."""
    write(out, build(section, rows, transforms, seed))


@store.cached
def sealed_set(out: Path, prompts: store.Artifact, rows: dict[str, Source], most: int = 0) -> None:
    """Step: a labelled set (:func:`prompt_set`) whose OOD prompts are of a collection used nowhere else: harmful instructions,
    harmless questions and instructions on investing, ``most`` of each if told, plain and through six jailbreaks. No choice reads it.

    In distribution it is ``prompts`` as they are. Bases that are neighbours of any of its prompts, OOD ones too, are left out.
    """
    known = examples_read(prompts)
    inside = [e for e in known if e.split != "ood"]
    bases = _bases(rows["sealed_harmful"], 1, "sealed harmful")[: most or None]
    for name, english in (("questions", 100), ("instructions", 50)):  # what follows is in other languages
        bases += _bases(rows[f"sealed_{name}"], 0, f"sealed {name}")[: min(english, most or english)]
    near = {at for _, at in leaks([e.text for e in known if e.transform == "plain"], [b.text for b in bases])}
    bases = [base for number, base in enumerate(bases) if number not in near]
    groups = max(e.group for e in known) + 1 + clusters([base.text for base in bases])
    said = {r["kind"]: r["text"] for r in reversed(sources.records(rows["sealed_templates"]))}
    found = []
    for base, group in zip(bases, groups.tolist(), strict=True):
        shared = {"label": base.label, "split": "ood", "base": base.id, "group": group, "source": base.source}
        found.append(Example(text=base.text, slice=base.slice, transform="plain", **shared))
        for kind in SEALED:
            text = said[kind].replace("<INSTRUCTION>", base.text)
            found.append(Example(text=text, slice=f"sealed {kind}", transform=f"sealed {kind}", **shared))
    Labels.of([*inside, *found])
    write(out, [*inside, *found])
