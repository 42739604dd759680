"""The fault injection record: what it accepts, and what it says about the rest."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from fxfault.config import FaultInjectionConfig, config_reference
from fxfault.config.entries import FaultEntry
from fxfault.config.schema import section_reference
from fxfault.errors import ConfigError, InvalidConfigError
from fxfault.experiment import ExperimentConfig
from fxfault.faults import fault_model_names, get_fault_model

FIELDS = [field.name for field in dataclasses.fields(FaultInjectionConfig)]


class Custom:
    """A fault model that is registered nowhere."""

    name = "custom"

    def corrupt(self, codes: Any, word: Any, draw: Any) -> Any:
        return codes


def problems_of(values: dict[Any, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        FaultInjectionConfig.from_dict(values)
    assert isinstance(caught.value, InvalidConfigError)
    assert "\n" not in str(caught.value)
    return caught.value.problems


def only_problem(key: str, value: object) -> str:
    (problem,) = problems_of({key: value})
    return problem


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults() -> None:
    assert FaultInjectionConfig().to_dict() == {
        "enabled": False,
        "probability": 5.0,
        "rate_unit": "element",
        "num_faults": None,
        "mode": "full_model",
        "injection_layer": -1,
        "injection_type": "random",
        "bit": None,
        "burst_length": None,
        "faults": None,
        "apply_during": "train",
        "epoch_interval": 1,
        "step_interval": 1.0,
        "curriculum": None,
        "interpolate": "step",
        "seed": None,
        "track_statistics": False,
        "verbose": False,
        "memory": "activations",
        "persist": "step",
        "word": "quantised",
        "hw_mask": False,
        "frequency_value": 1024,
        "gradient_mode": "ste",
        "layers": None,
        "targets": [
            *("QuantIdentity", "QuantReLU", "QuantHardTanh", "QuantSigmoid", "QuantTanh"),
            *("QuantInputOutputLayer", "QuantLSTM", "QuantRNN"),
        ],
        "unsupported": "error",
    }


def test_defaults_are_valid() -> None:
    FaultInjectionConfig().validate()


def test_empty_mapping_gives_the_defaults() -> None:
    assert FaultInjectionConfig.from_dict({}) == FaultInjectionConfig()


def test_construction_does_not_validate() -> None:
    assert FaultInjectionConfig(probability=150.0).probability == 150.0


def test_assignment_to_an_unknown_field_is_refused() -> None:
    with pytest.raises(AttributeError):
        FaultInjectionConfig().probabilty = 3.0  # type: ignore[attr-defined]


ALLOWED = [
    ("enabled", True),
    ("probability", 0),
    ("probability", 100),
    ("probability", 1e-7),
    ("mode", "layer"),
    ("injection_layer", 3),
    ("apply_during", "both"),
    ("epoch_interval", 10),
    ("step_interval", 0),
    ("step_interval", 0.3),
    ("curriculum", None),
    ("interpolate", "linear"),
    ("interpolate", "cosine"),
    ("seed", 0),
    ("seed", 2**63 - 1),
    ("frequency_value", 1),
    ("gradient_mode", "zero_faulty"),
    ("layers", "layer1.*"),
    ("layers", 0),
    ("layers", ["a", 2, "b.*"]),
    ("targets", ["QuantReLU"]),
    ("targets", ("QuantReLU", "QuantSigmoid")),
    ("unsupported", "skip"),
    ("rate_unit", "element"),
    ("num_faults", 0),
    ("num_faults", 10**6),
    ("faults", None),
    ("bit", None),
    ("burst_length", None),
    *[("injection_type", name) for name in ("random", "lsb_flip", "msb_flip", "full_flip")],
    *[("injection_type", name) for name in ("bit_flip", "stuck_at_0", "stuck_at_1", "burst")],
]


@pytest.mark.parametrize(("key", "value"), ALLOWED)
def test_allowed_value_is_taken(key: str, value: Any) -> None:
    taken = getattr(FaultInjectionConfig.from_dict({key: value}), key)

    assert taken == (tuple(value) if key == "targets" else value)


@pytest.mark.parametrize(("key", "value"), ALLOWED)
def test_allowed_value_passes_validate(key: str, value: Any) -> None:
    FaultInjectionConfig(**{key: value}).validate()


@pytest.mark.parametrize("key", ["probability", "step_interval"])
def test_integer_given_for_a_number_becomes_a_float(key: str) -> None:
    assert type(getattr(FaultInjectionConfig.from_dict({key: 1}), key)) is float


REFUSED = [
    ("enabled", "yes", "true or false"),
    ("enabled", 1, "true or false"),
    ("enabled", None, "true or false"),
    ("probability", 150, "a number from 0 to 100"),
    ("probability", -0.1, "a number from 0 to 100"),
    ("probability", "5", "a number from 0 to 100"),
    ("probability", True, "a number from 0 to 100"),
    ("probability", None, "a number from 0 to 100"),
    ("probability", float("nan"), "a number from 0 to 100"),
    ("probability", float("inf"), "a number from 0 to 100"),
    ("probability", [5.0], "a number from 0 to 100"),
    ("mode", "all", "'full_model' or 'layer'"),
    ("injection_layer", -2, "an integer of at least -1"),
    ("injection_layer", 1.0, "an integer of at least -1"),
    ("injection_layer", True, "an integer of at least -1"),
    ("injection_layer", None, "an integer of at least -1"),
    ("apply_during", "test", "'train', 'eval' or 'both'"),
    ("epoch_interval", 0, "an integer of at least 1"),
    ("step_interval", 1.5, "a number from 0 to 1"),
    ("step_interval", 50, "a number from 0 to 1"),
    ("interpolate", "quadratic", "'step', 'linear' or 'cosine'"),
    ("interpolate", None, "'step', 'linear' or 'cosine'"),
    ("rate_unit", "word", "'element' or 'bit'"),
    ("num_faults", -1, "an integer from 0 to 2147483647 or null"),
    ("num_faults", 2.0, "an integer from 0 to 2147483647 or null"),
    ("bit", 32, "an integer from 0 to 31, 'random', 'each' or null"),
    ("bit", "msb", "an integer from 0 to 31, 'random', 'each' or null"),
    ("burst_length", 0, "an integer from 1 to 32 or null"),
    ("seed", -1, "an integer from 0 to 9223372036854775807 or null"),
    ("seed", 2**63, "an integer from 0 to 9223372036854775807 or null"),
    ("seed", 42.0, "an integer from 0 to 9223372036854775807 or null"),
    ("seed", "random", "an integer from 0 to 9223372036854775807 or null"),
    ("frequency_value", 0, "an integer of at least 1"),
    ("gradient_mode", 1, "'ste' or 'zero_faulty'"),
    ("targets", [], "a non-empty list (each item non-empty text)"),
    ("targets", "QuantReLU", "a non-empty list (each item non-empty text)"),
    ("unsupported", "warn", "'error' or 'skip'"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), REFUSED)
def test_refused_value_is_told_with_key_and_allowed_values(
    key: str, value: object, allowed: str
) -> None:
    got = "null" if value is None else repr(value)
    kind = type(value).__name__

    assert only_problem(key, value) == (
        f"fault_injection.{key}: got {got} ({kind}), allowed: {allowed}"
    )


@pytest.mark.parametrize(("key", "value", "allowed"), REFUSED)
def test_validate_refuses_what_from_dict_refuses(key: str, value: object, allowed: str) -> None:
    config = FaultInjectionConfig()
    setattr(config, key, value)

    with pytest.raises(InvalidConfigError) as caught:
        config.validate()
    assert caught.value.problems == problems_of({key: value})


STRIKES_A_BIT = "'bit_flip', 'stuck_at_0', 'stuck_at_1'"

CONTRADICTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"bit": 3}, [f"bit: got 3 (int), allowed with an injection_type of {STRIKES_A_BIT}"]),
    (
        {"bit": "random", "injection_type": "burst"},
        [f"bit: got 'random' (str), allowed with an injection_type of {STRIKES_A_BIT}"],
    ),
    (
        {"bit": "each", "injection_type": "bit_flip"},
        [
            "bit: got 'each' (str), which stands for many runs: make it an axis of a study "
            "(fxfault campaign), or give one bit, from 0 to 31, or 'random'"
        ],
    ),
    (
        {"burst_length": 3, "injection_type": "bit_flip"},
        ["burst_length: got 3 (int), allowed with an injection_type of 'burst'"],
    ),
    (
        {"rate_unit": "bit", "injection_type": "burst"},
        [f"rate_unit: got 'bit' (str), allowed with an injection_type of {STRIKES_A_BIT}"],
    ),
    (
        {"rate_unit": "bit", "injection_type": "stuck_at_0", "bit": 2},
        [
            "bit: got 2 (int), allowed with rate_unit: bit: null or 'random', because every bit "
            "is drawn by itself"
        ],
    ),
    (
        {"rate_unit": "bit", "injection_type": "bit_flip", "hw_mask": True},
        [
            "rate_unit: got 'bit' (str), allowed with hw_mask: 'element', as a broken unit "
            "computes whole values"
        ],
    ),
    (
        {"num_faults": 3, "probability": 1.0, "hw_mask": True},
        [
            "probability: got 1.0 (float) beside num_faults, which replaces it; leave one out",
            "num_faults: got 3 (int), allowed with hw_mask: null; `probability` says how many "
            "units are broken",
        ],
    ),
    (
        {"num_faults": 3, "curriculum": [{"epoch": 1, "probability": 2.0}]},
        ["curriculum: changes probability, which num_faults replaces"],
    ),
    (
        {
            "faults": [{"probability": 1.0}],
            "probability": 2.0,
            "layers": "a",
            "curriculum": [{"epoch": 1, "injection_type": "msb_flip"}],
        },
        [
            "probability: got 2.0 (float) beside faults; set it in their entries",
            "layers: got 'a' (str) beside faults; set it in their entries",
            "curriculum: changes injection_type, which each entry of faults sets itself",
        ],
    ),
]


@pytest.mark.parametrize(("values", "problems"), CONTRADICTIONS)
def test_what_cannot_stand_together(
    tmp_path: Path, values: dict[str, Any], problems: list[str]
) -> None:
    full = [f"fault_injection.{problem}" for problem in problems]
    assert sorted(problems_of(values)) == sorted(full)
    with pytest.raises(InvalidConfigError) as caught:
        FaultInjectionConfig(**values).validate()
    assert sorted(caught.value.problems) == sorted(full)
    bare = write(tmp_path, yaml.safe_dump(values))
    with pytest.raises(InvalidConfigError) as caught:
        FaultInjectionConfig.from_yaml(bare)
    assert sorted(caught.value.problems) == sorted(problems)
    with pytest.raises(InvalidConfigError) as caught:
        ExperimentConfig.from_dict({"fault_injection": values})
    assert sorted(caught.value.problems) == sorted(full)


def test_a_bit_for_a_model_of_the_curriculum_is_allowed() -> None:
    points = [{"epoch": 1, "injection_type": "bit_flip"}]
    assert FaultInjectionConfig.from_dict({"bit": 3, "curriculum": points}).bit == 3


ENTRIES = [
    {"injection_type": "bit_flip", "bit": 3, "probability": 0.5, "layers": ["a.*", 2]},
    {"injection_type": "burst", "burst_length": 3, "num_faults": 2},
    {"injection_type": "stuck_at_1", "probability": 1e-3, "rate_unit": "bit"},
    {"probability": 0},
]


def test_several_faults_are_read_and_written() -> None:
    config = FaultInjectionConfig.from_dict({"faults": ENTRIES})
    assert [str(entry) for entry in config.entries()] == [
        "bit_flip 3 at 0.5 %",
        "burst 3, 2 a sample",
        "stuck_at_1 at 0.001 % of the bits",
        "random at 0 %",
    ]
    plain = config.to_dict()
    assert FaultInjectionConfig.from_dict(yaml.safe_load(yaml.safe_dump(plain))) == config
    assert FaultInjectionConfig(faults=list(config.entries())).entries() == config.entries()
    assert FaultInjectionConfig(faults=ENTRIES).entries() == config.entries()


def test_a_section_without_a_list_is_one_fault() -> None:
    config = FaultInjectionConfig(injection_type="msb_flip", num_faults=4, layers="a")
    assert config.entries() == (FaultEntry(injection_type="msb_flip", num_faults=4, layers="a"),)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({}, ": has neither, allowed: one of probability and num_faults"),
        ({"probability": 1, "num_faults": 1}, ": has both, allowed: one of probability and"),
        ({"probabilty": 1}, ".probabilty: unknown key; did you mean 'probability'?"),
        ({"probability": 101}, ".probability: got 101 (int), allowed: a number from 0 to 100"),
        ({"probability": 1, "seed": 1}, ".seed: unknown key; known keys: injection_type, bit, "),
        ({"probability": 1, "bit": 1}, ".bit: got 1 (int), allowed with an injection_type of "),
        ({"probability": 1, "rate_unit": "bit"}, ".rate_unit: got 'bit' (str), allowed with an "),
        ({"probability": 1, "injection_type": "msb_flop"}, ".injection_type: got 'msb_flop' "),
        (5, ": got 5 (int), allowed: a mapping of keys to values"),
    ],
)
def test_refused_entry_is_told_with_its_place(entry: Any, problem: str) -> None:
    (told,) = problems_of({"faults": [ENTRIES[0], entry]})
    assert told.startswith(f"fault_injection.faults[1]{problem}")


@pytest.mark.parametrize("value", [[], {}, "random", 5])
def test_refused_list_of_faults(value: object) -> None:
    assert only_problem("faults", value).startswith(f"fault_injection.faults: got {value!r} (")


@pytest.mark.parametrize("value", ["", -1, 1.5, True, [], {}])
def test_refused_layers(value: object) -> None:
    assert only_problem("layers", value).startswith(f"fault_injection.layers: got {value!r} (")


@pytest.mark.parametrize("item", ["", -1, 1.5, True, None, ["a"]])
@pytest.mark.parametrize(("key", "good"), [("layers", "a"), ("targets", "QuantReLU")])
def test_refused_list_item_is_told_with_its_index(key: str, good: str, item: object) -> None:
    got = "null" if item is None else repr(item)

    assert only_problem(key, [good, item]).startswith(f"fault_injection.{key}[1]: got {got} (")


def test_item_of_a_list_names_what_an_item_may_be() -> None:
    problem = only_problem("layers", ["a", 1.5])

    assert problem.endswith("allowed: non-empty text or an integer of at least 0")


@pytest.mark.parametrize("value", ["randon", "", 5, None, ["random"], object(), Custom])
def test_refused_injection_type_lists_the_fault_models(value: object) -> None:
    problem = only_problem("injection_type", value)

    assert problem.startswith("fault_injection.injection_type: got ")
    assert ", ".join(repr(name) for name in fault_model_names()) in problem


def test_misspelt_value_gets_the_nearest_one() -> None:
    assert only_problem("injection_type", "MSB-flip").endswith("did you mean 'msb_flip'?")
    assert only_problem("mode", "full-model").endswith("did you mean 'full_model'?")


def test_fault_model_object_is_taken_as_it_is() -> None:
    model: Any = Custom()

    config = FaultInjectionConfig.from_dict({"injection_type": model})

    assert config.injection_type is model


def test_fault_model_that_the_user_registers_is_known_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = (*fault_model_names(), "mine")
    monkeypatch.setattr("fxfault.faults.fault_models.fault_model_names", lambda: names)

    assert FaultInjectionConfig.from_dict({"injection_type": "mine"}).injection_type == "mine"
    assert "'mine'" in config_reference()


@pytest.mark.parametrize("key", ["mode", "injection_type", "apply_during", "layers"])
def test_boolean_in_place_of_text_is_explained(key: str) -> None:
    assert only_problem(key, False).endswith(
        "YAML reads no, off, yes and on as booleans: put the text in quotes"
    )


@pytest.mark.parametrize("key", ["probability", "epoch_interval"])
def test_boolean_in_place_of_a_number_is_not_blamed_on_quotes(key: str) -> None:
    assert "quotes" not in only_problem(key, False)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("probabilty", "probability"),
        ("injection-type", "injection_type"),
        ("Enabled", "enabled"),
        ("epoch interval", "epoch_interval"),
        ("layer", "layers"),
        ("curiculum", "curriculum"),
        ("interpolation", "interpolate"),
    ],
)
def test_unknown_key_gets_the_nearest_one(key: str, near: str) -> None:
    expected = f"fault_injection.{key}: unknown key; did you mean {near!r}?"

    assert only_problem(key, 1) == expected


def test_unknown_key_near_to_none_lists_the_keys() -> None:
    expected = f"fault_injection.xyz: unknown key; known keys: {', '.join(FIELDS)}"

    assert only_problem("xyz", 1) == expected


def test_boolean_key_is_explained() -> None:
    (problem,) = problems_of({False: 1})

    assert problem.startswith("fault_injection.False: unknown key; known keys: ")
    assert problem.endswith("put the text in quotes")


@pytest.mark.parametrize("key", [5, None, (1, 2), "a\nb", ""])
def test_odd_key_is_written_in_one_line(key: object) -> None:
    (problem,) = problems_of({key: 1})

    assert problem.startswith(f"fault_injection.{key!r}: unknown key")


def test_all_problems_are_told_at_once_in_the_order_of_the_keys() -> None:
    problems = problems_of({"mode": "x", "probabilty": 5, "seed": -1, "probability": "5"})

    keys = [problem.partition(":")[0] for problem in problems]
    assert keys == [
        f"fault_injection.{key}" for key in ("mode", "probabilty", "seed", "probability")
    ]


def test_long_value_is_shortened() -> None:
    assert len(only_problem("probability", "9" * 10_000)) < 200


@pytest.mark.parametrize("values", [None, [], "random", 5])
def test_section_that_is_no_mapping_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"^fault_injection: got .*, allowed: a mapping"):
        FaultInjectionConfig.from_dict(values)


def test_any_mapping_is_taken() -> None:
    values = MappingProxyType({"probability": 2.5})

    assert FaultInjectionConfig.from_dict(values).probability == 2.5


def test_from_dict_keeps_no_reference_to_a_list_of_the_user() -> None:
    layers = ["a"]
    config = FaultInjectionConfig.from_dict({"layers": layers})
    layers.append("b")

    assert config.layers == ["a"]


def test_from_dict_leaves_the_mapping_untouched() -> None:
    values = {"probability": 1, "targets": ["QuantReLU"]}
    FaultInjectionConfig.from_dict(values)

    assert values == {"probability": 1, "targets": ["QuantReLU"]}


@pytest.mark.parametrize(("key", "value"), ALLOWED)
def test_to_dict_round_trips_through_yaml_and_json(key: str, value: Any) -> None:
    config = FaultInjectionConfig.from_dict({key: value})

    plain = config.to_dict()

    assert FaultInjectionConfig.from_dict(yaml.safe_load(yaml.safe_dump(plain))) == config
    assert FaultInjectionConfig.from_dict(json.loads(json.dumps(plain))) == config


def test_to_dict_gives_copies() -> None:
    config = FaultInjectionConfig(layers=["a"])
    config.to_dict()["layers"].append("b")

    assert config.layers == ["a"]


def test_to_dict_writes_a_registered_fault_model_by_its_name() -> None:
    config = FaultInjectionConfig(injection_type=get_fault_model("msb_flip"))

    assert config.to_dict()["injection_type"] == "msb_flip"


def test_to_dict_refuses_a_fault_model_without_registered_name() -> None:
    config = FaultInjectionConfig.from_dict({"injection_type": Custom()})

    with pytest.raises(ConfigError, match=r"no registered name.*register_fault_model"):
        config.to_dict()


def test_config_can_be_pickled() -> None:
    config = FaultInjectionConfig(probability=1.0, layers=["a"])

    assert pickle.loads(pickle.dumps(config)) == config


def test_from_yaml_reads_the_section_of_a_larger_file(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: {value: 1}\nmodel: {name: m}\nfault_injection: {seed: 7}\n")

    assert FaultInjectionConfig.from_yaml(path) == FaultInjectionConfig(seed=7)


def test_from_yaml_reads_a_file_of_bare_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "probability: 1e-3\nseed: 7\n")

    expected = FaultInjectionConfig(probability=0.001, seed=7)
    assert FaultInjectionConfig.from_yaml(str(path)) == expected


def test_from_yaml_takes_an_empty_section_as_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "fault_injection:\n  # enabled: true\n")

    assert FaultInjectionConfig.from_yaml(path) == FaultInjectionConfig()


def test_from_yaml_leaves_an_empty_section_of_another_kind_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "seed:\nfault_injection: {probability: 1}\n")

    assert FaultInjectionConfig.from_yaml(path) == FaultInjectionConfig(probability=1.0)


def test_from_yaml_takes_bare_keys_that_are_null(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: null\n")

    assert FaultInjectionConfig.from_yaml(path) == FaultInjectionConfig()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("fault_injection: {seed: -1}", "fault_injection.seed: got -1 (int), allowed: "),
        ("seed: -1", "seed: got -1 (int), allowed: "),
        ("fault_injection: [1]", "fault_injection: got [1] (list), allowed: a mapping"),
        (
            "fault_injection: {injection_type: no}",
            "fault_injection.injection_type: got False (bool), allowed: 'random', ",
        ),
        (
            "fault_injektion: {seed: 1}",
            "no section 'fault_injection'; found: fault_injektion; did you mean 'fault_injection'?",
        ),
        ("seed: {value: 1}", "no section 'fault_injection'; found: seed"),
        ("{}", "no section 'fault_injection'; found: no key"),
        (
            "fault_injection: {enabled: true}\nprobability: 1",
            "probability: unknown key at the top level; it belongs in fault_injection",
        ),
        ("seed: 1\nseed: 2", "key 'seed' is given twice, on lines 1 and 2"),
    ],
)
def test_problem_of_a_file_names_the_file(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        FaultInjectionConfig.from_yaml(path)
    assert str(caught.value).startswith(f"{path}: {problem}")


def test_several_problems_of_a_file_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "fault_injection: {seed: -1, mode: x}\n")

    with pytest.raises(ConfigError) as caught:
        FaultInjectionConfig.from_yaml(path)
    assert str(caught.value).startswith(f"{path}: 2 problems: fault_injection.seed: got -1 (int)")


def test_reference_has_a_row_for_every_field() -> None:
    rows = config_reference().splitlines()[2:]

    assert [row.split("`")[1] for row in rows] == FIELDS


def test_documentation_shows_the_keys_of_an_entry() -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

    assert section_reference(FaultEntry).strip() in page.read_text(encoding="utf-8")


def test_reference_rows_have_four_filled_cells() -> None:
    rows = config_reference().splitlines()

    assert all(len([cell for cell in row.split("|") if cell.strip()]) == 4 for row in rows)


def test_reference_states_limits_and_default() -> None:
    row = next(row for row in config_reference().splitlines() if "`probability`" in row)

    assert row.startswith("| `probability` | a number from 0 to 100 | `5.0` | Chance, in percent,")


def test_import_needs_neither_torch_nor_brevitas() -> None:
    code = (
        "import sys, fxfault.config.fault_injection, fxfault.experiment.sections; "
        "sys.exit(bool({'torch', 'brevitas'} & sys.modules.keys()))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
