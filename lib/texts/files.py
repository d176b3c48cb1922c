"""Anyone's labelled prompts as probes want them, from a file or from the hub.

A file (CSV, JSON lines or parquet, by its ending) has a row for each prompt, with the columns *text*, *label* (1 or harmful,
0 or harmless) and *split* (train, val or ood), and if you have them *group* (prompts that must not be parted, e.g. a prompt
and its jailbroken copies; by default clusters of near-duplicates, in which a long jailbreak's text ties all its prompts
together: then give groups), *slice* (a kind of prompt to report on its own) and *id*. ``hub:owner/name`` is a data set of the
Hugging Face hub, whose own splits serve if it has no such column.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow
import pyarrow.parquet
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lib import store
from lib.config import Expected
from lib.texts import likeness, sources
from lib.texts.examples import Example, Labels, LeakError, Split, TooFew, write

LABELS = {"1": 1, "1.0": 1, "true": 1, "harmful": 1, "0": 0, "0.0": 0, "false": 0, "harmless": 0, "benign": 0}
SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "dev": "val", "ood": "ood", "test": "ood"}
LONGEST = 100_000  # characters of a prompt
SHOWN = 10  # faults of a file that are told

Given = dict[str, Any] | str  # a row as it comes, or why it is none


class DataError(Expected, ValueError):
    """A prompt file that cannot be used; names rows (the first row of data is row 1) and columns, and says what to do."""


def digest(where: str) -> str:
    """SHA-256 of a file, so that a changed file is another artifact; of the name for a hub data set. Or DataError."""
    try:
        data = where.encode() if where.startswith("hub:") else Path(where).read_bytes()
    except OSError as error:
        remedy = "Give a CSV, JSONL or parquet file, or hub:owner/name"
        raise DataError(f"cannot read {where}: {error.strerror}. {remedy}") from None
    return hashlib.sha256(data).hexdigest()


def _csv(data: bytes) -> Iterator[Given]:
    reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    try:
        for row in reader:
            whole = None not in row and None not in row.values()
            yield row if whole else f"it does not have the header's {len(reader.fieldnames or ())} fields"
    except csv.Error as error:
        yield str(error)  # of the row that was being read; what follows cannot be


def _json_lines(data: bytes) -> Iterator[Given]:
    for line in filter(str.strip, data.decode("utf-8-sig").split("\n")):
        try:
            row = json.loads(line)
        except ValueError as error:
            yield f"no JSON ({error})"
        else:
            yield row if isinstance(row, dict) else "each line must be an object with text, label and split"


def _parquet(data: bytes) -> Iterable[Given]:
    return pyarrow.parquet.read_table(pyarrow.BufferReader(data)).to_pylist()


READERS = {".csv": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet, ".pq": _parquet}


def rows_of(where: str) -> list[Given]:
    """The rows of a file or hub data set, as they come; DataError if it cannot be read."""
    path = Path(where)
    try:
        if where.startswith("hub:"):
            found = sources.hub_data(where.removeprefix("hub:"), {})
            return [{"split": split, **row} for split, part in found.items() for row in part]
        if path.suffix not in READERS:
            raise DataError(f"{path.name}: the ending must be .csv, .jsonl or .parquet")
        return list(READERS[path.suffix](path.read_bytes()))
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except (sources.SourceError, pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{where if where.startswith('hub:') else path.name} cannot be read: {error}") from None


def _known(names: dict[str, Any]) -> BeforeValidator:
    return BeforeValidator(lambda value: names.get(str(value).strip().lower()))


Word = Annotated[str, BeforeValidator(lambda value: "" if value is None else sources.clean(str(value)).strip())]
Prompt = Annotated[str, BeforeValidator(lambda value: sources.clean(value) if isinstance(value, str) else value)]


class Row(BaseModel):
    """A row that can be used; empty cells are None."""

    model_config = ConfigDict(regex_engine="python-re")

    # A description says what a value is that does not fit.
    text: Prompt = Field(max_length=LONGEST, pattern=r"(?s).*\S", description=f"no text of 1 to {LONGEST:,} characters")
    label: Annotated[Literal[0, 1], _known(LABELS)] = Field(description="neither 1 or harmful, nor 0 or harmless")
    split: Annotated[Split, _known(SPLIT_NAMES)] = Field(description="none of train, val, ood")
    group: Word
    slice: Word = Field(pattern=r"\A[\w .,:+()/'-]{0,60}\Z", description="not of up to 60 letters, digits and spaces")
    id: Word


def _fault(column: str, value: Any) -> str:
    long = isinstance(value, str) and len(value) > 40
    shown = f"{value[:40]!r}… ({len(value):,} characters)" if long else repr(value)
    return f"column {column}: {shown} is {Row.model_fields[column].description}"


def _cell(value: Any) -> Any:
    """None for what a table holds where nothing was filled in: NaN, as a number or as it is written."""
    return None if value != value or (isinstance(value, str) and value.strip().lower() == "nan") else value


def examples_of(rows: Sequence[Given], name: str) -> list[Example]:
    """Checked examples of rows; DataError of ``name`` tells all columns and values that cannot be used, LeakError all groups
    or near-duplicates in two splits."""
    if not rows:
        raise DataError(f"{name} holds no rows")
    first = next((row for row in rows if isinstance(row, dict)), None)
    if first and (missing := {"text", "label", "split"} - set(first)):
        raise DataError(f"{name} lacks the column {', '.join(sorted(missing))}; it has {', '.join(map(str, first))}")
    checked: dict[int, Row] = {}
    faults: list[tuple[int, str]] = []
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            faults.append((number, f"row {number}: {row}"))
            continue
        cells = {column: _cell(row.get(column)) for column in Row.model_fields}
        try:
            checked[number] = Row.model_validate(cells)
        except ValidationError as error:
            wrong = [str(e["loc"][0]) for e in error.errors()]
            faults += [(number, f"row {number}, {_fault(column, cells[column])}") for column in wrong]
    bare = [number for number, row in checked.items() if not row.group]
    if 0 < len(bare) < len(checked):
        why = "empty, but other rows have one; fill in all or none"
        faults += [(number, f"row {number}, column group: {why}") for number in bare]
    if faults:
        raise DataError(f"{name}, {_listed(faults)}")

    good = list(checked.values())
    numbers = {group: number for number, group in enumerate(dict.fromkeys(row.group for row in good))}
    groups = likeness.clusters([row.text for row in good]).tolist() if bare else [numbers[row.group] for row in good]
    _refuse_leaks(good, groups, "near-duplicates" if bare else "of one group", name)
    examples = [
        Example(
            **row.model_dump(include={"text", "label", "split"}),
            slice=row.slice or ("harmful" if row.label else "harmless"),
            transform="plain",
            base=row.id or str(number),
            group=group,
        )
        for (number, row), group in zip(checked.items(), groups, strict=True)
    ]
    try:
        Labels.of(examples)
    except TooFew as error:
        raise DataError(f"{name}: {error}") from None
    return examples


def _listed(faults: Iterable[tuple[Any, str]]) -> str:
    found = [told for _, told in sorted(faults)]
    more = f"; and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _refuse_leaks(rows: Sequence[Row], groups: Sequence[int], what: str, name: str) -> None:
    found: dict[tuple[int, int], str] = {}
    folded = [" ".join(row.text.lower().split()) for row in rows]
    # Clusters of our own hold equal texts; given groups may not.
    for marks, why in ((groups, f"are {what} and"), (folded, "have the same text and are")):
        first: dict[Any, tuple[int, str]] = {}
        for number, (row, mark) in enumerate(zip(rows, marks, strict=True), 1):
            before, split = first.setdefault(mark, (number, row.split))
            if split != row.split:
                told = f"rows {before} and {number} {why} in different splits ({split}, {row.split})"
                found.setdefault((before, number), told)
    if found:
        remedy = "keep them in one split, or say in a column group what belongs together"
        raise LeakError(f"{name}: {_listed(found.items())}: {remedy}")


@store.cached
def prompt_file(out: Path, where: str, content: str) -> None:
    """Step: somebody's prompts as ``examples.jsonl``; ``content`` is their :func:`digest`."""
    write(out, examples_of(rows_of(where), where if where.startswith("hub:") else Path(where).name))
