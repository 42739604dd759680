"""Whose error it is, and the one line that a command makes of it."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fxfault.cli.terminal import console
from fxfault.errors import BugError, ConfigError, DataError, ForeignCodeError
from fxfault.foreign import origin, told


def raised(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def ours(code: str) -> Callable[[], object]:
    """Code that counts as fxfault's."""
    return lambda: exec(code, {"__name__": "fxfault.made_up"})


def command(act: Callable[[], object]) -> int:
    return console.run(lambda options: int(bool(act())), argparse.Namespace(traceback=False))


def test_the_innermost_code_that_is_no_library_is_to_blame() -> None:
    place = origin(raised(ours("{}['absent']")))
    assert place is not None
    assert place.is_ours
    place = origin(raised(lambda: os.stat("/absent/file")))
    assert place is not None
    assert not place.is_ours
    assert place.file == __file__


def test_an_error_of_somebody_else_is_quoted_with_its_place() -> None:
    error = told(raised(lambda: {}["absent"]), "trial 3 of all")
    assert type(error) is ForeignCodeError
    assert str(error).startswith(f"trial 3 of all: KeyError: 'absent' (from {__file__}, line")


def test_an_error_of_ours_is_called_a_bug() -> None:
    error = told(raised(ours("{}['absent']")))
    assert type(error) is BugError
    assert "this is a bug in fxfault" in str(error)
    assert "FXFAULT_TRACEBACK=1" in str(error)


def test_an_expected_error_stays_what_it_is_and_a_quoting_one_gets_its_trial() -> None:
    config = ConfigError("probability: 500")
    assert told(config, "trial 3") is config
    data = told(DataError("the data set cannot be read"), "trial 3 of all")
    assert (type(data), str(data)) == (DataError, "trial 3 of all: the data set cannot be read")


@pytest.mark.parametrize(
    "end",
    [
        SystemExit(0),
        SystemExit("done"),
        BrokenPipeError(),
        ValueError("two\nlines"),
        GeneratorExit(),
    ],
    ids=repr,
)
def test_whatever_ends_a_command_is_one_line_and_status_2(
    end: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> None:
        raise end

    assert command(act) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {type(end).__name__}")
    assert err.count("\n") == 1


def test_an_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    def act() -> None:
        raise KeyboardInterrupt

    assert command(act) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_the_traceback_is_shown_where_it_is_asked_for(
    how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(options: argparse.Namespace) -> int:
        raise ConfigError("wrong") from ValueError("the cause")

    if how == "variable":
        monkeypatch.setenv("FXFAULT_TRACEBACK", "1")
    assert console.run(act, argparse.Namespace(traceback=how == "flag")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "ValueError: the cause" in lines
    assert lines[-1] == "error: wrong"


def test_a_terminal_is_told_nothing_by_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    def act() -> None:
        raise ConfigError("a\x1b[2J\r\nb\udcff" + "9" * 10_000)

    assert command(act) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: a\\x1b[2J b\\udcff999")
    assert len(err) < 5000


def test_what_an_encoding_lacks_is_written_in_its_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", stream)
    assert command(lambda: print("5 ± 1… é \udce9")) == 0
    assert written.getvalue() == b"5 +- 1... \\xe9 \xe9\n"


def test_a_full_disk_under_stdout_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", open("/dev/full", "w"))  # noqa: SIM115
    assert command(lambda: print("a line")) == 2
    sys.stdout.close()
    assert capsys.readouterr().err == "error: stdout cannot be written: No space left on device\n"


def test_closed_streams_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", None)

    def act() -> None:
        raise ConfigError("nobody reads this")

    assert command(act) == 2
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, monkeypatch: Any) -> None:
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    monkeypatch.setattr("sys.stdout", stream)

    def act(options: argparse.Namespace) -> int:
        print("a line")
        return 0

    assert console.run(act, argparse.Namespace()) == 0
    stream.close()
