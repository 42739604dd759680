"""Read YAML files strictly.

PyYAML silently keeps the last of two equal keys, and it reads `1e-3` as text because it follows
YAML 1.1. Here equal keys are an error that names both lines, and `1e-3` is a number.

>>> parse_yaml(b"learning_rate: 1e-3", "example.yaml")
{'learning_rate': 0.001}
"""

from __future__ import annotations

import os
import re
import reprlib
from pathlib import Path
from typing import Any

import yaml

from fxfault.bundled.files import bundled_content, bundled_names
from fxfault.errors import ConfigError, InvalidConfigError
from fxfault.files.access import UnfitFileError, no_such_file, read_limited, size_text
from fxfault.messages import nearest, one_line

# A configuration of 1 MiB takes seconds to read, and people write less than a tenth of that.
MOST_BYTES = 2**20
MOST_VALUES = 100_000  # Counted wherever an alias repeats them.
_RUNS = {
    "studies": "`fxfault campaign run` runs a study",
    "experiments": "a study has `axes` and `trials` too; `fxfault eval` runs an experiment",
}

_FLOAT_TAG = "tag:yaml.org,2002:float"

# The floats of the YAML 1.2 core schema. They have a dot or an exponent, so `5` stays an integer.
_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?
         |[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?
         |[-+]?[0-9]+[eE][-+]?[0-9]+
         |[-+]?\.(?:inf|Inf|INF)
         |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


def load_yaml(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: the file.

    Returns:
        The content, as plain Python values.

    Raises:
        InvalidConfigError: the file is missing, unreadable, a folder, not text, not YAML, not a
            mapping, or repeats a key.
    """
    source = str(path)
    try:
        data = read_limited(os.fspath(path), MOST_BYTES)
    except FileNotFoundError:
        raise InvalidConfigError([no_such_file(path)], source) from None
    except IsADirectoryError:
        raise InvalidConfigError(["is a folder, expected a YAML file"], source) from None
    except UnfitFileError as error:
        raise InvalidConfigError([f"{error}: not a configuration"], source) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidConfigError([f"cannot be read: {reason}"], source) from error
    return parse_yaml(data, source)


def is_bundled(kind: str, name: str) -> bool:
    """Whether `load_named` reads a bundled file for a name.

    >>> is_bundled("experiments", "digits"), is_bundled("experiments", "./digits.yaml")
    (True, False)
    """
    names = bundled_names(kind)
    is_file = os.path.exists(name) and not (os.path.isdir(name) and name in names)
    return not is_file and name.removesuffix(".yaml") in names


def load_named(kind: str, name: str) -> tuple[dict[Any, Any], str]:
    """Read a YAML file, or a bundled one.

    Args:
        kind: `experiments` or `studies`.
        name: the path of a file, or the name of a bundled file.

    Returns:
        The content, and the name of its source for messages.

    Raises:
        InvalidConfigError: as `load_yaml`.
    """
    if is_bundled(kind, name):
        bundled = name.removesuffix(".yaml")
        source = f"{bundled}.yaml (bundled)"
        return parse_yaml(bundled_content(kind, bundled), source), source
    if not os.path.exists(name):
        raise InvalidConfigError([_why_absent(kind, name)], name)
    return load_yaml(name), name


def _why_absent(kind: str, name: str) -> str:
    """Say that neither a file nor a bundled file has a name, and what was meant."""
    names, stem = bundled_names(kind), Path(name).stem
    other = "studies" if kind == "experiments" else "experiments"
    if is_bundled(other, name):
        return f"is one of the bundled {other}; {_RUNS[other]}"
    hint = nearest(stem, names)
    try:
        absent = no_such_file(name)
    except ConfigError:  # It can be no path at all.
        absent = "there is no such file"
    if re.fullmatch(r"[\w.]+:[\w.]+", name):  # A factory.
        return f"{absent}; for a network of your own, `fxfault init {name}` writes a first one"
    # A name with a folder or an ending is a file, and no bundled one that is misspelt.
    listed = "" if stem != name else f"; bundled {kind}: {', '.join(names)}"
    return f"{absent}{hint}{listed}"


def parse_yaml(data: bytes, source: str) -> dict[Any, Any]:
    """Read the bytes of a YAML document whose top level is a mapping.

    Args:
        data: UTF-8 text, or UTF-16 with a byte order mark.
        source: name of the document for errors.

    Returns:
        The content, as plain Python values.

    Raises:
        InvalidConfigError: as `load_yaml`.
    """
    if len(data) > MOST_BYTES:
        problem = f"has {size_text(len(data))}, allowed: up to {size_text(MOST_BYTES)}"
        raise InvalidConfigError([problem], source)
    content = _construct(data, source)
    if content is None:
        problem = "the file is empty, expected a mapping such as 'fault_injection:' with its keys"
        raise InvalidConfigError([problem], source)
    if not isinstance(content, dict):
        kind = type(content).__name__
        problem = f"the top level is a {kind}, expected a mapping of keys to values"
        raise InvalidConfigError([problem], source)
    return content


def _construct(data: bytes, source: str) -> Any:
    try:
        loader = _StrictLoader(data)
        node = loader.get_single_node()
        if node is not None:
            _count_values(node, {}, source)
        content = None if node is None else loader.construct_document(node)
    except _UnreadableValueError as error:
        raise InvalidConfigError([f"a value cannot be read: {error}"], source) from error
    except yaml.MarkedYAMLError as error:
        raise InvalidConfigError([_syntax_problem(error)], source) from error
    except yaml.YAMLError as error:  # bytes that are no text, control characters
        reason = one_line(str(error)).replace(' in "<byte string>",', " at")
        raise InvalidConfigError([f"not a YAML text file: {reason}"], source) from error
    except RecursionError as error:
        raise InvalidConfigError(["not usable: nested too deeply"], source) from error
    if loader.duplicates:
        raise InvalidConfigError(loader.duplicates, source)
    return content


def _count_values(node: yaml.Node, counts: dict[int, int], source: str) -> int:
    """Count the values in a node, as often as aliases repeat them.

    Args:
        node: a node of the document.
        counts: the counts of nodes by `id`; 0 while a node is being counted.
        source: name of the document for errors.
    """
    known = counts.get(id(node))
    if known == 0:
        problem = f"{_at(node)}: an alias is part of the value that it repeats"
        raise InvalidConfigError([problem], source)
    if known is not None:
        return known
    counts[id(node)] = 0
    number = 1
    if isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                number += _count_values(part, counts, source)
    if number > MOST_VALUES:
        problem = (
            f"{_at(node)}: more than {MOST_VALUES} values, counted wherever an alias repeats them"
        )
        raise InvalidConfigError([problem], source)
    counts[id(node)] = number
    return number


def _at(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"


def _syntax_problem(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    parts = [part for part in (error.context, error.problem) if part]
    return f"not valid YAML: {where}{one_line(', '.join(parts))}"


class _UnreadableValueError(Exception):
    """A value that PyYAML cannot read, in one line."""


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that notes repeated keys and reads numbers as YAML 1.2 does."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self.duplicates: list[str] = []

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        # Before `<<` merges are resolved, because these may override a key on purpose.
        node = super().compose_mapping_node(anchor)
        self.duplicates += _repeated_keys(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, _UnreadableValueError, RecursionError):
            raise
        # `2024-13-45`, too many digits, or `!!bool maybe`, which raises a KeyError.
        except Exception as error:
            if not isinstance(node, yaml.ScalarNode):
                raise
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            # The text of a KeyError only repeats the value.
            reason = f" ({one_line(str(error))})" if isinstance(error, ValueError) else ""
            text = f"{_at(node)}: {one_line(reprlib.repr(node.value))} is no {tag}{reason}"
            raise _UnreadableValueError(text) from error


def _repeated_keys(node: yaml.MappingNode) -> list[str]:
    problems = []
    first_lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        identity = (key.tag, key.value)
        if identity in first_lines:
            first = first_lines[identity]
            problems.append(f"key {key.value!r} is given twice, on lines {first} and {line}")
        first_lines.setdefault(identity, line)
    return problems


def _resolvers_with_float() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    kept = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _FLOAT_TAG]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "-+.0123456789":
        kept[first] = [(_FLOAT_TAG, _FLOAT), *kept.get(first, [])]
    return kept


_StrictLoader.yaml_implicit_resolvers = _resolvers_with_float()
