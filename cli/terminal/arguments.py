"""Command lines: their parser, the types of their values, and the options that commands share.

Nothing heavy is imported here, so that `--help` and a bad flag answer at once.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fxfault.cli.terminal.colours import coloured
from fxfault.cli.terminal.console import BAD_INPUT, error_line, run, say
from fxfault.errors import ConfigError
from fxfault.files.access import expanded
from fxfault.messages import nearest

_Number = TypeVar("_Number", int, float)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that says in one line what is wrong, and names the nearest flag."""

    def __init__(self, **settings: Any) -> None:
        """Make a parser without options but `--help` and `--traceback`.

        Args:
            settings: those of `argparse.ArgumentParser`, such as `prog` and `description`.
        """
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings, allow_abbrev=False)
        text = (
            "show where an error comes from, for instance in your own network "
            "(or set FXFAULT_TRACEBACK=1)"
        )
        self.add_argument("--traceback", action="store_true", help=text)

    @classmethod
    def of(cls, program: str, add_options: Callable[[OneLineParser], None]) -> OneLineParser:
        """Make the parser of a command, whose usage names the program."""
        parser = cls(prog=program)
        add_options(parser)
        return parser

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse a command line, or end the program with status 2."""
        known = re.findall(r"--[a-z][a-z-]*", self.format_help())
        for item in sys.argv[1:] if argv is None else argv:
            flag = item.split("=")[0]
            # Checked before argparse, which would first report a missing flag.
            if flag.startswith("--") and flag not in known:
                self.error(f"unknown flag {flag}{nearest(flag, known)}; see --help")
        try:
            # Intermixed: FILE may stand before, between and after the flags.
            options = self.parse_intermixed_args(argv)
        except Exception as error:  # `console.run` does not catch it yet.
            self.error(f"{type(error).__name__}: {error}")
        return _with_config(self, options) if "config_required" in options else options

    def print_help(self, file: Any = None) -> None:
        """Print the help; unlike argparse, report a stdout that cannot be written."""

        def show(arguments: argparse.Namespace) -> int:
            print(coloured(self.format_help(), file), end="", file=file)
            return 0

        status = run(show, argparse.Namespace())
        if status:
            self.exit(status)

    def error(self, message: str) -> NoReturn:
        """End the program with status 2 and one line on stderr, without the usage."""
        say(error_line(_with_choices(message.removeprefix("argument "))))
        sys.exit(BAD_INPUT)


def _with_choices(message: str) -> str:
    """Write argparse's complaint on a choice as we do, with the nearest one.

    >>> _with_choices("--mode: invalid choice: 'layr' (choose from 'full_model', 'layer')")
    "--mode: 'layr' is none of full_model, layer (did you mean 'layer'?)"
    """
    found = re.fullmatch(r"(.*): invalid choice: '(.*)' \(choose from (.*)\)", message)
    if found is None:
        return message
    names = re.findall(r"[\w-]+", found[3])
    return f"{found[1]}: {found[2]!r} is none of {', '.join(names)}{nearest(found[2], names)}"


def root_program() -> str:
    """What a user typed to start us: `fxfault`, or `python -m fxfault`."""
    typed = Path(sys.argv[0] if sys.argv else "").parts[-2:]
    return "python -m fxfault" if typed == ("fxfault", "__main__.py") else "fxfault"


def program(command: str) -> str:
    """What a user typed to start a command by itself: `fxfault eval` and the like.

    In a process with another name, such as a test, it is `fxfault eval`.
    """
    alias = f"fxfault-{command}"
    typed = os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".exe")
    return alias if typed == alias else f"fxfault {command}"


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

    As in YAML, quotes make a name of a number.

    >>> layers("0,features.*,'3'")
    [0, 'features.*', '3']
    """
    items = [item.strip() for item in text.split(",")]
    bare = [re.sub(r"^(['\"])(.*)\1$", r"\2", item) for item in items]
    if "" in bare:
        raise argparse.ArgumentTypeError(f"{text!r} has an empty item")
    return [int(item) if item.isdecimal() else name for item, name in zip(items, bare, strict=True)]


def bit(text: str, more: str = "") -> int | str:
    """Read a bit of the word, or `random`, or in a study `each`.

    >>> bit("3"), bit("random")
    (3, 'random')
    """
    if text in ("random", "each"):  # An experiment refuses `each`, and says what it is for.
        return text
    return _number(int, lambda x: 0 <= x <= 31, f"a bit from 0 to 31, or random{more}")(text)


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
    >>> setting("epochs")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: 'epochs' is not KEY=VALUE, such as training.epochs=3
    """
    from fxfault.config.yaml_files import parse_yaml

    path, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", path):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as training.epochs=3")
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


EXPERIMENT = "configuration file, or the name of a bundled one, such as digits"


def add_config(parser: OneLineParser, what: str = EXPERIMENT, required: bool = True) -> None:
    """Add the configuration, as `FILE` or as `--config FILE`, and `--set`.

    Args:
        parser: the parser of the command; its `parse` puts either into `config`.
        what: the help of `FILE`.
        required: whether it is an error to give neither.
    """
    parser.add_argument("file", nargs="?", metavar="FILE", help=what)
    parser.add_argument("--config", metavar="FILE", help="another way to give FILE")
    parser.set_defaults(config_required=required)
    add_set(parser, "put a value in place of that of the file, such as training.batch_size=32")


def add_set(parser: OneLineParser, what: str) -> None:
    """Add `--set`; `what` is the start of its help."""
    text = f"{what}; VALUE is YAML; may be repeated"
    parser.add_argument(
        "--set", type=setting, action="append", default=[], metavar="KEY=VALUE", help=text
    )


def _with_config(parser: OneLineParser, options: argparse.Namespace) -> argparse.Namespace:
    """Put `FILE` into `config`."""
    required = options.__dict__.pop("config_required")
    file = options.__dict__.pop("file")
    if None not in (file, options.config) and file != options.config:
        parser.error(f"FILE is {file!r} and --config is {options.config!r}: give one of them")
    options.config = file if options.config is None else options.config
    if required and options.config is None:
        parser.error("no configuration: give FILE, or --config FILE; see --help")
    return options


def add_bit(group: argparse._ActionsContainer, more: str = "") -> None:
    """Add `--bit`; `more` is what else is allowed."""
    text = (
        "bit that bit_flip, stuck_at_0 and stuck_at_1 strike: a number, 0 the lowest, or "
        f"random{more}"
    )
    group.add_argument("--bit", type=partial(bit, more=more), metavar="N", help=text)


def add_layers(group: argparse._ActionsContainer, more: str = "") -> None:
    """Add `--layers`, with more text at the end of its help."""
    text = (
        "sites to strike, with commas: names, patterns such as 'layer1.*', or numbers, which count "
        f"sites from 0 as `fxfault inspect` does; quotes make a name of a number: \"'1'\"{more}"
    )
    group.add_argument("--layers", type=layers, action="extend", metavar="SITE,...", help=text)


def add_memory(group: argparse._ActionsContainer) -> None:
    """Add `--memory`."""
    text = "what faults strike: activations, weights, biases or parameters, or several with commas"
    group.add_argument("--memory", type=memories, metavar="NAME,...", help=text)


def add_device(group: argparse._ActionsContainer) -> None:
    """Add `--device`."""
    text = "auto, cpu, cuda or cuda:N (default: auto, which is CUDA if there is a GPU)"
    group.add_argument("--device", type=device, default="auto", metavar="NAME", help=text)


def add_no_progress(group: argparse._ActionsContainer) -> None:
    """Add `--no-progress`."""
    group.add_argument("--no-progress", action="store_true", help="show no progress")


def add_speed_options(group: argparse._ActionsContainer) -> None:
    """Add the options that make trials faster or slower and leave their results the same."""
    add = group.add_argument
    text = (
        "memory for the activations of the fault-free run, from which trials start, such as 512M "
        "or 2G; with 0, trials start from the data (default: a quarter of the free memory)"
    )
    add("--cache-memory", type=memory, metavar="SIZE", help=text)
    text = "quantise the weights again in each batch (slower)"
    add("--no-freeze", dest="freeze", action="store_false", help=text)
    text = (
        "use torch.compile for trials that change nearly everything; it takes up to a minute, and "
        "is left out without a C++ compiler or if any output differs"
    )
    add("--compile", action="store_true", help=text)
    text = (
        "share of the batches to run again, in full and without compiled code; if predictions "
        "differ, the command stops; 0 for none (default: one batch in the first trial of each "
        "cell, or in a later one where that would take more than 2%% of the time so far)"
    )
    add("--verify", type=percentage, metavar="PERCENT", help=text)
