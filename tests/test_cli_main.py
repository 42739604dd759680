"""The one command `fxfault`: its subcommands, its versions, and what all of them agree on."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import Run

from fxfault.campaign.studies.study import Study
from fxfault.cli import main as front
from fxfault.cli.campaign_options import add_plan
from fxfault.cli.configurations import read_study
from fxfault.cli.terminal import arguments
from fxfault.errors import ConfigError, SiteError

Command = Callable[..., Run]


@pytest.fixture
def command(run_command: Command) -> Command:
    """Give a function that runs `fxfault` in an empty folder."""

    def run(*argv: str) -> Run:
        return run_command(front.main, *argv)

    return run


def test_it_lists_its_commands(command: Command) -> None:
    for argv in ((), ("--help",), ("-h",)):
        run = command(*argv)
        assert run.status == 0
        assert all(f"\n    {name} " in run.out for name in front.COMMANDS)


def test_versions(command: Command) -> None:
    run = command("--version")
    torch, brevitas = map(importlib.metadata.version, ("torch", "brevitas"))
    python = sys.version.split()[0]
    lines = [f"Python {python}", f"torch {torch}", f"Brevitas {brevitas}"]
    assert run.out.splitlines() == [f"fxfault {importlib.metadata.version('fxfault')}", *lines]


def test_an_absent_package_is_said(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert "torch not installed\n" in command("--version").out


@pytest.mark.parametrize("name", front.COMMANDS)
def test_usage_names_what_was_typed(
    command: Command, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(name, "--help").out.startswith(f"usage: fxfault {name} ")
    monkeypatch.setattr(sys, "argv", ["/some/where/fxfault/__main__.py"])
    assert command(name, "--help").out.startswith(f"usage: python -m fxfault {name} ")


def test_the_old_names_are_kept(run_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    points = importlib.metadata.entry_points(group="console_scripts")
    found = {p.name: p for p in points if p.name.startswith("fxfault-")}
    assert set(found) == {f"fxfault-{name}" for name in ("campaign", "eval", "inspect", "train")}
    for name, point in found.items():
        monkeypatch.setattr(sys, "argv", [f"/usr/bin/{name}"])
        assert run_command(point.load(), "--help").out.startswith(f"usage: {name} ")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["evla"], ["unknown command 'evla' (did you mean 'eval'?)", "inspect, eval"]),
        (["--verison"], ["unknown flag --verison (did you mean '--version'?)"]),
        (["--traceback", "eval"], ["unrecognized arguments: eval"]),
        (["eval"], ["no configuration: give FILE, or --config FILE"]),
        (
            ["inspect", "a.yaml", "--config", "b.yaml"],
            ["FILE is 'a.yaml' and --config"],
        ),
        (["campaign", "run", "--store", "s"], ["no configuration: give FILE"]),
        (["campaign", "plan", "digits_study", "--set", "trails=5"], ["--set trails", "'trials'"]),
        (
            ["campaign", "plan", "digits_study", "--set", "axes.probability=[1, 101]"],
            ["--set axes.probability[1]: got 101 (int), allowed: a number from 0 to 100"],
        ),
        (
            ["campaign", "plan", "digits_study", "--set", "axes.bits=3"],
            ["--set axes.bits: unknown key; did you mean 'bit'?"],
        ),
    ],
)
def test_bad_command_lines(command: Command, argv: list[str], parts: list[str]) -> None:
    run = command(*argv)
    assert (run.status, run.out) == (2, "")
    assert run.err.count("\n") == 1
    assert all(part in run.err for part in parts), run.err


# -- the configuration ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["digits", "--input-shape", "1,8,8"],
        ["--input-shape", "1,8,8", "digits"],
        ["--config", "digits", "--input-shape", "1,8,8"],
        ["digits", "--config", "digits"],
    ],
)
def test_a_configuration_may_stand_anywhere(argv: list[str]) -> None:
    from fxfault.cli import inspect

    options = arguments.OneLineParser.of("fxfault inspect", inspect.add_options).parse(argv)
    assert options.config == "digits"
    assert not hasattr(options, "file")


@pytest.fixture
def bad_rate(tmp_path: Path) -> str:
    """A configuration with a probability that is not allowed."""
    content = yaml.safe_load(
        "dataset: {name: digits}\nmodel: {name: quant_digits}\n"
        "quantization: {weight_bit_width: 4, act_bit_width: 4}\n"
        "checkpoint: {path: 'bundled:digits'}\n"
        "fault_injection: {enabled: true, probability: 500, seed: 1}\n"
    )
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_flags_replace_values_before_they_are_checked(command: Command, bad_rate: str) -> None:
    run = command("inspect", bad_rate)
    assert "fault_injection.probability: got 500" in run.err
    run = command("inspect", bad_rate, "--set", "fault_injection.probability=7")
    assert (run.status, run.err) == (0, "")
    assert "random 7 %" in run.out
    run = command("eval", bad_rate, "--probability", "0", "--batch-size", "250", "--no-progress")
    assert (run.status, run.err) == (0, "")


def test_a_refused_flag_is_named_and_not_the_file(command: Command, bad_rate: str) -> None:
    run = command("eval", bad_rate, "--probability", "5", "--injection-type", "randm")
    assert run.err.startswith("error: --injection-type: got 'randm' (str), allowed: ")


def test_bit_and_layers_are_those_of_the_file(command: Command, bad_rate: str) -> None:
    argv = ["--layers", "features.2", "--injection-type", "stuck_at_1", "--bit", "3"]
    run = command("eval", bad_rate, *argv, "--probability", "5", "--no-progress")
    assert run.status == 0
    written = yaml.safe_load(Path("fault_eval_stuck_at_1.json").read_text(encoding="utf-8"))
    faults = written["config"]["fault_injection"]
    assert (faults["bit"], faults["layers"]) == (3, ["features.2"])
    assert written["command"].startswith(f"fxfault eval {bad_rate} --layers features.2 ")


def test_a_study_is_changed_by_set(command: Command) -> None:
    from fxfault.cli import campaign, configurations

    argv = ["digits_study", "--set", "stop=null", "--set", "trials=3", "--set", "seed=9"]
    parser = campaign._make_parser("plan", "fxfault campaign")
    study = configurations.read_study(parser.parse(argv))
    assert (study.trials, study.stop, study.experiment.seed.value) == (3, None, 9)


# -- processes ------------------------------------------------------------------------------


def test_python_m_fxfault(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "fxfault", "evla"]
    run = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith("error: unknown command 'evla'")


def test_names_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for typed, root, own in (
        ("/usr/bin/fxfault", "fxfault", "fxfault eval"),
        ("fxfault-eval.exe", "fxfault", "fxfault-eval"),
        ("x/fxfault/__main__.py", "python -m fxfault", "fxfault eval"),
    ):
        monkeypatch.setattr(sys, "argv", [typed])
        assert (arguments.root_program(), arguments.program("eval")) == (root, own)


def test_a_number_that_is_the_name_of_a_site_is_explained() -> None:
    from fxfault.sites.site_names import indices_of

    assert indices_of([1], ["0", "3"]) == [1]  # A number counts; the name has another one.
    with pytest.raises(SiteError, match=r"in quotes is the name of number 1\); the 2 sites"):
        indices_of([3], ["0", "3"])


def test_quotes_make_a_name_of_a_number() -> None:
    from fxfault.sites.site_names import indices_of, number_notes

    chosen = arguments.layers("1,'3'")
    assert chosen == [1, "3"] == yaml.safe_load("[1, '3']")
    assert indices_of(chosen, ["1", "2", "3"]) == [1, 2]
    (note,) = number_notes(chosen, ["1", "2", "3"])
    assert note.startswith("layers: 1 is the site '2', as a number counts sites from 0; in quotes")
    assert number_notes([0, 1, 7, "1"], ["0", "stem"]) == []  # Nothing that could be misread.


NUMBERED = """
from brevitas.nn import QuantReLU
from torch import nn
def make():
    return nn.Sequential(nn.Flatten(), QuantReLU(), QuantReLU(), nn.Linear(64, 10))
"""


@pytest.mark.parametrize(
    ("given", "site"), [("--layers=1", "2"), ("--layers='1'", "1"), ("--layers=2", "")]
)
def test_the_site_that_a_number_selects_is_said(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, site: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "numbered.py").write_text(NUMBERED, encoding="utf-8")
    content: dict[str, object] = {"model": {"name": "numbered:make"}, "dataset": {"name": "digits"}}
    content["fault_injection"] = {"enabled": True, "apply_during": "eval"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    run = command("inspect", str(tmp_path / "own.yaml"), given)
    if not site:
        assert "'2' in quotes is the name of number 1" in run.err
        return
    assert ("Note: layers: 1 is the site '2'" in run.out) == (given == "--layers=1")
    assert [line.split()[1] for line in run.out.splitlines() if line.endswith("armed")] == [site]


def test_options_agree() -> None:
    """Every command that reads a configuration takes it, and changes it, in the same ways."""
    from fxfault.cli import campaign, evaluate, inspect, train

    read = [evaluate.add_options, inspect.add_options, train.add_options]
    read += [campaign.COMMANDS[name].add_options for name in ("run", "plan")]
    for add_options in read:
        flags = arguments.OneLineParser.of("fxfault", add_options).format_help()
        for flag in ("[FILE]", "--config FILE", "--set KEY=VALUE", "--bit N", "--layers SITE"):
            assert flag in flags, (add_options.__module__, flag)


def study_of(*argv: str) -> Study:
    parser = arguments.OneLineParser.of("fxfault campaign plan", add_plan)
    return read_study(parser.parse([*argv]))


def test_flags_change_a_study() -> None:
    names = [f"site{n}" for n in range(4)]
    study = study_of("digits_study", "--layers", "1,site3", "--bit", "2")
    cells = study.cells(names, dict.fromkeys(names, 4))
    assert {cell.layers for cell in cells} == {("site1",), ("site3",)}
    assert {cell.bit for cell in cells} == {None, 2}
    both = study_of("digits_study", "--layers", "1,site3", "--set", "axes.layers=all")
    assert {cell.layers for cell in both.cells(names, dict.fromkeys(names, 4))} == {
        ("site1", "site3")
    }


def test_a_layer_that_is_not_there_is_told_by_its_key() -> None:
    given = [("fault_injection.layers", "--layers=nope"), ("axes.layers", "--set=axes.layers=nope")]
    for key, flag in given:
        with pytest.raises(SiteError, match=f"^{key}: 'nope' matches no site"):
            study_of("digits_study", flag).cells(["stem"], {"stem": 4})


@pytest.mark.parametrize(
    ("axes", "flag", "why"),
    [
        ("axes.layers=stem", "--layers=0", "--layers: axes.layers of digits_study names sites"),
        ("axes={faults: {a: [{bit: 1}]}}", "--bit=0", "--bit: digits_study has `faults`"),
    ],
)
def test_flags_that_a_study_would_not_follow_are_refused(axes: str, flag: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"^{why}"):
        study_of("digits_study", "--set", axes, flag)


def test_a_sweep_replaces_a_bad_rate(command: Command, bad_rate: str) -> None:
    run = command("eval", bad_rate, "--sweep", "1,2", "--no-progress")
    assert run.status == 0, run.err
