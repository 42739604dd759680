"""Evaluate under faults by computing again only what the faults change.

All that is kept of the fault-free run is here, with the proof that samples may be run apart.
"""
