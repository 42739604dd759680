"""What forwards of a model need of its sites, and what they leave there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fxfault.errors import ConfigError, SiteError
from fxfault.sites.measuring import Extents
from fxfault.sites.sample_layouts import SampleLayouts
from fxfault.sites.site import FaultSite, Handover
from fxfault.sites.site_list import SiteList
from fxfault.sites.statistics import FaultStatistics

if TYPE_CHECKING:
    from torch import nn

    from fxfault.config.fault_injection import FaultInjectionConfig

logger = logging.getLogger(__name__)


class _ThreadLock:
    """The lock of the thread that runs forwards; a copy of the sites has a lock of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> _ThreadLock:
        return _ThreadLock()


class RunningSites(SiteList):
    """The sites of a model that runs; see `FaultSites` for the attributes."""

    def __init__(self, config: FaultInjectionConfig) -> None:
        super().__init__(config)
        self.skipped: dict[str, str] = {}
        self.running: int | None = None
        self.outputs: list[Handover] = []
        self.checked = ""
        self.told_quiet = False
        self.statistics: FaultStatistics | None = None
        self._thread = _ThreadLock()
        self._tree: list[tuple[nn.Module, tuple[nn.Module | None, ...]]] = []
        self._on_surgery: Callable[[Any, nn.Module, Any], None] | None = None
        self._original: list[nn.Module] = []
        self._extents = Extents()
        self._layouts = SampleLayouts()

    def clear(self) -> list[FaultSite]:
        """Remove and return all sites and what was seen of them; clock and settings stay."""
        self.outputs, self.skipped, self._tree, self.running = [], {}, [], None
        self._extents, self._layouts = Extents(), SampleLayouts()
        return super().clear()

    def take_over(self, before: Iterable[FaultSite]) -> None:
        """Give the sites the settings of earlier sites of the same names.

        Recorded statistics go on if the number of sites is the same, and start again otherwise.
        """
        known = {site.name: site for site in before}
        for site in self:
            if site.name in known:
                site.setting = known[site.name].setting
                site.selected = known[site.name].selected
        if self.statistics is not None and len(self.statistics.layer_stats) == len(self):
            self.set_statistics(self.statistics)
        elif self.statistics is not None:
            self.new_statistics()

    # -- forwards -----------------------------------------------------------------------

    def attach(self, model: nn.Module, original: nn.Module) -> None:
        """Remember the model whose mode the clock follows, and the one it was made from."""
        self.clock.follow(model)
        self._original = [original]

    @property
    def original(self) -> nn.Module:
        """The model that the transformed one was made from."""
        return self._original[0]

    @contextmanager
    def running_graph(self, number: int | None) -> Iterator[None]:
        """Note that the graph of a traced module runs, or Python code (None).

        The clock, the counts of calls and the words that layers hand over belong to one forward.
        Two threads would mix them up, and outputs would have the faults of other samples.

        Raises:
            SiteError: another thread runs a forward of the model.
        """
        if not self._thread.lock.acquire(blocking=False):
            raise SiteError(
                "a forward of this model runs in another thread; its sites and their clock serve "
                "one forward at a time: give each thread a copy (copy.deepcopy), or a process"
            )
        before, self.running = self.running, number
        try:
            yield
        finally:
            self.running = before
            self._thread.lock.release()

    def watch_layers(
        self, modules: Iterable[nn.Module], react: Callable[[Any, nn.Module, Any], None]
    ) -> None:
        """Remember the children of modules, and react if a later forward finds others.

        Args:
            modules: modules of the transformed model.
            react: called with the sites, a module, and its former children.
        """
        self._tree = [(module, tuple(module._modules.values())) for module in modules]
        self._on_surgery = react

    def look_at_layers(self) -> None:
        """React to replaced layers; forget what an interrupted forward left.

        Raises:
            SiteError: a new layer cannot be struck without another `transform`.
        """
        for output in self.outputs:
            if output.kept is not None:
                output.forget()
        for place, (module, children) in enumerate(self._tree):
            if tuple(module._modules.values()) != children and self._on_surgery is not None:
                self._on_surgery(self, module, children)
                self._tree[place] = (module, tuple(module._modules.values()))

    def say_if_quiet(self) -> None:
        """Warn once if an evaluation runs without faults because they are for training.

        After a training forward there is no warning: evaluating without faults is then meant.
        """
        if self.clock.training:
            self.told_quiet = True
        elif not self.told_quiet and self.clock.enabled and self.clock.why_quiet is not None:
            self.told_quiet = True
            logger.warning("no fault strikes in this evaluation: %s", self.clock.why_quiet)

    # -- measuring ----------------------------------------------------------------------

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

    def measure_extents(self, *inputs: Any) -> None:
        """Measure how much there is to hit, as part of `measure`."""
        self._extents.measure(self, inputs)

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

    # -- statistics ---------------------------------------------------------------------

    def set_statistics(self, statistics: FaultStatistics | None) -> None:
        """Record armed forwards in `statistics`; None stops recording.

        Raises:
            ConfigError: the statistics are for another number of sites.
        """
        if statistics is not None and len(statistics.layer_stats) != len(self):
            raise ConfigError(
                f"statistics for {len(statistics.layer_stats)} layers, but the model has "
                f"{len(self)} sites; make them with FaultStatistics(num_layers={len(self)})"
            )
        self.statistics = statistics
        for site in self._sites:
            site.statistics = statistics
            if statistics is not None:
                layer = statistics.layer_stats[site.index]
                layer.name = layer.name or site.name

    def new_statistics(self) -> FaultStatistics:
        """Make empty statistics for these sites, and record in them from now on."""
        statistics = FaultStatistics(len(self), self.names)
        self.set_statistics(statistics)
        return statistics
