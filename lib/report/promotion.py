"""Promote a complete ``report`` run, in one step, to what git tracks: notebooks, figures, results, README headline."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from lib import config, store
from lib.report import notebooks
from lib.report.notebooks import ReportError

MARKS = ("<!-- headline: written by make report -->", "<!-- end of headline -->")
COMPLETE = "complete.json"  # written by a run of all notebooks without overrides, removed when a run starts
TARGETS = {"notebooks": "notebooks", "figures": "figures", "results": "data/results"}  # of a run, of the repository


def _stage() -> Path:
    """A run that is whole and not yet in place: this folder appears and goes in one step, so it is the journal too."""
    return config.build_dir() / "promoting"


def with_headline(readme: str, headline: str) -> str:
    """``readme`` with the text between the marks replaced.

    Raises:
        ReportError: the marks are not there, once each and in order.
    """
    between = re.compile("(?<={}\n).*(?={})".format(*map(re.escape, MARKS)), re.DOTALL)
    text, found = between.subn(lambda _: f"{headline.strip()}\n", readme)
    if not found:
        raise ReportError(f"README.md lacks the lines {' and '.join(MARKS)}")
    return text


def promote(profile: str) -> None:
    """Stage a complete run and put it in place. Broken off, :func:`finish` completes it at the next call.

    Raises:
        ReportError: the profile is not ``report``, the run was not complete, it lacks a notebook, a figure or a result, or a
            sentence is not true of it.
    """
    if profile != "report":
        raise ReportError(f"only a report run is promoted, not {profile!r}")
    finish()
    built = config.build_dir() / profile
    if not (built / COMPLETE).exists():
        raise ReportError("the last report run was partial, failed or had overrides: run make report")
    executed = [built / "notebooks" / f"{name}.ipynb" for name in notebooks.names()]
    for path in executed:
        if found := notebooks.differences(path.stem, path):
            raise ReportError(found[0])
        if found := notebooks.failed(path):
            raise ReportError(
                f"not true of this run: {found[0]}. Mend the sentence and its expect, and make report again"
            )
    events = [json.loads(line) for line in (built / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    used = {f"{event['name']}.json": event["key"] for event in events if event["event"] == "used"}
    files = {
        "notebooks": executed,
        "figures": sorted((built / "figures").glob("[!.]*")),
        "results": [path for path in sorted((built / "results").glob("[!.]*")) if path.name in used],  # no older ones
    }
    for path in files["results"]:  # another run may have filed one under the same name
        if json.loads(path.read_text(encoding="utf-8"))["key"] != used[path.name]:
            raise ReportError(f"{path.name} is not the result that the run used: run make report again")
    stage = _stage().with_suffix(".part")
    shutil.rmtree(stage, ignore_errors=True)
    for folder, paths in files.items():
        if not paths:
            raise ReportError(f"the run has no {folder}: run make report again")
        (stage / folder).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, stage / folder)
    if not (stage / "results" / "headline.json").is_file():
        raise ReportError("the run has no headline: run make report again")
    stage.rename(_stage())
    finish()


def finish() -> bool:
    """Put a staged run in place; True if there was one. Safe to repeat until it has gone through."""
    stage = _stage()
    if not stage.exists():
        return False
    for folder, place in TARGETS.items():
        target, staged = config.ROOT / place, sorted((stage / folder).iterdir())
        target.mkdir(parents=True, exist_ok=True)
        for path in staged:
            temporary = target / f".{path.name}.promoting"
            shutil.copy(path, temporary)
            os.replace(temporary, target / path.name)
        for old in target.glob("[!.]*.ipynb" if folder == "notebooks" else "[!.]*"):
            if old.is_file() and old.name not in {path.name for path in staged}:
                old.unlink()
    headline = json.loads((stage / "results" / "headline.json").read_text(encoding="utf-8"))["payload"]
    readme = config.ROOT / "README.md"
    store.write_atomic(readme, with_headline(readme.read_text(encoding="utf-8"), headline))
    gone = stage.with_suffix(".part")
    shutil.rmtree(gone, ignore_errors=True)
    stage.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    return True
