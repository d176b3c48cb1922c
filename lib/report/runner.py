"""Run notebooks with Papermill at a profile, show progress, trust nothing but the outcome."""

import fcntl
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from nbclient.exceptions import CellTimeoutError
from papermill.exceptions import PapermillExecutionError

from lib import config, cpu
from lib.report import notebooks, promotion
from lib.report.notebooks import ReportError

# Kernels inherit these: bars and warnings would make outputs differ from run to run, another's kernel be run in place of ours.
KERNEL_ENVIRONMENT = {
    "JUPYTER_PATH": "",
    "JUPYTER_PREFER_ENV_PATH": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
    "PYTHONHASHSEED": "0",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
QUIET = "--IPKernelApp.log_level=50"  # a kernel that ends may say that it was interrupted


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """{"layer": 8, "model.name": "/a b"} from "layer=8 model.name=/a b": values are JSON, or text where they are not; of files
    and folders the whole path, as notebooks run elsewhere. ConfigError if there is no "="."""
    found: dict[str, Any] = {}
    for setting in (part for text in texts for part in re.split(r"\s+(?=[\w.]+=)", text.strip())):
        name, equals, value = setting.partition("=")
        if not equals:
            raise config.ConfigError(f"cannot read the setting {setting!r}: write name=value, e.g. --set layer=8")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found | {name: located(str(value)) for name, value in found.items() if name in ("model.name", "probes.data")}


def located(name: str) -> str:
    """The whole path of a file or folder, "~" included; other names as they are."""
    path = Path(os.path.expanduser(name))
    return str(path.resolve()) if name not in ("", "packaged") and path.exists() else name


def _follow(log: Path, done: threading.Event) -> None:
    """Print a line for every step that a kernel starts and ends, until all is ``done``."""
    last = False
    with log.open(encoding="utf-8") as stream:
        while not last:
            last = done.wait(1.0)
            for event in map(json.loads, stream):  # those that were added
                label = f"{event['step'].removeprefix('lib.')} {event['key'][:6]}"
                if event["event"] == "end" and event["seconds"] >= 1:
                    print(f"      done {label} in {event['seconds']:.0f} s", flush=True)
                elif event["event"] == "start" and sys.stdout.isatty():
                    print(f"      … {label}", flush=True)


def _running_cell(path: Path) -> str:
    """Number and first line of the cell that a broken-off run was in."""
    cells = nbformat.read(path, as_version=4).cells if path.is_file() else []
    started = [(n, c.source) for n, c in enumerate(cells) if c.metadata.get("papermill", {}).get("start_time")]
    number, source = started[-1] if started else (0, "")
    return f"cell {number} ({source.strip().partition(chr(10))[0]!r})"


def execute(name: str, profile: str, overrides: dict[str, Any], cell_timeout: int) -> Path:
    """Execute one notebook and write its normal form to ``build/<profile>/notebooks``; returns that path. ReportError, which names
    the cell, if one raised, ran too long, or its kernel died: the state is kept in ``<name>.failed.ipynb``."""
    folder = config.build_dir() / profile / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    failed = folder / f"{name}.failed.ipynb"
    try:
        how: dict[str, Any] = {"cwd": str(notebooks.folder()), "execution_timeout": cell_timeout, "progress_bar": False}
        how |= {"parameters": {"profile": profile, "overrides": overrides}, "extra_arguments": [QUIET]}
        executed = papermill.execute_notebook(notebooks.source(name), str(failed), **how)
    except PapermillExecutionError as error:
        said = f"cell {error.cell_index} raised {error.ename}: {error.evalue}. Its state is in {failed}"
    except CellTimeoutError:
        said = f"{_running_cell(failed)} ran longer than {cell_timeout} s. Give --cell-timeout, or a smaller profile"
    except RuntimeError:  # DeadKernelError, and what is raised where it never began
        said = f"the kernel died in {_running_cell(failed)}; out of memory? Try a smaller profile. What is done is kept"
    else:
        outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
        bad = [f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]
        if not bad:
            path = folder / f"{name}.ipynb"
            nbformat.write(notebooks.normalise(executed), path)
            failed.unlink(missing_ok=True)
            return path
        said = f"a cell holds an error output: {bad[0]}"
    raise ReportError(f"{name}: {said}")


def forecast(profile: str) -> str:
    """How long a cold run takes on this host: in proportion to its speed, from one that ``data/cost.yaml`` tells of; "" if none."""
    known = yaml.safe_load((config.ROOT / "data" / "cost.yaml").read_text(encoding="utf-8")).get(profile)
    if not known:
        return ""
    here = cpu.speed()
    minutes = f"{known['minutes'] * known['speed'] / here:.0f} min with nothing in the cache"
    measured = f"{known['minutes']:g} min at {known['speed']:g} GFLOP/s, data/cost.yaml"
    return f"this host: {here:.0f} GFLOP/s in float32, so about {minutes} ({measured})"


def run(profile: str, only: list[str], overrides: dict[str, Any], cell_timeout: int) -> dict[str, float]:
    """Execute all notebooks, or those named, in order, ignoring committed results; returns seconds per notebook. Finished steps are kept, so a run that
    was broken off goes on where it was. Errors are those of :func:`execute`; ConfigError if the profile has no such field; ReportError beside another run."""
    config.load(profile, overrides)  # fail before a kernel starts
    wanted = only or notebooks.names()
    notebooks.refuse_lost_edits(wanted)
    folder = config.build_dir() / profile
    folder.mkdir(parents=True, exist_ok=True)
    try:  # held until this process ends: two would promote each other's figures, and take results for unused
        fcntl.lockf(os.open(folder / "lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ReportError(f"another run writes to {folder}: wait for it, or name another SAE_REPORT_BUILD") from None
    (folder / promotion.COMPLETE).unlink(missing_ok=True)
    log = folder / "steps.jsonl"
    log.write_text("", encoding="utf-8")
    if not only:
        shutil.rmtree(folder / "figures", ignore_errors=True)  # every figure is drawn again
    path = os.pathsep.join(filter(None, (str(config.ROOT), os.environ.get("PYTHONPATH"))))  # there may be another lib
    store = {"SAE_REPORT_STORE": "fresh", "SAE_REPORT_STEPS": str(log), "IPYTHONDIR": str(folder / "ipython")}
    places = {"SAE_REPORT_CACHE": str(config.cache_dir()), "SAE_REPORT_BUILD": str(config.build_dir())}  # whole paths
    os.environ.update(KERNEL_ENVIRONMENT | store | places | {"PYTHONPATH": path})
    if not only and (said := forecast(profile)):
        print(said, flush=True)
    seconds = {}
    follower = threading.Thread(target=_follow, args=(log, done := threading.Event()), daemon=True)
    follower.start()
    try:
        for number, name in enumerate(wanted, 1):
            print(f"[{number}/{len(wanted)}] {name}", flush=True)
            start = time.perf_counter()
            execute(name, profile, overrides, cell_timeout)
            seconds[name] = round(time.perf_counter() - start, 1)
            print(f"[{number}/{len(wanted)}] {name} took {seconds[name]:.0f} s", flush=True)
    finally:
        done.set()
        follower.join()
    return seconds
