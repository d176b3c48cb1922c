"""What a notebook shows: figures with captions, tables, data text that stays text, code of ``lib``, and the facts that its sentences rest on."""

import ast
import base64
import html
import inspect
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure
from PIL import Image

from lib import config, store

MARK = "> **Not so in this run.** This sentence is about the committed one: "  # what a failed expectation shows
WORDS = 40  # of a caption, at most


def banner(profile: str, overrides: Mapping[str, Any]) -> Markdown | None:
    """What stands at the top of a page that is not the report's own; None on one that is."""
    changes = "".join(f", {name} = {literal(str(value))}" for name, value in overrides.items())
    said = (
        f"> **Made at profile {literal(profile)}{changes}**, not at `report`: the numbers are this run's, the sentences are "
        "about the committed one. Where a finding does not hold here, the page says so."
    )
    return Markdown(said) if profile != "report" or overrides else None


def expect(fact: bool, sentence: str) -> None:
    """State the fact that a sentence beside it rests on. Where it is false the page is marked; a ``report`` run with such a mark is not promoted."""
    if not fact:
        display(Markdown(f"{MARK}{sentence}"))


def publish(figure: Figure, name: str, caption: str, alt: str) -> None:
    """Write ``figure`` as ``<build>/<profile>/figures/<name>.png``, record caption and alternative text, and show all three; one figure a cell, as the site has
    one alternative text a cell. ValueError if the caption is longer than :data:`WORDS`, or there is no alternative text."""
    if len(caption.split()) > WORDS or not alt.strip():
        raise ValueError(f"{name}: a caption of {len(caption.split())} words ({WORDS} at most), alt text {alt!r}")
    path = config.build_dir() / store.active().profile / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    Image.open(path).convert("RGB").quantize().save(path, optimize=True)  # a third of the size, same bytes every time
    plt.close(figure)
    said = json.dumps({"caption": caption, "alt": alt}, ensure_ascii=False)
    store.write_atomic(path.with_suffix(".json"), f"{said}\n")
    picture = {"image/png": base64.b64encode(path.read_bytes()).decode(), "text/plain": name}
    display(picture, raw=True, metadata={"image/png": {"alt": alt}})
    display(Markdown(f"**Figure {name}.** {caption}"))


def source(thing: Any) -> Markdown:
    """The code of a function or class of ``lib`` as it runs, without docstrings."""
    text, said = textwrap.dedent(inspect.getsource(thing)), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            said |= {*range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}
    code = "\n".join(line for number, line in enumerate(text.splitlines(), 1) if number not in said)
    where = Path(inspect.getfile(inspect.unwrap(thing))).relative_to(config.ROOT).as_posix()
    return Markdown(f"```python\n# {where}\n{code}\n```")


def interval(entry: Mapping[str, Any], value: str = "auroc", digits: int = 3) -> str:
    """ "0.987 [0.981, 0.992]"."""
    low, high = entry.get(f"{value}_interval", entry.get("interval"))
    return f"{entry[value]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def share(value: float | None) -> str:
    """ "93 %"; blank where there is none."""
    return "" if value is None else f"{value:.0%}"


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> Markdown:
    """A Markdown table; cells are text already, pipes in them escaped."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return Markdown("\n".join(lines))


def literal(text: str) -> str:
    """Data text for a Markdown cell: every character that could be markup, in Markdown or in HTML, is an entity."""
    return "<code>" + "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in text) + "</code>"


def latent(sae: str, number: int) -> str:
    """HTML of a latent's number, a link to its card in the site's latent browser; ``sae`` as notebook 03 calls it there."""
    return f'<a href="latents.html#{html.escape(sae)}-{number:d}">{number:d}</a>'


def card(title: str, contexts: Mapping[str, Sequence[Mapping[str, Any]]], link: str = "") -> HTML:
    """A latent's strongest contexts {side: [{tokens, values}]}, activations as background, under its :func:`latent` and a title. All text
    of data is escaped."""
    top = max((v for side in contexts.values() for c in side for v in c["values"]), default=1.0) or 1.0
    parts = [f"<p><b>{link and f'Latent {link}: '}{html.escape(title)}</b></p>"]
    for side, shown in contexts.items():
        parts.append(f"<div><i>{html.escape(side)}</i><ul>{'' if shown else '<li>never fires</li>'}")
        for context in shown:
            shares = [0.75 * max(0.0, value) / top for value in context["values"]]
            tokens = zip(shares, map(html.escape, context["tokens"]), strict=True)
            marked = (f'<span style="background:rgba(230,159,0,{share:.2f})">{token}</span>' for share, token in tokens)
            parts.append(f"<li><code>…{''.join(marked)}…</code></li>".replace("\n", "⏎"))
        parts.append("</ul></div>")
    return HTML(f'<div class="latent-card" style="background:#fff;color:#222;padding:0.6em">{"".join(parts)}</div>')
