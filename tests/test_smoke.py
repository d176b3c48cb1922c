"""The whole report, cold, at the smoke profile: killed half-way, then run again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from test_files import rows, write
from test_report import broken_links, outside_requests

from lib import config
from lib.report import notebooks

COMMAND = [sys.executable, "-m", "lib.report", "run", "--profile", "smoke"]


def events(build: Path) -> list[dict]:
    log = build / "smoke" / "steps.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@dataclass
class Run:
    """A cold run that was killed once and then went on."""

    build: Path
    environment: dict[str, str]
    kept: set[str]  # keys of the steps that the kill found finished


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("cold")
    cache, build = folder / "cache", folder / "build"
    cache.mkdir()
    (cache / "wheels").symlink_to(config.ROOT / "data" / "cache" / "wheels")  # all but the downloads is cold
    environment = os.environ | {"SAE_REPORT_CACHE": str(cache), "SAE_REPORT_BUILD": str(build)}
    environment.pop("TQDM_DISABLE", None)

    first = subprocess.Popen(COMMAND, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not any(e["event"] == "end" and e["step"].endswith("training.train") for e in events(build)):
        assert first.poll() is None and time.monotonic() < deadline, "the run ended before its first SAE"
        time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {e["key"] for e in events(build) if e["event"] == "end"}
    assert len(kept) > 5
    assert not (build / "smoke" / "notebooks" / "01_training.ipynb").exists()

    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(build, environment, kept)


def test_cold_run_killed_then_resumed(cold: Run) -> None:
    build = cold.build
    again = cold.kept & {e["key"] for e in events(build) if e["event"] == "start"}
    assert not again, "a finished step was computed twice"

    for name in notebooks.names():
        notebook = nbformat.read(build / "smoke" / "notebooks" / f"{name}.ipynb", as_version=4)
        assert notebooks.differences(name, build / "smoke" / "notebooks" / f"{name}.ipynb") == []
        assert all(c.execution_count for c in notebook.cells if c.cell_type == "code")
    sources = "".join((notebooks.folder() / f"{name}.py").read_text() for name in notebooks.names())
    wanted = set(re.findall(r'^ +"(\d\d_\w+)",$', sources, re.MULTILINE))
    assert len(wanted) == 17
    assert {p.stem for p in (build / "smoke" / "figures").glob("*.png")} == wanted
    assert all((build / "smoke" / "figures" / f"{name}.png").stat().st_size > 8_000 for name in wanted)
    site = build / "smoke" / "site"
    assert (site / "index.html").is_file() and (site / "02_probing.html").is_file()
    assert outside_requests(site) == []
    assert broken_links(site) == []
    assert str(build) not in (site / "index.html").read_text()
    tracked = subprocess.run(
        ["git", "status", "--porcelain", "data/results", "figures"],
        capture_output=True,
        text=True,
        cwd=config.ROOT,
        check=True,
    )
    assert tracked.stdout == "", "a smoke run must not touch what is committed"


def test_notebook_02_takes_anyones_prompts(cold: Run, tmp_path: Path) -> None:
    """All that it draws of the report's prompts it draws of a file's, but for what is about the report's own slices."""
    found = rows(96)
    for row in found:
        row["text"] = ("zebra " if row["label"] else "quail ") + row["text"]
    path = write(tmp_path / "mine.csv", found)
    environment = cold.environment | {"SAE_REPORT_BUILD": str(tmp_path / "build")}
    sets = [x for s in (f"probes.data={path}", "probes.sizes=[4,8]") for x in ("--set", s)]
    command = [*COMMAND[:4], "02_probing", *COMMAND[4:], *sets]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    build = tmp_path / "build" / "smoke"
    drawn = {p.stem for p in (build / "figures").glob("*.png")}
    of_report = {p.stem for p in (cold.build / "smoke" / "figures").glob("02_*.png")}
    assert drawn == of_report - {"02_refusals"}
    trained = [e for e in events(tmp_path / "build") if e["event"] == "start" and "training.train" in e["step"]]
    assert not trained, "SAEs do not depend on the prompts that are probed"
    table = json.loads((build / "results" / "02_probes.json").read_text())["payload"]
    assert table["bag of words"]["ood"]["auroc"] > 0.95 and table["dense"]["ood"]["n"] == 24
    assert set(table["dense"]["slices"]) == {"harmful", "harmless"}
