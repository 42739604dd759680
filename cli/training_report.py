"""The lines that `fxfault train` prints: what it does, its plan, and its results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from fxfault.config.curriculum import EpochPlan, epoch_plan
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.experiment.sections import ExperimentConfig
from fxfault.messages import counted
from fxfault.metrics.facts import MetricFacts
from fxfault.results.reports.text import lined_up, percent
from fxfault.sites.fault_sites import FaultSites
from fxfault.training.batch_norm import batch_norms
from fxfault.training.optimizers import learning_rate
from fxfault.training.run import TrainingResult
from fxfault.training.run_folder import CALIBRATED

# In a plan of more epochs, those with the same faults share a line.
LONGEST_PLAN = 20
_SHOWN_GROUPS = 16

# Percentage points by which the metric under faults may be the better one by chance.
_ODDLY_BETTER = 1.0
# The same for a metric without percentages, as a share of the value without faults.
_ODD_SHARE = 0.02

_settings = attrgetter("probability", "step_interval", "epoch_interval", "injection_type")


def start_lines(
    config: ExperimentConfig,
    sites: FaultSites | None,
    sizes: Sequence[int],
    *,
    device: str,
    beginning: str,
    folder: str | None,
) -> list[str]:
    """Say what is trained, on which data (so many samples in each split), and under which faults.

    `sites` is None without faults, and `folder` if nothing is written.
    """
    assert config.dataset is not None
    assert config.model is not None
    training, validation, test = sizes
    return [
        f"Using device: {device}",
        f"Dataset: {config.dataset.name} ({training} training, {validation} validation, "
        f"{test} test samples)",
        f"Model: {config.model.name}",
        f"Starting from: {beginning}",
        f"Seed: {config.seed.value} (of the faults: {config.fault_injection.seed})",
        *([] if folder is None else [f"Run folder: {folder}"]),
        "",
        *_fault_lines(config, sites),
        "",
    ]


def _fault_lines(config: ExperimentConfig, sites: FaultSites | None) -> list[str]:
    """The block that says which faults strike, where and when."""
    faults = config.fault_injection
    if sites is None:
        return ["Fault Injection: none (fault_injection.enabled is false)"]
    selected = sum(site.selected for site in sites)
    number = str(len(sites)) if selected == len(sites) else f"{selected} of {len(sites)}"
    lines = [
        "Fault Injection Configuration:",
        f"  Injection layers: {number}",
        f"  Mode: {faults.mode}",
        *_what_strikes(faults, epoch_plan(faults, 0)),
        f"  Apply during: {faults.apply_during}{_meaning(faults.apply_during)}",
    ]
    if faults.apply_during != "eval":
        lines.append(f"  Noisy steps: {percent(100 * faults.step_interval, 0)}, {_epochs(config)}")
        lines.append(f"  Gradient mode: {faults.gradient_mode}")
    return lines


def _what_strikes(faults: FaultInjectionConfig, plan: EpochPlan) -> list[str]:
    if plan.several:
        return [f"  Faults: {'; '.join(map(str, plan.entries))}"]
    name = getattr(faults.injection_type, "name", faults.injection_type)
    return [f"  Injection type: {name}", f"  Probability: {percent(faults.probability)}"]


def _meaning(apply_during: str) -> str:
    if apply_during == "eval":
        return " (training is clean; faults strike in a second validation)"
    return " (also in a second validation)" if apply_during == "both" else ""


def _epochs(config: ExperimentConfig) -> str:
    faults = config.fault_injection
    if faults.curriculum is not None:
        return f"changed by a curriculum of {len(faults.curriculum)} points"
    interval = faults.epoch_interval
    return "in every epoch" if interval == 1 else f"in epochs 0, {interval}, {2 * interval}, ..."


# -- the plan -------------------------------------------------------------------------------


def plan_lines(config: ExperimentConfig) -> list[str]:
    """A table of what happens in each epoch, from 0; in a long plan, epochs share lines."""
    epochs = config.training.epochs
    plans = [epoch_plan(config.fault_injection, epoch) for epoch in range(epochs)]
    same = _settings if epochs > LONGEST_PLAN else attrgetter("epoch")
    groups = [list(group) for _, group in groupby(plans, same)]
    rows = [_plan_row(config, group) for group in groups]
    if len(rows) > LONGEST_PLAN:
        left = sum(map(len, groups[_SHOWN_GROUPS:-2]))
        gap = (f"({left} more)", *("..." for _ in rows[0][1:]))
        rows = [*rows[:_SHOWN_GROUPS], gap, *rows[-2:]]
    heads = ("Epoch", "Learning rate", "Probability", "step_interval", "Type", "Noisy")
    return lined_up(heads, rows, gap="  ")


def _plan_row(config: ExperimentConfig, plans: Sequence[EpochPlan]) -> tuple[str, ...]:
    first, last = plans[0], plans[-1]
    span = f"{first.epoch}" if first is last else f"{first.epoch}-{last.epoch}"
    start, final = (f"{learning_rate(config, plan.epoch):.3g}" for plan in (first, last))
    rates = start if start == final else f"{start} to {final}"
    faults = config.fault_injection
    if not faults.enabled or faults.apply_during == "eval":
        return span, rates, "-", "-", "-", "no"
    name = getattr(first.injection_type, "name", first.injection_type)
    rate = percent(first.probability, 0)
    if first.several:
        rate, name = "-", "; ".join(map(str, first.entries))
    values = rate, f"{first.step_interval:g}", str(name)
    return span, rates, *values, _noisy(plans)


def _noisy(plans: Sequence[EpochPlan]) -> str:
    noisy = sum(plan.noisy for plan in plans)
    if noisy in (0, len(plans)):
        return "yes" if noisy else "no"
    return f"{noisy} of {len(plans)} (every {plans[0].epoch_interval}th)"


# -- results --------------------------------------------------------------------------------


def epoch_line(row: Mapping[str, float], epochs: int, metric: MetricFacts) -> str:
    """Write the measurements of an epoch in one line; epochs count from 0.

    >>> psnr = MetricFacts("psnr", "dB")
    >>> epoch_line({"epoch": 0, "train_loss": 1.5, "val_psnr": 20.0, "steps": 8.0,
    ...             "noisy_steps": 3.0, "seconds": 2.0}, 12, psnr)
    'Epoch  0/11: loss 1.5000, validation psnr 20 dB, 3 of 8 steps noisy, 2.0 s'
    """
    name = f"val_{metric.column}"
    number = f"{row['epoch']:.0f}".rjust(len(str(epochs - 1)))
    parts = [f"loss {row['train_loss']:.4f}"]
    if "train_accuracy" in row:
        parts.append(f"accuracy {row['train_accuracy']:.2f}%")
    if name in row:
        which = "" if metric.is_accuracy else f"{metric.name} "
        parts.append(f"validation {which}{metric.shown(row[name])}")
    if f"faulty_{name}" in row:
        parts[-1] += f" ({metric.shown(row[f'faulty_{name}'])} under faults)"
    parts.append(f"{row['noisy_steps']:.0f} of {row['steps']:.0f} steps noisy")
    return f"Epoch {number}/{epochs - 1}: {', '.join(parts)}, {row['seconds']:.1f} s"


def result_lines(
    config: ExperimentConfig, result: TrainingResult, folder: Path, again: str
) -> list[str]:
    """Say what the training reached, and with which weights; `again` is how to resume it."""
    lines = []
    which = "last epoch's weights"
    if result.best is not None:
        by = config.checkpoint.best_by
        which = f"weights of epoch {result.best['epoch']:.0f}, the best in {by} validation"
    if result.calibrated:
        how = config.training.calibrate
        which += f", batch norm calibrated {how}"
        kept = f"; saved to {folder / CALIBRATED}" if config.checkpoint.enabled else ""
        norms = counted(result.calibrated, "batch norm")
        lines.append(f"Statistics of {norms} estimated again ({how}){kept}")
    facts = result.metric
    name = "accuracy" if facts.is_accuracy else facts.name
    lines.append(f"Test {name}: {facts.shown(result.test_value)} ({which})")
    if result.faulty_test_value is not None:
        shown = "no finite value"
        if not math.isnan(result.faulty_test_value):
            shown = facts.shown(result.faulty_test_value)
        lines.append(f"Test {name} under faults: {shown}")
        if _has_noisy_statistics(result, result.faulty_test_value):
            mend = "train with --set training.calibrate=clean"
            if config.checkpoint.enabled:
                mend = f"estimate them again: {again} --set training.calibrate=clean"
            lines.append(
                "Note: it is better under faults, as its batch norms have the statistics of noisy "
                f"steps; for use without faults, {mend}"
            )
    return lines


def _has_noisy_statistics(result: TrainingResult, faulty: float) -> bool:
    """Whether batch norms make the network worse without faults than under them."""
    better = result.metric.loss(faulty, result.test_value)
    margin = _ODDLY_BETTER if result.metric.unit == "%" else _ODD_SHARE * abs(result.test_value)
    if result.calibrated or not better > margin:
        return False
    return bool(batch_norms(result.network))
