"""What probes see, and what SAEs keep of it, against loops and on planted data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import LABELS, WIDTH, fit, harvest, identity_sae, mute_sae, prompt_set
from safetensors.torch import load_file, save_file

from lib import store
from lib.lm import activations
from lib.probes import tables, views
from lib.probes.attention import Tokens
from lib.probes.methods import Linear
from lib.probes.views import Data, Error, Latents, Reconstruction, Residual, Surface, View, Words
from lib.sae import training
from lib.sae.metrics import Sums
from lib.texts import style


def seen(view: View) -> np.ndarray:
    return np.asarray(view.matrix(Data(prompt_set(), harvest(), 0), LABELS))


def of_sae(kind: type[Latents], place: int | str, sae: store.Artifact) -> Latents:
    return kind(place, None, sae, views.pooled(harvest(), sae, 0) if isinstance(place, str) else None)


def test_pooled_saes_against_a_loop(empty_store: store.Store) -> None:
    """Latents and reconstructions of each user token, the tail left out, pooled token by token."""
    sae = training.load(identity_sae())
    source = activations.read(harvest(), 0, sinks=True)
    sequence, position = source.column("sequence"), source.column("position")
    kinds = {Latents: sae.encode, Reconstruction: sae.reconstruct}
    pooled = {(k, how): seen(of_sae(k, f"{how} user", identity_sae())) for k in kinds for how in ("max", "mean")}
    for prompt in (0, 33, 599):
        rows = np.flatnonzero((sequence == prompt) & (position < 7 + 5))
        assert len(rows) == 5
        for kind, through in kinds.items():
            values = through(source.gather(rows))
            for how, expected in (("max", values.amax(0)), ("mean", values.mean(0))):
                np.testing.assert_allclose(pooled[kind, how][prompt], expected.numpy(), rtol=2e-3, atol=1e-5)
    x = source.gather(np.flatnonzero(position < 7 + 5))
    found = json.loads((views.pooled(harvest(), identity_sae(), 0).path / "kept.json").read_text())
    assert found["l0"] == pytest.approx(float((sae.encode(x) > 0).sum(1).float().mean()))


USER = [(3, 4, 5, 6), (3, 4, 5, 7, 8), (3, 4, 5, 6), (3, 4, 9), (9, 4, 5), (3,), (3, 9, 9, 9), (2, 4, 5)]
TAIL, SINK_ID = (1, 0), 9  # the token that is a sink where it comes second


@store.cached
def sharing(out: Path) -> None:
    """A harvest of texts that begin alike in many ways, whose residuals are functions of the tokens before."""
    rows = []
    for prompt, text in enumerate(USER):
        for at, token in enumerate(text + TAIL):
            x = np.random.default_rng((text + TAIL)[: at + 1]).normal(size=WIDTH)
            rows.append((prompt, 7 + at, token, 100 * x if token == SINK_ID and at == 1 else x))
    order = np.random.default_rng(0).permutation(len(rows))
    sequence, position, token, x = (np.array(column) for column in zip(*(rows[i] for i in order), strict=True))
    half = torch.from_numpy(x).half()
    columns = {"sequence": sequence, "position": position, "token": token}
    tensors = {name: torch.from_numpy(column.astype(np.int32)) for name, column in columns.items()}
    for number, half_of in enumerate((slice(0, 11), slice(11, None))):
        shard = {name: t[half_of].clone() for name, t in tensors.items()}
        shard |= {"layer_0": half[half_of].clone(), "norm_0": half[half_of].float().norm(dim=1)}
        save_file(shard, out / f"shard_{number:04d}.safetensors")
    save_file({"tail_0": torch.zeros(len(USER), 2, WIDTH).half()}, out / "summary.safetensors")


def test_prefixes_are_equal_where_all_before_is() -> None:
    rng = np.random.default_rng(0)
    texts = [tuple(rng.integers(0, 2, rng.integers(1, 7))) for _ in range(60)]
    rows = [(i, 5 + at, token, text[: at + 1]) for i, text in enumerate(texts) for at, token in enumerate(text)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    found = views.prefixes(*(np.array([row[i] for row in rows], np.int32) for i in range(3)))
    both = set(zip(found.tolist(), (row[3] for row in rows), strict=True))
    assert len(both) == len(set(found.tolist())) == len({row[3] for row in rows}) < len(rows)


def test_what_texts_share_is_pooled_as_if_each_had_its_own(empty_store: store.Store) -> None:
    """Maximum and mean of every user token of each text, against a loop; sinks are left out, and every copy counts in L0."""
    sae, source = training.load(identity_sae()), activations.read(sharing(), 0)
    assert source.dropped == sum(text[1:2] == (SINK_ID,) for text in USER) > 0
    made = views.pooled(sharing(), identity_sae(), 0)
    found, fired = load_file(made.path / "pooled.safetensors"), []
    for prompt, text in enumerate(USER):
        here = (source.column("sequence") == prompt) & (source.column("position") < 7 + len(text))
        x = source.gather(np.flatnonzero(here))
        fired += (sae.encode(x) > 0).sum(1).tolist()
        for kind, values in (("latents", sae.encode(x)), ("reconstruction", sae.reconstruct(x))):
            loose = {"rtol": 1e-3 if kind == "latents" else 1e-6, "atol": 1e-6}
            torch.testing.assert_close(found[f"{kind} max"][prompt].float(), values.amax(0), **loose)
            torch.testing.assert_close(found[f"{kind} mean"][prompt].float(), values.mean(0), **loose)
    assert json.loads((made.path / "kept.json").read_text())["l0"] == pytest.approx(np.mean(fired))


def test_a_place_and_what_is_pooled_must_agree(empty_store: store.Store) -> None:
    pooled = views.pooled(harvest(), identity_sae(), 0)
    for view in (Latents("max user", sae=identity_sae()), Latents(1, None, identity_sae(), pooled), Latents(1)):
        with pytest.raises(ValueError, match="needs the SAE's pooled artifact"):
            seen(view)
    with pytest.raises(ValueError, match="no place 9"):
        seen(Residual(9))
    with pytest.raises(ValueError, match="no activations of layer 7"):
        seen(Residual(1, layer=7))


def test_reconstruction_and_error_add_up(empty_store: store.Store) -> None:
    both = seen(of_sae(Reconstruction, 1, identity_sae())) + seen(of_sae(Error, 1, identity_sae()))
    np.testing.assert_allclose(both, seen(Residual(1)), atol=1e-4)
    latents = seen(of_sae(Latents, 1, identity_sae()))
    assert latents.shape == (len(LABELS.y), 2 * WIDTH) and (latents >= 0).all()


def test_tokens_are_those_of_each_prompt_in_order(empty_store: store.Store) -> None:
    source = activations.read(harvest(), 0)
    sequence, position = source.column("sequence"), source.column("position")
    tokens = Tokens().matrix(Data(prompt_set(), harvest(), 0), LABELS)
    x, which = tokens.batch(np.array([5, 0, 599]))
    for number, prompt in enumerate((5, 0, 599)):
        rows = np.flatnonzero(sequence == prompt)
        torch.testing.assert_close(x[which == number], source.gather(rows[np.argsort(position[rows])]))


def test_words_are_those_of_train_prompts(empty_store: store.Store) -> None:
    words = Words().matrix(Data(prompt_set(), harvest(), 0), LABELS)
    assert words.shape == (len(LABELS.y), 3) and words.nnz == 3 * len(LABELS.y), "elsewhere is no word of train prompts"
    assert seen(Surface()).shape == (len(LABELS.y), len(style.FEATURES))


def test_keys_follow_what_a_view_is(empty_store: store.Store) -> None:
    keys = {fit(Linear((1.0,)), view).key for view in (Residual(1), Residual(2), Residual(1, 0), Surface(), Words())}
    assert len(keys) == 5 and fit(Linear((1.0,)), Residual(1)).key in keys
    kinds = (Latents, Reconstruction, Error)
    assert len({fit(Linear((1.0,)), of_sae(kind, 1, identity_sae())).key for kind in kinds}) == 3


def test_a_constant_error_is_not_lost_to_a_probe() -> None:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    made = Sums(1, 6, 6)
    for part in x.split(77):
        made.add(part, part + 3.0, torch.eye(6)[:3].repeat(30, 1)[: len(part)])
    value = made.fidelity()
    assert value["lost"] == pytest.approx(0, abs=1e-9) and value["fvu"] > 5 and value["l0"] == 1
    half = Sums(1, 6, 6)
    half.add(x, 0.5 * x, x)
    assert half.fidelity()["lost"] == pytest.approx(0.25)


def test_where_an_sae_loses_is_found(empty_store: store.Store) -> None:
    """The identity SAE loses nothing at any place; one whose latents never fire loses everything, and says so."""
    places, saes, shown = (0, 1, "mean user", "max user"), {"whole": identity_sae(), "mute": mute_sae()}, {}
    probe = Linear((1e-2,))
    for name, sae in saes.items():
        for place in places:
            there = fit(probe, of_sae(Reconstruction, place, sae))
            shown[f"{name}, {place}"] = ((fit(probe, Residual(place)), None), (there, None))
    found = tables.differences(prompt_set(), shown).value
    assert all(abs(found[f"whole, {place}"]["val"]["difference"]) < 0.02 for place in places)
    assert found["mute, 1"]["val"]["difference"] == pytest.approx(0.5, abs=0.02)
    asked = {name: {str(p): of_sae(Latents, p, sae) for p in (0, 1, "max user")} for name, sae in saes.items()}
    kept = views.kept(prompt_set(), harvest(), 0, asked).value
    assert kept["whole"].keys() == {"0", "1", "max user"}
    assert all(max(e["lost"], e["ood"]) < 0.01 for e in kept["whole"].values())
    assert all(e["lost"] == e["ood"] == pytest.approx(1) and e["l0"] == 0 for e in kept["mute"].values())
    pooled = json.loads((views.pooled(harvest(), identity_sae(), 0).path / "kept.json").read_text())
    assert kept["whole"]["max user"]["l0"] == pytest.approx(pooled["l0"])
