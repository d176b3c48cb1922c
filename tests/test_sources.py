"""Rows of data/sources.yaml: what they hold, what they give, what their keys hold."""

import bz2
import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from lib import config, store, wheels
from lib.texts import sources

TABLE = yaml.safe_load((config.ROOT / "data" / "sources.yaml").read_text())


def names(kind: str) -> list[str]:
    return [name for name, row in TABLE.items() if kind in row]


def lines(name: str) -> sources.Lines:
    return sources.Lines(name=name, wheel="w", members=("m",), hashes=())


def parsed(kind: type[sources.Packaged], data: bytes) -> list[sources.Record]:
    return list(kind(name="n", wheel="w", members=(), hashes=()).parse(data))


@pytest.mark.parametrize("kind", ["wheels", "hub"])
def test_every_row_holds_its_pins(kind: sources.Kind) -> None:
    for name, row in sources.rows(kind, *names(kind)).items():
        assert row.name == name
        if isinstance(row, sources.Packaged):
            assert row.members
            pins = [wheels.member_hash(row.wheel, member) for member in row.members]
            assert row.hashes == (*pins, wheels.wheel_hash(row.wheel))
        else:
            assert isinstance(row, sources.Hub)
            assert "text" in row.columns
    assert all(row["role"] for row in TABLE.values())


def test_without_a_hub_row_the_wheel_is_read() -> None:
    assert sources.rows("hub", "refusal_pairs") == sources.rows("wheels", "refusal_pairs")
    with pytest.raises(sources.SourceError, match="exists on the hub only: set sources='hub'"):
        sources.rows("wheels", "benign_instructions")


def test_pinned_counts() -> None:
    """The counts that the data sheet states."""
    counts = {"harmbench": 200, "advbench": 520, "do_not_answer": 243, "refusal_pairs": 300, "overrefusal": 150}
    counts["gcg_suffixes"] = 13
    found = {name: sources.records(row) for name, row in sources.rows("wheels", *counts, "sensitive_benign").items()}
    assert len({r["text"] for r in found.pop("sensitive_benign")}) == 69
    assert {name: len(rows) for name, rows in found.items()} == counts
    assert sum(r["harmful"] for r in found["refusal_pairs"]) == 150


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parser": "x"}, "unexpected keyword argument 'parser'"),
        ({"wheels": {"format": "Lines", "wheel": "w", "members": ["m"]}}, "m is not listed for w"),
        ({"wheels": {"format": "Lists", "wheel": "w", "members": []}}, "KeyError: 'Lists'"),
        ({"hub": {"hub": "a/b", "options": {}, "columns": {}, "splits": "x"}}, "splits: Unexpected keyword argument"),
        ({"hub": {"hub": "a/b", "options": {}, "columns": ["text"]}}, "columns: Input should be a valid dict"),
    ],
)
def test_a_row_that_does_not_fit_is_one_error(monkeypatch: pytest.MonkeyPatch, change: dict, message: str) -> None:
    monkeypatch.setattr(sources, "_table", lambda file: {"mine": {"role": "r"} | change})
    with pytest.raises(sources.SourceError, match=message) as caught:
        sources.rows("hub", "mine")
    assert "\n" not in str(caught.value)
    with pytest.raises(sources.SourceError, match=r"unknown row 'nope': data/sources.yaml has mine"):
        sources.rows("wheels", "nope")


def test_a_key_holds_pins_and_the_code_of_one_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of chosen objectives is one source's; another format's parser is nobody else's."""
    found = sources.rows("wheels", "chat", "sensitive_benign", "harmbench")
    chosen = found["sensitive_benign"]
    keys = {name: store.canonical(row) for name, row in found.items()}
    assert isinstance(chosen, sources.Objectives)
    assert len(set(chosen.chosen)) == 69
    assert chosen.chosen[0] in str(keys["sensitive_benign"])
    assert chosen.chosen[0] not in str(keys["harmbench"])
    for row in found.values():
        for field in dataclasses.fields(row):
            value = getattr(row, field.name)
            other = value + "x" if isinstance(value, str) else value[:-1]
            assert store.canonical(dataclasses.replace(row, **{field.name: other})) != store.canonical(row)
    reached = {name: set(store.keys.reached("lib.texts.sources", type(row).__name__)) for name, row in found.items()}
    formats = {f"lib.texts.sources.{name}" for name in sources.FORMATS}
    for name, row in found.items():
        assert reached[name] & formats == {f"lib.texts.sources.{type(row).__name__}"}
        assert "lib.wheels.read_member" in reached[name]
        assert not {"lib.texts.sources.rows", "lib.texts.sources.FORMATS"} & reached[name]


def test_sharegpt_cut_mid_string() -> None:
    turns = [{"from": "human", "value": "hi there"}, {"from": "gpt", "value": "hello"}]
    rows = [
        {"id": "a_0", "conversations": turns},
        {"id": "a_1", "conversations": turns},  # a later piece of the same conversation
        {"id": "b_0", "conversations": turns[::-1]},  # the assistant begins
        {"id": "c_0", "conversations": [*turns, {"from": "system", "value": "x"}, *turns]},
        {"id": "d_0", "conversations": turns},
    ]
    text = json.dumps(rows)
    found = parsed(sources.ShareGPT, text[: text.rindex('"hello"') + 4].encode() + b"\xf0\x9f")
    assert [r["id"] for r in found] == ["a_0", "c_0"]
    assert found[1]["turns"] == [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "hello"}]


def test_text_is_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    class Given(sources.Source):
        def rows(self) -> list[sources.Record]:
            turns = [{"role": "user", "content": "a\x00b"}]
            return [{"text": "a\x00b\ud800c", "turns": turns}, {"text": "  "}, {"text": "d"}]

    found = sources.records(Given(name="n"))
    assert [(r["text"], r["id"]) for r in found] == [("a\ufffdb?c", "n-0"), ("d", "n-2")]
    assert found[0]["turns"][0]["content"] == "a\ufffdb"
    found[0]["text"].encode("utf-8")


def test_empty_source_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "read_member", lambda package, member: b"\n\n")
    with pytest.raises(sources.SourceError, match="'empty' holds no records"):
        sources.records(lines("empty"))


def local(file: Path, columns: dict[str, str], cache: Path) -> sources.Hub:
    """A file, read as a hub data set is."""
    options = {"data_files": str(file), "split": "train", "cache_dir": str(cache)}
    return sources.Hub(name="local", hub="json", options=options, columns=columns)


def test_hub_rows_give_the_same_records_from_local_files(tmp_path: Path) -> None:
    """Each hub row, pointed at a local file in that data set's schema, gives records like the wheels'."""
    for name, hub in sources.rows("hub", *names("hub")).items():
        assert isinstance(hub, sources.Hub)
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
        values = {"text": "How are you?", "id": "7", "turns": turns}
        row = {column: values[fieldname] for fieldname, column in hub.columns.items()}
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(row | {"unused": 1}) + "\n")
        (record,) = sources.records(local(file, hub.columns, tmp_path / "cache"))
        assert record["text"] == "How are you?"
        assert isinstance(record["id"], str)
        if "turns" in hub.columns:
            assert record["turns"] == turns


def test_hub_data_set_without_the_column(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"other": "x"}\n')
    with pytest.raises(sources.SourceError, match=r"lacks the columns \['text'\]"):
        sources.records(local(file, {"text": "text"}, tmp_path / "cache"))


def test_wikipedia_markup_is_dropped() -> None:
    page = (
        "<mediawiki><page><title>T</title><ns>0</ns><revision><text>'''Bold''' [[link|words]] "
        "&lt;ref&gt;SECRET [[File:y.png|INNER]]&lt;/ref&gt; &lt;!-- HIDDEN --&gt; [[File:x.png|thumb|CAPTION]] {{template}} "
        + "plain text goes on. " * 20
        + "\n== See also ==\n* END</text></revision></page></mediawiki>"
    )
    (record,) = parsed(sources.Wikipedia, bz2.compress(page.encode()))
    assert record["text"].startswith("Bold words")
    for word in ("SECRET", "INNER", "HIDDEN", "CAPTION", "template", "END", "See also"):
        assert word not in record["text"]
