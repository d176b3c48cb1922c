"""The committed notebooks: paired with their sources, executed, and re-checked by nbval on results alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from drift import Tolerant, drift, figure_drift
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class
from traitlets.config.loader import JSONFileConfigLoader

from lib import config
from lib.report import __main__ as command
from lib.report import notebooks, promotion, runner

NAMES = sorted(notebooks.names())
MINIMUM = {"00": 5, "01": 9, "02": 30, "03": 8, "04": 9, "05": 7, "06": 20}  # outputs that nbval compares


def committed(name: str) -> Path:
    return config.ROOT / "notebooks" / f"{name}.ipynb"


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_is_that_of_its_source(name: str) -> None:
    assert notebooks.differences(name, committed(name)) == []


def test_an_edit_of_a_source_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(config.ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path / "notebooks")
    source, executed = (tmp_path / "notebooks" / f"01_training.{end}" for end in ("py", "ipynb"))
    assert notebooks.differences("01_training", executed) == []
    text = source.read_text()
    source.write_text(text.replace("study = open_study(", "study  = open_study("))
    (found,) = notebooks.differences("01_training", executed)
    assert "run make report" in found
    source.write_text(text + "\n# %%\n1 + 1\n")
    cells = sum(line.startswith("# %%") for line in text.splitlines())
    assert f"cell {cells} of the .py differs" in notebooks.differences("01_training", executed)[-1]
    executed.unlink()
    assert "missing" in notebooks.differences("01_training", executed)[0]


def test_an_edit_of_the_executed_notebook_alone_is_not_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As editors make it that know nothing of pairs: no run, promotion or JupyterLab goes on from the .py in silence."""
    shutil.copytree(config.ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path / "notebooks")
    source, executed = (tmp_path / "notebooks" / f"01_training.{end}" for end in ("py", "ipynb"))
    text, whole = source.read_text(), executed.read_text()
    notebooks.refuse_lost_edits(NAMES)
    source.write_text(text + "\n# %%\n1 + 1\n")
    notebooks.refuse_lost_edits(NAMES)  # the .py was edited: the usual way
    edited = nbformat.read(executed, as_version=4)
    edited.cells[3].source += "\nprint(1)"
    nbformat.write(edited, executed)
    with pytest.raises(notebooks.ReportError, match=r"the .py may have been edited too: take them over by hand"):
        notebooks.refuse_lost_edits(NAMES)
    source.write_text(text)
    monkeypatch.setattr(runner, "execute", None)
    for refusing in (lambda: runner.run("smoke", ["01_training"], {}, 60), command._lab, promotion.promote):
        with pytest.raises(
            notebooks.ReportError, match=r"01_training.ipynb holds edits that 01_training.py lacks.*jupytext"
        ):
            refusing()
    jupytext.write(edited, source, fmt="py:percent")  # both hold it now
    notebooks.refuse_lost_edits(NAMES)
    source.write_text(text)
    del edited.metadata["inputs"]  # it does not say which cells it was made of
    nbformat.write(edited, executed)
    with pytest.raises(notebooks.ReportError, match=r"holds edits that 01_training.py lacks.*may have been edited too"):
        notebooks.refuse_lost_edits(NAMES)
    executed.write_text("<<<<<<< HEAD\n" + whole)
    with pytest.raises(
        notebooks.ReportError, match=r"01_training.ipynb cannot be read .*: mend it, or take the committed"
    ):
        notebooks.refuse_lost_edits(NAMES)
    executed.write_text(whole)
    notebooks.refuse_lost_edits(NAMES)


def test_opened_and_saved_a_notebook_is_as_it_was(tmp_path: Path) -> None:
    """With JupyterLab's own writer, set up as in this folder, after it has put in what its kernel says of itself."""
    shutil.copytree(config.ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(config.ROOT / "pyproject.toml", tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "notebooks").iterdir() if path.is_file()}
    manager = build_sync_jupytext_contents_manager_class(LargeFileManager)(
        config=JSONFileConfigLoader("jupyter_server_config.json", str(config.ROOT / "lib" / "report")).load_config(),
        root_dir=str(tmp_path),
    )
    for name in NAMES:
        opened = manager.get(f"notebooks/{name}.ipynb")
        opened["content"].metadata |= {"language_info": {"name": "python", "version": "3.13.0"}}
        opened["content"].metadata["kernelspec"] = {"display_name": "Mine", "language": "python", "name": "python3"}
        manager.save(opened, f"notebooks/{name}.ipynb")
        for ending in ("py", "ipynb"):
            assert (tmp_path / "notebooks" / f"{name}.{ending}").read_bytes() == before[f"{name}.{ending}"]
    opened = manager.get("notebooks/01_training.ipynb")
    opened["content"].cells[3].source += "\nprint(1)"
    manager.save(opened, "notebooks/01_training.ipynb")
    assert (tmp_path / "notebooks" / "01_training.py").read_text().count("print(1)") == 1


def checked_outputs(notebook: nbformat.NotebookNode) -> int:
    """Outputs that nbval compares: those of executed cells that carry text."""
    texts = {"text/plain", "text/html", "text/markdown"}
    executed = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.execution_count is not None]
    outputs = [output for cell in executed for output in cell.outputs]
    return sum(bool(set(output.get("data", {})) & texts) or output.output_type == "stream" for output in outputs)


def test_normal_form_keeps_what_pictures_show_and_nothing_else() -> None:
    cell = nbformat.v4.new_code_cell(
        "x", execution_count=7, id="some", metadata={"tags": ["hide-input"], "papermill": {"duration": 1}}
    )
    said = {"image/png": {"alt": "What is seen", "width": 300}, "text/plain": {"x": 1}, "isolated": True}
    cell.outputs = [nbformat.v4.new_output("display_data", data={"image/png": "", "text/plain": "f"}, metadata=said)]
    (kept,) = notebooks.normalise(nbformat.v4.new_notebook(cells=[cell])).cells
    assert kept.outputs[0].metadata == {"image/png": {"alt": "What is seen"}}
    assert kept.metadata == {"tags": ["hide-input"]} and (kept.id, kept.execution_count) == ("cell-00", 1)


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_is_executed_whole_and_clean(name: str) -> None:
    notebook = nbformat.read(committed(name), as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(output.output_type not in ("error", "stream") for cell in code for output in cell.outputs)
    assert notebooks.failed(committed(name)) == []
    assert checked_outputs(notebook) >= MINIMUM[name[:2]]
    assert notebooks.normalise(notebook) == notebook, "not in normal form"
    text = committed(name).read_text()
    assert not re.search(r"/(home|root|work|tmp|Users)/", text), "a machine path"
    assert "injected-parameters" not in text


@pytest.mark.parametrize("name", NAMES)
def test_source_has_one_parameters_cell(name: str) -> None:
    (cell,) = (cell for cell in notebooks.source(name).cells if "parameters" in cell.metadata.get("tags", []))
    assert re.findall(r"^(\w+) = ", cell.source, re.MULTILINE) == ["profile", "frozen", "overrides"]


@pytest.mark.parametrize("name", NAMES)
def test_prose_numbers_are_computed(name: str) -> None:
    """Markdown cells state no measured number: no decimals, no percentages but the definition of "high-frequency"."""
    for cell in notebooks.source(name).cells:
        if cell.cell_type == "markdown":
            assert not re.findall(r"\b0\.\d+|\d+\.\d+ ?%", re.sub(r"AUROC (above|below) 0\.5", "", cell.source)), (
                cell.source
            )


def test_committed_figures_are_those_the_notebooks_show() -> None:
    import base64

    shown = {}
    for name in NAMES:
        for cell in nbformat.read(committed(name), as_version=4).cells:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    shown[output.data["text/plain"] + ".png"] = base64.b64decode(output.data["image/png"])
    files = {path.name: path.read_bytes() for path in (config.ROOT / "figures").glob("*.png")}
    assert shown.keys() == files.keys()
    assert shown == files


def nbval(paths: list[Path], tmp_path: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "SAE_REPORT_STORE": "frozen",
        "SAE_REPORT_CACHE": str(tmp_path / "empty"),
        "SAE_REPORT_BUILD": str(tmp_path / "build"),
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": f"{config.ROOT / 'tests'}{os.pathsep}{config.ROOT}",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "nbval_tolerance", "--nbval", "--nbval-current-env"]
    command += ["--nbval-cell-timeout=300", "--rootdir", str(tmp_path), "-c", os.devnull, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)


def test_nbval_on_committed_results_with_an_empty_cache(tmp_path: Path) -> None:
    """No model, no training: every cell of every committed notebook gives what is committed."""
    done = nbval([committed(name) for name in NAMES], tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
    cells = sum(cell.cell_type == "code" for name in NAMES for cell in nbformat.read(committed(name), 4).cells)
    assert f"{cells} passed" in done.stdout
    assert not (tmp_path / "empty").exists()


def test_nbval_fails_on_a_changed_number_and_on_a_stale_result(tmp_path: Path) -> None:
    """The gate can fail: one digit of one committed output, and a profile whose results are not there."""
    notebook = nbformat.read(committed("05_quadratic_frequency"), as_version=4)
    (cell,) = [
        c for c in notebook.cells if c.cell_type == "code" and "share of latents that are high, over seeds" in c.source
    ]
    text = cell.outputs[0].data["text/markdown"]
    digit = re.search(r"\b0\.(\d)", text)
    assert digit is not None
    changed = str((int(digit[1]) + 1) % 10)
    cell.outputs[0].data["text/markdown"] = text[: digit.start(1)] + changed + text[digit.end(1) :]
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    notebook = nbformat.read(committed("05_quadratic_frequency"), as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    cell.source = cell.source.replace("overrides = {}", 'overrides = {"training.steps": 7}')
    nbformat.write(notebook, tmp_path / "stale.ipynb")
    done = nbval([tmp_path / "changed.ipynb"], tmp_path)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout[-2000:]
    done = nbval([tmp_path / "stale.ipynb"], tmp_path)
    assert done.returncode == 1 and "make report PROFILE=report" in done.stdout, done.stdout[-2000:]


def test_the_data_sheet_has_the_sizes_of_the_committed_run() -> None:
    record = json.loads((config.ROOT / "data" / "results" / "02_prompt_counts.json").read_text())
    rows = [row for row in record["payload"] if row["mix"] == "post"]
    sizes = [sum(row["n"] for row in rows if row["split"] == split) for split in ("train", "val", "ood")]
    assert f"{' / '.join(f'{n:,}' for n in sizes)} prompts in train" in (config.ROOT / "data" / "README.md").read_text()


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("AUROC 0.99712 on 3,850", "AUROC 0.99731 on 3,850", True),
        ("0.19999", "0.20001", True),
        ("AUROC 0.997", "AUROC 0.987", False),
        ("n = 3,850", "n = 3,851", False),
        ("12 of 30", "13 of 30", False),
        ("FVU 0.25 up", "FVU 0.25 down", False),
        ("1.5 and 2.5", "1.5", False),
        ("1,234.50", "1,234.51", True),
        ("-0.5", "0.5", False),
        ("3 %", "4 %", False),
        ("C 0.0001", "C 0.001", False),
        ("FVU 0.2710", "FVU 0.2718", True),
    ],
)
def test_tolerance(a: str, b: str, same: bool) -> None:
    assert (Tolerant(a) == b) is same
    assert (Tolerant(a) != b) is not same


def test_drift_reports_changed_numbers_missing_results_and_nothing_else(tmp_path: Path) -> None:
    folders = [tmp_path / "committed", tmp_path / "fresh"]
    shutil.copytree(config.ROOT / "data" / "results", folders[0])
    shutil.copytree(folders[0], folders[1])
    assert drift(*folders) == []
    path = folders[1] / "02_probes.json"
    path.write_text(re.sub(r'("ood": \{\s*"auroc": )[\d.]+', r"\g<1>0.123", path.read_text(), count=1))
    (folders[1] / "03_cards.json").rename(folders[1] / "03_new.json")
    path = folders[1] / "01_chat_0_on_chat.json"
    path.write_text(path.read_text().replace('"latents": 2304', '"latents": 2305'))
    found = drift(*folders)
    assert len(found) == 4
    for words in (
        "03_cards: committed",
        "03_new: in the run",
        "02_probes.attention.ood.auroc",
        "01_chat_0_on_chat.latents",
    ):
        assert any(words in line for line in found), found


def test_figure_drift_notices_a_moved_curve(tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    folders = [tmp_path / "committed", tmp_path / "fresh"]
    shutil.copytree(config.ROOT / "figures", folders[0])
    shutil.copytree(folders[0], folders[1])
    assert figure_drift(*folders) == []
    path = folders[1] / "05_fvu_l0.png"
    picture = Image.open(path).convert("RGB")
    ImageDraw.Draw(picture).line([(100, 100), (800, 400)], fill="black", width=9)
    picture.save(path)
    (folders[1] / "01_fvu_l0.png").unlink()
    found = figure_drift(*folders)
    assert len(found) == 2 and "01_fvu_l0" in found[0] and "pixels differ" in found[1]


def test_lab_pairs_notebooks_with_their_sources(tmp_path: Path) -> None:
    """JupyterLab's contents manager: inputs from the .py even when the .ipynb is newer, outputs from the .ipynb; both saved."""
    from jupytext import TextFileContentsManager

    shutil.copytree(config.ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(config.ROOT / "pyproject.toml", tmp_path)
    source, executed = (tmp_path / "notebooks" / f"01_training.{end}" for end in ("py", "ipynb"))
    source.write_text(source.read_text().replace("# # 01 · Training chat SAEs", "# # 01 · Edited title"))
    os.utime(executed, (source.stat().st_mtime + 3600,) * 2)
    manager = TextFileContentsManager()
    manager.root_dir = str(tmp_path)
    model = manager.get("notebooks/01_training.ipynb")
    cells = model["content"]["cells"]
    assert "Edited title" in cells[0]["source"]
    assert any(cell.get("outputs") for cell in cells)
    manager.save(model, "notebooks/01_training.ipynb")
    assert "Edited title" in source.read_text() and "Edited title" in executed.read_text()
