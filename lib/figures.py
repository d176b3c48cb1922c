"""Figures: one function each, results in, a matplotlib figure out; and how they are published.

Every interval drawn is a 95 % interval; every axis has its unit, every caption says what was found and on how much.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from lib import config, store
from lib.sae.metrics import BINS, HIGH

Entry = dict[str, Any]

plt.style.use(str(Path(__file__).with_name("style.mplstyle")))

CONTENT_NOTE = (
    "> **Content note.** The excerpts below come from public red-teaming benchmarks and name harmful acts. They are cut "
    "short; no model answers to them are kept."
)
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def publish(figure: Figure, name: str, caption: str) -> None:
    """Write ``figure`` as ``<build>/<profile>/figures/<name>.png``, record its caption, and show both."""
    folder = config.build_dir() / store.active().profile / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})  # no version: same bytes every time
    plt.close(figure)
    (folder / f"{name}.png").write_bytes(buffer.getvalue())
    store.write_atomic(folder / f"{name}.json", json.dumps({"caption": caption}, ensure_ascii=False) + "\n")
    picture = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": name}
    display(picture, raw=True)
    display(Markdown(f"**Figure {name}.** {caption}"))


def _errors(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> np.ndarray:
    """[2, n] distances below and above, as matplotlib wants them."""
    middle, spread = np.asarray(values), np.asarray(intervals)
    return np.clip(np.stack([middle - spread[:, 0], spread[:, 1] - middle]), 0, None)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of n (Wilson 1927); not empty at 0 and 1."""
    middle, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float((middle - half) / (1 + z * z / n)), float((middle + half) / (1 + z * z / n))


def fvu_by_sae(evaluations: dict[str, dict[str, Entry]]) -> Figure:
    """FVU of several SAEs (inner keys) on several corpora (outer keys), with L0 beside each point."""
    figure, axis = plt.subplots()
    corpora = list(evaluations)
    for number, corpus in enumerate(corpora):
        points = evaluations[corpus]
        y = np.arange(len(points)) + 0.14 * (number - (len(corpora) - 1) / 2)
        values = [p["fvu"] for p in points.values()]
        spread = _errors(values, [p["fvu_interval"] for p in points.values()])
        n = next(iter(points.values()))["n"]
        axis.errorbar(
            values, y, xerr=spread, fmt=_MARKERS[number], capsize=3, label=f"{corpus} text (n = {n:,} tokens)"
        )
        for value, at, p in zip(values, y, points.values(), strict=True):
            axis.annotate(
                f"L0 {p['l0']:.0f}", (value, at), (0, -12), textcoords="offset points", fontsize=8, ha="center"
            )
    axis.set_yticks(range(len(evaluations[corpora[0]])), list(evaluations[corpora[0]]))
    axis.invert_yaxis()
    axis.set_xlabel("FVU, fraction of variance unexplained (lower is better)")
    axis.set_ylabel("SAE")
    axis.margins(y=0.2)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
    return figure


def training_curves(logs: dict[str, list[Entry]]) -> Figure:
    """Reconstruction loss and L0 of training batches against steps."""
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.2))
    for axis, key, label in zip(
        axes, ("reconstruction", "l0"), ("squared error (unit inputs)", "L0 (latents per token)"), strict=True
    ):
        for number, (name, rows) in enumerate(logs.items()):
            axis.plot([r["step"] for r in rows], [r[key] for r in rows], _DASHES[number % 4], label=name)
        axis.set(xlabel="step", ylabel=label)
        axis.set_ylim(bottom=0)
    axes[0].legend()
    figure.tight_layout()
    return figure


def layer_sweep(rows: Sequence[Entry], layer: int, place: str) -> Figure:
    """Heat map of the dense probe's validation AUROC by layer and place; the site is framed."""
    layers, places = sorted({r["layer"] for r in rows}), list(dict.fromkeys(r["place"] for r in rows))
    grid = np.array(
        [[next(r["val"] for r in rows if (r["layer"], r["place"]) == (a, b)) for b in places] for a in layers]
    )
    figure, axis = plt.subplots(figsize=(8.4, 0.5 * len(layers) + 1.8))
    sns.heatmap(
        grid,
        annot=True,
        fmt=".4f",
        annot_kws={"size": 8},
        cmap="cividis",
        ax=axis,
        cbar_kws={"label": "validation AUROC"},
    )
    axis.set_xticks(
        np.arange(len(places)) + 0.5, [f"+{p}" if p.isdigit() else p.replace(" ", "\n") for p in places], rotation=0
    )
    axis.set_yticks(np.arange(len(layers)) + 0.5, [str(x) for x in layers], rotation=0)
    axis.set(xlabel="position (tokens after the end of the user's text), or pooled over", ylabel="layer L")
    axis.grid(False)
    if layer in layers and place in places:
        corner = (places.index(place), layers.index(layer))
        axis.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor="#D55E00", linewidth=3))
    return figure


def refusals(rows: Sequence[Entry]) -> Figure:
    """Refusal rate and log-odds of refusal openings, by transform and kind of prompt."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.8), sharey=True)
    kinds, transforms = (list(dict.fromkeys(r[key] for r in rows)) for key in ("kind", "transform"))
    for axis, value, label in zip(
        axes,
        ("rate", "log_odds"),
        ("refusal rate (greedy answer)", "log-odds of a refusal opening (nats)"),
        strict=True,
    ):
        for number, kind in enumerate(kinds):
            mine = [r for r in rows if r["kind"] == kind]
            y = np.arange(len(transforms)) + 0.2 * (number - (len(kinds) - 1) / 2)
            values = [r[value] for r in mine]
            between = [wilson(r["rate"], r["n"]) if value == "rate" else r["log_odds_interval"] for r in mine]
            axis.errorbar(
                values,
                y,
                xerr=_errors(values, between),
                fmt=_MARKERS[number],
                capsize=2,
                label=f"{kind} (n = {mine[0]['n']})",
            )
        axis.set_xlabel(label)
    axes[0].set_yticks(range(len(transforms)), transforms)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
    return figure


def probes(found: dict[str, Entry]) -> Figure:
    """AUROC of every probe on validation and OOD, best OOD first, with intervals and each run's value."""
    names = sorted(found, key=lambda n: -found[n]["ood"]["auroc"])
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 0.27 * len(names) + 1.2), sharey=True, width_ratios=(1, 1.6))
    y = np.arange(len(names))
    for number, (axis, split, title) in enumerate(zip(axes, ("val", "ood"), ("validation", "OOD"), strict=True)):
        entries = [found[n][split] for n in names]
        values = [e["auroc"] for e in entries]
        axis.errorbar(
            values, y, xerr=_errors(values, [e["interval"] for e in entries]), fmt="o", capsize=2, color=f"C{number}"
        )
        for at, entry in zip(y, entries, strict=True):
            axis.plot(entry["seeds"], np.full(len(entry["seeds"]), at), "|", color="#444444", markersize=7)
        axis.axvline(found["dense"][split]["auroc"], color="#000000", linewidth=1, linestyle=":")
        axis.set(xlabel=f"AUROC (n = {entries[0]['n']:,})", title=title)
    axes[0].locator_params(axis="x", nbins=4)
    axes[0].set_yticks(y, names)
    axes[0].invert_yaxis()
    figure.tight_layout()
    return figure


def single_latents(found: dict[str, Entry], dense: Entry) -> Figure:
    """AUROC of the best single latent of every SAE on train, validation and OOD, with the dense probe as lines."""
    figure, axis = plt.subplots(figsize=(7.4, 0.42 * len(found) + 1.6))
    for number, (split, label) in enumerate((("train", "train"), ("val", "validation"), ("ood", "OOD"))):
        values = [e[split]["auroc"] for e in found.values()]
        y = np.arange(len(found)) + 0.2 * (number - 1)
        spread = _errors(values, [e[split]["interval"] for e in found.values()])
        n = next(iter(found.values()))[split]["n"]
        axis.errorbar(values, y, xerr=spread, fmt=_MARKERS[number], capsize=2, label=f"{label} (n = {n:,})")
        axis.axvline(dense[split]["auroc"], color=f"C{number}", linewidth=1.2, linestyle=_DASHES[number])
    axis.axvline(0.5, color="#444444", linewidth=1, linestyle=(0, (1, 3)))
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set(xlabel="AUROC (lines: dense probe; dots: 0.5, chance)", ylabel="SAE")
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, 1.12), ncols=3)
    return figure


def k_sparse(
    curves: dict[str, dict[str, list[Entry]]], controls: dict[str, list[Entry]], dense: Entry, style: Entry
) -> Figure:
    """AUROC against k on validation and OOD: SAEs by both rules (left pair), and controls of equal size (right pair)."""
    figure, axes = plt.subplots(2, 2, figsize=(9.6, 6.4), sharex=True, sharey="col")
    rules = list(curves)
    panels: tuple[dict[str, list[Entry]], ...] = (
        {f"{name} SAE": rows for name, rows in curves[rules[0]].items()},
        {
            **{f"{name} SAE, {rules[1]}": rows for name, rows in curves[rules[1]].items() if not name.startswith("QF")},
            **controls,
        },
    )
    for line, shown in enumerate(panels):
        for column, (split, title) in enumerate((("val", "validation"), ("ood", "out of distribution"))):
            axis = axes[line][column]
            for number, (name, rows) in enumerate(shown.items()):
                ks, values = [row["setting"] for row in rows], [row[split]["auroc"] for row in rows]
                axis.errorbar(
                    np.array(ks) * 1.05 ** (number - len(shown) / 2),
                    values,
                    yerr=_errors(values, [row[split]["interval"] for row in rows]),
                    fmt=_MARKERS[number % 6] + _DASHES[number % 4],
                    capsize=2,
                    linewidth=1.4,
                    label=name,
                )
            for entry, label, colour, dash in (
                (dense, "dense probe", "#000000", "-"),
                (style, "surface features", "#8a6d00", ":"),
            ):
                axis.axhline(entry[split]["auroc"], color=colour, linestyle=dash, linewidth=1.4, label=label)
                axis.axhspan(*entry[split]["interval"], color=colour, alpha=0.12, linewidth=0)
            axis.set(xscale="log", ylabel="AUROC")
            if line == 0:
                axis.set_title(f"{title}, n = {dense[split]['n']:,}")
            ticks = sorted({row["setting"] for rows in shown.values() for row in rows})
            axis.set_xticks(ticks, [f"{k:g}" for k in ticks])
            axis.minorticks_off()
        axes[line][1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axis in axes[1]:
        axis.set_xlabel("k (latents, directions or components in the probe)")
    figure.tight_layout()
    return figure


def by_sparsity(curves: dict[str, list[Entry]], sparsities: dict[str, float], k: float, dense: Entry) -> Figure:
    """OOD AUROC of k-latent probes against the SAE's L0 on the prompts."""
    figure, axis = plt.subplots(figsize=(7.0, 3.8))
    kinds = dict.fromkeys(name.split(",")[0] for name in curves)
    for number, kind in enumerate(kinds):
        mine = sorted((n for n in curves if n.split(",")[0] == kind), key=lambda n: sparsities[n])
        entries = [next(row for row in curves[n] if row["setting"] == k)["ood"] for n in mine]
        values = [e["auroc"] for e in entries]
        axis.errorbar(
            [sparsities[n] for n in mine],
            values,
            yerr=_errors(values, [e["interval"] for e in entries]),
            fmt=_MARKERS[number % 6] + _DASHES[number % 4],
            capsize=2,
            label=kind,
        )
    axis.axhline(dense["ood"]["auroc"], color="#000000", linewidth=1.4)
    axis.axhspan(*dense["ood"]["interval"], color="#000000", alpha=0.12, linewidth=0)
    axis.set(xlabel="L0 on the prompts (active latents at the probed position)", ylabel=f"OOD AUROC, k = {k:g}")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title=f"n = {dense['ood']['n']:,}\nline: dense probe")
    return figure


def deltas(found: dict[str, dict[str, Entry]]) -> Figure:
    """Paired differences of AUROC (keys: what is compared) on validation and OOD, with intervals."""
    figure, axis = plt.subplots(figsize=(7.4, 0.36 * len(found) + 1.5))
    for number, (split, label) in enumerate((("val", "validation"), ("ood", "OOD"))):
        values = [e[split]["difference"] for e in found.values()]
        y = np.arange(len(found)) + 0.2 * (number - 0.5)
        spread = _errors(values, [e[split]["interval"] for e in found.values()])
        axis.errorbar(values, y, xerr=spread, fmt=_MARKERS[number], capsize=2, label=label)
    axis.axvline(0, color="#444444", linewidth=1, linestyle=":")
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set_xlabel("difference of AUROC (paired)")
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, 1.14), ncols=2)
    return figure


def places(found: dict[str, Entry], fidelity: dict[str, Entry], k: int) -> Figure:
    """OOD AUROC by place of the dense probe, of probes on reconstructions (left) and on k latents (right), with the L0 of
    the finetuned SAE and the variance that it loses at each place; keys of ``found`` are "what, SAE, place"."""
    entries: dict[tuple[str, str], dict[str, Entry]] = {}
    for key, table in found.items():
        what, sae, place = key.split(", ")
        entries.setdefault((what, sae), {})[place] = table["ood"]
    order = list(entries["dense", ""])
    shown = {place: fidelity["finetuned"][place] for place in order}
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.0), sharey=True)
    for axis, what, title in zip(
        axes, ("reconstruction", "k-sparse"), ("probes on reconstructions", f"probes on {k} latents"), strict=True
    ):
        series = {"dense probe on residuals": entries["dense", ""]}
        series |= {f"{sae} SAE": by_place for (kind, sae), by_place in entries.items() if kind == what}
        for number, (name, by_place) in enumerate(series.items()):
            x = np.array([order.index(place) for place in by_place]) + 0.14 * (number - (len(series) - 1) / 2)
            values = [entry["auroc"] for entry in by_place.values()]
            spread = _errors(values, [entry["interval"] for entry in by_place.values()])
            colour = "#000000" if number == 0 else f"C{number - 1}"
            axis.errorbar(x, values, yerr=spread, fmt=_MARKERS[number], capsize=2, label=name, color=colour)
        axis.set_title(title)
        axis.set_xticks(
            range(len(order)),
            [
                f"{place if ' ' in place else f'+{place}'}\nL0 {at['l0']:.0f}\nlost {at['lost']:.0%}".replace(
                    " user", ""
                )
                for place, at in shown.items()
            ],
            fontsize=8,
        )
        axis.set_xlabel(
            "tokens after the user's text, or pooled over it\n(first run's finetuned SAE there: L0, variance lost)"
        )
    n = next(iter(entries["dense", ""].values()))["n"]
    axes[0].set_ylabel(f"OOD AUROC (n = {n:,})")
    figure.tight_layout()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return figure


def learning(size: dict[str, list[Entry]], noise: dict[str, list[Entry]]) -> Figure:
    """OOD AUROC against the number of train clusters, and against the share of wrong train labels."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.6), sharey=True)
    for axis, curves, label in (
        (axes[0], size, "train clusters of base prompts"),
        (axes[1], noise, "share of train clusters with wrong labels"),
    ):
        for number, (name, rows) in enumerate(curves.items()):
            values, aside = [row["ood"]["auroc"] for row in rows], number - (len(curves) - 1) / 2
            x = np.array([row["setting"] for row in rows])
            axis.errorbar(
                x * 1.05**aside if axis is axes[0] else x + 0.004 * aside,
                values,
                yerr=_errors(values, [row["ood"]["interval"] for row in rows]),
                fmt=_MARKERS[number] + _DASHES[number % 4],
                capsize=2,
                label=name,
            )
        axis.axhline(0.5, color="#444444", linestyle=(0, (1, 3)), linewidth=1)
        axis.set_xlabel(label)
    ticks = [row["setting"] for row in next(iter(size.values()))]
    axes[0].set_xscale("log")
    axes[0].set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes[0].minorticks_off()
    n = next(iter(size.values()))[0]["ood"]["n"]
    axes[0].set_ylabel(f"OOD AUROC (n = {n:,})")
    figure.tight_layout()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return figure


def controls(found: dict[str, dict[str, Entry]]) -> Figure:
    """OOD AUROC of several probes (inner keys) under several changes of the training set (outer keys)."""
    figure, axis = plt.subplots(figsize=(7.4, 0.55 * len(found) + 1.5))
    for number, probe in enumerate(next(iter(found.values()))):
        entries = [by_probe[probe]["ood"] for by_probe in found.values()]
        values = [e["auroc"] for e in entries]
        y = np.arange(len(found)) + 0.17 * (number - 1.5)
        axis.errorbar(
            values,
            y,
            xerr=_errors(values, [e["interval"] for e in entries]),
            fmt=_MARKERS[number],
            capsize=2,
            label=probe,
        )
    axis.axvline(0.5, color="#444444", linewidth=1, linestyle=":")
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    n = next(iter(next(iter(found.values())).values()))["ood"]["n"]
    axis.set_xlabel(f"OOD AUROC (n = {n:,}; 0.5 is chance)")
    axis.legend(loc="upper center", bbox_to_anchor=(0.35, 1.2), ncols=2)
    return figure


def slices(entries: dict[str, dict[str, Entry]]) -> Figure:
    """AUROC of several probes (keys) on every OOD slice."""
    shown = [n for n in next(iter(entries.values())) if n != "chat"]  # AdvBench against chat is there already
    names = sorted(shown, key=lambda n: (next(iter(entries.values()))[n]["against"], n))
    figure, axis = plt.subplots(figsize=(7.2, 0.5 * len(names) + 1.4))
    for number, (probe, found) in enumerate(entries.items()):
        values = [found[n]["auroc"] for n in names]
        y = np.arange(len(names)) + 0.18 * (number - (len(entries) - 1) / 2)
        spread = _errors(values, [found[n]["interval"] for n in names])
        axis.errorbar(values, y, xerr=spread, fmt=_MARKERS[number], capsize=2, label=probe)
    first = next(iter(entries.values()))
    axis.set_yticks(range(len(names)), [f"{n} (n = {first[n]['n']:,}, vs {first[n]['against']})" for n in names])
    axis.axvline(0.5, color="#444444", linewidth=1, linestyle=":")
    axis.invert_yaxis()
    axis.set_xlabel("AUROC (0.5 is chance)")
    axis.set_ylabel("OOD slice")
    axis.legend(loc="upper center", bbox_to_anchor=(0.3, 1.12), ncols=3)
    return figure


def mean_differences(found: Entry) -> Figure:
    """Share of prompts on which each of the chosen latents fires, by class."""
    figure, axis = plt.subplots(figsize=(7.2, 0.34 * len(found["latents"]) + 1.5))
    y = np.arange(len(found["latents"]))
    n1, n0 = found["harmful"], found["n"] - found["harmful"]
    for number, (key, label, n) in enumerate((("harmful_share", "harmful", n1), ("harmless_share", "harmless", n0))):
        values = np.array([latent[key] for latent in found["latents"]])
        spread = _errors(values.tolist(), [wilson(value, n) for value in values])
        axis.errorbar(
            values, y + 0.2 * (number - 0.5), xerr=spread, fmt=_MARKERS[number], capsize=2, label=f"{label} (n = {n})"
        )
    axis.set_yticks(y, [f"latent {latent['latent']}" for latent in found["latents"]])
    axis.invert_yaxis()
    axis.set(xlabel="share of prompts on which the latent fires", xlim=(-0.03, 1.03))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2)
    return figure


def autointerp_means(scores: dict[str, Entry]) -> Figure:
    """Left: uniform and frequency-weighted means. Right: score against firing frequency, one point a latent."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.6), width_ratios=(1, 1.5))
    schemes = {"uniform": "mean over latents", "weighted": "mean over firings"}
    for number, (name, found) in enumerate(scores.items()):
        values = [found[s]["mean"] for s in schemes]
        spread = _errors(values, [found[s]["interval"] for s in schemes])
        x = np.arange(2) + 0.16 * (number - 0.5)
        left.errorbar(x, values, yerr=spread, fmt=_MARKERS[number], capsize=3, label=name)
        points = found["scored"]
        right.scatter(
            [p["frequency"] for p in points],
            [p["score"] for p in points],
            s=14,
            alpha=0.6,
            marker=_MARKERS[number],
            label=f"{name} ({len(points)} latents)",
        )
    n = next(iter(scores.values()))["uniform"]["n"]
    left.set_xticks([0, 1], list(schemes.values()))
    left.set(xlim=(-0.5, 1.5), ylabel="autointerp score (Spearman)", title=f"{n} draws per mean")
    left.legend()
    right.set(xscale="log", xlabel="firing frequency (share of tokens)", ylabel="autointerp score (Spearman)")
    right.axvline(HIGH, color="#444444", linestyle=":", linewidth=1)
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.tight_layout()
    return figure


def frequency_histograms(frontier: dict[str, Entry]) -> Figure:
    """Histograms of log10 firing frequency, one panel a family, high-frequency latents shaded."""
    columns = min(3, len(frontier))
    rows = -(-len(frontier) // columns)
    size = (2.8 * columns + 0.6, 2.9 * rows + 0.3)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(frontier) :]:
        axis.set_visible(False)
    for number, (axis, (name, e)) in enumerate(zip(axes.flat, frontier.items(), strict=False)):
        axis.stairs(e["histogram"], BINS, fill=True, color=f"C{number}", alpha=0.75)
        axis.axvspan(np.log10(HIGH), 0, color="#D55E00", alpha=0.12, linewidth=0)
        axis.set_title(f"{name}\nL0 {e['l0']:.0f}, {e['high']} high, {e['dead']} dead", fontsize=9)
        axis.set(yscale="symlog", xlim=(-5, 0))
        if number >= len(frontier) - columns:
            axis.set_xlabel("log₁₀ firing frequency")
            axis.tick_params(labelbottom=True)
    n = next(iter(frontier.values()))["n"]
    for row in axes:
        row[0].set_ylabel(f"latents per bin, symlog scale\n({n:,} tokens)")
    figure.tight_layout()
    return figure


def fvu_against_l0(frontier: dict[str, list[Entry]]) -> Figure:
    """FVU against L0, one curve a family, intervals in both directions."""
    figure, axis = plt.subplots()
    for number, (name, points) in enumerate(frontier.items()):
        points = sorted(points, key=lambda p: p["l0"])
        x, y = [p["l0"] for p in points], [p["fvu"] for p in points]
        axis.errorbar(
            x,
            y,
            xerr=_errors(x, [p["l0_interval"] for p in points]),
            yerr=_errors(y, [p["fvu_interval"] for p in points]),
            fmt=_MARKERS[number] + _DASHES[number % 4],
            capsize=2,
            label=name,
        )
    n = next(iter(frontier.values()))[0]["n"]
    axis.set(xscale="log", xlabel="L0 (active latents per token)", ylabel=f"FVU on held-out chat (n = {n:,} tokens)")
    ticks = [5, 10, 20, 50, 100, 200]
    low, high = axis.get_xlim()
    axis.set_xticks([t for t in ticks if low <= t <= high], [str(t) for t in ticks if low <= t <= high])
    axis.minorticks_off()
    axis.legend()
    return figure


def latent_card(latent: Entry) -> HTML:
    """A latent's figures and its strongest contexts from both classes, activations as background. All text is escaped."""
    top = max((v for side in latent["contexts"].values() for c in side for v in c["values"]), default=1.0) or 1.0
    higher = "harmful" if latent["auroc"] >= 0.5 else "harmless"
    parts = [
        f"<p><b>Latent {latent['latent']}</b>: fires on {latent['harmful_share']:.0%} of harmful and "
        f"{latent['harmless_share']:.0%} of harmless prompts; AUROC alone {latent['auroc']:.3f} (higher on {higher} prompts).</p>"
    ]
    for side, shown in latent["contexts"].items():
        lines = []
        for context in shown:
            spans = []
            for token, value in zip(context["tokens"], context["values"], strict=True):
                text = html.escape(token).replace("\n", "⏎")
                alpha = 0.75 * max(0.0, value) / top
                spans.append(
                    f'<span style="background:rgba(230,159,0,{alpha:.2f})">{text}</span>' if alpha > 0.02 else text
                )
            lines.append(f"<li><code style='white-space:pre-wrap'>…{''.join(spans)}…</code></li>")
        parts.append(f"<div><i>{side}</i><ul>{''.join(lines) or '<li>never fires</li>'}</ul></div>")
    return HTML(f"<div class='latent-card'>{''.join(parts)}</div>")
