"""One place where faults can strike, and what strikes there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from fxfault.config import rate_text
from fxfault.errors import ConfigError, SiteError
from fxfault.extents import Extent
from fxfault.fault_models import (
    FaultModel,
    get_fault_model,
    is_same_in_every_sample,
    label_of,
)
from fxfault.quant_tensors import only_observes
from fxfault.random_numbers import Key
from fxfault.sampling import Arrangement, Layout

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxfault.clock import FaultClock
    from fxfault.layer_outputs import LayerOutput
    from fxfault.quant_tensors import Quantiser
    from fxfault.statistics import FaultStatistics

logger = logging.getLogger(__name__)

NOT_CODES = (
    "are not integer codes of the quantiser (NaN, or not quantised: check the checkpoint's "
    "scales and `quant_delay_steps`)"
)
ONLY_OBSERVED = (
    "were not quantised: the quantiser of its {} only observes (`observer_only` is true, as "
    "calibration_mode of Brevitas leaves quantisers that several layers share); set it to False in "
    "all parts of `act_quant`, or give each layer a quantiser of its own before calibrating"
)


def why_no_codes(site: FaultSite) -> str:
    """Why values of a site are no codes, as the end of a message."""
    layer = None if site.output is None else site.output.layer[0]
    return ONLY_OBSERVED.format(site.module_type) if only_observes(layer) else NOT_CODES


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
        output: what the layer ends its forward with; see `fxfault.layer_outputs`.
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
        arrangement: how the samples of a batch lie in the activation; None before it was measured.
        observer: while that is measured, gets each activation and gives the values that go on.
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
    output: LayerOutput | None = None
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
    arrangement: Arrangement | None = None
    observer: Callable[[Any], Tensor] | None = None
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

    def layout_of(self, shape: tuple[int, ...], batch: int) -> Layout:
        """How the elements of this activation belong to samples.

        As it was measured (`FaultSites.measure`); before, as the shape suggests, of which the
        first strike that cannot be sure warns once.

        Args:
            shape: of the activation.
            batch: samples of the forward.
        """
        if self.arrangement is not None:
            return self.arrangement.over(shape, batch)
        if shape[:1] != (batch,) and not self.clock.warned and self.probability > 0:
            self._warn(shape, batch)
        return Layout.of(shape, batch)

    def _warn(self, shape: tuple[int, ...], batch: int) -> None:
        self.clock.warned = True
        logger.warning(
            "site %s: which of its rows belong to which sample was not measured; its activation of "
            "shape %s for a batch of %d is taken as its shape suggests, and faults may depend on "
            "the batch size; call model.faults.measure(inputs) first",
            self.name,
            shape,
            batch,
        )

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

    def stream(self, again: bool = False, extra: int = 0) -> Key:
        """The key of the random numbers of this call of the site.

        A site of the graph is called once in a forward. One that a container calls by its
        own code may be called again (time steps): each call has its own faults.

        Args:
            again: whether a backward repeats the call.
            extra: how many calls this is after the one that the graph would make.
        """
        if self.clock.keys is not None:
            return self.clock.keys[self.index]
        if not self.counts_calls:
            return self.clock.stream(f"{self.name}#{1 + extra}" if extra else self.name)
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
