"""Documents that SAEs are trained on: pretraining text, and chat transcripts without the probe prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lib import prompts, sources, store

Kind = Literal["wheels", "hub"]


def pretraining(kind: Kind) -> list[str]:
    """Articles of encyclopaedia and news text."""
    news = [] if kind == "hub" else [record["text"] for record in sources.load("news")]
    return [record["text"] for record in sources.load("wikipedia", kind)] + news


def chats(kind: Kind, excluded: list[str]) -> list[list[dict[str, str]]]:
    """Conversations, as turns {"role", "content"}, none of whose first turns is one of ``excluded`` or its neighbour.

    Of conversations with like openings (the first 400 characters) the first is kept, so that evaluation text does not
    open as training text does.
    Neighbours are those of :func:`lib.prompts.neighbours`. A text more than 2.5 times as long as every excluded one
    cannot be a neighbour and is not compared.
    """
    records = list({r["text"].lower(): r for r in sources.load("chat", kind)}.values())
    longest = max(map(len, excluded), default=0) / prompts.LEAK + 8
    short = [i for i, record in enumerate(records) if len(record["text"]) <= longest]
    hit = {short[j] for _, j in prompts.leaks(excluded, [records[i]["text"] for i in short])} if excluded else set()
    banned = {text.lower() for text in excluded}
    free = [r["turns"] for i, r in enumerate(records) if i not in hit and r["text"].lower() not in banned]
    openings = prompts.clusters(["\n".join(turn["content"] for turn in turns)[:400] for turns in free])
    return [free[i] for i in sorted(np.unique(openings, return_index=True)[1].tolist())]


@store.cached
def documents(
    out: Path, corpus: Literal["pretraining", "chat"], kind: Kind, prompt_set: store.Artifact, seed: int, data: str
) -> None:
    """Step: the documents of a corpus in a seeded order, one JSON value a line (a text, or a list of turns).

    ``data`` is :func:`lib.sources.fingerprint`.
    """
    if corpus == "pretraining":
        found: list[Any] = list(pretraining(kind))
    else:
        plain = [e.text for e in prompts.read(prompt_set) if e.transform == "plain"]
        found = list(chats(kind, plain))
    order = np.random.default_rng(seed).permutation(len(found))
    with (out / "documents.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(found[i]) + "\n" for i in order)


def read(documents_: store.Artifact) -> list[Any]:
    """Documents of a :func:`documents` artifact."""
    text = (documents_.path / "documents.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
