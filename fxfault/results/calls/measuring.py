"""Measure what a setting asks for, and tell a follower of each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from fxfault.campaign.cell_result import CellResult
from fxfault.campaign.fault_evaluation import FaultEvaluation
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import DataError
from fxfault.evaluation.chance import doubt_of
from fxfault.evaluation.runners import run_golden
from fxfault.results.reports.evaluation_report import Findings, Setting
from fxfault.results.reports.seen_sites import SeenSites


class Follower:
    """Is told of each step of `measure`; this one ignores all."""

    def note(self, text: str) -> None:
        """Hear what a user should know."""

    def on_baseline_start(self) -> None:
        """The evaluation without faults starts."""

    def on_baseline_end(self, findings: Findings) -> None:
        """The evaluation without faults ended."""

    def on_checked(self, findings: Findings) -> None:
        """All configurations fit the network."""

    def on_rate_start(self, setting: Setting, config: FaultInjectionConfig) -> None:
        """The trials of a rate start."""

    def on_rate_end(self, setting: Setting, result: CellResult) -> None:
        """The trials of a rate ended."""

    def on_layers_start(self) -> None:
        """The trials with one site struck alone start."""

    def on_layer_end(self, setting: Setting, findings: Findings) -> None:
        """The trials of one site ended; its result is the last one of the findings."""


def number_of_samples(setting: Setting) -> int:
    """About how many samples `measure` evaluates, for a progress bar."""
    passes = 1 + setting.num_runs * len(setting.configs)
    passes += setting.num_runs * len(setting.selected) if setting.per_layer else 0
    return passes * setting.samples


def measure(
    setting: Setting, evaluation: FaultEvaluation, findings: Findings, follower: Follower
) -> None:
    """Evaluate all rates and sites, and add each result to the findings.

    If it is interrupted, the findings have the finished results.

    Args:
        setting: what to evaluate.
        evaluation: the network, with its data.
        findings: empty findings.
        follower: is told of each step.

    Raises:
        FxFaultError: the settings do not fit the network, or it fails.
    """
    try:
        follower.on_baseline_start()
        findings.baseline = evaluation.baseline()
        golden = evaluation.runner.golden()
        findings.metric = golden.facts
        findings.classes = getattr(golden, "classes", None)
        follower.on_baseline_end(findings)
        findings.doubt = doubt_of(golden)
        if findings.doubt is not None:
            follower.note(findings.doubt)
        run_golden(evaluation.runner, follower.note)
        findings.never_called = evaluation.check(setting.configs, each_alone=setting.per_layer)
        if findings.never_called:
            follower.note(f"never called in this evaluation: {', '.join(findings.never_called)}")
        follower.on_checked(findings)
        for result in evaluation.evaluate(_announced(setting, follower)):
            findings.results.append(result)
            follower.on_rate_end(setting, result)
        if setting.per_layer:
            follower.on_layers_start()
            for result in evaluation.per_layer(setting.configs[0]):
                findings.layers.append(result)
                follower.on_layer_end(setting, findings)
    except torch.OutOfMemoryError as error:
        raise DataError(
            f"out of memory on {setting.device}: use smaller batches (--batch-size, or the loader)"
        ) from error
    findings.complete = True


def _announced(setting: Setting, follower: Follower) -> Iterator[FaultInjectionConfig]:
    """Give each configuration, and say so when its turn comes."""
    for config in setting.configs:
        follower.on_rate_start(setting, config)
        yield config


def seen_again(setting: Setting, evaluation: FaultEvaluation) -> Setting:
    """The setting, with what the evaluation has shown of the sites."""
    return dataclasses.replace(setting, faults=SeenSites.of(evaluation.faults))
