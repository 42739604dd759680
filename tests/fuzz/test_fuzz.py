"""Two thousand strange inputs end as they must; `python -m tests.fuzz` tries a million."""

from __future__ import annotations

import sys

import pytest
from fuzz.__main__ import run_in_children, table

# Two thousand in all, fewer of those that take longer.
CASES = {"configuration": 900, "study": 300, "store": 500, "checkpoint": 300}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a case's memory is Linux's")
def test_strange_inputs_end_as_they_must() -> None:
    tallies = run_in_children(CASES, 0, lambda tally: None)
    print(table(tallies))
    assert [tally["kind"] for tally in tallies] == list(CASES)
    for tally in tallies:
        cases = CASES[tally["kind"]]
        assert tally["cases"] >= cases * 0.9  # Hypothesis may draw one twice, and counts that.
        # Neither all nor nothing: else they would not be both near to what is sound and damaged.
        assert min(tally["accepted"], tally["refused"]) > cases * 0.05
