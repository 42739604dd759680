"""Evaluate under faults by repeating only the work that the faults change.

This package keeps the fault-free run, and proves that samples may be run in other batches.
"""
