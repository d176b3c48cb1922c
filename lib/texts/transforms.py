"""Jailbreaks and innocuous transforms of base prompts: rows of ``data/transforms.yaml``, Jinja templates in a sandbox."""

import functools
import hashlib
import json
import random
from typing import Any, Literal

from jinja2 import Template
from jinja2.sandbox import SandboxedEnvironment
from pydantic.dataclasses import dataclass

from lib.texts import sources
from lib.texts.sources import Source


@dataclass(frozen=True, config=sources.STRICT)
class Transform:
    """Rewrites a base prompt. ``label`` None keeps the base prompt's label; ``split`` says where it is used."""

    name: str
    kind: Literal["plain", "jailbreak", "innocuous"]
    split: Literal["train", "ood", "both"]
    template: str | Source  # Jinja: {{ prompt }} and what the last two give
    label: Literal[0, 1] | None = None
    suffixes: Source | None = None  # {{ suffix }} is one of them
    errands: tuple[str, ...] = ()  # four of them and the prompt are {{ items }}, at {{ place }} the prompt


def every() -> dict[str, Transform]:
    """All rows of ``data/transforms.yaml`` by name, in its order; SourceError if one does not fit."""
    return sources.made("transforms.yaml", _row)


def _row(name: str, source: str = "", suffixes: str = "", **given: Any) -> Transform:
    rows = sources.rows("wheels", *filter(None, (source, suffixes)))
    if source:
        given["template"] = rows[source]
    return Transform(name=name, suffixes=rows.get(suffixes), **given)


_texts = functools.cache(lambda source: [record["text"] for record in sources.records(source)])


@functools.cache
def _compiled(template: str | Source) -> Template:
    return SandboxedEnvironment().from_string(template if isinstance(template, str) else _texts(template)[0])


def apply(transform: Transform, text: str, seed: int) -> str:
    """``text`` under ``transform``; random choices depend on (seed, name of the transform, text) only."""
    key = json.dumps([seed, transform.name, text]).encode()
    rng = random.Random(hashlib.sha256(key).digest())  # noqa: S311 - no secret
    given: dict[str, Any] = {"prompt": text}
    if transform.suffixes:
        given["suffix"] = rng.choice(_texts(transform.suffixes))
    if transform.errands:
        items = rng.sample(transform.errands, 4)
        place = rng.randrange(5)
        given |= {"items": [*items[:place], text, *items[place:]], "place": place + 1}
    return sources.clean(_compiled(transform.template).render(given).strip())
