"""What style alone tells: punctuation, length, case, first-word class. No topic words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

_IMPERATIVES = re.compile(
    "write|give|create|list|make|provide|describe|explain|generate|develop|design|tell|show|convince|find|build|draft|"
    "outline|teach|compose|help|summarize|translate|suggest|compare|identify|act|please|let"
)
_QUESTIONS = re.compile("how|what|why|when|where|which|who|can|could|is|are|do|does|should|would|will")


class _Text:
    """A prompt, with what several features share."""

    def __init__(self, text: str) -> None:
        self.text, self.last = text, text.rstrip()[-1:]
        self.words: list[str] = re.findall(r"[\w']+", text)
        self.lower = [word.lower() for word in self.words]
        self.first = self.lower[0] if self.lower else ""

    def share(self, holds: Callable[[str], bool]) -> float:
        """Of characters."""
        return sum(map(holds, self.text)) / max(1, len(self.text))

    def among(self, *words: str) -> bool:
        return any(word in words for word in self.lower)


FEATURES: dict[str, Callable[[_Text], float]] = {
    "characters": lambda t: len(t.text),
    "words": lambda t: len(t.words),
    "mean word length": lambda t: float(np.mean([len(word) for word in t.words] or [0])),
    "longest word": lambda t: max([len(word) for word in t.words] or [0]),
    "sentences": lambda t: max(1, len(re.findall(r"[.!?]+(?:\s|$)", t.text))),
    "lines": lambda t: t.text.count("\n") + 1,
    "capital first letter": lambda t: t.text[:1].isupper(),
    "share of capitals": lambda t: t.share(str.isupper),
    "words in capitals": lambda t: sum(w.isupper() and len(w) > 1 for w in t.words) / max(1, len(t.words)),
    "share of punctuation": lambda t: t.share(lambda c: not c.isalnum() and not c.isspace()),
    "share of digits": lambda t: t.share(str.isdigit),
    "ends with punctuation": lambda t: t.last in tuple(".!?"),
    "ends with a full stop": lambda t: t.last == ".",
    "ends with a question mark": lambda t: t.last == "?",
    "contains a question mark": lambda t: "?" in t.text,
    "question marks": lambda t: t.text.count("?"),
    "exclamation marks": lambda t: t.text.count("!"),
    "commas": lambda t: t.text.count(","),
    "quotation marks": lambda t: t.text.count('"'),
    "colons": lambda t: t.text.count(":"),
    "brackets": lambda t: t.text.count("(") + t.text.count("["),
    "hyphens": lambda t: t.text.count("-"),
    "apostrophes": lambda t: t.text.count("'"),
    "non-ASCII": lambda t: t.share(lambda c: not c.isascii()),
    "first word is imperative": lambda t: _IMPERATIVES.fullmatch(t.first) is not None,
    "first word asks": lambda t: _QUESTIONS.fullmatch(t.first) is not None,
    "starts with Write or Give": lambda t: t.first in ("write", "give"),
    "first person": lambda t: t.among("i", "my", "me", "i'm", "we", "our"),
    "second person": lambda t: t.among("you", "your"),
    "polite": lambda t: t.among("please", "thanks", "thank"),
    "articles": lambda t: sum(word in ("a", "an", "the") for word in t.lower) / max(1, len(t.words)),
    "starts in lower case": lambda t: t.text[:1].islower(),
    "distinct words": lambda t: len(set(t.lower)) / max(1, len(t.words)),
}


def matrix(texts: Sequence[str]) -> np.ndarray:
    """[n, 33] float64 features of prompts, in the order of :data:`FEATURES`."""
    return np.array([[feature(t) for feature in FEATURES.values()] for t in map(_Text, texts)], dtype=np.float64)


def columns(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """{feature: [n]}."""
    return dict(zip(FEATURES, matrix(texts).T, strict=True))


def one_style(texts: Sequence[str]) -> np.ndarray:
    """[n] bool: one capitalised imperative sentence of 6 to 25 words, without question mark, final punctuation, politeness,
    first or second person: what most HarmBench prompts are."""
    has = columns(texts)
    fits = (has["words"] >= 6) & (has["words"] <= 25) & (has["sentences"] == 1)
    for name in ("first word is imperative", "capital first letter"):
        fits &= has[name] == 1
    for name in ("contains a question mark", "ends with punctuation", "polite", "first person", "second person"):
        fits &= has[name] == 0
    return fits & np.array([not re.search(r"[.!?]", text) for text in texts])


def one_length(texts: Sequence[str], y: np.ndarray, among: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[n] bool: of the prompts ``among`` [n] bool, all harmful ones, and of each length (in bins of two words) three times as
    many harmless ones, or as many as there are."""
    bins, chosen = columns(texts)["words"] // 2, among & (y == 1)
    for length in np.unique(bins[chosen]):
        here = np.flatnonzero(among & (y == 0) & (bins == length))
        chosen[rng.permutation(here)[: 3 * int((among & (y == 1) & (bins == length)).sum())]] = True
    return chosen
