"""What a resolved experiment shows: what was given or is read, and no default beside it."""

from __future__ import annotations

from typing import Any

import pytest

from fxfault.bundled.files import bundled_names
from fxfault.campaign import Study, bundled_studies
from fxfault.experiment import ExperimentConfig, load_experiment
from fxfault.experiment.applied_settings import applied

OWN: dict[str, Any] = {"dataset": {"name": "mine:data"}, "model": {"name": "mine:net"}}
STUDY = {"checkpoint": {"path": "a.pt"}, "axes": {"layers": "each"}, "trials": 2}


@pytest.mark.parametrize("name", bundled_names("experiments"))
def test_an_experiment_stays_the_same(name: str) -> None:
    experiment = load_experiment(name)
    assert ExperimentConfig.from_dict(applied(experiment.to_dict())) == experiment


@pytest.mark.parametrize("content", [{**OWN, **STUDY}, *bundled_studies()])
def test_a_study_stays_the_same(content: Any) -> None:
    study = Study.from_yaml(content) if isinstance(content, str) else Study.from_dict(content)
    assert Study.from_dict(applied(study.to_dict())) == study


def test_no_width_is_claimed_for_a_network_of_the_users_own() -> None:
    shown = applied(Study.from_dict({**OWN, **STUDY}).to_dict())
    assert "bit_width" not in str(shown)
    assert "quantization" in applied({**OWN, "model": {"name": "quant_cnv"}} | DEFAULT_WIDTHS)


DEFAULT_WIDTHS = {"quantization": {"weight_bit_width": 8, "act_bit_width": 8}}


def test_what_no_evaluation_reads_is_shown_only_where_it_was_given() -> None:
    plain = ExperimentConfig.from_dict({**OWN, "training": {"epochs": 7, "batch_size": 5}})
    shown = applied(plain.to_dict())
    assert shown["training"] == {"batch_size": 5, "epochs": 7}
    assert {"seed", "optimizer", "scheduler"}.isdisjoint(shown)
    assert {"curriculum", "gradient_mode", "frequency_value"}.isdisjoint(shown["fault_injection"])
    assert "optimizer" in applied(plain.to_dict(), evaluation=False)
