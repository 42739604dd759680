"""Fault sites: the state that decides, at run time, what `fault_inject` does.

A transformed model carries one `FaultSites` as `model.faults`: the clock that all
sites share, and a `FaultSite` for each place where faults can strike. Neither holds a
parameter, a buffer or a module, so `state_dict` and the module tree stay as they were.
"""

from __future__ import annotations

import difflib
import fnmatch
import keyword
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fxfault.config.curriculum import epoch_plan, governed_settings
from fxfault.errors import ConfigError, SiteError
from fxfault.faults.fault_models import FaultModel
from fxfault.faults.random_numbers import uniform_float
from fxfault.sites.clock import FaultClock
from fxfault.sites.handles import Handle
from fxfault.sites.measuring import Extents
from fxfault.sites.sample_layouts import SampleLayouts
from fxfault.sites.settings import setting_of
from fxfault.sites.site import FaultSite, Handover, why_no_codes
from fxfault.sites.statistics import FaultStatistics

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxfault.config.fault_injection import FaultInjectionConfig
    from fxfault.quantisers.quant_tensors import Quantiser

logger = logging.getLogger(__name__)

# The name of the attribute; the second serves models that have a `faults` of their own.
ATTRIBUTE_NAMES = ("faults", "fxfault_faults")


class _Thread(dict[str, int]):
    """The thread that runs forwards now, under `id`; a copy belongs to nobody.

    Attributes:
        depth: forwards within each other.
    """

    depth = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> _Thread:
        return _Thread()


class FaultSites(Sequence[FaultSite]):
    """All sites of a model, in the order of execution, and the clock that they share.

    Iterate it, or address a site by index or by name:

    >>> import fxfault
    >>> from brevitas.nn import QuantReLU
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4))
    >>> faulty = fxfault.transform(model, {"enabled": True, "probability": 1.0, "seed": 7})
    >>> faulty.faults["1"].set_probability(2.5)
    >>> [(site.name, site.probability) for site in faulty.faults]
    [('1', 2.5)]

    Attributes:
        clock: when faults strike and from which stream.
        config: the configuration that the model was transformed with.
        statistics: where armed forwards are recorded, or None.
        skipped: paths of targets that faults cannot strike, and why.
        running: number of the traced module whose graph runs now; None where Python code does.
        outputs: what the layers end their forwards with.
        checked: what `fxfault.check` found; empty where the model was not checked.
        told_quiet: whether it was said that no fault strikes, or need not be said.
    """

    def __init__(self, config: FaultInjectionConfig) -> None:
        self.config = config
        self.clock = FaultClock(config)
        self.clock.on_move(self._follow_clock)
        self.clock.handle = Handle(self)
        self.skipped: dict[str, str] = {}
        self.running: int | None = None
        self._thread = _Thread()
        self.outputs: list[Handover] = []
        self.checked = ""
        self.told_quiet = False
        self._tree: list[tuple[nn.Module, tuple[nn.Module | None, ...]]] = []
        self._on_surgery: Callable[[FaultSites, nn.Module, Any], None] | None = None
        self.statistics: FaultStatistics | None = None
        self._sites: list[FaultSite] = []
        self._original: list[nn.Module] = []
        self._extents = Extents()
        self._layouts = SampleLayouts()

    # -- addressing ---------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[FaultSite]:
        return iter(self._sites)

    def __getitem__(self, key: int | str) -> FaultSite:  # type: ignore[override]
        """Find a site by its index (negative ones count from the end) or its name."""
        if isinstance(key, str):
            for site in self._sites:
                if site.name == key:
                    return site
            raise SiteError(f"no site {key!r}; {self.describe(key)}")
        try:
            return self._sites[key]
        except IndexError:
            raise SiteError(f"no site {key}; {self.describe()}") from None

    def describe(self, near: str = "") -> str:
        """Which sites there are, the nearest name first: the end of an error message."""
        names = [site.name for site in self._sites]
        close = difflib.get_close_matches(near, names, n=1) if near else []
        hint = f"did you mean {close[0]!r}? " if close else ""
        shown = ", ".join(f"{i} {name}" for i, name in enumerate(names[:12]))
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        return f"{hint}the {len(names)} sites are: {shown}{more}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all sites."""
        return tuple(site.name for site in self._sites)

    # -- building (the insert pass) -----------------------------------------------------

    def add(
        self, name: str, module_path: str, module_type: str, quantiser: Quantiser
    ) -> tuple[FaultSite, str]:
        """Add a site; returns it and the attribute under which generated code finds it."""
        plan = epoch_plan(self.config, self.clock.epoch)
        now = replace(self.config, probability=plan.probability, injection_type=plan.injection_type)
        site = FaultSite(
            name=name,
            index=len(self._sites),
            module_path=module_path,
            module_type=module_type,
            quantiser=quantiser,
            clock=self.clock,
            gradient_mode=self.config.gradient_mode,
            peers=self._sites,
            setting=setting_of(now),  # Of a list each strikes here, until `set_faults` says where.
        )
        self._sites.append(site)
        # In ASCII, as Python reads other letters of code in their normal form.
        attribute = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
        attribute = f"_{attribute}" if attribute[:1].isdigit() else attribute
        attribute += "_" if keyword.iskeyword(attribute) else ""
        while hasattr(self, attribute):
            attribute += "_"
        setattr(self, attribute, site)
        return site, attribute

    def clear(self) -> list[FaultSite]:
        """Take all sites out, so that others may be added; clock and settings stay.

        Returns:
            What was taken out, to be handed to `take_over`.
        """
        for name, value in list(vars(self).items()):
            if isinstance(value, FaultSite):
                delattr(self, name)
        before, self._sites = self._sites, []
        self.outputs, self.skipped, self._tree, self.running = [], {}, [], None
        self._extents, self._layouts = Extents(), SampleLayouts()
        return before

    def take_over(self, before: Iterable[FaultSite]) -> None:
        """Let the sites have the settings of others of the same names, and their statistics.

        Statistics of another number of sites begin again.
        """
        known = {site.name: site for site in before}
        for site in self._sites:
            if site.name in known:
                site.setting = known[site.name].setting
                site.selected = known[site.name].selected
        if self.statistics is None:
            return
        if len(self.statistics.layer_stats) == len(self):
            self.set_statistics(self.statistics)
        else:
            self.new_statistics()

    def attach(self, model: nn.Module, original: nn.Module) -> None:
        """Remember the model whose mode the clock follows, and the one it was made from."""
        self.clock.follow(model)
        self._original = [original]

    def watch_layers(
        self, modules: Iterable[nn.Module], react: Callable[[FaultSites, nn.Module, Any], None]
    ) -> None:
        """Note the children of some modules, and react where a forward finds others there.

        Args:
            modules: of the transformed model.
            react: called with the sites, a module, and the children that it had.
        """
        self._tree = [(module, tuple(module._modules.values())) for module in modules]
        self._on_surgery = react

    @contextmanager
    def running_graph(self, number: int | None) -> Iterator[None]:
        """Note that the graph of a traced module runs; None: that Python code does.

        Raises:
            SiteError: a forward of the model runs in another thread.
        """
        self._enter_forward()
        before, self.running = self.running, number
        try:
            yield
        finally:
            self.running = before
            self._leave_forward()

    @contextmanager
    def forward_of_thread(self) -> Iterator[None]:
        """Let this thread alone run forwards of the model meanwhile.

        Clock, counts of calls and what layers hand over are those of one forward. Two threads
        would mix them up and give outputs with the faults of other samples.

        Raises:
            SiteError: a forward of the model runs in another thread.
        """
        self._enter_forward()
        try:
            yield
        finally:
            self._leave_forward()

    def _enter_forward(self) -> None:
        mine = threading.get_ident()
        # One step, so that of two threads one is the first.
        if self._thread.setdefault("id", mine) != mine:
            raise SiteError(
                "a forward of this model runs in another thread; its sites and their clock serve "
                "one forward at a time: give each thread a copy (copy.deepcopy), or a process"
            )
        self._thread.depth += 1

    def _leave_forward(self) -> None:
        self._thread.depth -= 1
        if not self._thread.depth:
            del self._thread["id"]

    def say_if_quiet(self) -> None:
        """Say once that an evaluation runs without faults because they are for training.

        After a training forward nothing is said: evaluating without faults is meant then.
        """
        if self.clock.training:
            self.told_quiet = True
        elif not self.told_quiet and self.enabled and self.clock.why_quiet is not None:
            self.told_quiet = True
            logger.warning("no fault strikes in this evaluation: %s", self.clock.why_quiet)

    def look_at_layers(self) -> None:
        """See whether layers were replaced since; forget what a broken forward has left.

        Raises:
            SiteError: what stands there now cannot be struck without another `transform`.
        """
        for output in self.outputs:
            if output.kept is not None:
                output.forget()
        for place, (module, children) in enumerate(self._tree):
            if tuple(module._modules.values()) != children and self._on_surgery is not None:
                self._on_surgery(self, module, children)
                self._tree[place] = (module, tuple(module._modules.values()))

    @property
    def original(self) -> nn.Module:
        """The model that the transformed one was made from."""
        return self._original[0]

    # -- run time -----------------------------------------------------------------------

    @property
    def seed(self) -> int:
        """The seed of all draws; where the configuration gave none, the one drawn."""
        return self.clock.seed

    @property
    def trial(self) -> int:
        """Number of the current trial."""
        return self.clock.trial

    @property
    def enabled(self) -> bool:
        """The master switch."""
        return self.clock.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self.clock.enabled = bool(enabled)

    def reset(self, trial: int | None = None, first_sample: int = 0) -> None:
        """Start a new pass over the data.

        Samples and steps are numbered anew; what statistics recorded stays.

        Args:
            trial: number of the trial, 0 and up; each has its own faults. None keeps it.
            first_sample: number of the first sample that this process will see (the offset
                of a worker that has a part of the data); after `shard`, that the processes
                together will see.
        """
        if trial is not None:
            self.clock.trial = trial
        self.clock.reset(first_sample)
        self._draw_layer()

    def start_epoch(self, epoch: int) -> None:
        """Start an epoch of training: `set_epoch`, and samples and steps numbered anew.

        Raises:
            ConfigError: `epoch` is not an integer of at least 0.
        """
        self.set_epoch(epoch)
        self.reset()

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, which `epoch_interval` and the faults of training follow.

        What the configuration's curriculum names is set to its values for the epoch, at every
        site; all else stays, so that what was set by hand without a curriculum is kept.

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
        """Do what another seed, trial or epoch asks for, once the clock was moved there."""
        self.set_epoch(self.clock.epoch)
        self._draw_layer()

    def governs(self, setting: str) -> bool:
        """Whether a curriculum changes a setting (`probability`, `step_interval`, ...)."""
        return setting in governed_settings(self.config)

    def shard(self, rank: int, world_size: int) -> None:
        """Number samples as one of several processes that train or evaluate together.

        In each forward every process has an equal part of a joined batch, one after the other
        in the order of their ranks; from now on its samples get the numbers, and so the faults,
        that they would have there. All processes need the same seed. Without `shard`, a model
        has the whole batch.

        >>> import torch, fxfault
        >>> from brevitas.nn import QuantReLU
        >>> from torch import nn
        >>> net = fxfault.transform(nn.Sequential(QuantReLU()), {"enabled": True, "seed": 7})
        >>> net.faults.shard(rank=1, world_size=2)
        >>> numbers = []
        >>> for batch in torch.ones(2, 8, 3):
        ...     _ = net(batch)
        ...     numbers.append(net.faults.clock.first_sample)
        >>> numbers  # 0 to 7 and 16 to 23 are those of rank 0
        [8, 24]

        Args:
            rank: number of this process, 0 and up.
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
        """Run forwards on samples that are told by number instead of counted.

        The faults of a sample follow from its number alone, so any samples can be run again,
        in any batch, with the faults that they had. The count of samples and steps rests.

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
            numbers: int64, 0 and up, one dimension; one for each sample of a batch.

        Raises:
            SiteError: they are none; or, by a forward inside, their number is not that of its
                batch's samples.
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

    def check(self) -> None:
        """Wait for the device and see whether everything that was struck was sound.

        On the CPU an unsound value raises in its forward; elsewhere the forward does not
        wait, and this is where one learns of it.

        Raises:
            SiteError: values that were to be hit were no codes, or (with a probability below
                1e-17 for each sample) the draws did not span a sample.
        """
        for site in self._sites:
            if site.seen.sound is not None and not bool(site.seen.sound):
                raise SiteError(
                    f"site {site.name}: values that were to be hit {why_no_codes(site)}"
                )

    def set_probability(self, probability: float) -> None:
        """Set the probability of every site, in percent."""
        for site in self._sites:
            site.set_probability(probability)

    def set_faults(self, config: FaultInjectionConfig) -> None:
        """Let that strike which another configuration says, at every site that it says.

        Its fault models, rates and, of `faults`, the layers of each count; what it says of times,
        seeds and statistics does not, nor which sites its own `layers` selects (see `select`).

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
            SiteError: the layers of one of the `faults` match no site.
        """
        config.validate()
        if config.faults is None:
            settings = [setting_of(config)] * len(self)
        else:
            struck = [
                self.matching(entry.layers, f"faults[{number}].layers")
                for number, entry in enumerate(config.entries())
            ]
            settings = [
                setting_of(config, [n for n, indices in enumerate(struck) if index in indices])
                for index in range(len(self))
            ]
        for site, setting in zip(self._sites, settings, strict=True):
            site.setting = setting

    def check_words(self) -> None:
        """See that the words of the selected sites have the bits that are to be struck.

        Learned widths are seen by the forward that strikes.

        Raises:
            SiteError: one of them has not.
        """
        for site in self._sites:
            for fault in site.faults if site.selected else ():
                site.check_word(fault.model, site.bit_width)

    # -- how much there is to hit -------------------------------------------------------

    def prepare(self, inputs: Sequence[Any]) -> None:
        """Measure, if `num_faults` is spread over sites that were not measured for such inputs.

        Args:
            inputs: what the model is called with.
        """
        self._extents.prepare(self, inputs)

    def measure(self, *inputs: Any) -> None:
        """Run the model without faults, and see what there is to hit at each site, and whose.

        Which elements of an activation belong to which sample is measured by running a few of the
        samples in another order, and in a smaller batch (`fxfault.sites.sample_layouts`). Faults of
        a sample then no longer depend on the batch that it comes in, also where its rows do not
        follow each other (two views joined by `torch.cat`, time steps first); `fxfault.inspect`
        tells what was found. Where nothing was measured, the shape decides: a leading dimension of
        k times the batch is k consecutive rows for each sample, and any other activation is one
        sample.

        How many elements and bits there are is what `num_faults` needs. A forward finds it by
        itself where inputs have a shape that was not seen before; what is asked ahead of any
        forward (`fxfault.strike.draws.samples_hit`) needs this to be called.

        The runs are ones in evaluation mode and without gradients; afterwards modes, settings,
        clock, statistics, buffers and the states of random generators are as before.

        Args:
            inputs: what the model is called with, a batch. Real samples, different from each
                other, show most: where an activation is the same for all of them, any layout
                explains it, and rows are taken to be consecutive.
        """
        self.measure_layouts(*inputs)
        self.measure_extents(*inputs)

    def measure_layouts(self, *inputs: Any) -> None:
        """The part of `measure` that tells which elements belong to which sample."""
        if self._layouts.measure(self, inputs) and any(
            s.seen.extent is not None for s in self._sites
        ):
            self.measure_extents(*inputs)

    def measure_extents(self, *inputs: Any) -> None:
        """The part of `measure` that tells how much there is to hit."""
        self._extents.measure(self, inputs)

    @property
    def why_unmeasured(self) -> str | None:
        """Why it could not be measured which elements belong to which sample; None: it could."""
        return self._layouts.why_not

    @property
    def layouts_note(self) -> str | None:
        """Where faults depend on the batch, and why, as a sentence; None: nowhere, as measured."""
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

    def set_fault_model(self, fault_model: str | FaultModel) -> None:
        """Set the fault model of every site, by name or by instance."""
        for site in self._sites:
            site.set_fault_model(fault_model)

    def set_statistics(self, statistics: FaultStatistics | None) -> None:
        """Record armed forwards in `statistics`; None stops recording.

        Raises:
            ConfigError: they were made for another number of sites.
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
        """Make empty statistics for these sites and record in them from now on."""
        statistics = FaultStatistics(len(self), self.names)
        self.set_statistics(statistics)
        return statistics

    def select(
        self, layers: str | int | Iterable[str | int] | None, without: Collection[str] = ()
    ) -> None:
        """Select sites by name pattern (`layer1.*`), index, or a list of them; None: all.

        In `layer` mode, the one site of the configuration is taken out of those: the
        given index, or for -1 one drawn by seed and trial.

        Args:
            layers: patterns and indices.
            without: names of sites that are left out, such as those that are never called.

        Raises:
            SiteError: a pattern or an index matches no site.
        """
        chosen = [index for index in self.matching(layers) if self[index].name not in without]
        if self.config.mode == "layer":
            chosen = [self._single(chosen)]
        for site in self._sites:
            site.selected = site.index in chosen

    def matching(
        self, layers: str | int | Iterable[str | int] | None, where: str = "layers"
    ) -> list[int]:
        """Give the indices of the sites that patterns and indices mean; None means all.

        Raises:
            SiteError: one of them matches no site; `where` is what the message calls them.
        """
        if layers is None:
            return list(range(len(self)))
        wanted = [layers] if isinstance(layers, (str, int)) else list(layers)
        chosen: set[int] = set()
        for item in wanted:
            if isinstance(item, int):
                chosen.add(self[item].index)
                continue
            found = [s.index for s in self._sites if fnmatch.fnmatchcase(s.name, item)]
            if not found:
                raise SiteError(f"{where}: {item!r} matches no site; {self.describe(item)}")
            chosen.update(found)
        return sorted(chosen)

    def _draw_layer(self) -> None:
        if self.config.mode == "layer" and self.config.injection_layer == -1:
            self.select(self.config.layers)

    def _single(self, candidates: list[int]) -> int:
        wanted = self.config.injection_layer
        if wanted >= 0:
            if wanted not in candidates:
                raise SiteError(f"injection_layer: no site {wanted} to select; {self.describe()}")
            return wanted
        draw = uniform_float(self.clock.seed, "layer", self.clock.trial)
        layer = candidates[int(draw * len(candidates))]
        if self.config.verbose:
            logger.info("Randomly selected layer %d for injection", layer)
        return layer

    def __repr__(self) -> str:
        armed = sum(site.armed for site in self._sites)
        return f"FaultSites({len(self)} sites, {armed} armed, seed {self.seed})"


def faults_of(model: nn.Module) -> FaultSites:
    """The sites of a transformed model.

    Raises:
        SiteError: the model was not transformed.
    """
    for name in ATTRIBUTE_NAMES:
        sites = vars(model).get(name)
        if isinstance(sites, FaultSites):
            return sites
    raise SiteError(
        f"{type(model).__name__} has no fault sites; call fxfault.transform(model, config) first"
    )
