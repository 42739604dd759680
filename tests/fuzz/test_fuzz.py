"""Some hundred strange inputs end as they must; `python -m tests.fuzz` tries a million."""

from __future__ import annotations

import sys

import pytest
from fuzz.__main__ import run_in_child, table

# Few of each: to start the process takes longer. `python -m tests.fuzz` is for more.
CASES = {"configuration": 200, "study": 40, "store": 100, "checkpoint": 60}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a case's memory is Linux's")
@pytest.mark.parametrize("kind", CASES)
def test_strange_inputs_end_as_they_must(kind: str) -> None:
    cases = CASES[kind]
    tally = run_in_child(kind, cases, 0, lambda tally: None)
    print(table([tally]))
    assert tally["cases"] >= cases * 0.9  # Hypothesis may draw one twice, and counts that.
    # Neither all nor nothing: else they would not be both near to what is sound and damaged.
    assert min(tally["accepted"], tally["refused"]) > cases * 0.05
