"""Command lines: one clear line for what is wrong with one, and the types of its values.

Nothing heavy is imported here, so that `--help` and a bad flag answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from fxfault.cli.console import BAD_INPUT, one_line, run, say
from fxfault.errors import ConfigError
from fxfault.files import expanded


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, with the nearest flag.

    >>> OneLineParser(prog="fxfault-eval").nearest_flag("--hlep")
    ' (did you mean --help?)'
    """

    def __init__(self, *, prog: str, description: str | None = None, epilog: str | None = None):
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument(
            "--traceback",
            action="store_true",
            help="show where an error comes from, for instance in a network of your own "
            "(or set FXFAULT_TRACEBACK=1)",
        )

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse a command line; one that cannot be parsed ends the program with status 2."""
        known = self._known_flags()
        for item in sys.argv[1:] if argv is None else argv:
            flag = item.split("=")[0]
            # Before argparse, which would rather tell that another flag is missing.
            if flag.startswith("--") and flag not in known:
                self.error(f"unknown flag {flag}{self.nearest_flag(flag)}; see --help")
        try:
            return self.parse_args(argv)
        except Exception as error:  # The last line of defence is not up yet.
            self.error(f"{type(error).__name__}: {error}")

    def nearest_flag(self, flag: str) -> str:
        """A hint that names the most similar flag, or nothing."""
        close = difflib.get_close_matches(flag, self._known_flags(), n=1)
        return f" (did you mean {close[0]}?)" if close else ""

    def _known_flags(self) -> list[str]:
        return re.findall(r"--[a-z][a-z-]*", self.format_help())

    def print_help(self, file: IO[str] | None = None) -> None:
        """Print the help; argparse says nothing where stdout cannot be written."""

        def show(arguments: argparse.Namespace) -> int:
            print(self.format_help(), end="", file=file)
            return 0

        status = run(show, argparse.Namespace())
        if status:
            self.exit(status)

    def error(self, message: str) -> NoReturn:
        """End the program with status 2 and one line on stderr, without the usage."""
        say(f"error: {one_line(message.removeprefix('argument '))}")
        sys.exit(BAD_INPUT)


def percentage(text: str) -> float:
    """Read a probability in percent.

    >>> percentage("1e-3")
    0.001
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 100 (percent)")
    return value


def percentages(text: str) -> tuple[float, ...]:
    """Read probabilities in percent, separated by commas.

    >>> percentages("0, 0.5, 10")
    (0.0, 0.5, 10.0)
    >>> percentages("0,,5")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: item 2 of 3: '' is not a number from 0 to 100 (percent)
    """
    items = [item.strip() for item in text.split(",")]
    values: list[float] = []
    for number, item in enumerate(items, start=1):
        where = f"item {number} of {len(items)}"
        try:
            value = percentage(item)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{where}: {error}") from None
        if value in values:
            raise argparse.ArgumentTypeError(f"{where}: {item!r} is there twice")
        values.append(value)
    return tuple(values)


def fault_counts(text: str) -> tuple[int, ...]:
    """Read numbers of faults, separated by commas.

    >>> fault_counts("1, 2,4")
    (1, 2, 4)
    """
    items = [item.strip() for item in text.split(",")]
    values = [_integer(item, 0, 2**31 - 1, "a whole number from 0") for item in items]
    twice = [item for number, item in enumerate(items) if values[number] in values[:number]]
    if twice:
        raise argparse.ArgumentTypeError(f"{twice[0]!r} is there twice")
    return tuple(values)


def count(text: str) -> int:
    """Read an integer of at least 1."""
    return _integer(text, 1, None, "an integer of at least 1")


def memory(text: str) -> int:
    """Read an amount of memory in bytes: a number, perhaps with K, M, G or T (powers of 1024).

    >>> memory("512M"), memory("1.5G"), memory("0")
    (536870912, 1610612736, 0)
    >>> memory("lots")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: 'lots' is not an amount of memory, such as 512M, 2G or 0
    """
    pattern = r"([0-9]{1,30}(?:\.[0-9]{1,30})?)([KMGT]?)(?:i?B)?"
    found = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an amount of memory, such as 512M, 2G or 0"
        )
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


def seed(text: str) -> int:
    """Read a seed of faults."""
    from fxfault.config import MAX_SEED

    return _integer(text, 0, MAX_SEED, "an integer from 0 to 2**63 - 1")


def _integer(text: str, least: int, most: int | None, allowed: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least or (most is not None and value > most):
        raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
    return value


def layers(text: str) -> list[str | int]:
    """Read sites, separated by commas: an index where it is a number, else a name or pattern.

    >>> layers("0,features.*")
    [0, 'features.*']
    """
    items = [item.strip() for item in text.split(",")]
    if "" in items:
        raise argparse.ArgumentTypeError(f"{text!r} has an empty item")
    return [int(item) if item.isdecimal() else item for item in items]


def device(text: str) -> str:
    """Read a device: auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")
    return text


def setting(text: str) -> tuple[str, Any]:
    """Read the path of a key of the configuration and its value, which is YAML.

    >>> setting("training.epochs=3"), setting("scheduler.milestones=[10, 20]")
    (('training.epochs', 3), ('scheduler.milestones', [10, 20]))
    >>> setting("epochs=3")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: 'epochs=3' is not section.key=value, such as training.epochs=3
    """
    from fxfault.yaml_files import parse_yaml

    path, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)+", path):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not section.key=value, such as training.epochs=3"
        )
    try:
        content = parse_yaml(f"value: {value}".encode(), path)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"the value is no YAML: {error}") from None
    if list(content) != ["value"]:  # A line break in it started another key.
        raise argparse.ArgumentTypeError(f"{text!r} has more than one value")
    return path, content["value"]


def checkpoint(text: str) -> str:
    """Read the name of a checkpoint: the path of a file, or bundled:NAME."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the path of a file, or bundled:NAME")
    return text


def folder(text: str) -> Path:
    """Read the path of a folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the path of a folder")
    return _path(text)


def file(text: str) -> Path:
    """Read the path of a file to be written."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the path of a file")
    return _path(text)


def _path(text: str) -> Path:
    try:
        return expanded(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
