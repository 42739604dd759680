"""`fxfault-eval`: how the accuracy of a quantised network falls under faults."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fxfault.cli.terminal import arguments as types
from fxfault.cli.terminal.console import run
from fxfault.cli.terminal.interrupts import INTERRUPTED, raising
from fxfault.cli.terminal.process_setup import fit_threads, let_threads_sleep, seed_generators
from fxfault.cli.terminal.progress import Progress
from fxfault.files.sources import EVALUATION, Sources

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fxfault.campaign.fault_evaluation import FaultEvaluation
    from fxfault.cli.reports.evaluation_report import Findings, Setting
    from fxfault.cli.terminal.outputs import OutputFile
    from fxfault.config.fault_injection import FaultInjectionConfig
    from fxfault.data import DatasetFacts
    from fxfault.experiment.parts import Batches
    from fxfault.experiment.sections import ExperimentConfig
    from fxfault.models.checkpoints import CheckpointInfo

PROGRAM = "fxfault-eval"

DESCRIPTION = """\
Measure how the accuracy of a quantised network falls when faults strike its activations. Faults are
injected during the evaluation, even if the configuration says `apply_during: train`."""

EPILOG = """\
examples:
  fxfault-eval --config digits --sweep 0,1,2,5,10,20,50 --num-runs 5 --plot accuracy.png
  fxfault-eval --config digits --per-layer --probability 5 --num-runs 5
  fxfault-eval --config my.yaml --checkpoint best.pth --probability 10 --injection-type msb_flip

exit status: 0 done; 2 something in the input is wrong, nothing was written (if the checkpoint
was replaced meanwhile, the results of the old one were written);
130 interrupted, the finished results are written and marked as incomplete."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, by default with the arguments of the process; returns its status."""
    options = make_parser().parse(argv)
    options.command = shlex.join([PROGRAM, *(sys.argv[1:] if argv is None else argv)])
    return run(_evaluate, options)


def make_parser() -> types.OneLineParser:
    """Make the parser of the command line."""
    parser = types.OneLineParser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG)
    types.add_config(parser)
    parser.add_argument(
        "--checkpoint",
        type=types.checkpoint,
        metavar="FILE",
        help="trained weights (default: checkpoint.path of the configuration)",
    )
    _add_fault_options(parser)
    _add_run_options(parser)
    _add_output_options(parser)
    return parser


def _add_fault_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("faults", "these replace the values of the configuration")
    chosen = group.add_mutually_exclusive_group()
    chosen.add_argument(
        "--probability",
        type=types.percentage,
        metavar="PERCENT",
        help="probability that a fault strikes a value, from 0 to 100",
    )
    chosen.add_argument(
        "--sweep",
        type=types.percentages,
        metavar="P,P,...",
        help="several probabilities, evaluated one after the other",
    )
    chosen.add_argument(
        "--num-faults",
        type=types.fault_counts,
        metavar="K,K,...",
        help="number of hits in each sample, spread over all selected sites, in place of a "
        "probability; several numbers are evaluated one after the other",
    )
    group.add_argument("--injection-type", metavar="NAME", help="fault model, such as msb_flip")
    group.add_argument(
        "--mode",
        choices=("full_model", "layer"),
        help="strike all selected sites, or one of them: `injection_layer` of the configuration, "
        "or one drawn for each run",
    )
    types.add_layer(group, "; with --mode layer, one of them is drawn for each run")
    group.add_argument(
        "--per-layer",
        action="store_true",
        help="also strike each selected site alone, and rank the sites; needs a single probability "
        "or number of faults, so not --sweep",
    )
    group.add_argument(
        "--seed",
        type=types.seed,
        metavar="N",
        help="seed of the faults; the same seed gives the same faults",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--num-runs",
        type=types.count,
        default=1,
        metavar="N",
        help="trials for each probability, each with its own faults (default: 1)",
    )
    group.add_argument(
        "--batch-size",
        type=types.count,
        metavar="N",
        help="samples in a batch (default: training.batch_size); the faults do not depend on it",
    )
    types.add_device(group)
    types.add_no_progress(group)
    types.add_speed_options(
        parser.add_argument_group("speed", "the results are the same with each")
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output", "an existing file of a given name is replaced")
    group.add_argument(
        "--output",
        type=types.file,
        metavar="FILE",
        help="JSON with all results (default: fault_eval_TYPE.json in the current folder; if "
        "that holds another evaluation, fault_eval_TYPE_2.json and so on)",
    )
    group.add_argument("--csv", type=types.file, metavar="FILE", help="results as a table")
    group.add_argument(
        "--plot",
        type=types.file,
        metavar="FILE",
        help="picture (.png, .svg or .pdf): accuracy against probability, or with --per-layer "
        "the ranking",
    )


# -- the command ----------------------------------------------------------------------------


def _evaluate(options: argparse.Namespace) -> int:
    let_threads_sleep()
    # Imported here, so that --help and a bad flag need neither torch nor brevitas.
    from fxfault.cli.evaluation_run import claim_outputs, read_experiment
    from fxfault.cli.reports.evaluation_report import Findings

    progress = Progress(wanted=not options.no_progress)
    experiment, notes = read_experiment(options)
    outputs = claim_outputs(options, experiment)
    with progress.showing_logs(experiment.fault_injection.verbose):
        sources = Sources(Path.cwd(), {}, EVALUATION)  # Before code of the user's may leave it.
        setting, evaluation = _prepare(options, experiment, notes, sources, progress)
        findings = Findings()
        passes = 1 + setting.num_runs * len(setting.configs)
        passes += setting.num_runs * len(setting.selected) if setting.per_layer else 0
        progress.start(passes * setting.batches.samples)
        try:
            with raising():
                _measure(setting, evaluation, findings, progress)
        except KeyboardInterrupt:
            pass
        finally:
            progress.close()
    status = _finish(setting, findings, outputs, progress)
    sources.check()
    return status


def _prepare(
    options: argparse.Namespace,
    experiment: ExperimentConfig,
    notes: Sequence[str],
    sources: Sources,
    progress: Progress,
) -> tuple[Setting, FaultEvaluation]:
    """Open the data, build the network and its sites, and say what was found."""
    import fxfault
    from fxfault.campaign.fault_evaluation import FaultEvaluation
    from fxfault.cli.evaluation_run import with_rates
    from fxfault.cli.reports.evaluation_report import Setting, full_run_note, setting_lines
    from fxfault.evaluation.runners import make_runner
    from fxfault.experiment.parts import Batches, open_test_data, pick_device
    from fxfault.passes import frozen_parts
    from fxfault.sites.fault_sites import faults_of

    device = pick_device(options.device)
    progress.say(f"Using device: {device}")
    seed_generators(experiment.seed)
    data = open_test_data(experiment)
    batches = Batches(data.dataset, experiment.training.batch_size)
    model, checkpoint = _load(experiment, data.facts, batches, device, sources, progress)
    model = fxfault.freeze(model) if options.freeze else model
    faults = faults_of(model)
    drawn = f" (drawn; repeat with --seed {faults.seed})"
    progress.say(f"Seed: {faults.seed}{drawn if experiment.fault_injection.seed is None else ''}")
    for note in notes:
        progress.note(note)
    setting = Setting(
        command=options.command,
        experiment=experiment,
        faults=faults,
        checkpoint=checkpoint,
        facts=data.facts,
        batches=batches,
        device=device,
        configs=with_rates(options, experiment.fault_injection),
        num_runs=options.num_runs,
        sweep=options.sweep is not None or len(options.num_faults or ()) > 1,
        per_layer=options.per_layer,
        frozen=frozen_parts(model) if options.freeze else None,
    )
    progress.say("\n" + "\n".join(setting_lines(setting)))
    track = experiment.fault_injection.track_statistics
    useless = full_run_note(options.verify, options.compile, options.cache_memory)
    if track and useless:
        progress.note(useless)
    runner = make_runner(
        model,
        batches,
        device,
        progress.note,
        incremental=not track,
        compile=options.compile,
        cache_memory=options.cache_memory,
        verify=options.verify,
    )
    return setting, FaultEvaluation(runner, options.num_runs, track, progress.advance)


def _load(
    experiment: ExperimentConfig,
    facts: DatasetFacts | None,
    batches: Batches,
    device: torch.device,
    sources: Sources,
    progress: Progress,
) -> tuple[nn.Module, CheckpointInfo]:
    """Build the network with its weights and its sites."""
    import fxfault
    from fxfault.evaluation.checks import check_model, try_model
    from fxfault.experiment.parts import load_model

    assert experiment.dataset is not None
    assert experiment.model is not None
    count = f"{len(batches)} test batches, {batches.samples} samples"
    progress.say(f"Dataset: {experiment.dataset.name} ({count})")
    progress.say(f"Model: {experiment.model.name}")
    progress.say(f"Loading checkpoint: {experiment.checkpoint.path}")
    path = experiment.checkpoint.path
    model, checkpoint = load_model(experiment, path, facts, str(sources.folder))
    assert checkpoint is not None
    sources.note(checkpoint.path, checkpoint.sha256)
    model.to(device)
    fit_threads(try_model(model, batches, device), device)
    faulty = fxfault.transform(model, experiment.fault_injection)
    for note in check_model(faulty, model, batches, device, most=1):
        progress.note(note)
    return faulty, checkpoint


def _measure(
    setting: Setting, evaluation: FaultEvaluation, findings: Findings, progress: Progress
) -> None:
    """Evaluate all rates and sites, and add each result to the findings."""
    import torch

    from fxfault.cli.reports.evaluation_report import WIDE, single_lines, sweep_lines
    from fxfault.errors import DataError
    from fxfault.evaluation.chance import doubt_of
    from fxfault.evaluation.runners import run_golden

    say = progress.say
    try:
        say(f"\n{WIDE}\nEvaluating baseline (no faults)...")
        findings.baseline = evaluation.baseline()
        say(f"Baseline accuracy: {findings.baseline:.2f}%")
        findings.doubt = doubt_of(evaluation.runner.golden())
        if findings.doubt is not None:
            progress.note(findings.doubt)
        run_golden(evaluation.runner, progress.note)
        findings.never_called = evaluation.check(setting.configs, each_alone=setting.per_layer)
        if findings.never_called:
            progress.note(f"never called in this evaluation: {', '.join(findings.never_called)}")
        say(f"\n{WIDE}")
        for result in evaluation.evaluate(_announced(setting, progress)):
            findings.results.append(result)
            lines = sweep_lines(result) if setting.sweep else ["", *single_lines(result)]
            say("\n".join(lines))
        if setting.per_layer:
            _measure_layers(setting, evaluation, findings, progress)
    except torch.OutOfMemoryError as error:
        raise DataError(f"out of memory on {setting.device}: lower --batch-size") from error
    findings.complete = True


def _announced(setting: Setting, progress: Progress) -> Iterator[FaultInjectionConfig]:
    """Give each configuration, and say so when its turn comes."""
    from fxfault.cli.reports.evaluation_report import announcement

    for config in setting.configs:
        progress.say(announcement(setting, config))
        yield config


def _measure_layers(
    setting: Setting, evaluation: FaultEvaluation, findings: Findings, progress: Progress
) -> None:
    from fxfault.cli.reports.evaluation_report import WIDE
    from fxfault.cli.terminal.text import mean_and_std

    assert findings.baseline is not None
    progress.say(f"\n{WIDE}\nEvaluating each layer alone...")
    number = setting.struck_alone(findings)
    for result in evaluation.per_layer(setting.configs[0]):
        findings.layers.append(result)
        place = f"{len(findings.layers)}/{number}"
        progress.say(f"  {place} {result.cell.place}: {mean_and_std(result)}")


def _finish(
    setting: Setting, findings: Findings, outputs: dict[str, OutputFile], progress: Progress
) -> int:
    """Print the tables and write the files, also after an interruption."""
    from fxfault.cli.reports.evaluation_report import (
        WIDE,
        interrupted_line,
        ranking_lines,
        summary_lines,
    )

    if not findings.results:
        progress.say("interrupted before the first result: nothing was written", error=True)
        return INTERRUPTED
    if setting.sweep:
        progress.say("\n" + "\n".join([WIDE, *summary_lines(findings.results)]))
    if findings.layers:
        progress.say("\n" + "\n".join([WIDE, *ranking_lines(findings)]))
    progress.say()
    _write(setting, findings, outputs, progress)
    if findings.complete:
        return 0
    progress.say(interrupted_line(setting, findings), error=True)
    return INTERRUPTED


def _write(
    setting: Setting, findings: Findings, outputs: dict[str, OutputFile], progress: Progress
) -> None:
    from fxfault.cli.pictures.drawing import MOST_BARS
    from fxfault.cli.pictures.plots import evaluation_picture
    from fxfault.cli.reports.evaluation_export import to_csv, to_json

    first, saved = outputs["json"].path, outputs["json"].write(to_json(setting, findings))
    kept = "" if saved == first else f" ({first} is kept: it holds something else)"
    progress.say(f"Results saved to: {saved}{kept}")
    if "csv" in outputs:
        outputs["csv"].write(to_csv(findings))
        progress.say(f"Table saved to: {outputs['csv'].path}")
    if "plot" not in outputs or (setting.per_layer and not findings.layers):
        return
    path = outputs["plot"].path
    picture_format = path.suffix.lower().removeprefix(".")
    outputs["plot"].write(evaluation_picture(setting, findings, picture_format))
    left_out = max(0, len(findings.layers) - MOST_BARS)
    note = f" (the {MOST_BARS} most vulnerable layers; {left_out} left out)"
    progress.say(f"Picture saved to: {path}{note if left_out else ''}")


if __name__ == "__main__":
    sys.exit(main())
