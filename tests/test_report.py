"""The runner, promotion, the site and the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from string import Formatter

import nbformat
import pytest
import yaml

from lib import config, pages
from lib.report import __main__ as cli
from lib.report import notebooks, promotion, runner, site
from lib.report.notebooks import ReportError

HEAD = '# %% tags=["parameters"]\nprofile = "report"\nfrozen = False\noverrides = {}\n\n# %%\n'


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of notebook sources and a build folder of its own."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(notebooks, "folder", lambda: folder)
    monkeypatch.setenv("SAE_REPORT_BUILD", str(tmp_path / "build"))
    for name in (*runner.KERNEL_ENVIRONMENT, "SAE_REPORT_STORE", "SAE_REPORT_STEPS"):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_a_notebook_is_run_with_parameters_and_normalised(workshop: Path) -> None:
    body = 'print(profile, overrides)\n\n# %% [markdown]\n# Text.\n\n# %%\n"done"\n'
    (workshop / "01_a.py").write_text(HEAD + body)
    path = runner.execute("01_a", "smoke", {"layer": 3}, 60)
    notebook = nbformat.read(path, as_version=4)
    assert "smoke {'layer': 3}" in notebook.cells[1].outputs[0].text
    assert [c.id for c in notebook.cells] == ["cell-00", "cell-01", "cell-02", "cell-03"]
    assert notebooks.differences("01_a", path) == []
    assert notebooks.normalise(notebook) == notebook
    assert not list(path.parent.glob("*.failed.ipynb"))
    assert "papermill" not in path.read_text()


def test_anothers_kernel_and_package_are_not_run(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel named python3 may belong to another Python, a package named lib to another project."""
    (workshop / "01_a.py").write_text(HEAD + "import lib.config\n\nlib.config.ROOT.name\n")
    kernel, other = tmp_path / "jupyter" / "kernels" / "python3", tmp_path / "lib"
    for folder in (kernel, other):
        folder.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["false"], "display_name": "Python 3", "language": "python"}')
    (other / "__init__.py").write_text("raise ImportError('another project')")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runner.run("smoke", ["01_a"], {}, 60)
    done = nbformat.read(config.build_dir() / "smoke" / "notebooks" / "01_a.ipynb", as_version=4)
    assert done.cells[1].outputs[0].data["text/plain"] == repr(config.ROOT.name)


def test_ones_own_ipython_settings_do_not_reach_a_page(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With this one a cell shows every expression, not the last."""
    settings = tmp_path / "home" / ".ipython" / "profile_default" / "ipython_config.py"
    settings.parent.mkdir(parents=True)
    settings.write_text('get_config().InteractiveShell.ast_node_interactivity = "all"')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (workshop / "01_a.py").write_text(HEAD + '"first"\n"last"\n')
    runner.run("smoke", ["01_a"], {}, 60)
    done = nbformat.read(config.build_dir() / "smoke" / "notebooks" / "01_a.ipynb", as_version=4)
    assert [output.data["text/plain"] for output in done.cells[1].outputs] == ["'last'"]


def test_a_second_run_does_not_write_where_one_is_writing(workshop: Path) -> None:
    (workshop / "01_a.py").write_text(HEAD + "1\n")
    folder = config.build_dir() / "smoke"
    folder.mkdir(parents=True)
    hold = "import fcntl, os, sys; fcntl.lockf(os.open(sys.argv[1], os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX); print(1, flush=True); input()"
    command = [sys.executable, "-c", hold, str(folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        with pytest.raises(ReportError, match="another run writes to"):
            runner.run("smoke", ["01_a"], {}, 60)
        assert not (folder / "steps.jsonl").exists(), "its log is the other's"
        other.kill()
    runner.run("smoke", ["01_a"], {}, 60)
    runner.run("smoke", ["01_a"], {}, 60)  # one process may run twice


def test_unknown_parameter_is_refused_before_anything_runs(workshop: Path) -> None:
    (workshop / "01_a.py").write_text(HEAD)
    with pytest.raises(config.ConfigError, match="unknown parameter 'layr'"):
        runner.run("smoke", ["01_a"], {"layr": 1}, 60)


def test_unknown_papermill_parameter_is_an_error(tmp_path: Path) -> None:
    """Papermill itself only warns: the notebook's first line refuses."""
    body = "from lib.study import open_study\nopen_study(profile, overrides, frozen).profile.layer\n"
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(
            'profile = "smoke"\nfrozen = False\noverrides = {}', metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell(body),
    ]
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "a.ipynb")
    command = [sys.executable, "-m", "papermill", "a.ipynb", "out.ipynb", "-k", "python3", "-p"]
    done = subprocess.run([*command, "layer", "8"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "unknown parameter layer" in done.stderr
    done = subprocess.run([*command, "profile", "smoke"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("1 / 0\n", r"01_a: cell \d+ raised ZeroDivisionError: division by zero"),
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
            r"the kernel died in cell 2 \('import os, signal'\)",
        ),
        ("import time\ntime.sleep(60)\n", r"01_a: cell 2 \('import time'\) ran longer than 2 s"),
    ],
    ids=["error", "dead kernel", "time-out"],
)
def test_failures_name_the_cell_and_leave_no_result(workshop: Path, body: str, words: str) -> None:
    (workshop / "01_a.py").write_text(HEAD + body)
    with pytest.raises(ReportError, match=words):
        runner.execute("01_a", "smoke", {}, 2 if "sleep" in body else 60)
    assert not (config.build_dir() / "smoke" / "notebooks" / "01_a.ipynb").exists()


def test_command_line_errors_are_one_line_with_a_status(capsys: pytest.CaptureFixture, workshop: Path) -> None:
    for arguments, words in (
        (["run", "--profile", "nope"], "unknown profile 'nope'"),
        (["run", "--profile", "smoke", "--set", "layer"], "write name=value"),
        (["run", "--profile", "smoke", "--set", "layer=x"], "bad value in profile 'smoke': layer"),
        (["run", "--profile", "smoke", "99_none"], "no notebook '99_none'"),
    ):
        (workshop / "00_a.py").write_text(HEAD)
        assert cli.main(arguments) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1, err


def test_a_bad_command_exits_with_a_status_and_no_traceback() -> None:
    command = [sys.executable, "-m", "lib.report", "run", "--profile", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr


# promotion


@pytest.fixture
def promotable(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of its own with a finished run of one notebook."""
    root = tmp_path
    monkeypatch.setattr(config, "ROOT", root)
    (workshop / "00_a.py").write_text(HEAD + "1\n")
    built = config.build_dir() / "report"
    write(notebooks.normalise(notebooks.source("00_a")), built / "notebooks" / "00_a.ipynb")
    for folder, name, text in (
        ("figures", "f.png", "new"),
        ("results", "headline.json", json.dumps({"key": "k", "payload": "New."})),
        ("results", "left_over.json", "{}"),
    ):
        (built / folder).mkdir(exist_ok=True)
        (built / folder / name).write_text(text)
    (built / promotion.COMPLETE).write_text("{}")
    (built / "steps.jsonl").write_text(json.dumps({"event": "used", "name": "headline", "key": "k"}) + "\n")
    (root / "README.md").write_text(f"# T\n{promotion.MARKS[0]}\nOld.\n{promotion.MARKS[1]}\nrest\n")
    (root / "figures").mkdir()
    (root / "figures" / "old.png").write_text("old")
    return root


def test_promotion_puts_everything_in_place(promotable: Path) -> None:
    promotion.promote()
    assert (promotable / "figures" / "f.png").read_text() == "new"
    assert not (promotable / "figures" / "old.png").exists()
    assert [p.name for p in (promotable / "data" / "results").iterdir()] == ["headline.json"]
    assert (promotable / "notebooks" / "00_a.ipynb").exists() and (promotable / "notebooks" / "00_a.py").exists()
    assert "\nNew.\n" in (promotable / "README.md").read_text() and "Old" not in (promotable / "README.md").read_text()
    assert not (config.build_dir() / promotion.STAGE).exists()


def test_promotion_broken_off_is_finished_later(promotable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = os.replace, 0

    def fail(*args: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError("no space left on device")
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        promotion.promote()
    monkeypatch.setattr(os, "replace", real)
    promotion.finish()
    assert (promotable / "figures" / "f.png").read_text() == "new"
    assert (promotable / "data" / "results" / "headline.json").exists()
    assert "\nNew.\n" in (promotable / "README.md").read_text()


def test_incomplete_or_stale_runs_are_not_promoted(promotable: Path) -> None:
    built = config.build_dir() / "report"
    (built / promotion.COMPLETE).rename(built / "aside")
    with pytest.raises(ReportError, match="partial, failed or had overrides"):
        promotion.promote()
    (built / "aside").rename(built / promotion.COMPLETE)
    (built / "results" / "headline.json").rename(built / "aside")
    with pytest.raises(ReportError, match=r"the run has no (headline|results)"):
        promotion.promote()
    (built / "aside").rename(built / "results" / "headline.json")
    (built / "steps.jsonl").write_text(json.dumps({"event": "used", "name": "headline", "key": "another"}) + "\n")
    with pytest.raises(ReportError, match="not the result that the run used"):
        promotion.promote()
    (built / "steps.jsonl").write_text(json.dumps({"event": "used", "name": "headline", "key": "k"}) + "\n")
    (promotable / "notebooks" / "00_a.py").write_text(HEAD + "2\n")
    with pytest.raises(ReportError, match="differs from the executed"):
        promotion.promote()
    (promotable / "notebooks" / "00_a.py").write_text(HEAD + "1\n")
    (built / "figures" / "f.png").unlink()
    with pytest.raises(ReportError, match="the run has no figures"):
        promotion.promote()
    assert (promotable / "figures" / "old.png").exists(), "nothing was promoted"


def unfounded(path: Path, sentence: str) -> None:
    """Add a failed expectation to an executed notebook's last cell, as a kernel would."""
    notebook = nbformat.read(path, as_version=4)
    data = {"text/markdown": f"{pages.MARK}{sentence}"}
    notebook.cells[-1].outputs = [nbformat.v4.new_output("display_data", data=data)]
    write(notebook, path)


def test_a_run_with_a_sentence_that_does_not_hold_is_not_promoted(promotable: Path) -> None:
    executed = config.build_dir() / "report" / "notebooks" / "00_a.ipynb"
    unfounded(executed, "Twenty is more than thirty.")
    assert notebooks.differences("00_a", executed) == []
    with pytest.raises(ReportError, match=r"not true of this run: 00_a: Twenty is more than thirty\."):
        promotion.promote()
    assert (promotable / "figures" / "old.png").exists(), "nothing was promoted"


def test_failed_expectations_of_a_kernel_stand_in_its_notebook(workshop: Path) -> None:
    said = "from lib import pages\npages.expect(False, 'One.')\npages.expect(True, 'Two.')\npages.expect(0 > 1, 'Three.')\n"
    (workshop / "00_a.py").write_text(HEAD + said)
    assert notebooks.failed(runner.execute("00_a", "smoke", {}, 120)) == ["00_a: One.", "00_a: Three."]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--profile", "report"], 2),
        (["--profile", "report", "01_b"], 2),
        (["--profile", "report", "--set", "layer=3"], 0),
        (["--profile", "smoke"], 0),
    ],
    ids=["report", "one notebook", "overrides", "smoke"],
)
def test_a_run_goes_to_its_end_and_lists_what_does_not_hold(
    promotable: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    status: int,
) -> None:
    """At other profiles and with overrides the pages are only marked; a run of one notebook lists that one only."""
    names = [name for name in ("01_b", "00_a") if "01_b" not in arguments or name == "01_b"]
    folder = config.build_dir() / arguments[1] / "notebooks"

    def run(profile: str, only: list[str], overrides: dict, timeout: int) -> dict[str, float]:
        for name in names:
            notebook = notebooks.source("00_a")
            notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {name}"))
            write(notebooks.normalise(notebook), folder / f"{name}.ipynb")
            unfounded(folder / f"{name}.ipynb", f"Finding of {name}.")
        return dict.fromkeys(names, 1.0)

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(notebooks, "names", lambda: ["01_b", "00_a"])
    assert cli.main(["run", *arguments]) == status
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if "not true" in line] == [
        f"not true of this run: {name}: Finding of {name}." for name in names
    ]
    assert (f"{len(names)} sentences are not true of this run" in err) is (status == 2)
    assert ("to read it, open" in out and "site/index.html" in out) is (len(names) == 2)
    assert (promotable / "figures" / "old.png").exists(), "nothing was promoted"
    if len(names) == 2:
        assert "Not so in this run" in (folder.parent / "site" / "01_b.html").read_text()


def test_a_run_says_how_long_it_will_take(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In proportion to the host's speed; nothing where no run was timed, or where only some notebooks are run."""
    monkeypatch.setattr(runner, "execute", lambda *given: None)
    (workshop / "01_a.py").write_text(HEAD)
    known = yaml.safe_load((config.ROOT / "data" / "cost.yaml").read_text())
    assert known.keys() == {"report", "smoke"}
    minutes, speed = known["smoke"]["minutes"], known["smoke"]["speed"]
    for factor, said in ((1.0, f"about {minutes:.0f} min"), (0.01, f"about {minutes * 100:.0f} min")):
        monkeypatch.setattr(runner.cpu, "speed", lambda factor=factor: factor * speed)
        runner.run("smoke", [], {}, 60)
        told = capsys.readouterr().out
        assert f"{factor * speed:.0f} GFLOP/s" in told and said in told
    runner.run("smoke", ["01_a"], {}, 60)
    runner.run("gpu", [], {}, 60)
    assert "GFLOP" not in capsys.readouterr().out


def test_readme_carries_the_committed_headline() -> None:
    record = json.loads((config.ROOT / "data" / "results" / "headline.json").read_text())
    text = (config.ROOT / "README.md").read_text()
    assert promotion.with_headline(text, record["payload"]) == text
    assert not re.search(r"\b(TODO|TESTMIN|TIMES)\b|- pending", text)


def test_slots_of_the_headline_are_numbers_and_an_unknown_one_is_an_error() -> None:
    template = (config.ROOT / "data" / "headline.md").read_text()
    slots = [(slot, form) for _, slot, form, _ in Formatter().parse(template) if slot]
    assert len(slots) > 3 and all(form == ".3f" or slot.endswith("_interval") for slot, form in slots)
    with pytest.raises(KeyError):
        template.format(dense_interval="", latents_interval="", components={})


# the site


DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one pixel
OUTSIDE = re.compile(r"""(?:src|href)=["'](?:https?:)?//[^"']+|@import|url\(["']?(?:https?:)?//""")
LOADED = re.compile(r"<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*>", re.IGNORECASE)


def outside_requests(folder: Path) -> list[str]:
    """Tags and style rules of a site that would load something from another host; links to follow do not count."""
    found = [tag for page in folder.rglob("*.html") for tag in LOADED.findall(page.read_text()) if OUTSIDE.search(tag)]
    styles = [f"{path.name}: {m}" for path in folder.rglob("*.css") for m in OUTSIDE.findall(path.read_text())]
    return found + styles


def test_site_builds_offline_with_formulas_and_escaped_text(workshop: Path, tmp_path: Path) -> None:
    text = "# Title\n\nInline $x_1$ and\n\n$$\\sum_i x_i$$\n"
    for name in ("00_a", "01_b"):
        (workshop / f"{name}.py").write_text(HEAD)
        code = nbformat.v4.new_code_cell("x", execution_count=1, id="c")
        code.outputs = [
            nbformat.v4.new_output(
                "execute_result", data={"text/plain": "<script>alert(1)</script>"}, execution_count=1
            )
        ]
        folded = nbformat.v4.new_code_cell("folded = 1", execution_count=2, metadata={"tags": ["hide-input"]}, id="f")
        data = {"image/png": DOT, "text/plain": "f"}
        said = {"image/png": {"alt": "What is <seen> & found", "width": 9}, "isolated": True}
        folded.outputs = [nbformat.v4.new_output("display_data", data=data, metadata=said)]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text, id="m"), code, folded])
        write(notebooks.normalise(notebook), tmp_path / "build" / "smoke" / "notebooks" / f"{name}.ipynb")
    index = site.build("smoke")
    page = index.read_text()
    assert "<math" in page and "<script>alert" not in page and "01_b.html" in page
    assert page.count('alt="What is &lt;seen&gt; &amp; found"') == 1 and page.count("<img") == 1
    assert page.count("<details") == 1 and page.index("show the code") < page.index(">folded<")
    speed = config.ROOT / "data" / "bench.md"
    assert ("speed.html" in page) == speed.is_file()
    assert broken_links(index.parent) == []
    assert outside_requests(index.parent) == []


def broken_links(folder: Path) -> list[str]:
    """Relative links of a site that lead nowhere, and tables that stayed text."""
    found = []
    for page in folder.glob("*.html"):
        text = page.read_text()
        for target in re.findall(r'<a [^>]*href="([^"#?]+)', text):
            if "://" not in target and not target.startswith("mailto:") and not (folder / target).exists():
                found.append(f"{page.name}: {target}")
        if re.search(r"\| ?(?:---|—) ?\|", text):
            found.append(f"{page.name}: a table in raw Markdown")
    return found


def test_outside_requests_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="https://x.org">follow</a><script src="https://x.org/a.js"></script>')
    (tmp_path / "a.css").write_text("@import url(//x.org/b.css)")
    assert len(outside_requests(tmp_path)) >= 2


def test_broken_pages_fail_the_site(workshop: Path, tmp_path: Path) -> None:
    (workshop / "00_a.py").write_text(HEAD)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# T\n\n[x](missing.ipynb)", id="m")])
    write(notebook, tmp_path / "build" / "smoke" / "notebooks" / "00_a.ipynb")
    with pytest.raises(ReportError, match="site has warnings"):
        site.build("smoke")


def test_two_figures_in_one_cell_are_refused(workshop: Path, tmp_path: Path) -> None:
    """The site describes a cell's pictures by one text; two would both be told as the last."""
    (workshop / "00_a.py").write_text(HEAD)
    picture = nbformat.v4.new_output("display_data", {"image/png": "eA=="}, metadata={"image/png": {"alt": "A line."}})
    cell = nbformat.v4.new_code_cell("draw()", id="m", outputs=[picture, picture])
    write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "build" / "smoke" / "notebooks" / "00_a.ipynb")
    with pytest.raises(ReportError, match="00_a: two figures in one cell"):
        site.build("smoke")
