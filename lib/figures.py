"""A few forms of figures: points by row, curves, small multiples. A form draws into an axis and returns it; titles, labels and captions are the notebook's.

One entity has one look on every page (:data:`LOOKS`). SAE seeds (or draws) are thin lines or small dots, their mean is bold; every interval
drawn is a 95 % one; what rests on one fit is hollow. Lines are named in place."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from lib.stats import WIDEST

# A value under its name, its interval under "interval" or "<name>_interval", under "seeds" one for each seed, or [seeds][draws].
Entry = Mapping[str, Any]

plt.style.use(["default", str(Path(__file__).with_name("style.mplstyle"))])  # whatever the user's own file says

WIDTH = 6.4  # inches: text at 10 points still reads when a phone shows the figure 390 px wide
CONTEXT, WARNING = "#8a8a8a", "#D55E00"
# Keyword arguments: of axvspan and axhspan, for a stretch that matters; of annotate, for text that stands over lines.
SHADE: dict[str, Any] = {"color": WARNING, "alpha": 0.1, "linewidth": 0}
OVER: dict[str, Any] = {"fontsize": "small", "path_effects": [withStroke(linewidth=2.5, foreground="white")]}

LOOKS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("looks.yaml").read_text(encoding="utf-8"))


def look(name: str, number: int = 0) -> dict[str, Any]:
    """Colour and marker of an entity, by the longest key that its name, or else a part of it ("k latents, finetuned"), begins with; others by their series."""
    name = " ".join(name.split())
    found = ([key for key in LOOKS if part.startswith(key)] for part in (name, *name.split(", ")))
    known = max(next(filter(None, found), [""]), key=len)
    return dict(zip(("color", "marker"), LOOKS.get(known, (f"C{number % 7}", "osD^vP"[number % 6])), strict=True))


def headed(figure: Figure, title: str) -> Figure:
    """``figure`` with its message above it."""
    figure.suptitle(textwrap.fill(title, 60), x=0.01, ha="left")
    return figure


def panels(names: Sequence[str], columns: int = 3, x: str = "", y: str = "", height: float = 2.6) -> dict[str, Axes]:
    """{name: axis}: small multiples that share both axes, each under its name in its colour, with one label for all."""
    columns = min(columns, len(names))
    rows: list[Any] = [[*names[at : at + columns]] for at in range(0, len(names), columns)]
    rows[-1] += ["."] * (columns - len(rows[-1]))
    figure, axes = plt.subplot_mosaic(rows, figsize=(WIDTH, height * len(rows)), sharex=True, sharey=True)
    for number, (name, axis) in enumerate(axes.items()):
        axis.set_title(name, fontsize="small" if columns > 3 else "medium", color=look(name, number)["color"])
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")
    return axes


def _runs(entry: Entry) -> list[float]:
    """A value for each SAE seed, the mean over draws of the split; where there is one seed only, for each draw."""
    runs = np.atleast_1d(np.array(entry.get("seeds", []), float))
    return (runs if runs.ndim == 1 else runs[0] if len(runs) == 1 else runs.mean(1)).tolist()


def _drawn(entries: Sequence[Entry], value: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Values [n]; [2, n] distances to their intervals' ends, as matplotlib wants them; hollow markers for single runs."""
    values = np.array([entry[value] for entry in entries], float)
    low, high = np.array([entry.get(f"{value}_interval", entry.get("interval")) for entry in entries], float).T
    hollow = all("seeds" in entry and np.size(entry["seeds"]) < 2 for entry in entries)
    ends = np.clip([values - low, high - values], 0, None) * (high - low < 2 * WIDEST)  # of one seed nothing is known
    return values, ends, {"markerfacecolor": "white"} if hollow else {}


def forest(rows: Mapping[str, Mapping[str, Entry]], value: str = "auroc", axis: Axes | None = None) -> Axes:
    """Points with intervals and runs, a row each: ``rows`` {row: {series: entry}}; a row without entries is a gap."""
    series = list(dict.fromkeys(name for by_series in rows.values() for name in by_series))
    own = axis is None
    axis = axis or plt.subplots(figsize=(WIDTH, (0.14 + 0.14 * len(series)) * len(rows) + 1.1))[1]
    for number, name in enumerate(series):
        mine = {at: by_series[name] for at, by_series in enumerate(rows.values()) if name in by_series}
        at = np.array(list(mine)) + 0.7 / len(series) * (number - (len(series) - 1) / 2)
        values, ends, style = _drawn(list(mine.values()), value)
        shape = look(name, number)
        axis.errorbar(values, at, xerr=ends, linestyle="none", elinewidth=4, alpha=0.3, color=shape["color"])
        for place, entry in zip(at, mine.values(), strict=True):
            runs = _runs(entry)
            axis.plot(runs, [place] * len(runs), ".", color=shape["color"], alpha=0.6, markersize=4)
        axis.plot(values, at, linestyle="none", label=name, **shape, **style)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    if own and len(series) > 1:
        axis.figure.legend(loc="outside lower center", ncols=2)
    return axis


def curves(
    lines: Mapping[str, Sequence[tuple[float, Entry]]],
    value: str = "auroc",
    log: bool = True,
    axis: Axes | None = None,
    ticks: Sequence[float] = (),
) -> Axes:
    """Curves: ``lines`` {name: (x, entry)}. Thin lines are runs where entries have several, bars intervals where not.
    ``ticks`` of a logarithmic axis: every x where none are given."""
    axis = axis or plt.subplots()[1]
    for number, (name, line) in enumerate(lines.items()):
        x, entries = zip(*sorted(line, key=lambda point: point[0]), strict=True)
        shape = look(name, number)
        values, ends, style = _drawn(entries, value)
        several = {len(_runs(entry)) for entry in entries}
        if len(several) == 1 and max(several) > 1 and len(x) > 1:  # of a single point there is no line to see
            axis.plot(x, [_runs(entry) for entry in entries], color=shape["color"], linewidth=0.8, alpha=0.5)
        else:
            axis.errorbar(x, values, yerr=ends, linestyle="none", elinewidth=1, color=shape["color"], alpha=0.5)
        axis.plot(x, values, label=name, **shape, **style)
    if log:
        axis.set_xscale("log")
        ticks = ticks or sorted({at for line in lines.values() for at, _ in line})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    return axis
