"""`fxfault-eval`: how the accuracy of a quantised network falls under faults."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfault.cli import arguments as types
from fxfault.cli.console import run
from fxfault.cli.interrupts import INTERRUPTED, raising
from fxfault.cli.progress import Progress
from fxfault.files import expanded
from fxfault.sources import EVALUATION, Sources

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fxfault.checkpoints import CheckpointInfo
    from fxfault.cli.evaluation_report import Findings, Setting
    from fxfault.cli.experiment_setup import Batches
    from fxfault.cli.outputs import OutputFile
    from fxfault.config import FaultInjectionConfig
    from fxfault.data import DatasetFacts
    from fxfault.evaluation import FaultEvaluation
    from fxfault.experiment import ExperimentConfig
    from fxfault.predictions import Runner

PROGRAM = "fxfault-eval"
BUNDLED = "bundled:"

DESCRIPTION = """\
Measure how the accuracy of a quantised network falls when its activations are hit by faults.
Faults are injected while evaluating, whatever `apply_during` in the configuration says."""

FULL_FOR_STATISTICS = (
    "every run is a full one, so {} no effect: statistics are tracked (set `track_statistics: "
    "false` for faster runs)"
)

EPILOG = """\
examples:
  fxfault-eval --config digits --sweep 0,1,2,5,10,20,50 --num-runs 5 --plot accuracy.png
  fxfault-eval --config digits --per-layer --probability 5 --num-runs 5
  fxfault-eval --config my.yaml --checkpoint best.pth --probability 10 --injection-type msb_flip

exit status: 0 done; 2 something in the input is wrong, nothing was written (but where the
checkpoint was replaced meanwhile: what is written is of the old one);
130 interrupted, what was finished is written and marked as incomplete."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `fxfault-eval --help`.

    Args:
        argv: the command line without the program; default: that of the process.

    Returns:
        The exit status.
    """
    options = make_parser().parse(argv)
    options.command = shlex.join([PROGRAM, *(sys.argv[1:] if argv is None else argv)])
    return run(_evaluate, options)


def make_parser() -> types.OneLineParser:
    """The command's options."""
    parser = types.OneLineParser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add(
        "--config",
        required=True,
        metavar="FILE",
        help="configuration file, or the name of a bundled one, such as digits",
    )
    add(
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
    group = parser.add_argument_group("faults", "these take the place of the configuration's")
    chosen = group.add_mutually_exclusive_group()
    chosen.add_argument(
        "--probability", type=types.percentage, metavar="PERCENT", help="0 to 100, of each value"
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
        help="in place of a probability: so many hits in each sample, spread over all selected "
        "sites; several numbers are evaluated one after the other",
    )
    group.add_argument("--injection-type", metavar="NAME", help="fault model, such as msb_flip")
    group.add_argument(
        "--mode",
        choices=("full_model", "layer"),
        help="strike all selected sites, or one of them: `injection_layer` of the configuration, "
        "or one drawn for each run",
    )
    group.add_argument(
        "--layer",
        type=types.layers,
        action="extend",
        metavar="SITE,...",
        help="select sites: an index, a name or a pattern such as 'layer1.*'; may be repeated; "
        "with --mode layer, one of them is drawn for each run",
    )
    group.add_argument(
        "--per-layer",
        action="store_true",
        help="also strike each selected site alone, and rank them; takes one probability or "
        "number of faults, so not with --sweep",
    )
    group.add_argument(
        "--seed", type=types.seed, metavar="N", help="of the faults; the same seed, the same faults"
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--num-runs",
        type=types.count,
        default=1,
        metavar="N",
        help="evaluations for each probability, each with its own faults (default: 1)",
    )
    group.add_argument(
        "--batch-size",
        type=types.count,
        metavar="N",
        help="samples in a batch (default: training.batch_size); the faults do not depend on it",
    )
    group.add_argument(
        "--device",
        type=types.device,
        default="auto",
        metavar="NAME",
        help="auto, cpu, cuda or cuda:N (default: auto, CUDA where there is one)",
    )
    group.add_argument(
        "--no-freeze",
        dest="freeze",
        action="store_false",
        help="quantise weights anew in each batch; slower, and the results are the same",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="run evaluations that change nearly everything by torch.compile, where it and a C++ "
        "compiler can, outputs are bit for bit those without, and it is faster; takes up to a "
        "minute first",
    )
    group.add_argument(
        "--cache-memory",
        type=types.memory,
        metavar="SIZE",
        help="memory for activations of the fault-free run, such as 512M or 2G, from which runs "
        "under faults start; with 0 they start from the data (default: a quarter of what is "
        "free); the results are the same",
    )
    group.add_argument(
        "--verify",
        type=types.percentage,
        metavar="PERCENT",
        help="run this share of the batches in full and without compiled code, too, and stop if "
        "predictions differ; 0 for none (default: one batch with struck samples in the first "
        "trial of each setting, in a later one where it would take more than 2%% of the time so "
        "far)",
    )
    group.add_argument("--no-progress", action="store_true", help="show no progress bar")


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output", "files that are named here are replaced")
    group.add_argument(
        "--output",
        type=types.file,
        metavar="FILE",
        help="JSON with all results (default: fault_eval_TYPE.json in the current folder; where "
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
    # Read when torch is imported. Threads that spin while they wait for each other made a run on
    # a machine with other work three times longer; the results are the same.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Imported here, so that --help and a bad flag need neither torch nor brevitas.
    from fxfault.cli.evaluation_report import Findings

    progress = Progress(wanted=not options.no_progress)
    experiment, notes = _read_experiment(options)
    outputs = _claim_outputs(options, experiment)
    with progress.showing_logs(experiment.fault_injection.verbose):
        sources = Sources(Path.cwd(), {}, EVALUATION)  # Before code of the user's may leave it.
        setting, evaluation = _prepare(options, experiment, notes, sources, progress)
        findings = Findings()
        passes = 1 + setting.num_runs * len(setting.configs)
        passes += setting.num_runs * len(setting.selected) if setting.per_layer else 0
        progress.start(passes * setting.samples)
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


def _read_experiment(options: argparse.Namespace) -> tuple[ExperimentConfig, list[str]]:
    """The configuration with what the command line changes in it, and what to say of that."""
    from fxfault.cli.experiment_setup import check_sections
    from fxfault.errors import ConfigError, DataError
    from fxfault.experiment import load_experiment

    if options.per_layer and options.sweep is not None:
        raise ConfigError("--per-layer takes one probability: give --probability, not --sweep")
    if options.per_layer and len(options.num_faults or ()) > 1:
        raise ConfigError("--per-layer takes one number of faults: give --num-faults one")
    _check_intervals()
    if options.compile and not options.freeze:
        raise ConfigError("--compile needs a frozen network: leave --no-freeze out")
    experiment = load_experiment(options.config)
    check_sections(experiment, ["dataset", "model"], options.config)
    path = options.checkpoint or experiment.checkpoint.path
    start = experiment.checkpoint.init_from
    if path is None:
        from_there = f" (checkpoint.init_from, {start}, is what training starts from)"
        raise ConfigError(
            f"no checkpoint: give --checkpoint FILE, or set checkpoint.path in {options.config}"
            f"{from_there if start else ''}"
        )
    if not path.startswith(BUNDLED) and not expanded(path).exists():
        # Before data is downloaded.
        raise DataError(f"checkpoint {path!r}: there is no such file; check the path")
    if experiment.fault_injection.faults is not None:
        _check_beside_faults(options)
    notes: list[str] = []
    if start is not None:
        notes.append(f"`checkpoint.init_from` is left out: it is for training; {path} is evaluated")
    changes = _fault_changes(options, experiment, notes)
    faults = dataclasses.replace(experiment.fault_injection, **changes)
    faults.validate()
    size = options.batch_size or experiment.training.batch_size
    changed = dataclasses.replace(
        experiment,
        fault_injection=faults,
        checkpoint=dataclasses.replace(experiment.checkpoint, path=path),
        training=dataclasses.replace(experiment.training, batch_size=size),
    )
    return changed, notes


def _check_intervals() -> None:
    """Check before the work that intervals can be computed."""
    from fxfault.campaign.intervals import wilson

    wilson(0, 1)


def _check_beside_faults(options: argparse.Namespace) -> None:
    """Refuse what each entry of `faults` says for itself."""
    from fxfault.errors import ConfigError

    names = ("probability", "sweep", "num_faults", "injection_type", "layer", "per_layer")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    given += ["--probability"] if options.probability == 0 else []
    if given:
        raise ConfigError(
            f"{', '.join(given)}: {options.config} has `faults`, each with its own rate and "
            "layers; change them there, or leave the option out"
        )


def _fault_changes(
    options: argparse.Namespace, experiment: ExperimentConfig, notes: list[str]
) -> dict[str, Any]:
    config = experiment.fault_injection
    given = {
        "injection_type": options.injection_type,
        "mode": "full_model" if options.per_layer else options.mode,
        "layers": options.layer,
        # A fixed site might not be among the ones that --layer selects.
        "injection_layer": None if options.layer is None else -1,
        "seed": options.seed,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    if options.sweep is None or config.num_faults is not None:
        first = _rates(options, config)[0]
        changes.update(probability=first.probability, num_faults=first.num_faults)
    if not config.enabled:
        notes.append("`enabled: true` for this run: the configuration says false")
        changes["enabled"] = True
    if config.apply_during == "train":
        notes.append("`apply_during: eval` for this run: the configuration says train")
        changes["apply_during"] = "eval"
    if config.curriculum is not None:
        notes.append("`curriculum` is left out: it is for training")
        changes["curriculum"] = None
    return changes


def _rates(
    options: argparse.Namespace, config: FaultInjectionConfig
) -> tuple[FaultInjectionConfig, ...]:
    """The configuration with each rate that the command line asks for, or as it is."""
    from fxfault.evaluation import with_num_faults, with_probability

    if options.num_faults is not None:
        return tuple(with_num_faults(config, count) for count in options.num_faults)
    sweep = options.sweep or (options.probability,)
    if sweep != (None,):
        return tuple(with_probability(config, value) for value in sweep)
    return (config,)


def _claim_outputs(
    options: argparse.Namespace, experiment: ExperimentConfig
) -> dict[str, OutputFile]:
    """Check the files to be written; raises before the work what would be found after it.

    The specification puts the JSON beside the checkpoint, where one evaluation replaced the
    results of the one before. It stands in the current folder, and only the same evaluation
    again takes its place.
    """
    from fxfault.cli.outputs import NumberedFile, OutputFile, refuse_overwriting
    from fxfault.cli.plots import check_plot

    checkpoint = str(experiment.checkpoint.path)
    outputs = {}
    if options.output is not None:
        outputs["json"] = OutputFile("--output", options.output)
    if options.csv is not None:
        outputs["csv"] = OutputFile("--csv", options.csv)
    if options.plot is not None:
        check_plot(options.plot)
        outputs["plot"] = OutputFile("--plot", options.plot)
    refuse_overwriting(
        outputs.values(),
        {"configuration": options.config, "checkpoint": expanded(checkpoint)},
    )
    if options.output is None:
        faults = experiment.fault_injection
        kind = faults.injection_type if faults.faults is None else "faults"
        default, others = Path(f"fault_eval_{kind}.json"), tuple(outputs.values())
        outputs["json"] = NumberedFile("--output", default, _is_same_evaluation, others)
    return outputs


def _is_same_evaluation(old: Any, new: Any) -> bool:
    """Whether a JSON document holds the evaluation that another one holds, or a part of it.

    >>> entry = {"probability": 5.0, "num_faults": None, "runs": [50.0]}
    >>> new = {"schema": "fxfault-eval/1", "complete": True, "config": {}, "per_layer": None,
    ...        "checkpoint": {"sha256": "0f"}, "results": [entry, {**entry, "probability": 10.0}]}
    >>> part = {**new, "complete": False, "results": [entry]}
    >>> _is_same_evaluation(part, new), _is_same_evaluation(new, part)
    (True, False)
    >>> _is_same_evaluation({**new, "config": {"seed": 1}}, new), _is_same_evaluation([], new)
    (False, False)

    Args:
        old: anything that JSON can hold.
        new: a document as `to_json` writes it.
    """
    try:
        (then, is_complete), (now, will_be) = ((_asked(doc), doc["complete"]) for doc in (old, new))
    except (KeyError, TypeError, IndexError):
        return False
    if then[0] != now[0] or (is_complete and not will_be):
        return False
    done, number = then[1], len(then[1])  # The first ones, where it was interrupted.
    return done == now[1] if is_complete else done == now[1][:number]


def _asked(document: Any) -> tuple[list[Any], list[Any]]:
    """What an evaluation was asked for: all that counts, and the rates that were done."""
    results = document["results"]
    common = [
        document["schema"],
        document["config"],
        document["checkpoint"]["sha256"],
        document["per_layer"] is not None,
        len(results[0]["runs"]),
    ]
    return common, [(entry["probability"], entry["num_faults"]) for entry in results]


def _prepare(
    options: argparse.Namespace,
    experiment: ExperimentConfig,
    notes: Sequence[str],
    sources: Sources,
    progress: Progress,
) -> tuple[Setting, FaultEvaluation]:
    """Open the data, build the network and its sites, and say what was found."""
    import torch

    import fxfault
    from fxfault.cli import experiment_setup as setup
    from fxfault.cli.evaluation_report import Setting, setting_lines
    from fxfault.evaluation import FaultEvaluation
    from fxfault.passes import frozen_parts
    from fxfault.sites import faults_of

    device = setup.pick_device(options.device)
    progress.say(f"Using device: {device}")
    setup.seed_generators(experiment.seed)
    data = setup.open_test_data(experiment)
    batches = setup.Batches(data.dataset, experiment.training.batch_size)
    model, checkpoint = _load(experiment, data.facts, batches, device, sources, progress)
    model = fxfault.freeze(model) if options.freeze else model
    faults = faults_of(model)
    _say_seed_and_notes(experiment, faults.seed, notes, progress)
    setting = Setting(
        command=options.command,
        experiment=experiment,
        faults=faults,
        checkpoint=checkpoint,
        facts=data.facts,
        samples=batches.samples,
        batches=len(batches),
        batch_size=experiment.training.batch_size,
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        configs=_rates(options, experiment.fault_injection),
        num_runs=options.num_runs,
        sweep=options.sweep is not None or len(options.num_faults or ()) > 1,
        per_layer=options.per_layer,
        frozen=frozen_parts(model) if options.freeze else None,
    )
    progress.say("\n" + "\n".join(setting_lines(setting)))
    track, on_batch = experiment.fault_injection.track_statistics, progress.advance
    runner = _runner(options, model, batches, device, track, progress)
    evaluation = FaultEvaluation(runner, options.num_runs, track, on_batch)
    return setting, evaluation


def _runner(
    options: argparse.Namespace,
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    track: bool,
    progress: Progress,
) -> Runner:
    """Choose how the model is run, and say why not as asked for."""
    from fxfault.compiled_runner import CompiledRunner
    from fxfault.incremental import IncrementalRunner
    from fxfault.predictions import FullRunner

    runner: Runner = FullRunner(model, batches, device)
    if not track:
        runner = IncrementalRunner(model, batches, device, options.cache_memory, options.verify)
    elif options.verify and not options.compile:
        progress.say("Note: " + FULL_FOR_STATISTICS.format("--cache-memory and --verify have"))
    elif options.cache_memory is not None:
        progress.say("Note: " + FULL_FOR_STATISTICS.format("--cache-memory has"))
    if options.compile:
        runner = CompiledRunner(runner, options.verify, lambda text: progress.say(f"Note: {text}"))
    return runner


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
    from fxfault.cli import experiment_setup as setup

    assert experiment.dataset is not None
    assert experiment.model is not None
    count = f"{len(batches)} test batches, {batches.samples} samples"
    progress.say(f"Dataset: {experiment.dataset.name} ({count})")
    progress.say(f"Model: {experiment.model.name}")
    progress.say(f"Loading checkpoint: {experiment.checkpoint.path}")
    path = experiment.checkpoint.path
    model, checkpoint = setup.load_model(experiment, path, facts, str(sources.folder))
    assert checkpoint is not None
    sources.note(checkpoint.path, checkpoint.sha256)
    model.to(device)
    setup.fit_threads(setup.try_model(model, batches, device), device)
    faulty = fxfault.transform(model, experiment.fault_injection)
    for note in setup.check_model(faulty, model, batches, device, most=1):
        progress.say(f"Note: {note}")
    return faulty, checkpoint


def _say_seed_and_notes(
    experiment: ExperimentConfig, seed: int, notes: Sequence[str], progress: Progress
) -> None:
    drawn = experiment.fault_injection.seed is None
    progress.say(f"Seed: {seed}" + (f" (drawn; repeat with --seed {seed})" if drawn else ""))
    for note in notes:
        progress.say(f"Note: {note}")


def _measure(
    setting: Setting, evaluation: FaultEvaluation, findings: Findings, progress: Progress
) -> None:
    """Evaluate all that was asked for; findings grow as results come in."""
    import torch

    from fxfault.chance import doubt_of
    from fxfault.cli.evaluation_report import WIDE, single_lines, sweep_lines
    from fxfault.errors import DataError

    say = progress.say
    try:
        say(f"\n{WIDE}\nEvaluating baseline (no faults)...")
        findings.baseline = evaluation.baseline()
        say(f"Baseline accuracy: {findings.baseline:.2f}%")
        findings.doubt = doubt_of(evaluation.runner.golden())
        why = getattr(evaluation.runner, "why_full", None)
        for note in filter(None, [findings.doubt, why, evaluation.faults.layouts_note]):
            say(f"Note: {note}")
        findings.never_called = evaluation.check(setting.configs, each_alone=setting.per_layer)
        if findings.never_called:
            say(f"Note: never called in this evaluation: {', '.join(findings.never_called)}")
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
    """What is evaluated; each is named when its turn comes."""
    from fxfault.cli.evaluation_report import percent, rate_label

    for config in setting.configs:
        if setting.sweep and config.num_faults is None:
            progress.say(f"\nEvaluating with probability {percent(config.probability, 0)}...")
        else:
            start = "\n" if setting.sweep else ""
            progress.say(f"{start}Evaluating with {rate_label(config)}...")
        yield config


def _measure_layers(
    setting: Setting, evaluation: FaultEvaluation, findings: Findings, progress: Progress
) -> None:
    from fxfault.cli.evaluation_report import WIDE, mean_and_std

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
    """Print the tables and write the files, also those of an interrupted run."""
    from fxfault.cli.evaluation_report import WIDE, ranking_lines, summary_lines

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
    kind = "probabilities" if setting.configs[0].num_faults is None else "numbers of faults"
    kept = f"{len(findings.results)} of {len(setting.configs)} {kind}"
    if setting.per_layer:
        kept = f"{len(findings.layers)} of {setting.struck_alone(findings)} layers"
    progress.say(f"interrupted: {kept} done and kept; the JSON says complete: false", error=True)
    return INTERRUPTED


def _write(
    setting: Setting, findings: Findings, outputs: dict[str, OutputFile], progress: Progress
) -> None:
    from fxfault.cli import plots
    from fxfault.cli.campaign_report import standing_lines
    from fxfault.cli.evaluation_report import to_csv, to_json
    from fxfault.cli.figures import MOST_BARS

    first, saved = outputs["json"].path, outputs["json"].write(to_json(setting, findings))
    kept = "" if saved == first else f" ({first} is kept: it holds something else)"
    progress.say(f"Results saved to: {saved}{kept}")
    if "csv" in outputs:
        outputs["csv"].write(to_csv(findings))
        progress.say(f"Table saved to: {outputs['csv'].path}")
    if "plot" not in outputs:
        return
    picture_format = outputs["plot"].path.suffix.lower().removeprefix(".")
    if not setting.per_layer:
        picture = plots.sweep_picture(
            findings.results, findings.results[0].cell.fault, setting.chance, picture_format
        )
    elif findings.layers:
        headline = " ".join(standing_lines([site for site, _ in findings.ranked])).rstrip(".")
        results = [result for _, result in findings.ranked]
        picture = plots.ranking_picture(results, picture_format, headline)
    else:
        return
    outputs["plot"].write(picture)
    left_out = max(0, len(findings.layers) - MOST_BARS)
    note = f" (the {MOST_BARS} most vulnerable layers; {left_out} left out)"
    progress.say(f"Picture saved to: {outputs['plot'].path}{note if left_out else ''}")


if __name__ == "__main__":
    sys.exit(main())
