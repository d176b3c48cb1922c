"""Notebook 01: what its own steps say of prompts, SAEs and pairs whose answers are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lib import stats, store
from lib.config import TrainingSection
from lib.lm import activations
from lib.probes import tables
from lib.probes.methods import DifferenceOfMeans, SingleLatent
from lib.probes.views import Latents
from lib.sae import training
from lib.sae.variants import SAEConfig
from tests import planted
from tests.cells import cells_of


@pytest.fixture(scope="module")
def cells() -> Any:
    return cells_of("01_training")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, empty_store: store.Store) -> None:
    """Fits are made in this process: no other can import a notebook's classes."""
    monkeypatch.setattr("lib.store.store._travels", lambda artifact: False)


@store.cached
def weak_sae(out: Path, noise: float, deceived: bool) -> None:
    """The identity SAE whose latents read their coordinate with noise from another; unless ``deceived``, the shortcut's are silent."""
    sae = training.load(planted.identity_sae())
    with torch.no_grad():
        sae.W_enc[5, :] += noise
        if not deceived:
            sae.theta[[1, 1 + planted.WIDTH]] = 1e6
    training.save(sae, [], out)


@store.cached
def turned_sae(out: Path) -> None:
    """The identity SAE with its latents in another order, the first half-way between two directions."""
    sae = training.load(planted.identity_sae())
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_enc.roll(3, 1))
        sae.W_dec.copy_(sae.W_dec.roll(3, 0))
        sae.W_dec[0] += sae.W_dec[1]
    training.save(sae, [], out)


@pytest.mark.usefixtures("empty_store")
def test_a_turned_latent_is_told_from_one_that_moved_places(cells: Any) -> None:
    texts = planted.harvest()
    still = cells.turned(planted.identity_sae(), None, planted.identity_sae(), texts, texts, 0, name="a").value
    assert set(still["nearest"]) == {1.0}
    nearest = cells.turned(planted.identity_sae(), None, turned_sae(), texts, texts, 0, name="b").value["nearest"]
    assert nearest[0] == pytest.approx(0.5**0.5, abs=1e-3) and set(nearest[1:]) == {1.0}
    fires = activations.read(texts, 0)
    f = training.load(planted.identity_sae()).encode(fires.gather(np.arange(len(fires))))
    assert still["chat"][0] == pytest.approx(float((f[:, 0] > 0).float().mean()), abs=2e-5)


def test_new_latents_are_new_and_of_chat(cells: Any) -> None:
    """Neither like one before, nor rare, nor as frequent on the other text; the most frequent first."""
    nearest, chat, text = [0.2, 0.2, 0.9, 0.2, 0.3], [0.01, 0.02, 0.5, 0.0005, 0.3], [0.0, 0.001, 0.0, 0.0, 0.2]
    assert cells.new_latents({"nearest": nearest, "chat": chat, "text": text}) == [1, 0]


@pytest.mark.usefixtures("empty_store")
def test_a_folder_that_holds_another_sae_is_noticed(cells: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = planted.harvest()
    good = cells.exported({"it": planted.identity_sae()}, chats, 0, 64, name="a").value["it"]
    assert good["flipped"] < 0.002 and good["off"] < 1e-5
    read = cells.exchange.read

    def spoilt(folder: Path) -> Any:
        sae = read(folder)
        with torch.no_grad():
            sae.b_dec += 0.01
        return sae

    monkeypatch.setattr(cells.exchange, "read", spoilt)
    assert cells.exported({"it": planted.identity_sae()}, chats, 0, 64, name="b").value["it"]["off"] > 1e-4


def test_where_latents_fire_most_is_shown_once_a_text(
    cells: Any, empty_store: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_tokenizer(lm: Any) -> None:
        return None

    def numbers(tokenizer: Any, ids: Any) -> list[str]:
        return [str(token) for token in ids]

    monkeypatch.setattr(cells.model, "tokenizer", no_tokenizer)
    monkeypatch.setattr(cells, "token_texts", numbers)
    found = cells.strongest(planted.identity_sae(), (0, 2), {"side": planted.harvest()}, None, 0, 3, name="a").value
    source = activations.read(planted.harvest(), 0)
    x, text = source.gather(np.arange(len(source))), source.column("sequence")
    for latent in (0, 2):
        contexts = found[str(latent)]["side"]
        assert len(contexts) == 3
        best = np.argsort(-x[:, latent].numpy())
        assert max(contexts[0]["values"]) == pytest.approx(float(x[best[0], latent]), rel=1e-3)
        assert len({text[best[0]]}) == 1


@pytest.mark.usefixtures("empty_store")
def test_an_sae_sees_the_training_prompts_of_its_draw_and_no_others(cells: Any) -> None:
    whole = activations.read(planted.harvest(), 0, sinks=True)
    for draw in (0, 1):
        mine = cells.training_prompts(planted.prompt_set(), planted.harvest(), draw)
        source = activations.read(mine, 0, sinks=True)
        train = np.flatnonzero(planted.LABELS.drawn(draw).where("train"))
        assert np.array_equal(np.unique(source.column("sequence")), train)
        rows = np.flatnonzero(np.isin(whole.column("sequence"), train))
        assert torch.equal(source.gather(np.arange(len(source))), whole.gather(rows))
    shard = load_file(mine.path / "shard_0000.safetensors")
    assert len({len(column) for column in shard.values()}) == 1


@pytest.mark.usefixtures("here")
def test_pairs_are_probed_on_their_own_draw(cells: Any) -> None:
    """A draw's probe is that of the crossed design; the summary of one pair's scores is the table's own."""
    view = Latents(1, sae=planted.identity_sae())
    two = [planted.fit(DifferenceOfMeans(), view, change=cells.Draw(float(run)), draws=1) for run in range(2)]
    crossed = planted.fit(DifferenceOfMeans(), view, draws=2)
    found = cells.by_pair(planted.prompt_set(), {"a": two}, [], name="a").value["a"]
    table = tables.table(planted.prompt_set(), {"it": (crossed, None)}, name="b").value["it"]["ood"]
    first, second = np.ravel(table["seeds"])
    assert first != second  # so one that took the wrong draw would be seen
    assert np.ravel(found["seeds"]) == pytest.approx([first, second])
    assert found["mean"] == pytest.approx(table["auroc"])


@pytest.mark.usefixtures("here")
def test_a_difference_of_pairs_is_that_of_the_tables(cells: Any) -> None:
    """With one draw, seeds alone, it is what the crossed step says; and a planted difference is seen."""
    seeds = (0.1, 0.2, 0.3, 0.4)
    ways = {
        "good": [Latents(1, sae=weak_sae(noise, False)) for noise in seeds],
        "worse": [Latents(1, sae=weak_sae(noise, True)) for noise in seeds],
    }
    fits = {name: [planted.fit(SingleLatent(), view, draws=1) for view in views] for name, views in ways.items()}
    found = cells.by_pair(planted.prompt_set(), fits, [("good", "worse")], name="a").value["good - worse"]
    together = {name: planted.fit(SingleLatent(), *views, draws=1) for name, views in ways.items()}
    pair = {"it": ((together["good"], None), (together["worse"], None))}
    expected = tables.differences(planted.prompt_set(), pair, name="b").value["it"]["ood"]
    assert found["mean"] == pytest.approx(expected["difference"])
    assert found["interval"] == pytest.approx(expected["interval"])
    assert found["interval"][0] > 0
    fewer = fits | {"worse": fits["worse"][:2]}
    two = cells.by_pair(planted.prompt_set(), fewer, [("good", "worse")], name="c").value["good - worse"]
    assert np.ravel(two["seeds"]) == pytest.approx(np.ravel(found["seeds"])[:2])


@pytest.mark.usefixtures("empty_store")
def test_latents_that_finetuning_redraws_are_known(cells: Any) -> None:
    config = SAEConfig(variant="jumprelu", latents=40, coefficient=1e-3, initial_l0=4.0)
    section = TrainingSection(steps=2, batch=64, latents=40, learning_rate=1e-12, tail_weight=1.0)
    begun = training.train(config, ((planted.harvest(), 1.0),), 0, section, 7)
    after = training.train(config, ((planted.harvest(), 1.0),), 0, section, 7, begun, None, 0.25)
    moved = (training.load(after).W_dec - training.load(begun).W_dec).norm(dim=1) > 1e-3
    assert moved.sum() == 10
    assert np.array_equal(cells.redrawn_ones(7, 0.25, 40), moved.numpy())
    assert not cells.redrawn_ones(7, 0.0, 40).any()


def test_the_size_of_a_difference_has_no_sign(cells: Any) -> None:
    """It is turned so that the difference is above nought, and goes up as far as its interval went on either side."""
    cases = (
        (-0.02, [-0.05, 0.01], [-0.01, 0.05]),
        (0.02, [-0.01, 0.05], [-0.01, 0.05]),
        (-0.03, [-0.05, -0.02], [0.02, 0.05]),
        (0.001, [-0.05, 0.02], [-0.05, 0.05]),
    )
    for value, ends, expected in cases:
        sized = cells.unsigned({"difference": value, "interval": ends, "error": 0.01, "freedom": 9.0})
        assert sized == {"difference": abs(value), "interval": expected, "error": 0.01, "freedom": 9.0}


def test_a_part_of_the_latents_is_scored_as_the_scorer_does_all(cells: Any) -> None:
    """Of all sampled latents it is the scorer's own mean over firings; those left out change nothing; of none it is not a number."""
    rng = np.random.default_rng(0)
    fired = rng.lognormal(4, 2, 60).round() + 1
    which, stratum, sizes = stats.sample(fired, 40, rng)
    score = np.where(rng.random(40) < 0.1, np.nan, rng.random(40))
    entry = {"latent": which, "fired": fired[which], "stratum": stratum, "sizes": sizes, "score": score}
    everything = stats.weighted_means(score, fired[which], stratum, sizes)["weighted"]["mean"]
    assert cells.over_sample(entry, np.ones(60, bool)) == pytest.approx(everything)
    inside = rng.random(60) < 0.5
    part = cells.over_sample(entry, inside)
    assert part == cells.over_sample(entry | {"score": np.where(inside[which], score, -9.0)}, inside)
    assert part != pytest.approx(everything)
    assert np.isnan(cells.over_sample(entry, np.zeros(60, bool)))
