"""Read by ``make lab``'s JupyterLab: saving a notebook changes no more than was edited."""

import copy
from pathlib import PurePath
from typing import Any

import nbformat

from lib.report import notebooks

c = get_config()  # type: ignore[name-defined]  # noqa: F821


def _plain(model: dict[str, Any], path: str, **_: Any) -> None:
    """The metadata that is committed, in place of what this kernel and this version of JupyterLab write; of the report's own."""
    if model["type"] == "notebook" and PurePath(path).stem in notebooks.names():
        plain = nbformat.from_dict(copy.deepcopy(model["content"]))  # the content itself is saved as .py after it
        plain.metadata = nbformat.from_dict(notebooks.metadata(plain))
        for cell in plain.cells:
            cell.metadata.pop("lines_to_next_cell", None)  # how the .py is laid out
        model["content"] = plain


c.FileContentsManager.pre_save_hook = _plain
