"""Where trials run: in this process, in several, or on a Ray cluster.

An engine takes batches of trials and gives back rows. It never writes to a store.
"""
