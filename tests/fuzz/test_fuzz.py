"""Two thousand strange inputs end as they must; `python -m tests.fuzz` tries a million."""

from __future__ import annotations

import sys

import pytest
from fuzz.__main__ import KINDS, run_in_child, table

CASES = 500


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a case's memory is Linux's")
@pytest.mark.parametrize("kind", KINDS)
def test_strange_inputs_end_as_they_must(kind: str) -> None:
    tally = run_in_child(kind, CASES, 0, lambda tally: None)
    print(table([tally]))
    assert tally["cases"] >= CASES * 0.9  # Hypothesis may draw one twice, and counts that.
    # Neither all nor nothing: else they would not be both near to what is sound and damaged.
    assert min(tally["accepted"], tally["refused"]) > CASES * 0.05
