"""Coverage of lib.stats' 95 % intervals in simulated designs like the report's; ``python -m tests.bench.coverage`` writes data/coverage.json.

A design: a dense probe, and a low and a high one that read SAEs of S seeds, on D draws of the split, and prompts in clusters. A score is
``shift * y`` plus unit normal noise of which cluster, row, (cluster, probe, seed), (row, probe, seed) and (row, probe, draw) make .4, .2, .2, .1
and .1. Shifts vary by seed, draw and both, on validation by half as much, as found. Validation is a fifth of a pool of clusters, drawn
anew in each draw; OOD prompts are the same. The truth is the mean over all of these, by formula.
"""

import argparse
import datetime
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from lib import config, stats

DRAWS = 5
BINS, LOWEST, WIDTH = 4096, -8.0, 0.006  # scores are rounded to this width; ties count half
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(101)
PARTS = np.sqrt(
    [0.4, 0.2, 0.2, 0.1, 0.1]
)  # cluster, row, cluster x probe x seed, row x probe x seed, row x probe x draw


@dataclass(frozen=True)
class Design:
    """A probe's ``auroc`` out of distribution, in the mean over ``seeds`` and draws, which spread as standard deviations of AUROCs say."""

    auroc: float
    seeds: int
    of_seeds: float
    of_draws: float
    harmful: int = (
        200  # OOD clusters of three harmful rows and two harmless ones; 700 of one harmless row stand beside them
    )
    harmless: int = 140  # clusters of one row in validation, beside 38 of five harmful rows and two harmless ones


@dataclass(frozen=True)
class Prompts:
    """Rows in clusters: ``y`` and ``group`` [n]; ``within`` is the share of (harmful, harmless) pairs that lie in one cluster."""

    y: np.ndarray
    group: np.ndarray
    within: float

    @classmethod
    def of(cls, harmful: int, wrapped: int, innocuous: int, harmless: int) -> "Prompts":
        """Clusters with ``wrapped`` harmful and ``innocuous`` harmless rows each, and others of one harmless row."""
        group = np.r_[np.repeat(np.arange(harmful), wrapped + innocuous), harmful + np.arange(harmless)]
        y = np.r_[np.tile([1] * wrapped + [0] * innocuous, harmful), np.zeros(harmless, int)]
        return cls(y, group, innocuous / (harmful * innocuous + harmless))

    def auroc(self, shift: float, variance: float) -> float:
        """Its mean where the shift has this mean and variance: of pairs that share no noise, and of those that share their cluster's."""
        shared = PARTS[[0, 2]] ** 2
        ways = ((1 - self.within, 2.0), (self.within, 2 * (1 - float(shared.sum()))))
        return float(sum(share * norm.cdf(shift / np.sqrt(noise + variance)) for share, noise in ways))


def effect(auroc: float, sd: float) -> float:
    """The standard deviation of a shift that spreads AUROCs of this mean by ``sd``."""

    def missed(by: float) -> float:
        at = norm.ppf(auroc) * np.sqrt(2 + by**2)
        each = norm.cdf((at + by * NODES) / np.sqrt(2))
        mean = each @ WEIGHTS / WEIGHTS.sum()
        return float(np.sqrt((each - mean) ** 2 @ WEIGHTS / WEIGHTS.sum())) - sd

    return float(brentq(missed, 0, 5)) if sd else 0.0


@numba.njit(cache=False)
def influences(bins: np.ndarray, y: np.ndarray, group: np.ndarray, pulls: np.ndarray) -> float:
    """lib.stats.influences of scores that are whole numbers, by counting; ``pulls`` is written."""
    counts = np.zeros((2, BINS + 1))
    for row in range(len(y)):
        counts[y[row], bins[row]] += 1
    below = np.zeros((2, BINS + 1))
    for kind in range(2):
        for at in range(BINS):
            below[kind, at + 1] = below[kind, at] + counts[kind, at]
    many = below[:, BINS]
    total = 0.0
    right = np.empty(len(y))
    for row in range(len(y)):
        other, at = 1 - y[row], bins[row]
        share = (below[other, at] + counts[other, at] / 2) / many[other]
        right[row] = share if y[row] else 1 - share
        total += right[row] * y[row]
    auroc = total / many[1]
    for row in range(len(y)):
        pulls[group[row]] += (right[row] - auroc) / many[y[row]]
    return auroc


@numba.njit(cache=False)
def scored(
    common: np.ndarray, seeds: np.ndarray, draws: np.ndarray, shifts: np.ndarray, prompts: tuple, held: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(AUROCs [S, D], influences [S, D, clusters]) of scores ``common`` [n] + ``seeds`` [S, n] + ``draws`` [D, n] + ``shifts`` [S, D] * y,
    on the rows ``held`` [D, n]; ``prompts`` is (y, group, clusters)."""
    y, group, size = prompts
    values, pulls = np.empty(shifts.shape), np.zeros((*shifts.shape, size))
    for d in range(shifts.shape[1]):
        rows = np.flatnonzero(held[d])
        kinds, groups, bins = y[rows], group[rows], np.empty(len(rows), np.int64)
        for s in range(shifts.shape[0]):
            for at, row in enumerate(rows):
                score = common[row] + seeds[s, row] + draws[d, row] + shifts[s, d] * y[row]
                bins[at] = min(max(int((score - LOWEST) / WIDTH), 0), BINS - 1)
            values[s, d] = influences(bins, kinds, groups, pulls[s, d])
    return values, pulls


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


class World:
    """A design's prompts and probes, from which data sets are drawn."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.ood = Prompts.of(design.harmful, 3, 2, 700)
        self.pool, val = Prompts.of(5 * 38, 5, 2, 5 * design.harmless), Prompts.of(38, 5, 2, design.harmless)
        self.spread, self.shift, self.truth = {}, {}, {}
        for name, wrong in (("dense", 1 / 3), ("low", 1.0), ("high", 2 / 3)):  # high closes half of the gap
            mean = 1 - (1 - design.auroc) * wrong
            by_seed = effect(mean, design.of_seeds * wrong) if name != "dense" else 0.0
            by_draw = effect(mean, design.of_draws * wrong)
            self.spread[name] = by_seed, by_draw, by_draw if by_seed else 0.0
            variance = sum(x**2 for x in self.spread[name])
            for split, prompts in (("ood", self.ood), ("val", val)):  # on validation a quarter as many mistakes
                target, moved = (mean, variance) if split == "ood" else (1 - (1 - mean) / 4, variance / 4)
                at = float(norm.ppf(target) * np.sqrt(2 + moved))
                self.shift[split, name], self.truth[split, name] = at, prompts.auroc(at, moved)

    def held(self, rng: np.random.Generator) -> np.ndarray:
        """[D, rows of the pool] the validation set of each draw."""
        few, many = 5 * 38, 5 * self.design.harmless
        chosen = [np.r_[rng.permutation(few)[:38], few + rng.permutation(many)[: many // 5]] for _ in range(DRAWS)]
        return np.array([np.isin(self.pool.group, groups) for groups in chosen])

    def drawn(self, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """{split: (AUROCs [3, S, D], influences [3, S, D, clusters])} of the probes dense, low, high."""
        seeds, shared = self.design.seeds, normal(rng, 1, DRAWS)  # half of what a draw does, it does to all probes
        moved, found = {}, {}
        for name, (by_seed, by_draw, both) in self.spread.items():
            of_draw = by_draw * (shared + normal(rng, 1, DRAWS)) / np.sqrt(2)
            moved[name] = by_seed * normal(rng, seeds, 1) + of_draw + both * normal(rng, seeds, DRAWS)
        for split, prompts in (("ood", self.ood), ("val", self.pool)):
            n, size = len(prompts.y), int(prompts.group[-1]) + 1
            held = np.ones((DRAWS, n), bool) if split == "ood" else self.held(rng)
            common = PARTS[0] * normal(rng, size)[prompts.group] + PARTS[1] * normal(rng, n)
            values, pulls = np.empty((3, seeds, DRAWS)), np.empty((3, seeds, DRAWS, size))
            for which, name in enumerate(self.spread):
                several = 1 if name == "dense" else seeds
                own = PARTS[2] * normal(rng, several, size)[:, prompts.group] + PARTS[3] * normal(rng, several, n)
                shifts = self.shift[split, name] + moved[name][:several] * (1.0 if split == "ood" else 0.5)
                given = common, own, PARTS[4] * normal(rng, DRAWS, n), shifts
                values[which], pulls[which] = scored(*given, (prompts.y, prompts.group, size), held)
            found[split] = values, pulls
        return found

    def asked(self, data: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, tuple[Any, ...]]:
        """{quantity: (truth, and what summary is given)}."""
        (out, of_out), (inside, of_inside) = data["ood"], data["val"]
        few = {"ood": self.design.harmful, "val": len(np.unique(np.nonzero(of_inside[1, 0, :, :190])[1]))}
        unit, wide, found = (0.0, 1.0), (-2.0, 2.0), dict[str, tuple[Any, ...]]()
        for split, (value, pull) in data.items():
            truth = {name: self.truth[split, name] for name in self.spread}
            for which, name in enumerate(("dense", "low")):
                found[f"{name}, {split}"] = truth[name], value[which], pull[which], few[split], unit
            pair = truth["dense"] - truth["low"], value[:2], pull[:2], few[split], wide, (1, -1)
            found[f"dense - low, {split}"] = pair
        pair = self.truth["ood", "high"] - self.truth["ood", "low"], out[1:], of_out[1:], few["ood"], wide, (-1, 1)
        found["high - low, ood"] = pair
        zeros = [np.zeros((*x.shape[:3], y.shape[3])) for x, y in ((of_out[:2], of_inside), (of_inside[:2], of_out))]
        pulls = np.concatenate([np.r_["3", of_out[:2], zeros[0]], np.r_["3", zeros[1], of_inside[:2]]])
        more = found["dense - low, ood"][0] - found["dense - low, val"][0]
        four = more, np.concatenate([out[:2], inside[:2]]), pulls, few["val"], wide, (1, -1, -1, 1)
        return found | {"dense - low, ood - val": four}


Interval = Callable[..., list[float]]


def ours(*given: Any) -> list[float]:
    return list(stats.summary(*given)["interval"])


def coverage(design: Design, n: int, seed: int, made: Interval = ours, share: int = 0) -> dict[str, dict[str, Any]]:
    """{quantity: {coverage, above: share of truths above the interval, width: its mean, n}} in ``n`` data sets; the share of a gap in ``share``."""
    world, rng, seen = World(design), np.random.default_rng(seed), dict[str, list[tuple[float, float, float]]]()
    for at in range(n):
        data = world.drawn(rng)
        for name, (truth, *given) in world.asked(data).items():
            seen.setdefault(name, []).append((*made(*given), truth))
        if at < share:
            truths = [world.truth["ood", name] for name in world.spread]
            truth = (truths[2] - truths[1]) / (truths[0] - truths[1])
            ends = stats.share_closed(*data["ood"], design.harmful)["interval"]
            seen.setdefault("share of the gap, ood", []).append((*ends, truth))
    found = {}
    for name, rows in seen.items():
        low, high, truth = np.array(rows).T
        shown = {"coverage": ((low <= truth) & (truth <= high)).mean(), "above": (truth > high).mean()}
        shown["width"] = np.median(high - low) if "share" in name else (high - low).mean()
        found[name] = {key: round(float(value), 4) for key, value in shown.items()} | {"n": len(rows)}
    return found


DESIGNS = (
    Design(0.75, 10, 0.13, 0.02),
    Design(0.98, 3, 0.015, 0.005),
    Design(0.9, 5, 0.06, 0.015, harmless=700),
    Design(0.98, 10, 0.015, 0.005, harmful=320),
    Design(0.997, 3, 0.0, 0.001),
    Design(0.997, 5, 0.002, 0.001),
    Design(0.9, 10, 0.0, 0.005),
    Design(0.75, 3, 0.13, 0.02, harmful=320),
)
CODE = (
    "tests/bench/coverage.py: for each design (AUROC of the low probe OOD; SD of AUROCs between seeds and draws; OOD harmful and validation "
    "harmless clusters; 38 harmful ones in validation; 5 draws) the share of 95 % intervals of lib.stats that hold the truth, the share of "
    "truths above them, and mean width (median for shares of a gap)"
)


def written(out: Path, n: int, cells: list[dict[str, Any]]) -> None:
    """The table, a line a cell."""
    columns = list(cells[0])
    told = {"n": n, "code": CODE, "date": datetime.date.today().isoformat(), "columns": columns}
    lines = ",\n".join(f"  {json.dumps([cell[column] for column in columns])}" for cell in cells)
    out.write_text(f'{json.dumps(told, indent=1)[:-2]},\n "cells": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=CODE)
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=config.ROOT / "data" / "coverage.json")
    given, cells = parser.parse_args(), []
    for seed, design in enumerate(DESIGNS):
        for name, cell in coverage(design, given.n, seed, share=given.n // 4).items():
            cells.append({**asdict(design), "of": name, **cell})
            error = np.sqrt(cell["coverage"] * (1 - cell["coverage"]) / cell["n"])
            print(f"{design} {name:25} {cell['coverage']:.4f} ± {error:.4f}, width {cell['width']:.4f}", flush=True)
        written(given.out, given.n, cells)


if __name__ == "__main__":
    main()
