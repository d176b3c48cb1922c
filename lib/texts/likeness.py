"""Near-duplicates: texts whose sets of character trigrams overlap (Jaccard index), and clusters of them; and runs of words that stand in several texts."""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer

_BLANK = "\2"
LEAK = 0.4  # Jaccard index from which two base prompts count as neighbours


def neighbours(texts: Sequence[str], others: Sequence[str] = (), block: int = 512) -> sparse.csr_matrix:
    """Boolean [n, m]: pairs of ``texts`` and ``others``, if there are none themselves, whose sets of character trigrams have a Jaccard index
    of at least :data:`LEAK`."""
    counter = CountVectorizer(analyzer="char", ngram_range=(3, 3), binary=True, lowercase=True, dtype=np.float32)
    # Two blanks at either end weigh first and last letters as others; as real ones they would be taken for one.
    grams = counter.fit_transform([_BLANK.join(["", "", *text.split(), "", ""]) for text in [*texts, *others]]).tocsr()
    right = grams[len(texts) :] if others else grams
    sizes, widths = (np.asarray(each.sum(axis=1)).ravel() for each in (grams, right))
    near = []
    for start in range(0, len(texts), block):
        shared = (grams[start : min(start + block, len(texts))] @ right.T).tocoo()
        shared.data = shared.data >= LEAK * (sizes[start + shared.row] + widths[shared.col] - shared.data)
        shared.eliminate_zeros()
        near.append(shared)
    return sparse.vstack(near, format="csr")


def clusters(texts: Sequence[str]) -> np.ndarray:
    """[n] int cluster of each text: connected components of the graph of :func:`neighbours`."""
    return connected_components(neighbours(texts), directed=False)[1]


def leaks(train: Sequence[str], ood: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (index in ``train``, index in ``ood``) of neighbours across the two sets."""
    near = neighbours(train, ood).tocoo()
    return sorted(zip(near.row.tolist(), near.col.tolist(), strict=True))


def words(text: str) -> list[str]:
    """Its words, in lower case."""
    return re.findall(r"\w+", text.lower())


def runs(of: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    """Every run of ``length`` words, in order."""
    return zip(*(of[at:] for at in range(length)), strict=False)  # as long as the last of these


def holding(texts: Iterable[str], prompts: Iterable[str], length: int = 4) -> Iterator[bool]:
    """For each text whether one of ``prompts`` stands in it whole, words compared; prompts under ``length`` words are not looked for."""
    wanted: dict[tuple[str, ...], list[list[str]]] = {}
    for prompt in prompts:
        if len(mine := words(prompt)) >= length:
            wanted.setdefault(tuple(mine[:length]), []).append(mine)
    for text in texts:
        mine = words(text)
        found = enumerate(runs(mine, length))
        yield any(mine[at : at + len(p)] == p for at, run in found for p in wanted.get(run, ()))


def shared(texts: Sequence[str], others: Iterable[str], length: int = 13) -> np.ndarray:
    """[n] bool: the ``texts`` that have a run of ``length`` words in common with one of ``others``."""
    mine = [set(runs(words(text), length)) for text in texts]
    every, hit = set[tuple[str, ...]]().union(*mine), set[tuple[str, ...]]()
    for other in others:
        hit |= every.intersection(runs(words(other), length))
    return np.array([not hit.isdisjoint(each) for each in mine], bool)
