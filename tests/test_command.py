"""One command from somebody's file to the table of probes."""

from pathlib import Path

from test_files import rows, write


def test_one_command_gives_the_table(tmp_path: Path, tiny, monkeypatch, capsys) -> None:
    """The command on a file and a random tiny model; a planted word separates the classes."""
    from lib.report import __main__ as command

    found = rows(48)
    for row in found:
        row["text"] = ("zebra " if row["label"] else "quail ") + row["text"]
    path = write(tmp_path / "mine.jsonl", found)
    monkeypatch.setenv("SAE_REPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAE_REPORT_BUILD", str(tmp_path / "build"))
    from lib.study import Study

    parts = Study._without_saes.func
    monkeypatch.setattr(  # the embedder's wheel is not at hand in this cache
        Study,
        "_without_saes",
        property(lambda self: {k: v for k, v in parts(self).items() if k != "sentence embedding"}),
    )
    sets = [
        "layer=2",
        "probes.layers=[1]",
        "probes.seeds=2",
        "probes.bootstrap=30",
        "probes.epochs=1",
        f"model.name={tiny.name}",
    ]
    status = command.main(["probe", str(path), *(x for s in sets for x in ("--set", s))])
    out = capsys.readouterr()
    assert status == 0, out.err
    table = [line for line in out.out.splitlines() if line.startswith("| ")]
    assert any(line.startswith("| bag of words | 1.000") for line in table) and any(
        line.startswith("| dense |") for line in table
    )
    assert "Also by slice" in out.out
    assert command.main(["probe", ""]) == 2
    assert "no prompts given: make probe DATA=file.csv" in capsys.readouterr().err
    path.write_text(path.read_text().replace('"label": 1', '"label": 7', 1))
    assert command.main(["probe", str(path)]) == 2
    assert "column label" in capsys.readouterr().err
