"""The errors that fxfault raises on purpose.

Every message says where (site, module, file or key), what came, what is
allowed, and what to do. A command prints it as one line and exits with 2.
"""

from __future__ import annotations


class FxFaultError(Exception):
    """Root of all errors that fxfault raises on purpose."""


class ConfigError(FxFaultError):
    """A configuration value, key or file that cannot be used."""


class SiteError(FxFaultError):
    """A fault site that does not exist or that cannot be injected faithfully."""


class TransformError(FxFaultError):
    """A model that the passes cannot rewrite as asked."""


class DataError(FxFaultError):
    """A data set, model or checkpoint that cannot be loaded."""
