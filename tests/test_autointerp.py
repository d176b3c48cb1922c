"""Autointerp on planted latents; the controls, by notebook 04's own cells."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib import store
from lib.config import AutointerpSection, ModelSection
from lib.latents import autointerp
from lib.latents.autointerp import Text
from lib.latents.explainers import Best, Contexts, Places, Tokens, Topic, agreement
from lib.lm import activations, harvest, model
from lib.lm import sequences as sequences_
from lib.sae import training
from lib.sae.variants import SAEConfig, make
from lib.texts import corpora, examples
from lib.texts.examples import Example
from tests.cells import cells_of
from tests.test_latents import reader, residuals

notebook = cells_of("04_autointerp")


def contexts(tokens: np.ndarray, values: np.ndarray, **more: np.ndarray) -> Any:
    """Contexts of equal length, without a subject, each at the beginning of its text."""
    places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    given: dict[str, np.ndarray] = {"places": places, "vectors": np.zeros((len(tokens), 1)), **more}
    return Contexts(tokens, values.astype(float), **given)


def halves(tokens: np.ndarray, values: np.ndarray, **more: np.ndarray) -> tuple[Any, Any]:
    """Thirty contexts to explain from and thirty to score on, drawn as the report draws them."""
    found, rng = [], np.random.default_rng(0)
    for part in np.array_split(np.arange(len(tokens)), 2):
        which = part[autointerp.choose(values[part].max(1), 30, rng)]
        found.append(contexts(tokens, values, **more)[which])
    return found[0], found[1]


def scored(explainer: Any, tokens: np.ndarray, values: np.ndarray, **more: np.ndarray) -> float:
    seen, shown = halves(tokens, values, **more)
    return agreement(explainer.predict(explainer.explain(seen), shown), shown.peaks)


def texts(count: int, width: int, vocab: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, (count, width))


def graded(tokens: np.ndarray) -> np.ndarray:
    strength = np.zeros(400)
    strength[[7, 8, 9, 10]] = (1.0, 2.0, 5.0, 9.0)
    return strength[tokens]


def test_planted_latents_are_explained_by_the_form_that_fits() -> None:
    """A token, a pair, a place, a subject: each near 1 by its own form and by the best, and low by another."""
    tokens, few = texts(900, 16, 400), texts(3000, 16, 12)
    after = np.zeros(few.shape)
    after[:, 1:] = (few[:, 1:] == 3) * np.select([few[:, :-1] == i for i in (4, 5, 6)], (2.0, 5.0, 9.0), 0.0)
    starts = np.random.default_rng(1).integers(0, 60, len(tokens))
    places = starts[:, None] + np.arange(16)
    early = np.clip(20 - places, 0, None).astype(float)
    vectors = np.random.default_rng(2).normal(size=(900, 24))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    about = np.repeat(np.clip(vectors[:, :1], 0, None), 16, 1)
    for form, other, bound, given in (
        (Tokens(), Places(), 0.9, (tokens, graded(tokens), {})),
        (Tokens(), Topic(), 0.85, (few, after, {})),
        (Places(), Tokens(), 0.9, (tokens, early, {"places": places})),
        (Topic(), Places(), 0.75, (tokens, about, {"vectors": vectors})),
    ):
        of, values, more = given
        more = {"vectors": np.random.default_rng(3).normal(size=(len(of), 24)), **more}
        right, best, wrong = (scored(one, of, values, **more) for one in (form, Best(), other))
        assert right > bound and best > bound - 0.1, type(form).__name__
        assert wrong < 0.6 * right, type(other).__name__


def test_a_pair_needs_the_token_before() -> None:
    tokens = np.array([[4, 3, 1], [4, 3, 2], [1, 3, 4], [2, 3, 1]])
    explanation = Tokens().explain(contexts(tokens, np.array([[0, 2, 0], [0, 4, 0], [0, 0, 0], [0, 0, 0]])))
    assert explanation[4, 3] == 3 and explanation[None, 3] == 1.5 and (1, 3) not in explanation
    assert Tokens().predict(explanation, contexts(np.array([[4, 3], [2, 3], [5, 6]]), np.zeros((3, 2)))).tolist() == [
        3,
        1.5,
        0,
    ]


def test_shuffled_activations_score_near_zero() -> None:
    tokens = texts(900, 16, 400)
    points = [scored(Best(), tokens, graded(tokens)[np.random.default_rng(s).permutation(900)]) for s in range(20)]
    assert abs(np.mean(points)) < 0.15


@pytest.mark.parametrize("explainer", [Tokens(), Places(), Topic(), Best()], ids=lambda e: type(e).__name__)
def test_a_prediction_does_not_read_the_activations_that_it_predicts(explainer: Any) -> None:
    tokens = texts(900, 16, 400)
    seen, shown = halves(tokens, graded(tokens), vectors=np.random.default_rng(0).normal(size=(900, 8)))
    explanation = explainer.explain(seen)
    hidden = replace(shown, values=np.full_like(shown.values, np.nan))
    assert (explainer.predict(explanation, shown) == explainer.predict(explanation, hidden)).all()


def test_agreement() -> None:
    truth = np.arange(10.0)
    assert agreement(3 * truth, truth) == pytest.approx(1) and agreement(-truth + 9, truth) == pytest.approx(-1)
    assert agreement(np.ones(10), truth) == 0 == agreement(truth, np.zeros(10))
    some = np.where(np.arange(10) < 4, np.nan, truth)
    assert agreement(some, truth) == pytest.approx(1), "over those that were predicted"
    assert np.isnan(agreement(np.where(np.arange(10) < 6, np.nan, truth), truth)), "too few answers: no score"


def test_cut_covers_every_token_in_windows_of_about_equal_length() -> None:
    lengths = (5, 70, 32, 33, 1)
    window, offset, place = autointerp.cut(np.repeat([4, 0, 7, 2, 3], lengths), 32)
    assert np.bincount(window).tolist() == [5, 24, 23, 23, 32, 17, 16, 1]
    assert place.tolist() == [i for n in lengths for i in range(n)]
    assert all(offset[window == w].tolist() == [*range((window == w).sum())] for w in range(8))


def test_choice_of_contexts() -> None:
    peaks, rng = np.array([0.0] * 20 + list(range(1, 31))), np.random.default_rng(0)
    chosen = autointerp.choose(peaks, 15, rng)
    assert sorted(peaks[chosen[:5]]) == [26, 27, 28, 29, 30]
    assert peaks[chosen[5:10]].min() == 1 and peaks[chosen[5:10]].max() == 25
    assert (peaks[chosen[10:]] == 0).all()
    rare = peaks[autointerp.choose(peaks[:23], 15, rng)]
    assert sorted(rare[rare > 0]) == [1, 2, 3] and (rare == 0).sum() == 5, "all there are, beside as many silent ones"
    always = autointerp.choose(peaks[20:], 15, rng)
    assert sorted(peaks[20:][always[10:]]) == [1, 2, 3, 4, 5], "never silent: its weakest contexts instead"
    assert len(set(always.tolist())) == 15


@store.cached
def text(out: Path, seed: int, sentence: int = 0, tokens: int = 60) -> None:
    rng = np.random.default_rng(seed)
    rows = [(rng.integers(10, tokens, 33).tolist(), 1, 33) for _ in range(150)]
    same = [(np.random.default_rng(9).integers(10, 60, 9).tolist(), 1, 9)] * sentence
    sequences_.Sequences.of([*rows, *same]).save(out / "sequences.safetensors")


@store.cached
def said(out: Path, seed: int, windows: int) -> None:
    """What stands in windows: texts of their own, but for the last five of 605, which are the same whatever the seed."""
    rng = np.random.default_rng(seed)
    made = ["".join(chr(97 + i) for i in rng.integers(0, 26, 40)) for _ in range(min(windows, 600))]
    rest: dict[str, Any] = {"label": 0, "split": "train", "slice": "", "transform": "plain"}
    texts = [*made, *(f"the same sentence, number {i}" for i in range(windows - 600))]
    examples.write(out, [Example(text=x, base=str(i), group=i, **rest) for i, x in enumerate(texts)])


def text_of(seed: int, sentence: int = 0, tokens: int = 60) -> Text:
    return Text(residuals(text(seed, sentence, tokens)), said(seed, 600 + sentence), embedded(600 + sentence))


@store.cached
def embedded(out: Path, windows: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(windows, 8)).astype(np.float32)
    save_file({"x": torch.from_numpy(vectors)}, out / "embeddings.safetensors")


def test_an_sae_end_to_end(tiny: ModelSection, empty_store: store.Store) -> None:
    both = text_of(0), text_of(1)
    section = AutointerpSection(latents=6, examples=12, window=8, tokens=9_000)
    found = autointerp.evaluate(reader(20, 30), both, 0, Best(), section, 0).value
    assert sorted(found["latent"]) == [3, 5], "of eight latents two fire"
    assert found["uniform"]["mean"] > 0.75 and found["weighted"]["mean"] > 0.75 and found["unanswered"] == 0
    assert found["uniform"]["scored"] == 1 and found["tokens"] == 2 * 150 * 32
    assert all(score is not None and score <= 1 for score in found["active"])
    one, other = notebook.look(reader(20, 30), both, model.pinned(tiny), 0, Best(), section, 0, (3, 4)).value
    assert (
        one["score"] == pytest.approx(found["score"][found["latent"].index(3)], abs=1e-4)
        and "tokens" in one["explanation"]
    )
    assert all(len(c["tokens"]) == len(c["values"]) and 0 <= c["level"] <= 10 for c in one["seen"] + one["shown"])
    assert other == {"latent": 4, "score": None, "explanation": "", "seen": [], "shown": []}
    with pytest.raises(ValueError, match="no latent fires on this text"):
        autointerp.evaluate(reader(399, 398), both, 0, Best(), section, 0).value


def test_what_also_stands_in_the_other_half_is_not_scored_on(empty_store: store.Store) -> None:
    pools = autointerp.pools_of((text_of(0, 5), text_of(1, 5)), 0, 8)
    assert pools[0].drawn.all() and pools[1].drawn.sum() == 600 and not pools[1].drawn[-5:].any()


def test_a_near_duplicate_is_not_scored_on(empty_store: store.Store) -> None:
    """One letter of each of the shared sentences differs between the halves."""

    @store.cached
    def nearly(out: Path, ending: str) -> None:
        rest: dict[str, Any] = {"label": 0, "split": "train", "slice": "", "transform": "plain"}
        rng = np.random.default_rng(ord(ending))
        made = ["".join(chr(97 + i) for i in rng.integers(0, 26, 40)) for _ in range(600)]
        made[17] = f"how do I sort a list of numbers in that language{ending}"
        examples.write(out, [Example(text=x, base=str(i), group=i, **rest) for i, x in enumerate(made)])

    first, second = (Text(residuals(text(i)), nearly(mark), embedded(600)) for i, mark in enumerate("?!"))
    pools = autointerp.pools_of((first, second), 0, 8)
    assert pools[0].drawn.all() and np.flatnonzero(~pools[1].drawn).tolist() == [17]


def test_what_is_scored_on_does_not_depend_on_what_is_explained_from(empty_store: store.Store) -> None:
    pools = autointerp.pools_of((text_of(0), text_of(1)), 0, 8)
    columns = tuple(pool.latents(training.load(reader(20, 30))) for pool in pools)
    whole = autointerp.score(pools, columns, 3, Best(), 30, 0)
    pools[0].drawn = np.random.default_rng(0).random(600) < 0.2
    less = autointerp.score(pools, columns, 3, Best(), 30, 0)
    assert whole and less and (whole.shown.tokens == less.shown.tokens).all()
    assert whole.seen.tokens.shape != less.seen.tokens.shape or (whole.seen.tokens != less.seen.tokens).any()


def test_the_active_score_leaves_out_the_silent_third(empty_store: store.Store) -> None:
    pools = autointerp.pools_of((text_of(0), text_of(1)), 0, 8)
    columns = tuple(pool.latents(training.load(reader(20, 30))) for pool in pools)
    one = autointerp.score(pools, columns, 3, Best(), 30, 0)
    assert one and (one.shown.peaks[-10:] == 0).all() and (one.shown.peaks[:-10] > 0).all()
    assert one.active == agreement(one.guess[:-10], one.shown.peaks[:-10]) != one.value


def test_halves_are_of_different_documents(empty_store: store.Store) -> None:
    @store.cached
    def documents(out: Path) -> None:
        (out / "held_out.json").write_text("5")
        (out / "documents.jsonl").write_text("".join(json.dumps(f"text {i}") + "\n" for i in range(12)))

    first, second = (corpora.read(autointerp.half(documents(), which), "eval") for which in (0, 1))
    assert (first, second) == (["text 0", "text 2", "text 4"], ["text 1", "text 3"])


@store.cached
def read_by_pair(out: Path, width: int = 80) -> None:
    """Residuals in which a token and the one before it can be read, and some noise; token 11 often comes after 10."""
    rng = np.random.default_rng(0)
    token = rng.integers(10, 60, (400, 32))
    token[:, 9] = np.where(rng.random(400) < 0.5, 11, token[:, 9])
    token[:, 8] = np.where(token[:, 9] == 11, 10, token[:, 8])
    now, before = rng.normal(size=(2, 60, width))
    x = now[token] + np.concatenate([np.zeros((400, 1, width)), before[token[:, :-1]]], 1)
    x += 0.1 * rng.normal(size=x.shape) + 3
    sequence, position = (np.broadcast_to(n, token.shape) for n in (np.arange(400)[:, None], np.arange(32)))
    tensors = {
        n: torch.tensor(v.reshape(-1), dtype=torch.int32)
        for n, v in (("sequence", sequence), ("position", position), ("token", token))
    }
    flat = torch.tensor(x.reshape(-1, width))
    tensors |= {
        "layer_0": flat.half(),
        "norm_0": flat.norm(dim=1).float(),
        "tail": torch.zeros(len(flat), dtype=torch.bool),
    }
    save_file(tensors, out / "shard_0000.safetensors")


def test_a_basis_rebuilds_everything_and_pairs_are_found_as_often_as_they_occur(empty_store: store.Store) -> None:
    source = activations.read(read_by_pair(), 0)
    x, token = source.gather(np.arange(len(source))), source.column("token")
    pair = np.r_[False, (token[1:] == 11) & (token[:-1] == 10)]  # by far the most frequent
    found = []
    for seed in range(4):
        made = training.load(notebook.bigrams(200, read_by_pair(), 0, seed))
        f = made.encode(x)
        assert f.shape[1] == 240, "three times the width, where fewer would leave no room for pairs"
        assert float((made.reconstruct(x) - x).square().sum() / (x - x.mean(0)).square().sum()) < 1e-6
        assert not made.W_dec[160:].any(), "what finds pairs writes nothing"
        fires = (f[:, 160:] > 0).numpy()
        best = int(np.argmax(fires[pair].sum(0)))
        found.append((fires[pair, best].mean(), fires[:, best].sum() / pair.sum()))
    sought = [often for hits, often in found if hits > 0.95]
    assert pair.sum() > 150 and 0 < len(sought) < 4 and max(sought) < 1.1, (
        "of the frequent pairs half are drawn anew each time"
    )


def test_random_directions_fire_as_often_as_what_they_replace(empty_store: store.Store) -> None:
    like = notebook.bigrams(200, read_by_pair(), 0, 0)
    made = training.load(notebook.random_directions(like, read_by_pair(), 0, 0))
    source = activations.read(read_by_pair(), 0)
    x = source.gather(np.arange(len(source)))
    then, now = ((sae.encode(x) > 0).float().mean(0) for sae in (training.load(like), made))
    assert (now - then).abs().max() < 1e-3 and then.max() > 0.3 and then.min() < 0.01


def test_components_read_either_way_and_fire_within_the_rates_of_what_they_replace(empty_store: store.Store) -> None:
    like = notebook.bigrams(200, read_by_pair(), 0, 0)
    made = training.load(notebook.components(like, read_by_pair(), 0, 0))
    x = activations.read(read_by_pair(), 0).gather(np.arange(2000))
    axes = made.W_enc.T
    assert torch.allclose(axes[::2], -axes[1::2]) and torch.allclose(
        axes[::2] @ axes[::2].T, torch.eye(x.shape[1]), atol=1e-4
    )
    spread = (x @ axes[::2].T).var(0)
    assert spread[0] > 1.2 * spread[-1], "the largest first"
    rates, of_like = ((sae.encode(x) > 0).float().mean(0) for sae in (made, training.load(like)))
    assert rates[0] > rates[-1] and of_like[of_like > 0].min() / 2 < rates.mean() < of_like.max()


def test_the_intruder_is_spotted_where_it_can_be(empty_store: store.Store) -> None:
    """Twelve excerpts of a kind and twelve of another, of one latent; of the next, all alike."""

    @store.cached
    def vectors(out: Path) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2, 2, notebook.SHOWN, 64)) / 8
        x[0, 0, :, 0] += 5
        x[0, 1, :, 1] += 5
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
        save_file({"x": torch.from_numpy(x.reshape(-1, 64).astype(np.float32))}, out / "embeddings.safetensors")

    right, chance = notebook.intruders(vectors(), (1, 2), 0, trials=400).value
    assert right == 1.0 and abs(chance - 0.2) < 0.12


def test_less_text_to_explain_from_lowers_the_score(empty_store: store.Store) -> None:
    """Tokens that stand in a dozen windows of all: in a thirtieth of them a latent may be active in none."""
    both = text_of(0, 0, 400), text_of(1, 0, 400)
    section = AutointerpSection(latents=6, examples=12, window=8, tokens=9_000)
    shares = (1 / 300, 1 / 30, 1.0)  # the first leaves too little to choose from
    rows = notebook.tokens_seen(reader(20, 30), both, 0, Best(), section, 0, (3, 5), shares).value
    assert [row["share"] for row in rows] == pytest.approx([1 / 30, 1.0])
    little, whole = (row["scores"] for row in rows)
    assert None in little and None not in whole and min(whole) > 0.7


def test_planted_latents_are_found_and_dealt_out_ones_are_not(tiny: ModelSection, empty_store: store.Store) -> None:
    section = AutointerpSection(latents=6, examples=30, window=8, tokens=9_000)
    rows = notebook.planted(
        (text_of(0, 0, 400), text_of(1, 0, 400)), model.pinned(tiny), 0, section, 0, (" list", " you")
    ).value
    means = {(row["kind"], row["explainer"]): np.mean(row["scores"]) for row in rows if row["scores"]}
    assert means["token", "Best"] > 0.9 and means["token", "Tokens"] > 0.9 and means["place", "Places"] > 0.8
    assert all(abs(mean) < 0.15 for (kind, by), mean in means.items() if kind == "token, dealt out")


def test_how_much_context_a_latent_needs(tiny: ModelSection, empty_store: store.Store) -> None:
    """One that reads the embedding of its token, in a model of one block that is far away: the token is enough, others do not matter."""
    lm = model.pinned(tiny)
    made = text(0)

    @store.cached
    def by_embedding(out: Path, token: int) -> None:
        loaded = model.load(lm).model
        weight = loaded.get_input_embeddings().weight.detach().float()
        sae = make(SAEConfig(variant="jumprelu", latents=4), weight.shape[1])
        with torch.no_grad():
            sae.W_enc[:, 1] = weight[token] / weight[token].norm()
            sae.b_enc[1] = -0.5 * weight[token].norm()
        training.save(sae, [], out)

    read = Text(harvest.harvest(made, lm, (0,)), said(0, 600), embedded(600))
    section = AutointerpSection(latents=6, examples=12, window=8, tokens=9_000)
    (row,) = notebook.minimal(by_embedding(20), read, lm, 0, section, (1,), 0).value
    assert row["latent"] == 1 and row["context"] <= 2 and len(row["left"]) == 3 and min(row["left"]) > 0.5
