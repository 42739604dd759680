"""`fxfault campaign`: run many trials under faults, keep them in a store, and report on them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from fxfault.cli import campaign_options
from fxfault.cli.terminal import arguments as types
from fxfault.cli.terminal.colours import coloured
from fxfault.cli.terminal.console import run
from fxfault.cli.terminal.interrupts import INTERRUPTED, raising
from fxfault.cli.terminal.process_setup import let_threads_sleep
from fxfault.messages import nearest

if TYPE_CHECKING:
    from fxfault.campaign.driver import Progress as StudyProgress
    from fxfault.campaign.studies.study import Study
    from fxfault.campaign.workers.plan import Plan
    from fxfault.results.reports.campaign_findings import Findings
    from fxfault.results.reports.campaign_plan import Measured

DESCRIPTION = """\
Find where a quantised network is weak, and how certain that is: run the trials of a study, keep
them in a store that survives crashes, and report estimates with their intervals."""

EXAMPLES = """\
examples:
  fxfault campaign run digits_study --store study.sqlite
  fxfault campaign report --store study.sqlite --figures pictures
  fxfault campaign compare plain.sqlite hardened.sqlite

`fxfault campaign COMMAND --help` explains the options of a command.

exit status: 0 done; 2 something in the input is wrong; 130 interrupted, and the finished trials are
kept."""


class Command(NamedTuple):
    """A command: what it does, how its parser gets its options, and what runs it."""

    description: str
    add_options: Callable[[types.OneLineParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command, by default with the arguments of the process; returns its status."""
    words = list(sys.argv[1:] if argv is None else argv)
    program = program or types.program("campaign")
    name = words[0] if words else "--help"
    if name not in COMMANDS:
        _end_without_command(name, program)
    return run(COMMANDS[name].run, _make_parser(name, program).parse(words[1:]))


def add_options(parser: types.OneLineParser) -> None:
    """Add all commands with their options, and the texts around them."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    group = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = " ".join(command.description.split())
        command.add_options(group.add_parser(name, help=text, description=command.description))


def _end_without_command(name: str, program: str) -> NoReturn:
    """Print the help or an error, and end the program."""
    parser = types.OneLineParser(prog=program)
    add_options(parser)
    if name in ("-h", "--help"):
        parser.parse_args(["--help"])
    hint = nearest(name, COMMANDS)
    parser.error(f"unknown command {name!r}{hint}; commands: {', '.join(COMMANDS)}")


def _make_parser(name: str, program: str) -> types.OneLineParser:
    command = COMMANDS[name]
    parser = types.OneLineParser(prog=f"{program} {name}", description=command.description)
    command.add_options(parser)
    return parser


# -- run and resume -------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from fxfault.cli.configurations import read_study

    return _run_study(options, read_study(options))


def _resume(options: argparse.Namespace) -> int:
    from fxfault.campaign.records.store import Store
    from fxfault.campaign.studies.study import Study

    with Store.open(options.store) as store:
        study = Study.from_dict(store.study, str(options.store))
    return _run_study(options, study)


def _run_study(options: argparse.Namespace, study: Study) -> int:
    _set_threads(options.threads)
    from fxfault.campaign.driver import run_study
    from fxfault.campaign.workers.engines import make_engine
    from fxfault.cli.campaign_progress import (
        CampaignProgress,
        finished_text,
        interrupted_text,
    )

    engine = make_engine(
        options.engine,
        workers=options.workers,
        address=options.address,
        gpus_per_trial=options.gpus_per_trial,
        trial_timeout=options.trial_timeout,
    )
    shown = CampaignProgress(wanted=not options.no_progress)
    protected = ExitStack()

    def follow(progress: StudyProgress) -> None:
        if shown.is_new:  # From now on there are trials to keep.
            protected.enter_context(raising())
        shown.follow(progress)

    try:
        with protected, shown.showing_logs(study.experiment.fault_injection.verbose):
            progress = run_study(
                study,
                options.store,
                engine=engine,
                on_progress=follow,
                on_note=shown.note,
                **campaign_options.worker_settings(options),
            )
    except KeyboardInterrupt:
        shown.close()
        print(interrupted_text(shown.kept, options.store), file=sys.stderr)
        return INTERRUPTED
    finally:
        shown.close()
    print(finished_text(progress, options.store))
    return 0


def _set_threads(threads: int) -> None:
    """Import torch, and let it use so many threads in this process."""
    let_threads_sleep()
    import torch

    torch.set_num_threads(threads)


# -- reports on a store -----------------------------------------------------------------------


def _status(options: argparse.Namespace) -> int:
    from fxfault.results.reports.campaign_findings import read_findings
    from fxfault.results.reports.campaign_report import status_lines

    print(coloured("\n".join(status_lines(read_findings(options.store)))))
    return 0


def _report(options: argparse.Namespace) -> int:
    from fxfault.cli.campaign_files import claim_page, make_folder, write_figures
    from fxfault.results.reports.campaign_report import report_lines

    if options.figures is not None:
        make_folder(options.figures)
    page_file = None if options.html is None else claim_page(options.html, options.store)
    findings = _findings_with_trials(options.store, options.confidence)
    if options.methods:
        from fxfault.results.reports.methods import methods_text

        print(methods_text(findings))
    else:
        lines = report_lines(findings, options.tolerance, options.cells)
        print(coloured("\n".join(lines)))
    if options.figures is None and page_file is None:
        return 0
    from fxfault.results.pictures.campaign_plots import not_drawn, pictures
    from fxfault.results.pictures.drawing import Look

    print()
    for name in not_drawn(findings):
        print(f"Not drawn, as no fault moved anything in it: {name}")
    if options.figures is not None:
        look = Look(options.style, options.figure_size)
        formats = ("svg", "pdf") if options.style == "paper" else ("svg", "png")
        drawn = {ending: pictures(findings, ending, look) for ending in formats}
        for path in write_figures(drawn, options.figures, options.store):
            print(f"Picture saved to: {path}")
    if page_file is not None:
        from fxfault.results.page.html import page

        page_file.write(page(findings, options.tolerance))
        print(f"Page saved to: {page_file.path}")
    return 0


def _findings_with_trials(store: Path, confidence: float) -> Findings:
    from fxfault.errors import StoreError
    from fxfault.results.reports.campaign_findings import read_findings

    findings = read_findings(store, confidence)
    if not findings.trials:
        raise StoreError(
            f"{store} has no finished trial yet; continue with: fxfault campaign resume "
            f"--store {store}"
        )
    return findings


def _export(options: argparse.Namespace) -> int:
    from fxfault.cli.campaign_files import claim_exports
    from fxfault.results.reports.campaign_export import FORMATS, exported

    given = {name: getattr(options, name) for name in FORMATS}
    outputs = claim_exports(given, options.store)
    findings = _findings_with_trials(options.store, options.confidence)
    for file_format, output in outputs.items():
        output.write(exported(findings, options.what, file_format))
        print(f"{options.what.capitalize()} saved to: {output.path}")
    return 0


def _faults(options: argparse.Namespace) -> int:
    _set_threads(options.threads)
    from fxfault.cli.campaign_faults import write_faults

    return write_faults(options)


def _compare(options: argparse.Namespace) -> int:
    from fxfault.campaign.estimates.comparison import Side, compare
    from fxfault.results.reports.campaign_report import comparison_lines

    sides = []
    for path in (options.a, options.b):
        findings = _findings_with_trials(path, options.confidence)
        sides.append(Side(findings.table, findings.summary, findings.study.seed))
    differences = compare(*sides)
    names = str(options.a), str(options.b)
    metric = sides[0].summary.metric
    print("\n".join(comparison_lines(differences, names, options.confidence, metric)))
    return 0


def _plan(options: argparse.Namespace) -> int:
    _set_threads(options.threads)
    from fxfault.campaign.workers.plan import Plan
    from fxfault.cli.configurations import read_study
    from fxfault.results.reports.campaign_plan import plan_lines

    study = read_study(options)
    rule = study.stop
    margin = options.margin or (1.0 if rule is None else rule.margin)
    confidence = options.confidence or (95.0 if rule is None else rule.confidence)
    settings = campaign_options.worker_settings(options)
    plan = Plan(study=study.to_dict(), sharing=options.workers, **settings)
    lines = plan_lines(study, _measured(plan), margin, confidence, options.workers)
    print(coloured("\n".join(lines)))
    return 0


def _measured(plan: Plan) -> Measured:
    """Run a trial of the first and of the last cell, the cheapest and the most expensive place."""
    from fxfault.campaign.workers.trial_runner import TrialRunner
    from fxfault.results.reports.campaign_plan import Measured

    trial_runner = TrialRunner(plan, on_note=lambda text: print(f"Note: {text}"))
    facts = trial_runner.facts()
    cells = facts.cells(trial_runner.study)
    rows = []
    for cell in (cells[0], cells[-1]):
        trial_runner.run(cell, 1)  # It warms up, and finds which way of running is faster.
        rows.append(trial_runner.run(cell, 0))
    return Measured(cells, rows, facts.bit_widths, facts.memories)


COMMANDS = {
    "run": Command(
        "Run the trials of a study that its store does not hold yet.",
        campaign_options.add_run,
        _run,
    ),
    "status": Command(
        "Show how far a study is, even while it is running.", campaign_options.add_store, _status
    ),
    "resume": Command(
        "Continue the study that a store holds. To change it, give `fxfault campaign run` the\n"
        "changed file and this store; there, --set and the like work, too.",
        campaign_options.add_resume,
        _resume,
    ),
    "report": Command(
        "Print what a study found: the verdict, the ranking of layers, the map of layers and\n"
        "faults, and the metric at each rate, with intervals.",
        campaign_options.add_report,
        _report,
    ),
    "export": Command(
        "Write the content of a store to files; existing files are replaced.",
        campaign_options.add_export,
        _export,
    ),
    "faults": Command(
        "List every fault of one trial: site, sample, element, bits, and the codes before and\n"
        "after. The trial runs again for that. `fxfault eval --replay FILE` strikes the list.",
        campaign_options.add_faults,
        _faults,
    ),
    "compare": Command(
        "Compare the metric of two studies under the same faults, cell by cell.",
        campaign_options.add_compare,
        _compare,
    ),
    "plan": Command(
        "Say how many trials a margin needs and how long a study will take, measured on two\n"
        "trials; nothing is written.",
        campaign_options.add_plan,
        _plan,
    ),
}


if __name__ == "__main__":
    sys.exit(main())
