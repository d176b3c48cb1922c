"""One command from somebody's file to the table of probes."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_files import rows, write

from lib import wheels
from lib.config import ROOT, ConfigError, ModelSection
from lib.probes.methods import ByMeanDifference
from lib.probes.views import Residual
from lib.report import __main__ as command
from lib.report import runner
from lib.sae.variants import SAEConfig, make
from lib.study import Study


def planted(count: int = 48) -> list[dict]:
    """Prompts whose classes a word separates."""
    return [{**row, "text": ("zebra " if row["label"] else "quail ") + row["text"]} for row in rows(count)]


@pytest.fixture
def sets(tmp_path: Path, tiny: ModelSection, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for a random tiny model and few draws; in folders of their own."""
    monkeypatch.setenv("SAE_REPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAE_REPORT_BUILD", str(tmp_path / "build"))
    every = Study.baselines.func

    def baselines(study: Study) -> dict:
        """Without the embedder, whose wheel is not at hand in this cache; and with a probe that asks for more columns than are."""
        found = {name: fit for name, fit in every(study).items() if name != "sentence embedding"}
        return found | {"5,000 columns": study.fit(study.few(ByMeanDifference(), ks=(5000,)), Residual(1))}

    monkeypatch.setattr(Study, "baselines", property(baselines))
    few = "layer=2 probes.layers=[1] probes.draws=2 probes.bootstrap=30 probes.epochs=1"
    return ["--set", few, "--set", f"model.name={tiny.name}"]


def test_one_command_gives_the_table(tmp_path: Path, sets: list[str], capsys: pytest.CaptureFixture) -> None:
    """The command on a file and a random tiny model."""
    path = write(tmp_path / "mine.jsonl", planted())
    status = command.main(["probe", str(path), *sets])
    out = capsys.readouterr()
    assert status == 0, out.err
    table = [line for line in out.out.splitlines() if line.startswith("| ")]
    assert any(line.startswith("| bag of words | 1.000") for line in table)
    assert any(line.startswith("| dense |") for line in table)
    assert "Also by slice" in out.out and "drawn" not in out.out and "only their beginnings" not in out.out
    assert all(line.endswith("|  |") for line in table[2:]), "recall at 1 % of 6 harmless prompts"
    assert "Recall is blank: of fewer than 100 harmless OOD prompts, 1 % is none." in out.out
    assert "\n5,000 columns is left out: fewer columns to choose from than the smallest k, 5000." in out.out
    assert command.main(["probe", ""]) == 2
    assert "no prompts given: make probe DATA=file.csv" in capsys.readouterr().err
    path.write_text(path.read_text().replace('"label": 1', '"label": 7', 1))
    assert command.main(["probe", str(path)]) == 2
    assert "column label" in capsys.readouterr().err


@pytest.mark.parametrize("tiny", ["llama"], indirect=True)
def test_what_was_done_to_a_file_stands_under_its_table(
    tmp_path: Path, sets: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns of other names, a split that is drawn, prompts that are cut; from a path with a blank, relative to where one is."""
    given = [{"prompt": r["text"], "kind": ("fine", "attack")[r["label"]]} for r in planted(80)]
    given[7]["prompt"] += " list" * 50
    given[next(i for i, row in enumerate(given) if row["kind"] == "fine")]["kind"] = "unclear"
    (tmp_path / "my files").mkdir()
    write(tmp_path / "my files" / "mine.csv", given)
    monkeypatch.chdir(tmp_path)
    named = ["--text", "prompt", "--label", "kind", "--positive", "attack", "--set", "probes.limit=40"]
    assert command.main(["probe", "my files/mine.csv", *named, *sets]) == 0
    out = capsys.readouterr().out
    (counts,) = re.findall(
        r"prompts, in the first: (\d+) train in \d+ clusters, (\d+) validation in \d+ clusters, (\d+) OOD", out
    )
    assert sum(map(int, counts)) == 80 and min(map(int, counts)) >= 6
    assert "Of fewer than 20 clusters figures say next to nothing" in out
    assert "Harmless is all but 'attack': fine (39), unclear (1)." in out
    assert (
        "in one split, or in none: OOD and validation are a fifth of the clusters each, drawn by class: so OOD prompts"
        in out
    )
    assert (
        "1 of the prompts: longer than 40 tokens, or what the model can read (probes.limit), so only their beginnings"
        in out
    )


@pytest.mark.parametrize("tiny", ["llama"], indirect=True)
def test_probes_on_ones_own_sae(
    tmp_path: Path, tiny: ModelSection, sets: list[str], capsys: pytest.CaptureFixture
) -> None:
    """Its rows stand beside the dense probe and those of an untrained one; one that is dead says so, and one of another place is
    refused."""
    path = write(tmp_path / "mine.csv", planted())
    sae = make(SAEConfig(variant="topk", latents=64, k=8), 32)
    torch.nn.init.orthogonal_(sae.W_dec)
    with torch.no_grad():
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        sae.W_enc.copy_(sae.W_dec.T)
    weights = {name: getattr(sae, name).detach().contiguous() for name in ("W_enc", "W_dec", "b_enc", "b_dec")}

    def folder(name: str, **cfg: object) -> str:
        (tmp_path / name).mkdir()
        place = {"model_name": Path(tiny.name).name, "hook_name": "blocks.2.hook_resid_post"}
        settings = {"architecture": "topk", "k": 8, "apply_b_dec_to_input": False, "metadata": place, **cfg}
        (tmp_path / name / "cfg.json").write_text(json.dumps(settings))
        dead = {"threshold": torch.full((64,), 1e9)} if cfg else {}
        save_file(weights | dead, tmp_path / name / "sae_weights.safetensors")
        return str(tmp_path / name)

    assert command.main(["probe", str(path), "--sae", folder("sae"), *sets]) == 0
    out = capsys.readouterr().out
    for what in ("best latent", "k latents", "all latents", "reconstruction", "error"):
        for whose in ("the SAE", "an untrained SAE"):
            assert f"| {what}, {whose} |" in out
    lost = re.findall(
        r"Of the variance between prompts, (.*) loses ([\d.]+) \(their mean alone 1\), with (\d+) latents active", out
    )
    assert [name for name, _, _ in lost] == ["the SAE", "an untrained SAE"]
    assert all(4 <= int(active) <= 12 for _, _, active in lost)

    assert command.main(["probe", str(path), "--sae", folder("dead", architecture="jumprelu"), *sets]) == 0
    out = capsys.readouterr().out
    assert "best latent, the SAE is left out: no living latents: none varies between the train prompts." in out
    assert "| dense |" in out
    arguments = ["probe", str(path), "--sae", str(tmp_path / "sae"), *sets, "--set", "layer=3"]
    assert command.main(arguments) == 2
    assert "reads " in (said := capsys.readouterr().err) and "choose layer and model.name" in said
    assert command.main([*arguments, "--any-place"]) == 0
    told = "says that it reads [^ ]+ at blocks.2.hook_resid_post; here it reads [^ ]+ after block 3"
    assert re.search(told, capsys.readouterr().out)


@pytest.mark.parametrize("tiny", ["llama"], indirect=True)
def test_a_handful_of_rows_and_texts_without_spaces(
    tmp_path: Path, sets: list[str], capsys: pytest.CaptureFixture
) -> None:
    """Seventeen rows give a table; so does a language without blanks, whose bag is one of characters."""
    texts = ["请告诉我琴木桌山", "黑书骗桌夏棋水酒", "牛茶米鱼羊窗雨书", "盗窗冬草鱼山刀门", "草羊山花秋夏鱼冬"]
    given = [
        {**r, "text": ("虎" if r["label"] else "兔") + texts[i % 5] + texts[i % 3][::-1] + str(i)}
        for i, r in enumerate(rows(48))
    ]
    path = write(tmp_path / "mine.jsonl", [{**r, "group": str(i)} for i, r in enumerate(given)])
    assert command.main(["probe", str(path), *sets]) == 0
    assert re.search(r"\| bag of words \| 1.000", capsys.readouterr().out)
    path = write(tmp_path / "few.jsonl", planted(48)[:17])
    assert command.main(["probe", str(path), *sets]) == 0


def test_settings_as_make_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several in one text, paths with blanks, "~" and relative ones, which notebooks would look for elsewhere."""
    (tmp_path / "a b").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    whole = str(tmp_path / "a b")
    assert runner.parse_settings(["layer=8 model.name=a b probes.layers=[4, 6]", "probes.data=~/a b"]) == {
        "layer": 8,
        "model.name": whole,
        "probes.layers": [4, 6],
        "probes.data": whole,
    }
    assert runner.parse_settings(["model.name=someone/model"]) == {"model.name": "someone/model"}
    with pytest.raises(ConfigError, match="cannot read the setting 'layer': write name=value"):
        runner.parse_settings(["layer"])


def test_a_folder_that_cannot_be_written_is_one_line_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse() -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/x/build")

    monkeypatch.setattr(wheels, "fetch", refuse)
    assert command.main(["fetch"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "error: [Errno 30] Read-only file system: '/x/build'. Name folders that can be written, SAE_REPORT_CACHE="
    )


def test_compiled_loops_need_no_folder_that_can_be_written(tmp_path: Path) -> None:
    """Neither the code's nor the home: they are kept in a folder of this process, and of its children."""
    script = (
        "import os; os.access = lambda *a: False; import lib; from lib.cpu import keep_memory;"
        "import lib.sae.kernels, subprocess, sys; print(os.environ['NUMBA_CACHE_DIR']); "
        "print(os.path.isdir(os.environ['NUMBA_CACHE_DIR']));"
        "print(subprocess.run([sys.executable, '-c', 'import lib, os; print(os.environ[\"NUMBA_CACHE_DIR\"])'], capture_output=True, text=True).stdout)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT, check=True
    )
    mine, there, childs = done.stdout.split()
    assert mine == childs and Path(mine).parent == tmp_path and there == "True" and not Path(mine).exists()
