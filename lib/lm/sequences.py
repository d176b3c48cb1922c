"""Token sequences to run the model on: windows of documents, chat contexts, rollouts, prompts.

The first token is never kept: it is an attention sink whose norm is two orders of magnitude above the rest. Template tokens that
open every chat context alike are not kept either: their activations are constants.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from safetensors.numpy import load_file, save_file

from lib import store
from lib.config import CorpusSection, Expected
from lib.lm import answers, model, spans
from lib.lm.model import Pinned
from lib.texts import corpora, examples

Part = Literal["train", "eval"]
Row = tuple[list[int], int, int]  # token ids; of them, start and stop of what is kept


class SequenceError(Expected, ValueError):
    """Texts that cannot make the sequences asked for."""


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
        return int((self.keep_stop - self.keep_start).sum())

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Self:
        """From rows; ValueError if a kept range holds the first token or leaves its sequence."""
        rows = list(rows)
        for ids, start, stop in rows:
            if not 1 <= start <= stop <= len(ids):
                raise ValueError(f"kept range {start}:{stop} of {len(ids)} tokens; the first is never kept")
        offsets = np.cumsum([0, *(len(ids) for ids, _, _ in rows)], dtype=np.int64)
        starts, stops = np.array([row[1:] for row in rows], np.int32).reshape(-1, 2).T
        flat = [np.zeros(0, np.int32), *(np.asarray(ids, np.int32) for ids, _, _ in rows)]
        return cls(np.concatenate(flat), offsets, starts, stops)

    def save(self, path: Path) -> None:
        save_file({name: np.ascontiguousarray(column) for name, column in vars(self).items()}, path)


def read(sequences: store.Artifact) -> Sequences:
    """Sequences of any step of this module."""
    return Sequences(**load_file(sequences.path / "sequences.safetensors"))


def _within(rows: Iterable[Row], budget: int, what: str) -> list[Row]:
    """The first rows that hold ``budget`` kept tokens, the last one cut to fit exactly."""
    taken, left = [], budget
    for ids, start, stop in rows:
        stop = min(stop, start + left)
        taken.append((ids[:stop], start, stop))
        left -= stop - start
        if left == 0:
            return taken
    raise SequenceError(f"{what} has only {budget - left} tokens, {budget} were asked for: lower corpora.*_tokens")


def _part(documents: list[Any], part: Part) -> list[Any]:
    """Evaluation documents are the first tenth of the seeded order, training documents the rest."""
    cut = max(2, round(0.1 * len(documents)))
    return documents[:cut] if part == "eval" else documents[cut:]


def _windows(tokenizer: Any, documents: Iterable[str], context: int) -> Iterable[Row]:
    opening = list(tokenizer("")["input_ids"])  # the tokens that open every text, if the model has such
    step = context - len(opening)
    for text in documents:
        ids = spans.plain_ids(tokenizer, text)
        for at in range(0, len(ids), step):
            window = opening + ids[at : at + step]
            if len(window) >= 16:
                yield window, max(1, len(opening)), len(window)


def _unchanged(make: Callable[..., Any], tokenizer: Any, found: Iterable[Any], *how: Any) -> Iterator[Any]:
    """Chats or transcripts of what is found, without texts that the model's template would change."""
    for each in found:
        with suppress(ValueError):
            yield make(tokenizer, each, *how)


def _chat_rows(tokenizer: Any, found: Iterable[list[int]]) -> Iterable[Row]:
    constant = max(1, spans.chat(tokenizer, "x").user.start)
    return ((ids, constant, len(ids)) for ids in found if len(ids) > constant)


@store.cached
def pretraining(out: Path, documents: store.Artifact, lm: Pinned, section: CorpusSection, part: Part) -> None:
    """Step: windows of pretraining text, ``train_tokens`` or ``eval_tokens`` kept."""
    budget = section.train_tokens if part == "train" else section.eval_tokens
    windows = _windows(model.tokenizer(lm), _part(corpora.read(documents), part), section.context)
    Sequences.of(_within(windows, budget, f"pretraining text ({part})")).save(out / "sequences.safetensors")


@store.cached
def on_policy(out: Path, documents: store.Artifact, lm: Pinned, section: CorpusSection, seed: int) -> None:
    """Step: the model's own answers to first turns of training conversations, with their prompts."""
    loaded = model.load(lm)
    constant, asked, found = spans.chat(loaded.tokenizer, "x").user.start, 0, list[list[int]]()
    # From the end of the seeded order, which transcripts reach last: the two parts of the chat corpus do not overlap.
    first = (turns[0]["content"] for turns in reversed(_part(corpora.read(documents), "train")))
    for chat in _unchanged(spans.chat, loaded.tokenizer, first):
        if len(chat.user) <= 64:
            found.append(chat.ids)
            asked += len(chat.ids) - constant
        if asked >= section.rollout_tokens:
            break
    rolled = answers.rollouts(loaded, found, section.rollout_length, section.rollout_tokens, seed, constant)
    Sequences.of(_chat_rows(loaded.tokenizer, rolled)).save(out / "sequences.safetensors")


@store.cached
def chat(
    out: Path, documents: store.Artifact, rolled: store.Artifact | None, lm: Pinned, section: CorpusSection, part: Part
) -> None:
    """Step: chat contexts, ``train_tokens`` or ``eval_tokens`` kept: rollouts where given, then transcripts."""
    tokenizer, own = model.tokenizer(lm), Sequences.of([]) if rolled is None else read(rolled)
    budget = section.train_tokens if part == "train" else section.eval_tokens
    longest = spans.chat(tokenizer, "x").user.start + section.context
    transcripts = _unchanged(spans.transcript, tokenizer, _part(corpora.read(documents), part), longest)
    rows = _chat_rows(tokenizer, itertools.chain((own[i].tolist() for i in range(len(own))), transcripts))
    Sequences.of(_within(rows, budget, f"chat text ({part})")).save(out / "sequences.safetensors")


@store.cached
def labelled(out: Path, prompts: store.Artifact, lm: Pinned, part: Literal["all", "user"], limit: int = 1024) -> None:
    """Step: every prompt of a labelled set, its text cut to ``limit`` tokens or what the model can read; kept is all but the
    first token, or the user's text alone. ``spans.json`` has the tokens before the user's text and after it, and how many
    prompts were cut: {system, tail, cut}. A token that joins text and template counts as the text's. SequenceError names a
    prompt of which nothing is kept."""
    tokenizer, chats = model.tokenizer(lm), list[spans.Chat]()
    most = model.positions(lm)
    for number, example in enumerate(examples.read(prompts)):
        which = f"prompt {number} ({example.base})"
        try:
            chats.append(spans.chat(tokenizer, example.text, limit, most))
        except ValueError as error:
            raise SequenceError(f"{which}: {error}") from None
        if chats[-1].user.stop <= 1:  # possible where the template has nothing before it
            raise SequenceError(f"{which} is the first token alone, which is never kept: drop it")
        if not chats[-1].tail:
            raise SequenceError(
                f"{which} has no token of the template after it, which probes read: use another template"
            )
    kept = ((1, len(c.ids)) if part == "all" else (max(1, c.user.start), c.user.stop) for c in chats)
    Sequences.of((c.ids, *span) for c, span in zip(chats, kept, strict=True)).save(out / "sequences.safetensors")
    # Of the template, so the same for all but where one of its tokens holds a text's end too: then places count from the end.
    lengths = {"system": min(c.user.start for c in chats), "tail": min(len(c.tail) for c in chats)}
    (out / "spans.json").write_text(json.dumps(lengths | {"cut": sum(c.cut for c in chats)}), encoding="utf-8")


@store.result
def cut(sequences: store.Artifact) -> int:
    """Step: how many prompts of :func:`labelled` were cut."""
    return int(json.loads((sequences.path / "spans.json").read_text(encoding="utf-8"))["cut"])
