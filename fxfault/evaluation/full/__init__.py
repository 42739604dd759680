"""Evaluate by running every batch in full, the reference for all other runners."""
