"""One run of `fxfault eval`: its configuration, its results, and the files that it writes."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import fxfault
from fxfault.bundled.files import BUNDLED
from fxfault.campaign.cell_result import CellResult
from fxfault.campaign.estimates.intervals import wilson
from fxfault.campaign.fault_evaluation import (
    FaultEvaluation,
    with_num_faults,
    with_probability,
)
from fxfault.campaign.records.fingerprint import of_state
from fxfault.cli.configurations import read_experiment
from fxfault.cli.evaluation_replay import files_of, with_replay
from fxfault.cli.terminal.interrupts import INTERRUPTED, raising
from fxfault.cli.terminal.process_setup import fit_threads, seed_generators
from fxfault.cli.terminal.progress import Progress
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.data import DatasetFacts
from fxfault.errors import ConfigError, DataError
from fxfault.evaluation.checks import insert_faults
from fxfault.evaluation.runners import make_runner
from fxfault.experiment.parts import (
    Batches,
    batches_of,
    check_sections,
    load_metric,
    load_model,
    open_test_data,
    pick_device,
)
from fxfault.experiment.sections import ExperimentConfig
from fxfault.files.access import expanded, no_such_file
from fxfault.files.sources import EVALUATION, Sources
from fxfault.metrics.metric import Metric
from fxfault.models.checkpoints import AS_MADE, CheckpointInfo
from fxfault.passes import frozen_parts
from fxfault.results.calls.armed import armed, runs_of
from fxfault.results.calls.measuring import Follower, measure, number_of_samples, seen_again
from fxfault.results.outputs import NumberedFile, OutputFile, refuse_overwriting
from fxfault.results.pictures.drawing import MOST_BARS, Look
from fxfault.results.pictures.plots import check_plot, evaluation_picture
from fxfault.results.reports.evaluation_export import is_same_evaluation, to_csv, to_json
from fxfault.results.reports.evaluation_report import (
    WIDE,
    Findings,
    Setting,
    announcement,
    full_run_note,
    interrupted_line,
    ranking_lines,
    setting_lines,
    single_lines,
    summary_lines,
    sweep_lines,
)
from fxfault.results.reports.seen_sites import SeenSites
from fxfault.results.reports.text import listed, mean_and_std
from fxfault.sites.fault_sites import faults_of

Outputs = dict[str, OutputFile]


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate as the command line says; returns the exit status."""
    progress = Progress(wanted=not options.no_progress)
    experiment, notes = _read_experiment(options)
    outputs = _claim_outputs(options, experiment)
    with progress.showing_logs(experiment.fault_injection.verbose):
        sources = Sources(Path.cwd(), {}, EVALUATION)  # The user's code may change the folder.
        setting, evaluation = _prepare(options, experiment, notes, sources, progress)
        findings = Findings(tolerance=options.tolerance)
        progress.start(number_of_samples(setting))
        try:
            with raising():
                measure(setting, evaluation, findings, _Printer(progress))
        except KeyboardInterrupt:
            pass
        finally:
            progress.close()
    look = Look(options.style, options.figure_size)
    found = seen_again(setting, evaluation)
    status = _finish(found, findings, outputs, progress, look)
    sources.check()
    return status


# -- before the run -------------------------------------------------------------------------


def _read_experiment(options: argparse.Namespace) -> tuple[ExperimentConfig, list[str]]:
    """Read the configuration, change it as the command line says, and give notes on that."""
    _check_options(options)
    experiment = read_experiment(options)
    faults = with_replay(options, experiment.fault_injection)
    experiment = dataclasses.replace(experiment, fault_injection=faults)
    check_sections(experiment, ["dataset", "model"], options.config)
    path, notes = experiment.checkpoint.path, list[str]()
    start = experiment.checkpoint.init_from
    if path is None:
        notes.append(_note_on_weights(options, experiment))
    # Checked here, before data is downloaded.
    elif not path.startswith(BUNDLED) and not expanded(path).exists():
        raise DataError(f"checkpoint {path!r}: {no_such_file(path)}; check the path")
    if start is not None and path is not None:
        notes.append(f"`checkpoint.init_from` is ignored: it is for training; {path} is evaluated")
    faults, changes = armed(experiment.fault_injection)
    notes += changes
    faults.validate()
    options.num_runs = runs_of(options.num_runs, faults, "--num-runs")
    return dataclasses.replace(experiment, fault_injection=faults), notes


def _note_on_weights(options: argparse.Namespace, experiment: ExperimentConfig) -> str:
    """Say that a factory's network is taken as it is; a built-in one would be untrained."""
    assert experiment.model is not None
    name, start = experiment.model.name, experiment.checkpoint.init_from
    from_there = f" (checkpoint.init_from, {start}, is what training starts from)" if start else ""
    if ":" not in name:
        raise ConfigError(
            f"no checkpoint: give --checkpoint FILE, or set checkpoint.path in {options.config}"
            f"{from_there}"
        )
    return (
        f"no checkpoint: the weights are as {name} made them{from_there}; if it does not load "
        "trained ones, give --checkpoint FILE or set checkpoint.path"
    )


def _check_options(options: argparse.Namespace) -> None:
    if options.per_layer and options.sweep is not None:
        raise ConfigError("--per-layer takes one probability: give --probability, not --sweep")
    if options.per_layer and len(options.num_faults or ()) > 1:
        raise ConfigError("--per-layer takes one number of faults: give --num-faults one")
    if options.compile and not options.freeze:
        raise ConfigError("--compile needs a frozen network: leave --no-freeze out")
    wilson(0, 1)  # Raises now, and not after the work, if scipy is missing.


def _with_rates(
    options: argparse.Namespace, config: FaultInjectionConfig
) -> tuple[FaultInjectionConfig, ...]:
    """Give the configuration once for each rate of the command line, or as it is."""
    if options.num_faults is not None:
        return tuple(with_num_faults(config, count) for count in options.num_faults)
    if options.sweep is not None:
        return tuple(with_probability(config, value) for value in options.sweep)
    if options.probability is not None:
        return (with_probability(config, options.probability),)
    return (config,)


def _claim_outputs(options: argparse.Namespace, experiment: ExperimentConfig) -> Outputs:
    """Check before the work that the output files can be written.

    By default the JSON goes to the current folder, not beside the checkpoint as the specification
    has it, and it replaces only an earlier result of the same evaluation.
    """
    given = {"json": options.output, "csv": options.csv, "plot": options.plot}
    if options.plot is not None:
        check_plot(options.plot)
    outputs = {
        name: OutputFile("--output" if name == "json" else f"--{name}", path)
        for name, path in given.items()
        if path is not None
    }
    inputs: dict[str, str | Path] = {"configuration": options.config}
    if experiment.checkpoint.path is not None:
        inputs["checkpoint"] = expanded(experiment.checkpoint.path)
    refuse_overwriting(outputs.values(), {**inputs, **files_of(experiment.fault_injection)})
    if options.output is None:
        faults = experiment.fault_injection
        kind = faults.injection_type if faults.faults is None else "faults"
        default, others = Path(f"fault_eval_{kind}.json"), tuple(outputs.values())
        outputs["json"] = NumberedFile("--output", default, is_same_evaluation, others)
    return outputs


def _prepare(
    options: argparse.Namespace,
    experiment: ExperimentConfig,
    notes: Sequence[str],
    sources: Sources,
    progress: Progress,
) -> tuple[Setting, FaultEvaluation]:
    """Open the data, build the network and its sites, and say what was found."""
    device = pick_device(options.device)
    progress.say(f"Using device: {device}")
    assert experiment.model is not None
    assert experiment.dataset is not None
    seed_generators(experiment.seed)
    data = open_test_data(experiment)
    batches, metric = batches_of(experiment, data.dataset), load_metric(experiment)
    model, checkpoint = _load(experiment, data.facts, batches, metric, device, sources, progress)
    model = fxfault.freeze(model) if options.freeze else model
    faults = faults_of(model)
    drawn = f" (drawn; repeat with --seed {faults.seed})"
    progress.say(f"Seed: {faults.seed}{drawn if experiment.fault_injection.seed is None else ''}")
    for note in notes:
        progress.note(note)
    setting = Setting(
        command=options.command,
        experiment=experiment,
        network=experiment.model.name,
        data=experiment.dataset.name,
        faults=SeenSites.of(faults),
        checkpoint=checkpoint,
        num_classes=None if data.facts is None else data.facts.num_classes,
        samples=batches.samples,
        batches=len(batches),
        device=device,
        configs=_with_rates(options, experiment.fault_injection),
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
        metric=metric,
    )
    return setting, FaultEvaluation(runner, options.num_runs, track, progress.advance)


def _load(
    experiment: ExperimentConfig,
    facts: DatasetFacts | None,
    batches: Batches,
    metric: Metric | None,
    device: torch.device,
    sources: Sources,
    progress: Progress,
) -> tuple[nn.Module, CheckpointInfo]:
    """Build the network with its weights and its sites."""
    assert experiment.dataset is not None
    assert experiment.model is not None
    count = f"{len(batches)} test batches, {batches.samples} samples"
    progress.say(f"Dataset: {experiment.dataset.name} ({count})")
    progress.say(f"Model: {experiment.model.name}")
    path = experiment.checkpoint.path
    progress.say(f"Weights: {AS_MADE}" if path is None else f"Loading checkpoint: {path}")
    model, checkpoint = load_model(experiment, path, facts, str(sources.folder))
    if checkpoint is None:
        checkpoint = CheckpointInfo("", of_state(model), tuple(model.state_dict()))
    else:
        sources.note(checkpoint.path, checkpoint.sha256)
    model.to(device)
    batches.forward = model.forward
    everything = model, experiment.fault_injection, batches, device, metric
    fit = functools.partial(fit_threads, device=device)
    return insert_faults(*everything, on_note=progress.note, on_work=fit), checkpoint


# -- the run --------------------------------------------------------------------------------


class _Printer(Follower):
    """Prints each step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def note(self, text: str) -> None:
        self._progress.note(text)

    def _say(self, text: str) -> None:
        self._progress.say(text)

    def on_baseline_start(self) -> None:
        self._say(f"\n{WIDE}\nEvaluating baseline (no faults)...")

    def on_baseline_end(self, findings: Findings) -> None:
        metric = findings.metric
        assert findings.baseline is not None
        self._say(f"Baseline {metric.name}: {metric.shown(findings.baseline)}")
        if not metric.is_accuracy:
            self._say(f"Metric: {metric.sentence}")

    def on_checked(self, findings: Findings) -> None:
        self._say(f"\n{WIDE}")

    def on_rate_start(self, setting: Setting, config: FaultInjectionConfig) -> None:
        self._say(announcement(setting, config))

    def on_rate_end(self, setting: Setting, result: CellResult) -> None:
        lines = sweep_lines(result) if setting.sweep else ["", *single_lines(result)]
        self._say("\n".join(lines))

    def on_layers_start(self) -> None:
        self._say(f"\n{WIDE}\nEvaluating each layer alone...")

    def on_layer_end(self, setting: Setting, findings: Findings) -> None:
        result = findings.layers[-1]
        place = f"{len(findings.layers)}/{setting.struck_alone(findings)}"
        self._say(f"  {place} {result.cell.place}: {mean_and_std(result)}")


# -- after the run --------------------------------------------------------------------------


def _finish(
    setting: Setting, findings: Findings, outputs: Outputs, progress: Progress, look: Look
) -> int:
    """Print the tables and write the files, also after an interruption."""
    if not findings.results:
        progress.say("interrupted before the first result: nothing was written", error=True)
        return INTERRUPTED
    if setting.sweep:
        progress.say("\n" + "\n".join([WIDE, *summary_lines(findings.results)]))
    if findings.layers:
        progress.say("\n" + "\n".join([WIDE, *ranking_lines(findings)]))
    progress.say("\n" + "\n".join(["Verdict:", *listed(findings.verdict.sentences)]))
    progress.say()
    _write(setting, findings, outputs, progress, look)
    if findings.complete:
        return 0
    progress.say(interrupted_line(setting, findings), error=True)
    return INTERRUPTED


def _write(
    setting: Setting, findings: Findings, outputs: Outputs, progress: Progress, look: Look
) -> None:
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
    outputs["plot"].write(evaluation_picture(setting, findings, picture_format, look))
    left_out = max(0, len(findings.layers) - MOST_BARS)
    note = f" (the {MOST_BARS} most vulnerable layers; {left_out} left out)"
    progress.say(f"Picture saved to: {path}{note if left_out else ''}")
