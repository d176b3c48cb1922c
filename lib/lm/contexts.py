"""Token sequences to run the model on: windows of documents, chat contexts, rollouts, prompts.

Each sequence says which of its tokens are kept when the residual stream is read. The first token is never kept: it is
an attention sink whose norm is two orders of magnitude above the rest. Template tokens that open every chat context
alike are not kept either: their activations are constants.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file, save_file

from lib import corpora, prompts, store
from lib.config import CorpusSection, ModelSection
from lib.lm import model, rollouts, spans


@dataclass(frozen=True)
class Sequences:
    """Ragged token sequences: ``ids`` [tokens] int32, ``offsets`` [n+1] int64, kept range per sequence [n] int32."""

    ids: np.ndarray
    offsets: np.ndarray
    keep_start: np.ndarray
    keep_stop: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def kept(self) -> int:
        """Number of tokens kept."""
        return int((self.keep_stop - self.keep_start).sum())

    @classmethod
    def of(cls, rows: Iterable[tuple[list[int], int, int]]) -> Sequences:
        """From (ids, keep_start, keep_stop) rows.

        Raises:
            ValueError: a kept range holds the first token or leaves its sequence.
        """
        rows = list(rows)
        for ids, start, stop in rows:
            if not 1 <= start <= stop <= len(ids):
                raise ValueError(
                    f"kept range {start}:{stop} of a sequence of {len(ids)} tokens; the first is never kept"
                )
        lengths = np.array([len(ids) for ids, _, _ in rows], np.int64)
        flat = np.concatenate([np.asarray(ids, np.int32) for ids, _, _ in rows]) if rows else np.zeros(0, np.int32)
        starts = np.array([start for _, start, _ in rows], np.int32)
        stops = np.array([stop for _, _, stop in rows], np.int32)
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), starts, stops)

    def save(self, path: Path) -> None:
        save_file({k: np.ascontiguousarray(v) for k, v in self.__dict__.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Sequences:
        return cls(**load_file(path))


def read(sequences: store.Artifact) -> Sequences:
    """Sequences of any step of this module."""
    return Sequences.load(sequences.path / "sequences.safetensors")


def _within(rows: Iterable[tuple[list[int], int, int]], budget: int, what: str) -> list[tuple[list[int], int, int]]:
    """The first rows that hold ``budget`` kept tokens, the last one cut to fit exactly."""
    taken, left = [], budget
    for ids, start, stop in rows:
        stop = min(stop, start + left)
        taken.append((ids[:stop], start, stop))
        left -= stop - start
        if left == 0:
            return taken
    raise ValueError(f"{what} has only {budget - left} tokens, {budget} were asked for: lower corpora.*_tokens")


def _windows(tokenizer: Any, documents: Iterable[str], context: int) -> Iterable[tuple[list[int], int, int]]:
    opening = list(tokenizer("")["input_ids"])  # the tokens that open every text, if the model has such
    step = context - len(opening)
    for text in documents:
        ids = spans.plain_ids(tokenizer, text)
        for at in range(0, len(ids), step):
            window = opening + ids[at : at + step]
            if len(window) >= 16:
                yield window, max(1, len(opening)), len(window)


def _chat_rows(tokenizer: Any, found: Iterable[list[int]]) -> Iterable[tuple[list[int], int, int]]:
    constant = max(1, len(spans.chat(tokenizer, "x").system))
    for ids in found:
        if len(ids) > constant:
            yield ids, constant, len(ids)


Part = Literal["train", "eval"]


def _part(documents: list[Any], part: Part, share: float) -> list[Any]:
    """Evaluation documents come from the front of the seeded order, training documents from the rest."""
    cut = max(2, round(share * len(documents)))
    return documents[:cut] if part == "eval" else documents[cut:]


@store.cached
def pretraining(out: Path, documents: store.Artifact, lm: ModelSection, section: CorpusSection, part: Part) -> None:
    """Step: windows of pretraining text, ``train_tokens`` or ``eval_tokens`` kept."""
    budget = section.train_tokens if part == "train" else section.eval_tokens
    texts = _part(corpora.read(documents), part, 0.1)
    rows = _within(_windows(model.tokenizer(lm), texts, section.context), budget, f"pretraining text ({part})")
    Sequences.of(rows).save(out / "sequences.safetensors")


@store.cached
def on_policy(out: Path, documents: store.Artifact, lm: ModelSection, section: CorpusSection, seed: int) -> None:
    """Step: the model's own answers to first turns of training conversations, with their prompts."""
    loaded = model.load(lm)
    constant, asked = len(spans.chat(loaded.tokenizer, "x").system), 0
    found: list[list[int]] = []
    # From the end of the seeded order, which transcripts reach last: the two parts of the chat corpus do not overlap.
    for turns in reversed(_part(corpora.read(documents), "train", 0.1)):
        chat = spans.chat(loaded.tokenizer, turns[0]["content"])
        if len(chat.user) <= 64:
            found.append(chat.ids)
            asked += len(chat.ids) - constant
        if asked >= section.rollout_tokens:
            break
    answers = rollouts.rollouts(loaded, found, section.rollout_length, section.rollout_tokens, seed, constant)
    Sequences.of(_chat_rows(loaded.tokenizer, answers)).save(out / "sequences.safetensors")


@store.cached
def chat(
    out: Path,
    documents: store.Artifact,
    rolled: store.Artifact | None,
    lm: ModelSection,
    section: CorpusSection,
    part: Part,
) -> None:
    """Step: chat contexts, ``train_tokens`` or ``eval_tokens`` kept: rollouts first (training only), then transcripts."""
    tokenizer = model.tokenizer(lm)
    rows: list[tuple[list[int], int, int]] = []
    budget = section.train_tokens if part == "train" else section.eval_tokens
    if rolled is not None and part == "train":
        own = read(rolled)
        rows = [(own[i].tolist(), int(own.keep_start[i]), int(own.keep_stop[i])) for i in range(len(own))]
        if sum(stop - start for _, start, stop in rows) > budget:
            rows = _within(rows, budget, "rollouts")
    budget -= sum(stop - start for _, start, stop in rows)
    constant = len(spans.chat(tokenizer, "x").system)
    conversations = _part(corpora.read(documents), part, 0.1)
    transcripts = (spans.transcript(tokenizer, turns, constant + section.context) for turns in conversations)
    if budget:
        rows += _within(_chat_rows(tokenizer, transcripts), budget, f"chat text ({part})")
    Sequences.of(rows).save(out / "sequences.safetensors")


@store.cached
def labelled(
    out: Path, prompt_set: store.Artifact, lm: ModelSection, part: Literal["all", "user"], limit: int = 1024
) -> None:
    """Step: every prompt of a labelled set, its text cut to ``limit`` tokens; kept is all but the first token, or the
    user's text alone. ``spans.json`` has the tokens before the user's text and after it: {system, tail}.

    Raises:
        ValueError: a prompt has no tokens; it says which.
    """
    tokenizer, chats = model.tokenizer(lm), []
    for number, example in enumerate(prompts.read(prompt_set)):
        try:
            chats.append(spans.chat(tokenizer, example.text, limit=limit))
        except ValueError as error:
            raise ValueError(f"prompt {number} ({example.base}): {error}") from None
        if chats[-1].user.stop <= 1:  # possible where the template has nothing before it
            raise ValueError(f"prompt {number} ({example.base}) is the first token alone, which is never kept: drop it")
    kept = ((1, len(c.ids)) if part == "all" else (max(1, c.user.start), c.user.stop) for c in chats)
    Sequences.of((c.ids, *span) for c, span in zip(chats, kept, strict=True)).save(out / "sequences.safetensors")
    lengths = {"system": len(chats[0].system), "tail": len(chats[0].tail)}  # of the template, so the same for all
    (out / "spans.json").write_text(json.dumps(lengths), encoding="utf-8")
