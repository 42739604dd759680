"""What an evaluation says that it hit, against the list of every fault and the statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
from brevitas.nn import QuantIdentity, QuantReLU
from torch import Tensor, nn

import fxfault
from fxfault.evaluation import FullRunner, IncrementalRunner
from fxfault.evaluation.trials import Trials
from fxfault.sites.statistics import FaultStatistics

SIZES = (4, 4, 3)
FAULTS = {"enabled": True, "apply_during": "eval", "seed": 5}


class Kept(nn.Module):
    """Keeps its Python code, as it asks for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(12, 12), QuantReLU(bit_width=4)
        self.last, self.out = QuantIdentity(bit_width=4), nn.Linear(12, 4)


class Scales(Kept):
    """A head that is called for three scales, each smaller than the one before."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 1e9:
            x = -x
        large, middle, small = self.act(x), self.act(x[:, ::2]), self.act(x[:, :1])
        x = torch.cat([large[:, :3], middle[:, :6], small.expand(-1, 3)], 1)
        return self.out(self.last(x))


class MoreForSome(Kept):
    """Calls a layer again for batches with large values."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        if x.max() > 2:
            y = self.act(y - 0.3)
        return self.out(self.last(y))


class OnlyForSome(Kept):
    """Calls a layer for batches with large values only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        return self.out(self.last(y) if x.max() > 2 else y)


class OfTheBatch(Kept):
    """One number for all samples of a batch is quantised."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = -y if y.sum() > 1e9 else y
        return self.out(self.act(y) * self.last(y.mean(0)))


class Beside(Kept):
    """A graph with a part that keeps its code."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MoreForSome()
        self.inner.out = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.last(self.act(self.first(self.inner(x)))))


NETWORKS: list[Callable[[], nn.Module]] = [Scales, MoreForSome, OnlyForSome, OfTheBatch, Beside]


def data() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(sum(SIZES), 12, generator=torch.Generator().manual_seed(1))
    x[5, 3] = 2.5  # So that one batch has a value above 2.
    x[:4], x[8:] = x[:4].clamp(max=1.5), x[8:].clamp(max=1.5)
    return list(zip(x.split(SIZES), torch.zeros(sum(SIZES)).long().split(SIZES), strict=True))


def transformed(network: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(2)
    net = network()
    for x, _ in data():
        net.train()(x)  # Scales.
    return fxfault.transform(net.eval(), {**FAULTS, "probability": 1.0})


def configs() -> Iterable[fxfault.FaultInjectionConfig]:
    for kind, settings in (
        ("msb_flip", {"probability": 3.0}),
        ("random", {"probability": 25.0}),
        ("lsb_flip", {"num_faults": 2}),
        ("bit_flip", {"probability": 4.0, "rate_unit": "bit"}),
        ("lsb_flip", {"probability": 100.0}),
    ):
        yield fxfault.FaultInjectionConfig(injection_type=kind, **settings)


def listed(model: Any, trial: int) -> tuple[list[bool], int]:
    """Which samples the list of faults has, and how many elements, by forwards of single batches.

    Samples that share an activation are hit together.
    """
    struck, elements, done = [], set(), 0
    for x, _ in data():
        rows = list(model.faults.listing(x, trial=trial, samples=range(done, done + len(x))).rows())
        hit = {row["sample"] for row in rows}
        struck += [number in hit for number in range(done, done + len(x))]
        elements |= {(row["site"], row["call"], row["sample"], row["element"]) for row in rows}
        done += len(x)
    return struck, len(elements)


@pytest.mark.parametrize("network", NETWORKS)
def test_hits_are_those_of_the_list_and_of_the_statistics(network: Any) -> None:
    model = transformed(network)
    full, incremental = FullRunner(model, data()), IncrementalRunner(model, data())
    trials = [Trials(runner) for runner in (full, incremental)]
    partly = 0
    for config in configs():
        if config.num_faults is not None and network in (Scales, OnlyForSome, OfTheBatch):
            continue  # Refused: elements differ between calls or batches, or are the batch's.
        for site in (None, *model.faults.names):
            for trial in range(3):
                rows = []
                for one in trials:
                    one.set(config, None if site is None else [site])
                    rows.append(one.run("", trial))
                assert rows[0].elements == rows[1].elements
                assert rows[0].faults == rows[1].faults
                assert rows[0].struck == rows[1].struck
                assert rows[0].masked == rows[1].masked
                model.faults.reset(trial=trial)
                counted = FaultStatistics(len(model.faults), model.faults.names, cosine=False)
                model.faults.set_statistics(counted)
                struck = full.run().struck
                model.faults.set_statistics(None)
                assert rows[0].faults == counted.total_injections
                assert rows[0].elements == counted.total_activations
                assert struck is not None
                partly += 0 < int(struck.sum()) < len(struck)
                if network is not OfTheBatch:
                    expected, hits = listed(model, trial)
                    assert struck.tolist() == expected, (config, site, trial)
                    assert rows[0].faults == hits
    assert partly > 3


class Counted(nn.Linear):
    """Counts its calls where no module shows them."""

    calls: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return super().forward(x)


class Late(Scales):
    def __init__(self) -> None:
        super().__init__()
        self.first = Counted(12, 12)


def test_trials_of_a_forward_that_stays_python_code_are_not_full_runs() -> None:
    model = transformed(Late)
    runner = IncrementalRunner(model, data())
    trials = Trials(runner)
    assert runner.why_full is not None
    assert runner.why_full.startswith("batches are run whole")
    config = fxfault.FaultInjectionConfig(injection_type="msb_flip", probability=100.0)
    for site in ("last", "act"):
        trials.set(config, [site])
        Counted.calls.clear()
        row = trials.run("", 0)
        assert row.faults == row.elements > 0
        assert row.struck == sum(SIZES)
        assert not Counted.calls, site
