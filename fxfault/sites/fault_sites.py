"""Fault sites: the state that decides, at run time, what `fault_inject` does.

A transformed model carries one `FaultSites` as `model.faults`: the clock that all sites share, and
a `FaultSite` for each place that faults can strike. Neither holds a parameter, a buffer or a
module, so `state_dict` and the module tree do not change.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fxfault.config.curriculum import epoch_plan, governed_settings
from fxfault.errors import ConfigError, SiteError
from fxfault.faults.fault_models import FaultModel
from fxfault.faults.random_numbers import uniform_float
from fxfault.sites.handles import Handle
from fxfault.sites.measuring import Extents
from fxfault.sites.replays import given_faults
from fxfault.sites.running_sites import RunningSites
from fxfault.sites.sample_layouts import SampleLayouts
from fxfault.sites.settings import setting_of
from fxfault.sites.site import FaultSite
from fxfault.sites.site_names import listed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxfault.config.fault_injection import FaultInjectionConfig

logger = logging.getLogger(__name__)
# The name of the attribute; the second serves models that have a `faults` of their own.
ATTRIBUTE_NAMES = ("faults", "fxfault_faults")


class FaultSites(RunningSites):
    """All sites of a model, in the order of execution, and the clock that they share.

    Iterate over it, or address a site by index or by name:

    >>> import fxfault
    >>> from brevitas.nn import QuantReLU
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4))
    >>> faulty = fxfault.transform(model, {"enabled": True, "probability": 1.0, "seed": 7})
    >>> faulty.faults["1"].set_probability(2.5)
    >>> [(site.name, site.probability) for site in faulty.faults]
    [('1', 2.5)]

    Attributes:
        clock: when faults strike, and the stream of random numbers.
        config: the configuration that the model was transformed with.
        statistics: the record of armed forwards, or None.
        skipped: paths of targets that faults cannot strike, and why.
        parameters: the float parameters that are struck while the model runs; None without any.
        running_depth: number of the model's parts that run, one within the other.
        running: number of the traced module whose graph runs now; None while Python code runs.
        outputs: the last step of each activation layer.
        edges: the words of the present forward; None if no quantiser inside a layer is a site.
        checked: what `fxfault.check` found; empty if the model was not checked.
        told_quiet: whether it was said that no fault strikes, or need not be said.
    """

    def __init__(self, config: FaultInjectionConfig) -> None:
        super().__init__(config)
        self.clock.on_move(self._follow_clock)
        self.clock.handle = Handle(self)
        self._extents = Extents()
        self._layouts = SampleLayouts()

    def clear(self) -> list[FaultSite]:
        """Remove and return all sites and what was measured; the clock and its settings stay."""
        self._extents, self._layouts = Extents(), SampleLayouts()
        return super().clear()

    @property
    def seed(self) -> int:
        """The seed of all draws; the one drawn if the configuration gives none."""
        return self.clock.seed

    @property
    def trial(self) -> int:
        """The number of the current trial."""
        return self.clock.trial

    @property
    def enabled(self) -> bool:
        """The master switch."""
        return self.clock.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self.clock.enabled = bool(enabled)

    def reset(self, trial: int | None = None, first_sample: int = 0) -> None:
        """Start a new pass over the data: number samples and steps from the start again.

        Recorded statistics stay.

        Args:
            trial: number of the trial, from 0; each has its own faults. None keeps it.
            first_sample: number of the first sample of this process, or after `shard`, of all
                processes together. A worker that has a part of the data gives its offset.
        """
        if trial is not None:
            self.clock.trial = trial
        self.clock.reset(first_sample)
        self._draw_layer()

    def start_epoch(self, epoch: int) -> None:
        """Start an epoch of training: `set_epoch`, then `reset`.

        Raises:
            ConfigError: `epoch` is not an integer of at least 0.
        """
        self.set_epoch(epoch)
        self.reset()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which `epoch_interval` and the faults of training depend.

        Settings that the curriculum changes get their values for the epoch, at every site. All
        other settings stay, also those set by hand.

        Raises:
            ConfigError: `epoch` is not an integer of at least 0.
        """
        plan, governed = epoch_plan(self.config, epoch), governed_settings(self.config)
        self.clock.epoch = epoch
        if "epoch_interval" in governed:
            self.clock.epoch_interval = plan.epoch_interval
        if "step_interval" in governed:
            self.clock.step_interval = plan.step_interval
        if "probability" in governed:
            self.set_probability(plan.probability)
        if "injection_type" in governed:
            self.set_fault_model(plan.injection_type)
        if governed and self.config.verbose:
            logger.info("Curriculum, %s", plan)

    def _follow_clock(self) -> None:
        """Follow the clock to another seed, trial or epoch."""
        self.set_epoch(self.clock.epoch)
        self._draw_layer()

    def governs(self, setting: str) -> bool:
        """Whether a curriculum changes a setting (`probability`, `step_interval`, ...)."""
        return setting in governed_settings(self.config)

    def shard(self, rank: int, world_size: int) -> None:
        """Number samples as one of several processes that train or evaluate together.

        In each forward the processes have equal parts of one joined batch, in the order of their
        ranks. Their samples get the numbers, and so the faults, that they have in that batch. All
        processes need the same seed. Without `shard`, a model has the whole batch.

        >>> import torch, fxfault
        >>> from brevitas.nn import QuantReLU
        >>> from torch import nn
        >>> net = fxfault.transform(nn.Sequential(QuantReLU()), {"enabled": True, "seed": 7})
        >>> net.faults.shard(rank=1, world_size=2)
        >>> numbers = []
        >>> for batch in torch.ones(2, 8, 3):
        ...     _ = net(batch)
        ...     numbers.append(net.faults.clock.first_sample)
        >>> numbers  # rank 0 has 0 to 7 and 16 to 23
        [8, 24]

        Args:
            rank: number of this process, from 0.
            world_size: number of processes.

        Raises:
            ConfigError: they are not integers with 0 <= rank < world_size.
        """
        whole = all(type(number) is int for number in (rank, world_size))
        if not whole or not 0 <= rank < world_size:
            raise ConfigError(
                f"shard: got rank {rank!r} and world_size {world_size!r}, allowed: integers "
                "with 0 <= rank < world_size"
            )
        self.clock.rank, self.clock.world_size = rank, world_size

    @contextmanager
    def samples(self, numbers: Tensor) -> Iterator[None]:
        """Run forwards on samples with given numbers, instead of counting samples and steps.

        The faults of a sample depend on its number alone, so any samples can run again, in any
        batch, with the faults that they had.

        >>> import torch, fxfault
        >>> from brevitas.nn import QuantReLU
        >>> from torch import nn
        >>> config = {"enabled": True, "apply_during": "eval", "probability": 20.0, "seed": 7}
        >>> net = fxfault.transform(nn.Sequential(QuantReLU(bit_width=4)).eval(), config)
        >>> data = torch.rand(8, 5)
        >>> whole = net(data)
        >>> chosen = torch.tensor([6, 1])
        >>> with net.faults.samples(chosen):
        ...     torch.equal(net(data[chosen]), whole[chosen])
        True

        Args:
            numbers: the numbers of a batch's samples, int64, from 0, one dimension.

        Raises:
            SiteError: `numbers` has another type, or a forward has another number of samples.
        """
        if numbers.dtype != torch.int64 or numbers.dim() != 1 or (numbers < 0).any():
            raise SiteError(
                f"samples: got {numbers.dtype} of shape {tuple(numbers.shape)}, allowed: int64 of "
                "one dimension, 0 and up"
            )
        before, self.clock.given = self.clock.given, numbers
        try:
            yield
        finally:
            self.clock.given = before

    def set_probability(self, probability: float) -> None:
        """Set the probability of a hit at every site, in percent."""
        for site in self:
            site.set_probability(probability)

    def set_faults(self, config: FaultInjectionConfig) -> None:
        """Replace the fault models, rates and `faults` of all sites by another configuration's.

        Its schedule, seed and statistics are ignored, and so is its own `layers` (see `select`);
        the layers of each entry of `faults` count.

        >>> import fxfault
        >>> from brevitas.nn import QuantReLU
        >>> from torch import nn
        >>> net = fxfault.transform(nn.Sequential(QuantReLU()), {"enabled": True, "seed": 7})
        >>> config = fxfault.FaultInjectionConfig(
        ...     faults=[
        ...         {"injection_type": "bit_flip", "bit": 7, "probability": 0.1},
        ...         {"injection_type": "stuck_at_0", "num_faults": 3, "layers": "0"},
        ...     ]
        ... )
        >>> net.faults.set_faults(config)
        >>> print(*net.faults[0].faults, sep="; ")
        bit_flip 7 at 0.1 %; stuck_at_0, 3 a sample

        Raises:
            ConfigError: the configuration has errors.
            SiteError: the layers of an entry of `faults` match no site.
        """
        config.validate()
        setting = setting_of(config)
        struck = [
            self.struck_by(entry, None if config.faults is None else f"faults[{n}]")
            for n, entry in enumerate(config.entries())
        ]
        given = given_faults(self, config)
        for site in self:
            here = [fault for fault in setting.faults if site.index in struck[fault.number]]
            faults = [given.get((fault.number, site.index), fault) for fault in here]
            site.setting = replace(setting, faults=tuple(f for f in faults if f is not None))

    def set_fault_model(self, fault_model: str | FaultModel) -> None:
        """Set the fault model of every site, by name or by instance."""
        for site in self:
            site.set_fault_model(fault_model)

    def select(
        self, layers: str | int | Iterable[str | int] | None, without: Collection[str] = ()
    ) -> None:
        """Select sites by name pattern (`layer1.*`), index, or a list of them; None selects all.

        In `layer` mode only one of these is selected: `injection_layer`, or for -1 one that seed
        and trial draw.

        Args:
            layers: patterns and indices.
            without: names of sites to leave out, such as those that are never called.

        Raises:
            SiteError: a pattern or an index matches no site.
        """
        chosen = [index for index in self.matching(layers) if self[index].name not in without]
        if self.config.mode == "layer":
            chosen = [self._single(chosen)]
        for site in self:
            site.selected = site.index in chosen

    def prepare(self, inputs: Sequence[Any]) -> None:
        """Measure if `num_faults` is spread over sites that were not measured for such inputs.

        Args:
            inputs: the inputs of the model.
        """
        self._extents.prepare(self, inputs)

    def measure(self, *inputs: Any) -> None:
        """Run the model without faults and measure how its samples lie at each site.

        A few of the samples are run in another order, and in a smaller batch, which shows which
        elements of an activation belong to which sample (`fxfault.sites.sample_layouts`). The
        faults of a sample then do not depend on its batch, even if its rows are not consecutive
        (two views joined by `torch.cat`, time steps first). `fxfault.inspect` shows the result.
        Without a measurement the shape decides: a leading dimension of k times the batch holds k
        consecutive rows for each sample, and any other activation is one sample.

        The number of elements and bits at each site is what `num_faults` needs. A forward
        measures it if its inputs have a new shape; call this method first if code asks ahead of
        any forward (`fxfault.strike.draws.samples_hit`).

        The model runs in evaluation mode and without gradients. Afterwards modes, settings,
        clock, statistics, buffers and the states of random generators are as before.

        Args:
            inputs: the inputs of the model, a batch. Use real samples that differ from each
                other: if an activation is the same for all of them, any layout explains it, and
                rows are taken to be consecutive.
        """
        self.measure_layouts(*inputs)
        self.measure_extents(*inputs)

    def measure_layouts(self, *inputs: Any) -> None:
        """Measure which elements belong to which sample, as part of `measure`."""
        if self._layouts.measure(self, inputs) and any(
            s.seen.extent is not None for s in self._sites
        ):
            self.measure_extents(*inputs)

    def measure_extents(self, *inputs: Any, **named_inputs: Any) -> None:
        """Measure how much there is to hit, as part of `measure`."""
        self._extents.measure(self, inputs, named_inputs)

    @property
    def why_unmeasured(self) -> str | None:
        """Why the samples' elements could not be measured; None if they could."""
        return self._layouts.why_not

    @property
    def layouts_note(self) -> str | None:
        """A sentence on where faults depend on the batch, and why; None if nowhere."""
        if self.why_unmeasured is not None:
            why = self.why_unmeasured
            return f"which elements belong to which sample could not be measured: {why}"
        by_batch = [
            (site.name, lies.why_batch)
            for site in self._sites
            if (lies := site.seen.arrangement) is not None and lies.why_batch is not None
        ]
        if not by_batch:
            return None
        (name, why), *more = by_batch
        others = f" and {len(more)} more" if more else ""
        return f"the faults of {name}{others} belong to the batch, not to its samples: {why}"

    def _draw_layer(self) -> None:
        if self.config.mode == "layer" and self.config.injection_layer == -1:
            self.select(self.config.layers)

    def _single(self, candidates: list[int]) -> int:
        wanted = self.config.injection_layer
        if wanted >= 0:
            if wanted not in candidates:
                raise SiteError(
                    f"injection_layer: no site {wanted} to select; {listed(self.names)}"
                )
            return wanted
        draw = uniform_float(self.clock.seed, "layer", self.clock.trial)
        layer = candidates[int(draw * len(candidates))]
        if self.config.verbose:
            logger.info("Randomly selected layer %d for injection", layer)
        return layer


def faults_of(model: nn.Module) -> FaultSites:
    """Return the sites of a transformed model.

    Raises:
        SiteError: the model is not transformed.
    """
    sites = sites_or_none(model)
    if sites is None:
        kind = type(model).__name__
        raise SiteError(f"{kind} has no fault sites; call fxfault.transform(model, config) first")
    return sites


def sites_or_none(model: nn.Module) -> FaultSites | None:
    """Return the sites of a model or of a traced part of it; None if it has none."""
    for name in ATTRIBUTE_NAMES:
        sites = model.__dict__.get(name)
        if isinstance(sites, FaultSites):
            return sites
    return None
