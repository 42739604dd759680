"""The errors that fxfault raises on purpose.

Every message says where (site, module, file or key), what came, what is
allowed, and what to do. A command prints it as one line and exits with 2.
"""

from __future__ import annotations

from collections.abc import Sequence


class FxFaultError(Exception):
    """Root of all errors that fxfault raises on purpose."""


class ConfigError(FxFaultError):
    """A configuration value, key or file that cannot be used."""


class InvalidConfigError(ConfigError):
    """All that is wrong with one configuration, in one line.

    >>> print(InvalidConfigError(["a: unknown key", "b: missing"], "fat.yaml"))
    fat.yaml: 2 problems: a: unknown key; b: missing

    Attributes:
        problems: one text per problem, each with the path of its key.
        source: the file, or None for a mapping that came from Python.
    """

    def __init__(self, problems: Sequence[str], source: str | None = None) -> None:
        # Both arguments go to Exception, so that a worker process can pickle the error.
        super().__init__(problems, source)
        self.problems = list(problems)
        self.source = source

    def __str__(self) -> str:
        count = len(self.problems)
        heads = [self.source] if self.source else []
        heads += [f"{count} problems"] if count > 1 else []
        return ": ".join([*heads, "; ".join(self.problems)])


class SiteError(FxFaultError):
    """A fault site that does not exist or that cannot be injected faithfully."""


class TransformError(FxFaultError):
    """A model that the passes cannot rewrite as asked."""


class FreezeError(FxFaultError):
    """A model that cannot be frozen now, or that cannot train because it is frozen."""


class DataError(FxFaultError):
    """A data set, model or checkpoint that cannot be loaded."""


class TrainingError(FxFaultError):
    """A training that cannot go on: no finite loss, or files that cannot be written."""


class ForeignCodeError(FxFaultError):
    """Code that is not fxfault's, such as a network's forward, raised or ended the program."""


class BugError(FxFaultError):
    """Something in fxfault itself went wrong; it is to be reported."""


FOREIGN = (Exception, SystemExit, GeneratorExit)
"""What code of somebody else's may raise; Ctrl-C is none of it."""


class StoreError(FxFaultError):
    """A store of trials that cannot be opened, written or gone on with."""


class EngineError(FxFaultError):
    """An engine that cannot run trials: no such engine, or workers that die or disagree."""
