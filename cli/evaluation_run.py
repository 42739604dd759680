"""One run of `fxfault-eval`: its configuration, its results, and the files that it writes."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxfault
from fxfault.bundled.files import BUNDLED
from fxfault.campaign.estimates.intervals import wilson
from fxfault.campaign.fault_evaluation import (
    FaultEvaluation,
    with_num_faults,
    with_probability,
)
from fxfault.cli.evaluation_replay import files_of, runs_of, with_replay
from fxfault.cli.terminal.interrupts import INTERRUPTED, raising
from fxfault.cli.terminal.outputs import NumberedFile, OutputFile, refuse_overwriting
from fxfault.cli.terminal.process_setup import fit_threads, seed_generators
from fxfault.cli.terminal.progress import Progress
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.data import DatasetFacts
from fxfault.errors import ConfigError, DataError
from fxfault.evaluation.chance import doubt_of
from fxfault.evaluation.checks import check_model, try_model
from fxfault.evaluation.runners import make_runner, run_golden
from fxfault.experiment.parts import (
    Batches,
    batches_of,
    check_sections,
    load_metric,
    load_model,
    open_test_data,
    pick_device,
)
from fxfault.experiment.sections import ExperimentConfig, load_experiment
from fxfault.files.access import expanded
from fxfault.files.sources import EVALUATION, Sources
from fxfault.metrics.metric import Metric
from fxfault.models.checkpoints import CheckpointInfo
from fxfault.passes import frozen_parts
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
    look = Look(options.style, options.figure_size)
    status = _finish(setting, findings, outputs, progress, look)
    sources.check()
    return status


# -- before the run -------------------------------------------------------------------------


def _read_experiment(options: argparse.Namespace) -> tuple[ExperimentConfig, list[str]]:
    """Read the configuration, change it as the command line says, and give notes on that."""
    _check_options(options)
    experiment = load_experiment(options.config)
    faults = with_replay(options, experiment.fault_injection)
    experiment = dataclasses.replace(experiment, fault_injection=faults)
    check_sections(experiment, ["dataset", "model"], options.config)
    path = options.checkpoint or experiment.checkpoint.path
    start = experiment.checkpoint.init_from
    if path is None:
        from_there = f" (checkpoint.init_from, {start}, is what training starts from)"
        raise ConfigError(
            f"no checkpoint: give --checkpoint FILE, or set checkpoint.path in {options.config}"
            f"{from_there if start else ''}"
        )
    # Checked here, before data is downloaded.
    if not path.startswith(BUNDLED) and not expanded(path).exists():
        raise DataError(f"checkpoint {path!r}: there is no such file; check the path")
    if faults.faults is not None and options.replay is None:
        _check_beside_faults(options)
    notes: list[str] = []
    if start is not None:
        notes.append(f"`checkpoint.init_from` is ignored: it is for training; {path} is evaluated")
    changes = _fault_changes(options, experiment.fault_injection, notes)
    faults = dataclasses.replace(experiment.fault_injection, **changes)
    faults.validate()
    options.num_runs = runs_of(options.num_runs, faults)
    size = options.batch_size or experiment.training.batch_size
    changed = dataclasses.replace(
        experiment,
        fault_injection=faults,
        checkpoint=dataclasses.replace(experiment.checkpoint, path=path),
        training=dataclasses.replace(experiment.training, batch_size=size),
    )
    return changed, notes


def _check_options(options: argparse.Namespace) -> None:
    if options.per_layer and options.sweep is not None:
        raise ConfigError("--per-layer takes one probability: give --probability, not --sweep")
    if options.per_layer and len(options.num_faults or ()) > 1:
        raise ConfigError("--per-layer takes one number of faults: give --num-faults one")
    if options.compile and not options.freeze:
        raise ConfigError("--compile needs a frozen network: leave --no-freeze out")
    wilson(0, 1)  # Raises now, and not after the work, if scipy is missing.


def _check_beside_faults(options: argparse.Namespace) -> None:
    """Refuse the options that each entry of `faults` sets for itself."""
    names = ("probability", "sweep", "num_faults", "injection_type", "memory", "layer", "per_layer")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    given += ["--probability"] if options.probability == 0 else []
    if given:
        raise ConfigError(
            f"{', '.join(given)}: {options.config} has `faults`, each with its own rate, memory "
            "and layers; change them there, or leave the option out"
        )


def _fault_changes(
    options: argparse.Namespace, config: FaultInjectionConfig, notes: list[str]
) -> dict[str, Any]:
    given = {
        "injection_type": options.injection_type,
        "memory": options.memory if options.replay is None else None,  # The list's entry has it.
        "mode": "full_model" if options.per_layer else options.mode,
        "layers": options.layer,
        # --layer may not select the fixed site of the configuration.
        "injection_layer": None if options.layer is None else -1,
        "seed": options.seed,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    if options.sweep is None or config.num_faults is not None:
        first = _with_rates(options, config)[0]
        changes.update(probability=first.probability, num_faults=first.num_faults)
    if not config.enabled:
        notes.append("`enabled: true` for this run: the configuration says false")
        changes["enabled"] = True
    if config.apply_during == "train":
        notes.append("`apply_during: eval` for this run: the configuration says train")
        changes["apply_during"] = "eval"
    if config.curriculum is not None:
        notes.append("`curriculum` is ignored: it is for training")
        changes["curriculum"] = None
    return changes


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
    checkpoint = expanded(str(experiment.checkpoint.path))
    inputs = {"configuration": options.config, "checkpoint": checkpoint}
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
        faults=faults,
        checkpoint=checkpoint,
        facts=data.facts,
        batches=batches,
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
    progress.say(f"Loading checkpoint: {experiment.checkpoint.path}")
    path = experiment.checkpoint.path
    model, checkpoint = load_model(experiment, path, facts, str(sources.folder))
    assert checkpoint is not None
    sources.note(checkpoint.path, checkpoint.sha256)
    model.to(device)
    batches.forward = model.forward
    fit_threads(try_model(model, batches, device, metric), device)
    faulty = fxfault.transform(model, experiment.fault_injection)
    for note in check_model(faulty, model, batches, device, most=1):
        progress.note(note)
    return faulty, checkpoint


# -- the run --------------------------------------------------------------------------------


def _measure(
    setting: Setting, evaluation: FaultEvaluation, findings: Findings, progress: Progress
) -> None:
    """Evaluate all rates and sites, and add each result to the findings."""
    say = progress.say
    try:
        say(f"\n{WIDE}\nEvaluating baseline (no faults)...")
        findings.baseline = evaluation.baseline()
        golden = evaluation.runner.golden()
        findings.classes = getattr(golden, "classes", None)
        findings.metric = metric = golden.facts
        say(f"Baseline {metric.name}: {metric.shown(findings.baseline)}")
        if not metric.is_accuracy:
            say(f"Metric: {metric.sentence}")
        findings.doubt = doubt_of(golden)
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
    for config in setting.configs:
        progress.say(announcement(setting, config))
        yield config


def _measure_layers(
    setting: Setting, evaluation: FaultEvaluation, findings: Findings, progress: Progress
) -> None:
    progress.say(f"\n{WIDE}\nEvaluating each layer alone...")
    number = setting.struck_alone(findings)
    for result in evaluation.per_layer(setting.configs[0]):
        findings.layers.append(result)
        place = f"{len(findings.layers)}/{number}"
        progress.say(f"  {place} {result.cell.place}: {mean_and_std(result)}")


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
