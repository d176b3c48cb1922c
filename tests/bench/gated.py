"""Appendix of the benchmark: why SAELens' gated SAE reaches a lower loss, and whether that makes it the better SAE.

It follows two rules that neither the paper (Rajamanoharan 2024a, arXiv:2404.16014, eq. 8) nor our SAE has: the gate's own
reconstruction trains the decoder too, and decoder rows may have any norm. Ours is trained by either and by both, SAELens' with
the first mended, and the losses are set side by side. Rules that change what the loss means are compared by FVU at equal L0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lib.config import TrainingSection
from lib.sae.active import Dense, Sparse
from lib.sae.adam import BETAS, EPSILON, MAX_NORM, Adam
from lib.sae.training import Trainee
from lib.sae.variants import SAE, Gated, Losses

MENDED = "gate's loss kept from the decoder"  # SAELens' gated SAE without its first rule
LEAKING = "gate's loss reaching the decoder"  # ours with it
FREE = "decoder norms free"  # ours with its second rule, which SAELens has for other variants too
BOTH = f"{LEAKING}, {FREE}"
LOSSES: dict[str, dict[str, str]] = {  # by variant: whose loss is compared, and ours by its rules
    "jumprelu": {"ours": "", "saelens": f"ours, {FREE}", f"ours, {FREE}": ""},
    "topk": {"ours": "", "saelens": ""},
    "gated": {
        "ours": "",
        "saelens": f"ours, {BOTH}",
        f"saelens, {MENDED}": f"ours, {FREE}",
        f"ours, {LEAKING}": "",
        f"ours, {FREE}": "",
        f"ours, {BOTH}": "",
    },
}
AT_EQUAL_L0 = ("ours", f"ours, {LEAKING}", f"ours, {BOTH}")  # gated SAEs
PENALTIES = (0.4, 0.6, 1.0)  # times the usual one


class Leaking(Gated):
    """A gated SAE whose gate's own reconstruction trains the decoder too."""

    def reconstruction(
        self,
        z: Dense | Sparse,
        f: torch.Tensor,
        x: torch.Tensor,
        weights: torch.Tensor | None = None,
        detached: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().reconstruction(z, f, x, weights, detached=False)


class FreeNorms(Gated):
    """A gated SAE whose L1 penalty weighs each latent with its decoder row's norm, for rows that are left free."""

    def losses(self, x: torch.Tensor, sparsity: float, weights: torch.Tensor | None = None) -> Losses:
        found = super().losses(x, sparsity, weights)
        gate = self.preactivations(x).relu()
        l1 = (gate @ self.W_dec.norm(dim=1)).mean()
        return found._replace(named={**found.named, "l1_penalty": sparsity * self.config.coefficient * l1})


class LeakingFreeNorms(Leaking, FreeNorms):
    """Both."""


RULES: dict[str, type[Gated]] = {LEAKING: Leaking, FREE: FreeNorms, BOTH: LeakingFreeNorms}


class PlainAdam(Adam):
    """Clipping and torch's Adam, one after the other: decoder rows are free."""

    def __init__(self, sae: SAE) -> None:
        super().__init__(sae)
        self.plain = torch.optim.Adam(sae.parameters(), betas=BETAS, eps=EPSILON)

    def step(self, rate: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), MAX_NORM)
        for group in self.plain.param_groups:
            group["lr"] = rate
        self.plain.step()
        self.plain.zero_grad()


def trainee(sae: SAE, rule: str, section: TrainingSection) -> Trainee:
    """Training of ``sae`` by SAELens' ``rule``; "" is our own.

    Raises:
        ValueError: the rule is not one for this variant.
    """
    gated = isinstance(sae, Gated)
    if rule not in ({"", *RULES} if gated else {"", FREE}):
        raise ValueError(f"no rule {rule!r} for {sae.config.variant}")
    if gated and rule:
        usual, sae = sae, RULES[rule](sae.config, sae.W_dec.shape[1])
        sae.load_state_dict(usual.state_dict())
    found = Trainee(sae, section)
    if FREE in rule:
        found.adam = PlainAdam(sae)
    return found


def folded(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same SAE with decoder rows of norm 1. (A TopK SAE would choose by what its latents add, as SAELens' does.)"""
    norm = weights["W_dec"].norm(dim=1)
    grown: dict[str, torch.Tensor] = {
        name: weights[name] * norm for name in ("W_enc", "b_enc", "theta", "b_mag") if name in weights
    }
    return {**weights, **grown, "W_dec": weights["W_dec"] / norm[:, None]}


def compare(
    variant: str, reach: Callable[[str, int, float], dict[str, float]], early: int, late: int, batch: int
) -> dict[str, Any]:
    """What trainers reach after ``early`` and ``late`` steps, and gated SAEs by each rule at several penalties.

    ``reach(peer, steps, penalty)`` trains and measures. Returns {losses: {peer: {tokens: measured}}, by_penalty: {peer: [...]}}.
    """
    losses = {peer: {str(batch * n): reach(peer, n, 1.0) for n in (early, late)} for peer in LOSSES[variant]}
    by_penalty: dict[str, list[dict[str, float]]] = {}
    for peer in AT_EQUAL_L0 if variant == "gated" else ():
        usual = losses[peer][str(batch * late)]
        by_penalty[peer] = [{"penalty": p, **(usual if p == 1 else reach(peer, late, p))} for p in PENALTIES]
    return {"losses": losses, "by_penalty": by_penalty}


def label(name: str, version: str | None) -> str:
    """ "saelens 6.54.12, memory kept as by ours"."""
    peer, *how = name.split(", ", 1)
    return ", ".join([f"{peer} {version}" if version else peer, *how])


def loss_rows(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table of what contenders reach after equal tokens."""
    lines = []
    for row in rows:
        reached = row.get("losses", {})
        for tokens in reached.get("ours", ()):
            for name, by_tokens in reached.items():
                t = by_tokens[tokens]
                named = label(name, row["trainers"].get(name, {"version": None})["version"])
                against = ("", "") if name.startswith("ours") else ("ours", LOSSES[row["variant"]][name])
                gaps = " | ".join(f"{reached[n][tokens]['loss'] / t['loss'] - 1:+.1%}" if n else "" for n in against)
                lines.append(
                    f"| {row['latents']:,} | {row['variant']} | {int(tokens):,} | {named} | {t['loss']:.4f} | {gaps} | "
                    f"{t['l0']:.1f} | {t['fvu']:.4f} |"
                )
    return lines


def at_l0(points: list[dict[str, float]], l0: float) -> float:
    """FVU at an L0 between those of trained SAEs, linear in log L0."""
    by_l0 = sorted((math.log(t["l0"]), t["fvu"]) for t in points)
    return float(np.interp(math.log(l0), [x for x, _ in by_l0], [y for _, y in by_l0]))


def equal_l0(by_rule: dict[str, list[dict[str, float]]]) -> tuple[str, list[str]]:
    """How the rules are compared, and lines of FVU at an L0 in the middle of those that all of them reach."""
    alive = {name: [t for t in points if t["l0"] > 0] for name, points in by_rule.items()}
    low = max(min((t["l0"] for t in points), default=math.inf) for points in alive.values())
    high = min(max((t["l0"] for t in points), default=0.0) for points in alive.values())
    l0, lines = math.sqrt(low * high) if low <= high else None, []
    for name, points in by_rule.items():
        lines += [f"| {name} | {t['penalty']:g} | {t['l0']:.1f} | {t['fvu']:.4f} |  |" for t in points]
        if l0:
            ours, own = (at_l0(alive[n], l0) for n in ("ours", name))
            lines.append(f"| {name} | between | {l0:.1f} | {own:.4f} | {ours / own - 1:+.1%} |")
    between = f", and between these SAEs at L0 = {l0:.0f}, linear in log L0." if l0 else "; no L0 is reached by all."
    return between, lines
