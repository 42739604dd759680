"""Evaluate by running every batch whole: what all other runners must agree with."""
