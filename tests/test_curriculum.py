"""The curriculum: what it accepts, and the plan that it makes for each epoch."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fxfault.config import FaultInjectionConfig, epoch_plan
from fxfault.config.curriculum import EpochPlan, governed_settings
from fxfault.config.entries import CurriculumPoint
from fxfault.config.schema import section_reference
from fxfault.errors import ConfigError, InvalidConfigError
from fxfault.experiment import ExperimentConfig, load_experiment
from fxfault.faults import FaultModel, get_fault_model

ROOT = Path(__file__).resolve().parent.parent


class Custom(FaultModel):
    """A fault model that is registered nowhere."""

    name = "custom"

    def corrupt(self, codes: Any, word: Any, draw: Any) -> Any:
        return codes


def config(*points: Any, **changes: Any) -> FaultInjectionConfig:
    return FaultInjectionConfig.from_dict({"curriculum": list(points) or None, **changes})


def problems_of(*points: Any, **changes: Any) -> list[str]:
    with pytest.raises(InvalidConfigError) as caught:
        config(*points, **changes)
    assert "\n" not in str(caught.value)
    return caught.value.problems


def course(setting: str, settings: FaultInjectionConfig, epochs: int) -> list[Any]:
    return [getattr(epoch_plan(settings, epoch), setting) for epoch in range(epochs)]


# -- what is accepted --------------------------------------------------------------------

GOOD = {
    "epoch": 4,
    "probability": 2.5,
    "step_interval": 0.5,
    "epoch_interval": 2,
    "injection_type": "msb_flip",
}


def test_points_are_read() -> None:
    taken = config({"epoch": 0, "probability": 1}, GOOD)
    assert taken.curriculum == (
        CurriculumPoint(epoch=0, probability=1.0),
        CurriculumPoint(**GOOD),  # type: ignore[arg-type]
    )


def test_points_may_be_given_as_objects() -> None:
    points = [CurriculumPoint(epoch=0, probability=1.0), CurriculumPoint(**GOOD)]  # type: ignore[arg-type]
    assert config(*points) == config({"epoch": 0, "probability": 1.0}, GOOD)
    FaultInjectionConfig(curriculum=points).validate()


@pytest.mark.parametrize("interpolate", ["step", "linear", "cosine"])
def test_points_without_a_number_can_be_interpolated(interpolate: str) -> None:
    faults = config({"epoch": 2, "injection_type": "msb_flip"}, interpolate=interpolate)
    assert course("injection_type", faults, 4) == ["random", "random", "msb_flip", "msb_flip"]


def test_numbers_of_a_file_may_have_an_exponent(tmp_path: Path) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text("fault_injection:\n  curriculum:\n    - {epoch: 0, probability: 1e-3}\n")
    assert epoch_plan(FaultInjectionConfig.from_yaml(path), 0).probability == 0.001


REFUSED = [
    ("epoch", -1, "an integer of at least 0"),
    ("epoch", 1.0, "an integer of at least 0"),
    ("epoch", None, "an integer of at least 0"),
    ("epoch", True, "an integer of at least 0"),
    ("probability", 100.5, "a number from 0 to 100 or null"),
    ("probability", "5", "a number from 0 to 100 or null"),
    ("probability", math.nan, "a number from 0 to 100 or null"),
    ("step_interval", 50, "a number from 0 to 1 or null"),
    ("epoch_interval", 0, "an integer of at least 1 or null"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), REFUSED)
@pytest.mark.parametrize("as_object", [False, True])
def test_refused_value_is_told_with_the_path_of_its_key(
    key: str, value: Any, allowed: str, as_object: bool
) -> None:
    values = {**GOOD, key: value}
    point = CurriculumPoint(**values) if as_object else values
    shown = "null" if value is None else repr(value)
    assert problems_of({"epoch": 0, "probability": 1}, point) == [
        f"fault_injection.curriculum[1].{key}: got {shown} ({type(value).__name__}), "
        f"allowed: {allowed}"
    ]


def test_unknown_fault_model_of_a_point_gets_the_nearest_one() -> None:
    (problem,) = problems_of({"epoch": 1, "injection_type": "msb-flip"})
    assert problem.startswith("fault_injection.curriculum[0].injection_type: got 'msb-flip' (str)")
    assert problem.endswith("or null; did you mean 'msb_flip'?")


def test_boolean_in_place_of_the_fault_model_of_a_point_is_explained() -> None:
    (problem,) = problems_of({"epoch": 1, "injection_type": False})
    assert problem.endswith("put the text in quotes")


def test_unknown_key_of_a_point_gets_the_nearest_one() -> None:
    assert problems_of({"epoch": 1, "probabilty": 3}) == [
        "fault_injection.curriculum[0].probabilty: unknown key; did you mean 'probability'?"
    ]


def test_point_without_epoch_is_told() -> None:
    assert problems_of({"probability": 1}) == [
        "fault_injection.curriculum[0].epoch: missing, allowed: an integer of at least 0"
    ]


@pytest.mark.parametrize("point", [5, "0", None, ["epoch"]])
def test_point_that_is_no_mapping_is_refused(point: Any) -> None:
    (problem,) = problems_of(point)
    assert problem.startswith("fault_injection.curriculum[0]: got ")
    assert problem.endswith("allowed: a mapping of keys to values")


@pytest.mark.parametrize("curriculum", [[], {}, {"epoch": 0}, 5, "linear", True])
def test_curriculum_that_is_no_list_of_points_is_refused(curriculum: Any) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        FaultInjectionConfig.from_dict({"curriculum": curriculum})
    (problem,) = caught.value.problems
    assert problem.startswith("fault_injection.curriculum: got ")
    assert "allowed: a non-empty list (each item a mapping with keys among epoch, " in problem


@pytest.mark.parametrize("point", [{"epoch": 3}, {"epoch": 3, "probability": None}])
def test_point_that_names_no_setting_is_refused(point: dict[str, Any]) -> None:
    assert problems_of(point) == [
        "fault_injection.curriculum[0]: names no setting, allowed: at least one of probability, "
        "step_interval, epoch_interval, injection_type"
    ]


@pytest.mark.parametrize("epochs", [(3, 3), (3, 2), (0, 5, 4)])
def test_points_that_do_not_ascend_are_refused(epochs: tuple[int, ...]) -> None:
    (problem,) = problems_of(*({"epoch": epoch, "probability": 1} for epoch in epochs))
    last = len(epochs) - 1
    assert problem == (
        f"fault_injection.curriculum[{last}].epoch: got {epochs[-1]} (int), allowed: an integer "
        f"above {epochs[-2]}, because the points ascend"
    )


def test_all_problems_are_told_at_once_in_the_order_of_the_keys() -> None:
    problems = problems_of(
        {"epoch": 5, "probabilty": 1, "step_interval": 2},
        {"epoch": 3},
        {"epoch": 1, "probability": 1},
        interpolate="spline",
        seed=-1,
    )
    paths = [problem.partition(": ")[0] for problem in problems]
    assert [path.removeprefix("fault_injection.") for path in paths] == [
        "curriculum[0].probabilty",
        "curriculum[0].step_interval",
        "curriculum[1]",
        "curriculum[2].epoch",
        "interpolate",
        "seed",
    ]


def test_problems_of_a_curriculum_are_told_with_those_of_other_sections() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        ExperimentConfig.from_dict(
            {
                "training": {"epochs": 0},
                "fault_injection": {"curriculum": [{"epoch": 0, "probability": 101}]},
            }
        )
    paths = [problem.partition(":")[0] for problem in caught.value.problems]
    assert paths == ["training.epochs", "fault_injection.curriculum[0].probability"]


def test_validate_and_transform_refuse_what_from_dict_refuses() -> None:
    from torch import nn

    import fxfault

    faults = FaultInjectionConfig(enabled=True, curriculum=[{"epoch": 0, "probability": 101}])
    for refuse in (faults.validate, lambda: fxfault.transform(nn.Identity(), faults)):
        with pytest.raises(InvalidConfigError, match=r"curriculum\[0\]\.probability: got 101"):
            refuse()


# -- writing it down ---------------------------------------------------------------------


def test_to_dict_round_trips_through_yaml_and_json() -> None:
    faults = config({"epoch": 0, "probability": 1}, GOOD, interpolate="cosine")
    plain = faults.to_dict()
    assert plain["curriculum"] == [{"epoch": 0, "probability": 1.0}, GOOD]
    assert FaultInjectionConfig.from_dict(yaml.safe_load(yaml.safe_dump(plain))) == faults
    assert FaultInjectionConfig.from_dict(json.loads(json.dumps(plain))) == faults


def test_to_dict_takes_points_that_are_mappings_and_gives_copies() -> None:
    point = {"epoch": 0, "probability": 1}
    faults = FaultInjectionConfig(curriculum=[point])
    faults.to_dict()["curriculum"][0]["epoch"] = 7
    assert faults.to_dict()["curriculum"] == [point]
    assert FaultInjectionConfig.from_dict(faults.to_dict()) == config(point)


def test_to_dict_writes_a_registered_fault_model_by_its_name() -> None:
    faults = config({"epoch": 0, "injection_type": get_fault_model("lsb_flip")})
    assert faults.to_dict()["curriculum"] == [{"epoch": 0, "injection_type": "lsb_flip"}]


def test_to_dict_refuses_a_fault_model_without_registered_name() -> None:
    faults = config(GOOD, {"epoch": 9, "injection_type": Custom()})
    with pytest.raises(
        ConfigError, match=r"^fault_injection\.curriculum\[1\]\.injection_type: .*no registered"
    ):
        faults.to_dict()


# -- the plan ----------------------------------------------------------------------------


def test_without_a_curriculum_every_epoch_has_the_values_of_the_configuration() -> None:
    faults = config(probability=3, step_interval=0.5, epoch_interval=2, injection_type="lsb_flip")
    for epoch in (0, 1, 100):
        assert epoch_plan(faults, epoch) == EpochPlan(epoch, 3.0, 0.5, 2, "lsb_flip")
    assert governed_settings(faults) == frozenset()


@pytest.mark.parametrize(
    ("interpolate", "expected"),
    [
        ("step", [7, 7, 2, 2, 2, 2, 10, 10]),
        ("linear", [7, 7, 2, 4, 6, 8, 10, 10]),
        (
            "cosine",
            [7, 7, 2, 2 + 4 * (1 - math.sqrt(0.5)), 6, 2 + 4 * (1 + math.sqrt(0.5)), 10, 10],
        ),
    ],
)
def test_course_of_the_probability(interpolate: str, expected: list[float]) -> None:
    points = [{"epoch": 2, "probability": 2}, {"epoch": 6, "probability": 10}]
    faults = config(*points, interpolate=interpolate, probability=7)
    assert course("probability", faults, 8) == pytest.approx(expected, rel=1e-15)


def test_course_of_the_share_of_noisy_steps_downwards() -> None:
    points = [{"epoch": 0, "step_interval": 1}, {"epoch": 4, "step_interval": 0}]
    faults = config(*points, interpolate="linear")
    assert course("step_interval", faults, 6) == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


@pytest.mark.parametrize("interpolate", ["step", "linear", "cosine"])
def test_fault_model_and_epoch_interval_always_step(interpolate: str) -> None:
    model = Custom()
    faults = config(
        {"epoch": 1, "epoch_interval": 5, "injection_type": model},
        {"epoch": 3, "epoch_interval": 1, "injection_type": "msb_flip"},
        interpolate=interpolate,
    )
    assert course("epoch_interval", faults, 5) == [1, 5, 5, 1, 1]
    assert course("injection_type", faults, 5) == ["random", model, model, "msb_flip", "msb_flip"]


def test_each_setting_goes_through_the_points_that_name_it() -> None:
    faults = config(
        {"epoch": 0, "probability": 0},
        {"epoch": 2, "step_interval": 0.5},
        {"epoch": 4, "probability": 8},
        interpolate="linear",
    )
    assert course("probability", faults, 6) == [0.0, 2.0, 4.0, 6.0, 8.0, 8.0]
    assert course("step_interval", faults, 6) == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5]
    assert governed_settings(faults) == {"probability", "step_interval"}


def test_evaluation_has_no_curriculum() -> None:
    faults = config({"epoch": 0, "probability": 50}, apply_during="eval")
    assert course("probability", faults, 3) == [5.0, 5.0, 5.0]
    assert governed_settings(faults) == frozenset()


_POINTS = st.lists(
    st.tuples(st.integers(0, 40), st.floats(0, 100), st.floats(0, 1)),
    min_size=1,
    max_size=5,
    unique_by=lambda point: point[0],
).map(sorted)


@settings(max_examples=50, deadline=None)
@given(points=_POINTS, interpolate=st.sampled_from(["step", "linear", "cosine"]))
def test_laws_of_interpolation(points: list[tuple[int, float, float]], interpolate: str) -> None:
    """The course meets each point and stays between neighbours, monotonically."""
    faults = config(
        *({"epoch": e, "probability": p, "step_interval": s} for e, p, s in points),
        interpolate=interpolate,
    )
    for name, index in (("probability", 1), ("step_interval", 2)):
        values = course(name, faults, 45)
        assert all(values[point[0]] == point[index] for point in points)
        for before, after in itertools.pairwise(points):
            part = values[before[0] : after[0] + 1]
            assert part == sorted(part, reverse=before[index] > after[index])


@pytest.mark.parametrize(
    ("changes", "noisy"),
    [
        ({}, [True, True, True, True]),
        ({"epoch_interval": 2}, [True, False, True, False]),
        ({"probability": 0}, [False, False, False, False]),
        ({"step_interval": 0}, [False, False, False, False]),
    ],
)
def test_which_epochs_are_noisy(changes: dict[str, Any], noisy: list[bool]) -> None:
    assert course("noisy", config(**changes), 4) == noisy


@pytest.mark.parametrize("epoch", [-1, 1.0, None, "3", True])
def test_epochs_are_counted_from_zero(epoch: Any) -> None:
    with pytest.raises(ConfigError, match=r"^epoch: got .*allowed: an integer of at least 0"):
        epoch_plan(FaultInjectionConfig(), epoch)


def test_a_plan_says_what_it_is() -> None:
    assert str(EpochPlan(3, 5.0, 0.25, 1, Custom())) == (
        "epoch 3: custom at 5 %, in 25 % of the steps"
    )


# -- what is shown -----------------------------------------------------------------------


def test_bundled_curriculum_ends_with_more_faults_than_it_starts_with() -> None:
    faults = load_experiment("curriculum").fault_injection
    shares = [
        plan.probability * plan.step_interval * plan.noisy
        for plan in (epoch_plan(faults, epoch) for epoch in range(80))
    ]
    decades = [sum(shares[start : start + 10]) for start in range(0, 80, 10)]
    assert decades[:-1] == sorted(decades[:-1])
    assert decades[0] < decades[-1] / 50


def test_documentation_shows_the_bundled_curriculum_and_the_keys_of_a_point() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = page.partition("## Curriculum")[2]
    shown = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert shown is not None
    bundled = ROOT / "fxfault" / "bundled" / "experiments" / "curriculum.yaml"
    assert bundled.read_text(encoding="utf-8").endswith(shown[1])
    assert section_reference(CurriculumPoint).strip() in section


@pytest.mark.parametrize(
    ("settings", "plans"),
    [
        ({"num_faults": 2}, ["random, 2 a sample"] * 2),
        ({"num_faults": 0}, [None, None]),
        (
            {"faults": [{"probability": 0}, {"num_faults": 1, "injection_type": "burst"}]},
            ["random at 0 %; burst, 1 a sample"] * 2,
        ),
        ({"faults": [{"probability": 0}, {"num_faults": 0}]}, [None, None]),
        (
            {
                "injection_type": "bit_flip",
                "rate_unit": "bit",
                "probability": 1.0,
                "curriculum": [{"epoch": 1, "probability": 2.0, "injection_type": "stuck_at_1"}],
            },
            ["bit_flip at 1 % of the bits", "stuck_at_1 at 2 % of the bits"],
        ),
    ],
    ids=str,
)
def test_faults_of_other_kinds_have_a_plan(settings: dict[str, Any], plans: list[Any]) -> None:
    made = [epoch_plan(FaultInjectionConfig.from_dict(settings), epoch) for epoch in (0, 1)]
    assert [plan.noisy for plan in made] == [plan is not None for plan in plans]
    for epoch, (plan, words) in enumerate(zip(made, plans, strict=True)):
        share = "no faults" if words is None else f"{words}, in 100 % of the steps"
        assert str(plan) == f"epoch {epoch}: {share}"
