"""The study file: what it makes, and all that is said about one that is wrong."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fxfault.campaign import Cell, StopRule, Study, bundled_studies
from fxfault.campaign.estimates.stopping import is_sure, trials_wanted
from fxfault.campaign.records import fingerprint
from fxfault.campaign.studies.axes import Axes
from fxfault.campaign.studies.stop_rule import look_points
from fxfault.errors import ConfigError, InvalidConfigError, SiteError
from fxfault.evaluation.rows import TrialRow
from fxfault.faults import fault_models

SITES = ["stem.act", "body.0.act", "body.1.act", "head.act"]


def content(**changes: Any) -> dict[str, Any]:
    """A study of the digits; a key that is None is left out."""
    base = {
        "dataset": {"name": "digits"},
        "model": {"name": "quant_digits"},
        "checkpoint": {"path": "bundled:digits"},
        "trials": 5,
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


def study(**changes: Any) -> Study:
    return Study.from_dict(content(**changes))


def problems_of(**changes: Any) -> list[str]:
    with pytest.raises(InvalidConfigError) as caught:
        study(**changes)
    assert "\n" not in str(caught.value)
    return caught.value.problems


class _OneBit(fault_models.FaultModel):
    name = "one_bit"
    takes_bit = True
    same_in_every_sample = True

    def corrupt(self, codes: Any, word: Any, draw: Any) -> Any:
        return codes


@pytest.fixture
def one_bit(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(fault_models._REGISTRY, "one_bit", _OneBit())
    return "one_bit"


# -- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bundled_studies())
@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_every_bundled_study_loads_and_round_trips(name: str, suffix: str) -> None:
    loaded = Study.from_yaml(name + suffix)

    plain = loaded.to_dict()

    assert Study.from_dict(plain) == loaded
    assert Study.from_dict(json.loads(json.dumps(plain))) == loaded
    assert Study.from_dict(yaml.safe_load(yaml.safe_dump(plain))) == loaded


def test_the_bundled_study_is_what_the_documentation_says() -> None:
    digits = Study.from_yaml("digits_study")
    cells = digits.cells(SITES, dict.fromkeys(SITES, 4))

    assert len(cells) == len(SITES) * (2 + 4) * 3
    assert {cell.layers for cell in cells} == {(name,) for name in SITES}
    assert {cell.checkpoint for cell in cells} == {"bundled:digits"}
    assert digits.stop is not None


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content(trials=7)), encoding="utf-8")

    assert Study.from_yaml(path).trials == 7


def test_a_folder_does_not_hide_a_bundled_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits_study").mkdir()

    assert Study.from_yaml("digits_study").seed == 42


def test_a_file_that_is_not_there_names_the_nearest_study() -> None:
    with pytest.raises(InvalidConfigError, match="did you mean 'digits_study'"):
        Study.from_yaml("digit_study")


# -- what a file means ----------------------------------------------------------------------


def test_the_experiment_is_armed_and_seeded() -> None:
    faults = study(seed=9).experiment.fault_injection

    assert (faults.enabled, faults.apply_during, faults.seed) == (True, "eval", 9)
    assert study(seed={"value": 9}) == study(seed=9)
    assert study().seed == 0
    assert study(seed=9, fault_injection={"seed": 4}).seed == 4


def test_axes_that_are_not_named_come_from_the_base() -> None:
    base = {"injection_type": "msb_flip", "probability": 3, "layers": "body.*"}

    (cell,) = study(fault_injection=base).cells(SITES)

    assert (cell.injection_type, cell.probability) == ("msb_flip", 3.0)
    assert cell.layers == ("body.0.act", "body.1.act")
    assert cell.checkpoint == "bundled:digits"


def test_axes_are_crossed_and_cells_of_one_place_stand_together() -> None:
    axes = {
        "layers": ["each", "all"],
        "injection_type": ["random", "msb_flip"],
        "probability": [1, 5],
        "checkpoint": ["a.pt", "b.pt"],
    }

    cells = study(axes=axes).cells(SITES)

    assert len(cells) == len({cell.key for cell in cells}) == (4 + 1) * 2 * 2 * 2
    places = [(cell.checkpoint, cell.layers) for cell in cells]
    changes = sum(a != b for a, b in itertools.pairwise(places))
    assert changes == 2 * 5 - 1
    assert [cell.probability for cell in cells[:2]] == [1.0, 5.0]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", [None]),
        (["body.*"], [("body.0.act", "body.1.act")]),
        (["body.*", "stem.act"], [("body.0.act", "body.1.act"), ("stem.act",)]),
        ([["head.act", "stem.act"]], [("stem.act", "head.act")]),
        ([3, [0, 1]], [("head.act",), ("stem.act", "body.0.act")]),
        ("each", [(name,) for name in SITES]),
        (["each", 0], [(name,) for name in SITES]),  # A cell is there once.
    ],
)
def test_layers(layers: Any, expected: list[Any]) -> None:
    assert [cell.layers for cell in study(axes={"layers": layers}).cells(SITES)] == expected


def test_each_and_all_keep_to_the_sites_of_the_base() -> None:
    limited = study(fault_injection={"layers": [1, "head.*"]}, axes={"layers": ["each", "all"]})

    places = [cell.layers for cell in limited.cells(SITES)]

    assert places == [("body.0.act",), ("head.act",), ("body.0.act", "head.act")]


def test_a_pattern_without_a_site_names_the_nearest() -> None:
    with pytest.raises(SiteError, match=r"'steam\.act' .*did you mean 'stem\.act'"):
        study(axes={"layers": "steam.act"}).cells(SITES)
    with pytest.raises(SiteError, match=r"axes\.layers: 4 matches no site"):
        study(axes={"layers": 4}).cells(SITES)


def test_bits_are_crossed_with_the_fault_models_that_take_one(one_bit: str) -> None:
    axes = {"injection_type": ["msb_flip", one_bit], "bit": "each", "layers": "each"}
    widths = {"stem.act": 8, "body.0.act": 4, "body.1.act": 4, "head.act": 2}

    cells = study(axes=axes).cells(SITES, widths)

    bits = [cell.bit for cell in cells if cell.layers == ("head.act",)]
    assert bits == [None, 0, 1]
    assert len(cells) == 4 + 8 + 4 + 4 + 2


def test_each_bit_of_several_sites_is_each_bit_that_all_have(one_bit: str) -> None:
    several = study(axes={"injection_type": one_bit, "bit": ["each", 1], "layers": [[0, 1]]})

    bits = [cell.bit for cell in several.cells(SITES, {"stem.act": 8, "body.0.act": 3})]

    assert bits == [0, 1, 2]
    with pytest.raises(SiteError, match=r"bit width of body\.0\.act"):
        several.cells(SITES, {"stem.act": 8})


def test_the_key_of_a_cell_is_canonical() -> None:
    cell = Cell.of(injection_type="random", probability=1, layers=("a",), checkpoint="x")

    assert cell == Cell.of(checkpoint="x", layers=["a"], probability=1.0, injection_type="random")
    assert Cell.from_key(cell.key).settings == cell.settings
    assert json.loads(cell.key) == cell.settings
    assert list(json.loads(cell.key)) == sorted(cell.settings)


def test_a_cell_gives_its_faults() -> None:
    own = study(axes={"layers": [[0, 3]], "probability": 7, "checkpoint": "b.pt"}, seed=3)
    (cell,) = own.cells(SITES)

    faults = own.fault_config(cell)

    assert cell.checkpoint == "b.pt"
    assert (faults.layers, faults.probability, faults.seed) == (["stem.act", "head.act"], 7.0, 3)
    faults.validate()


def test_which_cells_share_their_faults_between_samples(one_bit: str) -> None:
    axes = {"injection_type": ["msb_flip", one_bit]}

    def shared(**changes: Any) -> list[bool]:
        own = study(axes=axes, **changes)
        return [own.shares_faults(cell) for cell in own.cells(SITES)]

    assert shared() == [False, True]
    assert shared(fault_injection={"hw_mask": True}) == [True, True]


# -- numbers of faults, and several faults --------------------------------------------------

BOTH = [
    {"injection_type": "msb_flip", "probability": 1, "layers": ["body.*"]},
    {"injection_type": "stuck_at_0", "num_faults": 2, "layers": "stem.act"},
]


def round_trips(made: Study) -> bool:
    plain = made.to_dict()
    return Study.from_dict(json.loads(json.dumps(plain))) == made == Study.from_dict(plain)


def test_numbers_of_faults_are_crossed_in_place_of_probabilities(one_bit: str) -> None:
    axes = {
        "layers": "each",
        "injection_type": ["random", one_bit],
        "bit": [0, 1],
        "num_faults": [1, 4],
        "checkpoint": ["a.pt", "b.pt"],
    }
    own = study(axes=axes)

    cells = own.cells(SITES)

    assert len(cells) == len({cell.key for cell in cells}) == 4 * (1 + 2) * 2 * 2
    assert [(c.num_faults, c.probability, c.rate_text) for c in cells[:2]] == [
        (1, None, "k = 1"),
        (4, None, "k = 4"),
    ]
    assert all(Cell.from_key(cell.key).settings == cell.settings for cell in cells)
    faults = own.fault_config(cells[1])
    assert (faults.num_faults, faults.layers) == (4, ["stem.act"])
    faults.validate()
    assert round_trips(own)


def test_the_number_of_faults_of_the_base_is_the_single_value() -> None:
    own = study(fault_injection={"num_faults": 3})

    (cell,) = own.cells(SITES)

    assert (cell.num_faults, cell.probability, own.axes.probability) == (3, None, ())
    assert round_trips(own)
    (other,) = study(fault_injection={"num_faults": 3}, axes={"num_faults": 5}).cells(SITES)
    assert other.num_faults == 5


def test_several_faults_are_a_cell_for_each_checkpoint() -> None:
    axes = {"faults": {"both": BOTH, "first": BOTH[:1]}, "checkpoint": ["a.pt", "b.pt"]}
    own = study(axes=axes)

    cells = own.cells(SITES)

    assert [(cell.fault, cell.checkpoint) for cell in cells] == [
        ("both", "a.pt"),
        ("first", "a.pt"),
        ("both", "b.pt"),
        ("first", "b.pt"),
    ]
    assert [cell.place for cell in cells[:2]] == ["body.* stem.act", "body.*"]
    assert [(c.rate, c.rate_text, c.layers, c.injection_type) for c in cells[:1]] == [
        (None, "-", None, None)
    ]
    assert cells[0].columns == {"faults": "both", "checkpoint": "a.pt"}
    assert Cell.from_key(cells[0].key).settings == cells[0].settings
    faults = own.fault_config(cells[0])
    assert [str(entry) for entry in faults.entries()] == [
        "msb_flip at 1 %",
        "stuck_at_0, 2 a sample",
    ]
    faults.validate()
    assert [own.shares_faults(cell) for cell in cells[:2]] == [True, False]
    assert round_trips(own)


def test_several_faults_of_the_base_are_named_by_what_they_are() -> None:
    own = study(fault_injection={"faults": BOTH})

    (cell,) = own.cells(SITES)

    assert cell.fault == "msb_flip at 1 % + stuck_at_0, 2 a sample"
    assert own.fault_config(cell).entries() == own.experiment.fault_injection.entries()
    assert round_trips(own)


def test_faults_without_layers_strike_all() -> None:
    (cell,) = study(axes={"faults": {"a": [*BOTH, {"num_faults": 1}]}}).cells(SITES)

    assert cell.place == "all"


def test_studies_that_ask_for_nothing_of_this_are_as_they_were() -> None:
    """Stores that were made before must go on."""
    own = study(axes={"layers": 0, "probability": 2})

    (cell,) = own.cells(SITES)

    assert cell.key == (
        '{"bit":null,"checkpoint":"bundled:digits","injection_type":"random",'
        '"layers":["stem.act"],"probability":2.0}'
    )
    assert own.to_dict()["axes"] == {
        "injection_type": ["random"],
        "probability": [2.0],
        "bit": [None],
        "layers": [0],
        "checkpoint": ["bundled:digits"],
    }


@pytest.mark.parametrize(
    "axes",
    [
        {"probability": [n / 100 for n in range(9_000)], "layers": "each"},
        {"faults": {f"f{n}": [{"num_faults": 1}] for n in range(500)}},
    ],
    ids=["plain", "faults"],
)
def test_a_study_of_more_cells_than_memory_holds_is_refused(axes: dict[str, Any]) -> None:
    own = study(axes={**axes, "checkpoint": [f"w{n}.pt" for n in range(500)]})
    with pytest.raises(InvalidConfigError, match=r"axes: they cross to more than 200000 cells"):
        own.cells(SITES)


# -- what is wrong with a file --------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"axes": {"probabilty": 5}}, ["axes.probabilty", "did you mean 'probability'?"]),
        ({"axes": {"probability": [1, 101]}}, ["axes.probability[1]: got 101", "0 to 100"]),
        ({"axes": {"probability": "5"}}, ["axes.probability: got '5' (str)", "0 to 100"]),
        (
            {"axes": {"probability": [1, 1.0]}},
            ["axes.probability[1]", "1.0 (float) is there twice"],
        ),
        ({"axes": {"probability": []}}, ["axes.probability", "empty list"]),
        (
            {"axes": {"num_faults": [*range(10_001)]}},
            ["axes.num_faults: got a list of 10001 values, allowed: up to 10000"],
        ),
        ({"axes": {"injection_type": ["random", "msb_flop"]}}, ["[1]", "did you mean 'msb_flip'?"]),
        ({"axes": {"layers": [True]}}, ["axes.layers[0]: got True", "'each', 'all'"]),
        ({"axes": {"layers": [[]]}}, ["axes.layers[0]: got []"]),
        ({"axes": {"layers": -1}}, ["axes.layers: got -1"]),
        ({"axes": {"checkpoint": [None]}}, ["axes.checkpoint[0]: got null"]),
        ({"axes": [1]}, ["axes: got [1] (list)"]),
        (
            {"axes": {"probability": 1, "num_faults": 1}},
            ["axes.probability, axes.num_faults: both are given"],
        ),
        ({"axes": {"num_faults": [1, -1]}}, ["axes.num_faults[1]: got -1", "from 0"]),
        ({"axes": {"num_faults": 1.0}}, ["axes.num_faults: got 1.0 (float)"]),
        ({"axes": {"num_faults": None}}, ["axes.num_faults: got null"]),
        (
            {"axes": {"num_faults": 1}, "fault_injection": {"hw_mask": True}},
            ["fault_injection.num_faults: got 1", "hw_mask"],
        ),
        (
            {"axes": {"num_faults": 1}, "fault_injection": {"probability": 1}},
            ["fault_injection.probability: got 1", "num_faults"],
        ),
        (
            {"axes": {"probability": 1}, "fault_injection": {"num_faults": 3}},
            ["axes.probability: given beside fault_injection.num_faults: 3"],
        ),
        (
            {"axes": {"faults": {"a": BOTH}, "layers": "each", "bit": 1}},
            ["axes.faults: given beside axes.bit, axes.layers"],
        ),
        (
            {"axes": {"layers": "each"}, "fault_injection": {"faults": BOTH}},
            ["axes.layers: given beside fault_injection.faults"],
        ),
        (
            {"axes": {"faults": {"a": BOTH}}, "fault_injection": {"layers": "x"}},
            ["fault_injection.layers: got 'x'", "beside faults"],
        ),
        ({"axes": {"faults": BOTH}}, ["axes.faults: got [{", "a mapping of a name"]),
        ({"axes": {"faults": {}}}, ["axes.faults: got {} (dict)"]),
        ({"axes": {"faults": {"a": {"replay": "x"}}}}, ["axes.faults.a: has a list to replay"]),
        (
            {"axes": {}, "fault_injection": {"faults": [{"replay": "x"}]}},
            ["fault_injection.faults: has a list to replay"],
        ),
        ({"axes": {"faults": {"a": []}}}, ["axes.faults.a: got []", "a non-empty list"]),
        ({"axes": {"faults": {"a": None}}}, ["axes.faults.a: got null", "a non-empty list"]),
        ({"axes": {"faults": {1: BOTH}}}, ["axes.faults.1: got 1 (int) as a name"]),
        (
            {"axes": {"faults": {"a": [{"probabilty": 1}]}}},
            ["axes.faults.a[0].probabilty: unknown key; did you mean 'probability'?"],
        ),
        (
            {"axes": {"faults": {"a": [{"num_faults": 1, "probability": 1}]}}},
            ["axes.faults.a[0]: has both"],
        ),
        ({"axis": {}}, ["axis: unknown key; did you mean 'axes'?"]),
        ({"margin": 1}, ["margin: unknown key at the top level; it belongs in stop"]),
        ({"layers": "all"}, ["layers: unknown key", "axes or fault_injection"]),
        ({"trials": 0}, ["trials: got 0", "from 1"]),
        ({"trials": True}, ["trials: got True"]),
        ({"trials": None}, ["trials, stop: missing"]),
        ({"stop": {"margin": 1}}, ["trials, stop: both are given"]),
        (
            {"trials": None, "stop": {"margin": 1, "max_trial": 9}},
            ["stop.max_trial", "'max_trials'?"],
        ),
        ({"trials": None, "stop": {"margin": 1, "confidence": 0.95}}, ["stop.confidence", "50"]),
        ({"trials": None, "stop": {"margin": 1, "min_trials": 1}}, ["stop.min_trials: got 1"]),
        (
            {"trials": None, "stop": {"margin": 1, "min_trials": 20, "max_trials": 19}},
            ["stop.max_trials: got 19", "min_trials, which is 20"],
        ),
        ({"dataset": None}, ["dataset: missing", "name: digits"]),
        ({"model": None}, ["model: missing"]),
        ({"checkpoint": None}, ["checkpoint.path: missing", "axes.checkpoint"]),
        ({"fault_injection": {"enabled": False}}, ["fault_injection.enabled: got False"]),
        ({"fault_injection": {"apply_during": "train"}}, ["fault_injection.apply_during"]),
        ({"fault_injection": {"mode": "layer"}}, ["fault_injection.mode", "axes.layers"]),
        ({"fault_injection": {"track_statistics": True}}, ["track_statistics", "counts"]),
        ({"fault_injection": {"curriculum": [{"epoch": 0, "probability": 1}]}}, ["curriculum"]),
        ({"fault_injection": {"probability": -1}}, ["fault_injection.probability: got -1"]),
        ({"seed": -1}, ["seed.value: got -1"]),
        ({"training": {"batch_size": 0}}, ["training.batch_size: got 0"]),
    ],
)
def test_one_thing_is_wrong(changes: dict[str, Any], parts: list[str]) -> None:
    (problem,) = problems_of(**changes)

    assert all(part in problem for part in parts), problem


def test_a_bit_needs_a_fault_model_that_takes_one() -> None:
    assert any(
        "msb_flip" in problem and problem.startswith("axes.bit")
        for problem in problems_of(axes={"bit": 3, "injection_type": "msb_flip"})
    )


def test_all_problems_are_told_at_once_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    wrong = content(axes={"probability": -1, "layer": 0}, trials=0, model={"nme": 1})
    path.write_text(yaml.safe_dump(wrong), encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        Study.from_yaml(path)

    text = str(caught.value)
    assert text.startswith(f"{path}: 5 problems: ")
    for part in ("axes.probability", "axes.layer", "trials", "model.nme", "model.name"):
        assert part in text


@pytest.mark.parametrize("wrong", [[], "text", None])
def test_what_is_no_mapping_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidConfigError, match="expected a mapping"):
        Study.from_dict(wrong)


# -- the stop rule --------------------------------------------------------------------------


def rows(correct: list[int], sdc: int = 30, cell: Cell | None = None) -> list[TrialRow]:
    cell = cell or Cell.of(injection_type="random", probability=1.0)
    return [
        TrialRow(cell.key, k, 500, right, 490, sdc, 20, None, 99, 9999, 90, 60, 0.1)
        for k, right in enumerate(correct)
    ]


def ruled(**rule: Any) -> Study:
    return study(trials=None, stop={"margin": 2.0, "min_trials": 4, "max_trials": 20, **rule})


def test_looks_are_few_and_end_at_the_last_trial() -> None:
    assert look_points(StopRule(margin=1.0, min_trials=2, max_trials=2)) == (2,)
    assert look_points(StopRule(margin=1.0, min_trials=2, max_trials=8)) == (2, 3, 5, 8)
    assert len(look_points(StopRule(margin=1.0, min_trials=10, max_trials=10_000))) < 20


def test_without_a_rule_every_cell_has_its_trials() -> None:
    assert trials_wanted(study(trials=5), []) == 5
    assert trials_wanted(study(trials=5), rows([400] * 9)) == 5


def test_a_cell_that_is_sure_ends_at_the_look_that_said_so() -> None:
    steady, restless = [450, 452, 448, 451], [450, 300, 480, 390]

    assert trials_wanted(ruled(), []) == 4
    assert trials_wanted(ruled(), rows(steady)) == 4
    assert trials_wanted(ruled(), rows(restless)) == 6
    assert trials_wanted(ruled(), rows(restless * 5)) == 20
    assert trials_wanted(ruled(max_trials=4), rows(restless)) == 4


def test_the_answer_does_not_depend_on_the_order_nor_on_trials_that_came_early() -> None:
    trials = rows([450, 452, 448, 451, 100, 490, 100])

    assert trials_wanted(ruled(), trials[::-1]) == 4
    assert trials_wanted(ruled(), [*trials[:3], *trials[4:]]) == 4  # Trial 3 is still to come.


def test_equal_trials_are_not_enough_where_few_samples_were_looked_at() -> None:
    quiet = rows([490] * 4, sdc=0)
    narrow = ruled(margin=0.05)

    assert is_sure(ruled(), quiet)
    assert not is_sure(narrow, quiet)  # 0 of 2,000 samples says below 0.19 %.
    assert is_sure(narrow, rows([490] * 20, sdc=0))


def test_a_single_trial_is_never_sure() -> None:
    assert not is_sure(ruled(margin=50.0), rows([450]))


def test_faults_that_samples_share_need_more_trials() -> None:
    shared = study(
        trials=None,
        stop={"margin": 2.0, "min_trials": 4, "max_trials": 20},
        fault_injection={"hw_mask": True},
    )

    assert not is_sure(shared, rows([490] * 4, sdc=0))


# -- costs ----------------------------------------------------------------------------------


def test_the_package_is_light_to_import() -> None:
    code = (
        "import sys, fxfault.campaign; heavy = ('torch', 'numpy', 'scipy', 'pydantic', 'yaml');"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_can_be_imported() -> None:
    import fxfault.campaign as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


def test_axes_are_plain_values() -> None:
    axes = study(axes={"layers": [["stem.act", 1], "each"], "probability": 2}).axes

    assert isinstance(axes, Axes)
    assert axes.layers == (("stem.act", 1), "each")
    assert axes.probability == (2.0,)


# -- labels ---------------------------------------------------------------------------------


def test_a_study_has_a_name_a_title_and_notes() -> None:
    made = study(name="first", title="Where is it weak?", notes="Two lines,\nof which this is one.")

    assert (made.labels.name, made.title) == ("first", "Where is it weak?")
    assert made.labels.notes == "Two lines,\nof which this is one."
    assert round_trips(made)
    assert study().title == "quant_digits on digits"
    assert not set(study().to_dict()) & {"name", "title", "notes"}
    assert fingerprint.of_study(made) == fingerprint.of_study(study())


@pytest.mark.parametrize(
    ("key", "value"), [("name", ""), ("name", "a\nb"), ("title", 3), ("title", "x" * 201)]
)
def test_a_label_that_is_no_line_is_refused(key: str, value: Any) -> None:
    (problem,) = problems_of(**{key: value})
    assert problem.startswith(f"{key}: got ")
