"""Measurements: every figure that README quotes comes from one command here.

- `python -m benchmarks.overhead`: what faults cost, against the clean network.
- `python -m benchmarks.train_digits`: trains the checkpoint that comes with the package.
"""
