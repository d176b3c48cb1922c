"""shim: goes at the merge. The benchmark is in tests/bench."""

import json
from pathlib import Path
from typing import Any

from tests.bench import bench


def path() -> Path:
    return bench.RECORD


def table(record: dict[str, Any]) -> str:
    return bench.table(record)


def run() -> str:
    bench.run()
    return bench.table(json.loads(bench.RECORD.read_text(encoding="utf-8")))
