"""Near-duplicates: texts whose sets of character trigrams overlap (Jaccard index), and clusters of them; and runs of words
that stand in several texts."""

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer

_BLANK = "\2"
LEAK = 0.4  # Jaccard index from which two base prompts count as neighbours


def neighbours(texts: Sequence[str], block: int = 512) -> sparse.csr_matrix:
    """Boolean [n, n]: pairs whose sets of character trigrams have a Jaccard index of at least :data:`LEAK`."""
    counter = CountVectorizer(analyzer="char", ngram_range=(3, 3), binary=True, lowercase=True, dtype=np.float32)
    # Two blanks at either end weigh first and last letters as others; as real ones they would be taken for one.
    grams = counter.fit_transform([_BLANK.join(["", "", *text.split(), "", ""]) for text in texts]).tocsr()
    sizes = np.asarray(grams.sum(axis=1)).ravel()
    near = []
    for start in range(0, len(texts), block):
        shared = (grams[start : start + block] @ grams.T).tocoo()
        shared.data = shared.data >= LEAK * (sizes[start + shared.row] + sizes[shared.col] - shared.data)
        shared.eliminate_zeros()
        near.append(shared)
    return sparse.vstack(near, format="csr")


def clusters(texts: Sequence[str]) -> np.ndarray:
    """[n] int cluster of each text: connected components of the graph of :func:`neighbours`."""
    return connected_components(neighbours(texts), directed=False)[1]


def leaks(train: Sequence[str], ood: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (index in ``train``, index in ``ood``) of neighbours across the two sets."""
    near = neighbours([*train, *ood])[: len(train), len(train) :].tocoo()
    return sorted(zip(near.row.tolist(), near.col.tolist(), strict=True))


def words(text: str) -> list[str]:
    """Its words, in lower case."""
    return re.findall(r"\w+", text.lower())


def runs(of: Sequence[str], length: int) -> np.ndarray:
    """[max(0, len(of) - length + 1)] uint64 hash of every run of ``length`` words."""
    codes = np.array([zlib.crc32(word.encode("utf-8", "replace")) for word in of], np.uint64)
    count = max(0, len(codes) - length + 1)
    found = np.zeros(count, np.uint64)
    for at in range(length):  # a polynomial modulo 2^64
        found = found * np.uint64(0x9E3779B97F4A7C15) + codes[at : at + count]
    return found


def holding(texts: Iterable[str], prompts: Iterable[str], length: int = 4) -> Iterator[bool]:
    """For each text whether one of ``prompts`` stands in it whole, words compared; prompts under ``length`` words are not
    looked for."""
    wanted: dict[int, list[list[str]]] = {}
    for prompt in prompts:
        if len(mine := words(prompt)) >= length:
            wanted.setdefault(int(runs(mine[:length], length)[0]), []).append(mine)
    openings = np.array(sorted(wanted), np.uint64)
    for text in texts:
        mine = words(text)
        hashes = runs(mine, length)
        places = np.flatnonzero(np.isin(hashes, openings)).tolist()
        yield any(mine[at : at + len(p)] == p for at in places for p in wanted[int(hashes[at])])


def shared(texts: Sequence[str], others: Iterable[str], length: int = 13) -> np.ndarray:
    """[n] bool: the ``texts`` that have a run of ``length`` words in common with one of ``others``."""
    mine = [runs(words(text), length) for text in texts]
    every = np.unique(np.concatenate([np.zeros(1, np.uint64), *mine]))
    hit = np.zeros(len(every), bool)
    for other in others:
        theirs = runs(words(other), length)
        at = np.searchsorted(every, theirs).clip(max=len(every) - 1)
        hit[at[every[at] == theirs]] = True
    return np.array([bool(hit[np.searchsorted(every, each)].any()) for each in mine], bool)
