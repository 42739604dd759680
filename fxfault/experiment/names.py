"""Check the names of networks and data sets in an experiment file before anything is opened.

>>> name_problems("model", "quant_digit")
["model.name: 'quant_digit' is unknown; did you mean 'quant_digits'?"]
>>> name_problems("model", "mylab.net")
["model.name: 'mylab.net' has no colon; for a network of your own write package.module:factory, \
such as 'mylab:net'"]
"""

from __future__ import annotations

from fxfault.data import dataset_names
from fxfault.messages import did_you_mean
from fxfault.models import model_names


def name_problems(section: str, name: str) -> list[str]:
    """Say what is wrong with a name; empty if it is built in, or names a factory.

    Args:
        section: `model` or `dataset`.
        name: the name, as a user wrote it.
    """
    known = model_names() if section == "model" else dataset_names()
    if ":" in name or name in known:
        return []
    own = "a network of your own" if section == "model" else "a data set of your own"
    hint = did_you_mean([name], list(known))
    if hint:
        return [f"{section}.name: {name!r} is unknown{hint}"]
    if "." in name or "/" in name:
        example = _as_factory(name)
        return [
            f"{section}.name: {name!r} has no colon; for {own} write package.module:factory, such "
            f"as {example!r}"
        ]
    return [
        f"{section}.name: {name!r} is unknown; allowed: {', '.join(known)}, or for {own} "
        "package.module:factory, with a colon"
    ]


def _as_factory(name: str) -> str:
    """Guess the factory that is meant.

    >>> _as_factory("mylab.net"), _as_factory("nets/small.py")
    ('mylab:net', 'nets.small:make')
    """
    if name.endswith(".py") or "/" in name:
        parts = name.removesuffix(".py").strip("./").replace("/", ".")
        return f"{parts}:make"
    module, _, factory = name.rpartition(".")
    return f"{module}:{factory or 'make'}"
