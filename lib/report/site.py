"""The HTML site: Sphinx, myst-nb and furo over the executed notebooks. Its pages load nothing from another host."""

import io
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import yaml
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from lib import config
from lib.report import notebooks
from lib.report.notebooks import ReportError


def _formula(translator: Any, node: Any) -> None:
    inline = isinstance(node, nodes.math)
    said = convert(node.astext(), display="inline" if inline else "block")
    translator.body.append(said if inline else f'<div class="math">{said}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """Sphinx extension: formulas as MathML, so that no page needs a script from elsewhere."""
    app.add_html_math_renderer("mathml", (_formula, None), (_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def build(profile: str) -> Path:
    """Build the site of a profile's executed notebooks; returns its index page. ReportError if a cell has two figures, or Sphinx warned."""
    folder = config.build_dir() / profile
    source, out = folder / "site-source", folder / "site"
    for old in (source, out):
        shutil.rmtree(old, ignore_errors=True)
    source.mkdir(parents=True)
    speed = config.ROOT / "data" / "bench.md"
    if speed.is_file():  # measured by make bench, by no notebook
        (source / "speed.md").write_text(f"# Speed\n\n{speed.read_text(encoding='utf-8')}", encoding="utf-8")
    names = sorted(notebooks.names())
    for name in names:
        notebook = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:  # what its picture shows, where myst-nb reads it
            outputs = cell.get("outputs", [])
            shown = [output.metadata["image/png"] for output in outputs if "image/png" in output.get("metadata", {})]
            if len(shown) > 1:
                raise ReportError(f"{name}: two figures in one cell, which has one text to describe them: split it")
            if shown:
                cell.metadata["mystnb"] = {"image": dict(shown[0])}
        if name == names[0]:
            notebook.cells.append(nbformat.v4.new_markdown_cell("```{toctree}\n:hidden:\n:glob:\n*\n```"))
        nbformat.write(notebook, source / f"{name}.ipynb")
    settings = yaml.safe_load(Path(__file__).with_name("site.yaml").read_text(encoding="utf-8"))
    settings |= {"root_doc": names[0], "html_static_path": [str(Path(__file__).with_name("report.css"))]}
    settings["html_extra_path"] = [*map(str, folder.glob("attached"))]  # pages of their own, which notebooks made
    messages = io.StringIO()
    with docutils_namespace():
        app = Sphinx(source, None, out, folder / "site-doctrees", "html", settings, status=None, warning=messages)
        app.build(force_all=True)
    if said := re.sub(r"\x1b\[[0-9;]*m", "", messages.getvalue()).strip():
        raise ReportError(f"the site has warnings: {said}")
    return Path(shutil.copy(out / f"{names[0]}.html", out / "index.html"))  # the summary is the first page
