"""Explainers: each explains a latent from some contexts and predicts from the explanation alone how strongly it fires in others.

These count, in the manner of Neuron-to-Graph (Foote et al. 2023, arXiv:2305.19911); one that asks a language model is in notebook 04.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from scipy.stats import rankdata

from lib.latents.cards import token_texts

LEVELS = 10  # activations are predicted on a scale of 0 to 10


@dataclass(frozen=True)
class Contexts:
    """Contexts of one latent: ``tokens`` [n, w], -1 beyond a context's end; the latent's activations there, ``values`` [n, w]; the
    ``places`` [n, w] of tokens in their text, from 0; sentence embeddings of the contexts, ``vectors`` [n, e]."""

    tokens: np.ndarray
    values: np.ndarray
    places: np.ndarray
    vectors: np.ndarray

    @property
    def peaks(self) -> np.ndarray:
        return self.values.max(1)

    def __getitem__(self, which: Any) -> Self:
        return replace(self, **{name: column[which] for name, column in vars(self).items()})


def agreement(guess: np.ndarray, truth: np.ndarray) -> float:
    """Spearman correlation of predicted and true maxima [n], both quantised to 0 ... :data:`LEVELS`, in [-1, 1], over those that were
    predicted; 0 where either does not vary, NaN where fewer than half were predicted."""
    known = ~np.isnan(guess)
    if known.mean() < 0.5:
        return float("nan")
    both = [np.round(LEVELS * v / v.max()) if v.max(initial=0) > 0 else 0 * v for v in (guess[known], truth[known])]
    if any(np.ptp(v) == 0 for v in both):
        return 0.0
    return float(np.corrcoef([rankdata(v) for v in both])[0, 1])


class Explainer(Protocol):
    """``explain`` makes whatever ``predict`` and ``told`` understand; ``predict`` gives [n] maximum activations of contexts, on any scale, NaN where
    there is no answer, and must not read ``shown.values``; ``told`` is for people. Subclasses are frozen dataclasses, whose settings are in a
    result's key. ``at_once``: latents that it can work on side by side."""

    at_once: ClassVar[int] = 1

    def explain(self, seen: Contexts) -> Any: ...
    def predict(self, explanation: Any, shown: Contexts) -> np.ndarray: ...
    def told(self, explanation: Any, tokenizer: Any) -> str: ...


@dataclass(frozen=True)
class Tokens(Explainer):
    """Its mean on each token, and on each token after a certain other one, once such a pair was seen twice."""

    def explain(self, seen: Contexts) -> dict[tuple[int | None, int], float]:
        found: dict[tuple[int | None, int], list[float]] = defaultdict(list)
        for tokens, values in zip(seen.tokens.tolist(), seen.values.tolist(), strict=True):
            for before, token, value in zip((None, *tokens), tokens, values, strict=False):
                found[None, token].append(value)
                if before is not None:
                    found[before, token].append(value)
        kept = {key: v for key, v in found.items() if key[1] >= 0 and (key[0] is None or len(v) > 1)}
        return {key: sum(v) / len(v) if len(v) < 3 else float(np.mean(v)) for key, v in kept.items()}  # as np.mean

    def predict(self, explanation: dict[tuple[int | None, int], float], shown: Contexts) -> np.ndarray:
        """Each token takes its longest known pattern; a context, its largest."""
        found = []
        for tokens in shown.tokens.tolist():
            alone = (explanation.get((None, token), 0.0) for token in tokens)
            found.append(max(0.0, *map(explanation.get, zip((None, *tokens), tokens, strict=False), alone)))
        return np.array(found)

    def told(self, explanation: dict[tuple[int | None, int], float], tokenizer: Any) -> str:
        best = [key for key, value in sorted(explanation.items(), key=lambda item: -item[1])[:3] if value > 0]
        parts = (token_texts(tokenizer, [token for token in key if token is not None]) for key in best)
        return "tokens " + ", ".join(map("|".join, parts))


@dataclass(frozen=True)
class Places(Explainer):
    """Its mean at each place of a text, first token, second and so on."""

    def explain(self, seen: Contexts) -> np.ndarray:
        here = seen.tokens >= 0
        count = np.bincount(seen.places[here])
        return np.bincount(seen.places[here], seen.values[here]) / np.maximum(count, 1)

    def predict(self, explanation: np.ndarray, shown: Contexts) -> np.ndarray:
        known = (shown.tokens >= 0) & (shown.places < len(explanation))
        return np.where(known, explanation[np.where(known, shown.places, 0)], 0.0).max(1)

    def told(self, explanation: np.ndarray, tokenizer: Any) -> str:
        return "places " + ", ".join(map(str, np.argsort(-explanation)[:3].tolist()))


@dataclass(frozen=True)
class Topic(Explainer):
    """What the contexts are about: the direction of sentence embeddings along which its peaks rise."""

    def explain(self, seen: Contexts) -> tuple[np.ndarray, np.ndarray]:
        towards = (seen.peaks - seen.peaks.mean()) @ seen.vectors
        along = seen.vectors @ towards
        return towards, np.polyfit(along, seen.peaks, 1) if np.ptp(along) > 1e-9 else np.zeros(2)

    def predict(self, explanation: tuple[np.ndarray, np.ndarray], shown: Contexts) -> np.ndarray:
        return np.polyval(explanation[1], shown.vectors @ explanation[0]).clip(0)

    def told(self, explanation: Any, tokenizer: Any) -> str:
        return "what the text is about"


@dataclass(frozen=True)
class Best(Explainer):
    """Of several forms the one that tells halves of the contexts that it is explained from best from one another; of equal ones the first."""

    forms: tuple[Explainer, ...] = (Tokens(), Places(), Topic())

    def explain(self, seen: Contexts) -> tuple[int, Any]:
        even = np.arange(len(seen.tokens)) % 2 == 0

        def trial(form: Explainer) -> float:
            halves = ((seen[half], seen[~half]) for half in (even, ~even))
            scores = [agreement(form.predict(form.explain(one), other), other.peaks) for one, other in halves]
            return round(sum(scores), 9)

        best = int(np.argmax([trial(form) for form in self.forms]))
        return best, self.forms[best].explain(seen)

    def predict(self, explanation: tuple[int, Any], shown: Contexts) -> np.ndarray:
        return self.forms[explanation[0]].predict(explanation[1], shown)

    def told(self, explanation: tuple[int, Any], tokenizer: Any) -> str:
        return self.forms[explanation[0]].told(explanation[1], tokenizer)
