"""What `fxfault-eval` found, as lines for the console, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxfault.checkpoints import CheckpointInfo
from fxfault.data import DatasetFacts
from fxfault.evaluation import AccuracyUnderFaults, LayerResult, ProbabilityResult, rank
from fxfault.experiment import ExperimentConfig
from fxfault.fault_models import label_of
from fxfault.passes import FrozenPart
from fxfault.sites import FaultSite, FaultSites
from fxfault.statistics import FaultStatistics

SCHEMA = "fxfault-eval/1"
WIDE, THIN = "=" * 60, "-" * 60


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is evaluated, and how.

    Attributes:
        command: the command line.
        experiment: the configuration with what the command line changed in it.
        faults: the sites of the transformed model.
        checkpoint: the weights.
        facts: of the data set, where known.
        samples: of the data set.
        batches: in one pass over it.
        batch_size: samples in a batch.
        device: torch's name of it.
        device_name: the maker's name of a GPU; None for the CPU.
        probabilities: that are evaluated, in percent.
        num_runs: trials for each result.
        sweep: whether the probabilities are a sweep (of one, perhaps).
        per_layer: whether each site is struck alone, too.
        frozen: what became of each quantised layer; None where the model is not frozen.
    """

    command: str
    experiment: ExperimentConfig
    faults: FaultSites
    checkpoint: CheckpointInfo
    facts: DatasetFacts | None
    samples: int
    batches: int
    batch_size: int
    device: str
    device_name: str | None
    probabilities: tuple[float, ...]
    num_runs: int
    sweep: bool
    per_layer: bool
    frozen: Sequence[FrozenPart] | None

    @property
    def selected(self) -> list[FaultSite]:
        """The sites that the configuration selects; in mode `layer`, one is taken for a trial."""
        return [site for site in self.faults if site.selected]

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing, in percent, if the classes are balanced; None if unknown."""
        return None if self.facts is None else 100.0 / self.facts.num_classes


@dataclass(kw_only=True)
class Findings:
    """Results so far.

    Attributes:
        baseline: accuracy without faults, in percent; None before it is known.
        results: one for each probability, in the order asked for.
        layers: one for each site struck alone, in the order of execution.
        complete: whether that is all.
    """

    baseline: float | None = None
    results: list[ProbabilityResult] = field(default_factory=list)
    layers: list[LayerResult] = field(default_factory=list)
    complete: bool = False


# -- lines for the console ------------------------------------------------------------------


def percent(value: float, decimals: int = 1) -> str:
    """Write a percentage with at least some decimals, and with more where they would lie.

    >>> percent(10.0), percent(0.0001), percent(10.0, decimals=0), percent(2.5, decimals=0)
    ('10.0%', '0.0001%', '10%', '2.5%')
    """
    short = f"{value:.{decimals}f}"
    return f"{short if float(short) == value else format(value, '.10g')}%"


def points(value: float) -> str:
    """Write a difference of two percentages, with its sign.

    >>> points(5.142), points(-0.0001)
    ('+5.14%', '+0.00%')
    """
    return f"{round(value, 2) + 0.0:+.2f}%"


def mean_and_std(result: AccuracyUnderFaults) -> str:
    """Write an accuracy, with its standard deviation where there were several trials."""
    spread = f" ± {result.std:.2f}%" if len(result.runs) > 1 else ""
    return f"{result.mean:.2f}%{spread}"


def setting_lines(setting: Setting) -> list[str]:
    """The block that says which faults strike where."""
    config = setting.experiment.fault_injection
    drawn = config.mode == "layer" and config.injection_layer == -1
    number, chosen = str(len(setting.faults)), setting.selected
    if not drawn and len(chosen) < len(setting.faults):
        number = f"{len(chosen)} of {number} ({_listed(site.name for site in chosen)})"
    several = len(setting.probabilities) > 1
    values = ", ".join(percent(p, 0 if several else 1) for p in setting.probabilities)
    unit = " of the bits" if config.rate_unit == "bit" else ""
    lines = [
        "Fault Injection Configuration:",
        f"  Injection layers: {number}",
        f"  Mode: {config.mode}{' (one drawn for each run)' if drawn else ''}",
        f"  Injection type: {label_of(setting.faults[0].fault_model)}",
        f"  {'Probabilities' if several else 'Probability'}: {values}{unit}",
    ]
    if config.hw_mask:
        lines.append(f"  Hardware mask: {config.frequency_value} parallel units")
    if setting.num_runs > 1:
        lines.append(f"  Runs: {setting.num_runs} (± is their sample standard deviation)")
    if setting.faults.skipped and config.unsupported == "skip":
        lines.append(f"  Skipped, no fault can strike: {_listed(setting.faults.skipped)}")
    return lines


def _listed(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    more = [f"{len(listed) - most} more"] if len(listed) > most else []
    return ", ".join(listed[:most] + more)


def rate_line(result: AccuracyUnderFaults) -> str | None:
    """How many elements were hit in fact; None where nobody counted."""
    if result.statistics is None:
        return None
    hit, total = result.statistics.total_injections, result.statistics.total_activations
    return f"  Realised fault rate: {result.injection_rate:.6g}% ({hit} of {total} values)"


def layer_of_runs_line(result: ProbabilityResult) -> str | None:
    """Which site each trial struck; None unless `mode: layer` names one."""
    if result.run_layers is None:
        return None
    return f"  Layer of each run: {', '.join(map(str, result.run_layers))}"


def single_lines(result: ProbabilityResult) -> list[str]:
    """The results of one probability, with the statistics."""
    runs = f" ({len(result.runs)} runs)" if len(result.runs) > 1 else ""
    lines = [
        "Results:",
        f"  Baseline accuracy:   {result.baseline:.2f}%",
        f"  Fault accuracy:      {mean_and_std(result)}{runs}",
        f"  Accuracy degradation: {points(result.degradation)}",
    ]
    lines += filter(None, [rate_line(result), layer_of_runs_line(result)])
    if result.statistics is not None:
        lines += ["", result.statistics.report()]
    return lines


def sweep_lines(result: ProbabilityResult) -> list[str]:
    """The results of one probability of several."""
    lines = [f"  Accuracy: {result.mean:.2f}% (std: {result.std:.2f}%)"]
    return lines + list(filter(None, [rate_line(result), layer_of_runs_line(result)]))


def summary_lines(results: Sequence[ProbabilityResult]) -> list[str]:
    """The table at the end of a sweep."""
    width = max([10, *(len(mean_and_std(result)) for result in results)])
    lines = [
        "Sweep Summary:",
        f" {'Probability':>11} | {'Accuracy':>{width}} | {'Degradation':>12}",
        "-" * (30 + width),
    ]
    for result in results:
        lines.append(
            f" {percent(result.probability):>11} | {mean_and_std(result):>{width}} |"
            f" {points(result.degradation):>12}"
        )
    return lines


def ranking_lines(results: Sequence[LayerResult]) -> list[str]:
    """The table of sites struck alone, the most vulnerable first."""
    width = max([10, *(len(mean_and_std(result)) for result in results)])
    lines = [
        "Layer Ranking (each struck alone, the most vulnerable first):",
        f" {'Rank':>4} | {'Layer':>5} | {'Accuracy':>{width}} | {'Degradation':>12} | Site",
        "-" * (47 + width),
    ]
    for place, result in enumerate(rank(results), start=1):
        lines.append(
            f" {place:>4} | {result.index:>5} | {mean_and_std(result):>{width}} |"
            f" {points(result.degradation):>12} | {result.name}"
        )
    return lines


# -- files ----------------------------------------------------------------------------------


def to_json(setting: Setting, findings: Findings) -> str:
    """The JSON document; docs/eval-json.md describes it."""
    return json.dumps(_document(setting, findings), indent=2, allow_nan=False) + "\n"


def _document(setting: Setting, findings: Findings) -> dict[str, Any]:
    import torch

    experiment, checkpoint = setting.experiment, setting.checkpoint
    assert experiment.model is not None
    assert experiment.dataset is not None
    ranked = [_layer_entry(result) for result in rank(findings.layers)]
    return {
        "schema": SCHEMA,
        "complete": findings.complete,
        "command": setting.command,
        "config": experiment.to_dict(),
        "model": {"name": experiment.model.name, "kwargs": dict(experiment.model.kwargs)},
        "dataset": {
            "name": experiment.dataset.name,
            "kwargs": dict(experiment.dataset.kwargs),
            "split": "test",
            "samples": setting.samples,
            "batches": setting.batches,
            "batch_size": setting.batch_size,
            "num_classes": None if setting.facts is None else setting.facts.num_classes,
        },
        "checkpoint": {"path": checkpoint.path, "sha256": checkpoint.sha256},
        "seed": setting.faults.seed,
        "device": setting.device,
        "device_name": setting.device_name,
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "frozen": None if setting.frozen is None else _frozen_entry(setting.frozen),
        "injection_layers": [_site_entry(site) for site in setting.faults],
        "skipped": dict(setting.faults.skipped),
        "baseline": findings.baseline,
        "results": [_result_entry(result) for result in findings.results],
        "per_layer": ranked if setting.per_layer else None,
        "statistics": _all_statistics(findings.results),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import numpy
    import torch

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "brevitas": version("brevitas"),
        "numpy": numpy.__version__,
        "fxfault": version("fxfault"),
    }


def _frozen_entry(parts: Sequence[FrozenPart]) -> dict[str, Any]:
    what = [part.what for part in parts]
    return {
        "weights": what.count("weights"),
        "activations": what.count("activation"),
        "left": [f"{part.path} ({part.type}): {part.why_not}" for part in parts if not part.what],
    }


def _site_entry(site: FaultSite) -> dict[str, Any]:
    return {
        "index": site.index,
        "name": site.name,
        "module_path": site.module_path,
        "module_type": site.module_type,
        "bit_width": site.bit_width,
        "signed": site.signed,
        "narrow_range": site.quantiser.narrow_range,
        "elements": site.elements,
        "selected": site.selected,
    }


def _common_entry(result: AccuracyUnderFaults) -> dict[str, Any]:
    return {
        "probability": result.probability,
        "mean": result.mean,
        "std": result.std,
        "runs": list(result.runs),
        "degradation": result.degradation,
        "injection_rate": result.injection_rate,
    }


def _result_entry(result: ProbabilityResult) -> dict[str, Any]:
    layers, statistics = result.run_layers, result.statistics
    return {
        **_common_entry(result),
        "run_layers": None if layers is None else list(layers),
        "statistics": None if statistics is None else statistics.to_dict(),
    }


def _layer_entry(result: LayerResult) -> dict[str, Any]:
    own = None
    if result.statistics is not None:
        own = result.statistics.layer_stats[result.index].to_dict()
    return {"index": result.index, "name": result.name, **_common_entry(result), "statistics": own}


def _all_statistics(results: Sequence[ProbabilityResult]) -> dict[str, Any] | None:
    parts = [result.statistics for result in results if result.statistics is not None]
    if not parts:
        return None
    total = FaultStatistics(len(parts[0].layer_stats))
    for part in parts:
        total.merge(part)
    return total.to_dict()


def to_csv(findings: Findings) -> str:
    """One row for each result, sites struck alone last and ranked; figures in percent."""
    rows: list[AccuracyUnderFaults] = [*findings.results, *rank(findings.layers)]
    runs = [f"run_{number}" for number in range(len(rows[0].runs))]
    head = ["layer", "site", "probability", "baseline", "mean", "std", "degradation"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, "injection_rate", *runs])
    for row in rows:
        layer = (row.index, row.name) if isinstance(row, LayerResult) else ("all", "")
        figures = (row.probability, row.baseline, row.mean, row.std, row.degradation)
        rate = "" if row.injection_rate is None else _figure(row.injection_rate)
        writer.writerow([*layer, *map(_figure, figures), rate, *map(_figure, row.runs)])
    return text.getvalue()


def _figure(value: float) -> str:
    # Ten digits: 88.32, and not 88.32000000000001.
    return format(value, ".10g")
