"""Measurements: every figure that README quotes comes from one command here.

- `python -m benchmarks.overhead`: what faults cost, against the clean network.
- `python -m benchmarks.training`: what they cost a training step.
- `python -m benchmarks.freeze`: what freezing a network for evaluation saves.
- `python -m benchmarks.fat`: what fault-aware training buys.

`benchmarks.bundle_checkpoint` makes the weights that come with the package.
"""
