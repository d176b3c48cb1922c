"""Notebook 01: what its own steps say of prompts, SAEs and pairs whose answers are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib import store
from lib.lm import activations
from lib.sae import training
from tests import planted
from tests.cells import cells_of


@pytest.fixture(scope="module")
def cells() -> Any:
    return cells_of("01_training")


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
