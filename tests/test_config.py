from pathlib import Path

import pytest

from lib import config


def test_profiles_differ_in_values_not_in_shape() -> None:
    dumps = {name: config.load(name).model_dump() for name in config.PROFILES}
    assert len({repr(sorted(d)) for d in dumps.values()}) == 1
    assert {name: d["name"] for name, d in dumps.items()} == {name: name for name in config.PROFILES}


def test_override_by_dotted_name() -> None:
    changed = config.load("smoke", {"training.latents": 64, "layer": 3})
    assert (changed.training.latents, changed.layer) == (64, 3)
    assert config.load("smoke").training.latents != 64
    named = config.load("smoke", {"probes.positive": 1})  # as it comes from --set probes.positive=1
    assert named.probes.positive == "1"


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("nope", {}, "unknown profile 'nope'"),
        ("smoke", {"training.latent": 1}, "unknown parameter 'training.latent'"),
        ("smoke", {"trainin.latents": 1}, "unknown parameter 'trainin.latents'"),
        ("smoke", {"training": {}}, "unknown parameter 'training'"),
        ("smoke", {"name": "report"}, "unknown parameter 'name'"),
        ("smoke", {"layer": "twelve"}, "layer"),
        ("smoke", {"training.latents": -1}, "training.latents"),
    ],
)
def test_bad_settings_name_the_field(name: str, overrides: dict, words: str) -> None:
    with pytest.raises(config.ConfigError, match=words):
        config.load(name, overrides)


def test_a_row_that_does_not_fit_names_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.PROFILES, "mine", {"probes": {"seed": 5}})
    with pytest.raises(config.ConfigError, match=r"profile .mine.: probes\.seed: Extra inputs"):
        config.load("mine")


@pytest.mark.parametrize("row", [None, {"name": "report"}])
def test_a_row_that_changes_nothing_is_report_by_another_name(
    monkeypatch: pytest.MonkeyPatch, row: dict | None
) -> None:
    monkeypatch.setitem(config.PROFILES, "mine", row)  # type: ignore[arg-type]
    assert config.load("mine") == config.load("report").model_copy(update={"name": "mine"})


def test_folders_are_whole_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels run elsewhere, so a relative one would be another there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAE_REPORT_CACHE", "here")
    monkeypatch.setenv("SAE_REPORT_BUILD", "~/there")
    assert config.cache_dir() == tmp_path.resolve() / "here"
    assert config.build_dir() == Path("~/there").expanduser().resolve()
