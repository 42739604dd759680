"""Command lines: their parser, the types of their values, and the options that commands share.

Nothing heavy is imported here, so that `--help` and a bad flag answer at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fxfault.cli.terminal.console import BAD_INPUT, error_line, run, say
from fxfault.errors import ConfigError
from fxfault.files.access import expanded
from fxfault.messages import nearest

_Number = TypeVar("_Number", int, float)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that says in one line what is wrong, and names the nearest flag."""

    def __init__(self, *, prog: str, description: str | None = None, epilog: str | None = None):
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        text = (
            "show where an error comes from, for instance in your own network "
            "(or set FXFAULT_TRACEBACK=1)"
        )
        self.add_argument("--traceback", action="store_true", help=text)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse a command line, or end the program with status 2."""
        known = re.findall(r"--[a-z][a-z-]*", self.format_help())
        for item in sys.argv[1:] if argv is None else argv:
            flag = item.split("=")[0]
            # Checked before argparse, which would first report a missing flag.
            if flag.startswith("--") and flag not in known:
                self.error(f"unknown flag {flag}{nearest(flag, known)}; see --help")
        try:
            return self.parse_args(argv)
        except Exception as error:  # `console.run` does not catch it yet.
            self.error(f"{type(error).__name__}: {error}")

    def print_help(self, file: Any = None) -> None:
        """Print the help; unlike argparse, report a stdout that cannot be written."""

        def show(arguments: argparse.Namespace) -> int:
            print(self.format_help(), end="", file=file)
            return 0

        status = run(show, argparse.Namespace())
        if status:
            self.exit(status)

    def error(self, message: str) -> NoReturn:
        """End the program with status 2 and one line on stderr, without the usage."""
        say(error_line(message.removeprefix("argument ")))
        sys.exit(BAD_INPUT)


# -- types of values ------------------------------------------------------------------------


def _number(
    kind: Callable[[str], _Number], is_allowed: Callable[[_Number], bool], allowed: str
) -> Callable[[str], _Number]:
    """The type of an option whose value is a number."""

    def read(text: str) -> _Number:
        with suppress(ValueError):
            value = kind(text)
            if is_allowed(value):  # A NaN never is.
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")

    return read


percentage = _number(float, lambda x: 0 <= x <= 100, "a number from 0 to 100 (percent)")
margin = _number(float, lambda x: 0 < x <= 50, "a number above 0 and up to 50 (percentage points)")
tolerance = _number(float, lambda x: 0 < x < float("inf"), "a finite number above 0")
confidence = _number(float, lambda x: 50 <= x <= 99.999, "a number from 50 to 99.999 (percent)")
seconds = _number(float, lambda x: 0 < x <= 1e7, "a number of seconds above 0, up to 10000000")
gpus = _number(float, lambda x: 0 <= x <= 1024, "a number from 0 to 1024")
count = _number(int, lambda x: x >= 1, "an integer of at least 1")
trial = _number(int, lambda x: 0 <= x <= 10**9, "a whole number from 0 to 1000000000")
_fault_count = _number(int, lambda x: 0 <= x < 2**31, "a whole number from 0")


def seed(text: str) -> int:
    """Read the seed of the faults."""
    from fxfault.config.fault_injection import MAX_SEED

    return _number(int, lambda x: 0 <= x <= MAX_SEED, "an integer from 0 to 2**63 - 1")(text)


def _several(text: str, read: Callable[[str], _Number]) -> tuple[_Number, ...]:
    """Read different numbers, separated by commas.

    >>> percentages("0, 0.5, 10"), fault_counts("1, 2,4")
    ((0.0, 0.5, 10.0), (1, 2, 4))
    >>> percentages("0,,5")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: item 2 of 3: '' is not a number from 0 to 100 (percent)
    """
    items = [item.strip() for item in text.split(",")]
    values: list[_Number] = []
    for number, item in enumerate(items, start=1):
        where = f"item {number} of {len(items)}"
        try:
            value = read(item)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{where}: {error}") from None
        if value in values:
            raise argparse.ArgumentTypeError(f"{where}: {item!r} is there twice")
        values.append(value)
    return tuple(values)


percentages = partial(_several, read=percentage)
fault_counts = partial(_several, read=_fault_count)


def figure_size(text: str) -> tuple[float, float]:
    """Read the width and height of pictures, in inches.

    >>> figure_size("3.5x2.4")
    (3.5, 2.4)
    >>> figure_size("900x600")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: '900x600' is not a width and a height in inches, each from 1.5 to \
40, such as 3.5x2.4
    """
    parts = text.lower().split("x")
    with suppress(ValueError):
        size = tuple(map(float, parts))
        if len(size) == 2 and all(1.5 <= side <= 40 for side in size):
            return size
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a width and a height in inches, each from 1.5 to 40, such as 3.5x2.4"
    )


def add_tolerance(group: argparse._ActionsContainer) -> None:
    """Add `--tolerance`."""
    text = (
        "the largest cost that the verdict calls tolerable, in percentage points of accuracy or in "
        "the unit of the metric (default: 1 point, or 1 %% of the golden value)"
    )
    group.add_argument("--tolerance", type=tolerance, metavar="AMOUNT", help=text)


def add_look(group: argparse._ActionsContainer) -> None:
    """Add the options of how pictures look."""
    from fxfault.results.pictures.drawing import STYLES

    text = (
        "screen, or paper: one column (3.5 inches), 8-point serif type, vectors only "
        "(default: screen)"
    )
    group.add_argument("--style", choices=STYLES, default="screen", help=text)
    text = (
        "width and height of each picture in inches, such as 7x3 (default: what suits its "
        "content); a drawing of the network takes only the width"
    )
    group.add_argument("--figure-size", type=figure_size, metavar="WxH", help=text)


def memory(text: str) -> int:
    """Read an amount of memory in bytes: a number with or without K, M, G or T (powers of 1024).

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


def layers(text: str) -> list[str | int]:
    """Read sites, separated by commas: a number is an index, anything else a name or a pattern.

    >>> layers("0,features.*")
    [0, 'features.*']
    """
    items = [item.strip() for item in text.split(",")]
    if "" in items:
        raise argparse.ArgumentTypeError(f"{text!r} has an empty item")
    return [int(item) if item.isdecimal() else item for item in items]


def memories(text: str) -> tuple[str, ...]:
    """Read what faults strike: names of memories, separated by commas.

    >>> memories("weights,biases")
    ('weights', 'biases')
    >>> memories("wights")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: 'wights' is none of activations, weights, biases, parameters \
(did you mean 'weights'?)
    """
    from fxfault.config.entries import MEMORIES

    items = [item.strip() for item in text.split(",")]
    for item in items:
        if item not in MEMORIES:
            hint = nearest(item, MEMORIES)
            raise argparse.ArgumentTypeError(f"{item!r} is none of {', '.join(MEMORIES)}{hint}")
    return tuple(dict.fromkeys(items))


def device(text: str) -> str:
    """Read a device: auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")
    return text


def setting(text: str) -> tuple[str, Any]:
    """Read the path of a configuration key and its value, which is YAML.

    >>> setting("training.epochs=3"), setting("scheduler.milestones=[10, 20]")
    (('training.epochs', 3), ('scheduler.milestones', [10, 20]))
    >>> setting("epochs=3")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: 'epochs=3' is not section.key=value, such as training.epochs=3
    """
    from fxfault.config.yaml_files import parse_yaml

    path, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)+", path):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not section.key=value, such as training.epochs=3"
        )
    try:
        content = parse_yaml(f"value: {value}".encode(), path)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"the value is not YAML: {error}") from None
    if list(content) != ["value"]:  # A line break started another key.
        raise argparse.ArgumentTypeError(f"{text!r} has more than one value")
    return path, content["value"]


def checkpoint(text: str) -> str:
    """Read a checkpoint: the path of a file, or bundled:NAME."""
    _check_path(text, "a file, or bundled:NAME")
    return text


def _check_path(text: str, what: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the path of {what}")
    try:
        return expanded(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


folder = partial(_check_path, what="a folder")
file = partial(_check_path, what="a file")


# -- options that several commands have -----------------------------------------------------


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, which must be given."""
    text = "configuration file, or the name of a bundled one, such as digits"
    parser.add_argument("--config", required=True, metavar="FILE", help=text)


def add_layer(group: argparse._ActionsContainer, more: str = "") -> None:
    """Add `--layer`, with more text at the end of its help."""
    text = "select sites: an index, a name or a pattern such as 'layer1.*'; may be repeated" + more
    group.add_argument("--layer", type=layers, action="extend", metavar="SITE,...", help=text)


def add_memory(group: argparse._ActionsContainer) -> None:
    """Add `--memory`."""
    text = (
        "what faults strike: activations, weights, biases or parameters, or several of them, in "
        "place of `memory` of the configuration"
    )
    group.add_argument("--memory", type=memories, metavar="NAME,...", help=text)


def add_device(group: argparse._ActionsContainer) -> None:
    """Add `--device`."""
    text = "auto, cpu, cuda or cuda:N (default: auto, which takes CUDA if there is a GPU)"
    group.add_argument("--device", type=device, default="auto", metavar="NAME", help=text)


def add_no_progress(group: argparse._ActionsContainer) -> None:
    """Add `--no-progress`."""
    group.add_argument("--no-progress", action="store_true", help="show no progress")


def add_speed_options(group: argparse._ActionsContainer) -> None:
    """Add the options that make trials faster or slower and leave their results the same."""
    add = group.add_argument
    text = (
        "memory of a machine for activations of the fault-free run, such as 512M or 2G; "
        "trials start from them, or from the data if SIZE is 0 (default: a quarter of the free "
        "memory)"
    )
    add("--cache-memory", type=memory, metavar="SIZE", help=text)
    text = "quantise the weights again in each batch (slower)"
    add("--no-freeze", dest="freeze", action="store_false", help=text)
    text = (
        "use torch.compile for trials that change nearly everything, if it and a C++ compiler "
        "work and the outputs are the same bit for bit; compiling takes up to a minute"
    )
    add("--compile", action="store_true", help=text)
    text = (
        "run this share of the batches again, in full and without compiled code, and stop if "
        "predictions differ; 0 for none (default: one batch with struck samples in the first trial "
        "of each cell, or in a later one if it would take more than 2%% of the time so far)"
    )
    add("--verify", type=percentage, metavar="PERCENT", help=text)
