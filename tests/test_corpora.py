"""SAE training text: no probe prompts, no two conversations that open alike."""

import pytest

from lib import corpora, sources

LONG = (
    "My oven is small, its thermostat broken, and the kitchen window faces north. Last winter my aunt mailed me a jar of her "
    "rye culture, which I fed every evening until a mouse knocked it off the shelf. Since then I buy yeast, though my "
    "daughter complains that shop loaves taste of cardboard and crumble when you spread cold butter."
)


def records(*openings: str) -> list[dict]:
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}] for text in openings]
    return [{"text": text, "id": str(i), "turns": t} for i, (text, t) in enumerate(zip(openings, turns, strict=True))]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> None:
    found = records(
        "How do I bake sourdough bread at home?",
        "Write a limerick about an otter in a canoe",
        "how do I bake sourdough bread at home",
        "Rewrite the given paragraph so that it is longer: the cat",
        "Rewrite the given paragraph so that it is longer: a dog",
        "How do I bake sourdough bread at home? " + LONG,
    )
    monkeypatch.setattr(sources, "load", lambda name, kind="wheels": found)


def test_probe_prompts_and_their_neighbours_are_left_out(chat: None) -> None:
    kept = [turns[0]["content"] for turns in corpora.chats("wheels", ["How do I bake some sourdough bread at home?"])]
    assert len(kept) == 3
    assert kept[0].startswith("Write a limerick")
    assert kept[2].endswith(LONG.strip()), "a long text that merely opens like a probe prompt is no neighbour"


def test_like_openings_are_kept_once(chat: None) -> None:
    kept = [turns[0]["content"] for turns in corpora.chats("wheels", [])]
    assert sum(text.startswith("Rewrite") for text in kept) == 1
    assert len(kept) == 4
