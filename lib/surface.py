"""What style alone tells: punctuation, length, case, first-word class. No topic words."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_IMPERATIVES = frozenset(
    [
        "write",
        "give",
        "create",
        "list",
        "make",
        "provide",
        "describe",
        "explain",
        "generate",
        "develop",
        "design",
        "tell",
        "show",
        "convince",
        "find",
        "build",
        "draft",
        "outline",
        "teach",
        "compose",
        "help",
        "summarize",
        "translate",
        "suggest",
        "compare",
        "identify",
        "act",
        "please",
        "let",
    ]
)
_QUESTIONS = frozenset(
    [
        "how",
        "what",
        "why",
        "when",
        "where",
        "which",
        "who",
        "can",
        "could",
        "is",
        "are",
        "do",
        "does",
        "should",
        "would",
        "will",
    ]
)

NAMES: tuple[str, ...] = (
    "characters",
    "words",
    "mean word length",
    "longest word",
    "sentences",
    "lines",
    "capital first letter",
    "share of capitals",
    "words in capitals",
    "share of punctuation",
    "share of digits",
    "ends with punctuation",
    "ends with a full stop",
    "ends with a question mark",
    "contains a question mark",
    "question marks",
    "exclamation marks",
    "commas",
    "quotation marks",
    "colons",
    "brackets",
    "hyphens",
    "apostrophes",
    "non-ASCII",
    "first word is imperative",
    "first word asks",
    "starts with Write or Give",
    "first person",
    "second person",
    "polite",
    "articles",
    "starts in lower case",
    "distinct words",
)


def features(text: str) -> np.ndarray:
    """[33] float64 style features of a prompt, in the order of :data:`NAMES`."""
    words = re.findall(r"[\w']+", text)
    lower = [word.lower() for word in words]
    n, m = max(1, len(text)), max(1, len(words))
    first = lower[0] if lower else ""
    lengths = [len(word) for word in words] or [0]
    last = text.rstrip()[-1:]
    return np.array(
        [
            len(text),
            len(words),
            float(np.mean(lengths)),
            max(lengths),
            max(1, len(re.findall(r"[.!?]+(?:\s|$)", text))),
            text.count("\n") + 1,
            text[:1].isupper(),
            sum(c.isupper() for c in text) / n,
            sum(word.isupper() and len(word) > 1 for word in words) / m,
            sum(not c.isalnum() and not c.isspace() for c in text) / n,
            sum(c.isdigit() for c in text) / n,
            last in tuple(".!?"),
            last == ".",
            last == "?",
            "?" in text,
            text.count("?"),
            text.count("!"),
            text.count(","),
            text.count('"'),
            text.count(":"),
            text.count("(") + text.count("["),
            text.count("-"),
            text.count("'"),
            sum(not c.isascii() for c in text) / n,
            first in _IMPERATIVES,
            first in _QUESTIONS,
            first in ("write", "give"),
            any(word in ("i", "my", "me", "i'm", "we", "our") for word in lower),
            any(word in ("you", "your") for word in lower),
            any(word in ("please", "thanks", "thank") for word in lower),
            sum(word in ("a", "an", "the") for word in lower) / m,
            text[:1].islower(),
            len(set(lower)) / m,
        ],
        dtype=np.float64,
    )


def matrix(texts: Sequence[str]) -> np.ndarray:
    """[n, 33] features of several prompts."""
    return np.stack([features(text) for text in texts])


def one_style(texts: Sequence[str]) -> np.ndarray:
    """[n] bool: one capitalised imperative sentence of 6 to 25 words, without question mark, final punctuation, politeness,
    first or second person: what most HarmBench prompts are."""
    x = matrix(texts)
    wanted = ("first word is imperative", "capital first letter")
    unwanted = ("contains a question mark", "ends with punctuation", "polite", "first person", "second person")
    column = {name: x[:, number] for number, name in enumerate(NAMES)}
    fits = (column["words"] >= 6) & (column["words"] <= 25) & (column["sentences"] == 1)
    for name in wanted:
        fits &= column[name] == 1
    for name in unwanted:
        fits &= column[name] == 0
    return fits & np.array([not re.search(r"[.!?]", text) for text in texts])


def one_length(texts: Sequence[str], y: np.ndarray, among: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[n] bool: of the prompts ``among`` [n] bool, all harmful ones, and of each length (in bins of two words) three times as
    many harmless ones, or as many as there are."""
    bins, chosen = matrix(texts)[:, NAMES.index("words")] // 2, among & (y == 1)
    for length in np.unique(bins[chosen]):
        here = np.flatnonzero(among & (y == 0) & (bins == length))
        chosen[rng.permutation(here)[: 3 * int((among & (y == 1) & (bins == length)).sum())]] = True
    return chosen
