"""Survey the cuts of a model: what each costs, and whether samples can leave their batch there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fxfault.evaluation.full.judging import Judge
from fxfault.evaluation.incremental.batch_independence import Independence
from fxfault.evaluation.incremental.golden_cache import INPUT, Candidate, bytes_of, choose
from fxfault.evaluation.incremental.states import Cut, advance
from fxfault.faults.bits import same_bits
from fxfault.faults.layouts import Layout
from fxfault.sites.fault_sites import faults_of
from fxfault.sites.live_values import (
    Role,
    SampleRows,
    gather,
    leaves_of,
    roles_of,
    structure_of,
    with_leaves,
)
from fxfault.sites.site import FaultSite


class Survey:
    """Runs a batch from cut to cut.

    Two other batches run beside it: a smaller one, which shows by its shapes what belongs to a
    sample, and one in reverse order, which is reassembled from the batch at every cut.

    Attributes:
        cuts: the cuts, in the order of execution.
        layouts: layouts of the sites with faults that belong to samples, by name.
    """

    def __init__(
        self,
        model: Any,
        segments: Sequence[Any],
        inputs: Tensor,
        found: Independence,
        loading: float,
        judge: Judge,
    ) -> None:
        """Survey the cuts between segments on a batch that took `loading` seconds to load."""
        self.segments = segments
        self.whole_batches = found.why_not is not None
        self.cuts: list[Cut] = []
        self.layouts: dict[str, Layout] = {}
        self.batch = len(inputs)
        # Whether samples lie in one piece wherever that was measured, as in most networks.
        lies = [site.seen.arrangement for site in faults_of(model)]
        self.is_plain = all(one is None or one.outer == 1 for one in lies)
        self.order = torch.arange(self.batch).flip(0)
        self.some = torch.arange(min(found.sizes, default=1)) % self.batch
        if len(self.some) == self.batch:
            self.some = torch.arange(2 * self.batch) % self.batch
        others = [inputs[samples.to(inputs.device)] for samples in (self.order, self.some)]
        states = [(inputs,)] if self.whole_batches else [(x,) for x in (inputs, *others)]
        seconds = loading
        for number in range(len(segments)):
            self._look(number, states, seconds)
            started = _now(inputs.device)
            states[0] = advance(model, segments, number, states[0])
            seconds += _now(inputs.device) - started
            self._look_inside(segments[number].sites)
            for place, samples in enumerate((self.order, self.some)[: len(states) - 1], start=1):
                with faults_of(model).samples(torch.arange(len(samples))):
                    states[place] = advance(model, segments, number, states[place])
        if not self.whole_batches:
            rows, turned = (judge.rows(state, self.batch) for state in states[:2])
            there = [row[self.order.to(row.device)] for row in rows]
            if not all(map(same_bits, turned, there)):
                # Some cut tore apart memory that two values share.
                self.cuts[1:] = [replace(cut, roles=None) for cut in self.cuts[1:]]

    def choose(self, budget: int, batches: int) -> list[str]:
        """Choose the sites at which to keep the states of all batches, within `budget` bytes."""
        starts = [n for n, segment in enumerate(self.segments) for _ in segment.sites]
        candidates = [
            Candidate(number, cut.bytes * batches, cut.seconds)
            for number, cut in enumerate(self.cuts)
            if self.whole_batches or cut.roles is not None
        ]
        return [self.cuts[place].site for place in choose(candidates, starts, budget)]

    def _look(self, number: int, states: list[Any], seconds: float) -> None:
        site = self.segments[number].site
        leaves = leaves_of(states[0])
        cut = Cut(
            site=INPUT if site is None else site.name,
            structure=structure_of(states[0]),
            roles=None if self.whole_batches else self._roles(site, leaves, states),
            seconds=seconds,
            bytes=bytes_of(leaves),
        )
        if site is not None and self.segments[number].takes_struck:
            value = getattr(states[0][0], "value", states[0][0])
            layout = site.layout_of(tuple(value.shape), self.batch)
            if site.seen.arrangement is None or site.seen.arrangement.why_batch is None:
                self.layouts[site.name] = layout
        if cut.roles is not None:
            turned = cut.assemble([(leaves, self.order)], self.batch)
            if all(map(same_bits, turned, leaves_of(states[1]))):
                states[1] = with_leaves(states[0], iter(turned))
            else:
                cut = replace(cut, roles=None)
        self.cuts.append(cut)

    def _look_inside(self, sites: Sequence[FaultSite]) -> None:
        """Note the layouts of words that layers have just made inside."""
        for site in sites:
            lies, shape = site.seen.arrangement, site.seen.shape
            if not site.is_inner or site.counts_calls or lies is None or shape is None:
                continue
            layout = site.layout_of(shape, self.batch)
            if lies.why_batch is None and layout.samples == self.batch:
                self.layouts[site.name] = layout

    def _roles(
        self, site: FaultSite | None, leaves: list[Any], states: list[Any]
    ) -> tuple[Role, ...] | None:
        """How each leaf belongs to samples, such that the reversed batch has the reversed leaf."""
        found: list[Role] = []
        for leaf, turned, other in zip(leaves, *map(leaves_of, states[1:]), strict=True):
            try:
                roles = roles_of(leaf, self.batch, other, len(self.some))
            except ValueError:  # Not made of samples in a way that we know.
                return None
            if len(roles) > 1:
                roles = self._explaining(site, roles, leaf, turned)
            if not roles:
                return None
            found.append(roles[0])
        return tuple(found)

    def _explaining(
        self, site: FaultSite | None, roles: list[Role], leaf: Any, turned: Any
    ) -> list[Role]:
        """The roles that explain a leaf, the likeliest first; none if all are only guesses."""
        explaining: list[Role] = []
        for role in roles:
            assert isinstance(role, SampleRows)
            if same_bits(gather([(leaf, self.order)], role), turned):
                explaining.append(role)
        if len(explaining) < 2 or self.is_plain:
            return explaining
        # All samples have the same values, or there is one: take the layout of the activation.
        lies = None if site is None else site.seen.arrangement
        if lies is None or lies.why_batch is not None:
            return []
        return [r for r in explaining if r == SampleRows(lies.dim, lies.each, lies.outer)]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
