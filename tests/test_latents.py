"""Cards and autointerp, on planted latents."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib import store
from lib.config import AutointerpSection, ModelSection
from lib.latents import autointerp, cards
from lib.latents.autointerp import Best, Contexts, Explainer, Places, Text, Tokens, Topic
from lib.lm import model, spans
from lib.lm import sequences as sequences_
from lib.sae import training
from lib.sae.variants import SAEConfig, make
from lib.texts import corpora
from lib.texts.examples import Example


def contexts(tokens: np.ndarray, values: np.ndarray, **more: np.ndarray) -> Contexts:
    """Contexts of equal length, without a subject, each at the beginning of its text."""
    places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    given: dict[str, np.ndarray] = {"places": places, "vectors": np.zeros((len(tokens), 1)), **more}
    return Contexts(tokens, values.astype(float), **given)


def halves(tokens: np.ndarray, values: np.ndarray, **more: np.ndarray) -> tuple[Contexts, Contexts]:
    """Thirty contexts to explain from and thirty to score on, drawn as the report draws them."""
    found, rng = [], np.random.default_rng(0)
    for part in np.array_split(np.arange(len(tokens)), 2):
        which = part[autointerp.choose(values[part].max(1), 30, rng)]
        found.append(contexts(tokens, values, **more)[which])
    return found[0], found[1]


def scored(explainer: Explainer, tokens: np.ndarray, values: np.ndarray, **more: np.ndarray) -> float:
    seen, shown = halves(tokens, values, **more)
    return autointerp.agreement(explainer.predict(explainer.explain(seen), shown), shown.peaks)


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
def test_a_prediction_does_not_read_the_activations_that_it_predicts(explainer: Explainer) -> None:
    tokens = texts(900, 16, 400)
    seen, shown = halves(tokens, graded(tokens), vectors=np.random.default_rng(0).normal(size=(900, 8)))
    explanation = explainer.explain(seen)
    hidden = replace(shown, values=np.full_like(shown.values, np.nan))
    assert (explainer.predict(explanation, shown) == explainer.predict(explanation, hidden)).all()


def test_agreement() -> None:
    truth = np.arange(10.0)
    assert autointerp.agreement(3 * truth, truth) == pytest.approx(1) and autointerp.agreement(
        -truth + 9, truth
    ) == pytest.approx(-1)
    assert autointerp.agreement(np.ones(10), truth) == 0 == autointerp.agreement(truth, np.zeros(10))
    some = np.where(np.arange(10) < 4, np.nan, truth)
    assert autointerp.agreement(some, truth) == pytest.approx(1), "over those that were predicted"
    assert np.isnan(autointerp.agreement(np.where(np.arange(10) < 6, np.nan, truth), truth)), (
        "too few answers: no score"
    )


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
def rows(out: Path, tiny: ModelSection) -> None:
    """Harmless prompts about the sea, harmful ones about fire; some with markup."""
    lines = []
    for i in range(60):
        text = f"The sea is {i} deep" if i % 2 else f"The fire <script>alert({i})</script> is lit"
        lines.append(
            Example(
                text=text, label=1 - i % 2, split="train", slice="s", transform="plain", base=str(i), group=i
            ).model_dump_json()
        )
    (out / "examples.jsonl").write_text("\n".join(lines))


@store.cached
def residuals(out: Path, sequences: store.Artifact) -> None:
    """One-hot residuals of the token ids: what a latent reads is known exactly."""
    found = sequences_.read(sequences)
    parts = [
        (i, p, found[i][p]) for i in range(len(found)) for p in range(int(found.keep_start[i]), int(found.keep_stop[i]))
    ]
    sequence, position, token = (torch.tensor(c, dtype=torch.int32) for c in zip(*parts, strict=True))
    x = torch.nn.functional.one_hot(token.long(), 400).half()
    tensors = {
        "layer_0": x,
        "norm_0": x.float().norm(dim=1),
        "sequence": sequence,
        "position": position,
        "token": token,
        "tail": torch.zeros_like(token, dtype=torch.bool),
    }
    save_file(tensors, out / "shard_0000.safetensors")


@store.cached
def reader(out: Path, token: int, other: int) -> None:
    """An SAE whose latent 3 reads one token and whose latent 5 reads another; the rest are silent."""

    config = SAEConfig(variant="jumprelu", latents=8)
    sae = make(config, 400)
    with torch.no_grad():
        sae.W_enc[token, 3] = 1.0
        sae.W_enc[other, 5] = 0.5
    training.save(sae, [], out)


def first_token(tiny: ModelSection, word: str) -> int:
    return spans.plain_ids(model.tokenizer(model.pinned(tiny)), word)[0]


def test_cards_find_the_planted_latent(tiny: ModelSection, empty_store: store.Store) -> None:
    pair = rows(tiny)
    turns = sequences_.labelled(pair, model.pinned(tiny), "user", 256)
    sae = reader(first_token(tiny, "<"), first_token(tiny, "The"))
    found = cards.cards(pair, residuals(turns), sae, model.pinned(tiny), 0, 3, 2).value
    top = found["latents"][0]
    assert (found["n"], found["harmful"]) == (60, 30)
    assert (top["latent"], top["harmful_share"], top["harmless_share"], top["auroc"]) == (3, 1.0, 0.0, 1.0)
    assert top["difference"] == pytest.approx(1.0) and top["contexts"]["harmless"] == []
    assert found["latents"][1]["difference"] == pytest.approx(0.0)
    context = top["contexts"]["harmful"][0]
    assert len(context["tokens"]) == len(context["values"]) <= 2 * cards.AROUND + 1
    assert context["values"] == [1.0 if token == "<" else 0.0 for token in context["tokens"]]
    asked = cards.cards(pair, residuals(turns), sae, model.pinned(tiny), 0, (5, 3), 2).value["latents"]
    assert [card["latent"] for card in asked] == [5, 3] and asked[1] == top


@store.cached
def text(out: Path, seed: int, sentence: int = 0) -> None:
    rng = np.random.default_rng(seed)
    rows = [(rng.integers(10, 60, 33).tolist(), 1, 33) for _ in range(150)]
    same = [(np.random.default_rng(9).integers(10, 60, 9).tolist(), 1, 9)] * sentence
    sequences_.Sequences.of([*rows, *same]).save(out / "sequences.safetensors")


@store.cached
def embedded(out: Path, windows: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(windows, 8)).astype(np.float32)
    save_file({"x": torch.from_numpy(vectors)}, out / "embeddings.safetensors")


def test_an_sae_end_to_end(tiny: ModelSection, empty_store: store.Store) -> None:
    both = Text(residuals(text(0)), embedded(600)), Text(residuals(text(1)), embedded(600))
    section = AutointerpSection(latents=6, examples=12, window=8, tokens=9_000)
    found = autointerp.evaluate(reader(20, 30), both, 0, Best(), section, 0).value
    assert (found["latents"], found["live"], sorted(found["latent"])) == (8, 2, [3, 5])
    assert found["uniform"]["mean"] > 0.75 and found["weighted"]["mean"] > 0.75 and found["unanswered"] == 0
    assert found["uniform"]["scored"] == 1 and found["tokens"] == 2 * 150 * 32
    every = autointerp.evaluate(reader(20, 30), both, 0, Best(), section, 0, every=True).value
    assert every["uniform"]["mean"] == found["uniform"]["mean"], "there are no more than two to sample from"
    one, other = autointerp.look(reader(20, 30), both, model.pinned(tiny), 0, Best(), section, 0, (3, 4)).value
    assert (
        one["score"] == pytest.approx(found["score"][found["latent"].index(3)], abs=1e-4)
        and "tokens" in one["explanation"]
    )
    assert all(len(c["tokens"]) == len(c["values"]) and 0 <= c["level"] <= 10 for c in one["seen"] + one["shown"])
    assert other == {"latent": 4, "score": None, "explanation": "", "seen": [], "shown": []}
    with pytest.raises(ValueError, match="no latent fires on this text"):
        autointerp.evaluate(reader(399, 398), both, 0, Best(), section, 0).value


def test_what_also_stands_in_the_other_half_is_not_scored_on(empty_store: store.Store) -> None:
    first, second = (Text(residuals(text(seed, 5)), embedded(605)) for seed in (0, 1))
    pools = autointerp.pools_of((first, second), 0, 8)
    assert pools[0].drawn.all() and pools[1].drawn.sum() == 600 and not pools[1].drawn[-5:].any()


def test_halves_are_of_different_documents(empty_store: store.Store) -> None:
    @store.cached
    def documents(out: Path) -> None:
        (out / "held_out.json").write_text("5")
        (out / "documents.jsonl").write_text("".join(json.dumps(f"text {i}") + "\n" for i in range(12)))

    first, second = (corpora.read(autointerp.half(documents(), which), "eval") for which in (0, 1))
    assert (first, second) == (["text 0", "text 2", "text 4"], ["text 1", "text 3"])


def test_trained_loader_reads_what_was_written(empty_store: store.Store) -> None:
    sae = training.load(reader(1, 2))
    assert sae.encode(torch.eye(400)[1:3])[:, [3, 5]].tolist() == [[1.0, 0.0], [0.0, 0.5]]
