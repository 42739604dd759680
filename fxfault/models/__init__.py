"""The networks that a configuration can name: six built in, and any of the user's own.

Building a network imports torch and brevitas; importing this package imports neither.
"""

from __future__ import annotations

from fxfault.models.catalogue import build_model, model_names

__all__ = ["build_model", "model_names"]
