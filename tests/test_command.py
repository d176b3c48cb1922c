"""One command from somebody's file to the table of probes."""

from pathlib import Path

import pytest
from test_files import rows, write

from lib.config import ModelSection
from lib.probes.methods import ByMeanDifference
from lib.probes.views import Residual
from lib.report import __main__ as command
from lib.study import Study


def test_one_command_gives_the_table(
    tmp_path: Path, tiny: ModelSection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The command on a file and a random tiny model; a planted word separates the classes."""
    found = rows(48)
    for row in found:
        row["text"] = ("zebra " if row["label"] else "quail ") + row["text"]
    path = write(tmp_path / "mine.jsonl", found)
    monkeypatch.setenv("SAE_REPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAE_REPORT_BUILD", str(tmp_path / "build"))
    every = Study.baselines.func

    def baselines(study: Study) -> dict:
        """Without the embedder, whose wheel is not at hand in this cache; and with a probe that asks for more columns than are."""
        found = {name: fit for name, fit in every(study).items() if name != "sentence embedding"}
        return found | {"5,000 columns": study.fit(study.few(ByMeanDifference(), (5000,)), Residual(1))}

    monkeypatch.setattr(Study, "baselines", property(baselines))
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
    assert any(line.startswith("| bag of words | 1.000") for line in table)
    assert any(line.startswith("| dense |") for line in table)
    assert "Also by slice" in out.out
    assert "\n5,000 columns is left out: fewer columns to choose from than the smallest k, 5000." in out.out
    assert command.main(["probe", ""]) == 2
    assert "no prompts given: make probe DATA=file.csv" in capsys.readouterr().err
    path.write_text(path.read_text().replace('"label": 1', '"label": 7', 1))
    assert command.main(["probe", str(path)]) == 2
    assert "column label" in capsys.readouterr().err
