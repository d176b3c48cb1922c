"""What style alone tells: punctuation, length, case, first-word class, no topic words; and prompts brought to one style."""

import re
from collections.abc import Callable, Sequence

import numpy as np

_IMPERATIVES = re.compile(
    "write|give|create|list|make|provide|describe|explain|generate|develop|design|tell|show|convince|find|build|draft|"
    "outline|teach|compose|help|summarize|translate|suggest|compare|identify|act|please|let|rewrite|plan|use|define|recommend|"
    "brainstorm|calculate|analyze|discuss|prepare|come|determine|devise|choose|propose|add|think|rephrase|craft|produce|name|"
    "invent|convert|formulate"
)
_QUESTIONS = re.compile("how|what|why|when|where|which|who|can|could|is|are|do|does|should|would|will")
_MARKS = {"question marks": "?", "exclamation marks": "!", "commas": ",", "quotation marks": '"', "colons": ":"}
_MARKS |= {"brackets": "([", "hyphens": "-", "apostrophes": "'"}


def features(text: str) -> dict[str, float]:
    """The 33 features of a prompt by name."""
    words: list[str] = re.findall(r"[\w']+", text)
    lower, lengths = [word.lower() for word in words], [len(word) for word in words] or [0]
    first, last = lower[0] if lower else "", text.rstrip()[-1:]
    count = max(1, len(words))

    def share(holds: Callable[[str], bool]) -> float:
        return sum(map(holds, text)) / max(1, len(text))

    return {
        "characters": len(text),
        "words": len(words),
        "mean word length": float(np.mean(lengths)),
        "longest word": max(lengths),
        "sentences": max(1, len(re.findall(r"[.!?]+(?:\s|$)", text))),
        "lines": text.count("\n") + 1,
        "capital first letter": text[:1].isupper(),
        "share of capitals": share(str.isupper),
        "words in capitals": sum(word.isupper() and len(word) > 1 for word in words) / count,
        "share of punctuation": share(lambda c: not c.isalnum() and not c.isspace()),
        "share of digits": share(str.isdigit),
        "ends with punctuation": last in tuple(".!?"),
        "ends with a full stop": last == ".",
        "ends with a question mark": last == "?",
        "contains a question mark": "?" in text,
        **{name: sum(map(text.count, marks)) for name, marks in _MARKS.items()},
        "non-ASCII": share(lambda c: not c.isascii()),
        "first word is imperative": _IMPERATIVES.fullmatch(first) is not None,
        "first word asks": _QUESTIONS.fullmatch(first) is not None,
        "starts with Write or Give": first in ("write", "give"),
        "first person": not {"i", "my", "me", "i'm", "we", "our"}.isdisjoint(lower),
        "second person": not {"you", "your"}.isdisjoint(lower),
        "polite": not {"please", "thanks", "thank"}.isdisjoint(lower),
        "articles": sum(word in ("a", "an", "the") for word in lower) / count,
        "starts in lower case": text[:1].islower(),
        "distinct words": len(set(lower)) / count,
    }


FEATURES = tuple(features(""))


def matrix(texts: Sequence[str]) -> np.ndarray:
    """[n, 33] float64 features of prompts, in the order of :data:`FEATURES`."""
    return np.array([list(features(text).values()) for text in texts], dtype=np.float64)


def rewritten(text: str) -> str:
    """A prompt in the report's one style: one line, no "please", no punctuation at its end, its first letter a capital."""
    text = re.sub(r"(?i)\s*,?\s*\bplease\b\s*,?\s*", " ", " ".join(text.split())).strip().rstrip(" .!?:;,")
    return text[:1].upper() + text[1:]


def instruction(text: str) -> bool:
    """Whether a :func:`rewritten` prompt is one imperative sentence of 4 to 60 words without a question mark, first or second
    person: what most HarmBench prompts are."""
    has = features(text)
    unwanted = re.search(r"\?|[.!]\s", text) or has["first person"] or has["second person"]
    return bool(has["first word is imperative"] and 4 <= has["words"] <= 60 and not unwanted)
