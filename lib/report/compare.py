"""Compare outputs and results across machines: words exactly, decimals within a tolerance."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib import config
from lib.report.notebooks import ReportError

RELATIVE, ABSOLUTE = 5e-3, 1e-4  # what another CPU's rounding may move: a unit in the third digit that is shown

PIXELS = 0.005  # share of a figure's pixels that may differ: an interval's end moves, a curve does not

# Decimals only: counts and names must agree exactly. A dot that ends a sentence is no decimal point.
_DECIMAL = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.\d+(?:[eE][-+]?\d+)?")


def close(a: float, b: float) -> bool:
    """Whether two decimals agree within the tolerance."""
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


class Tolerant(str):
    """Text that equals another when they differ only in decimals, and in those by no more than the tolerance."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        if str.__eq__(self, other):
            return True
        if _DECIMAL.sub("#", self) != _DECIMAL.sub("#", other):
            return False
        pairs = zip(_DECIMAL.findall(self), _DECIMAL.findall(other), strict=True)
        return all(close(float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in pairs)

    def __ne__(self, other: object) -> bool:
        return not self == other


def _differences(a: Any, b: Any, at: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        lacking = [f"{at}.{key}: only on one side" for key in sorted(a.keys() ^ b.keys())]
        return lacking + [d for key in sorted(a.keys() & b.keys()) for d in _differences(a[key], b[key], f"{at}.{key}")]
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return [f"{at}: {len(a)} entries committed, {len(b)} in the run"]
        return [
            d for number, (x, y) in enumerate(zip(a, b, strict=True)) for d in _differences(x, y, f"{at}[{number}]")
        ]
    if isinstance(a, float) and isinstance(b, float):
        same = close(a, b)
    elif isinstance(a, str) and isinstance(b, str):
        same = Tolerant(a) == b
    else:
        same = a == b
    return [] if same else [f"{at}: {a!r} committed, {b!r} in the run"]


def drift(committed: Path, fresh: Path, ignored: tuple[str, ...] = ("provenance",)) -> list[str]:
    """What tells the results of a fresh run from the committed ones, one line each.

    Raises:
        ReportError: one of the folders holds no results.
    """
    names = {folder: {p.stem for p in folder.glob("*.json")} - set(ignored) for folder in (committed, fresh)}
    for folder, found in names.items():
        if not found:
            raise ReportError(f"no results in {folder}: run make report first")
    lines = [f"{name}: committed, but not in the run" for name in sorted(names[committed] - names[fresh])]
    lines += [f"{name}: in the run, but not committed" for name in sorted(names[fresh] - names[committed])]
    for name in sorted(names[committed] & names[fresh]):
        a, b = (json.loads((folder / f"{name}.json").read_text("utf-8"))["payload"] for folder in (committed, fresh))
        lines += _differences(a, b, name)
    return lines


def figure_drift(committed: Path, fresh: Path) -> list[str]:
    """Figures that are missing on one side, have another size, or differ in more than :data:`PIXELS` of their area."""
    names = {folder: {path.name for path in folder.glob("*.png")} for folder in (committed, fresh)}
    lines = [f"{name}: only on one side" for name in sorted(names[committed] ^ names[fresh])]
    for name in sorted(names[committed] & names[fresh]):
        a, b = (np.asarray(Image.open(folder / name).convert("L"), np.int16) for folder in (committed, fresh))
        if a.shape != b.shape or np.mean(np.abs(a - b) > 64) > PIXELS:
            lines.append(f"{name}: another size, or more than {PIXELS:.1%} of its pixels differ")
    return lines


def drift_from_head(built: Path) -> list[str]:
    """:func:`drift` and :func:`figure_drift` of a run against the last commit, which a promoted run has not touched.

    Raises:
        ReportError: git has no committed results, or the run has none.
    """
    command = ["git", "archive", "--format=tar", "HEAD", "data/results", "figures"]
    done = subprocess.run(command, cwd=config.ROOT, capture_output=True, check=False)
    if done.returncode:
        raise ReportError(f"cannot read the committed results: {done.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
        old = Path(folder)
        return drift(old / "data" / "results", built / "results") + figure_drift(old / "figures", built / "figures")
