"""The methods paragraph names what another group needs, and nothing that was not done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from campaign_page_tools import SITES, residual, write_store

from fxfault.cli import campaign
from fxfault.results.reports.campaign_findings import read_findings
from fxfault.results.reports.methods import methods_text


def paragraph(path: Path, **changes: Any) -> str:
    write_store(path, residual(), **changes)
    lines = methods_text(read_findings(path)).split("\n")
    assert max(map(len, lines)) <= 100
    return " ".join(lines)


def test_the_paragraph_names_versions_seed_faults_trials_and_data(tmp_path: Path) -> None:
    text = paragraph(tmp_path / "s")

    for part in (
        "quantised network quant_digits with words of 4 and 8 bits, evaluated on 500 samples",
        "torch 2.13.0 and Python 3.11.7 on cuda:0",
        "its accuracy is 96.00% (bundled:digits)",
        "Faults struck activations; the fault models were random and msb_flip.",
        "hit independently with a probability of 1 and 5 %",
        f"3 sites were struck one at a time: {', '.join(SITES[1:])}. Struck together were: all.",
        "from the seed 0 and from k. Each cell has 4 trials (64 trials in 16 cells).",
        "All intervals have a confidence of 95 %",
        "SHA-256 (first 12 digits): labels abababababab, weights cdcdcdcdcdcd.",
    ):
        assert part in text
    assert "NOT FINISHED" not in text


def test_the_paragraph_says_how_cells_ended_and_what_is_missing(tmp_path: Path) -> None:
    stop = {"margin": 1.0, "min_trials": 4, "max_trials": 6}
    write_store(tmp_path / "u", residual(), stop=stop)
    text = methods_text(read_findings(tmp_path / "u"), width=10_000)
    assert "intervals of the accuracy and the SDC rate were within ±1 percentage points" in text
    assert "looked at after 4, 6 trials" in text
    assert "THE STUDY IS NOT FINISHED: " in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"axes": {"layers": "each", "num_faults": [1, 3]}},
            "Exactly 1 and 3 faults per sample were drawn.",
        ),
        (
            {"fault_injection": {"hw_mask": True, "frequency_value": 64}},
            "Of 64 parallel units, a share of 1 and 5 % was faulty throughout a trial. ",
        ),
    ],
)
def test_what_was_drawn_otherwise_is_said_otherwise(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    text = paragraph(tmp_path / "s", **changes)
    assert said in text
    assert "hit independently" not in text


def test_the_command_prints_the_paragraph_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(tmp_path / "s", residual())
    assert campaign.main(["report", "--store", str(tmp_path / "s"), "--methods"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("We injected faults into the quantised network quant_digits")
    assert "Layer ranking" not in out
