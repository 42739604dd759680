"""The errors that fxfault raises on purpose.

Every message says where (site, module, file or key), what came, what is allowed, and what to do.
A command prints it on one line and exits with status 2.
"""

from __future__ import annotations

from collections.abc import Sequence


class FxFaultError(Exception):
    """Base class of all errors that fxfault raises on purpose."""


class ConfigError(FxFaultError):
    """A configuration value, key or file that cannot be used."""


class InvalidConfigError(ConfigError):
    """Everything that is wrong with one configuration, on one line.

    >>> print(InvalidConfigError(["a: unknown key", "b: missing"], "fat.yaml"))
    fat.yaml: 2 problems: a: unknown key; b: missing

    Attributes:
        problems: one text per problem, each with the path of its key.
        source: the file; None for a mapping passed from Python.
    """

    def __init__(self, problems: Sequence[str], source: str | None = None) -> None:
        # Exception gets both arguments, so that a worker process can pickle the error.
        super().__init__(problems, source)
        self.problems = list(problems)
        self.source = source

    def __str__(self) -> str:
        count = len(self.problems)
        heads = [self.source] if self.source else []
        heads += [f"{count} problems"] if count > 1 else []
        return ": ".join([*heads, "; ".join(self.problems)])


class SiteError(FxFaultError):
    """A fault site that does not exist or cannot be injected faithfully."""


class TransformError(FxFaultError):
    """A model that the passes cannot rewrite as requested."""


class FreezeError(FxFaultError):
    """A model that cannot be frozen now, or that cannot train because it is frozen."""


class DataError(FxFaultError):
    """A data set, model or checkpoint that cannot be loaded."""


class TrainingError(FxFaultError):
    """A training that cannot continue: its loss is not finite, or it cannot write its files."""


class ForeignCodeError(FxFaultError):
    """Code outside fxfault, such as a network's forward, raised an error or exited."""


class BugError(FxFaultError):
    """A bug in fxfault, which the user should report."""


FOREIGN = (Exception, SystemExit, GeneratorExit)
"""What code outside fxfault may raise; `KeyboardInterrupt` is not among it."""


class StoreError(FxFaultError):
    """A store of trials that cannot be opened, written or continued."""


class EngineError(FxFaultError):
    """An engine that does not exist, or whose workers die or disagree."""
