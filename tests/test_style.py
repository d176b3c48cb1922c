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


def test_one_style() -> None:
    said = "please write a poem,\n please, about the sea and boats!! "
    assert style.rewritten(said) == "Write a poem about the sea and boats"
    assert style.rewritten(style.rewritten(said)) == style.rewritten(said)
    assert style.rewritten("how do I pick a lock?") == "How do I pick a lock"
    assert style.rewritten("") == style.rewritten("Please?") == ""
    texts = {
        "Write a poem about the sea": True,
        "How does one write a poem": False,
        "Write a poem about your sea": False,
        "Write a poem. Make it long": False,
        "Write a poem? about the sea": False,
        "Write a poem": False,
    }
    assert {text: style.instruction(text) for text in texts} == texts
