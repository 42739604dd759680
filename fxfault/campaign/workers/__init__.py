"""Engines: they run batches of trials in this process, in several, or on a Ray cluster.

An engine returns rows. It never writes to a store.
"""
