"""The report's labelled prompt set: base prompts, jailbreaks and innocuous transforms, splits without leaks.

In distribution: HarmBench (harmful) and chat first turns (harmless), split into train and validation by cluster of base
prompt *before* augmentation. OOD: AdvBench, question-form harmful sets, over-refusal sets, other chat turns, with
transforms that training never saw. The design is that of the post, section "Datasets".
"""

import re
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse.csgraph import connected_components

from lib import store
from lib.config import PromptSection
from lib.texts import sources
from lib.texts.examples import Example, Labels, Split, write
from lib.texts.likeness import clusters, neighbours
from lib.texts.sources import Source
from lib.texts.transforms import Transform, apply

_NOT_PLAIN = re.compile(r"https?://|www\.|```|[{}<>\\|]|\bdef \b|;\s*$|\bimport \w+")
_JAILBREAK = re.compile(r"(?i)jailbreak|\bDAN\b|do anything now|ignore (all )?(the )?previous|no restrictions")


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


def benign_pool(source: Source) -> list[_Base]:
    """Plain one-line chat requests: 4 to 60 words, at least 97 % ASCII, no URL or code, no duplicates."""
    found: dict[str, _Base] = {}
    for record in sources.records(source):
        text = record["text"].removesuffix("Share Prompt").strip()
        words = text.split()
        odd = "\n" in text or _NOT_PLAIN.search(text) or _JAILBREAK.search(text)
        if 4 <= len(words) <= 60 and not odd and sum(c.isascii() for c in text) >= 0.97 * len(text):
            found.setdefault(" ".join(words).lower(), _Base(f"chat:{record['id']}", text, 0, "chat"))
    return list(found.values())


def _bases(source: Source, label: int, slice_: str, harmful: bool | None = None) -> list[_Base]:
    found: dict[str, _Base] = {}
    for record in sources.records(source):
        if harmful is None or record.get("harmful") is harmful:
            base = _Base(f"{source.name}:{record['id']}", record["text"], label, slice_)
            found.setdefault(record["text"].lower(), base)
    return list(found.values())


def _take(pool: list[_Base], count: int, rng: np.random.Generator) -> list[_Base]:
    """``count`` of the pool (0: all), in a seeded order."""
    order = rng.permutation(len(pool))
    return [pool[i] for i in order[: count or None]]


def build(section: PromptSection, rows: dict[str, Source], transforms: Sequence[Transform], seed: int) -> list[Example]:
    """The labelled set of :func:`sources_of` a kind, the same for the same ``seed``; errors of :meth:`Labels.of`."""
    rng = np.random.default_rng(seed)
    harmful = _take(_bases(rows["harmbench"], 1, "HarmBench"), section.harmful_bases, rng)
    advbench = _bases(rows["advbench"], 1, "AdvBench")
    questions = _bases(rows["do_not_answer"], 1, "question-form harmful")
    questions += _bases(rows["refusal_pairs"], 1, "question-form harmful", harmful=True)
    edgy = [base for name in ("overrefusal", "sensitive_benign") for base in _bases(rows[name], 0, "over-refusal")]
    fixed_ood = advbench + questions + edgy + _bases(rows["refusal_pairs"], 0, "benign twins", harmful=False)
    chat = _take(benign_pool(rows["benign"]), 2 * (section.benign + section.ood_benign), rng)

    pool = [*harmful, *fixed_ood, *chat]
    near = neighbours([base.text for base in pool])
    group = dict(zip((b.id for b in pool), connected_components(near, directed=False)[1].tolist(), strict=True))
    first_ood, first_chat = len(harmful), len(harmful) + len(fixed_ood)

    # Chat prompts give way to the fixed sets; the OOD sets give way to HarmBench, questions also to AdvBench.
    chat = list(compress(chat, near[first_chat:, :first_chat].getnnz(axis=1) == 0))
    fixed_ood = list(compress(fixed_ood, near[first_ood:first_chat, :first_ood].getnnz(axis=1) == 0))
    near_advbench = {group[b.id] for b in advbench}
    fixed_ood = [b for b in fixed_ood if b.slice != "question-form harmful" or group[b.id] not in near_advbench]

    benign: list[_Base] = []
    ood_chat: list[_Base] = []
    by_cluster: dict[int, list[_Base]] = {}
    for base in chat:
        by_cluster.setdefault(group[base.id], []).append(base)
    for cluster in rng.permutation(sorted(by_cluster)):
        target = benign if len(benign) < section.benign else ood_chat
        room = (section.benign if target is benign else section.ood_benign) - len(target)
        target.extend(by_cluster[int(cluster)][: max(room, 0)])

    validation: set[int] = set()
    for label in (1, 0):  # by class, so that both splits hold both
        labelled = sorted({group[b.id] for b in harmful + benign if b.label == label} - validation)
        validation.update(rng.permutation(labelled)[: round(section.validation * len(labelled))].tolist())
    inside: dict[str, Split] = {b.id: "val" if group[b.id] in validation else "train" for b in harmful + benign}

    examples: list[Example] = []

    def add(base: _Base, which: Sequence[Transform], split: Split, slice_: str = "", overall: bool = True) -> None:
        examples.extend(
            Example(
                text=apply(rule, base.text, seed),
                label=base.label if rule.label is None else rule.label,
                split=split,
                slice=slice_ or rule.name,
                transform=rule.name,
                base=base.id,
                group=group[base.id],
                overall=overall,
            )
            for rule in which
        )

    plain = [t for t in transforms if t.kind == "plain"]
    of = {split: [t for t in transforms if t.split == split] for split in ("train", "ood")}
    jailbreaks = {split: [t for t in of[split] if t.kind == "jailbreak"] for split in of}
    for base in harmful + benign:
        add(base, plain, inside[base.id], base.slice)
        add(base, of["train"] if base.label else [], inside[base.id])
    for base in benign[: section.train_wrapped]:
        add(base, jailbreaks["train"], inside[base.id], "benign in a jailbreak", overall=False)
    for name in ("AdvBench", "question-form harmful", "over-refusal", "benign twins"):
        for base in _take([b for b in fixed_ood if b.slice == name], section.ood_harmful_bases, rng):
            add(base, plain, "ood", name)
            add(base, of["ood"] if name == "AdvBench" else [], "ood")
    for number, base in enumerate(ood_chat):
        add(base, plain, "ood", "chat")
        wrapped = jailbreaks["ood"] if number < section.ood_wrapped else []
        add(base, wrapped, "ood", "benign in a jailbreak", overall=False)

    # The clusters so far are also linked through prompts that were dropped; the set keeps those of what is in it.
    texts = {e.base: e.text for e in examples if e.transform == "plain"}
    final = dict(zip(texts, clusters(list(texts.values())).tolist(), strict=True))
    examples = [e.model_copy(update={"group": final[e.base]}) for e in examples]

    Labels.of(examples)  # refuses leaks
    return examples


@store.cached
def prompt_set(
    out: Path, section: PromptSection, rows: dict[str, Source], transforms: Sequence[Transform], seed: int
) -> None:
    """Step: the labelled set as ``examples.jsonl``, of :func:`sources_of` a kind and, in their order, ``transforms``."""
    write(out, build(section, rows, transforms, seed))
