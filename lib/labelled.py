"""Anyone's labelled prompts as probes want them, from a file or from the hub.

A file has a row for each prompt, with the columns *text*, *label* (1 or harmful, 0 or harmless) and *split* (train, val or
ood), and if you have them *group* (prompts that must not be parted, e.g. a prompt and its jailbroken copies; by default
clusters of near-duplicates, in which a long jailbreak's text ties all its prompts together: then give groups), *slice* (a
kind of prompt to report on its own) and *id*. CSV, JSON lines and parquet are told apart by the ending;
``hub:owner/name`` is a data set of the Hugging Face hub, whose own splits serve if it has no such column.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib import prompts, sources, store
from lib.probes.protocol import Labels, LeakError

LABELS = {"1": 1, "1.0": 1, "true": 1, "harmful": 1, "0": 0, "0.0": 0, "false": 0, "harmless": 0, "benign": 0}
SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "dev": "val", "ood": "ood", "test": "ood"}
LONGEST = 100_000  # characters of a prompt


class DataError(ValueError):
    """A prompt file that cannot be used; names row and column, and says what to do."""


def digest(where: str) -> str:
    """SHA-256 of a file, so that a changed file is another artifact; of the name for a hub data set.

    Raises:
        DataError: there is no such file.
    """
    if where.startswith("hub:"):
        return hashlib.sha256(where.encode()).hexdigest()
    try:
        return hashlib.sha256(Path(where).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(
            f"cannot read {where}: {error.strerror}. Give a CSV, JSONL or parquet file, or hub:owner/name"
        ) from None


def rows_of(where: str) -> list[dict[str, Any]]:
    """The rows of a file or hub data set, as they come.

    Raises:
        DataError: it cannot be read; says where.
    """
    path = Path(where)
    if where.startswith("hub:"):
        return _hub_rows(where.removeprefix("hub:"))
    if path.suffix in (".parquet", ".pq"):
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise DataError(f"{path.name} is no parquet file: {error}") from None
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise DataError(f"{path.name}, line {reader.line_num}: {error}") from None
        for number, row in enumerate(rows, 2):
            if None in row or None in row.values():
                raise DataError(
                    f"{path.name}, row {number}: it does not have the header's {len(reader.fieldnames or ())} fields"
                )
        return rows
    if path.suffix in (".jsonl", ".ndjson"):
        found = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path.name}, row {number}: no JSON ({error})") from None
                if not isinstance(row, dict):
                    raise DataError(
                        f"{path.name}, row {number}: each line must be an object with text, label and split"
                    )
                found.append(row)
        return found
    raise DataError(f"{path.name}: the ending must be .csv, .jsonl or .parquet")


def _hub_rows(name: str) -> list[dict[str, Any]]:
    import datasets

    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # the hub client raises many types; all mean the same here
        raise DataError(f"cannot load hub data set {name!r}: {error}") from None
    return [{"split": split, **row} for split, part in found.items() for row in part]


def examples_of(rows: Sequence[dict[str, Any]], name: str) -> list[prompts.Example]:
    """Checked examples of rows; ``name`` is for messages.

    Raises:
        DataError: a row's column is missing or has a value that cannot be used.
        LeakError: a group, or a near-duplicate, is in more than one split.
    """
    if not rows:
        raise DataError(f"{name} holds no rows")
    if missing := {"text", "label", "split"} - set(rows[0]):
        raise DataError(f"{name} lacks the column {', '.join(sorted(missing))}; it has {', '.join(map(str, rows[0]))}")
    checked = [_row(row, f"{name}, row {number}") for number, row in enumerate(rows, 1)]
    texts = [row["text"] for row in checked]
    given = [row["group"] for row in checked]
    if any(given) and not all(given):
        number = given.index("") + 1
        raise DataError(f"{name}, row {number}, column group: empty, but other rows have one; fill in all or none")
    clusters = prompts.clusters(texts).tolist()
    numbers = {group: number for number, group in enumerate(dict.fromkeys(given))}
    groups = [numbers[group] for group in given] if any(given) else clusters
    examples = [
        prompts.Example(
            text=row["text"],
            label=row["label"],
            split=row["split"],
            slice=row["slice"],
            transform="plain",
            base=row["id"] or str(number),
            group=group,
        )
        for number, (row, group) in enumerate(zip(checked, groups, strict=True), 1)
    ]
    _refuse_leaks(checked, groups, texts, name)
    try:
        Labels.of(examples)
    except LeakError:
        raise
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None
    return examples


def _row(row: dict[str, Any], where: str) -> dict[str, Any]:
    text = row.get("text")
    if not isinstance(text, str) or not sources.clean(text).strip():
        raise DataError(f"{where}, column text: {_shown(text)} is no text")
    if len(text) > LONGEST:
        raise DataError(f"{where}, column text: {len(text):,} characters, at most {LONGEST:,} are taken")
    label = LABELS.get(str(row.get("label")).strip().lower())
    if label is None:
        raise DataError(f"{where}, column label: {_shown(row.get('label'))} is neither 1 or harmful, nor 0 or harmless")
    split = SPLIT_NAMES.get(str(row.get("split")).strip().lower())
    if split is None:
        raise DataError(f"{where}, column split: {_shown(row.get('split'))} is none of train, val, ood")
    other = {key: str(row[key]).strip() if row.get(key) is not None else "" for key in ("group", "slice", "id")}
    if not re.fullmatch(r"[\w .,:+()/'-]{0,60}", other["slice"]):
        raise DataError(f"{where}, column slice: {_shown(other['slice'])} must be up to 60 letters, digits and spaces")
    kind = other["slice"] or ("harmful" if label else "harmless")
    return {"text": sources.clean(text), "label": label, "split": split, **other, "slice": kind}


def _shown(value: Any) -> str:
    return repr(value if not isinstance(value, str) else value[:40])


def _refuse_leaks(rows: Sequence[dict[str, Any]], groups: Sequence[int], texts: Sequence[str], name: str) -> None:
    what = "of one group" if rows[0]["group"] else "near-duplicates"
    first: dict[int, int] = {}
    for number, (row, group) in enumerate(zip(rows, groups, strict=True)):
        before = first.setdefault(group, number)
        if rows[before]["split"] != row["split"]:
            raise LeakError(
                f"{name}: rows {before + 1} and {number + 1} are {what} and in different splits "
                f"({rows[before]['split']}, {row['split']}): keep them in one split, or say in a column group what belongs together"
            )
    seen: dict[str, int] = {}
    for number, text in enumerate(texts):  # clusters of our own hold these; given groups may not
        before = seen.setdefault(" ".join(text.lower().split()), number)
        if rows[before]["split"] != rows[number]["split"]:
            raise LeakError(
                f"{name}: rows {before + 1} and {number + 1} have the same text and are in different splits "
                f"({rows[before]['split']}, {rows[number]['split']}): keep one of them"
            )


@store.cached
def prompt_file(out: Path, where: str, content: str) -> None:
    """Step: somebody's prompts as ``examples.jsonl``; ``content`` is their :func:`digest`."""
    examples = examples_of(rows_of(where), where if where.startswith("hub:") else Path(where).name)
    text = "".join(example.model_dump_json() + "\n" for example in examples)
    (out / "examples.jsonl").write_text(text, encoding="utf-8")
