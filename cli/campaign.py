"""`fxfault-campaign`: many trials under faults, kept in a store, and what they say."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfault.cli import arguments as types
from fxfault.cli.console import run
from fxfault.cli.interrupts import INTERRUPTED, raising

if TYPE_CHECKING:
    from fxfault.campaign.driver import Progress as StudyProgress
    from fxfault.campaign.engines import Engine
    from fxfault.campaign.study import Study
    from fxfault.cli.campaign_report import Findings
    from fxfault.cli.outputs import OutputFile

PROGRAM = "fxfault-campaign"
ENGINES = ("local", "processes", "ray")

DESCRIPTION = """\
Find where a quantised network is weak, and how sure that is: run the trials of a study, keep each
in a store that survives crashes, and report estimates with their intervals."""

EXAMPLES = """\
examples:
  fxfault-campaign run digits_study --store study.sqlite
  fxfault-campaign report --store study.sqlite --figures pictures
  fxfault-campaign compare plain.sqlite hardened.sqlite

`COMMAND --help` explains the options of a command.

exit status: 0 done; 2 something in the input is wrong;
130 interrupted, finished trials are kept."""

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `fxfault-campaign --help`.

    Args:
        argv: the command line without the program; default: that of the process.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name not in COMMANDS:
        _end_without_command(name)
    make, command = COMMANDS[name]
    return run(command, make(name).parse(words[1:]))


def _end_without_command(name: str) -> None:
    """Print the help, or say that there is no such command; ends the program."""
    usages = [make(command).format_usage() for command, (make, _) in COMMANDS.items()]
    lines = [" ".join(usage.split()).removeprefix("usage: ") for usage in usages]
    listed = "\n".join(f"  {line}" for line in lines)
    parser = types.OneLineParser(
        prog=PROGRAM, description=DESCRIPTION, epilog=f"commands:\n{listed}\n\n{EXAMPLES}"
    )
    parser.usage = f"{PROGRAM} COMMAND ..."
    if name in ("-h", "--help"):
        parser.parse_args(["--help"])
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    parser.error(f"unknown command {name!r}{hint}; commands: {', '.join(COMMANDS)}")


# -- options --------------------------------------------------------------------------------


def _parser(name: str, description: str) -> types.OneLineParser:
    return types.OneLineParser(prog=f"{PROGRAM} {name}", description=description)


def _run_parser(name: str) -> types.OneLineParser:
    parser = _parser(name, "Run the trials of a study that its store does not have yet.")
    _add_file(parser)
    _add_store(parser, "made where there is none; an existing one is gone on with")
    _add_engine_options(parser)
    return parser


def _resume_parser(name: str) -> types.OneLineParser:
    parser = _parser(name, "Go on with the study that a store holds.")
    _add_store(parser)
    _add_engine_options(parser)
    return parser


def _status_parser(name: str) -> types.OneLineParser:
    parser = _parser(name, "Say how far a study is; it may be running meanwhile.")
    _add_store(parser)
    return parser


def _report_parser(name: str) -> types.OneLineParser:
    parser = _parser(
        name, "Print estimates with intervals for each cell, the ranking of layers, and a heat map."
    )
    _add_store(parser)
    parser.add_argument(
        "--figures",
        type=types.folder,
        metavar="DIR",
        help="also write every picture there, as PNG and SVG; the folder is made",
    )
    parser.add_argument(
        "--html",
        type=types.file,
        metavar="FILE",
        help="also write one web page with all tables and pictures, which needs no network",
    )
    _add_confidence(parser)
    return parser


def _export_parser(name: str) -> types.OneLineParser:
    parser = _parser(name, "Write what a store holds as files; existing ones are replaced.")
    _add_store(parser)
    parser.add_argument(
        "--what",
        choices=("trials", "cells"),
        default="trials",
        help="a row for each trial with its counts, or for each cell with its estimates "
        "(default: trials)",
    )
    parser.add_argument("--csv", type=types.file, metavar="FILE", help="comma-separated values")
    parser.add_argument(
        "--json", type=types.file, metavar="FILE", help="with the study and what it was run on"
    )
    parser.add_argument("--parquet", type=types.file, metavar="FILE", help="needs pyarrow")
    _add_confidence(parser)
    return parser


def _compare_parser(name: str) -> types.OneLineParser:
    parser = _parser(
        name, "Compare the accuracy of two studies under the same faults, cell by cell."
    )
    parser.add_argument("a", type=types.file, metavar="A", help="store of a study")
    parser.add_argument("b", type=types.file, metavar="B", help="store of another one")
    _add_confidence(parser)
    return parser


def _plan_parser(name: str) -> types.OneLineParser:
    parser = _parser(
        name,
        "Say how many trials a margin needs, and how long a study will take, measured on two "
        "trials; nothing is written.",
    )
    _add_file(parser)
    parser.add_argument(
        "--margin",
        type=_margin,
        metavar="POINTS",
        help="half width of the interval of a rate, in percentage points "
        "(default: stop.margin of the study, or 1)",
    )
    parser.add_argument(
        "--confidence",
        type=_confidence,
        metavar="PERCENT",
        help="of that interval (default: stop.confidence of the study, or 95)",
    )
    parser.add_argument(
        "--workers",
        type=types.count,
        default=1,
        metavar="N",
        help="that the study will be run with (default: 1)",
    )
    _add_worker_options(parser)
    return parser


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="study file, or the name of a bundled one: digits_study"
    )


def _add_store(parser: argparse.ArgumentParser, note: str = "") -> None:
    text = f"file of the trials; {note}" if note else "file of the trials"
    parser.add_argument("--store", type=types.file, required=True, metavar="FILE", help=text)


def _add_confidence(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--confidence",
        type=_confidence,
        default=95.0,
        metavar="PERCENT",
        help="of the intervals (default: 95)",
    )


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine", "the trials are the same on each")
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="local: in this process; processes: in several; ray: on a cluster (default: local)",
    )
    group.add_argument(
        "--workers",
        type=types.count,
        metavar="N",
        help="of processes (default: one for each core) or ray (default: what the cluster has)",
    )
    group.add_argument(
        "--address", metavar="ADDRESS", help="of a running Ray cluster, or auto to find it"
    )
    group.add_argument(
        "--gpus-per-trial",
        type=_gpus,
        metavar="N",
        help="that each worker of ray reserves, such as 1 or 0.5 (default: 1 where there are any)",
    )
    group.add_argument(
        "--trial-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="of processes or ray: after so long a trial is given to another worker, and after a "
        "second time the study ends (default: from 90 s, much more than trials took so far)",
    )
    group.add_argument("--no-progress", action="store_true", help="show no progress")
    _add_worker_options(parser)


def _add_worker_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speed", "the trials are the same with each")
    add = group.add_argument
    add(
        "--device",
        type=types.device,
        default="auto",
        metavar="NAME",
        help="auto, cpu, cuda or cuda:N (default: auto, CUDA where there is one)",
    )
    add(
        "--threads",
        type=types.count,
        default=1,
        metavar="N",
        help="of each worker (default: 1); other numbers may round sums differently",
    )
    add(
        "--no-incremental",
        dest="incremental",
        action="store_false",
        help="run every sample through the whole network in every trial",
    )
    add(
        "--cache-memory",
        type=types.memory,
        metavar="SIZE",
        help="memory for activations of the fault-free run, such as 512M or 2G, from which trials "
        "start, for all workers of a machine together; with 0 they start from the data (default: "
        "a quarter of what is free)",
    )
    add(
        "--no-freeze",
        dest="freeze",
        action="store_false",
        help="quantise weights anew in each batch; slower",
    )
    add(
        "--compile",
        action="store_true",
        help="run trials that change nearly everything by torch.compile, where it and a C++ "
        "compiler can, outputs are bit for bit those without, and it is faster; takes up to a "
        "minute first",
    )
    add(
        "--verify",
        type=types.percentage,
        metavar="PERCENT",
        help="run this share of the batches in full and without compiled code, too, and stop if "
        "predictions differ; 0 for none (default: one batch with struck samples in the first "
        "trial of each cell, in a later one where it would take more than 2%% of the time so far)",
    )


def _worker_settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("device", "threads", "incremental", "freeze", "compile", "cache_memory", "verify")
    return {name: getattr(options, name) for name in names}


def _margin(text: str) -> float:
    return _number(text, 0, 50, "a number above 0 and up to 50 (percentage points)")


def _confidence(text: str) -> float:
    return _number(text, 49.999, 99.999, "a number from 50 to 99.999 (percent)")


def _number(text: str, above: float, most: float, allowed: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = above
    if not above < value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
    return value


def _seconds(text: str) -> float:
    return _number(text, 0, 1e7, "a number of seconds above 0, up to 10000000")


def _gpus(text: str) -> float:
    return _number(text, -1e-9, 1024, "a number from 0 to 1024")


# -- run and resume -------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from fxfault.campaign.study import Study

    return _run_study(options, Study.from_yaml(options.file))


def _resume(options: argparse.Namespace) -> int:
    from fxfault.campaign.store import Store
    from fxfault.campaign.study import Study

    with Store.open(options.store) as store:
        study = Study.from_dict(store.study, str(options.store))
    return _run_study(options, study)


def _run_study(options: argparse.Namespace, study: Study) -> int:
    _set_threads(options.threads)
    from fxfault.campaign.driver import run_study
    from fxfault.cli.campaign_progress import CampaignProgress

    engine = _engine(options)
    shown = CampaignProgress(wanted=not options.no_progress)
    faults = study.experiment.fault_injection
    kept = ExitStack()

    def follow(progress: StudyProgress) -> None:
        if shown.is_new:  # From now on there is something to keep, and to say of it.
            kept.enter_context(raising())
        shown.follow(progress)

    try:
        with kept, shown.showing_logs(faults.verbose):
            progress = run_study(
                study,
                options.store,
                engine=engine,
                on_progress=follow,
                on_note=shown.note,
                **_worker_settings(options),
            )
    except KeyboardInterrupt:
        shown.close()
        _say_interrupted(shown.kept, options.store)
        return INTERRUPTED
    finally:
        shown.close()
    _say_finished(progress, options)
    return 0


def _set_threads(threads: int) -> None:
    """Import torch, and let it use so many threads in this process."""
    # Read when torch is imported; threads that spin while they wait slow down other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(threads)


def _say_interrupted(kept: int, store: Path) -> None:
    from fxfault.cli.campaign_report import counted

    text = "interrupted before the first trial was finished"
    if kept:
        are = "is" if kept == 1 else "are"
        text = f"interrupted: {counted(kept, 'trial')} {are} kept in {store}; go on with: "
        text += f"{PROGRAM} resume --store {store}"
    print(text, file=sys.stderr)


def _engine(options: argparse.Namespace) -> Engine:
    from fxfault.campaign.engines import make_engine

    return make_engine(
        options.engine,
        workers=options.workers,
        address=options.address,
        gpus_per_trial=options.gpus_per_trial,
        trial_timeout=options.trial_timeout,
    )


def _say_finished(progress: StudyProgress, options: argparse.Namespace) -> None:
    from fxfault.cli.campaign_report import counted, duration

    new = progress.trials - progress.earlier
    took = f", {new} of them in {duration(progress.seconds)}" if new else ", all there before"
    cells, trials = counted(len(progress.cells), "cell"), counted(progress.trials, "trial")
    print(f"Finished: {cells}, {trials}{took}")
    print(f"See {PROGRAM} report --store {options.store}")


# -- what a store says ----------------------------------------------------------------------


def _status(options: argparse.Namespace) -> int:
    from fxfault.cli.campaign_report import read_findings, status_lines

    print("\n".join(status_lines(read_findings(options.store))))
    return 0


def _report(options: argparse.Namespace) -> int:
    from fxfault.cli.campaign_report import report_lines

    if options.figures is not None:
        _check_figures(options.figures)
    html = None if options.html is None else _claim_page(options)
    findings = _findings_with_trials(options.store, options.confidence)
    print("\n".join(report_lines(findings)))
    if options.figures is None and html is None:
        return 0
    print()
    drawn = _pictures(findings, "svg")
    if options.figures is not None:
        for path in _write_figures(findings, drawn, options.figures, options.store):
            print(f"Picture saved to: {path}")
    if html is not None:
        from fxfault.cli.campaign_page import page

        html.write(page(findings, drawn))
        print(f"Page saved to: {html.path}")
    return 0


def _claim_page(options: argparse.Namespace) -> OutputFile:
    """Check before the work that the page can be written."""
    from fxfault.cli.figures import check_matplotlib
    from fxfault.cli.outputs import OutputFile, refuse_overwriting

    check_matplotlib("--html")
    output = OutputFile("--html", options.html)
    refuse_overwriting([output], {"store": options.store})
    return output


def _pictures(findings: Findings, file_format: str) -> dict[str, bytes]:
    from fxfault.cli.campaign_network_picture import network_picture
    from fxfault.cli.campaign_plots import pictures

    drawn = dict(pictures(findings.summary, findings.ranked, file_format))
    if findings.background.nodes:
        falls = {site.name: site.fall for site in findings.ranked}
        drawn["network"] = network_picture(findings.background, falls, file_format)
    return drawn


def _check_figures(folder: Path) -> None:
    """Check before the work that pictures can be written; makes the folder."""
    from fxfault.cli.figures import check_matplotlib
    from fxfault.errors import ConfigError

    check_matplotlib("--figures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--figures: {folder} cannot be made: {error.strerror}") from error


def _write_figures(
    findings: Findings, svg: Mapping[str, bytes], folder: Path, store: Path
) -> list[Path]:
    from fxfault.cli.outputs import OutputFile, refuse_overwriting

    contents = {
        OutputFile("--figures", folder / f"{name}.{ending}"): content
        for ending, drawn in (("png", _pictures(findings, "png")), ("svg", svg))
        for name, content in drawn.items()
    }
    refuse_overwriting(contents, {"store": store})
    return [output.write(content) for output, content in contents.items()]


def _findings_with_trials(store: Path, confidence: float) -> Findings:
    from fxfault.campaign.errors import StoreError
    from fxfault.cli.campaign_report import read_findings

    findings = read_findings(store, confidence)
    if not findings.trials:
        raise StoreError(
            f"{store} has no finished trial yet; go on with {PROGRAM} resume --store {store}"
        )
    return findings


def _export(options: argparse.Namespace) -> int:
    from fxfault.cli.campaign_export import check_format, exported

    outputs = _claim_outputs(options)
    for file_format in outputs:
        check_format(file_format)
    findings = _findings_with_trials(options.store, options.confidence)
    for file_format, output in outputs.items():
        output.write(exported(findings, options.what, file_format))
        print(f"{options.what.capitalize()} saved to: {output.path}")
    return 0


def _claim_outputs(options: argparse.Namespace) -> dict[str, OutputFile]:
    from fxfault.cli.campaign_export import FORMATS
    from fxfault.cli.outputs import OutputFile, refuse_overwriting
    from fxfault.errors import ConfigError

    outputs = {
        name: OutputFile(f"--{name}", getattr(options, name))
        for name in FORMATS
        if getattr(options, name) is not None
    }
    if not outputs:
        raise ConfigError("name at least one file to write: --csv, --json or --parquet")
    refuse_overwriting(outputs.values(), {"store": options.store})
    return outputs


def _compare(options: argparse.Namespace) -> int:
    from fxfault.campaign.comparison import Side, compare
    from fxfault.cli.campaign_report import comparison_lines

    sides = []
    for path in (options.a, options.b):
        findings = _findings_with_trials(path, options.confidence)
        sides.append(Side(findings.table, findings.summary, findings.study.seed))
    differences = compare(*sides)
    names = str(options.a), str(options.b)
    print("\n".join(comparison_lines(differences, names, options.confidence)))
    return 0


def _plan(options: argparse.Namespace) -> int:
    _set_threads(options.threads)
    from fxfault.campaign.plan import Plan
    from fxfault.campaign.study import Study
    from fxfault.cli.campaign_plan import measure, plan_lines

    study = Study.from_yaml(options.file)
    rule = study.stop
    margin = options.margin or (1.0 if rule is None else rule.margin)
    confidence = options.confidence or (95.0 if rule is None else rule.confidence)
    settings = _worker_settings(options)
    plan = Plan(study=study.to_dict(), sharing=options.workers, **settings)
    measured = measure(plan, lambda text: print(f"Note: {text}"))
    lines = plan_lines(study, measured, margin, confidence, options.workers)
    print("\n".join(lines))
    return 0


COMMANDS: dict[str, tuple[Callable[[str], types.OneLineParser], Command]] = {
    "run": (_run_parser, _run),
    "status": (_status_parser, _status),
    "resume": (_resume_parser, _resume),
    "report": (_report_parser, _report),
    "export": (_export_parser, _export),
    "compare": (_compare_parser, _compare),
    "plan": (_plan_parser, _plan),
}


if __name__ == "__main__":
    sys.exit(main())
