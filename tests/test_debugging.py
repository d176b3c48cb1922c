"""Notebook 03: what its own steps say of shortcuts that are planted, on texts and latents whose answers are known."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_latents import first_token, reader, residuals

from lib import store
from lib.config import AutointerpSection, ModelSection
from lib.latents import autointerp, browser, cards
from lib.latents.explainers import Tokens
from lib.lm import activations, harvest, model
from lib.lm import sequences as sequences_
from lib.sae import training
from lib.sae.variants import SAEConfig, make
from lib.texts import examples
from lib.texts.examples import Example, Labels
from lib.texts.sources import Source
from tests.cells import cells_of

WAYS = {"question mark": ("{text}?",), "lower case": ("{lower}",), "length": ("{text}, and {other}",)}


@pytest.fixture(scope="module")
def cells() -> Any:
    return cells_of("03_debugging")


@store.cached
def plain(out: Path, each: int) -> None:
    """Prompts of both classes in the report's one style: ``each`` harmful ones, and twice as many harmless."""
    kinds = [("Light a fire in barn", 1), ("Paint the sea of bay", 0), ("List boats in port", 0)]
    made = [
        Example(text=f"{text} {i}", label=y, split="train", slice="s", transform="plain", base=f"{text}{i}", group=i)
        for i in range(each)
        for text, y in kinds
    ]
    examples.write(out, made)


def test_groups_fold_what_goes_together() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6))
    x[:, 3] = -2 * x[:, 0] + 0.01 * rng.normal(size=200)  # the other way round: another latent
    x[:, 4] = 3 * x[:, 1] + 5
    values = np.array([3.0, -5.0, 1.0, 2.0, 4.0, 0.5])
    assert cards.ranked(x, values, 6) == [[1, 4], [0], [3], [2], [5]]
    assert cards.ranked(x, values, 2) == [[1, 4], [0]]
    for a, b in ((1, 4), (0, 3)):
        assert (np.corrcoef(x[:, a], x[:, b])[0, 1] >= cards.ALIKE) == (a == 1)
    y = np.repeat([0, 1], 100)
    x[:, 5] = 1.0  # a constant tells nothing
    found = cards.standardised(x, y)
    one, other = x[y == 1][:, 2], x[y == 0][:, 2]
    assert found[2] == pytest.approx((one.mean() - other.mean()) / np.sqrt((one.var() + other.var()) / 2))
    assert found[5] == 0


def test_log_odds_are_those_of_the_paper(cells: Any) -> None:
    x = np.array([[3, 1, 0], [2, 2, 0], [0, 1, 4], [1, 1, 3]], float)
    y = np.array([1, 1, 0, 0])
    alpha = 100 * np.array([6, 5, 7]) / 18
    counts = [np.array([5, 3, 0]) + alpha, np.array([1, 2, 7]) + alpha]
    logs = [np.log(c / (c.sum() - c)) for c in counts]
    assert cells.log_odds(x, y) == pytest.approx((logs[0] - logs[1]) / np.sqrt(1 / counts[0] + 1 / counts[1]))


def test_worlds_differ_by_their_strength_alone(cells: Any) -> None:
    y = np.repeat([0, 1], 20_000)
    for (_, number, _), has in cells.worlds(y, 2, (0.0, 0.5, 0.9), 2):
        shares = sorted(has[y == label].mean() for label in (0, 1))
        assert shares[1] - shares[0] == pytest.approx((0.0, 0.5, 0.9)[number], abs=0.02)
        assert sum(shares) == pytest.approx(1, abs=0.02)


def texts_of(prompts: store.Artifact) -> list[str]:
    return [e.text for e in examples.read(prompts)]


def test_copies_differ_by_their_shortcut_alone(cells: Any, empty_store: store.Store) -> None:
    was, asked, low, long = (cells.copies(plain(12), way, 10, 0) for way in (("{text}",), *WAYS.values()))
    assert [e.label for e in examples.read(was)] == [0] * 10 + [1] * 10
    was, asked, low, long = map(texts_of, (was, asked, low, long))
    assert asked == [f"{text}?" for text in was] and low == [text.lower() for text in was]
    assert all(new.startswith(f"{old}, and ") for old, new in zip(was, long, strict=True))
    added = {new.removeprefix(f"{old}, and ") for old, new in zip(was, long, strict=True)}
    assert not added & {text[:1].lower() + text[1:] for text in was}, "what is added is from prompts that are not drawn"


@pytest.fixture
def world(cells: Any, tiny: ModelSection, empty_store: store.Store) -> dict[str, Any]:
    """Prompts and copies with a question mark and in lower case, and an SAE one of whose latents reads the question mark."""
    lm = model.pinned(tiny)
    sae = reader(first_token(tiny, "?"), first_token(tiny, "xyz"))
    made = [cells.copies(plain(60), way, 60, 0) for way in (("{text}",), WAYS["question mark"], WAYS["lower case"])]
    read = [residuals(sequences_.labelled(each, lm, "user", 256)) for each in made]
    columns = [cells.columns_of(*both, sae, 0) for both in zip(made, read, strict=True)]
    return {"copies": made, "read": read, "lm": lm, "columns": columns}


def test_columns_are_maxima_and_say_where(cells: Any, world: dict[str, Any]) -> None:
    for number, columns in enumerate(world["columns"]):
        peaks, rows, means = cells.read_columns(columns, "latents", "rows", "residuals")
        assert set(peaks[:, 3]) == {float(number == 1)}, "the second are those that ask"
        about = cells.Reader(world["read"][number], world["lm"], 0)
        assert number != 1 or {about.near(at, 0) for at in rows[:, 3]} == {"?"}
        assert (about.text[rows[:, 3]] == np.arange(120)).all()
        assert means.sum(1) == pytest.approx(1), "of one-hot residuals"


def test_a_latent_is_found_where_it_is_planted_and_not_where_nothing_is(cells: Any, world: dict[str, Any]) -> None:
    ways, strengths, traces = ("question mark", "lower case"), (0.0, 0.6), {"question mark": r"\?"}
    how = (world["copies"], [world["columns"]], world["read"], traces, ways, strengths, 3, world["lm"], 0)
    found = cells.planted_columns(*how, name="columns").value
    assert [world_[0] for world_ in found["latents"][0][0][1:]] == [1] and set(found["latents"][0][0][1]) == {1}
    assert {rank for of in found["latents"][0][1] for rank in of} == {None}, "no latent reads the case"
    assert all(rank is None or rank > 3 for rank in found["words"][0][0][0]), "not where both classes have it"
    assert found["surface features, by"]["question mark"][0] in (
        "ends with punctuation",
        "contains a question mark",
        "ends with a question mark",
        "question marks",
    )
    assert set(found["words"][0][0][1]) <= {1, 2, 3, 4}, "after words of the topics, which tell the classes"
    assert set(found["surface features"][0][1][1]) <= {1, 2, 3}
    assert set(found["latents, contexts"][0][0][1]) == {1}, "its contexts show it"
    assert set(found["latents, contexts"][0][1][1]) == {None}


def test_contexts_of_a_direction_are_where_it_points(cells: Any, world: dict[str, Any]) -> None:
    about, lm = cells.Reader(world["read"][1], world["lm"], 0), world["lm"]
    along = np.zeros((2, 400), np.float32)
    mark = model.tokenizer(lm)("?", add_special_tokens=False)["input_ids"][0]
    along[0, mark], along[1, mark] = 1.0, -2.0
    ends = about.ends(along)
    assert {about.near(at, 0) for at in ends["up"][0]} == {"?"} == {about.near(at, 0) for at in ends["down"][1]}
    assert len(np.unique(about.text[ends["up"][0]])) == len(ends["up"][0]), "of different texts"
    up, down = (ends[end][0] for end in ("up", "down"))
    assert cells.found_in(about, up, down, r"\?", about.chance(r"\?")) == 1
    assert cells.found_in(about, down, down, r"\?", 0.5) is None
    assert cells.found_in(about, up, down, r"\?", 1.0) is None, "a sign that always stands there tells nothing"


def test_cleaning_takes_what_it_names_and_leaves_as_many_as_it_says(cells: Any) -> None:
    assert cells.rewritten("how? why.", "question marks") == "how why."
    assert cells.rewritten("do it. now. ", "full stops") == "do it. now"
    assert cells.rewritten("éa b?", "letter case") == "Éa b?"
    assert cells.rewritten("please do it?", "all") == "Do it" and cells.rewritten("a?", "orders") == "a?"
    assert not cells.kept("I ask", "first person") and cells.kept("I ask", "question marks")
    assert not cells.kept("boats sail", "orders") and cells.kept("Write boats", "orders")
    made = [
        Example(text=f"{s} {i}", label=i % 2, split=s, slice=c, transform="plain", base=f"{s}{i}", group=g + i)
        for g, s in ((0, "train"), (100, "val"), (200, "ood"))
        for i in range(20)
        for c in (("as found + letter case", "all") if s != "ood" else ("AdvBench",))
    ]
    labels, texts = Labels.of(made), [e.text for e in made]
    after = cells.Cleaned(cleaning="all", most=(4, 7)).apply(labels, texts, 0)
    taught = after.where("train")
    assert set(after.slice[taught | after.where("val")]) == {"all"}
    assert [(taught & (after.y == label)).sum() for label in (0, 1)] == [4, 7]
    assert (after.where("ood") == labels.where("ood")).all() and after.where("val").sum() == 20
    again = cells.Cleaned(cleaning="letter case", most=(4, 7)).apply(labels, texts, 0)
    assert set(again.slice[again.where("train")]) == {"as found + letter case"}


def test_a_word_names_a_shortcut_that_it_comes_with(cells: Any) -> None:
    has = np.repeat([False, True], 100)
    x = np.zeros((200, 4))
    x[100:125, 0] = 1  # one of several greetings
    x[:, 1] = 1  # in every text
    x[100:103, 2] = 1  # in too few
    x[80:200, 3] = 1  # in others too
    assert cells.comes_with(x, has).tolist() == [True, False, False, False]
    assert not cells.tells(x, has)[0]


@store.cached
def drawn(out: Path, width: int) -> None:
    """An SAE with weights drawn at random, whose last latent never fires."""
    torch.manual_seed(0)
    sae = make(SAEConfig(variant="jumprelu", latents=6), width)
    with torch.no_grad():
        sae.W_enc.normal_()
        sae.W_dec.normal_()
        sae.theta[-1] = 1e9
    training.save(sae, [], out)


def test_the_browser_holds_what_its_latents_do(
    cells: Any, tiny: ModelSection, empty_store: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, made = model.pinned(tiny), cells.copies(plain(8), WAYS["question mark"], 8, 0)
    read = harvest.harvest(sequences_.labelled(made, lm, "user", 256), lm, (0,))
    source = activations.read(read, 0)
    pools = autointerp.Pool(source, 8), autointerp.Pool(source, 8)
    monkeypatch.setattr(autointerp, "pools_of", lambda *_: pools)
    sae, words = drawn(source.width), {"title": "T", "note": "N", "one": "One", "explained": "one"}
    step = cells.in_browser({"one": sae}, made, read, (), lm, 0, Tokens(), AutointerpSection(), 0, words)
    found = json.loads((step.path / "latents.json").read_text())
    assert [one["latent"] for one in found["latents"]] == [0, 1, 2, 3, 4, 5]
    silent = found["latents"].pop()
    assert (silent["frequency"], silent["max"], silent["contexts"]) == (0, 0, [[], []]), (
        "a link to it leads somewhere too"
    )
    with torch.inference_mode():
        f = training.load(sae).encode(torch.cat([*source.chunks()])).numpy()
    y, owner = np.array([e.label for e in examples.read(made)]), source.column("sequence")
    token = cells.token_texts(model.tokenizer(lm), source.column("token"))
    last, norm = model.load(lm).model.get_output_embeddings().weight, model.load(lm).model.get_decoder().norm
    for one in found["latents"]:
        mine = f[:, one["latent"]]
        assert one["max"] == pytest.approx(mine.max(), abs=1e-3)
        assert one["frequency"] == pytest.approx((mine > 0).mean(), abs=1e-5)
        assert sum(one["histogram"]) == 2 * (mine > 0).sum(), "of both halves"
        for at, label in enumerate((1, 0)):
            firing = {prompt for prompt in owner[mine > 0] if y[prompt] == label}
            assert one["fires"][at] == pytest.approx(len(firing) / 8, abs=1e-4)
            tops = [max(levels) for _, levels in one["contexts"][at]]
            assert tops == sorted(tops, reverse=True) and len(tops) == min(3, len(firing))
        shown = [pair for side in one["contexts"] for ids, levels in side for pair in zip(ids, levels, strict=True)]
        strongest = {found["vocabulary"][at] for at, level in shown if level == 9}
        assert token[int(mine.argmax())] in strongest and max(level for _, level in shown) == 9
        with torch.inference_mode():
            logits = last @ norm(training.load(sae).W_dec[one["latent"]])
        texts = cells.token_texts(model.tokenizer(lm), logits.topk(cells.TOKENS).indices)
        assert [found["vocabulary"][at] for at in one["up"]] == texts
    assert found["saes"] == [{"id": "one", "name": "One", "tokens": 2 * len(f), "harmful": 8, "harmless": 8}]
    assert browser.page(found).count("__DATA__") == 0


def test_shares_found_are_within_what_is_possible(cells: Any) -> None:
    some = cells.found_share(np.array([1.0] * 9 + [0.0]))
    assert some["mean"] == 0.9 and some["interval"][1] == 1.0 and 0.5 < some["interval"][0] < 0.9
    assert cells.found_share(np.zeros(10))["interval"] == pytest.approx([0, 0.3085], abs=1e-3), "exact, of ten"
    apart = cells.found_share(np.array([-1.0] * 9 + [-0.5]), -1)
    assert apart["interval"][0] == -1.0 and apart["interval"][1] < -0.8


def gibberish(seed: int) -> str:
    """Four words that no other seed has."""
    return " ".join("".join(word) for word in np.random.default_rng(seed).choice([*"bcdfghjklmnpqrstvw"], (4, 7)))


@store.cached
def found_pair(out: Path) -> None:
    """Twenty orders of harm and twenty chats, of which some ask."""
    made = [("HarmBench", 1, f"Write {gibberish(i)}") for i in range(20)]
    made += [("chat", 0, f"how do I {gibberish(100 + i)}{'?' if i % 2 else '.'}") for i in range(20)]
    examples.write(
        out,
        [
            Example(text=t, label=y, split="train", slice=s, transform="plain", base=f"{s.lower()}:{n}", group=n)
            for n, (s, y, t) in enumerate(made)
        ],
    )


@dataclass(frozen=True)
class Given(Source):
    """Records that are told, by id."""

    said: tuple[tuple[str, str], ...] = ()

    def rows(self) -> Any:
        return ({"id": name, "text": text} for name, text in self.said)


@store.cached
def known_set(out: Path) -> None:
    """Of the report's own: chats in distribution that are orders, and OOD prompts, one of which is a neighbour of a training prompt."""
    made = [("chat", 0, "train", f"c{i}") for i in range(15)] + [("chat", 0, "ood", f"o{i}") for i in range(5)]
    made += [("AdvBench", 1, "ood", f"a{i}") for i in range(6)] + [
        ("over-refusal", 0, "ood", f"r{i}") for i in range(5)
    ]
    bases = {"chat": "chat", "AdvBench": "advbench", "over-refusal": "overrefusal"}
    examples.write(
        out,
        [
            Example(text="X", label=y, split=s, slice=n, transform="plain", base=f"{bases[n]}:{i}", group=g)
            for g, (n, y, s, i) in enumerate(made)
        ],
    )


def test_cleaned_sets_leak_nowhere_and_are_of_the_words_of_their_sources(cells: Any, empty_store: store.Store) -> None:
    chats = [(f"c{i}", f"please list {gibberish(200 + i)} now.") for i in range(15)]
    chats += [(f"n{i}", f"tell of {gibberish(300 + i)}") for i in range(40)]
    chats += [(f"o{i}", f"never seen {i}") for i in range(5)]
    wicked = [("a0", f"Write {gibberish(7)} now")] + [(f"a{i}", f"Forge {gibberish(400 + i)}") for i in range(1, 6)]
    rows = {
        "benign": Given("chat", tuple(chats)),
        "advbench": Given("advbench", tuple(wicked)),
        "overrefusal": Given("overrefusal", tuple((f"r{i}", f"How do I {gibberish(500 + i)}?") for i in range(5))),
    }
    made = examples.read(cells.to_clean(found_pair(), known_set(), rows, cells.CLEANINGS, 0))
    by = {name: [e for e in made if name in e.slice.split(" + ")] for name in cells.CLEANINGS}
    ood = [e for e in made if e.split == "ood"]
    assert {e.base for e in ood} == {f"advbench:a{i}" for i in range(1, 6)} | {f"overrefusal:r{i}" for i in range(5)}
    assert not {e.group for e in ood} & {e.group for e in made if e.split != "ood"}, "no neighbour of a training prompt"
    assert [e.text for e in ood if e.base == "overrefusal:r2"] == [f"How do I {gibberish(502)}?"]
    assert len(by["as found"]) == 40 and not any("?" in e.text for e in by["question marks"])
    assert (
        {e.base[:6] for e in by["orders"] if not e.label}
        == {e.base[:6] for e in by["all"] if not e.label}
        == {"chat:c"}
    )
    assert {e.base[:6] for e in by["other chats"] if not e.label} == {"chat:n"} and len(by["other chats"]) == 40
    assert len(by["first person"]) == 20, "every chat says I"
    splits = {base: {e.split for e in made if e.base == base} for base in {e.base for e in made}}
    assert all(len(of) == 1 for of in splits.values()), "a prompt is in one split, however it is cleaned"
    assert all({e.split for e in of} == {"train", "val"} for of in by.values())


@store.cached
def asking_chats(out: Path) -> None:
    """Harmful orders, and chats of which every second one asks."""
    made = [(1, f"Light fire {i}") for i in range(30)] + [(0, f"Paint sea {i}{'?' * (i % 2)}") for i in range(30)]
    told = {"split": "train", "slice": "s", "transform": "plain"}
    examples.write(out, [Example(text=t, label=y, base=str(n), group=n, **told) for n, (y, t) in enumerate(made)])


def test_of_a_pair_it_is_told_how_many_items_show_a_shortcut(
    cells: Any, tiny: ModelSection, empty_store: store.Store
) -> None:
    lm, pair = model.pinned(tiny), asking_chats()
    read = residuals(sequences_.labelled(pair, lm, "user", 256))
    columns = cells.columns_of(pair, read, reader(first_token(tiny, "?"), first_token(tiny, "xyz")), 0)
    features = {"question mark": "contains a question mark", "colon": "starts with Write or Give"}
    signs = {"question mark": r"\?", "colon": ":"}
    found = cells.on_pair(pair, columns, signs, features, read, lm, 0, name="reading").value
    assert found["shares"] == {"question mark": [0.0, 0.5], "colon": [0.0, 0.0]}
    assert found["latents"] == {"question mark": 1, "colon": None} and found["best, latents"] == {"question mark": 1.0}
    assert found["words"]["question mark"] <= 6 and found["words that come with it"]["question mark"] <= 6
    assert found["dense probe"]["colon"] is None, "no text shows it"
