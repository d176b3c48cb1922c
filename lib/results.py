"""From results to sentences: each notebook's headline, computed, and the run's provenance.

The same functions write a notebook's conclusion, the summary and the README, so the three cannot disagree.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from lib import artifacts
from lib.study import Study, values

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


def headline_01(evaluations: dict[str, Entry]) -> str:
    """Notebook 01: FVU of the three SAEs on held-out chat."""
    pre, tuned, scratch = (evaluations[name] for name in ("pretraining", "finetuned", "chat"))
    return (
        f"On held-out chat the pretraining SAE leaves {interval(pre, 'fvu', 'fvu_interval')} of the variance unexplained at "
        f"L0 {pre['l0']:.0f}; finetuned on chat it leaves {interval(tuned, 'fvu', 'fvu_interval')} at L0 {tuned['l0']:.0f}, "
        f"and one trained on chat from scratch {interval(scratch, 'fvu', 'fvu_interval')} at L0 {scratch['l0']:.0f}. "
        f"The finetuned SAE's FVU is {_compare(tuned, pre, 'fvu_interval')} the pretraining SAE and "
        f"{_compare(tuned, scratch, 'fvu_interval')} the one from scratch."
    )


def headline_02(dense: Entry, style: Entry, sparse: dict[str, Entry], family: str = "finetuned") -> str:
    """Notebook 02: the dense probe against k-sparse probes and style, out of distribution."""
    single, best = sparse[family]["single"]["ood"], sparse[family]["best"]
    return (
        f"The dense linear probe reaches an AUROC of {interval(dense['val'])} on validation and {interval(dense['ood'])} "
        f"out of distribution. Out of distribution the best single latent of the {family} SAE reaches {interval(single)}, "
        f"the k-sparse probe with the best k on validation (k = {best['k']}, {interval(best['val'])} there) reaches "
        f"{interval(best['ood'])} ({_compare(best['ood'], dense['ood'], 'interval')} the dense probe), and surface features, which know nothing of the topic, {interval(style['ood'])}."
    )


def headline_03(cards: Entry, shortcuts: Sequence[Entry]) -> str:
    """Notebook 03: what separates the raw pair."""
    top, first = cards["latents"][0], shortcuts[0]
    return (
        f"Of the {len(cards['latents'])} latents that differ most between raw HarmBench and chat prompts "
        f"(n = {cards['n']}), latent {top['latent']} comes first: it fires on {top['harmful_share']:.0%} of harmful and "
        f"{top['harmless_share']:.0%} of harmless prompts. The strongest single surface feature, “{first['feature']}”, "
        f"of which {'harmful' if first['auroc'] > 0.5 else 'harmless'} prompts have more, separates the two sets with an "
        f"AUROC of {max(first['auroc'], 1 - first['auroc']):.3f}."
    )


def headline_04(scores: dict[str, Entry]) -> str:
    """Notebook 04: uniform and frequency-weighted means of two SAEs."""
    parts = [
        f"{name}: {interval(s['uniform'], 'mean', digits=2)} over latents, {interval(s['weighted'], 'mean', digits=2)} over firings"
        for name, s in scores.items()
    ]
    (one, a), (two, b) = scores.items()
    return (
        f"Offline autointerp scores are {'; '.join(parts)}. Between {one} and {two} the uniform means "
        f"{_differ(a['uniform'], b['uniform'])}, the frequency-weighted means {_differ(a['weighted'], b['weighted'])}."
    )


def _differ(a: Entry, b: Entry) -> str:
    overlap = a["interval"][0] <= b["interval"][1] and b["interval"][0] <= a["interval"][1]
    return "have overlapping intervals" if overlap else "differ beyond their intervals"


def headline_05(frontier: dict[str, list[Entry]]) -> str:
    """Notebook 05: high-frequency latents by family, each at the L0 nearest 40."""
    parts = []
    for name, points in frontier.items():
        e = min(points, key=lambda point: abs(point["l0"] - 40))
        parts.append(f"{name} {e['high']} of {e['latents']} (L0 {e['l0']:.0f}, FVU {e['fvu']:.3f})")
    return f"Latents that fire on at least 10 % of chat tokens, at each family's L0 nearest 40: {'; '.join(parts)}."


@artifacts.result
def headlines(inputs: dict[str, Any]) -> dict[str, str]:
    """Step: {notebook: headline} of a run, from the result artifacts of :func:`headlines_of`."""
    found = values(inputs)
    return {
        "01_training": headline_01(found["01"]),
        "02_probing": headline_02(*found["02"]),
        "03_debugging": headline_03(*found["03"]),
        "04_autointerp": headline_04(found["04"]),
        "05_quadratic_frequency": headline_05(found["05"]),
    }


def headlines_of(study: Study) -> artifacts.Artifact:
    """The recipe of a study's headlines."""
    return headlines(
        {
            "01": study.chat_evaluations["chat"],
            "02": [study.dense, study.style, study.k_sparse],
            "03": [study.cards, study.shortcuts],
            "04": study.autointerp,
            "05": study.frontier_evaluations,
        },
        name="headlines",
    )


@artifacts.result
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
