"""Promote a complete ``report`` run, in one step, to what git tracks: notebooks, figures, results, README headline."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from lib import config, store
from lib.report import notebooks
from lib.report.notebooks import ReportError

MARKS = ("<!-- headline: written by make report -->", "<!-- end of headline -->")


COMPLETE = "complete.json"  # written by a run of all notebooks without overrides, removed when a run starts


def _targets() -> dict[str, tuple[str, Path]]:
    """Staged folder name -> (glob of the files it owns in the target, target)."""
    return {
        "notebooks": ("*.ipynb", config.ROOT / "notebooks"),
        "figures": ("*", config.ROOT / "figures"),
        "results": ("*", config.ROOT / "data" / "results"),
    }


def _journal() -> Path:
    return config.build_dir() / "promotion.json"


def with_headline(readme: str, headline: str) -> str:
    """``readme`` with the text between the marks replaced.

    Raises:
        ReportError: the marks are not there, once each and in order.
    """
    begin, end = MARKS
    before, found, rest = readme.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ReportError(f"README.md lacks the lines {begin} and {end}")
    return f"{before}{begin}\n{headline.strip()}\n{end}{after}"


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
    for name in notebooks.names():
        executed = built / "notebooks" / f"{name}.ipynb"
        if found := notebooks.differences(name, executed):
            raise ReportError(found[0])
        if found := notebooks.failed(executed):
            raise ReportError(
                f"not true of this run: {found[0]}. Mend the sentence and its expect, and run make report again"
            )
    stage = config.build_dir() / "promotion"
    shutil.rmtree(stage, ignore_errors=True)
    events = [json.loads(line) for line in (built / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    used = {f"{event['name']}.json" for event in events if event["event"] == "used"}
    for folder, (pattern, _) in _targets().items():
        (stage / folder).mkdir(parents=True)
        for path in sorted((built / folder).glob(pattern)):
            if path.name.startswith(".") or path.name.endswith(".failed.ipynb"):
                continue
            if folder != "results" or path.name in used:  # results that an earlier version left are not carried along
                shutil.copy(path, stage / folder / path.name)
        if not any((stage / folder).iterdir()):
            raise ReportError(f"the run has no {folder}: run make report again")
    if not (stage / "results" / "headline.json").is_file():
        raise ReportError("the run has no headline: run make report again")
    store.write_atomic(_journal(), json.dumps({"stage": "promotion"}))
    finish()


def finish() -> bool:
    """Put a staged run in place; True if there was one. Safe to repeat until it has gone through."""
    if not _journal().exists():
        return False
    stage = config.build_dir() / "promotion"
    for folder, (pattern, target) in _targets().items():
        target.mkdir(parents=True, exist_ok=True)
        staged = {path.name for path in (stage / folder).iterdir()}
        for path in sorted((stage / folder).iterdir()):
            temporary = target / f".{path.name}.promoting"
            shutil.copy(path, temporary)
            os.replace(temporary, target / path.name)
        for old in target.glob(pattern):
            if old.is_file() and old.name not in staged and not old.name.startswith("."):
                old.unlink()
    summary = json.loads((config.ROOT / "data" / "results" / "headline.json").read_text(encoding="utf-8"))
    readme = config.ROOT / "README.md"
    text = with_headline(readme.read_text(encoding="utf-8"), summary["payload"])
    store.write_atomic(readme, text)
    _journal().unlink()
    shutil.rmtree(stage, ignore_errors=True)
    return True
