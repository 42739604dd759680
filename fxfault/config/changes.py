"""Values that replace those of a configuration file before it is checked.

>>> content = {"training": {"epochs": 3}}
>>> with_changes(content, {"training.epochs": 5, "seed.value": 1}), content
({'training': {'epochs': 5}, 'seed': {'value': 1}}, {'training': {'epochs': 3}})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxfault.errors import InvalidConfigError
from fxfault.messages import got


def with_changes(content: Mapping[Any, Any], changes: Mapping[str, Any]) -> dict[Any, Any]:
    """Return the content of a file with other values; missing sections are added.

    Args:
        content: the sections of the file, which stay as they are.
        changes: values by key path, such as `training.epochs`.

    Raises:
        InvalidConfigError: a key path leads through a value that is no mapping.
    """
    changed = dict(content)
    problems = []
    for path, value in changes.items():
        problem = _set(changed, path, value)
        problems += [problem] if problem else []
    if problems:
        raise InvalidConfigError(problems)
    return changed


def _set(content: dict[Any, Any], path: str, value: Any) -> str | None:
    *parents, key = path.split(".")
    for depth, parent in enumerate(parents, start=1):
        inner = content.get(parent)
        if inner is not None and not isinstance(inner, Mapping):
            return f"{path}: cannot be set, as {'.'.join(parents[:depth])} is {got(inner)}"
        # A copy: YAML's anchors let two keys share one mapping.
        content[parent] = dict(inner or {})
        content = content[parent]
    content[key] = value
    return None


def told_by_flag(
    error: InvalidConfigError, flags: Mapping[str, str], source: str | None = None
) -> InvalidConfigError:
    """Name the flags that gave the refused values, in place of the keys in the file.

    >>> error = InvalidConfigError(["training.epochs: got 0 (int)"], "my.yaml")
    >>> print(told_by_flag(error, {"training.epochs": "--epochs"}))
    --epochs: got 0 (int)
    >>> print(told_by_flag(error, {"seed.value": "--seed"}))
    my.yaml: training.epochs: got 0 (int)

    Args:
        error: what is wrong with a file whose values flags replaced.
        flags: the flags by the key paths that they replaced.
        source: the file, if the error does not name it.
    """
    told = [_by_flag(problem, flags) for problem in error.problems]
    source = error.source or source
    return InvalidConfigError(told, None if all(text.startswith("-") for text in told) else source)


def _by_flag(problem: str, flags: Mapping[str, str]) -> str:
    for path in sorted(flags, key=len, reverse=True):
        rest = problem.removeprefix(path)
        if rest != problem and rest[:1] in (":", "[", "."):
            return flags[path] + rest
    place = problem.partition(":")[0]
    # `--set model.kwarg.width=3` made a section that there is not.
    given = (path for path, flag in flags.items() if flag == f"--set {path}")
    return f"--set {problem}" if any(path.startswith(f"{place}.") for path in given) else problem
