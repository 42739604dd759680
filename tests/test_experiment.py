"""Whole experiment files: the bundled ones, and what is said about broken ones."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fxfault.bundled.files import bundled_names
from fxfault.config import FaultInjectionConfig
from fxfault.config.entries import CurriculumPoint
from fxfault.errors import ConfigError, InvalidConfigError
from fxfault.experiment import (
    ExperimentConfig,
    experiment_reference,
    load_experiment,
)

BUNDLED = (
    "bit_flip_stress",
    "curriculum",
    "digits",
    "digits_fat",
    "fat_training",
    "fault_eval",
    "fault_injection_example",
    "layer_analysis",
    "mnist_cnv",
    "mnist_lenet",
    "mnist_lfc",
    "mnist_tfc",
    "quant_cnv_w2a2_cifar10",
)
SECTIONS = [field.name for field in dataclasses.fields(ExperimentConfig)]


def problems_of(values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        ExperimentConfig.from_dict(values)
    assert isinstance(caught.value, InvalidConfigError)
    assert "\n" not in str(caught.value)
    return caught.value.problems


def test_bundled_names() -> None:
    assert bundled_names("experiments") == BUNDLED


@pytest.mark.parametrize("suffix", ["", ".yaml"])
@pytest.mark.parametrize("name", BUNDLED)
def test_every_bundled_experiment_loads(name: str, suffix: str) -> None:
    assert load_experiment(name + suffix).fault_injection.enabled


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_experiment_round_trips_through_yaml_and_json(name: str) -> None:
    experiment = load_experiment(name)

    plain = experiment.to_dict()

    assert ExperimentConfig.from_dict(yaml.safe_load(yaml.safe_dump(plain))) == experiment
    assert ExperimentConfig.from_dict(json.loads(json.dumps(plain))) == experiment


def test_digits() -> None:
    experiment = load_experiment("digits")

    assert experiment.dataset is not None
    assert experiment.dataset.name == "digits"
    assert experiment.model is not None
    assert experiment.model.name == "quant_digits"
    assert experiment.quantization.weight_bit_width == 4
    assert experiment.quantization.act_bit_width == 4
    assert experiment.training.batch_size == 64
    assert experiment.training.epochs == 60
    assert experiment.optimizer.learning_rate == 0.003
    assert experiment.checkpoint.path == "bundled:digits"
    assert experiment.fault_injection == FaultInjectionConfig(
        enabled=True, probability=5.0, apply_during="eval", seed=42, track_statistics=True
    )


@pytest.mark.parametrize(
    ("name", "faults"),
    [
        ("fat_training", FaultInjectionConfig(enabled=True, step_interval=0.5)),
        (
            "fault_eval",
            FaultInjectionConfig(
                enabled=True,
                probability=10.0,
                apply_during="eval",
                seed=42,
                track_statistics=True,
                verbose=True,
            ),
        ),
        (
            "layer_analysis",
            FaultInjectionConfig(
                enabled=True,
                probability=20.0,
                mode="layer",
                apply_during="eval",
                track_statistics=True,
            ),
        ),
        (
            "curriculum",
            FaultInjectionConfig(
                enabled=True,
                probability=10.0,
                epoch_interval=5,
                step_interval=0.3,
                interpolate="linear",
                curriculum=(
                    CurriculumPoint(epoch=0, probability=1.0, step_interval=0.3),
                    CurriculumPoint(epoch=20, epoch_interval=2),
                    CurriculumPoint(epoch=40, epoch_interval=1),
                    CurriculumPoint(epoch=60, probability=10.0, step_interval=0.5),
                ),
            ),
        ),
        (
            "bit_flip_stress",
            FaultInjectionConfig(
                enabled=True,
                injection_type="msb_flip",
                apply_during="eval",
                track_statistics=True,
            ),
        ),
        (
            "fault_injection_example",
            FaultInjectionConfig(enabled=True, step_interval=0.5, track_statistics=True),
        ),
    ],
)
def test_bundled_faults_are_those_of_the_specification(
    name: str, faults: FaultInjectionConfig
) -> None:
    assert load_experiment(name).fault_injection == faults


@pytest.mark.parametrize("name", ["layer_analysis", "curriculum", "bit_flip_stress"])
def test_experiment_of_faults_alone_has_no_data_set_and_no_model(name: str) -> None:
    experiment = load_experiment(name)

    assert experiment.dataset is None
    assert experiment.model is None


@pytest.mark.parametrize(
    "name", ["fat_training", "fault_eval", "fault_injection_example", "quant_cnv_w2a2_cifar10"]
)
def test_cifar10_experiments_name_data_model_and_word_lengths(name: str) -> None:
    plain = load_experiment(name).to_dict()

    assert plain["dataset"] == {"name": "cifar10", "root": "./data", "kwargs": {}}
    assert plain["model"] == {"name": "quant_cnv", "kwargs": {}}
    assert plain["quantization"] == {"weight_bit_width": 2, "act_bit_width": 2}


def test_empty_experiment_has_all_defaults() -> None:
    assert ExperimentConfig.from_dict({}) == ExperimentConfig()


@pytest.mark.parametrize("section", SECTIONS)
def test_empty_section_counts_as_absent(section: str) -> None:
    assert ExperimentConfig.from_dict({section: None}) == ExperimentConfig()


def test_sections_are_read() -> None:
    experiment = ExperimentConfig.from_dict(
        {
            "dataset": {"name": "fake", "kwargs": {"image_size": [3, 8, 8], "num_classes": 4}},
            "optimizer": {"name": "sgd", "learning_rate": 1, "momentum": 0.5},
            "scheduler": {"name": "multistep", "milestones": [10, 20], "gamma": 0.2},
        }
    )

    assert experiment.dataset is not None
    assert experiment.dataset.kwargs == {"image_size": [3, 8, 8], "num_classes": 4}
    assert experiment.optimizer.learning_rate == 1.0
    assert experiment.scheduler.milestones == (10, 20)


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExperimentConfig().training.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "key", "value", "allowed"),
    [
        ("seed", "value", -1, "an integer from 0 to 4294967295"),
        ("seed", "deterministic", "no", "true or false"),
        ("dataset", "name", "", "non-empty text"),
        ("model", "name", 5, "non-empty text"),
        ("quantization", "weight_bit_width", 0, "an integer from 1 to 32"),
        ("quantization", "act_bit_width", 33, "an integer from 1 to 32"),
        ("training", "batch_size", 0, "an integer of at least 1"),
        ("training", "epochs", 1.0, "an integer of at least 1"),
        ("training", "validation_fraction", 1, "a number of at least 0 and below 1"),
        ("training", "label_smoothing", -0.1, "a number of at least 0 and below 1"),
        ("training", "shift", -1, "an integer of at least 0"),
        ("training", "flip", 1, "true or false"),
        ("training", "gradient_clip", 0, "a number above 0 or null"),
        ("training", "num_workers", 1.5, "an integer of at least 0"),
        ("checkpoint", "best_by", "best", "'clean' or 'faulty'"),
        ("optimizer", "name", "lion", "'adam', 'adamw' or 'sgd'"),
        ("optimizer", "learning_rate", 0, "a number above 0"),
        ("optimizer", "weight_decay", -0.1, "a number of at least 0"),
        ("optimizer", "momentum", 2, "a number from 0 to 1"),
        ("scheduler", "name", "linear", "'cosine', 'step', 'multistep' or 'none'"),
        ("scheduler", "T_max", 0, "an integer of at least 1 or null"),
        ("scheduler", "gamma", 0, "a number above 0 and of at most 1"),
        ("scheduler", "milestones", 5, "a list (each item an integer of at least 1)"),
        ("checkpoint", "path", 5, "non-empty text or null"),
        ("checkpoint", "dir", None, "non-empty text"),
        ("fault_injection", "probability", 150, "a number from 0 to 100"),
    ],
)
def test_refused_value_is_told_with_section_and_key(
    section: str, key: str, value: object, allowed: str
) -> None:
    got = "null" if value is None else repr(value)
    values = {"name": "n", key: value} if section in ("dataset", "model") else {key: value}

    assert problems_of({section: values}) == [
        f"{section}.{key}: got {got} ({type(value).__name__}), allowed: {allowed}"
    ]


@pytest.mark.parametrize("section", ["dataset", "model"])
def test_missing_name_is_told(section: str) -> None:
    assert problems_of({section: {}}) == [f"{section}.name: missing, allowed: non-empty text"]


def test_boolean_in_place_of_a_name_is_explained() -> None:
    (problem,) = problems_of({"model": {"name": False}})

    assert problem == (
        "model.name: got False (bool), allowed: non-empty text; "
        "YAML reads no, off, yes and on as booleans: put the text in quotes"
    )


def test_milestone_is_told_with_its_index() -> None:
    (problem,) = problems_of({"scheduler": {"milestones": [1, "2"]}})

    assert problem.startswith("scheduler.milestones[1]: got '2' (str), allowed: an integer")


@pytest.mark.parametrize("milestones", [[20, 10], [10, 10]])
def test_milestones_that_do_not_ascend_are_refused(milestones: list[int]) -> None:
    (problem,) = problems_of({"scheduler": {"name": "multistep", "milestones": milestones}})

    assert problem == f"scheduler.milestones: got {milestones}, allowed: ascending epochs"


def test_multistep_without_milestones_is_refused() -> None:
    (problem,) = problems_of({"scheduler": {"name": "multistep"}})

    assert problem.startswith("scheduler.milestones: missing, `name: multistep` needs")


@pytest.mark.parametrize("value", [datetime.date(2024, 1, 1), [1, (2, 3)], float("nan")])
def test_value_of_kwargs_that_is_not_plain_is_refused(value: object) -> None:
    (problem,) = problems_of({"dataset": {"name": "fake", "kwargs": {"a": 1, "since": value}}})

    assert problem.startswith("dataset.kwargs.since: got ")
    assert ", allowed: text, a finite number, true, false, null, or lists" in problem


def test_key_of_kwargs_that_is_no_text_is_refused() -> None:
    (problem,) = problems_of({"dataset": {"name": "fake", "kwargs": {False: 1}}})

    assert problem == "dataset.kwargs: got the key False (bool), allowed: text as a key"


def test_kwargs_that_contain_themselves_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text("model: {name: m, kwargs: &a {self: *a}}\n", encoding="utf-8")

    with pytest.raises(ConfigError, match="an alias is part of the value that it repeats"):
        load_experiment(path)


@pytest.mark.parametrize("section", SECTIONS)
def test_section_that_is_no_mapping_is_refused(section: str) -> None:
    assert problems_of({section: ["digits"]}) == [
        f"{section}: got ['digits'] (list), allowed: a mapping of keys to values"
    ]


def test_text_is_the_name_of_a_metric() -> None:
    named = ExperimentConfig.from_dict({"metric": "my.tasks:depth"})
    assert named == ExperimentConfig.from_dict({"metric": {"name": "my.tasks:depth"}})
    assert ExperimentConfig.from_dict(named.to_dict()) == named
    assert "metric" not in ExperimentConfig().to_dict()


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("fault_injektion", "fault_injektion: unknown key; did you mean 'fault_injection'?"),
        ("Model", "Model: unknown key; did you mean 'model'?"),
        ("epochs", "epochs: unknown key at the top level; it belongs in training"),
        ("probability", "probability: unknown key at the top level; it belongs in fault_injection"),
        ("xyz", f"xyz: unknown key; known keys: {', '.join(SECTIONS)}"),
    ],
)
def test_unknown_section_is_told(key: str, problem: str) -> None:
    assert problems_of({key: {}}) == [problem]


def test_unknown_key_gets_the_nearest_one_whatever_its_case() -> None:
    assert problems_of({"scheduler": {"t_max": 5}}) == [
        "scheduler.t_max: unknown key; did you mean 'T_max'?"
    ]


def test_problems_of_all_sections_are_told_at_once() -> None:
    problems = problems_of(
        {
            "fault_injection": {"probabilty": 5, "seed": -1},
            "training": {"epochs": 0},
            "modell": {},
            "dataset": {},
        }
    )

    assert [problem.partition(":")[0] for problem in problems] == [
        "fault_injection.probabilty",
        "fault_injection.seed",
        "training.epochs",
        "modell",
        "dataset.name",
    ]


@pytest.mark.parametrize("values", [None, [1], "digits"])
def test_experiment_that_is_no_mapping_is_refused(values: Any) -> None:
    assert problems_of(values)[0].endswith("expected a mapping of sections")


def test_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("optimizer: {learning_rate: 1e-3}\n", encoding="utf-8")

    assert load_experiment(path).optimizer.learning_rate == 0.001


def test_problem_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("training: {epochs: 0}\n", encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        load_experiment(str(path))
    assert str(caught.value).startswith(f"{path}: training.epochs: got 0 (int), allowed: ")


def test_file_hides_the_bundled_experiment_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").write_text("training: {epochs: 7}\n", encoding="utf-8")

    assert load_experiment("digits.yaml").training.epochs == 7


def test_folder_does_not_hide_the_bundled_experiment_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()

    assert load_experiment("digits").model is not None


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        load_experiment(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "absent/digits.yaml", "../digits", "digits.yml", ""])
def test_missing_file_says_where_it_was_looked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError) as caught:
        load_experiment(name)
    assert "no such file" in str(caught.value)
    assert f"no such file in the current folder, {tmp_path}, " in str(caught.value)
    # What has a folder or an ending is a file that somebody misses.
    listed = f"bundled experiments: {', '.join(BUNDLED)}" in str(caught.value)
    assert listed == (name in ("nothing", ""))


def test_missing_file_gets_the_nearest_bundled_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError) as caught:
        load_experiment("configs/fault_eval.yaml")
    assert str(caught.value).endswith(" (did you mean 'fault_eval'?)")


def test_a_bundled_file_of_the_other_kind_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"digits_study: is one of the bundled studies; `fxf"):
        load_experiment("digits_study")
    (tmp_path / "s.yaml").write_text("axes: {}\ntrials: 3\nmodel: {name: x}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"s\.yaml: axes: is a key of a study"):
        load_experiment(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("section", "name", "problem"),
    [
        ("model", "mylab.net", "'mylab.net' has no colon; for a network of your own write"),
        ("model", "nets/mine.py", "such as 'nets.mine:make'"),
        ("model", "quant_lenett", "is unknown; did you mean 'quant_lenet'?"),
        ("dataset", "mylab.data", "'mylab.data' has no colon; for a data set of your own"),
        ("dataset", "zzz", "is unknown; allowed: cifar10"),
    ],
)
def test_a_name_without_a_colon_is_refused_before_anything_is_opened(
    section: str, name: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ExperimentConfig.from_dict({section: {"name": name}})
    assert str(caught.value).startswith(f"{section}.name: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_files_use_no_absolute_path(name: str) -> None:
    plain = load_experiment(name).to_dict()

    paths = [plain["checkpoint"]["dir"], plain["checkpoint"]["path"]]
    paths += [plain["dataset"]["root"]] if plain["dataset"] else []
    assert not any(Path(path).is_absolute() for path in paths if path)


def test_changes_take_the_place_of_values() -> None:
    changed = load_experiment(
        "layer_analysis",
        {"training.epochs": 7, "dataset.name": "fake", "dataset.kwargs.size": 8},
    )

    assert changed.training.epochs == 7
    assert changed.dataset is not None
    assert (changed.dataset.name, changed.dataset.kwargs) == ("fake", {"size": 8})
    assert changed.fault_injection == load_experiment("layer_analysis").fault_injection


def test_change_of_one_key_leaves_one_that_shares_its_anchor(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "dataset: {name: fake, kwargs: &shared {size: 4}}\nmodel: {name: 'm:n', kwargs: *shared}\n",
        encoding="utf-8",
    )

    changed = load_experiment(path, {"dataset.kwargs.size": 9})

    assert changed.model is not None
    assert changed.model.kwargs == {"size": 4}


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("training.epoch", "training.epoch: unknown key; did you mean 'epochs'?"),
        ("trainin.epochs", "trainin: unknown key; did you mean 'training'?"),
        ("dataset.name.x", "dataset.name.x: cannot be set, as dataset.name is 'digits' (str)"),
        ("training.epochs", "training.epochs: got 'no' (str), allowed: an integer of at least 1"),
    ],
)
def test_change_that_is_not_allowed_is_told(path: str, problem: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        load_experiment("digits", {path: "no"})

    assert caught.value.problems == [problem]


@pytest.mark.parametrize(
    ("faults", "needed"),
    [
        ({}, False),
        ({"enabled": True}, False),
        ({"enabled": True, "apply_during": "both"}, True),
        ({"enabled": True, "apply_during": "eval"}, True),
        ({"enabled": False, "apply_during": "eval"}, False),
    ],
)
def test_faulty_validation_is_needed_where_faults_strike_in_evaluation(
    faults: Any, needed: bool
) -> None:
    experiment = ExperimentConfig.from_dict({"fault_injection": faults})

    assert experiment.needs_faulty_validation is needed


def test_reference_has_a_table_for_every_section() -> None:
    headings = [line for line in experiment_reference().splitlines() if line.startswith("### ")]

    assert headings == [f"### `{section}`" for section in SECTIONS]


def test_reference_marks_required_keys() -> None:
    assert "| `name` | non-empty text | required | Name of the data set. |" in (
        experiment_reference()
    )
