"""SAE training text: no probe prompts, no two conversations that open alike."""

from pathlib import Path

from lib import store
from lib.texts import corpora, likeness, sources
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
    made = corpora.documents({"chat": CHAT}, sets, 0)
    found = corpora.read(made, "eval") + corpora.read(made, "train")
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
    assert not any("bread" in text for text in openings(ours)), "the long one holds it whole"
    assert sum("bread" in text for text in openings(theirs)) == 2
    both = openings(ours, theirs)
    assert len(both) == 1
    assert not any(text.startswith("Write a limerick") or "bread" in text for text in both)
    assert len(openings(labelled(("Write a limerick about an otter in a canoe",), "AIM"))) == 4


def test_pretraining_text_is_encyclopaedia_and_news(empty_store: store.Store) -> None:
    """And, from the hub, encyclopaedia alone, as the post had it."""
    assert list(corpora.sources_of("pretraining", "wheels")) == ["wikipedia", "news"]
    assert list(corpora.sources_of("pretraining", "hub")) == ["wikipedia"]
    assert list(corpora.sources_of("chat", "wheels")) == ["chat"]
    assert corpora.sources_of("IT", "wheels") == corpora.sources_of("pretraining", "wheels")
    found, other = (corpora.documents({"news": CHAT, "wikipedia": CHAT}, (), seed) for seed in (0, 1))
    assert corpora.read(found, "train") != corpora.read(other, "train")


def test_a_probe_prompt_anywhere_in_a_conversation_leaves_it_out() -> None:
    """Also in a later turn or an answer, in other case and punctuation."""
    texts = [
        "Sure. First, WHERE do poppies -- grow wild in autumn; then",
        "where do poppies grow",
        "wild in autumn",
        "",
    ]
    held = likeness.holding(texts, ["Where do poppies grow wild in autumn?", "in autumn"])
    assert [*held] == [True, False, False, False]

    class Later(Given):
        def rows(self):
            for row in super().rows():
                said = "So: where do poppies grow wild in autumn" if "limerick" in row["text"] else "no"
                yield row | {"turns": [*row["turns"], {"role": "assistant", "content": said}]}

    assert len(corpora.chats(Later(name="chat"), [])) == 4
    kept = corpora.chats(Later(name="chat"), ["Where do poppies grow wild in autumn?"])
    assert len(kept) == 3 and not any("limerick" in turns[0]["content"] for turns in kept)


def test_a_neighbour_of_a_probe_prompt_in_a_later_turn_leaves_the_conversation_out() -> None:
    """SAEs are trained on every user's turn, one at a time; what is answered is no turn of the user."""

    class Later(Given):
        def rows(self):
            for row in super().rows():
                who = "user" if "limerick" in row["text"] else "assistant"
                yield row | {
                    "turns": [*row["turns"], {"role": who, "content": "where might poppies grow wild in autumn"}]
                }

    kept = corpora.chats(Later(name="chat"), ["Where do poppies grow wild in autumn?"])
    assert len(kept) == 3 and not any("limerick" in turns[0]["content"] for turns in kept)


def test_held_out_documents_share_no_run_of_words_with_training_ones(empty_store: store.Store) -> None:
    run = "one two three four five six seven eight nine ten eleven twelve thirteen"
    assert likeness.shared([f"a {run} b", run.replace("nine", "9"), "x"], [run.upper() + "!"]).tolist() == [
        True,
        False,
        False,
    ]
    assert likeness.shared(["x"], []).tolist() == [False]

    class Twins(Given):
        def rows(self):
            return [{"text": f"{'abcdefghij'[i]} {run if i < 5 else i} {i}"} for i in range(20) if i < 10]

    made = corpora.documents({"news": Twins(name="news")}, (), 0)
    train, held_out = (corpora.read(made, part) for part in ("train", "eval"))
    assert sum(run in text for text in train) >= 3 and len(train) == 8
    assert not any(run in text for text in held_out)
    assert not set(train) & set(held_out)
