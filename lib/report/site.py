"""The HTML site: Sphinx, myst-nb and furo over the executed notebooks. Its pages load nothing from another host."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from lib import config
from lib.report import notebooks
from lib.report.notebooks import ReportError

SETTINGS = {
    "project": "SAEs on a real task",
    "html_title": "SAEs on a real task",
    "extensions": ["myst_nb", "lib.report.site"],
    "html_theme": "furo",
    "html_math_renderer": "mathml",
    "myst_enable_extensions": ["dollarmath"],
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "nb_render_markdown_format": "myst",  # computed tables and links between pages
    "nb_code_prompt_show": "show the code",  # of cells tagged hide-input
    "nb_code_prompt_hide": "hide the code",
    "html_static_path": ["_static"],
    "html_css_files": ["report.css"],
    "html_show_sphinx": False,
    "html_show_copyright": False,
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "suppress_warnings": ["mystnb.unknown_mime_type"],
}


def _formula(translator: Any, node: Any) -> None:
    inline = isinstance(node, nodes.math)
    said = convert(node.astext(), display="inline" if inline else "block")
    translator.body.append(said if inline else f'<div class="math">{said}</div>')
    raise nodes.SkipNode


def _describe(app: Any, document: Any) -> None:
    for image in document.findall(nodes.image):
        image["alt"] = app.config.figure_alts.get(Path(image["uri"]).stem, "")


def setup(app: Any) -> dict[str, Any]:
    """Sphinx extension: formulas as MathML, so that no page needs a script from elsewhere; figures with their alt texts, which
    myst-nb does not read, by the hash that it names files after."""
    app.add_config_value("figure_alts", {}, "env")
    app.connect("doctree-read", _describe)
    app.add_html_math_renderer("mathml", (_formula, None), (_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _alts(notebook: Any) -> dict[str, str]:
    """{SHA-256 of a picture: what it shows}."""
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    hashes = (hashlib.sha256(base64.b64decode(o.data["image/png"])).hexdigest() for o in pictures)
    return {hash: o.metadata.get("image/png", {}).get("alt", "") for hash, o in zip(hashes, pictures, strict=True)}


def build(profile: str) -> Path:
    """Build the site of the executed notebooks of ``profile``; returns its index page.

    Raises:
        ReportError: a notebook was not executed, or Sphinx warned.
    """
    folder = config.build_dir() / profile
    source, out = folder / "site-source", folder / "site"
    for old in (source, out):
        shutil.rmtree(old, ignore_errors=True)
    (source / "_static").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("report.css"), source / "_static" / "report.css")
    first, *others = sorted(notebooks.names())
    listed, alts = [*others], dict[str, str]()
    speed = config.ROOT / "data" / "bench.md"
    if speed.is_file():  # measured by make bench, by no notebook
        (source / "speed.md").write_text(f"# Speed\n\n{speed.read_text(encoding='utf-8')}", encoding="utf-8")
        listed.append("speed")
    for name in (first, *others):
        executed = folder / "notebooks" / f"{name}.ipynb"
        if not executed.is_file():
            raise ReportError(f"{name} was not executed at profile {profile}: run make report PROFILE={profile}")
        notebook = nbformat.read(executed, as_version=4)
        alts |= _alts(notebook)
        for cell in notebook.cells:  # the summary is the site's first page
            cell.source = cell.source.replace(f"({first}.ipynb)", "(index.ipynb)")
        if name == first:
            pages = "\n".join(listed)
            notebook.cells.append(nbformat.v4.new_markdown_cell(f"```{{toctree}}\n:hidden:\n{pages}\n```"))
        nbformat.write(notebook, source / f"{'index' if name == first else name}.ipynb")
    messages, doctrees = io.StringIO(), folder / "site-doctrees"
    with docutils_namespace():
        app = Sphinx(
            source, None, out, doctrees, "html", SETTINGS | {"figure_alts": alts}, status=None, warning=messages
        )
        app.build(force_all=True)
    if said := re.sub(r"\x1b\[[0-9;]*m", "", messages.getvalue()).strip():
        raise ReportError(f"the site has warnings: {said}")
    if app.statuscode:
        raise ReportError(f"Sphinx ended with status {app.statuscode}")
    return out / "index.html"
