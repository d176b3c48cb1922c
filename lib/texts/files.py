"""Anyone's labelled prompts as probes want them, from a file (:data:`READERS`, also with ``.gz``) or from the hub.

Columns are *text*, *label* (:data:`LABELS`) and, if you have them, *split* (train, val, ood), *group* (prompts that must not be
parted, e.g. a prompt and its jailbroken copies; by default clusters of near-duplicates, in which a long jailbreak's text ties all
its prompts together: then give groups), *slice* (a kind of prompt to report on its own) and *id*. What there is no split of is
drawn by cluster (:func:`lacking`). A data set of the hub, ``hub:owner/name``, lends its own splits if it has no such column.
"""

import codecs
import csv
import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import huggingface_hub
import numpy as np
import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from lib import store
from lib.config import Expected
from lib.texts import likeness, sources
from lib.texts.examples import Example, Labels, Split, TooFew, write

HARMFUL, HARMLESS = "1 1.0 true yes harmful unsafe jailbreak", "0 0.0 false no harmless safe benign"
LABELS = {word: label for label, words in ((1, HARMFUL), (0, HARMLESS)) for word in words.split()}
SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "dev": "val", "ood": "ood", "test": "ood"}
DRAWN = 0.2  # share of the clusters of each class that a drawn split holds
LONGEST = 100_000  # characters of a prompt
SHOWN = 10  # faults of a file that are told

Given = dict[str, Any] | str  # a row as it comes, or why it is none
Fault = tuple[Any, str]  # where it sorts among others, and what is told


class Named(NamedTuple):
    """What a file calls its columns, and which label is harmful, all others being harmless ("": by :data:`LABELS`)."""

    text: str = "text"
    label: str = "label"
    positive: str = ""


NAMED = Named()


class DataError(Expected, ValueError):
    """A prompt file that cannot be used; names rows (the first row of data is row 1) and columns, and says what to do."""


def digest(where: str) -> str:
    """SHA-256 of a file, so that a changed file is another artifact; of a hub data set's name and, if it can be asked for, its
    commit. DataError if there is no such file."""
    try:
        data = where.encode() if where.startswith("hub:") else Path(where).read_bytes()
    except OSError as error:
        remedy = "Give a CSV, JSON or parquet file, or hub:owner/name"
        raise DataError(f"cannot read {where}: {error.strerror}. {remedy}") from None
    if where.startswith("hub:"):
        with suppress(Exception):  # without a connection, what is in the hub's cache is read
            data += str(huggingface_hub.dataset_info(where.removeprefix("hub:")).sha).encode()
    return hashlib.sha256(data).hexdigest()


def _text(data: bytes) -> str:
    """Decoded as its byte order mark says, or as UTF-8."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig")


def _csv(data: bytes) -> Iterator[Given]:
    """By our own loop: pandas fills short rows up, and does not say which row it cannot read."""
    text = _text(data)
    header, _, rest = text.partition("\n")
    if header.startswith("sep="):  # as spreadsheets write it
        text, header = rest, rest.partition("\n")[0]
    fields = {mark: len(next(csv.reader([header], delimiter=mark, skipinitialspace=True), ())) for mark in ",;\t|"}
    csv.field_size_limit(2**31 - 1)  # a text that is too long is told like any other fault
    delimiter = max(fields, key=fields.__getitem__)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    if twice := _twice(reader.fieldnames or ()):
        raise ValueError(twice)  # the last would win
    try:
        for row in reader:
            whole = None not in row and None not in row.values()
            yield row if whole else f"it does not have the header's {len(reader.fieldnames or ())} fields"
    except csv.Error as error:
        yield str(error)  # of the row that was being read; what follows cannot be


def _twice(columns: Iterable[Any]) -> str:
    """What is wrong with names of columns of which two are one (:func:`_name`); empty ones may be many."""
    names = [_name(column) for column in columns]
    found = sorted({name for name in names if name and names.count(name) > 1})
    return f"two columns are named {found[0]!r}: rename one" if found else ""


def _name(column: Any) -> str:
    """A column's name as it is compared: without blanks around it, in small letters."""
    return str(column).strip().lower()


def _json(data: bytes) -> Iterable[Given]:
    """A list of objects, columns as pandas writes them, or JSON lines."""
    try:
        found = json.loads(_text(data))
    except ValueError:
        return _json_lines(data)
    if isinstance(found, dict) and all(isinstance(column, dict | list) for column in found.values()):
        return pd.DataFrame(found).to_dict("records")  # a ValueError if columns differ in length
    return [_object(row) for row in (found if isinstance(found, list) else [found])]


def _json_lines(data: bytes) -> Iterator[Given]:
    for line in filter(str.strip, _text(data).split("\n")):
        try:
            yield _object(json.loads(line))
        except ValueError as error:
            yield f"no JSON ({error})"


def _object(row: Any) -> Given:
    return row if isinstance(row, dict) else "it is no object with text and label"


def _parquet(data: bytes) -> Iterable[Given]:
    return pd.read_parquet(io.BytesIO(data)).to_dict("records")


READERS = {".csv": _csv, ".tsv": _csv, ".json": _json, ".jsonl": _json_lines, ".ndjson": _json_lines}
READERS |= {".parquet": _parquet, ".pq": _parquet}


def rows_of(where: str) -> list[Given]:
    """The rows of a file or hub data set, as they come; DataError if it cannot be read."""
    path = Path(where)
    name = path.name.lower()
    reader = READERS.get(Path(name.removesuffix(".gz")).suffix)
    try:
        if where.startswith("hub:"):
            found = sources.hub_data(where.removeprefix("hub:"), {})
            return [{"split": split, **row} for split, part in found.items() for row in part]
        if reader is None:
            endings = ", ".join(READERS)
            raise DataError(f"{path.name}: the ending must be one of {endings}, or one of them and .gz; save it as CSV")
        data = path.read_bytes()
        return list(reader(gzip.decompress(data) if name.endswith(".gz") else data))
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not {error.encoding} at byte {error.start}: save it as UTF-8") from None
    except (sources.SourceError, OSError, EOFError, ValueError, RecursionError, csv.Error, zlib.error) as error:
        raise DataError(f"{where if where.startswith('hub:') else path.name} cannot be read: {error}") from None


def _known(names: dict[str, Any]) -> BeforeValidator:
    return BeforeValidator(lambda value: names.get(str(value).strip().lower()))


Word = Annotated[str, BeforeValidator(lambda value: "" if value is None else sources.clean(str(value)).strip())]
Prompt = Annotated[str, BeforeValidator(lambda value: sources.clean(value) if isinstance(value, str) else value)]


class Row(BaseModel):
    """A row that can be used; empty cells are None. A description says what a value is that does not fit."""

    model_config = ConfigDict(regex_engine="python-re")
    text: Prompt = Field(max_length=LONGEST, pattern=r"(?s).*\S", description=f"no text of 1 to {LONGEST:,} characters")
    label: Annotated[Literal[0, 1], _known(LABELS)] = Field(description="neither 1 or harmful, nor 0 or harmless")
    split: Annotated[Split, _known(SPLIT_NAMES)] = Field(description="none of train, val, ood")
    group: Word
    slice: Word = Field(pattern=r"\A[\w .,:+()/'-]{0,60}\Z", description="not of up to 60 letters, digits and spaces")
    id: Word


def _fault(column: str, called: str, value: Any) -> str:
    long = isinstance(value, str) and len(value) > 40
    begun = f"{value[:40]!r}… ({len(value):,} characters)" if long else repr(value)
    shown = "an empty cell" if value is None else begun
    return f"column {called}: {shown} is {Row.model_fields[column].description}"


def _cell(value: Any) -> Any:
    """None for what a table holds where nothing was filled in: NaN, as a number or as it is written, or blanks. Whole numbers
    without a point: a column with an empty cell has one in some formats."""
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() else value
    return None if isinstance(value, str) and value.strip().lower() in ("", "nan") else value


def _cells(row: dict[str, Any], named: Named, open_: Sequence[str]) -> dict[str, Any]:
    """A row under our names of columns."""
    given = {_name(column): value for column, value in row.items()}
    cells = {column: _cell(given.get(_name(named._asdict().get(column, column)))) for column in Row.model_fields}
    if named.positive and cells["label"] is not None:
        cells["label"] = int(str(cells["label"]).strip().lower() == named.positive.strip().lower())
    if len(open_) == 2 and ("split" not in given or _split(row) is not None):
        cells["split"] = "train"
    return cells


def _split(row: dict[str, Any]) -> str | None:
    given = {_name(column): value for column, value in row.items()}
    return SPLIT_NAMES.get(str(given.get("split")).strip().lower())


def lacking(rows: Sequence[Given]) -> list[str]:
    """Splits that are drawn from train by cluster: those that no row is in, ood and val where all rows are in one."""
    given = {_split(row) for row in rows if isinstance(row, dict)} - {None}
    return [name for name in ("ood", "val") if name not in given or len(given) == 1]


def _joined(rows: Sequence[Row], groups: Sequence[int]) -> list[int]:
    """Groups, those that share a text as one: else draws of the split would part it."""
    number: dict[str, int] = {}
    folded = [number.setdefault(text, len(number)) for text in _folded(rows)]
    links = sparse.coo_matrix((np.ones(len(rows)), (groups, folded)), (len(rows), len(rows)))
    return connected_components(sparse.bmat([[None, links], [links.T, None]]), directed=False)[1][groups].tolist()


def _draw(rows: Sequence[Row], groups: Sequence[int], which: Sequence[str]) -> list[Row]:
    """Rows once the splits of ``which`` are drawn from train, by cluster and class."""
    split, group = np.array([row.split for row in rows], "U5"), np.array(groups)
    inside, rng = split == "train", np.random.default_rng(0)
    free = np.unique(group[inside])
    harmful = np.isin(free, group[np.array([row.label == 1 for row in rows], bool)])
    for mine in (rng.permutation(free[harmful == kind]) for kind in (True, False)):
        count = max(1, round(DRAWN * len(mine)))
        for number, name in enumerate(which):
            split[inside & np.isin(group, mine[number * count : (number + 1) * count])] = name
    return [row.model_copy(update={"split": str(name)}) for row, name in zip(rows, split, strict=True)]


def examples_of(rows: Sequence[Given], name: str, named: Named = NAMED) -> list[Example]:
    """Checked examples of rows, splits that are :func:`lacking` drawn; DataError of ``name`` tells all that cannot be used:
    columns and values, texts under both labels, groups or near-duplicates in two splits."""
    if not rows:
        raise DataError(f"{name} holds no rows")
    first = next((row for row in rows if isinstance(row, dict)), None)
    has = [str(column).strip() for column in first or ()]
    if twice := _twice(has):
        raise DataError(f"{name}: {twice}")
    if first and (missing := {x for x in (named.text, named.label) if _name(x) not in map(_name, has)}):
        remedy = "name yours: --text COLUMN --label COLUMN"
        raise DataError(f"{name} lacks the column {', '.join(sorted(missing))}; it has {', '.join(has)}: {remedy}")
    open_, checked, faults = lacking(rows), dict[int, Row](), list[Fault]()
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            faults.append((number, f"row {number}: {row}"))
            continue
        cells = _cells(row, named, open_)
        try:
            checked[number] = Row.model_validate(cells)
        except ValidationError as error:
            for column in (str(e["loc"][0]) for e in error.errors()):
                told = _fault(column, named._asdict().get(column, column), cells[column])
                faults.append((number, f"row {number}, {told}"))
    if named.positive and not any(row.label for row in checked.values()):
        raise DataError(f"{name}: no row has {named.positive!r} in the column {named.label}")
    bare = [number for number, row in checked.items() if not row.group]
    if 0 < len(bare) < len(checked):
        why = "empty, but other rows have one; fill in all or none"
        faults += [(number, f"row {number}, column group: {why}") for number in bare]
    good = list(checked.values())
    groups = np.unique([row.group for row in good], return_inverse=True)[1].tolist()
    if bare:
        groups = likeness.clusters([row.text for row in good]).tolist()
    conflicts = _conflicts(list(checked), good, groups, "near-duplicates" if bare else "of one group")
    if faults or conflicts:
        remedy = ": give a text one label and one split, or groups of your own, one a row where rows only look alike"
        said = f"{name}, {_listed(faults + conflicts)}{remedy if conflicts else ''}"
        words = _words(rows, named)
        if not named.positive and words and not any(word.lower() in LABELS for word in words):
            said += f"; which label is harmful, --positive says: {', '.join(words)} are there"
        raise DataError(said)
    groups = _joined(good, groups)
    if open_ and 2 * (most := max(np.bincount(groups))) > len(groups):
        told = f"{most:,} of {len(groups):,} rows are of one group, or near-duplicates of one another as a template makes them"
        raise DataError(f"{name}: {told}, so that no split can be drawn: give a column split, or group")
    good = _draw(good, groups, open_) if open_ else good
    examples = [
        Example(
            **row.model_dump(include={"text", "label", "split"}),
            slice=row.slice or ("harmful" if row.label else "harmless"),
            transform="plain",
            base=row.id or str(number),
            group=group,
        )
        for number, row, group in zip(checked, good, groups, strict=True)
    ]
    try:
        Labels.of(examples)
    except TooFew as error:
        drawn = f"; {' and '.join(open_)} were drawn, from {len(set(groups))} clusters" if open_ else ""
        raise DataError(f"{name}: {error}{drawn}") from None
    return examples


def _words(rows: Sequence[Given], named: Named) -> dict[str, int]:
    """How often each label but the harmful one stands in a file, the most frequent first."""
    labels = (_cells(row, named._replace(positive=""), ())["label"] for row in rows if isinstance(row, dict))
    words = (str(label).strip() for label in labels if label is not None)
    counts = Counter(word for word in words if word.lower() != named.positive.strip().lower())
    return dict(counts.most_common(SHOWN))


def _folded(rows: Sequence[Row]) -> list[str]:
    return [" ".join(row.text.lower().split()) for row in rows]


def _conflicts(numbers: Sequence[int], rows: Sequence[Row], groups: Sequence[int], what: str) -> list[Fault]:
    """Rows of one cluster, or of one text, in two splits; texts under both labels."""
    found: dict[tuple[int, int], Fault] = {}
    folded = _folded(rows)
    kinds = (  # clusters of our own hold equal texts; given groups may not
        (folded, "label", "have the same text under both labels"),
        (groups, "split", f"are {what} and in different splits"),
        (folded, "split", "have the same text and are in different splits"),
    )
    for marks, column, told in kinds:
        first: dict[Any, tuple[int, Any]] = {}
        for number, row, mark in zip(numbers, rows, marks, strict=True):
            value = getattr(row, column)
            before, other = first.setdefault(mark, (number, value))
            if value != other:
                found.setdefault((before, number), (before, f"rows {before} and {number} ({other}, {value}) {told}"))
    return list(found.values())


def _listed(faults: Sequence[Fault]) -> str:
    found = [told for _, told in sorted(faults)]
    more = f"; and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


@store.cached
def prompt_file(out: Path, where: str, content: str, named: Named = NAMED) -> None:
    """Step: somebody's prompts as ``examples.jsonl``, ``content`` their :func:`digest`; ``told.json`` has what :func:`told` reads."""
    rows, name = rows_of(where), where if where.startswith("hub:") else Path(where).name
    if not where.startswith("hub:") and digest(where) != content:
        raise DataError(f"{name} has changed since it was named: run again")
    write(out, examples_of(rows, name, named))
    about = {"drawn": lacking(rows), "harmless": _words(rows, named) if named.positive else {}}
    (out / "told.json").write_text(json.dumps(about), encoding="utf-8")


@store.result
def told(prompts: store.Artifact) -> dict[str, Any]:
    """Step: {drawn: the splits of a :func:`prompt_file` that were drawn; harmless: words that are taken for harmless because another was
    named the harmful one, and how often}."""
    return json.loads((prompts.path / "told.json").read_text(encoding="utf-8"))
