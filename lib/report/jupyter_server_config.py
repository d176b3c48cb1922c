"""Read by ``make lab``'s JupyterLab: saving a notebook changes no more than was edited."""

from pathlib import PurePath
from typing import Any

import nbformat

from lib.report import notebooks

c = get_config()  # type: ignore[name-defined]  # noqa: F821


def _plain(model: dict[str, Any], path: str, **_: Any) -> None:
    """The metadata that is committed, in place of what this kernel and this version of JupyterLab write; of the report's own."""
    if model["type"] == "notebook" and PurePath(path).stem in notebooks.names():
        model["content"]["metadata"] = notebooks.metadata(nbformat.from_dict(model["content"]))


c.FileContentsManager.pre_save_hook = _plain
