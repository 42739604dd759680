"""What forwards of a model need of its sites, and what they leave there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from fxfault.errors import ConfigError, SiteError
from fxfault.sites.edges import Edges
from fxfault.sites.fault_recorder import FaultRecorder
from fxfault.sites.listings import ListAhead, listing
from fxfault.sites.site import FaultSite, Handover, why_no_codes
from fxfault.sites.site_list import SiteList
from fxfault.sites.statistics import FaultStatistics

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxfault.config.fault_injection import FaultInjectionConfig
    from fxfault.sites.fault_list import FaultList

logger = logging.getLogger(__name__)


class _ThreadLock:
    """The lock of the thread that runs forwards; a copy of the sites has a lock of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> _ThreadLock:
        return _ThreadLock()


class Struck(Protocol):
    """Tensors of a model that faults strike while it runs."""

    def show(self) -> None:
        """Show the struck tensors in the place of the model's own."""

    def hide(self) -> None:
        """Show the model's own again."""


class RunningSites(SiteList):
    """The sites of a model that runs; see `FaultSites` for the attributes."""

    def __init__(self, config: FaultInjectionConfig) -> None:
        super().__init__(config)
        self.parameters: Struck | None = None
        self.running_depth = 0
        self.skipped: dict[str, str] = {}
        self.running: int | None = None
        self.outputs: list[Handover] = []
        self.edges: Edges | None = None
        self.checked = ""
        self.told_quiet = False
        self.statistics: FaultStatistics | None = None
        self._thread = _ThreadLock()
        self._tree: list[tuple[nn.Module, tuple[nn.Module | None, ...]]] = []
        self._on_surgery: Callable[[Any, nn.Module, Any], None] | None = None
        self._original: list[nn.Module] = []
        self._list_ahead: ListAhead | None = None

    def clear(self) -> list[FaultSite]:
        """Remove and return all sites; the clock and its settings stay."""
        self.outputs, self.skipped, self._tree, self.running = [], {}, [], None
        self.parameters = self.edges = None
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
                site.recorder = known[site.name].recorder
        if self.statistics is not None and len(self.statistics.layer_stats) == len(self):
            self.set_statistics(self.statistics)
        elif self.statistics is not None:
            self.new_statistics()

    def follow_words(self) -> None:
        """Follow the words of each forward from site to site; see `fxfault.sites.edges`."""
        self.edges = Edges()
        for site in self:
            site.edges = self.edges
        for output in self.outputs:
            output.follow()

    # -- forwards -----------------------------------------------------------------------

    def attach(self, model: nn.Module, original: nn.Module, list_ahead: ListAhead) -> None:
        """Remember the model whose mode the clock follows, and the one it was made from.

        Args:
            model: the transformed model.
            original: the model that it was made from.
            list_ahead: lists the faults of samples without a forward.
        """
        self.clock.follow(model)
        self._original = [original]
        self._list_ahead = list_ahead

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
        self.running_depth += 1
        try:
            if self.running_depth == 1 and self.parameters is not None:
                self.parameters.show()
            yield
        finally:
            self.running = before
            self.running_depth -= 1
            if self.running_depth == 0 and self.parameters is not None:
                self.parameters.hide()
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

    def watch_also(self, module: nn.Module) -> None:
        """Watch the children of another module, as `watch_layers` does."""
        self._tree.append((module, tuple(module._modules.values())))

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
            logger.warning(
                "no fault strikes in this evaluation: %s; for faults here, transform the network "
                "with `apply_during: both`, or `eval`",
                self.clock.why_quiet,
            )

    def check_words(self) -> None:
        """Check that the words of the selected sites have the bits that faults strike.

        The forward that strikes checks learned bit widths.

        Raises:
            SiteError: a word has too few bits.
        """
        for site in self:
            for fault in site.faults if site.selected else ():
                site.check_word(fault.model, site.bit_width)

    def check(self) -> None:
        """Wait for the device, and check that all struck values were integer codes.

        On the CPU a forward raises this error itself. Forwards on other devices do not wait.

        Raises:
            SiteError: values to be hit were not codes, or (with a probability below 1e-17 for
                each sample) the draws did not span a sample.
        """
        for site in self:
            if site.seen.sound is not None and not bool(site.seen.sound):
                raise SiteError(
                    f"site {site.name}: values that were to be hit {why_no_codes(site)}"
                )

    # -- lists of faults ----------------------------------------------------------------

    def listing(
        self,
        *inputs: Any,
        trial: int | None = None,
        samples: int | Sequence[int] | Tensor | None = None,
    ) -> FaultList:
        """List every fault of an evaluation; see `fxfault.sites.fault_list.FaultList`.

        Without inputs nothing runs: the list has the elements that are hit, and the bits as far
        as the fault models alone decide them. Some forward must have shown the elements of each
        site before (`measure`). With inputs, the model runs on them, in evaluation mode, and the
        list has all codes and values, too.

        Settings, modes, clock and statistics are as before afterwards.

        >>> import fxfault, torch
        >>> from brevitas.nn import QuantReLU
        >>> from torch import nn
        >>> config = {"enabled": True, "apply_during": "eval", "injection_type": "msb_flip"}
        >>> net = nn.Sequential(QuantReLU(bit_width=4)).eval()
        >>> net = fxfault.transform(net, {**config, "num_faults": 1, "seed": 7})
        >>> net.faults.measure(torch.rand(3, 5))
        >>> for row in net.faults.listing(trial=17, samples=2).rows():
        ...     print(row["site"], row["sample"], row["coordinates"], row["mask"])
        0 0 1 8
        0 1 3 8

        Args:
            inputs: the inputs of the model, a batch.
            trial: number of the trial; None takes the present one.
            samples: the numbers of the samples, or how many from 0. By default those of the
                inputs, from 0; without inputs those that were evaluated since the last reset.

        Raises:
            SiteError: no fault strikes in an evaluation, or what there is to hit is not known.
        """
        return listing(self, self._list_ahead, inputs, trial, samples)

    @contextmanager
    def recording(self) -> Iterator[FaultRecorder]:
        """List every fault of the forwards within the block.

        >>> import fxfault, torch
        >>> from brevitas.nn import QuantReLU
        >>> from torch import nn
        >>> config = {"enabled": True, "apply_during": "eval", "num_faults": 1, "seed": 7}
        >>> net = fxfault.transform(nn.Sequential(QuantReLU(bit_width=4)).eval(), config)
        >>> with net.faults.recording() as recorder:
        ...     for batch in torch.rand(2, 3, 5):
        ...         _ = net(batch)
        >>> recorder.listing()
        FaultList(6 hits at 1 site, with codes)

        Yields:
            The recorder; its `listing` returns the list of what was recorded so far.
        """
        recorder = FaultRecorder()
        before = {site.name: site.recorder for site in self}
        try:
            for site in self:
                site.recorder = recorder
            yield recorder
        finally:
            for site in self:  # A replaced layer has a site of its own by now.
                site.recorder = before.get(site.name)

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
