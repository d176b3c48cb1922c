"""From results to sentences: each notebook's headline, computed, and the run's provenance.

The same functions write a notebook's conclusion, the summary and the README, so the three cannot disagree.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from lib import claims, store
from lib.store import values
from lib.study import PLAIN_START, Study

Entry = dict[str, Any]


def interval(entry: Entry, value: str = "auroc", spread: str = "interval", digits: int = 3) -> str:
    """ "0.987 [0.981, 0.992]"."""
    low, high = entry[spread]
    return f"{entry[value]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
    """A Markdown table; cells are text already, pipes in them escaped."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def literal(text: str) -> str:
    """Data text for a Markdown cell: every character that could be markup, in Markdown or in HTML, is an entity."""
    return "<code>" + "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in text) + "</code>"


def _compare(a: Entry, b: Entry, spread: str) -> str:
    """How two figures' intervals lie. They are over the same data, so overlap does not mean that there is no difference."""
    if a[spread][0] > b[spread][1]:
        return "above that of"
    if a[spread][1] < b[spread][0]:
        return "below that of"
    return "not separated from that of"


def verdict(differences: Entry, tables: Entry) -> str:
    """The report's answer in a sentence or two, from the paired OOD differences of dense and k-sparse probes."""
    gaps = {
        n.removeprefix("dense - best k, "): e["ood"] for n, e in differences.items() if n.startswith("dense - best k")
    }
    behind = [name for name, gap in gaps.items() if gap["interval"][0] > 0]
    ahead = [name for name, gap in gaps.items() if gap["interval"][1] < 0]
    sizes = sorted(gap["difference"] for gap in gaps.values())
    if len(behind) == len(gaps):
        answer = f"No, not here: k-sparse probes on all {len(gaps)} SAEs are below the dense linear probe"
    elif ahead:
        answer = f"In part: k-sparse probes on the {' and the '.join(ahead)} SAE are above the dense linear probe"
    else:
        answer = f"Not resolved on every SAE: k-sparse probes are below the dense linear probe on {len(behind)} of {len(gaps)} SAEs, above it on none,"
    dense = tables["dense"]["ood"]
    return (
        f"**{answer} out of distribution** (AUROC lower by {sizes[0]:.3f} to {sizes[-1]:.3f}, paired, than the dense probe's "
        f"{dense['auroc']:.3f}; k chosen on validation; {len(dense['seeds'])} draws of split and SAE seed). One chat model stands "
        "behind this."
    )


def headline_01(evaluations: dict[str, Entry]) -> str:
    """Notebook 01: fraction of variance unexplained of the three SAEs on held-out chat."""
    pre, tuned, scratch = (evaluations[name] for name in ("pretraining", "finetuned", "chat"))
    return (
        "What finetuning on chat does: on held-out chat the pretraining SAE leaves "
        f"{interval(pre, 'fvu', 'fvu_interval')} of the variance unexplained (FVU) with {pre['l0']:.0f} active latents per "
        f"token (L0); finetuned on chat it leaves {interval(tuned, 'fvu', 'fvu_interval')} at L0 {tuned['l0']:.0f}, and one "
        f"trained on chat from scratch {interval(scratch, 'fvu', 'fvu_interval')} at L0 {scratch['l0']:.0f}. The finetuned "
        f"SAE's FVU is {_compare(tuned, pre, 'fvu_interval')} the pretraining SAE and "
        f"{_compare(tuned, scratch, 'fvu_interval')} the one from scratch (one seed each; the finetuned SAE had half as many "
        "training steps again)."
    )


def probe_table(tables: Entry) -> str:
    """A Markdown table of probes, best OOD first."""
    order = sorted(tables, key=lambda name: -tables[name]["ood"]["auroc"])
    first = tables[order[0]]
    return table(
        (
            (
                name,
                *(interval(tables[name][split]) for split in ("train", "val", "ood")),
                *(f"{tables[name]['ood'][key]:.3f}" for key in ("recall", "accuracy", "alarms")),
            )
            for name in order
        ),
        (
            "probe",
            *(
                f"{name} (n = {first[split]['n']:,})"
                for split, name in (("train", "train"), ("val", "validation"), ("ood", "OOD"))
            ),
            "OOD recall at 1 % FP",
            "OOD accuracy",
            "OOD false alarms",
        ),
    )


def headline_02(tables: Entry, differences: Entry, records: Sequence[Entry], places: Entry, site: int) -> str:
    """Notebook 02: dense, k-sparse and other probes out of distribution (OOD), and the claims' verdicts."""
    kinds = ("pretraining", "finetuned", "chat")
    sparse = "; ".join(f"{kind} SAE {interval(tables[f'k-sparse, {kind}, mean difference']['ood'])}" for kind in kinds)
    best = max(tables, key=lambda name: tables[name]["ood"]["auroc"])
    text = tables["sentence embedding"]["ood"]
    verdicts = ", ".join(f"{record['id']} {record['verdict']}" for record in records)
    return (
        f"Do SAE latents beat a dense probe? The dense linear probe has an AUROC of {interval(tables['dense']['val'])} on "
        f"validation and {interval(tables['dense']['ood'])} out of distribution (OOD), where it finds "
        f"{tables['dense']['ood']['recall']:.0%} of harmful prompts at 1 % false positives. k-sparse probes, k chosen on validation, "
        f"have OOD: {sparse}. The best probe OOD is “{best}” with {interval(tables[best]['ood'])}; sentence embeddings, which "
        f"never see the model, have {text['auroc']:.3f}, surface features {interval(tables['surface features']['ood'])}. "
        f"As a control of the place: {lost_by_place(places, site)} Claims: {verdicts}."
    )


def lost_by_place(differences: Entry, site: int) -> str:
    """What the finetuned SAE's reconstructions cost a dense probe at the site and over the user's text, in and out of
    distribution."""
    parts = []
    for place in (str(site), "mean user"):
        loss = differences[f"reconstruction, finetuned, {place}"]
        val, ood = (interval(loss[split], "difference") for split in ("val", "ood"))
        parts.append(f"{_at(place)} {val} on validation and {ood} OOD")
    return f"a dense probe on the finetuned SAE's reconstructions loses {', and '.join(parts)}."


def by_place(tables: Entry, differences: Entry, fidelity: Entry, k: int, site: int) -> str:
    """What the control of places found: where SAEs lose nothing, where they lose, and the place validation would choose.

    A loss is that against the dense probe at the same place, whose own AUROC is named with it: where that is low there is
    little to lose.
    """
    said = []
    for what, name in (("reconstruction", "reconstructions"), ("k-sparse", f"{k} latents")):
        loss = {key.split(", ", 1)[1]: e["ood"] for key, e in differences.items() if key.startswith(f"{what}, ")}
        placed = {
            key: f"{_placed(key)}, dense {tables['dense, , ' + key.split(', ')[1]]['ood']['auroc']:.3f}" for key in loss
        }
        none = [placed[key] for key, e in loss.items() if e["interval"][1] < claims.EQUAL]
        some = [key for key, e in loss.items() if e["interval"][0] > claims.EQUAL]
        named = f" ({'; '.join(none)})" if none else ""
        (least, first), *_, (most, last) = sorted(loss.items(), key=lambda item: item[1]["difference"])
        said.append(
            f"Probes on {name}: of {len(loss)} pairs of SAE and place the OOD loss against the dense probe at the same place is below "
            f"{claims.EQUAL} at {len(none)}{named} and above it at {len(some)} (whole intervals); "
            f"it runs from {first['difference']:+.3f} ({placed[least]}) to {last['difference']:+.3f} ({placed[most]})."
        )
    said.append(
        "Of the variance between prompts the reconstructions of the first run's finetuned SAE lose "
        + ", ".join(f"{at['lost']:.0%} {_at(place)} (L0 {at['l0']:.0f})" for place, at in fidelity["finetuned"].items())
        + "."
    )
    dense = {key.rsplit(", ", 1)[1]: e["ood"]["auroc"] for key, e in tables.items() if key.startswith("dense, ")}
    good = [place for place, value in dense.items() if value > dense[str(site)] - claims.EQUAL]
    met = [
        key
        for key, e in differences.items()
        if key.rsplit(", ", 1)[1] in good and e["ood"]["interval"][1] < claims.EQUAL
    ]
    resolved = sum(e["ood"]["interval"][0] > 0 for e in differences.values())
    said.append(
        f"The dense probe is as good as at the site (to {claims.EQUAL}) {', '.join(_at(place) for place in good)}; there the loss is "
        f"shown to be none for {len(met)} of {sum(key.rsplit(', ', 1)[1] in good for key in differences)} SAEs and kinds of probe. "
        f"Of all {len(differences)} losses {resolved} are resolved from 0"
        + (", so most intervals leave open what part the place has." if 2 * resolved < len(differences) else ".")
    )
    sparse = [key for key in tables if key.startswith("k-sparse, finetuned, ")]
    best = max(sparse, key=lambda key: tables[key]["val"]["auroc"])
    place = best.rsplit(", ", 1)[1]
    return (
        "OOD AUROC by place. "
        + " ".join(said)
        + f" Of all places, the finetuned SAE's {k} latents have the best validation AUROC {_at(place)}, where they have {interval(tables[best]['ood'])} OOD, and the "
        f"dense probe {interval(tables[f'dense, , {place}']['ood'])}."
    )


def losses_resolved(parts: dict[str, Entry]) -> str:
    """For which parts of the residual stream the dense probe's loss is resolved from 0, on validation and OOD."""
    said = []
    for split, name in (("val", "On validation"), ("ood", "OOD")):
        sides = {
            "above": [part for part, e in parts.items() if e[split]["interval"][0] > 0],
            "below": [part for part, e in parts.items() if e[split]["interval"][1] < 0],
        }
        found = [f"{side} 0 for {', '.join(f'“{part}”' for part in named)}" for side, named in sides.items() if named]
        said.append(f"{name} the loss is {'; '.join(found) or 'resolved from 0 for none'}.")
    sizes = "; ".join(f"{part} {e['ood']['difference']:+.3f}" for part, e in parts.items())
    return f"{' '.join(said)} OOD: {sizes}."


def probes_ahead(changes: dict[str, dict[str, Entry]], probe: str) -> str:
    """Which probes have a higher mean OOD AUROC than ``probe``, and on which training sets."""
    ahead: dict[str, list[str]] = {}
    for change, by_probe in changes.items():
        for name, e in by_probe.items():
            if e["ood"]["auroc"] > by_probe[probe]["ood"]["auroc"]:
                ahead.setdefault(name, []).append(f"“{change}”")
    if not ahead:
        return f"No other probe has a higher mean than the {probe} one on any training set."
    every = len(changes)
    said = [
        f"{name} {f'on all {every} training sets' if len(on) == every > 1 else 'on ' + ', '.join(on)}"
        for name, on in ahead.items()
    ]
    return f"Higher mean than the {probe} probe: {'; '.join(said)}."


def best_by_slice(by_slice: dict[str, dict[str, Entry]]) -> str:
    """On how many of the slices that the figure shows each probe has the highest AUROC, or shares it."""
    slices = [name for name in next(iter(by_slice.values())) if name != "chat"]  # "AdvBench" is the same pair
    won = {
        name: sum(found[s]["auroc"] == max(other[s]["auroc"] for other in by_slice.values()) for s in slices)
        for name, found in by_slice.items()
    }
    return f"Highest of {len(slices)} slices: {'; '.join(f'{name} on {n}' for name, n in won.items() if n)}."


def controls_ahead(saes: dict[str, Sequence[Entry]], controls: dict[str, Sequence[Entry]], k: int) -> str:
    """Which controls of the same size have an OOD AUROC no lower than the best SAE's latents."""
    at_k = {
        name: next(row for row in rows if row["setting"] == k)["ood"]["auroc"]
        for name, rows in {**saes, **controls}.items()
        if any(row["setting"] == k for row in rows)
    }
    best = max((name for name in at_k if name in saes), key=lambda name: at_k[name])
    ahead = [name for name in at_k if name in controls and at_k[name] >= at_k[best]]
    return f"Controls no lower than the best SAE ({best}): {', '.join(ahead) or 'none'}."


def _at(place: str) -> str:
    """ "at +1", or "as the mean over the user's text"."""
    return f"at +{place}" if place.isdigit() else f"as the {place.split()[0]} over the user's text"


def _placed(key: str) -> str:
    """ "finetuned, at +1" of "finetuned, 1"."""
    sae, place = key.split(", ")
    return f"{sae}, {_at(place)}"


def headline_03(cards: Entry, shortcuts: Sequence[Entry]) -> str:
    """Notebook 03: what separates the raw pair, latents and surface features in the same unit."""
    top = max(cards["latents"], key=lambda latent: abs(latent["auroc"] - 0.5))
    first, largest = shortcuts[0], cards["latents"][0]
    return (
        f"Do latents show a data set's shortcuts? Of the {len(cards['latents'])} latents that differ most between raw HarmBench "
        f"and chat prompts (n = {cards['n']}), latent {top['latent']} separates the two best alone, with an AUROC of "
        f"{_folded(top['auroc'])}; the one with the largest difference, latent {largest['latent']}, has "
        f"{_folded(largest['auroc'])}. The strongest surface feature, “{first['feature']}”, has {_folded(first['auroc'])}. "
        "What each latent responds to is for the reader of its card to judge; recovery of planted shortcuts is not measured yet."
    )


def _folded(auroc: float) -> str:
    """ "0.821 (higher on harmless prompts)"."""
    return f"{max(auroc, 1 - auroc):.3f} (higher on {'harmful' if auroc >= 0.5 else 'harmless'} prompts)"


def headline_04(scores: dict[str, Entry]) -> str:
    """Notebook 04: uniform and frequency-weighted means of two SAEs, and their differences."""
    parts = [
        f"{name} {interval(s['uniform'], 'mean', digits=2)} over latents and {interval(s['weighted'], 'mean', digits=2)} over "
        "firings"
        for name, s in scores.items()
    ]
    (one, a), (two, b) = scores.items()
    return (
        "Does weighting by firing frequency change the comparison? Mean offline autointerp scores (Spearman correlation): "
        f"{'; '.join(parts)}. The difference {two} − {one} is {_difference(b['uniform'], a['uniform'])} over latents and "
        f"{_difference(b['weighted'], a['weighted'])} over firings (same λ, not same L0)."
    )


def _difference(a: Entry, b: Entry) -> str:
    """Difference of two means of independent samples with its 95 % interval (normal, from the two intervals' widths)."""
    half = float(np.hypot(*(np.ptp(entry["interval"]) / 2 for entry in (a, b))))
    gap = a["mean"] - b["mean"]
    word = "resolved" if abs(gap) > half else "not resolved"
    return f"{gap:+.2f} [{gap - half:+.2f}, {gap + half:+.2f}] ({word} at this n)"


def headline_05(frontier: dict[str, list[Entry]]) -> str:
    """Notebook 05: high-frequency latents and reconstruction by family, at each one's middle k or lambda."""
    parts = []
    for name, points in frontier.items():
        e = points[len(points) // 2]
        parts.append(f"{name} {e['high']} of {e['latents']} (L0 {e['l0']:.0f}, FVU {e['fvu']:.3f})")
    dense = max(frontier["JumpReLU"], key=lambda point: point["l0"])
    plain, quantile = frontier[PLAIN_START][0], frontier["JumpReLU"][len(frontier["JumpReLU"]) // 2]
    return (
        "Can high-frequency latents be trained away? Latents that fire on at least 10 % of chat tokens, at each family's middle "
        f"k or λ (QF: quadratic-frequency penalty): {'; '.join(parts)}. The families differ in L0, so FVU is to be compared "
        f"along the curves. The densest JumpReLU SAE (L0 {dense['l0']:.0f}) has {dense['high']} of them. As a control for the "
        f"start of training: begun with all thresholds equal, hence hundreds of active latents, the same JumpReLU SAE ends with "
        f"{plain['high']} high-frequency and {plain['dead']} dead latents at L0 {plain['l0']:.0f} and FVU {plain['fvu']:.3f}; begun "
        f"with each latent's own quantile, with {quantile['high']} and {quantile['dead']} at L0 {quantile['l0']:.0f} and FVU "
        f"{quantile['fvu']:.3f}."
    )


@store.result
def headlines(inputs: dict[str, Any], site: int) -> dict[str, str]:
    """Step: {"verdict" or notebook: headline} of a run, from the result artifacts of :func:`headlines_of` and the position
    that probes read."""
    found = values(inputs)
    tables, differences, records, places = found["02"]
    return {
        "verdict": verdict(differences, tables),
        "01_training": headline_01(found["01"]),
        "02_probing": headline_02(tables, differences, records, places, site),
        "03_debugging": headline_03(*found["03"]),
        "04_autointerp": headline_04(found["04"]),
        "05_quadratic_frequency": headline_05(found["05"]),
    }


def headlines_of(study: Study) -> store.Artifact:
    """The recipe of a study's headlines."""
    return headlines(
        {
            "01": study.chat_evaluations["chat"],
            "02": [study.probe_tables, study.probe_differences, claims.ledger_of(study), study.place_differences],
            "03": [study.cards, study.shortcuts],
            "04": study.autointerp,
            "05": study.frontier_evaluations,
        },
        study.profile.probes.position,
        name="headlines",
    )


@store.result
def provenance(profile: str, model: str) -> dict[str, str]:
    """Step: what the run ran on. Versions and hardware, no names or paths of a machine."""
    import torch

    packages = ("torch", "transformers", "scikit-learn", "numpy", "scipy", "safetensors")
    return {
        "profile": profile,
        "model": "SmolLM2-135M-Instruct (packaged GGUF, Q4_1, dequantised)" if model == "packaged" else model,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        **{name: version(name) for name in packages},
    }
