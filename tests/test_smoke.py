"""The whole report, cold, at the smoke profile: killed half-way, then run again."""

import base64
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from safetensors.torch import load_file
from test_exchange import PEERS
from test_files import rows, write
from test_report import broken_links, outside_requests

from lib import config
from lib.report import notebooks

COMMAND = [sys.executable, "-m", "lib.report", "run", "--profile", "smoke"]


FIGURES = 61

# Five lines in a notebook, nothing in lib.
BASELINE = """
class Discriminant(Probe):
    def fit(self, x, labels, run):
        train, lda = labels.where("train"), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        return {"": {"": Model(lda.fit(x[train], labels.taught[train]).decision_function(x))}}
fits["shrunken discriminant"] = study.fit(Discriminant(), Residual(q.position))
"""
PENALTY = """
@dataclass(frozen=True)
class Cubic(Penalty):
    def of(self, omega):
        return (omega + omega**3).sum()
kinds["mine"] = jumprelu(Cubic()), {90: 2e-3}
"""


SHORTCUT = """
planted["exclamation mark"] = ("{text}!",)
traces["exclamation mark"] = "!"
"""
FAMILY = """
families["IT and chat"] = lambda sae, run: study.train({"IT": 2, "chat": 1}, sae, run=run)
"""
EXPORT = """
for name, of in saes.items():
    exchange.export(of[0], Path("FOLDER") / name, exchange.PACKAGED_NAME, p.layer, p.corpora.context)
source = activations.read(held_out["chat"], p.layer)
x = source.gather(np.random.default_rng(0).permutation(len(source))[:1000])
ours = {name: training.load(of[0]) for name, of in saes.items()}
save_file({"x": x} | {name: sae.reconstruct(x) for name, sae in ours.items()}, "FOLDER/x.safetensors")
Path("FOLDER/jobs.json").write_text(json.dumps({name: {"variant": "jumprelu"} for name in saes}))
"""


def events(build: Path) -> list[dict]:
    log = build / "smoke" / "steps.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@dataclass
class Run:
    """A cold run that was killed once and then went on."""

    build: Path
    environment: dict[str, str]
    kept: set[str]  # keys of the steps that the kill found finished


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("cold")
    cache, build = folder / "cache", folder / "build"
    cache.mkdir()
    (cache / "wheels").symlink_to(config.ROOT / "data" / "cache" / "wheels")  # all but the downloads is cold
    environment = os.environ | {"SAE_REPORT_CACHE": str(cache), "SAE_REPORT_BUILD": str(build)}
    environment.pop("TQDM_DISABLE", None)

    first = subprocess.Popen(COMMAND, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not any(e["event"] == "end" and e["step"].endswith("training.train") for e in events(build)):
        assert first.poll() is None and time.monotonic() < deadline, "the run ended before its first SAE"
        time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {e["key"] for e in events(build) if e["event"] == "end"}
    assert len(kept) > 5
    assert not (build / "smoke" / "notebooks" / "01_training.ipynb").exists()

    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(build, environment, kept)


def unknown_latents(site: Path) -> list[str]:
    """Links to latents that the browser of latents does not hold; one that has none at all is told too."""
    packed = re.search(r'id="data">([^<]+)<', (site / "latents.html").read_text())
    assert packed and (site / "latents.html").stat().st_size < 5e6
    found = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    known = {f"{found['saes'][one['sae']]['id']}-{one['latent']}" for one in found["latents"]}
    told = {
        page.name: set(re.findall(r'href="latents.html#([^"]+)"', page.read_text())) for page in site.glob("0*.html")
    }
    lacking = [
        name for name in ("02_probing", "03_debugging", "04_autointerp", "06_surprising") if not told[f"{name}.html"]
    ]
    return lacking + sorted(set.union(*told.values()) - known)


def test_cold_run_killed_then_resumed(cold: Run) -> None:
    build = cold.build
    again = cold.kept & {e["key"] for e in events(build) if e["event"] == "start"}
    assert not again, "a finished step was computed twice"

    for name in notebooks.names():
        notebook = nbformat.read(build / "smoke" / "notebooks" / f"{name}.ipynb", as_version=4)
        assert notebooks.differences(name, build / "smoke" / "notebooks" / f"{name}.ipynb") == []
        assert all(c.execution_count for c in notebook.cells if c.cell_type == "code")
    sources = "".join((notebooks.folder() / f"{name}.py").read_text() for name in notebooks.names())
    wanted = set(re.findall(r'^ +"(\d\d_\w+)",$', sources, re.MULTILINE))
    assert len(wanted) == FIGURES
    assert {p.stem for p in (build / "smoke" / "figures").glob("*.png")} == wanted
    assert all((build / "smoke" / "figures" / f"{name}.png").stat().st_size > 8_000 for name in wanted)
    site = build / "smoke" / "site"
    assert (site / "index.html").is_file() and (site / "02_probing.html").is_file()
    assert outside_requests(site) == []
    assert broken_links(site) == []
    assert str(build) not in (site / "index.html").read_text()
    assert unknown_latents(site) == []
    if not (config.ROOT / ".git").exists():
        pytest.skip("no .git, so nothing says what is committed; all else was checked")
    tracked = subprocess.run(
        ["git", "status", "--porcelain", "data/results", "figures"],
        capture_output=True,
        text=True,
        cwd=config.ROOT,
        check=True,
    )
    assert tracked.stdout == "", "a smoke run must not touch what is committed"


def test_notebook_02_takes_anyones_prompts(cold: Run, tmp_path: Path) -> None:
    """All that it draws of the report's prompts it draws of a file's, but for what is about the report's own slices."""
    found = rows(96)
    for row in found:
        row["text"] = ("zebra " if row["label"] else "quail ") + row["text"]
    path = write(tmp_path / "mine.csv", found)
    environment = cold.environment | {"SAE_REPORT_BUILD": str(tmp_path / "build")}
    sets = [x for s in (f"probes.data={path}", "probes.sizes=[4,8]") for x in ("--set", s)]
    command = [*COMMAND[:4], "02_probing", *COMMAND[4:], *sets]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    build = tmp_path / "build" / "smoke"
    drawn = {p.stem for p in (build / "figures").glob("*.png")}
    of_report = {p.stem for p in (cold.build / "smoke" / "figures").glob("02_*.png")}
    assert drawn == of_report - {"02_refusals"}
    begun = Counter(e["step"].removeprefix("lib.lm.") for e in events(tmp_path / "build") if e["event"] == "start")
    assert begun["lib.texts.corpora.documents"] == 1, "chat's alone: no SAE sees a prompt that is probed"
    # Chat to train on and to evaluate with, IT with its turns' lengths; and of each the residuals, and those of the prompts on cards.
    assert begun["sequences.text"] == 3 and begun["harvest.harvest"] == 4
    table = json.loads((build / "results" / "02_probes.json").read_text())["payload"]
    words = table["bag of words"]["ood"]  # of two dozen prompts, in two draws
    assert words["seeds"][0][0] > 0.95 and words["auroc"] > 0.9 and table["dense"]["ood"]["n"] == 24
    assert set(table["dense"]["slices"]) == {"harmful", "harmless"}


def with_cell(name: str, before: str, cell: str, folder: Path) -> None:
    """A copy of the notebooks in ``folder``, one of them with ``cell`` before the cell that holds the line ``before``."""
    shutil.copytree(config.ROOT / "notebooks", folder, ignore=shutil.ignore_patterns("*.ipynb"))
    path = folder / f"{name}.py"
    head, found, tail = path.read_text().partition(before)
    assert found and before not in tail
    at = head.rindex("# %%")
    path.write_text(f"{head[:at]}# %%\n{cell.strip()}\n\n{head[at:]}{found}{tail}")


@pytest.mark.parametrize(
    ("name", "before", "cell", "imports", "computed"),
    [
        (
            "02_probing",
            "probes = study.table(fits",
            BASELINE,
            "from sklearn.discriminant_analysis import LinearDiscriminantAnalysis\nfrom lib.probes.methods import Model, Probe\n",
            {"lib.probes.methods.fit": 1, "lib.probes.tables.table": 1},
        ),
        (
            "01_training",
            "saes = {name: [way(",
            FAMILY,
            "",
            {
                "lib.sae.training.train": 3,  # at two sparsities, which may share a pass, and another seed to probe with
                "lib.sae.metrics.evaluate": 4,
                "lib.sae.metrics.loss_recovered": 2,
                "lib.latents.autointerp.evaluate": 1,
                "lib.probes.views.pooled": 2,
                "lib.probes.views.kept": 1,
                "lib.probes.methods.fit": 4,  # two readings at two places
                "lib.probes.tables.chosen": 1,
                "lib.probes.tables.table": 1,
                "lib.probes.tables.differences": 1,
                "__main__.exported": 1,
            },
        ),
        (
            "03_debugging",
            "ways, some = tuple(planted)",
            SHORTCUT,
            "",
            {
                "__main__.copies": 1,
                "lib.lm.sequences.labelled": 1,
                "lib.lm.harvest.harvest": 1,
                "__main__.columns_of": 1,
                "__main__.planted_columns": 1,
                "__main__.planted_contexts": 1,
                "lib.claims.filed": 1,
            },
        ),
        (
            "05_quadratic_frequency",
            "beside = {",
            PENALTY,
            "from dataclasses import dataclass\nfrom lib.sae.penalties import Penalty\n",
            {
                "lib.sae.training.train": 1,
                "lib.sae.metrics.evaluate": 1,
                "lib.sae.metrics.loss_recovered": 1,
                "lib.latents.autointerp.evaluate": 1,
            },
        ),
    ],
)
def test_a_readers_own_is_a_few_lines_and_computes_only_itself(
    cold: Run, tmp_path: Path, name: str, before: str, cell: str, imports: str, computed: dict[str, int]
) -> None:
    """A baseline in notebook 02, a family in 01, a shortcut in 03, a penalty in 05: at most five lines there (imports aside), no change of lib, and the run
    again computes only what is new and the table that it stands in."""
    assert len(cell.strip().splitlines()) <= 5
    with_cell(name, before, imports + cell, tmp_path / "notebooks")
    found = again(cold, tmp_path, name)
    most, begun = computed.get("lib.sae.training.train", 0), found.pop("lib.sae.training.train", 0)
    assert min(most, 1) <= begun <= most, "each SAE once, side by side or in passes"
    assert found == {step: count for step, count in computed.items() if step != "lib.sae.training.train"}


def again(cold: Run, folder: Path, name: str) -> Counter:
    """Run a notebook of ``folder`` on what the cold run left; the steps that it began."""
    script = (
        "import sys; from pathlib import Path; from lib.report import notebooks, runner;"
        "notebooks.folder = lambda: Path(sys.argv[1]); runner.run('smoke', [sys.argv[2]], {}, 14_400)"
    )
    build = folder / "build"
    shutil.copytree(cold.build / "smoke" / "results", build / "smoke" / "results")
    command = [sys.executable, "-c", script, str(folder / "notebooks"), name]
    environment = cold.environment | {"SAE_REPORT_BUILD": str(build), "PYTHONPATH": str(config.ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Counter(event["step"] for event in events(build) if event["event"] == "start")


def test_saelens_loads_an_sae_of_each_family(cold: Run, tmp_path: Path) -> None:
    """Exported by the line that notebook 01 shows; on tokens where no latent lies at its very threshold it rebuilds the same."""
    if not PEERS.exists():
        pytest.skip("SAELens is not installed: make test does it")
    folder = tmp_path / "out"
    folder.mkdir()
    cell = "import json\nfrom safetensors.torch import save_file\n" + EXPORT.replace("FOLDER", str(folder))
    with_cell("01_training", "returned = exported(", cell, tmp_path / "notebooks")
    assert not again(cold, tmp_path, "01_training")
    oracle = Path(__file__).with_name("saelens_oracle.py")
    done = subprocess.run([PEERS, oracle, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours = load_file(folder / "x.safetensors")
    names = sorted(set(ours) - {"x"})
    assert names == ["IT", "chat", "from IT", "from pretraining", "mixed", "pretraining"]
    for name in names:
        theirs = load_file(folder / f"{name}_out.safetensors")["reconstruction"]
        off = (theirs - ours[name]).abs().amax(1) / ours[name].abs().max()
        assert (off < 1e-5).float().mean() > 0.995, name
