"""The house rules: one-way imports, one environment, clean code, no pickle."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from lib import config

ROOT = config.ROOT
MODULES = sorted((ROOT / "lib").rglob("*.py"))

# Left to right; a room may import from itself and from rooms to its left. Rooms in one set stand beside each other.
ORDER = [
    {"config"},
    {"store", "matmul", "stats"},
    {"texts"},
    {"surface"},
    {"fused"},
    {"sources"},
    {"prompts"},
    {"corpora"},
    {"lm"},
    {"activations"},
    {"sae"},
    {"probes"},
    {"labelled"},
    {"debugging"},
    {"autointerp"},
    {"study"},
    {"claims"},
    {"results"},
    {"figures"},
    {"report"},
]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wrong_imports(path: Path, own: str) -> list[str]:
    place = {name: number for number, names in enumerate(ORDER) for name in names}
    found = []
    for name in imported(path):
        if name.startswith("lib.") and (other := room(name)) and other != own and place[other] >= place[own]:
            found.append(f"{own} imports {other}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(ROOT / "lib").parts[0].removesuffix(".py")
    if own != "__init__":
        assert wrong_imports(path, own) == []
    assert not [name for name in imported(path) if name.startswith(("notebooks", "tests"))]


def test_a_wrong_import_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("from lib import figures\nfrom lib.report.site import build\n")
    assert (
        wrong_imports(tmp_path / "m.py", "sae") == ["sae imports figures", "sae imports report"]
        or len(wrong_imports(tmp_path / "m.py", "sae")) == 2
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says what it is"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_nothing_unsafe_is_loaded() -> None:
    for path in [*MODULES, *(ROOT / "notebooks").glob("*.py")]:
        text = path.read_text()
        assert not re.search(
            r"\bpickle\b(?!=False)|torch\.load\(|yaml\.load\(|np\.load\((?!path, allow_pickle=False)|(?<!\.)\beval\(|\bexec\(",
            text,
        ), path


def test_ruff_and_mypy_are_clean() -> None:
    for command in (
        ["ruff", "check", "lib", "notebooks", "tests"],
        ["ruff", "format", "--check", "lib", "tests"],
        ["mypy"],
    ):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def requirement_names(lines: list[str]) -> set[str]:
    return {re.split(r"[<>=\[;~! ]", line.strip())[0].lower().replace("_", "-") for line in lines if line.strip()}


def test_one_environment() -> None:
    """pyproject, constraints, environment.yml and the Makefile install the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = requirement_names(project["dependencies"] + project["optional-dependencies"]["dev"])
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if not x.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[^ +]+", line) for line in lines), "every line pins one release"
    assert wanted <= requirement_names(lines)
    assert "torch==2.13.0" in lines
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-c constraints.txt -e .[dev]"]}]
    make = (ROOT / "Makefile").read_text()
    assert "-c constraints.txt -e '.[dev]'" in make
    assert project["requires-python"] == ">=3.11"


def test_constraints_are_what_is_installed() -> None:
    from importlib.metadata import PackageNotFoundError, version

    wrong = []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, pinned = line.split("==")
            try:
                installed = version(name).split("+")[0]
            except PackageNotFoundError:
                continue
            if installed != pinned:
                wrong.append(f"{name}: {installed} installed, {pinned} pinned")
    assert wrong == []


def test_top_level_is_what_was_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    agreed = {"README.md", "environment.yml", "notebooks", "lib", "data", "figures", "tests"}
    agreed |= {"pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "CITATION.cff"}
    assert {name for name in top if not name.startswith(".")} <= agreed
    sizes = {name: (ROOT / name).stat().st_size for name in tracked if (ROOT / name).exists()}
    assert sum(sizes.values()) < 25e6
    assert sum(size for name, size in sizes.items() if name.startswith("data/results/")) < 10e6


def test_make_help_names_the_contract() -> None:
    done = subprocess.run(["make"], capture_output=True, text=True, cwd=ROOT, check=True)
    for target in ("report", "test", "bench", "drift", "lab", "clean"):
        assert f"make {target}" in done.stdout
