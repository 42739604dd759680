"""The options of the commands of `fxfault campaign`."""

from __future__ import annotations

import argparse
from typing import Any

from fxfault.cli.terminal import arguments as types
from fxfault.cli.terminal import look
from fxfault.cli.terminal.arguments import OneLineParser

_ENGINES = ("local", "processes", "ray")


def add_run(parser: OneLineParser) -> None:
    """Add the options of `run`."""
    _add_file(parser)
    add_store(parser, "; a new one is made, an existing one is continued")
    _add_engine_options(parser)


def add_resume(parser: OneLineParser) -> None:
    """Add the options of `resume`."""
    add_store(parser)
    _add_engine_options(parser)


def add_report(parser: OneLineParser) -> None:
    """Add the options of `report`."""
    add_store(parser)
    text = "also print the table of all cells"
    parser.add_argument("--cells", action="store_true", help=text)
    text = "print a paragraph on the methods for a paper, in place of the report"
    parser.add_argument("--methods", action="store_true", help=text)
    look.add_tolerance(parser)
    text = "folder for all pictures as PNG and SVG, with --style paper as PDF and SVG"
    parser.add_argument("--figures", type=types.folder, metavar="DIR", help=text)
    look.add_look(parser)
    text = "web page with all tables and pictures; it needs no network connection"
    parser.add_argument("--html", type=types.file, metavar="FILE", help=text)
    _add_confidence(parser)


def add_export(parser: OneLineParser) -> None:
    """Add the options of `export`."""
    add_store(parser)
    text = (
        "a row for each trial with its counts, or for each cell with its estimates "
        "(default: trials)"
    )
    parser.add_argument("--what", choices=("trials", "cells"), default="trials", help=text)
    for flag, text in (
        ("--csv", "comma-separated values"),
        ("--json", "JSON with the study and its fingerprint"),
        ("--parquet", "Parquet; needs pyarrow"),
    ):
        parser.add_argument(flag, type=types.file, metavar="FILE", help=text)
    _add_confidence(parser)


def add_faults(parser: OneLineParser) -> None:
    """Add the options of `faults`."""
    add_store(parser, "; it is only read")
    text = (
        "the cell: its number in the report, from 1, or its site, fault and rate, such as "
        '"classifier.2 random 5%%" (default: the only one)'
    )
    parser.add_argument("--cell", metavar="CELL", help=text)
    text = "number of the trial (default: 0)"
    parser.add_argument("--trial", type=types.trial, default=0, metavar="N", help=text)
    for flag, text in (
        ("--csv", "comma-separated values"),
        ("--parquet", "Parquet; needs pyarrow"),
    ):
        parser.add_argument(flag, type=types.file, metavar="FILE", help=text)
    group = parser.add_argument_group("run", "the trial runs again, and must have the same counts")
    types.add_device(group)
    text = "threads (default: 1); other numbers may round sums differently"
    group.add_argument("--threads", type=types.count, default=1, metavar="N", help=text)
    types.add_no_progress(group)


def add_compare(parser: OneLineParser) -> None:
    """Add the options of `compare`."""
    parser.add_argument("a", type=types.file, metavar="A", help="store of a study")
    parser.add_argument("b", type=types.file, metavar="B", help="store of another study")
    _add_confidence(parser)


def add_plan(parser: OneLineParser) -> None:
    """Add the options of `plan`."""
    _add_file(parser)
    text = (
        "half width of the interval of a rate, in percentage points "
        "(default: stop.margin of the study, or 1)"
    )
    parser.add_argument("--margin", type=types.margin, metavar="POINTS", help=text)
    text = "confidence of that interval (default: stop.confidence of the study, or 95)"
    parser.add_argument("--confidence", type=types.confidence, metavar="PERCENT", help=text)
    text = "number of workers that will run the study (default: 1)"
    parser.add_argument("--workers", type=types.count, default=1, metavar="N", help=text)
    _add_worker_options(parser)


def _add_file(parser: OneLineParser) -> None:
    types.add_config(parser, "study file, or the name of a bundled one, such as digits_study")
    group = parser.add_argument_group("faults", "these replace the values of the study")
    types.add_bit(group, ", or each")
    more = "; axes.layers still says whether they are struck together or each alone"
    types.add_layers(group, more)


def add_store(parser: OneLineParser, more: str = "") -> None:
    """Add `--store`, with more text at the end of its help."""
    text = f"file of the trials{more}"
    parser.add_argument("--store", type=types.file, required=True, metavar="FILE", help=text)


def _add_confidence(parser: OneLineParser) -> None:
    parser.add_argument(
        "--confidence",
        type=types.confidence,
        default=95.0,
        metavar="PERCENT",
        help="confidence of the intervals (default: 95)",
    )


def _add_engine_options(parser: OneLineParser) -> None:
    group = parser.add_argument_group("engine", "every engine gives the same trials")
    text = "local: in this process; processes: in several; ray: on a cluster (default: local)"
    group.add_argument("--engine", choices=_ENGINES, default="local", help=text)
    text = (
        "number of workers (default: with processes one for each core, with ray what the cluster "
        "has)"
    )
    group.add_argument("--workers", type=types.count, metavar="N", help=text)
    group.add_argument(
        "--address", metavar="ADDRESS", help="address of a running Ray cluster, or auto to find it"
    )
    text = "GPUs that each worker of ray reserves, such as 1 or 0.5 (default: 1 if there is one)"
    group.add_argument("--gpus-per-trial", type=types.gpus, metavar="N", help=text)
    text = (
        "longest time of a trial, with processes or ray; another worker then runs it again, and if "
        "that takes too long as well, the study ends (default: at least 90 s, and much more than "
        "trials took so far)"
    )
    group.add_argument("--trial-timeout", type=types.seconds, metavar="SECONDS", help=text)
    types.add_no_progress(group)
    _add_worker_options(parser)


def _add_worker_options(parser: OneLineParser) -> None:
    group = parser.add_argument_group("speed", "the trials are the same with each")
    types.add_device(group)
    text = "threads of each worker (default: 1); other numbers may round sums differently"
    group.add_argument("--threads", type=types.count, default=1, metavar="N", help=text)
    text = "run every sample through the whole network in every trial"
    group.add_argument("--no-incremental", dest="incremental", action="store_false", help=text)
    types.add_speed_options(group)


def worker_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options of a worker, as keyword arguments of a plan."""
    names = ("device", "threads", "incremental", "freeze", "compile", "cache_memory", "verify")
    return {name: getattr(options, name) for name in names}
