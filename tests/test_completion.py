"""Shell completion and colour: what a shell completes, and where colour is shown."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from commands import Run

from fxfault.cli import completion
from fxfault.cli import main as front
from fxfault.cli.terminal import colours
from fxfault.cli.terminal.console import say
from fxfault.cli.terminal.progress import Progress

# -- completion -----------------------------------------------------------------------------


def script(shell: str) -> str:
    pytest.importorskip("shtab", reason="the extra `cli` is not installed")
    return completion.completion_script(front.make_whole_parser("fxfault"), shell)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], list(front.COMMANDS)),
        (["ev"], ["eval"]),
        (["eval", "--prob"], ["--probability"]),
        (["campaign", "re"], ["resume", "report"]),
        (["campaign", "run", "--engine", "p"], ["processes"]),
        (["eval", "--checkpoint", "wei"], ["weights.pt"]),
        (["campaign", "report", "--figures", "pic"], ["pictures"]),
    ],
)
def test_bash_completes(words: list[str], expected: list[str], tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    (tmp_path / "weights.pt").touch()
    (tmp_path / "pictures").mkdir()
    line = ["fxfault", *words]
    quoted = " ".join(f"'{word}'" for word in line)
    code = (
        f"{script('bash')}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words)}\n"
        'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}\n'
        '_shtab_fxfault; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    run = subprocess.run([bash, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (run.stdout.split(), run.stderr) == (expected, "")


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_has_a_script(shell: str, run_command: Callable[..., Run]) -> None:
    text = script(shell)
    assert "campaign" in text
    assert "layers" in text
    assert run_command(front.main, "--print-completion", shell).out == text + "\n"
    program = shutil.which(shell)
    if program is not None:  # That it can be read.
        argv = [program, *(["-f"] if shell == "tcsh" else []), "-n"]
        run = subprocess.run(argv, input=text, capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (0, "")


def test_without_shtab_it_says_what_to_install(
    run_command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    run = run_command(front.main, "--print-completion", "bash")
    assert (run.status, run.out) == (2, "")
    assert run.err == 'error: --print-completion needs shtab: pip install "fxfault[cli]"\n'


def test_another_shell_is_refused(run_command: Callable[..., Run]) -> None:
    run = run_command(front.main, "--print-completion", "ksh")
    assert run.status == 2
    assert "is none of" in run.err


# -- colour ---------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Give a terminal that shows colour."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def test_a_terminal_shows_colour(terminal: Terminal) -> None:
    with redirect_stdout(terminal), redirect_stderr(terminal):
        say("error: no such file")
        Progress(wanted=False).note("drawn")
        Progress(wanted=False).say("Results:\n  Baseline: 3\n============\nA line: of text")
    assert terminal.getvalue() == (
        "\x1b[1;31merror:\x1b[0m no such file\n\x1b[1;33mNote:\x1b[0m drawn\n"
        "\x1b[1mResults:\x1b[0m\n  Baseline: 3\n\x1b[2m============\x1b[0m\nA line: of text\n"
    )


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_none_gets_none(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with redirect_stderr(terminal):
        say("error: no such file")
    assert terminal.getvalue() == "error: no such file\n"


def test_an_empty_no_color_does_not_count(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "")  # As no-color.org has it.
    assert colours.wants_colour(terminal)


def test_a_pipe_and_a_closed_stream_get_none() -> None:
    with open(os.devnull, "w", encoding="utf-8") as file:
        assert not colours.wants_colour(file)
    assert not colours.wants_colour(file)
    assert not colours.wants_colour(None)
