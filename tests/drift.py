"""Compare outputs and results across machines: words exactly, decimals within a tolerance.

nbval compares by :class:`Tolerant`; ``make drift`` (``python -m tests.drift``) a report run with the last commit.
"""

import io
import json
import math
import re
import subprocess
import sys
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
_DECIMAL = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+(?:[eE][-+]?\d+)?|[eE][-+]?\d+)")


class Tolerant(str):
    """Text that equals another when they differ only in decimals, and in those by no more than the tolerance."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        if _DECIMAL.sub("#", self) != _DECIMAL.sub("#", other):
            return False
        numbers = ([float(found.replace(",", "")) for found in _DECIMAL.findall(text)] for text in (self, other))
        return all(math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE) for a, b in zip(*numbers, strict=True))

    def __ne__(self, other: object) -> bool:
        return not self == other


def _leaves(found: Any, at: str) -> dict[str, Tolerant]:
    """{path: value as text} of what stands in nested dicts and lists."""
    if not isinstance(found, dict | list) or not found:
        return {at: Tolerant(repr(found))}
    parts = found.items() if isinstance(found, dict) else enumerate(found)
    return {path: leaf for key, part in parts for path, leaf in _leaves(part, f"{at}.{key}").items()}


def _one_sided(committed: set[str], fresh: set[str]) -> list[str]:
    lines = [f"{name}: committed, but not in the run" for name in sorted(committed - fresh)]
    return lines + [f"{name}: in the run, but not committed" for name in sorted(fresh - committed)]


def drift(committed: Path, fresh: Path) -> list[str]:
    """What tells the results of a fresh run from the committed ones, provenance aside, one line each; ReportError if one of the
    folders holds none."""
    names = {folder: {p.stem for p in folder.glob("*.json")} - {"provenance"} for folder in (committed, fresh)}
    for folder, found in names.items():
        if not found:
            raise ReportError(f"no results in {folder}: run make report first")
    lines = _one_sided(*names.values())
    for name in sorted(set.intersection(*names.values())):
        read = (json.loads((folder / f"{name}.json").read_text("utf-8"))["payload"] for folder in names)
        a, b = (_leaves(payload, name) for payload in read)
        lines += _one_sided(set(a), set(b))
        lines += [f"{at}: {a[at]} committed, {b[at]} in the run" for at in a if at in b and a[at] != b[at]]
    return lines


def figure_drift(committed: Path, fresh: Path) -> list[str]:
    """Figures that are missing on one side, have another size, or differ in more than :data:`PIXELS` of their area."""
    names = [{path.name for path in folder.glob("*.png")} for folder in (committed, fresh)]
    lines = _one_sided(*names)
    for name in sorted(set.intersection(*names)):
        a, b = (np.asarray(Image.open(folder / name).convert("L"), np.int16) for folder in (committed, fresh))
        if a.shape != b.shape:
            lines.append(f"{name}: {a.shape} committed, {b.shape} in the run")
        elif (changed := np.mean(np.abs(a - b) > 64)) > PIXELS:
            lines.append(f"{name}: {changed:.2%} of its pixels differ")
    return lines


def drift_from_head(built: Path) -> list[str]:
    """:func:`drift` and :func:`figure_drift` of a run against the last commit, which a promoted run has not touched.
    ReportError if git has no committed results, or the run has none."""
    command = ["git", "archive", "--format=tar", "HEAD", "data/results", "figures"]
    done = subprocess.run(command, cwd=config.ROOT, capture_output=True, check=False)
    if done.returncode:
        raise ReportError(f"cannot read the committed results: {done.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
        old = Path(folder)
        return drift(old / "data" / "results", built / "results") + figure_drift(old / "figures", built / "figures")


def main() -> int:
    """Print what differs; returns the exit status: 0 if nothing does, 2 if there is nothing to compare."""
    try:
        found = drift_from_head(config.build_dir() / "report")
    except (config.Expected, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(found) or "the run agrees with the committed results")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
