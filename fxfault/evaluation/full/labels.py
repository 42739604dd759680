"""Check the labels of a classifier's data."""

from __future__ import annotations
