"""Cards, on planted latents."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib import store
from lib.config import ModelSection
from lib.latents import cards
from lib.lm import model, spans
from lib.lm import sequences as sequences_
from lib.sae import training
from lib.sae.variants import SAEConfig, make
from lib.texts.examples import Example


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
    assert top["difference"] > 1e3 and top["contexts"]["harmless"] == [] and top["alike"] == []
    assert found["latents"][1]["difference"] == pytest.approx(0.0)
    context = top["contexts"]["harmful"][0]
    assert len(context["tokens"]) == len(context["values"]) <= 2 * cards.AROUND + 1
    assert context["values"] == [1.0 if token == "<" else 0.0 for token in context["tokens"]]
    asked = cards.cards(pair, residuals(turns), sae, model.pinned(tiny), 0, (5, 3), 2).value["latents"]
    assert [card["latent"] for card in asked] == [5, 3] and asked[1] == top


def test_trained_loader_reads_what_was_written(empty_store: store.Store) -> None:
    sae = training.load(reader(1, 2))
    assert sae.encode(torch.eye(400)[1:3])[:, [3, 5]].tolist() == [[1.0, 0.0], [0.0, 0.5]]
