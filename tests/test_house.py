"""The house rules: one-way imports, small files, a whole wheel, one environment, clean code, no pickle."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml

from lib import config

ROOT = config.ROOT
MODULES = sorted((ROOT / "lib").rglob("*.py"))

# ------------------------------------------------------------------------------------------------------ who knows whom


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the package ``lib`` in a folder, with our contracts."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as f; f()", "--no-cache"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command += [str(ROOT / "pyproject.toml")]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, env=environment)


def test_imports_go_to_lower_floors_only() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in MODULES:
        tree = ast.parse(path.read_text())
        modules = {a.name for x in ast.walk(tree) if isinstance(x, ast.Import) for a in x.names}
        modules |= {str(x.module) for x in ast.walk(tree) if isinstance(x, ast.ImportFrom)}
        assert not [name for name in modules if name.startswith(("notebooks", "tests"))], path


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A package with our rooms, a file in each, whose imports are as they should be."""
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    rooms = [room for layer in layers for room in layer.split(" | ")]
    for number, room in enumerate(rooms):
        folder = tmp_path / "lib" / room
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        lowest = room in layers[-1].split(" | ")
        (folder / "one.py").write_text(f"number = {number}\n" if lowest else "from lib.config import one\n")
        (folder / "two.py").write_text(f"from lib.{room} import one\n")
    (tmp_path / "lib" / "__init__.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("where", "line", "told"),
    [
        ("", "", ""),
        ("texts/one.py", "from lib.sae import one", "lib.texts is not allowed to import lib.sae"),
        ("texts/one.py", "from lib.report import one", "lib.texts is not allowed to import lib.report"),
        ("latents/one.py", "from lib.probes import one", "lib.latents is not allowed to import lib.probes"),
        ("claims/one.py", "from lib.study import one", "lib.claims is not allowed to import lib.study"),
        ("sae/one.py", "from lib.sae import two", "no circles inside a room BROKEN"),
        ("extra.py", "from lib.config import one", "lib.extra"),
    ],
)
def test_a_wrong_import_is_noticed(stand_in: Path, where: str, line: str, told: str) -> None:
    if where:
        with (stand_in / "lib" / where).open("a") as stream:
            stream.write(line + "\n")
    done = lint_imports(stand_in)
    assert (done.returncode != 0) == bool(where), done.stdout + done.stderr
    assert told in done.stdout


def modules_of_lib(tree: ast.Module) -> set[str]:
    """Names that stand for something of lib in a file."""
    imports = [x for x in ast.walk(tree) if isinstance(x, ast.ImportFrom) and str(x.module).split(".")[0] == "lib"]
    return {alias.asname or alias.name for x in imports for alias in x.names}


def hidden_names(tree: ast.Module) -> list[int]:
    """Lines on which an attribute is asked of an imported name of lib in a way that keys cannot follow."""
    calls = [x for x in ast.walk(tree) if isinstance(x, ast.Call) and isinstance(x.func, ast.Name) and x.args]
    asks = [x for x in calls if isinstance(x.func, ast.Name) and x.func.id in ("getattr", "vars", "setattr")]
    return [x.lineno for x in asks if isinstance(x.args[0], ast.Name) and x.args[0].id in modules_of_lib(tree)]


def test_names_of_lib_are_written_out() -> None:
    assert {str(p.relative_to(ROOT)): found for p in MODULES if (found := hidden_names(ast.parse(p.read_text())))} == {}
    assert hidden_names(ast.parse("from lib import stats\nname = 'x'\ngetattr(stats, name)()\n")) == [3]


# ---------------------------------------------------------------------------------------------------------------- sizes


IN_ALL = 8_200  # lines of lib, all its files together, once it holds all that the report is to do


def too_large(paths: list[Path]) -> Iterator[str]:
    """Files above 400 lines, classes above 200, and more than :data:`IN_ALL`: limits that are never raised."""
    lines = {path: len(path.read_text().splitlines()) for path in paths}
    for path, count in lines.items():
        if count > 400:
            yield f"{path.name}: {count} lines"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.end_lineno and node.end_lineno - node.lineno >= 200:
                yield f"{path.name}: class {node.name}"
    if sum(lines.values()) > IN_ALL:
        yield f"{sum(lines.values())} lines in all"


def test_lib_is_small() -> None:
    assert list(too_large(MODULES)) == []


def test_what_is_too_large_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("x = 1\n" * 401)
    (tmp_path / "wide.py").write_text("class Wide:\n" + "    x = 1\n" * 200)
    (tmp_path / "fits.py").write_text("class Fits:\n" + "    x = 1\n" * 199 + "x = 1\n" * 200)
    paths = sorted(tmp_path.iterdir())
    assert list(too_large(paths)) == ["long.py: 401 lines", "wide.py: class Wide"]
    assert list(too_large([tmp_path / "fits.py"])) == []
    many = [tmp_path / f"{n}.py" for n in range(21)]
    for path in many:
        path.write_text("x = 1\n" * 400)
    assert list(too_large(many)) == ["8400 lines in all"]


def named_notebooks(tree: ast.Module) -> list[str]:
    """Strings that begin as the name of a notebook or of its results does."""
    strings = (x.value for x in ast.walk(tree) if isinstance(x, ast.Constant))
    return [x for x in strings if isinstance(x, str) and re.match(r"0\d_", x)]


def test_lib_knows_no_notebook() -> None:
    assert {p.name: found for p in MODULES if (found := named_notebooks(ast.parse(p.read_text())))} == {}
    assert named_notebooks(ast.parse("x = f'02_{name}'\ny = '10_x'\nz = ['05_sweep', 'in 05_']")) == ["02_", "05_sweep"]


# ------------------------------------------------------------------------------------------------------------ the wheel


def lacking(folder: Path) -> set[str]:
    """Files of ``lib`` in a folder that the wheel built there does not hold."""
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(folder / "dist")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(folder / "dist" / done.stdout.split()[-1]) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("lib/")}
    files = [p for p in (folder / "lib").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return {path.relative_to(folder).as_posix() for path in files} - held


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What a wheel is built from, as a copy, since building writes beside it."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_a_built_wheel_holds_every_package_and_file(sources: Path) -> None:
    assert len(list((sources / "lib").rglob("*.*"))) > 30
    assert lacking(sources) == set()


def test_a_package_left_out_of_the_wheel_is_noticed(sources: Path) -> None:
    project = (sources / "pyproject.toml").read_text()
    listed = '[tool.setuptools]\npackages = ["lib", "lib.lm", "lib.sae", "lib.report"]\n'
    old = re.sub(r"\[tool\.setuptools\.packages\.find\]\n(?:.+\n)+", listed, project)
    assert old != project
    (sources / "pyproject.toml").write_text(old)
    assert "lib/probes/__init__.py" in lacking(sources)


# ---------------------------------------------------------------------------------------------- clean code, environment


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


def test_notebooks_call_what_is_there() -> None:
    """Names and arguments of lib's functions in every cell, which otherwise only a whole run shows."""
    notebooks = [str(path) for path in sorted((ROOT / "notebooks").glob("*.py"))]
    command = [sys.executable, "-m", "mypy", "--ignore-missing-imports", *notebooks]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert f"checked {len(notebooks)} source files" in done.stdout or "Success" in done.stdout, (
        done.stdout + done.stderr
    )
    wrong = [line for line in done.stdout.splitlines() if re.search(r"\[(attr-defined|call-arg|name-defined)\]", line)]
    assert not wrong, wrong


def requirement_names(lines: list[str]) -> set[str]:
    return {re.split(r"[<>=\[;~! ]", line.strip())[0].lower().replace("_", "-") for line in lines if line.strip()}


def test_one_environment() -> None:
    """pyproject, constraints, environment.yml and the Makefile install the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = requirement_names(sum(project["optional-dependencies"].values(), project["dependencies"]))
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if not x.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[^ +]+", line) for line in lines), "every line pins one release"
    assert wanted <= requirement_names(lines)
    assert "torch==2.13.0" in lines
    # On lines of their own: pip reads no option beside a requirement.
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"] == ["python>=3.11,<3.14", "pip", {"pip": ["-c constraints.txt", "-e .[dev]"]}]
    make = (ROOT / "Makefile").read_text()
    assert "-c constraints.txt -e '.[dev]'" in make
    assert project["requires-python"] == ">=3.11,<3.14"


def test_constraints_are_what_is_installed() -> None:
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
    if not (ROOT / ".git").exists():
        pytest.skip("no .git, so nothing says what is committed")
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


def make(folder: Path, python: str, *more: str) -> subprocess.CompletedProcess[str]:
    """``make .venv/installed`` in a folder that has the Makefile, with a Python of one's own."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    given = ["make", ".venv/installed", f"PYTHON={python}", *more]
    return subprocess.run(given, capture_output=True, text=True, cwd=folder, check=False)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_another_python_is_refused_in_one_line(tmp_path: Path) -> None:
    old = script(tmp_path / "old", 'test "$1" = --version && echo Python 3.10.4')
    done = make(tmp_path, old)
    told = done.stderr.splitlines()
    assert done.returncode == 2 and not (tmp_path / ".venv").exists()
    assert told[0].startswith("error: Python 3.11, 3.12 or 3.13 is needed, found Python 3.10.4: install one")
    assert "found none" in make(tmp_path, "").stderr


def test_a_moved_folder_or_another_python_gets_a_new_environment(tmp_path: Path) -> None:
    """Links, the editable install and the scripts in .venv name the folder; nothing in there survives either change."""
    venv = 'test "$1" != -m || { rm -rf .venv; mkdir -p .venv/bin; printf "#!/bin/sh\\n" > .venv/bin/python; chmod +x .venv/bin/python; }'
    pythons = [script(tmp_path / v, f'test "$1" = --version && echo Python {v}; {venv}') for v in ("3.11.1", "3.12.2")]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    assert make(here, pythons[0]).returncode == 0
    mark = here / ".venv" / "mark"
    mark.touch()
    assert make(here, pythons[0]).returncode == 0 and mark.exists()
    here.rename(there)
    assert make(there, pythons[0]).returncode == 0 and not (there / ".venv" / "mark").exists()
    (there / ".venv" / "mark").touch()
    assert make(there, pythons[1]).returncode == 0 and not (there / ".venv" / "mark").exists()
