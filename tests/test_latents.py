"""Cards and autointerp, on planted latents."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib import store
from lib.config import AutointerpSection, ModelSection
from lib.latents import autointerp, cards
from lib.lm import activations, model, spans
from lib.lm import sequences as sequences_
from lib.sae import training
from lib.sae.variants import SAEConfig, make
from lib.texts.examples import Example


def texts(count: int, width: int, vocab: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random windows [W, width] of tokens, three to a text, and the text of each."""
    tokens = np.random.default_rng(seed).integers(0, vocab, (count, width))
    return tokens, np.arange(count) // 3


def scored(tokens: np.ndarray, values: np.ndarray, owner: np.ndarray) -> float:
    done = autointerp.score_latent(tokens, values, owner, 30, np.random.default_rng(0))
    assert done is not None
    return done[0]


def test_planted_token_latents_score_near_one() -> None:
    tokens, owner = texts(900, 16, 400)
    strength = np.zeros(400)
    strength[[7, 8, 9, 10]] = (1.0, 2.0, 5.0, 9.0)
    assert scored(tokens, strength[tokens], owner) > 0.95


def test_planted_pair_latents_need_the_token_before() -> None:
    tokens, owner = texts(3000, 16, 12)
    after = np.zeros(tokens.shape)
    after[:, 1:] = ((tokens[:, 1:] == 3) & (tokens[:, :-1] == 4)) * 5.0
    assert scored(tokens, after, owner) > 0.8


def test_shuffled_activations_score_near_zero() -> None:
    tokens, owner = texts(900, 16, 400)
    strength = np.zeros(400)
    strength[[7, 8, 9, 10]] = (1.0, 2.0, 5.0, 9.0)
    values = strength[tokens]
    points = [scored(tokens, values[np.random.default_rng(s).permutation(900)], owner) for s in range(20)]
    assert abs(np.mean(points)) < 0.15


def test_explaining_and_scoring_contexts_come_from_different_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, owner = texts(900, 8, 50)
    tokens[:, 0] = owner  # the first token tells the text
    seen: list[set[int]] = []
    explain, score = autointerp.explain, autointerp.score
    monkeypatch.setattr(autointerp, "explain", lambda w: (seen.append({x[0] for x, _ in w}), explain(w))[1])
    monkeypatch.setattr(autointerp, "score", lambda e, w: (seen.append({x[0] for x, _ in w}), score(e, w))[1])
    scored(tokens, np.where(np.arange(8) > 0, tokens == 5, 0.0), owner)
    assert seen[0] and seen[1] and not seen[0] & seen[1]


def test_windows_are_whole_and_of_one_text(tmp_path: Path) -> None:
    """Consecutive tokens of one text; texts in a seeded order until the limit is covered."""
    lengths = (5, 9, 3, 12)
    sequence = np.repeat([4, 0, 7, 2], lengths).astype(np.int32)
    numbers = torch.arange(len(sequence), dtype=torch.int32)
    columns = {"sequence": torch.from_numpy(sequence), "position": numbers, "token": numbers.clone()}
    columns["tail"] = torch.zeros(len(sequence), dtype=torch.bool)
    ones = torch.ones(len(sequence))
    save_file({**columns, "layer_0": ones.half()[:, None], "norm_0": ones}, tmp_path / "shard_0000.safetensors")
    source = activations.Activations([(tmp_path, 1.0)], 0)
    rows, owner = autointerp.windows_of(source, 4, 1000, 0)
    assert len(rows) == 1 + 2 + 0 + 3 and (np.diff(rows) == 1).all()
    assert all((sequence[row] == text).all() for row, text in zip(rows, owner, strict=True))
    first, *_ = order = np.random.default_rng(0).permutation(4)  # the first has three tokens: no window, but covered
    assert lengths[first] == 3 and autointerp.windows_of(source, 4, 4, 0)[1].tolist() == [(4, 0, 7, 2)[order[1]]]
    with pytest.raises(ValueError, match="no text has 13 tokens"):
        autointerp.windows_of(source, 13, 1000, 0)


def test_choice_of_contexts() -> None:
    peaks = np.array([0.0] * 20 + list(range(1, 31)))
    chosen = autointerp.choose(peaks, 15, np.random.default_rng(0))
    assert chosen is not None
    assert sorted(peaks[chosen[:5]]) == [26, 27, 28, 29, 30]
    assert peaks[chosen[5:10]].min() == 1 and peaks[chosen[5:10]].max() == 25
    assert (peaks[chosen[10:]] == 0).all()
    assert autointerp.choose(peaks[:25], 15, np.random.default_rng(0)) is None
    always = autointerp.choose(peaks[20:], 15, np.random.default_rng(0))
    assert always is not None
    assert sorted(peaks[20:][always[10:]]) == [1, 2, 3, 4, 5], "never silent: its weakest contexts instead"
    assert len(set(always.tolist())) == 15


def test_high_frequency_latents_are_scored() -> None:
    """A planted latent that fires in every window still gets its score."""
    tokens, owner = texts(900, 32, 40)
    strength = np.zeros(40)
    strength[:12] = np.arange(12)
    values = strength[tokens]
    assert (values.max(1) > 0).all()
    assert scored(tokens, values, owner) > 0.5


def test_constant_predictions_score_zero() -> None:
    windows = [((1, 2), (0.0, float(i))) for i in range(6)]
    assert autointerp.score({}, windows) == 0.0


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


def test_autointerp_of_an_sae_end_to_end(tiny: ModelSection, empty_store: store.Store) -> None:
    @store.cached
    def sequences(out: Path) -> None:
        rng = np.random.default_rng(0)
        sequences_.Sequences.of((rng.integers(10, 60, 33).tolist(), 1, 33) for _ in range(300)).save(
            out / "sequences.safetensors"
        )

    section = AutointerpSection(latents=6, examples=12, window=8, tokens=9_000)
    arguments = (residuals(sequences()), model.pinned(tiny), 0, section, 50, 0)
    found = autointerp.evaluate(reader(20, 30), *arguments).value
    assert found["eligible"] == 2 and found["eligible_firing"] == 1.0
    assert {p["latent"] for p in found["scored"]} <= {3, 5}
    assert found["uniform"]["mean"] > 0.75 and found["weighted"]["mean"] > 0.75
    with pytest.raises(ValueError, match="no latent fires in enough contexts"):
        autointerp.evaluate(reader(399, 398), *arguments).value


def test_trained_loader_reads_what_was_written(empty_store: store.Store) -> None:
    sae = training.load(reader(1, 2))
    assert sae.encode(torch.eye(400)[1:3])[:, [3, 5]].tolist() == [[1.0, 0.0], [0.0, 0.5]]
