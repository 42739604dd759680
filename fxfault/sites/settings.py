"""What strikes at a site, as it was set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from fxfault.config.entries import rate_text
from fxfault.faults.fault_models import (
    FaultModel,
    RandomStrategy,
    get_fault_model,
    is_same_in_every_sample,
    label_of,
)

if TYPE_CHECKING:
    from fxfault.config.fault_injection import FaultInjectionConfig


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
    def strikes(self) -> bool:
        """Whether it hits anything at its rate."""
        return self.probability > 0 if self.num_faults is None else self.num_faults > 0

    @property
    def is_fixed(self) -> bool:
        """Whether the same elements are hit in every sample."""
        return is_same_in_every_sample(self.model)

    def __str__(self) -> str:
        return f"{label_of(self.model)}{rate_text(self)}"


@dataclass(frozen=True)
class Setting:
    """What strikes a site. It never changes; another one takes its place.

    Attributes:
        faults: what strikes, in this order; none: nothing strikes here.
        listed: whether they come of a list (`faults` of a configuration). Such a list as a whole
            says what strikes: no rate and no fault model of it is set by itself.
        hw_units: parallel units of the hardware, of which the probability says how many are
            broken; None: elements are hit by themselves.
        bit: which bit a fault model that is set by name strikes, if it takes one.
        burst_length: how many bits, likewise.
    """

    faults: tuple[SiteFault, ...]
    listed: bool = False
    hw_units: int | None = None
    bit: int | str | None = None
    burst_length: int | None = None

    def with_probability(self, probability: float) -> Setting:
        """The same with another probability of its one fault, in percent."""
        (fault,) = self.faults
        return replace(self, faults=(fault._replace(probability=float(probability)),))

    def with_fault_model(self, fault_model: str | FaultModel) -> Setting:
        """The same with another model of its one fault.

        Raises:
            ConfigError: there is no such fault model.
        """
        (fault,) = self.faults
        model = get_fault_model(fault_model, self.bit, self.burst_length)
        return replace(self, faults=(fault._replace(model=model),))


# Armed, so that a forward shows what there is to hit, and nothing is hit.
AT_ZERO = Setting((SiteFault(RandomStrategy(), probability=0.0),))


def setting_of(config: FaultInjectionConfig) -> Setting:
    """Make the setting that all `entries` of a configuration give.

    Raises:
        ConfigError: there is no such fault model.
    """
    return Setting(
        faults=tuple(
            SiteFault(
                model=get_fault_model(entry.injection_type, entry.bit, entry.burst_length),
                probability=float(entry.probability or 0.0),
                rate_unit=entry.rate_unit,
                num_faults=entry.num_faults,
                number=number,
            )
            for number, entry in enumerate(config.entries())
        ),
        listed=config.faults is not None,
        hw_units=config.frequency_value if config.hw_mask else None,
        bit=config.bit,
        burst_length=config.burst_length,
    )
