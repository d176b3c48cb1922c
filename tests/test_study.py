"""A study's recipes: making them computes nothing, equal ones are one artifact, and they fit the model at hand."""

import pytest

from lib import config, store, study
from lib.lm.model import ModelError
from lib.probes.methods import ByMeanDifference
from lib.probes.views import Latents, Residual
from lib.report import probe
from lib.study import Study


@pytest.mark.parametrize("name", ["report", "smoke", "paper"])
def test_recipes_compute_nothing(empty_store: store.Store, name: str) -> None:
    """With keys of their own, in a store that would have to compute whatever is read."""
    given = Study(config.load(name, {"model.name": "packaged"}))
    sae = given.sae("jumprelu", coefficient=2e-3)
    raw = given.train("pretraining", sae, run=1, checkpoints=(0.5,))
    made = {
        "raw": raw,
        "another run": given.train("pretraining", sae, run=2, checkpoints=(0.5,)),
        "finetuned": given.train("chat", sae, start=raw, share=0.5, run=1),
        "redrawn": given.train("chat", sae, start=raw, share=0.5, run=1, redrawn=0.1),
        "from its middle": given.train(
            "chat", sae, start=raw, share=0.5, run=1, checkpoint=given.profile.training.steps // 2
        ),
        "mixed": given.train({"chat": 1.0, "pretraining": 0.5}, sae),
        "evaluated": given.evaluate(raw, "chat", "x"),
        "latents": given.fit(given.few(ByMeanDifference()), *given.see(Latents, [raw])),
        "pooled": given.fit(given.few(ByMeanDifference()), *given.see(Latents, [raw], "max user")),
        **given.baselines,
        **{k: v for name in ("IT", "chat") for k, v in probe.on(given, name, given.saes[name][0]).items()},
    }
    assert len({recipe.key for recipe in made.values()}) == len(made)
    assert not empty_store.cache.exists() and not empty_store.results.exists()


def test_equal_recipes_are_one_artifact(empty_store: store.Store) -> None:
    one, two = (Study(config.load("smoke")) for _ in range(2))
    linear = one.linear
    assert one.fit(linear, Residual(1)).key == two.fit(linear, Residual(1)).key == two.baselines["dense"].key
    assert one.fit(linear, Residual(1), draws=1).key != one.fit(linear, Residual(1)).key
    assert one.fit(linear, Residual(1, layer=8)).key != one.fit(linear, Residual(1)).key


def test_an_own_file_does_not_renew_what_does_not_read_it(empty_store: store.Store, tmp_path) -> None:
    (tmp_path / "mine.csv").write_text("text,label,split\n")
    ours = Study(config.load("smoke"))
    theirs = Study(config.load("smoke", {"probes.data": str(tmp_path / "mine.csv")}))
    assert theirs.prompts.key == ours.prompts.key != theirs.labelled.key
    assert theirs.text("pretraining", "train").key == ours.text("pretraining", "train").key
    assert theirs.text("chat", "train").key != ours.text("chat", "train").key, "no SAE is trained on what is probed"


def test_a_layer_that_is_not_there_is_refused_at_once(tiny, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("SAE_REPORT_CACHE", str(tmp_path))
    for field in ({"layer": 99}, {"probes.layers": [1, 99]}):
        with pytest.raises(ModelError, match=r"layer 99.*blocks 0 to 3"):
            study.open_study("smoke", {"model.name": tiny.name, "layer": 1, "probes.layers": [1], **field})


@pytest.mark.parametrize(("profile", "overrides"), [("report", {"layer": 8}), ("smoke", {})])
def test_frozen_is_for_what_was_committed(profile: str, overrides: dict) -> None:
    with pytest.raises(config.ConfigError, match="of profile report without overrides"):
        study.open_study(profile, overrides, frozen=True)
