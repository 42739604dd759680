"""What an evaluation hit: which samples, and how many elements at each site."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fxfault.sites.site import FaultSite


class Hits(Protocol):
    """What an evaluation hit; ask before the sites are set otherwise, or get another trial."""

    def samples(self) -> Tensor:
        """Whether any site hit each sample, bool, shape (samples,)."""

    def of(self, site: FaultSite) -> tuple[int, int]:
        """The number of elements that a site hit, and of those that it exposed."""
