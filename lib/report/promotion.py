"""Promote a complete ``report`` run, in one step, to what git tracks: notebooks, figures, results, README headline."""

import json
import shutil
from pathlib import Path

from lib import config, store
from lib.report import notebooks
from lib.report.notebooks import ReportError

MARKS = ("<!-- headline: written by make report -->", "<!-- end of headline -->")
COMPLETE = "complete.json"  # written by a run of all notebooks without overrides, removed when a run starts
STAGE = "promoting"  # folder with what is to be put in place: it appears and goes in one step, so it is the journal too


def with_headline(readme: str, headline: str) -> str:
    """``readme`` with the text between the marks replaced; ReportError if they are not there in this order."""
    before, begin, rest = readme.partition(f"{MARKS[0]}\n")
    _, end, after = rest.rpartition(MARKS[1])
    if not (begin and end):
        raise ReportError(f"README.md lacks the lines {' and '.join(MARKS)}")
    return f"{before}{begin}{headline.strip()}\n{end}{after}"


def promote() -> None:
    """Stage the ``report`` run and put it in place; broken off, :func:`finish` completes it at the next run. ReportError if the
    run was not complete, lacks a notebook, a figure or a result, or a sentence is not true of it."""
    notebooks.refuse_lost_edits(notebooks.names())
    built = config.build_dir() / "report"
    if not (built / COMPLETE).exists():
        raise ReportError("the last report run was partial, failed or had overrides: run make report")
    executed = [built / "notebooks" / f"{name}.ipynb" for name in notebooks.names()]
    for path in executed:
        if found := notebooks.differences(path.stem, path):
            raise ReportError(found[0])
        if found := notebooks.failed(path):
            raise ReportError(f"not true of this run: {found[0]}. Mend it and its expect, and make report again")
    events = [json.loads(line) for line in (built / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    used = {f"{event['name']}.json": event["key"] for event in events if event["event"] == "used"}
    results = [path for path in (built / "results").glob("[!.]*") if path.name in used]  # no older ones
    for path in results:  # another run may have filed one under the same name
        if json.loads(path.read_text(encoding="utf-8"))["key"] != used[path.name]:
            raise ReportError(f"{path.name} is not the result that the run used: run make report again")
    files = {"notebooks": executed, "figures": [*(built / "figures").glob("[!.]*")], "data/results": results}
    stage = config.build_dir() / f"{STAGE}.part"
    shutil.rmtree(stage, ignore_errors=True)
    for folder, paths in files.items():
        if not paths:
            raise ReportError(f"the run has no {Path(folder).name}: run make report again")
        (stage / folder).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, stage / folder)
    if not (stage / "data" / "results" / "headline.json").is_file():
        raise ReportError("the run has no headline: run make report again")
    stage.rename(config.build_dir() / STAGE)
    finish()


def finish() -> None:
    """Put a staged run in place, if there is one. Safe to repeat until it has gone through."""
    stage = config.build_dir() / STAGE
    if not stage.exists():
        return
    for folder in ("notebooks", "figures", "data/results"):
        target, staged = config.ROOT / folder, {path.name: path for path in (stage / folder).iterdir()}
        target.mkdir(parents=True, exist_ok=True)
        for name, path in staged.items():
            temporary = target / f".{name}.promoting"  # always the same: one that a kill leaves is written again
            shutil.copy(path, temporary)
            temporary.replace(target / name)
        for old in target.glob("[!.]*.ipynb" if folder == "notebooks" else "[!.]*"):
            if old.is_file() and old.name not in staged:
                old.unlink()
    headline = json.loads((stage / "data" / "results" / "headline.json").read_text(encoding="utf-8"))["payload"]
    readme = config.ROOT / "README.md"
    store.write_atomic(readme, with_headline(readme.read_text(encoding="utf-8"), headline))
    gone = stage.with_suffix(".part")
    shutil.rmtree(gone, ignore_errors=True)
    stage.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
