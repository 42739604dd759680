"""Call a user's factory that a configuration names as `package.module:factory`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from fxfault.errors import FOREIGN, DataError
from fxfault.messages import nearest, quote_error

_SECTIONS = {"model": "model", "data set": "dataset", "metric": "metric"}


def call_factory(reference: str, *, what: str, kwargs: Mapping[str, Any]) -> Any:
    """Import `package.module` and call its `factory`.

    Modules in the current folder come first during the call, as with `python -m`.

    >>> call_factory("fractions:Fraction", what="model", kwargs={"numerator": 3})
    Fraction(3, 1)
    >>> call_factory("fractions:Fractoin", what="model", kwargs={})
    Traceback (most recent call last):
    fxfault.errors.DataError: model 'fractions:Fractoin': module 'fractions' has no \
'Fractoin' (did you mean 'Fraction'?); check the name after the colon

    Args:
        reference: `package.module:factory`.
        what: kind of object for the messages: "model" or "data set".
        kwargs: arguments of the call.

    Raises:
        DataError: the module or the factory does not exist, the attribute is not a factory, or
            the user's code raises an error, which is quoted.
    """
    prefix = f"{what} {reference!r}"
    with _current_folder_importable():
        factory = find_factory(reference, what=what)
        try:
            return factory(**kwargs)
        except FOREIGN as error:  # the user's code may raise anything
            name = reference.partition(":")[2]
            raised = f"{name}({', '.join(map(str, kwargs))}) raised {quote_error(error)}"
            section = _SECTIONS.get(what)
            step = error.__traceback__
            # Not the factory raised it, but the call of it.
            is_of_call = isinstance(error, TypeError) and step is not None and not step.tb_next
            mend = f"; give its arguments in {section}.kwargs" if section and is_of_call else ""
            if mend and "split" in kwargs and "unexpected keyword argument 'split'" in str(error):
                mend = f"; write it as {name}(split), as it is called for 'train' and 'test'"
            raise DataError(f"{prefix}: {raised}{mend}") from error


def find_factory(reference: str, *, what: str) -> Callable[..., Any]:
    """Import `package.module` and return its `factory` without a call.

    >>> find_factory("math:sqrt", what="metric")(9)
    3.0

    Args:
        reference: `package.module:factory`.
        what: kind of object for the messages.

    Raises:
        DataError: as `call_factory`, apart from errors of the call.
    """
    prefix = f"{what} {reference!r}"
    module_name, factory_name = _split(reference, prefix)
    with _current_folder_importable():
        return _find(_import(module_name, prefix), factory_name, prefix)


def _split(reference: str, prefix: str) -> tuple[str, str]:
    module_name, _, factory_name = reference.partition(":")
    parts = [*module_name.split("."), *factory_name.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise DataError(
            f"{prefix}: write it as package.module:factory, such as "
            f"{_guess(module_name, factory_name)}"
        )
    return module_name, factory_name


def _guess(module_name: str, factory_name: str) -> str:
    """What somebody meant who wrote a path in place of a module.

    >>> _guess("./nets/small.py", "make"), _guess("nets.small", ""), _guess("", "")
    ('nets.small:make', 'nets:small', 'my_nets.small:make')
    """
    if not factory_name and "." in module_name and not module_name.endswith(".py"):
        module_name, _, factory_name = module_name.rpartition(".")
    dotted = module_name.removesuffix(".py").lstrip("./").replace("/", ".").replace("-", "_")
    whole = f"{dotted}:{factory_name or 'make'}"
    return whole if re.fullmatch(r"[\w.]+:[\w.]+", whole) else "my_nets.small:make"


def _import(module_name: str, prefix: str) -> ModuleType:
    importlib.invalidate_caches()  # the module may have been written a moment ago
    try:
        return importlib.import_module(module_name)
    except FOREIGN as error:  # the user's code may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise DataError(f"{prefix}: {_why_missing(missing)}") from error
        raise DataError(f"{prefix}: importing {module_name} raised {quote_error(error)}") from error


def _why_missing(name: str) -> str:
    """Say where a module was looked for, and what to do."""
    parent, _, last = name.rpartition(".")
    if last == "py":
        return f"write the module without its ending: {parent}:..., not {name}:..."
    if parent:
        place = getattr(sys.modules.get(parent), "__path__", None)
        if place is None:
            return f"{parent!r} is a module and no package, so that there is no {name!r} in it"
        near = nearest(last, _modules_in(*place))
        return f"the package {parent!r} in {next(iter(place))} has no module {last!r}{near}"
    folder = Path.cwd()
    return (
        f"there is no module {name!r} in the current folder, {folder}, on PYTHONPATH or among the "
        f"installed packages{nearest(name, _modules_in(folder))}; run the command in the folder "
        f"that holds {name}, or put that folder on PYTHONPATH"
    )


def _modules_in(*folders: str | Path) -> list[str]:
    """The names of the modules and packages in some folders."""
    entries = [entry for folder in folders for entry in _entries(Path(folder))]
    return [entry.stem for entry in entries if entry.suffix == ".py" or entry.is_dir()]


def _entries(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(folder.iterdir())
    return []


def _find(module: ModuleType, factory_name: str, prefix: str) -> Callable[..., Any]:
    found: Any = module
    for part in factory_name.split("."):
        owner, found = found, getattr(found, part, None)
        if found is None:
            public = [name for name in dir(owner) if not name.startswith("_")]
            raise DataError(
                f"{prefix}: module {module.__name__!r} has no {factory_name!r}"
                f"{nearest(part, public)}; check the name after the colon"
            )
    # A network that is already built is callable too, but with images.
    is_network = hasattr(found, "state_dict") and not isinstance(found, type)
    if is_network or not callable(found):
        raise DataError(
            f"{prefix}: {factory_name!r} is an object of type {type(found).__name__}; "
            f"it must be a function or a class that makes one"
        )
    return found


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        # Do not restore a copy of the list: the user's module may have added a folder.
        if folder in sys.path:
            sys.path.remove(folder)
