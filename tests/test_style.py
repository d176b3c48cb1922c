"""What style alone tells, and matching on it."""

import numpy as np

from lib.texts import style


def test_features() -> None:
    found = style.features("Write a poem, please. Can you?")
    assert found["first word is imperative"] == found["starts with Write or Give"] == found["polite"] == 1
    assert (found["commas"], found["question marks"], found["sentences"], found["words"]) == (1, 1, 2, 6)
    assert found["second person"] == 1
    assert found["first person"] == found["first word asks"] == 0
    words = [style.features(text) for text in ("Writer of poems", "isn't it", "Is it", "", "LET it be")]
    assert [has["first word is imperative"] for has in words] == [0, 0, 0, 0, 1], "whole words only"
    assert [has["first word asks"] for has in words] == [0, 0, 1, 0, 0]
    strange = style.matrix(["", "?", "\n", "🙂", "x" * 10_000])
    assert strange.shape == (5, 33)
    assert np.isfinite(strange).all()


def test_matching() -> None:
    texts = [
        "Write a poem about the sea and boats",
        "Can you write a poem about the sea?",
        "Write a poem, please, I beg you now",
    ]
    assert [style.one_style(text) for text in texts] == [True, False, False]
    y = np.array([1, 0, 0, 0, 0, 0])
    texts = ["one two three"] * 5 + ["one two three four five six seven"]
    kept = style.one_length(texts, y, np.ones(6, bool), np.random.default_rng(0))
    assert kept[0] and kept[1:5].sum() == 3 and not kept[5]
