"""Trace a model into graphs that keep its classes, its keys and its behaviour.

This room knows which layers are fault targets, but knows nothing about faults.
"""
