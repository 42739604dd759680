"""What holds of every command, whatever it is given; attacks and the fuzzer ask the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fxfault.cli import campaign, evaluate, inspect, main, train

MAINS: dict[str, Callable[[Sequence[str]], int]] = {
    "fxfault": main.main,
    "fxfault-campaign": campaign.main,
    "fxfault-eval": evaluate.main,
    "fxfault-inspect": inspect.main,
    "fxfault-train": train.main,
}
# An error of ours quotes its cause; what only says that it is a bug is one.
NEVER = ("Traceback", "this is a bug in fxfault")


def ended(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command in this process; returns its exit status."""
    try:
        return main(argv)
    except SystemExit as end:  # argparse
        return end.code if isinstance(end.code, int) else 1


def breaches(status: int, err: str) -> list[str]:
    """What is wrong with how a command ended that wrote this on stderr; nothing is a pass."""
    found = [f"stderr has {text!r}" for text in NEVER if text in err]
    if status == 2:
        lines = err.splitlines()
        if any(len(line) >= 6000 for line in lines):
            found.append("a line of unreasonable length on stderr")
        if not lines or not all(line.startswith("error: ") for line in lines):
            found.append("no lines on stderr that begin with 'error: '")
        if not all(line.isprintable() for line in lines):
            found.append("a line on stderr that cannot be printed")
    return found
