"""A network to strike, for all tests of the clock."""

from __future__ import annotations

from typing import Any

import pytest
from clock.tools import Faulty, Net


@pytest.fixture
def net(faulty: Faulty) -> Any:
    """The transformed network, in eval mode, recording statistics; every hit changes its code."""
    net = faulty(Net().eval(), probability=20.0, injection_type="msb_flip")
    net.faults.new_statistics()
    return net
