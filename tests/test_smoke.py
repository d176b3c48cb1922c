"""The whole report, cold, at the smoke profile: killed half-way, then run again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from test_report import broken_links, outside_requests

from lib import config
from lib.report import notebooks

COMMAND = [sys.executable, "-m", "lib.report", "run", "--profile", "smoke"]


def events(build: Path) -> list[dict]:
    log = build / "smoke" / "steps.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_cold_run_killed_then_resumed(tmp_path: Path) -> None:
    cache, build = tmp_path / "cache", tmp_path / "build"
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
    again = kept & {e["key"] for e in events(build) if e["event"] == "start"}
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
    assert str(tmp_path) not in (site / "index.html").read_text()
    tracked = subprocess.run(
        ["git", "status", "--porcelain", "data/results", "figures"],
        capture_output=True,
        text=True,
        cwd=config.ROOT,
        check=True,
    )
    assert tracked.stdout == "", "a smoke run must not touch what is committed"
