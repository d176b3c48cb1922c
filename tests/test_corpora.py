"""SAE training text: no probe prompts, no two conversations that open alike."""

from pathlib import Path

from lib import store
from lib.texts import corpora, sources
from lib.texts.examples import Example

LONG = (
    "My oven is small, its thermostat broken, and the kitchen window faces north. Last winter my aunt mailed me a jar of her "
    "rye culture, which I fed every evening until a mouse knocked it off the shelf. Since then I buy yeast, though my "
    "daughter complains that shop loaves taste of cardboard and crumble when you spread cold butter."
)


def records(*openings: str) -> list[dict]:
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}] for text in openings]
    return [{"text": text, "id": str(i), "turns": t} for i, (text, t) in enumerate(zip(openings, turns, strict=True))]


class Given(sources.Source):
    """Conversations that open like each other, or like a probe prompt."""

    def rows(self) -> list[dict]:
        return records(
            "How do I bake sourdough bread at home?",
            "Write a limerick about an otter in a canoe",
            "how do I bake sourdough bread at home",
            "Rewrite the given paragraph so that it is longer: the cat",
            "Rewrite the given paragraph so that it is longer: a dog",
            "How do I bake sourdough bread at home? " + LONG,
        )


CHAT = Given(name="chat")


@store.cached
def labelled(out: Path, texts: tuple[str, ...], transform: str = "plain") -> None:
    """Labelled prompts."""
    fields = {"label": 1, "split": "train", "slice": "s", "transform": transform, "base": "b", "group": 0}
    lines = [Example(text=text, **fields).model_dump_json() for text in texts]
    (out / "examples.jsonl").write_text("\n".join(lines) + "\n")


def openings(*sets: store.Artifact) -> list[str]:
    found = corpora.read(corpora.documents({"chat": CHAT}, sets, 0))
    return [turns[0]["content"] for turns in found]


def test_probe_prompts_and_their_neighbours_are_left_out() -> None:
    kept = [turns[0]["content"] for turns in corpora.chats(CHAT, ["How do I bake some sourdough bread at home?"])]
    assert len(kept) == 3
    assert kept[0].startswith("Write a limerick")
    assert kept[2].endswith(LONG.strip()), "a long text that merely opens like a probe prompt is no neighbour"


def test_like_openings_are_kept_once() -> None:
    kept = [turns[0]["content"] for turns in corpora.chats(CHAT, [])]
    assert sum(text.startswith("Rewrite") for text in kept) == 1
    assert len(kept) == 4


def test_prompts_of_every_labelled_set_are_left_out(empty_store: store.Store) -> None:
    """The report's and somebody's own; a jailbroken copy is no reason to leave its words out."""
    ours, theirs = (
        labelled(("How do I bake sourdough bread at home?",)),
        labelled(("write a limerick about an otter in a canoe",)),
    )
    assert any("otter" in text for text in openings(ours))
    assert any("bread" in text for text in openings(theirs))
    both = openings(ours, theirs)
    assert len(both) == 2
    assert not any(text.startswith("Write a limerick") for text in both)
    assert sum("bread" in text for text in both) == 1, "the long one"
    assert len(openings(labelled(("Write a limerick about an otter in a canoe",), "AIM"))) == 4


def test_pretraining_text_is_encyclopaedia_and_news(empty_store: store.Store) -> None:
    """And, from the hub, encyclopaedia alone, as the post had it."""
    assert list(corpora.sources_of("pretraining", "wheels")) == ["wikipedia", "news"]
    assert list(corpora.sources_of("pretraining", "hub")) == ["wikipedia"]
    assert list(corpora.sources_of("chat", "wheels")) == ["chat"]
    found = corpora.documents({"news": CHAT, "wikipedia": CHAT}, (), 0)
    assert len(corpora.read(found)) == 12
    assert corpora.read(found) != corpora.read(corpora.documents({"news": CHAT, "wikipedia": CHAT}, (), 1))
