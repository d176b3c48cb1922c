"""Notebook sources (``notebooks/NN_name.py``, Jupytext py:percent) and the executed ``.ipynb`` beside each, which carries its
outputs in a normal form: fixed cell ids, no timings, no machine paths, no injected parameters."""

from collections.abc import Iterable
from itertools import count, zip_longest
from pathlib import Path, PurePath
from typing import Any

import jupytext
import nbformat

from lib import config, pages
from lib.store import digest

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


class ReportError(config.Expected, RuntimeError):
    """A step of the report that failed; says where and what to do."""


def folder() -> Path:
    """Where the notebook sources are."""
    return config.ROOT / "notebooks"


def names() -> list[str]:
    """Notebook names ("00_summary", ...) in the order they are run: the summary last, since it draws on all."""
    found = sorted(path.stem for path in folder().glob("[0-9][0-9]_*.py"))
    return [*found[1:], *found[:1]]


def source(name: str) -> Any:
    """The source of a notebook as a notebook node; ReportError if there is no such notebook."""
    path = folder() / f"{name}.py"
    if not path.is_file():
        raise ReportError(f"no notebook {name!r}: there are {', '.join(sorted(names()))}")
    notebook = jupytext.read(path)
    notebook.metadata.setdefault("kernelspec", KERNEL)
    return notebook


def normalise(notebook: Any) -> Any:
    """A copy in normal form: what is committed. Executed twice, a notebook gives the same bytes if it shows the same."""
    out = nbformat.from_dict(notebook)
    out.cells = [cell for cell in out.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    counts = count(1)
    for number, cell in enumerate(out.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = {"tags": tags} if (tags := cell.metadata.get("tags")) else {}
        if cell.get("execution_count") is not None:
            cell.execution_count = next(counts)
        for output in cell.get("outputs", []):
            if "execution_count" in output:
                output.execution_count = cell.execution_count
            if "metadata" in output:  # what a picture shows, for those who do not see it
                said = output.metadata.items()
                output.metadata = {kind: {"alt": m["alt"]} for kind, m in said if isinstance(m, dict) and "alt" in m}
    # With a hash of its cells, by which an edit is noticed.
    known = {"inputs": inputs(out), "kernelspec": KERNEL, "language_info": {"name": "python"}}
    out.metadata = nbformat.from_dict(known)
    out.nbformat, out.nbformat_minor = 4, 5
    return out


def saved(model: dict[str, Any], path: str, **_: Any) -> None:
    """Hook of ``make lab``'s JupyterLab: saves the report's own notebooks in normal form, so that no more changes than was edited."""
    if model["type"] == "notebook" and PurePath(path).stem in names():
        model["content"] = normalise(model["content"])  # a copy: the content itself is saved as .py after it


def _read(path: Path) -> Any:
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:  # as of a merge that left its marks
        said = str(error).partition("\n")[0][:100]
        raise ReportError(f"{path} cannot be read ({said}): mend it, or take the committed one from git") from None


def _cells(notebook: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(c.cell_type, c.source.strip(), tuple(sorted(c.metadata.get("tags", [])))) for c in notebook.cells]


def differences(name: str, executed: Path) -> list[str]:
    """What tells an executed notebook from its source, by type, source and tags of the cells; empty when they agree."""
    if not executed.is_file():
        return [f"{executed.name} is missing: run make report"]
    mine, theirs = _cells(source(name)), _cells(_read(executed))
    unlike = [number for number, (a, b) in enumerate(zip_longest(mine, theirs)) if a != b]
    return [f"{name}: cell {n} of the .py differs from the executed .ipynb: run make report" for n in unlike]


def inputs(notebook: Any) -> str:
    """Hash of a notebook's cells by type, source and tags."""
    return digest(_cells(notebook))


def refuse_lost_edits(which: Iterable[str]) -> None:
    """ReportError if an ``.ipynb`` was edited, by the hash that it holds, and its ``.py`` says other things: what is run, opened in
    JupyterLab or promoted is the ``.py``, and the edit would be written over."""
    for name in which:
        path = folder() / f"{name}.ipynb"
        executed, text = _read(path) if path.is_file() else source(name), source(name)
        then = executed.metadata.get("inputs")
        if inputs(executed) not in (then, inputs(text)):
            take = f"take them over with .venv/bin/jupytext --to py:percent notebooks/{name}.ipynb"
            merge = f"the .py may have been edited too: take them over by hand, cell by cell, then delete {name}.ipynb"
            said = f"{name}.ipynb holds edits that {name}.py lacks, which would be lost"
            raise ReportError(f"{said}: {take if inputs(text) == then else merge}")


def failed(executed: Path) -> list[str]:
    """Sentences of an executed notebook that its numbers do not bear out, each after the notebook's name."""
    texts = (
        str(output.get("data", {}).get("text/markdown", ""))
        for cell in _read(executed).cells
        for output in cell.get("outputs", [])
    )
    return [f"{executed.stem}: {text.removeprefix(pages.MARK)}" for text in texts if text.startswith(pages.MARK)]
