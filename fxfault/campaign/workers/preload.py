"""Imports what every worker needs. The fork server imports this module before it forks.

It must run no operation of torch and must not touch CUDA: neither survives a fork. The only threads
that it may start are those of OpenBLAS (NumPy's and SciPy's), which is made for forks.
"""

from contextlib import suppress

with suppress(Exception):  # A worker meets the same error and reports it.
    import fxfault.campaign.workers.trial_runner  # noqa: F401
