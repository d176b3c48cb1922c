"""Near-duplicates: texts whose sets of character trigrams overlap (Jaccard index), and clusters of them."""

from collections.abc import Sequence

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
