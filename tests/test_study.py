"""The report's recipes: making them computes nothing, and they fit the model at hand."""

from functools import cached_property

import numpy as np
import pytest

from lib import config, figures, store
from lib.config import ModelSection
from lib.study import Study


@pytest.mark.parametrize("name", ["report", "smoke", "paper"])
def test_recipes_compute_nothing(empty_store: store.Store, name: str) -> None:
    """All of them, with keys of their own, in a store that would have to compute whatever is read."""
    study = Study(config.load(name, {"model.name": "packaged"}))
    recipes = [member for member, value in vars(Study).items() if isinstance(value, cached_property)]
    assert len(recipes) > 30
    for recipe in recipes:
        getattr(study, recipe)
    assert not empty_store.cache.exists() and not empty_store.results.exists()
    fits = {key: fitted.key for key, fitted in study._at_places.items()}
    assert len(set(fits.values())) == len(fits)


def test_places_are_those_that_the_template_has(tiny: ModelSection) -> None:
    study = Study(config.load("smoke", {"model.name": tiny.name, "probes.places": [0, 2, 500]}))
    assert study._places == {
        0: ("pretraining", "finetuned", "chat"),
        1: ("pretraining", "finetuned", "chat"),  # the site, to which results compare the others
        2: ("pretraining", "finetuned", "chat"),
        "mean user": ("finetuned",),
        "max user": ("finetuned",),
    }
    views = study.fidelity.arguments["views"]
    assert {name: set(by_place) for name, by_place in views.items() if name in ("finetuned", "TopK")} == {
        "finetuned": {"0", "1", "2", "mean user", "max user"},
        "TopK": {"1"},
    }


def test_the_site_is_a_place_when_no_other_is_asked_for() -> None:
    study = Study(config.load("smoke", {"probes.places": [], "probes.position": 0}))
    assert list(study._places) == [0, "mean user", "max user"]


def test_figure_of_places_shows_every_probe_where_it_was_fit() -> None:
    entry = {"ood": {"auroc": 0.8, "interval": [0.7, 0.9], "n": 1234}}
    found = {f"dense, , {place}": entry for place in ("1", "4", "mean user")}
    found |= {
        f"{what}, finetuned, {place}": entry for what in ("reconstruction", "k-sparse") for place in ("1", "mean user")
    }
    found |= {f"{what}, chat, 1": entry for what in ("reconstruction", "k-sparse")}
    lost = {place: {"l0": 7.4, "lost": 0.25, "fvu": 1.5} for place in ("1", "4", "mean user")}
    figure = figures.places(found, {"finetuned": lost}, 20)
    for axis in figure.axes:
        assert [text.get_text() for text in axis.get_xticklabels()] == [
            "+1\nL0 7\nlost 25%",
            "+4\nL0 7\nlost 25%",
            "mean\nL0 7\nlost 25%",
        ]
        drawn = [np.round(bars.lines[0].get_xdata()).tolist() for bars in axis.containers]
        assert drawn == [[0, 1, 2], [0, 2], [0]]
    assert figure.axes[0].get_ylabel() == "OOD AUROC (n = 1,234)"
