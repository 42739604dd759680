"""`fxfault`: the one command, whose subcommands do the work."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fxfault.cli import campaign, evaluate, init, inspect, train
from fxfault.cli.completion import SHELLS, completion_script
from fxfault.cli.terminal.arguments import OneLineParser, root_program
from fxfault.cli.terminal.console import run
from fxfault.errors import ConfigError
from fxfault.messages import nearest

DESCRIPTION = "Inject bit faults into quantised networks, and measure what they do."

EPILOG = """\
examples:
  fxfault init my_package:build --data my_package:test_set
  fxfault inspect digits
  fxfault eval digits --probability 5 --num-runs 5
  fxfault campaign run digits_study --store study.sqlite

`fxfault COMMAND --help` explains the options of a command. fxfault-eval, fxfault-inspect,
fxfault-train and fxfault-campaign are other names of these commands."""


class Command(NamedTuple):
    """A subcommand: what it does in a few words, what runs it, and what gives it its options."""

    summary: str
    main: Callable[[Sequence[str], str], int]
    add_options: Callable[[OneLineParser], None]


COMMANDS = {
    "init": Command("write a configuration for your own network", init.main, init.add_options),
    "inspect": Command(
        "show where faults would strike a network", inspect.main, inspect.add_options
    ),
    "eval": Command("measure how faults change the accuracy", evaluate.main, evaluate.add_options),
    "campaign": Command(
        "run many trials, keep them, and report on them", campaign.main, campaign.add_options
    ),
    "train": Command("train a network, clean or under faults", train.main, train.add_options),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, by default with the arguments of the process; returns its status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]].main(words[1:], f"{root_program()} {words[0]}")
    parser = _make_parser(root_program())
    if not words or words[0] in ("-h", "--help"):
        make_whole_parser(root_program()).parse_args(["--help"])
    if not words[0].startswith("-"):
        hint = nearest(words[0], COMMANDS)
        listed = ", ".join(COMMANDS)
        parser.error(f"unknown command {words[0]!r}{hint}; commands: {listed}")
    return run(_answer, parser.parse(words))


def _make_parser(program: str) -> OneLineParser:
    """Make the parser of what stands in the place of a subcommand."""
    parser = OneLineParser(prog=program, description=DESCRIPTION, epilog=EPILOG)
    text = "print the versions of fxfault and of what it builds on"
    parser.add_argument("--version", action="store_true", help=text)
    text = "print a script that completes commands and options at a TAB; the documentation says how"
    parser.add_argument("--print-completion", choices=SHELLS, help=text)
    return parser


def make_whole_parser(program: str) -> OneLineParser:
    """Make the parser of the whole command line, with all subcommands and their options."""
    parser = _make_parser(program)
    group = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_options(group.add_parser(name, help=command.summary))
    return parser


def _answer(options: argparse.Namespace) -> int:
    if options.print_completion is not None:
        print(completion_script(make_whole_parser("fxfault"), options.print_completion))
    elif options.version:
        print("\n".join(version_lines()))
    else:
        raise ConfigError("no command; see --help")
    return 0


def version_lines() -> list[str]:
    """The versions that a report of a bug needs; no package is imported for them."""
    found = {"fxfault": "", "torch": "", "brevitas": ""}
    for name in found:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return [
        f"fxfault {found['fxfault']}",
        f"Python {platform.python_version()}",
        f"torch {found['torch']}",
        f"Brevitas {found['brevitas']}",
    ]


if __name__ == "__main__":
    sys.exit(main())
