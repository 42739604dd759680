"""Measurements: every figure that README quotes comes from one command here.

- `python -m benchmarks.overhead`: what faults cost, against the clean network.
- `python -m benchmarks.training`: what they cost a training step.
- `python -m benchmarks.freeze`: what freezing a network for evaluation saves.
- `python -m benchmarks.incremental`: what it saves to run only what faults change.
- `python -m benchmarks.peers`: what other tools add, and how our time grows.
- `python -m benchmarks.campaign`: what a campaign's bookkeeping costs and more workers give.
- `python -m benchmarks.campaign_kills`: campaigns that are killed and resumed end the same.
- `python -m benchmarks.fat`: what fault-aware training buys.

`benchmarks.bundle_checkpoint` makes the weights that come with the package.
"""
