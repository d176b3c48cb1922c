"""Figures: one look per entity, and what is drawn is what was given."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from lib import config, figures, stats


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def entry(value: float, runs: tuple[float, ...] = (), half: float = 0.1) -> dict:
    return {"auroc": value, "interval": [value - half, value + half], **({"seeds": list(runs)} if runs else {})}


def test_an_entity_looks_the_same_whatever_stands_beside_it() -> None:
    for number in range(5):
        assert figures.look("finetuned SAE, 20 latents", number) == figures.look("finetuned")
        assert figures.look("sentence\nembedding", number) == figures.look("sentence embedding")
    assert figures.look("QF ω₀=0.01")["color"] != figures.look("QF ω₀=0.1")["color"] == figures.look("QF")["color"]
    assert figures.look("JumpReLU, plain start") != figures.look("JumpReLU") == figures.look("chat")
    assert figures.look("mine", 0) != figures.look("mine", 1)


def test_an_interval_of_which_nothing_is_known_is_not_drawn() -> None:
    """Of one seed it is as wide as can be, and an axis that showed it would show nothing else."""
    one, several = stats.over_seeds([0.3]), stats.over_seeds([0.3, 0.4, 0.35])
    axis = figures.forest({"one": {"x": one}, "several": {"x": several}}, "mean")
    assert axis.get_xlim()[0] > -1 and axis.get_xlim()[1] < 2
    ends = [segment for bars in axis.collections for segment in bars.get_segments()]
    assert np.ptp(ends[0][:, 0]) == 0 and tuple(ends[1][:, 0]) == pytest.approx(several["interval"])
    curve = figures.curves({"x": [(1, one), (2, several)]}, "mean")
    assert curve.get_ylim()[0] > -1 and curve.get_ylim()[1] < 2


# What one axis shows side by side must be told apart without colour, or by its colour's lightness and hue.
TOGETHER = (
    ("dense", "attention", "finetuned", "sentence embedding", "surface features", "principal components"),
    ("pretraining", "finetuned", "chat", "QF"),
    ("JumpReLU", "JumpReLU, plain start", "QF ω₀=0.1", "QF ω₀=0.01", "TopK", "Gated"),
    ("train", "validation", "OOD"),
    ("harmful", "harmless", "over-refusal"),
)


def deutan(colour: str) -> np.ndarray:
    """Linear RGB as somebody without M cones sees it (Viénot, Brettel and Mollon 1999), then lightness-like cube roots."""
    rgb = np.array([int(to_hex(colour)[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]) @ linear
    return np.cbrt(np.clip(seen, 0, 1))


@pytest.mark.parametrize("names", TOGETHER, ids=lambda names: names[0])
def test_looks_on_one_axis_are_told_apart(names: tuple[str, ...]) -> None:
    for a, b in itertools.combinations(names, 2):
        one, other = figures.look(a), figures.look(b)
        assert one["color"] != other["color"], (a, b)
        apart = np.linalg.norm(deutan(one["color"]) - deutan(other["color"]))
        assert apart > 0.2 or one["marker"] != other["marker"], (a, b, apart)


def test_forest_draws_values_intervals_and_runs() -> None:
    rows = {"a": {"dense": entry(0.9, (0.8, 1.0)), "mine": entry(0.5)}, "": {}, "b": {"dense": entry(0.7, (0.7,))}}
    axis = figures.forest(rows)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "", "b"]
    marked = {line.get_label(): line for line in axis.get_lines() if not line.get_label().startswith("_")}
    assert list(marked["dense"].get_xdata()) == [0.9, 0.7] and list(marked["mine"].get_xdata()) == [0.5]
    bars = [segment[:, 0].tolist() for bar in axis.collections for segment in bar.get_segments()]
    assert np.allclose(sorted(bars), [[0.4, 0.6], [0.6, 0.8], [0.8, 1.0]])
    runs = [list(line.get_xdata()) for line in axis.get_lines() if line.get_marker() == "." and len(line.get_xdata())]
    assert runs == [[0.8, 1.0], [0.7]]
    top, bottom = axis.get_ylim()
    assert top > bottom and len(axis.figure.legends) == 1


def test_what_rests_on_one_run_is_hollow() -> None:
    axis = figures.forest({"a": {"dense": entry(0.9, (0.9,)), "chat": entry(0.9, (0.8, 1.0)), "TopK": entry(0.5)}})
    faces = {line.get_label(): line.get_markerfacecolor() for line in axis.get_lines()}
    assert faces["dense"] == "white" and faces["chat"] != "white" and faces["TopK"] != "white"


def test_curves_show_runs_where_there_are_several_and_intervals_where_not() -> None:
    line = [(1, entry(0.5, (0.4, 0.6))), (10, entry(0.7, (0.6, 0.8)))]
    axis = figures.curves({"dense": line})
    thin = [list(x.get_ydata()) for x in axis.get_lines() if x.get_linewidth() < 1]
    assert thin == [[0.4, 0.6], [0.6, 0.8]] and not axis.collections
    assert [t.get_text() for t in axis.get_xticklabels()] == ["1", "10"] and axis.get_xscale() == "log"
    axis = figures.curves({"dense": [(2, entry(0.7)), (1, entry(0.5))]}, log=False)
    (mean,) = (x for x in axis.get_lines() if x.get_label() == "dense")
    assert list(mean.get_xdata()) == [1, 2] and list(mean.get_ydata()) == [0.5, 0.7]
    assert np.allclose([s[:, 1] for bar in axis.collections for s in bar.get_segments()], [[0.4, 0.6], [0.6, 0.8]])


def test_a_line_of_one_point_shows_its_interval() -> None:
    """Of several runs, too: thin lines through a single point cannot be seen."""
    axis = figures.curves({"QF": [(7, entry(0.6, (0.4, 0.8), 0.3))]})
    assert np.allclose([s[:, 1] for bar in axis.collections for s in bar.get_segments()], [[0.3, 0.9]])


def test_panels_share_axes_and_have_their_names() -> None:
    axes = figures.panels(["dense", "chat", "mine", "other"], columns=3, x="k", y="AUROC")
    assert list(axes) == ["dense", "chat", "mine", "other"]
    assert [axis.get_title(loc="left") for axis in axes.values()] == list(axes)
    axes["dense"].set_xlim(0, 7)
    assert axes["other"].get_xlim() == (0, 7)
    colours = [axis._left_title.get_color() for axis in (axes["dense"], axes["chat"])]
    assert colours == [figures.look(name)["color"] for name in ("dense", "chat")]
    assert sum(axis.get_visible() for axis in axes["dense"].figure.axes) == 4


def test_a_title_is_the_figures_own_and_wrapped() -> None:
    figure = figures.headed(plt.figure(), "A finding " * 10)
    assert figure.get_suptitle().count("\n") == 1


def test_the_users_own_style_changes_no_figure(tmp_path: Path) -> None:
    """Whatever a matplotlibrc says, settings are those of matplotlib's defaults and our file."""
    script = (
        "import json, matplotlib, lib.figures; skipped = ('backend', 'backend_fallback', 'interactive', 'toolbar', 'timezone');"
        "print(json.dumps({k: repr(v) for k, v in matplotlib.rcParams.items() if not k.startswith(skipped)}))"
    )
    (tmp_path / "matplotlibrc").write_text("axes.grid: True\nsavefig.dpi: 30\nsavefig.bbox: tight\nfont.size: 30\n")
    found = [
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | theirs,
            cwd=config.ROOT,
        ).stdout
        for theirs in ({"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}, {"MATPLOTLIBRC": ""})
    ]
    assert found[0] == found[1]
