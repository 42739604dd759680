"""One case: files, and the command that reads them; the commands that there are."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from attacks.law import MAINS
from fuzz.tiny import network

from fxfault.cli.terminal.console import run
from fxfault.experiment import load_experiment
from fxfault.models.checkpoints import load_checkpoint

CONFIGURATION, STUDY, STORE, CHECKPOINT = ("configuration", "study", "store", "checkpoint")


@dataclass(frozen=True)
class Case:
    """What one command is given.

    Attributes:
        argv: name of the command and its arguments; `load-KIND` stands for what commands do first.
        files: that are written into an empty folder, in which the command runs.
        outputs: files that the command writes if all is well, and else must not.
    """

    argv: tuple[str, ...]
    files: Mapping[str, bytes]
    outputs: tuple[str, ...] = ()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What Hypothesis prints; the files are kept."""
        sizes = ", ".join(f"{name} ({len(content)} bytes)" for name, content in self.files.items())
        printer.text(f"{' '.join(self.argv)}: in a folder with {sizes}")


def _load_configuration(argv: Sequence[str]) -> int:
    return run(lambda _: load_experiment(argv[0]) and 0, argparse.Namespace())


def _load_study(argv: Sequence[str]) -> int:
    from fxfault.campaign import Study

    def cross(_: argparse.Namespace) -> int:
        sites = [f"features.{number}" for number in range(5)]
        study = Study.from_yaml(argv[0])
        Study.from_dict(study.to_dict())
        study.cells(sites, dict.fromkeys(sites, 4))
        return 0

    return run(cross, argparse.Namespace())


def _load_checkpoint(argv: Sequence[str]) -> int:
    model = _network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    status = run(lambda _: load_checkpoint(argv[0], model) and 0, argparse.Namespace())
    if status == 0:
        _network.cache_clear()  # The next case is to have the same as this one.
    elif not _is_same(before, model.state_dict()):
        raise AssertionError("a checkpoint that is refused changes the network")
    return status


# To copy one takes longer than to refuse a checkpoint.
_network = cache(network)


def _is_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return [*one] == [*other] and all(torch.equal(one[key], other[key]) for key in one)


LOADERS: dict[str, Callable[[Sequence[str]], int]] = {
    "load-configuration": _load_configuration,
    "load-study": _load_study,
    "load-checkpoint": _load_checkpoint,
}
COMMANDS = {**MAINS, **LOADERS}
