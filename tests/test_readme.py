"""README's examples as printed, with the packaged model: minutes, so in ``make test-all`` alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lib import config

pytestmark = pytest.mark.all
README = (config.ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader might stand, with the files that the examples name."""
    folder = tmp_path_factory.mktemp("reader")
    (csv,) = re.findall(r"```csv\n(.*?)```", README, re.DOTALL)
    (folder / "mine.csv").write_text(csv)
    rows = [line.rpartition(",") for line in csv.splitlines()[1:]]
    renamed = [{"prompt": text, "type": {"harmful": "jailbreak"}.get(label, "other")} for text, _, label in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(renamed), folder / "theirs.parquet")
    return folder


def run(folder: Path, *command: str) -> str:
    cache = config.cache_dir()
    places = {"SAE_REPORT_CACHE": str(cache), "SAE_REPORT_BUILD": str(folder / "out"), "PYTHONPATH": str(config.ROOT)}
    done = subprocess.run(command, cwd=folder, env=os.environ | places, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_training_and_export(folder: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    said = run(folder, sys.executable, "-c", script)
    assert "variant='jumprelu'" in said
    assert {p.name for p in (folder / "build" / "my-sae").iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
        "README.md",
    }


def test_probes_of_ones_own_prompts_and_sae(folder: Path) -> None:
    lines = re.findall(r"^\.venv/bin/python (-m lib\.report probe .*?)(?: +#.*)?$", README, re.MULTILINE)
    assert len(lines) == 3
    for line in (line for line in lines if "--saes" not in line):  # which trains the report's
        said = run(folder, sys.executable, *line.split())
        assert "| dense |" in said and "OOD and validation are a fifth of the clusters each" in said
        assert ("| all latents, the SAE |" in said) == ("--sae" in line)


def test_make_probe(folder: Path) -> None:
    """``make`` stands in the project, and the file where the reader says."""
    said = run(folder, "make", "-C", str(config.ROOT), "probe", f"DATA={folder / 'mine.csv'}")
    assert "| dense |" in said
