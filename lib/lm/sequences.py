"""Token sequences to run the model on: windows of documents, single user turns, prompts.

The first token is never kept: it is an attention sink whose norm is two orders of magnitude above the rest. Template tokens that
open every chat context alike are not kept either: their activations are constants.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from safetensors.numpy import load_file, save_file

from lib import store
from lib.config import CorpusSection, Expected
from lib.lm import model, spans
from lib.lm.model import Pinned
from lib.texts import corpora, examples
from lib.texts.corpora import Part


class Row(NamedTuple):
    """A sequence: token ids; of them, start and stop of what is kept, and of the template's tokens after a user's text."""

    ids: list[int]
    start: int
    stop: int
    tail_start: int = 0
    tail_stop: int = 0


class SequenceError(Expected, ValueError):
    """Texts that cannot make the sequences asked for."""


@dataclass(frozen=True)
class Sequences:
    """Ragged token sequences: ``ids`` [tokens] int32, ``offsets`` [n+1] int64; per sequence [n] int32 what is kept, and the
    template's tokens after the user's text, if there are such."""

    ids: np.ndarray
    offsets: np.ndarray
    keep_start: np.ndarray
    keep_stop: np.ndarray
    tail_start: np.ndarray
    tail_stop: np.ndarray

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
        rows = [Row(*row) for row in rows]
        for row in rows:
            if not 1 <= row.start <= row.stop <= len(row.ids):
                raise ValueError(f"kept range {row.start}:{row.stop} of {len(row.ids)} tokens; the first is never kept")
        offsets = np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int64)
        ranges = np.array([row[1:] for row in rows], np.int32).reshape(-1, 4).T
        flat = [np.zeros(0, np.int32), *(np.asarray(row.ids, np.int32) for row in rows)]
        return cls(np.concatenate(flat), offsets, *ranges)

    def save(self, path: Path) -> None:
        save_file({name: np.ascontiguousarray(column) for name, column in vars(self).items()}, path)


def read(sequences: store.Artifact) -> Sequences:
    """Sequences of any step of this module."""
    return Sequences(**load_file(sequences.path / "sequences.safetensors"))


def _within(rows: Iterable[Row], budget: int, what: str) -> list[Row]:
    """The first rows that hold ``budget`` kept tokens, the last one cut to fit exactly."""
    taken, left = [], budget
    for row in rows:
        stop = min(row.stop, row.start + left)
        taken.append(row._replace(ids=row.ids[:stop], stop=stop))
        left -= stop - row.start
        if left == 0:
            return taken
    raise SequenceError(f"{what} has only {budget - left} tokens, {budget} were asked for: lower corpora.*_tokens")


def _windows(tokenizer: Any, documents: Iterable[str], context: int) -> Iterable[Row]:
    opening = list(tokenizer("")["input_ids"])  # the tokens that open every text, if the model has such
    step = context - len(opening)
    for text in documents:
        ids = spans.plain_ids(tokenizer, text)
        for at in range(0, len(ids), step):
            window = opening + ids[at : at + step]
            if len(window) >= 16:
                yield Row(window, max(1, len(opening)), len(window))


def _asked(tokenizer: Any, turns: Iterable[tuple[str, str]], section: CorpusSection) -> Iterator[Row]:
    """Single-turn chats of (user's text, answer), the beginning of each; without texts that the model's template changes."""
    for text, answer in turns:
        with suppress(ValueError):
            chat = spans.chat(tokenizer, text, section.turn)
            ids = chat.ids + spans.plain_ids(tokenizer, answer)[: section.answer]
            yield Row(ids, max(1, chat.user.start), len(ids), chat.tail.start, chat.tail.stop)


def _pieces(tokenizer: Any, documents: Iterable[str], turns: Sequences) -> Iterator[tuple[str, str]]:
    """Texts cut into pieces as many tokens long as the user's texts of ``turns`` are, one after the other and again from the first; as
    user's texts without an answer."""
    lengths = itertools.cycle((turns.tail_start - turns.keep_start).clip(1).tolist())
    for text in documents:
        spans_ = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        ends, at = spans_["offset_mapping"], 0
        while at < len(ends):
            first, at = at, at + next(lengths)
            if piece := text[ends[first][0] : ends[min(at, len(ends)) - 1][1]].strip():
                yield piece, ""


def _user_turns(conversations: Iterable[list[dict[str, str]]]) -> Iterator[tuple[str, str]]:
    """(user's text, answer) of every turn, each text once."""
    seen = set[str]()
    for turns in conversations:
        for turn, after in itertools.zip_longest(turns, turns[1:]):
            text = turn["content"].strip()
            if turn["role"] == "user" and text and (known := " ".join(text.split()).lower()) not in seen:
                seen.add(known)
                yield text, after["content"].strip() if after else ""


@store.cached
def text(
    out: Path, documents: store.Artifact, lm: Pinned, section: CorpusSection, part: Part, turns: store.Artifact | None
) -> None:
    """Step: sequences of documents, ``train_tokens`` or ``eval_tokens`` kept: windows of plain text, or user's texts in the model's
    template, one at a time: every distinct user turn of conversations with the beginning of its answer or, where such ``turns`` are
    given, pieces of plain text of their lengths. So the template's tokens after a user's text, which prompts are read at, are in it."""
    tokenizer, found = model.tokenizer(lm), corpora.read(documents, part)
    budget = section.train_tokens if part == "train" else section.eval_tokens
    chats = bool(found) and not isinstance(found[0], str)
    if chats or turns is not None:
        asked = _user_turns(found) if turns is None else _pieces(tokenizer, found, read(turns))
        rows: Iterable[Row] = _asked(tokenizer, asked, section)
    else:
        rows = _windows(tokenizer, found, section.context)
    Sequences.of(_within(rows, budget, f"text ({part})")).save(out / "sequences.safetensors")


@store.cached
def labelled(out: Path, prompts: store.Artifact, lm: Pinned, part: Literal["all", "user"], limit: int = 1024) -> None:
    """Step: every prompt of a labelled set, its text cut to ``limit`` tokens or what the model can read; kept is all but the first token, or the user's text
    alone. ``spans.json`` has the tokens before the user's text and after it, and how many prompts were cut: {system, tail, cut}. A token that joins text and
    template counts as the text's. SequenceError names a prompt of which nothing is kept."""
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
    tails = ((c.tail.start, c.tail.stop) for c in chats)
    rows = (Row(c.ids, *span, *tail) for c, span, tail in zip(chats, kept, tails, strict=True))
    Sequences.of(rows).save(out / "sequences.safetensors")
    # Of the template, so the same for all but where one of its tokens holds a text's end too: then places count from the end.
    lengths = {"system": min(c.user.start for c in chats), "tail": min(len(c.tail) for c in chats)}
    (out / "spans.json").write_text(json.dumps(lengths | {"cut": sum(c.cut for c in chats)}), encoding="utf-8")


@store.result
def cut(sequences: store.Artifact) -> int:
    """Step: how many prompts of :func:`labelled` were cut."""
    return int(json.loads((sequences.path / "spans.json").read_text(encoding="utf-8"))["cut"])
