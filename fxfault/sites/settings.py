"""What strikes at a site."""

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
    from fxfault.faults.given_hits import GivenHits


class SiteFault(NamedTuple):
    """One of the faults that strike a site.

    >>> print(SiteFault(get_fault_model("bit_flip", bit=3), probability=0.5))
    bit_flip 3 at 0.5 %

    Attributes:
        model: the fault model.
        probability: probability of a hit in percent, for each element or bit; not used with
            `num_faults`.
        rate_unit: what the rate counts, `element` or `bit`.
        num_faults: hits of each sample or draw, at all sites with this fault together; None if the
            probability is used.
        number: number of the fault among those of a run, from 0; each has its own random numbers.
        given: the hits that a list gives, in place of a rate and a draw; or None.
        each: what has so many hits; see `FaultEntry.each`.
    """

    model: FaultModel
    probability: float
    rate_unit: str = "element"
    num_faults: int | None = None
    number: int = 0
    given: GivenHits | None = None
    each: str = "sample"

    @property
    def strikes(self) -> bool:
        """Whether the fault hits anything at its rate."""
        if self.given is not None:
            return len(self.given) > 0
        return self.probability > 0 if self.num_faults is None else self.num_faults > 0

    @property
    def is_fixed(self) -> bool:
        """Whether the same elements are hit in every sample."""
        return is_same_in_every_sample(self.model)

    def __str__(self) -> str:
        if self.given is not None:
            return f"replay of {self.given.origin.source}"
        return f"{label_of(self.model)}{rate_text(self, self.each)}"


@dataclass(frozen=True)
class Setting:
    """What strikes a site; immutable.

    Attributes:
        faults: the faults, in the order in which they strike; empty if nothing strikes.
        listed: whether the faults come from the `faults` of a configuration; then no rate or fault
            model can be set by itself.
        hw_units: number of parallel hardware units, of which the probability gives the broken
            fraction; None if elements are hit independently.
        bit: the bit of fault models that are set by name and take one.
        burst_length: the length of bursts that are set by name.
    """

    faults: tuple[SiteFault, ...]
    listed: bool = False
    hw_units: int | None = None
    bit: int | str | None = None
    burst_length: int | None = None

    def with_probability(self, probability: float) -> Setting:
        """Return the setting with another probability of its only fault, in percent."""
        (fault,) = self.faults
        return replace(self, faults=(fault._replace(probability=float(probability)),))

    def with_fault_model(self, fault_model: str | FaultModel) -> Setting:
        """Return the setting with another model of its only fault.

        Raises:
            ConfigError: there is no such fault model.
        """
        (fault,) = self.faults
        model = get_fault_model(fault_model, self.bit, self.burst_length)
        return replace(self, faults=(fault._replace(model=model),))


# A site that is armed at 0 %: a forward shows what there is to hit, and nothing is hit.
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
                each=entry.each,
            )
            for number, entry in enumerate(config.entries())
        ),
        listed=config.faults is not None,
        hw_units=config.frequency_value if config.hw_mask else None,
        bit=config.bit,
        burst_length=config.burst_length,
    )
