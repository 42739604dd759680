"""What arguments a network's forward takes, as far as its signature tells."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fxfault.messages import and_more

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Signature:
    """The arguments of a forward.

    Attributes:
        positional: names of those that may be given by position.
        required: names of those without a default.
        named: names of those that may be given by name.
        any_number: whether it takes any number by position, or its signature is unknown.
        any_name: whether it takes any name, or its signature is unknown.
        is_unknown: whether nothing is known of it.
    """

    positional: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    any_number: bool = True
    any_name: bool = True
    is_unknown: bool = True

    def needs(self, number: int) -> bool:
        """Whether the forward may need just so many arguments by position, and no other.

        Arguments with a default do not count: an item of a batch that happens to fit one may be
        something else.
        """
        by_place = [name for name in self.required if name in self.positional]
        if self.any_number:
            return number >= len(by_place)
        least = max(1, len(by_place)) if self.positional else len(by_place)
        return number == least and len(by_place) == len(self.required)

    def takes(self, name: str) -> bool:
        """Whether the forward takes an argument of a name."""
        return self.any_name or name in self.named

    def __str__(self) -> str:
        names = [*self.positional, *(name for name in self.named if name not in self.positional)]
        marked = [name if name in self.required else f"{name}=..." for name in names]
        marked += ["*args"] * self.any_number + ["**kwargs"] * self.any_name
        return f"({and_more(marked, 8)})"


def signature_of(forward: Callable[..., Any] | None) -> Signature:
    """Read the signature of a forward.

    >>> signature = signature_of(lambda x, mask=None: x)
    >>> str(signature), signature.needs(1), signature.needs(2), signature.takes("y")
    ('(x, mask=...)', True, False, False)

    Args:
        forward: a bound method, or a function; None if there is none.
    """
    if forward is None:
        return Signature()
    try:
        parameters = inspect.signature(forward).parameters
    except (TypeError, ValueError):  # A forward in C, or one that hides its signature.
        return Signature()
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return Signature(
        positional=tuple(name for name, kind in kinds.items() if kind in _BY_PLACE),
        required=tuple(
            name
            for name, parameter in parameters.items()
            if parameter.kind not in stars and parameter.default is inspect.Parameter.empty
        ),
        named=tuple(name for name, kind in kinds.items() if kind in _BY_NAME),
        any_number=stars[0] in kinds.values(),
        any_name=stars[1] in kinds.values(),
        is_unknown=False,
    )
