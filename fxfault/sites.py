"""Fault sites: the state that decides, at run time, what `fault_inject` does.

A transformed model carries one `FaultSites` as `model.faults`: the clock that all
sites share, and a `FaultSite` for each place where faults can strike. Neither holds a
parameter, a buffer or a module, so `state_dict` and the module tree stay as they were.
"""

from __future__ import annotations

import difflib
import fnmatch
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fxfault.config import rate_text
from fxfault.curriculum import epoch_plan, governed_settings
from fxfault.errors import ConfigError, SiteError
from fxfault.extents import Extent, Extents
from fxfault.fault_models import (
    FaultModel,
    get_fault_model,
    is_same_in_every_sample,
    label_of,
)
from fxfault.handles import Handle
from fxfault.random_numbers import Key, known_key, uniform_float
from fxfault.statistics import FaultStatistics

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxfault.config import FaultInjectionConfig
    from fxfault.layer_outputs import Handover
    from fxfault.quant_tensors import Quantiser

logger = logging.getLogger(__name__)

# The name of the attribute; the second serves models that have a `faults` of their own.
ATTRIBUTE_NAMES = ("faults", "fxfault_faults")


NOT_CODES = (
    "are not integer codes of the quantiser (NaN, or not quantised: check the checkpoint's "
    "scales and `quant_delay_steps`)"
)


# What a clock knows of where it is, rather than of when.
_NOT_IN_STATE = ("_model", "_on_move", "forward", "given", "handle", "keys", "rank", "world_size")


class FaultClock:
    """When faults strike, and which stream of random numbers they are drawn from.

    It moves once for each forward of the whole model: samples are numbered from the last
    reset, separately while training and while evaluating, and a training forward is one
    step, which is noisy or clean as a whole.

    Attributes:
        enabled: the master switch.
        apply_during: `train`, `eval` or `both`.
        epoch_interval: faults strike while training in every such epoch.
        step_interval: probability that a training step is noisy, 0 to 1.
        seed: where all draws follow from.
        trial: number of the evaluation under this seed; each has its own faults.
        epoch: the epoch; while training, each has its own faults.
        step: training steps since the last reset.
        batch: samples of the current forward.
        first_sample: number of the first one.
        given: the numbers of all of them where somebody gave them; see `FaultSites.samples`.
        keys: of random numbers, by site and fault, where a graph of a device reads them (int64).
        rank, world_size: which of how many processes this is; see `FaultSites.shard`.
        handle: by which compiled code finds the sites.
    """

    handle: Handle[FaultSites]

    def __init__(self, config: FaultInjectionConfig) -> None:
        plan = epoch_plan(config, 0)
        self.enabled = True
        self.apply_during = config.apply_during
        self.epoch_interval = plan.epoch_interval
        self.step_interval = plan.step_interval
        self.rank, self.world_size = 0, 1
        self.seed = secrets.randbits(63) if config.seed is None else config.seed
        self.trial = 0
        self.epoch = 0
        # A list keeps nn.Module from taking the model for a child of whatever holds the clock;
        # a strong reference survives copy.deepcopy, where a weak one would keep the original.
        self._model: list[nn.Module] = []
        self._on_move: Callable[[], None] | None = None
        self.forward = 0  # Counts on over resets: no two forwards share a number.
        self.given: Tensor | None = None
        self.keys: Tensor | None = None
        self.reset()

    def reset(self, first_sample: int = 0) -> None:
        """Number samples from `first_sample` and steps from 0 again."""
        self.step = 0
        self.batch: int | None = None
        self.first_sample = first_sample
        self._next_sample = {True: first_sample, False: first_sample}
        self._noisy_step = True

    def follow(self, model: nn.Module) -> None:
        """Follow the mode (train or eval) of a model."""
        self._model = [model]

    def on_move(self, react: Callable[[], None]) -> None:
        """Have a function called where `restore` leads to another seed, trial or epoch."""
        self._on_move = react

    @property
    def model(self) -> nn.Module:
        """The model that the clock follows."""
        return self._model[0]

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return bool(self._model) and self._model[0].training

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on from here: plain numbers, texts and a mapping.

        Any of several processes that share the data can go on from the state of any other.
        """
        kept = {k: v for k, v in vars(self).items() if k not in _NOT_IN_STATE}
        return {**kept, "_next_sample": dict(self._next_sample)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` gave.

        The sites follow to another epoch of the curriculum, and with `injection_layer: -1` to
        the layer that another seed or trial draws.

        Raises:
            ConfigError: `state` does not come from `state`.
        """
        expected = self.state().keys()
        if not isinstance(state, Mapping) or state.keys() != expected:
            names = sorted(map(str, state)) if isinstance(state, Mapping) else repr(state)
            raise ConfigError(f"state of the clock: got {names}, expected {sorted(expected)}")
        before = (self.seed, self.trial, self.epoch)
        vars(self).update({**state, "_next_sample": dict(state["_next_sample"])})
        if self._on_move is not None and (self.seed, self.trial, self.epoch) != before:
            self._on_move()

    def begin(self, batch: int) -> None:
        """Note that a forward of the whole model starts."""
        training = self.training
        self.forward += 1
        self.batch = batch
        if self.given is not None:
            if len(self.given) != batch:
                raise SiteError(
                    f"samples: got {len(self.given)} numbers for a batch of {batch} samples; give "
                    "one for each"
                )
            return
        self.first_sample = self._next_sample[training] + self.rank * batch
        self._next_sample[training] += self.world_size * batch
        if training:
            draw = uniform_float(self.seed, "step", self.epoch, self.step)
            self._noisy_step = draw < self.step_interval
            self.step += 1

    @property
    def why_quiet(self) -> str | None:
        """Why no site strikes in the current forward; None if the selected ones do."""
        if not self.enabled:
            return "injection is disabled"
        training = self.training
        mode = "train" if training else "eval"
        if self.apply_during not in (mode, "both"):
            return f"apply_during is {self.apply_during}, the model is in {mode} mode"
        if training and self.epoch % self.epoch_interval:
            return f"epoch {self.epoch} is not one of every {self.epoch_interval}"
        if training and not self._noisy_step:
            return f"step {self.step - 1} was drawn clean (step_interval {self.step_interval:g})"
        return None

    def stream(self, site: str) -> int:
        """The key of a site's random numbers in the current forward."""
        return known_key(self.seed, self.trial, self.epoch if self.training else "eval", site)

    def hardware_stream(self, site: str) -> int:
        """The key of what is broken in a site's hardware: the same for the whole trial."""
        return known_key("hardware", self.seed, self.trial, site)


class SiteFault(NamedTuple):
    """One of the faults that strike a site.

    >>> print(SiteFault(get_fault_model("bit_flip", bit=3), probability=0.5))
    bit_flip 3 at 0.5 %

    Attributes:
        model: what a hit does.
        probability: of a hit, in percent, for each element or bit; not used with `num_faults`.
        rate_unit: `element` or `bit`: what the rate counts.
        num_faults: hits of each sample, at all sites with this fault together; None: the
            probability says how many.
        number: 0 and up, among the faults of a run; each has random numbers of its own.
    """

    model: FaultModel
    probability: float
    rate_unit: str = "element"
    num_faults: int | None = None
    number: int = 0

    @property
    def most(self) -> float:
        """The probability, as far as it is known: all, in percent, where hits are counted."""
        return self.probability if self.num_faults is None else 100.0 * (self.num_faults > 0)

    @property
    def is_fixed(self) -> bool:
        """Whether the same elements are hit in every sample."""
        return is_same_in_every_sample(self.model)

    def __str__(self) -> str:
        return f"{label_of(self.model)}{rate_text(self)}"


@dataclass(eq=False)
class FaultSite:
    """One place in the network where faults can strike.

    Attributes:
        name: stable and readable: the module's path, and `@2` for its second call.
        index: place in the order of execution.
        module_path: path of the activation layer.
        module_type: class name of the activation layer.
        quantiser: its constants.
        probability: of a hit, in percent, for each element (see `rate_unit`); at 0 nothing strikes
            here, whatever else is set.
        fault_model: what a hit does.
        gradient_mode: `ste` or `zero_faulty`.
        selected: whether the configuration selects the site.
        handover: where the layer returns a plain tensor, what keeps the scale for us.
        layer: where no other node of the graph uses the activation, the layer that makes
            it; None elsewhere. See `makes_private_tensor`.
        counts_calls: whether one forward of the model may reach the site more than once,
            because a container calls it by its own Python code or is called again itself.
        signed, scale, elements: what the last armed forward showed (signedness, the scale
            tensor, elements of one sample); None before.
        sound: off the CPU, whether all forwards so far were sound (bool tensor), see
            `FaultSites.check`.
        rate_unit: `element` or `bit`: what the rate counts.
        num_faults: hits of each sample, at all selected sites together, in place of the
            probability; or None.
        several: the faults that strike here where the configuration has a list of them, in whose
            place there is then no fault model and rate of the site; None where it has none.
        options: which `bit` and `burst_length` a fault model that is set by name takes.
        peers: all sites of the model, this one too.
        extent: how much there is to hit; None before somebody measured it.
        word_bits: of the last armed forward (a tensor where that is not known on the host).
    """

    name: str
    index: int
    module_path: str
    module_type: str
    quantiser: Quantiser
    clock: FaultClock
    probability: float
    fault_model: FaultModel
    gradient_mode: str
    hw_units: int | None = None
    selected: bool = True
    handover: Handover | None = None
    layer: nn.Module | None = None
    counts_calls: bool = False
    statistics: FaultStatistics | None = None
    signed: bool | None = None
    scale: Tensor | None = None
    elements: int | None = None
    sound: Tensor | None = None
    rate_unit: str = "element"
    num_faults: int | None = None
    several: tuple[SiteFault, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    peers: Sequence[FaultSite] = ()
    extent: Extent | None = None
    word_bits: int | Tensor | None = None
    _calls: tuple[tuple[int, bool], int] = ((0, False), 0)
    _cache: dict[Any, Any] = field(default_factory=dict)

    @property
    def bit_width(self) -> int | None:
        """The constant bit width; None where it is learned."""
        return self.quantiser.bit_width

    @property
    def armed(self) -> bool:
        """Whether faults strike here in the current forward."""
        return self.selected and self.several != () and self.clock.why_quiet is None

    @property
    def why_unarmed(self) -> str | None:
        """Why the site is not armed; None if it is."""
        return "not selected" if not self.selected or self.several == () else self.clock.why_quiet

    @property
    def faults(self) -> tuple[SiteFault, ...]:
        """What strikes here, in this order."""
        if self.several is not None:
            return self.several
        return (SiteFault(self.fault_model, self.probability, self.rate_unit, self.num_faults),)

    def check_word(self, model: FaultModel, width: int | None) -> None:
        """See that a word has the bits that a fault model strikes.

        Raises:
            SiteError: it has not.
        """
        fewest = getattr(model, "fewest_bits", 1)
        if width is not None and width < fewest:
            raise SiteError(
                f"site {self.name}: {label_of(model)} needs a word of at least {fewest} bits, its "
                f"word has {width}; choose other bits, or leave the site out by `layers`"
            )

    @property
    def setting(self) -> dict[str, Any]:
        """What strikes here, to be put back by `restore`."""
        return {name: getattr(self, name) for name in _SETTING}

    def restore(self, setting: Mapping[str, Any]) -> None:
        """Let that strike again which `setting` gave."""
        for name in _SETTING:
            setattr(self, name, setting[name])

    def set_probability(self, probability: float) -> None:
        """Set the probability of a hit, in percent.

        Raises:
            ConfigError: it is not a number from 0 to 100, or here no probability counts.
        """
        if self.num_faults is not None or self.several is not None:
            key = "faults" if self.num_faults is None else f"num_faults: {self.num_faults}"
            raise ConfigError(
                f"probability of {self.name}: got {probability!r}, but `{key}` says how often "
                "faults strike; set another configuration by `model.faults.set_faults`"
            )
        valid = isinstance(probability, (int, float)) and not isinstance(probability, bool)
        if not valid or not 0 <= probability <= 100:
            raise ConfigError(
                f"probability of {self.name}: got {probability!r}, allowed: a number from 0 to 100"
            )
        self.probability = float(probability)

    def set_fault_model(self, fault_model: str | FaultModel) -> None:
        """Set what a hit does, by name or by instance.

        One that is set by name strikes the `bit` of the configuration, and so on.

        Raises:
            ConfigError: there is no such fault model, or here several strike.
        """
        if self.several is not None:
            raise ConfigError(
                f"fault model of {self.name}: got {fault_model!r}, but `faults` has several; set "
                "another configuration by `model.faults.set_faults`"
            )
        self.fault_model = get_fault_model(fault_model, **self.options)

    def stream(self, again: bool = False) -> Key:
        """The key of the random numbers of this call of the site.

        A site of the graph is called once in a forward. One that a container calls by its
        own code may be called again (time steps): each call has its own faults.
        """
        if self.clock.keys is not None:
            return self.clock.keys[self.index]
        if not self.counts_calls:
            return self.clock.stream(self.name)
        now = (self.clock.forward, again)
        before, calls = self._calls
        calls = calls + 1 if before == now else 1
        self._calls = (now, calls)
        return self.clock.stream(self.name if calls == 1 else f"{self.name}#{calls}")

    def __repr__(self) -> str:
        state = self.why_unarmed or "armed"
        faults = "; ".join(map(str, self.faults)).replace(" at ", " ") or "no fault"
        return f"FaultSite({self.index}, {self.name!r}, {faults}, {state})"


_SETTING = (
    "probability",
    "fault_model",
    "rate_unit",
    "num_faults",
    "several",
    "options",
    "hw_units",
)


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
    """

    def __init__(self, config: FaultInjectionConfig) -> None:
        self.config = config
        self.clock = FaultClock(config)
        self.clock.on_move(self._follow_clock)
        self.clock.handle = Handle(self)
        self.skipped: dict[str, str] = {}
        self.statistics: FaultStatistics | None = None
        self._sites: list[FaultSite] = []
        self._original: list[nn.Module] = []
        self._extents = Extents()

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
        options: dict[str, Any] = {"bit": self.config.bit, "burst_length": self.config.burst_length}
        site = FaultSite(
            name=name,
            index=len(self._sites),
            module_path=module_path,
            module_type=module_type,
            quantiser=quantiser,
            clock=self.clock,
            probability=plan.probability,
            fault_model=get_fault_model(plan.injection_type, **options),
            gradient_mode=self.config.gradient_mode,
            hw_units=self.config.frequency_value if self.config.hw_mask else None,
            rate_unit=self.config.rate_unit,
            num_faults=self.config.num_faults,
            options=options,
            peers=self._sites,
        )
        self._sites.append(site)
        attribute = "".join(c if c.isalnum() else "_" for c in name)
        attribute = f"_{attribute}" if attribute[:1].isdigit() else attribute
        while hasattr(self, attribute):
            attribute += "_"
        setattr(self, attribute, site)
        return site, attribute

    def attach(self, model: nn.Module, original: nn.Module) -> None:
        """Remember the model whose mode the clock follows, and the one it was made from."""
        self.clock.follow(model)
        self._original = [original]

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
            if site.sound is not None and not bool(site.sound):
                raise SiteError(f"site {site.name}: values that were to be hit {NOT_CODES}")

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
        options: dict[str, Any] = {"bit": config.bit, "burst_length": config.burst_length}
        several = None if config.faults is None else self._several(config)
        for site in self._sites:
            site.options, site.several = options, None
            site.rate_unit, site.num_faults = config.rate_unit, config.num_faults
            site.probability = float(config.probability)
            site.hw_units = config.frequency_value if config.hw_mask else None
            site.set_fault_model(config.injection_type)
            if several is not None:
                site.several = several[site.index]
                _show_first(site)

    def _several(self, config: FaultInjectionConfig) -> list[tuple[SiteFault, ...]]:
        """The faults of each site, where a configuration has several."""
        found: list[tuple[SiteFault, ...]] = [()] * len(self)
        for number, entry in enumerate(config.entries()):
            fault = SiteFault(
                model=get_fault_model(entry.injection_type, entry.bit, entry.burst_length),
                probability=entry.probability or 0.0,
                rate_unit=entry.rate_unit,
                num_faults=entry.num_faults,
                number=number,
            )
            for index in self.matching(entry.layers, f"faults[{number}].layers"):
                found[index] += (fault,)
        return found

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
        """Run the model once without faults, and see how much there is to hit at each site.

        `num_faults` needs it. A forward does it by itself where inputs have a shape that was not
        seen before; what is asked ahead of any forward (`struck_samples`) needs it to be called.
        The run is one in evaluation mode and without gradients; afterwards modes, settings, clock
        and statistics are as before.

        Args:
            inputs: what the model is called with; the values do not matter, their shapes do.
        """
        self._extents.measure(self, inputs)

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

    def select(self, layers: str | int | Iterable[str | int] | None) -> None:
        """Select sites by name pattern (`layer1.*`), index, or a list of them; None: all.

        In `layer` mode, the one site of the configuration is taken out of those: the
        given index, or for -1 one drawn by seed and trial.

        Raises:
            SiteError: a pattern or an index matches no site.
        """
        chosen = self.matching(layers)
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


def _show_first(site: FaultSite) -> None:
    """Let a site with several faults have the fault model of the first, and a rate if any has."""
    if site.faults:
        site.fault_model = site.faults[0].model
    site.probability = max((fault.most for fault in site.faults), default=0.0)


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
