"""The networks that a configuration can name: four built in, and any of the user's own.

Importing this package imports neither torch nor brevitas; building a network does.
"""

from __future__ import annotations

from fxfault.models.catalogue import build_model, model_names

__all__ = ["build_model", "model_names"]
