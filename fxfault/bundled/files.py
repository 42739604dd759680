"""Find the experiments, studies and weights that come with the package."""

from __future__ import annotations

from importlib import resources

BUNDLED = "bundled:"
"""Prefix of the names of bundled checkpoints."""

_ENDING = {"experiments": ".yaml", "studies": ".yaml", "weights": ".pt"}


def bundled_names(kind: str) -> tuple[str, ...]:
    """Names of all bundled files of a kind, sorted.

    >>> bundled_names("studies")
    ('digits_study', 'digits_weights_study', 'efficientnet_study', 'sentences_study')

    Args:
        kind: `experiments`, `studies` or `weights`.
    """
    files = resources.files("fxfault.bundled").joinpath(kind).iterdir()
    ending = _ENDING[kind]
    names = (file.name.removesuffix(ending) for file in files if file.name.endswith(ending))
    return tuple(sorted(names))


def bundled_content(kind: str, name: str) -> bytes:
    """Content of one bundled file."""
    folder = resources.files("fxfault.bundled").joinpath(kind)
    return folder.joinpath(f"{name}{_ENDING[kind]}").read_bytes()
