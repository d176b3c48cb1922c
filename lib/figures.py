"""A few forms of figures: points by row, curves, histograms, a heat map. A form draws into an axis and returns it; titles,
labels and captions are the notebook's.

One entity has one look on every page (:data:`LOOKS`). Runs are thin lines or small dots, their mean is bold; every interval
drawn is a 95 % one; what rests on one run is hollow. Lines are named in place.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Entry = Mapping[
    str, Any
]  # a value under its name, its interval under "interval" or "<name>_interval", runs under "seeds"

plt.style.use(["default", str(Path(__file__).with_name("style.mplstyle"))])  # whatever the user's own file says

WIDTH = 6.4  # inches: text at 10 points still reads when a phone shows the figure 390 px wide
CONTEXT, WARNING = "#8a8a8a", "#D55E00"

LOOKS: dict[str, tuple[str, str]] = {  # colour and marker by the beginning of a name
    # probes that see all of the residual stream: black to grey
    "dense": ("#000000", "o"),
    "attention": ("#555555", "s"),
    "difference of means": ("#8a8a8a", "^"),
    # SAEs: blue and purple; families of notebook 05
    "SAE": ("#0072B2", "o"),
    "finetuned": ("#0072B2", "o"),
    "pretraining": ("#56B4E9", "s"),
    "chat": ("#AA4499", "^"),
    "JumpReLU": ("#AA4499", "^"),
    "JumpReLU, plain start": ("#999999", "h"),
    "QF": ("#332288", "v"),
    "QF ω₀=0.01": ("#E69F00", "<"),
    "TopK": ("#0F9D9D", "P"),
    "Gated": ("#7A5C00", "X"),
    # controls: orange
    "principal components": ("#D55E00", "D"),
    "random": ("#F0A070", "d"),
    # what never sees the model: green
    "sentence embedding": ("#009E73", "P"),
    "bag of words": ("#5DBB97", "X"),
    "surface features": ("#66A61E", "*"),
    # splits and classes
    "train": ("#bbbbbb", "s"),
    "validation": ("#8a8a8a", "o"),
    "OOD": ("#000000", "D"),
    "harmful": ("#CC3311", "s"),
    "harmless": ("#4477AA", "o"),
    "over-refusal": ("#DDAA33", "^"),
}


def look(name: str, number: int = 0) -> dict[str, Any]:
    """Colour and marker of an entity, by the longest key that its name begins with, or else a part of it ("k latents,
    finetuned"); others take those of their series."""
    name = " ".join(name.split())
    found = ([key for key in LOOKS if part.startswith(key)] for part in (name, *name.split(", ")))
    key = max(next(filter(None, found), [""]), key=len)
    colour, marker = LOOKS.get(key, (f"C{number % 7}", "osD^vP"[number % 6]))
    return {"color": colour, "marker": marker}


def headed(figure: Figure, title: str) -> Figure:
    """``figure`` with its message above it."""
    figure.suptitle(textwrap.fill(title, 60), x=0.01, ha="left")
    return figure


def panels(names: Sequence[str], columns: int = 3, x: str = "", y: str = "", height: float = 2.6) -> dict[str, Axes]:
    """{name: axis}: small multiples that share both axes, each under its name in its colour, with one label for all."""
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    size = (WIDTH, height * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for number, (name, axis) in enumerate(zip(names, grid.flat, strict=False)):
        axis.set_title(name, fontsize="small" if columns > 3 else "medium", color=look(name, number)["color"])
    for axis in grid.flat[len(names) :]:
        axis.set_visible(False)
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")
    return dict(zip(names, grid.flat, strict=False))


def _ends(entries: Sequence[Entry], value: str) -> tuple[np.ndarray, np.ndarray]:
    """Values [n], and [2, n] distances to their intervals' ends, as matplotlib wants them."""
    values = np.array([entry[value] for entry in entries], float)
    ends = np.array([entry.get(f"{value}_interval", entry.get("interval")) for entry in entries], float)
    return values, np.clip(np.stack([values - ends[:, 0], ends[:, 1] - values]), 0, None)


def _hollow(entries: Iterable[Entry]) -> dict[str, Any]:
    return {"markerfacecolor": "white"} if all(len(e.get("seeds", "ab")) < 2 for e in entries) else {}


def forest(rows: Mapping[str, Mapping[str, Entry]], value: str = "auroc", axis: Axes | None = None) -> Axes:
    """Points with intervals and runs, a row each: ``rows`` {row: {series: entry}}; a row without entries is a gap."""
    series = list(dict.fromkeys(name for by_series in rows.values() for name in by_series))
    own = axis is None
    if axis is None:
        axis = plt.subplots(figsize=(WIDTH, (0.14 + 0.14 * len(series)) * len(rows) + 1.1))[1]
    for number, name in enumerate(series):
        mine = [(at, by_series[name]) for at, by_series in enumerate(rows.values()) if name in by_series]
        entries = [entry for _, entry in mine]
        at = np.array([at for at, _ in mine]) + 0.7 / len(series) * (number - (len(series) - 1) / 2)
        values, ends = _ends(entries, value)
        shape = look(name, number)
        axis.errorbar(values, at, xerr=ends, linestyle="none", elinewidth=4, alpha=0.3, color=shape["color"])
        for place, entry in zip(at, entries, strict=True):
            runs = entry.get("seeds", ())
            axis.plot(runs, [place] * len(runs), ".", color=shape["color"], alpha=0.6, markersize=4)
        axis.plot(values, at, linestyle="none", label=name, **shape, **_hollow(entries))
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
    ``ticks`` of a logarithmic axis: every x where none are given. :func:`name_ends` names the lines."""
    axis = axis or plt.subplots()[1]
    for number, (name, line) in enumerate(lines.items()):
        x, entries = zip(*sorted(line, key=lambda point: point[0]), strict=True)
        shape = look(name, number)
        values, ends = _ends(entries, value)
        if len(runs := {len(entry.get("seeds", ())) for entry in entries}) == 1 and max(runs) > 1:
            axis.plot(x, [entry["seeds"] for entry in entries], color=shape["color"], linewidth=0.8, alpha=0.5)
        else:
            axis.errorbar(x, values, yerr=ends, linestyle="none", elinewidth=1, color=shape["color"], alpha=0.5)
        axis.plot(x, values, label=name, **shape, **_hollow(entries))
    if log:
        axis.set_xscale("log")
        ticks = ticks or sorted({at for line in lines.values() for at, _ in line})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    return axis


def name_ends(axis: Axes, names: Iterable[str] = (), gap: float = 12.0) -> None:
    """Write the names of lines (all that have one, or those given) at their right ends, at least ``gap`` points apart."""
    lines = {str(line.get_label()): line for line in axis.get_lines()}
    wanted = list(names) or [name for name in lines if not name.startswith("_")]
    axis.figure.canvas.draw()  # so that the layout, and with it the place of each end, is settled
    ends = {name: (np.asarray(lines[name].get_xdata())[-1], np.asarray(lines[name].get_ydata())[-1]) for name in wanted}
    last = -np.inf
    for name, end in sorted(ends.items(), key=lambda item: item[1][1]):
        at = axis.transData.transform(end)[1] * 72 / axis.figure.dpi
        last = max(at, last + gap)
        _write(axis, name, end, (7, last - at), "data", lines[name].get_color(), va="center", weight="bold")


def _write(axis: Axes, said: str, at: Any, aside: Any, coordinates: Any, colour: Any, **style: Any) -> None:
    axis.annotate(said, at, aside, coordinates, "offset points", color=colour, fontsize="small", **style)


def level(axis: Axes, name: str, entry: Entry, value: str = "auroc", across: bool = True, said: bool = True) -> None:
    """A line with its interval to hold others against, across the axis or (a forest's) upright, named in place."""
    at, colour = entry[value], look(name)["color"]
    line, band = (axis.axhline, axis.axhspan) if across else (axis.axvline, axis.axvspan)
    line(at, color=colour, linewidth=1.2)
    band(*entry.get(f"{value}_interval", entry.get("interval")), color=colour, alpha=0.1, linewidth=0)
    if said and across:
        _write(axis, name, (0.03, at), (0, 2), ("axes fraction", "data"), colour)
    elif said:
        _write(axis, name, (at, 1), (0, 2), ("data", "axes fraction"), colour, ha="center")


def shade(axis: Axes, low: float, high: float, said: str = "", colour: str = WARNING) -> None:
    """Shade a stretch of the x axis, and say above it what it means."""
    axis.axvspan(low, high, color=colour, alpha=0.1, linewidth=0)
    _write(axis, said, ((low + high) / 2, 1), (0, 2), ("data", "axes fraction"), colour, ha="center")


def histograms(found: Mapping[str, Sequence[float]], edges: np.ndarray, shaded: tuple[float, float]) -> dict[str, Axes]:
    """A panel of counts per bin for each name, on a symlog scale, with the stretch that matters shaded."""
    axes = panels(list(found))
    for number, (name, axis) in enumerate(axes.items()):
        axis.stairs(found[name], edges, fill=True, color=look(name, number)["color"], alpha=0.75)
        shade(axis, *shaded)
        axis.set_yscale("symlog")
    return axes


def heat(grid: Mapping[Any, Mapping[Any, float]], digits: int = 3, framed: tuple[Any, Any] | None = None) -> Axes:
    """A heat map of {row: {column: value}}, values written in; ``framed`` (row, column) gets a frame."""
    rows, columns = list(grid), list(next(iter(grid.values())))
    axis = plt.subplots(figsize=(WIDTH, 0.4 * len(rows) + 1.2))[1]
    table = np.array([[grid[row][column] for column in columns] for row in rows])
    sns.heatmap(table, annot=True, fmt=f".{digits}f", annot_kws={"size": 9}, cmap="cividis", ax=axis, cbar=False)
    axis.set_xticks(np.arange(len(columns)) + 0.5, [str(column) for column in columns], rotation=0)
    axis.set_yticks(np.arange(len(rows)) + 0.5, [str(row) for row in rows], rotation=0)
    if framed is not None:
        corner = (columns.index(framed[1]), rows.index(framed[0]))
        axis.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor=WARNING, linewidth=3))
    return axis
